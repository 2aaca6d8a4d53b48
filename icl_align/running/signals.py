"""Signals that ask a run to stop: it saves its state first."""

import contextlib
import signal
from typing import Any

from icl_align.running.errors import SIGNALLED, RunError


class StopSignals:
    """While active, SIGTERM and SIGINT ask the run to stop at the next chunk.

    One that was ignored when the process started, as nohup and the background of a script have it,
    stays ignored: whoever started it so wants it to outlive what they are sent to.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignals":
        self._before = {}
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) == signal.SIG_IGN:
                continue
            with contextlib.suppress(ValueError):  # not the main thread: a launcher's worker
                self._before[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number: int, _frame: Any) -> None:
        if self.received is not None:  # a second signal does not wait
            raise KeyboardInterrupt
        self.received = signal.Signals(number)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def stop_if_received(self, where: str) -> None:
        """Raises RunError, with the shell's exit status for the signal, if one has come."""
        if self.received is not None:
            self.stop(where)

    def stop(self, where: str) -> None:
        """Raises RunError, with the shell's exit status for this process's or another's signal."""
        number = self.received or signal.SIGTERM
        raise RunError(
            f"stopped by {number.name} {where}; the same command goes on from there",
            SIGNALLED + number,
        )
