"""Signals that ask a run to stop: it saves its state first."""

import contextlib
import os
import select
import signal
import sys
import threading
from typing import Any

from icl_align.running.errors import SIGNALLED, RunError

STOPPING = (signal.SIGTERM, signal.SIGINT)
# Time for a process to end in order before it is ended while it computes. Slurm gives 30 seconds.
GRACE_SECONDS = 5.0
NOTHING_LOST = "nothing that was saved is lost"


def end_in_one_line(at_once: bool = True) -> None:
    """From now on a signal that asks to stop ends the process with one line and its exit status.

    For the time in which there is nothing to save. A signal that is ignored stays so.

    Args:
      at_once: without unwinding what is under way, which libraries would comment on; False where
        other processes must be told.
    """

    def end(number: int, _frame: Any) -> None:
        _say(f"stopped by {signal.Signals(number).name}; {NOTHING_LOST}")
        if at_once:
            os._exit(SIGNALLED + number)
        sys.exit(SIGNALLED + number)

    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        # A progress bar may stand on the line, and hide the cursor.
        clear = "\r\x1b[2K\x1b[?25h" if os.isatty(2) else ""
        # Not by print, which a handler may interrupt.
        os.write(2, f"{clear}icl_align: error: {line}\n".encode())


class StopSignals:
    """While active, SIGTERM and SIGINT ask the run to stop at the next chunk.

    One that was ignored when the process started, as nohup and the background of a script have it,
    stays ignored: whoever started it so wants it to outlive what they are sent to.

    Python runs a signal's handler between two of its own instructions, so not while the main thread
    compiles or waits for a step. A thread of its own hears of it then, and ends the process where
    nothing is lost by that.

    Args:
      ends_process: whether the process may be ended so, and is by a second signal; in a program of
        the user's a second signal is a KeyboardInterrupt instead.
      goes_on: what to say then of how to go on.

    Attributes:
      received: the first signal.
      saved: whether all that was trained is on disk, so that nothing is lost at once.
    """

    def __init__(self, ends_process: bool = False, goes_on: str = "") -> None:
        self.received: signal.Signals | None = None
        self.saved = True
        self._ends_process, self._goes_on = ends_process, goes_on
        self._in_order = threading.Event()  # the process ends, or has other handlers again

    def __enter__(self) -> "StopSignals":
        self._before = {}
        for number in STOPPING:
            if signal.getsignal(number) == signal.SIG_IGN:
                continue
            with contextlib.suppress(ValueError):  # not the main thread: a launcher's worker
                self._before[number] = signal.signal(number, self._receive)
        if self._ends_process and self._before:
            ear, mouth = os.pipe()
            os.set_blocking(mouth, False)
            self._fd_before = signal.set_wakeup_fd(mouth, warn_on_full_buffer=False)
            self._mouth = mouth
            threading.Thread(target=self._hear, args=(ear,), daemon=True).start()
        return self

    def _receive(self, number: int, _frame: Any) -> None:
        if self.received is not None and not self._ends_process:
            raise KeyboardInterrupt
        self.received = self.received or signal.Signals(number)

    def _hear(self, ear: int) -> None:
        """Reads the number of every signal as soon as it comes, until the other end is closed."""
        received: list[int] = []
        while True:
            ready, _, _ = select.select([ear], [], [], GRACE_SECONDS if received else None)
            numbers = os.read(ear, 64) if ready else b""
            if ready and not numbers:
                os.close(ear)
                return
            received += [number for number in numbers if number in self._before]
            if len(received) > 1:  # a second signal does not wait
                name = signal.Signals(received[1]).name
                _say(f"stopped at once by a second {name}; what was saved stays; {self._goes_on}")
                os._exit(SIGNALLED + received[1])
            if received and not ready and self.saved and not self._in_order.is_set():
                name = signal.Signals(received[0]).name
                _say(f"stopped by {name}; {NOTHING_LOST}; {self._goes_on}")
                os._exit(SIGNALLED + received[0])

    def __exit__(self, *_: Any) -> None:
        self._in_order.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._ends_process and self._before:
            signal.set_wakeup_fd(self._fd_before, warn_on_full_buffer=False)
            os.close(self._mouth)

    def stop(self, where: str, goes_on: str) -> None:
        """Raises RunError, with the shell's exit status for this process's or another's signal.

        Args:
          where: how far the run has come.
          goes_on: what to say of how to go on.
        """
        self._in_order.set()
        number = self.received or signal.SIGTERM
        raise RunError(f"stopped by {number.name} {where}; {goes_on}", SIGNALLED + number)
