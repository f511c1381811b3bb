#!/usr/bin/env python3
"""A teacher that falls silent: the job stops to be started again, or the student goes on with labels alone.

    teacher_loss_cases.py PROGRAM [unittest arguments]
"""

from athanor_runs import AthanorCase, checkpoints, main, step_lines

STEPS = 10
BASE = {
    "model.layers": 2, "model.hidden": 16, "model.heads": 2, "model.kv_heads": 2, "model.max_seq": 16,
    "moe.experts": 4, "moe.top_k": 2, "moe.ffn": 8, "student.moe.experts": 0, "student.model.ffn": 16,
    "batch.global": 4, "batch.seq": 16, "optim.lr": 3e-3, "run.seed": 3, "train.steps": STEPS,
    "train.log_every": 1000, "distill.top_k": 8, "distill.phases": "joint", "distill.deadline_s": 3,
    "checkpoint.every": 2, "checkpoint.async": "false",
}
# The teacher's first rank says nothing from its fifth micro-batch on.
SILENT = "link.send_rows:0:5:sleep=300"


class TeacherLossCases(AthanorCase):
    @classmethod
    def distill(cls, name, teacher=1, student=1, fault="", **options):
        run = cls.root / name
        values = {**BASE, "data.train": cls.athanor.folder / "data", "data.tokenizer": cls.athanor.tokenizer,
                  "run.dir": run, "teacher.ranks": teacher, "student.ranks": student, **options}
        words = ["distill", "--json", *(f"--{key}={value}" for key, value in values.items())]
        return run, cls.athanor.run(*words, ranks=teacher + student, fault=fault, timeout=120)

    def test_stop_names_what_to_go_on_from(self):
        """Exit code 75 with step, ranks and checkpoint; the same command ends as if nothing had happened."""
        reference, done = self.distill("whole", teacher=2, student=2, **{"teacher.parallel.ep": 2})
        self.assertEqual(done.code, 0, done.err)
        run, done = self.distill("stopped", teacher=2, student=2, fault=SILENT, **{"teacher.parallel.ep": 2})
        self.assertEqual(done.code, 75, done.err)
        self.assertIn("of step 4 from teacher ranks", done.err)
        self.assertIn(str(run / "checkpoints" / "step-00000004"), done.err)
        self.assertIn("same command", done.err)
        _, done = self.distill("stopped", teacher=2, student=2, **{"teacher.parallel.ep": 2})
        self.assertEqual(done.code, 0, done.err)
        for role in ("teacher", "student"):
            ours, theirs = step_lines(run, role), step_lines(reference, role)
            self.assertEqual([(line["step"], line["loss"]) for line in ours],
                             [(line["step"], line["loss"]) for line in theirs])
        diff = self.athanor.checkpoint("diff", f"--from={run}", f"--to={reference}")
        self.assertEqual(diff.json()["state"], {})

    def test_stop_before_the_first_checkpoint(self):
        """Nothing is claimed that is not there."""
        _, done = self.distill("early", fault="link.send_rows:0:1:sleep=300")
        self.assertEqual(done.code, 75, done.err)
        self.assertIn("no checkpoint of all roles yet", done.err)

    def test_labels_go_on_to_the_end(self):
        """All steps are made, counted, and kept beside the checkpoints of the job, which stay as they were."""
        options = {"distill.on_teacher_loss": "labels", "teacher.parallel.ep": 2}
        run, done = self.distill("labels", teacher=2, student=2, fault=SILENT, **options)
        self.assertEqual(done.code, 75, done.err)
        steps = step_lines(run, "student")
        self.assertEqual([line["step"] for line in steps], list(range(1, STEPS + 1)))
        self.assertEqual([line["teacherless_steps"] for line in steps], [0] * 4 + list(range(1, STEPS - 3)))
        for line in steps[4:]:
            self.assertEqual((line["alpha"], line["kd_loss"]), (0, 0))
            self.assertAlmostEqual(line["loss"], line["total_loss"], places=6)
        self.assertEqual(done.err.count("TEACHER LOST at step 5"), 1, done.err)
        self.assertEqual([name for name in checkpoints(run) if name.startswith("step-")][-1], "step-00000004")
        own = run / "checkpoints-student"
        self.assertIn(str(own / f"step-{STEPS:08d}"), done.err)
        verified = self.athanor.checkpoint("verify", f"--from={own}")
        self.assertEqual(verified.code, 0, verified.err)
        done = self.athanor.run("evaluate", "--json", f"--checkpoint={own}", "--role=student",
                                f"--data.valid={self.athanor.folder / 'data'}", "--train.eval_batches=1")
        self.assertEqual(done.code, 0, done.err)
        # The next job goes on from where both were; a second loss does not touch what the first one left.
        _, done = self.distill("labels", teacher=2, student=2, fault=SILENT, **options)
        self.assertEqual(done.code, 75, done.err)
        self.assertIn(str(run / "checkpoints-student-2"), done.err)

    def test_a_teacher_that_comes_back_waits(self):
        """Late, not dead: it does not end the job of the student that went on."""
        fault = "link.send_rows:0:5:sleep=5,train.step:0:9:sleep=12"  # the second one is the student's
        run, done = self.distill("late", fault=fault, **{"distill.on_teacher_loss": "labels",
                                                         "distill.deadline_s": 2, "checkpoint.every": 0})
        self.assertEqual(done.code, 75, done.err)
        self.assertIn("waiting for the student to end the job", done.err)
        self.assertEqual(len(step_lines(run, "student")), STEPS)

    def test_refusals(self):
        """With several students the first to end would end the others' job."""
        values = {"distill.students": "a,b", "student.a.ranks": 1, "student.b.ranks": 1,
                  "distill.on_teacher_loss": "labels"}
        words = [f"--{key}={value}" for key, value in {**BASE, **values}.items()]
        done = self.athanor.run("distill", "--dry-run", f"--data.train={self.athanor.folder / 'data'}",
                                f"--data.tokenizer={self.athanor.tokenizer}", "--teacher.ranks=1", *words)
        self.assertEqual(done.code, 64, done.err)
        self.assertIn("on_teacher_loss", done.err)


if __name__ == "__main__":
    main()
