"""A signal is heard while the main thread computes; what was trained is never lost by that."""

import os
import pty
import signal
import subprocess
import sys
import time

import pytest

from icl_align.running import signals
from icl_align.running.errors import RunError
from runs import ROOT, finish, tiny, wait_for

# Programs of the toy world that never end: one that compiles, one whose first step waits.
NEVER = {
    "compiling": """
import jax, time
def never(*_, **__):
    open("under_way", "w").close()
    time.sleep(1000)
jax.stages.Lowered.compile = never
""",
    "in the first step": """
import jax, time
import icl_align.toy.world
def wait(loss):
    open("under_way", "w").close()
    time.sleep(1000)
    return loss
loss = icl_align.toy.world.Toy.loss
def waiting(self, config, answers, given):
    value = loss(self, config, answers, given)
    return value + jax.lax.stop_gradient(
        jax.pure_callback(wait, jax.ShapeDtypeStruct((), "float32"), jax.lax.stop_gradient(value)))
icl_align.toy.world.Toy.loss = waiting
""",
}
COMMAND = """
import sys
import icl_align.train
sys.argv[1:] = ["world=toy", "wandb.mode=disabled", "train.steps=3", "seed=7", "hydra.run.dir=run"]
icl_align.train.main()
"""


@pytest.mark.slow  # each waits for the time that a process has to end in order
@pytest.mark.parametrize("where", NEVER)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_is_heard_in_a_program_that_never_ends(where, number, toy, tmp_path):
    assert signals.GRACE_SECONDS <= 9  # within ten seconds; the program would take a thousand
    process = started(NEVER[where], toy, tmp_path)
    process.send_signal(number)
    status, _, err = finish(process)
    assert status == 128 + number
    [line] = err.splitlines()
    assert f"stopped by {number.name}; nothing that was saved is lost" in line
    assert line.endswith(f" -m icl_align.train hydra.run.dir={tmp_path}/run")


def test_a_second_signal_is_heard_there_at_once(toy, tmp_path):
    process = started(NEVER["compiling"], toy, tmp_path)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)  # two of a kind that are pending are one
    process.send_signal(signal.SIGTERM)
    status, _, err = finish(process)
    assert status == 143
    assert "stopped at once by a second SIGTERM" in err
    assert err.strip().endswith(f" -m icl_align.train hydra.run.dir={tmp_path}/run")
    # The options are saved before anything takes long.
    assert "\nseed: 7\n" in (tmp_path / "run" / ".hydra" / "config.yaml").read_text()


def test_in_a_program_of_the_users_a_second_signal_is_an_exception():
    with signals.StopSignals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_the_line_of_a_signal_stands_alone_on_a_terminal():
    """A progress bar may stand there, and hide the cursor."""
    code = "from icl_align.running.signals import _say; _say('stopped')"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", code], stderr=theirs, cwd=ROOT, check=True)
    assert os.read(ours, 100) == b"\r\x1b[2K\x1b[?25hicl_align: error: stopped\r\n"
    os.close(ours)
    os.close(theirs)


def test_a_signal_after_the_last_step_still_stops(tmp_path, monkeypatch):
    """So that a sweep does not go on with its next job."""
    import icl_align.running.run as module

    evaluate = module._evaluate

    def and_a_signal(*arguments):
        evaluate(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(module, "_evaluate", and_a_signal)
    with pytest.raises(RunError, match="stopped by SIGTERM after the run was finished") as error:
        module.run(tiny("train.steps=2"), tmp_path / "run")
    assert error.value.status == 143
    assert (tmp_path / "run" / "curves.json").exists()


def started(patch, toy, folder):
    """A process of the training command under a patch, when it is where it never ends."""
    environment = {**os.environ, "PYTHONPATH": str(toy)}
    process = subprocess.Popen(
        [sys.executable, "-c", patch + COMMAND],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for((folder / "under_way").exists, process)
    return process


def test_a_process_with_unsaved_steps_is_not_ended(monkeypatch):
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.01)
    with signals.StopSignals(ends_process=True) as stop:
        stop.saved = False
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)  # twenty times as long as it would be given
        assert stop.received == signal.SIGTERM
        with pytest.raises(RunError, match="stopped by SIGTERM at step 1"):
            stop.stop("at step 1", "")
        stop.saved = True
        time.sleep(0.2)  # it ends in order


def test_handlers_and_the_wakeup_are_those_of_before_afterwards():
    before = [signal.getsignal(number) for number in signals.STOPPING]
    fd = signal.set_wakeup_fd(-1)
    for ends_process in (False, True):
        with signals.StopSignals(ends_process):
            assert signal.getsignal(signal.SIGTERM) != before[0]
        assert [signal.getsignal(number) for number in signals.STOPPING] == before
    assert signal.set_wakeup_fd(fd) == -1
