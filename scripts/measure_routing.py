#!/usr/bin/env python3
"""Uneven routing at the bench shape: trains the router, then times its choices beside balanced ones.

    scripts/measure_routing.py [--train] [--time] [--worst] [--ranks 2,4]     (nothing named: all three)

--train trains 200 steps on real text with the default balance loss (2 ranks; stopped, it goes on from its last
checkpoint). --time prints, for 2 and 4 ranks of one thread, the time of a step by the router's choices over that with
perfectly balanced ones: same weights, same tokens, in turn in one process. --worst sends all tokens to one rank and
compares the measured peak memory with what `athanor bench step --dry-run` says of the worst case. Runs: runs/routing/.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
RUN = ROOT / "runs" / "routing"
STEPS = 200
# As the bench rows of scripts/measure_balance.py.
TRAIN = {"optim.lr": 1e-3, "optim.min_lr": 1e-4, "optim.warmup_steps": 50}


def athanor(arguments, ranks, *words):
    """Runs the program on so many ranks of one thread; returns what it printed."""
    command = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1", "-np", str(ranks),
               arguments.athanor, *map(str, words)]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, env=environment, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"exit code {done.returncode} of {' '.join(command)}\n{done.stderr[-2000:]}")
    return done.stdout


def train(arguments):
    """The weights of the measurements, unless they are there."""
    options = {**TRAIN, "run.dir": RUN, "run.seed": 1, "parallel.ep": 2, "batch.global": 16, "train.steps": STEPS,
               "train.log_every": 50, "checkpoint.every": 50, "checkpoint.keep": 1, "data.train": arguments.data,
               "data.tokenizer": arguments.tokenizer}
    athanor(arguments, 2, "train", f"--config={ROOT}/configs/bench-s.ini",
            *(f"--{key}={value}" for key, value in options.items()))
    last = [json.loads(line) for line in (RUN / "metrics.jsonl").read_text().splitlines() if "expert_use_std" in line]
    print(f"trained {last[-1]['step']} steps: loss {last[-1]['loss']:.4f}, "
          f"std of f/mu {last[-1]['expert_use_std']:.3f}")


def bench(arguments, ranks, *words):
    """A bench step of 8 sequences a rank."""
    return athanor(arguments, ranks, "bench", "step", f"--config={ROOT}/configs/bench-s.ini",
                   f"--parallel.ep={ranks}", f"--batch.global={8 * ranks}", *words)


def time(arguments, ranks):
    """One row of the table."""
    # The trained weights, which stay as they are.
    words = [f"--init={RUN}", f"--data.train={arguments.data}", f"--data.tokenizer={arguments.tokenizer}",
             "--optim.lr=1e-12", "--optim.min_lr=0", f"--bench.rounds={arguments.rounds}",
             f"--bench.steps_per_round={3 if ranks == 2 else 2}"]
    result = json.loads(bench(arguments, ranks, *words, "--bench.compare_balanced=true", "--json").splitlines()[-1])
    print(f"| {ranks} | {result['expert_use_std']:.3f} | {result['largest_load']:.3f} | "
          f"{result['model_s'] * 1e3:.0f} | {result['balanced_s'] * 1e3:.0f} | "
          f"{result['ratio']:.3f} ({result['ratio_min']:.3f} to {result['ratio_max']:.3f}) |")


def worst(arguments, ranks):
    """Measured peak of the rank that gets everything, beside the plan."""
    words = ["--bench.rounds=1", "--bench.steps_per_round=1", "--bench.warmup_steps=3"]
    measured = json.loads(bench(arguments, ranks, *words, "--bench.worst_routing=true", "--json").splitlines()[-1])
    even = json.loads(bench(arguments, ranks, *words, "--moe.force_uniform=true", "--json").splitlines()[-1])
    plan = bench(arguments, ranks, "--dry-run")
    print(f"{ranks} ranks: peak {measured['peak_rss_bytes'] / 1e6:.0f} MB with all tokens to one rank, "
          f"{even['peak_rss_bytes'] / 1e6:.0f} MB balanced; the plan says:")
    print("".join(f"  {line.strip()}\n" for line in plan.splitlines() if "one rank" in line or "memory" in line),
          end="")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--worst", action="store_true")
    parser.add_argument("--ranks", default="2,4")
    parser.add_argument("--rounds", type=int, default=7, help="alternations of the two routings")
    parser.add_argument("--athanor", default=str(ROOT / "build/athanor"), help="the program")
    parser.add_argument("--data", default="corpus/prose-train:1:prose,corpus/code-train:1:code")
    parser.add_argument("--tokenizer", default="corpus/tokenizer.model")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    everything = not (arguments.train or arguments.time or arguments.worst)
    ranks = [int(count) for count in arguments.ranks.split(",")]
    if arguments.train or everything:
        train(arguments)
    if arguments.time or everything:
        print("| ranks | std of f/mu | most rows of a rank over the mean | step, ms | balanced, ms | ratio (rounds) |")
        print("|---|---|---|---|---|---|")
        for count in ranks:
            time(arguments, count)
    if arguments.worst or everything:
        for count in ranks:
            worst(arguments, count)


if __name__ == "__main__":
    main()
