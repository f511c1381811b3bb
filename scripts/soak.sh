#!/usr/bin/env bash
# A distillation job under random kills, stops, delays, full disks and flipped bits; at the end nothing may be lost and
# every curve must be that of a job without trouble. Prints the counts.
#   scripts/soak.sh [--minutes N] [--seed N] [--job train|distill]      (10 minutes of a distillation by default)
# Needs a build with tests (scripts/build.sh test). Full disks need the right to mount a tmpfs, else they are left out
# and that is said.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$root" || exit 70
case "${1:-}" in
  -h | --help)
    sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
    exit 0
    ;;
esac
[[ -x build/test/athanor ]] || fail "build/test/athanor is not here: run scripts/build.sh test" 66
prepare_mpi
exec python3 tests/faults/soak.py build/test/athanor --job distill --kinds all --minutes 10 "$@"
