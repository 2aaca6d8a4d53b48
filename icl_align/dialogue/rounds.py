"""Roll-outs: dialogues whose answers are a reader's own, under a plan of instructions.

All readers go through the same rounds, on the same questions and with the same random numbers; what
differs is who says the next answer. Under the plan `speakers` nobody speaks: a dialogue as the
speakers hold it is read.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from icl_align.config import implemented
from icl_align.dialogue import speakers
from icl_align.dialogue.dialogues import (
    Dialogue,
    check_tokens,
    kind_tokens,
    sample_dialogue,
    symbol_tokens,
)
from icl_align.dialogue.drafts import Drafts, confidence_of, drafts_of
from icl_align.dialogue.kinds.kind import NONE
from icl_align.dialogue.options import CRITICS, PLANS, DialogueEvaluationConfig, Options, TaskConfig
from icl_align.dialogue.readers import Before, Evidence, Said, walk
from icl_align.dialogue.vocabulary import (
    INSTRUCTIONS_PER_CONCEPT,
    are_texts,
    layout_of,
    vocabulary_of,
)

NEUTRAL = -1  # in place of a concept
NEVER = 2.0  # a confidence that no answer has


@runtime_checkable
class ReadsOn(Protocol):
    """A reader of tokens as they come, such as `model.LanguageModel`, which says what these do."""

    def begin(self, batch: tuple[int, ...], length: int) -> Any:
        """What it has read before the first token."""

    def read_on(self, past: Any, tokens: Any, start: Any, added: Any = None) -> tuple[Any, Any]:
        """Logits of what follows each of some tokens, and what it has read with them."""


class Plan(NamedTuple):
    """Who instructs, and how.

    Attributes:
      concepts: whose instruction comes in each round [T]; NEUTRAL for the neutral one.
      sure_above: confidence above which the reader keeps its answer.
      as_spoken: whether instructions, answers and checks are the speakers' own.
    """

    concepts: Int[Array, "*b t"]
    sure_above: Float[Array, "*b"]
    as_spoken: Bool[Array, "*b"]


def plan_named(name: str, task: TaskConfig, evaluation: DialogueEvaluationConfig) -> Plan:
    """A plan; its first round is neutral."""
    numbers = jnp.arange(task.rounds)
    careful, careless = jnp.full(task.rounds, task.num_concepts - 1), jnp.zeros(task.rounds, int)
    neutral = jnp.full(task.rounds, NEUTRAL)
    immoral = jnp.isin(numbers, jnp.asarray(evaluation.immoral_at))
    concepts = implemented(
        PLANS,
        {
            "speakers": neutral,
            "none": neutral,
            "careful": careful,
            "once": jnp.where(numbers == 1, careful, neutral),
            "careless": careless,
            "flip": jnp.where(numbers < evaluation.flip_at, careful, careless),
            "immoral": jnp.where(immoral, careless, careful),
            "keep_if_sure": careful,
        },
    )[name]
    sure_above = evaluation.sure_above if name == "keep_if_sure" else NEVER
    return Plan(
        jnp.where(numbers == 0, NEUTRAL, concepts),
        jnp.asarray(sure_above, jnp.float32),
        jnp.asarray(name == "speakers"),
    )


class RollOut(NamedTuple):
    """Dialogues, and what their reader expected; leading axis b, log-probabilities.

    Attributes:
      dialogue: as it went.
      instruction: of the instructions [b, T, I].
      answer: of the symbols of the answers, given those before [b, T, A, S + 1].
      check: of FLAWED and FINE [b, T, 2].
      belief: in the concepts, after the instruction [b, T, C]; None where the reader has none.
      drafts: other answers [b, T, n]; None where there are no texts.
    """

    dialogue: Dialogue
    instruction: Float[Array, "b t i"]
    answer: Float[Array, "b t a symbols"]
    check: Float[Array, "b t 2"]
    belief: Float[Array, "b t c"] | None
    drafts: Drafts | None


class Voices(NamedTuple):
    """What one dialogue is about, and who says what in it, whoever reads it.

    Attributes:
      kind, question: as in `Dialogue`.
      instruct, speak, judge, draft: as in `readers.walk`.
    """

    kind: Int[Array, ""]
    question: Int[Array, " q"]
    instruct: Callable[..., Int[Array, ""]]
    speak: Callable[..., Int[Array, ""]]
    judge: Callable[..., Int[Array, ""]]
    draft: Callable[..., Key[Array, " n"]] | None = None


# What a dialogue's voices follow -> the voices: of one dialogue, any pytree of arrays.
VoicesOf = Callable[[Any], Voices]


class _Script(NamedTuple):
    """Of an evaluation: the random numbers, and the dialogue as its speakers hold it."""

    key: Key[Array, "*b"]
    spoken: Dialogue


def _scripts(config: Options, keys: Key[Array, " b"]) -> _Script:
    def one(key):
        spoken_key, own_key = jax.random.split(key)
        return _Script(own_key, sample_dialogue(config.task, spoken_key, config.kind_evaluated)[0])

    return jax.vmap(one)(keys)


def _of_plan(config: Options, plan: Plan, script: _Script) -> Voices:
    """The voices of a dialogue under a plan."""
    task, evaluation = config.task, config.evaluation
    own_key, spoken = script
    instruct_key, speak_key, judge_key = jax.random.split(own_key, 3)
    draft_key = jax.random.fold_in(own_key, 3)

    def own(key, number, place=0):
        return jax.random.fold_in(jax.random.fold_in(key, number), place)

    def instruct(number, _):
        concept = plan.concepts[number]
        which = jax.random.randint(own(instruct_key, number), (), 0, INSTRUCTIONS_PER_CONCEPT)
        planned = jnp.where(concept == NEUTRAL, 0, 1 + INSTRUCTIONS_PER_CONCEPT * concept + which)
        return jnp.where(plan.as_spoken, spoken.instructions[number], planned)

    def speak(before: Before, place, log_probs):
        logits = log_probs / evaluation.temperature
        drawn = jax.random.categorical(own(speak_key, before.number, place), logits)
        symbol = jnp.argmax(log_probs) if evaluation.greedy else drawn
        sure = before.confidence > plan.sure_above
        symbol = jnp.where(sure, before.answer[place], symbol)
        return jnp.where(plan.as_spoken, spoken.answers[before.number, place], symbol)

    def critic(answer, _):
        fine = speakers.quality_of(task, spoken.kind, spoken.question, answer).fine
        return speakers.log_check(task, fine)[-1]

    says = implemented(CRITICS, {"given": critic, "self": lambda _, own: own})[evaluation.critic]

    def judge(number, answer, log_probs):
        check = jax.random.categorical(own(judge_key, number), says(answer, log_probs))
        return jnp.where(plan.as_spoken, spoken.checks[number], check)

    def draft(number):
        return jax.random.split(own(draft_key, number), evaluation.drafts)

    return Voices(spoken.kind, spoken.question, instruct, speak, judge, draft)


def roll_out(
    config: Options,
    evidence: Evidence,
    plan: Plan,
    keys: Key[Array, " b"],
    weights: Float[Array, " w"] | None = None,
) -> RollOut:
    """Roll-outs of a reader that needs no training; arguments as in `readers.walk`."""
    voices_of = lambda script: _of_plan(config, plan, script)  # noqa: E731
    return converse(config.task, evidence, voices_of, _scripts(config, keys), weights)


def roll_out_language_model(
    config: Options,
    network: ReadsOn,
    plan: Plan,
    keys: Key[Array, " b"],
    added: Float[Array, "layers d"] | None = None,
) -> RollOut:
    """Roll-outs of a language model; see `converse_language_model`."""
    voices_of = lambda script: _of_plan(config, plan, script)  # noqa: E731
    return converse_language_model(config.task, network, voices_of, _scripts(config, keys), added)


def converse(
    task: TaskConfig,
    evidence: Evidence,
    voices_of: VoicesOf,
    scripts: Any,
    weights: Float[Array, " w"] | None = None,
) -> RollOut:
    """Dialogues of a reader that needs no training.

    Args:
      task: options.
      evidence, weights: as in `readers.walk`.
      voices_of: script -> voices.
      scripts: one a dialogue: arrays with a leading axis b.
    """

    def one(script):
        voices = voices_of(script)
        said, reading, drafts = walk(
            task,
            evidence,
            voices.kind,
            voices.question,
            voices.instruct,
            voices.speak,
            voices.judge,
            voices.draft if are_texts(task).any() else None,
            weights,
        )
        dialogue = Dialogue(voices.kind, voices.question, *said)
        expected = reading.instruction, reading.answer, reading.check
        return RollOut(dialogue, *expected, reading.told, drafts)

    return jax.vmap(one)(scripts)


def converse_language_model(
    task: TaskConfig,
    network: ReadsOn,
    voices_of: VoicesOf,
    scripts: Any,
    added: Float[Array, "layers d"] | None = None,
) -> RollOut:
    """Dialogues of a language model.

    It speaks with its distribution over the symbols that the kind's speakers have at that place;
    what it expects is left as it is, over the whole vocabulary.

    Args:
      task: options.
      network: the language model.
      voices_of, scripts: as in `converse`.
      added: to its residual stream wherever it expects a symbol of an answer, to steer it; see
        `transformer.Trunk.residual_stream`.
    """
    layout, vocabulary = layout_of(task), vocabulary_of(task)
    kinds, questions = jax.vmap(lambda script: voices_of(script)[:2])(scripts)
    count = len(kinds)
    symbols = jnp.append(vocabulary.first_symbol + jnp.arange(vocabulary.num_symbols), 0)
    symbols = symbols.at[-1].set(vocabulary.pad)
    steered = not_first = None
    if added is not None:
        steered = added[:, None]
        not_first = jnp.concatenate([0 * steered, steered], axis=1)

    def voice(of, *arguments):
        """What one of the voices says, in every dialogue."""
        one = lambda script, *own: of(voices_of(script))(*own)  # noqa: E731
        return jax.vmap(one)(scripts, *arguments)

    def read_on(past, tokens, place, added=None):
        """What follows some tokens [b, n]: log-probabilities [n, b, v]; and the past with them."""
        tokens = jnp.stack(tokens, axis=1).astype(jnp.int32)
        logits, past = network.read_on(past, tokens, place, added)
        return jnp.moveaxis(jax.nn.log_softmax(logits), 1, 0), past

    def answering(past, row, place, choose):
        """Answers, their log-probabilities, what was expected [b, A, S + 1], and the past."""
        answer = jnp.zeros((count, layout.answer_length), questions.dtype)
        log_p, expected = 0.0, []
        for index in range(layout.answer_length):
            expected.append(row[:, symbols])
            possible = jax.vmap(lambda *own, index=index: _possible(task, *own, index))(
                kinds, questions, answer
            )
            own = jax.nn.log_softmax(jnp.where(possible, expected[-1], -jnp.inf))
            symbol = choose(index, own)
            answer = answer.at[:, index].set(symbol)
            log_p = log_p + jnp.take_along_axis(own, symbol[:, None], axis=1)[:, 0]
            if index + 1 < layout.answer_length:
                (row,), past = read_on(past, [symbols[symbol]], place + index, steered)
        return answer, log_p, jnp.stack(expected, axis=1), past

    def one_round(state, number):
        past, last_token, before = state
        place = layout.first_round + number * layout.round_length
        numbers = jnp.full(count, number)
        first = vocabulary.first_instruction
        instruction = voice(lambda v: lambda t: v.instruct(t, None), numbers)
        # The token before comes with it: a plan does not ask what the reader expects.
        together = [last_token, first + instruction]
        (ahead, row), past = read_on(past, together, place - 1, not_first)
        expected_instruction = ahead[:, first : first + vocabulary.num_instructions]
        now = before._replace(number=numbers)
        answer, log_p, expected, after = answering(
            past,
            row,
            place + 1,
            lambda index, own: voice(lambda v: lambda b, p: v.speak(b, index, p), now, own),
        )
        drafts, confidence = None, jnp.exp(log_p)
        if are_texts(task).any():

            def one_draft(keys):
                def choose(index, own):
                    fold = jax.vmap(lambda key: jax.random.fold_in(key, index))
                    return jax.vmap(jax.random.categorical)(fold(keys), own)

                return answering(past, row, place + 1, choose)[:2]

            own_keys = voice(lambda v: v.draft, numbers)
            drawn = jax.vmap(one_draft, in_axes=1, out_axes=1)(own_keys)
            about = kinds, questions
            drafts = jax.vmap(lambda *own: drafts_of(task, *own))(*about, *drawn)
            confidence = jax.vmap(lambda *own: confidence_of(task, *own))(
                *about, answer, log_p, drafts
            )
        last = place + layout.answer_length
        (row,), past = read_on(after, [symbols[answer[:, -1]]], last)
        checks = vocabulary.first_check + jnp.arange(2)
        expected_check = row[:, checks]
        check = voice(lambda v: v.judge, numbers, answer, jax.nn.log_softmax(expected_check))
        said = Said(instruction, answer, check)
        found = said, expected_instruction, expected, expected_check, drafts
        last_token = check_tokens(task, check)
        return (past, last_token, Before(numbers, answer, confidence)), found

    kind = kind_tokens(task)[kinds]
    *start, last_token = [kind, *jnp.moveaxis(symbol_tokens(task, questions), 1, 0)]
    _, past = read_on(network.begin((count,), layout.length), start, 0)
    nothing = jnp.full((count, layout.answer_length), NONE, questions.dtype)
    before = Before(jnp.zeros(count, int), nothing, jnp.zeros(count))
    _, found = jax.lax.scan(one_round, (past, last_token, before), jnp.arange(task.rounds))
    said, *expected, drafts = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), found)
    dialogue = Dialogue(kinds, questions, *said)
    return RollOut(dialogue, *expected, None, drafts)


def _possible(
    task: TaskConfig,
    kind: Int[Array, ""],
    question: Int[Array, " q"],
    answer: Int[Array, " a"],
    place: int,
) -> Bool[Array, " symbols"]:
    """Symbols that some speaker may say next."""
    nothing = jnp.full_like(answer, NONE)

    def of(concept):
        return speakers.log_answer(
            task, kind, concept, speakers.FRESH, question, nothing, answer, place
        )

    return jnp.any(jnp.isfinite(jax.vmap(of)(jnp.arange(task.num_concepts))), axis=0)
