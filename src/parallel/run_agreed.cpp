#include "parallel/run_agreed.hpp"

#include <c10/util/Exception.h>

#include <algorithm>
#include <exception>
#include <string>
#include <vector>

#include "base/error.hpp"
#include "parallel/collectives/collectives.hpp"

namespace athanor::parallel {
namespace {

// An error as one string: its exit code in three digits, then its message; "" without one.
std::string failure_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const base::Error& error) {
    return fmt::format("{:03}{}", static_cast<int>(error.exit_code()), error.what());
  } catch (const std::exception& error) {
    return fmt::format("{:03}{}", static_cast<int>(base::ExitCode::internal), message_of(error));
  }
  return "";
}

}  // namespace

std::string message_of(const std::exception& error) {
  const auto* torch_error = dynamic_cast<const c10::Error*>(&error);
  return torch_error != nullptr ? torch_error->what_without_backtrace() : error.what();
}

void run_agreed(const Communicator& comm, const std::function<void()>& action) {
  const std::vector<std::string> failures = all_gather_strings(failure_of(action), comm);
  const auto first =
      std::find_if(failures.begin(), failures.end(), [](const std::string& text) { return !text.empty(); });
  if (first == failures.end()) {
    return;
  }
  const bool is_common =
      std::all_of(failures.begin(), failures.end(), [&](const auto& text) { return text == *first; });
  const std::string message = first->substr(3);
  throw base::Error(static_cast<base::ExitCode>(std::stoi(first->substr(0, 3))),
                    is_common ? message : fmt::format("rank {}: {}", first - failures.begin(), message));
}

}  // namespace athanor::parallel
