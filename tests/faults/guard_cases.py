#!/usr/bin/env python3
"""Numbers that go wrong: gradients that are not finite, spikes, damaged weights and checkpoints.

    guard_cases.py PROGRAM [unittest arguments]

Fault points do the damage: train.loss and train.gradient multiply a rank's loss or gradient (a step that is run again
passes them again), train.weight overwrites a weight. Cases compare with a run that nothing happened to.
"""
import json

from athanor_runs import AthanorCase, checkpoints, losses, main, step_lines
from signal_cases import DISTILL

STEPS = 16
TRAIN = {"train.steps": STEPS, "checkpoint.every": 4, "checkpoint.keep": 9, "checkpoint.async": "false",
         "optim.schedule": "constant", "guard.window": 16, "guard.min_steps": 4, "guard.hold_steps": 2,
         "guard.max_trips": 2}


def damage(point, passings, value, rank="*"):
    return ",".join(f"{point}:{rank}:{passing}:value={value}" for passing in passings)


class GuardCases(AthanorCase):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.reference = cls.root / "reference"
        done = cls.run_train(cls.reference)
        assert done.code == 0, done.err
        assert "monitor:" not in done.err and "guard" not in done.err, done.err

    @classmethod
    def run_train(cls, run, fault="", ranks=2, **options):
        return cls.athanor.train(run, ranks=ranks, fault=fault, **{**TRAIN, **options})

    def expect_as_uninterrupted(self, run, to=None, state=None):
        """The last checkpoints are equal; `state`: members that may differ."""
        to = self.reference if to is None else to
        diff = self.athanor.checkpoint("diff", f"--from={run}", f"--to={to}")
        self.assertEqual(diff.code, 0, diff.out)
        self.assertTrue(diff.json()["tensors_equal"])
        if state is None:
            self.assertEqual(diff.json()["state"], {})

    def whole(self, run):
        """Steps of the checkpoints that can be loaded."""
        entries = self.athanor.checkpoint("list", f"--from={run}").json()["checkpoints"]
        return sorted(entry["step"] for entry in entries if entry["status"] == "whole")

    # --- 19: a gradient that is not finite ------------------------------------------------------------------------
    def test_19_nan_on_one_rank_skips_the_step_everywhere(self):
        run = self.root / "nan"
        done = self.run_train(run, fault=damage("train.gradient", [5], "nan", rank=1),
                              **{"train.steps": 5, "checkpoint.every": 1})
        self.assertEqual(done.code, 0, done.err)
        skipped = [line["step"] for line in step_lines(run) if line["skipped"]]
        self.assertEqual(skipped, [5])
        steps = run / "checkpoints"
        diff = self.athanor.checkpoint("diff", f"--from={steps / 'step-00000004'}", f"--to={steps / 'step-00000005'}")
        self.assertTrue(diff.json()["tensors_equal"], diff.out)
        done = self.run_train(run)
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual([line["step"] for line in step_lines(run) if line["skipped"]], [5])

    def test_19_a_passing_nan_is_told_from_the_data(self):
        run = self.root / "passing"
        done = self.run_train(run, fault=damage("train.gradient", [7], "inf", rank=1), **{"guard.action": "skip"})
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("a passing fault of the hardware", done.err)
        self.assertIn("rank 1 differs", done.err)
        self.assertEqual(losses(run), losses(self.reference))
        self.expect_as_uninterrupted(run, state="transients")

    # --- 20: many of them, and spikes -----------------------------------------------------------------------------
    def test_20_nans_in_a_row_stop_the_run(self):
        run = self.root / "nans"
        done = self.run_train(run, fault=damage("train.gradient", range(9, 20), "nan", rank=1),
                              **{"optim.max_skips": 3})
        self.assertEqual(done.code, 70, done.err)
        self.assertIn("3 steps in a row had non-finite gradients", done.err)
        bundle = json.loads((run / "guard-teacher-step-00000011.json").read_text())
        self.assertGreater(bundle["ranks"][1]["nonfinite_gradients"], 0)
        self.assertTrue(bundle["ranks"][1]["first_nonfinite"])
        self.assertEqual(self.whole(run), [4, 8])
        done = self.run_train(run)
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual(losses(run), losses(self.reference))
        self.expect_as_uninterrupted(run)

    def test_20_nans_in_a_row_roll_back(self):
        run = self.root / "nans_back"
        done = self.run_train(run, fault=damage("train.gradient", range(9, 15), "nan", rank=1),
                              **{"optim.max_skips": 3, "guard.action": "rollback", "guard.max_trips": 9})
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("ROLLED BACK from step 11 to 8", done.err)

    def spike(self, run, passings=(11, 12, 13, 14), fault="", **options):
        """Steps 11 and 12 stand out, in both runs of each."""
        faults = ",".join(filter(None, [damage("train.loss", passings, 100), fault]))
        return self.run_train(run, fault=faults, **{"guard.action": "rollback", **options})

    def test_20_spikes_roll_back_past_the_batches(self):
        run = self.root / "back"
        done = self.spike(run)
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("ROLLED BACK from step 12 to 8", done.err)
        self.assertIn("4 batches are passed over", done.err)
        lines = {line["step"]: line for line in step_lines(run)}
        self.assertEqual(sorted(lines), list(range(1, STEPS + 1)))
        self.assertIn("rolled back from step 12 to 8", lines[9]["guard"])
        before = losses(self.reference)
        self.assertEqual([losses(run)[step] for step in range(1, 9)], [before[step] for step in range(1, 9)])
        self.assertNotEqual(losses(run)[9], before[9])
        state = self.athanor.checkpoint("show", f"--from={run}").json()
        self.assertIn('"rollbacks": 1', json.dumps(state))
        self.assertIn('"passed_over": 4', json.dumps(state))
        # A kill after that, and a restart, agree.
        killed = self.root / "back_killed"
        done = self.spike(killed, fault="train.step:0:17:kill")  # step 13 the second time
        self.assertNotEqual(done.code, 0)
        self.assertEqual(self.whole(killed), [4, 8, 12])
        done = self.run_train(killed, **{"guard.action": "rollback"})
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual(losses(killed), losses(run))
        self.expect_as_uninterrupted(killed, to=run)

    def test_20_after_the_last_rollback_the_run_stops(self):
        run = self.root / "back_and_stop"
        done = self.spike(run, passings=range(11, 40), **{"guard.max_rollbacks": 1})
        self.assertEqual(done.code, 70, done.err)
        self.assertIn("after 1 rollbacks", done.err)
        self.assertEqual(self.whole(run), [4, 8])
        self.assertTrue((run / "guard-teacher-step-00000010.json").exists())

    def test_20_nothing_to_go_back_to(self):
        run = self.root / "no_way_back"
        done = self.spike(run, **{"checkpoint.every": 14})
        self.assertEqual(done.code, 70, done.err)
        self.assertIn("no checkpoint of before step 11", done.err)

    def test_20_a_save_is_put_off_after_a_trip(self):
        run = self.root / "held"
        done = self.run_train(run, fault=damage("train.loss", [8, 9], 100),
                              **{"guard.action": "skip", "guard.hold_steps": 3})
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("the checkpoint due after step 8 is put off", done.err)
        self.assertEqual(self.whole(run), [4, 11, 12, 16])
        self.assertEqual([line["step"] for line in step_lines(run) if line["skipped"]], [8])

    def test_20_the_last_state_is_saved_and_the_healthy_one_stays(self):
        run = self.root / "marked"
        done = self.run_train(run, fault=damage("train.loss", [16, 17], 100),
                              **{"guard.action": "skip", "checkpoint.keep": 1})
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("it is marked so", done.err)
        self.assertEqual(self.whole(run), [12, 16])

    def test_20_restart_across_a_trip(self):
        """What the guard knows is in the checkpoint: a run that was killed after a trip goes on as one that was not."""
        fault = damage("train.loss", [6, 7], 100)
        whole, killed = self.root / "trip", self.root / "trip_killed"
        self.assertEqual(self.run_train(whole, fault=fault, **{"guard.action": "skip"}).code, 0)
        done = self.run_train(killed, fault=fault + ",train.step:1:11:kill", **{"guard.action": "skip"})
        self.assertNotEqual(done.code, 0)
        done = self.run_train(killed, **{"guard.action": "skip"})
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual(losses(killed), losses(whole))
        self.expect_as_uninterrupted(killed, to=whole)

    # --- 21: a checkpoint with a NaN ------------------------------------------------------------------------------
    def test_21_a_checkpoint_that_holds_a_nan_is_refused(self):
        run = self.root / "forged"
        done = self.run_train(run, fault=damage("train.weight", [12], "nan", rank=0), **{"train.steps": 12})
        self.assertEqual(done.code, 0, done.err)
        self.assertEqual(self.whole(run), [4, 8, 12])
        done = self.run_train(run)
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("CHECKPOINT NOT LOADED", done.err)
        self.assertIn("finite", done.err)
        self.assertEqual(done.json()["first_step"], 8)
        self.assertEqual(losses(run), losses(self.reference))
        self.expect_as_uninterrupted(run)

    # --- 22: a weight that changes ----------------------------------------------------------------------------------
    def test_22_a_flipped_weight_of_a_replica_is_restored(self):
        run = self.root / "flipped"
        done = self.run_train(run, fault=damage("train.weight", [10], 0.75, rank=1), **{"guard.replica_every": 5})
        self.assertEqual(done.code, 0, done.err)
        self.assertIn("of rank 1", done.err)
        self.assertIn("restored from another replica", done.err)
        self.assertEqual(losses(run), losses(self.reference))
        self.expect_as_uninterrupted(run, state="repairs")

    def test_22_without_a_replica_the_run_stops(self):
        run = self.root / "alone"
        done = self.run_train(run, fault=damage("train.weight", [10], 0.75, rank=0), ranks=1,
                              **{"guard.replica_every": 5})
        self.assertEqual(done.code, 70, done.err)
        self.assertIn("no whole replica is left", done.err)
        self.assertEqual(self.whole(run), [4, 8])

    # --- roles ------------------------------------------------------------------------------------------------------
    def distill(self, run, fault="", **options):
        values = {**DISTILL, "data.train": self.athanor.folder / "data", "data.tokenizer": self.athanor.tokenizer,
                  "run.dir": run, "teacher.ranks": 2, "student.ranks": 1, "guard.min_steps": 4, **options}
        return self.athanor.run("distill", "--json", *(f"--{key}={value}" for key, value in values.items()), ranks=3,
                                fault=fault)

    def test_roles_what_the_teacher_leaves_out_its_student_leaves_out(self):
        run = self.root / "pair"
        done = self.distill(run, fault=damage("train.loss", [9], 100), **{"guard.action": "skip"})
        self.assertEqual(done.code, 0, done.err)
        for role in ("teacher", "student"):
            self.assertEqual([line["step"] for line in step_lines(run, role) if line["skipped"]], [9], role)
        self.assertEqual(step_lines(run, "teacher")[-1]["guard_trips"], 1)
        self.assertEqual(step_lines(run, "student")[-1]["guard_trips"], 0)

    def test_roles_cannot_go_back_together(self):
        done = self.distill(self.root / "pair_back", **{"guard.action": "rollback"})
        self.assertEqual(done.code, 64, done.err)
        self.assertIn("cannot go back together", done.err)

    def test_settings_that_cannot_be(self):
        for words, reason in (({"guard.min_steps": 200}, "guard.window"),
                              ({"guard.action": "rollback", "checkpoint.every": 0}, "nothing to go back to")):
            done = self.run_train(self.root / "refused", **words)
            self.assertEqual(done.code, 64, done.err)
            self.assertIn(reason, done.err)
        self.assertEqual(checkpoints(self.root / "refused"), [])


if __name__ == "__main__":
    main()
