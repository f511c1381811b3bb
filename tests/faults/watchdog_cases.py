#!/usr/bin/env python3
"""Jobs that stand still: the watchdog names the rank to blame in time, ends the job and leaves nobody behind; slow
ranks are named and left alone.

    watchdog_cases.py PROGRAM [unittest arguments] [--full]

--full: 20 tries of random hangs and stops instead of 3.
"""
import contextlib
import os
import pathlib
import random
import re
import shutil
import signal
import sys
import time

from athanor_runs import AthanorCase, checkpoints, main, step_lines
from metrics_lines import lines_of, steps_of
from signal_cases import DISTILL, Job, wait_until

SOFT, FACTOR = 2.0, 2.0
TRIES = 20 if "--full" in sys.argv else 3
STEPS = 8
DEADLINES = {f"watchdog.{phase}_s": SOFT for phase in ("start", "step", "evaluate", "save")}
WATCHED = {**DEADLINES, "watchdog.hard_factor": FACTOR, "train.steps": STEPS, "checkpoint.every": 4,
           "train.eval_every": 3, "train.eval_batches": 1}


def processes_of(run):
    found = []
    for entry in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str(run).encode() + b"\0" in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


class WatchdogCases(AthanorCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.reference = None

    # --- runs -----------------------------------------------------------------------------------------------------
    def start(self, name, ranks, fault="", **options):
        run = self.root / name
        shutil.rmtree(run, ignore_errors=True)
        words = self.athanor.train_words(run, **{**WATCHED, "data.valid": self.athanor.folder / "data", **options})
        return run, Job(self.athanor, words, ranks, fault)

    def start_distill(self, name, fault, **options):
        run = self.root / name
        shutil.rmtree(run, ignore_errors=True)
        values = {**DISTILL, **DEADLINES, "watchdog.hard_factor": FACTOR, "train.steps": STEPS,
                  "data.train": self.athanor.folder / "data", "data.tokenizer": self.athanor.tokenizer, "run.dir": run,
                  "teacher.ranks": 2, "student.ranks": 2, **options}
        return run, Job(self.athanor, ["distill", "--json", *(f"--{key}={value}" for key, value in values.items())], 4,
                        fault)

    def finish(self, run, job, timeout=60):
        try:
            return job.wait(timeout)
        finally:
            for pid in processes_of(run):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def reference_lines(self):
        """Of a run that nothing happens to."""
        if WatchdogCases.reference is None:
            run, job = self.start("reference", 3)
            done = self.finish(run, job)
            self.assertEqual(done.code, 0, done.err)
            self.assertNotIn("WATCHDOG", done.err)
            self.assertFalse((run / "heartbeat").exists())
            WatchdogCases.reference = lines_of(run)
        return WatchdogCases.reference

    # --- what must hold -------------------------------------------------------------------------------------------
    def reports(self, done):
        """Times without progress at which ranks reported."""
        return [float(text) for text in re.findall(r"WATCHDOG: no progress for ([0-9.]+) s in", done.err)]

    def expect_ended(self, run, job, rank, *texts):
        """One report, in time, that names the rank; exit code 70; nobody left."""
        began = time.monotonic()
        done = self.finish(run, job)
        self.assertEqual(done.code, 70, done.err)
        stalls = self.reports(done)
        self.assertEqual(len(stalls), 1, done.err)
        self.assertGreaterEqual(stalls[0], SOFT)
        self.assertLessEqual(stalls[0], SOFT + 0.75, done.err)
        blamed = re.findall(r"WATCHDOG: to blame: rank (\d+)", done.err)
        self.assertEqual(blamed, [str(rank)], done.err)
        for text in texts:
            self.assertIn(text, done.err)
        self.assertIn("the job ends with exit code 70", done.err)
        self.assertIn("WATCHDOG: to blame", (run / "log.txt").read_text())
        self.assertLess(time.monotonic() - began, 40)
        wait_until(lambda: not processes_of(run), 5)
        return done

    # --- hangs and stops ------------------------------------------------------------------------------------------
    def test_a_hang_in_each_phase(self):
        """24: a dead loop of one rank of three, in start, step, evaluation and save."""
        for point, phase in (("train.load:1:1", "start"), ("train.step:1:5", "step"),
                             ("train.evaluate:1:1", "evaluation"), ("train.save:1:1", "save")):
            with self.subTest(phase=phase):
                run, job = self.start("phase", 3, f"{point}:hang")
                done = self.expect_ended(run, job, 1, "missing from ", "in which rank(s) 0,2 wait")
                self.assertRegex(done.err, rf"to blame: rank 1 \(.*\): (step \d+, )?{phase}, ")
                self.assertRegex(done.err, r"ranks 0,2: .*inside [a-z_]+ number \d+ of group world")

    def test_a_stopped_rank_is_told_from_a_busy_one(self):
        """24: SIGSTOP of a rank, the first one included, which otherwise speaks for all."""
        for rank in (0, 2):
            with self.subTest(rank=rank):
                run, job = self.start("stopped", 3, f"train.step:{rank}:6:stop")
                self.expect_ended(run, job, rank, "its process is stopped (state T)")

    def test_what_is_saved_goes_on(self):
        """24: the job that goes on after a hang equals one that was not interrupted."""
        expected = self.reference_lines()
        run, job = self.start("resumed", 3, "train.step:2:7:hang")
        self.expect_ended(run, job, 2)
        self.assertIn("step-00000004", checkpoints(run))
        words = self.athanor.train_words(run, **{**WATCHED, "data.valid": self.athanor.folder / "data"})
        done = self.finish(run, Job(self.athanor, words, 3, ""))
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual(lines_of(run), expected)

    def test_both_roles_of_a_distillation(self):
        """24: a rank of the teacher, then of the student; the other role waits at the link, with a later deadline."""
        for rank, role, fault in ((1, "teacher", "link.begin_step:1:4:hang"), (3, "student", "link.wait_step:3:4:hang"),
                                  (0, "teacher", "link.send_rows:0:4:stop")):
            with self.subTest(role=role, fault=fault):
                run, job = self.start_distill("pair", fault)
                done = self.finish(run, job)
                self.assertEqual(done.code, 70, done.err)
                blamed = re.findall(r"WATCHDOG: to blame: rank (\d+) \((\w+)", done.err)
                self.assertEqual(blamed, [(str(rank), role)], done.err)
                wait_until(lambda: not processes_of(run), 5)

    def test_random_tries(self):
        """A hung rank is named within the deadline in every try."""
        numbers = random.Random(7)
        for number in range(TRIES):
            rank, nth = numbers.randrange(3), numbers.randint(2, STEPS)
            action = numbers.choice(("hang", "stop"))
            fault = f"train.step:{rank}:{nth}:{action}"
            with self.subTest(number=number, fault=fault):
                run, job = self.start("tries", 3, fault)
                self.expect_ended(run, job, rank)
        print(f"{TRIES} tries, the rank was named in time in each", file=sys.stderr)

    # --- what is no hang ------------------------------------------------------------------------------------------
    def test_a_job_that_is_stopped_as_a_whole_goes_on(self):
        """SIGSTOP of all ranks for longer than the hard deadline, then SIGCONT: nothing is said, nothing changes."""
        expected = self.reference_lines()
        run, job = self.start("asleep", 3, "train.step:*:4:sleep=0.5")
        wait_until(lambda: 3 in steps_of(run))
        ranks = [job.rank_pid(rank) for rank in range(3)]
        for pid in ranks:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(SOFT * FACTOR + 1.5)
        for pid in ranks:
            os.kill(pid, signal.SIGCONT)
        done = self.finish(run, job)
        self.assertEqual(done.code, 0, done.err)
        self.assertNotIn("WATCHDOG", done.err)
        self.assertEqual(lines_of(run), expected)

    def test_told_but_not_ended(self):
        """watchdog.hard_factor=0: a rank that sleeps for longer than the deadline is named, and the job goes on."""
        expected = self.reference_lines()
        run, job = self.start("told", 3, f"train.step:1:5:sleep={SOFT * 2.5}", **{"watchdog.hard_factor": 0})
        done = self.finish(run, job)
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual(len(self.reports(done)), 1, done.err)
        self.assertEqual(re.findall(r"WATCHDOG: to blame: rank (\d+)", done.err), ["1"])
        self.assertIn("goes on", done.err)
        self.assertEqual(lines_of(run), expected)

    def test_a_lost_folder_is_complained_of_once(self):
        """The heartbeats' folder becomes a file while the job runs: the job goes on."""
        expected = self.reference_lines()
        run, job = self.start("folder", 3, "train.step:*:4:sleep=1.0")
        wait_until(lambda: 3 in steps_of(run))
        shutil.rmtree(run / "heartbeat")
        (run / "heartbeat").write_text("")
        done = self.finish(run, job)
        self.assertEqual(done.code, 0, done.err)
        self.assertLessEqual(done.err.count("cannot write its heartbeat"), 3)
        self.assertGreater(done.err.count("cannot write its heartbeat"), 0)
        self.assertEqual(lines_of(run), expected)

    def test_off(self):
        """All deadlines 0: no folder, no thread, the same run."""
        expected = self.reference_lines()
        run, job = self.start("off", 3, "train.step:0:4:sleep=0.1", **{key: 0 for key in DEADLINES})
        wait_until(lambda: 3 in steps_of(run))
        self.assertFalse((run / "heartbeat").exists())
        done = self.finish(run, job)
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual(lines_of(run), expected)

    # --- debug mode and stragglers --------------------------------------------------------------------------------
    def test_debug_mode_changes_no_bit(self):
        """run.check_collectives: all collectives of a run match, and the run is the same."""
        expected = self.reference_lines()
        run, job = self.start("checked", 3, **{"run.check_collectives": "true"})
        done = self.finish(run, job)
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual(lines_of(run), expected)
        run, job = self.start_distill("checked_pair", "", **{"run.check_collectives": "true"})
        done = self.finish(run, job)
        self.assertEqual(done.code, 0, done.err)

    def test_debug_mode_names_a_rank_that_does_not_come(self):
        run, job = self.start("absent", 3, "train.step:1:5:hang",
                              **{"run.check_collectives": "true", "run.check_deadline_s": 1})
        done = self.finish(run, job)
        self.assertEqual(done.code, 70, done.err)
        self.assertIn("world rank(s) 1 did not come to all_reduce", done.err)
        self.assertIn("train/trainer.cpp", done.err)
        wait_until(lambda: not processes_of(run), 5)

    def test_a_slow_rank_is_named_and_nothing_else(self):
        """23: a rank that is late in every step is named with its factor; without it nobody is."""
        slow = ",".join(f"train.step:2:{step}:sleep=0.25" for step in range(1, STEPS + 1))
        run, job = self.start("slow", 3, slow, **{"train.log_every": 4})
        done = self.finish(run, job)
        self.assertEqual(done.code, 0, done.err)
        named = re.findall(r"STRAGGLER: rank (\d+) of the role \(host .*?\) takes ([0-9.]+) s .*?, ([0-9.]+) times",
                           done.err)
        self.assertEqual([rank for rank, _, _ in named], ["2", "2"], done.err)
        self.assertGreater(float(named[0][1]), 0.25)
        self.assertGreater(float(named[0][2]), 2)
        lines = {line["step"]: line for line in step_lines(run)}
        self.assertEqual(lines[4]["slowest_rank"]["rank"], 2)
        self.assertLess(lines[4]["slowest_rank"]["score"], 0.5)
        self.assertNotIn("slowest_rank", lines[5])
        self.assertNotIn("WATCHDOG", done.err)
        run, job = self.start("even", 3, **{"train.log_every": 4})
        done = self.finish(run, job)
        self.assertEqual(done.code, 0, done.err)
        self.assertNotIn("STRAGGLER", done.err)


if __name__ == "__main__":
    if "--full" in sys.argv:
        sys.argv.remove("--full")
    main()
