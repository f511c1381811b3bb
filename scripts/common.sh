# Shared by the scripts of this folder: sourced, never run. Sets root and the helpers say, fail, run_timed.
# shellcheck shell=bash

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export root

say() { printf '== %s\n' "$*" >&2; }

# fail MESSAGE [EXIT_CODE]: what is wrong, why, and what to do, then the end.
fail() {
  printf 'error: %s\n' "$1" >&2
  exit "${2:-70}"
}

# has COMMAND...: whether all of them can be run.
has() { [[ "$(command -v "$@" | wc -l)" -eq $# ]]; }

# Cores that this process may use: by affinity and by the container's quota. nproc alone would heed OMP_NUM_THREADS.
cores() {
  local count quota period
  count="$(env -u OMP_NUM_THREADS -u OMP_THREAD_LIMIT nproc)"
  if read -r quota period 2>/dev/null </sys/fs/cgroup/cpu.max && [[ $quota != max && $quota -ge $period ]]; then
    count=$((quota / period < count ? quota / period : count))
  fi
  printf '%s\n' "$count"
}

# Open MPI refuses root and more ranks than cores unless told otherwise.
prepare_mpi() {
  if [[ "$(id -u)" -eq 0 ]]; then
    export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
  fi
  export OMPI_MCA_rmaps_base_oversubscribe=1
}
