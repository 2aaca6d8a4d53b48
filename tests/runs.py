"""What the tests of whole runs share: tiny configurations, processes, and readers of what they left."""

import copy
import functools
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

from icl_align.running.compose import compose_config
from icl_align.running.metrics_file import read_rows

ROOT = Path(__file__).parent.parent
TINY = ["+scale=smoke", "evaluation.reward_noise=[0.0,1.0]", "evaluation.num_contexts=8"]
TINY += [
    "task.num_responses=4",
    "gradient_descent.steps=2",
    "gradient_descent.steps_at_full_noise=1",
]
OFF = "wandb.mode=disabled"


def tiny(*overrides):
    return copy.deepcopy(_composed(*overrides))


@functools.cache
def _composed(*overrides):
    return compose_config([*TINY, OFF, *overrides])


IGNORING = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_IGN); os.execv(*eval(sys.argv[1]))"


def start(*overrides, module="icl_align.train", cwd=None, env_path=ROOT, devices=1, ignoring=False,
          platform="cpu"):  # fmt: skip
    """A real process of a command, with its output piped; `ignoring` SIGINT, as in the background
    of a script.
    """
    environment = {**os.environ, "PYTHONPATH": str(env_path), "JAX_PLATFORMS": platform}
    environment["JAX_NUM_CPU_DEVICES"] = str(devices)
    command = [sys.executable, "-m", module, *overrides]
    if ignoring:
        command = [sys.executable, "-c", IGNORING, repr((sys.executable, command))]
    return subprocess.Popen(
        command,
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
    )


def finish(process, timeout=240):
    """(exit status, stdout, stderr) of a process."""
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def wait_for(happened, process=None, timeout=240):
    """Waits until `happened()`, or until the process has ended."""
    end = time.monotonic() + timeout
    while not happened() and (process is None or process.poll() is None):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def saved_steps(folder):
    """Steps whose checkpoints are whole, in a folder that may not be there yet."""
    names = [path.name for path in (folder / "checkpoints").glob("*")]
    return [int(name) for name in names if name.isdigit()]


def training_rows(folder):
    """Rows of metrics.jsonl without what depends on the clock."""
    return [
        {key: value for key, value in row.items() if not key.startswith("perf/")}
        for row in read_rows(folder / "metrics.jsonl")
    ]


def wandb_records(folder):
    """Every record that the real W&B client wrote in offline mode, oldest file first.

    The file is a LevelDB log: a header of 7 bytes, then records of (crc, length, type) in blocks of
    32 KiB; types 1 to 4 are full, first, middle and last.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    records = []
    for path in sorted(folder.glob("wandb/offline-run-*/*.wandb")):
        data, place, parts = path.read_bytes(), 7, b""
        while place + 7 <= len(data):
            if 32768 - place % 32768 < 7:
                place += 32768 - place % 32768
                continue
            _, length, kind = struct.unpack("<IHB", data[place : place + 7])
            parts += data[place + 7 : place + 7 + length]
            place += 7 + length
            if kind in (1, 4):
                records.append(Record.FromString(parts))
                parts = b""
    return records
