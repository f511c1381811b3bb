#!/usr/bin/env bash
# Checks the source: layers, style, shell scripts, self-contained headers, clang-tidy.
#   scripts/lint.sh             everything that the tests check (about 2 minutes)
#   scripts/lint.sh --changed   the same, but headers and clang-tidy only for files that differ from the last commit,
#                               those that include ATen too (half a minute each)
#   scripts/lint.sh --deep      clang-tidy with clang's analyzer (about three times as long)
# Needs a configured build/test (scripts/build.sh test).
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
export PYTHONDONTWRITEBYTECODE=1

changed=no
tidy_arguments=()
for argument in "$@"; do
  case "$argument" in
    --changed) changed=yes ;;
    --deep) tidy_arguments+=(--deep) ;;
    -h | --help)
      sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) fail "unknown argument '$argument' (--changed and --deep are known): leave it out" 64 ;;
  esac
done
has clang-format clang-tidy shellcheck || fail "a tool is missing: run scripts/install_dependencies.sh --dev" 69
[[ -f build/test/compile_commands.json ]] || fail "build/test is not configured: run scripts/build.sh test" 66

status=0
python3 tests/lint/check_layers.py || status=1
python3 tests/lint/check_docs.py || status=1
python3 tests/lint/check_style.py || status=1
shellcheck -x -P . scripts/*.sh || status=1
if [[ $changed == no ]]; then
  python3 tests/lint/check_headers.py --build build/test || status=1
  python3 tests/lint/check_tidy.py --build build/test "${tidy_arguments[@]}" || status=1
else
  mapfile -t headers < <({ git diff --name-only HEAD -- src; git ls-files --others --exclude-standard src; } |
    sed -n 's#^src/\(.*\.hpp\)$#\1#p')
  mapfile -t sources < <({ git diff --name-only HEAD -- src; git ls-files --others --exclude-standard src; } |
    grep '\.cpp$' || true)
  [[ ${#headers[@]} -eq 0 ]] || python3 tests/lint/check_headers.py --build build/test "${headers[@]}" || status=1
  [[ ${#sources[@]} -eq 0 ]] ||
    python3 tests/lint/check_tidy.py --build build/test "${tidy_arguments[@]}" "${sources[@]}" || status=1
fi
exit $status
