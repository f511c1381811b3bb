"""Small training runs of the program for the fault tests: data, launching, looking at what is left."""
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

MODEL = {
    "model.layers": 2, "model.hidden": 32, "model.heads": 4, "model.kv_heads": 2, "model.max_seq": 32,
    "moe.experts": 8, "moe.top_k": 2, "moe.ffn": 16, "batch.global": 12, "batch.seq": 32, "optim.lr": 3e-3,
    "run.seed": 3, "train.log_every": 1000,
}


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err

    def json(self):
        return json.loads(self.out.splitlines()[-1])


class Athanor:
    """The program, and token files to train on."""

    def __init__(self, program, folder):
        self.program = str(pathlib.Path(program).resolve())
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        text = self.folder / "text.txt"
        text.write_text("\n\n".join(path.read_text() for path in sorted((ROOT / "docs").glob("*.md"))))
        self.tokenizer = self.folder / "tokenizer.model"
        done = self.run("tokenize", f"--input={text}", f"--output={self.folder / 'data'}",
                        f"--tokenizer={self.tokenizer}", "--tokenize.vocab_size=400")
        assert done.code == 0, done.err

    def command(self, ranks, *words):
        launcher = ["mpirun", "--oversubscribe", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1", "-np",
                    str(ranks)]
        return (launcher if ranks > 1 else []) + [self.program, *map(str, words)]

    @staticmethod
    def environment(fault=""):
        return {**os.environ, "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                "OMP_NUM_THREADS": "1", "ATHANOR_FAULT": fault}

    def run(self, *words, ranks=1, fault="", timeout=120):
        done = subprocess.run(self.command(ranks, *words), capture_output=True, text=True, timeout=timeout,
                              env=self.environment(fault), check=False)
        return Result(done.returncode, done.stdout, done.stderr)

    def train_words(self, run, **options):
        values = {**MODEL, "data.train": self.folder / "data", "data.tokenizer": self.tokenizer, "run.dir": run,
                  **{key.replace("__", "."): value for key, value in options.items()}}
        return ["train", "--json", *(f"--{key}={value}" for key, value in values.items())]

    def train(self, run, ranks=2, fault="", timeout=120, **options):
        return self.run(*self.train_words(run, **options), ranks=ranks, fault=fault, timeout=timeout)

    def checkpoint(self, action, *words):
        return self.run("checkpoint", action, "--json", *words)


def mount_tmpfs(folder, options):
    """Makes the folder and mounts a file system of its own there; returns why that was not possible, or ""."""
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True,
                             text=True, check=False)
    return "" if mounted.returncode == 0 else mounted.stderr.strip() or "mount failed"


def checkpoints(run):
    """Names in a run's checkpoints folder, hidden ones too."""
    folder = pathlib.Path(run) / "checkpoints"
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


class AthanorCase(unittest.TestCase):
    """Tests of the program: a folder of their own, and token files in it. main() sets the program."""

    program = ""

    @classmethod
    def setUpClass(cls):
        temporary = tempfile.TemporaryDirectory(prefix=f"athanor_{cls.__name__}_")
        cls.addClassCleanup(temporary.cleanup)
        cls.root = pathlib.Path(temporary.name)
        cls.athanor = Athanor(cls.program, cls.root / "data")


def main():
    """Runs the tests of the calling file: PROGRAM [unittest arguments]."""
    AthanorCase.program = sys.argv[1]
    unittest.main(argv=[sys.argv[0], *sys.argv[2:]], verbosity=2)


def step_lines(run, role=""):
    """The lines of a run's metrics that are about a step."""
    lines = map(json.loads, (pathlib.Path(run) / role / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "grad_norm" in line]


def losses(run):
    """Step -> loss as printed (which reads back exactly)."""
    steps = step_lines(run)
    numbers = [line["step"] for line in steps]
    assert numbers == sorted(set(numbers)), f"steps are repeated or out of order: {numbers}"
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in steps}


def copy(run, to):
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(run, to, symlinks=True)
    return pathlib.Path(to)
