#!/usr/bin/env bash
# Installs what Athanor needs on Debian (or Ubuntu); quick when all of it is there.
#   scripts/install_dependencies.sh [--dev] [--cuda] [--no-system]
#     --dev        also the tools of the checks: clang-format, clang-tidy, shellcheck, Slurm
#     --cuda       also the NVIDIA libraries that LibTorch's CUDA part loads (about 3 GB; GPU machines only)
#     --no-system  leave system packages alone (they are yours to provide), see to LibTorch only
#
# System packages come from apt, as root or through sudo. LibTorch comes from the torch wheel, unpacked into
# .deps/libtorch of this folder, which git ignores; set LIBTORCH_ROOT to use a LibTorch of your own instead.
set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

torch_version=2.15.0
cuda_major=13 # of the CUDA runtime that this wheel is linked against, GPU or not
deps="$root/.deps"
libtorch="$deps/libtorch"

system_packages=(
  cmake ninja-build ccache g++ pkg-config
  libopenmpi-dev openmpi-bin libhdf5-dev
  libboost-program-options-dev nlohmann-json3-dev libspdlog-dev libfmt-dev libxxhash-dev librandom123-dev
  libsentencepiece-dev sentencepiece
  libgtest-dev libgmock-dev
  dict-gcide # English prose for the quickstart's corpus
)
dev_packages=(
  clang libclang-rt-dev clang-format clang-tidy shellcheck
  slurm-wlm munge iproute2 # tests/slurm starts a Slurm of its own
)

with_dev=no
with_cuda=no
with_system=yes
for argument in "$@"; do
  case "$argument" in
    --dev) with_dev=yes ;;
    --cuda) with_cuda=yes ;;
    --no-system) with_system=no ;;
    -h | --help)
      sed -n '2,9s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit 0
      ;;
    *) fail "unknown argument '$argument' (--dev, --cuda and --no-system are known): leave it out" 64 ;;
  esac
done

# --- system packages ------------------------------------------------------------------------------------------
missing_packages() {
  local package
  for package in "$@"; do
    if [[ "$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null)" != installed ]]; then
      printf '%s\n' "$package"
    fi
  done
}

install_system_packages() {
  has dpkg-query apt-get ||
    fail "apt-get is not here (this is no Debian or Ubuntu): install the equivalents of \
'$*' yourself, then run again with --no-system" 69
  local missing
  mapfile -t missing < <(missing_packages "$@")
  if [[ ${#missing[@]} -eq 0 ]]; then
    say "system packages: all there"
    return
  fi
  local as_root=()
  if [[ "$(id -u)" -ne 0 ]]; then
    has sudo ||
      fail "system packages are missing (${missing[*]}) and you are neither root nor able to use sudo: \
have an administrator run 'apt-get install ${missing[*]}'" 69
    as_root=(sudo)
  fi
  say "system packages: installing ${missing[*]}"
  "${as_root[@]}" apt-get -o Acquire::Retries=3 update ||
    fail "apt-get update failed (no network, or a broken package source): repair that and run again" 69
  "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get -o Acquire::Retries=3 install -y --no-install-recommends "${missing[@]}" ||
    fail "apt-get could not install '${missing[*]}' (its reason is above): repair that and run again" 69
}

# --- LibTorch -------------------------------------------------------------------------------------------------
ensure_pip() {
  python3 -m pip --version >/dev/null 2>&1 ||
    fail "python3 with pip is not here (it fetches LibTorch): install python3-pip, or set LIBTORCH_ROOT to a \
LibTorch of your own" 69
}

# A folder of its own is no "managed environment", so no system Python is touched; some pips still ask.
pip_into() {
  local target=$1
  shift
  PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore \
    python3 -m pip install --quiet --no-deps --no-compile --no-cache-dir --target "$target" "$@"
}

# Folders, besides .deps, in which cmake/FindLibTorch.cmake looks for the CUDA runtime.
cuda_library_folders() {
  printf '%s\n' "$libtorch/nvidia/cu$cuda_major/lib" \
    /usr/local/cuda/lib64 /usr/local/cuda/lib /usr/local/cuda/extras/CUPTI/lib64 \
    /usr/local/cuda-13.0/lib64 /usr/local/cuda-13.0/lib
}

# missing_wheels: which of the two NVIDIA wheels must be fetched, one a line.
missing_wheels() {
  local range=">=$cuda_major,<$((cuda_major + 1))"
  has_cuda_library "libcudart.so.$cuda_major" || printf '%s\n' "nvidia-cuda-runtime$range"
  has_cuda_library "libcupti.so.$cuda_major" || printf '%s\n' "nvidia-cuda-cupti$range"
}

has_cuda_library() {
  local folder
  while read -r folder; do
    [[ -e "$folder/$1" ]] && return 0
  done < <(cuda_library_folders)
  return 1
}

# Installed whole or not at all: into a folder beside it that is renamed at the end, with a stamp inside.
install_libtorch() {
  local wanted="torch==$torch_version"
  if [[ -f "$libtorch/.installed" && "$(<"$libtorch/.installed")" == "$wanted" ]]; then
    say "LibTorch: $wanted is there"
    return
  fi
  ensure_pip
  [[ -e "$libtorch" ]] && say "LibTorch: $libtorch is incomplete or another version, installing it anew"
  say "LibTorch: fetching $wanted (about 540 MB)"
  local partial="$libtorch.partial"
  rm -rf "$partial"
  pip_into "$partial" "$wanted" ||
    fail "pip could not install $wanted into $partial (its reason is above; Python 3.10 or later, 3 GB of free \
disk and a network are needed): repair that and run again, or set LIBTORCH_ROOT" 69
  [[ -e "$partial/torch/lib/libtorch_cpu.so" && -e "$partial/torch/include/ATen/ATen.h" ]] ||
    fail "the $wanted wheel has no libtorch_cpu.so or no headers (another platform's wheel?): set LIBTORCH_ROOT" 69
  printf '%s\n' "$wanted" >"$partial/.installed"
  rm -rf "$libtorch"
  mv "$partial" "$libtorch"
}

# The wheel's libtorch_cpu.so loads these two even where there is no GPU.
install_cuda_runtime() {
  local wheels
  mapfile -t wheels < <(missing_wheels)
  if [[ ${#wheels[@]} -eq 0 ]]; then
    return
  fi
  ensure_pip
  say "LibTorch: fetching ${wheels[*]} (small; loaded at start, no GPU needed)"
  pip_into "$libtorch" --upgrade "${wheels[@]}" ||
    fail "pip could not install ${wheels[*]} (its reason is above): repair that and run again" 69
  [[ -z "$(missing_wheels)" ]] ||
    fail "the wheels '${wheels[*]}' do not unpack to nvidia/cu$cuda_major/lib any more: install the CUDA \
$cuda_major toolkit, or set LIBTORCH_ROOT" 69
}

# The wheel names the versions it was built with: cuBLAS and others of the toolkit, cuDNN, cuSPARSELt, NCCL, NVSHMEM.
install_cuda_libraries() {
  local wheels stamp="$libtorch/.cuda-installed"
  mapfile -t wheels < <(sed -n -E 's/^Requires-Dist: ((nvidia-|cuda-toolkit)[^;]*).*/\1/p' \
    "$libtorch/torch-$torch_version.dist-info/METADATA" | tr -d ' ')
  [[ ${#wheels[@]} -gt 0 ]] ||
    fail "the torch==$torch_version wheel names no NVIDIA libraries (a wheel without CUDA?): remove $libtorch and run \
again" 69
  if [[ -f "$stamp" && "$(<"$stamp")" == "${wheels[*]}" ]]; then
    say "NVIDIA libraries: all there"
    return
  fi
  ensure_pip
  say "NVIDIA libraries: fetching ${wheels[*]} (about 3 GB)"
  PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore \
    python3 -m pip install --quiet --no-compile --no-cache-dir --upgrade --target "$libtorch" "${wheels[@]}" ||
    fail "pip could not install ${wheels[*]} (its reason is above; 5 GB of free disk and a network are needed): \
repair that and run again" 69
  printf '%s\n' "${wheels[*]}" >"$stamp"
}

check_own_libtorch() {
  local folder
  for folder in "$LIBTORCH_ROOT" "$LIBTORCH_ROOT/torch"; do
    if [[ -e "$folder/lib/libtorch_cpu.so" && -e "$folder/include/ATen/ATen.h" ]]; then
      say "LibTorch: your own in $folder"
      return
    fi
  done
  fail "LIBTORCH_ROOT=$LIBTORCH_ROOT holds no LibTorch (no lib/libtorch_cpu.so with include/ATen/ATen.h there or in \
torch/ below it): point it to one, or unset it to have one fetched" 66
}

if [[ $with_system == yes ]]; then
  packages=("${system_packages[@]}")
  [[ $with_dev == yes ]] && packages+=("${dev_packages[@]}")
  install_system_packages "${packages[@]}"
fi

if [[ -n "${LIBTORCH_ROOT:-}" ]]; then
  check_own_libtorch
else
  mkdir -p "$deps" ||
    fail "$deps cannot be made (its parent is not writable?): make it writable, or set LIBTORCH_ROOT" 73
  exec {lock}>"$deps/.lock"
  flock "$lock" # two runs at once: the second finds the work done
  install_libtorch
  if [[ $with_cuda == yes ]]; then
    install_cuda_libraries
  fi
  install_cuda_runtime
fi
