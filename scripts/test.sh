#!/usr/bin/env bash
# Installs what is missing, builds, and runs every check: lint, unit and MPI tests, contracts, parity with the
# reference implementation, sanitizers, fuzzing, and the build with CUDA where there is a compiler for it. Prints the
# time of each part beside its budget (minutes on 2 cores) and, as the last line, how many tests passed and failed.
# Exits with 1 if any failed.
#   scripts/test.sh [--full]
#     --full  device code for compute capabilities 8.0, 9.0 and 10.0 instead of 9.0 alone
set -uo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root" || exit 70
prepare_mpi

architectures=90
case "${1:-}" in
  "") ;;
  --full) architectures="80;90;100" ;;
  -h | --help)
    sed -n '2,8s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
  *) fail "unknown argument '$1': --full is the only one" 64 ;;
esac

passed=0
failed=0
skipped=0
table=()
failures=()

# count NAME STATUS: one check that is no ctest.
count() {
  if [[ $2 -eq 0 ]]; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
    failures+=("$1")
  fi
}

# count_junit FILE: adds the tests of a ctest report.
count_junit() {
  local good bad left_out names
  IFS=$'\t' read -r good bad left_out names < <(python3 - "$1" <<'PYTHON'
import sys
import xml.etree.ElementTree as xml

cases = list(xml.parse(sys.argv[1]).getroot().iter("testcase"))
# A test that could not be started is "skipped" too: only those that chose to be left out are no failures.
reasons = {case.get("name"): case.find("skipped") for case in cases}
skipped = [name for name, reason in reasons.items()
           if reason is not None and reason.get("message", "").startswith("SKIP_RETURN_CODE")]
bad = [case.get("name") for case in cases if case.get("status") != "run" and case.get("name") not in skipped]
print(len(cases) - len(bad) - len(skipped), len(bad), len(skipped), " ".join(bad), sep="\t")
PYTHON
  ) || return 1
  passed=$((passed + good))
  failed=$((failed + bad))
  skipped=$((skipped + left_out))
  [[ $bad -eq 0 ]] || failures+=("$names")
}

# run_ctest BUILD ctest-arguments...
run_ctest() {
  local build=$1 report before=$failed
  shift
  report="$(mktemp)"
  ctest --test-dir "$build" -j "$(cores)" --output-on-failure --no-tests=error --output-junit "$report" "$@"
  local status=$?
  count_junit "$report" || status=1
  if [[ $status -ne 0 && $failed -eq $before ]]; then
    count "ctest $*" "$status" # it ran nothing, or died
  fi
  rm -f "$report"
}

# part NAME BUDGET_MINUTES command...
part() {
  local name=$1 budget=$2 start=$SECONDS
  shift 2
  say "$name"
  "$@"
  local status=$? took=$((SECONDS - start)) note=""
  [[ $took -le $((budget * 60)) ]] || note="over its budget"
  table+=("$(printf '%-28s %3d:%02d  of %2d:00  %s' "$name" $((took / 60)) $((took % 60)) "$budget" "$note")")
  return $status
}

sanitizer_tests() {
  local labels='^(base|parallel|moe|data|checkpoint|distill)$' targets
  if ! cmake --preset asan; then
    count "sanitizer configuration" 1
    return 1
  fi
  mapfile -t targets < <(ninja -C build/asan -t targets all |
    sed -n -E 's/^((base|parallel|moe|data|checkpoint|distill)(_mpi)?_tests): phony$/\1/p')
  if [[ ${#targets[@]} -eq 0 ]] || ! cmake --build build/asan -j "$(cores)" --target "${targets[@]}"; then
    count "sanitizer build" 1
    return 1
  fi
  # Open MPI and LibTorch keep memory until the end, so leaks are not looked for. Some tests measure memory use, which
  # a large quarantine of freed memory would spoil. Others have memory refused, and expect null as from any malloc.
  ASAN_OPTIONS=detect_leaks=0:quarantine_size_mb=4:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
    run_ctest build/asan -L "$labels" -E 'np[68]$'
}

# Library, program and all tests with CUDA. No GPU is needed: what needs one is skipped, and says why.
cuda_compile() {
  if ! has nvcc && [[ ! -x /usr/local/cuda/bin/nvcc ]]; then
    say "CUDA compile: skipped (there is no nvcc, neither in PATH nor in /usr/local/cuda/bin)"
    skipped=$((skipped + 1))
    return 0
  fi
  cmake --preset cuda -DCMAKE_CUDA_ARCHITECTURES="$architectures" &&
    cmake --build --preset cuda -j "$(cores)"
  local status=$?
  count "CUDA compile" "$status"
  [[ $status -eq 0 ]] || return 1
  say "tests on a GPU: $(build/cuda/tests/device_gpu_tests | grep -m 1 -A 1 ': Skipped$' | tail -n 1)"
  run_ctest build/cuda -L '^(device|gpu)$'
  build/cuda/tests/app_tests --gtest_filter='RunDevice.*'
  count "run.device with CUDA" $?
}

report() {
  printf '\n'
  printf '%s\n' "${table[@]}"
  printf '%-28s %3d:%02d  of 40:00\n' "everything" $((SECONDS / 60)) $((SECONDS % 60))
  [[ ${#failures[@]} -eq 0 ]] || printf 'failed: %s\n' "${failures[*]}"
  printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
  [[ $failed -eq 0 && $passed -gt 0 ]]
}

if ! part "dependencies" 4 scripts/install_dependencies.sh --dev; then
  count "dependencies" 1
elif ! part "build with tests" 8 scripts/build.sh test; then
  count "build" 1
else
  part "lint" 2 run_ctest build/test -L '^lint$'
  part "unit and MPI tests" 3 run_ctest build/test -LE '^(lint|contract|fault|slurm)$'
  part "contracts" 3 run_ctest build/test -L '^contract$'
  part "faults and distillation" 6 run_ctest build/test -L '^fault$'
  part "slurm" 3 run_ctest build/test -L '^slurm$'
  if [[ -x scripts/parity.sh ]]; then
    part "parity" 3 timeout 900 scripts/parity.sh
    count "parity" $?
  fi
  part "sanitizers" 5 sanitizer_tests
  part "fuzzing" 4 scripts/fuzz.sh
  count "fuzzing" $?
  part "CUDA compile" 3 cuda_compile
fi
report
