#!/usr/bin/env python3
"""What all guards together cost at the bench shape: paired runs of `athanor train` on 2 ranks. On one side numeric
guards, comparison of replicas, monitors, watchdog with heartbeats and straggler detection are off; on the other all
are on: guard.action=rollback, replicas compared every 10 steps (the default is 100), a watchdog that looks several
times a second (watchdog.step_s=2, the default is 600), monitors and stragglers looked at every step.

    measure_guards.py PROGRAM FOLDER [--pairs N] [--steps N]

FOLDER takes token files and runs. Prints the lower quartile of each run's steps (what else the machine does only slows
steps down, and not the same ones in every run), and the median of the pairs' ratios.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent
WARM_UP = 2  # steps of a run that do not count
WATCHED = ("start_s", "step_s", "evaluate_s", "save_s")
SETTINGS = {
    "off": {"guard.action": "off", "guard.replica_every": 0, "watchdog.straggler_score": 0, "monitor.expert_use_std": 0,
            "monitor.loss_fluctuation": 0, "monitor.step_time_ratio": 0, **{f"watchdog.{key}": 0 for key in WATCHED}},
    "on": {"guard.action": "rollback", "guard.replica_every": 10, "guard.min_steps": 2, "guard.loss_mads": 1000,
           "guard.norm_factor": 1000, "guard.window": 128, "watchdog.step_s": 2, "watchdog.hard_factor": 100,
           "watchdog.straggler_score": 0.1},
}


def run(words, ranks=1):
    launcher = ["mpirun", "--bind-to", "core", "-np", str(ranks)] if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMPI_ALLOW_RUN_AS_ROOT": "1",
                   "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    subprocess.run([*launcher, *words], check=True, capture_output=True, env=environment)


def fast_step(program, folder, name, number, steps):
    target = folder / f"{name}{number}"
    words = {"config": ROOT / "configs" / "bench-s.ini", "data.train": folder / "data", "run.dir": target,
             "train.steps": steps, "train.log_every": 1, "checkpoint.every": 1000000, "run.resume": "never",
             **SETTINGS[name]}
    run([program, "train", *(f"--{key}={value}" for key, value in words.items())], ranks=2)
    lines = map(json.loads, (target / "metrics.jsonl").read_text().splitlines())
    times = [line["times_s"]["total"] for line in lines if "grad_norm" in line][WARM_UP:]
    for shard in (target / "checkpoints").rglob("*.h5"):
        shard.unlink()
    return statistics.quantiles(times, n=4)[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=26)
    options = parser.parse_args()
    program = pathlib.Path(options.program).resolve()
    options.folder.mkdir(parents=True, exist_ok=True)
    text = options.folder / "text.txt"
    text.write_text("\n\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))))
    run([program, "tokenize", f"--input={text}", f"--output={options.folder / 'data'}",
         f"--tokenizer={options.folder / 'tokenizer.model'}", "--tokenize.vocab_size=400"])
    ratios = []
    for number in range(options.pairs):
        order = ("off", "on") if number % 2 == 0 else ("on", "off")
        times = {name: fast_step(program, options.folder, name, number, options.steps) for name in order}
        ratios.append(times["on"] / times["off"])
        print(f"pair {number + 1}: off {times['off'] * 1e3:.1f} ms, on {times['on'] * 1e3:.1f} ms, "
              f"ratio {ratios[-1]:.4f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.4f} (from {min(ratios):.4f} to {max(ratios):.4f})")


if __name__ == "__main__":
    main()
