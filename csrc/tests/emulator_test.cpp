// Tests of the machine that runs CUDA kernels on a CPU, with kernels of a few lines. Runs all, or those
// named as arguments; prints a line for each failure, upon which the exit status is 1.
#include "tests/emulator_test.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <exception>
#include <vector>

namespace cnnlstm::device_test {

static int fail(const Test& test) {
  cnnlstm_emulator_seed(0, 0.05);
  try {
    test.body();
    return 0;
  } catch (const std::exception& error) {
    std::printf("%s: %s\n", test.name, error.what());
    return 1;
  }
}

}  // namespace cnnlstm::device_test

using namespace cnnlstm::device_test;

int main(int argc, char** argv) {
  std::vector<Test> wanted = argc == 1 ? tests : std::vector<Test>();
  for (int i = 1; i < argc; ++i) {
    const auto found = std::find_if(tests.begin(), tests.end(),
                                    [&](const Test& test) { return !strcmp(test.name, argv[i]); });
    if (found == tests.end()) {
      std::printf("There is no test %s.\n", argv[i]);
      return 1;
    }
    wanted.push_back(*found);
  }
  int failed = 0;
  for (const Test& test : wanted) failed += fail(test);
  return failed > 0;
}
