"""Roll-outs: a language model that is the exact reader speaks as the exact reader, plans, critics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from icl_align.config import with_values
from icl_align.dialogue.additive import fitted_weights
from icl_align.dialogue.dialogues import from_tokens, sample_dialogue, to_tokens
from icl_align.dialogue.options import KINDS, PLANS, Options
from icl_align.dialogue.quantities import quantities
from icl_align.dialogue.readers import EVIDENCE, next_token
from icl_align.dialogue.rounds import NEUTRAL, plan_named, roll_out, roll_out_language_model
from icl_align.dialogue.vocabulary import layout_of, token_names, vocabulary_of
from icl_align.dialogue.world import WORLD

KEYS = jax.random.split(jax.random.key(3), 16)


def options(**values):
    config = Options()
    short = {"task.rounds": 4, "evaluation.flip_at": 2, "evaluation.immoral_at": [2]}
    return with_values(config, short | {key.replace("__", "."): v for key, v in values.items()})


def exact(config, plan="careful"):
    plan = plan_named(plan, config.task, config.evaluation)
    return jax.jit(lambda keys: roll_out(config, EVIDENCE["exact"], plan, keys))(KEYS)


class ExactNetwork(nnx.Module):
    """The exact reader by the names of a language model."""

    def __init__(self, task):
        self.row = functools.partial(next_token, task, EVIDENCE["exact"])

    def begin(self, batch, length):
        return jnp.zeros((*batch, length), jnp.int32)

    def read_on(self, past, tokens, start, added=None):
        past = jax.lax.dynamic_update_slice_in_dim(past, tokens, start, axis=1)
        rows = jax.vmap(self.row)(past)
        rows = jax.lax.dynamic_slice_in_dim(rows, start, tokens.shape[1], axis=1)
        return rows, past


def as_language_model(config, plan="careful"):
    """Roll-outs of a language model whose rows are the exact reader's."""
    plan = plan_named(plan, config.task, config.evaluation)
    network = ExactNetwork(config.task)
    return jax.jit(lambda keys: roll_out_language_model(config, network, plan, keys))(KEYS)


QUICK = ("social_bias", "visual_grounding")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind in QUICK else [pytest.mark.slow]) for kind in KINDS],
)
def test_a_language_model_that_is_the_exact_reader_speaks_as_it_does(kind):
    config = options(task__name=kind, task__rounds=3)
    mine, other = exact(config), as_language_model(config)
    for a, b in zip(mine.dialogue, other.dialogue, strict=True):
        np.testing.assert_array_equal(a, b)
    for field in ("instruction", "answer", "check"):
        a, b = (np.exp(getattr(rolled, field)) for rolled in (mine, other))
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=field)
    found = quantities(config.task, other)
    for name in ("excess_loss", "excess_loss_check", "excess_loss_instruction"):
        np.testing.assert_allclose(found[name], 0, atol=1e-4, err_msg=name)


def test_and_what_it_implies_of_the_concept_is_the_exact_readers_belief():
    config = options(task__keep_fine=0.0, task__keep_flawed=0.0)
    mine, other = (quantities(config.task, of(config)) for of in (exact, as_language_model))
    np.testing.assert_allclose(mine["activation"], other["activation"], atol=0.05)


def test_tokens_and_parts_are_the_same_dialogue():
    config = options(task__name="all")
    dialogue, _ = jax.jit(jax.vmap(lambda key: sample_dialogue(config.task, key)))(KEYS)
    tokens = to_tokens(config.task, dialogue)
    assert tokens.shape == (16, layout_of(config.task).length)
    for a, b in zip(dialogue, from_tokens(config.task, tokens), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("prior", [[0.5, 0.5], [0.2, 0.3, 0.5]])
def test_every_token_has_a_name(prior):
    task = options(task__prior=prior).task
    vocabulary, names = vocabulary_of(task), token_names(task)
    assert len(names) == len(set(names)) == vocabulary.size
    careful = vocabulary.first_check - 1
    assert names[careful] == ("careful 3" if len(prior) == 2 else "concept 2 3")
    assert names[vocabulary.first_instruction] == "neutral"
    assert names[vocabulary.first_check :][:3] == ["flawed", "fine", "symbol 0"]


# One of each rule, and the one that forgets; the others are the same program.
@pytest.mark.parametrize("name", ["exact", "last_instruction", "printed_rule", "additive"])
def test_the_rows_of_a_reader_are_distributions_that_read_no_later_token(name):
    config = options(task__name="ambiguous_bias")
    tokens = WORLD.sample(config, KEYS).given
    reader = jax.jit(WORLD.learners(config)[name])
    rows = np.asarray(reader(tokens, KEYS))
    np.testing.assert_allclose(np.exp(rows[:, :-1]).sum(axis=-1), 1, rtol=1e-4)
    half = tokens.shape[1] // 2
    np.testing.assert_array_equal(reader(tokens[:, :half], KEYS), rows[:, :half])


def test_a_plan_says_whose_instructions_come():
    config = options(task__rounds=10, evaluation__immoral_at=[2, 5, 8], evaluation__flip_at=4)
    of = {name: plan_named(name, config.task, config.evaluation).concepts for name in PLANS}
    assert all(concepts[0] == NEUTRAL for concepts in of.values())
    assert set(map(int, of["none"])) == {NEUTRAL}
    assert list(of["careful"][1:]) == [1] * 9
    assert list(of["once"][1:]) == [1] + [NEUTRAL] * 8
    assert list(of["flip"][1:]) == [1, 1, 1] + [0] * 6
    assert [t for t in range(1, 10) if of["immoral"][t] == 0] == [2, 5, 8]


def test_instructions_move_the_exact_reader_as_they_should():
    config = options(task__rounds=6)
    ends = {
        plan: float(quantities(config.task, exact(config, plan))["activation"][:, -1].mean())
        for plan in ("careful", "none", "careless")
    }
    assert ends["careful"] > ends["none"] > ends["careless"]


def test_under_the_plan_of_the_speakers_their_dialogue_is_read():
    config = options()
    rolled = exact(config, "speakers")
    # The same for every reader, and for the language model.
    other = as_language_model(config, "speakers")
    ignoring = roll_out(
        config, EVIDENCE["no_instruction"], plan_named("speakers", config.task, config.evaluation), KEYS
    )  # fmt: skip
    for a, b, c in zip(rolled.dialogue, other.dialogue, ignoring.dialogue, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_an_answer_is_kept_while_the_reader_is_sure():
    config = options(evaluation__sure_above=0.0)
    answers = np.asarray(exact(config, "keep_if_sure").dialogue.answers)
    assert (answers == answers[:, :1]).all()  # always sure: the first answer stays
    config = options(evaluation__sure_above=1.0)
    for a, b in zip(exact(config, "keep_if_sure").dialogue, exact(config).dialogue, strict=True):
        np.testing.assert_array_equal(a, b)  # never sure: as the plan careful


def test_a_critic_of_accuracy_one_is_always_right():
    config = options(task__critic_accuracy=[1.0])
    rolled = exact(config)
    right = quantities(config.task, rolled)["accuracy"]
    np.testing.assert_array_equal(rolled.dialogue.checks, right)


def test_greedy_answers_do_not_depend_on_chance():
    config = options(evaluation__greedy=True)
    rolled = exact(config)
    np.testing.assert_array_equal(
        rolled.dialogue.answers[..., 0], rolled.answer[..., 0, :].argmax(-1)
    )


def test_the_additive_law_is_exact_without_forgetting_answers_and_checks():
    """With no hazard, and answers that say nothing, log-odds are a sum over instructions."""
    task = options(task__hazard=0.0, task__rounds=4).task
    weights = fitted_weights(task)
    assert weights[1] == pytest.approx(1, abs=0.1)  # an instruction counts with its own log-odds
    assert weights[2] == pytest.approx(1, abs=0.1)
    assert abs(weights[0]) < 0.1


def test_the_printed_rule_tends_to_zero():
    """As its numbers do: c_p = .3, c_x = .2, c_i = .7, c_y = .5 give .467, .163, .057, .020."""
    config = options(task__rounds=8)
    plan = plan_named("careful", config.task, config.evaluation)
    rolled = jax.jit(lambda keys: roll_out(config, EVIDENCE["printed_rule"], plan, keys))(KEYS)
    odds = np.asarray(quantities(config.task, rolled)["activation"]).mean(axis=0)
    assert (np.diff(odds) < 0).all()
    assert odds[-1] < -5


def test_wrong_tokens_are_named():
    config = options()
    for tokens, words in (
        (np.zeros((2, 3)), "must be whole numbers"),
        (np.zeros(3, int), r"must be whole numbers \[b, l\]"),
        (np.zeros((2, 99), int), r"must be \[b, 1 to"),
        (np.full((2, 3), 10**6), "must be from 0 to"),
    ):
        with pytest.raises(ValueError, match=words):
            WORLD.given(config, tokens)
