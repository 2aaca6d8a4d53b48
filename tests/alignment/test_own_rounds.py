"""Facts of own rounds: what critics give, what is put back, and what training and commands make."""

import dataclasses
import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr

from icl_align import rounds as command
from icl_align.alignment.contexts import sample_contexts
from icl_align.alignment.learners import best_attempt, least_squares
from icl_align.alignment.model import Transformer
from icl_align.alignment.optimum import plackett_luce_optimum
from icl_align.alignment.options import FORMULAS, ModelConfig, Options, OwnRoundsConfig, TaskConfig
from icl_align.alignment.rounds.critics import (
    FORMULA_FUNCTIONS,
    Line,
    critic_of,
    direction,
    distance,
    line_of,
    rewards_of,
    share,
)
from icl_align.alignment.rounds.gains import learned_after, over_settings, pearson, settings
from icl_align.alignment.rounds.learners import MEASURED, WITHOUT_TRAINING
from icl_align.alignment.rounds.quantities import (
    BY_ANSWER,
    BY_ROUND,
    accuracy,
    own_pairs,
    quantities,
)
from icl_align.alignment.rounds.roll_out import (
    in_steps,
    judged_by,
    own_rounds,
    transformer_in_steps,
    transformer_own_first,
)
from icl_align.alignment.theory.descent import last_answer, plain_descent
from icl_align.alignment.world import WORLD
from icl_align.config import ConfigError, with_values
from icl_align.running.mesh import make_mesh
from icl_align.running.packing import pack, unpack
from icl_align.running.run import run as train
from icl_align.running.run_folder import saved_config
from icl_align.running.study import make_study
from icl_align.running.training import (
    abstract_network,
    init_state,
    loss_of,
    make_chunk,
    members_of,
    network_of,
)
from runs import tiny

TASK = TaskConfig()
KEYS = jax.random.split(jax.random.key(3), 12)
CONTEXTS = jax.jit(lambda: sample_contexts(TASK, KEYS))()
LINE = jax.jit(lambda: line_of(TASK, KEYS))()
SIZE = dict(num_layers=2, num_heads=2, width=16, init="torch")


def build(critic=False, **options):
    return Transformer(ModelConfig(**SIZE | options), TASK, rngs=nnx.Rngs(0), critic=critic)


def rolled(learner, contexts=CONTEXTS, rounds=4, given=2, scale="attempts_norm", **critic):
    options = OwnRoundsConfig(**critic)
    return jax.jit(
        lambda contexts: own_rounds(
            learner, contexts, LINE, critic_of(options, TASK), KEYS,
            given=given, rounds=rounds, scale=scale,
        )
    )(contexts)  # fmt: skip


def rows(learner):
    return in_steps(lambda contexts, n: learner(contexts)[:, n])


# ------------------------------------------------------------------- a transformer attempt by attempt

LAYOUTS = [
    {},
    {"tokens": "triplet_norm", "positions": False},
    {"tokens": "interleaved", "attention": "linear"},
    {"causal": False},
    {"causal": False, "tokens": "interleaved"},
]


@pytest.mark.parametrize("options", LAYOUTS, ids=str)
def test_attempt_by_attempt_it_answers_as_in_one_pass(options):
    network = build(**options)

    @jax.jit
    def both(contexts):
        answer, state = network.begin(contexts, 3, 20)
        answers = [answer]
        for n in range(3, 8):
            answer, state = network.read_on(state, contexts, n)
            answers.append(answer)
        return jnp.stack(answers, axis=1), network(contexts)[:, 3:9]

    steps, whole = both(CONTEXTS)
    np.testing.assert_allclose(steps, whole, atol=2e-5)


@pytest.mark.parametrize("options", LAYOUTS[:3], ids=str)
def test_its_critic_judges_attempt_by_attempt_as_in_one_pass(options):
    network = build(critic=True, **options)

    @jax.jit
    def both(contexts):
        _, state = network.begin(contexts, 3, 20)
        judged = [network.judge(state, contexts, 3)]
        _, state = network.read_on(state, contexts, 3)
        judged.append(network.judge(state, contexts, 4))
        return jnp.stack(judged, axis=1), *network.with_judgements(contexts), network(contexts)

    steps, answers, judgements, alone = both(CONTEXTS)
    np.testing.assert_allclose(steps, judgements[:, 3:5], atol=2e-5)
    np.testing.assert_allclose(answers, alone, atol=2e-5)  # the judged tokens are not seen


def test_its_critic_sees_no_reward_of_what_it_judges_and_nothing_later():
    network = build(critic=True)
    judged = jax.jit(lambda contexts: network.with_judgements(contexts)[1])
    before = judged(CONTEXTS)
    rewards = CONTEXTS.rewards.at[:, 5:].set(0.123)
    later = CONTEXTS.responses.at[:, 6:].set(9.0)
    after = judged(CONTEXTS._replace(rewards=rewards, responses=later))
    np.testing.assert_array_equal(before[:, :6], after[:, :6])
    assert (before[:, 6:] != after[:, 6:]).all()


def test_without_a_critic_it_cannot_judge():
    with pytest.raises(ValueError, match=r"loss\.critic_weight above 0 trains one"):
        build().with_judgements(CONTEXTS)


def test_a_critic_leaves_the_initial_policy_as_it_is():
    with_one, without = build(critic=True), build()
    np.testing.assert_array_equal(with_one(CONTEXTS), without(CONTEXTS))


# ------------------------------------------------------------------------------------------- critics


@pytest.mark.parametrize("name", FORMULAS)
def test_every_formula_gives_a_given_attempt_its_reward(name):
    each = jax.vmap(lambda y: FORMULA_FUNCTIONS[name](LINE, y), 1, 1)
    np.testing.assert_allclose(each(CONTEXTS.responses), CONTEXTS.rewards, atol=2e-5)


@pytest.mark.parametrize("name", FORMULAS)
def test_every_formula_gives_the_target_1_and_what_corrupts_0(name):
    of = FORMULA_FUNCTIONS[name]
    np.testing.assert_allclose(of(LINE, LINE.target), 1, atol=1e-5)
    np.testing.assert_allclose(of(LINE, LINE.corrupted), 0, atol=1e-5)


@given(st.integers(0, 2**31 - 1), st.floats(0.1, 10))
def test_what_each_formula_is_blind_to(seed, factor):
    keys = jax.random.split(jax.random.key(seed), 4)
    target, corrupted, answer, aside = (jax.random.normal(key, (1, 5)) for key in keys)
    line = Line(target, corrupted)
    along = (target - corrupted) / jnp.linalg.norm(target - corrupted)
    right_angle = aside - jnp.sum(aside * along) * along
    assert share(line, answer + factor * right_angle) == pytest.approx(
        float(share(line, answer)[0]), abs=2e-4 * (1 + factor)
    )
    assert direction(line, factor * answer) == pytest.approx(
        float(direction(line, answer)[0]), abs=1e-3
    )
    assert 0 <= float(direction(line, answer)[0]) <= 1 + 1e-6
    assert float(distance(line, answer)[0]) <= 1
    further = target + (1 + factor) * (answer - target)
    assert float(distance(line, further)[0]) < float(distance(line, answer)[0]) + 1e-6


def test_direction_ranks_as_the_error_does():
    answers = jax.random.normal(jax.random.key(0), (12, 30, 5))
    rewards = jax.vmap(lambda y: direction(LINE, y), 1, 1)(answers)
    judged = CONTEXTS._replace(responses=answers, rewards=rewards)
    right, counted = map(np.asarray, own_pairs(judged, 0))
    # What points away further than the corrupted answer gets 0 like it: two such are a tie.
    away = np.asarray(rewards == 0)
    tied = away[:, :, None] & away[:, None, :]
    assert 0 < tied.sum() < tied.size
    np.testing.assert_array_equal(right[counted > 0], np.where(tied, 0.5, 1)[counted > 0])


def test_noise_power_bias_and_clipping_of_rewards():
    answers = CONTEXTS.responses[:, 0]

    def of(**options):
        critic = critic_of(OwnRoundsConfig(**options), TASK)
        return np.asarray(rewards_of(critic, LINE, answers, jnp.full(12, 0.25), KEYS, 3))

    plain = CONTEXTS.rewards[:, 0]
    np.testing.assert_allclose(of(), plain, atol=1e-5)
    np.testing.assert_allclose(of(critic_power=2.0), plain**2, atol=1e-5)
    np.testing.assert_allclose(of(critic="learned", critic_power=2.0), 0.25**2, atol=1e-6)
    np.testing.assert_allclose(of(critic_bias=0.4), np.minimum(plain + 0.4, 1), atol=1e-5)
    np.testing.assert_allclose(of(critic_bias=0.4, critic_clipped=False), plain + 0.4, atol=1e-5)
    np.testing.assert_array_equal(of(critic="learned"), 0.25)
    all_drawn, some = of(critic_noise=1.0), of(critic_noise=0.4)
    replaced = np.abs(some - plain) > 1e-4
    assert 0 < replaced.sum() < 12
    np.testing.assert_array_equal(some[replaced], all_drawn[replaced])
    assert (all_drawn >= 0).all() and (all_drawn <= 1).all()


def test_a_critic_judges_given_and_own_attempts_alike():
    """Own attempts that are given ones again get the same rewards, whatever powers there are."""
    task = TaskConfig(reward_transform="power", reward_power=2.0)
    contexts = sample_contexts(task, KEYS)
    again = in_steps(lambda contexts, n: contexts.responses[:, 0])
    for power in (1.0, 3.0):
        critic = critic_of(OwnRoundsConfig(critic_power=power), task)
        made = own_rounds(again, contexts, LINE, critic, KEYS, given=2, rounds=2, scale="as_is")
        rewards = made.contexts.rewards
        np.testing.assert_allclose(rewards[:, 0], contexts.rewards[:, 0] ** power, rtol=1e-5)
        np.testing.assert_allclose(rewards[:, 2:], rewards[:, :1] * np.ones(2), atol=2e-5)


def test_the_line_of_independent_corruption_is_that_of_its_worst_attempt():
    task = TaskConfig(name="independent_corruption", reward_transform="rank")
    contexts = sample_contexts(dataclasses.replace(task, reward_transform="identity"), KEYS)
    line = line_of(task, KEYS)
    worst = jnp.argmin(contexts.rewards, axis=-1)
    response = contexts.responses[jnp.arange(12), worst]
    reward = contexts.rewards[jnp.arange(12), worst]
    np.testing.assert_allclose(share(line, response), reward, atol=1e-5)


# ---------------------------------------------------------------------------------------- own rounds


def test_what_is_put_back_are_the_answers_with_the_norm_of_the_given_attempts():
    made = rolled(transformer_in_steps(build()))
    own, answers = made.contexts.responses[:, 2:], made.answers[:, :-1]
    wanted = jnp.mean(jnp.linalg.norm(CONTEXTS.responses[:, :2], axis=-1), axis=-1)
    np.testing.assert_allclose(
        jnp.linalg.norm(own, axis=-1), wanted[:, None] * np.ones(4), rtol=1e-5
    )
    cosines = (
        jnp.sum(own * answers, -1)
        / jnp.linalg.norm(own, axis=-1)
        / jnp.linalg.norm(answers, axis=-1)
    )
    np.testing.assert_allclose(cosines, 1, atol=1e-5)
    np.testing.assert_array_equal(made.contexts.responses[:, :2], CONTEXTS.responses[:, :2])
    np.testing.assert_array_equal(made.contexts.rewards[:, :2], CONTEXTS.rewards[:, :2])


@pytest.mark.parametrize("options", [{}, {"causal": False}], ids=str)
def test_a_transformer_answers_to_its_own_rounds_as_to_any_context(options):
    network = build(**options)
    made = rolled(transformer_in_steps(network), scale="as_is")
    np.testing.assert_allclose(network(made.contexts)[:, 2:7], made.answers, atol=2e-5)


def test_a_critic_that_reads_along_judges_as_the_learner_that_it_is():
    network, other = build(critic=True), build(critic=True, width=8)
    learner = transformer_in_steps(network)
    alone = rolled(learner, critic="learned")
    together = rolled(judged_by(learner, transformer_in_steps(network)), critic="learned")
    for mine, wanted in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(mine, wanted, atol=1e-6)
    by_other = rolled(judged_by(learner, transformer_in_steps(other)), critic="learned").contexts
    judged = jax.jit(lambda made: other.with_judgements(made)[1])(by_other)
    np.testing.assert_allclose(by_other.rewards[:, 2:6], judged[:, 2:6].clip(0, 1), atol=1e-5)
    # Who answers is the learner all the same.
    np.testing.assert_allclose(by_other.responses[:, 2], alone.contexts.responses[:, 2], atol=1e-6)


@pytest.mark.parametrize("given", [0, 1])
def test_rounds_begin_with_few_attempts_or_none(given):
    made = rolled(transformer_in_steps(build()), given=given, rounds=3)
    assert made.answers.shape[1] == 4 and made.contexts.rewards.shape[1] == given + 3
    whole = jax.jit(lambda contexts: build()(contexts))(made.contexts)
    np.testing.assert_allclose(made.answers, whole[:, given:], atol=2e-5)


def test_own_attempts_before_the_given_ones_are_the_same_attempts_in_another_order():
    network = build()
    made = rolled(transformer_own_first(network, 2), rounds=3)
    first, second = made.contexts.responses[:, :2], made.contexts.responses[:, 2:5]
    moved = made.contexts._replace(
        responses=jnp.concatenate([second, first], axis=1),
        rewards=jnp.concatenate([made.contexts.rewards[:, 2:], made.contexts.rewards[:, :2]], 1),
    )
    np.testing.assert_allclose(made.answers[:, -1], network(moved)[:, 5], atol=2e-5)
    usual = rolled(transformer_in_steps(network), rounds=3)
    np.testing.assert_allclose(made.answers[:, 0], usual.answers[:, 0], atol=2e-5)
    assert np.abs(made.answers[:, -1] - usual.answers[:, -1]).max() > 1e-3


def test_every_seed_on_contexts_of_its_own_is_that_seed_alone(tmp_path):
    options = [
        "evaluation.own_contexts=true",
        "evaluation.num_contexts=6",
        "evaluation.own_rounds=2",
    ]
    config = composed(*options, "num_seeds=2", "seed=3")

    def gains(config):
        params, quiet = init_state(config).params, lambda said: None
        found = make_study(config, 0, params, tmp_path, quiet, quiet)["learners"]
        return {name: found[name]["gain"]["by_seed"] for name in ("transformer", "best_attempt")}

    both = gains(config)
    for place, seed in enumerate((3, 4)):
        for name, alone in gains(dataclasses.replace(config, num_seeds=1, seed=seed)).items():
            np.testing.assert_allclose(both[name][place], alone[0], atol=1e-4)
    shared = gains(with_values(config, {"evaluation.own_contexts": False}))
    assert len(shared["best_attempt"]) == 1 and shared["transformer"][0] != both["transformer"][0]


def test_attempts_behind_the_given_ones_are_not_read():
    other = CONTEXTS._replace(responses=CONTEXTS.responses.at[:, 2:].set(7.0))
    learner = transformer_in_steps(build())
    jax.tree.map(np.testing.assert_array_equal, rolled(learner), rolled(learner, other))


def test_no_rounds_are_the_answer_to_the_given_attempts():
    made = rolled(rows(best_attempt), rounds=0, given=5)
    np.testing.assert_array_equal(made.answers[:, 0], best_attempt(CONTEXTS)[:, 5])


def test_whoever_repeats_the_best_stays_and_whoever_solves_the_line_is_at_the_target():
    made = rolled(rows(best_attempt), scale="as_is")
    np.testing.assert_allclose(made.answers, made.answers[:, :1] * np.ones((1, 5, 1)), atol=1e-6)
    made = rolled(rows(least_squares), scale="as_is")
    target = CONTEXTS.target[:, None] * np.ones((1, 5, 1))
    np.testing.assert_allclose(made.answers, target, rtol=1e-2, atol=1e-2)


def test_the_optimum_after_some_attempts_is_the_row_of_all():
    some = jnp.array([2, 7])
    of = jax.jit(lambda contexts: plackett_luce_optimum(contexts, attempts=some))
    every = jax.jit(plackett_luce_optimum)(CONTEXTS)
    np.testing.assert_allclose(of(CONTEXTS), every[:, some], atol=1e-4)


def test_the_optimum_of_the_ranking_loss_leaves_the_target_under_a_critic_that_is_blind_beside_it():
    """What makes own rounds diverge is the loss with its critic: it needs no network."""
    learner = in_steps(
        lambda contexts, n: plackett_luce_optimum(contexts, attempts=jnp.asarray(n)[None])[:, 0]
    )

    def errors(critic):
        made = rolled(learner, critic=critic, rounds=6)
        return np.asarray(quantities(Options(), made, KEYS, 2)["refinement_error"]).mean(axis=0)

    blind, sees = errors("share"), errors("direction")
    assert blind[0] == pytest.approx(sees[0], abs=1e-5)
    assert blind[-1] > blind[0] + 0.1
    assert sees[-1] < sees[0] - 0.1


# ---------------------------------------------------------------------------------------- quantities


def test_quantities_of_whoever_answers_the_target():
    target = in_steps(lambda contexts, n: contexts.target)
    found = quantities(Options(), rolled(target, critic="direction"), KEYS, 2)
    assert set(found) == {*BY_ANSWER, *BY_ROUND}
    assert found["gain"].shape == (12, 5) and found["movement"].shape == (12, 4)
    for name in ("refinement_error", "gain", "movement"):
        np.testing.assert_allclose(found[name], 0, atol=1e-5)
    np.testing.assert_allclose(found["reward"], 1, atol=1e-5)
    np.testing.assert_allclose(found["critic_accuracy"], 1)  # above both given attempts
    lengths = jnp.mean(jnp.linalg.norm(CONTEXTS.responses[:, :2], axis=-1), axis=-1)
    expected = jnp.linalg.norm(CONTEXTS.target, axis=-1) / lengths
    np.testing.assert_allclose(found["length"], expected[:, None] * np.ones(4), rtol=1e-5)


@pytest.mark.parametrize("loss", ["plackett_luce", "bradley_terry", "cosine"])
def test_gradient_descent_agrees_with_itself_and_the_optimum_has_no_regret(loss):
    noisy = {"task.reward_noise": 0.4, "loss.name": loss, "gradient_descent.steps": 5}
    config = with_values(Options(), noisy)

    def of(name):
        made = rolled(WITHOUT_TRAINING[name](config, KEYS), rounds=2)
        return jax.jit(lambda made: quantities(config, made, KEYS, 2))(made)

    np.testing.assert_allclose(of("gradient_descent")["agreement"], 1, atol=1e-4)
    np.testing.assert_allclose(of("plackett_luce_optimum")["regret"], 0, atol=1e-3)


@pytest.mark.parametrize("name", ["best_attempt", "weighted_average", "least_squares"])
def test_a_learner_in_steps_answers_as_the_learner(name):
    learner = WITHOUT_TRAINING[name](Options(), KEYS)
    first, state = learner.begin(CONTEXTS, 3)
    second, _ = learner.read_on(state, CONTEXTS, jnp.array(3))
    whole = WORLD.learners(Options())[name](CONTEXTS, KEYS)
    np.testing.assert_allclose(jnp.stack([first, second], 1), whole[:, 3:5], atol=1e-6)


def test_the_constructed_network_takes_a_step_of_descent_on_its_own_rounds():
    config = with_values(Options(), {"evaluation.own_rounds": 2})
    made = rolled(WITHOUT_TRAINING["constructed_1"](config, KEYS), rounds=2)
    step = last_answer(made.contexts, plain_descent(1, 0.1), KEYS, "negative_squared_distance")
    tied = (made.contexts.rewards[:, 2] == made.contexts.rewards[:, 3])[:, None]
    wrong = 1 - jnp.sum(step * made.answers[:, -1], -1) / jnp.linalg.norm(
        step, axis=-1
    ) / jnp.linalg.norm(made.answers[:, -1], axis=-1)
    np.testing.assert_allclose(jnp.where(tied[:, 0], 0, wrong), 0, atol=1e-3)


def test_the_accuracy_of_a_critic_counts_pairs():
    assert (np.asarray(accuracy(CONTEXTS, 2)) == 1).all()  # on a line a higher reward is less error
    wrong = CONTEXTS._replace(rewards=-CONTEXTS.rewards)
    assert (np.asarray(accuracy(wrong, 2)) == 0).all()
    tied = CONTEXTS._replace(rewards=0 * CONTEXTS.rewards)
    assert (np.asarray(accuracy(tied, 2)) == 0.5).all()
    judged = CONTEXTS.rewards.at[:, :2].set(9.0)  # who is not judged keeps its own reward
    assert (np.asarray(accuracy(CONTEXTS, 2, judged)) == 1).all()
    # Beside the rewards of the contexts every own one is better, or every one is worse.
    better, worse = (accuracy(CONTEXTS, 2, CONTEXTS.rewards + shift) for shift in (9.0, -9.0))
    np.testing.assert_allclose(better + worse, 1, atol=1e-6)
    # Attempts that are alike are no pair, and where there is no pair there is no knowing.
    alike = CONTEXTS._replace(responses=CONTEXTS.responses[:, :1] * jnp.ones((1, 20, 1)))
    assert (np.asarray(accuracy(alike, 2)) == 0.5).all()
    right, counted = map(np.asarray, own_pairs(CONTEXTS, 0))
    assert 0.98 < counted.sum() / (12 * 20 * 19 / 2) <= 1 and not counted[:, 0].any()


def rows_of(accuracies, gains):
    def row(a, g):
        return {"accuracy": {"by_seed": list(a)}, "gain": {"by_seed": list(g)}}

    return [row(a, g) for a, g in zip(accuracies, gains, strict=True)]


def test_correlation_and_threshold_of_gains_on_a_line():
    accuracy = np.linspace(0.5, 1, 9)[:, None] * np.ones(3)
    found = over_settings([rows_of(accuracy, 2 * (accuracy - 0.8))])
    assert found["correlation"]["mean"] == pytest.approx(1)
    for side in ("mean", "low", "high"):
        assert found["threshold"][side] == pytest.approx(0.8)
    beyond = over_settings([rows_of(accuracy, 2 * (accuracy - 1.8))])
    assert beyond["correlation"]["mean"] == pytest.approx(1) and beyond["threshold"] is None
    flat = over_settings([rows_of(accuracy, 0 * accuracy)])
    assert flat == {"correlation": None, "threshold": None}


def test_intervals_of_a_correlation_hold_what_is_drawn():
    rng = np.random.default_rng(0)
    accuracy = rng.uniform(0.5, 1, (30, 1)) * np.ones(4)
    noisy = rows_of(accuracy, accuracy + rng.normal(0, 0.2, accuracy.shape))
    one = over_settings([noisy])["correlation"]
    assert one["low"] < one["mean"] < one["high"] < 1
    assert over_settings([noisy, noisy])["correlation"]["mean"] == pytest.approx(one["mean"])
    alone = rows_of(accuracy, rng.normal(0, 0.2, accuracy.shape))
    assert over_settings([alone])["threshold"] is None  # a line without a slope has none


def test_pearson_is_that_of_scipy():
    x, y = np.random.default_rng(0).normal(size=(2, 50))
    means = np.array([v.mean() for v in (x, y, x**2, y**2, x * y)])
    assert pearson(means[None])[0] == pytest.approx(pearsonr(x, y).statistic)


def test_the_critics_that_are_compared_differ_and_hold_the_learned_one_if_there_is_one():
    swept = settings(OwnRoundsConfig(critic_noise=0.7), ("learned",))
    critics = [jax.tree.map(float, critic_of(one, TASK)) for one in swept.values()]
    assert len({*critics}) == len(swept)
    assert sum(critic.noise == 1 for critic in critics) == 1  # who guesses has no formula
    assert "learned" in swept and "learned" not in settings(OwnRoundsConfig())


# --------------------------------------------------------------------------------------- in training


def composed(*overrides):
    return tiny("task.num_responses=6", *overrides)


def parameters(config):
    return jax.tree.map(lambda leaf: leaf[0], init_state(config).params)


def test_in_training_the_given_attempts_stay_and_the_rest_is_the_networks_own():
    config = composed("train.own_rounds_share=1")
    network = network_of(config)(parameters(config))
    plain = WORLD.sample(config, KEYS)
    made = jax.jit(lambda: WORLD.provoked(config, network, plain, KEYS))().given
    np.testing.assert_array_equal(made.responses[:, :2], plain.given.responses[:, :2])
    np.testing.assert_array_equal(made.rewards[:, :2], plain.given.rewards[:, :2])
    answers = network(made)[:, 2:6]
    own = made.responses[:, 2:]
    cosines = (
        jnp.sum(own * answers, -1)
        / jnp.linalg.norm(own, axis=-1)
        / jnp.linalg.norm(answers, axis=-1)
    )
    np.testing.assert_allclose(cosines, 1, atol=1e-5)
    half = WORLD.provoked(config, network, jax.tree.map(lambda leaf: leaf[6:], plain), KEYS[6:])
    np.testing.assert_allclose(half.given.responses, made.responses[6:], atol=1e-5)


def test_in_training_a_share_of_the_contexts_is_changed():
    config = composed("train.own_rounds_share=0.5")
    network = network_of(config)(parameters(config))
    keys = jax.random.split(jax.random.key(0), 64)
    plain = WORLD.sample(config, keys)
    made = WORLD.provoked(config, network, plain, keys).given
    changed = (made.responses != plain.given.responses).any(axis=(1, 2))
    assert 16 < int(changed.sum()) < 48
    powered = with_values(config, {"own_rounds.critic_power": 3.0})
    given = WORLD.provoked(powered, network, plain, keys).given.rewards[:, :2]
    np.testing.assert_allclose(given, plain.given.rewards[:, :2] ** 3, rtol=1e-5)
    none = composed()
    assert WORLD.provoked(none, network, plain, keys) is plain


@pytest.mark.parametrize("loss", ["plackett_luce", "cosine"])
def test_the_gradient_goes_through_what_is_shown_if_asked(loss):
    """And never through what is ranked: a network could make that easy."""
    gradients = {}
    for through in ("false", "true"):
        config = composed(
            f"loss={loss}", "train.own_rounds_share=1", f"train.own_rounds_gradient={through}"
        )
        params = parameters(config)
        network, sample = network_of(config), WORLD.sample(config, KEYS)

        def made(params, config=config, network=network, sample=sample):
            return WORLD.provoked(config, network(params), sample, KEYS)

        given = made(params).given

        def loss_on(params, config=config):
            return loss_of(config, params, KEYS)

        def frozen(params, shown, config=config, network=network, given=given):
            return WORLD.loss(config, WORLD.answers(config, network(params), shown), given)

        own = jax.jit(jax.grad(loss_on))(params)
        at_rest = jax.jit(jax.grad(frozen))(params, made(params).shown)
        gradients[through] = jax.tree.map(lambda a, b: float(jnp.abs(a - b).max()), own, at_rest)
    assert max(jax.tree.leaves(gradients["false"])) < 1e-4
    assert max(jax.tree.leaves(gradients["true"])) > 1e-3
    assert all(map(np.isfinite, jax.tree.leaves(gradients["true"])))


def test_in_training_own_attempts_end_where_training_does():
    config = composed("train.own_rounds_share=1", "loss.max_attempts=4")
    network = network_of(config)(parameters(config))
    made = WORLD.provoked(config, network, WORLD.sample(config, KEYS), KEYS)
    assert made.shown.rewards.shape == (12, 4) and (made.given.rewards[:, 4:] == 0).all()
    assert np.isfinite(float(loss_of(config, parameters(config), KEYS)))


def test_half_precision_trains_on_own_attempts_and_a_critic():
    config = composed(
        "train.own_rounds_share=1", "loss.critic_weight=1", "train.precision=bfloat16"
    )
    assert np.isfinite(float(jax.jit(lambda p: loss_of(config, p, KEYS))(parameters(config))))


def test_a_learned_critic_adds_its_squared_error_to_the_loss():
    config = composed("loss.critic_weight=2")
    network = network_of(config)(parameters(config))
    sample = WORLD.sample(config, KEYS)
    predictions, judgements = answers = WORLD.answers(config, network, sample.shown)
    assert judgements.shape == (12, 6)
    without = dataclasses.replace(config, loss=dataclasses.replace(config.loss, critic_weight=0.0))
    alone = WORLD.loss(without, (predictions, None), sample.given)
    error = float(jnp.mean((judgements - sample.given.rewards) ** 2))
    assert float(WORLD.loss(config, answers, sample.given)) == pytest.approx(
        float(alone) + 2 * error, rel=1e-5
    )


@pytest.mark.slow
def test_a_critic_learns_to_rank_given_attempts():
    size = ["model.width=32", "model.num_layers=2", "train.batch_size=64"]
    config = composed(*size, "loss.critic_weight=20", "train.steps=300")
    chunk = make_chunk(config, 300, make_mesh(config, 1, jax.local_devices()[:1]))
    state, _ = chunk(members_of(config), pack(init_state(config), leading=1), 300)
    like = abstract_network(config)[1]
    trained = unpack(jax.tree.map(lambda leaf: leaf[0], state.params), like=like)
    keys = jax.random.split(jax.random.key(9), 200)
    contexts = WORLD.sample(config, keys).given

    @jax.jit
    def right(params):
        expected = network_of(config)(params).with_judgements(contexts)[1]
        return jnp.mean(accuracy(contexts._replace(rewards=expected), 2))

    before, after = float(right(parameters(config))), float(right(trained))
    assert abs(before - 0.5) < 0.1 < after - 0.5


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["evaluation.own_rounds=5"], "evaluation.own_rounds=5: goes beyond"),
        (
            ["train.own_rounds_share=1", "own_rounds.given_attempts=6"],
            "own_rounds.given_attempts=6: must be in",
        ),
        (["own_rounds.critic=learned"], "needs loss.critic_weight above 0"),
        (["train.own_rounds_share=1", "own_rounds.critic=learned"], "cannot reward what it is"),
        (
            ["train.own_rounds_share=1", "model.causal=false", "model.sees_future=true"],
            "needs model.sees_future=false",
        ),
        (["evaluation.own_rounds=2", "task.shown_rewards=shuffled"], "needs task.shown_rewards"),
        (["evaluation.own_rounds=2", "task.reward_transform=rank"], "needs task.reward_transform"),
        (["train.own_rounds_share=1", "own_rounds.given_attempts=1"], "must be in [2, 5]"),
        (["train.own_rounds_share=1", "loss.max_attempts=2"], "there is no room"),
        (["loss.max_attempts=4", "evaluation.own_rounds=3"], "as far as learned positions are"),
        (["train.own_rounds_gradient=true"], "needs train.own_rounds_share above 0"),
        (
            ["train.own_rounds_share=1", "loss.critic_weight=1", "own_rounds.critic_power=2"],
            "own_rounds.critic_power=2.0: needs loss.critic_weight=0",
        ),
        (
            [
                "evaluation.own_rounds=2",
                "evaluation.own_rounds_first=true",
                "loss.critic_weight=1",
                "own_rounds.critic=learned",
            ],
            "needs evaluation.own_rounds_first=false",
        ),
        (["loss.critic_weight=1", "model.causal=false"], "needs model.causal=true"),
    ],
)
def test_options_that_do_not_go_together_are_refused(overrides, said):
    with pytest.raises(ConfigError, match=re.escape(said)):
        composed(*overrides)


# ---------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def examined(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounds") / "run"
    config = composed(
        "evaluation.own_rounds=3", "loss.critic_weight=1", "train.steps=3", "num_seeds=2",
        "train.own_rounds_share=0.5", "train.checkpoint_every=1",
    )  # fmt: skip
    train(config, folder)
    return folder


def test_a_run_leaves_its_own_rounds_with_its_evaluation(examined):
    found = json.loads((examined / "own_rounds.json").read_text())
    assert set(found["learners"]) == set(MEASURED)
    for of in found["learners"].values():
        assert {name: len(of[name]["mean"]) for name in of} == dict.fromkeys(
            BY_ANSWER, 4
        ) | dict.fromkeys(BY_ROUND, 3)
    transformer = found["learners"]["transformer"]["refinement_error"]
    assert len(transformer["by_seed"]) == 2
    learned = ("learned", learned_after(1), learned_after(2))  # the checkpoints that are kept
    rows = {row["name"]: row for row in found["critics"]}
    assert {*rows} == {*settings(OwnRoundsConfig(), learned)}
    assert [row["name"] for row in found["learned_critics"]] == [*learned]
    assert all(0 <= row["accuracy"]["mean"] <= 1 for row in found["learned_critics"])
    # Other weights judge otherwise.
    assert rows[learned_after(1)]["correlation"] != rows["learned"]["correlation"]
    gains, right = (np.array([row[key]["by_seed"] for row in rows.values()]) for key in
                    ("gain", "accuracy"))  # fmt: skip
    by_seed = [pearsonr(x, y).statistic for x, y in zip(right.T, gains.T, strict=True)]
    assert found["correlation"]["by_seed"] == pytest.approx(by_seed, abs=1e-6)
    settled = found["rounds_to_convergence"]
    assert settled["best_attempt"]["mean"] == settled["best_attempt"]["high"] == 0
    assert len(settled["transformer"]["by_seed"]) == 2
    assert (examined / "own_rounds.png").read_bytes()[:4] == b"\x89PNG"
    rows = {row["name"]: row["mean"] for row in found["summary"]}
    assert rows["error of the first answer"] == transformer["mean"][0]


def test_the_command_examines_a_run_again_and_compares(examined, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(examined, folder)
    command.main([f"run_dir={folder}", "own_rounds.critic=learned", "own_rounds.scale=as_is"])
    out = capsys.readouterr().out
    assert "refinement error after 0 to 3 own rounds" in out
    [again] = folder.glob("evaluations/*/own_rounds.json")
    assert json.loads(again.read_text())["options"]["own_rounds"]["critic"] == "learned"
    command.main([str(folder), f"figure={tmp_path / 'compared.svg'}"])
    out = capsys.readouterr().out
    assert "own_rounds.critic=learned, own_rounds.scale=as_is" in out
    assert "default" in out and "over all critics of all runs" in out
    assert (tmp_path / "compared.svg").exists()


def test_a_study_that_is_lost_or_damaged_is_made_again_as_it_was(examined, tmp_path):
    folder, path = tmp_path / "run", tmp_path / "run" / "own_rounds.json"
    shutil.copytree(examined, folder)
    whole = path.read_text()
    for spoil in (path.unlink, lambda: path.write_text(whole[:100])):
        spoil()
        train(saved_config(folder), folder)
        assert json.loads(path.read_text()) == json.loads(whole)


def test_of_an_unfinished_run_the_newest_checkpoint_is_examined(examined, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(examined, folder)
    shutil.rmtree(folder / "checkpoints" / "3")
    before = (folder / "own_rounds.json").read_text()
    command.main([f"run_dir={folder}", "own_rounds.given_attempts=1", "evaluation.own_rounds=1"])
    assert "training has reached step 2 of 3" in capsys.readouterr().err
    [path] = folder.glob("evaluations/*step_2/own_rounds.json")
    found = json.loads(path.read_text())
    assert found["step"] == 2 and found["given_attempts"] == 1
    assert [row["name"] for row in found["learned_critics"]] == ["learned", learned_after(1)]
    assert (folder / "own_rounds.json").read_text() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluation.own_rounds=3"], "run_dir=null: name the folder of a finished run"),
        (["run_dir=/nowhere"], "it holds none"),
        (["run_dir=RUN", "evaluation.own_rounds=9"], "evaluation.own_rounds=9: goes beyond"),
        (["run_dir=RUN", "evaluation.own_rounds=0"], "must be at least 1"),
        (["run_dir=RUN", "own_rounds.given_attempts=6"], "evaluation.own_rounds=3: goes beyond"),
        (["run_dir=RUN", "own_rounds.critic=oracle"], "share, distance, direction, learned"),
        (["run_dir=RUN", "train.steps=9"], "fixed by the trained run"),
        (["RUN", "/nowhere"], "RUN=/nowhere: there is no such folder"),
        (["RUN", "own_rounds.critic=share"], "has no effect on runs that are compared"),
    ],
)
def test_what_cannot_be_examined_is_said_in_one_line(arguments, said, examined, capsys):
    with pytest.raises(SystemExit) as error:
        command.main([text.replace("RUN", str(examined)) for text in arguments])
    assert error.value.code == 2
    line = capsys.readouterr().err
    assert said in line and len(line.splitlines()) == 1
