"""The exact reader against brute force, and what follows from Bayes' rule."""

import copy
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl_align.dialogue import readers, speakers
from icl_align.dialogue.additive import fitted_weights
from icl_align.dialogue.dialogues import sample_dialogue
from icl_align.dialogue.kinds.kind import NONE
from icl_align.dialogue.options import ALL, KINDS, TaskConfig
from icl_align.dialogue.readers import EVIDENCE, read
from icl_align.dialogue.vocabulary import FINE, FLAWED, UNCHECKED

ROUNDS = 2
TWO, THREE = [0.3, 0.7], [0.5, 0.2, 0.3]


def factors(task, dialogue):
    """Logs of every factor of the probability of a dialogue, given what is hidden, of all next tokens.

    question [Q, C], instruction [T, C, I], answer [T, A, C, M, S + 1], modes [T, M], check [T, C, 2].
    """
    concepts = jnp.arange(task.num_concepts)
    modes = jnp.arange(3 if task.correct_flawed else 2)
    answers = []
    for t in range(task.rounds):
        previous = dialogue.answers[t - 1] if t else jnp.full_like(dialogue.answers[0], NONE)
        for place in range(dialogue.answers.shape[1]):
            of = jax.vmap(
                jax.vmap(
                    lambda c, m, t=t, place=place, previous=previous: speakers.log_answer(
                        task, dialogue.kind, c, m, dialogue.question, previous,
                        dialogue.answers[t], place,
                    ),
                    (None, 0),
                ),
                (0, None),
            )  # fmt: skip
            answers.append(of(concepts, modes))
    fine = [
        speakers.quality_of(task, dialogue.kind, dialogue.question, answer).fine
        for answer in dialogue.answers
    ]
    shape = task.rounds, dialogue.answers.shape[1]
    return {
        "question": readers.log_question(task, dialogue.kind, dialogue.question),
        "instruction": jnp.stack([speakers.log_instruction(task, t == 0) for t in range(ROUNDS)]),
        "answer": jnp.stack(answers).reshape(*shape, *answers[0].shape),
        "modes": jnp.stack(
            [speakers.log_modes(task, dialogue.checks[t - 1], t == 0) for t in range(task.rounds)]
        ),
        "check": jnp.stack([speakers.log_check(task, one) for one in fine]),
        "transition": speakers.log_transition(task),
    }


def brute_force(task, factors, dialogue, own_answers):
    """What `readers.Reading` holds, by a sum over all paths of (concept, mode)."""
    p = {name: np.exp(np.asarray(value)) for name, value in factors.items()}
    num_concepts, (num_rounds, length) = task.num_concepts, dialogue.answers.shape
    weights = {
        name: np.zeros((*shape, num_concepts))
        for name, shape in {
            "told": (num_rounds,), "answered": (num_rounds, length), "checked": (num_rounds,)
        }.items()
    }  # fmt: skip
    sums = {
        "instruction": np.zeros((num_rounds, p["instruction"].shape[-1])),
        "answer": np.zeros((num_rounds, length, p["answer"].shape[-1])),
        "check": np.zeros((num_rounds, 2)),
    }
    before = {name: np.zeros(total.shape[:-1]) for name, total in sums.items()}
    concepts = itertools.product(range(num_concepts), repeat=num_rounds + 1)
    ways = list(itertools.product(range(p["modes"].shape[1]), repeat=num_rounds))
    for path, modes in itertools.product(concepts, ways):
        weight = task.prior[path[0]] * np.prod(p["question"][:, path[0]])
        for t in range(num_rounds):
            c, m = path[t + 1], modes[t]
            weight *= p["transition"][path[t], c]
            before["instruction"][t] += weight
            sums["instruction"][t] += weight * p["instruction"][t, c]
            weight *= p["instruction"][t, c, dialogue.instructions[t]]
            weights["told"][t, c] += weight
            weight *= p["modes"][t, m]
            for place in range(length):
                before["answer"][t, place] += weight
                sums["answer"][t, place] += weight * p["answer"][t, place, c, m]
                if own_answers:
                    weight *= p["answer"][t, place, c, m, dialogue.answers[t, place]]
                weights["answered"][t, place, c] += weight
            before["check"][t] += weight
            sums["check"][t] += weight * p["check"][t, c]
            if dialogue.checks[t] != UNCHECKED:
                weight *= p["check"][t, c, dialogue.checks[t]]
            weights["checked"][t, c] += weight
    predicted = {name: sums[name] / before[name][..., None] for name in sums}
    beliefs = {name: w / w.sum(axis=-1, keepdims=True) for name, w in weights.items()}
    return predicted | beliefs


@pytest.mark.parametrize("prior", [TWO, THREE], ids=["two concepts", "three"])
@pytest.mark.parametrize("name", [*KINDS, ALL])
def test_the_exact_reader_is_a_sum_over_all_paths(name, prior):
    if name == ALL and prior == THREE:
        pytest.skip("the mixture adds nothing to each of its kinds")
    accuracy = [0.85] if prior == TWO else [0.6, 0.7, 0.9]
    task = TaskConfig(name=name, rounds=ROUNDS, prior=prior, critic_accuracy=accuracy)
    if prior == THREE:  # whatever there is, at once
        task.first_answer_temperature, task.correct_flawed = 0.5, 0.7
        task.unchecked_share, task.first_neutral_share = 0.5, 0.5
        task.foreign_share = 0.5 if name == "request" else 0.0
    with jax.enable_x64(True):

        @jax.jit
        def everything(hazard, key):
            own = copy.copy(task)  # not through the constructor: a traced number is no float
            own.hazard = hazard
            dialogue, _ = sample_dialogue(own, key)
            forms = [
                read(own, evidence, dialogue)
                for evidence in (EVIDENCE["exact"], EVIDENCE["exact_own_answers_ignored"])
            ]
            return dialogue, forms, factors(own, dialogue)

        for hazard, seed in itertools.product((0.0, 0.05, 1.0), range(2)):
            dialogue, forms, parts = jax.device_get(everything(hazard, jax.random.key(seed)))
            for own_answers, reading in zip((True, False), forms, strict=True):
                expected = brute_force(task, parts, dialogue, own_answers)
                for field, value in expected.items():
                    found = np.exp(getattr(reading, field))
                    assert found.dtype == np.float64
                    np.testing.assert_allclose(found, value, rtol=0, atol=1e-10, err_msg=field)


@pytest.mark.parametrize("name", KINDS)
def test_every_distribution_of_a_reader_sums_to_one(name):
    task = TaskConfig(name=name, rounds=3)
    dialogue, _ = sample_dialogue(task, jax.random.key(0))
    reading = jax.jit(lambda d: read(task, EVIDENCE["exact"], d))(dialogue)
    for field, value in reading._asdict().items():
        total = jnp.exp(value).sum(axis=-1)
        np.testing.assert_allclose(total, 1, rtol=1e-5, err_msg=field)


def many(task, count=2000):
    keys = jax.random.split(jax.random.key(1), count)
    return jax.jit(jax.vmap(lambda key: sample_dialogue(task, key)))(keys)


def mean_surprise(task, evidence, dialogues):
    weights = fitted_weights(task)

    @jax.jit
    @jax.vmap
    def of(dialogue):
        reading = read(task, evidence, dialogue, weights)

        def surprise(log_probs, tokens):
            return -jnp.take_along_axis(log_probs, tokens[..., None], axis=-1)[..., 0]

        answers = surprise(reading.answer, dialogue.answers).sum(axis=-1)
        checks = surprise(reading.check, dialogue.checks)
        return jnp.concatenate(
            [answers, checks, surprise(reading.instruction, dialogue.instructions)]
        )

    return np.asarray(of(dialogues), np.float64)


@pytest.mark.parametrize("name", [name for name in EVIDENCE if name != "exact"])
def test_no_reader_is_surprised_less_than_the_exact_one(name):
    """Gibbs' inequality, in the mean over dialogues that the speakers held."""
    task = TaskConfig()
    dialogues, _ = many(task)
    more = mean_surprise(task, EVIDENCE[name], dialogues) - mean_surprise(
        task, EVIDENCE["exact"], dialogues
    )
    total = more.sum(axis=-1)
    assert total.mean() > 3 * total.std() / np.sqrt(len(total))


def test_the_posterior_is_calibrated_about_the_concept():
    """Of all places where the belief in the careful concept is about p, a share p is careful."""
    task = TaskConfig()
    dialogues, hidden = many(task, 5000)
    told = jax.jit(jax.vmap(lambda d: read(task, EVIDENCE["exact"], d).told))(dialogues)
    belief = np.exp(np.asarray(told[..., 1])).ravel()
    careful = np.asarray(hidden.concepts).ravel()
    bins = np.minimum((belief * 10).astype(int), 9)
    for place in range(10):
        inside = bins == place
        gap = careful[inside].mean() - belief[inside].mean()
        assert abs(gap) < 4 * 0.5 / np.sqrt(inside.sum() / task.rounds)  # rounds are dependent


def test_with_a_certain_concept_nothing_is_learnt():
    task = TaskConfig(prior=[0.0, 1.0])
    dialogue, _ = sample_dialogue(task, jax.random.key(0))
    reading = read(task, EVIDENCE["exact"], dialogue)
    np.testing.assert_allclose(np.exp(reading.checked), [[0, 1]] * task.rounds, atol=1e-6)


def test_a_neutral_instruction_says_nothing_and_others_add_their_strength():
    task = TaskConfig(hazard=0.0, instruction_strength=0.8, rounds=3)
    dialogue, _ = sample_dialogue(task, jax.random.key(0))
    evidence = EVIDENCE["exact"]._replace(answers=np.array(False), checks=np.array(False))
    for instruction, shift in ((0, 0.0), (1, -0.8), (3, -0.8), (4, 0.8), (6, 0.8)):
        asked = dialogue._replace(instructions=jnp.array([0, instruction, instruction]))
        odds = readers.activation(read(task, evidence, asked).told)
        np.testing.assert_allclose(odds, [0, shift, 2 * shift], atol=1e-5)


def test_a_sharpened_first_answer_is_surer_and_later_ones_are_as_before():
    means = {}
    for temperature in (1.0, 0.3):
        task = TaskConfig(first_answer_temperature=temperature, keep_fine=0.0, keep_flawed=0.0)
        dialogues, hidden = many(task, 4000)
        quality = jax.jit(
            jax.vmap(
                lambda d, task=task: jax.vmap(
                    lambda a: speakers.quality_of(task, d.kind, d.question, a).quality
                )(d.answers)
            )
        )(dialogues)
        careful = np.asarray(hidden.concepts) == 1
        means[temperature] = [np.asarray(quality)[careful[:, t], t].mean() for t in (0, 1)]
    assert means[0.3][0] > means[1.0][0] + 0.02  # a careful speaker is right even more often
    assert means[0.3][1] == pytest.approx(means[1.0][1], abs=0.02)


def test_flawed_answers_are_corrected_and_unchecked_ones_kept_as_often_as_is_said():
    task = TaskConfig(
        prior=[0.9, 0.1], hazard=0.0, keep_flawed=0.3, keep_fine=1.0, keep_unchecked=0.6,
        critic_accuracy=[1.0], unchecked_share=0.25, correct_flawed=0.5,
    )  # fmt: skip
    dialogues, hidden = many(task, 4000)
    checks, modes = np.asarray(dialogues.checks)[:, :-1], np.asarray(hidden.modes)[:, 1:]
    assert np.mean(checks == UNCHECKED) == pytest.approx(0.25, abs=0.01)
    kept, corrected = modes == speakers.KEPT, modes == speakers.CORRECTED
    assert kept[checks == UNCHECKED].mean() == pytest.approx(0.6, abs=0.02)
    assert kept[checks == FINE].all()
    assert kept[checks == FLAWED].mean() == pytest.approx(0.3, abs=0.02)
    assert corrected[checks == FLAWED].mean() == pytest.approx(0.7 * 0.5, abs=0.02)
    assert not corrected[checks != FLAWED].any()
    answers = np.asarray(dialogues.answers)
    np.testing.assert_array_equal(answers[:, 1:][kept], answers[:, :-1][kept])
    right = jax.jit(
        jax.vmap(
            lambda d: jax.vmap(lambda a: speakers.quality_of(task, d.kind, d.question, a).quality)(
                d.answers
            )
        )
    )(dialogues)
    careless = np.asarray(hidden.concepts)[:, 1:] == 0
    assert np.asarray(right)[:, 1:][corrected & careless].mean() > 0.93
