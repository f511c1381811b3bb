#!/usr/bin/env python3
"""The timeline of a job, and what it is to show: rows that travel while experts compute, signals that do.

    timeline_cases.py PROGRAM [unittest arguments]
"""
import json

from athanor_runs import AthanorCase, losses, main, step_lines
from distill_cases import BASE


def events_of(trace, **wanted):
    """Events of the trace with these fields."""
    return [event for event in trace if all(event.get(key) == value for key, value in wanted.items())]


class TimelineCases(AthanorCase):
    def train_well(self, name, ranks, **options):
        run = self.root / name
        done = self.athanor.train(run, ranks=ranks, **options)
        self.assertEqual(done.code, 0, done.err)
        return run

    def distill_well(self, name, teacher, student, **options):
        run = self.root / name
        values = {**BASE, "train.steps": 5, "distill.phases": "joint", "data.train": self.athanor.folder / "data",
                  "data.tokenizer": self.athanor.tokenizer, "run.dir": run, "teacher.ranks": teacher,
                  "student.ranks": student, **options}
        words = ["distill", "--json", *(f"--{key}={value}" for key, value in values.items())]
        done = self.athanor.run(*words, ranks=teacher + student, timeout=180)
        self.assertEqual(done.code, 0, done.err)
        return run

    def read_trace(self, run, names):
        """The events of a trace whose processes have these names; all spans of a thread nest."""
        self.assertEqual([path.name for path in run.glob("trace*")], ["trace.json"])
        trace = json.loads((run / "trace.json").read_text())["traceEvents"]
        processes = {event["pid"]: event["args"]["name"] for event in events_of(trace, ph="M", name="process_name")}
        self.assertEqual(processes, dict(enumerate(names)))
        for pid in processes:
            threads = {event["tid"] for event in events_of(trace, ph="X", pid=pid)}
            self.assertTrue(threads)
            for tid in threads:
                self.expect_nested(events_of(trace, ph="X", pid=pid, tid=tid))
        return trace

    def expect_nested(self, spans):
        open_until = []
        for span in sorted(spans, key=lambda span: (span["ts"], -span["dur"])):
            while open_until and open_until[-1] <= span["ts"] + 2e-3:  # printed to 1/1000 of a microsecond
                open_until.pop()
            if open_until:
                self.assertLessEqual(span["ts"] + span["dur"], open_until[-1] + 2e-3, span)
            open_until.append(span["ts"] + span["dur"])

    def expect_common_collectives(self, trace, ranks):
        """All ranks begin the role's collectives with equal numbers from equal places."""
        def calls(pid):
            return [(event["args"]["number"], event["name"], event["args"]["site"])
                    for event in events_of(trace, ph="X", cat="collective", pid=pid)
                    if event["args"]["group"] == group]
        groups = {event["args"]["group"] for event in events_of(trace, ph="X", cat="collective", pid=ranks[0])}
        shared = [group for group in groups
                  if all(any(event["args"]["group"] == group for event in
                             events_of(trace, ph="X", cat="collective", pid=pid)) for pid in ranks)]
        self.assertTrue(shared)
        for group in shared:
            # A report of the end of a step may be cut off: what both have is the same.
            first = dict((call[0], call[1:]) for call in calls(ranks[0]))
            for pid in ranks[1:]:
                for number, *what in calls(pid):
                    if number in first:
                        self.assertEqual(tuple(what), first[number], f"{group} {number}")

    def test_all_ranks_and_phases_of_some_steps_are_in_it(self):
        run = self.train_well("train", 4, parallel__ep=4, train__steps=6, train__trace=2, checkpoint__every=4,
                              checkpoint__async="false")
        trace = self.read_trace(run, [f"teacher rank {rank}" for rank in range(4)])
        for pid in range(4):
            steps = [event["args"]["number"] for event in events_of(trace, ph="X", cat="step", pid=pid)]
            self.assertEqual(steps, [3, 4])
            names = {event["name"] for event in events_of(trace, ph="X", pid=pid)}
            self.assertLessEqual({"forward", "backward", "update", "data", "attention", "route", "dispatch", "experts",
                                  "combine", "head", "experts backward", "dispatch backward", "combine backward",
                                  "checkpoint", "write shard"}, names)
        self.expect_common_collectives(trace, range(4))
        sites = {event["args"]["site"] for event in events_of(trace, ph="X", cat="collective")}
        self.assertTrue(all(site.startswith("src/") for site in sites), sites)

    def test_first_step_and_short_jobs(self):
        run = self.train_well("from", 2, parallel__ep=2, train__steps=5, train__trace=1, train__trace_from=5)
        trace = self.read_trace(run, ["teacher rank 0", "teacher rank 1"])
        self.assertEqual({event["args"]["number"] for event in events_of(trace, ph="X", cat="step")}, {5})
        run = self.train_well("short", 1, train__steps=2, train__trace=2)
        trace = self.read_trace(run, ["teacher rank 0"])
        self.assertEqual([event["args"]["number"] for event in events_of(trace, ph="X", cat="step")], [1, 2])
        refused = self.athanor.train(self.root / "refused", ranks=1, train__steps=2, train__trace=3)
        self.assertEqual(refused.code, 64)
        self.assertIn("train.trace=3", refused.err)

    def test_chunks_travel_while_experts_compute_and_change_no_bit(self):
        options = {"parallel__ep": 2, "train__steps": 6, "train__trace": 1, "checkpoint__every": 0}
        whole = self.train_well("whole", 2, **options)
        self.assertEqual(events_of(self.read_trace(whole, ["teacher rank 0", "teacher rank 1"]), ph="b"), [])
        rounded = {"precision__dispatch_comm": "fp8", "precision__combine_comm": "bf16"}
        for chunks, wire in ((2, {}), (4, {}), (2, rounded)):
            reference = self.train_well(f"wire-{chunks}", 2, **options, **wire) if wire else whole
            run = self.train_well(f"chunks-{chunks}-{len(wire)}", 2, **options, **wire, moe__dispatch_chunks=chunks)
            self.assertEqual(losses(run), losses(reference))
            trace = self.read_trace(run, ["teacher rank 0", "teacher rank 1"])
            begun = events_of(trace, ph="b", name="exchange under way", pid=0)
            # two layers, there and back, both ways
            self.assertEqual(len([event for event in begun if "moe/" in event["args"]["site"]]), 2 * 4 * chunks)
        diff = self.athanor.checkpoint("diff", f"--from={self.root / 'whole'}", f"--to={self.root / 'chunks-4-0'}")
        self.assertEqual(diff.json()["state"], {})

    def test_sends_to_students_overlap_or_not_with_the_same_curves(self):
        curves = []
        for overlap in ("true", "false"):
            run = self.distill_well(f"sends-{overlap}", 2, 2, **{"distill.overlap_sends": overlap, "train.trace": 2,
                                                                 "teacher.parallel.ep": 2})
            curves.append([[{key: line[key] for key in ("loss", "grad_norm")} for line in step_lines(run, role)]
                           for role in ("teacher", "student")])
            trace = self.read_trace(run, ["teacher rank 0", "teacher rank 1", "student rank 0", "student rank 1"])
            for pid in (0, 1):
                self.assertTrue(events_of(trace, ph="X", name="send signals", pid=pid))
                self.assertTrue(events_of(trace, ph="b", name="send under way", pid=pid))
                self.assertEqual(bool(events_of(trace, ph="X", name="sends", cat="wait", pid=pid)), overlap == "false")
            self.assertTrue(events_of(trace, ph="X", name="signals", cat="wait", pid=2))
            self.expect_common_collectives(trace, (0, 1))
        self.assertEqual(curves[0], curves[1])


if __name__ == "__main__":
    main()
