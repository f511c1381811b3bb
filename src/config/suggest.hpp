// The nearest legal word to a mistyped one.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace athanor::config {

/// Edits (insert, delete, replace, swap of neighbours) that turn `a` into `b`; upper and lower case, '-' and
/// '_' are the same.
int edit_distance(std::string_view a, std::string_view b);

/// The candidate nearest to `word`; "" when none is near enough to be meant. A candidate whose last part
/// (after the dots) is the word is near: "layers" gives "model.layers".
std::string nearest(std::string_view word, const std::vector<std::string>& candidates);

}  // namespace athanor::config
