"""Roll-outs: dialogues whose answers are a reader's own, under a plan of instructions.

All readers go through the same rounds, on the same questions and with the same random numbers; what
differs is who says the next answer. Under the plan `speakers` nobody speaks: a dialogue as the
speakers hold it is read.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from icl_align.config import implemented
from icl_align.dialogue import speakers
from icl_align.dialogue.dialogues import Dialogue, kind_tokens, sample_dialogue
from icl_align.dialogue.kinds.kind import NONE
from icl_align.dialogue.options import CRITICS, PLANS, DialogueEvaluationConfig, Options, TaskConfig
from icl_align.dialogue.readers import Before, Evidence, Said, walk
from icl_align.dialogue.vocabulary import INSTRUCTIONS_PER_CONCEPT, layout_of, vocabulary_of

NEUTRAL = -1  # in place of a concept
NEVER = 2.0  # a confidence that no answer has
# Tokens of dialogues [b, l] -> log-probabilities of the next, at every place [b, l, v].
Predict = Callable[[Int[Array, "b l"]], Float[Array, "b l v"]]


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
    """

    dialogue: Dialogue
    instruction: Float[Array, "b t i"]
    answer: Float[Array, "b t a symbols"]
    check: Float[Array, "b t 2"]
    belief: Float[Array, "b t c"] | None


class _Voices(NamedTuple):
    """Who says what in one dialogue, whoever reads it."""

    spoken: Dialogue
    instruct: Callable[..., Int[Array, ""]]
    speak: Callable[..., Int[Array, ""]]
    judge: Callable[..., Int[Array, ""]]


def _voices(config: Options, plan: Plan, key: Key[Array, ""]) -> _Voices:
    task, evaluation = config.task, config.evaluation
    spoken_key, own_key = jax.random.split(key)
    numbers = {name: number for number, name in enumerate(task.kinds)} | {None: None}
    spoken, _ = sample_dialogue(task, spoken_key, numbers[evaluation.kind])
    instruct_key, speak_key, judge_key = jax.random.split(own_key, 3)

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

    return _Voices(spoken, instruct, speak, judge)


def roll_out(
    config: Options,
    evidence: Evidence,
    plan: Plan,
    keys: Key[Array, " b"],
    weights: Float[Array, " w"] | None = None,
) -> RollOut:
    """Roll-outs of a reader that needs no training; arguments as in `readers.walk`."""

    def one(key):
        voices = _voices(config, plan, key)
        kind, question = voices.spoken.kind, voices.spoken.question
        said, reading = walk(
            config.task,
            evidence,
            kind,
            question,
            voices.instruct,
            voices.speak,
            voices.judge,
            weights,
        )
        dialogue = Dialogue(kind, question, *said)
        return RollOut(dialogue, reading.instruction, reading.answer, reading.check, reading.told)

    return jax.vmap(one)(keys)


def roll_out_language_model(
    config: Options, predict: Predict, plan: Plan, keys: Key[Array, " b"]
) -> RollOut:
    """Roll-outs of a language model.

    It speaks with its distribution over the symbols that the kind's speakers have at that place;
    what it expects is left as it is, over the whole vocabulary.

    Args:
      config: options.
      predict: the language model.
      plan: of instructions.
      keys: one a dialogue.
    """
    task, layout, vocabulary = config.task, layout_of(config.task), vocabulary_of(config.task)
    spoken = jax.vmap(lambda key: _voices(config, plan, key).spoken)(keys)
    symbols = jnp.append(vocabulary.first_symbol + jnp.arange(vocabulary.num_symbols), 0)
    symbols = symbols.at[-1].set(vocabulary.pad)
    start = jnp.full((len(keys), layout.length), vocabulary.pad, jnp.int32)
    start = start.at[:, 0].set(kind_tokens(task)[spoken.kind].astype(jnp.int32))
    start = start.at[:, 1 : layout.first_round].set(symbols[spoken.question].astype(jnp.int32))

    def voice(of, *arguments):
        """What one of the voices says, in every dialogue."""
        one = lambda key, *own: of(_voices(config, plan, key))(*own)  # noqa: E731
        return jax.vmap(one)(keys, *arguments)

    def put(tokens, place, values):
        return jax.lax.dynamic_update_slice_in_dim(
            tokens, values[:, None].astype(tokens.dtype), place, axis=1
        )

    def row(log_probs, place):
        return jax.lax.dynamic_index_in_dim(log_probs, place, axis=1, keepdims=False)

    def one_round(state, number):
        tokens, before = state
        place = layout.first_round + number * layout.round_length
        numbers = jnp.full(len(keys), number)
        instruction = voice(lambda v: lambda t: v.instruct(t, None), numbers)
        tokens = put(tokens, place, vocabulary.first_instruction + instruction)
        before = before._replace(number=numbers)
        answer, confidence, expected = jnp.zeros_like(before.answer), 1.0, []
        for index in range(layout.answer_length):
            log_probs = predict(tokens)
            if index == 0:
                first = vocabulary.first_instruction
                last = first + vocabulary.num_instructions
                expected_instruction = row(log_probs, place - 1)[:, first:last]
            expected.append(row(log_probs, place + index)[:, symbols])
            possible = jax.vmap(lambda *own, index=index: _possible(task, *own, index))(
                spoken.kind, spoken.question, answer
            )
            own = jax.nn.log_softmax(jnp.where(possible, expected[-1], -jnp.inf))
            symbol = voice(lambda v, index=index: lambda b, p: v.speak(b, index, p), before, own)
            answer = answer.at[:, index].set(symbol)
            confidence = confidence * jnp.exp(
                jnp.take_along_axis(own, symbol[:, None], axis=1)[:, 0]
            )
            tokens = put(tokens, place + 1 + index, symbols[symbol])
        log_probs = predict(tokens)
        checks = vocabulary.first_check + jnp.arange(2)
        expected_check = row(log_probs, place + layout.answer_length)[:, checks]
        check = voice(lambda v: v.judge, numbers, answer, jax.nn.log_softmax(expected_check))
        tokens = put(tokens, place + layout.answer_length + 1, vocabulary.first_check + check)
        said = Said(instruction, answer, check)
        found = said, expected_instruction, jnp.stack(expected, axis=1), expected_check
        return (tokens, Before(numbers, answer, confidence)), found

    nothing = jnp.full((len(keys), layout.answer_length), NONE, spoken.question.dtype)
    before = Before(jnp.zeros(len(keys), int), nothing, jnp.zeros(len(keys)))
    _, found = jax.lax.scan(one_round, (start, before), jnp.arange(task.rounds))
    said, instruction, answer, check = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, 1), found)
    return RollOut(Dialogue(spoken.kind, spoken.question, *said), instruction, answer, check, None)


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
        return speakers.log_answer(task, kind, concept, False, question, nothing, answer, place)

    return jnp.any(jnp.isfinite(jax.vmap(of)(jnp.arange(task.num_concepts))), axis=0)
