"""Builds the networks of the theory and tests them, or compares a finished run with them.

python -m icl_align.theory [KEY=VALUE ...]                the tables of exactness and knock-outs
python -m icl_align.theory run_dir=DIR [KEY=VALUE ...]    is that what training found?
"""

import sys
from pathlib import Path
from typing import Any

from icl_align.alignment.theory.options import TheoryConfig
from icl_align.config import ConfigError, leaves
from icl_align.running.command import begin, show
from icl_align.running.compose import check_folder, read_options
from icl_align.running.errors import one_line_errors
from icl_align.running.help import options_help

REPAIR_SIZE = {"dim": 2, "num_responses": 3}  # of the networks that are repaired


def main(arguments: list[str] | None = None) -> None:
    """The command `python -m icl_align.theory`."""
    begin()
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        show("\n".join([__doc__.strip(), "", *options_help(TheoryConfig)]))
        return
    with one_line_errors():
        options = read_options(TheoryConfig, arguments)
        _refuse_without_effect(options)
        from icl_align.running.devices import check_jax

        check_jax()
        if options.run_dir is None:
            _build_and_test(options)
        else:
            _compare_run(options)


def _save(folder: Path, name: str, content: Any, figure: Any, figure_format: str) -> None:
    from icl_align.running.files import save_figure, write_json

    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{name}.json", content)
    save_figure(figure, folder / f"{name}.{figure_format}")


def _usable_folder(folder: str) -> Path:
    check_folder("folder", folder)
    return Path(folder)


def _refuse_without_effect(options: TheoryConfig) -> None:
    """Raises ConfigError for an option that the other mode of the command reads."""
    with_run, without = ("num_contexts",), ("seed", "num_problems", "repair_steps", "repair_seeds")
    unread, reason = (without, "with") if options.run_dir is not None else (with_run, "without")
    for key, field, value in leaves(options):
        if key in unread and value != field.default:
            raise ConfigError(key, value, f"has no effect {reason} run_dir")


def _build_and_test(options: TheoryConfig) -> None:
    from icl_align.alignment.theory.exactness import exactness_table, limits
    from icl_align.alignment.theory.figures import knock_outs_figure, limits_figure
    from icl_align.alignment.theory.knock_outs import knock_out_table
    from icl_align.running.terminal import Terminal

    terminal = Terminal()
    folder = _usable_folder(options.folder or "runs/theory")

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
            options.figure_format,
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
          knock_outs_figure(rows), options.figure_format)  # fmt: skip
    terminal.say("Longer repairs tell more: repair_steps=4000 repair_seeds=3.")
    terminal.say(f"written to {folder}")


def exactness_cells(rows: list[dict[str, Any]], num_problems: int) -> tuple[str, list, list]:
    """Title, header and rows of the exactness table, as text."""
    header = ["loss", "queries", "attempts", "dim", "steps", "blocks", "heads", "MLP", "width",
              "paper: blocks x heads", "float64", "float32"]  # fmt: skip

    def paper(row):  # it counts one step; several are as many times the blocks
        counted = row["paper_blocks"] is not None
        return f"{row['paper_blocks']} x {row['paper_heads']}" if counted else "not given"

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
    from icl_align.alignment.theory.knock_outs import ENOUGH, MENDED, REPAIRS

    def mended(row):
        return ", ".join(row["mended"].values()) if row["knock_out"] != "intact" else ""

    cells = [
        [
            row["knock_out"],
            _share(row["as_left_n6_d5"]),
            _share(row["as_left"]),
            _share(row["repairs"]["before_refit"]),
            *(_share(row["repairs"][name]["best"]) for name in REPAIRS),
            mended(row),
        ]
        for row in rows
    ]
    size = "N = {num_responses}, d = {dim}".format(**REPAIR_SIZE)
    header = ["knock-out", "left, N = 6, d = 5", f"left, {size}", "left, dull", "refit", "scratch",
              "wide", "mended?"]  # fmt: skip
    title = (
        f"share of the update missed (1: no update); repairs of {num_steps} Adam steps at {size}; "
        f"mended by refit, scratch, wide: at most {MENDED} x intact, "
        f"undecided where intact misses above {ENOUGH}"
    )
    return title, header, cells


def _share(value: float | None) -> str:
    if value is None:
        return "not finite"
    return f"{value:.0e}" if value >= 1000 or value < 1e-3 else f"{value:.3f}"


TRAINING_COLUMNS = ("loss", "agreement with the step", "attention to the best remaining")


def _before_and_after(of_seeds: list[dict[str, Any]], key: str) -> str:
    """Means over the seeds that did not diverge, and their range at the end."""
    whole = [of["rows"] for of in of_seeds if of["diverged_by"] is None]
    before = sum(of["rows"][0][key] for of in of_seeds) / len(of_seeds)
    if not whole:
        return f"{before:.3f} -> none"
    ends = [rows[-1][key] for rows in whole]
    spread = f" ({min(ends):.3f} to {max(ends):.3f})" if len(ends) > 1 else ""
    return f"{before:.3f} -> {sum(ends) / len(ends):.3f}{spread}"


def _diverged(of_seeds: list[dict[str, Any]]) -> str:
    steps = [of["diverged_by"] for of in of_seeds if of["diverged_by"] is not None]
    where = f", by step {', '.join(map(str, steps))}" if steps else ""
    return f"{len(steps)} of {len(of_seeds)}{where}"


def _compare_run(options: TheoryConfig) -> None:
    from icl_align.running.run_folder import config_of_run

    run_dir = Path(options.run_dir)
    config = config_of_run(run_dir)
    folder = _usable_folder(options.folder or str(run_dir / "theory"))
    from icl_align.alignment.theory.figures import trained_figure
    from icl_align.alignment.theory.trained import compare
    from icl_align.running.checkpoints import newest_state
    from icl_align.running.terminal import Terminal

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
    _save(folder, "trained", results, trained_figure(results), options.figure_format)
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
            "1 - cosine of the answers to rewards r and f(r); a ranker has 0, but not for 1 - r",
            ["learner", *transforms],
            [
                [name, *(cell(results["transforms"][name][label]) for label in transforms)]
                for name in learners
            ],
        )
    )
    picks = results["picks"]
    ranks = [str(rank) for rank in range(1, 1 + min(6, len(picks["trained"])))]
    tables.append(
        (
            "largest mean attention that a head of any layer gives to the attempt of each rank",
            ["network", *ranks],
            [[name, *(f"{v:.2f}" for v in row[: len(ranks)])] for name, row in picks.items()],
        )
    )
    watched = ("loss", "agreement", "picks")
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
            ]
            + [["another start", *(f"{score:z.2f}" for score in probes["another_start"])]],
        )
    )
    tables.append(
        (
            "training from the construction, before -> after; the loss at its optimum is "
            + (f"{optimum:.3f}" if (optimum := results["training"]["optimum"]) else "not defined"),
            ["start", *TRAINING_COLUMNS, "seeds that diverged"],
            [
                [name, *(_before_and_after(of_seeds, k) for k in watched), _diverged(of_seeds)]
                for name, of_seeds in results["training"]["starts"].items()
            ],
        )
    )
    return tables
