#!/usr/bin/env python3
"""Two hosts with TCP between them, as network namespaces: a run is stopped by a signal, goes on, and equals one that
ran on one host, bit for bit.

    two_hosts_cases.py PROGRAM
"""
import json
import pathlib
import re
import subprocess
import sys
import tempfile

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "faults"))

from athanor_runs import MODEL, Athanor  # noqa: E402
from metrics_lines import lines_of  # noqa: E402

SCRIPT = pathlib.Path(__file__).resolve().parent / "two_hosts.sh"


def main():
    with tempfile.TemporaryDirectory(prefix="athtwo", dir="/tmp") as name:
        folder = pathlib.Path(name)
        athanor = Athanor(sys.argv[1], folder / "data")
        options = {**MODEL, "parallel.ep": 2, "train.steps": 12, "checkpoint.every": 5}
        reference = folder / "reference"
        done = athanor.run(*athanor.train_words(reference, **options), ranks=2)
        assert done.code == 0, done.err

        run = folder / "run"
        command = [SCRIPT, folder, "mpirun", "--mca", "plm_rsh_agent", folder / "agent", "--host",
                   "10.231.7.1:1,10.231.7.2:1", "-np", "2", "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1",
                   "-x", "ATHANOR_FAULT", "-x", "OMP_NUM_THREADS", athanor.program,
                   *athanor.train_words(run, **options)]

        def start(words):
            return subprocess.run([str(word) for word in words], env=athanor.environment(), check=False,
                                  capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL)

        # The first job is told to stop by the time: its end is near.
        done = start([*command, "--run.end_time=1"])
        if done.returncode == 77:
            print(done.stderr)
            sys.exit(77)
        assert done.returncode == 75, (done.returncode, done.stderr)
        assert "STOPPED before the first step" in done.stderr, done.stderr
        # The second one by a signal to mpirun when it has made some steps.
        stop = (f'"$@" & p=$!; until grep -q \'"step":7\' {run}/metrics.jsonl 2>/dev/null; do sleep 0.05; done; '
                'kill -USR1 $p; wait $p')
        slow = {"ATHANOR_FAULT": ",".join(f"train.step:0:{step}:sleep=0.2" for step in range(7, 12))}
        done = subprocess.run([*map(str, command[:2]), "bash", "-c", stop, "bash", *map(str, command[2:])],
                              env={**athanor.environment(), **slow}, check=False, capture_output=True, text=True,
                              timeout=120, stdin=subprocess.DEVNULL)
        assert done.returncode == 75, (done.returncode, done.stderr)
        assert "SIGUSR1" in done.stderr, done.stderr
        done = start(command)
        assert done.returncode == 0, (done.returncode, done.stderr)
        first_step = json.loads(done.stdout.splitlines()[-1])["first_step"]
        assert first_step >= 7, done.stdout
        sent = int(re.search(r"bytes over the wire: (\d+)", done.stderr).group(1))
        assert sent > 10000, f"only {sent} bytes went from host to host"
        assert lines_of(run) == lines_of(reference)
        diff = athanor.checkpoint("diff", f"--from={run}", f"--to={reference}")
        assert diff.code == 0 and diff.json()["tensors_equal"], diff.out
        print(f"two hosts: stopped after step {first_step}, went on, equal; {sent} bytes from host to host")


if __name__ == "__main__":
    main()
