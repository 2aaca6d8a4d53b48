"""The report: tables on the terminal and in Markdown, all raw numbers as JSON, a figure."""

import dataclasses
import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.contest import Ratio
from benchmarks.growth import Exponent
from benchmarks.steps import OURS, peak_flops
from icl_align.running.files import write_json

BUSY = 0.05  # share of the processors in others' hands above which a number is not to be trusted
BLUE, ORANGE, GREEN, BLACK = "#0072B2", "#D55E00", "#009E73", "#000000"  # Okabe and Ito
PARTS = ("loss", "attention", "step")
AXIS_LABELS = {
    "model.num_layers": "layers",
    "model.width": "width",
    "train.batch_size": "contexts a step",
    "num_seeds": "seeds trained together",
}


@dataclasses.dataclass
class Table:
    """A table with what must be said below it."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = dataclasses.field(default_factory=list)

    def markdown(self) -> str:
        """The table as a section of a Markdown text."""
        rule = ["---", *["---:"] * (len(self.header) - 1)]
        lines = ["| " + " | ".join(row) + " |" for row in (self.header, rule, *self.rows)]
        notes = [f"{note}  " for note in self.notes]
        return "\n".join([f"## {self.title}", "", *lines, "", *notes]).rstrip() + "\n"


def mebibytes(count: int | None) -> str:
    """Bytes in MiB; a dash where nothing is known."""
    return "–" if count is None else f"{count / 2**20:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds to three digits; a dash where nothing is known."""
    return "–" if seconds is None else f"{seconds:.3g} s"


def milliseconds(seconds: float) -> str:
    """Seconds in ms, to three digits or more."""
    value = 1000 * seconds
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


# ------------------------------------------------------------------------------------------ tables


def machine_table(machine: dict[str, Any], accelerator: str | None) -> Table:
    """The machine and the versions of what runs on it."""
    packages = {name: found or "not installed" for name, found in machine["packages"].items()}
    rows = [
        ["processor", machine["processor"]],
        ["cores", f"{machine['cores']} usable, {machine['cores_physical']} physical"],
        ["memory", f"{machine['memory_bytes'] / 2**30:.1f} GiB"],
        ["accelerator", accelerator or "none"],
        ["system", machine["system"]],
        ["Python", machine["python"]],
        *map(list, packages.items()),
        *([name, value] for name, value in machine["environment"].items()),
    ]
    return Table("Machine", ["", ""], rows)


def case_table(name: str, case: dict[str, Any]) -> Table:
    """Contenders on one configuration."""
    peak = peak_flops(case)
    rows, notes = [], []
    for label, found in case["contenders"].items():
        if "failed" in found:
            rows.append([label, *["–"] * 9])
            notes.append(f"{label} failed: {found['failed']}")
            continue
        seconds, memory = found["step_seconds"], found["memory"]
        each = [turn["seconds"] for turn in found["turns"]]
        speed = found.get("flops", case["flops"]) / seconds
        if memory["device_peak"] is None:
            space = [mebibytes(memory["peak"]), mebibytes(memory["steps_peak"])]
        else:
            space = [mebibytes(memory["device_peak"])] * 2
        rows.append(
            [
                label,
                f"{milliseconds(seconds)} ({milliseconds(min(each))} to {milliseconds(max(each))})",
                "1" if label == OURS else str(Ratio(**found["ratio"])),
                f"{case['contexts'] / seconds:,.0f}",
                f"{speed / 1e9:,.1f}",
                f"{speed / peak:.1%}",
                *space,
                duration(found["compile_seconds"]),
                duration(found["to_first_step_seconds"]),
            ]
        )
        if found.get("temporary_bytes"):
            notes.append(
                f"{label}: {mebibytes(found['temporary_bytes'])} MiB are activations and other "
                "temporaries of the compiled program."
            )
        if "attention" in found:
            trial = ", ".join(
                f"{kind} {milliseconds(s)} ms" for kind, s in found["trial_seconds"].items()
            )
            notes.append(
                f"{label}: attention {found['attention']} (in the trial {trial}), Adam "
                f"{found['adam']}, {found['threads']} threads."
            )
    products = {k: v["per_second"] for k, v in case["peak"].items() if k != "copy"}
    copied = case["peak"]["copy"]["per_second"]
    notes += [
        f"{case['contexts']} contexts of {case['tokens']} tokens, {case['flops'] / 1e9:,.3g} GFLOP "
        "of matrix products a step (forward and gradient; all else is not counted).",
        "Peak, in turns with the steps: "
        + ", ".join(f"{v / 1e9:,.0f} GFLOP/s {k}" for k, v in products.items())
        + f"; a copy {copied / 1e9:,.1f} GB/s read and written. "
        f"A step is bound by memory below {peak / copied:.0f} FLOP a byte.",
        "Times ours: median of the ratios within a round, and their range. Memory: of the process, "
        "with its libraries and its compiler, and at most while stepping.",
    ]
    turns = [found for found in case["contenders"].values() if "others" in found]
    notes += busy_note([turn["others"] for turn in turns])
    header = ["", "step, ms", "times ours", "contexts/s", "GFLOP/s", "of peak"]
    header += ["peak MiB", "stepping MiB", "compile", "to first step"]
    return Table(f"Training step: {name}", header, rows, notes)


def busy_note(shares: list[float]) -> list[str]:
    """What other processes took of the machine, with a warning where it is much."""
    most = max(shares, default=0.0)
    note = f"Other processes used {most:.1%} of the processors meanwhile"
    return [f"{note}: **too much for these numbers to be trusted**." if most > BUSY else f"{note}."]


def start_table(start: dict[str, Any]) -> Table:
    """Time from a command to its first step."""
    rows = [["--help", duration(start["help"].get("median")), "–"]]
    notes = ["Whole processes of `python -m icl_align.train`, offline W&B included."]
    notes += ["Cold: nothing compiled before. Warm: the same command a second time."]
    for name, found in start["cases"].items():
        if "failed" in found:
            rows.append([name, "–", "–"])
            notes.append(f"{name} failed: {found['failed']}")
        else:
            rows.append([name, duration(found["cold"]), duration(found["warm"])])
    return Table("From the command to the first step", ["", "cold", "warm"], rows, notes)


def reach_table(reach: dict[str, Any]) -> Table:
    """Time until what a world measures is small."""
    rows, notes = [], []
    for label, trainings in reach["trainings"].items():
        steps = [one["steps"] for one in trainings if one["steps"] is not None]
        seconds = [one["seconds"] for one in trainings if one["seconds"] is not None]
        lowest = [min(check["error"] for check in one["checks"]) for one in trainings]
        # The median exists only where more than half of the trainings have got there.
        most = len(steps) * 2 > len(trainings)
        order = (None,) * (len(trainings) - len(steps))
        middle = [*sorted(zip(seconds, steps, strict=True)), *order][(len(trainings) - 1) // 2]
        rows.append(
            [
                label,
                f"{len(steps)} of {len(trainings)}",
                duration(middle[0]) if most else "not reached",
                f"{middle[1]}" if most else "not reached",
                duration(statistics.median(one["compile_seconds"] for one in trainings)),
                ", ".join(f"{error:.3f}" for error in lowest),
            ]
        )
    notes.append(
        f"{reach['quantity'].capitalize()} at most {reach['error']} after {reach['after']} at two "
        f"checks in a row, every {reach['every']} steps, on the same {reach['contexts']} contexts; "
        f"at most {reach['most_steps']} steps. Checks and compiling are not in the seconds."
    )
    every = [one for trainings in reach["trainings"].values() for one in trainings]
    notes += busy_note([statistics.median(c["others"] for c in one["checks"]) for one in every])
    header = ["", "reached", "training", "steps", "compile", "lowest error, by seed"]
    return Table(f"Time to a {reach['quantity']} of {reach['error']}", header, rows, notes)


def growth_table(axes: dict[str, Any]) -> Table:
    """Fitted exponents."""
    rows, notes, shares = [], [], []
    for axis, found in axes.items():
        if "failed" in found:
            rows.append([axis, *["–"] * 6])
            notes.append(f"{axis}: {found['failed']}")
            continue
        every, half = found["fits"]["all"], found["fits"]["largest_half"]
        values = [str(point["value"]) for point in found["points"]]
        memory = half.get("memory")
        rows.append(
            [
                axis,
                f"{values[0]} to {values[-1]}",
                str(Exponent(**every["measured"])),
                str(Exponent(**half["measured"])),
                f"{half['expected']['value']:.2f}",
                str(Exponent(**memory)) if memory else "–",
                "worse" if found["worse"] else "",
            ]
        )
        if found["worse"]:
            notes.append(f"{axis} is worse than expected: {found['reason']}")
        shares += [point["others"] for point in found["points"]]
    notes += [
        "Exponent p of step time ~ size^p with its standard error; expected: of the FLOP formula "
        "over the largest half. Memory: what the compiled program needs beside its arguments.",
        *busy_note(shares),
    ]
    header = ["", "sizes", "all sizes", "largest half", "expected", "memory", ""]
    return Table("Growth of the step time", header, rows, notes)


def parts_table(parts: dict[str, Any]) -> Table:
    """The ranking loss beside the attention."""
    rows, notes = [], []
    for name, found in parts.items():
        if "failed" in found:
            rows.append([name, *["–"] * 5])
            notes.append(f"{name} failed: {found['failed']}")
            continue
        times = [
            milliseconds(found[part]["step_seconds"]) for part in ("loss", "attention", "step")
        ]
        ratios = [str(Ratio(**found[key])) for key in ("loss_to_attention", "loss_to_step")]
        rows.append([name, *times, *ratios])
        if found["loss_to_attention"]["median"] > 1:
            notes.append(f"{name}: **the loss costs more than the attention**.")
    shares = [found[part]["others"] for found in parts.values() for part in found if part in PARTS]
    notes += busy_note(shares)
    notes.append(
        "Forward and gradient, each in a program of its own: the ranking loss of all prefixes from "
        "the predictions on, the attention of all layers without its projections."
    )
    header = ["", "loss, ms", "attention, ms", "step, ms", "loss / attention", "loss / step"]
    return Table("The loss of all prefixes beside the attention", header, rows, notes)


def tables(results: dict[str, Any]) -> list[Table]:
    """All tables of what has been measured so far."""
    found = [machine_table(results["machine"], results.get("accelerator"))]
    for name, case in results["cases"].items():
        if "failed" in case:
            row = [[name, case["failed"]]]
            found.append(Table(f"Training step: {name}", ["", "failed"], row))
        else:
            found.append(case_table(name, case))
    for key, make in (
        ("start", start_table),
        ("reach", reach_table),
        ("growth", growth_table),
        ("parts", parts_table),
    ):
        if results.get(key):
            found.append(make(results[key]))
    return found


# ------------------------------------------------------------------------------------------- files


def write_report(folder: Path, results: dict[str, Any]) -> None:
    """Writes report.json, report.md and, where growth was measured, growth.png.

    Args:
      folder: made when missing.
      results: see `__main__.measure`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "report.json", results)
    sections = [f"# Benchmarks\n\n`{results['command']}`, {results['date']}\n"]
    sections += [table.markdown() for table in tables(results)]
    if any("points" in axis for axis in results.get("growth", {}).values()):
        growth_figure(results["growth"], results.get("labels", {})).savefig(
            folder / "growth.png", dpi=150
        )
        sections.append("![Step time against size](growth.png)\n")
    (folder / "report.md").write_text("\n".join(sections))


def growth_figure(axes: dict[str, Any], labels: dict[str, str]) -> Figure:
    """Step time against each size, beside a line of the expected growth through the last point."""
    drawn = {axis: found for axis, found in axes.items() if "points" in found}
    figure = Figure(figsize=(3.4 * len(drawn), 3.6), layout="constrained")
    for place, (axis, found) in zip(
        figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True
    ):
        _draw_axis(place, axis, found, labels)
    return figure


def _draw_axis(place: Axes, axis: str, found: dict[str, Any], labels: dict[str, str]) -> None:
    points = found["points"]
    x = [point["value"] for point in points]
    y = [1000 * point["step_seconds"] for point in points]
    low, high = (
        [1000 * pick(turn["seconds"] for turn in point["turns"]) for point in points]
        for pick in (min, max)
    )
    expected = [y[-1] * point["flops"] / points[-1]["flops"] for point in points]
    half = found["fits"]["largest_half"]
    color = ORANGE if found["worse"] else BLUE
    place.fill_between(x, low, high, color=color, alpha=0.2, lw=0)
    label = f"measured, {Exponent(**half['measured'])}"
    place.plot(x, y, "o-", color=color, ms=4, lw=1.6, label=label)
    label = f"matrix products, {half['expected']['value']:.2f}"
    place.plot(x, expected, "--", color=BLACK, lw=1.2, label=label)
    place.set_xscale("log", base=2)
    place.set_yscale("log")
    place.set_xticks(x, [str(value) for value in x])
    place.set_xlabel({**AXIS_LABELS, **labels}.get(axis, axis))
    place.set_ylabel("step, ms")
    place.legend(title="exponent, largest half", fontsize=8, title_fontsize=8, frameon=False)
    place.spines[["top", "right"]].set_visible(False)
