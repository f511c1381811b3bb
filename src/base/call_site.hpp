// Where in the source a function was called from.
#pragma once

namespace athanor::base {

/// As std::source_location, which clang 14 does not have with libstdc++ 12.
struct CallSite {
  const char* file = "";
  int line = 0;

  /// As a default argument: the place of the call.
  static constexpr CallSite current(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return {file, line};
  }
};

}  // namespace athanor::base
