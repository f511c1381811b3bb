#!/usr/bin/env python3
"""Checks that what the documentation names exists: linked files, scripts, and the tests of docs/testing.md.

    check_docs.py [--root REPOSITORY]
"""

import argparse
import pathlib
import re
import sys
from typing import Iterator

LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
SCRIPT = re.compile(r"(?<![\w/])(scripts/[\w./-]+\.(?:sh|py))")
TEST_NAME = re.compile(r"`([A-Z]\w+\.[A-Z]\w+)`")
TEST_DEFINITION = re.compile(r"^\s*TEST(?:_F|_P)?\(\s*(\w+),\s*(\w+)\)", re.MULTILINE)


def pages(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted([*root.glob("*.md"), *(root / "docs").rglob("*.md")])


def check_names(page: pathlib.Path, root: pathlib.Path) -> Iterator[str]:
    name = page.relative_to(root).as_posix()
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(text):
        if "://" not in target and not (page.parent / target).exists():
            yield f"{name}: links to {target}, which does not exist"
    for script in sorted(set(SCRIPT.findall(text))):
        if not (root / script).is_file():
            yield f"{name}: names {script}, which does not exist"


def check_tests(root: pathlib.Path) -> Iterator[str]:
    defined = set()
    for source in (root / "tests").rglob("*.cpp"):
        defined |= {".".join(match) for match in TEST_DEFINITION.findall(source.read_text(encoding="utf-8"))}
    named = TEST_NAME.findall((root / "docs/testing.md").read_text(encoding="utf-8"))
    if not named:
        yield "docs/testing.md: names no test"
    for test in sorted(set(named) - defined):
        yield f"docs/testing.md: names the test {test}, which does not exist"


def check(root: pathlib.Path) -> list[str]:
    return [error for page in pages(root) for error in check_names(page, root)] + list(check_tests(root))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--root", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parents[2])
    errors = check(parser.parse_args().root)
    print("\n".join(errors) if errors else "docs: all that is named exists")
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
