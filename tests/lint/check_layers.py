#!/usr/bin/env python3
"""Checks who includes whom under src/.

Each folder of src/ is a library with a layer; it may include only itself and libraries of lower layers, never the
detail/ part of another, and each foreign library has the folders in which its headers may appear. Usage:

    check_layers.py [--root REPOSITORY]

Prints one line per violation (file:line: reason) and exits with 1 if there was any.
"""

import argparse
import pathlib
import re
import sys
from typing import Iterator, NamedTuple

LAYERS = {
    "base": 0,
    "device": 1,
    "parallel": 2,
    "kernels": 2,
    "nn": 3,
    "moe": 4,
    "model": 5,
    "optim": 5,
    "data": 5,
    "checkpoint": 5,
    "distill": 5,
    "infer": 6,
    "config": 6,
    "train": 7,
    "app": 8,
}

SOURCE_SUFFIXES = {".hpp", ".cpp", ".cu", ".cuh", ".h"}
ATEN = r"(ATen|torch|c10)/"
TENSORS = r"(ATen|torch)/"  # c10/util has the scalar types, which anyone may use
INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^">]+)[>"]')


class Fence(NamedTuple):
    """Headers matching `pattern` may be included only by files whose path below src/ matches `allowed`."""

    pattern: re.Pattern
    allowed: re.Pattern
    reason: str


def fence(pattern: str, allowed: str, reason: str) -> Fence:
    return Fence(re.compile(pattern), re.compile(allowed), reason)


FENCES = [
    fence(r"torch/(torch|all|nn|extension)\.h$", r"$^", "pulls in all of LibTorch; include the narrow ATen headers"),
    fence(r"mpi\.h$|mpi-ext\.h$", r"parallel/(.*\.cpp|(.*/)?detail/.*)$",
          "MPI belongs in .cpp and detail/ files of src/parallel"),
    fence(r"nccl\.h$", r"parallel/", "NCCL belongs in src/parallel"),
    fence(r"(hdf5|H5.*)\.h(pp)?$", r"checkpoint/", "HDF5 belongs in src/checkpoint"),
    fence(r"boost/", r"config/", "Boost belongs in src/config"),
    fence(r"(c10/cuda/|ATen/cuda/|cuda|cublas|cudnn|curand|cusparse|cub/|thrust/|nvToolsExt)",
          r"(device|kernels)/|parallel/.*nccl", "CUDA belongs in src/device, src/kernels and parallel's NCCL part"),
    fence(r"sentencepiece", r"data/", "SentencePiece belongs in src/data"),
    fence(r"spdlog/", r"base/", "the log is base/log.hpp"),
    fence(ATEN, r"(device|parallel|kernels|nn|moe|model|optim|checkpoint|distill|infer|config|train|app)/",
          "base and data are free of LibTorch"),
]


class Include(NamedTuple):
    line: int
    quoted: bool
    path: str


def includes_of(file: pathlib.Path) -> Iterator[Include]:
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        if match := INCLUDE.match(line):
            yield Include(number, match.group(1) == '"', match.group(2))


def reaches(file: pathlib.Path, pattern: str, source_root: pathlib.Path) -> bool:
    """Whether the file, or one of our headers that it includes at any depth, includes <pattern...>."""
    waiting, seen = [file], set()
    while waiting:
        current = waiting.pop()
        if current in seen or not current.is_file():
            continue
        seen.add(current)
        for include in includes_of(current):
            if include.quoted:
                waiting.append(source_root / include.path)
            elif re.match(pattern, include.path):
                return True
    return False


def own_include_error(file: pathlib.PurePath, include: Include, source_root: pathlib.Path) -> str | None:
    """What is wrong with an include of one of our own headers, or None. `file` is relative to src/."""
    folder, target = file.parts[0], pathlib.PurePath(include.path)
    other = target.parts[0]
    if len(target.parts) < 2 or other not in LAYERS:
        return f'"{include.path}" is no <folder>/<file> path below src/'
    if not (source_root / target).is_file():
        return f'"{include.path}" does not exist'
    if other != folder and LAYERS[other] >= LAYERS[folder]:
        kind = "a sibling of" if LAYERS[other] == LAYERS[folder] else "above"
        return f'"{include.path}": {other} (L{LAYERS[other]}) is {kind} {folder} (L{LAYERS[folder]})'
    if other != folder and "detail" in target.parts:
        return f'"{include.path}" is a private part of {other}'
    return None


def check_file(file: pathlib.PurePath, source_root: pathlib.Path) -> Iterator[str]:
    for include in includes_of(source_root / file):
        place = f"src/{file.as_posix()}:{include.line}"
        if include.quoted:
            if error := own_include_error(file, include, source_root):
                yield f"{place}: {error}"
            continue
        if include.path.split("/")[0] in LAYERS and (source_root / include.path).exists():
            yield f'{place}: <{include.path}> is ours; write "{include.path}"'
        for rule in FENCES:
            if rule.pattern.match(include.path) and not rule.allowed.match(file.as_posix()):
                yield f"{place}: <{include.path}>: {rule.reason}"


def check_kernels(source_root: pathlib.Path) -> Iterator[str]:
    """Kernels take raw pointers: tensors appear in one unit only (header and .cpp), the GEMM back-end, and in
    tensor_kernels*, which calls all the others for the layers."""
    users = sorted(
        file for file in (source_root / "kernels").rglob("*")
        if file.suffix in SOURCE_SUFFIXES and not file.stem.startswith("tensor_kernels")
        and any(re.match(TENSORS, i.path) for i in includes_of(file)))
    if len({file.stem for file in users}) > 1:
        names = ", ".join(file.name for file in users)
        yield f"src/kernels: ATen is included by {names}; only one unit, the GEMM back-end, may besides \
tensor_kernels*: take raw pointers"


def check(root: pathlib.Path) -> list[str]:
    source_root = root / "src"
    errors = []
    for path in sorted(source_root.rglob("*")):
        if path.suffix not in SOURCE_SUFFIXES:
            continue
        file = path.relative_to(source_root)
        if len(file.parts) < 2 or file.parts[0] not in LAYERS:
            errors.append(f"src/{file.as_posix()}: lies in no known library; add its folder to LAYERS")
            continue
        errors += check_file(file, source_root)
    return errors + list(check_kernels(source_root))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    errors = check(parser.parse_args().root)
    print("\n".join(errors) if errors else "layers: every include goes down")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
