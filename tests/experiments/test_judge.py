import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from experiments.__main__ import load_all, simulate_judge
from experiments.campaign import families
from experiments.claim import Range, above, below, within
from experiments.judge import (
    EXPLORATORY_LEVEL,
    PRIMARY_LEVEL,
    RESAMPLES,
    Family,
    Measured,
    _draws,
    holm,
    interval,
    judge,
    p_values,
    settling,
    studentized,
)
from experiments.options import CampaignOptions, keep_seeds
from experiments.power import NUMBERS, needed_seeds, power
from experiments.simulation import AS_FOUND, SHAPES, Case, simulate
from experiments.studies import studies
from icl_align.config import ConfigError
from icl_align.running.files import write_json

OPPOSITE = {"supported": "contradicted", "contradicted": "supported"}


def sample(mean, spread, seeds=8, number=0):
    """Values with exactly this mean and standard deviation."""
    values = np.random.default_rng(number).normal(size=seeds)
    return mean + spread * (values - values.mean()) / values.std(ddof=1)


def verdict(values, predicted, tests=33, **more):
    return judge([Measured(np.asarray(values), predicted, **more)], Family(0.05, tests))[0].verdict


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


@pytest.mark.parametrize("skewed", [False, True])
def test_the_negative_control_is_rarely_given_a_verdict_that_is_wrong(skewed):
    # Every effect lies on the end of its range: neither verdict is right. The chance that any of a
    # family's 12 judgements gets one is at most 5%; 200 families see 10 on average, 19 hardly ever.
    # Of exponential values Student's test alone would give a quarter of the families one.
    most = 32 if skewed else 18
    random, family = np.random.default_rng(1), Family(0.05, 12)
    ranges, wrong = [above(0.0), below(0.0)] * 6, 0
    for _ in range(200):
        values = random.exponential(size=(12, 20)) - 1 if skewed else random.normal(size=(12, 20))
        p = [2 * stats.ttest_1samp(own, 0).pvalue / 2 for own in values]
        if min(holm(p)) < family.level:  # the judge's p is no smaller, and takes longer
            found = judge([Measured(v, r) for v, r in zip(values, ranges, strict=True)], family)
            wrong += any(finding.verdict != "undecided" for finding in found)
    assert wrong <= most


def test_the_two_families_share_a_chance_of_one_in_twenty():
    assert pytest.approx(0.05) == PRIMARY_LEVEL + EXPLORATORY_LEVEL


def test_without_the_correction_the_same_control_would_often_be_wrong():
    random, one = np.random.default_rng(1), Family(0.05, 1)
    alone = [judge([Measured(random.normal(size=8), above(0.0))], one)[0] for _ in range(200)]
    wrong = sum(finding.verdict != "undecided" for finding in alone)
    assert 1 <= wrong <= 22  # 5% of 200 is 10


def test_an_effect_that_is_clear_alone_is_not_so_among_many():
    values = sample(0.14, 0.06)
    assert verdict(values, above(0.04), tests=1) == "supported"
    assert verdict(values, above(0.04), tests=33) == "undecided"
    reason = judge([Measured(values, above(0.04))], Family(0.05, 33))[0].reason
    assert "corrected for 33" in reason


@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        (Measured(None, above(0.0)), "missing"),
        (Measured(np.array([1.0, math.nan, *[1] * 6]), above(0.0)), "diverged"),
        (Measured(sample(1.0, 0.01, seeds=7), above(0.0)), "fewer than 8"),
        (Measured(np.array([1.0]), above(0.0)), "fewer than 8"),
        (Measured(sample(0.0, 0.001), within(0.1), learned=False), "learned"),
        (Measured(np.zeros(8), within(0.1)), "the same number"),
    ],
)
def test_what_cannot_be_judged_is_undecided_and_says_why(measured, reason):
    finding = judge([measured], Family(0.05, 1))[0]
    assert finding.verdict == "undecided"
    assert finding.corrected == 1 or reason == "fewer than 8"
    assert reason in finding.reason


@given(st.integers(0, 1000), st.floats(-3, 3), st.floats(0.01, 1), st.sampled_from([1, 5, 33]))
def test_verdicts_do_not_depend_on_sign_or_origin(number, mean, spread, tests):
    values, family = sample(mean, spread, number=number), Family(0.05, tests)
    plain = judge([Measured(values, above(0.5))], family)[0]
    flipped = judge([Measured(-values, below(-0.5))], family)[0]
    shifted = judge([Measured(values + 2, above(2.5))], family)[0]
    assert plain.verdict == flipped.verdict == shifted.verdict
    assert plain.corrected == pytest.approx(flipped.corrected, rel=1e-6)
    swapped = judge([Measured(values, below(0.5))], family)[0].verdict
    assert swapped == OPPOSITE.get(plain.verdict, "undecided")


@given(st.integers(0, 1000), st.integers(2, 12))
def test_p_is_students_or_the_bootstraps_if_that_is_larger(number, seeds):
    values = np.random.default_rng(number).normal(0.3, 1.0, seeds)
    for predicted, name in ((above(0.1), "greater"), (below(0.1), "less")):
        expected = stats.ttest_1samp(values, 0.1, alternative=name).pvalue
        inside, outside = p_values(values, predicted)
        assert inside >= expected - 1e-12 and outside >= 1 - expected - 1e-12
        assert min(inside, outside) >= 1 / (RESAMPLES + 1)


def test_of_many_gaussian_values_both_agree():
    values = sample(0.15, 1.0, seeds=200)
    expected = stats.ttest_1samp(values, 0.0, alternative="greater").pvalue
    assert p_values(values, above(0.0))[0] == pytest.approx(expected, rel=0.35)


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


@pytest.mark.parametrize("seeds", [8, 20])
@pytest.mark.parametrize("shape", ["normal", "exponential"])
def test_the_interval_holds_the_mean_as_often_as_it_says(shape, seeds):
    random, mean = np.random.default_rng(2), float(shape == "exponential")
    intervals = [interval(getattr(random, shape)(size=seeds)) for _ in range(300)]
    covered = np.mean([low < mean < high for low, high in intervals])
    assert covered == pytest.approx(0.945, abs=0.035)


def test_the_interval_of_many_is_the_normal_one():
    values = sample(2.0, 1.0, seeds=400)
    low, high = interval(values)
    assert (low, high) == pytest.approx((2 - 1.96 / 20, 2 + 1.96 / 20), abs=0.02)
    assert interval(np.ones(5)) == (1.0, 1.0)
    assert interval(values) == (low, high)


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_the_interval_of_a_few_is_students(seeds):
    values = sample(1.0, 1.0, seeds=seeds)
    half = stats.t.isf(0.025, seeds - 1) / math.sqrt(seeds)
    assert interval(values) == pytest.approx((1 - half, 1 + half))


def test_a_course_settles_where_the_mean_over_seeds_stays_near_its_last():
    up_to_3 = np.minimum(np.arange(8), 3) * 0.1
    assert settling(np.stack([up_to_3 - 0.2, up_to_3 + 0.2])) == (3, 3, 3)
    # Of two that settle at 1 and at 6 the mean does so with the later; samples may hold one alone.
    early, late = np.minimum(np.arange(8), 1) * 0.1, np.minimum(np.arange(8), 6) * 0.1
    assert settling(np.stack([early, late])) == (6, 1, 6)
    assert settling(np.arange(16.0).reshape(2, 8))[0] == 7  # it never does


# ------------------------------------------------------------------------------------------- power


@pytest.mark.parametrize("seeds", [8, 20])
@pytest.mark.parametrize("predicted", [above(0.04), within(0.04)], ids=["one end", "two ends"])
def test_power_is_how_often_the_judge_decides(predicted, seeds):
    # 0.04 inside an end of the range: of one with two ends, in its middle.
    family, random = Family(0.04, 3), np.random.default_rng(3)
    mean, spread = 0.08 if predicted.high == math.inf else 0.0, 0.06 * math.sqrt(seeds / 20)
    found = []
    for _ in range(150):
        values = random.normal(mean, spread, size=seeds)
        found.append(judge([Measured(values, predicted)], family)[0].verdict == "supported")
    # Holm's correction is Bonferroni's for one effect of a family.
    assert np.mean(found) == pytest.approx(power(spread, seeds, predicted, family), abs=0.12)


def test_power_grows_with_seeds_and_distance_and_falls_with_tests_and_spread():
    one, many, wide, close = Family(0.04, 1), Family(0.04, 40), above(2.0), above(1.0)
    assert power(2.0, 20, close, one) > power(2.0, 12, close, one) > power(2.0, 12, close, many)
    assert power(2.0, 12, wide, many) > power(2.0, 12, close, many) > power(3.0, 12, close, many)
    assert power(2.0, 20, close, one) > power(2.0, 20, within(1.0), one)
    nothing = above(0.0, 1e-9)  # on the end itself, on one side
    assert power(1.0, 60, nothing, one) == pytest.approx(0.02, abs=0.02)


def test_the_seeds_that_are_needed_are_the_fewest():
    family = Family(0.04, 30)
    seeds = needed_seeds(0.03, above(0.04), family)
    assert power(0.03, seeds, above(0.04), family) >= 0.9
    fewer = NUMBERS[NUMBERS.index(seeds) - 1]
    assert power(0.03, fewer, above(0.04), family) < 0.9
    assert needed_seeds(5.0, above(0.04), family) is None


def test_seeds_that_are_nearly_all_alike_have_an_interval_and_decide_little():
    values = np.zeros(20)
    values[3] = 1 / 64
    low, high = interval(values)
    assert np.isfinite([low, high]).all() and low < np.mean(values) < high
    [finding] = judge([Measured(values, below(0.0, 0.1))], Family(0.04, 3))
    assert finding.verdict == "undecided"


def test_samples_of_one_value_have_no_error_whatever_it_is():
    values = np.array([0.1] * 11 + [0.3])
    alike = np.all(values[_draws(12)] == 0.1, axis=1)
    t = studentized(values)
    assert np.sum(np.isneginf(t)) == np.sum(alike) > 1000
    assert np.max(np.abs(t[np.isfinite(t)])) < 1e6


def test_the_exploratory_judgements_can_be_decided_by_their_number():
    every = [
        study.load(name, study.SCALES["small"])
        for study in studies().values()
        for names in study.CLAIMS.values()
        for name in names
    ]
    least = 2 / (RESAMPLES + 1)  # of a range with two ends
    for family in families(every).values():
        assert 2 * least * family.tests < family.level


@pytest.mark.parametrize("name", SHAPES)
def test_simulated_values_have_mean_0_and_standard_deviation_1(name):
    values = SHAPES[name](np.random.default_rng(0), 200_000, -1.5)
    np.testing.assert_allclose([values.mean(), values.std()], [0, 1], atol=0.01)


@pytest.mark.parametrize("skewness", [-1.5, 0.0, 2.0])
def test_values_as_skewed_as_found_have_that_skewness(skewness):
    values = SHAPES[AS_FOUND](np.random.default_rng(0), 200_000, skewness)
    assert stats.skew(values) == pytest.approx(skewness, abs=0.1)


def test_the_simulation_of_a_folder_meets_the_skewness_of_its_report(tmp_path, monkeypatch):
    options = CampaignOptions(folder=str(tmp_path))
    scales = options.scales()
    every = load_all(scales)
    name, claim = next(iter(every["dialogue"].items()))
    one = claim.judgements[0]
    row = {"claim": name, "judgement": f"{one.how}: {one.prediction}", "skewness": 1.5}
    cases = []
    monkeypatch.setattr("experiments.simulation.simulate", lambda own, _: cases.extend(own) or [])
    simulate_judge(every, scales, options)
    assert {case.skewness for case in cases} == {None}
    cases.clear()
    (tmp_path / "report").mkdir()
    write_json(tmp_path / "report" / "verdicts.json", [row])
    simulate_judge(every, scales, options)
    assert [case.skewness for case in cases if case.skewness is not None] == [1.5]
    cases.clear()
    keep_seeds(tmp_path, CampaignOptions(num_seeds=9))
    simulate_judge(every, scales, options)
    assert {case.seeds for case in cases} == {9}
    (tmp_path / "report" / "verdicts.json").write_text("[{")
    with pytest.raises(ConfigError, match=r"verdicts\.json"):
        simulate_judge(every, scales, options)


def test_a_simulation_says_how_often_the_judge_errs(monkeypatch):
    monkeypatch.setattr("experiments.simulation.CAMPAIGNS", 30)
    monkeypatch.setattr("experiments.simulation.INTERVALS", 20)
    cases = [Case(above(0.04), True, 8, 0.1), Case(within(0.04), False, 12, 0.03)] * 2
    families = {True: Family(0.04, 2), False: Family(0.01, 2)}
    lines = list(simulate(cases, families))
    assert [line.partition(":")[0] for line in lines] == [
        name for name in SHAPES if name != AS_FOUND
    ]
    assert all("a wrong verdict among 4 in 0.0" in line for line in lines[:1])
    assert all("of 8 seeds" in line and "of 12 seeds" in line for line in lines)
    skewed = [case._replace(skewness=1.5) for case in cases]
    assert [line.partition(":")[0] for line in simulate(skewed, families)] == list(SHAPES)
    # One that corrects for nothing errs as often as 95% intervals of four effects do.
    careless = {True: Family(1.0, 1), False: Family(1.0, 1)}
    [line] = list(simulate(cases, careless))[:1]
    assert 0.1 < float(line.split(" in ")[1].split()[0]) < 0.4
