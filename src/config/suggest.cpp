#include "config/suggest.hpp"

#include <algorithm>
#include <cctype>

namespace athanor::config {
namespace {

std::string fold(std::string_view word) {
  std::string folded(word);
  for (char& letter : folded) {
    letter = letter == '-' ? '_' : static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
  }
  return folded;
}

std::string_view last_part(std::string_view key) {
  return key.substr(key.rfind('.') + 1);
}

}  // namespace

int edit_distance(std::string_view a, std::string_view b) {
  const std::string from = fold(a);
  const std::string to = fold(b);
  // Rows i-2, i-1 and i of the table of distances between prefixes (optimal string alignment).
  std::vector<int> before(to.size() + 1), previous(to.size() + 1), current(to.size() + 1);
  for (std::size_t j = 0; j <= to.size(); ++j) {
    previous[j] = static_cast<int>(j);
  }
  for (std::size_t i = 1; i <= from.size(); ++i) {
    current[0] = static_cast<int>(i);
    for (std::size_t j = 1; j <= to.size(); ++j) {
      const int replaced = previous[j - 1] + (from[i - 1] == to[j - 1] ? 0 : 1);
      current[j] = std::min({previous[j] + 1, current[j - 1] + 1, replaced});
      if (i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1]) {
        current[j] = std::min(current[j], before[j - 2] + 1);
      }
    }
    std::swap(before, previous);
    std::swap(previous, current);
  }
  return previous[to.size()];
}

std::string nearest(std::string_view word, const std::vector<std::string>& candidates) {
  int best_distance = std::max(2, static_cast<int>(word.size()) / 3) + 1;
  std::string best;
  for (const std::string& candidate : candidates) {
    int distance = edit_distance(word, candidate);
    if (word.find('.') == std::string_view::npos) {  // the section was forgotten
      distance = std::min(distance, edit_distance(word, last_part(candidate)) + 1);
    } else if (fold(last_part(word)) == fold(last_part(candidate))) {  // the right key in the wrong section
      distance = std::min(distance, 2);
    }
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

}  // namespace athanor::config
