import json
import subprocess
import sys

import pytest

from benchmarks.contest import (
    ROOT,
    Failed,
    Turn,
    Worker,
    alternate,
    build,
    median_seconds,
    paired_ratio,
)


class Scripted(Worker):
    """A worker without a process: a step takes `seconds`, until request number `breaks`."""

    def __init__(self, name, log, seconds=1.0, breaks=None):
        self.name, self.log, self.seconds, self.breaks = name, log, seconds, breaks
        self.asked = 0

    def ask(self, verb, count):
        self.asked += 1
        if self.asked == self.breaks:
            raise Failed("broken")
        self.log.append(self.name)
        return {"seconds": self.seconds * count}

    def cpu_seconds(self):
        return 0.0


def test_turns_go_round_and_every_worker_is_first_in_turn():
    log = []
    workers = {name: Scripted(name, log) for name in "abc"}
    turns, failures = alternate(workers, rounds=3, seconds=1.0)
    assert "".join(log[-9:]) == "abc" + "bca" + "cab"
    assert failures == {}
    assert {name: len(taken) for name, taken in turns.items()} == {"a": 3, "b": 3, "c": 3}


def test_a_turn_is_as_long_as_asked():
    turns, _ = alternate({"a": Scripted("a", [], seconds=0.01)}, rounds=1, seconds=1.0)
    assert turns["a"][0].steps == 100
    assert turns["a"][0].seconds == pytest.approx(0.01)


def test_a_worker_that_fails_does_not_stop_the_others():
    workers = {"a": Scripted("a", []), "b": Scripted("b", [], breaks=3)}
    turns, failures = alternate(workers, rounds=3, seconds=1.0)
    assert list(turns) == ["a"]
    assert len(turns["a"]) == 3
    assert failures == {"b": "broken"}


def test_what_slows_a_whole_round_leaves_the_ratio_alone():
    drift = [1.0, 5.0, 2.0]
    ours = [Turn(1, 0.1 * d, 0.0) for d in drift]
    theirs = [Turn(1, 0.3 * d, 0.0) for d in drift]
    ratio = paired_ratio(theirs, ours)
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((3, 3, 3))
    assert median_seconds(theirs) == pytest.approx(0.6)


def test_a_process_builds_steps_and_says_its_memory():
    num_bytes = 64 * 2**20
    with Worker("copy", num_bytes=num_bytes) as worker:
        said = build(worker)
        assert said["to_first_step_seconds"] > said["build_seconds"] > 0
        assert worker.ask("steps", count=2)["seconds"] > 0
        memory = worker.ask("memory")
        assert memory["peak"] - memory["start"] > 2 * num_bytes
        assert memory["device_peak"] is None
        process = worker._process
    assert process.poll() == 0


def test_what_goes_wrong_in_a_process_is_told_in_one_line():
    with Worker("copy", num_bytes="many") as worker, pytest.raises(Failed, match="TypeError"):
        worker.ask("build")
    with Worker("copy", num_bytes=8) as worker, pytest.raises(Failed, match="no verb sing"):
        worker.ask("sing")


def test_a_process_that_is_gone_fails():
    with Worker("copy", num_bytes=8) as worker:
        worker._process.kill()
        with pytest.raises(Failed, match="ended with status -9"):
            worker.ask("build")


def test_what_a_library_prints_does_not_mix_with_the_answers():
    code = "import sys; from benchmarks import worker; print('noise'); worker.main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "copy", '{"num_bytes": 800}'],
        input='{"do": "build"}\n{"do": "steps", "count": 1}\n',
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    first, *answers = done.stdout.splitlines()
    assert first == "noise"  # printed before the answers were set apart
    assert ["seconds" in json.loads(line) for line in answers] == [False, True]
