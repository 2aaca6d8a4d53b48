"""Builds the networks of the theory and tests them, or compares a finished run with them.

python -m icl_align.theory [KEY=VALUE ...]                the tables of exactness and knock-outs
python -m icl_align.theory run_dir=DIR [KEY=VALUE ...]    is that what training found?
"""

import sys
from pathlib import Path
from typing import Any

from icl_align.cli import one_line_errors, options_help, read_options
from icl_align.config import TheoryConfig

# Mended: at most this many times the error of the same repair of the intact network.
MENDED = 1.5
REPAIR_SIZE = {"dim": 2, "num_responses": 3}  # of the networks that are repaired


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m icl_align.theory`."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print("\n".join([__doc__.strip(), "", *options_help(TheoryConfig)]))
        return
    with one_line_errors():
        options = read_options(TheoryConfig, arguments)
        if options.run_dir is None:
            _build_and_test(options)
        else:
            _compare_run(options)


def _save(folder: Path, name: str, content: Any, figure: Any) -> None:
    from icl_align.files import write_json

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", content)
    partial = folder / f"{name}.partial.png"
    figure.savefig(partial, dpi=150)
    partial.replace(folder / f"{name}.png")


def _build_and_test(options: TheoryConfig) -> None:
    from icl_align.terminal import Terminal
    from icl_align.theory.exactness import exactness_table, limits
    from icl_align.theory.figures import knock_outs_figure, limits_figure
    from icl_align.theory.knock_outs import knock_out_table

    folder, terminal = Path(options.folder or "runs/theory"), Terminal()

    def bar(name):
        return lambda share: terminal.progress(name, 100 * share, 100.0)

    try:
        exactness = exactness_table(options.seed, options.num_problems, bar("exactness"))
        terminal.stop_progress()
        terminal.table(*exactness_cells(exactness, options.num_problems))
        where_it_ends = limits(options.seed, 4, bar("limits"))
        _save(
            folder,
            "exactness",
            {"table": exactness, "limits": where_it_ends},
            limits_figure(where_it_ends),
        )
        rows = knock_out_table(
            **REPAIR_SIZE,
            num_steps=options.repair_steps,
            num_seeds=options.repair_seeds,
            seed=options.seed,
            progress=bar("knock-outs"),
        )
    finally:
        terminal.stop_progress()
    terminal.table(*knock_out_cells(rows, options.repair_steps))
    _save(folder, "knock_outs", {"repair_steps": options.repair_steps, "table": rows},
          knock_outs_figure(rows))  # fmt: skip
    terminal.say("Longer repairs tell more: repair_steps=4000 repair_seeds=3.")
    terminal.say(f"written to {folder}")


def exactness_cells(rows: list[dict[str, Any]], num_problems: int) -> tuple[str, list, list]:
    """Title, header and rows of the exactness table, as text."""
    header = ["loss", "queries", "attempts", "dim", "steps", "blocks", "heads", "MLP", "width",
              "paper: blocks x heads", "float64", "float32"]  # fmt: skip

    def paper(row):
        if row["any_norm"]:
            return "not counted"
        heads = 2 if row["loss"] == "Bradley-Terry" else 3
        return f"{row['steps'] * (row['attempts'] - 1)} x {heads}"

    cells = [
        [
            row["loss"],
            f"{row['queries']}, any norm" if row["any_norm"] else "1, norm 1",
            *(str(row[name]) for name in ("attempts", "dim", "steps", "blocks", "heads")),
            str(row["mlp_width"] or "none"),
            str(row["width"]),
            paper(row),
            f"{row['float64']['largest']:.0e}",
            f"{row['float32']['largest']:.0e}",
        ]
        for row in rows
    ]
    title = f"largest relative error of the updated prediction, {num_problems} problems a line"
    return title, header, cells


def knock_out_cells(rows: list[dict[str, Any]], num_steps: int) -> tuple[str, list, list]:
    """Title, header and rows of the knock-out table, as text."""
    repairs = ("refit", "scratch", "wide")
    intact = {name: rows[0]["repairs"][name]["best"] for name in repairs}

    def mended(row):
        names = [r for r in repairs if row["repairs"][r]["best"] <= MENDED * intact[r]]
        return ", ".join(names) or "nothing"

    cells = [
        [
            row["knock_out"],
            _share(row["as_left_larger"]),
            _share(row["as_left"]),
            *(_share(row["repairs"][name]["best"]) for name in repairs),
            mended(row) if row["knock_out"] != "intact" else "",
        ]
        for row in rows
    ]
    size = "N = {num_responses}, d = {dim}".format(**REPAIR_SIZE)
    header = ["knock-out", "as left, N = 6, d = 5", f"as left, {size}", "refit", "scratch", "wide",
              "mended by"]  # fmt: skip
    title = (
        f"share of the update missed (1: no update); repairs of {num_steps} Adam steps at {size}; "
        f"mended: at most {MENDED} x the intact network's"
    )
    return title, header, cells


def _share(value: float) -> str:
    if value == float("inf"):
        return "diverges"
    return f"{value:.0e}" if value >= 1000 or value < 1e-3 else f"{value:.3f}"


def _compare_run(options: TheoryConfig) -> None:
    from icl_align.run_folder import config_of_run

    run_dir = Path(options.run_dir)
    config = config_of_run(run_dir)
    from icl_align.checkpoints import newest_state
    from icl_align.terminal import Terminal
    from icl_align.theory.figures import trained_figure
    from icl_align.theory.trained import compare

    terminal = Terminal()
    _, state = newest_state(run_dir, config, terminal.warn)
    try:
        results = compare(
            config,
            state,
            options.num_contexts,
            lambda share: terminal.progress("comparing", 100 * share, 100.0),
        )
    finally:
        terminal.stop_progress()
    for title, header, cells in trained_cells(results):
        terminal.table(title, header, cells)
    folder = Path(options.folder) if options.folder else run_dir / "theory"
    _save(folder, "trained", results, trained_figure(results))
    terminal.say(f"written to {folder}")


def trained_cells(results: dict[str, Any]) -> list[tuple[str, list, list]]:
    """Title, header and rows of every table of the comparison, as text."""

    def cell(value):
        return f"{value['mean']:z.3f}±{value['half_width']:.3f}"

    agreement, sensitivity = results["agreement"], results["sensitivity"]
    attempts = list(agreement)
    trained = [name for name in agreement[attempts[-1]] if name.startswith("transformer")]
    learners = list(agreement[attempts[-1]])
    tables = []
    first = trained[0]
    tables.append(
        (
            f"cosine of the answers with those of {first}, by attempts",
            ["learner", *map(str, attempts), "of Jacobians"],
            [
                [
                    name,
                    *(cell(agreement[n][first][name]) for n in attempts),
                    cell(sensitivity[first][name]) if name in sensitivity else "",
                ]
                for name in learners
                if name != first
            ],
        )
    )
    transforms = list(next(iter(results["transforms"].values())))
    tables.append(
        (
            "1 - cosine of the answers to rewards r and f(r); a ranker has 0",
            ["learner", *transforms],
            [
                [name, *(cell(results["transforms"][name][label]) for label in transforms)]
                for name in learners
            ],
        )
    )
    probes = results["probes"]
    tables.append(
        (
            "held-out R² of linear probes to gradient descent after k steps (untrained network)",
            ["layer", *(f"k = {step}" for step in probes["steps"])],
            [
                [
                    f"block {layer}" if layer else "embedded",
                    *(f"{a:z.2f} ({b:z.2f})" for a, b in zip(row, control, strict=True)),
                ]
                for layer, (row, control) in enumerate(
                    zip(probes["trained"], probes["untrained"], strict=True)
                )
            ],
        )
    )
    tables.append(
        (
            "training from the construction: before -> after",
            ["start", "loss", "agreement with the step", "attention to the best remaining"],
            [
                [name, *(f"{rows[0][k]:.3f} -> {rows[-1][k]:.3f}" for k in rows[0] if k != "step")]
                for name, rows in results["training"].items()
            ],
        )
    )
    return tables


if __name__ == "__main__":
    main()
