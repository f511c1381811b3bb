#!/usr/bin/env python3
"""Compiles every header under src/ alone, checking syntax only, without the project's precompiled header.

    check_headers.py --build BUILD_FOLDER [--root REPOSITORY] [--jobs N] [HEADER...]

The compiler and the include paths are those of compile_commands.json in the build folder. A header that reaches
<ATen/core/Tensor.h> through its own includes gets that one file precompiled, which saves 2 s each; it brings nothing
that the header does not bring itself.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import shlex
import subprocess
import sys
import tempfile

import check_layers

KEPT_WITH_VALUE = {"-I", "-isystem", "-D"}


def compiler_and_flags(build: pathlib.Path, root: pathlib.Path) -> list[str]:
    """The compiler, and the union of the include paths and definitions of all sources under src/."""
    commands = json.loads((build / "compile_commands.json").read_text())
    compiler, flags = "", []
    for entry in commands:
        if not entry["file"].startswith(str(root / "src")):
            continue
        words = shlex.split(entry["command"])
        compiler = compiler or next(w for w in words if os.path.basename(w).startswith(("g++", "c++", "clang++")))
        for i, word in enumerate(words):
            if word in KEPT_WITH_VALUE:
                pair = [word, words[i + 1]]
            elif word.startswith(("-I", "-D", "-std=")):
                pair = [word]
            else:
                continue
            if pair not in flags:
                flags.append(pair)
    if not compiler:
        raise SystemExit(f"{build}/compile_commands.json names no file under src/: configure that build first")
    return [compiler, *(word for pair in flags for word in pair), "-Wall", "-Wextra", "-Werror"]


def precompile_tensor(command: list[str], scratch: pathlib.Path) -> list[str]:
    """Options that make a compilation start with <ATen/core/Tensor.h> precompiled."""
    header = scratch / "tensor.hpp"
    header.write_text("#include <ATen/core/Tensor.h>\n")
    subprocess.run([*command, "-x", "c++-header", str(header), "-o", f"{header}.gch"], check=True)
    return ["-include", str(header), "-Winvalid-pch"]


def compile_alone(header: pathlib.PurePath, command: list[str], scratch: pathlib.Path) -> str | None:
    """The compiler's complaint, or None. Included twice, so that a missing include guard is one."""
    include = f'#include "{header}"\n'
    source = scratch / (header.as_posix().replace("/", "_") + ".cpp")
    source.write_text(include + include)
    result = subprocess.run([*command, "-fsyntax-only", str(source)], capture_output=True, text=True, check=False)
    return None if result.returncode == 0 else f"{header} does not compile alone:\n{result.stderr}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--build", type=pathlib.Path, required=True)
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("headers", nargs="*", help="paths below src/; default: all")
    options = parser.parse_args()
    source_root = options.root / "src"
    headers = [pathlib.PurePath(name) for name in options.headers] or sorted(
        path.relative_to(source_root) for path in source_root.rglob("*.hpp")
        if "cuda" not in path.relative_to(source_root).parts)  # those need a CUDA toolkit
    if not headers:
        print(f"{source_root} holds no header")
        return 1
    command = compiler_and_flags(options.build, options.root)
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        scratch = pathlib.Path(folder)
        tensor_users = {h for h in headers if check_layers.reaches(source_root / h, "ATen/core/Tensor.h", source_root)}
        tensor_command = [*command, *precompile_tensor(command, scratch)] if tensor_users else command
        results = pool.map(lambda h: compile_alone(h, tensor_command if h in tensor_users else command, scratch),
                           headers)
        errors = [error for error in results if error]
    print("\n".join(errors) if errors else f"headers: {len(headers)} compile alone")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
