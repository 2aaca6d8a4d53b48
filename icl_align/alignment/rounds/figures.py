"""The figures of own rounds."""

import dataclasses
import textwrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icl_align.alignment.figures import LEARNER_STYLES, learner_label
from icl_align.alignment.options import LEARNED, OwnRoundsConfig
from icl_align.alignment.rounds.learners import MEASURED

STYLES = LEARNER_STYLES | {
    "constructed_1": dict(color="#56B4E9", lw=1.2, ls="-."),
    "constructed_4": dict(color="#56B4E9", lw=1.2, ls=(0, (1, 1))),
}
PANELS = {
    "refinement_error": "refinement error  1 − cos(ŷ, Wx)",
    "regret": "Plackett–Luce regret",
    "agreement": "agreement with gradient descent",
    "movement": "movement  1 − cos(ŷ before, ŷ after)",
    "critic_accuracy": "pairs that the critic ranks right",
}
FORMULA_COLORS = {
    "share": "#D55E00",
    "distance": "#009E73",
    "direction": "#0072B2",
    LEARNED: "#000000",
}


def _label(name: str) -> str:
    return learner_label(name).replace("constructed 1", "constructed, 1 step").replace(
        "constructed 4", "constructed, 4 steps"
    )  # fmt: skip


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def own_rounds_figure(found: dict[str, Any]) -> Figure:
    """Every learner by round, and the transformer's gain by the critic's accuracy.

    Args:
      found: what own_rounds.json holds.
    """
    figure = Figure(figsize=(12, 7), layout="constrained")
    places = figure.subplots(2, 3)
    for axes, (quantity, label) in zip(places.flat, PANELS.items(), strict=False):
        for name in MEASURED:
            curve = found["learners"][name][quantity]
            first = found["rounds"] + 1 - len(curve["mean"])
            x = np.arange(first, found["rounds"] + 1)
            axes.plot(x, curve["mean"], label=_label(name), **STYLES[name])
            color = STYLES[name]["color"]
            axes.fill_between(x, curve["low"], curve["high"], color=color, alpha=0.15, lw=0)
        axes.set_ylabel(label)
        axes.set_xlabel("own rounds")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _clean(axes)
    places[0, 1].set_yscale("symlog", linthresh=0.01)
    for axes in (places[0, 0], places[0, 1], places[1, 0]):
        axes.set_ylim(bottom=0)
    _gains(places[1, 2], found)
    handles, labels = places[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    seeds = found["seeds"]
    of_seeds = f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    count = found["options"]["evaluation"]["num_contexts"]
    figure.suptitle(
        f"own rounds after {found['given_attempts']} given attempts, rewarded by {_judge(found)}; "
        f"mean over {count} contexts, {of_seeds}; bands and bars: 95% interval",
        fontsize=9,
    )
    return figure


def _judge(found: dict[str, Any]) -> str:
    own, others = found["critic"], found["critic_of_others"]
    asked = dataclasses.asdict(OwnRoundsConfig())
    options = found["options"]["own_rounds"]
    changed = [
        f"{key.removeprefix('critic_')} {options[key]}".replace("_", " ")
        for key in asked
        if key not in ("given_attempts", "critic") and options[key] != asked[key]
    ]
    if found["options"]["evaluation"]["own_rounds_first"]:
        changed.append("own attempts read first")
    words = ", ".join([own, *changed])
    return words if own == others else f"{words} (other learners: {others})"


def _gains(axes: Axes, found: dict[str, Any]) -> None:
    drawn = set()
    for row in found["critics"]:
        formula = row["name"].split(",")[0]
        if formula not in FORMULA_COLORS:  # one that guesses
            formula = "share"
        x, y = row["accuracy"], row["gain"]
        axes.errorbar(
            x["mean"],
            y["mean"],
            yerr=[[y["mean"] - y["low"]], [y["high"] - y["mean"]]],
            fmt="o",
            ms=4,
            lw=1,
            color=FORMULA_COLORS[formula],
            label=None if formula in drawn else formula,
        )
        drawn.add(formula)
    axes.axhline(0, color="0.6", lw=0.8)
    axes.set_xlabel("accuracy of the critic")
    axes.set_ylabel(f"transformer's gain after {found['rounds']} rounds")
    if found["correlation"] is not None:
        one = found["correlation"]
        said = f"correlation {one['mean']:.2f} [{one['low']:.2f}, {one['high']:.2f}]"
        axes.set_title(said, fontsize=9)
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, fontsize=8, frameon=False,
        handletextpad=0.2, columnspacing=1.0,
    )  # fmt: skip
    _clean(axes)


def compared_figure(found: dict[str, dict[str, Any]]) -> Figure:
    """The transformers of several runs by round, and all gains by accuracy.

    Args:
      found: name of a run -> what its own_rounds.json holds.
    """
    labels = [textwrap.fill(name, 110) for name in found]
    lines = sum(label.count("\n") + 1 for label in labels)
    figure = Figure(figsize=(11, 4.2 + 0.19 * lines), layout="constrained")
    errors, gains = figure.subplots(1, 2)
    for place, of in enumerate(found.values()):
        color = f"C{place % 10}"
        curve = of["learners"]["transformer"]["refinement_error"]
        x = np.arange(len(curve["mean"]))
        errors.plot(x, curve["mean"], color=color, label=labels[place])
        errors.fill_between(x, curve["low"], curve["high"], color=color, alpha=0.15, lw=0)
        points = [(row["accuracy"]["mean"], row["gain"]["mean"]) for row in of["critics"]]
        gains.plot(*zip(*points, strict=True), "o", ms=3.5, color=color)
    errors.set_ylim(bottom=0)
    errors.set_xlabel("own rounds")
    errors.set_ylabel(PANELS["refinement_error"])
    errors.xaxis.get_major_locator().set_params(integer=True)
    gains.axhline(0, color="0.6", lw=0.8)
    gains.set_xlabel("accuracy of the critic")
    gains.set_ylabel("transformer's gain in the last round")
    for axes in (errors, gains):
        _clean(axes)
    figure.legend(*errors.get_legend_handles_labels(), loc="outside lower center",
                  fontsize=8, frameon=False)  # fmt: skip
    return figure
