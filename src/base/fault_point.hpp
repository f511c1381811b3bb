// Named places at which a test makes a rank fail. Compiled in always, off unless ATHANOR_FAULT is set:
//
//   ATHANOR_FAULT=point:rank:nth:action[,...]
//
// rank: a world rank, or * for each; nth: which passing of the point by that rank, from 1; action: kill
// (SIGKILL to itself), exit (at once, code 70), throw (IoError), sleep=SECONDS, hang (an endless loop of this
// thread), stop (SIGSTOP to itself), value=NUMBER (at points that take one: see fault_value()).
// Example: ATHANOR_FAULT=checkpoint.before_rename:0:2:kill
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace athanor::base {

/// Acts if a fault is set for this passing of `point` by `rank`. May be called on any thread. Throws IoError
/// for the action `throw`, ConfigError when ATHANOR_FAULT is malformed.
void fault_point(std::string_view point, int rank);

/// The number of a fault that is set for this passing of `point` by `rank` with the action `value`; may be
/// nan or inf. The caller does damage with it. Acts on other actions as fault_point().
std::optional<double> fault_value(std::string_view point, int rank);

/// Reads ATHANOR_FAULT unless that was done or set_faults() was called before: call it at start, so that a
/// mistake is found there. Throws ConfigError naming the malformed part.
void read_fault_setting();

/// Replaces the faults of this process, counting from here; "" is none. Throws ConfigError.
void set_faults(const std::string& setting);

}  // namespace athanor::base
