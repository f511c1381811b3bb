#!/usr/bin/env python3
"""The program in surroundings that fail: closed pipes, full logs, folders that vanish, data that is damaged or short.

    environment_cases.py PROGRAM [unittest arguments]

Each test is a case of the catalogue of faults; its number stands in the docstring. 2 ranks each.
"""
import json
import os
import pathlib
import shutil
import struct
import subprocess

from athanor_runs import AthanorCase, losses, main, mount_tmpfs

SHORT = {"train.steps": 8, "checkpoint.every": 4, "parallel.ep": 2}


class EnvironmentCases(AthanorCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.reference = cls.root / "reference"
        done = cls.athanor.train(cls.reference, **SHORT)
        assert done.code == 0, done.err

    def expect_as_undisturbed(self, run):
        self.assertEqual(losses(run), losses(self.reference))

    def launch(self, run, shell_words="", environment=None):
        """The job under a shell, which closes or redirects what it says."""
        command = self.athanor.command(2, *self.athanor.train_words(run, **SHORT))
        script = " ".join(f"'{word}'" for word in command) + " " + shell_words
        return subprocess.run(["bash", "-o", "pipefail", "-c", script], capture_output=True, text=True, timeout=120,
                              env=environment or self.athanor.environment(), check=False)

    # --- 28 ---------------------------------------------------------------------------------------------------
    def test_case_28_nobody_reads(self):
        """28: stdin closed; stdout and stderr a pipe whose reader leaves after one line; both closed."""
        for number, words in enumerate(("<&-", "2>&1 | head -n 1", "2>/dev/full >/dev/full")):
            with self.subTest(words=words):
                run = self.root / f"unread-{number}"
                self.launch(run, words)
                self.expect_as_undisturbed(run)

    def test_case_28_one_process_without_a_launcher(self):
        """28: the same without mpirun in between, which reads what its ranks say."""
        words = self.athanor.train_words(self.root / "alone-reference", **{**SHORT, "parallel.ep": 1})
        self.assertEqual(self.athanor.run(*words).code, 0)
        for number, closed in enumerate(("<&- >&- 2>&-", "2>&1 | head -n 1", "2>/dev/full >/dev/full")):
            with self.subTest(closed=closed):
                run = self.root / f"alone-{number}"
                words = self.athanor.train_words(run, **{**SHORT, "parallel.ep": 1})
                script = " ".join(f"'{word}'" for word in self.athanor.command(1, *words)) + " " + closed
                done = subprocess.run(["bash", "-c", script + ("; exit ${PIPESTATUS[0]}" if "|" in closed else "")],
                                      timeout=120, env=self.athanor.environment(), stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, check=False)
                self.assertEqual(done.returncode, 0)
                self.assertEqual(losses(run), losses(self.root / "alone-reference"))

    def test_case_28_full_log(self):
        """28: log and metrics have no room: their lines are counted, nothing else changes."""
        run = self.root / "full-log"
        run.mkdir()
        for name in ("log.txt", "metrics.jsonl"):
            (run / name).symlink_to("/dev/full")
        done = self.athanor.train(run, **SHORT)
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("metrics.jsonl could not be written", done.err)
        self.assertIn("log line could not be written", done.err)
        diff = self.athanor.checkpoint("diff", f"--from={run}", f"--to={self.reference}")
        self.assertEqual(diff.json()["state"], {}, diff.out)

    def test_case_28_no_home_plain_locale(self):
        """28: HOME unset, LANG=C."""
        environment = {name: value for name, value in self.athanor.environment().items()
                       if name != "HOME" and not name.startswith("LC_")}
        run = self.root / "homeless"
        done = self.launch(run, environment={**environment, "LANG": "C"})
        self.assertEqual(done.returncode, 0, done.stderr)
        self.expect_as_undisturbed(run)

    # --- 11, and a folder that vanishes -----------------------------------------------------------------------
    def test_case_11_read_only_folder(self):
        """11: a run folder on a read-only file system: 73 before anything is built."""
        disk = self.root / "read-only"
        if reason := mount_tmpfs(disk, "ro,size=100k"):
            self.skipTest(f"no file system could be mounted: {reason}")
        try:
            done = self.athanor.train(disk / "run", **SHORT)
            self.assertEqual(done.code, 73, done.err)
            self.assertIn("run.dir=", done.err)
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def test_the_run_folder_is_removed_under_the_job(self):
        """Extra: reported, with an exit code of ours; no hang, no crash."""
        run = self.root / "removed"
        process = subprocess.Popen(
            self.athanor.command(2, *self.athanor.train_words(run, **{**SHORT, "train.steps": 2000})),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=self.athanor.environment())
        while not (run / "checkpoints" / "step-00000004").is_dir():
            self.assertIsNone(process.poll())
        shutil.rmtree(run, ignore_errors=True)
        _, err = process.communicate(timeout=120)
        self.assertEqual(process.returncode, 74, err)
        self.assertIn("could not be written", err)

    # --- 17, 18: data -----------------------------------------------------------------------------------------
    def data_copy(self, name):
        prefix = self.root / name
        for suffix in (".bin", ".idx"):
            shutil.copy(f"{self.athanor.folder / 'data'}{suffix}", f"{prefix}{suffix}")
        return prefix

    def refused(self, prefix, code, *reasons, **options):
        done = self.athanor.train(self.root / f"run-{prefix.name}", **{**SHORT, "data.train": prefix, **options})
        self.assertEqual(done.code, code, done.err)
        for reason in reasons:
            self.assertIn(reason, done.err)

    def test_case_17_damaged_ids(self):
        """17: ids cut off, an id beyond the vocabulary, an index of another length: 65 naming file and value."""
        short = self.data_copy("short")
        os.truncate(f"{short}.bin", os.path.getsize(f"{short}.bin") // 2)
        self.refused(short, 65, "short")
        beyond = self.data_copy("beyond")
        with open(f"{beyond}.bin", "r+b") as file:
            file.seek(2000)
            file.write(struct.pack("<H", 60000))
        self.refused(beyond, 65, "60000", "model.vocab_size")
        index = self.data_copy("index")
        os.truncate(f"{index}.idx", os.path.getsize(f"{index}.idx") - 3)
        self.refused(index, 65, "index.idx")

    def test_case_18_too_little_data(self):
        """18: no tokens at all; fewer samples than a batch: a clear message on every rank count, no hang."""
        for ranks in (2, 3):
            with self.subTest(ranks=ranks):
                self.refused(self.tokenized("nothing", ""), 66 if ranks == 0 else 65, "nothing", ranks=ranks, **{
                    "parallel.ep": 1})
                self.refused(self.tokenized("few", "a few words"), 65, "batch", ranks=ranks, **{"parallel.ep": 1})

    def tokenized(self, name, text):
        """Token files of a text; of none, with an index that holds nothing."""
        prefix = self.root / name
        if text:
            source = self.root / f"{name}.txt"
            source.write_text(text)
            done = self.athanor.run("tokenize", f"--input={source}", f"--output={prefix}",
                                    f"--tokenizer={self.athanor.tokenizer}")
            self.assertEqual(done.code, 0, done.err)
        else:
            pathlib.Path(f"{prefix}.bin").write_bytes(b"")
            pathlib.Path(f"{prefix}.idx").write_bytes(b"MMIDIDX\0\0" + struct.pack("<QBQQ", 1, 8, 0, 1) +
                                                      struct.pack("<q", 0))
        return prefix

    def test_case_18_an_empty_file_among_others(self):
        """18: a file without tokens among others is no reason to stop, or named; nobody hangs."""
        both = f"{self.tokenized('void', '')},{self.athanor.folder / 'data'}"
        run = self.root / "with-void"
        done = self.athanor.train(run, **{**SHORT, "data.train": both})
        self.assertIn(done.code, (0, 65), done.err)
        if done.code == 65:
            self.assertIn("void", done.err)

    def test_results_are_whole_when_the_reader_stays(self):
        """28, the other side: the last line of stdout is the result."""
        done = self.athanor.train(self.root / "read", **SHORT)
        self.assertEqual(json.loads(done.out.splitlines()[-1])["steps"], 8)


if __name__ == "__main__":
    main()
