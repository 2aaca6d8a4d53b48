"""Figures: of a claim its curves and every judged effect with its seeds; of all their verdicts."""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import SymmetricalLogLocator

from experiments.campaign import Campaign
from experiments.claim import Claim, Range, Reading
from experiments.judge import interval
from experiments.verdicts import Judged

# Okabe and Ito's palette: distinct for colour-blind readers and in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
VERDICT_COLORS = {"supported": "#009E73", "contradicted": "#D55E00", "undecided": "#777777"}
TITLE_WIDTH, WHOLE_WIDTH = 80, 150  # characters, beside a curve and without one


def claim_figure(found: list[Judged]) -> Figure:
    """Left, if there are any: the claim's effects against the axis, with 95% intervals over seeds.
    Right: what was judged, one point a seed, on the range where it was predicted.

    Args:
      found: the judgements of one claim.
    """
    rows, claim, campaign = len(found), found[0].claim, found[0].campaign
    figure = Figure(figsize=(10, max(3.4, 1.35 * rows)), layout="constrained")
    grid = figure.add_gridspec(rows, 2, width_ratios=(1, 1.15))
    beside = slice(None)
    if claim.figure:
        _draw_curves(figure.add_subplot(grid[:, 0]), campaign, claim)
        beside = 1
    for row, one in enumerate(found):
        _draw_judgement(figure.add_subplot(grid[row, beside]), one)
    return figure


def verdicts_figure(found: list[Judged]) -> Figure:
    """Every primary effect with its interval: how far inside its range it lies, in units of the
    smallest effect that counts.
    """
    shown = [one for one in found if one.judgement.primary and one.finding.mean == one.finding.mean]
    figure = Figure(figsize=(9, 1 + 0.3 * max(len(shown), 1)), layout="constrained")
    axes = figure.subplots()
    for row, one in enumerate(shown):
        mean, low, high = (
            _inside(one.judgement.predicted, value, one.finding.mean)
            for value in (one.finding.mean, one.finding.low, one.finding.high)
        )
        color = VERDICT_COLORS[one.finding.verdict]
        axes.plot([low, high], [row, row], lw=2.5, color=color, solid_capstyle="butt")
        axes.plot(mean, row, "D", ms=4.5, color=color)
    axes.axvline(0, color="0.4", lw=0.8)
    axes.axvspan(0, 1e3, color="#56B4E9", alpha=0.15, lw=0)
    axes.set_xscale("symlog", linthresh=3)
    ends = [abs(end) for line in axes.lines for end in np.atleast_1d(line.get_xdata())]
    axes.set_xlim(-1.3 * max([3.0, *ends]), 1.3 * max([3.0, *ends]))
    axes.set_yticks(range(len(shown)), [one.name.replace("_", " ") for one in shown], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("inside the predicted range by, in smallest effects that count")
    axes.spines[["top", "right"]].set_visible(False)
    handles = [
        axes.plot([], [], "D", ms=4.5, color=color, label=name)[0]
        for name, color in VERDICT_COLORS.items()
    ]
    figure.legend(handles=handles, loc="outside lower right", ncols=3, fontsize=8, frameon=False)
    return figure


def _inside(predicted: Range, value: float, mean: float) -> float:
    """How far inside the end of a range that is nearer to the mean a value lies, in resolutions;
    below 0 outside.
    """
    from_low, from_high = value - predicted.low, predicted.high - value
    is_low = mean - predicted.low < predicted.high - mean
    return (from_low if is_low else from_high) / predicted.resolution


def _draw_curves(axes: Axes, campaign: Campaign, claim: Claim) -> None:
    measures = campaign.base.measures
    drawn = list(claim.figure.values())
    quantity = measures.quantities[drawn[0].terms[0][1].quantity]
    places = [at for at in campaign.axis() if at >= measures.drawn_from]
    curves = {}
    for label, effect in claim.figure.items():
        found = [campaign.values("controlled", effect.moved_to(at)) for at in places]
        if found and all(values is not None and np.all(np.isfinite(values)) for values in found):
            curves[label] = np.stack(found)  # [places, seeds]
    seeds = min((curve.shape[1] for curve in curves.values()), default=0)
    for color, label in zip(COLORS, claim.figure, strict=False):
        if label not in curves:
            continue
        shared = curves[label][:, :seeds]  # as what is judged compares the same seeds
        bands = np.array([interval(values) for values in shared])
        axes.plot(places, shared.mean(axis=1), color=color, lw=1.8, label=label)
        axes.fill_between(places, bands[:, 0], bands[:, 1], color=color, alpha=0.18, lw=0)
    axes.set_xlabel(measures.axis_label)
    are_differences = any(len(effect.terms) > 1 for effect in drawn)
    axes.set_ylabel(("difference of " if are_differences else "") + quantity.label)
    if places:
        axes.set_xlim(places[0], places[-1])
    axes.xaxis.get_major_locator().set_params(integer=True)
    if quantity.symlog:
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=0.01, subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        title = f"{seeds} seeds"
        axes.legend(title=title, title_fontsize=8, fontsize=8, frameon=False)


def _draw_judgement(axes: Axes, one: Judged) -> None:
    judgement, finding, values = one.judgement, one.finding, one.values
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    color = VERDICT_COLORS[finding.verdict]
    words = f"{'primary, ' if judgement.primary else ''}{judgement.how}: {judgement.prediction}"
    axes.set_title(
        textwrap.fill(words, TITLE_WIDTH if one.claim.figure else WHOLE_WIDTH) + "\n",
        fontsize=8,
        loc="left",
        color="black",
        pad=-6,
    )
    axes.text(1, 1.04, finding.verdict, transform=axes.transAxes, ha="right", fontsize=8,
              color=color, weight="bold")  # fmt: skip
    if values is None or not np.all(np.isfinite(values)):
        axes.text(0.5, 0.5, finding.reason, transform=axes.transAxes, ha="center", fontsize=8)
        axes.set_xticks([])
        return
    axes.plot(values, np.full(len(values), 0.35), "o", ms=4, mfc="none", color=color)
    axes.plot([finding.low, finding.high], [0.7, 0.7], lw=2.5, color=color, solid_capstyle="butt")
    axes.plot(finding.mean, 0.7, "D", ms=5, color=color)
    ends = [end for end in (judgement.predicted.low, judgement.predicted.high) if np.isfinite(end)]
    shown = [*values, *ends, finding.low, finding.high]
    margin = 0.12 * (max(shown) - min(shown) or 1.0)
    limits = min(shown) - margin, max(shown) + margin
    axes.axvspan(
        max(judgement.predicted.low, limits[0]),
        min(judgement.predicted.high, limits[1]),
        color="#56B4E9",
        alpha=0.22,
        lw=0,
    )
    axes.set_xlim(*limits)
    axes.set_ylim(0, 1)
    axes.tick_params(labelsize=8)
    axes.set_xlabel(_label(one), fontsize=8)


def _label(one: Judged) -> str:
    """What the numbers of a judgement are."""
    quantities = one.campaign.base.measures.quantities
    names = {
        quantities[r.quantity].label if isinstance(r, Reading) else r.label
        for _, r in one.judgement.effect.terms
    }
    several = len(one.judgement.effect.terms) > 1
    return ("difference of " if several else "") + "; ".join(sorted(names))
