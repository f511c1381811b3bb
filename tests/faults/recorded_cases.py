#!/usr/bin/env python3
"""Signals on disk end to end: recorded while a student trains, replayed at any layout, kills, and what is refused.

    recorded_cases.py PROGRAM [unittest arguments]
"""
import json
import os
import shutil
import signal
import struct
import subprocess
import time

from athanor_runs import AthanorCase, main, step_lines

MODEL = {
    "model.layers": 2, "model.hidden": 24, "model.heads": 4, "model.kv_heads": 2, "model.head_dim": 8,
    "model.max_seq": 24, "batch.global": 12, "batch.seq": 17, "optim.lr": 3e-3, "run.seed": 3, "train.steps": 8,
    "train.log_every": 1000, "distill.top_k": 8, "distill.samples": 10, "distill.deadline_s": 60,
    "distill.phases": "feature_alignment:0.25,soft_label:0.375,joint:0.375", "student.moe.experts": 0,
    "student.model.hidden": 16, "student.model.ffn": 24,
}
TEACHER = {"moe.experts": 8, "moe.top_k": 2, "moe.ffn": 12}
FIGURES = ("loss", "grad_norm", "kd_loss", "hidden_loss", "attention_loss", "teacher_loss", "total_loss")


class RecordedCases(AthanorCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.data = {"data.train": cls.athanor.folder / "data", "data.tokenizer": cls.athanor.tokenizer}
        cls.signals = cls.root / "signals"
        cls.live = cls.record("live", cls.signals)

    @classmethod
    def distill(cls, name, ranks, fault="", **options):
        run = cls.root / name
        values = {**MODEL, **cls.data, "run.dir": run, **options}
        words = ["distill", "--json", *(f"--{key}={value}" for key, value in values.items() if value is not None)]
        return run, cls.athanor.run(*words, ranks=ranks, fault=fault, timeout=120)

    @classmethod
    def record(cls, name, folder, teacher=1, student=1, **options):
        run, done = cls.distill(name, teacher + student, **{**TEACHER, "teacher.ranks": teacher,
                                "student.ranks": student, "distill.record": folder, **options})
        assert done.code == 0, done.err
        return run

    def replay(self, name, ranks=1, folder=None, **options):
        run, done = self.distill(name, ranks, **{"distill.source": folder or self.signals, **options})
        self.assertEqual(done.code, 0, done.err)
        return run, done

    @staticmethod
    def curve(run):
        steps = step_lines(run, "student")
        assert [line["step"] for line in steps] == list(range(1, len(steps) + 1)), "a step is missing or repeated"
        return [[line.get(figure) for figure in FIGURES] for line in steps]

    def expect_close(self, ours, theirs, relative, steps=None, absolute=0):
        """Within `relative` of the figure or `absolute`, the larger: a small loss keeps the rounding of its terms."""
        self.assertEqual(len(ours), len(theirs))
        for step, (a, b) in enumerate(list(zip(ours, theirs))[:steps], 1):
            for x, y, figure in zip(a, b, FIGURES):
                if y is not None:
                    allowed = max(relative * abs(y), absolute, 1e-18)
                    self.assertAlmostEqual(x, y, delta=allowed, msg=f"step {step}: {figure}")

    def expect_same_student(self, a, b):
        """Equal bits: parameters, moments, counters."""
        diff = self.athanor.checkpoint("diff", f"--from={a}", f"--to={b}").json()
        others = [name for part in ("state", "tensors") for name in diff[part] if name.startswith("student")]
        self.assertEqual(others, [])

    @staticmethod
    def blocks(folder):
        """The data files without their heads, which name the recording."""
        return {path.name: path.read_bytes()[32:] for path in sorted(folder.glob("*.bin"))}

    def refuse(self, name, code, words, ranks=1, **options):
        _, done = self.distill(name, ranks, **{"distill.source": self.signals, **options})
        self.assertEqual(done.code, code, f"{options}: {done.err}")
        for word in words:
            self.assertIn(word, done.err)
        return done

    def test_replay_is_the_live_run(self):
        """The same settings without a teacher: the same bits; and once more from the same folder."""
        reference = self.curve(self.live)
        before = self.blocks(self.signals)
        for name in ("again", "and-again"):
            run, _ = self.replay(name)
            self.assertEqual(self.curve(run), reference)
            self.assertFalse((run / "teacher").exists())
            self.expect_same_student(run, self.live)
        self.assertEqual(self.blocks(self.signals), before)

    def test_everything_that_flows_is_recorded(self):
        """Draws, rounded states with scales, attention, measured full logits, temperatures of domains."""
        for suffix in (".bin", ".idx"):
            shutil.copy(f"{self.data['data.train']}{suffix}", self.root / f"second{suffix}")
        options = {"distill.codec": "sampled", "distill.hidden_wire": "fp8", "distill.attention_layers": "1:0",
                   "distill.hidden_layers": 2, "distill.gap_every": 3, "distill.gap_fraction": 0.1,
                   "data.train": f"{self.data['data.train']}:1:a,{self.root / 'second'}:2:b",
                   "distill.temperature_by_domain": "a:1.5", "distill.maturity_gate": "true"}
        live = self.record("all", self.root / "all-signals", teacher=2, student=2, **options)
        run, _ = self.replay("all-again", ranks=2, folder=self.root / "all-signals", **options)
        self.assertEqual(self.curve(run), self.curve(live))
        self.expect_same_student(run, live)

    def test_any_layout_replays(self):
        """f64: recorded on 2 ranks that divide vocabulary and heads, replayed on 1, 2, 3 and 4 of any layout."""
        exact = {"precision.compute": "f64", "distill.phases": "joint", "distill.attention_layers": 1,
                 "train.steps": 4}
        for codec in ("full", "hidden"):
            options = {**exact, "distill.codec": codec}
            folder = self.root / f"{codec}-signals"
            live = self.record(f"{codec}-live", folder, student=2, **options, **{"student.parallel.tp": 2})
            for ranks, layout in ((1, {"student.batch.micro": 3}), (2, {"student.parallel.tp": 2}),
                                  (3, {"student.batch.micro": 2}), (4, {"student.parallel.tp": 2})):
                with self.subTest(codec=codec, ranks=ranks):
                    run, _ = self.replay(f"{codec}-{ranks}", ranks=ranks, folder=folder, **options, **layout)
                    self.expect_close(self.curve(run), self.curve(live), 1e-9)

    def test_frozen_teacher_at_another_batch(self):
        """Samples are found by their place in training order; the head is recorded once."""
        exact = {"precision.compute": "f64", "distill.phases": "joint", "distill.codec": "hidden",
                 "distill.temperature": 2, "distill.temperature_step": 0}
        source = self.record("frozen-source", self.root / "unused", **exact, **{"train.steps": 2})
        frozen = {**exact, "teacher.init": source, "teacher.frozen": "true"}
        folder = self.root / "frozen-signals"
        self.record("frozen-12", folder, **frozen)
        head = 400 * MODEL["model.hidden"] * 8
        states = MODEL["train.steps"] * 12 * 17 * (2 * MODEL["model.hidden"] + 2) * 8
        written = sum(path.stat().st_size for path in folder.glob("*.bin"))
        self.assertGreater(written, head + states)
        self.assertLess(written, 2 * head + states)
        for batch, steps in ((6, 16), (18, 5)):
            with self.subTest(batch=batch):
                options = {"batch.global": batch, "train.steps": steps}
                live = self.record(f"frozen-{batch}-live", self.root / f"unused-{batch}", **frozen, **options)
                run, _ = self.replay(f"frozen-{batch}", ranks=2, folder=folder, **exact, **options)
                self.expect_close(self.curve(run), self.curve(live), 1e-9)

    def test_recorded_temperatures(self):
        """What is recorded besides the schedule serves another one, as if the teacher had been there."""
        folder = self.root / "warm-signals"
        self.record("warm", folder, **{"distill.record_temperatures": "2,1.5"})
        other = {"distill.temperature": 2, "distill.temperature_step": 0}
        live = self.record("warm-live", self.root / "warm-unused", **other)
        run, _ = self.replay("warm-again", folder=folder, **other)
        self.assertEqual(self.curve(run), self.curve(live))
        self.refuse("cold", 64, ["distill.temperature", "3"], **{**other, "distill.source": folder,
                                                                 "distill.temperature": 3})

    def test_kill_while_recording(self):
        """kill -9 inside a block, before one, before an index; resumed, the recording is the uninterrupted one."""
        warm = {"distill.phases": "joint", "distill.temperature": 2, "distill.temperature_step": 0}
        options = {"student": 2, "checkpoint.every": 3, "checkpoint.async": "false", **warm}
        whole = self.record("whole", self.root / "whole-signals", **options)
        for name, fault in (("torn", "record.torn:1:5:kill"), ("block", "record.block:0:6:kill"),
                            ("index", "record.before_index:0:3:kill"), ("early", "record.torn:0:2:kill")):
            with self.subTest(name=name):
                folder = self.root / f"{name}-signals"
                words = {**TEACHER, "teacher.ranks": 1, "student.ranks": 2, "distill.record": folder,
                         **{key: value for key, value in options.items() if key != "student"}}
                _, done = self.distill(name, 3, fault=fault, **words)
                self.assertNotEqual(done.code, 0)
                if name == "torn":  # it serves the steps that it has
                    self.replay("part", folder=folder, **warm, **{"train.steps": 4})
                    self.refuse("too-far", 65, ["does not hold sample 48"], **warm, **{"distill.source": folder})
                run, done = self.distill(name, 3, **words)
                self.assertEqual(done.code, 0, done.err)
                self.assertEqual(self.blocks(folder), self.blocks(self.root / "whole-signals"))
                self.assertEqual(self.curve(run), self.curve(whole))
        # At another layout: other blocks, the same signals. A KL of 5e-4 is a difference of f32 terms near 5.
        run, done = self.replay("of-torn", folder=self.root / "torn-signals", **warm)
        self.expect_close(self.curve(run), self.curve(whole), 1e-4, steps=3, absolute=1e-6)

    def test_kill_while_replaying(self):
        """kill -9 of a rank, then resume: as if nothing had happened."""
        options = {"ranks": 2, "checkpoint.every": 3, "checkpoint.async": "false"}
        reference, _ = self.replay("steady", **options)
        words = {**options, "distill.source": self.signals}
        _, done = self.distill("killed", fault="replay.wait_step:1:6:kill", **words)
        self.assertNotEqual(done.code, 0)
        run, done = self.distill("killed", **words)
        self.assertEqual(done.code, 0, done.err)
        self.assertGreater(done.json()["student"]["first_step"], 0)
        self.assertEqual(self.curve(run), self.curve(reference))
        self.expect_same_student(run, reference)
        # Another recording is another run.
        other = self.root / "other-signals"
        self.record("other", other, **{"train.steps": 1})
        _, done = self.distill("killed", **{**words, "distill.source": other, "train.steps": 9})
        self.assertEqual(done.code, 64, done.err)
        self.assertIn("distill.source", done.err)

    def test_stop_while_replaying(self):
        """SIGTERM: the step is finished and saved, 75; the next job goes on."""
        reference, _ = self.replay("unstopped")
        values = {**MODEL, **self.data, "run.dir": self.root / "stopped", "distill.source": self.signals}
        words = ["distill", *(f"--{key}={value}" for key, value in values.items())]
        job = subprocess.Popen(self.athanor.command(1, *words), stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True,
                               env=self.athanor.environment("replay.wait_step:0:4:sleep=1.5"))
        metrics = self.root / "stopped/student/metrics.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("grad_norm") > 2):
            time.sleep(0.05)
        job.send_signal(signal.SIGTERM)
        _, err = job.communicate(timeout=60)
        self.assertEqual(job.returncode, 75, err)
        run, done = self.replay("stopped")
        self.assertGreater(done.json()["student"]["first_step"], 0)
        self.assertEqual(self.curve(run), self.curve(reference))

    def test_several_students(self):
        """They share a recording and its cuts: one whose save fails is saved again after a step that the first
        names."""
        options = {"student.ranks": None, "distill.students": "a,b", "student.a.ranks": 1, "student.b.ranks": 2,
                   "student.b.model.hidden": 32, "student.b.model.layers": 1, "checkpoint.every": 3,
                   "checkpoint.async": "false", "distill.hidden_layers": 1}
        run, done = self.distill("two", 3, fault="checkpoint.write:2:1:throw",
                                 **{"distill.source": self.signals, **options})
        self.assertEqual(done.code, 0, done.err)
        steps = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
        self.assertIn("step-00000004", steps, done.err)
        for student in ("a", "b"):
            self.assertEqual(len(step_lines(run, f"student.{student}")), MODEL["train.steps"])

    def test_read_by_the_page(self):
        """A reader written from docs/signal_files.md alone, of a recording by two writers."""
        folder = self.root / "page-signals"
        self.record("page", folder, student=2, **{"student.parallel.tp": 2, "distill.phases": "soft_label:1",
                                                  "train.steps": 3})
        index = (folder / "signals.index").read_bytes()
        magic, version, complete, size, count, table_size = struct.unpack_from("<8sIIQQQ", index)
        self.assertEqual((magic, version, complete), (b"ATHNIDX1", 1, 1))
        description = json.loads(index[56:56 + size])
        self.assertEqual(len(index), 56 + size + table_size)
        fields = description["fields"]
        samples, place = {}, 56 + size
        for _ in range(count):
            file, header_size, offset = struct.unpack_from("<IIq", index, place)
            header = index[place + 16:place + 16 + header_size]
            place += 16 + header_size
            data = (folder / f"signals-{file:05}.bin").read_bytes()
            self.assertEqual(data[:8], b"ATHNDAT1")
            self.assertEqual(struct.unpack_from("<IIQ", data, 8), (1, file, int(description["id"], 16)))
            self.assertEqual(data[offset:offset + header_size], header)
            first, rows, record_size, step_size, parts, temperatures = struct.unpack_from("<qqqqII", header, 64)
            self.assertEqual((header_size, step_size), (112 + 8 * temperatures + 48 * parts + 8 * rows, 0))
            for row in range(rows):
                record = offset + header_size + row * record_size
                for part in range(parts):
                    field, _, begin, _, positions, _, columns = struct.unpack_from(
                        "<IIqqqqq", header, 112 + 8 * temperatures + 48 * part)
                    letter = {"i32": "i", "f32": "f"}[fields[field]["type"]]
                    values = struct.unpack_from(f"<{positions * columns}{letter}", data, record + begin)
                    samples.setdefault(first + row, {}).setdefault(fields[field]["name"], []).extend(values)
        self.assertEqual(place, len(index))
        self.assertEqual(sorted(samples), list(range(3 * 12)))
        for sample in samples.values():
            self.assertEqual({name: len(values) for name, values in sample.items()},
                             {"tokens": 17, "labels": 17, "documents": 17, "ce": 17, "topk.ids": 17 * 8,
                              "topk.logits": 17 * 8, "topk.lse_1": 17, "topk.lse": 17, "topk.tail": 17})
            self.assertEqual(sample["labels"][:-1], sample["tokens"][1:])
            for token in range(17):
                ids, logits = (sample[f"topk.{name}"][8 * token:8 * token + 8] for name in ("ids", "logits"))
                self.assertEqual(len(set(ids)), 8)
                if sample["labels"][token] in ids:
                    logit = logits[ids.index(sample["labels"][token])]
                    self.assertAlmostEqual(sample["ce"][token], sample["topk.lse_1"][token] - logit, places=4)

    def test_refusals_of_other_runs(self):
        """Other data, order, tokenizer, teacher, signals, and settings of a teacher that is not there."""
        other_text = self.root / "other.txt"
        other_text.write_text("\n\n".join(f"Another text, line {i} of many." for i in range(3000)))
        other = {}
        for name, tokenizer in (("data", self.athanor.tokenizer), ("tokenized", self.root / "other.model")):
            done = self.athanor.run("tokenize", f"--input={other_text}", f"--output={self.root / name}-other",
                                    f"--tokenizer={tokenizer}", "--tokenize.vocab_size=300")
            self.assertEqual(done.code, 0, done.err)
            other[name] = self.root / f"{name}-other"
        train = self.data["data.train"]
        for options, code, words in (
                ({"data.train": other["data"]}, 65, ["data.train"]),
                ({"data.train": f"{train}:1:renamed"}, 65, ["data.train"]),
                ({"data.tokenizer": self.root / "other.model", "student.model.vocab_size": 400}, 65,
                 ["data.tokenizer"]),
                ({"run.seed": 4}, 64, ["run.seed=4"]),
                ({"batch.seq": 16}, 64, ["batch.seq=16"]),
                ({"data.reset_attention": "true"}, 64, ["data.reset_attention"]),
                ({"student.model.vocab_size": 500}, 64, ["vocab_size"]),
                ({"teacher.model.hidden": 48}, 64, ["teacher.model.hidden=48", "24"]),
                ({"teacher.ranks": 1}, 64, ["teacher.ranks=1", "no teacher runs"]),
                ({"teacher.frozen": "true"}, 64, ["teacher.frozen"]),
                ({"distill.record": self.root / "twice"}, 64, ["distill.record"]),
                ({"distill.record_temperatures": "2"}, 64, ["distill.record_temperatures"]),
                ({"distill.on_teacher_loss": "labels"}, 64, ["on_teacher_loss"]),
                ({"distill.codec": "sampled"}, 64, ["distill.codec", "sampled"]),
                ({"distill.top_k": 4}, 64, ["distill.codec", "topk"]),
                ({"distill.hidden_layers": "1:0"}, 64, ["distill.hidden_layers", "layer.0"]),
                ({"distill.hidden_wire": "bf16"}, 64, ["distill.hidden_layers", "bf16"]),
                ({"distill.attention_layers": 1}, 64, ["distill.attention_layers"]),
                ({"distill.temperature": 4.7}, 64, ["distill.temperature", "4.7"]),
                ({"distill.phases": "joint"}, 64, ["distill.codec", "for its samples"]),
                ({"distill.source": self.root / "nowhere"}, 66, ["nowhere"]),
                ({"distill.source": self.root}, 66, ["no recording"]),
                ({"distill.source": ""}, 64, ["distill.source"])):
            with self.subTest(options=options):
                self.refuse("refused", code, words, **options)

    def test_refusals_of_damage(self):
        """A record with another bit, a file that is shorter or missing, a newer format."""
        def flip(path, offset, value=None):
            content = bytearray(path.read_bytes())
            content[offset] = content[offset] ^ 1 if value is None else value
            path.write_bytes(content)

        for name, damage, words in (
                ("bit", lambda folder: flip(folder / "signals-00000.bin", 200000), ["signals-00000.bin", "checksum"]),
                ("short", lambda folder: os.truncate(folder / "signals-00000.bin", 200000), ["signals-00000.bin"]),
                ("lost", lambda folder: (folder / "signals-00000.bin").unlink(), ["signals-00000.bin", "missing"]),
                ("index", lambda folder: flip(folder / "signals.index", 3000), ["signals.index"]),
                ("newer", lambda folder: flip(folder / "signals.index", 8, 9), ["format version 9"])):
            with self.subTest(name=name):
                folder = self.root / f"damaged-{name}"
                shutil.copytree(self.signals, folder)
                damage(folder)
                self.refuse("damaged", 65, words, ranks=2 if name in ("bit", "short") else 1,
                            **{"distill.source": folder})
                self.assertFalse(list((self.root / "damaged").glob("checkpoints/step-*")))

    def test_one_run_one_recording(self):
        """Another run does not write into a folder that holds one; the same run, begun again, does."""
        _, done = self.distill("intruder", 2, **{**TEACHER, "teacher.ranks": 1, "distill.record": self.signals})
        self.assertEqual(done.code, 73, done.err)
        self.assertIn("another run", done.err)
        folder = self.root / "mine-signals"
        run = self.record("mine", folder, **{"train.steps": 2})
        before = self.blocks(folder)
        shutil.rmtree(run / "checkpoints")
        shutil.rmtree(run / "student")
        self.record("mine", folder, **{"train.steps": 2})
        self.assertEqual(self.blocks(folder), before)


if __name__ == "__main__":
    main()
