#!/usr/bin/env python3
"""Signals to running jobs: the step is finished and saved, every rank exits with 75, and the job goes on as if nothing
had happened.

    signal_cases.py PROGRAM [unittest arguments]

A fault point holds the job at a known place while the signal is sent. Every case resumes and compares with a run that
was not interrupted: losses as printed (they read back exactly), then every tensor and the state.
"""
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import threading
import time

from athanor_runs import AthanorCase, Result, checkpoints, main
from metrics_lines import lines_of, steps_of

STEPS = 16
TRAIN = {"train.steps": STEPS, "checkpoint.every": 6, "train.eval_every": 5, "train.eval_batches": 2}
DISTILL = {
    "model.layers": 2, "model.hidden": 24, "model.heads": 4, "model.kv_heads": 2, "model.head_dim": 8,
    "model.max_seq": 24, "moe.experts": 8, "moe.top_k": 2, "moe.ffn": 12, "student.moe.experts": 0,
    "student.model.hidden": 16, "student.model.ffn": 24, "batch.global": 12, "batch.seq": 17, "optim.lr": 3e-3,
    "run.seed": 3, "train.steps": STEPS, "train.log_every": 1000, "checkpoint.every": 6, "distill.top_k": 8,
    "distill.phases": "joint", "distill.maturity_gate": "true", "distill.deadline_s": 60,
}


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds} s in vain")
        time.sleep(0.01)


def has_handled_signals(pid):
    """Whether a process that sleeps in a fault has been through its handlers: none is pending, and it sleeps again.

    Signals that are pending together are delivered in an order of the kernel's, not in the order in which they came.
    """
    fields = dict(line.split(":\t", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    return fields["State"].startswith("S") and not int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)


class Job:
    """A run of the program that can be sent signals; its output is read along."""

    def __init__(self, athanor, words, ranks, fault):
        self.process = subprocess.Popen(athanor.command(ranks, *words), env=athanor.environment(fault), text=True,
                                        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.texts = {}
        self.readers = [threading.Thread(target=self.read, args=(stream,))
                        for stream in (self.process.stdout, self.process.stderr)]
        for reader in self.readers:
            reader.start()

    def read(self, stream):
        with stream:
            self.texts[stream] = stream.read()

    def rank_pid(self, rank):
        """The process of a rank, which is a child of the launcher."""
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent == self.process.pid and f"OMPI_COMM_WORLD_RANK={rank}".encode() in (
                        entry / "environ").read_bytes().split(b"\0"):
                    return int(entry.name)
        return None

    def send(self, number, rank=None):
        pid = self.process.pid if rank is None else self.rank_pid(rank)
        assert pid is not None, f"there is no rank {rank}"
        os.kill(pid, number)
        return pid

    def wait(self, timeout=60):
        try:
            self.process.wait(timeout)
        finally:
            self.process.kill()
            for reader in self.readers:
                reader.join()
        return Result(self.process.returncode, self.texts[self.process.stdout], self.texts[self.process.stderr])


class SignalCases(AthanorCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.references = {}

    # --- runs -----------------------------------------------------------------------------------------------------
    def train_words(self, run, ranks, **options):
        # Experts over two ranks where they divide; three ranks share the batch alone.
        return self.athanor.train_words(run, **{**TRAIN, "parallel.ep": 2 if ranks % 2 == 0 else 1,
                                                "data.valid": self.athanor.folder / "data", **options})

    def distill_words(self, run, teacher, student, **options):
        values = {**DISTILL, "data.train": self.athanor.folder / "data", "data.tokenizer": self.athanor.tokenizer,
                  "run.dir": run, "teacher.ranks": teacher, "student.ranks": student, **options}
        return ["distill", "--json", *(f"--{key}={value}" for key, value in values.items())]

    def words(self, run, shape, **options):
        """`shape`: a number of ranks to train on, or a pair of teacher and student ranks."""
        if isinstance(shape, int):
            return self.train_words(run, shape, **options), shape
        return self.distill_words(run, *shape, **options), sum(shape)

    def roles(self, shape):
        return ("",) if isinstance(shape, int) else ("teacher", "student")

    def start(self, run, shape, fault="", **options):
        words, ranks = self.words(run, shape, **options)
        return Job(self.athanor, words, ranks, fault)

    def reference(self, shape):
        """The uninterrupted run of this shape."""
        if shape not in self.references:
            run = self.root / f"reference-{shape}"
            words, ranks = self.words(run, shape)
            done = self.athanor.run(*words, ranks=ranks)
            self.assertEqual(done.code, 0, done.err)
            self.references[shape] = run
        return self.references[shape]

    def fresh(self, name):
        run = self.root / name
        shutil.rmtree(run, ignore_errors=True)
        return run

    # --- what must hold -------------------------------------------------------------------------------------------
    def expect_stopped(self, run, shape, done, step, reason):
        """Exit code 75, a line that says why and where, a whole checkpoint of that step, and nobody left behind."""
        self.assertEqual(done.code, 75, done.err)
        # The launcher adds a paragraph on exit codes other than 0.
        said = [line for line in done.err.splitlines() if "STOPPED" in line]
        self.assertEqual(len(said), 1, done.err)
        for part in (reason, "exit code 75"):
            self.assertIn(part, said[0])
        if step is not None:
            folder = f"step-{step:08}"
            self.assertIn(folder, said[0])
            self.assertIn(folder, checkpoints(run))
            for role in self.roles(shape):
                self.assertEqual(steps_of(run, role), list(range(1, step + 1)))
        self.assertEqual([name for name in checkpoints(run) if name.startswith(".")], [])
        if checkpoints(run):
            verify = self.athanor.checkpoint("verify", f"--from={run}")
            self.assertEqual(verify.code, 0, verify.out + verify.err)
        self.expect_nobody_left(run)

    def expect_nobody_left(self, run):
        def left():
            found = []
            for entry in pathlib.Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):
                    if str(run).encode() + b"\0" in (entry / "cmdline").read_bytes():
                        found.append(entry.name)
            return found

        wait_until(lambda: not left(), 5)

    def expect_resume(self, run, shape, step):
        words, ranks = self.words(run, shape)
        done = self.athanor.run(*words, ranks=ranks)
        self.assertEqual(done.code, 0, done.err)
        result = done.json() if isinstance(shape, int) else done.json()["teacher"]
        self.assertEqual(result["first_step"], step, done.err)
        self.assertEqual(result["stopped"], "")
        reference = self.reference(shape)
        for role in self.roles(shape):
            self.assertEqual(lines_of(run, role), lines_of(reference, role))
        diff = self.athanor.checkpoint("diff", f"--from={run}", f"--to={reference}")
        self.assertEqual(diff.code, 0, diff.out)
        self.assertTrue(diff.json()["tensors_equal"])
        self.assertEqual(diff.json()["state"], {})

    def stop_and_resume(self, name, shape, fault, ready, sends, step, reason, **options):
        """Holds a job at `fault`, sends it signals when ready(run) holds, and expects it to stop after `step`."""
        run = self.fresh(name)
        job = self.start(run, shape, fault, **options)
        try:
            wait_until(lambda: ready(run))
            time.sleep(0.15)  # into the fault's sleep
            for number, rank in sends:
                pid = job.send(number, rank)
                if rank is not None and (number, rank) != sends[-1]:
                    wait_until(lambda pid=pid: has_handled_signals(pid))
        finally:
            done = job.wait()
        self.expect_stopped(run, shape, done, step, reason)
        self.expect_resume(run, shape, step)
        return done

    @staticmethod
    def has_step(step, role=""):
        return lambda run: step in steps_of(run, role)

    # --- pretraining ------------------------------------------------------------------------------------------------
    def test_signals_to_the_launcher(self):
        """25: USR1 and USR2 to mpirun, which hands them on to all ranks: the step that begins is the last one."""
        for number, name in ((signal.SIGUSR1, "SIGUSR1"), (signal.SIGUSR2, "SIGUSR2")):
            with self.subTest(name=name):
                self.stop_and_resume("launcher", 2, "train.step:*:9:sleep=1.2", self.has_step(8), [(number, None)], 9,
                                     name)

    def test_a_signal_to_one_rank_in_a_step(self):
        """25: TERM to one of three ranks while it waits inside the step for another: that step is the last one."""
        done = self.stop_and_resume("one", 3, "train.step:2:8:sleep=1.4", self.has_step(7), [(signal.SIGTERM, 0)], 8,
                                    "SIGTERM")
        self.assertNotIn("rank 0", next(line for line in done.err.splitlines() if "STOPPED" in line))

    def test_a_later_signal_changes_nothing(self):
        """25: three signals of three kinds, to several ranks; the first counts. The rank is named."""
        done = self.stop_and_resume("twice", 4, "train.step:*:9:sleep=1.4,checkpoint.write:1:2:sleep=0.5",
                                    self.has_step(8), [(signal.SIGUSR2, 3), (signal.SIGTERM, 3), (signal.SIGUSR1, 3)],
                                    9, "rank 3: SIGUSR2")
        self.assertEqual(done.code, 75)

    def test_in_an_evaluation(self):
        """25: the evaluation is broken off, and made up for by the job that goes on: its line is there and the same."""
        done = self.stop_and_resume("evaluating", 2, "train.evaluate:1:2:sleep=1.4", self.has_step(10),
                                    [(signal.SIGUSR1, 0)], 10, "SIGUSR1")
        self.assertIn("broken off", done.err)

    def test_in_the_last_evaluation(self):
        """25: all steps are done, but not all work."""
        run = self.fresh("closing")
        job = self.start(run, 2, "train.evaluate:1:4:sleep=1.4")
        wait_until(lambda: STEPS in steps_of(run))
        time.sleep(0.15)
        job.send(signal.SIGUSR1, 0)
        self.expect_stopped(run, 2, job.wait(), STEPS, "SIGUSR1")
        self.expect_resume(run, 2, STEPS)

    def test_during_a_save(self):
        """25: the save in flight is completed; asynchronous: then the step that was reached is saved as well."""
        self.stop_and_resume("saving", 2, "checkpoint.write:1:1:sleep=1.4", self.has_step(6),
                             [(signal.SIGUSR1, None)], 6, "SIGUSR1", checkpoint__async="false")
        run = self.fresh("saving-async")
        job = self.start(run, 2, "checkpoint.write:1:1:sleep=1.4,train.step:*:8:sleep=1.2")
        wait_until(lambda: 7 in steps_of(run))
        job.send(signal.SIGUSR1)
        self.expect_stopped(run, 2, job.wait(), 8, "SIGUSR1")
        self.assertIn("step-00000006", checkpoints(run))
        self.expect_resume(run, 2, 8)

    def test_a_save_that_fails(self):
        """25, 29: the last save fails on one rank: it is tried again before the job ends."""
        self.stop_and_resume("failing", 2, "train.step:*:9:sleep=1.2,checkpoint.write:1:2:throw", self.has_step(8),
                             [(signal.SIGUSR1, None)], 9, "SIGUSR1")

    def test_at_the_start(self):
        """25: before there is anything: no step is made, and no checkpoint; the next job starts afresh."""
        run = self.fresh("starting")
        job = self.start(run, 2, "train.load:*:1:sleep=1")
        wait_until(lambda: (run / "config.ini").exists())
        time.sleep(0.3)
        job.send(signal.SIGUSR1, 1)
        done = job.wait()
        self.expect_stopped(run, 2, done, None, "SIGUSR1")
        self.assertIn("before the first step", done.err)
        self.assertEqual(done.json()["steps"], 0)
        self.assertEqual(checkpoints(run), [])
        self.expect_resume(run, 2, 0)

    def test_while_loading(self):
        """25: what was loaded stays the newest checkpoint."""
        run = self.fresh("loading")
        job = self.start(run, 2, "train.step:*:9:sleep=1.2")
        wait_until(lambda: 8 in steps_of(run))
        job.send(signal.SIGUSR1)
        self.expect_stopped(run, 2, job.wait(), 9, "SIGUSR1")
        job = self.start(run, 2, "train.load:*:1:sleep=1")
        wait_until(lambda: str(job.rank_pid(0)) in (run / ".lock").read_text())  # the folder is taken: it loads next
        time.sleep(0.3)
        job.send(signal.SIGUSR2, 0)
        done = job.wait()
        self.assertEqual(done.code, 75, done.err)
        self.assertEqual(done.json()["steps"], 0, done.err)
        self.assertIn("step-00000009", done.err)
        self.expect_resume(run, 2, 9)

    def test_terminating_the_launcher(self):
        """26: mpirun answers TERM by TERM to the ranks and KILL a second later, however far they are: the checkpoint of
        before still loads."""
        run = self.fresh("terminated")
        job = self.start(run, 2, "train.step:*:9:sleep=3", checkpoint__async="false")
        wait_until(lambda: 8 in steps_of(run))
        job.send(signal.SIGTERM)
        done = job.wait()
        self.assertNotEqual(done.code, 0)
        self.expect_nobody_left(run)
        self.assertIn("step-00000006", checkpoints(run))
        self.expect_resume(run, 2, 6)

    # --- the time that is left ----------------------------------------------------------------------------------------
    def test_too_little_time_left(self):
        """A step that could not be saved before run.end_time is not begun."""
        run = self.fresh("late")
        # Steps of 0.5 s from the fifth on; the end is far enough away for some of them, not for all.
        fault = ",".join(f"train.step:*:{step}:sleep=0.5" for step in range(5, STEPS + 1))
        end = int(time.time()) + 8
        words, ranks = self.words(run, 2, **{"run.end_time": end, "run.stop_margin_s": 1})
        done = self.athanor.run(*words, ranks=ranks, fault=fault)
        self.assertLess(time.time(), end + 2.5)  # the launcher takes its time after a code other than 0
        step = max(steps_of(run))
        self.assertGreater(step, 4)
        self.assertLess(step, STEPS)
        self.expect_stopped(run, 2, done, step, "left until run.end_time")
        self.expect_resume(run, 2, step)

    # --- distillation -------------------------------------------------------------------------------------------------
    def test_distillation(self):
        """25: to the launcher, to one teacher rank: both roles stop after one and the same step."""
        held = "train.step:*:8:sleep=1.2"
        for name, sends, reason in (("launcher", [(signal.SIGUSR1, None)], "SIGUSR1"),
                                    ("teacher", [(signal.SIGTERM, 1)], "rank 1: SIGTERM")):
            with self.subTest(name=name):
                self.stop_and_resume(f"distill-{name}", (2, 2), held, self.has_step(7, "teacher"), sends, 8, reason)

    def test_distillation_told_by_a_student(self):
        """25: a student rank's letter reaches the leader, whose word comes back with the signals."""
        run = self.fresh("distill-student")
        # Every step takes a while, so that the letter arrives well before the end.
        fault = ",".join(f"train.step:*:{step}:sleep=0.25" for step in range(4, STEPS))
        job = self.start(run, (2, 2), fault)
        wait_until(lambda: 5 in steps_of(run, "student"))
        job.send(signal.SIGUSR2, 3)
        done = job.wait()
        step = max(steps_of(run, "student"))
        self.assertLess(step, STEPS)
        self.expect_stopped(run, (2, 2), done, step, "rank 3: SIGUSR2")
        self.expect_resume(run, (2, 2), step)

    def test_distillation_during_a_save(self):
        """25: a slow write of a student rank, a window of one step, signals to everybody, twice."""
        run = self.fresh("distill-saving")
        job = self.start(run, (1, 2), "checkpoint.write:2:1:sleep=1.4,train.step:*:8:sleep=1.0",
                         **{"distill.window": 1})
        wait_until(lambda: 7 in steps_of(run, "teacher"))
        job.send(signal.SIGUSR1)
        time.sleep(0.2)
        job.send(signal.SIGUSR1)
        done = job.wait()
        step = max(steps_of(run, "student"))
        self.expect_stopped(run, (1, 2), done, step, "SIGUSR1")
        self.expect_resume(run, (1, 2), step)


if __name__ == "__main__":
    main()
