"""The figures of the theory. Every function takes what the JSON files hold and returns a Figure."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLORS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
DTYPE_COLORS = {"float64": COLORS[0], "float32": COLORS[1]}


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)


def limits_figure(limits: dict[str, dict[str, list[float]]]) -> Figure:
    """Largest relative error against what is varied, one panel for each limit."""
    figure = Figure(figsize=(3.1 * len(limits), 3.2), layout="constrained")
    panels = figure.subplots(1, len(limits), sharey=True)
    for axes, (name, sweep) in zip(panels, limits.items(), strict=True):
        values = np.array(sweep["values"])
        positive = values > 0
        for dtype, color in DTYPE_COLORS.items():
            errors = np.maximum(sweep[dtype], 1e-17)
            axes.loglog(values[positive], errors[positive], "o-", ms=3, color=color, label=dtype)
            if not positive.all():  # a tie, drawn at the left end
                tie = values[positive].min() / 5
                axes.plot(tie, errors[~positive][0], "s", ms=4, color=color)
        if not positive.all():
            axes.annotate("tie", (tie, errors[~positive][0]), xytext=(-4, 6),
                          textcoords="offset points", fontsize=8)  # fmt: skip
        axes.axhline(1e-9, color=DTYPE_COLORS["float64"], ls=":", lw=1)
        axes.axhline(1e-4, color=DTYPE_COLORS["float32"], ls=":", lw=1)
        axes.set_xlabel(name.replace(", ", ",\n"))
        _clean(axes)
    panels[0].set_ylabel("largest relative error")
    panels[0].legend(fontsize=8, frameon=False)
    figure.suptitle("Where the constructed networks stop being exact", fontsize=11)
    return figure


def knock_outs_figure(rows: list[dict[str, Any]]) -> Figure:
    """Share of the update missed, as the network is left and after each repair."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    axes = figure.subplots()
    highest = 1.6  # drawn; an arrow stands for more
    series = {
        "as it is left": ("0.6", [row["as_left"] for row in rows]),
        "refit": (COLORS[0], [row["repairs"]["refit"]["best"] for row in rows]),
        "same size from scratch": (COLORS[1], [row["repairs"]["scratch"]["best"] for row in rows]),
        "wider from scratch": (COLORS[2], [row["repairs"]["wide"]["best"] for row in rows]),
    }
    for number, (label, (color, values)) in enumerate(series.items()):
        x = np.arange(len(rows)) + 0.2 * (number - 1.5)
        values = [np.inf if value is None else value for value in values]
        axes.bar(x, np.clip(values, None, highest), 0.2, color=color, label=label)
        for place, value in zip(x, values, strict=True):
            if value > highest:
                axes.annotate("↑", (place, highest), ha="center", va="bottom", fontsize=9)
    axes.axhline(1, color="0.3", lw=0.8, ls="--")
    axes.text(-0.5, 1.02, "no update at all", fontsize=8)
    axes.set_ylim(0, highest + 0.1)
    axes.set_xticks(range(len(rows)), [row["knock_out"].replace("_", "\n") for row in rows],
                    fontsize=8)  # fmt: skip
    axes.set_ylabel("share of the update missed")
    figure.legend(fontsize=8, frameon=False, ncols=4, loc="outside upper center")
    _clean(axes)
    return figure


def _bars(axes: Axes, values: dict[str, dict[str, float]], label: str) -> None:
    names = list(values)
    place = np.arange(len(names))[::-1]
    means = [values[name]["mean"] for name in names]
    halves = [values[name]["half_width"] for name in names]
    axes.barh(place, means, xerr=halves, color=COLORS[0], height=0.65, error_kw={"lw": 1})
    axes.set_yticks(place, [name.replace("_", " ") for name in names], fontsize=8)
    axes.set_xlabel(label)
    axes.axvline(0, color="0.3", lw=0.8)
    _clean(axes)


def _heat(axes: Axes, table: np.ndarray, rows: list[str], columns: list[str], title: str) -> Any:
    image = axes.imshow(table, vmin=0, vmax=1, cmap="viridis", aspect="auto")
    axes.set_yticks(range(len(rows)), rows, fontsize=7)
    axes.set_xticks(range(len(columns)), columns, fontsize=7)
    axes.set_title(title, fontsize=9)
    return image


MOST_RANKS = 8  # drawn of an attention map


def trained_figure(results: dict[str, Any]) -> Figure:
    """The comparison of a run with the construction: answers, sensitivities, layers and heads.

    Args:
      results: the content of trained.json.
    """
    figure = Figure(figsize=(13, 10.5), layout="constrained")
    panels = figure.subplots(3, 3)
    agreement = results["agreement"]
    attempts = list(agreement)
    last = agreement[attempts[-1]]
    first = next(iter(last))

    def others(table):
        return {name: value for name, value in table.items() if name != first}

    _bars(panels[0, 0], others(last[first]), f"cosine of answers after {attempts[-1]} attempts")
    panels[0, 0].set_title(f"Agreement with: {first}", fontsize=9)
    sensitivity = results["sensitivity"]
    _bars(panels[0, 1], others(sensitivity[first]), "cosine of Jacobians by the responses")
    panels[0, 1].set_title(f"Sensitivity like: {first}", fontsize=9)
    _bars(
        panels[0, 2],
        {name: moved["r^3"] for name, moved in results["transforms"].items()},
        "1 - cosine of the answers to r and to r³",
    )
    panels[0, 2].set_title("Moved by cubing the rewards", fontsize=9)

    probes = results["probes"]
    columns = [str(step) for step in probes["steps"]]
    for axes, name in ((panels[1, 0], "trained"), (panels[1, 1], "untrained")):
        table = np.array(probes[name])
        rows = ["embedded", *(f"block {n}" for n in range(1, len(table)))]
        image = _heat(axes, np.clip(table, 0, 1), rows, columns, f"Linear probe, {name}: R²")
        for (y, x), value in np.ndenumerate(table):
            axes.text(x, y, f"{value:.2f}", ha="center", va="center", fontsize=7,
                      color="white" if value < 0.6 else "black")  # fmt: skip
        axes.set_xlabel("steps of gradient descent", fontsize=8)
    figure.colorbar(image, ax=panels[1, 1], shrink=0.8)

    axes = panels[1, 2]
    starts = results["training"]["starts"]
    for (name, of_seeds), color in zip(starts.items(), COLORS, strict=False):
        for seed, of in enumerate(of_seeds):
            x = [max(row["step"], 0.5) for row in of["rows"]]
            y = [row["picks"] for row in of["rows"]]
            axes.semilogx(x, y, "o-", ms=3, lw=1, color=color, label=None if seed else name)
            if of["diverged_by"] is not None:
                axes.plot(x[-1], y[-1], "X", ms=8, color=color)
    axes.set_xlabel("training step (first: before training)")
    axes.set_ylabel("attention to each rank by its best head")
    axes.set_title("Training from the construction (X: it diverges)", fontsize=9)
    axes.set_ylim(0, 1.05)
    axes.legend(fontsize=7, frameon=False)
    _clean(axes)

    for axes, name in zip(panels[2], ("trained", "untrained", "constructed"), strict=True):
        maps = np.array(results["attention"][name])[0]  # the first seed
        heads, ranks = maps.shape[1:]
        shown = min(MOST_RANKS, ranks)
        if name == "constructed":
            maps, heads = maps[:shown, :1], 1
        rows = [
            f"block {layer + 1}" + (f", head {head + 1}" if heads > 1 else "")
            for layer in range(len(maps))
            for head in range(heads)
        ]
        title = f"Attention by rank, {name}" + (", head 1" if name == "constructed" else "")
        table = maps.reshape(-1, ranks)[:, :shown]
        image = _heat(axes, table, rows, [str(rank) for rank in range(1, shown + 1)], title)
        axes.set_xlabel("rank of the attempt, best first", fontsize=8)
    figure.colorbar(image, ax=panels[2, 2], shrink=0.8)
    return figure
