#include "distill/link/credit_window.hpp"

#include "base/error.hpp"

namespace athanor::distill {

CreditWindow::CreditWindow(std::int64_t window, std::int64_t first_step, std::int64_t end_step)
    : window_(window), end_step_(end_step), released_(first_step), posted_(first_step) {
  if (window < 1) {
    throw base::ConfigError("distill.window is {} (a teacher needs room for at least one step) use 1 or more",
                            window);
  }
}

std::optional<std::int64_t> CreditWindow::post_next() {
  if (posted_ >= end_step_ || posted_ >= released_ + window_) {
    return std::nullopt;
  }
  return posted_++;
}

void CreditWindow::release(std::int64_t step) {
  ATHANOR_CHECK(step == released_ && step < posted_, "step {} is released (steps {} to {} are under way)",
                step, released_, posted_ - 1);
  ++released_;
}

void CreditBook::grant(int receiver, const Credit& credit) {
  const auto last = last_granted_.find(receiver);
  if (last != last_granted_.end() && credit.step <= last->second) {
    throw base::CommError(
        "student rank {} grants teacher rank {} step {} after step {} (credits come in order) both must run "
        "the same program and config",
        receiver, sender_, credit.step, last->second);
  }
  last_granted_[receiver] = credit.step;
  unused_[receiver][credit.step] = credit.fingerprint;
}

bool CreditBook::has(int receiver, std::int64_t step) const {
  const auto found = unused_.find(receiver);
  return found != unused_.end() && found->second.contains(step);
}

void CreditBook::use(int receiver, const Credit& needed) {
  ATHANOR_CHECK(has(receiver, needed.step), "step {} is not granted by rank {}", needed.step, receiver);
  const auto node = unused_[receiver].extract(needed.step);
  if (node.mapped() != needed.fingerprint) {
    throw base::CommError(
        "teacher rank {} and student rank {} do not agree on what is sent in step {} (their routes differ) "
        "both "
        "must run the same program and config",
        sender_, receiver, needed.step);
  }
}

}  // namespace athanor::distill
