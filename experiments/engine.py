"""Runs the jobs of a campaign: here, some side by side, or through a launcher of Hydra.

Every job is a process of its own, so one that is killed takes no other with it; what it left is
found when the campaign is run again.
"""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import psutil
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from experiments.campaign import Campaign
from experiments.runs import Job
from icl_align.running.compose import CONF
from icl_align.running.shares import share_of_host

POLL_SECONDS = 2.0
SAVE_SECONDS = 60.0  # for a job that is told to stop
LINE_SECONDS = 60.0  # between two lines of progress where there is no terminal


def run_jobs(campaign: Campaign, jobs: list[Job], engine: list[str] | None) -> list[Job]:
    """Runs the jobs; returns those that are not finished then.

    Args:
      campaign: whose jobs they are.
      jobs: what is missing.
      engine: Hydra overrides that choose a launcher; None is this machine, with as many side by
        side as the campaign's scale has.
    """
    if not jobs:
        return []
    for job in jobs:
        job.write()
    with _Watcher(campaign, jobs):
        if engine is None:
            _run_here(jobs, campaign.scale.jobs_at_once)
        else:
            _launch(campaign.folder, jobs, engine)
    return [job for job in jobs if not all(run.finished() for run in job.runs)]


@contextlib.contextmanager
def _sigterm_as_an_exception(first: Callable[[], None]) -> Iterator[None]:
    """SIGTERM ends a campaign as Ctrl-C does: its jobs are told, save and stop."""

    def stop(number, frame):
        first()
        sys.exit(128 + number)

    if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:  # so it stays, as in a run
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stop_jobs() -> None:
    """Tells the jobs of this process on this machine to stop, and waits until they have saved."""
    jobs = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "experiments.job" in process.cmdline():
                process.terminate()
                jobs.append(process)
    psutil.wait_procs(jobs, timeout=SAVE_SECONDS)


def _run_here(jobs: list[Job], at_once: int) -> None:
    """All jobs on this machine, `at_once` side by side."""
    stopping = threading.Event()
    with _sigterm_as_an_exception(stopping.set), ThreadPoolExecutor(at_once) as pool:
        running = [pool.submit(run_job, job.file, stopping.is_set, at_once) for job in jobs]
        try:
            for done in as_completed(running):
                done.result()
        except BaseException:  # those that run save their state, the others do not begin
            stopping.set()
            pool.shutdown(cancel_futures=True)
            raise


def run_job(file: Path, is_over: Callable[[], bool], at_once: int | None = None) -> None:
    """Runs a job's file in a process of its own, in its share of this machine, and says so if it
    fails.

    Its output goes to a .log beside the file; how it failed to a .failed.

    Args:
      file: the job.
      is_over: whether the campaign is, which stops the job; asked again and again.
      at_once: how many jobs share the machine; None as the launcher has it.

    Raises:
      SystemExit: the campaign is over.
    """
    failed = file.with_suffix(".failed")
    failed.unlink(missing_ok=True)
    with file.with_suffix(".log").open("a") as log, share_of_host(at_once) as share:
        process = share.popen(
            [sys.executable, "-m", "experiments.job", str(file), str(os.getpid())],
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C reaches it once, through this process
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        status = None
        try:
            while status is None:
                if is_over():
                    raise SystemExit("the campaign is over")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(POLL_SECONDS)
        except BaseException:  # the job saves its state when it is told to stop
            process.terminate()
            process.wait()
            raise
    if status:
        how = f"killed by signal {-status}" if status < 0 else f"exit status {status}"
        failed.write_text(how + "\n")
        sys.stderr.write(f"icl_align: job {file.stem}: {how}; see {file.with_suffix('.log')}\n")


def launched_job(node) -> None:
    """The job of Hydra's launchers; a worker of theirs may outlive its campaign."""
    starter = os.getppid()
    is_over = lambda: node.campaign != os.getpid() and os.getppid() != starter  # noqa: E731
    run_job(Path(node.folder) / "jobs" / f"{node.job}.json", is_over)


def _launch(folder: Path, jobs: list[Job], engine: list[str]) -> None:
    """All jobs through Hydra, with the launcher that `engine` names."""
    import hydra

    quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    names = ",".join(job.file.stem for job in jobs)
    own = [f"folder='{quoted}'", f"campaign={os.getpid()}", f"job={names}"]
    arguments = sys.argv
    try:
        sys.argv = [arguments[0], "-m", *own, *engine]  # Hydra reads the command line, nothing else
        # The jobs are stopped first: joblib kills what its workers have started, and does not wait.
        with _sigterm_as_an_exception(_stop_jobs):
            hydra.main(config_path=str(CONF), config_name="campaign", version_base="1.3")(
                launched_job
            )()
    except SystemExit as error:  # Hydra's word for an error that it has printed
        if error.code != 1:
            raise
    except Exception as error:
        sys.stderr.write(f"icl_align: the launcher failed: {' '.join(str(error).split())}\n")
    finally:
        sys.argv = arguments


class _Watcher:
    """While active, shows how far the whole campaign is, from what its runs have logged."""

    def __init__(self, campaign: Campaign, jobs: list[Job]):
        self._jobs, self._all = jobs, campaign.runs
        self._console = Console(stderr=True, highlight=False)
        self._began = time.time()
        self._work = sum(job.work() for job in jobs)
        self._before = self._done()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "_Watcher":
        cached = sum(run.finished() for run in self._all.values())
        self._console.print(
            f"{len(self._all)} runs: {cached} finished earlier, the others in {len(self._jobs)} "
            f"jobs of up to {max(job.networks() for job in self._jobs)} networks",
            soft_wrap=True,
        )
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._thread.join()

    def _done(self) -> float:
        """Share of the campaign's missing work that is done, in [0, 1]."""
        done = 0.0
        for job in self._jobs:
            done += job.work() * sum(run.share_done() for run in job.runs) / len(job.runs)
        return done / self._work

    def _line(self, share: float) -> str:
        finished = sum(all(run.finished() for run in job.runs) for job in self._jobs)
        seconds = time.time() - self._began
        made = share - self._before
        left = f"{_minutes(seconds * (1 - share) / made)} left" if made > 0.005 else "starting"
        return f"{finished}/{len(self._jobs)} jobs · {_minutes(seconds)} gone · {left}"

    def _watch(self) -> None:
        if not self._console.is_terminal:
            while not self._stop.wait(LINE_SECONDS):
                share = self._done()
                self._console.print(f"{share:4.0%} · {self._line(share)}", soft_wrap=True)
            return
        columns = (BarColumn(), TextColumn("{task.percentage:3.0f}% · {task.description}"))
        with Progress(*columns, console=self._console, transient=True) as progress:
            task = progress.add_task("", total=1.0)
            while not self._stop.wait(POLL_SECONDS):
                share = self._done()
                progress.update(task, completed=share, description=self._line(share))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
