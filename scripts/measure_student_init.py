#!/usr/bin/env python3
"""What smaller models made from a trained teacher start with, and reach: the table of docs/student_init.md.

    scripts/measure_student_init.py --teacher=runs/distillation/teacher-600-seed101 [--steps N] [--only "NAME;NAME"]

The teacher is that of scripts/measure_distillation.py: 128 experts, 600 steps of real text. Each row is a smaller
shape: the loss of held-out tokens of its first weights, and after a few steps of training, from the teacher's weights
and from random ones. Runs are kept under runs/student_init/; one that is there already is read, not repeated.
"""
import argparse
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

COMMON = {
    "model.max_seq": 128, "batch.global": 16, "batch.seq": 128, "train.eval_batches": 16, "train.log_every": 100,
    "optim.min_lr": 0, "optim.warmup_steps": 0, "run.seed": 7, "checkpoint.keep": 1,
}
TEACHER = {
    "model.layers": 2, "model.hidden": 128, "model.heads": 4, "model.kv_heads": 2, "model.head_dim": 32,
    "moe.experts": 128, "moe.top_k": 4, "moe.ffn": 64,
}
DENSE = {"moe.experts": 0, "model.ffn": 256}
MERGE = {"init_experts": "merge"}
# Name: (what differs from the teacher, keys of init, whether it is trained).
ROWS = {
    "the teacher's shape": ({}, {}, False),
    "64 experts, chosen": ({"moe.experts": 64}, {}, False),
    "64 experts, merged": ({"moe.experts": 64}, MERGE, False),
    "16 experts, chosen": ({"moe.experts": 16}, {}, True),
    "16 experts, merged": ({"moe.experts": 16}, MERGE, True),
    "experts of 32 channels": ({"moe.ffn": 32}, {}, False),
    "dense, 256 channels of chosen experts": (DENSE, {}, True),
    "dense, 256 channels of merged experts": (DENSE, MERGE, True),
    "heads of 16 channels": ({"model.head_dim": 16}, {}, False),
    "half the heads": ({"model.heads": 2, "model.kv_heads": 1}, {}, False),
    "hidden 96": ({"model.hidden": 96}, {}, False),
    "hidden 64": ({"model.hidden": 64}, {}, True),
    "1 layer": ({"model.layers": 1}, {}, False),
    "dense, 192 channels, hidden 64, heads of 16": (
        {"moe.experts": 0, "model.ffn": 192, "model.hidden": 64, "model.head_dim": 16}, MERGE, True),
}


def train(arguments, name, options):
    """Trains and returns the held-out loss, unless the run is there already."""
    folder = ROOT / arguments.runs / name.replace(",", "").replace(" ", "_").replace("'", "")
    result = folder / "result.json"
    if not result.exists():
        shutil.rmtree(folder, ignore_errors=True)
        values = {**COMMON, "run.dir": folder, "data.train": arguments.train, "data.valid": arguments.valid,
                  "data.tokenizer": arguments.tokenizer, **options}
        command = [arguments.athanor, "train", "--json", *(f"--{key}={value}" for key, value in values.items())]
        done = subprocess.run(command, capture_output=True, text=True, check=False,
                              env={**os.environ, "OMP_NUM_THREADS": str(arguments.threads)})
        if done.returncode != 0:
            sys.exit(f"exit code {done.returncode} of {' '.join(map(str, command))}\n{done.stderr[-2000:]}")
        domains = json.loads(done.stdout.splitlines()[-1])["evaluation"].values()
        tokens = sum(domain["tokens"] for domain in domains)
        result.write_text(json.dumps(sum(domain["loss"] * domain["tokens"] for domain in domains) / tokens))
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return json.loads(result.read_text())


def measure(arguments, name):
    changes, init, is_trained = ROWS[name]
    shape = {**TEACHER, **changes}
    from_teacher = {**shape, "init": arguments.teacher, "init_mode": "shrink", **init}
    start = train(arguments, f"{name}-start", {**from_teacher, "train.steps": 1, "optim.lr": 1e-12})
    if not is_trained:
        return f"| {name} | {start:.2f} | | |"
    steps = {"train.steps": arguments.steps, "optim.lr": 2e-3}
    after = train(arguments, f"{name}-{arguments.steps}", {**from_teacher, **steps})
    random = train(arguments, f"{name}-{arguments.steps}-random", {**shape, **steps})
    return f"| {name} | {start:.2f} | {after:.2f} | {random:.2f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--athanor", default=str(ROOT / "build" / "athanor"))
    parser.add_argument("--train", default="corpus/small/prose-train:1:prose,corpus/small/code-train:1:code")
    parser.add_argument("--valid", default="corpus/small/prose-valid:1:prose,corpus/small/code-valid:1:code")
    parser.add_argument("--tokenizer", default="corpus/small/tokenizer.model")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--runs", default="runs/student_init")
    parser.add_argument("--only", default="")
    arguments = parser.parse_args()
    names = arguments.only.split(";") if arguments.only else list(ROWS)
    steps = f"after {arguments.steps} steps"
    print(f"| student | first weights | {steps} | random weights, {steps} |")
    print("|---|---|---|---|")
    for name in names:
        print(measure(arguments, name), flush=True)


if __name__ == "__main__":
    main()
