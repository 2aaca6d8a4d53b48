"""Files that are never seen half written."""

import json
from pathlib import Path
from typing import Any


class DamagedFileError(ValueError):
    """A file that does not hold what was written to it; names it, in one line."""

    def __init__(self, path: Path, reason: str):
        self.path, self.reason = path, reason
        super().__init__(f"{path} {reason}")


def read_json(path: Path) -> Any:
    """The JSON of a file.

    Raises:
      DamagedFileError: it holds something else.
    """
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DamagedFileError(path, "is no JSON; it was cut off or overwritten") from error


def write_json(path: Path, value: Any) -> None:
    """Writes JSON so that a reader never sees half of it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(value) + "\n")
    partial.replace(path)


def save_figure(figure: Any, path: Path) -> None:
    """Writes a figure as a PNG so that a reader never sees half of it."""
    partial = path.with_name(path.stem + ".partial.png")
    figure.savefig(partial, dpi=150)
    partial.replace(path)
