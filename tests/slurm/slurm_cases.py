#!/usr/bin/env python3
"""The shipped job scripts under a real Slurm of two nodes: every way in which a job can be told or made to end.

    slurm_cases.py PROGRAM [unittest arguments]

Each case submits a small run through scripts/slurm/submit.sh, interrupts it, waits until it has finished by itself, and
compares it with an uninterrupted run: numbers as printed (they read back exactly), tensors, state. Cases that leave
the nodes alone share them; node failure and preemption come afterwards. Ends with 77 (skipped) where Slurm is missing.
"""
import concurrent.futures
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "faults"))

from athanor_runs import MODEL, ROOT, Athanor, checkpoints  # noqa: E402
from cluster import Cluster, is_alive, missing_binaries, wait_until  # noqa: E402
from metrics_lines import lines_of, steps_of  # noqa: E402

PROGRAM = ""
SUBMIT = ROOT / "scripts" / "slurm" / "submit.sh"
STEPS = 16
TRAIN = {**MODEL, "parallel.ep": 2, "train.steps": STEPS, "checkpoint.every": 6, "train.eval_every": 5,
         "train.eval_batches": 2}
DISTILL = {
    **MODEL, "model.hidden": 24, "model.head_dim": 8, "moe.ffn": 12, "student.moe.experts": 0,
    "student.model.hidden": 16, "student.model.ffn": 24, "batch.seq": 17, "train.steps": STEPS, "checkpoint.every": 6,
    "distill.top_k": 8, "distill.phases": "joint", "distill.deadline_s": 60, "teacher.ranks": 1, "student.ranks": 1,
}
# Held at its ninth step, a job can be interrupted there; only in its first start, so that it then runs to its end.
SITE = """\
source {root}/scripts/slurm/site.sh
sbatch_options=(--time=30 --chdir={folder} --output={folder}/%j.log)
ATHANOR={program}
srun_options+=(--wait=3)
prepare_site() {{
  export OMP_NUM_THREADS=1
  [[ -n ${{TEST_EVERY_START:-}} || ${{SLURM_RESTART_COUNT:-0}} -eq 0 ]] || unset ATHANOR_FAULT
  [[ -z ${{TEST_ONE_JOB:-}} || $SLURM_JOB_ID == "$(<{folder}/first_of_chain)" ]] || unset ATHANOR_FAULT
}}
"""
HELD = "train.step:*:9:sleep=1.5"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "BOOT_FAIL", "DEADLINE", "OUT_OF_MEMORY")
ON_TWO_NODES = ("--nodes=2", "--ntasks-per-node=1")


class Bench:
    """Cluster, data and references that the cases share."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.athanor = Athanor(PROGRAM, self.folder / "data")
        (self.folder / "site.sh").write_text(SITE.format(root=ROOT, folder=self.folder, program=self.athanor.program))
        self.cluster = Cluster()
        self.references = {}
        for kind in ("pretrain", "distill"):
            run = self.folder / f"reference-{kind}"
            done = self.athanor.run("train" if kind == "pretrain" else "distill", *self.words(kind, run), ranks=2)
            assert done.code == 0, done.err
            self.references[kind] = run

    def words(self, kind, run, **options):
        values = {**(TRAIN if kind == "pretrain" else DISTILL), "data.train": self.folder / "data" / "data",
                  "data.tokenizer": self.athanor.tokenizer, "run.dir": run}
        if kind == "pretrain":
            values["data.valid"] = values["data.train"]
        values.update({key.replace("__", "."): value for key, value in options.items()})
        return [f"--{key}={value}" for key, value in values.items()]

    def submit(self, kind, sbatch, words, fault="", before=(), **env):
        done = subprocess.run(
            [SUBMIT, *before, kind, *sbatch, "--", *words], capture_output=True, text=True, check=False, timeout=60,
            stdin=subprocess.DEVNULL,
            env={**self.cluster.env, "ATHANOR_SITE": str(self.folder / "site.sh"), "ATHANOR_FAULT": fault, **env})
        return done

    def queue(self, kind, run, sbatch=ON_TWO_NODES, fault=HELD, options=None, before=(), **env):
        """Submits a run; the ids of its jobs."""
        done = self.submit(kind, sbatch, self.words("pretrain" if kind == "pretrain" else "distill", run,
                                                    **(options or {})), fault, before, **env)
        assert done.returncode == 0, done.stderr
        return [int(line) for line in done.stdout.split()]

    def log(self, job):
        path = self.folder / f"{job}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def wait_for_step(self, run, step, kind="pretrain", seconds=60):
        role = "" if kind == "pretrain" else "student"
        if not wait_until(lambda: step in steps_of(run, role), seconds, 0.05):
            raise AssertionError(f"{run} did not reach step {step}: {steps_of(run, role)}")

    def wait_for_log(self, job, text, seconds=60):
        if not wait_until(lambda: text in self.log(job), seconds):
            raise AssertionError(f"'{text}' is not in the log of job {job}:\n{self.log(job)}")

    def wait_for_end(self, job, seconds=120):
        """Until the job is over for good: not pending again, not completing."""
        try:
            return self.cluster.wait_for_job(job, lambda fields: fields["JobState"] in ENDED, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.log(job)}") from None

    def expect_finished(self, job, run, kind):
        fields = self.wait_for_end(job)
        log = self.log(job)
        assert (fields["JobState"], fields["ExitCode"]) == ("COMPLETED", "0:0"), f"{fields}\n{log}"
        assert int(fields["Restarts"]) > 0, f"it was not interrupted\n{log}"
        self.expect_equal(run, kind, log)

    def expect_equal(self, run, kind, log):
        reference = self.references[kind]
        for role in ("",) if kind == "pretrain" else ("teacher", "student"):
            assert lines_of(run, role) == lines_of(reference, role), f"the curves of {role} differ\n{log}"
        diff = self.athanor.checkpoint("diff", f"--from={run}", f"--to={reference}")
        assert diff.code == 0 and diff.json()["tensors_equal"] and not diff.json()["state"], diff.out + diff.err


class Cases:
    """One method a case. Those of `shared` run at the same time, those of `alone` one after the other."""

    shared = ("warning_before_the_limit", "signal_to_the_steps", "signal_to_the_script_with_mpirun", "distillation",
              "heterogeneous_distillation", "time_that_is_left", "no_progress", "chain", "requeue_from_outside",
              "time_limit", "cancelling", "refusals")
    alone = ("preemption", "node_failure")

    def __init__(self, bench):
        self.bench = bench
        self.cluster = bench.cluster

    def run_of(self, name):
        return self.bench.folder / name

    def signal_to_the_steps(self):
        """scancel --signal=USR1: the ranks get it from Slurm; the script sees 75 and requeues the job."""
        run = self.run_of("steps")
        (job,) = self.bench.queue("pretrain", run)
        self.bench.wait_for_step(run, 8)
        self.cluster.run("scancel", "--signal=USR1", job)
        self.bench.expect_finished(job, run, "pretrain")
        log = self.bench.log(job)
        assert "STOPPED after step 9 (SIGUSR1)" in log and "ended with exit code 75" in log, log
        assert "step-00000009" in checkpoints(run)

    def signal_to_the_script_with_mpirun(self):
        """scancel -b --signal=USR1, ranks started by mpirun: the script hands it on."""
        run = self.run_of("script")
        (job,) = self.bench.queue("pretrain", run, ATHANOR_LAUNCHER="mpirun")
        self.bench.wait_for_step(run, 8)
        self.cluster.run("scancel", "-b", "--signal=USR1", job)
        self.bench.expect_finished(job, run, "pretrain")
        log = self.bench.log(job)
        assert "told to stop" in log and "ended with exit code 75" in log, log

    def warning_before_the_limit(self):
        """The real --signal=B:USR1@S of the shipped options, which Slurm looks at every 30 s."""
        run = self.run_of("warned")
        fault = ",".join(f"train.step:0:{step}:sleep=4" for step in range(3, STEPS))
        (job,) = self.bench.queue("pretrain", run, (*ON_TWO_NODES, "--time=1"), fault, ATHANOR_WARNING_S="59",
                                  options={"run.stop_margin_s": 0})
        self.bench.expect_finished(job, run, "pretrain")
        assert "told to stop" in self.bench.log(job), self.bench.log(job)

    def time_that_is_left(self):
        """The end that Slurm names: no step is begun that could not be saved."""
        run = self.run_of("left")
        fault = ",".join(f"train.step:0:{step}:sleep=1.2" for step in range(4, STEPS))
        (job,) = self.bench.queue("pretrain", run, (*ON_TWO_NODES, "--time=2"), fault, ATHANOR_WARNING_S="5",
                                  options={"run.stop_margin_s": 106})
        self.bench.expect_finished(job, run, "pretrain")
        assert "left until run.end_time" in self.bench.log(job), self.bench.log(job)

    def time_limit(self):
        """The limit itself, without a warning: TERM to the ranks, which have KillWait to save."""
        run = self.run_of("limit")
        fault = ",".join(f"train.step:0:{step}:sleep=3" for step in range(3, STEPS))
        (job,) = self.bench.queue("pretrain", run, fault=fault, ATHANOR_WARNING_S="0",
                                  options={"run.stop_margin_s": 1})
        self.bench.wait_for_step(run, 2)
        end = time.strftime("%FT%T", time.localtime(time.time() + 1))
        self.cluster.run("scontrol", "update", f"jobid={job}", f"EndTime={end}")
        self.bench.expect_finished(job, run, "pretrain")
        assert "(SIGTERM)" in self.bench.log(job), self.bench.log(job)

    def requeue_from_outside(self):
        """scontrol requeue while it trains: goes on from what it managed to save, or from the checkpoint before."""
        run = self.run_of("requeued")
        (job,) = self.bench.queue("pretrain", run)
        self.bench.wait_for_step(run, 8)
        self.cluster.run("scontrol", "requeue", job)
        self.bench.expect_finished(job, run, "pretrain")

    def cancelling(self):
        """scancel: the ranks save, but the job is over; submitted again, it goes on."""
        run = self.run_of("cancelled")
        (job,) = self.bench.queue("pretrain", run)
        self.bench.wait_for_step(run, 8)
        self.cluster.run("scancel", job)
        fields = self.bench.wait_for_end(job)
        assert fields["JobState"] == "CANCELLED", fields
        self.bench.wait_for_log(job, "STOPPED after step 9 (SIGTERM)")
        (job,) = self.bench.queue("pretrain", run, fault="")
        fields = self.bench.wait_for_end(job)
        log = self.bench.log(job)
        assert fields["JobState"] == "COMPLETED" and "(step 9, read and verified" in log, log
        self.bench.expect_equal(run, "pretrain", log)

    def no_progress(self):
        """A rank that is killed in every start before the first checkpoint: two restarts, then the reason."""
        run = self.run_of("stuck")
        (job,) = self.bench.queue("pretrain", run, fault="train.step:1:3:kill", TEST_EVERY_START="1",
                                  ATHANOR_MAX_RESTARTS="2")
        fields = self.bench.wait_for_end(job)
        log = self.bench.log(job)
        assert fields["JobState"] == "FAILED" and fields["ExitCode"] == "70:0", f"{fields}\n{log}"
        assert fields["Restarts"] == "2", f"{fields}\n{log}"
        assert "2 restarts in a row brought no new checkpoint" in log, log

    def distillation(self):
        """Teacher on one node, student on the other, in one allocation."""
        run = self.run_of("distill")
        (job,) = self.bench.queue("distill", run)
        self.bench.wait_for_step(run, 6, "distill")
        self.cluster.run("scancel", "--signal=USR1", job)
        self.bench.expect_finished(job, run, "distill")
        assert "ended with exit code 75" in self.bench.log(job), self.bench.log(job)

    def heterogeneous_distillation(self):
        """The same as a heterogeneous job, whose sizes come from the configuration."""
        run = self.run_of("het")
        (job,) = self.bench.queue("distill_het", run, ("--nodes=1", ":", "--nodes=1"))
        self.bench.wait_for_step(run, 6, "distill")
        self.cluster.run("scancel", "-b", "--signal=USR1", job)
        self.bench.expect_finished(job, run, "distill")
        assert "ended with exit code 75" in self.bench.log(job), self.bench.log(job)

    def chain(self):
        """Jobs after each other, no requeue: the first is interrupted, the second finishes, the third sees that."""
        run = self.run_of("chain")
        jobs = self.bench.queue("pretrain", run, before=("--chain=3",), TEST_ONE_JOB="1")
        (self.bench.folder / "first_of_chain").write_text(f"{jobs[0]}\n")
        assert len(jobs) == 3, jobs
        self.bench.wait_for_step(run, 8)
        self.cluster.run("scancel", "--signal=USR2", jobs[0])
        ends = [self.bench.wait_for_end(job) for job in jobs]
        logs = "\n".join(self.bench.log(job) for job in jobs)
        assert [end["ExitCode"] for end in ends] == ["75:0", "0:0", "0:0"], f"{ends}\n{logs}"
        assert "an earlier job of the chain has finished the run" in self.bench.log(jobs[2]), logs
        self.bench.expect_equal(run, "pretrain", logs)

    def refusals(self):
        """What cannot run is refused before it is queued."""
        for kind, sbatch, more, part in (
                ("pretrain", ("--ntasks=3",), [], "parallel.ep"),
                ("pretrain", ("--ntasks=2",), ["--model.layer=3"], "layers"),
                ("distill", ("--ntasks=5",), [], "2 ranks"), ("pretraining", (), [], "no kind")):
            words = self.bench.words("distill" if kind == "distill" else "pretrain", self.run_of("refused"))
            done = self.bench.submit(kind, sbatch, words + more)
            assert done.returncode == 64, (kind, sbatch, done)
            assert part in done.stderr, done.stderr
            assert not done.stdout.strip(), done.stdout

    def preemption(self):
        """A job of a higher partition takes the nodes: the ranks save within the grace time."""
        run = self.run_of("preempted")
        (job,) = self.bench.queue("pretrain", run)
        self.bench.wait_for_step(run, 8)
        other = self.cluster.run("sbatch", "--parsable", "--partition=high", "--nodes=2", "--exclusive", "--time=1",
                                 "--output=/dev/null", "--wrap=sleep 1").strip()
        self.bench.expect_finished(job, run, "pretrain")
        assert self.cluster.job(other)["JobState"] == "COMPLETED", self.cluster.job(other)
        assert "STOPPED after step 9 (SIGTERM)" in self.bench.log(job), self.bench.log(job)

    def node_failure(self):
        """A node dies: the job goes on from its last checkpoint when the node is back."""
        run = self.run_of("failed")
        (job,) = self.bench.queue("pretrain", run, fault="train.step:*:9:sleep=30",
                                  options={"checkpoint.async": "false"})
        self.bench.wait_for_step(run, 8)
        self.cluster.kill_node("n1")
        self.cluster.run("scontrol", "update", "nodename=n1", "state=down", "reason=test")
        self.cluster.start_node("n1")
        self.bench.expect_finished(job, run, "pretrain")


class SlurmCases(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.temporary = tempfile.TemporaryDirectory(prefix="athanor_slurm_")
        cls.bench = Bench(cls.temporary.name)
        cls.bench.cluster.__enter__()
        cls.cases = Cases(cls.bench)
        cls.pool = concurrent.futures.ThreadPoolExecutor(max_workers=6)
        cls.results = {name: cls.pool.submit(cls.timed, name) for name in Cases.shared if cls.is_wanted(name)}

    wanted = None

    @classmethod
    def is_wanted(cls, name):
        return cls.wanted is None or f"test_{name}" in cls.wanted

    @classmethod
    def timed(cls, name):
        start = time.monotonic()
        getattr(cls.cases, name)()
        return time.monotonic() - start

    @classmethod
    def tearDownClass(cls):
        cls.pool.shutdown(cancel_futures=True)
        cluster = cls.bench.cluster
        daemons = [cluster.daemon(name) for name in ("munged", "slurmctld", "n0", "n1")]
        cluster.__exit__()
        cls.temporary.cleanup()
        assert not cluster.left, f"processes of jobs were left: {cluster.left}"
        assert not cluster.path.exists() and not any(is_alive(pid) for pid in daemons)


def add_test(name, is_shared):
    def test(self):
        if is_shared:
            took = self.results[name].result()
        else:
            concurrent.futures.wait(self.results.values())
            took = self.timed(name)
        print(f"{took:.0f} s ", end="", file=sys.stderr, flush=True)

    test.__doc__ = getattr(Cases, name).__doc__
    # unittest goes by name: those that want the nodes for themselves come last.
    setattr(SlurmCases, f"test_{name}", test)


for each in Cases.shared:
    add_test(each, True)
for each in Cases.alone:
    add_test(each, False)


def main():
    global PROGRAM
    PROGRAM = sys.argv[1]
    missing = missing_binaries()
    if missing:
        print(f"skipped: {', '.join(missing)} are not installed (scripts/install_dependencies.sh --dev)")
        sys.exit(77)
    names = [argument for argument in sys.argv[2:] if argument.startswith("SlurmCases.")]
    if names:
        SlurmCases.wanted = {name.split(".", 1)[1] for name in names}
    order = [*Cases.shared, *Cases.alone]
    suite = unittest.TestSuite(SlurmCases(f"test_{name}") for name in order if SlurmCases.is_wanted(name))
    done = unittest.TextTestRunner(verbosity=2).run(suite)
    sys.exit(0 if done.wasSuccessful() else 1)


if __name__ == "__main__":
    main()
