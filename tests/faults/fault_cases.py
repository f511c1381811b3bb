#!/usr/bin/env python3
"""Checkpoints against kills, damage, full disks and wrong configurations: contract 5, end to end.

    fault_cases.py PROGRAM [unittest arguments]

Each test is a case of a catalogue of faults; its number stands in the docstring. All go on from one base run that was
killed after step 20 with checkpoints of steps 6, 12 and 18, and end by comparing with an uninterrupted run.
"""
import json
import os
import shutil
import subprocess
import time

from athanor_runs import AthanorCase, checkpoints, copy, losses, main, mount_tmpfs

STEPS = 24
SCHEDULE = {"train.steps": STEPS, "checkpoint.every": 6, "parallel.ep": 2}


def flip(path, offset, bit=3):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


class FaultCases(AthanorCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.reference = cls.root / "reference"
        done = cls.train(cls.reference)
        assert done.code == 0, done.err
        cls.base = cls.root / "base"
        # Waiting for each save: what is there when the kill comes does not depend on how fast the machine is.
        done = cls.train(cls.base, fault="train.step:1:21:kill", checkpoint__async="false")
        assert done.code != 0
        assert [name for name in checkpoints(cls.base) if name.startswith("step")] == [
            "step-00000006", "step-00000012", "step-00000018"], (checkpoints(cls.base), done.err)

    @classmethod
    def train(cls, run, ranks=2, fault="", **options):
        return cls.athanor.train(run, ranks=ranks, fault=fault, **{**SCHEDULE, **options})

    def damaged(self):
        """A copy of the base run, and the folder of its newest checkpoint."""
        run = copy(self.base, self.root / "case")
        return run, run / "checkpoints" / "step-00000018"

    def expect_as_uninterrupted(self, run):
        self.assertEqual(losses(run), losses(self.reference))
        diff = self.athanor.checkpoint("diff", f"--from={run}", f"--to={self.reference}")
        self.assertEqual(diff.code, 0, diff.out)
        self.assertTrue(diff.json()["tensors_equal"])
        self.assertEqual(diff.json()["state"], {})
        hidden = [name for name in checkpoints(run) if name.startswith(".tmp") or name.startswith(".trash")]
        self.assertEqual(hidden, [])

    def expect_resume(self, run, step, **options):
        done = self.train(run, **options)
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual(done.json()["first_step"], step, done.err)
        self.expect_as_uninterrupted(run)
        return done

    def expect_fallback(self, run, folder, *reasons):
        """The newest checkpoint is refused with the reasons, marked, and the one before it is used."""
        done = self.expect_resume(run, 12)
        for reason in reasons:
            self.assertIn(reason, done.err)
        return done

    # --- kills ------------------------------------------------------------------------------------------------
    def test_case_01_kill_between_collectives(self):
        """1: kill -9 of one rank in training."""
        run = copy(self.base, self.root / "case")
        done = self.expect_resume(run, 18)
        self.assertIn("cut", done.err)  # steps 19 and 20 were in metrics.jsonl

    def kill_and_resume(self, fault, newest, resumed):
        run = self.root / "killed"
        shutil.rmtree(run, ignore_errors=True)
        done = self.train(run, fault=fault)
        self.assertNotEqual(done.code, 0)
        names = [name for name in checkpoints(run) if name.startswith("step")]
        self.assertEqual(names[-1] if names else "", newest, done.err)
        listed = self.athanor.checkpoint("list", f"--from={run}").json()["checkpoints"]
        self.assertTrue(all(entry["status"] == "whole" for entry in listed), listed)
        self.expect_resume(run, resumed)

    def test_case_02_kill_during_the_write(self):
        """2: kill -9 while the payload is written."""
        self.kill_and_resume("checkpoint.write:1:2:kill", "step-00000006", 6)

    def test_case_03a_kill_before_complete(self):
        """3: kill -9 of rank 0 before the marker."""
        self.kill_and_resume("checkpoint.before_complete:0:2:kill", "step-00000006", 6)

    def test_case_03b_kill_between_complete_and_rename(self):
        """3: kill -9 of rank 0 between COMPLETE and rename."""
        self.kill_and_resume("checkpoint.before_rename:0:2:kill", "step-00000006", 6)

    def test_case_03c_kill_between_rename_and_latest(self):
        """3: kill -9 of rank 0 between rename and `latest`."""
        self.kill_and_resume("checkpoint.before_latest:0:2:kill", "step-00000012", 12)

    def test_case_04_kill_during_rotation(self):
        """4: kill -9 while an old one is removed."""
        run = self.root / "rotated"
        done = self.train(run, fault="checkpoint.during_rotation:0:1:kill", checkpoint__keep=2)
        self.assertNotEqual(done.code, 0)
        whole = [entry for entry in self.athanor.checkpoint("list", f"--from={run}").json()["checkpoints"]
                 if entry["status"] == "whole"]
        self.assertGreaterEqual(len(whole), 2, done.err)
        self.expect_resume(run, 18, checkpoint__keep=2)

    # --- damage -----------------------------------------------------------------------------------------------
    def test_case_05_truncated_shard(self):
        """5: a shard shorter by one byte, of 512 bytes, empty."""
        for size in (-1, 512, 0):
            run, newest = self.damaged()
            shard = newest / "rank-00001.h5"
            os.truncate(shard, size if size >= 0 else shard.stat().st_size - 1)
            with self.subTest(size=size):
                done = self.expect_fallback(run, newest, "rank-00001.h5", "NOT LOADED")
                self.assertTrue((newest / "BAD").exists() or (run / "checkpoints").exists(), done.err)

    def test_case_05b_none_left(self):
        """5: every checkpoint damaged: 65, and no fresh start."""
        run, _ = self.damaged()
        for folder in (run / "checkpoints").glob("step-*"):
            os.truncate(folder / "rank-00000.h5", 100)
        done = self.train(run)
        self.assertEqual(done.code, 65, done.err)
        self.assertIn("start afresh", done.err)

    def test_case_06_flipped_bit_in_a_tensor(self):
        """6: one bit of a tensor."""
        run, newest = self.damaged()
        shard = newest / "rank-00000.h5"
        flip(shard, shard.stat().st_size // 2)
        verify = self.athanor.checkpoint("verify", f"--from={newest}")
        self.assertEqual(verify.code, 65, verify.out)
        self.assertIn("teacher/", verify.out)
        self.assertIn("rank-00000.h5", verify.out)
        self.expect_fallback(run, newest, "checksum")

    def test_case_07_flipped_bits_in_metadata(self):
        """7: one bit of the manifest, of COMPLETE, of a superblock."""
        for name, offset in (("manifest.json", 100), ("COMPLETE", 5), ("rank-00000.h5", 20)):
            run, newest = self.damaged()
            flip(newest / name, offset)
            with self.subTest(file=name):
                self.expect_resume(run, 12)

    def test_case_08_hole_in_a_tensor(self):
        """8: zeros where data was, size unchanged."""
        run, newest = self.damaged()
        shard = newest / "rank-00001.h5"
        size = shard.stat().st_size
        with open(shard, "r+b") as file:
            file.seek(size // 2 // 4096 * 4096)
            file.write(bytes(4096))
        self.assertEqual(shard.stat().st_size, size)
        self.expect_fallback(run, newest, "checksum")

    def test_case_09_missing_swapped_foreign_shards(self):
        """9: a shard missing, two swapped, one from another step."""
        def missing(newest):
            (newest / "rank-00001.h5").unlink()

        def swapped(newest):
            a, b = newest / "rank-00000.h5", newest / "rank-00001.h5"
            a.rename(newest / "x")
            b.rename(a)
            (newest / "x").rename(b)

        def foreign(newest):
            shutil.copy(newest.parent / "step-00000012" / "rank-00001.h5", newest / "rank-00001.h5")

        for damage in (missing, swapped, foreign):
            run, newest = self.damaged()
            damage(newest)
            with self.subTest(damage=damage.__name__):
                self.expect_fallback(run, newest, "rank-0000")

    def test_case_16_newer_format(self):
        """16: a checkpoint of a newer version is refused by number."""
        run, newest = self.damaged()
        manifest = json.loads((newest / "manifest.json").read_text())
        keys = [key for key in manifest if "version" in key]
        self.assertTrue(keys, list(manifest))
        text = (newest / "manifest.json").read_text().replace(f'"{keys[0]}":1', f'"{keys[0]}":7').replace(
            f'"{keys[0]}": 1', f'"{keys[0]}": 7')
        (newest / "manifest.json").write_text(text)
        (newest / "COMPLETE").unlink()
        done = self.athanor.checkpoint("show", f"--from={newest}")
        self.assertEqual(done.code, 65, done.err)

    # --- other layouts and configurations -----------------------------------------------------------------------
    def test_case_12_other_numbers_of_ranks(self):
        """12, 13: 2 ranks -> 1, 3 and 4, other ep and tp; the samples come in the same order."""
        for ranks, options in ((1, {"parallel.ep": 1}), (3, {"parallel.ep": 1, "optim.zero": 0}),
                               (4, {"parallel.ep": 4, "parallel.tp": 2})):
            run, _ = self.damaged()
            with self.subTest(ranks=ranks):
                done = self.train(run, ranks=ranks, **options)
                self.assertEqual(done.code, 0, done.err)
                self.assertEqual(done.json()["first_step"], 18)
                ours, theirs = losses(run), losses(self.reference)
                self.assertEqual(sorted(ours), sorted(theirs))
                for step in range(19, STEPS + 1):
                    self.assertAlmostEqual(ours[step][0], theirs[step][0], delta=2e-3 * theirs[step][0])

    def test_case_12b_impossible_layouts(self):
        """12: experts that do not divide are refused with the legal sizes."""
        run, _ = self.damaged()
        done = self.train(run, ranks=3, **{"parallel.ep": 3})
        self.assertEqual(done.code, 64, done.err)
        self.assertIn("parallel.ep", done.err)

    def test_case_14_other_model(self):
        """14: another model is refused with a table; another rate is noted."""
        run, _ = self.damaged()
        done = self.train(run, **{"moe.top_k": 3, "model.rope_theta": 5000})
        self.assertEqual(done.code, 64, done.err)
        for word in ("moe.top_k", "model.rope_theta", "checkpoint 2", "now 3"):
            self.assertIn(word, done.err)
        done = self.train(run, **{"optim.lr": 1e-3})
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("optim.lr", done.err)

    def test_case_15_other_data(self):
        """15: other token files or another tokenizer are refused unless allowed."""
        run, _ = self.damaged()
        other = self.root / "other"
        done = self.athanor.run("tokenize", f"--input={self.athanor.folder / 'text.txt'},{__file__}",
                                f"--output={other}", f"--tokenizer={self.athanor.tokenizer}")
        self.assertEqual(done.code, 0, done.err)
        done = self.train(run, **{"data.train": other})
        self.assertEqual(done.code, 64, done.err)
        self.assertIn("data.train", done.err)
        done = self.train(run, **{"data.train": other, "run.allow_mismatch": "data.train"})
        self.assertEqual(done.code, 0, done.err)

    def test_resume_paths(self):
        """A path that is missing, a file, or outside; `never` beside checkpoints; a path to another run."""
        run, newest = self.damaged()
        done = self.train(run, **{"run.resume": run / "nothing"})
        self.assertEqual(done.code, 66, done.err)
        done = self.train(run, **{"run.resume": newest / "manifest.json"})
        self.assertEqual(done.code, 66, done.err)
        done = self.train(run, **{"run.resume": "never"})
        self.assertEqual(done.code, 73, done.err)
        done = self.train(run, **{"run.resume": run / "checkpoints" / "step-00000006"})
        self.assertEqual(done.code, 73, done.err)
        self.assertIn("later checkpoints", done.err)
        fresh = self.root / "elsewhere"
        done = self.train(fresh, **{"run.resume": newest})
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual(done.json()["first_step"], 18)
        diff = self.athanor.checkpoint("diff", f"--from={fresh}", f"--to={self.reference}")
        self.assertEqual(diff.code, 0, diff.out)

    # --- two jobs, failing saves ----------------------------------------------------------------------------------
    def test_case_27_two_jobs_in_one_folder(self):
        """27: the second job exits with 73 and names the holder; the lock of a killed job is taken over."""
        run = self.root / "shared"
        words = self.athanor.command(2, *self.athanor.train_words(run, **{**SCHEDULE, "train.steps": 100000,
                                                                          "checkpoint.every": 0}))
        with subprocess.Popen(words, env=self.athanor.environment(), stdout=subprocess.DEVNULL,
                              stderr=subprocess.DEVNULL) as first:
            try:
                deadline = time.monotonic() + 60
                while not (run / "metrics.jsonl").exists() and time.monotonic() < deadline:
                    time.sleep(0.1)
                done = self.train(run)
                self.assertEqual(done.code, 73, done.err)
                self.assertIn("pid", done.err.lower().replace("process", "pid"))
                holder = (run / ".lock").read_text()
                self.assertTrue(holder)
            finally:
                subprocess.run(["pkill", "-KILL", "-f", str(run)], check=False)
                first.wait(timeout=60)
        done = self.train(run)
        self.assertEqual(done.code, 0, done.err)

    def test_case_29_a_save_fails_in_the_background(self):
        """29: the writing thread throws: retried after the next step, or stop with 74."""
        run = self.root / "retried"
        done = self.train(run, fault="checkpoint.write:1:2:throw")
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("could not be written", done.err)
        self.assertIn("rank 1", done.err)
        self.expect_as_uninterrupted(run)
        run = self.root / "stopped"
        done = self.train(run, fault="checkpoint.write:1:2:throw", **{"checkpoint.on_error": "stop"})
        self.assertEqual(done.code, 74, done.err)
        self.assertEqual([name for name in checkpoints(run) if name.startswith("step")], ["step-00000006"])

    def test_case_29b_exit_while_saving(self):
        """29: the job ends while a slow save is in flight: it waits for it."""
        run = self.root / "slow"
        done = self.train(run, fault="checkpoint.write:0:4:sleep=2")
        self.assertEqual(done.code, 0, done.err)
        self.expect_as_uninterrupted(run)

    def test_case_10_full_disk(self):
        """10: the disk is full: training goes on, what was saved stays, nothing half-written stays."""
        disk = self.root / "disk"
        if reason := mount_tmpfs(disk, "size=2500k"):
            self.skipTest(f"no small file system could be mounted: {reason}")
        try:
            run = self.root / "full"
            done = self.train(run, **{"checkpoint.dir": disk, "checkpoint.keep": 9})
            self.assertEqual(done.code, 74, done.err)
            self.assertIn("could not be written", done.err)
            names = sorted(entry.name for entry in disk.iterdir())
            whole = [name for name in names if name.startswith("step")]
            self.assertTrue(whole, done.err)
            self.assertEqual([name for name in names if name.startswith(".tmp")], [])
            for name in whole:
                verify = self.athanor.checkpoint("verify", f"--from={disk / name}")
                self.assertEqual(verify.code, 0, verify.out + verify.err)
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def test_case_11_run_folder_is_a_file(self):
        """11: the run folder cannot be made."""
        path = self.root / "file"
        path.write_text("")
        done = self.train(path / "run")
        self.assertEqual(done.code, 73, done.err)


if __name__ == "__main__":
    main()
