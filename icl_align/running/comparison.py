"""Several runs side by side: the options that differ, and the headline numbers of each."""

import dataclasses
import re
import shlex
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from icl_align.config import MACHINE, Config, ConfigError, concerned, leaves, setting
from icl_align.running.curves_file import read_curves
from icl_align.running.files import DamagedFileError
from icl_align.running.new_folder import python_here
from icl_align.running.run_folder import EVALUATIONS, from_dict, saved_config

PANELS_ACROSS = 4  # of a figure


@dataclasses.dataclass(frozen=True)
class Compared:
    """One run among those that are compared.

    Attributes:
      folder: of the run.
      config: its options; of an evaluation in a folder of its own, under those.
      ablation: the ablations that its command named; empty without any.
      curves: what its curves.json holds; None where it is not evaluated yet, or damaged.
    """

    folder: Path
    config: Config
    ablation: str
    curves: dict[str, Any] | None


def runs_in(
    folders: Sequence[Path], warn: Callable[[str], None] = lambda line: None
) -> list[Compared]:
    """The runs in some folders, each a run's own or one that holds runs, such as a sweep's.

    Those of one folder are in the order of their names, numbers as numbers: 2 before 10.

    Args:
      folders: of runs.
      warn: called with a line on each file that is damaged.

    Raises:
      ConfigError: a folder holds no run.
    """
    found: dict[Path, Compared] = {}
    for folder in folders:
        is_evaluation = folder.parent.name == EVALUATIONS and (folder / "curves.json").exists()
        own = [folder] if (folder / ".hydra").is_dir() or is_evaluation else []
        below = sorted((path.parent for path in folder.glob("*/**/.hydra")), key=_natural)
        for run in own or below:
            trained = run.parent.parent if is_evaluation else run
            config = saved_config(trained)
            if config is None:
                continue
            curves = _curves(run, config, warn)
            if is_evaluation and curves is not None:
                config = from_dict(dataclasses.asdict(config) | curves["options"])
            found[run] = Compared(run, config, _ablation_of(trained), curves)
        if not own and not below:
            raise ConfigError("folder", folder, "holds no run")
    if not found:
        raise ConfigError("folder", "", "name folders of runs, or of sweeps")
    return list(found.values())


def _ablation_of(run: Path) -> str:
    path = run / ".hydra" / "overrides.yaml"
    overrides = OmegaConf.load(path) if path.exists() else []
    names = [text.partition("=")[2] for text in overrides if text.startswith("+ablation=")]
    return ", ".join(names).strip("[]")


def _natural(path: Path) -> list[Any]:
    parts = re.split(r"(\d+)", str(path))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def _curves(run: Path, config: Config, warn: Callable[[str], None]) -> dict[str, Any] | None:
    try:
        return read_curves(run / "curves.json", config.measures)
    except DamagedFileError as error:
        command = f"{python_here()} -m icl_align.evaluate {shlex.quote(f'run_dir={run}')}"
        warn(f"{error}; {command} makes it again")
        return None


def differing_options(runs: Sequence[Compared]) -> list[str]:
    """Keys of the options in which some runs differ, in the order of `--help`; not of machines."""
    keys: list[str] = []
    for run in runs:
        ignored = concerned(run.config, MACHINE)
        names = [key for key, _, _ in leaves(run.config)]
        keys += [k for k in names if k not in {*keys, *ignored} and not k.startswith("wandb.")]
    values = [{key: value for key, _, value in leaves(run.config)} for run in runs]
    return [key for key in keys if len({repr(one.get(key, _MISSING)) for one in values}) > 1]


def not_default(run: Compared, keys: Sequence[str]) -> str:
    """Those of some options that are not as by default, as they would be typed; may be empty."""
    default = {key: value for key, _, value in leaves(type(run.config)())}
    own = {key: value for key, _, value in leaves(run.config) if key in keys}
    return ", ".join(setting(key, value) for key, value in own.items() if value != default[key])


_MISSING = object()


def label(run: Compared, keys: Sequence[str]) -> str:
    """A run's values of some options, as they would be typed; its folder's name without any."""
    values = {key: value for key, _, value in leaves(run.config)}
    said = [setting(key, values[key]) for key in keys if key in values]
    return ", ".join(said) or run.folder.name


def table(
    runs: Sequence[Compared], at: int | None = None, condition: str | None = None
) -> tuple[str, list[str], list[list[str]]]:
    """Title, header and rows: a row for each run.

    A cell is the mean of what is trained and half the width of its 95% interval.

    Args:
      runs: of one world.
      at: the place on the world's axis; by default where its headline numbers are taken.
      condition: as curves.json calls it; by default the first.

    Raises:
      ConfigError: the runs are of several worlds, or none of them has such numbers.
    """
    measures = runs[0].config.measures
    worlds = {run.config.world for run in runs}
    if len(worlds) > 1:
        raise ConfigError("world", ",".join(sorted(worlds)), "runs of one world can be compared")
    condition = condition or measures.conditions(runs[0].config.evaluation)[0]
    keys = differing_options(runs)
    named = any(run.ablation for run in runs)
    rows, places = [], set()
    for run in runs:
        values = {key: value for key, _, value in leaves(run.config)}
        cells = [setting("", values[key])[1:] if key in values else "–" for key in keys]
        place = _place(run, at)
        numbers = ["–"] * len(measures.quantities)
        if place is not None and condition in run.curves[measures.compared][measures.trained]:
            places.add(run.curves[measures.axis][place])
            of_run = run.curves[measures.compared][measures.trained][condition]
            numbers = [_cell(of_run[name], place) for name in measures.quantities]
        ablation = [run.ablation or "–"] if named else []
        rows.append([_name(run, runs), *ablation, *cells, *numbers, str(run.config.num_seeds)])
    if not places:
        raise _nothing_there(runs, at, condition)
    where = "/".join(str(place) for place in sorted(places))
    by = measures.condition.replace("_", " ")
    names = [name.replace("_", " ") for name in measures.quantities]
    title = f"{measures.trained}, after {where} {measures.axis}, {by} {condition}"
    ablation = ["ablation"] if named else []
    return title, ["run", *ablation, *keys, *names, "seeds"], rows


def _nothing_there(runs: Sequence[Compared], at: int | None, condition: str) -> ConfigError:
    """Why no run has numbers at a place, under a condition."""
    measures = runs[0].config.measures
    evaluated = [run.curves for run in runs if run.curves is not None]
    if not evaluated:
        return ConfigError("folder", runs[0].folder, "no run here is evaluated yet")
    known = {one for curves in evaluated for one in curves[measures.compared][measures.trained]}
    if condition not in known:
        return ConfigError("condition", condition, f"must be one of {', '.join(sorted(known))}")
    last = max(curves[measures.axis][-1] for curves in evaluated)
    return ConfigError("at", at, f"must be on the axis: 0 to {last} {measures.axis}")


def _place(run: Compared, at: int | None) -> int | None:
    """The index on a run's axis that is asked for; None where it has none."""
    if run.curves is None:
        return None
    axis = run.curves[run.config.measures.axis]
    if at is None:
        return run.config.measures.judged_place(axis)
    return axis.index(at) if at in axis else None


def _name(run: Compared, runs: Sequence[Compared]) -> str:
    """The shortest end of a run's path that no other has."""
    parts = run.folder.absolute().parts
    for length in range(1, len(parts)):
        end = parts[-length:]
        if sum(other.folder.absolute().parts[-length:] == end for other in runs) == 1:
            return "/".join(end)
    return str(run.folder)


def _cell(curve: dict[str, list[float]], place: int) -> str:
    half = (curve["high"][place] - curve["low"][place]) / 2
    return f"{curve['mean'][place]:z.3f} ± {half:.3f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as Markdown."""
    lines = ["| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows)]
    return "\n".join(lines)


def curves_figure(runs: Sequence[Compared], condition: str | None = None) -> Any:
    """Each quantity of what is trained against the world's axis, a line with its band for each run.

    Args:
      runs: of one world.
      condition: as in `table`.

    Returns:
      A `matplotlib.figure.Figure`.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    measures = runs[0].config.measures
    condition = condition or measures.conditions(runs[0].config.evaluation)[0]
    keys = differing_options(runs)
    across = min(len(measures.quantities), PANELS_ACROSS)
    down = -(-len(measures.quantities) // across)
    figure = Figure(figsize=(4.2 * across, 0.6 + 3.2 * down), layout="constrained")
    places = figure.subplots(down, across, squeeze=False).flat
    for empty in places[len(measures.quantities) :]:
        empty.remove()
    for axes, (name, quantity) in zip(places, measures.quantities.items(), strict=False):
        for number, run in enumerate(runs):
            of_run = (run.curves or {}).get(measures.compared, {}).get(measures.trained, {})
            if condition not in of_run:
                continue
            curve = of_run[condition][name]
            x = run.curves[measures.axis][measures.drawn_from :]
            low, mean, high = (
                curve[part][measures.drawn_from :] for part in ("low", "mean", "high")
            )
            color = colormaps["viridis"](0.9 * number / max(1, len(runs) - 1))
            axes.plot(x, mean, color=color, lw=1.8, label=label(run, keys))
            axes.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
        if quantity.symlog:
            axes.set_yscale("symlog", linthresh=1e-2)
        axes.set_xlabel(measures.axis_label)
        axes.set_ylabel(textwrap.fill(quantity.label, 36))
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", frameon=False, fontsize=8)
    by = measures.condition.replace("_", " ")
    figure.suptitle(f"{measures.trained}, {by} {condition}; bands: 95% interval", fontsize=10)
    return figure
