#!/usr/bin/env bash
# Builds the program, runs every benchmark on this machine and writes the tables of docs/performance.md: what stands
# there between <!-- bench NAME begin --> and <!-- bench NAME end -->. Nothing else should run meanwhile.
#   scripts/bench.sh [--quick] [--program=PATH] [--page=PATH] [NAME...]
# NAME: step, collectives, dispatch, stream, checkpoint, kernels; all of them without one. --quick: few repeats and
# small messages, to see that everything works. --program: measure this one, and build nothing. --page: write there.
# The results stay in runs/bench/results as JSON.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
prepare_mpi

names=(step collectives dispatch stream checkpoint kernels)
program=""
page=docs/performance.md
quick=false
wanted=()
for word in "$@"; do
  case "$word" in
    -h | --help)
      sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    --quick) quick=true ;;
    --program=*) program="${word#*=}" ;;
    --page=*) page="${word#*=}" ;;
    *)
      [[ " ${names[*]} " == *" $word "* ]] ||
        fail "unknown word '$word': --quick, --program=PATH, --page=PATH and the names ${names[*]} are known" 64
      wanted+=("$word")
      ;;
  esac
done
[[ ${#wanted[@]} -gt 0 ]] || wanted=("${names[@]}")

results=runs/bench/results
steps=() sizes=() rounds=()
if $quick; then
  rounds=(--bench.rounds=2)
  steps=("${rounds[@]}" --bench.warmup_steps=1 --bench.steps_per_round=1)
  sizes=("${rounds[@]}" --bench.max_bytes=262144)
fi

# measure NAME LABEL RANKS [OPTION...]: one run of `athanor bench NAME`. Ranks beyond the cores yield when they wait.
measure() {
  local name=$1 label=$2 ranks=$3 launcher file
  shift 3
  runs=$((runs + 1))
  file="$results/$name-$runs.json"
  if [[ $ranks -le $(cores) ]]; then
    launcher=(mpirun -np "$ranks" --bind-to core)
  else
    launcher=(mpirun -np "$ranks" --oversubscribe --bind-to none --mca mpi_yield_when_idle 1)
  fi
  say "bench $name, $label"
  OMP_NUM_THREADS=1 "${launcher[@]}" "$program" bench "$name" "$@" --json | tail -n 1 >"$file.partial"
  mv "$file.partial" "$file"
  printf '%s\t%s\t%s\t%s\n' "$name" "$label" "$file" "${launcher[*]} build/athanor bench $name $*" \
    >>"$results/index.tsv"
}

bench_step() {
  measure step "f32, 2 ranks" 2 --config=configs/bench-s.ini "${steps[@]}"
  measure step "bf16, 2 ranks" 2 --config=configs/bench-s.ini --precision.compute=bf16 "${steps[@]}"
}

bench_collectives() {
  measure collectives "2 ranks" 2 "${sizes[@]}"
  measure collectives "4 ranks" 4 "${sizes[@]}"
}

bench_dispatch() {
  measure dispatch "2 ranks" 2 --config=configs/bench-s.ini "${steps[@]}"
  measure dispatch "4 ranks" 4 --config=configs/bench-s.ini --parallel.ep=4 --batch.global=32 "${steps[@]}"
}

bench_stream() {
  measure stream "2 + 2 ranks" 4 --config=configs/bench-distill.ini "${steps[@]}"
  measure stream "1 + 1 ranks" 2 --config=configs/bench-distill.ini --teacher.ranks=1 --student.ranks=1 \
    --teacher.parallel.ep=1 "${steps[@]}"
}

bench_checkpoint() {
  measure checkpoint "2 ranks" 2 --config=configs/bench-s.ini --run.dir=runs/bench "${rounds[@]}"
}

bench_kernels() { measure kernels "2 ranks" 2 --config=configs/bench-s.ini "${rounds[@]}"; }

if [[ -z $program ]]; then
  say "building"
  scripts/build.sh release athanor >&2
  program=build/athanor
fi
runs=0
rm -rf "$results"
mkdir -p "$results"
for name in "${wanted[@]}"; do
  "bench_$name"
done
python3 scripts/write_bench_tables.py --results="$results" --page="$page"
say "wrote $page in $((SECONDS / 60)):$(printf '%02d' $((SECONDS % 60))) minutes"
