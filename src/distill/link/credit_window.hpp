// How far a teacher may run ahead: the bookkeeping of credits on both ends, without any communication.
//
// One credit is all packets of one optimizer step on one route. A receiver grants it after it has posted the
// receives of that step, so a sender that holds it never waits inside the step.
#pragma once

#include <cstdint>
#include <map>
#include <optional>

namespace athanor::distill {

/// The receiver's side: at most `window` steps are posted and not released.
class CreditWindow {
 public:
  /// Steps [first_step, end_step). Throws ConfigError unless window >= 1.
  CreditWindow(std::int64_t window, std::int64_t first_step, std::int64_t end_step);

  /// The next step to post and grant, counted as posted from now on; nothing while the window is full or
  /// when all steps are posted.
  std::optional<std::int64_t> post_next();
  /// The oldest posted step is consumed. Throws InternalError when `step` is another.
  void release(std::int64_t step);
  /// The oldest step that is not released.
  std::int64_t current() const { return released_; }
  std::int64_t window() const { return window_; }

 private:
  std::int64_t window_;
  std::int64_t end_step_;
  std::int64_t released_;  // steps below are consumed
  std::int64_t posted_;    // steps below are posted
};

/// What a receiver grants.
struct Credit {
  std::int64_t step = 0;
  std::uint64_t fingerprint = 0;  ///< Route::fingerprint() of the receives that are posted
};

/// The sender's side: what each receiver has granted and was not used yet. Credits of one receiver come in
/// the order of steps.
class CreditBook {
 public:
  explicit CreditBook(int sender) : sender_(sender) {}
  /// Notes a credit. Throws CommError naming both ranks when it does not come after the last one.
  void grant(int receiver, const Credit& credit);
  bool has(int receiver, std::int64_t step) const;
  /// Uses a credit that is there. Throws CommError naming both ranks when the receiver has posted other
  /// buffers than `fingerprint` says: MPI must never get a message that is longer than its buffer.
  void use(int receiver, const Credit& needed);

 private:
  int sender_;
  std::map<int, std::int64_t> last_granted_;
  std::map<int, std::map<std::int64_t, std::uint64_t>> unused_;  // by receiver and step
};

}  // namespace athanor::distill
