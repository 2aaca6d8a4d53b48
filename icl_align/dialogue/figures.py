"""The figure of a run: curves as `curves.json` holds them, as a Figure."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from icl_align.config import implemented
from icl_align.dialogue.options import PLANS, QUANTITIES, READERS

# Okabe and Ito's palette: distinct for colour-blind readers and in print.
PLAN_COLORS = implemented(
    PLANS,
    {
        "speakers": "#999999",
        "none": "#000000",
        "careful": "#0072B2",
        "once": "#56B4E9",
        "careless": "#D55E00",
        "flip": "#E69F00",
        "immoral": "#CC79A7",
        "keep_if_sure": "#009E73",
    },
)
READER_COLORS = implemented(
    READERS,
    {
        "language_model": "#0072B2",
        "exact": "#000000",
        "exact_own_answers_ignored": "#999999",
        "last_instruction": "#E69F00",
        "no_instruction": "#CC79A7",
        "printed_rule": "#D55E00",
        "additive": "#009E73",
    },
)
PANELS = (
    "accuracy",
    "biased",
    "uncertainty",
    "calibration_error_corrected",
    "activation",
    "excess_loss",
)
# Quantities of all readers, under one plan.
OF_READERS = ("accuracy", "uncertainty", "activation")


def curves_figure(curves: dict[str, Any]) -> Figure:
    """Every quantity by round and plan, the exact reader beside the language model; below, all
    readers under one plan.
    """
    figure = Figure(figsize=(11, 9.6), layout="constrained")
    trained, exact = READERS[:2]
    plans = list(curves["readers"][trained])
    panels = figure.subplots(3, 3)
    for axes, quantity in zip(panels[:2].flat, PANELS, strict=True):
        for plan in plans:
            color = PLAN_COLORS[plan]
            _band(axes, curves, (trained, plan, quantity), color=color, lw=1.8)
            if quantity != "excess_loss":
                other = curves["readers"][exact][plan][quantity]
                axes.plot(curves["rounds"], other["mean"], color=color, lw=1.1, ls="--")
        axes.set_title(QUANTITIES[quantity].label, fontsize=10)
    shown = "careful" if "careful" in plans else plans[0]
    for axes, quantity in zip(panels[2], OF_READERS, strict=True):
        for reader in READERS:
            width = 1.8 if reader == trained else 1.1
            place = reader, shown, quantity
            _band(axes, curves, place, color=READER_COLORS[reader], lw=width)
        axes.set_title(f"{quantity}, plan {shown.replace('_', ' ')}", fontsize=10)
        if quantity == "activation":  # the printed rule has no end
            low, high = (curves["readers"][exact][shown][quantity][key] for key in ("low", "high"))
            axes.set_ylim(min(*low, 0) - 5, max(*high, 0) + 2)
    for axes in panels.flat:
        axes.set_xlabel("round")
        axes.spines[["top", "right"]].set_visible(False)
    lines = [
        Line2D([], [], color=PLAN_COLORS[plan], label=plan.replace("_", " ")) for plan in plans
    ]
    lines.append(Line2D([], [], color="#444444", lw=1.8, label="language model"))
    lines.append(Line2D([], [], color="#444444", lw=1.1, ls="--", label="exact reader"))
    figure.legend(handles=lines, loc="outside right upper", frameon=False, title="plan, above")
    lines = [
        Line2D([], [], color=color, label=reader.replace("_", " ").replace(" own", "\nown"))
        for reader, color in READER_COLORS.items()
    ]
    figure.legend(handles=lines, loc="outside right lower", frameon=False, title="reader, below")
    count, seeds = curves["num_contexts"], len(curves["seeds"])
    figure.supxlabel(
        f"mean over {count} dialogues, {seeds} seed{'s' if seeds > 1 else ''}; bands: 95% interval",
        fontsize=8,
    )
    return figure


def _band(axes: Axes, curves: dict[str, Any], place: tuple[str, str, str], **style: Any) -> None:
    """A curve with its interval: (reader, plan, quantity)."""
    reader, plan, quantity = place
    curve = curves["readers"][reader][plan][quantity]
    axes.plot(curves["rounds"], curve["mean"], **style)
    color = style["color"]
    axes.fill_between(curves["rounds"], curve["low"], curve["high"], color=color, alpha=0.15, lw=0)
