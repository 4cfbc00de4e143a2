// Exceptions as messages: none may cross the C ABI.
#pragma once

#include <stddef.h>

#include <cstdio>
#include <exception>
#include <type_traits>

namespace cnnlstm {

// What `body` returns, 0 where that is nothing; -1, and the reason in `message`, where it throws.
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
