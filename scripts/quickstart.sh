#!/usr/bin/env bash
# From a fresh machine to a trained 128-expert model: dependencies, build, a corpus of real text, a tokenizer, a
# pretraining run on all cores, its evaluation and a sample of its text. Under 20 minutes on 2 cores.
#   scripts/quickstart.sh [--section.key=value ...]     options go to `athanor train`, e.g. --train.steps=100
# Run again, it goes on from what exists: a finished step is known by its output, and an interrupted training goes on
# from its last checkpoint. Delete runs/quickstart to train anew.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root"
prepare_mpi

corpus=corpus
run=runs/quickstart
domains=(prose code)
prompt="The"

if [[ "${1:-}" == -h || "${1:-}" == --help ]]; then
  sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
  exit 0
fi

# Experts and batch are divided evenly, so: the largest power of two that there are cores for, 16 at most.
ranks=1
while [[ $((ranks * 2)) -le $(cores) && $ranks -lt 16 ]]; do
  ranks=$((ranks * 2))
done

# athanor_json FILE [mpirun...] -- athanor-arguments...: the command's JSON result into FILE, which appears only when
# the command has succeeded.
athanor_json() {
  local file=$1 launcher=()
  shift
  while [[ $1 != -- ]]; do
    launcher+=("$1")
    shift
  done
  shift
  "${launcher[@]}" build/athanor "$@" --json | tail -n 1 >"$file.partial"
  mv "$file.partial" "$file"
}

on_all_cores=(mpirun -np "$ranks" --oversubscribe --bind-to none)

# Token files of a text, unless they are there.
tokenize() {
  local text=$1 prefix=$2
  if [[ ! -f $prefix.idx || ! -f $prefix.bin ]]; then
    build/athanor tokenize --input="$text" --output="$prefix" --tokenizer="$corpus/tokenizer.model" >&2
  fi
}

make_corpus() {
  local libtorch="${LIBTORCH_ROOT:-$root/.deps/libtorch/torch}"
  [[ -d $libtorch/include ]] || libtorch="$libtorch/torch"
  LIBTORCH_ROOT="$libtorch" scripts/make_corpus.sh "$corpus"
  if [[ ! -f $corpus/tokenizer.model ]]; then
    say "training a tokenizer of 8192 tokens"
    build/athanor tokenize --input="$corpus/prose.train.jsonl,$corpus/code.train.jsonl" \
      --tokenizer="$corpus/tokenizer.model" >&2
  fi
  local domain part
  for domain in "${domains[@]}"; do
    for part in train valid; do
      tokenize "$corpus/$domain.$part.jsonl" "$corpus/$domain-$part"
    done
  done
}

# list PART: the domains' token files of a part as data.train and data.valid take them, equally weighted.
list() {
  local domain sources=()
  for domain in "${domains[@]}"; do
    sources+=("$corpus/$domain-$1:1:$domain")
  done
  (IFS=, && printf '%s' "${sources[*]}")
}

train() {
  if [[ -f $run/result.json ]]; then
    say "$run is trained already: going on from there (delete the folder to train anew)"
    [[ $# -eq 0 ]] || say "warning: '$*' has no effect on a finished run"
    return
  fi
  say "pretraining a 128-expert teacher on $ranks of $(cores) cores, expert-parallel"
  mkdir -p "$run"
  athanor_json "$run/result.json" "${on_all_cores[@]}" -- train --config=configs/quickstart.ini \
    --run.dir="$run" --data.train="$(list train)" --data.tokenizer="$corpus/tokenizer.model" \
    --parallel.ep="$ranks" "$@"
  rm -f "$run/evaluation.json" "$run/sample.json"
}

evaluate() {
  if [[ ! -f $run/evaluation.json ]]; then
    say "evaluating on held-out text"
    athanor_json "$run/evaluation.json" "${on_all_cores[@]}" -- evaluate --checkpoint="$run" \
      --data.valid="$(list valid)" --parallel.ep="$ranks"
  fi
}

generate() {
  if [[ ! -f $run/sample.json ]]; then
    say "generating"
    athanor_json "$run/sample.json" -- generate --checkpoint="$run" --generate.prompt="$prompt" \
      --generate.max_new_tokens=80 --generate.temperature=0.8 --generate.seed=1
  fi
}

summary() {
  python3 - "$run" "$corpus" <<'PYTHON'
import json
import pathlib
import sys

run, corpus = (pathlib.Path(argument) for argument in sys.argv[1:])
result, evaluation, sample = (json.loads((run / f"{name}.json").read_text())
                              for name in ("result", "evaluation", "sample"))
steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
steps = [step for step in steps if "expert_use_std" in step]
first = steps[0]
print(f"""
Trained {result['first_step'] + result['steps']} steps, {result['tokens']:,} tokens at \
{result['tokens_per_s']:,.0f} tokens/s.
  training loss       {first['loss']:.3f} at the first step, {result['last_loss']:.3f} at the end""")
for name, domain in evaluation["domains"].items():
    print(f"  held-out {name:<10} perplexity {domain['perplexity']:.1f} "
          f"(loss {domain['loss']:.3f}, {domain['tokens']:,} tokens)")
print(f"""  expert balance      std of use {first['expert_use_std']:.2f} at the first step, \
{result['expert_use_std']:.2f} at the end (0: all experts equally used)
  a sample            {' '.join(sample['text'].split())}

Where everything lies:
  {run}/   config.ini, metrics.jsonl, log.txt, checkpoints/, result.json, evaluation.json, sample.json
  {corpus}/           the text, the tokenizer (tokenizer.model) and the token files
  build/athanor     the program
Go on with, for example:
  build/athanor generate --checkpoint={run} --generate.prompt="namespace"
""")
PYTHON
}

scripts/install_dependencies.sh
say "building"
scripts/build.sh release athanor >&2
make_corpus
train "$@"
evaluate
generate
summary
say "done in $((SECONDS / 60)):$(printf '%02d' $((SECONDS % 60))) minutes"
