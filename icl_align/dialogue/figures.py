"""The figure of a run: curves as `curves.json` holds them, as a Figure."""

from typing import Any

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
PANELS = (
    "accuracy",
    "biased",
    "uncertainty",
    "calibration_error_corrected",
    "activation",
    "excess_loss",
)


def curves_figure(curves: dict[str, Any]) -> Figure:
    """Every quantity by round and plan: the language model, and the exact reader beside it."""
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    trained, *others = READERS
    plans = list(curves["readers"][trained])
    for axes, quantity in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        for plan in plans:
            color = PLAN_COLORS[plan]
            curve = curves["readers"][trained][plan][quantity]
            axes.plot(curves["rounds"], curve["mean"], color=color, lw=1.8)
            axes.fill_between(
                curves["rounds"], curve["low"], curve["high"], color=color, alpha=0.15, lw=0
            )
            if quantity != "excess_loss":
                exact = curves["readers"][others[0]][plan][quantity]
                axes.plot(curves["rounds"], exact["mean"], color=color, lw=1.1, ls="--")
        axes.set_xlabel("round")
        axes.set_title(QUANTITIES[quantity].label, fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    lines = [
        Line2D([], [], color=PLAN_COLORS[plan], label=plan.replace("_", " ")) for plan in plans
    ]
    lines.append(Line2D([], [], color="#444444", lw=1.8, label="language model"))
    lines.append(Line2D([], [], color="#444444", lw=1.1, ls="--", label="exact reader"))
    figure.legend(handles=lines, loc="outside right upper", frameon=False, title="plan")
    count, seeds = curves["num_contexts"], len(curves["seeds"])
    figure.supxlabel(
        f"mean over {count} dialogues, {seeds} seed{'s' if seeds > 1 else ''}; bands: 95% interval",
        fontsize=8,
    )
    return figure
