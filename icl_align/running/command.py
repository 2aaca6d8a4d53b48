"""What every command does first, and how it prints what somebody may pipe into `head`."""

import contextlib
import logging
import os
import sys

from icl_align.running.signals import end_in_one_line


def begin() -> None:
    """A signal ends the command with one line; a letter that the terminal lacks becomes a `?`."""
    end_in_one_line()
    os.environ["MPLBACKEND"] = "agg"  # figures go to files, whatever is said for other programs
    logging.raiseExceptions = False  # a log that cannot be written is not what went wrong
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a notebook's stream, or none
            stream.reconfigure(errors="replace")


def show(text: str) -> None:
    """Prints text; a reader that has seen enough may close the pipe."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # What is left in the buffer must not be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
