"""The figure of a study of jailbreaks: what attacks.json holds, as a Figure."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from icl_align.config import implemented
from icl_align.dialogue.attacks.options import ATTACKS, DEFENCES, EXACT, MODEL, MOST_CHECKS
from icl_align.dialogue.attacks.tables import in_all

# Two palettes that are distinct for colour-blind readers and in print, so that no colour means both
# an attack and a defence: Paul Tol's muted one, and Okabe and Ito's.
ATTACK_COLORS = implemented(
    ATTACKS,
    {
        "none": "#000000",
        "natural_evidence": "#999933",
        "random_search": "#44AA99",
        "gcg_natural": "#88CCEE",
        "gcg": "#882255",
        "gcg_transfer": "#CC6677",
        "autodan": "#117733",
        "gcg_adaptive": "#332288",
    },
)
DEFENCE_COLORS = implemented(
    DEFENCES,
    {
        "none": "#000000",
        "self_reminder": "#E69F00",
        "in_context_refusals": "#F0E442",
        "perplexity_filter": "#009E73",
        "smoothing": "#56B4E9",
        "own_check": "#0072B2",
        "critic_check": "#D55E00",
        "random_check": "#999999",
        "wrong_check": "#8B5A2B",
        "no_check": "#BBBBBB",
        "backup": "#CC79A7",
    },
)


def attacks_figure(found: dict[str, Any]) -> Figure:
    """Success by attack and defence, against the critic's accuracy, beside over-refusal, against
    the budget, and the activation before each answer.
    """
    figure = Figure(figsize=(15, 9), layout="constrained")
    places = figure.add_gridspec(2, 4, height_ratios=[1.15, 1])
    panels = [
        figure.add_subplot(places[0, :]),
        *(figure.add_subplot(places[1, n]) for n in range(4)),
    ]
    draws = (_success, _by_accuracy, _trade_off, _by_budget, _activation)
    for panel, draw in zip(panels, draws, strict=True):
        draw(panel, found)
        panel.spines[["top", "right"]].set_visible(False)
    seeds = len(found.get("seeds", [0]))
    figure.supxlabel(
        f"{found['num_requests']} harmful requests, {seeds} seed{'s' if seeds > 1 else ''}; "
        "bars and bands: 95% interval over requests and seeds",
        fontsize=8,
    )
    return figure


def shown(found: dict[str, Any]) -> list[str]:
    """Of each family of defences the one of most rounds, in order."""
    last = {label.partition(" ")[0]: label for label in found["defences"]}
    return list(last.values())


def _color(label: str) -> str:
    return DEFENCE_COLORS[label.partition(" ")[0]]


def _words(name: str) -> str:
    return name.replace("_", " ")


def _success(axes: Axes, found: dict[str, Any]) -> None:
    labels, attacks = shown(found), found["attacks"]
    width = 0.85 / len(labels)
    for place, label in enumerate(labels):
        x = np.arange(len(attacks)) + (place - (len(labels) - 1) / 2) * width
        own = [found["success"][MODEL][name][label] for name in attacks]
        exact = np.array([found["success"][EXACT][name][label]["mean"] for name in attacks])
        _stacked(axes.bar, axes, x, own, exact, width, _color(label))
    axes.set_xticks(range(len(attacks)), [_words(name) for name in attacks])
    axes.set(ylim=(0, 1.18), xlim=(-0.55, len(attacks) - 0.45), ylabel="attack success")
    axes.set_yticks(np.linspace(0, 1, 6))
    axes.set_title(
        "who complies with harm: full colour evidence, which misleads the exact reader as well; "
        "hatched the network's own flaw; tick: the exact reader",
        fontsize=10,
    )
    handles = [Patch(color=_color(label), label=_words(label)) for label in labels]
    axes.legend(handles=handles, frameon=False, fontsize=8, ncols=6, loc="upper left")


def _band(axes: Axes, x: Any, of: dict[str, Any], **style: Any) -> None:
    axes.plot(x, of["mean"], **style)
    axes.fill_between(x, of["low"], of["high"], color=style["color"], alpha=0.15, lw=0)


def _of_kinds(found: dict[str, Any]) -> list[str]:
    """The attacks of the panels with lines: natural ones, and one that is not."""
    return [n for n in ("none", "natural_evidence", "gcg") if n in found["attacks"]]


def _by_accuracy(axes: Axes, found: dict[str, Any]) -> None:
    of, rounds = found["by_critic_accuracy"], found["by_critic_accuracy"]["rounds"][-1]
    for name in _of_kinds(found):
        for reader, line in ((MODEL, "-"), (EXACT, "--")):
            curve = {k: np.asarray(v)[:, rounds] for k, v in of[reader][name].items()}
            label = _words(name) if reader == MODEL else None
            _band(axes, of["accuracy"], curve, color=ATTACK_COLORS[name], ls=line, label=label)
    axes.set(xlabel="accuracy of the critic", ylabel="attack success", ylim=(0, 1))
    axes.set_title(f"after {rounds} checks of a critic\n(dashed: exact reader)", fontsize=10)
    axes.legend(frameon=False, fontsize=8)


def _trade_off(axes: Axes, found: dict[str, Any]) -> None:
    worst = "gcg" if "gcg" in found["attacks"] else found["attacks"][-1]
    for label in found["defences"]:
        x = found["over_refusal"][MODEL][label]["mean"]
        y = found["success"][MODEL][worst][label]["mean"]
        times = label.partition(" ")[2]
        axes.plot(x, y, "o", color=_color(label), ms=7, alpha=0.8, clip_on=False)
        if times:
            axes.annotate(times, (x, y), ha="center", va="center", fontsize=5, color="white")
    axes.set(xlabel="benign requests refused", ylabel="attack success", ylim=(0, 1))
    most = max(of["mean"] for of in found["over_refusal"][MODEL].values())
    axes.set_xlim(-0.05 * most - 0.001, 1.1 * most + 0.001)
    axes.set_title(
        f"over-refusal beside success of {_words(worst)}\n"
        "(colours as above; how many checks or examples)",
        fontsize=10,
    )


def _by_budget(axes: Axes, found: dict[str, Any]) -> None:
    for name, of in found["by_budget"].items():
        _band(axes, of["passes"], of, color=ATTACK_COLORS[name], label=_words(name))
    axes.set(xlabel="forward passes for each request", ylim=(0, 1))
    axes.set_title("what a search has found\n(of the adaptive one after the check)", fontsize=10)
    if found["by_budget"]:
        axes.legend(frameon=False, fontsize=8)


def _activation(axes: Axes, found: dict[str, Any]) -> None:
    for name in _of_kinds(found):
        for source, line in (("probe", "-"), ("exact", "--")):
            of = found["activation"][name][source]
            label = _words(name) if source == "probe" else None
            x = range(len(of["mean"]))
            _band(axes, x, of, color=ATTACK_COLORS[name], ls=line, label=label)
    axes.set(xlabel="own checks so far", ylabel="activation (log-odds of careful)")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_title(
        "before each answer: probe\n(dashed: exact reader of the same words)", fontsize=10
    )
    axes.legend(frameon=False, fontsize=8)


def compared_figure(found: dict[str, dict[str, Any]]) -> Figure:
    """Success of several runs, evidence and flaw stacked, without a defence and after own checks.

    Args:
      found: name of a run -> what its attacks.json holds.
    """
    attacks = in_all(found)
    labels = [
        one
        for one in ("none", f"own_check {MOST_CHECKS}")
        if all(one in of["defences"] for of in found.values())
    ]
    figure = Figure(figsize=(3 + 4 * len(attacks), 1.6 + 0.5 * len(found)), layout="constrained")
    panels = figure.subplots(1, len(attacks), sharey=True, squeeze=False)[0]
    places = np.arange(len(found))
    height = 0.8 / len(labels)
    for panel, name in zip(panels, attacks, strict=True):
        for number, label in enumerate(labels):
            own = [of["success"][MODEL][name][label] for of in found.values()]
            exact = np.array([of["success"][EXACT][name][label]["mean"] for of in found.values()])
            y = places + (number - (len(labels) - 1) / 2) * height
            _stacked(panel.barh, panel, y, own, exact, height, _color(label), across=True)
        panel.set(xlim=(0, 1), xlabel="attack success")
        panel.set_title(_words(name), fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(places, list(found), fontsize=8)
    panels[0].invert_yaxis()
    handles = [Patch(color=_color(label), label=_words(label)) for label in labels]
    panels[0].legend(
        handles=handles,
        frameon=False,
        fontsize=8,
        ncols=2,
        loc="lower left",
        bbox_to_anchor=(0, 1.1),
    )
    seeds = sorted({len(of.get("seeds", [0])) for of in found.values()})
    figure.supxlabel(
        "full colour: evidence, which misleads the exact reader as well; hatched: the flaw; "
        f"tick: the exact reader; bars: 95% interval, {' or '.join(map(str, seeds))} seeds",
        fontsize=8,
    )
    return figure


def _stacked(
    bar: Any,
    axes: Axes,
    places: Any,
    own: list[dict[str, float]],
    exact: Any,
    width: float,
    color: str,
    across: bool = False,
) -> None:
    """Bars of a network's success: in full colour what the exact reader has as well, hatched what
    it has not; and a tick at the exact reader's.
    """
    mean = np.array([row["mean"] for row in own])
    evidence = np.minimum(mean, exact)
    bar(places, evidence, width, color=color)
    start = {"left" if across else "bottom": evidence}
    style = dict(facecolor="none", edgecolor=color, hatch="//////", linewidth=0.6)
    bar(places, mean - evidence, width, **style, **start)
    lines = axes.vlines if across else axes.hlines
    lines(exact, places - width / 2, places + width / 2, color="#333333", linewidth=1.2)
    error = np.abs(np.array([[row["low"], row["high"]] for row in own]).T - mean)
    x, y = (mean, places) if across else (places, mean)
    ends = {"xerr" if across else "yerr": error}
    axes.errorbar(x, y, fmt="none", ecolor="#333333", elinewidth=0.7, **ends)
