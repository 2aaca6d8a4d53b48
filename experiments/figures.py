"""The figure of a claim: its curves, and beside them every judged effect with its seeds."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.campaign import Campaign
from experiments.claim import Claim, Judgement
from experiments.judge import Finding, bootstrap_interval

# Okabe and Ito's palette: distinct for colour-blind readers and in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")
VERDICT_COLORS = {"supported": "#009E73", "contradicted": "#D55E00", "undecided": "#777777"}


def claim_figure(campaign: Campaign, claim: Claim, findings: list[Finding]) -> Figure:
    """Left, if there are any: the claim's effects against the axis, 95% bootstrap bands over seeds.
    Right: what was judged, one point a seed, on the range where it was predicted.
    """
    rows = len(claim.judgements)
    figure = Figure(figsize=(10, max(3.4, 1.25 * rows)), layout="constrained")
    grid = figure.add_gridspec(rows, 2, width_ratios=(1, 1.15))
    beside = slice(None)
    if claim.figure:
        _draw_curves(figure.add_subplot(grid[:, 0]), campaign, claim)
        beside = 1
    for row, (judgement, finding) in enumerate(zip(claim.judgements, findings, strict=True)):
        values = campaign.values(judgement.how, judgement.effect)
        _draw_judgement(figure.add_subplot(grid[row, beside]), judgement, finding, values)
    return figure


def _draw_curves(axes: Axes, campaign: Campaign, claim: Claim) -> None:
    measures = campaign.base.measures
    quantity = measures.quantities[next(iter(claim.figure.values())).terms[0][1].quantity]
    places = [at for at in campaign.axis() if at >= measures.drawn_from]
    untuned = {
        label: not any(reading.arm.tuned for _, reading in effect.terms)
        for label, effect in claim.figure.items()
    }
    mixed = len(set(untuned.values())) > 1  # then curves of the two kinds do not compare
    for color, (label, effect) in zip(COLORS, claim.figure.items(), strict=False):
        found = [campaign.values("controlled", effect.moved_to(at)) for at in places]
        if not found or any(values is None or not np.all(np.isfinite(values)) for values in found):
            continue
        bands = np.array([bootstrap_interval(values) for values in found])
        label += "*" if mixed and untuned[label] else ""
        axes.plot(places, [np.mean(values) for values in found], color=color, lw=1.8, label=label)
        axes.fill_between(places, bands[:, 0], bands[:, 1], color=color, alpha=0.18, lw=0)
    axes.set_xlabel(measures.axis_label)
    axes.set_ylabel(quantity.label)
    if places:
        axes.set_xlim(places[0], places[-1])
    axes.xaxis.get_major_locator().set_params(integer=True)
    if quantity.symlog:
        axes.set_yscale("symlog", linthresh=0.01)
        axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        title = "* learning rate not tuned" if mixed else None
        axes.legend(fontsize=8, frameon=False, title=title, title_fontsize=8)


def _draw_judgement(
    axes: Axes, judgement: Judgement, finding: Finding, values: np.ndarray | None
) -> None:
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    color = VERDICT_COLORS[finding.verdict]
    axes.set_title(
        f"{judgement.how}: {judgement.prediction}\n", fontsize=8, loc="left", color="black", pad=-6
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
