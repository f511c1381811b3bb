#!/usr/bin/env bash
# Fuzzes every parser of outside input with libFuzzer, under the address and undefined-behaviour sanitizers; a crash, a
# leak, an input that takes 10 s or 2 GB ends it. Starts from the inputs in tests/fuzz/corpus.
#   scripts/fuzz.sh [--full] [--seconds N] [--keep] [NAME...]
#     --seconds N  for each fuzzer, 20 by default
#     --full       300 seconds for each
#     --keep       adds the inputs that reached new code to tests/fuzz/corpus
#     NAME         config, token_index, ...: only these
# Prints a line for each: inputs tried, places reached, findings. Exits with 1 if there was a finding; its input is in
# build/fuzz/findings.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root" || exit 70

seconds=20
keep=no
names=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --full) seconds=300 ;;
    --seconds)
      [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || fail "--seconds '${2:-}' is no number of seconds: give one above 0" 64
      seconds=$2
      shift
      ;;
    --keep) keep=yes ;;
    -h | --help)
      sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    -*) fail "unknown argument '$1' (--full, --seconds and --keep are known): leave it out" 64 ;;
    *) names+=("$1") ;;
  esac
  shift
done
has clang++ || fail "clang++ is not here (libFuzzer comes with it): scripts/install_dependencies.sh --dev" 69
if [[ ${#names[@]} -eq 0 ]]; then
  for source in tests/fuzz/*_fuzzer.cpp; do
    names+=("$(basename "$source" _fuzzer.cpp)")
  done
fi
for name in "${names[@]}"; do
  [[ -f "tests/fuzz/${name}_fuzzer.cpp" ]] || fail "there is no fuzzer '$name': see tests/fuzz" 64
done

cmake --preset fuzz >/dev/null
cmake --build build/fuzz -j "$(cores)" --target "${names[@]/%/_fuzzer}"
findings="$root/build/fuzz/findings"
mkdir -p "$findings"

# fuzz NAME: one fuzzer, its report in build/fuzz/NAME.log.
fuzz() {
  local name=$1 reached="build/fuzz/corpus/$1" longest=4096
  [[ "$name" != signal_file ]] || longest=20000 # an index and a block are that long
  mkdir -p "$reached"
  ASAN_OPTIONS=detect_leaks=1:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
    "build/fuzz/tests/fuzz/${name}_fuzzer" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -max_len="$longest" -artifact_prefix="$findings/$name-" -print_final_stats=1 \
    "$reached" "tests/fuzz/corpus/$name" >"build/fuzz/$name.log" 2>&1
}

# describe NAME STATUS: a line of the table.
describe() {
  local log="build/fuzz/$1.log" tried reached
  tried="$(sed -n 's/^stat::number_of_executed_units: *//p' "$log" | tail -n 1)"
  reached="$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)"
  printf '%-16s %12s inputs  %6s places reached  %s\n' "$1" "${tried:-0}" "${reached:-0}" \
    "$([[ $2 -eq 0 ]] && echo "no finding" || echo "FINDING: see $log")"
}

say "fuzzing ${names[*]} for $seconds s each"
failed=0
running=()
finish_first() {
  local name=${running[0]%%:*} status=0
  wait "${running[0]##*:}" || status=$?
  running=("${running[@]:1}")
  describe "$name" "$status"
  [[ $status -eq 0 ]] || failed=$((failed + 1))
}
for name in "${names[@]}"; do
  [[ ${#running[@]} -lt "$(cores)" ]] || finish_first
  fuzz "$name" &
  running+=("$name:$!")
done
while [[ ${#running[@]} -gt 0 ]]; do
  finish_first
done
if [[ $keep == yes ]]; then
  for name in "${names[@]}"; do
    "build/fuzz/tests/fuzz/${name}_fuzzer" -merge=1 "tests/fuzz/corpus/$name" "build/fuzz/corpus/$name" 2>/dev/null
  done
fi
printf '%d fuzzers, %d with findings\n' "${#names[@]}" "$failed"
[[ $failed -eq 0 ]]
