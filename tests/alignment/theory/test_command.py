"""The command of the theory: its options, tables, figures and files, and work done side by side."""

import json
import threading

import numpy as np
import pytest

from icl_align.alignment.theory import exactness, inside, knock_outs, trained
from icl_align.alignment.theory.command import exactness_cells, knock_out_cells, main, trained_cells
from icl_align.alignment.theory.figures import knock_outs_figure, limits_figure, trained_figure
from icl_align.alignment.theory.options import TheoryConfig
from icl_align.alignment.theory.parallel import in_parallel
from icl_align.config import allowed, leaves
from icl_align.running.compose import read_options
from icl_align.running.run import run
from runs import tiny

BAD = {
    "seed=-1": ["seed=-1", "whole number in [0, "],
    "num_problems=0": ["num_problems=0", "at least 1"],
    "repair_steps=many": ["repair_steps=many", "whole number"],
    "repair_seeds=1.5": ["repair_seeds=1.5", "whole number"],
    "num_contexts=7": ["num_contexts=7", "at least 8"],
    "num_context=9": ["num_context=9", "no such option", "num_contexts"],
    "seed=1,2": ["seed=1,2", "cannot be swept"],
    "nonsense": ["nonsense", "KEY=VALUE"],
    "run_dir=.": ["run_dir=.", "must be the folder of a run"],
    "run_dir=": ["run_dir=", "must not be empty"],
    "run_dir=a=1,b": ["run_dir=a=1,b", "must be the folder of a run"],
    "num_contexts=9": ["num_contexts=9", "has no effect without run_dir"],
    "+seed=1": ["+seed=1", "write seed=VALUE"],
}


def exactness_row(loss, any_norm, mlp_width):
    return {
        "loss": loss,
        "queries": 3,
        "any_norm": any_norm,
        "attempts": 5,
        "dim": 2,
        "steps": 4,
        "blocks": 16,
        "heads": 2,
        "mlp_width": mlp_width,
        "width": 9,
        "paper_blocks": None if any_norm else 16,
        "paper_heads": 2 if loss == "Bradley-Terry" else 3,
        "float64": {"largest": 2.4e-13},
        "float32": {"largest": 3e-5},
    }


EXACTNESS = [
    exactness_row("Bradley-Terry", False, None),
    exactness_row("Plackett-Luce", False, 5),
    exactness_row("Plackett-Luce", True, 5),
]
LIMITS = {
    "gap of two rewards": {
        "values": [0.0, 1e-6, 1e-2],
        "float64": [0.5, 1e-12, 0.0],
        "float32": [0.6, 1e-5, 1e-6],
    },
    "step size": {"values": [0.1, 1.0], "float64": [1e-14, 1e-3], "float32": [1e-6, 1e-2]},
}


def knock_out_row(name, as_left, refit, scratch, wide, mended=("yes", "no", "undecided")):
    bests = {"refit": refit, "scratch": scratch, "wide": wide}
    return {
        "knock_out": name,
        "as_left": as_left,
        "as_left_n6_d5": as_left and 2 * as_left,
        "repairs": {"before_refit": 0.5}
        | {name: {"best": best, "all": [best]} for name, best in bests.items()},
        "mended": dict(zip(bests, mended, strict=True)),
    }


KNOCK_OUTS = [
    knock_out_row("intact", 1e-9, 0.1, 0.2, 0.04),
    knock_out_row("no_mlp", 0.7, 0.149, 0.31, 0.06),
    knock_out_row("layer_norm", None, 1.2, 0.301, None),
]


def interval(mean):
    return {"mean": mean, "half_width": 0.01}


def results(attempts=(2, 4), order=("agreement", "loss", "picks")):
    """A comparison of two learners and the run, with a different number everywhere."""
    names = ["transformer, seed 7", "constructed, 1 step", "plackett_luce_optimum"]

    def table(names, base):
        return {
            a: {b: interval(1.0 if a == b else base + 0.1 * (i + j)) for j, b in enumerate(names)}
            for i, a in enumerate(names)
        }

    row = {"agreement": 0.25, "loss": 1.5, "picks": 0.75}
    end = {"agreement": 0.5, "loss": 1.25, "picks": 0.125}
    return {
        "agreement": {n: table(names, 0.01 * int(n)) for n in attempts},
        "sensitivity": table(names[:2], -0.4),
        "transforms": {
            name: {"r^3": interval(0.3 + place), "sqrt r": interval(0.0)}
            for place, name in enumerate(names)
        },
        "probes": {
            "steps": [0, 5],
            "another_start": [0.0, 0.9],
            "trained": [[-0.5, 0.25], [0.5, 0.75]],
            "untrained": [[0.0, 0.125], [0.2, 0.3]],
        },
        "attention": {
            "trained": [[[[0.5, 0.3, 0.1], [0.2, 0.2, 0.2]]]],
            "untrained": [[[[0.25] * 3, [0.2] * 3]]],
            "constructed": [[[[1.0, 0.0, 0.0], [0.3] * 3], [[0.0, 0.9, 0.0], [0.4] * 3]]],
        },
        "picks": {"trained": [0.5, 0.3, 0.2], "constructed": [1.0, 0.9, 0.4]},
        "training": {
            "optimum": 1.125,
            "starts": {
                "constructed": [
                    {
                        "rows": [
                            {"step": 0, **{key: row[key] for key in order}},
                            {"step": 3, **{key: end[key] for key in order}},
                        ],
                        "diverged_by": None,
                    },
                    {"rows": [{"step": 0, **{key: row[key] for key in order}}], "diverged_by": 3},
                ]
            },
        },
    }


def column(header, rows, name):
    assert all(len(row) == len(header) for row in rows)
    assert all(isinstance(cell, str) for row in rows for cell in row)
    return [row[header.index(name)] for row in rows]


# ------------------------------------------------------------------------------------------ options


def test_options_are_read_and_the_others_keep_their_defaults():
    options = read_options(TheoryConfig, ["num_problems=3", "folder=here", "run_dir=null"])
    assert options == TheoryConfig(num_problems=3, folder="here")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_option_with_its_default_and_what_is_allowed(flag, capsys):
    main([flag])
    lines = capsys.readouterr().out.splitlines()
    for key, field, default in leaves(TheoryConfig):
        shown = "null" if default is None else default
        (place,) = [n for n, line in enumerate(lines) if line.startswith(f"  {key}={shown} ")]
        assert lines[place].endswith(field.metadata["help"])
        assert lines[place + 1].strip() == allowed(field)


@pytest.mark.parametrize("argument", BAD)
def test_a_bad_argument_ends_with_one_line_status_2_and_no_folder(
    argument, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        main([argument, "folder=made"])
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    for part in BAD[argument]:
        assert part in err
    assert list(tmp_path.iterdir()) == []


def test_the_run_that_is_missing_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main([f"run_dir={tmp_path / 'none'}"])
    assert end.value.code == 2
    assert f"run_dir={tmp_path / 'none'}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert read_options(TheoryConfig, ["run_dir=[1,2]"]).run_dir == "[1,2]"  # an odd name is one


# ------------------------------------------------------------------------------------------- tables


def test_the_exactness_table_shows_the_sizes_and_the_largest_errors():
    title, header, cells = exactness_cells(EXACTNESS, 17)
    assert "17 problems" in title
    assert column(header, cells, "paper: blocks x heads") == ["16 x 2", "16 x 3", "not given"]
    assert column(header, cells, "queries") == ["1, norm 1", "1, norm 1", "3, any norm"]
    assert column(header, cells, "MLP") == ["none", "5", "5"]
    assert column(header, cells, "blocks") == ["16"] * 3
    assert column(header, cells, "float64") == ["2e-13"] * 3
    assert column(header, cells, "float32") == ["3e-05"] * 3


def test_the_knock_out_table_shows_what_is_left_what_repairs_reach_and_whether_they_mend():
    title, header, cells = knock_out_cells(KNOCK_OUTS, 123)
    assert "123 Adam steps" in title
    assert column(header, cells, "mended?") == ["", *["yes, no, undecided"] * 2]
    assert column(header, cells, "left, N = 3, d = 2") == ["1e-09", "0.700", "not finite"]
    assert column(header, cells, "left, N = 6, d = 5") == ["2e-09", "1.400", "not finite"]
    assert column(header, cells, "scratch") == ["0.200", "0.310", "0.301"]
    assert column(header, cells, "wide") == ["0.040", "0.060", "not finite"]


def test_every_table_of_a_comparison_is_rectangular_and_leaves_the_first_seed_out_of_its_own():
    answers, transforms, picks, probes, _ = trained_cells(results())
    title, header, cells = answers
    assert "transformer, seed 7" in title
    assert column(header, cells, "learner") == ["constructed, 1 step", "plackett_luce_optimum"]
    assert column(header, cells, "2") == ["0.120±0.010", "0.220±0.010"]
    assert column(header, cells, "4") == ["0.140±0.010", "0.240±0.010"]
    assert column(header, cells, "of Jacobians") == ["-0.300±0.010", ""]
    assert column(*transforms[1:], "r^3") == ["0.300±0.010", "1.300±0.010", "2.300±0.010"]
    assert column(*picks[1:], "network") == ["trained", "constructed"]
    assert column(*picks[1:], "2") == ["0.30", "0.90"]
    assert column(*probes[1:], "layer") == ["embedded", "block 1", "another start"]
    assert column(*probes[1:], "k = 0") == ["-0.50 (0.00)", "0.50 (0.20)", "0.00"]


@pytest.mark.parametrize("order", [("loss", "agreement", "picks"), ("agreement", "loss", "picks")])
def test_what_training_changes_stands_under_its_own_heading(order):
    title, header, cells = trained_cells(results(order=order))[-1]
    assert title.endswith("1.125")
    assert column(header, cells, "start") == ["constructed"]
    assert column(header, cells, "loss") == ["1.500 -> 1.250"]
    assert column(header, cells, "agreement with the step") == ["0.250 -> 0.500"]
    assert column(header, cells, "attention to the best remaining") == ["0.750 -> 0.125"]
    assert column(header, cells, "seeds that diverged") == ["1 of 2, by step 3"]


# ------------------------------------------------------------------------------------------ figures


def test_the_figure_of_the_limits_draws_every_error_and_a_tie_beside_them():
    gap, step = limits_figure(LIMITS).axes
    assert (gap.get_xlabel(), step.get_xlabel()) == tuple(LIMITS)
    curves = {line.get_label(): line.get_xydata() for line in step.get_lines()}
    for dtype in ("float64", "float32"):
        sweep = LIMITS["step size"]
        np.testing.assert_array_equal(curves[dtype], np.transpose([sweep["values"], sweep[dtype]]))
    curves = {line.get_label(): line.get_xydata() for line in gap.get_lines()}
    np.testing.assert_array_equal(curves["float64"], [[1e-6, 1e-12], [1e-2, 1e-17]])
    ties = [line.get_xydata()[0] for line in gap.get_lines() if line.get_marker() == "s"]
    assert sorted(y for _, y in ties) == [0.5, 0.6]
    assert all(0 < x < 1e-6 for x, _ in ties)
    assert [text.get_text() for text in gap.texts] == ["tie"]
    assert not list(step.texts)


def test_the_bars_of_the_knock_outs_are_their_errors_and_an_arrow_stands_for_more():
    figure = knock_outs_figure(KNOCK_OUTS)
    (axes,) = figure.axes
    heights = [[bar.get_height() for bar in bars] for bars in axes.containers]
    assert heights == [
        [1e-9, 0.7, 1.6],
        [0.1, 0.149, 1.2],
        [0.2, 0.31, 0.301],
        [0.04, 0.06, 1.6],
    ]
    arrows = [text.xy[0] for text in axes.texts if text.get_text() == "↑"]
    outer = [bars[2].get_x() + bars[2].get_width() / 2 for bars in axes.containers[::3]]
    assert arrows == pytest.approx(outer)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "intact",
        "no\nmlp",
        "layer\nnorm",
    ]


def test_the_figure_of_a_comparison_draws_what_the_results_say():
    figure = trained_figure(json.loads(json.dumps(results())))  # as the file holds it

    def panel(start):
        (axes,) = [axes for axes in figure.axes if axes.get_title().startswith(start)]
        return axes

    def bars(start):
        axes = panel(start)
        names = {tick.get_position()[1]: tick.get_text() for tick in axes.get_yticklabels()}
        return {
            names[round(bar.get_y() + bar.get_height() / 2)]: bar.get_width()
            for bar in axes.patches
        }

    assert bars("Agreement with") == pytest.approx(
        {"constructed, 1 step": 0.14, "plackett luce optimum": 0.24}
    )
    assert bars("Sensitivity like") == pytest.approx({"constructed, 1 step": -0.3})
    assert list(bars("Moved by").values()) == pytest.approx([0.3, 1.3, 2.3])
    probe = panel("Linear probe, trained")
    np.testing.assert_array_equal(probe.images[0].get_array(), [[0, 0.25], [0.5, 0.75]])
    assert [text.get_text() for text in probe.texts] == ["-0.50", "0.25", "0.50", "0.75"]
    maps = panel("Attention by rank, trained").images[0].get_array()
    np.testing.assert_array_equal(maps, [[0.5, 0.3, 0.1], [0.2, 0.2, 0.2]])
    maps = panel("Attention by rank, constructed, head 1").images[0].get_array()
    np.testing.assert_array_equal(maps, [[1, 0, 0], [0, 0.9, 0]])
    curve, *others = panel("Training from").get_lines()
    assert [line.get_marker() for line in others] == ["o", "X"]  # the other seed diverges
    np.testing.assert_array_equal(curve.get_xydata(), [[0.5, 0.75], [3, 0.125]])


# -------------------------------------------------------------------------------------- whole calls


def test_without_a_run_tables_files_and_figures_of_both_parts_are_left(
    tmp_path, monkeypatch, capsys
):
    given = {}

    def of(name, content):
        def made(*positional, **named):
            given[name] = [v for v in (*positional, *named.values()) if not callable(v)]
            return content

        return made

    monkeypatch.setattr(exactness, "exactness_table", of("exactness", EXACTNESS))
    monkeypatch.setattr(exactness, "limits", of("limits", LIMITS))
    monkeypatch.setattr(knock_outs, "knock_out_table", of("knock_outs", KNOCK_OUTS[:2]))
    folder = tmp_path / "new" / "folder"
    main([f"folder={folder}", "seed=3", "num_problems=5", "repair_steps=9", "repair_seeds=2"])
    assert given == {"exactness": [3, 5], "limits": [3, 4], "knock_outs": [2, 3, 9, 2, 3]}
    assert {path.name for path in folder.iterdir()} == {
        "exactness.json",
        "exactness.png",
        "knock_outs.json",
        "knock_outs.png",
    }
    saved = json.loads((folder / "exactness.json").read_text())
    assert saved == {"table": EXACTNESS, "limits": LIMITS}
    saved = json.loads((folder / "knock_outs.json").read_text())
    assert saved == {"repair_steps": 9, "table": KNOCK_OUTS[:2]}
    out = capsys.readouterr().out
    assert "not given" in out
    assert "yes, no, undecided" in out
    assert f"written to {folder}" in out


def test_a_finished_run_is_compared_and_its_folder_gets_the_results(tmp_path, monkeypatch, capsys):
    # These take most of the time, and have tests of their own.

    def no_evaluation(group, *given):
        for one in group:
            one.curves = {}

    monkeypatch.setattr("icl_align.running.run._evaluate", no_evaluation)
    training, called = results()["training"], []

    def train(config, num_responses, num_steps, progress):
        called.append((num_responses, num_steps))
        return training

    monkeypatch.setattr(trained, "training_from_the_construction", train)
    every, kept = trained.learners, ("transformer", "constructed", "plain descent")

    def few(*given):
        return {name: of for name, of in every(*given).items() if name.startswith(kept)}

    monkeypatch.setattr(trained, "learners", few)
    monkeypatch.setattr(trained, "tuned_learning_rate", lambda config, num_steps: 0.1)
    monkeypatch.setattr(inside, "PROBED_STEPS", (1, 2))
    folder = tmp_path / "run"
    config = tiny("train.steps=2", "task.num_responses=2", "task.dim=2")
    run(config, folder)
    capsys.readouterr()
    main([f"run_dir={folder}", "num_contexts=8"])
    assert {path.name for path in (folder / "theory").iterdir()} == {"trained.json", "trained.png"}
    assert (folder / "theory" / "trained.png").read_bytes()[:4] == b"\x89PNG"
    saved = json.loads((folder / "theory" / "trained.json").read_text())
    assert called == [(2, 2)]
    assert saved["num_contexts"] == 8
    assert saved["seeds"] == 1
    assert list(saved["agreement"]) == ["2"]
    # Of two attempts the better less the worse gives the direction of every step from 0; a small
    # difference of large responses leaves few digits.
    step = saved["agreement"]["2"]["constructed, 1 step"]
    assert step["plain descent, 32 steps"]["mean"] > 0.99
    assert step["transformer, seed 0"]["mean"] < 0.99
    assert np.shape(saved["probes"]["trained"]) == np.shape(saved["probes"]["untrained"]) == (2, 2)
    assert np.shape(saved["attention"]["trained"]) == (1, 1, 2, 2)
    np.testing.assert_allclose(saved["attention"]["constructed"][0][0][0], [1, 0], atol=1e-4)
    assert saved["probes"]["trained"] != saved["probes"]["untrained"]
    out, err = capsys.readouterr()
    assert err == ""
    assert "constructed, 1 step" in out
    assert out.splitlines()[-1] == f"written to {folder / 'theory'}"


# ----------------------------------------------------------------------------------------- parallel


def test_results_keep_their_order_whichever_ends_first_and_progress_reaches_1():
    second_is_done, shares = threading.Event(), []

    def square(number):
        if number == 1:
            assert second_is_done.wait(20)
        elif number == 2:
            second_is_done.set()
        return number**2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.cpu_count", lambda: 2)
        assert in_parallel(square, [1, 2, 3, 4], shares.append) == [1, 4, 9, 16]
    assert shares == [0.25, 0.5, 0.75, 1.0]
    assert in_parallel(square, []) == []


def test_what_an_item_raises_is_raised():
    def invert(number):
        return 1 / number

    with pytest.raises(ZeroDivisionError):
        in_parallel(invert, [1.0, 0.0, 2.0])
