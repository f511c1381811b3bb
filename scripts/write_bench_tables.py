#!/usr/bin/env python3
"""Writes what the benchmarks found into a page, between the markers of each.

    scripts/write_bench_tables.py --results=runs/bench/results [--page=docs/performance.md]

The results' folder has index.tsv (benchmark, label, file, command; scripts/bench.sh writes it) and the files, each the
JSON of one `athanor bench`. For every benchmark NAME in it the page's lines between <!-- bench NAME begin --> and
<!-- bench NAME end --> are replaced; the page's other lines stay as they are. A page without the markers of a benchmark
is refused. `machine` is a block of its own: what this was measured on.
"""
import argparse
import json
import pathlib
import platform
import re
import subprocess
import sys
import textwrap

# Of messages of these sizes the page tells; the JSON has all.
SHOWN_BYTES = [1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 26]


class PageError(Exception):
    """The page or the results cannot be used as they are."""


def digits(value):
    """Four digits that say something, thousands apart."""
    if value is None:
        return "not finite"
    size = abs(value)
    decimals = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{value:,.{decimals}f}"


def spread(entry, key):
    """Median and range of a ratio."""
    return f"{digits(entry[key])} ({digits(entry[key + '_min'])} to {digits(entry[key + '_max'])})"


def table(head, rows):
    """Lines of a Markdown table."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)] + ["| " + " | ".join(row) + " |" for row in rows]


def prose(text):
    """Lines of at most 120 columns."""
    return textwrap.wrap(text, 120)


def command_lines(command):
    """A command as the page shows it, broken where it is long."""
    lines = textwrap.wrap(command, 110, break_long_words=False, break_on_hyphens=False)
    return ["    " + ("" if number == 0 else "    ") + line + (" \\" if number + 1 < len(lines) else "")
            for number, line in enumerate(lines)]


def figure_table(figures):
    """What every benchmark has: figure, limit, ratio, spread over rounds."""
    return table(["what", "figure", "limit", "ratio"],
                 [[figure["name"], f"{digits(figure['figure'])} {figure['unit']}",
                   f"{figure['limit_name']}: {digits(figure['limit'])} {figure['unit']}", spread(figure, "ratio")]
                  for figure in figures])


def size_text(number):
    """1024 -> 1 KiB; a size that a group rounded is called by the one it was made of."""
    number = next((shown for shown in SHOWN_BYTES if shown - number in range(shown // 8)), number)
    for unit, factor in (("MiB", 1 << 20), ("KiB", 1 << 10)):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number} B"


def nearest_shown(number):
    """Whether a size is one of those shown; groups that do not divide it round it a little."""
    return any(abs(number - shown) <= shown // 8 for shown in SHOWN_BYTES)


def collectives_table(result):
    """One line for each operation and size shown, all algorithms' times in it."""
    rows = []
    for case in result["cases"]:
        if case["bytes"] and not nearest_shown(case["bytes"]):
            continue
        by_name = {algorithm["name"]: algorithm for algorithm in case["algorithms"]}
        chosen = by_name[case["chosen"]]
        others = ", ".join(f"{name} {digits(algorithm['seconds'] * 1e6)}" for name, algorithm in by_name.items()
                           if name != case["chosen"])
        rows.append([case["operation"], size_text(case["bytes"]) if case["bytes"] else "",
                     f"{case['chosen']} {digits(chosen['seconds'] * 1e6)}", others, digits(case["copy_s"] * 1e6),
                     spread(chosen, "ratio")])
    return table(["operation", "bytes", "chosen, µs", "others, µs", "memory copy, µs", "ratio of the chosen"], rows)


def step_lines(result):
    """What a step sends and needs."""
    sent = ", ".join(f"{value / 1e6:.1f} MB {name}" for name, value in sorted(result["bytes_sent_per_step"].items())
                     if value)
    return prose(f"Sent in a step: {sent or 'nothing'}. Peak memory of a rank: "
                 f"{result['peak_rss_bytes'] / 1e6:.0f} MB.")


def dispatch_lines(result):
    """Bytes against f32's."""
    rows = [[f"{case['routing']} routing, dispatch {case['dispatch']}, combine {case['combine']}",
             f"{case['dispatch_bytes']:,}", f"{case['combine_bytes']:,}", "yes" if case["equal"] else "NO",
             f"{case['dispatch_share_of_f32']:.4f}", f"{case['total_share_of_f32']:.4f}"] for case in result["cases"]]
    shapes = "; ".join(f"{shape['name']}: std of f/mu {shape['expert_use_std']:.3f}, fullest rank "
                       f"{shape['rank_load']:.3f} of the mean" for shape in result["routings"])
    return table(["bytes of a step, all ranks", "dispatch", "combine", "as the formula", "dispatch / f32",
                  "all four / f32"], rows) + ["", *prose(f"Routings: {shapes}.")]


def stream_lines(result):
    """Bytes over the link and waits."""
    link = result["link_bytes_per_step"]
    return prose(f"Bytes over the link in a step: {link['sent']:,} counted, {link['formula']:,} by the formula. A "
                 f"student waits {100 * result['student_wait_share']:.1f} % of its step for the teacher, the teacher "
                 f"{100 * result['teacher_wait_share']:.1f} % for credit.")


def checkpoint_lines(result):
    """Sizes."""
    return [f"One checkpoint: {result['bytes'] / 1e6:.1f} MB of state, {result['disk_bytes'] / 1e6:.1f} MB on disk."]


TABLES = {"collectives": collectives_table}
LINES = {"step": step_lines, "dispatch": dispatch_lines, "stream": stream_lines, "checkpoint": checkpoint_lines}


def block_of(name, runs):
    """The text between the markers of one benchmark: (label, result, command) of each of its runs."""
    lines = []
    for label, result, command in runs:
        lines += [f"{label}:", "", *command_lines(command), ""]
        lines += TABLES[name](result) if name in TABLES else figure_table(result["figures"])
        if name in LINES:
            lines += ["", *LINES[name](result)]
        lines.append("")
    return "\n".join(lines).strip("\n")


def replace_block(page, name, text):
    """The page with `text` between the markers of `name`."""
    begin, end = f"<!-- bench {name} begin -->", f"<!-- bench {name} end -->"
    if page.count(begin) != 1 or page.count(end) != 1 or page.index(begin) > page.index(end):
        raise PageError(f"the page needs the lines {begin} and {end} once each, in this order")
    head, rest = page.split(begin)
    return head + begin + "\n\n" + text + "\n\n" + end + rest.split(end)[1]


def first_match(pattern, path, otherwise):
    """The first group of the first match in a file, where there is one."""
    try:
        match = re.search(pattern, pathlib.Path(path).read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return otherwise
    return match.group(1).strip() if match else otherwise


def machine():
    """One line about this machine, without a date or a name."""
    model = first_match(r"model name\s*:\s*(.*)", "/proc/cpuinfo", platform.machine())
    flags = first_match(r"flags\s*:\s*(.*)", "/proc/cpuinfo", "").split()
    best = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags]
    cores = subprocess.run(["bash", "-c", "source scripts/common.sh; cores"], capture_output=True, text=True,
                           check=False, cwd=pathlib.Path(__file__).resolve().parent.parent).stdout.strip()
    memory = int(first_match(r"MemTotal:\s*(\d+)", "/proc/meminfo", "0")) / (1 << 20)
    mpi = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, check=False).stdout.split("\n")[0]
    return (f"Measured by `scripts/bench.sh` on {cores or '?'} cores of {model} ({', '.join(best) or 'no AVX'}), "
            f"{memory:.0f} GiB of memory, {mpi or 'unknown MPI'}; medians over rounds, smallest and largest in "
            "brackets.")


def read_results(folder):
    """The runs of each benchmark, in the order of the index."""
    index = folder / "index.tsv"
    if not index.is_file():
        raise PageError(f"{index} is missing: run scripts/bench.sh")
    runs = {}
    for line in index.read_text(encoding="utf-8").splitlines():
        name, label, file, command = line.split("\t")
        path = pathlib.Path(file)
        path = path if path.is_file() else folder / path.name
        runs.setdefault(name, []).append((label, json.loads(path.read_text(encoding="utf-8")), command))
    return runs


def write_page(page, folder, machine_line):
    """The text of the page with the results of the folder in it."""
    page = replace_block(page, "machine", "\n".join(prose(machine_line)))
    for name, runs in read_results(folder).items():
        page = replace_block(page, name, block_of(name, runs))
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, required=True)
    parser.add_argument("--page", type=pathlib.Path, default=pathlib.Path("docs/performance.md"))
    arguments = parser.parse_args()
    try:
        text = write_page(arguments.page.read_text(encoding="utf-8"), arguments.results, machine())
    except (PageError, OSError, KeyError, ValueError) as error:
        sys.exit(f"error: {arguments.page}: {type(error).__name__}: {error}")
    arguments.page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
