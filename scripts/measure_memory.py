#!/usr/bin/env python3
"""Prints the memory that --dry-run estimates for a rank beside the largest resident set measured while training.

    scripts/measure_memory.py [--only "NAME;NAME"] [--limit 0.1]

Each row trains a few steps of a model near the bench shape on invented text with `athanor train` (or `distill`), as a
user would, and asks the same program with --dry-run and the same options for its plan. MB are 10^6 bytes, of the rank
that took most. The exit code says whether every ratio of estimate to peak is within --limit of 1.
"""
import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent
SPARSE = {
    "model.vocab_size": 8192, "model.layers": 4, "model.hidden": 256, "model.heads": 8, "model.kv_heads": 4,
    "model.max_seq": 256, "moe.experts": 128, "moe.top_k": 4, "moe.ffn": 128, "batch.seq": 256,
    "train.steps": 4, "checkpoint.every": 0, "checkpoint.async": "false",
}
DENSE = {**SPARSE, "moe.experts": 0, "moe.balance": "none", "model.hidden": 512, "model.ffn": 2048}
# The routing of a model that has barely begun is uneven: the worst case is not what is measured here.
WARN = {"plan.worst_case": "warn"}
BENCH_PAIR = {
    **{key: value for key, value in SPARSE.items()}, "teacher.ranks": 1, "student.ranks": 1, "student.moe.experts": 0,
    "student.moe.balance": "none", "student.model.hidden": 128, "student.model.heads": 4, "student.model.kv_heads": 2,
    "student.model.ffn": 384, "distill.phases": "joint", "distill.alpha_schedule": "constant",
    "distill.temperature": 1, "distill.temperature_step": 0, "distill.hidden_layers": 2, "batch.global": 16,
}
# name -> command, ranks, options
RUNS = {
    "dense f32": ("train", 1, {**DENSE, "batch.global": 16}),
    "dense bf16": ("train", 2, {**DENSE, "batch.global": 32, "precision.compute": "bf16"}),
    "dense f32, tp 2": ("train", 2, {**DENSE, "batch.global": 16, "parallel.tp": 2}),
    "sparse f32": ("train", 1, {**SPARSE, "batch.global": 8}),
    "sparse f32, ep 2": ("train", 2, {**SPARSE, "batch.global": 16, "parallel.ep": 2}),
    "sparse bf16, ep 2": ("train", 2, {**SPARSE, "batch.global": 16, "parallel.ep": 2, "precision.compute": "bf16"}),
    "sparse, ep 2, snapshot": ("train", 2, {**SPARSE, "batch.global": 16, "parallel.ep": 2,
                                            "checkpoint.async": "true"}),
    "sparse, ep 2, recompute": ("train", 2, {**SPARSE, "batch.global": 32, "parallel.ep": 2,
                                             "model.recompute": "true"}),
    "sparse, ep 2, accumulation": ("train", 2, {**SPARSE, "batch.global": 32, "batch.micro": 4, "parallel.ep": 2}),
    "sparse, zero 0": ("train", 2, {**SPARSE, "batch.global": 16, "optim.zero": 0}),
    "sparse, tp 2, ep 2": ("train", 2, {**SPARSE, "batch.global": 16, "parallel.tp": 2, "parallel.ep": 2}),
    "sparse, tp 2, ep 4": ("train", 4, {**SPARSE, "batch.global": 16, "parallel.tp": 2, "parallel.ep": 4}),
    "sparse, ep 2, wires fp8": ("train", 2, {**SPARSE, "batch.global": 16, "parallel.ep": 2,
                                             "precision.grad_comm": "fp8", "precision.dispatch_comm": "fp8",
                                             "precision.combine_comm": "bf16"}),
    "sparse, ep 2, 4 chunks": ("train", 2, {**SPARSE, "batch.global": 16, "parallel.ep": 2, "moe.dispatch_chunks": 4}),
    "sparse, ep 2, kept in fp8": ("train", 2, {**SPARSE, "batch.global": 32, "parallel.ep": 2,
                                               "precision.store_activations": "attention,ffn,experts,norm"}),
    "distill, hidden states": ("distill", 2, {**BENCH_PAIR, "distill.codec": "hidden"}),
    "distill, full": ("distill", 2, {**BENCH_PAIR, "distill.codec": "full"}),
}


def run(arguments, command, options, launcher=(), flags=()):
    settings = (f"--{key}={value}" for key, value in options.items())
    words = [*launcher, arguments.athanor, command, *settings, *flags, "--json"]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMP_NUM_THREADS": "1"}
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
                            check=False)
    if result.returncode != 0:
        sys.exit(f"exit code {result.returncode} of {' '.join(map(str, words))}\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def write_tokens(arguments, folder):
    """Token files of invented words: enough for a few steps."""
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(3000)]
    lines = [" ".join(draw.choices(words, k=12)) for _ in range(12000)]
    text = folder / "text.txt"
    text.write_text("\n\n".join(lines))
    run(arguments, "tokenize", {"input": text, "output": folder / "data", "tokenize.vocab_size": 500})
    return folder / "data"


def measure(arguments, name, tokens, folder):
    """(role, estimated, measured) in bytes."""
    command, ranks, options = RUNS[name]
    options = {**options, **WARN, "data.train": tokens, "run.dir": folder / name.replace(" ", "-").replace(",", "")}
    planned = {**options, **({"ranks": ranks} if command == "train" else {})}
    plan = run(arguments, command, planned, flags=["--dry-run"])
    launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1", "-np",
                str(ranks)]
    result = run(arguments, command, options, launcher)
    if command == "train":
        return [("teacher", plan["teacher"]["rank_bytes"], result["peak_rss_bytes"])]
    return [(role, plan[role]["rank_bytes"], result[role]["peak_rss_bytes"]) for role in ("teacher", "student")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--athanor", default=str(ROOT / "build" / "athanor"))
    parser.add_argument("--only", help="names of rows, separated by semicolons")
    parser.add_argument("--limit", type=float, default=0.1)
    arguments = parser.parse_args()
    names = arguments.only.split(";") if arguments.only else list(RUNS)
    print("| configuration | ranks | estimate, MB | measured peak, MB | ratio |")
    print("|---|---|---|---|---|")
    worst = 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        tokens = write_tokens(arguments, folder)
        for row in names:
            for role, estimated, measured in measure(arguments, row, tokens, folder):
                ratio = estimated / measured
                worst = max(worst, abs(ratio - 1))
                label = row if RUNS[row][0] == "train" else f"{row}: {role}"
                print(f"| {label} | {RUNS[row][1]} | {estimated / 1e6:,.0f} | {measured / 1e6:,.0f} | {ratio:.3f} |",
                      flush=True)
    print(f"\nfarthest from 1: {100 * worst:.1f} %", file=sys.stderr)
    sys.exit(0 if worst <= arguments.limit else 1)


if __name__ == "__main__":
    main()
