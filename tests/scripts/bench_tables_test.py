#!/usr/bin/env python3
"""scripts/write_bench_tables.py: what it writes, and what it leaves alone."""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import write_bench_tables as tables  # noqa: E402

FIGURE = {"name": "training steps", "unit": "tokens/s", "figure": 4873.4, "limit_name": "GEMM limit", "limit": 5729.0,
          "ratio": 0.85, "ratio_min": 0.8, "ratio_max": 0.9}


def block(name, text=""):
    return f"<!-- bench {name} begin -->{text}<!-- bench {name} end -->"


def spread(key, value):
    return {key: value, f"{key}_min": value / 2, f"{key}_max": value * 2}


def step_result():
    return {"figures": [FIGURE], "bytes_sent_per_step": {"dispatch": 67_800_000, "link": 0}, "peak_rss_bytes": 9.2e8}


def collectives_result():
    algorithms = [{"name": "ring", "may_be_chosen": True, **spread("seconds", 2e-6), **spread("ratio", 0.5)},
                  {"name": "collective", "may_be_chosen": True, **spread("seconds", 3e-6), **spread("ratio", 0.3)}]
    case = {"operation": "all_gather", "moved_bytes": 2048, "chosen": "ring", "best": "ring",
            "algorithms": algorithms, **spread("copy_s", 1e-6)}
    return {"figures": [FIGURE], "cases": [{**case, "bytes": bytes} for bytes in (4096, 16384, 65535, 0)]}


class Results:
    """A results' folder and a page."""

    def __init__(self, runs, page):
        self.folder = tempfile.TemporaryDirectory()
        path = pathlib.Path(self.folder.name)
        self.page = path / "page.md"
        self.page.write_text(page, encoding="utf-8")
        lines = []
        for number, (name, label, result) in enumerate(runs):
            (path / f"{number}.json").write_text(json.dumps(result), encoding="utf-8")
            lines.append("\t".join([name, label, str(path / f"{number}.json"), f"athanor bench {name}"]))
        (path / "index.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def write(self):
        return tables.write_page(self.page.read_text(encoding="utf-8"), pathlib.Path(self.folder.name), "a machine")


class WriteBenchTables(unittest.TestCase):
    def results(self, runs, page):
        results = Results(runs, page)
        self.addCleanup(results.folder.cleanup)
        return results

    def test_figures_stand_between_their_markers_and_the_rest_stays(self):
        page = f"# Page\n\n{block('machine')}\nprose\n{block('step', ' old ')}\nmore prose {block('stream', 'kept')}\n"
        text = self.results([("step", "f32", step_result())], page).write()
        self.assertIn("| training steps | 4,873 tokens/s | GEMM limit: 5,729 tokens/s | 0.850 (0.800 to 0.900) |", text)
        self.assertIn("67.8 MB dispatch", text)
        self.assertIn("    athanor bench step", text)
        self.assertIn("a machine", text)
        self.assertNotIn("old", text)
        self.assertNotIn("link", text)
        self.assertTrue(text.startswith("# Page\n\n"))
        self.assertIn("\nprose\n", text)
        self.assertTrue(text.endswith("more prose " + block("stream", "kept") + "\n"))

    def test_writing_twice_changes_nothing(self):
        results = self.results([("step", "f32", step_result())], block("machine") + block("step"))
        once = results.write()
        results.page.write_text(once, encoding="utf-8")
        self.assertEqual(results.write(), once)

    def test_runs_of_one_benchmark_stand_one_after_another(self):
        runs = [("step", "f32, 2 ranks", step_result()), ("step", "bf16, 2 ranks", step_result())]
        text = self.results(runs, block("machine") + block("step")).write()
        self.assertLess(text.index("f32, 2 ranks:"), text.index("bf16, 2 ranks:"))
        self.assertEqual(text.count("| training steps |"), 2)

    def test_collectives_show_some_sizes_and_all_algorithms(self):
        page = block("machine") + block("collectives")
        text = self.results([("collectives", "2 ranks", collectives_result())], page).write()
        self.assertIn("| all_gather | 4 KiB | ring 2.000 | collective 3.000 | 1.000 | 0.500 (0.250 to 1.000) |", text)
        self.assertIn("| all_gather | 64 KiB |", text)
        self.assertIn("| all_gather |  |", text)
        self.assertNotIn("16 KiB", text)

    def test_a_page_without_markers_is_refused(self):
        for page in (block("machine"), block("machine") + block("step") + block("step"),
                     block("machine") + "<!-- bench step end --><!-- bench step begin -->"):
            with self.assertRaisesRegex(tables.PageError, "bench step begin"):
                self.results([("step", "f32", step_result())], page).write()

    def test_the_script_says_what_is_wrong_and_leaves_the_page(self):
        results = self.results([("step", "f32", step_result())], "no markers")
        done = subprocess.run([sys.executable, str(ROOT / "scripts" / "write_bench_tables.py"),
                               f"--results={results.folder.name}", f"--page={results.page}"],
                              capture_output=True, text=True, check=False)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn("<!-- bench machine begin -->", done.stderr)
        self.assertEqual(results.page.read_text(encoding="utf-8"), "no markers")

    def test_numbers_that_are_not_finite_are_named(self):
        figure = {**FIGURE, "figure": None}
        self.assertIn("not finite tokens/s", "\n".join(tables.figure_table([figure])))

    def test_the_page_has_the_markers_of_every_benchmark(self):
        page = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
        for name in ("machine", "step", "collectives", "dispatch", "stream", "checkpoint", "kernels"):
            tables.replace_block(page, name, "x")

    def test_the_machine_has_no_date(self):
        self.assertNotRegex(tables.machine(), r"20\d\d-\d\d")


if __name__ == "__main__":
    unittest.main()
