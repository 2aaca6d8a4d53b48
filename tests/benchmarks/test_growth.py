import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks.contest import Failed
from benchmarks.growth import AXES, fit_exponent, largest_half, measure_axis, summarize
from benchmarks.worlds import subject_of
from icl_align.alignment.options import Options
from icl_align.config import leaves

SIZES = [1, 2, 4, 8, 16]


@given(st.floats(-3, 3), st.floats(1e-6, 1e6))
def test_a_power_law_gives_its_exponent_without_error(exponent, factor):
    fit = fit_exponent(SIZES, [factor * size**exponent for size in SIZES])
    assert fit.value == pytest.approx(exponent, abs=1e-9)
    assert fit.error == pytest.approx(0, abs=1e-6)


def test_the_standard_error_is_that_of_linear_regression():
    y = np.random.default_rng(0).lognormal(size=5)
    known = stats.linregress(np.log(SIZES), np.log(y))
    fit = fit_exponent(SIZES, y.tolist())
    assert (fit.value, fit.error) == pytest.approx((known.slope, known.stderr))


def test_two_points_have_no_standard_error():
    fit = fit_exponent([1, 4], [3, 6])
    assert fit.value == pytest.approx(0.5)
    assert fit.error is None


def points(exponent, expected=1.0):
    return [{"value": x, "flops": x**expected, "step_seconds": 1e-3 * x**exponent} for x in SIZES]


def test_only_growth_well_above_the_expected_needs_a_reason():
    assert [summarize("num_seeds", points(p))["worse"] for p in (0.8, 1.1, 1.2)] == [
        False,
        False,
        True,
    ]
    assert summarize("num_seeds", points(1.2))["reason"]


def test_the_largest_half_is_judged():
    bent = points(1.0)
    for point in bent[2:]:
        point["step_seconds"] *= point["value"] / 4
    found = summarize("num_seeds", bent)
    assert largest_half(SIZES) == [4, 8, 16]
    assert found["fits"]["largest_half"]["measured"]["value"] == pytest.approx(2)
    assert found["worse"]


def test_axes_are_options_with_at_least_four_doublings():
    keys = [key for key, _, _ in leaves(Options)]
    for axis, values in {**AXES, **subject_of(Options()).axes}.items():
        assert axis in keys
        assert values[-1] >= 16 * values[0]


def test_sizes_that_fail_are_left_out():
    with pytest.raises(Failed, match="fewer than three"):
        measure_axis("model.num_heads", [3], ["+scale=smoke"], rounds=1, seconds=1e-3)
