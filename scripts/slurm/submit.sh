#!/usr/bin/env bash
# Checks a run's configuration and queues it; prints the job ids, one a line.
#   scripts/slurm/submit.sh KIND [sbatch options] -- [athanor options]
#   scripts/slurm/submit.sh distill_het [of the teacher's nodes] : [of the students' nodes] -- [athanor options]
#     KIND         pretrain, distill (one allocation), distill_het (a heterogeneous job)
#     --chain=N    first option, for sites that do not let jobs requeue themselves: N jobs, each after the one before it
# Example:
#   scripts/slurm/submit.sh pretrain --nodes=4 --ntasks-per-node=8 -- --config=run.ini --run.dir=/scratch/me/run
# Tasks that the options leave open are those that the configuration names (ranks, teacher.ranks, student.ranks).
# Site settings: scripts/slurm/site.sh, or the file that ATHANOR_SITE names.
set -euo pipefail
ATHANOR_HOME="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
# shellcheck source=scripts/slurm/site.sh
source "${ATHANOR_SITE:-$ATHANOR_HOME/scripts/slurm/site.sh}"

fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-64}"
}

usage() {
  sed -n '2,10s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
}

# --- what was asked for -----------------------------------------------------------------------------------------
chain=''
if [[ ${1:-} == --chain=* ]]; then
  chain="${1#*=}"
  [[ $chain =~ ^[1-9][0-9]*$ ]] || fail "--chain=$chain is no number of jobs (1 or more)"
  shift
fi
kind="${1:-}"
case "$kind" in
  pretrain) command=train ;;
  distill | distill_het) command=distill ;;
  -h | --help)
    usage
    exit 0
    ;;
  *) fail "'$kind' is no kind of job (pretrain, distill and distill_het are): see --help" ;;
esac
shift
first=()  # options of the job, or of its first component
second=() # of its second component
athanor=()
part=first
for word in "$@"; do
  case "$part $word" in
    "first :") part=second ;;
    "first --" | "second --") part=athanor ;;
    first*) first+=("$word") ;;
    second*) second+=("$word") ;;
    *) athanor+=("$word") ;;
  esac
done
[[ $part == athanor ]] || fail "there is no -- between the options of sbatch and those of athanor: see --help"
[[ $kind == distill_het || ${#second[@]} -eq 0 ]] || fail "':' parts the options of distill_het only, not of $kind"
for word in "${athanor[@]}"; do
  [[ $word == --* ]] || fail "'$word' is no option of athanor (they look like --config=run.ini)"
done

# tasks_of OPTIONS...: ranks that sbatch options ask for; nothing when they leave it open.
tasks_of() {
  local nodes=1 per_node='' tasks='' option value
  while [[ $# -gt 0 ]]; do
    option="${1%%=*}"
    value="${1#*=}"
    case "$1" in
      -N | -n) value="${2:-}" && shift ;;
      -N* | -n*) option="${1:0:2}" && value="${1:2}" ;;
    esac
    case "$option" in
      -N | --nodes) nodes="$value" ;;
      -n | --ntasks) tasks="$value" ;;
      --ntasks-per-node) per_node="$value" ;;
    esac
    shift
  done
  if [[ -n $tasks ]]; then
    printf '%s\n' "$tasks"
  elif [[ -n $per_node ]]; then
    [[ $nodes =~ ^[0-9]+$ ]] ||
      fail "--nodes=$nodes with --ntasks-per-node leaves the number of ranks open: give one number"
    printf '%s\n' "$((nodes * per_node))"
  fi
}

# --- the configuration, checked as the job will see it --------------------------------------------------------------
[[ -x $ATHANOR ]] || fail "$ATHANOR cannot be run (not built?): build it, or set ATHANOR in scripts/slurm/site.sh" 66
# An allocation that this shell may be in is none of the check's.
plan() { env -u SLURM_JOB_ID -u SLURM_JOBID "$ATHANOR" "$command" "${athanor[@]}" --dry-run --json; }
asked_first="$(tasks_of ${first+"${first[@]}"})"
asked_second="$(tasks_of ${second+"${second[@]}"})"
if [[ $kind == pretrain && -n $asked_first && " ${athanor[*]} " != *" --ranks="* ]]; then
  athanor+=("--ranks=$asked_first")
fi
report="$(plan)" || fail "athanor refuses the configuration (see above): nothing was queued" $?
read -r teacher students < <(python3 -c '
import json, sys
roles = json.loads(sys.stdin.read().splitlines()[-1])
teacher = roles.pop("teacher", {}).get("ranks", 0)
print(teacher, sum(role["ranks"] for role in roles.values() if "ranks" in role))' <<<"$report")

# use_tasks NAME ASKED PLANNED: the number of ranks given twice must be one number.
use_tasks() {
  [[ -z $2 || $2 == "$3" ]] ||
    fail "the $1 has $3 ranks by its configuration, but the options of sbatch give it $2: nothing was queued"
}
if [[ $kind == distill_het ]]; then
  use_tasks "teacher" "$asked_first" "$teacher"
  use_tasks "students' part" "$asked_second" "$students"
  [[ -n $asked_first ]] || first+=("--ntasks=$teacher")
  [[ -n $asked_second ]] || second+=("--ntasks=$students")
else
  use_tasks "job" "$asked_first" "$((teacher + students))"
  [[ -n $asked_first ]] || first+=("--ntasks=$((teacher + students))")
fi

# --- the queue ------------------------------------------------------------------------------------------------------
export ATHANOR_HOME
[[ -z ${ATHANOR_SITE:-} ]] || export ATHANOR_SITE
unset ATHANOR_CHAIN
common=("${sbatch_options[@]}" "--signal=B:USR1@$ATHANOR_WARNING_S" --export=ALL)
script="$ATHANOR_HOME/scripts/slurm/$kind.sbatch"
if [[ -n $chain ]]; then
  ATHANOR_CHAIN="chain-$(date +%s)-$$"
  export ATHANOR_CHAIN
fi
for ((number = 1; number <= ${chain:-1}; ++number)); do
  after=()
  if [[ -n $chain ]]; then
    after=(--no-requeue)
    [[ $number -eq 1 ]] || after+=("--dependency=afterany:$id")
  fi
  if [[ $kind == distill_het ]]; then
    id="$(sbatch --parsable "${common[@]}" ${after+"${after[@]}"} "${first[@]}" : \
      "${sbatch_options[@]}" "${second[@]}" "$script" "${athanor[@]}")"
  else
    id="$(sbatch --parsable "${common[@]}" ${after+"${after[@]}"} "${first[@]}" "$script" "${athanor[@]}")"
  fi
  id="${id%%;*}" # a federation adds its name
  printf '%s\n' "$id"
done
