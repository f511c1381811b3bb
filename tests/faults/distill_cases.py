#!/usr/bin/env python3
"""Distillation end to end: codecs, layouts, windows, delays, kills, and what is refused.

    distill_cases.py PROGRAM [unittest arguments]
"""

from athanor_runs import AthanorCase, main, step_lines

BASE = {
    "model.layers": 2, "model.hidden": 24, "model.heads": 4, "model.kv_heads": 2, "model.head_dim": 8,
    "model.max_seq": 24, "moe.experts": 8, "moe.top_k": 2, "moe.ffn": 12, "student.moe.experts": 0,
    "student.model.hidden": 16, "student.model.ffn": 24, "batch.global": 12, "batch.seq": 17, "optim.lr": 3e-3,
    "run.seed": 3, "train.steps": 10, "train.log_every": 1000, "distill.top_k": 8, "distill.samples": 10,
    "distill.phases": "feature_alignment:0.2,soft_label:0.4,joint:0.4", "distill.deadline_s": 60,
}


class DistillCases(AthanorCase):
    @classmethod
    def distill(cls, name, teacher=1, student=1, fault="", **options):
        run = cls.root / name
        values = {**BASE, "data.train": cls.athanor.folder / "data", "data.tokenizer": cls.athanor.tokenizer,
                  "run.dir": run, "teacher.ranks": teacher, "student.ranks": student, **options}
        words = ["distill", "--json", *(f"--{key}={value}" for key, value in values.items() if value is not None)]
        return run, cls.athanor.run(*words, ranks=teacher + student, fault=fault, timeout=180)

    def run_well(self, name, **options):
        run, done = self.distill(name, **options)
        self.assertEqual(done.code, 0, done.err)
        return run, done

    @staticmethod
    def curve(run, role="student", figures=("loss", "grad_norm", "kd_loss", "hidden_loss", "attention_loss")):
        steps = step_lines(run, role)
        assert [line["step"] for line in steps] == list(range(1, len(steps) + 1)), "a step is missing or repeated"
        return [[line.get(figure) for figure in figures] for line in steps]

    def expect_close(self, ours, theirs, relative):
        self.assertEqual(len(ours), len(theirs))
        for step, (a, b) in enumerate(zip(ours, theirs), 1):
            for x, y in zip(a, b):
                if y is not None:
                    self.assertAlmostEqual(x, y, delta=relative * max(abs(y), 1e-9), msg=f"step {step}: {a} {b}")

    def expect_same_state(self, a, b):
        diff = self.athanor.checkpoint("diff", f"--from={a}", f"--to={b}")
        self.assertEqual(diff.code, 0, diff.out)
        self.assertEqual(diff.json()["state"], {})

    def test_any_two_layouts_give_one_curve(self):
        """Twelve pairs of layouts in f64, sizes coprime, for every lossless payload: the student of 1 + 1 ranks."""
        exact = {"precision.compute": "f64", "distill.phases": "joint", "distill.attention_layers": 1,
                 "train.steps": 4}
        pairs = [(2, {"teacher.parallel.ep": 2}, 3, {}),
                 (3, {}, 2, {"student.parallel.tp": 2}),
                 (2, {"teacher.parallel.tp": 2}, 1, {"student.batch.micro": 3}),
                 (4, {"teacher.parallel.tp": 2, "teacher.parallel.ep": 4}, 2, {"student.parallel.tp": 2}),
                 (1, {"teacher.batch.micro": 4}, 3, {"student.batch.micro": 1, "student.optim.zero": 0}),
                 (4, {"teacher.parallel.ep": 2, "teacher.batch.micro": 1}, 3, {"student.batch.micro": 2})]
        for codec in ("full", "hidden"):
            reference, _ = self.run_well(f"one-{codec}", **exact, **{"distill.codec": codec})
            for number, (teacher, of_teacher, student, of_student) in enumerate(pairs):
                options = {**exact, **of_teacher, **of_student, "distill.codec": codec,
                           "distill.window": 1 + number % 2}
                with self.subTest(codec=codec, pair=number):
                    run, _ = self.run_well(f"pair-{codec}-{number}", teacher=teacher, student=student, **options)
                    self.expect_close(self.curve(run), self.curve(reference), 1e-9)
                    self.expect_close(self.curve(run, "teacher", ("loss", "grad_norm")),
                                      self.curve(reference, "teacher", ("loss", "grad_norm")), 1e-9)

    def test_lossy_payloads_do_not_depend_on_the_layout(self):
        """Top-k and sampled, other layouts of both sides: the payload is the same."""
        for codec in ("topk", "sampled"):
            options = {"distill.codec": codec, "distill.phases": "joint", "train.steps": 3,
                       "precision.compute": "f64"}
            reference, _ = self.run_well(f"one-{codec}", **options)
            run, _ = self.run_well(f"other-{codec}", teacher=2, student=3, **options, **{"teacher.parallel.tp": 2})
            with self.subTest(codec=codec):
                self.expect_close(self.curve(run, figures=("loss", "kd_loss")),
                                  self.curve(reference, figures=("loss", "kd_loss")), 1e-8)

    def test_window_and_delays_change_nothing(self):
        """Window 1 and 8, delays on either side, micro-batches that a window of samples would lock up."""
        layout = {"teacher": 2, "student": 1, "teacher.parallel.ep": 2, "teacher.batch.micro": 2,
                  "student.batch.micro": 3, "distill.hidden_wire": "fp8"}
        reference, _ = self.run_well("window1", **layout, **{"distill.window": 1})
        for name, window, fault in (("window8", 8, ""), ("slow-teacher", 1, "link.send_rows:0:3:sleep=0.7"),
                                    ("slow-student", 2, "link.release:2:2:sleep=0.7")):
            with self.subTest(name=name):
                run, _ = self.run_well(name, fault=fault, **layout, **{"distill.window": window})
                self.assertEqual(self.curve(run), self.curve(reference))
                self.expect_same_state(run, reference)

    def test_a_cut_after_every_step_locks_nothing_up(self):
        """Saves that are slow on one side, the smallest window: waiting for a cut and for the link at once."""
        options = {"teacher": 2, "student": 2, "checkpoint.every": 1, "distill.window": 1, "distill.deadline_s": 30}
        reference, _ = self.run_well("cuts", **options)
        for name, fault in (("cuts-teacher", "checkpoint.write:0:3:sleep=1"),
                            ("cuts-student", "checkpoint.write:3:4:sleep=1")):
            with self.subTest(name=name):
                run, _ = self.run_well(name, fault=fault, **options)
                self.assertEqual(self.curve(run), self.curve(reference))

    def test_kill_and_resume_mid_stream(self):
        """kill -9 of a teacher or a student rank, then resume: as if nothing had happened, on both sides."""
        options = {"teacher": 2, "student": 2, "teacher.parallel.ep": 2, "checkpoint.every": 3,
                   "distill.maturity_gate": "true"}
        reference, _ = self.run_well("whole", **options)
        for name, fault in (("teacher-killed", "train.step:1:6:kill"), ("student-killed", "link.release:3:5:kill")):
            with self.subTest(name=name):
                # Waiting for each save: one is there when the kill comes, however fast the machine is.
                run, done = self.distill(name, fault=fault, **options, **{"checkpoint.async": "false"})
                self.assertNotEqual(done.code, 0)
                run, done = self.run_well(name, **options)
                self.assertGreater(done.json()["student"]["first_step"], 0)
                self.assertEqual(self.curve(run), self.curve(reference))
                self.assertEqual(self.curve(run, "teacher"), self.curve(reference, "teacher"))
                self.expect_same_state(run, reference)

    def test_gates_and_early_stopping_survive_a_kill(self):
        """Held-out samples, both gates, the balancer and a student that has stopped early: bit for bit."""
        options = {"teacher": 2, "student": 2, "checkpoint.every": 3, "checkpoint.async": "false",
                   "distill.phases": "joint:1:0.5", "distill.temperature_step": 0, "distill.held_out": 0.3,
                   "distill.difficulty_gate": "true", "distill.difficulty_full_until": 0.9,
                   "distill.difficulty_zero_from": 1.2, "distill.maturity_gate": "true",
                   "distill.balance_losses": "true", "distill.attention_layers": 1, "distill.patience": 1,
                   "distill.min_improvement": 50, "train.eval_every": 2, "distill.gap_every": 3}
        figures = ("loss", "grad_norm", "lr", "kd_loss", "held_out_loss", "held_out_kd_loss", "alpha_gate",
                   "maturity_gate", "hidden_factor", "attention_factor", "stopped_early", "gap")
        reference, done = self.run_well("gates", **options)
        curve = [dict(zip(figures, line)) for line in self.curve(reference, figures=figures)]
        self.assertEqual([line["stopped_early"] for line in curve], [0] * 4 + [1] * 6)
        self.assertEqual([line["lr"] > 0 for line in curve], [True] * 4 + [False] * 6)
        self.assertEqual([line["gap"] is not None for line in curve], [step % 3 == 0 for step in range(1, 11)])
        self.assertGreater(curve[2]["gap"], 0)  # top-k drops most of the divergence at T = 5
        self.assertLess(curve[3]["alpha_gate"], curve[3]["maturity_gate"] + 1e-12)
        self.assertNotEqual(curve[1]["hidden_factor"], 1)
        self.assertIn("stopped early after step 4", done.err)
        for name, nth in (("gates-before", 5), ("gates-after", 8)):
            with self.subTest(name=name):
                _, done = self.distill(name, fault=f"train.step:1:{nth}:kill", **options)
                self.assertNotEqual(done.code, 0)
                run, done = self.run_well(name, **options)
                self.assertEqual(done.json()["student"]["first_step"], (nth - 1) // 3 * 3)
                self.assertEqual(self.curve(run, figures=figures), self.curve(reference, figures=figures))
                self.expect_same_state(run, reference)

    def test_what_moves_the_losses_does_not_depend_on_the_layout(self):
        """Held-out samples, gates, the balancer and the codec's gap in f64, on other layouts of both sides."""
        options = {"precision.compute": "f64", "distill.phases": "joint", "distill.attention_layers": 1,
                   "distill.attention_loss": "mse", "train.steps": 4, "distill.held_out": 0.3,
                   "distill.difficulty_gate": "true", "distill.balance_losses": "true", "distill.gap_every": 2,
                   "distill.gap_fraction": 0.2}
        figures = ("loss", "grad_norm", "kd_loss", "held_out_loss", "held_out_kd_loss", "alpha_gate", "hidden_factor",
                   "attention_factor", "gap", "gap_payload_kl", "gap_full_kl")
        for codec in ("topk", "sampled"):
            reference, _ = self.run_well(f"moved-one-{codec}", **options, **{"distill.codec": codec})
            for name, layout in (("a", {"teacher": 2, "student": 3, "teacher.parallel.tp": 2}),
                                 ("b", {"teacher": 3, "student": 2, "student.parallel.tp": 2,
                                        "student.batch.micro": 4})):
                with self.subTest(codec=codec, layout=name):
                    run, _ = self.run_well(f"moved-{codec}-{name}", **options, **layout,
                                           **{"distill.codec": codec})
                    self.expect_close(self.curve(run, figures=figures), self.curve(reference, figures=figures), 1e-8)

    def test_frozen_teacher_comes_back_after_a_kill(self):
        """A frozen teacher's weights come from teacher.init again; another one is refused."""
        source, _ = self.run_well("frozen-source")
        options = {"teacher.init": source, "teacher.frozen": "true", "checkpoint.every": 3}
        reference, _ = self.run_well("frozen", **options)
        run, done = self.distill("frozen-killed", fault="train.step:0:8:kill", **options,
                                 **{"checkpoint.async": "false"})
        self.assertNotEqual(done.code, 0)
        other, _ = self.run_well("frozen-other", **{"run.seed": 4, "train.steps": 2})
        _, done = self.distill("frozen-killed", **{**options, "teacher.init": other})
        self.assertEqual(done.code, 64, done.err)
        self.assertIn("teacher.init", done.err)
        run, done = self.run_well("frozen-killed", **options)
        self.assertGreater(done.json()["student"]["first_step"], 0)
        self.assertEqual(self.curve(run), self.curve(reference))
        self.expect_same_state(run, reference)
        for words in (["evaluate", f"--checkpoint={run}", f"--data.valid={self.athanor.folder / 'data'}"],
                      ["checkpoint", "export", f"--from={run}", f"--to={self.root / 'frozen-hf'}", "--format=hf"]):
            done = self.athanor.run(*words, "--role=teacher")
            self.assertEqual(done.code, 65, done.err)
            self.assertIn("it was frozen", done.err)

    def test_equal_models_have_no_divergence(self):
        """Teacher = student, frozen: the divergence of every lossless payload is 0 at the first step."""
        source, _ = self.run_well("source", **{"student.moe.experts": None, "student.model.hidden": None,
                                               "student.model.ffn": None, "precision.compute": "f64"})
        for codec in ("full", "hidden", "topk"):
            run, _ = self.run_well(f"equal-{codec}", **{
                "student.moe.experts": None, "student.model.hidden": None, "student.model.ffn": None,
                "precision.compute": "f64", "teacher.init": source, "teacher.frozen": "true",
                "student.init": self.only_teacher(source), "distill.phases": "joint", "distill.codec": codec,
                "distill.top_k": 400, "distill.attention_layers": 1, "train.steps": 1,
                "distill.hidden_gradient_scale": 1})
            with self.subTest(codec=codec):
                first = self.curve(run, figures=("kd_loss", "attention_loss"))[0]
                self.assertLess(abs(first[0]), 1e-11)
                self.assertLess(abs(first[1]), 1e-11)

    def only_teacher(self, source):
        """A pretraining run of the same length has the teacher's weights alone: a student can start from it."""
        run = self.root / "alone"
        if not run.exists():
            options = {key: value for key, value in BASE.items() if not key.startswith(("student", "distill"))}
            words = ["train", *(f"--{key}={value}" for key, value in options.items()), f"--run.dir={run}",
                     f"--data.train={self.athanor.folder / 'data'}", f"--data.tokenizer={self.athanor.tokenizer}",
                     "--precision.compute=f64"]
            done = self.athanor.run(*words)
            self.assertEqual(done.code, 0, done.err)
        return run

    def test_bytes_on_the_link_are_those_of_the_formula(self):
        """Payload of a top-k step between two ranks: ids, logits, three statistics and the CE of every token."""
        run, _ = self.run_well("bytes", **{"distill.phases": "soft_label:1", "train.steps": 2})
        tokens = BASE["batch.global"] * BASE["batch.seq"]
        payload = tokens * (BASE["distill.top_k"] * 8 + 3 * 4 + 4)
        for role in ("teacher", "student"):
            for (link_bytes,) in self.curve(run, role, ("link_bytes",)):
                self.assertGreaterEqual(link_bytes, payload)
                self.assertLessEqual(link_bytes, payload + 80 * 4)  # headers of the pieces

    def test_stages_with_settings_of_their_own(self):
        """Codec, loss and temperature change with the stage; a kill behind the change loses nothing."""
        options = {"distill.phases": "soft_label:0.5,joint:0.5", "train.steps": 8, "checkpoint.every": 2,
                   "checkpoint.async": "false", "distill.temperature": 3, "distill.temperature_step": 0,
                   "distill.phase_settings": "soft_label.codec=topk,soft_label.top_k=4,joint.codec=hidden,"
                                             "joint.temperature=1.5,joint.loss=reverse_kl,joint.hidden_loss=cosine"}
        reference, _ = self.run_well("stages", **options)
        steps = step_lines(reference, "student")
        self.assertEqual([line["temperature"] for line in steps], [3] * 4 + [1.5] * 4)
        self.assertEqual([line["phase"] for line in steps], ["soft_label"] * 4 + ["joint"] * 4)
        self.assertEqual([line["hidden_loss"] > 0 for line in steps], [False] * 4 + [True] * 4)
        self.assertGreater(steps[4]["link_bytes"], steps[3]["link_bytes"])
        _, done = self.distill("stages-killed", fault="train.step:0:7:kill", **options)
        self.assertNotEqual(done.code, 0)
        run, _ = self.run_well("stages-killed", **options)
        self.assertEqual(self.curve(run), self.curve(reference))
        self.expect_same_state(run, reference)

    def test_roles_read_back_alone(self):
        """evaluate and generate of either role from one checkpoint, at other layouts."""
        run, _ = self.run_well("both")
        for role, ranks in (("teacher", 2), ("student", 2)):
            done = self.athanor.run("evaluate", "--json", f"--checkpoint={run}", f"--role={role}",
                                    f"--data.valid={self.athanor.folder / 'data'}", "--train.eval_batches=2",
                                    ranks=ranks)
            self.assertEqual(done.code, 0, done.err)
            self.assertGreater(done.json()["tokens"], 0)
        done = self.athanor.run("generate", "--json", f"--checkpoint={run}", "--role=student",
                                "--generate.max_new_tokens=4", "--generate.prompt=The")
        self.assertEqual(done.code, 0, done.err)
        done = self.athanor.run("evaluate", f"--checkpoint={run}", "--role=nobody",
                                f"--data.valid={self.athanor.folder / 'data'}")
        self.assertIn(done.code, (64, 65), done.err)
        done = self.athanor.run("checkpoint", "export", f"--from={run}", "--role=student",
                                f"--to={self.root / 'hf'}", "--format=hf")
        self.assertEqual(done.code, 0, done.err)

    def test_refusals(self):
        """What cannot be is refused before any work."""
        for options, code, word in (({"student.model.vocab_size": 500}, 64, "vocab"),
                                    ({"teacher": 1, "student": 1, "teacher.ranks": 2}, 64, "ranks"),
                                    ({"distill.hidden_layers": "0:7"}, 64, "hidden_layers"),
                                    ({"distill.phases": "soft_label:0.5"}, 64, "phases"),
                                    ({"distill.temperature": 0.5}, 64, "temperature"),
                                    ({"distill.alpha": 1.5}, 64, "alpha"),
                                    ({"distill.loss": "reverse_kl", "distill.codec": "topk"}, 64, "reverse_kl"),
                                    ({"teacher.init": self.root / "nowhere"}, 66, "nowhere")):
            with self.subTest(options=options):
                _, done = self.distill("refused", **options)
                self.assertEqual(done.code, code, done.err)
                self.assertIn(word, done.err)


if __name__ == "__main__":
    main()
