"""The figures. Every function takes curves as `curves.json` holds them and returns a Figure."""

import json
from importlib.resources import files
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from icl_align.alignment.options import LEARNERS, QUANTITIES, TaskConfig
from icl_align.config import implemented

# Okabe and Ito's palette: distinct for colour-blind readers and in print.
LEARNER_STYLES = implemented(
    LEARNERS,
    {
        "transformer": dict(color="#0072B2", lw=2.2, zorder=5),
        "gradient_descent": dict(color="#000000", ls="--", lw=1.4),
        "plackett_luce_optimum": dict(color="#D55E00", ls=":", lw=1.8),
        "best_attempt": dict(color="#009E73", lw=1.2),
        "weighted_average": dict(color="#CC79A7", lw=1.2),
        "least_squares": dict(color="#E69F00", lw=1.2),
    },
)
NOISE_COLORS = ["#08306b", "#2171b5", "#6baed6", "#fd8d3c", "#a63603"]


def learner_label(name: str) -> str:
    """A learner's name in prose."""
    return name.replace("_", " ").replace("plackett luce", "Plackett–Luce")


def published_reward_noise() -> dict[str, Any]:
    """The curves of Wang et al. (2024): reward noise -> refinement error after 2..15 attempts."""
    return json.loads(
        files("icl_align.alignment").joinpath("data/published_reward_noise.json").read_text()
    )


def is_published_task(task: TaskConfig) -> bool:
    """Whether the published curves were measured on this task."""
    return task == TaskConfig()


def draw_curve(
    axes: Axes, attempts: list[int], curve: dict[str, list[float]], **style: Any
) -> None:
    """A mean with its 95% band, from the first attempt on."""
    keep = [place for place, n in enumerate(attempts) if n >= 1]
    x = [attempts[place] for place in keep]
    mean, low, high = ([curve[name][place] for place in keep] for name in ("mean", "low", "high"))
    axes.plot(x, mean, **style)
    axes.fill_between(x, low, high, color=style["color"], alpha=0.18, lw=0)


def curves_figure(curves: dict[str, Any], published: bool) -> Figure:
    """Learners at the lowest noise, the transformer under noise, regret and agreement.

    Args:
      curves: the content of curves.json.
      published: draw the published curves beside the transformer's.
    """
    attempts, learners = curves["attempts"], curves["learners"]
    levels = list(learners["transformer"])
    calm = min(levels, key=float)
    figure = Figure(figsize=(10, 7.2), layout="constrained")
    (errors, noises), (regrets, agreements) = figure.subplots(2, 2)

    for axes, quantity in ((errors, "refinement_error"), (regrets, "regret")):
        for name, style in LEARNER_STYLES.items():
            curve = learners[name][calm][quantity]
            draw_curve(axes, attempts, curve, label=learner_label(name), **style)
    errors.set_title(f"Learners, reward noise {calm}")
    errors.set_ylim(bottom=0)
    errors.legend(fontsize=8, frameon=False)
    regrets.set_title(f"Loss above its minimum, reward noise {calm}")
    regrets.set_yscale("symlog", linthresh=0.01)
    regrets.set_ylim(bottom=0)

    for place, level in enumerate(levels):
        color = NOISE_COLORS[round(place * (len(NOISE_COLORS) - 1) / max(len(levels) - 1, 1))]
        by_quantity = learners["transformer"][level]
        draw_curve(noises, attempts, by_quantity["refinement_error"], color=color, label=f"{level}")
        draw_curve(agreements, attempts, by_quantity["agreement"], color=color, label=f"{level}")
        if published and level in published_reward_noise()["transformer"]:
            source = published_reward_noise()
            noises.plot(
                source["attempts"],
                source["transformer"][level],
                "o",
                ms=3.5,
                mfc="none",
                color=color,
            )
    noises.set_title("Transformer under reward noise")
    noises.set_ylim(bottom=0)
    if published and set(levels) & set(published_reward_noise()["transformer"]):
        noises.plot([], [], "o", ms=3.5, mfc="none", color="0.4", label="published")
    noises.legend(
        title="noise", fontsize=8, title_fontsize=8, frameon=False, loc="center left",
        bbox_to_anchor=(1, 0.5),
    )  # fmt: skip
    agreements.set_title("Transformer and gradient descent")

    quantities = ("refinement_error", "refinement_error", "regret", "agreement")
    for axes, quantity in zip((errors, noises, regrets, agreements), quantities, strict=True):
        axes.set_xlabel("attempts in context")
        axes.set_ylabel(QUANTITIES[quantity].label)
        axes.set_xlim(1, attempts[-1])
        axes.spines[["top", "right"]].set_visible(False)
        axes.xaxis.get_major_locator().set_params(integer=True)
    seeds = curves["seeds"]
    of_seeds = f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}"
    figure.supxlabel(
        f"mean over {curves['num_contexts']} contexts, {of_seeds}; bands: 95% interval", fontsize=8
    )
    return figure
