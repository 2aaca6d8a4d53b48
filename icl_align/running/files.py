"""Files that are never seen half written."""

import json
from pathlib import Path
from typing import Any


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
