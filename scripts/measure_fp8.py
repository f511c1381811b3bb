#!/usr/bin/env python3
"""Trains the same model with full and with rounded wires or storage and prints the tables of docs/precision.md.

    scripts/measure_fp8.py [--steps N] [--ranks 2,4,8] [--seeds 1] [--only "NAME;NAME"]

ep = ranks / 2 (2 on 2 ranks where the experts' exchanges are rounded), so dense and expert gradients both have a group.
Every run's folder is kept under runs/fp8/; a run that is there already is read, not repeated. A deviation is the loss
at an evaluation on held-out text over the full wire's of the same seed, layout and step, less 1; of a full wire, over
that of the first layout, which says how far rounding in f32 alone drives two runs apart. Bytes are those of the first
step, summed over the ranks: there the same tokens go to the same experts, except where rounding turned a choice.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent

MODEL = {
    "model.layers": 2, "model.hidden": 128, "model.heads": 4, "model.kv_heads": 2, "model.max_seq": 64,
    "moe.experts": 32, "moe.top_k": 2, "moe.ffn": 64, "batch.global": 32, "batch.seq": 64,
    "optim.lr": 5e-4, "optim.min_lr": 5e-5, "optim.warmup_steps": 30, "checkpoint.keep": 1,
}
GRADIENTS = {"precision.grad_comm": "fp8"}
ROWS = {"precision.dispatch_comm": "fp8", "precision.combine_comm": "bf16"}
ACTIVATIONS = {"precision.store_activations": "attention,ffn,experts,norm"}
STORED = {**ACTIVATIONS, **GRADIENTS, "precision.store_gradients": "all"}
FULL = "full"
WIRES = {
    FULL: {},
    "gradients e4m3": GRADIENTS,
    "gradients e5m2": {**GRADIENTS, "precision.fp8_format": "e5m2"},
    "gradients e4m3, error feedback": {**GRADIENTS, "precision.error_feedback": "true"},
    "gradients bf16": {"precision.grad_comm": "bf16"},
    "dispatch e4m3, combine bf16": ROWS,
    "gradients and dispatch e4m3, combine bf16": {**GRADIENTS, **ROWS},
    "activations stored in e4m3": ACTIVATIONS,
    "activations stored in e5m2": {**ACTIVATIONS, "precision.fp8_format": "e5m2"},
    "activations and gradients stored in e4m3": STORED,
}
PURPOSES = ["grad_dense", "grad_expert", "dispatch", "combine", "param_gather"]


def launch(arguments, ranks, *words):
    """Runs athanor with --json on the ranks of one run and returns its result."""
    command = ["nice", "-n", str(arguments.nice), "mpirun", "--oversubscribe", "--bind-to", "none", "--mca",
               "mpi_yield_when_idle", "1", "-np", str(ranks), arguments.athanor, *words, "--json"]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
                            check=False)
    if result.returncode != 0:
        sys.exit(f"exit code {result.returncode} of {' '.join(command)}\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def loss_of(evaluation):
    """Mean over all held-out tokens."""
    domains = evaluation["domains"].values()
    return sum(domain["loss"] * domain["tokens"] for domain in domains) / sum(domain["tokens"] for domain in domains)


def run_one(arguments, name, ranks, ep, seed):
    """Trains one run, unless its folder has the result: losses by step, bytes by purpose, lost numbers."""
    shape = f"np{ranks}-ep{ep}-{arguments.steps}-{name}-seed{seed}".replace(",", "").replace(" ", "_")
    folder = ROOT / "runs" / "fp8" / shape
    summary = folder / "summary.json"
    if summary.exists():
        return json.loads(summary.read_text())
    options = {
        **MODEL, **WIRES[name], "parallel.ep": ep, "run.dir": folder, "run.seed": seed, "train.steps": arguments.steps,
        "train.eval_every": arguments.eval_every, "train.eval_batches": arguments.eval_batches,
        "train.log_every": arguments.steps, "data.train": arguments.train, "data.valid": arguments.valid,
        "data.tokenizer": arguments.tokenizer,
    }
    launch(arguments, ranks, "train", *(f"--{key}={value}" for key, value in options.items()))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "bytes_sent_by" in line]
    values = {
        "losses": {line["step"]: loss_of(line) for line in lines if line.get("evaluation")},
        "bytes": steps[0]["bytes_sent_by"],
        "underflow": sum(line["fp8_underflow"] for line in steps) / len(steps),
        "skipped": sum(line["skipped"] for line in steps),
    }
    summary.write_text(json.dumps(values))
    return json.loads(summary.read_text())


def deviations(run, full):
    return [run["losses"][step] / full["losses"][step] - 1 for step in full["losses"]]


def print_losses(results):
    print("| ranks, ep | wires | loss at the last evaluation | largest deviation | mean deviation | "
          "rounded to zero, a step | skipped |")
    print("|---|---|---|---|---|---|---|")
    for (ranks, ep, name), runs in results.items():
        last = sum(list(run["losses"].values())[-1] for run in runs) / len(runs)
        columns = [f"{ranks}, {ep}", name, f"{last:.4f}", "-", "-"]
        full = results.get((ranks, ep, FULL)) if name != FULL else next(iter(results.values()))
        if full and full is not runs:
            found = [value for run, reference in zip(runs, full) for value in deviations(run, reference)]
            columns[3] = f"{100 * max(found, key=abs):+.2f} %"
            columns[4] = f"{100 * sum(found) / len(found):+.2f} %"
        underflow = sum(run["underflow"] for run in runs) / len(runs)
        columns += [f"{underflow:.0f}", str(sum(run["skipped"] for run in runs))]
        print("| " + " | ".join(columns) + " |")


def print_bytes(results):
    print("| ranks, ep | wires | " + " | ".join(PURPOSES) + " | gradients | dispatch + combine | all |")
    print("|---|---|" + "---|" * (len(PURPOSES) + 3))
    for (ranks, ep, name), runs in results.items():
        sent = runs[0]["bytes"]
        full = results.get((ranks, ep, FULL), runs)[0]["bytes"]
        columns = [f"{ranks}, {ep}", name, *(f"{sent[purpose]:,}" for purpose in PURPOSES)]
        for purposes in (PURPOSES[:2], PURPOSES[2:4], PURPOSES):
            whole = sum(full[purpose] for purpose in purposes)
            columns.append(f"{sum(sent[purpose] for purpose in purposes) / whole:.3f}" if whole else "-")
        print("| " + " | ".join(columns) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--eval-every", type=int, default=50)
    parser.add_argument("--eval-batches", type=int, default=8)
    parser.add_argument("--ranks", default="2,4,8")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--only", default="", help="names of wires, separated by semicolons")
    parser.add_argument("--nice", type=int, default=10)
    parser.add_argument("--athanor", default=str(ROOT / "build/athanor"), help="the program")
    parser.add_argument("--train", default="corpus/prose-train:1:prose,corpus/code-train:1:code")
    parser.add_argument("--valid", default="corpus/prose-valid:1:prose,corpus/code-valid:1:code")
    parser.add_argument("--tokenizer", default="corpus/tokenizer.model")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    names = [name for name in WIRES if name == FULL or not arguments.only or name in arguments.only.split(";")]
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    results = {}
    for ranks in (int(ranks) for ranks in arguments.ranks.split(",")):
        # Two ranks cannot have a group for expert gradients and an exchange of rows at once.
        for ep in (1, 2) if ranks == 2 else (ranks // 2,):
            for name in names:
                exchanges = "precision.dispatch_comm" in WIRES[name]
                if name == FULL or ranks > 2 or exchanges == (ep == 2):
                    results[ranks, ep, name] = [run_one(arguments, name, ranks, ep, seed) for seed in seeds]
    print_losses(results)
    print()
    print_bytes(results)


if __name__ == "__main__":
    main()
