#!/usr/bin/env python3
"""Random kills: kill -9 of the whole job or of one rank, again and again, then compare with an uninterrupted run.

    soak.py PROGRAM [--kills 5] [--full] [--seed N]      (--full: 50 kills)

Runs of 2 ranks are killed at random moments (also while starting, loading and saving) and started again with the same
command until enough kills have been done; every run that comes to its end must equal the uninterrupted one: losses,
parameters, moments and state bit for bit. Prints the count.
"""
import argparse
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from athanor_runs import Athanor, losses

OPTIONS = {"train.steps": 240, "checkpoint.every": 12, "checkpoint.keep": 2, "parallel.ep": 2}


def ranks_of(launcher):
    """Process ids of the ranks that a launcher has started."""
    found = subprocess.run(["pgrep", "-P", str(launcher)], capture_output=True, text=True, check=False)
    return [int(word) for word in found.stdout.split()]


def kill(process, whole_job):
    ranks = ranks_of(process.pid)
    victims = [process.pid, *ranks] if whole_job or not ranks else [random.choice(ranks)]
    for victim in victims:
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            pass
    process.wait(timeout=120)
    for rank in ranks:  # mpirun ends the others; after its own death nobody does
        deadline = time.monotonic() + 60
        while pathlib.Path(f"/proc/{rank}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)


def soak(athanor, folder, kills):
    reference = folder / "reference"
    started = time.monotonic()
    done = athanor.train(reference, **OPTIONS)
    assert done.code == 0, done.err
    length = time.monotonic() - started
    run = folder / "run"
    counts = {"kills": 0, "whole job": 0, "one rank": 0, "finished": 0, "resumes": 0}
    while counts["kills"] < kills or counts["finished"] == 0:
        with open(folder / "log.txt", "w", encoding="utf-8") as log:
            process = subprocess.Popen(athanor.command(2, *athanor.train_words(run, **OPTIONS)), stdout=log,
                                       stderr=log, env=athanor.environment(), start_new_session=True)
            # Often enough to come to an end too: a run that is always killed shows nothing.
            patience = random.uniform(0.2, 1.1 * length) if counts["kills"] < kills else None
            try:
                code = process.wait(timeout=patience)
            except subprocess.TimeoutExpired:
                whole_job = random.random() < 0.5
                kill(process, whole_job)
                counts["kills"] += 1
                counts["whole job" if whole_job else "one rank"] += 1
                continue
        text = (folder / "log.txt").read_text()
        assert code == 0, f"a resumed job ended with {code}:\n{text}"
        counts["resumes"] += "went on from" in text
        assert losses(run) == losses(reference), "the losses differ from the uninterrupted run's"
        diff = athanor.checkpoint("diff", f"--from={run}", f"--to={reference}")
        assert diff.code == 0 and diff.json()["state"] == {}, diff.out
        counts["finished"] += 1
        shutil.rmtree(run)
    return counts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--full", action="store_true", help="50 kills")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    kills = 50 if arguments.full else arguments.kills
    with tempfile.TemporaryDirectory(prefix="athanor_soak_") as folder:
        folder = pathlib.Path(folder)
        counts = soak(Athanor(arguments.program, folder / "data"), folder, kills)
    print(f"soak: {counts['kills']} random kills ({counts['whole job']} of the whole job, {counts['one rank']} of one "
          f"rank), {counts['finished']} runs came to their end, all equal to the uninterrupted one bit for bit; "
          "0 checkpoints lost")


if __name__ == "__main__":
    sys.exit(main())
