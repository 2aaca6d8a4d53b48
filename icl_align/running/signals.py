"""Signals that ask a run to stop: it saves its state first."""

import contextlib
import os
import signal
import sys
from typing import Any

from icl_align.running.errors import SIGNALLED, RunError

STOPPING = (signal.SIGTERM, signal.SIGINT)


def end_in_one_line(at_once: bool = True) -> None:
    """From now on a signal that asks to stop ends the process with one line and its exit status.

    For the time in which there is nothing to save. A signal that is ignored stays so.

    Args:
      at_once: without unwinding what is under way, which libraries would comment on; False where
        other processes must be told.
    """

    def end(number: int, _frame: Any) -> None:
        _say(f"stopped by {signal.Signals(number).name}; nothing was under way that is not saved")
        if at_once:
            os._exit(SIGNALLED + number)
        sys.exit(SIGNALLED + number)

    for number in STOPPING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"icl_align: error: {line}\n".encode())  # a handler may interrupt a print


class StopSignals:
    """While active, SIGTERM and SIGINT ask the run to stop at the next chunk.

    One that was ignored when the process started, as nohup and the background of a script have it,
    stays ignored: whoever started it so wants it to outlive what they are sent to.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {}
        for number in STOPPING:
            if signal.getsignal(number) == signal.SIG_IGN:
                continue
            with contextlib.suppress(ValueError):  # not the main thread: a launcher's worker
                self._before[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, _frame: Any) -> None:
        if self.received is not None:  # a second signal does not wait
            _say(f"stopped at once by a second {signal.Signals(number).name}; what was saved stays")
            os._exit(SIGNALLED + number)
        self.received = signal.Signals(number)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop(self, where: str, goes_on: str) -> None:
        """Raises RunError, with the shell's exit status for this process's or another's signal.

        Args:
          where: how far the run has come.
          goes_on: what to say of how to go on.
        """
        number = self.received or signal.SIGTERM
        raise RunError(f"stopped by {number.name} {where}; {goes_on}", SIGNALLED + number)
