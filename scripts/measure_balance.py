#!/usr/bin/env python3
"""Trains the same model under different balance losses and prints the table of docs/moe.md.

    scripts/measure_balance.py [--shape reduced|bench|dense] [--steps N] [--seeds 1,2] [--only "NAME;NAME"]

Every run's folder is kept under runs/balance/; a run that is there already is read, not repeated. The std of f/mu is
the mean of the last 50 steps, the training loss that of the last 100 (every sample is new, so it is no memory of the
training text), the perplexity that of all held-out tokens, over seeds and then by domain for each seed.
"""
import argparse
import json
import math
import os
import pathlib
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
    "squared 0.004": {"moe.balance": "squared", "moe.balance_weight": 0.004},
    "squared 0.006": {"moe.balance": "squared", "moe.balance_weight": 0.006},
    "squared 0.006, counts of the micro-step": {
        "moe.balance": "squared", "moe.balance_weight": 0.006, "moe.balance_counts": "micro_step"},
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


def launch(arguments, *words):
    """Runs athanor with --json on the ranks of one run and returns its result."""
    command = ["mpirun", "--oversubscribe", "--bind-to", "none", "-np", str(arguments.ranks), arguments.athanor, *words,
               "--json"]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
                            check=False)
    if result.returncode != 0:
        sys.exit(f"exit code {result.returncode} of {' '.join(command)}\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def run_one(arguments, name, shape, extra, seed):
    """Trains and evaluates one run, unless its folder has the result."""
    folder = ROOT / "runs" / "balance" / f"{arguments.shape}-{arguments.steps}-{name}-seed{seed}".replace(" ", "_")
    summary = folder / "summary.json"
    if summary.exists():
        return json.loads(summary.read_text())
    options = {**shape, **extra}
    config = [f"--config={ROOT / options.pop('--config')}"] if "--config" in options else []
    options.update({
        "parallel.ep": arguments.ranks if options.get("moe.experts", 128) else 1, "run.dir": folder, "run.seed": seed,
        "checkpoint.keep": 1,
        "train.steps": arguments.steps, "train.log_every": 100, "data.train": arguments.train,
        "data.tokenizer": arguments.tokenizer,
    })
    launch(arguments, "train", *config, *(f"--{key}={value}" for key, value in options.items()))
    evaluation = launch(arguments, "evaluate", f"--checkpoint={folder}", f"--data.valid={arguments.valid}",
                        "--train.eval_batches=0", f"--parallel.ep={options['parallel.ep']}")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "expert_use_std" in line]
    values = {
        "std": statistics.mean(line["expert_use_std"] for line in steps[-50:]),
        "train_loss": statistics.mean(line["loss"] for line in steps[-100:]),
        "loss": evaluation["loss"], "perplexity": evaluation["perplexity"],
        "domains": {name: domain["perplexity"] for name, domain in evaluation["domains"].items()},
    }
    summary.write_text(json.dumps(values))
    return values


def mean(runs, key):
    return statistics.mean(run[key] for run in runs)


def change(value, baseline):
    return f"{100 * (value / baseline - 1):+.2f} %" if baseline else "-"


def print_table(results):
    baseline = results.get("none", results.get("dense, equal active parameters"))
    domains = list(next(iter(results.values()))[0]["domains"])
    print("| run | std of f/mu | against none | last training loss | held-out perplexity | against the baseline | "
          + " | ".join(domains) + " |")
    print("|---|---|---|---|---|---|" + "---|" * len(domains))
    for name, runs in results.items():
        std, perplexity = mean(runs, "std"), math.exp(mean(runs, "loss"))
        columns = [name, f"{std:.3f}", "-", f"{mean(runs, 'train_loss'):.4f}", f"{perplexity:.2f}", "-"]
        if baseline and runs is not baseline:
            columns[2] = change(std, mean(baseline, "std"))
            columns[5] = change(perplexity, math.exp(mean(baseline, "loss")))
        for domain in domains:
            columns.append(" ".join(f"{run['domains'][domain]:.2f}" for run in runs))
        print("| " + " | ".join(columns) + " |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=["reduced", "bench", "dense"], default="reduced")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--seeds", default="1,2")
    parser.add_argument("--only", default="", help="row names, separated by semicolons")
    parser.add_argument("--athanor", default=str(ROOT / "build/athanor"), help="the program")
    parser.add_argument("--ranks", type=int, default=1, help="of one run")
    parser.add_argument("--jobs", type=int, default=2, help="runs at one time")
    parser.add_argument("--train", default="corpus/prose-train:1:prose,corpus/code-train:1:code")
    parser.add_argument("--valid", default="corpus/prose-valid:1:prose,corpus/code-valid:1:code")
    parser.add_argument("--tokenizer", default="corpus/tokenizer.model")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    rows = MODELS if arguments.shape == "dense" else BALANCE
    shape = {**BENCH, "batch.global": 8 * arguments.ranks} if arguments.shape == "bench" else REDUCED
    if arguments.only:
        wanted = arguments.only.split(";")
        rows = {name: extra for name, extra in rows.items() if any(name == only for only in wanted)}
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        futures = {name: [pool.submit(run_one, arguments, name, shape, extra, seed) for seed in seeds]
                   for name, extra in rows.items()}
        results = {name: [future.result() for future in runs] for name, runs in futures.items()}
    print_table(results)


if __name__ == "__main__":
    main()
