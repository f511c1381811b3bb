#!/usr/bin/env bash
# From a fresh machine to a 128-expert teacher and a small student that learnt beside it: dependencies, build, a corpus
# of real text, a tokenizer, one job that trains both, and a table of the two. Under 20 minutes on 2 cores.
#   scripts/quickstart.sh [--section.key=value ...]     options go to `athanor distill`, e.g. --train.steps=100
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

# Experts and batch are divided evenly, so both have a power of two of ranks. The teacher gets as many as there are
# cores for, 16 at most; the student, which has less to compute, half as many.
teacher_ranks=1
while [[ $((teacher_ranks * 3)) -le $(cores) && $teacher_ranks -lt 16 ]]; do
  teacher_ranks=$((teacher_ranks * 2))
done
student_ranks=$((teacher_ranks / 2))
[[ $student_ranks -ge 1 ]] || student_ranks=1

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

# on RANKS: the launcher of so many ranks, in `launcher`.
on() {
  launcher=(mpirun -np "$1" --oversubscribe --bind-to none)
}

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

distill() {
  if [[ -f $run/result.json ]]; then
    say "$run is trained already: going on from there (delete the folder to train anew)"
    [[ $# -eq 0 ]] || say "warning: '$*' has no effect on a finished run"
    return
  fi
  say "training a 128-expert teacher on $teacher_ranks and a dense student on $student_ranks of $(cores) cores"
  mkdir -p "$run"
  on $((teacher_ranks + student_ranks))
  athanor_json "$run/result.json" "${launcher[@]}" -- distill --config=configs/quickstart.ini \
    --run.dir="$run" --data.train="$(list train)" --data.tokenizer="$corpus/tokenizer.model" \
    --teacher.ranks="$teacher_ranks" --student.ranks="$student_ranks" --teacher.parallel.ep="$teacher_ranks" "$@"
  rm -f "$run"/{evaluation,generation}-*.json
}

evaluate() {
  local role=$1 ep=$2
  if [[ ! -f $run/evaluation-$role.json ]]; then
    say "evaluating the $role on held-out text"
    on "$teacher_ranks"
    athanor_json "$run/evaluation-$role.json" "${launcher[@]}" -- evaluate --checkpoint="$run" --role="$role" \
      --data.valid="$(list valid)" --parallel.ep="$ep"
  fi
}

# A sample of the role's text, and its speed (reading the prompt included, start and loading not) and memory while it
# generates.
generate() {
  local role=$1
  if [[ ! -f $run/generation-$role.json ]]; then
    say "generating with the $role"
    python3 - "$run" "$role" "$prompt" >"$run/generation-$role.json.partial" <<'PYTHON'
import json
import os
import subprocess
import sys

run, role, prompt = sys.argv[1:]


def generate(least, most, temperature):
    process = subprocess.Popen(
        ["build/athanor", "generate", f"--checkpoint={run}", f"--role={role}", f"--generate.prompt={prompt}",
         f"--generate.min_new_tokens={least}", f"--generate.max_new_tokens={most}",
         f"--generate.temperature={temperature}", "--generate.seed=1", "--json"], stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit(os.waitstatus_to_exitcode(status))
    return usage.ru_maxrss * 1024, json.loads(output.splitlines()[-1])


text = generate(0, 80, 0.8)[1]["text"]
long = [generate(200, 200, 1.5) for _ in range(3)]
print(json.dumps({"text": text, "tokens_per_s": max(len(run[1]["tokens"]) / run[1]["seconds"] for run in long),
                  "peak_rss_bytes": max(run[0] for run in long)}))
PYTHON
    mv "$run/generation-$role.json.partial" "$run/generation-$role.json"
  fi
}

summary() {
  python3 - "$run" "$corpus" <<'PYTHON'
import json
import pathlib
import sys

run, corpus = (pathlib.Path(argument) for argument in sys.argv[1:])


def read(name):
    return json.loads((run / f"{name}.json").read_text())


roles = ("teacher", "student")
result = read("result")
evaluation = {role: read(f"evaluation-{role}") for role in roles}
generation = {role: read(f"generation-{role}") for role in roles}
rows = []


def add(label, values, form, scale=1.0):
    teacher, student = (value / scale if value else value for value in values)
    known = bool(teacher and student)
    rows.append((label, *(format(value, form) if value else "-" for value in (teacher, student)),
                 f"{100 * (student / teacher - 1):+.1f} %" if known else "-"))


for domain in evaluation["teacher"]["domains"]:
    add(f"held-out perplexity, {domain}", [evaluation[role]["domains"][domain]["perplexity"] for role in roles], ".1f")
add("parameters, millions", [result[role]["parameters"] for role in roles], ".2f", 1e6)
add("  active for a token", [result[role]["active_parameters"] for role in roles], ".2f", 1e6)
add("generation, tokens/s", [generation[role]["tokens_per_s"] for role in roles], ".0f")
add("peak memory generating, MB", [generation[role]["peak_rss_bytes"] for role in roles], ".0f", 1e6)
add("peak memory training, MB a rank", [result[role]["peak_rss_bytes"] for role in roles], ".0f", 1e6)

teacher, student = result["teacher"], result["student"]
print(f"""
Trained {teacher['first_step'] + teacher['steps']} steps side by side, {teacher['tokens']:,} tokens at \
{teacher['tokens_per_s']:,.0f} tokens/s.
  training loss       teacher {teacher['first_loss']:.3f} to {teacher['last_loss']:.3f}, \
student {student['first_loss']:.3f} to {student['last_loss']:.3f}
  expert balance      std of use {teacher['expert_use_std']:.2f} at the end (0: all experts equally used)
  waits in a step     the student {student['link_wait_s']:.3f} s for the teacher, the teacher \
{teacher['link_wait_s']:.3f} s for the student
""")
for label, *values in [("", "teacher", "student", "change"), *rows]:
    print(f"  {label:<34}" + "".join(f"{value:>12}" for value in values))
for role in roles:
    print(f"\n  the {role} writes: {' '.join(generation[role]['text'].split())}")
print(f"""
Where everything lies:
  {run}/   config.ini, log.txt, teacher/ and student/metrics.jsonl, checkpoints/, result.json, evaluation-*.json
  {corpus}/           the text, the tokenizer (tokenizer.model) and the token files
  build/athanor     the program
Go on with, for example:
  build/athanor generate --checkpoint={run} --role=student --generate.prompt="namespace"
""")
PYTHON
}

scripts/install_dependencies.sh
say "building"
scripts/build.sh release athanor >&2
make_corpus
distill "$@"
evaluate teacher "$teacher_ranks"
evaluate student 1
generate teacher
generate student
summary
say "done in $((SECONDS / 60)):$(printf '%02d' $((SECONDS % 60))) minutes"
