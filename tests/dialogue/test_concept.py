"""Facts of the study of the concept: probes, laws and tests find what was put in, and no more."""

import jax
import numpy as np
import pytest

from icl_align.config import with_values
from icl_align.dialogue.concept import laws, probes, published, steering
from icl_align.dialogue.concept.gathering import NEITHER, Programs
from icl_align.dialogue.options import Options
from icl_align.intervals import of_mean
from icl_align.running.training import init_state, network_of

RNG = np.random.default_rng(0)


def planted(count=400, width=6, rounds=3):
    """States [b, layers, t, d] of two layers, of which the second holds the log-odds."""
    odds = RNG.normal(size=(count, rounds))
    states = RNG.normal(size=(count, 2, rounds, width))
    direction = np.arange(1.0, width + 1)
    states[:, 1] += odds[..., None] * direction
    return states, odds, direction / np.linalg.norm(direction)


def test_a_probe_finds_what_is_there_and_nothing_in_noise_or_of_other_dialogues():
    (states, odds, direction), (others, wanted, _) = planted(), planted()
    found = probes.explained_by_seed([probes.explained((states, odds), (others, wanted))])
    noise, signal = np.array(found["mean"])
    assert (np.abs(noise) < 0.1).all()
    assert (signal > 0.8).all()
    shuffled = probes.explained((states, probes.shuffled(odds)), (others, wanted))
    assert abs(np.mean(probes.explained_by_seed([shuffled])["mean"])) < 0.1
    one = probes.direction_of(states[:, 1].reshape(-1, 6), odds.reshape(-1))
    reading = states[:, 1] @ one.raw + one.offset
    assert np.corrcoef(reading.reshape(-1), odds.reshape(-1))[0, 1] > 0.9
    shift = probes.shift(3 * direction * np.ones((5, 1, 1, 1, 1)), [[one]])
    cosine = float(direction @ probes.unit(one.raw))
    assert np.array(shift["cosine"]["mean"]).item() == pytest.approx(cosine, abs=1e-5)
    assert np.array(shift["along"]["mean"]).item() == pytest.approx(3 * cosine / one.spread, 1e-4)
    assert np.array(shift["cosine_pattern"]["mean"]).item() == pytest.approx(1, abs=0.02)


def tiny(**values):
    config = Options()
    small = {"model.num_layers": 2, "model.width": 16, "model.num_heads": 2, "task.rounds": 4}
    return with_values(config, small | values)


def test_a_dose_of_zero_changes_nothing_and_directions_have_the_same_length():
    config = tiny()
    params = jax.tree.map(lambda leaf: np.asarray(leaf[0]), init_state(config).params)
    programs = Programs(config, network_of(config))
    keys = jax.random.split(jax.random.key(0), 16)
    zeros = np.zeros(16, np.float32)
    plain = programs.network_values(params, "none", keys, zeros)
    directions = [
        probes.Direction(RNG.normal(size=16), 0.0, 0.5, probes.unit(RNG.normal(size=16)))
        for _ in range(3)
    ]
    own = steering.vectors(directions, seed=0)
    for name in steering.DIRECTIONS:
        np.testing.assert_allclose(np.linalg.norm(own[name], axis=-1), 1, rtol=1e-5)

    def measure(number, added):
        return programs.network_values(params, "none", keys, zeros, 0.0, added)

    shares = []
    found = steering.steered(measure, [own], shares.append)
    assert shares[-1] == 1
    for name in steering.DIRECTIONS:
        of = np.array(found[name]["accuracy"]["mean"])
        assert of.shape == (2, 7)  # blocks, doses
        np.testing.assert_array_equal(of[:, 3], 0)
    unchanged = found["unchanged"]["accuracy"]["mean"]
    np.testing.assert_allclose(unchanged, plain["accuracy"].mean(), atol=1e-5)
    moved = np.array(found["random"]["uncertainty"]["mean"])
    assert np.abs(moved[:, [0, 6]]).max() > 1e-4


def test_what_predicts_that_uncertainty_did_not_rise_is_found():
    change = RNG.normal(size=(200, 1, 6))
    concept = np.cumsum(np.concatenate([np.zeros((200, 1, 1)), change], axis=-1), axis=-1)
    falls = np.cumsum(np.concatenate([np.zeros((200, 1, 1)), -change], axis=-1), axis=-1)
    of = published.prediction(concept, falls)
    assert of["concept"]["mean"] > 0.95
    assert of["within_rounds"]["mean"] > 0.9
    assert of["round"]["mean"] < 0.65
    # How large an activation is says nothing: a cosine moves by hundredths.
    small = published.prediction(concept / 1000, falls)
    assert small["concept"]["mean"] == pytest.approx(of["concept"]["mean"], abs=0.01)
    # Where only the round counts, and the concept moves with it, the published test succeeds too.
    drift = np.array([2.0, 1.5, 1.0, -1.0, -1.5, -2.0])
    concept = np.cumsum(np.concatenate([np.zeros((200, 1, 1)), drift + change], -1), -1)
    rises = np.where(RNG.uniform(size=(200, 1, 6)) < np.where(drift > 0, 0.1, 0.9), 1.0, -1.0)
    uncertainty = np.cumsum(np.concatenate([np.zeros((200, 1, 1)), rises], -1), -1)
    of = published.prediction(concept, uncertainty)
    assert of["concept"]["mean"] > of["commonest"]["mean"] + 0.2
    assert of["both"]["mean"] == pytest.approx(of["round"]["mean"], abs=0.03)
    assert of["within_rounds"]["mean"] == pytest.approx(of["round"]["mean"], abs=0.03)


def chain(level, critique, rounds=8, count=20000):
    right = np.zeros((count, 1, rounds))
    right[..., 0] = RNG.uniform(size=(count, 1)) < 0.3
    for t in range(1, rounds):
        chance = np.where(right[..., t - 1] > 0, level, critique)
        right[..., t] = RNG.uniform(size=(count, 1)) < chance
    return right


def test_the_two_state_law_is_that_of_a_chain_of_two_states():
    of = laws.two_state(chain(0.9, 0.25))
    assert of["upper"]["mean"] == pytest.approx(0.25 / 0.35, abs=0.02)
    assert of["rate"]["mean"] == pytest.approx(0.65, abs=0.02)
    assert of["error"]["mean"] < 0.015
    assert of["error_of_no_change"]["mean"] > 3 * of["error"]["mean"]


def test_the_additive_law_is_found_where_it_holds():
    evidence = RNG.normal(size=(100, 2, 6, 4))
    weights = np.array([0.3, 1.0, -0.5, 2.0])
    found = laws.additive(evidence, evidence @ weights)
    assert found["explained"]["mean"] == pytest.approx(1, abs=1e-6)
    noise = laws.additive(evidence, RNG.normal(size=(100, 2, 6)))
    assert abs(noise["explained"]["mean"]) < 0.1


@pytest.mark.parametrize(("hazard", "after"), [(0.0, -1.6), (1.0, 0.0)])
def test_an_immoral_instruction_stays_without_forgetting_and_is_gone_with_it(hazard, after):
    """In log-odds, where answers are no evidence: twice the strength of an instruction, 2 x 0.8."""
    config = tiny(**{"task.rounds": 6, "evaluation.immoral_at": [2, 5]})
    programs = Programs(config, network_of(config))
    keys = jax.random.split(jax.random.key(0), 8)
    first = published.first_immoral(config.evaluation.immoral_at, config.task.rounds)
    assert first == 2
    both = [programs.exact_activation(plan, keys, hazard) for plan in ("immoral", "careful")]
    offsets = published.immoral_offsets(*(own[:, None, 1] for own in both), first)
    expected = [-1.6, after, after]
    np.testing.assert_allclose(of_mean(offsets)["mean"], expected, atol=1e-3)


def test_an_immoral_round_has_to_be_followed_by_others():
    assert published.first_immoral([2, 5, 8], 10) == 2
    assert published.first_immoral([2, 3, 5], 8) is None
    assert published.first_immoral([2], 4) is None


def test_rounds_to_convergence_have_an_interval():
    accuracy = RNG.uniform(size=(500, 2, 3)) < np.array([0.2, 0.8, 0.8])
    found = published.convergence(1.0 * accuracy)
    assert found["low"] <= found["mean"] <= found["high"]
    # Of two seeds an interval is wide; beyond the last round nothing converges.
    found = published.convergence(np.stack([accuracy[:, 0], 0.0 * accuracy[:, 0]], axis=1))
    assert (found["low"], found["high"]) == (0, 2)


def test_a_plan_differs_from_itself_by_nothing_and_groups_of_questions_are_apart():
    values = {
        "accuracy": RNG.uniform(size=(50, 2, 3)),
        "calibration_error": RNG.uniform(size=(50, 2, 3, 30)),
    }
    for curve in published.differences(values, values, values).values():
        np.testing.assert_allclose(curve["mean"], 0, atol=1e-9)
    settled = np.arange(50) < 20
    gain = np.where(settled[:, None, None], 0.0, 1.0) * np.ones((50, 2, 3))
    of = published.by_question(gain, 0 * gain, {"ambiguous": ~settled, "settled": settled})
    assert of["ambiguous"]["above_none"]["mean"] == [1, 1, 1]
    assert of["settled"]["gain"]["mean"] == [0, 0, 0]


def test_half_of_the_questions_of_ambiguous_bias_are_settled():
    config = tiny(**{"task.name": "ambiguous_bias"})
    keys = jax.random.split(jax.random.key(0), 256)
    values = Programs(config, network_of(config)).reader_values("none", keys)["exact"]
    assert 0.4 < values["settled"].mean() < 0.6
    other = Programs(tiny(), network_of(tiny())).reader_values("none", keys[:16])["exact"]
    assert (other["settled"] == NEITHER).all()
