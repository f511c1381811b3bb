#!/usr/bin/env python3
"""What is kept in FP8 between forward and backward: prints the table of memory of docs/precision.md.

    scripts/measure_storage.py [--compute bf16] [--ranks 2] [-- more options of `athanor bench step`]

Runs `athanor bench step` at the bench shape for each class of precision.store_activations, for all of them, and for
gradients as well. Kept numbers are those of rank 0 in a step: activations as counted, gradients by the layout (132
bytes for 128). In fp16 they would take two bytes each. Peak memory is that of the largest rank over all steps, program
and libraries included, and beside it what --dry-run estimates.
"""
import argparse
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
ALL = "attention,ffn,experts,norm"
ELEMENT_BYTES = {"f32": 4, "bf16": 2, "fp16": 2}
GRADIENTS = ["--precision.grad_comm=fp8", "--precision.store_gradients=all"]
ROWS = [
    ("nothing", []),
    ("attention", ["--precision.store_activations=attention"]),
    ("experts", ["--precision.store_activations=experts"]),
    ("norm", ["--precision.store_activations=norm"]),
    ("attention, experts, norm", [f"--precision.store_activations={ALL}"]),
    ("gradients", GRADIENTS),
    ("attention, experts, norm and gradients", [f"--precision.store_activations={ALL}", *GRADIENTS]),
]


def bench_step(arguments, launcher, *options):
    """One run of bench step: its result."""
    command = [*launcher, arguments.athanor, "bench", "step", "--config=configs/bench-s.ini",
               f"--precision.compute={arguments.compute}", *options, *arguments.options, "--json"]
    environment = {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                   "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
                            check=False)
    if result.returncode != 0:
        sys.exit(f"exit code {result.returncode} of {' '.join(command)}\n{result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compute", default="bf16", choices=ELEMENT_BYTES)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--athanor", default=str(ROOT / "build/athanor"), help="the program")
    parser.add_argument("options", nargs="*", help="more options of bench step")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    print("| kept in FP8 | numbers a step | in fp16, MB | in FP8, MB | ratio | peak of a rank, MB | estimated, MB |")
    print("|---|---|---|---|---|---|---|")
    mpirun = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1", "-np",
              str(arguments.ranks)]
    brief = ["--bench.warmup_steps=1", "--bench.rounds=1", "--bench.steps_per_round=1"]
    for name, options in ROWS:
        plan = bench_step(arguments, [], *options, "--dry-run", f"--ranks={arguments.ranks}")["teacher"]["memory"]
        result = bench_step(arguments, mpirun, *options, *brief)
        numbers, stored = result["stored_numbers"], result["stored_bytes"]
        if "--precision.store_gradients=all" in options:
            gradients = plan["parameters"] // ELEMENT_BYTES[arguments.compute]
            numbers, stored = numbers + gradients, stored + gradients // 128 * 132
        columns = [name, f"{numbers:,}", f"{2 * numbers / 1e6:.1f}", f"{stored / 1e6:.1f}",
                   f"{stored / (2 * numbers):.3f}" if numbers else "-", f"{result['peak_rss_bytes'] / 1e6:.0f}",
                   f"{plan['total'] / 1e6:.0f}"]
        print("| " + " | ".join(columns) + " |", flush=True)


if __name__ == "__main__":
    main()
