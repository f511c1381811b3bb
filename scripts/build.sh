#!/usr/bin/env bash
# Configures and builds one preset, and links build/athanor to its program.
#   scripts/build.sh [release|test|cuda|debug|asan] [TARGET...]
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

preset="${1:-release}"
shift || true
case "$preset" in
  release | test | cuda | debug | asan) ;;
  *) fail "unknown preset '$preset': release, test, cuda, debug and asan are known" 64 ;;
esac

cd "$root"
has cmake ninja ||
  fail "cmake or ninja is not here: run scripts/install_dependencies.sh first" 69

targets=()
[[ $# -gt 0 ]] && targets=(--target "$@")
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
cmake --preset "$preset" >"$log" 2>&1 || {
  cat "$log" >&2
  fail "configuring '$preset' failed (the reason is above): scripts/install_dependencies.sh installs what is missing"
}
cmake --build --preset "$preset" -j "$(cores)" "${targets[@]}"

if [[ -x "build/$preset/athanor" ]]; then
  ln -sfn "$preset/athanor" build/athanor
fi
