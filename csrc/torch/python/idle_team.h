// Makes OpenMP's threads leave their cores to an engine with threads of its own.
#pragma once

// While the idle team lives, GNU's OpenMP, which PyTorch uses on Linux, puts a thread to sleep a few
// microseconds after its part of a parallel region. Otherwise it spins for milliseconds and takes a core from
// whatever runs next. OpenMP does so by itself when it manages more threads than there are cores; this is a
// team of further threads, which all sleep. With another OpenMP it has no effect.
//
// PyTorch's small operators are slower beside it, since each wakes a thread. So it ends by itself when no
// such engine has been called for a while.
namespace cnnlstm::idle_team {

// Before a call of such an engine: the team lives for another while. Costs nanoseconds if it lives; else a
// thread is started, which makes it beside the call. Throws std::system_error if that fails, and is not
// tried again.
void use();

// Ends it now; returns when its threads are gone. The next use() makes it again.
void end();

}  // namespace cnnlstm::idle_team
