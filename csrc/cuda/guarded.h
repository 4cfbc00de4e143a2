// Exceptions as messages: none may cross the C ABI.
#pragma once

#include <stddef.h>

#include <cstdio>
#include <exception>
#include <type_traits>

namespace cnnlstm {

// Returns what `body` returns, or 0 if it returns nothing; if it throws, -1 with the reason in `message`.
template <class Body>
auto guarded(char* message, size_t message_size, Body body) {
  using Result = decltype(body());
  if constexpr (std::is_void_v<Result>) {
    return guarded(message, message_size, [&] {
      body();
      return 0;
    });
  } else {
    try {
      return body();
    } catch (const std::exception& error) {
      std::snprintf(message, message_size, "%s", error.what());
      return Result(-1);
    }
  }
}

}  // namespace cnnlstm
