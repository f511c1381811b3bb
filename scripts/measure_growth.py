#!/usr/bin/env python3
"""Prints bytes per rank and step by number of ranks: the plan's formula beside what the program counted.

    scripts/measure_growth.py [--ranks 1,2,4,8,16] [--layout ep|half|tp] [--wires]
    scripts/measure_growth.py --time

Every row is `athanor bench step` with perfectly even routing (moe.force_uniform), 4 sequences a rank, and the plan of
the same options from --dry-run. Formula and count must be equal to the byte; the exit code says whether they are.
--time prints the plan's step time beside a measured one instead, near the bench shape on 1 and 2 ranks: the speed of
products (plan.flops_per_s) is what the first row reached, the others follow from it. It wants the machine for itself.
Layouts: ep = all ranks; half: ep = ranks / 2, so that experts' gradients have a group of two; tp: tp = 2 and
ep = ranks / 2.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
PURPOSES = ["dispatch", "combine", "grad_dense", "grad_expert", "param_gather", "other"]
MODEL = {
    "model.vocab_size": 512, "model.layers": 2, "model.hidden": 64, "model.heads": 4, "model.kv_heads": 2,
    "model.max_seq": 64, "moe.experts": 32, "moe.top_k": 4, "moe.ffn": 32, "moe.force_uniform": "true",
    "batch.seq": 64, "bench.warmup_steps": 1, "bench.rounds": 1, "bench.steps_per_round": 1,
}
BENCH = {
    "model.vocab_size": 8192, "model.layers": 4, "model.hidden": 256, "model.heads": 8, "model.kv_heads": 4,
    "model.max_seq": 256, "moe.experts": 128, "moe.top_k": 4, "moe.ffn": 128, "batch.seq": 256,
    "bench.warmup_steps": 2, "bench.rounds": 2, "bench.steps_per_round": 3, "plan.node_bytes_per_s": 2e9,
}
DENSE = {"moe.experts": 0, "moe.balance": "none", "model.ffn": 1024}
TIMES = {
    "sparse, 1 rank": (1, {"batch.global": 8}),
    "sparse, 2 ranks, ep 2": (2, {"batch.global": 16, "parallel.ep": 2}),
    "sparse, 2 ranks, ep 1": (2, {"batch.global": 16}),
    "sparse, 2 ranks, ep 2, recompute": (2, {"batch.global": 16, "parallel.ep": 2, "model.recompute": "true"}),
    "sparse, 2 ranks, ep 2, 512 tokens": (2, {"batch.global": 16, "parallel.ep": 2, "batch.seq": 512,
                                              "model.max_seq": 512}),
    "dense, 1 rank": (1, {**DENSE, "batch.global": 8}),
    "dense, 2 ranks, tp 2": (2, {**DENSE, "batch.global": 8, "parallel.tp": 2}),
}
WIRES = {"precision.grad_comm": "fp8", "precision.dispatch_comm": "fp8", "precision.combine_comm": "bf16"}


def layout_of(name, ranks):
    if name == "ep" or ranks == 1:
        return {"parallel.ep": ranks}
    return {"parallel.ep": ranks // 2, **({"parallel.tp": 2} if name == "tp" else {})}


def run(arguments, ranks, options, launcher, flags=()):
    settings = (f"--{key}={value}" for key, value in options.items())
    command = [*launcher, arguments.athanor, "bench", "step", *settings, *flags]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*command, "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
                            text=True, check=False)
    if result.returncode != 0:
        sys.exit(f"exit code {result.returncode} of {' '.join(command)} on {ranks} ranks\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def compare(arguments, ranks):
    """(purpose -> formula, purpose -> count), summed over the ranks."""
    options = {**MODEL, "batch.global": 4 * ranks, **layout_of(arguments.layout, ranks),
               **(WIRES if arguments.wires else {})}
    plan = run(arguments, ranks, {**options, "ranks": ranks}, [], ["--dry-run"])
    counted = run(arguments, ranks, options, mpirun(ranks))
    return plan["teacher"]["sent_per_step"]["bytes"], counted["bytes_sent_per_step"]


def mpirun(ranks):
    return ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1", "-np", str(ranks)]


def print_times(arguments):
    print("| configuration | FLOP a step and rank | planned step, ms | measured step, ms | ratio |")
    print("|---|---|---|---|---|")
    rate = None
    for name, (ranks, more) in TIMES.items():
        options = {**BENCH, **more}
        measured = run(arguments, ranks, options, mpirun(ranks))
        seconds = options["batch.global"] * options["batch.seq"] / measured["tokens_per_s"]
        flops = run(arguments, ranks, {**options, "ranks": ranks}, [], ["--dry-run"])["teacher"]["flops_per_step"]
        rate = rate or flops / ranks / seconds
        planned = run(arguments, ranks, {**options, "ranks": ranks, "plan.flops_per_s": rate}, [], ["--dry-run"])
        step = planned["teacher"]["step_s"]["serial"]
        print(f"| {name} | {flops / ranks:.4g} | {1e3 * step:.0f} | {1e3 * seconds:.0f} | {step / seconds:.2f} |",
              flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--athanor", default=str(ROOT / "build" / "athanor"))
    parser.add_argument("--ranks", default="1,2,4,8,16")
    parser.add_argument("--layout", choices=["ep", "half", "tp"], default="half")
    parser.add_argument("--wires", action="store_true", help="fp8 gradients and dispatch, bf16 combine")
    parser.add_argument("--time", action="store_true")
    arguments = parser.parse_args()
    if arguments.time:
        print_times(arguments)
        return
    print("| ranks | " + " | ".join(PURPOSES) + " |")
    print("|---|" + "---|" * len(PURPOSES))
    is_equal = True
    for ranks in (int(number) for number in arguments.ranks.split(",")):
        formula, counted = compare(arguments, ranks)
        cells = []
        for purpose in PURPOSES:
            same = formula[purpose] == counted[purpose]
            is_equal = is_equal and same
            planned = f"{formula[purpose] / ranks:,.10g}"
            cells.append(f"{planned} = counted" if same else f"{planned}, counted {counted[purpose] / ranks:,.10g}")
        print(f"| {ranks} | " + " | ".join(cells) + " |", flush=True)
    sys.exit(0 if is_equal else 1)


if __name__ == "__main__":
    main()
