#!/usr/bin/env python3
"""Runs clang-tidy with the settings of .clang-tidy.

    check_tidy.py --build BUILD_FOLDER [--root REPOSITORY] [--jobs N] [--deep] [FILE...]

Without files: the sources of the libraries that are free of ATen, as far as they reach it through no header either.
A source that includes ATen takes half a minute, so those are checked when named, as scripts/lint.sh --changed does.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

import check_layers

# kernels/cpu uses builtins that clang lacks
FREE_FOLDERS = ("base/", "device/", "data/", "config/", "kernels/reference/")

# What CMake adds for GCC's precompiled header, which clang cannot read.
GCC_ONLY = {"-fpch-preprocess", "-Winvalid-pch", "-fno-sanitize-recover=undefined"}


def clang_command(command: str) -> list[str]:
    """The compile command without the compiler launcher and without the precompiled header."""
    words = shlex.split(command)
    first = next(i for i, word in enumerate(words) if re.fullmatch(r"(g|c|clang)\+\+[-\d.]*", os.path.basename(word)))
    kept, skip = ["clang++"], False
    for word, following in zip(words[first + 1:], [*words[first + 2:], ""]):
        if skip:
            skip = False
        elif word == "-include" and "cmake_pch" in following:
            skip = True
        elif word not in GCC_ONLY:
            kept.append(word)
    return kept


def tidy(file: pathlib.Path, database: str, checks: str) -> list[str]:
    """What clang-tidy complains about, one entry per place."""
    result = subprocess.run(["clang-tidy", "--quiet", f"--checks={checks}", "-p", database, str(file)],
                            capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return []
    findings = re.split(r"^(?=\S+:\d+:\d+: (?:error|warning))", result.stdout, flags=re.MULTILINE)
    return [finding.strip() for finding in findings if finding.strip()] or [result.stderr]


def chosen_files(known: list[pathlib.Path], named: list[pathlib.Path], source_root: pathlib.Path) -> list[pathlib.Path]:
    if named:
        wanted = {file.resolve() for file in named}
        return [file for file in known if file in wanted]
    return [file for file in known
            if file.relative_to(source_root).as_posix().startswith(FREE_FOLDERS)
            and not check_layers.reaches(file, check_layers.TENSORS, source_root)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--deep", action="store_true", help="run clang's path-sensitive analyzer too")
    parser.add_argument("files", nargs="*", type=pathlib.Path)
    options = parser.parse_args()
    commands = json.loads((options.build / "compile_commands.json").read_text())
    entries = [{"directory": c["directory"], "file": c["file"], "arguments": clang_command(c["command"])}
               for c in commands if pathlib.Path(c["file"]).is_relative_to(options.root / "src")
               and "/cuda/" not in c["file"]]  # those see the tests' double of CUDA, which clang 14 cannot read
    known = [pathlib.Path(entry["file"]) for entry in entries]
    files = chosen_files(known, options.files, options.root / "src")
    if not files:
        print("clang-tidy: nothing to check" if options.files else f"{options.build} compiles no ATen-free source")
        return 0 if options.files else 1
    with tempfile.TemporaryDirectory() as database, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        (pathlib.Path(database) / "compile_commands.json").write_text(json.dumps(entries))
        (pathlib.Path(database) / ".clang-tidy").write_text((options.root / ".clang-tidy").read_text())
        checks = "clang-analyzer-*" if options.deep else ""
        found = list(pool.map(lambda file: tidy(file, database, checks), files))
    errors = sorted({finding for findings in found for finding in findings})  # a header's are found many times
    print("\n".join(errors) if errors else f"clang-tidy: {len(files)} files clean")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
