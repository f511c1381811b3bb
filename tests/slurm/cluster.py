"""A real Slurm of two nodes on this machine: munged, slurmctld and two slurmd on free ports, all in one folder.

    with Cluster() as cluster: cluster.run("sinfo")

Needs no root and touches nothing outside its folder. Everything it started is gone when it ends, also when the program
that started it is killed: a process of its own waits for that.
"""
import contextlib
import os
import pathlib
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

NODES = ("n0", "n1")
BINARIES = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel", "sinfo")
PATH = os.environ.get("PATH", "/usr/bin:/bin") + ":/usr/sbin:/sbin"

# CPUs is more than there are, so that many small jobs run at once; cred_expire makes requeued jobs start within
# seconds instead of minutes. TmpFS by node is what lets srun start MPI programs on two nodes of one host.
CONFIGURATION = """\
ClusterName=t{ports[0]}
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/sock,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
JobRequeue=1
ReturnToService=2
KillWait=5
SlurmdTimeout=6
MessageTimeout=5
TCPTimeout=2
UnkillableStepTimeout=10
MinJobAge=600
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n0 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[1]} CPUs=16 RealMemory=4000
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port={ports[2]} CPUs=16 RealMemory=4000
PartitionName=main Nodes=n[0-1] Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=8
PartitionName=high Nodes=n[0-1] MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=off
"""


def missing_binaries():
    return [name for name in BINARIES if shutil.which(name, path=PATH) is None]


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def wait_until(condition, seconds, pause=0.1):
    """The first true value of condition(), or its last one."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value or time.monotonic() > deadline:
            return value
        time.sleep(pause)


def is_alive(pid):
    try:
        status = pathlib.Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
    state = next(line.split()[1] for line in status.splitlines() if line.startswith("State:"))
    return state not in "ZX"


def kill(pid, number):
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def descendants(pid):
    children = []
    for path in pathlib.Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += [int(child) for child in path.read_text().split()]
    return children + [pid for child in children for pid in descendants(child)]


class Folder:
    """What can be found out and stopped knowing the folder alone."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.env = {**os.environ, "PATH": PATH, "SLURM_CONF": str(self.path / "slurm.conf"), "LC_ALL": "C",
                    # Files of killed launchers stay in the folder; as root MPI programs want to be told twice.
                    "OMPI_MCA_orte_tmpdir_base": str(self.path / "tmp"), "OMPI_ALLOW_RUN_AS_ROOT": "1",
                    "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
                    "OMPI_MCA_btl_tcp_if_include": "lo", "OMPI_MCA_oob_tcp_if_include": "lo"}

    def run(self, *words, timeout=20, check=True, **options):
        done = subprocess.run([str(word) for word in words], env=self.env, capture_output=True, text=True,
                              timeout=timeout, check=False, stdin=subprocess.DEVNULL, **options)
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(map(str, words))} ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def daemon(self, name):
        try:
            return int((self.path / "run" / name).read_text())
        except (OSError, ValueError):
            return None

    def step_daemons(self, node=""):
        """slurmstepd processes: slurmd detaches them, but their sockets lie in the spool folder."""
        lines = subprocess.run(["ss", "-xlpH"], capture_output=True, text=True, check=False).stdout.splitlines()
        mine = [line for line in lines if f"{self.path}/spool/{node}" in line]
        return sorted({int(part.split(",")[0]) for line in mine for part in line.split("pid=")[1:]})

    def job_processes(self):
        """Processes of the cluster's jobs, by their environment, wherever they hang in the process tree."""
        found = []
        for entry in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                variables = (entry / "environ").read_bytes().split(b"\0")
                if f"SLURM_CONF={self.path}/slurm.conf".encode() in variables and any(
                        variable.startswith(b"SLURM_JOB_ID=") for variable in variables):
                    found.append(int(entry.name))
        return [pid for pid in found if pid != os.getpid() and is_alive(pid)]

    def stop(self):
        """Ends jobs and daemons and removes the folder. Returns the pids that had to be killed by force."""
        with contextlib.suppress(Exception):
            self.run("scancel", "-u", pwd.getpwuid(os.getuid()).pw_name, timeout=5)
            wait_until(lambda: not self.run("squeue", "-h", timeout=3).strip(), 4)
        for name in (*NODES, "slurmctld", "munged"):
            if (pid := self.daemon(name)) is not None:
                kill(pid, signal.SIGTERM)
                if not wait_until(lambda pid=pid: not is_alive(pid), 4):
                    kill(pid, signal.SIGKILL)
        left = sorted({*self.step_daemons(), *self.job_processes()})
        for pid in left:
            kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(is_alive(pid) for pid in left), 3)
        shutil.rmtree(self.path, ignore_errors=True)
        return left


class Cluster(Folder):
    def __init__(self):
        super().__init__(tempfile.mkdtemp(prefix="athsl", dir="/tmp"))  # short: sockets lie in it
        self.reaper = None
        self.left = []

    def __enter__(self):
        # Its ports may be taken by others between finding and using them: once more then.
        for attempt in (1, 2):
            try:
                self.start()
                return self
            except RuntimeError:
                self.stop_daemons_and_reaper()
                if attempt == 2:
                    raise
        raise AssertionError

    def __exit__(self, *_):
        self.left = self.stop_daemons_and_reaper()

    def start(self):
        for name in ("munge", "state", "log", "run", "tmp", *(f"{kind}/{node}" for kind in ("spool", "tmp")
                                                               for node in NODES)):
            (self.path / name).mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o755)
        key = self.path / "munge" / "key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        (self.path / "slurm.conf").write_text(CONFIGURATION.format(
            ports=free_ports(3), user=pwd.getpwuid(os.getuid()).pw_name, folder=self.path))
        self.start_reaper()
        munge = self.path / "munge"
        self.spawn("munged", "munged", "-F", "-S", munge / "sock", "--key-file", key, "--pid-file", munge / "pid",
                   "--log-file", munge / "log", "--seed-file", munge / "seed", "--num-threads", "2")
        self.wait_for("munge", lambda: subprocess.run(["munge", "-n", "-S", munge / "sock"], env=self.env, check=False,
                                                      capture_output=True).returncode == 0)
        self.spawn("slurmctld", "slurmctld", "-D", "-i", "-f", self.env["SLURM_CONF"])
        for node in NODES:
            self.start_node(node)
        idle = ("sinfo", "-h", "-N", "-p", "main", "-t", "idle", "-o", "%N")
        self.wait_for("two idle nodes", lambda: len(self.run(*idle, check=False).split()) == len(NODES))

    def start_node(self, node):
        self.spawn(node, "slurmd", "-D", "-N", node, "-f", self.env["SLURM_CONF"])

    def spawn(self, name, *words):
        with open(self.path / "log" / f"{name}.out", "ab") as log:
            process = subprocess.Popen([str(word) for word in words], env=self.env, stdin=subprocess.DEVNULL,
                                       stdout=log, stderr=log, start_new_session=True)
        (self.path / "run" / name).write_text(str(process.pid))

    def wait_for(self, what, condition):
        if not wait_until(condition, 15):
            logs = "\n".join(f"{path.name}: {path.read_text()[-600:]}" for path in (self.path / "log").iterdir())
            raise RuntimeError(f"Slurm did not start ({what}):\n{logs}")

    def start_reaper(self):
        """A process outside this one's tree and session: it cleans up when its input ends, that is, with us."""
        command = 'exec 3<&0; setsid "$@" <&3 >/dev/null 2>&1 &'
        reader, writer = os.pipe()
        subprocess.run(["sh", "-c", command, "sh", sys.executable, __file__, str(self.path)], stdin=reader, check=True)
        os.close(reader)
        self.reaper = writer

    def stop_daemons_and_reaper(self):
        left = self.stop()
        if self.reaper is not None:
            os.close(self.reaper)
            self.reaper = None
        return left

    def kill_node(self, node):
        """Power loss: the node's daemon, its steps and everything below them, at once."""
        pids = [self.daemon(node), *self.step_daemons(node + "/")]
        for pid in [pid for top in pids for pid in (top, *descendants(top))]:
            kill(pid, signal.SIGKILL)
        for kind in ("spool", "tmp"):
            shutil.rmtree(self.path / kind / node, ignore_errors=True)
            (self.path / kind / node).mkdir()

    def job(self, number):
        """Fields of `scontrol show job`."""
        text = self.run("scontrol", "-o", "show", "job", number)
        return dict(part.split("=", 1) for part in text.split() if "=" in part)

    def wait_for_job(self, number, condition, seconds):
        fields = {}

        def holds():
            fields.update(self.job(number))
            return condition(fields)

        if not wait_until(holds, seconds):
            raise AssertionError(f"job {number} is {fields.get('JobState')} ({fields.get('Reason')}) after "
                                 f"{seconds} s")
        return fields


if __name__ == "__main__":
    sys.stdin.buffer.read()
    if pathlib.Path(sys.argv[1]).exists():
        Folder(sys.argv[1]).stop()
