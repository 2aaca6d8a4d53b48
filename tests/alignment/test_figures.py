import numpy as np
import pytest

from icl_align.alignment.figures import (
    LEARNER_STYLES,
    curves_figure,
    is_published_task,
    published_reward_noise,
)
from icl_align.alignment.options import LEARNERS, QUANTITIES, TaskConfig


@pytest.fixture
def curves():
    mean = np.linspace(1, 0.3, 21).tolist()
    curve = {"mean": mean, "low": [m - 0.1 for m in mean], "high": [m + 0.1 for m in mean]}
    level = {quantity: curve for quantity in QUANTITIES}
    return {
        "attempts": list(range(21)),
        "learners": {name: {noise: level for noise in ("0.0", "0.5", "1.0")} for name in LEARNERS},
        "seeds": [0],
        "num_contexts": 8,
    }


def lines(figure):
    return [line for axes in figure.axes for line in axes.get_lines()]


def test_every_learner_has_a_style():
    assert set(LEARNER_STYLES) == set(LEARNERS)


def test_the_published_points_are_drawn_as_they_were_published(curves):
    figure = curves_figure(curves, published=True)
    published = published_reward_noise()
    drawn = [np.array(line.get_ydata()) for line in lines(figure) if len(line.get_ydata()) == 14]
    assert len(drawn) == 3
    for values in published["transformer"].values():
        assert any(np.array_equal(values, ys) for ys in drawn)


def test_without_the_published_task_nothing_published_is_drawn(curves):
    figure = curves_figure(curves, published=False)
    assert not any(len(line.get_ydata()) == 14 for line in lines(figure))
    assert is_published_task(TaskConfig())
    assert not is_published_task(TaskConfig(name="independent_corruption"))


def test_every_axis_is_labelled(curves):
    for axes in curves_figure(curves, published=True).axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.get_title()


def test_the_published_data_carries_its_source():
    published = published_reward_noise()
    assert "Wang" in published["source"]
    assert published["attempts"] == list(range(2, 16))
    assert published["transformer"]["0.0"][-1] == pytest.approx(0.29655862)
