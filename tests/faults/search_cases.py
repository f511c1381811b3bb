#!/usr/bin/env python3
"""The search for the temperature and the fit of the pair, end to end.

    search_cases.py PROGRAM [unittest arguments]
"""
import json

from athanor_runs import AthanorCase, checkpoints, main

BASE = {
    "model.layers": 1, "model.hidden": 16, "model.heads": 2, "model.kv_heads": 2, "model.max_seq": 16,
    "moe.experts": 4, "moe.top_k": 2, "moe.ffn": 8, "student.moe.experts": 0, "student.model.ffn": 16,
    "batch.global": 4, "batch.seq": 16, "optim.lr": 1e-2, "run.seed": 3, "train.log_every": 1000,
    "distill.phases": "joint", "distill.top_k": 8, "distill.hidden_layers": 0, "train.eval_batches": 2,
    "distill.deadline_s": 60, "teacher.ranks": 1, "student.ranks": 1,
}


class SearchCases(AthanorCase):
    def distill(self, name, *words, ranks=2, fault="", **options):
        run = self.root / name
        values = {**BASE, "data.train": self.athanor.folder / "data", "data.valid": self.athanor.folder / "data",
                  "data.tokenizer": self.athanor.tokenizer, "run.dir": run, **options}
        done = self.athanor.run("distill", "--json", *words,
                                *(f"--{key}={value}" for key, value in values.items() if value is not None),
                                ranks=ranks, fault=fault)
        return run, done

    def search(self, name, fault="", ranks=2, **options):
        return self.distill(name, "--search=temperature", "--trials=3", fault=fault, ranks=ranks,
                            **{"distill.trial_steps": 4, **options})

    @staticmethod
    def metrics(run, evaluations=False):
        """A student's lines: of its steps, or of its evaluations."""
        lines = [json.loads(line) for line in (run / "student" / "metrics.jsonl").read_text().splitlines()]
        return [line for line in lines if bool(line.get("evaluation")) == evaluations]

    def held_out_loss(self, run):
        domains = self.metrics(run, evaluations=True)[-1]["domains"].values()
        return sum(d["loss"] * d["tokens"] for d in domains) / sum(d["tokens"] for d in domains)

    def test_a_search_ranks_its_trials_and_goes_on_after_a_kill(self):
        """Ranking, files, and a search that is killed in its second trial: the same result in the end."""
        run, done = self.search("search")
        self.assertEqual(done.code, 0, done.err)
        result = done.json()
        ranking = result["students"]["student"]["ranking"]
        self.assertEqual(sorted(entry["temperature"] for entry in ranking), [1, 2.8284, 8])
        losses = [entry["loss"] for entry in ranking]
        self.assertEqual(losses, sorted(losses))
        self.assertEqual(len(set(losses)), 3)
        self.assertEqual(result["students"]["student"]["best"], ranking[0])
        self.assertIn(f"distill.temperature={ranking[0]['temperature']:g}", result["students"]["student"]["set"])
        for entry in ranking:
            self.assertAlmostEqual(entry["loss"], self.held_out_loss(run / "trials" / entry["trial"]), places=12)
        self.assertEqual(json.loads((run / "search.json").read_text()), result)
        self.assertEqual(checkpoints(run), [])
        self.assertFalse((run / "trials" / "01" / "checkpoints").exists())
        self.assertEqual([line["temperature"] for line in self.metrics(run / "trials" / "03")], [8, 8, 8, 8])

        run, done = self.search("stopped", **{"run.end_time": 1})  # the job's time is over
        self.assertEqual(done.code, 75, done.err)
        self.assertNotEqual(done.json()["stopped"], "")
        self.assertFalse((run / "trials" / "01" / "result.json").exists())

        killed, done = self.search("killed", fault="train.step:0:6:kill")
        self.assertNotEqual(done.code, 0)
        first = killed / "trials" / "01" / "result.json"
        written = first.stat().st_mtime_ns
        self.assertFalse((killed / "trials" / "02" / "result.json").exists())
        _, done = self.search("killed")
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual(first.stat().st_mtime_ns, written)
        self.assertEqual(done.json()["students"], result["students"])

        _, done = self.search("killed", **{"optim.lr": 2e-2})
        self.assertEqual(done.code, 64, done.err)
        self.assertIn("optim.lr", done.err)

    def test_each_student_has_a_ranking(self):
        _, done = self.search("two", ranks=3, **{
            "distill.students": "a,b", "student.ranks": None, "student.a.ranks": 1, "student.b.ranks": 1,
            "student.b.model.hidden": 8, "distill.trial_steps": 2})
        self.assertEqual(done.code, 0, done.err)
        students = done.json()["students"]
        self.assertEqual(set(students), {"student.a", "student.b"})
        self.assertNotEqual(students["student.a"]["best"]["loss"], students["student.b"]["best"]["loss"])

    def test_searches_that_cannot_be(self):
        run, done = self.distill("trained", **{"train.steps": 2})
        self.assertEqual(done.code, 0, done.err)
        before = (run / "config.ini").read_text()
        for name, options, code, word in (("refused", {"data.valid": ""}, 64, "data.valid"),
                                          ("refused", {"distill.trial_steps": 0}, 64, "trial_steps"),
                                          ("trained", {}, 73, "checkpoints")):
            with self.subTest(word=word):
                _, done = self.search(name, **options)
                self.assertEqual(done.code, code, done.err)
                self.assertIn(word, done.err)
        self.assertFalse((self.root / "refused").exists())
        self.assertEqual((run / "config.ini").read_text(), before)

    def test_report_of_the_pair(self):
        """The final JSON and table: gap on the same tokens, pace, waits, bytes; and the plan of a dry run."""
        run, done = self.distill("pair", **{"train.steps": 13})
        self.assertEqual(done.code, 0, done.err)
        result = done.json()
        fit = result["pair"]["students"]["student"]
        last = self.metrics(run)[-10:]
        self.assertAlmostEqual(fit["student_loss"], sum(line["loss"] for line in last) / 10, places=10)
        self.assertAlmostEqual(fit["teacher_loss"], sum(line["teacher_loss"] for line in last) / 10, places=10)
        self.assertAlmostEqual(fit["loss_gap"], fit["student_loss"] - fit["teacher_loss"], places=10)
        self.assertAlmostEqual(fit["teacher_loss"], result["teacher"]["pace"]["loss"], places=4)
        tokens = BASE["batch.global"] * BASE["batch.seq"]
        self.assertAlmostEqual(fit["link_bytes_per_token"], last[-1]["link_bytes"] / tokens)
        self.assertGreater(fit["speed_ratio"], 0)
        for role in ("teacher", "student"):
            self.assertGreaterEqual(fit[f"{role}_wait_share"], 0)
            self.assertLessEqual(fit[f"{role}_wait_share"], 1)
        _, done = self.distill("pair", "--dry-run", ranks=1)
        self.assertEqual(done.code, 0, done.err)
        plan = done.json()["pair"]
        ratio = result["student"]["parameters"] / result["teacher"]["parameters"]
        self.assertAlmostEqual(plan["students"]["student"]["parameter_ratio"], ratio)
        speed = result["teacher"]["active_parameters"] / result["student"]["active_parameters"]
        self.assertAlmostEqual(plan["students"]["student"]["speed_ratio"], speed)

    def test_a_slow_side_is_told_of_once(self):
        """Delays in every step of one side: the other one warns, once; the curve does not change."""
        reference, _ = self.distill("even", **{"train.steps": 14})
        losses = [line["loss"] for line in self.metrics(reference)]
        for name, point, rank, word in (("slow-teacher", "link.send_rows", 0, "student: works"),
                                        ("slow-student", "link.release", 1, "teacher: works")):
            with self.subTest(name=name):
                delays = ",".join(f"{point}:{rank}:{step}:sleep=0.2" for step in range(2, 15))
                run, done = self.distill(name, fault=delays, **{"train.steps": 14})
                self.assertEqual(done.code, 0, done.err)
                warnings = [line for line in done.err.splitlines() if "times as long for a step" in line]
                warnings = [line for line in warnings if "warning" in line]
                self.assertEqual(len(warnings), 1, done.err)
                self.assertIn(word, warnings[0])
                self.assertIn("more ranks", warnings[0])
                self.assertEqual([line["loss"] for line in self.metrics(run)], losses)

    def test_tokenizers_must_be_one(self):
        """Weights that were trained with another tokenizer are refused, unless the user knows better."""
        source, done = self.distill("source", **{"train.steps": 1})
        self.assertEqual(done.code, 0, done.err)
        other = self.root / "other.model"
        done = self.athanor.run("tokenize", f"--input={self.athanor.folder / 'text.txt'}", f"--tokenizer={other}",
                                "--tokenize.vocab_size=399")
        self.assertEqual(done.code, 0, done.err)
        options = {"teacher.init": source, "teacher.frozen": "true", "train.steps": 1}
        plan = {**options, "model.vocab_size": 400, "data.tokenizer": other}
        for words in ([], ["--dry-run"]):
            run, done = self.distill("mismatch", *words, **plan)
            self.assertEqual(done.code, 64, done.err)
            self.assertIn("teacher.init", done.err)
            self.assertIn("trained with the tokenizer", done.err)
            self.assertFalse(run.exists())
        _, done = self.distill("mismatch", "--dry-run", **plan, **{"run.allow_mismatch": "data.tokenizer"})
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("of teacher.init another", done.json()["pair"]["tokenizer"])
        _, done = self.distill("same", **options)
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("of teacher.init the same", done.err)


if __name__ == "__main__":
    main()
