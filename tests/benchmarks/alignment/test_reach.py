import pytest

from benchmarks.alignment.reach import ERROR, EVERY, training_until
from benchmarks.contest import Worker
from benchmarks.start import FIRST_STEP, first_step_seconds


class Learning(Worker):
    """A worker whose error follows a script; a step takes a tenth of a second."""

    def __init__(self, *errors):
        self.errors = list(errors)

    def ask(self, verb, **arguments):
        if verb == "error":
            return {"error": self.errors.pop(0)}
        return {"seconds": 0.1 * arguments["count"]}

    def cpu_seconds(self):
        return 0.0


def test_it_is_reached_at_the_first_of_two_good_checks_in_a_row(tmp_path):
    worker = Learning(0.9, ERROR, 0.5, ERROR - 0.01, ERROR, 0.9)
    found = training_until(worker, tmp_path, most_steps=1000, attempts=15)
    assert found["steps"] == 1 + 4 * EVERY
    assert found["seconds"] == pytest.approx(0.1 * 4 * EVERY)
    assert worker.errors == [0.9]


def test_what_is_not_reached_within_the_steps_is_said_so(tmp_path):
    found = training_until(Learning(0.9, 0.8, ERROR), tmp_path, most_steps=30, attempts=15)
    assert (found["steps"], found["seconds"]) == (None, None)
    assert [check["steps"] for check in found["checks"]] == [11, 21, 30]


def test_a_run_says_when_its_first_step_was_done(tmp_path):
    assert FIRST_STEP.search("in 2.0 s; the first one was done 13.4 s after the start")[1] == "13.4"
    overrides = ["+scale=smoke", "task.num_responses=4"]
    assert 0 < first_step_seconds(overrides, tmp_path) < 600
