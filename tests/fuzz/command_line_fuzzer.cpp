// Command lines: one argument a line. Files that they name are not opened: --config is left out.
#include <vector>

#include "config/command_line.hpp"
#include "fuzz/fuzz.hpp"

using namespace athanor;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::vector<std::string> words = {"athanor"};
  std::string_view rest = fuzz::as_text(data, size);
  while (!rest.empty()) {
    const std::size_t end = std::min(rest.find('\n'), rest.size());
    const std::string word(rest.substr(0, end));
    if (word.find("--config") == std::string::npos && word.find('\0') == std::string::npos) {
      words.push_back(word);
    }
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  std::vector<const char*> arguments;
  for (const std::string& word : words) {
    arguments.push_back(word.c_str());
  }
  fuzz::takes([&] { config::parse_command_line(static_cast<int>(arguments.size()), arguments.data()); });
  return 0;
}
