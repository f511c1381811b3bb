#!/usr/bin/env python3
"""Trains the same model under different balance losses and prints the table of docs/moe.md.

    scripts/measure_balance.py [--shape reduced|bench|dense] [--steps N] [--seeds 1,2] [--only "NAME;NAME"] [--data PREFIX]

Every run's folder is kept under runs/balance/; a run that is there already is read, not repeated. The std of f/mu is
the mean of the last 50 steps, the perplexity that of the held-out sets at the end.
"""
import argparse
import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

ROOT = pathlib.Path(__file__).resolve().parent.parent

REDUCED = {
    "model.layers": 2, "model.hidden": 128, "model.heads": 4, "model.kv_heads": 2, "model.max_seq": 128,
    "moe.experts": 128, "moe.top_k": 4, "moe.ffn": 64, "batch.global": 16, "batch.seq": 128,
    "optim.lr": 2e-3, "optim.min_lr": 2e-4, "optim.warmup_steps": 60,
}
BENCH = {"--config": "configs/bench-s.ini", "optim.lr": 1e-3, "optim.min_lr": 1e-4, "optim.warmup_steps": 50}

BALANCE = {
    "none": {"moe.balance": "none"},
    "squared 0.001": {"moe.balance": "squared", "moe.balance_weight": 0.001},
    "squared 0.01": {"moe.balance": "squared", "moe.balance_weight": 0.01},
    "squared 0.01, counts of the micro-step": {
        "moe.balance": "squared", "moe.balance_weight": 0.01, "moe.balance_counts": "micro_step"},
    "squared 0.1": {"moe.balance": "squared", "moe.balance_weight": 0.1},
    "squared 1.28": {"moe.balance": "squared", "moe.balance_weight": 1.28},
    "switch 0.01": {"moe.balance": "switch", "moe.balance_weight": 0.01},
    "bias 0.001": {"moe.balance": "bias", "moe.bias_rate": 0.001},
}
# The dense model of equal active parameters: one FFN as wide as the top_k experts of a token.
MODELS = {
    "128 experts, top 4": {},
    "dense, equal active parameters": {"moe.experts": 0, "model.ffn": 256, "moe.balance": "none"},
}


def run_one(arguments, name, shape, extra, seed):
    folder = ROOT / "runs" / "balance" / f"{arguments.shape}-{arguments.steps}-{name}-seed{seed}".replace(" ", "_")
    summary = folder / "summary.json"
    if summary.exists():
        return json.loads(summary.read_text())
    shutil.rmtree(folder, ignore_errors=True)
    options = {**shape, **extra}
    command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(arguments.ranks), arguments.athanor, "train"]
    if "--config" in options:
        command.append(f"--config={ROOT / options.pop('--config')}")
    experts = options.get("moe.experts", 128)
    options.update({
        "parallel.ep": arguments.ranks if experts else 1, "run.dir": folder, "run.seed": seed,
        "train.steps": arguments.steps, "train.log_every": 100, "train.eval_batches": arguments.eval_batches,
        "data.train": arguments.train, "data.valid": arguments.valid, "data.tokenizer": arguments.tokenizer,
    })
    command += [f"--{key}={value}" for key, value in options.items()] + ["--json"]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True,
                            check=False)
    if result.returncode != 0:
        sys.exit(f"{name}, seed {seed}: exit code {result.returncode}; see {folder}/log.txt")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "expert_use_std" in line]
    evaluation = [line for line in lines if line.get("evaluation")][-1]["domains"]
    tokens = sum(domain["tokens"] for domain in evaluation.values())
    loss = sum(domain["loss"] * domain["tokens"] for domain in evaluation.values()) / tokens
    values = {
        "std": statistics.mean(line["expert_use_std"] or 0.0 for line in steps[-50:]),
        "loss": loss, "perplexity": math.exp(loss), "train_loss": statistics.mean(line["loss"] for line in steps[-50:]),
    }
    summary.write_text(json.dumps(values))
    return values


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["reduced", "bench", "dense"], default="reduced")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--only", default="", help="row names, separated by semicolons")
    parser.add_argument("--athanor", default=str(ROOT / "build/athanor"), help="the program")
    parser.add_argument("--ranks", type=int, default=1, help="of one run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at one time")
    parser.add_argument("--eval-batches", type=int, default=32, help="per domain")
    parser.add_argument("--train", default="corpus/prose-train:1:prose,corpus/code-train:1:code")
    parser.add_argument("--valid", default="corpus/prose-valid:1:prose,corpus/code-valid:1:code")
    parser.add_argument("--tokenizer", default="corpus/tokenizer.model")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    rows = MODELS if arguments.shape == "dense" else BALANCE
    shape = BENCH if arguments.shape == "bench" else REDUCED
    if arguments.only:
        wanted = arguments.only.split(";")
        rows = {name: extra for name, extra in rows.items() if any(name == only for only in wanted)}
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {name: [pool.submit(run_one, arguments, name, shape, extra, seed) for seed in seeds]
                   for name, extra in rows.items()}
        results = {name: [future.result() for future in runs] for name, runs in futures.items()}
    baseline = results.get("none", results.get("dense, equal active parameters"))
    print("| run | std of f/mu | std against none | held-out loss | perplexity | perplexity against the baseline |")
    print("|---|---|---|---|---|---|")
    for name, runs in results.items():
        std = statistics.mean(run["std"] for run in runs)
        loss = statistics.mean(run["loss"] for run in runs)
        perplexity = statistics.mean(run["perplexity"] for run in runs)
        std_change = perplexity_change = "-"
        if baseline and runs is not baseline:
            base_std = statistics.mean(run["std"] for run in baseline)
            base_perplexity = statistics.mean(run["perplexity"] for run in baseline)
            std_change = f"{100 * (std / base_std - 1):+.1f} %" if base_std else "-"
            perplexity_change = f"{100 * (perplexity / base_perplexity - 1):+.2f} %"
        spread = ", ".join(f"{run['perplexity']:.2f}" for run in runs)
        print(f"| {name} | {std:.3f} | {std_change} | {loss:.4f} | {perplexity:.2f} ({spread}) | {perplexity_change} |")


if __name__ == "__main__":
    main()
