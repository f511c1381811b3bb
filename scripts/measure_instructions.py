#!/usr/bin/env python3
"""Counts the instructions of training steps with 8 to 128 experts and prints the table of docs/performance.md.

    scripts/measure_instructions.py [--binary build/athanor] [--experts 8,16,32,64,128] [--jobs 2] [--work FOLDER]

One rank trains configs/bench-s.ini for a step at equal tokens, top-k and expert width under callgrind, which counts
only inside Trainer::step. valgrind 3.19 shows programs a CPU without AVX-512: our kernels, LibTorch, MKL and oneDNN
then take their AVX2 paths in the same binary; the limits below say so to the libraries as well. What the optimizer
calls (update, norm, reduction, gather) and passes over weight gradients are given per parameter, all else per token; a
product that writes a weight gradient counts as the rest.
"""
import argparse
import os
import pathlib
import random
import re
import shutil
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent
AVX2_ONLY = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "DNNL_MAX_CPU_ISA": "AVX2",
             "MKL_ENABLE_INSTRUCTIONS": "AVX2", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
SEQ, VOCAB, LAYERS, HIDDEN, FFN, KV_WIDTH = 256, 8192, 4, 256, 128, 128
# Functions that do per-parameter work and nothing else, none of them inside another; counted with what they call.
PER_PARAMETER = re.compile(
    r"athanor::(train::Trainer::update_parameters|optim::ShardedOptimizer::(begin_step|begin_reduction)"
    r"|parallel::GradAccumulator::(add|finish))\(")


def write_tokens(prefix, count):
    """A Megatron token file of one document of random tokens."""
    draw = random.Random(1)
    tokens = [min(VOCAB - 1, int(VOCAB ** draw.random())) for _ in range(count)]
    pathlib.Path(f"{prefix}.bin").write_bytes(struct.pack(f"<{count}H", *tokens))
    pathlib.Path(f"{prefix}.idx").write_bytes(
        b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, 1, 2) + struct.pack("<i", count) + struct.pack("<q", 0)
        + struct.pack("<2q", 0, 1))


def parameters(experts):
    layer = 2 * HIDDEN * HIDDEN + 2 * KV_WIDTH * HIDDEN + experts * (HIDDEN + 3 * HIDDEN * FFN) + 2 * HIDDEN + 64
    return 2 * VOCAB * HIDDEN + LAYERS * layer + HIDDEN


def measure(options, experts):
    """Instructions of one step: all, and those of per-parameter work."""
    out = options.work / f"callgrind.{experts}"
    run = options.work / f"run.{experts}"
    shutil.rmtree(run, ignore_errors=True)
    command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={out}",
               "--toggle-collect=athanor::train::Trainer::step(*", str(options.binary), "train",
               f"--config={ROOT / 'configs/bench-s.ini'}", "--parallel.ep=1", f"--moe.experts={experts}",
               f"--batch.global={options.sequences}", f"--data.train={options.work / 'tokens'}",
               "--train.steps=1", "--checkpoint.every=0", "--checkpoint.keep=1", "--train.log_every=1",
               f"--run.dir={run}", "--run.resume=never"]
    log = options.work / f"log.{experts}"
    with open(log, "w", encoding="utf-8") as stream:
        done = subprocess.run(command, env={**os.environ, **AVX2_ONLY}, stdout=stream, stderr=stream, check=False)
    shutil.rmtree(run, ignore_errors=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: see {log}")
    text = subprocess.run(["callgrind_annotate", "--inclusive=yes", "--threshold=100", "--auto=no", str(out)],
                          stdout=subprocess.PIPE, check=True, text=True).stdout
    total = per_parameter = 0
    for line in text.splitlines():
        match = re.match(r"\s*([\d,]+) \([ \d.]+%\)\s+(.*)", line)
        if match and "PROGRAM TOTALS" in line:
            total = int(match[1].replace(",", ""))
        elif match and PER_PARAMETER.search(match[2]):
            per_parameter += int(match[1].replace(",", ""))
    return total, per_parameter


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", type=pathlib.Path, default=ROOT / "build/athanor")
    parser.add_argument("--experts", default="8,16,32,64,128")
    parser.add_argument("--sequences", type=int, default=8, help="of 256 tokens, in a step")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--work", type=pathlib.Path, default=ROOT / "runs/instructions")
    options = parser.parse_args()
    options.binary = options.binary.resolve()
    options.work.mkdir(parents=True, exist_ok=True)
    options.work = options.work.resolve()
    write_tokens(options.work / "tokens", 4 * (options.sequences + 2) * SEQ)
    experts = [int(number) for number in options.experts.split(",")]
    with ThreadPoolExecutor(options.jobs) as pool:
        figures = list(pool.map(lambda number: measure(options, number), experts))
    tokens = options.sequences * SEQ
    print("| experts | parameters | all, a token | per-parameter work, a parameter | the rest, a token | growth |")
    print("|---|---|---|---|---|---|")
    base = None
    for number, (total, per_parameter) in zip(experts, figures):
        rest = (total - per_parameter) / tokens
        base = base or rest
        print(f"| {number} | {parameters(number):,} | {total / tokens:,.0f} |"
              f" {per_parameter / parameters(number):.2f} | {rest:,.0f} | {rest / base:.3f} |")


if __name__ == "__main__":
    main()
