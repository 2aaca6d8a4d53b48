"""Where a run's numbers go: the same rows to metrics.jsonl and to Weights & Biases."""

import json
import math
import secrets
from pathlib import Path
from typing import Any

from icl_align.config import ConfigError, WandbConfig
from icl_align.files import write_json


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a metrics.jsonl; a last line cut off by a kill is left out."""
    if not path.exists():
        return []
    text = path.read_text()
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


class MetricsFile:
    """metrics.jsonl: only ever grows; a row that is already there is not written again."""

    def __init__(self, path: Path):
        rows = read_rows(path)
        self._known = {self._identity(row) for row in rows}
        if path.exists():  # drop a line that a kill cut off
            text = path.read_bytes()
            with path.open("r+b") as file:
                file.truncate(text.rfind(b"\n") + 1)
        self._file = path.open("a")

    @staticmethod
    def _identity(row: dict[str, Any]) -> int | str:
        # A step is trained once; curves may be computed again, with other options.
        return json.dumps(row) if "attempts" in row else row["step"]

    def log(self, row: dict[str, Any]) -> None:
        """Appends one row, and hands it to the operating system at once."""
        if self._identity(row) not in self._known:
            self._known.add(self._identity(row))
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Tracker:
    """One small interface to both places.

    Args:
      run_dir: the run folder.
      config: the W&B options.
      resolved: the resolved configuration, as nested dicts.
      tags: ablations and presets.
      group: the sweep, or None.
    """

    def __init__(
        self,
        run_dir: Path,
        config: WandbConfig,
        resolved: dict[str, Any],
        tags: list[str],
        group: str | None,
    ):
        self._wandb = None
        if config.mode != "disabled":
            self._wandb = _start_wandb(run_dir, config, resolved, tags, group)
        self._metrics = MetricsFile(run_dir / "metrics.jsonl")

    def log(self, row: dict[str, Any]) -> None:
        """One row of a training step; `row["step"]` is the W&B step too."""
        self._metrics.log(row)
        if self._wandb:
            values = {key: value for key, value in row.items() if key != "step"}
            self._wandb.log(values, step=row["step"], commit=True)

    def log_curves(self, step: int, curves: dict[str, Any], picture: Path) -> None:
        """The curves as metrics against `attempts`, and as a picture."""
        for place, attempts in enumerate(curves["attempts"]):
            row: dict[str, Any] = {"step": step, "attempts": attempts}
            for learner, levels in curves["learners"].items():
                for noise, quantities in levels.items():
                    for quantity, curve in quantities.items():
                        name = f"curves/{quantity}/{learner}/noise_{noise}"
                        row[name] = curve["mean"][place]
            self._metrics.log(row)
            if self._wandb:
                del row["step"]
                self._wandb.log(row, commit=True)
        if self._wandb:
            import wandb

            self._wandb.log({"curves_picture": wandb.Image(str(picture))})

    def close(self, exit_code: int = 0) -> None:
        """Ends both; the W&B run is marked failed by another exit code than 0."""
        self._metrics.close()
        if self._wandb:
            self._wandb.finish(exit_code=exit_code)


def check_account(config: WandbConfig) -> None:
    """Raises ConfigError if W&B is to be online and knows no account; never asks for one."""
    if config.mode != "online":
        return
    import wandb

    try:
        known = wandb.login(prompt=False)
    except wandb.Error as error:
        raise ConfigError("wandb.mode", "online", " ".join(str(error).split())) from error
    if not known:
        raise ConfigError(
            "wandb.mode",
            "online",
            "no account is known; set WANDB_API_KEY, or use offline or disabled",
        )


def _start_wandb(
    run_dir: Path,
    config: WandbConfig,
    resolved: dict[str, Any],
    tags: list[str],
    group: str | None,
):
    import wandb

    (run_dir / "wandb").mkdir(exist_ok=True)
    identity_file = run_dir / "wandb" / "identity.json"
    if not identity_file.exists():  # a resumed run continues the same W&B run
        identity = {"id": secrets.token_hex(4), "tags": tags, "group": config.group or group}
        write_json(identity_file, identity)
    run = wandb.init(
        mode=config.mode,
        project=config.project,
        entity=config.entity,
        name=config.name,
        config=resolved,
        dir=str(run_dir),
        **json.loads(identity_file.read_text()),
        resume="allow" if config.mode == "online" else None,
        settings=wandb.Settings(silent=True, console="off"),
    )
    run.define_metric("attempts", hidden=True)
    run.define_metric("curves/*", step_metric="attempts")
    return run


def first_not_finite(rows: list[dict[str, Any]]) -> tuple[int, str, float] | None:
    """(step, name, value) of the first number in `rows` that is NaN or infinite."""
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                return row["step"], name, value
    return None
