#!/usr/bin/env python3
"""Trains a student alone, from a trained teacher and beside one, and prints the table of docs/distillation.md.

    scripts/measure_distillation.py [--steps N] [--seeds 1,2,3] [--only "NAME;NAME"]

The teacher has 128 experts, the student is dense and smaller. All students see the same number of steps and tokens of
real text, in the order that their seed gives; the frozen teacher was trained with another seed. Every run's folder is
kept under runs/distillation/; a run that is there already is read, not repeated. The loss is that of all held-out
tokens; a change is the mean, over seeds, of the difference to the student alone with the same seed.
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

COMMON = {
    "model.max_seq": 128, "batch.global": 16, "batch.seq": 128,
    "optim.lr": 2e-3, "optim.min_lr": 2e-4, "optim.warmup_steps": 30, "checkpoint.keep": 1,
}
TEACHER = {
    "model.layers": 2, "model.hidden": 128, "model.heads": 4, "model.kv_heads": 2,
    "moe.experts": 128, "moe.top_k": 4, "moe.ffn": 64,
}
STUDENT = {
    "model.layers": 2, "model.hidden": 64, "model.heads": 4, "model.kv_heads": 2, "model.ffn": 192, "moe.experts": 0,
    "moe.balance": "none",
}

# Everything at once, at a temperature of 1 and with equal shares of teacher and labels.
PLAIN = {"distill.phases": "joint", "distill.temperature": 1, "distill.temperature_step": 0,
         "distill.alpha_schedule": "constant", "distill.alpha": 0.5, "distill.alpha_end": 0.5}
JOINT = {"distill.phases": "joint"}
ALONE = "alone"
# Name: (keys of distill, whether the teacher is a trained and frozen one, whether all seeds are run).
ROWS = {
    ALONE: ({}, False, True),
    "frozen, three_stage, topk (default)": ({}, True, True),
    "frozen, joint, topk": (JOINT, True, False),
    "frozen, joint, hidden": ({**JOINT, "distill.codec": "hidden"}, True, False),
    "frozen, joint, sampled": ({**JOINT, "distill.codec": "sampled"}, True, False),
    "frozen, joint, topk, T 1, alpha 0.5": (PLAIN, True, True),
    "frozen, joint, topk, T 1, alpha 0.5, no hidden states": ({**PLAIN, "distill.hidden_layers": 0}, True, False),
    "frozen, joint, hidden, T 1, alpha 0.5": ({**PLAIN, "distill.codec": "hidden"}, True, False),
    "frozen, joint, sampled, T 1, alpha 0.5": ({**PLAIN, "distill.codec": "sampled"}, True, False),
    "co-trained, three_stage, topk (default)": ({}, False, False),
    "co-trained, joint, topk, T 1, alpha 0.5": (PLAIN, False, True),
    "co-trained, joint, topk, T 1, alpha 0.1 to 0.6": (
        {**PLAIN, "distill.alpha_schedule": "linear", "distill.alpha": 0.1, "distill.alpha_end": 0.6}, False, False),
}


def launch(arguments, ranks, *words):
    """Runs athanor with --json on the ranks of one run and returns its result."""
    command = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1", "-np", str(ranks),
               arguments.athanor, *words, "--json"]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
                            check=False)
    if result.returncode != 0:
        sys.exit(f"exit code {result.returncode} of {' '.join(command)}\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def words_of(options, prefix=""):
    return [f"--{prefix}{key}={value}" for key, value in options.items()]


def folder_of(arguments, name, steps, seed):
    return ROOT / arguments.runs / f"{name}-{steps}-seed{seed}".replace(",", "").replace(" ", "_")


def job_words(arguments, folder, steps, seed):
    shutil.rmtree(folder, ignore_errors=True)
    return words_of({**COMMON, "run.dir": folder, "run.seed": seed, "train.steps": steps, "train.log_every": 100,
                     "data.train": arguments.train, "data.tokenizer": arguments.tokenizer})


def evaluate(arguments, folder, role):
    return launch(arguments, 1, "evaluate", f"--checkpoint={folder}", f"--role={role}",
                  f"--data.valid={arguments.valid}", "--train.eval_batches=0")


def train_alone(arguments, name, shape, steps, seed):
    """Trains and evaluates a model without a teacher, unless its folder has the result."""
    folder = folder_of(arguments, name, steps, seed)
    summary = folder / "summary.json"
    if not summary.exists():
        launch(arguments, 1, "train", *job_words(arguments, folder, steps, seed), *words_of(shape))
        summary.write_text(json.dumps({"student": evaluate(arguments, folder, "teacher")["loss"]}))
    return json.loads(summary.read_text())


def read_steps(folder, role):
    lines = [json.loads(line) for line in (folder / role / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "link_bytes" in line]


def train_pair(arguments, name, seed, frozen_loss):
    """Trains a student with a teacher, one rank each, and evaluates both, unless its folder has the result."""
    folder = folder_of(arguments, name, arguments.steps, seed)
    summary = folder / "summary.json"
    if summary.exists():
        return json.loads(summary.read_text())
    keys, frozen, _ = ROWS[name]
    teacher = dict(TEACHER)
    if frozen:
        teacher.update({"frozen": "true", "init": teacher_folder(arguments)})
    launch(arguments, 2, "distill", *job_words(arguments, folder, arguments.steps, seed), "--teacher.ranks=1",
           "--student.ranks=1", *words_of(teacher, "teacher."), *words_of(STUDENT, "student."), *words_of(keys))
    student, teacher = read_steps(folder, "student"), read_steps(folder, "teacher")
    tokens = student[-1]["tokens"]
    values = {
        "student": evaluate(arguments, folder, "student")["loss"],
        "teacher": frozen_loss if frozen else evaluate(arguments, folder, "teacher")["loss"],
        "bytes_per_token": sum(step["link_bytes"] for step in student) / tokens,
        "student_wait": share_of_wait(student), "teacher_wait": share_of_wait(teacher),
    }
    summary.write_text(json.dumps(values))
    return values


def share_of_wait(steps):
    return sum(step["link_wait_s"] for step in steps) / sum(step["times_s"]["total"] for step in steps)


def teacher_folder(arguments):
    return folder_of(arguments, "teacher", arguments.teacher_steps, 101)


def spread(values):
    return f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""


def print_table(results, teacher_loss):
    alone = results[ALONE]
    print("| student | seeds | held-out loss | perplexity | change of loss | of perplexity | bytes a token | "
          "student waits | teacher's loss |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, runs in results.items():
        losses = [run["student"] for run in runs.values()]
        loss = statistics.mean(losses)
        columns = [name, str(len(runs)), f"{loss:.3f}{spread(losses)}", f"{math.exp(loss):.1f}"] + ["-"] * 5
        changes = [run["student"] - alone[seed]["student"] for seed, run in runs.items() if seed in alone]
        if changes and name != ALONE:
            change = statistics.mean(changes)
            columns[4:6] = [f"{change:+.3f}{spread(changes)}", f"{100 * math.expm1(change):+.1f} %"]
        if name != ALONE:
            columns[6] = f"{statistics.mean(run['bytes_per_token'] for run in runs.values()):,.0f}"
            columns[7] = f"{100 * statistics.mean(run['student_wait'] for run in runs.values()):.1f} %"
            columns[8] = f"{statistics.mean(run['teacher'] for run in runs.values()):.3f}"
        print("| " + " | ".join(columns) + " |")
    print(f"\nThe frozen teacher's held-out loss is {teacher_loss:.3f}.")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300, help="of a student")
    parser.add_argument("--teacher-steps", type=int, default=600, help="of the teacher that is frozen later")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--only", default="", help="row names, separated by semicolons")
    parser.add_argument("--athanor", default=str(ROOT / "build/athanor"), help="the program")
    parser.add_argument("--jobs", type=int, default=1, help="pairs of teacher and student at one time")
    parser.add_argument("--runs", default="runs/distillation", help="folder of the runs")
    parser.add_argument("--train", default="corpus/small/prose-train:1:prose,corpus/small/code-train:1:code")
    parser.add_argument("--valid", default="corpus/small/prose-valid:1:prose,corpus/small/code-valid:1:code")
    parser.add_argument("--tokenizer", default="corpus/small/tokenizer.model")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    names = [name for name in ROWS if name == ALONE or not arguments.only or name in arguments.only.split(";")]
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    with ThreadPoolExecutor(2 * arguments.jobs) as pool:
        teacher = pool.submit(train_alone, arguments, "teacher", TEACHER, arguments.teacher_steps, 101)
        alone = {seed: pool.submit(train_alone, arguments, ALONE, STUDENT, arguments.steps, seed) for seed in seeds}
        teacher_loss = teacher.result()["student"]
        results = {name: {} for name in names}
        results[ALONE] = {seed: future.result() for seed, future in alone.items()}
    # The first seed of every row first: an interrupted measurement has one of each.
    cells = [(name, seed) for seed in seeds for name in names
             if name != ALONE and (ROWS[name][2] or seed == seeds[0])]
    with ThreadPoolExecutor(arguments.jobs) as pool:
        pairs = {cell: pool.submit(train_pair, arguments, *cell, teacher_loss) for cell in cells}
        for (name, seed), future in pairs.items():
            results[name][seed] = future.result()
    print_table(results, teacher_loss)


if __name__ == "__main__":
    main()
