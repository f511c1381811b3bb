#!/usr/bin/env bash
# Checks a machine with NVIDIA GPUs: builds the program with CUDA, runs every test that needs a GPU against the CPU's
# results, and the benchmarks, and leaves a report.
#   scripts/gpu_check.sh [--all-architectures] [--sanitize[=TOOL]] [--no-bench] [--report=FILE] [TEST_REGEX]
#     --all-architectures  for compute capabilities 8.0, 9.0 and 10.0; without it for this machine's GPUs only
#     --sanitize[=TOOL]    the tests once more under compute-sanitizer: memcheck, racecheck, initcheck, synccheck
#     --no-bench           tests only
#     --report=FILE        where the report goes; runs/gpu_check/DATE.txt by default
#     TEST_REGEX           only the tests whose ctest name matches, e.g. kernels.gpu
# Exits with 0 when all passed, 1 when something failed, 69 where there is no GPU, driver or CUDA compiler.
set -uo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root" || exit 70
prepare_mpi

architectures=native
tool=""
bench=yes
report=""
regex="."
for word in "$@"; do
  case "$word" in
    -h | --help)
      sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --all-architectures) architectures="80;90;100" ;;
    --sanitize) tool=memcheck ;;
    --sanitize=*)
      tool="${word#*=}"
      [[ " memcheck racecheck initcheck synccheck " == *" $tool "* ]] ||
        fail "--sanitize=$tool is no tool of compute-sanitizer: memcheck, racecheck, initcheck and synccheck are" 64
      ;;
    --no-bench) bench=no ;;
    --report=*) report="${word#*=}" ;;
    -*) fail "unknown option '$word': see scripts/gpu_check.sh --help" 64 ;;
    *) regex="$word" ;;
  esac
done

# The bench shape's widths on enough tokens, and a large layer with a share of its experts.
shapes=(
  "--config=configs/bench-s.ini --batch.global=64 --parallel.ep=1"
  "--model.vocab_size=32768 --model.hidden=4096 --model.heads=32 --model.max_seq=4096 --moe.experts=16 --moe.ffn=2048 \
--batch.seq=4096 --batch.global=4"
)

# --- what this machine has ------------------------------------------------------------------------------------
find_tool() { # NAME: its path, from PATH or the usual place of the toolkit
  local usual="${CUDA_HOME:-/usr/local/cuda}/bin/$1"
  command -v "$1" || { [[ -x "$usual" ]] && printf '%s\n' "$usual"; }
}
has nvidia-smi ||
  fail "there is no nvidia-smi (no NVIDIA driver here): run this on a machine with GPUs; in a container, start it with \
--gpus all or --nv" 69
gpus="$(nvidia-smi --query-gpu=name,compute_cap,memory.total,driver_version --format=csv,noheader 2>&1)" ||
  fail "nvidia-smi lists no GPU ($gpus): run this on a machine with GPUs" 69
[[ -n "$gpus" ]] || fail "nvidia-smi lists no GPU: run this on a machine with GPUs" 69
nvcc="$(find_tool nvcc)" ||
  fail "there is no nvcc (neither in PATH nor in ${CUDA_HOME:-/usr/local/cuda}/bin): load or install a CUDA 13 \
toolkit" 69
sanitizer=""
if [[ -n "$tool" ]]; then
  sanitizer="$(find_tool compute-sanitizer)" ||
    fail "there is no compute-sanitizer (it belongs to the CUDA toolkit): install it, or leave --sanitize out" 69
fi

report="${report:-runs/gpu_check/$(date -u +%Y%m%dT%H%M%SZ).txt}"
{ mkdir -p "$(dirname "$report")" && : >"$report"; } ||
  fail "the report $report cannot be written: give another place with --report=" 73
failed=()

# note NAME command...: its output goes to the terminal and the report; remembers whether it failed.
note() {
  local name=$1 start=$SECONDS status
  shift
  say "$name"
  printf '\n== %s\n' "$name" >>"$report"
  "$@" 2>&1 | tee -a "$report"
  status=${PIPESTATUS[0]}
  printf '== %s: %s after %d s\n' "$name" "$([[ $status -eq 0 ]] && echo passed || echo "FAILED ($status)")" \
    $((SECONDS - start)) | tee -a "$report" >&2
  [[ $status -eq 0 ]] || failed+=("$name")
  return "$status"
}

# A set of tests under compute-sanitizer: ctest would start it around mpirun, not around the ranks.
sanitized_tests() {
  local program status=0
  for program in build/cuda/tests/*_gpu_tests; do
    [[ -x "$program" && "$(basename "$program" _gpu_tests).gpu" =~ $regex ]] || continue
    "$sanitizer" --tool "$tool" --error-exitcode 86 "$program" || status=1
  done
  for program in build/cuda/tests/*_gpu_mpi_tests; do
    [[ -x "$program" && "$(basename "$program" _gpu_mpi_tests).gpu.np" =~ $regex ]] || continue
    mpirun --bind-to none -np "$(nvidia-smi -L | wc -l)" \
      "$sanitizer" --tool "$tool" --error-exitcode 86 "$program" || status=1
  done
  return $status
}

machine() {
  printf 'date: %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)"
  printf 'commit: %s\n' "$(git describe --always --dirty 2>/dev/null || echo none)"
  uname -srm
  printf '%s\n' "$gpus"
  nvidia-smi topo -m
  "$nvcc" --version | tail -2
}

build() {
  cmake --preset cuda -DCMAKE_CUDA_ARCHITECTURES="$architectures" && cmake --build --preset cuda -j "$(cores)"
}

# --- the checks -----------------------------------------------------------------------------------------------
note "machine" machine
if note "build" build; then
  note "program" build/cuda/athanor --version
  note "tests" ctest --test-dir build/cuda -L gpu -R "$regex" --output-on-failure --no-tests=error
  if [[ -n "$tool" ]]; then
    note "compute-sanitizer $tool" sanitized_tests
  fi
  if [[ $bench == yes ]]; then
    for shape in "${shapes[@]}"; do
      # shellcheck disable=SC2086 # a shape is several words
      note "bench kernels $shape" build/cuda/athanor bench kernels --run.device=cuda $shape
    done
    note "bounds" scripts/roofline.py configs/bench-s.ini configs/teacher-1.3t.ini
  fi
fi
if [[ ${#failed[@]} -gt 0 ]]; then
  printf 'failed: %s\n' "${failed[*]}" | tee -a "$report" >&2
else
  printf 'everything passed\n' | tee -a "$report" >&2
fi
say "the report is $report"
[[ ${#failed[@]} -eq 0 ]]
