"""Facts of what is measured of a reader's rounds: classes of texts, calibration, gain."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_align.dialogue.dialogues import sample_dialogue
from icl_align.dialogue.drafts import Drafts, class_entropy, mean_log_loss_of_classes
from icl_align.dialogue.options import Options, TaskConfig
from icl_align.dialogue.quantities import calibration_features, quantities
from icl_align.dialogue.readers import EVIDENCE, read
from icl_align.dialogue.rounds import plan_named, roll_out
from icl_align.statistics import mean_interval, pooled_moments


def drafts(category, log_loss=None):
    category = jnp.asarray(category)
    loss = jnp.ones(category.shape) if log_loss is None else jnp.asarray(log_loss)
    return Drafts(category, loss)


def test_the_entropy_of_classes_is_found_from_few_drafts():
    p = np.array([0.5, 0.25, 0.15, 0.1])
    drawn = np.random.default_rng(0).choice(4, size=(20000, 16), p=p)
    found = np.asarray(class_entropy(drafts(drawn)))
    exact = -np.sum(p * np.log(p))
    assert found.mean() == pytest.approx(exact, abs=0.02)
    counts = np.stack([(drawn == k).mean(axis=1) for k in range(4)])
    plug_in = -np.sum(np.where(counts > 0, counts * np.log(np.maximum(counts, 1e-9)), 0), axis=0)
    assert plug_in.mean() < exact - 0.08  # what the estimator corrects
    certain = class_entropy(drafts(np.zeros((1, 16), int)))
    np.testing.assert_allclose(certain, 0, atol=0.05)


def test_the_coded_uncertainty_is_a_mean_over_classes_of_their_mean_log_loss():
    rng = np.random.default_rng(0)
    category, loss = rng.integers(0, 4, (5, 16)), rng.uniform(0, 2, (5, 16)).astype(np.float32)
    found = mean_log_loss_of_classes(drafts(category, loss))
    for row, own_category, own_loss in zip(found, category, loss, strict=True):
        of = collections.defaultdict(list)
        for one, value in zip(own_category, own_loss, strict=True):
            of[int(one)].append(value)
        assert float(row) == pytest.approx(np.mean([np.mean(v) for v in of.values()]), rel=1e-5)


def rolled(kind, plan="careful", count=256, **values):
    config = Options()
    config.task.name, config.task.rounds = kind, 3
    for name, value in values.items():
        setattr(config.evaluation, name, value)
    plan = plan_named(plan, config.task, config.evaluation)
    keys = jax.random.split(jax.random.key(0), count)
    found = jax.jit(lambda keys: roll_out(config, EVIDENCE["exact"], plan, keys))(keys)
    return config, found, quantities(config.task, found)


def test_the_uncertainty_of_a_first_text_is_that_of_its_classes_exactly():
    """Of detoxification: the number of toxic symbols in a chain, by a sum over all its paths."""
    from icl_align.dialogue.kinds import detoxification as kind

    _, found, measured = rolled("detoxification", drafts=64)
    of_level = {}
    for level in range(kind.LEVELS):
        share = np.zeros(kind.LENGTH + 1)
        for care in (0, 1):
            ways = np.zeros((kind.LENGTH + 1, 2))  # toxic symbols so far, whether the last was
            ways[0, 0] = 1
            for _ in range(kind.LENGTH):
                logit = kind.CARELESS + kind.PROVOKED * level + kind.CAREFUL * care
                toxic = 1 / (1 + np.exp(-(logit + kind.AFTER_TOXIC * np.arange(2))))
                new = np.zeros_like(ways)
                new[:, 0] = (ways * (1 - toxic)).sum(axis=1)
                new[1:, 1] = (ways * toxic).sum(axis=1)[:-1]
                ways = new
            share += ways.sum(axis=1) / 2
        of_level[level] = -np.sum(share * np.log(share))
    levels = np.asarray(found.dialogue.question)[:, 0]
    mine = np.asarray(measured["uncertainty"])[:, 0]
    for level, exact in of_level.items():
        own = mine[levels == level]
        assert abs(own.mean() - exact) < 4 * own.std() / np.sqrt(len(own)) + 0.02
    confidence = np.asarray(measured["confidence"])
    assert confidence.mean() > 0.2  # of a class, not of the one text among thousands


def test_an_exact_reader_that_knows_its_concept_is_calibrated_about_what_is_said():
    """Its own draws agree with the speakers' as often as it is confident, round by round."""
    task = TaskConfig(prior=[0.0, 1.0], hazard=0.0)
    keys = jax.random.split(jax.random.key(0), 4000)

    @jax.jit
    @jax.vmap
    def of(key):
        dialogue, _ = sample_dialogue(task, key)
        log_probs = read(task, EVIDENCE["exact"], dialogue).answer[:, 0]  # [T, S + 1]
        own = jax.random.categorical(jax.random.fold_in(key, 1), log_probs)
        confidence = jnp.exp(jnp.take_along_axis(log_probs, own[:, None], axis=-1))[:, 0]
        return confidence, 1.0 * (own == dialogue.answers[:, 0])

    confidence, correct = of(keys)
    features = np.asarray(calibration_features(confidence, correct))[:, None]
    _, low, high = mean_interval(pooled_moments(features, "calibration_error_corrected"))
    assert ((low <= 0) & (high >= 0)).mean() >= 7 / 8
    plain, *_ = mean_interval(pooled_moments(features, "calibration_error"))
    assert (plain > 0).all()  # of so many dialogues it is never 0


@pytest.mark.parametrize("kind", ["social_bias", "visual_grounding"])
def test_of_an_answer_that_is_no_text_the_coded_uncertainty_is_its_log_loss(kind):
    config, found, measured = rolled(kind)
    assert found.drafts is None
    length = found.dialogue.answers.shape[-1]
    np.testing.assert_allclose(
        measured["uncertainty_as_coded"], -np.log(measured["confidence"]) / length, atol=1e-4
    )
    gain = np.asarray(measured["accuracy"] - measured["accuracy"][:, :1])
    np.testing.assert_array_equal(measured["gain"], gain)
