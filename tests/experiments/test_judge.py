import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.claim import Range, above, below, within
from experiments.judge import LEVEL, Measured, bootstrap_interval, holm, judge, p_values

OPPOSITE = {"supported": "contradicted", "contradicted": "supported"}


def sample(mean, spread, seeds=5, number=0):
    """Values with exactly this mean and standard deviation."""
    values = np.random.default_rng(number).normal(size=seeds)
    return mean + spread * (values - values.mean()) / values.std(ddof=1)


def verdict(values, predicted, tests=33, **more):
    return judge([Measured(np.asarray(values), predicted, **more)], tests)[0].verdict


@pytest.mark.parametrize(
    ("mean", "spread", "predicted", "expected"),
    [
        (1.0, 0.1, above(0.04), "supported"),
        (-1.0, 0.1, above(0.04), "contradicted"),
        (0.0, 0.005, above(0.04), "contradicted"),  # there, but too small to count
        (0.1, 0.2, above(0.04), "undecided"),  # too few seeds for so much spread
        (1.0, 0.1, below(0.04), "contradicted"),
        (-1.0, 0.1, below(0.04), "supported"),
        (0.0, 0.005, within(0.04), "supported"),
        (0.2, 0.02, within(0.04), "contradicted"),
        (-0.2, 0.02, within(0.04), "contradicted"),
        (0.0, 0.1, within(0.04), "undecided"),
        (0.04, 0.001, within(0.04), "undecided"),
    ],
)
def test_a_known_effect_gets_its_known_verdict(mean, spread, predicted, expected):
    assert verdict(sample(mean, spread), predicted) == expected


def test_the_negative_control_is_rarely_given_a_verdict_that_is_wrong():
    # Every effect lies on the end of its range: neither verdict is right. The chance that any of a
    # campaign's 33 judgements gets one is at most 5%; 400 campaigns see 20 on average, 33 hardly ever.
    random = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        values = random.normal(size=(33, 5))
        ranges = [above(0.0), below(0.0)] * 16 + [Range(0.0, 100.0)]
        p = [2 * min(p_values(v, r)) for v, r in zip(values, ranges, strict=True)]
        if min(holm(p)) < LEVEL:  # only then can the bootstrap, which is slow, add anything
            found = judge([Measured(v, r) for v, r in zip(values, ranges, strict=True)])
            wrong += any(finding.verdict != "undecided" for finding in found)
    assert wrong <= 33


def test_without_the_correction_the_same_control_would_often_be_wrong():
    random = np.random.default_rng(1)
    alone = [judge([Measured(random.normal(size=5), above(0.0))])[0] for _ in range(200)]
    wrong = sum(finding.verdict != "undecided" for finding in alone)
    assert 1 <= wrong <= 22  # 5% of 200 is 10


def test_an_effect_that_is_clear_alone_is_not_so_among_many():
    values = sample(0.14, 0.06)
    assert verdict(values, above(0.04), tests=1) == "supported"
    assert verdict(values, above(0.04), tests=33) == "undecided"
    reason = judge([Measured(values, above(0.04))], 33)[0].reason
    assert "corrected for 33" in reason


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        (Measured(None, above(0.0)), "missing"),
        (Measured(np.array([1.0, math.nan, 1, 1, 1]), above(0.0)), "diverged"),
        (Measured(sample(1.0, 0.01, seeds=4), above(0.0)), "fewer than 5"),
        (Measured(np.array([1.0]), above(0.0)), "fewer than 5"),
        (Measured(sample(0.0, 0.001), within(0.1), learned=False), "learned"),
        (Measured(np.zeros(5), within(0.1)), "the same number"),
    ],
)
def test_what_cannot_be_judged_is_undecided_and_says_why(measured, reason):
    finding = judge([measured])[0]
    assert finding.verdict == "undecided"
    assert finding.corrected == 1 or reason == "fewer than 5"
    assert reason in finding.reason


@given(st.integers(0, 1000), st.floats(-3, 3), st.floats(0.01, 1), st.sampled_from([1, 5, 33]))
def test_verdicts_do_not_depend_on_sign_or_origin(number, mean, spread, tests):
    values = sample(mean, spread, number=number)
    plain = judge([Measured(values, above(0.5))], tests)[0]
    flipped = judge([Measured(-values, below(-0.5))], tests)[0]
    shifted = judge([Measured(values + 2, above(2.5))], tests)[0]
    assert plain.verdict == flipped.verdict == shifted.verdict
    assert plain.corrected == pytest.approx(flipped.corrected, rel=1e-6)
    swapped = judge([Measured(values, below(0.5))], tests)[0].verdict
    assert swapped == OPPOSITE.get(plain.verdict, "undecided")


@given(st.integers(0, 1000), st.integers(2, 12))
def test_p_is_students(number, seeds):
    values = np.random.default_rng(number).normal(0.3, 1.0, seeds)
    for predicted, name in ((above(0.1), "greater"), (below(0.1), "less")):
        expected = stats.ttest_1samp(values, 0.1, alternative=name).pvalue
        inside, outside = p_values(values, predicted)
        assert inside == pytest.approx(expected)
        assert outside == pytest.approx(1 - expected)


def test_p_inside_a_range_is_the_worse_of_its_two_ends():
    values = sample(0.0, 1.0)
    lower, upper = p_values(values, above(-1.0))[0], p_values(values, below(2.0))[0]
    assert p_values(values, Range(-1.0, 2.0))[0] == pytest.approx(max(lower, upper))


def test_holm_is_the_textbooks():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01], tests=10) == pytest.approx([0.1])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20), st.integers(0, 30))
def test_holm_only_raises_keeps_the_order_and_stays_below_bonferroni(p, more):
    corrected = holm(p, len(p) + more)
    assert all(
        a <= b <= min(1.0, a * (len(p) + more)) + 1e-12 for a, b in zip(p, corrected, strict=True)
    )
    in_order = np.array(corrected)[np.argsort(p, kind="stable")]
    assert np.all(np.diff(in_order) >= 0)


def test_the_bootstrap_interval_of_five_covers_a_gaussian_mean_as_often_as_is_said():
    # This is why the interval never decides alone.
    random = np.random.default_rng(2)
    intervals = [bootstrap_interval(random.normal(size=5)) for _ in range(400)]
    covered = np.mean([low < 0 < high for low, high in intervals])
    assert covered == pytest.approx(0.83, abs=0.06)


def test_the_bootstrap_interval_of_many_is_the_normal_one():
    values = sample(2.0, 1.0, seeds=400)
    low, high = bootstrap_interval(values)
    assert (low, high) == pytest.approx((2 - 1.96 / 20, 2 + 1.96 / 20), abs=0.02)
    assert bootstrap_interval(np.ones(5)) == (1.0, 1.0)
    assert bootstrap_interval(values) == (low, high)
