"""A run's metrics.jsonl while it is being written, and after."""
import contextlib
import json
import pathlib


def lines_of(run, role=""):
    """Lines without what depends on time; one that is being written is left out. Numbers as printed, so exact."""
    path = pathlib.Path(run) / role / "metrics.jsonl"
    kept = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            values = json.loads(line)
            if "evaluation" in values:
                kept.append(("evaluation", values["step"], json.dumps(values["domains"])))
            else:
                kept.append(("step", values["step"], float(values["loss"]).hex(), float(values["grad_norm"]).hex(),
                             values.get("kd_loss")))
    return kept


def steps_of(run, role=""):
    return [line[1] for line in lines_of(run, role) if line[0] == "step"]
