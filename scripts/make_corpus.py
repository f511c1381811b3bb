"""The work behind make_corpus.sh: JSON lines of dictionary entries and of headers, in two parts each."""

import gzip
import hashlib
import json
import pathlib
import re
import sys

PROSE_HELD_OUT = 0.02
CODE_HELD_OUT = 0.03
# An entry begins with a headword at the left margin and its pronunciation between backslashes.
ENTRY_START = re.compile(r"^\S[^\\\n]* \\")
MIN_CHARACTERS = 40
# Generated headers repeat one pattern thousands of times; a part of them is enough to learn it.
GENERATED_FOLDER = "ATen/ops/"
GENERATED_SHARE = 0.1


def fraction(text):
    """A number in [0, 1) that depends on the text alone."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64


def prose_entries(path):
    """Entries of the dictionary; each starts at a headword and keeps its paragraphs."""
    with gzip.open(path) as file:
        text = file.read().decode("utf-8", errors="replace")
    entry = []
    seen_headword = False
    for line in text.split("\n"):
        if ENTRY_START.match(line):
            if seen_headword:
                yield "\n".join(entry)
            entry = []
            seen_headword = True
        entry.append(line.rstrip())
    if seen_headword:
        yield "\n".join(entry)


def clean_prose(entry):
    """Without the source marks that end almost every sense, and without runs of blank lines."""
    entry = re.sub(r"\s*\[(?:1913 Webster|PJC|WordNet 1\.5)(?: \+PJC)?\]", "", entry)
    return re.sub(r"\n{3,}", "\n\n", entry).strip() + "\n"


def code_files(folder):
    """Contents of the headers, sorted by path."""
    for path in sorted(folder.rglob("*")):
        if path.suffix not in (".h", ".hpp", ".cuh") or not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        if name.startswith(GENERATED_FOLDER) and fraction(name) >= GENERATED_SHARE:
            continue
        yield path.read_text(encoding="utf-8", errors="replace")


def write_parts(documents, held_out, prefix):
    """Writes PREFIX.train.jsonl and PREFIX.valid.jsonl, equal documents once; returns the counts."""
    counts = {part: {"documents": 0, "bytes": 0} for part in ("train", "valid")}
    seen = set()
    files = {part: open(f"{prefix}.{part}.jsonl", "w", encoding="utf-8") for part in counts}
    for text in documents:
        key = hashlib.sha256(text.encode()).digest()
        if len(text) < MIN_CHARACTERS or key in seen:
            continue
        seen.add(key)
        part = "valid" if fraction("held-out " + text) < held_out else "train"
        files[part].write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        counts[part]["documents"] += 1
        counts[part]["bytes"] += len(text.encode())
    for file in files.values():
        file.close()
    return counts


def main():
    gcide, headers, outdir = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3])
    summary = {
        "prose": write_parts(map(clean_prose, prose_entries(gcide)), PROSE_HELD_OUT, outdir / "prose"),
        "code": write_parts(code_files(headers), CODE_HELD_OUT, outdir / "code"),
    }
    for domain, parts in summary.items():
        for part, counts in parts.items():
            print(f"{outdir}/{domain}.{part}.jsonl: {counts['documents']} documents, "
                  f"{counts['bytes'] / 1e6:.1f} MB of text", file=sys.stderr)
    (outdir / "corpus.json").write_text(json.dumps(summary, indent=2) + "\n")


if __name__ == "__main__":
    main()
