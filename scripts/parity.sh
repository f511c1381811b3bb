#!/usr/bin/env bash
# Compares this program with Hugging Face's Qwen3-MoE and Qwen3: logits, loss, gradients, generated texts; folders that
# are imported and exported; 50 training steps. Reads a checkpoint with h5py by docs/checkpoint_format.md.
#   scripts/parity.sh [PARITY_DUMP]     (default: build/test/tests/parity/parity_dump, from scripts/build.sh test)
#
# transformers and what it imports go into .deps/parity (about 200 MB, fetched once); torch's Python side is that of
# the wheel LibTorch came from. No model is downloaded: both sides get the same random weights.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

deps="$root/.deps"
venv="$deps/parity"
dump="${1:-$root/build/test/tests/parity/parity_dump}"
# torch is not among transformers' own requirements; the last ones are torch's.
packages=(transformers==5.23.0 h5py xxhash numpy filelock fsspec jinja2 networkx sympy typing_extensions)

[[ -x "$dump" ]] || fail "$dump is not there (the tests are not built): run scripts/build.sh test" 66

# The folder that holds torch/ as a Python package.
find_torch() {
  local folder
  for folder in ${LIBTORCH_ROOT:+"$LIBTORCH_ROOT" "$LIBTORCH_ROOT/.."} "$deps/libtorch"; do
    if [[ -e "$folder/torch/__init__.py" ]]; then
      (cd "$folder" && pwd)
      return
    fi
  done
  fail "no torch Python package beside LibTorch (LIBTORCH_ROOT is a plain LibTorch?): unset LIBTORCH_ROOT and run \
scripts/install_dependencies.sh" 66
}

install_packages() {
  local stamp="${packages[*]}"
  if [[ -f "$venv/.installed" && "$(<"$venv/.installed")" == "$stamp" ]]; then
    return
  fi
  say "parity: installing transformers into $venv"
  rm -rf "$venv"
  PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore \
    python3 -m pip install --quiet --no-compile --no-cache-dir --target "$venv" "${packages[@]}" ||
    fail "pip could not install transformers (its reason is above): repair that and run again" 69
  printf '%s\n' "$stamp" >"$venv/.installed"
}

# The wheel is a CUDA build: Python loads all of it, but calls only the CPU part here. CUDA libraries that are not
# installed (gigabytes) are replaced by empty ones of the same name; calls are bound when made, so none is missed.
make_stand_ins() {
  local torch_lib="$1/torch/lib" stand_ins="$venv/stand-ins" library
  rm -rf "$stand_ins"
  mkdir -p "$stand_ins"
  printf 'NVSHMEM { global: *; };\n' >"$stand_ins/nvshmem.map"
  printf '%s\n' 'char nvshmem_selected_device_transport[256], nvshmemi_device_only_state[256];' \
    'void nvshmem_init(void) {}' 'void nvshmemi_get_device_state_ptrs(void) {}' >"$stand_ins/nvshmem.c"
  for library in $(cuda_libraries "$torch_lib"); do
    case "$library" in
      libnvshmem_host*) cc -shared -fPIC -o "$stand_ins/$library" -Wl,-soname,"$library" \
        -Wl,--version-script="$stand_ins/nvshmem.map" "$stand_ins/nvshmem.c" ;;
      *) cc -shared -o "$stand_ins/$library" -Wl,-soname,"$library" -x c /dev/null ;;
    esac
  done
}

# Names of the CUDA libraries that torch's libraries need, except the two that LibTorch itself comes with.
cuda_libraries() {
  local library
  for library in "$1"/libtorch_cuda.so "$1"/libtorch_python.so "$1"/libtorch_nvshmem.so "$1"/libtorch_cuda_linalg.so; do
    [[ -e "$library" ]] && readelf -d "$library"
  done | sed -n 's/.*NEEDED.*\[\(lib\(cu\|nccl\|nvrtc\|nvshmem\)[^]]*\)\].*/\1/p' |
    grep -vE '^lib(cudart|cupti|cuda)\.so' | sort -u || true
}

torch_folder="$(find_torch)"
install_packages
make_stand_ins "$torch_folder"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
"$dump" "$work"
cuda=/usr/local/cuda
libraries="$venv/stand-ins:$torch_folder/nvidia/cu13/lib:$cuda/lib64:$cuda/extras/CUPTI/lib64"
compare() {
  LD_LIBRARY_PATH="$libraries${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" \
    PYTHONPATH="$venv:$torch_folder" PYTHONDONTWRITEBYTECODE=1 python3 "$root/tests/parity/$1" "${@:2}"
}

tests="$(dirname "$(dirname "$dump")")"
exchange=(--program "$(dirname "$tests")/athanor" --probe "$tests/parity/parity_probe")
compare transformers_parity.py "$work"
compare hf_exchange.py "${exchange[@]}" --work "$work/exchange"
compare training_curve.py "${exchange[@]}" --work "$work/curve"
by_the_page() {
  PYTHONPATH="$venv" PYTHONDONTWRITEBYTECODE=1 python3 "$root/tests/checkpoint/format_by_the_page.py" "$@"
}
by_the_page "$root/tests/checkpoint/golden/version-1" --sample
trained="$(find "$work/curve" -name manifest.json -path '*checkpoints/step-*' -not -path '*step-00000000*' | head -n 1)"
[[ -n "$trained" ]] || fail "the training comparison left no checkpoint under $work/curve: see its output above" 70
by_the_page "$(dirname "$trained")"
