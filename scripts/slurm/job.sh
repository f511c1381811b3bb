# What the job scripts share: start the ranks, pass signals on, and afterwards decide whether the job goes on.
# Sourced, never run. Needs ATHANOR_HOME and the environment of a batch job.
# shellcheck shell=bash
set -uo pipefail

# shellcheck source=scripts/slurm/site.sh
source "${ATHANOR_SITE:-$ATHANOR_HOME/scripts/slurm/site.sh}"

# A signal before there are ranks; without a trap it would end the script.
told_early=no
trap 'told_early=yes' USR1 USR2 TERM

note() { printf '%s job %s: %s\n' "$(date +%FT%T)" "${SLURM_JOB_ID:-?}" "$*" >&2; }

# give_up MESSAGE CODE: the end of a job that must not start again.
give_up() {
  note "$1"
  exit "$2"
}

# A setting of the run as the program sees it: setting SECTION KEY.
setting() {
  sed -n "/^\[$1\]\$/,/^\[/s/^$2 = //p" <<<"$resolved"
}

newest_checkpoint() {
  local complete newest=none
  for complete in "$checkpoints"/step-*/COMPLETE; do # names sort by step
    [[ -e $complete ]] && newest="$(basename "$(dirname "$complete")")"
  done
  printf '%s\n' "$newest"
}

# The time of the job's end in seconds since 1970; 0 when it has none. Slurm sets no variable for it.
end_time() {
  local end
  end="$(SLURM_TIME_FORMAT=standard squeue -h -j "$SLURM_JOB_ID" -o %e 2>/dev/null | head -n 1)"
  if [[ $end =~ ^[0-9]{4}- ]]; then
    date -d "$end" +%s
  else
    printf '0\n'
  fi
}

# The file <run.dir>/.restarts: series, newest checkpoint, starts in a row that began with it. A series is a job with
# its requeues, or a chain of jobs.
count_this_start() {
  local file="$run_dir/.restarts" series="${ATHANOR_CHAIN:-$SLURM_JOB_ID}" old_series='' old_newest='' old_starts=0
  [[ -f $file ]] && read -r old_series old_newest old_starts <"$file"
  starts=1
  if [[ $old_series == "$series" && $old_newest == "$newest_at_start" ]]; then
    starts=$((old_starts + 1))
  fi
  printf '%s %s %s\n' "$series" "$newest_at_start" "$starts" >"$file"
}

# refuse_without_progress STARTS WHY: ends the job when so many starts in a row brought nothing.
refuse_without_progress() {
  if [[ $(newest_checkpoint) == "$newest_at_start" && $1 -gt $ATHANOR_MAX_RESTARTS ]]; then
    give_up "STOPPED: $ATHANOR_MAX_RESTARTS restarts in a row brought no new checkpoint (the newest in $checkpoints is \
$newest_at_start; $2) find the cause in the lines above, then submit again" 70
  fi
}

# The words that start the ranks, in the array launch.
choose_launcher() {
  local launcher=$ATHANOR_LAUNCHER
  if [[ $launcher == auto ]]; then
    launcher=mpirun
    srun --mpi=list 2>&1 | grep -qw pmix && launcher=srun
  fi
  case "$launcher" in
    srun) launch=(srun "${srun_options[@]}") ;;
    mpirun) launch=(mpirun "${mpirun_options[@]}" -np "$SLURM_NTASKS") ;;
    *) give_up "ATHANOR_LAUNCHER=$launcher is none of srun, mpirun, auto" 64 ;;
  esac
}

# run_ranks WORDS...: its status is that of the launcher. Signals of the batch script go on to all ranks as USR1: the
# launchers hand that on, while TERM would make mpirun kill them.
run_ranks() {
  local launcher status
  "$@" </dev/null &
  launcher=$!
  # shellcheck disable=SC2064
  trap "note 'told to stop: passing it on'; kill -USR1 $launcher 2>/dev/null" USR1 USR2 TERM
  while :; do # a trap ends wait early
    wait "$launcher"
    status=$?
    kill -0 "$launcher" 2>/dev/null || break
  done
  trap '' USR1 USR2 TERM
  return "$status"
}

# What the ranks' exit code asks for. 75: saved, go on. Codes that only a person can do something about end the job;
# anything else (a node lost, a rank killed, no answer in time) is tried again, as long as there is progress.
conclude() {
  local status=$1
  case "$status" in
    0)
      printf '%s\n' "${ATHANOR_CHAIN:-$SLURM_JOB_ID}" >"$run_dir/.finished"
      rm -f "$run_dir/.restarts"
      note "done"
      exit 0
      ;;
    64 | 65 | 66 | 73)
      give_up "STOPPED with exit code $status (docs/operations.md says what it means): not started again" "$status"
      ;;
  esac
  refuse_without_progress "$starts" "the last ended with exit code $status"
  note "ended with exit code $status; the newest checkpoint is $(newest_checkpoint)"
  if [[ -n ${ATHANOR_CHAIN:-} ]]; then
    give_up "the next job of the chain goes on" "$status"
  fi
  # The ranks answer scancel by a save and 75 like any other signal, but then somebody wants the job gone. A job that
  # is being ended for another reason than its time limit was cancelled, or Slurm has queued it again already.
  local state='' reason=''
  read -r state reason < <(squeue -h -j "$SLURM_JOB_ID" -o '%T %r' | head -n 1)
  if [[ $state == COMPLETING && $reason != TimeLimit ]]; then
    give_up "ended from outside: not requeued by this script" "$status"
  fi
  note "requeued"
  # Signals stay ignored until Slurm has taken the order.
  scontrol requeue "$SLURM_JOB_ID" || give_up "STOPPED: Slurm refuses to requeue this job (see above): submit a chain \
instead (submit.sh --chain=N)" "$status"
  exit "$status"
}

# prepare_job COMMAND ARGUMENTS...: sets words, what each rank runs.
prepare_job() {
  prepare_site
  [[ -x $ATHANOR ]] ||
    give_up "STOPPED: $ATHANOR cannot be run on $(hostname): set ATHANOR in $ATHANOR_HOME/scripts/slurm/site.sh" 66
  resolved="$("$ATHANOR" "$@" --print-config)" || give_up "STOPPED: the configuration is refused" $?
  run_dir="$(setting run dir)"
  checkpoints="$(setting checkpoint dir)"
  checkpoints="${checkpoints:-$run_dir/checkpoints}"
  if [[ -n ${ATHANOR_CHAIN:-} && -f $run_dir/.finished && $(<"$run_dir/.finished") == "$ATHANOR_CHAIN" ]]; then
    note "an earlier job of the chain has finished the run"
    exit 0
  fi
  mkdir -p "$run_dir" || give_up "STOPPED: $run_dir cannot be made" 73
  newest_at_start="$(newest_checkpoint)"
  count_this_start
  refuse_without_progress $((starts - 1)) "the last was ended from outside"
  note "start ${SLURM_RESTART_COUNT:-0} on ${SLURM_JOB_NODELIST:-?}, newest checkpoint $newest_at_start"
  words=("$ATHANOR" "$@" "--run.end_time=$(end_time)")
  if [[ $told_early == yes ]]; then
    note "told to stop before the ranks were started"
    conclude 75
  fi
}

# run_job COMMAND ARGUMENTS...: a whole job of one allocation.
run_job() {
  prepare_job "$@"
  choose_launcher
  run_ranks "${launch[@]}" "${words[@]}"
  conclude $?
}

# run_het_job COMMAND ARGUMENTS...: one MPI job over all components of a heterogeneous job, ranks in their order.
run_het_job() {
  prepare_job "$@"
  local component
  launch=()
  for ((component = 0; component < ${SLURM_HET_SIZE:-1}; ++component)); do
    [[ $component -eq 0 ]] && launch=(srun "${srun_options[@]}") || launch+=(:)
    launch+=("--het-group=$component" "${words[@]}")
  done
  run_ranks "${launch[@]}"
  conclude $?
}
