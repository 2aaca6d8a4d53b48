"""A profile of some training steps, for Perfetto and XProf, by the parts of a step."""

import gzip
import json
import re
from pathlib import Path
from typing import Any

import jax

PARTS = ("tokens", "attention", "mlp", "loss", "optimizer")  # scopes in transformer.py, training.py
_OPERATION = re.compile(r'^\s*(?:ROOT )?%?([\w.\-]+) = .*metadata=\{[^}]*op_name="([^"]*)"', re.M)
_PART = re.compile(rf"(?<![\w.])({'|'.join(PARTS)})(?![\w.])")


def parts_of_operations(program: str) -> dict[str, str]:
    """Operation -> part of a step, for all operations of a compiled program that belong to one.

    Args:
      program: its text, from `jax.stages.Compiled.as_text`.
    """
    found = ((name, _PART.findall(scope)) for name, scope in _OPERATION.findall(program))
    return {name: parts[-1] for name, parts in found if parts}


def name_parts(trace: Path, parts: dict[str, str]) -> None:
    """Puts the part of a step before the name of each of its operations, in a Perfetto trace.

    On a CPU JAX writes bare names of operations; XProf finds the parts in the program beside them.
    """
    content = json.loads(gzip.decompress(trace.read_bytes()))
    for event in content["traceEvents"]:
        part = parts.get(event.get("args", {}).get("hlo_op", ""))
        if part is not None:
            event["name"] = f"{part}: {event['name']}"
            event["args"]["part"] = part
    trace.write_bytes(gzip.compress(json.dumps(content).encode(), 1))


class Profile:
    """A profile of what happens between `start` and `stop`, at most once.

    Args:
      folder: where to; by JAX below `plugins/profile`.
      asked: whether it is wanted at all.
    """

    def __init__(self, folder: Path, asked: bool):
        self._folder, self._asked, self.running = folder, asked, False

    def __enter__(self) -> "Profile":
        return self

    def start(self) -> None:
        """From here on."""
        if self._asked:
            jax.profiler.start_trace(self._folder, create_perfetto_trace=True)
            self._asked, self.running = False, True

    def stop(self, program: jax.stages.Compiled | None = None) -> None:
        """Up to here; `program` says to which parts of a step its operations belong."""
        if not self.running:
            return
        self.running = False
        jax.profiler.stop_trace()
        if program is not None:
            parts = parts_of_operations(program.as_text())
            traces = self._folder.rglob("perfetto_trace.json.gz")
            name_parts(max(traces, key=lambda path: path.stat().st_mtime), parts)  # not older ones

    def __exit__(self, *_: Any) -> None:
        self.stop()
