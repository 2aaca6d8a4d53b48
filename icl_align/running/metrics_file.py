"""metrics.jsonl: one row a line, of training steps and of curves."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(path: Path, warn: Callable[[str], None] = lambda line: None) -> list[Row]:
    """The rows of a metrics.jsonl that are whole; none where there is no file.

    A last line that a kill cut off is left out, and so is one that was damaged later.

    Args:
      path: of the file.
      warn: called with a line on what was damaged.
    """
    rows, damaged = _rows_and_damaged_lines(path)
    if damaged:
        warn(_words_on(path, damaged))
    return rows


def _words_on(path: Path, damaged: list[int]) -> str:
    lines = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
    return f"{path} is damaged in line {lines}; the rest is kept"


def _rows_and_damaged_lines(path: Path) -> tuple[list[Row], list[int]]:
    """The rows, and the numbers of the lines that are none, from 1; a last one that is cut off is
    no damage.
    """
    if not path.exists():
        return [], []
    *lines, _ = path.read_bytes().split(b"\n")
    rows, damaged = [], []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError("no row")
            rows.append(row)
        except ValueError:
            damaged.append(number)
    return rows, damaged


class MetricsFile:
    """metrics.jsonl: only ever grows; a row that is already there is not written again.

    Lines that were damaged are moved to a file beside it.

    Args:
      path: made when missing, with its folder.
      warn: called with a line on what was damaged.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] = lambda line: None):
        self.rows, damaged = _rows_and_damaged_lines(path)
        self._known = {self._identity(row) for row in self.rows}
        if damaged:
            aside = next(
                other
                for count in itertools.count(1)
                if not (other := path.with_name(f"metrics_damaged_{count}.jsonl")).exists()
            )
            path.rename(aside)
            partial = path.with_name("metrics.jsonl.partial")
            partial.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
            partial.replace(path)
            warn(f"{_words_on(path, damaged)}, the old file is {aside}")
        elif path.exists():  # drop a line that a kill cut off
            text = path.read_bytes()
            with path.open("r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a")

    @staticmethod
    def _identity(row: Row) -> int | str:
        # A step is trained once; curves may be computed again, with other options.
        return row["step"] if "train/loss" in row else json.dumps(row)

    def log(self, row: Row) -> None:
        """Appends one row, and hands it to the operating system at once."""
        if self._identity(row) not in self._known:
            self._known.add(self._identity(row))
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
