"""Shares of this machine: one for each of the jobs that run on it at the same time.

A job of a parallel sweep gets its own accelerator where there are several, and its part of the
cores. XLA sizes its thread pools by the cores that a process may use, so without shares every job
would start a thread for every core. Nothing here imports JAX: a share counts only if it is taken
before JAX starts.

A process that runs its jobs itself takes a share for good; one that starts a subprocess for each
job lends one out:

    keep_share()

    with share_of_host() as share:
        share.popen([sys.executable, "-m", "icl_align.train", ...]).wait()
"""

import contextlib
import dataclasses
import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

POLL_SECONDS = 0.2
MEMORY_FRACTION = 0.75  # of an accelerator; what JAX takes at its start


@dataclasses.dataclass(frozen=True)
class Share:
    """What one job may use.

    Attributes:
      environment: variables to set, such as CUDA_VISIBLE_DEVICES; empty for all that is visible.
      cores: numbers of the cores; None for all, and where the system cannot tell.
    """

    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)
    cores: frozenset[int] | None = None

    def take(self) -> None:
        """Confines this process, with all of its threads, to the share."""
        os.environ.update(self.environment)
        if self.cores is not None:
            for thread in os.listdir("/proc/self/task"):
                with contextlib.suppress(ProcessLookupError):  # it has just ended
                    os.sched_setaffinity(int(thread), self.cores)

    def popen(
        self, command: Sequence[str], env: Mapping[str, str] | None = None, **options: Any
    ) -> subprocess.Popen:
        """Starts `command` confined to the share; `env` (os.environ) and `options` as in Popen."""
        environment = {**(os.environ if env is None else env), **self.environment}
        if self.cores is None:
            return subprocess.Popen(command, env=environment, **options)
        own = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self.cores)  # of this thread; a child inherits it
        try:
            return subprocess.Popen(command, env=environment, **options)
        finally:
            os.sched_setaffinity(0, own)


def divide(slot: int, jobs: int, cores: Sequence[int], devices: Sequence[str]) -> Share:
    """The share of slot 0..jobs-1: all are as large as can be, and none overlap while things last.

    Args:
      slot: which share.
      jobs: how many shares there are, at least 1.
      cores: numbers of the cores to divide; none where the system cannot tell.
      devices: names of the accelerators to divide, as CUDA_VISIBLE_DEVICES has them; may be none.
    """
    environment = {}
    if devices:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(_part(devices, slot, jobs))
    if 0 < len(devices) < jobs:  # several jobs in the memory of one
        fraction = MEMORY_FRACTION / -(-jobs // len(devices))
        environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] = f"{fraction:.3f}"
    return Share(environment, frozenset(_part(cores, slot, jobs)) if cores else None)


def _part(things: Sequence, slot: int, jobs: int) -> Sequence:
    if len(things) < jobs:
        return [things[slot % len(things)]]
    return things[slot * len(things) // jobs : (slot + 1) * len(things) // jobs]


def visible_cores() -> list[int]:
    """The cores this process may use, as Slurm or another process has left them."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []


def visible_devices() -> list[str]:
    """The NVIDIA accelerators this process may use, as CUDA_VISIBLE_DEVICES names them."""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if platforms and not {"cuda", "gpu"} & set(platforms.split(",")):
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    names = [name.strip() for name in given.split(",")]
    return [name for name in names if name not in ("", "-1", "NoDevFiles")]


def jobs_at_once(launcher: Mapping[str, Any], cores: int, devices: int) -> int:
    """How many jobs a Hydra launcher runs on one machine at the same time.

    Args:
      launcher: `hydra.launcher` of the configuration.
      cores: how many cores there are.
      devices: how many accelerators there are.

    Returns:
      A number of at least 1; 1 also where the launcher itself divides the machine, as Slurm does.
    """
    kind = str(launcher["_target_"]).rpartition(".")[2]
    if kind == "JoblibLauncher":
        jobs = launcher["n_jobs"]
        return jobs if jobs > 0 else max(1, cores + 1 + jobs)  # joblib's -1 is all cores
    if kind == "LocalLauncher":
        return devices or max(1, cores // (launcher.get("cpus_per_task") or 1))
    if kind == "RayLauncher":
        return max(1, int(cores / (launcher["ray"]["remote"].get("num_cpus") or 1)))
    return 1


@contextlib.contextmanager
def share_of_host(jobs: int | None = None) -> Iterator[Share]:
    """Holds a share of this machine that no other job holds.

    Inside a job of a parallel Hydra sweep the launcher's configuration says how many share the
    machine; anywhere else, and where Slurm divides it, the share is everything. If all are taken,
    by this sweep or another one of the same user, the local queue waits, and the other jobs go on
    with everything. A share is free again when its holder ends, however it ends.

    Args:
      jobs: how many share the machine; None as the launcher has it.

    Yields:
      A Share, to `take` or to `popen` with.

    Raises:
      OSError: the folder for the locks, in the one for temporary files, cannot be used.
    """
    launcher = None if jobs else _launcher()
    cores, devices = visible_cores(), visible_devices()
    if jobs is None:
        jobs = jobs_at_once(launcher, len(cores), len(devices)) if launcher else 1
    if jobs == 1:
        yield Share()
        return
    kind = str(launcher["_target_"]).rpartition(".")[2] if launcher else ""
    by_ray = kind == "RayLauncher"
    # The local queue starts all of its jobs at once; the others count theirs, and do not wait for
    # those of another sweep or for an idle process that still has a share.
    with _slot(jobs, wait=kind == "LocalLauncher") as slot:  # and Ray chooses the accelerators
        share = Share() if slot is None else divide(slot, jobs, cores, [] if by_ray else devices)
        kept = {
            name: value
            for name, value in share.environment.items()
            if name == "CUDA_VISIBLE_DEVICES" or name not in os.environ
        }
        yield dataclasses.replace(share, environment=kept)


_until_the_end = contextlib.ExitStack()


@functools.cache
def keep_share() -> Share:
    """Takes a share for this process and keeps it to its end, for its later jobs too.

    Call it before JAX starts.
    """
    launcher = _launcher()
    if launcher and str(launcher["_target_"]).endswith(".JoblibLauncher"):
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    share = _until_the_end.enter_context(share_of_host())
    share.take()
    return share


def _end_with_parent(parent: int) -> None:
    """Ends this process once its parent is gone, as SIGTERM does: a run saves its state first.

    joblib's workers outlive a sweep that is killed, and would keep their shares and run folders.
    """
    while os.getppid() == parent:
        time.sleep(1.0)
    while True:
        if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:  # nothing would tell it to stop
            return
        os.kill(os.getpid(), signal.SIGTERM)
        while signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:  # the run is saving its state
            time.sleep(POLL_SECONDS)


def _launcher() -> Mapping[str, Any] | None:
    """The launcher of the Hydra sweep that this process is a job of; None outside of one."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return HydraConfig.get().launcher


@contextlib.contextmanager
def _slot(jobs: int, wait: bool) -> Iterator[int | None]:
    """Holds one of the slots 0..jobs-1 of this machine; None if all are taken, unless it waits."""
    folder = Path(tempfile.gettempdir()) / f"icl_align-{os.getuid()}-{socket.gethostname()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    locks = [FileLock(folder / f"share-{slot}-of-{jobs}.lock") for slot in range(jobs)]
    told = False
    while True:
        for slot, lock in enumerate(locks):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                yield slot
            finally:
                lock.release()
            return
        if not wait:
            yield None
            return
        if not told:
            sys.stderr.write(f"icl_align: all {jobs} shares of this machine are taken; waiting\n")
            told = True
        time.sleep(POLL_SECONDS)
