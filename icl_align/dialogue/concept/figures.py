"""The figure of a study: what concept.json holds, as a Figure."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icl_align.dialogue.concept.published import PREDICTORS
from icl_align.dialogue.concept.steering import DIRECTIONS, shown_block
from icl_align.dialogue.figures import PLAN_COLORS, READER_COLORS

PUBLISHED_ACCURACY = 0.8318  # Liu et al. (2025)
SOURCE_STYLES = {
    "trained": ("#0072B2", "-"),
    "untrained": ("#999999", "--"),
    "shuffled": ("#999999", ":"),
}
DIRECTION_COLORS = {"probe": "#0072B2", "pattern": "#E69F00", "random": "#999999"}
STEERED = {
    "activation": "activation",
    "accuracy": "accuracy",
    "uncertainty": "uncertainty (nats)",
    "calibration_error_corrected": "calibration error",
}


def concept_figure(found: dict[str, Any]) -> Figure:
    """Probes, reading, shifts, steering, prediction, the immoral instruction, laws."""
    figure = Figure(figsize=(15, 9.5), layout="constrained")
    axes = figure.subplots(3, 4)
    _probe(axes[0, 0], found)
    _read(axes[0, 1], found)
    _shift(axes[0, 2], found)
    _differences(axes[0, 3], found)
    for panel, (quantity, label) in zip(axes[1], STEERED.items(), strict=True):
        _steering(panel, found["steering"], quantity, label)
    for panel, draw, of in (
        (axes[2, 0], _prediction, found["prediction"]),
        (axes[2, 1], _immoral, found["immoral"]),
        (axes[2, 2], _two_state, found["laws"]),
        (axes[2, 3], _additive, found["laws"]),
    ):
        if of:
            draw(panel, of)
        else:
            panel.text(0.5, 0.5, "too few rounds", ha="center", transform=panel.transAxes)
    for panel in axes.flat:
        panel.spines[["top", "right"]].set_visible(False)
    seeds = len(found.get("seeds", [0]))
    figure.supxlabel(
        f"{found['num_dialogues']} dialogues, {seeds} seed{'s' if seeds > 1 else ''}; "
        "bands and bars: 95% interval",
        fontsize=8,
    )
    return figure


def _band(axes: Axes, x: Any, curve: dict[str, Any], **style: Any) -> None:
    axes.plot(x, curve["mean"], **style)
    axes.fill_between(x, curve["low"], curve["high"], color=style["color"], alpha=0.15, lw=0)


def _row(curve: dict[str, Any], *place: Any) -> dict[str, Any]:
    return {name: np.asarray(curve[name])[place] for name in ("mean", "low", "high")}


def _probe(axes: Axes, found: dict[str, Any]) -> None:
    last = len(found["rounds"]) - 1
    layers = range(len(found["probe"]["trained"]["mean"]))
    for source, (color, line) in SOURCE_STYLES.items():
        curve = _row(found["probe"][source], slice(None), last)
        _band(axes, layers, curve, color=color, ls=line, label=source)
    axes.set(xlabel="after block", ylim=(-0.1, 1))
    axes.set_title("probe of the exact log-odds, held out:\n$R^2$ in the last round", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _read(axes: Axes, found: dict[str, Any]) -> None:
    for plan, curve in found["read"]["reading"].items():
        _band(axes, found["rounds"], curve, color=PLAN_COLORS[plan], label=plan.replace("_", " "))
    axes.set(xlabel="round")
    axes.set_title("what the last layer's probe reads\nof the model's own rounds", fontsize=10)
    axes.legend(frameon=False, fontsize=7, ncols=2)


def _shift(axes: Axes, found: dict[str, Any]) -> None:
    trained, untrained = found["shift"]["trained"], found["shift"]["untrained"]
    layers = range(len(trained["careful"]["cosine"]["mean"]))
    for name, of in trained.items():
        for key, line in (("cosine", "-"), ("cosine_pattern", "--")):
            curve = _row(of[key], slice(None), -1)
            label = f"{name}, {'pattern' if key == 'cosine_pattern' else 'weights'}"
            _band(axes, layers, curve, color=PLAN_COLORS[name], ls=line, label=label)
    for name, label in (("careful", "untrained, pattern"), ("careless", None)):
        curve = _row(untrained[name]["cosine_pattern"], slice(None), -1)
        _band(axes, layers, curve, color=SOURCE_STYLES["untrained"][0], ls="--", label=label)
    axes.axhspan(-found["chance_cosine"], found["chance_cosine"], color="#cccccc", alpha=0.4, lw=0)
    axes.set(xlabel="after block", ylim=(-1, 1.5))
    axes.set_title("shift of the state by an instruction:\ncosine with the probe", fontsize=10)
    axes.legend(frameon=False, fontsize=7, ncols=2, loc="upper right")


def _differences(axes: Axes, found: dict[str, Any]) -> None:
    of = found["differences"]["language_model"]["careful"]
    colors = dict(zip(of, ["#0072B2", "#D55E00", "#000000", "#56B4E9", "#CC79A7"], strict=False))
    for quantity, curve in of.items():
        label = quantity.replace("_", " ")
        _band(axes, found["rounds"], curve, color=colors[quantity], label=label)
    axes.axhline(0, color="#999999", lw=0.8)
    axes.set(xlabel="round")
    axes.set_title("what careful instructions change:\ndifference to the plan none", fontsize=10)
    axes.legend(frameon=False, fontsize=7)


def _steering(axes: Axes, of: dict[str, Any], quantity: str, label: str) -> None:
    layer = shown_block(len(of["layers"]))
    for name in DIRECTIONS:
        curve = _row(of[name][quantity], layer)
        _band(axes, of["doses"], curve, color=DIRECTION_COLORS[name], label=name)
    axes.set(xlabel=f"dose after block {of['layers'][layer]}")
    axes.set_title(f"steered: change of {label}", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _prediction(axes: Axes, of: dict[str, Any]) -> None:
    places = np.arange(len(PREDICTORS))
    for shift, (reader, name) in enumerate(
        (("language_model", "language model"), ("exact", "exact reader"))
    ):
        rows = [of[reader][predictor] for predictor in PREDICTORS]
        mean = np.array([row["mean"] for row in rows])
        error = [
            mean - [row["low"] for row in rows],
            np.array([row["high"] for row in rows]) - mean,
        ]
        axes.bar(
            places + 0.4 * shift,
            mean,
            0.38,
            yerr=error,
            color=READER_COLORS[reader],
            label=name,
        )
    axes.axhline(PUBLISHED_ACCURACY, color="#D55E00", lw=1, ls="--", label="published")
    axes.set_xticks(places + 0.2, [name.replace("_", "\n") for name in PREDICTORS], fontsize=8)
    axes.set(ylim=(0.4, 1.02))
    axes.set_title("does uncertainty not rise?\nshare predicted right, held out", fontsize=10)
    axes.legend(frameon=False, fontsize=7, loc="upper left", ncols=3, columnspacing=0.8)


def _immoral(axes: Axes, of: dict[str, Any]) -> None:
    axes.set_title("offset after one immoral instruction\n(log-odds, less careful)", fontsize=10)
    after = range(len(of["language_model"]["reading"]["mean"]))
    shades = np.linspace(0.25, 0.85, len(of["hazards"]))
    for place, hazard in enumerate(of["hazards"]):
        curve = _row(of["exact_own_answers_ignored"], place)
        gray = str(1 - shades[place])
        _band(axes, after, curve, color=gray, ls="--", label=f"exact, hazard {hazard:g}")
    _band(
        axes,
        after,
        of["language_model"]["reading"],
        color=READER_COLORS["language_model"],
        label="language model",
    )
    axes.set(xlabel="rounds later", xticks=list(after), xlim=(-0.1, 5))
    axes.legend(frameon=False, fontsize=7, loc="center right", title="exact: own answers ignored")
    axes.get_legend().get_title().set_fontsize(7)


def _two_state(axes: Axes, of: dict[str, Any]) -> None:
    of = of["two_state"]["language_model"]
    places = np.arange(len(of))
    for shift, (name, label, color) in enumerate(
        (("error", "the law", "#0072B2"), ("error_of_no_change", "no change", "#999999"))
    ):
        rows = [curves[name] for curves in of.values()]
        mean = np.array([row["mean"] for row in rows])
        low = mean - np.array([row["low"] for row in rows])
        high = np.array([row["high"] for row in rows]) - mean
        error = np.maximum([low, high], 0)
        axes.bar(places + 0.4 * shift, mean, 0.38, yerr=error, color=color, label=label)
    names = [name.replace("_", " ") for name in of]
    axes.set_xticks(places + 0.2, names, rotation=40, ha="right", fontsize=8)
    axes.set_title("two-state law, fitted on the first half:\nerror of later accuracy", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _additive(axes: Axes, of: dict[str, Any]) -> None:
    of = of["additive"]
    for reader in ("language_model", "exact"):
        rows = [curves["explained"] for curves in of[reader].values()]
        mean = np.clip([row["mean"] for row in rows], -1, 1)
        axes.plot(mean, "o", color=READER_COLORS[reader], label=reader.replace("_", " "))
    names = [name.replace("_", " ") for name in of["exact"]]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes.set(ylim=(-1.05, 1.05))
    axes.axhline(0, color="#999999", lw=0.8)
    axes.set_title(
        "additive law, fitted on the first half:\n$R^2$ of later log-odds, -1 or more", fontsize=10
    )
    axes.legend(frameon=False, fontsize=8)
