// Config files: what is taken resolves to a configuration whose own text means the same again.
#include "config/command_line.hpp"
#include "config/validate.hpp"
#include "fuzz/fuzz.hpp"

using namespace athanor;

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string text(fuzz::as_text(data, size));
  for (const config::Command command : {config::Command::train, config::Command::distill}) {
    fuzz::takes([&] {
      const config::RunConfig config =
          config::resolve_with_base(command, {}, config::parse_ini(text, "input"));
      const std::string own = config::to_ini(config);
      const config::RunConfig again =
          config::resolve_with_base(command, {}, config::parse_ini(own, "its own text"));
      fuzz::require(config::to_ini(again) == own);
      config::validate(config, 4);
    });
  }
  return 0;
}
