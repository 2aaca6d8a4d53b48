"""What ends a command with one line: its error, and its exit status."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from icl_align.config import ConfigError
from icl_align.running.files import why_not_written

USAGE_ERROR = 2  # exit status of a wrong option or a run folder that cannot be used
SIGNALLED = 128  # with the signal's number added: exit status of a run that a signal stopped


class RunError(Exception):
    """Something that ends a run with one line on the terminal and this exit status.

    Args:
      message: the line.
      status: the exit status.
      at_once: libraries cannot end in order either, and would only comment on it.
    """

    def __init__(self, message: str, status: int = 1, at_once: bool = False):
        super().__init__(message)
        self.status, self.at_once = status, at_once


@contextlib.contextmanager
def one_line_errors() -> Iterator[None]:
    """Turns a ConfigError, a RunError or a file that cannot be written into one line on stderr and
    an exit status.
    """
    try:
        yield
    except ConfigError as error:
        sys.stderr.write(f"icl_align: error: {error}\n")
        sys.exit(USAGE_ERROR)
    except RunError as error:
        sys.stderr.write(f"icl_align: error: {error}\n")
        if error.at_once:
            sys.stdout.flush()
            os._exit(error.status)
        sys.exit(error.status)
    except Exception as error:
        reason = why_not_written(error, Path())
        if reason is None:
            raise
        file = getattr(error, "filename", None)
        sys.stderr.write(f"icl_align: error: {f'{file}: ' if file else ''}{reason}\n")
        sys.exit(1)
