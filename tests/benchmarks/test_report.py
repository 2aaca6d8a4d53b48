import json

import pytest

from benchmarks.report import tables, write_report
from benchmarks.steps import EAGER, OURS

TURNS = [{"steps": 1, "seconds": s, "others": 0.01, "loss": 1.0} for s in (0.1, 0.2)]
TIMED = {"step_seconds": 0.15, "others": 0.01, "turns": TURNS}
MEMORY = {"start": 2**20, "peak": 2**28, "steps_peak": None, "device_peak": None}
RATIO = {"median": 1.5, "low": 1.0, "high": 2.0}
BUILT = {"compile_seconds": 1.0, "to_first_step_seconds": 2.0, "memory": MEMORY, "ratio": RATIO}


def example():
    torch = {"attention": "sdpa", "trial_seconds": {"sdpa": 0.1}, "adam": "fused", "threads": 2}
    fit = {"value": 1.3, "error": 0.1}
    fits = {"measured": fit, "expected": {"value": 1.0, "error": 0.0}}
    points = [{"value": v, "flops": 10 * v, **TIMED, "step_seconds": 0.1 * v} for v in (1, 2, 4)]
    checks = [{"steps": 11, "seconds": 1.0, "error": 0.4, "others": 0.0}]
    reached = {"seed": 0, "compile_seconds": 1.0, "steps": 11, "seconds": 1.0, "checks": checks}
    failed = reached | {"steps": None, "seconds": None}
    return {
        "command": "python -m benchmarks",
        "date": "2000-01-01",
        "machine": {
            "processor": "abacus",
            "cores": 2,
            "cores_physical": 1,
            "memory_bytes": 2**33,
            "system": "none",
            "python": "3",
            "packages": {"jax": "1", "torch": None},
            "environment": {},
        },
        "cases": {
            "default": {
                "contenders": {
                    OURS: {**BUILT, **TIMED},
                    EAGER: {**BUILT, **TIMED, **torch},
                    "torch.compile": {"failed": "no compiler"},
                },
                "peak": {
                    "jax float32": {"per_second": 1e11},
                    "torch float32": {"per_second": 2e11},
                    "jax bfloat16": {"per_second": 1e15},
                    "copy": {"per_second": 1e10},
                },
                "flops": 3e9,
                "contexts": 30,
                "tokens": 21,
            },
            "published": {"failed": "out of memory"},
        },
        "start": {
            "help": {"median": 0.3},
            "cases": {"default": {"cold": 20.0, "warm": 5.0}, "published": {"failed": "none"}},
        },
        "reach": {
            "error": 0.31,
            "quantity": "refinement error",
            "after": "15 attempts",
            "most_steps": 600,
            "contexts": 64,
            "every": 10,
            "trainings": {OURS: [reached, reached, failed], EAGER: [failed, failed, reached]},
        },
        "growth": {
            "num_seeds": {
                "points": points,
                "fits": {"all": fits, "largest_half": fits},
                "worse": True,
                "reason": "the seeds quarrel",
            },
            "model.width": {"failed": "too wide"},
        },
        "parts": {
            "default": {
                **dict.fromkeys(("loss", "attention", "step"), TIMED),
                "loss_to_attention": RATIO,
                "loss_to_step": RATIO,
            }
        },
    }


def cells(table):
    return {row[0]: row[1:] for row in table.rows}


def test_every_row_is_as_long_as_its_header():
    found = tables(example())
    assert len(found) == 7
    for table in found:
        assert {len(row) for row in table.rows} == {len(table.header)}


def test_step_table_shows_share_of_the_largest_float32_peak_and_what_failed():
    table = tables(example())[1]
    # 3 GFLOP in 0.15 s are 20 GFLOP/s, a tenth of 200.
    assert cells(table)[OURS][2:5] == ["200", "20.0", "10.0%"]
    assert cells(table)[EAGER][1] == "1.50 (1.00 to 2.00)"
    assert "torch.compile failed: no compiler" in table.notes


@pytest.mark.parametrize(("others", "trusted"), [(0.02, True), (0.5, False)])
def test_a_busy_machine_is_not_trusted(others, trusted):
    results = example()
    results["cases"]["default"]["contenders"][OURS]["others"] = others
    assert ("trusted" not in " ".join(tables(results)[1].notes)) == trusted


def test_reaching_it_in_less_than_half_of_the_trainings_is_no_time():
    rows = cells(next(t for t in tables(example()) if "refinement" in t.title))
    assert rows[OURS][:3] == ["2 of 3", "1 s", "11"]
    assert rows[EAGER][:3] == ["1 of 3", "not reached", "not reached"]


def test_the_reason_stands_where_growth_is_worse(tmp_path):
    write_report(tmp_path, example())
    text = (tmp_path / "report.md").read_text()
    assert "num_seeds is worse than expected: the seeds quarrel" in text
    assert "growth.png" in text
    assert (tmp_path / "growth.png").stat().st_size > 0
    assert json.loads((tmp_path / "report.json").read_text()) == example()
