#!/bin/sh
# Makes a corpus of real text from what an installed system has: prose from the Debian package dict-gcide, code
# from LibTorch's own headers. Writes to OUTDIR: prose.train.jsonl, prose.valid.jsonl, code.train.jsonl and
# code.valid.jsonl. The same packages give the same bytes. Nothing is done when the folder is complete already.
#
# Usage: scripts/make_corpus.sh OUTDIR
#   LIBTORCH_ROOT   LibTorch to take the headers from (default: .deps/libtorch/torch of this project)
#   GCIDE           the dictionary (default: /usr/share/dictd/gcide.dict.dz)
set -eu

if [ $# -ne 1 ]; then
  echo "usage: $0 OUTDIR" >&2
  exit 64
fi
outdir=$1
root=$(cd "$(dirname "$0")/.." && pwd)
gcide=${GCIDE:-/usr/share/dictd/gcide.dict.dz}
headers=${LIBTORCH_ROOT:-$root/.deps/libtorch/torch}/include

# Written last, so an interrupted run is not taken for a complete one.
if [ -f "$outdir/corpus.json" ]; then
  echo "corpus in $outdir is complete" >&2
  exit 0
fi
if [ ! -f "$gcide" ]; then
  echo "$gcide does not exist (the prose is made from it) install dict-gcide, or set GCIDE" >&2
  exit 66
fi
if [ ! -d "$headers" ]; then
  echo "$headers does not exist (the code is made from it) install LibTorch there, or set LIBTORCH_ROOT" >&2
  exit 66
fi
if ! mkdir -p "$outdir" 2>/dev/null || [ ! -w "$outdir" ]; then
  echo "$outdir cannot be written: choose another folder" >&2
  exit 73
fi
exec python3 "$root/scripts/make_corpus.py" "$gcide" "$headers" "$outdir"
