#!/usr/bin/env python3
"""Random trouble, again and again, then a comparison with a run that had none.

    soak.py PROGRAM [--job train|distill] [--troubles 5 | --minutes M] [--kinds kill,...] [--full] [--seed N]

A job is started, disturbed at random moments (also while it starts, loads, saves) and started again with the same
command until there was enough trouble; every time it comes to its end its losses, parameters, moments and state must
equal the undisturbed job's bit for bit, and every start must go on from the newest checkpoint that nobody damaged.
Kinds:

    kill       kill -9 of the whole job or of one rank
    stop       SIGSTOP of one rank or of all, SIGCONT a moment later
    delay      one rank sleeps at a random place of the program
    disk       the file system of the checkpoints is full for a while (needs the right to mount a tmpfs)
    flip       after a kill: one bit of the newest checkpoint is turned over

--full is 50 kills of a training job. Prints the counts.
"""
import argparse
import collections
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

from athanor_runs import MODEL, Athanor, mount_tmpfs, step_lines

JOBS = {
    "train": {"ranks": 2, "roles": [""], "options": {"train.steps": 240, "checkpoint.every": 12, "parallel.ep": 2}},
    "distill": {"ranks": 3, "roles": ["teacher", "student"],
                "options": {"train.steps": 240, "checkpoint.every": 12, "teacher.ranks": 2, "teacher.parallel.ep": 2,
                            "student.ranks": 1, "student.moe.experts": 0, "student.model.ffn": 32,
                            "distill.deadline_s": 60}},
}
KINDS = ["kill", "stop", "delay", "disk", "flip"]
DELAYED_POINTS = ["train.step", "checkpoint.write", "checkpoint.snapshot", "checkpoint.before_rename"]
WENT_ON = re.compile(r"went on from (\S+)")
DISK_BYTES = 16 << 20


class SmallDisk:
    """A file system of its own for the checkpoints, which can be filled."""

    def __init__(self, folder):
        self.folder = folder
        self.reason = mount_tmpfs(folder, f"size={DISK_BYTES}")
        self.is_mounted = not self.reason

    def fill(self):
        with open(self.folder / "filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass

    def free(self):
        (self.folder / "filler").unlink(missing_ok=True)

    def close(self):
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


class Job:
    """One job that is started again and again."""

    def __init__(self, athanor, kind, folder):
        self.athanor = athanor
        self.plan = JOBS[kind]
        self.command = kind
        self.folder = folder
        self.log = folder / "log.txt"
        self.process = None

    def words(self, run, checkpoints):
        values = {**MODEL, **self.plan["options"], "checkpoint.keep": 3, "run.dir": run,
                  "checkpoint.dir": checkpoints, "data.train": self.athanor.folder / "data",
                  "data.tokenizer": self.athanor.tokenizer}
        return [self.command, "--json", *(f"--{key}={value}" for key, value in values.items())]

    def run_undisturbed(self, run, checkpoints):
        done = self.athanor.run(*self.words(run, checkpoints), ranks=self.plan["ranks"], timeout=600)
        assert done.code == 0, done.err

    def start(self, run, checkpoints, fault=""):
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                self.athanor.command(self.plan["ranks"], *self.words(run, checkpoints)), stdout=log, stderr=log,
                env=self.athanor.environment(fault), start_new_session=True)

    def wait(self, seconds):
        """The exit code, or None while it runs."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None

    def ranks(self):
        found = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=False)
        return [int(word) for word in found.stdout.split()]

    def kill(self, whole_job):
        ranks = self.ranks()
        send(signal.SIGKILL, [self.process.pid, *ranks] if whole_job or not ranks else [random.choice(ranks)])
        self.process.wait(timeout=120)
        for rank in ranks:  # mpirun ends the others; after its own death nobody does
            deadline = time.monotonic() + 60
            while pathlib.Path(f"/proc/{rank}").exists() and time.monotonic() < deadline:
                time.sleep(0.05)

    def text(self):
        return self.log.read_text(encoding="utf-8")


def send(number, processes):
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            pass


def steps_on_disk(checkpoints):
    """Steps of the published checkpoints, oldest first."""
    return sorted(int(path.name[5:]) for path in checkpoints.glob("step-*") if (path / "COMPLETE").is_file())


def flip_a_bit(folder):
    """Turns one bit of one of the files that loading needs."""
    path = random.choice([path for path in folder.iterdir() if path.name != "index.h5" and path.stat().st_size > 0])
    with open(path, "r+b") as file:
        place = random.randrange(path.stat().st_size)
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 1 << random.randrange(8)]))


class Soak:
    def __init__(self, job, folder, kinds):
        self.job = job
        self.folder = folder
        self.kinds = kinds
        self.disk = SmallDisk(folder / "disk") if "disk" in kinds else None
        if self.disk and not self.disk.is_mounted:
            print(f"soak: no full disks (a small file system could not be mounted: {self.disk.reason})")
            self.kinds = [kind for kind in kinds if kind != "disk"]
        self.run = folder / "run"
        self.reference = folder / "reference"
        self.checkpoints = folder / "disk" / "checkpoints" if self.disk else folder / "checkpoints"
        self.counts = collections.Counter()
        self.bag = []
        self.flipped = set()  # steps of damaged checkpoints
        self.length = 0.0

    def troubles(self):
        return sum(self.counts[kind] for kind in KINDS)

    def next_kind(self):
        """Any order, but each kind as often as the others."""
        if not self.bag:
            self.bag = random.sample(self.kinds, len(self.kinds))
        return self.bag.pop()

    def prepare(self):
        started = time.monotonic()
        self.job.run_undisturbed(self.reference, self.folder / "reference_checkpoints")
        self.length = time.monotonic() - started

    def one_start(self, wants_trouble):
        """Starts the job once more; returns whether it came to its end."""
        kind = self.next_kind() if wants_trouble else ""
        fault = ""
        if kind == "delay":
            rank = random.randrange(self.job.plan["ranks"])
            point, nth = random.choice(DELAYED_POINTS), random.randint(1, 30)
            fault = f"{point}:{rank}:{nth}:sleep={random.uniform(0.2, 2.0):.2f}"
        whole = [step for step in steps_on_disk(self.checkpoints) if step not in self.flipped]
        self.job.start(self.run, self.checkpoints, fault)
        # Often enough to come to an end too: a job that is always disturbed shows nothing.
        code = self.job.wait(random.uniform(0.2, 1.1 * self.length) if kind else None)
        if kind and (code is None or kind == "delay"):
            self.counts[kind] += 1
            code = self.make_trouble(kind, code)
        self.check_start(whole)
        if code is None:
            return False
        assert code == 0 or (code == 74 and kind == "disk"), f"the job ended with {code}:\n{self.job.text()}"
        return code == 0

    def make_trouble(self, kind, code):
        """Returns the exit code of a job that ended by itself."""
        if kind in ("kill", "flip"):
            whole_job = random.random() < 0.5
            self.job.kill(whole_job)
            if kind == "kill":
                self.counts["whole job" if whole_job else "one rank"] += 1
            else:
                self.flip()
            return None
        if kind == "stop":
            ranks = self.job.ranks()
            victims = ranks if random.random() < 0.3 or not ranks else [random.choice(ranks)]
            send(signal.SIGSTOP, victims)
            time.sleep(random.uniform(0.2, 3.0))
            send(signal.SIGCONT, victims)
        elif kind == "disk":
            self.disk.fill()
            code = self.job.wait(random.uniform(0.2, 3.0))
            self.disk.free()
        return self.job.wait(600) if code is None else code

    def flip(self):
        whole = [step for step in steps_on_disk(self.checkpoints) if step not in self.flipped]
        if len(whole) < 2:  # one that loads must stay
            self.counts["flip"] -= 1
            self.counts["kill"] += 1
            self.counts["whole job"] += 1
            return
        flip_a_bit(self.checkpoints / f"step-{whole[-1]:08}")
        self.flipped.add(whole[-1])

    def check_start(self, whole):
        """It went on from nothing older than the newest whole checkpoint."""
        found = WENT_ON.search(self.job.text())
        if found:
            self.counts["resumes"] += 1
            step = int(found.group(1).rsplit("step-", 1)[1])
            assert not whole or step >= whole[-1], f"step {whole[-1]} was there, and it went on from {step}"
            self.flipped.discard(step)  # it loaded and verified: the bit was in none of its parts

    def compare(self):
        for role in self.job.plan["roles"]:
            ours, theirs = ([(line["step"], line["loss"], line["grad_norm"]) for line in step_lines(run, role)]
                            for run in (self.run, self.reference))
            assert ours == theirs, f"the losses {role} differ from the undisturbed job's"
        diff = self.job.athanor.checkpoint("diff", f"--from={self.checkpoints}",
                                           f"--to={self.folder / 'reference_checkpoints'}")
        assert diff.code == 0 and diff.json()["state"] == {}, diff.out + diff.err
        self.counts["finished"] += 1

    def go(self, is_enough):
        self.prepare()
        try:
            while not is_enough(self) or self.counts["finished"] == 0:
                if self.one_start(wants_trouble=not is_enough(self)):
                    self.compare()
                    shutil.rmtree(self.run)
                    shutil.rmtree(self.checkpoints)
                    self.flipped.clear()
        finally:
            if self.disk:
                self.disk.close()

    def report(self):
        counts = self.counts
        kinds = {"kill": f"{counts['kill']} kills ({counts['whole job']} of the whole job, {counts['one rank']} of one "
                         "rank)", "stop": f"{counts['stop']} stops", "delay": f"{counts['delay']} delays",
                 "disk": f"{counts['disk']} full disks", "flip": f"{counts['flip']} flipped bits"}
        print(f"soak of {self.job.command}: {', '.join(kinds[kind] for kind in self.kinds)}; {counts['resumes']} "
              f"starts went on from a checkpoint; {counts['finished']} runs came to their end, all equal to the "
              "undisturbed one bit for bit; 0 checkpoints lost")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("--job", choices=sorted(JOBS), default="train")
    parser.add_argument("--troubles", type=int, default=5)
    parser.add_argument("--minutes", type=float, help="instead of a number of troubles")
    parser.add_argument("--kinds", default="kill", help="comma-separated, or all")
    parser.add_argument("--full", action="store_true", help="50 kills")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    kinds = KINDS if arguments.kinds == "all" else arguments.kinds.split(",")
    if not set(kinds) <= set(KINDS):
        parser.error(f"--kinds {arguments.kinds} is not known: give some of {', '.join(KINDS)}")
    troubles = 50 if arguments.full else arguments.troubles
    end = None if arguments.minutes is None else time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory(prefix="athanor_soak_") as folder:
        folder = pathlib.Path(folder)
        soak = Soak(Job(Athanor(arguments.program, folder / "data"), arguments.job, folder), folder, kinds)
        soak.go(lambda soak: time.monotonic() > end if end else soak.troubles() >= troubles)
        soak.report()


if __name__ == "__main__":
    sys.exit(main())
