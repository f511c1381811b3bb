#!/usr/bin/env python3
"""Checks the form of the tree: clang-format, file lengths, paths and addresses that do not belong, bare TODOs,
random numbers without a seed in tests.

    check_style.py [--root REPOSITORY] [--no-clang-format]

Looks at what git tracks and at new files that it does not ignore. Long files are listed but are no error; all else
is. Exits with 1 if there was any error.
"""

import argparse
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Iterator

CODE_SUFFIXES = {".hpp", ".cpp", ".cu", ".cuh"}
TEXT_SUFFIXES = CODE_SUFFIXES | {".py", ".sh", ".md", ".txt", ".cmake", ".json", ".ini", ".yml", ""}
LONG_FILE_LINES = 400
CLANG_FORMAT_VERSION = 14
LINE_LENGTH = 120  # for what clang-format does not see

# Brackets in a pattern keep this file from being a finding itself.
FORBIDDEN = [
    (r"(?<![\w.$}<>-])/(root|work|home/\w+|Users/\w+)(/|\b)", "a path of one machine; make it relative or an option"),
    (r"https?://\S*(pypi|pythonhosted|conda|npmjs|crates\.io|deb\.debian|ubuntu\.com|download\.pytorch)",
     "the address of a package registry; name the package and leave the registry to the user's set-up"),
    (r"--(extra-)?[i]ndex-url|--find-[l]inks", "a choice of package registry; leave it to the user's set-up"),
    (r"\b(TO[D]O|FIX[M]E|X[X]X)\b(?!\([^)]+\): \S)", "unfinished work without a reason; do it, or say (why): what"),
    (r"[ \t]+$", "white space at the end of the line"),
    (r"^(<{7}|>{7}|={7})( |$)", "a merge conflict mark"),
]
FORBIDDEN = [(re.compile(pattern), reason) for pattern, reason in FORBIDDEN]


def listed_files(root: pathlib.Path) -> list[pathlib.Path]:
    output = subprocess.run(["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                            capture_output=True, check=True).stdout
    names = sorted(name for name in output.decode().split("\0") if name)
    # Inputs of fuzzers are whatever a parser may meet.
    return [root / name for name in names if (root / name).is_file() and not name.startswith("tests/fuzz/corpus/")]


def check_text(file: pathlib.Path, root: pathlib.Path) -> Iterator[str]:
    name = file.relative_to(root).as_posix()
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        yield f"{name}: is not UTF-8"
        return
    if text and not text.endswith("\n"):
        yield f"{name}: has no newline at its end"
    for number, line in enumerate(text.splitlines(), start=1):
        for pattern, reason in FORBIDDEN:
            if pattern.search(line):
                yield f"{name}:{number}: {reason}"
        if file.suffix in {".py", ".sh", ".cmake"} and len(line) > LINE_LENGTH:
            yield f"{name}:{number}: {len(line)} columns, at most {LINE_LENGTH}"


# Any random tensor or device that no generator or seed was named for: other numbers in every run.
UNSEEDED = re.compile(r"\b(at|torch)::rand\w*\((?!.*\bgenerator\b)|\bstd::random_device\b")


def unseeded_numbers(file: pathlib.Path, root: pathlib.Path) -> Iterator[str]:
    """Tests that draw other numbers in every run fail now and then, and never twice."""
    name = file.relative_to(root).as_posix()
    if not name.startswith("tests/") or file.suffix not in CODE_SUFFIXES:
        return
    text = file.read_text(encoding="utf-8")
    if "manual_seed(" in text:
        return
    for number, line in enumerate(text.splitlines(), start=1):
        if UNSEEDED.search(line):
            yield f"{name}:{number}: random numbers without a seed; call at::manual_seed() in the test"


def long_files(files: list[pathlib.Path], root: pathlib.Path) -> Iterator[str]:
    for file in files:
        if file.suffix not in CODE_SUFFIXES:
            continue
        lines = len(file.read_text(encoding="utf-8").splitlines())
        if lines > LONG_FILE_LINES:
            yield f"note: {file.relative_to(root).as_posix()} has {lines} lines (about {LONG_FILE_LINES} are meant)"


def formatter_version(command: str) -> int | None:
    if shutil.which(command) is None:
        return None
    match = re.search(r"version (\d+)", subprocess.run([command, "--version"], capture_output=True, text=True,
                                                       check=True).stdout)
    return int(match.group(1)) if match else None


def check_format(files: list[pathlib.Path], root: pathlib.Path) -> Iterator[str]:
    """One line per file that clang-format would change. Versions format differently, so only one counts."""
    code = [str(file.relative_to(root)) for file in files if file.suffix in CODE_SUFFIXES]
    for command in (f"clang-format-{CLANG_FORMAT_VERSION}", "clang-format"):
        if formatter_version(command) == CLANG_FORMAT_VERSION:
            break
    else:
        yield (f"clang-format {CLANG_FORMAT_VERSION} is not here (others format differently): run "
               "scripts/install_dependencies.sh --dev, or pass --no-clang-format")
        return
    for start in range(0, len(code), 100):
        result = subprocess.run([command, "--dry-run", "-Werror", *code[start:start + 100]], cwd=root,
                                capture_output=True, text=True, check=False)
        places = [line.split(":") for line in result.stderr.splitlines() if " error: " in line]
        for name in sorted({place[0] for place in places}):
            first = min(int(place[1]) for place in places if place[0] == name)
            yield f"{name}:{first}: is not formatted; run {command} -i {name}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    parser.add_argument("--no-clang-format", action="store_true")
    options = parser.parse_args()
    files = listed_files(options.root)
    text_files = [file for file in files if file.suffix in TEXT_SUFFIXES and file.name != "LICENSE"]
    errors = [error for file in text_files for error in check_text(file, options.root)]
    errors += [error for file in text_files for error in unseeded_numbers(file, options.root)]
    if not options.no_clang_format:
        errors += check_format(files, options.root)
    for line in [*long_files(files, options.root), *errors]:
        print(line)
    print(f"style: {len(text_files)} files, {len(errors)} errors")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
