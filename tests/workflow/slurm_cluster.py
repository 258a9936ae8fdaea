"""A Slurm of this machine alone: munge, a controller and one node, as ordinary processes in a folder of their own.

python -m tests.workflow.slurm_cluster squeue   # starts it, runs the command in it, stops it, leaves nothing behind

It needs neither root nor systemd nor cgroups, only Debian's slurm-wlm and munge. The node says that it has more memory
and more GPUs than there are, so that a profile's requests are granted as they stand.
"""

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin"
DAEMONS = ("munged", "slurmctld", "slurmd")
PARTITION = "here"
PATIENCE = 30  # seconds until the node is idle
GPUS = ("/dev/null", "/dev/zero")  # have to be devices
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
PlugStackConfig={folder}/plugstack.conf
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
GresTypes=gpu
MinJobAge=86400
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=512000 Gres=gpu:{gpus}
PartitionName={partition} Nodes=ALL Default=YES MaxTime=INFINITE
"""


class CannotStartError(Exception):
    """Says why there is no cluster."""


@contextlib.contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """The environment in which commands speak to a new cluster whose node is idle. Raises `CannotStartError`."""
    if missing := [name for name in (*DAEMONS, "sbatch", "srun") if not shutil.which(name, path=PATH)]:
        raise CannotStartError(f"no {', '.join(missing)}: apt-get install slurm-wlm munge")
    with tempfile.TemporaryDirectory(prefix="slurm-") as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        _configure(folder)
        environment = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
        environment |= {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{folder}/bin:{PATH}"}
        munge = [f"--{key}={folder}/munge.{key}" for key in ("socket", "pid-file", "log-file", "seed-file", "key-file")]
        running = [stack.enter_context(_daemon("munged", "--foreground", "--force", *munge, folder=folder))]
        _wait(running, folder, lambda: (folder / "munge.socket").exists())
        for program in ("slurmctld", "slurmd"):
            running.append(stack.enter_context(_daemon(program, "-D", folder=folder, environment=environment)))

        def said(*command: str) -> str:
            return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE).stdout

        _wait(running, folder, lambda: said("sinfo", "-h", "-o", "%T").strip() == "idle")
        try:
            yield environment
        finally:
            if queued := said("squeue", "-h", "-o", "%i").split():
                said("scancel", *queued)
                _wait(running, folder, lambda: not said("squeue", "-h"))


def _configure(folder: Path) -> None:
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    with contextlib.ExitStack() as stack:  # all are bound before one is let go: they differ
        sockets = [stack.enter_context(socket.socket()) for _ in range(2)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in sockets]
    host = socket.gethostname().partition(".")[0]
    facts = {
        "host": host,
        "ports": ports,
        "user": os.getuid(),
        "folder": folder,
        "gpus": len(GPUS),
        "partition": PARTITION,
    }
    (folder / "slurm.conf").write_text(CONFIGURATION.format(**facts))
    (folder / "plugstack.conf").touch()
    # No cgroups are used. The older plugin is the one that starts without any; newer versions can do without a plugin.
    version = subprocess.run([str(shutil.which("slurmd", path=PATH)), "-V"], capture_output=True, text=True).stdout
    newer = [int(number) for number in version.split()[-1].split(".")[:2]] >= [23, 11]
    (folder / "cgroup.conf").write_text(f"CgroupPlugin={'disabled' if newer else 'cgroup/v1'}\n")
    (folder / "gres.conf").write_text("".join(f"NodeName={host} Name=gpu File={gpu}\n" for gpu in GPUS))
    (folder / "munge.key-file").touch(0o600)
    (folder / "munge.key-file").write_bytes(secrets.token_bytes(128))
    # A job's inner `srun` finds the configuration where a cluster has it: the plugin takes SLURM_CONF away.
    srun = folder / "bin/srun"
    srun.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {shutil.which("srun", path=PATH)} "$@"\n')
    srun.chmod(0o755)


@contextlib.contextmanager
def _daemon(
    program: str, *arguments: str, folder: Path, environment: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Ends with whoever started it, killed or not."""
    path = str(shutil.which(program, path=PATH))
    with (folder / f"{program}.said").open("wb") as log:
        command = ["setpriv", "--pdeathsig", "TERM", path, *arguments]
        running = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield running
        finally:
            running.terminate()
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def _wait(running: list[subprocess.Popen[bytes]], folder: Path, ready: Callable[[], bool]) -> None:
    """Until it is ready. Raises `CannotStartError` with what was said if a daemon ends or it takes too long."""
    until = time.monotonic() + PATIENCE
    while not ready():
        ended = any(each.poll() is not None for each in running)
        if ended or time.monotonic() > until:
            lines = [line for path in sorted(folder.glob("*.said")) for line in path.read_text().splitlines()]
            errors = [line for line in lines if "rror" in line or "fatal" in line] or lines
            what = "a daemon ended" if ended else f"not ready after {PATIENCE} s"
            raise CannotStartError(f"{what}: {'; '.join(errors[-3:])}")
        time.sleep(0.1)


if __name__ == "__main__":
    try:
        with cluster() as here:
            sys.exit(subprocess.run(sys.argv[1:], env=here).returncode)
    except CannotStartError as reason:
        sys.exit(f"no Slurm here: {reason}")
