"""Where a run's numbers go: the same rows to metrics.jsonl and to Weights & Biases."""

import atexit
import contextlib
import math
import os
import secrets
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from icl_align.config import ConfigError, WandbConfig
from icl_align.running.compose import groups
from icl_align.running.files import DamagedFileError, read_json, write_json
from icl_align.running.metrics_file import MetricsFile
from icl_align.world import Measures


def curve_name(measures: Measures, quantity: str, learner: str, condition: str) -> str:
    """The metric of one curve; `condition` is a key of curves.json, such as "0.25"."""
    return _without_dots(f"curves/{quantity}/{learner}/{measures.condition_metric}_{condition}")


def final_name(measures: Measures, quantity: str, condition: str) -> str:
    """The metric that holds the trained learner's quantity at `measures.judged_at`."""
    return _without_dots(f"final/{quantity}/{measures.condition_metric}_{condition}")


def _without_dots(name: str) -> str:
    # W&B takes a dot for nesting, and then forgets the axis and the summary of the metric.
    return name.replace(".", "_")


_importing = threading.Lock()


def import_wandb(folder: Path | None) -> ModuleType:
    """The W&B client, whose temporary files lie below `folder`, where a kill may leave them.

    It makes two folders for them when it is imported, by default among those of all programs.

    Args:
      folder: of a run; None for a folder that ends with the process.
    """
    with _importing:
        if "wandb" not in sys.modules:
            own = Path(tempfile.mkdtemp()) if folder is None else folder / "wandb" / "tmp"
            shutil.rmtree(own, ignore_errors=True)  # of a start that was killed
            own.mkdir(parents=True)
            atexit.register(shutil.rmtree, own, ignore_errors=True)
            if "HOME" not in os.environ:  # without, its service writes its log to the terminal
                with contextlib.suppress(RuntimeError):
                    os.environ["HOME"] = str(Path.home())
                os.environ.setdefault("HOME", str(own.absolute()))
            before, tempfile.tempdir = tempfile.tempdir, str(own.absolute())
            try:
                import wandb
            finally:
                tempfile.tempdir = before
        import wandb

        return wandb


def start_service(folder: Path, config: WandbConfig) -> None:
    """Starts W&B's own process in the background, so that a `Tracker` need not wait for it."""

    def start():
        with contextlib.suppress(Exception):  # the Tracker meets it again, and says so
            import_wandb(folder).setup()

    if config.mode != "disabled":
        threading.Thread(target=start, daemon=True).start()


class Tracker:
    """One small interface to both places.

    Args:
      run_dir: the run folder.
      config: the W&B options.
      resolved: the resolved configuration, as nested dicts.
      tags: ablations and presets.
      group: the sweep or campaign, or None.
      measures: the names of what the run's world measures.
      warn: called with a line on each file that was damaged.
      job_type: what the run does, by which W&B can filter.

    Attributes:
      had_rows: whether metrics.jsonl had any before this start.
    """

    def __init__(
        self,
        run_dir: Path,
        config: WandbConfig,
        resolved: dict[str, Any],
        tags: list[str],
        group: str | None,
        measures: Measures,
        warn: Callable[[str], None] = lambda line: None,
        job_type: str = "train",
    ):
        self._wandb, self._measures = None, measures
        self._metrics = MetricsFile(run_dir / "metrics.jsonl", warn)
        self.had_rows = bool(self._metrics.rows)
        is_new = not _identity_file(run_dir).exists()
        if config.mode != "disabled":
            identity = _identity(run_dir, tags, config.group or group, warn)
            resolved = {**resolved, "ablation": _ablation(identity["tags"])}
            self._wandb = _start_wandb(run_dir, config, identity, resolved, job_type, config.name)
            for name in ("train/loss", "train/grad_norm"):  # of each seed: one chart shows the mean
                self._wandb.define_metric(f"{name}/*", hidden=True)
        # Offline so that the newest folder has the whole run; online where it extends another.
        if config.mode == "offline" or (self._wandb and is_new):
            for row in self._metrics.rows:
                self._to_wandb(row)

    def log(self, row: dict[str, Any]) -> None:
        """One row of a training step; `row["step"]` is the W&B step too.

        The W&B summary keeps the last value, under the metric's own name: every batch is fresh, so
        the smallest loss would only be that of the easiest batch.
        """
        self._metrics.log(row)
        self._to_wandb(row)

    def _to_wandb(self, row: dict[str, Any]) -> None:
        """One row of metrics.jsonl, of a step or of curves, to W&B."""
        if not self._wandb:
            return
        values = {key: value for key, value in row.items() if key != "step"}
        if "train/loss" in row:
            self._wandb.log(values, step=row["step"], commit=True)
        else:
            _define_curves(self._wandb, self._measures, values)
            self._wandb.log(values, commit=True)

    def log_curves(self, step: int, curves: dict[str, Any], picture: Path) -> None:
        """The curves as metrics against the world's axis, the headline numbers, and a picture.

        The row at `measures.judged_at` (at the end, where the axis is shorter) also has the trained
        learner's numbers as `final/...`, which become the summary of the W&B run.
        """
        measures = self._measures
        judged = measures.judged_place(curves[measures.axis])
        for place, at in enumerate(curves[measures.axis]):
            row: dict[str, Any] = {"step": step, measures.axis: at}
            for learner, conditions in curves[self._measures.compared].items():
                for condition, quantities in conditions.items():
                    for quantity, curve in quantities.items():
                        name = curve_name(measures, quantity, learner, condition)
                        row[name] = curve["mean"][place]
                        if learner == measures.trained and place == judged:
                            row[final_name(measures, quantity, condition)] = row[name]
            self._metrics.log(row)
            self._to_wandb(row)
        if self._wandb:
            image = sys.modules["wandb"].Image(str(picture))
            self._wandb.log({"curves_picture": image})

    def log_study(self, found: dict[str, Any], picture: Path) -> None:
        """The headline numbers of a study as a summary of the W&B run, and its picture."""
        if self._wandb:
            name = self._measures.study
            for row in found["summary"]:
                self._wandb.summary[f"{name}/{_without_dots(row['name'])}"] = row["mean"]
            self._wandb.log({f"{name}_picture": sys.modules["wandb"].Image(str(picture))})

    def close(self, exit_code: int = 0) -> None:
        """Ends both; the W&B run is marked failed by another exit code than 0."""
        self._metrics.close()
        if self._wandb:
            self._wandb.finish(exit_code=exit_code)


def check_account(config: WandbConfig, folder: Path) -> None:
    """Raises ConfigError if W&B is to be online and knows no account; never asks for one."""
    if config.mode != "online":
        return
    reason = why_no_account(folder)
    if reason:
        raise ConfigError("wandb.mode", "online", f"{reason}, or use offline or disabled")


def why_no_account(folder: Path | None = None) -> str | None:
    """Why W&B cannot be reached, and what to do; None where it knows an account."""
    wandb = import_wandb(folder)
    try:
        known = wandb.login(prompt=False)
    except wandb.Error as error:
        return " ".join(str(error).split())
    return None if known else "no account is known; set WANDB_API_KEY"


def log_verdicts(folder: Path, config: WandbConfig, group: str, rows: list[dict[str, Any]]) -> None:
    """The verdicts of a campaign as a W&B run of their own, in the campaign's group.

    A report that is written again updates the same run. Mode disabled does nothing.

    Args:
      folder: the campaign's folder; the run's identity stays in its wandb/.
      config: the W&B options.
      group: the campaign.
      rows: one for each judgement, with at least "claim", "judgement", "verdict" and "effect".

    Raises:
      ConfigError: W&B is to be online and knows no account.
    """
    if config.mode == "disabled" or not rows:
        return
    check_account(config, folder)
    wandb = import_wandb(folder)
    rows = [{column: _or_none(value) for column, value in row.items()} for row in rows]
    columns = list(rows[0])
    data = [[row[column] for column in columns] for row in rows]
    identity = _identity(folder, [], config.group or group)
    with _start_wandb(folder, config, identity, {}, "verdicts", "verdicts") as run:
        for row in rows:
            judgement = _without_dots(f"{row['claim']}/{row['judgement']}")
            run.summary[f"verdict/{judgement}"] = row["verdict"]
            if row["effect"] is not None:
                run.summary[f"effect/{judgement}"] = row["effect"]
        run.log({"verdicts": wandb.Table(columns, data, allow_mixed_types=True)})


def _or_none(value: Any) -> Any:
    # NaN and infinity are no JSON: the browser that draws the table cannot read them.
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _identity(
    folder: Path,
    tags: list[str],
    group: str | None,
    warn: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Id, tags and group of the W&B run that lives in `folder`: those it was first started with."""
    file = _identity_file(folder)
    try:
        found = read_json(file) if file.exists() else None
    except DamagedFileError as error:
        warn(f"{error}; W&B will show this run as a new one")
        found = None
    if found is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"id": secrets.token_hex(4), "tags": tags, "group": group})
    return read_json(file)


def _identity_file(folder: Path) -> Path:
    return folder / "wandb" / "identity.json"


def _ablation(tags: list[str]) -> str:
    """The ablations among the tags, as one name by which runs are grouped."""
    return ", ".join(tag for tag in tags if tag in groups()["ablation"]) or "none"


def _start_wandb(
    folder: Path,
    config: WandbConfig,
    identity: dict[str, Any],
    resolved: dict[str, Any],
    job_type: str,
    name: str | None,
):
    return import_wandb(folder).init(
        mode=config.mode,
        project=config.project,
        entity=config.entity,
        name=name,
        config=resolved,
        dir=str(folder),
        job_type=job_type,
        **identity,
        resume="allow" if config.mode == "online" else None,
        reinit="create_new",  # a campaign has several runs open in one process
        settings=sys.modules["wandb"].Settings(silent=True, console="off"),
    )


def _define_curves(run: Any, measures: Measures, row: dict[str, Any]) -> None:
    """Sets axis, charts and summary of the curves.

    By name, one by one: where two patterns match a metric, W&B takes either. Only the trained
    learner's get charts of their own: the others' do not depend on training. The summary has
    `final/...` instead of the values at the end of the axis.
    """
    run.define_metric(measures.axis, hidden=True, summary="none")
    for name in row:
        if name.startswith("curves/"):
            of_the_trained = name.split("/")[2] == measures.trained
            run.define_metric(
                name, step_metric=measures.axis, hidden=not of_the_trained, summary="none"
            )


def first_not_finite(rows: list[dict[str, Any]]) -> tuple[int, str, float] | None:
    """(step, name, value) of the first number in `rows` that is NaN or infinite."""
    for row in rows:
        for name, value in row.items():
            if isinstance(value, float) and not math.isfinite(value):
                return row["step"], name, value
    return None
