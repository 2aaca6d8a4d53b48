"""The study of the concept in trained networks: what concept.json holds."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, Key

from icl_align.config import implemented
from icl_align.dialogue.concept import laws, probes, published, steering
from icl_align.dialogue.concept.gathering import (
    AMBIGUOUS,
    CHUNK,
    SETTLED,
    NetworkOf,
    Programs,
    Values,
)
from icl_align.dialogue.concept.probes import Direction
from icl_align.dialogue.model import language_model
from icl_align.dialogue.options import PLANS, READERS, Options
from icl_align.dialogue.vocabulary import INSTRUCTIONS_PER_CONCEPT, vocabulary_of
from icl_align.intervals import Interval, at, of_mean

MOST_DIALOGUES = 1024
NEEDED_PLANS = ("none", "careful", "immoral")
COMPARED = ("accuracy", "biased", "uncertainty", "confidence", "calibration_error_corrected")
# The readers of which the paper's tests are made.
TESTED = ("language_model", "exact", "exact_own_answers_ignored")
HAZARDS = (0.0, 0.05, 0.2, 0.5, 1.0)
TRAINED = READERS[0]
NETWORKS = ("trained", "untrained")
STEERED_ALONG = implemented(
    steering.DIRECTIONS,
    {"probe": "the probe", "pattern": "the pattern", "random": "a random direction"},
)
SHIFTED = ("careful", "careless")  # by one of the concept's instructions
# Folded into the keys of dialogues for those that probes are fitted on: no child of theirs.
FIT = 2**31
FIRST_UNTRAINED = 10_000  # seed of the networks that are not trained

Progress = Callable[[float], None]
ByPlan = dict[str, Values]  # plan -> quantity -> values [b, s, ...]


def study(
    config: Options,
    network: NetworkOf,
    params: Any,
    keys: Key[Array, "s b"],
    progress: Progress,
) -> dict[str, Any]:
    """What is inside trained networks, what steers them, and the paper's own tests of them.

    Args:
      config: options of the evaluation.
      network: parameters of one seed -> its network.
      params: parameters with a leading axis of seeds.
      keys: of each seed's dialogues, or one row that all share; at most MOST_DIALOGUES are used.
      progress: called with the share that is done.
    """
    programs = Programs(config, network)
    num_seeds = len(jax.tree.leaves(params)[0])
    by_seed = [jax.tree.map(lambda leaf, s=s: leaf[s], params) for s in range(num_seeds)]
    keys = _whole_chunks(keys, programs.size)
    keys_of_seeds = [keys[number % len(keys)] for number in range(num_seeds)]
    found: dict[str, Any] = {"rounds": list(range(config.task.rounds))}
    found["num_dialogues"] = keys.shape[1]
    inside, directions, vectors = _inside(programs, by_seed, keys)
    found |= inside
    progress(0.15)

    plans = [name for name in PLANS if name in {*config.evaluation.plan, *NEEDED_PLANS}]
    values: dict[str, ByPlan] = {name: {} for name in READERS}
    for place, plan in enumerate(plans):
        of_seeds = [
            programs.network_values(own, plan, own_keys, last.raw, last.offset)
            for own, own_keys, last in zip(
                by_seed, keys_of_seeds, [own[-1] for own in directions], strict=True
            )
        ]
        values[TRAINED][plan] = _stacked(of_seeds)
        of_rows = _stacked([programs.reader_values(plan, row) for row in keys])
        for name, own in of_rows.items():
            values[name][plan] = own
        progress(0.15 + 0.35 * (place + 1) / len(plans))

    found["read"] = {
        quantity: {plan: of_mean(of[quantity]) for plan, of in values[TRAINED].items()}
        for quantity in ("reading", "cosine")
    }
    found["convergence"] = {
        name: {plan: published.convergence(of["accuracy"]) for plan, of in own.items()}
        for name, own in values.items()
    }
    found["differences"] = {
        name: _differences(values[name], COMPARED if name in TESTED else COMPARED[:-1])
        for name in READERS
    }
    found["by_question"] = _by_question(values) if len(keys) == 1 else None
    found["prediction"] = _prediction(values)
    progress(0.6)
    found["immoral"] = _immoral(programs, values, keys)
    found["laws"] = _laws(values)
    progress(0.7)
    found["steering"] = _steering(programs, by_seed, directions, vectors, keys_of_seeds, progress)
    found["summary"] = summary(found)
    return found


def _whole_chunks(keys: Key[Array, "s b"], size: int) -> Key[Array, "s b"]:
    """The keys that are used: a multiple of `size`, or all where they are fewer than that."""
    # A text takes as long as many questions.
    count = min(keys.shape[1], MOST_DIALOGUES * size // CHUNK)
    return keys[:, : count // size * size if count >= size else count]


def _stacked(of_seeds: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *of_seeds)


# ------------------------------------------------------------------------------------------ inside


def _inside(
    programs: Programs, by_seed: list[Any], keys: Key[Array, "s b"]
) -> tuple[dict[str, Any], list[list[Direction]], list[steering.Vectors]]:
    """Probes and shifts, with their controls; directions and vectors of each seed."""
    config = programs.config
    fit_keys = jax.vmap(jax.vmap(lambda key: jax.random.fold_in(key, FIT)))(keys)
    read = [[programs.of_speakers(row) for row in rows] for rows in (fit_keys, keys)]
    features: dict[str, list] = {source: [] for source in probes.SOURCES}
    directions: dict[str, list[list[Direction]]] = {source: [] for source in NETWORKS}
    shifts: dict[str, dict[str, list]] = {
        source: {name: [] for name in SHIFTED} for source in NETWORKS
    }
    for number, params in enumerate(by_seed):
        (tokens, odds), (others, wanted) = (rows[number % len(rows)] for rows in read)
        for source, own in zip(NETWORKS, (params, _fresh(config, number)), strict=True):
            fit, held_out = (programs.states(own, some) for some in (tokens, others))
            features[source].append(probes.explained((fit, odds), (held_out, wanted)))
            if source == "trained":
                of_others = probes.explained((fit, probes.shuffled(odds)), (held_out, wanted))
                features["shuffled"].append(of_others)
            directions[source].append(_directions(fit, odds))
            for name, moved in _shifts(programs, own, others[: 2 * programs.size]).items():
                shifts[source][name].append(moved)
    inside = {
        "probe": {source: probes.explained_by_seed(features[source]) for source in probes.SOURCES},
        "shift": {
            source: {
                name: probes.shift(np.stack(moved, axis=1), directions[source])
                for name, moved in of_source.items()
            }
            for source, of_source in shifts.items()
        },
        "chance_cosine": 1 / np.sqrt(config.model.width),
    }
    trained = directions["trained"]
    vectors = [steering.vectors(own, seed=number) for number, own in enumerate(trained)]
    return inside, trained, vectors


def _fresh(config: Options, number: int) -> Any:
    """Parameters of a network that was not trained."""
    network = language_model(config, nnx.Rngs(params=FIRST_UNTRAINED + number))
    return nnx.to_pure_dict(nnx.state(network, nnx.Param))


def _directions(states: probes.States, odds: probes.Odds) -> list[Direction]:
    """Of each layer."""
    # The first round's instruction is neutral: its states would only add its own mean.
    later = slice(min(1, states.shape[2] - 1), None)
    return [
        probes.direction_of(
            states[:, layer, later].reshape(-1, states.shape[-1]), odds[:, later].reshape(-1)
        )
        for layer in range(states.shape[1])
    ]


def _shifts(
    programs: Programs, params: Any, tokens: Int[np.ndarray, "b l"]
) -> dict[str, Float[np.ndarray, "b layers t d"]]:
    """What an instruction of a concept changes in the states, from the neutral one."""
    task = programs.config.task
    neutral = vocabulary_of(task).first_instruction
    first_of = {
        "careful": neutral + 1 + INSTRUCTIONS_PER_CONCEPT * (task.num_concepts - 1),
        "careless": neutral + 1,
    }
    plain = programs.told(params, tokens, neutral)
    return {name: programs.told(params, tokens, first_of[name]) - plain for name in SHIFTED}


# ------------------------------------------------------------------------------ the paper's tests


def _differences(values: ByPlan, quantities: tuple[str, ...]) -> dict[str, dict[str, Interval]]:
    return {
        plan: published.differences(of, values["none"], quantities)
        for plan, of in values.items()
        if plan != "none"
    }


def _by_question(values: dict[str, ByPlan]) -> dict[str, Any] | None:
    """None where hardly any question is ambiguous, or settled."""
    settled = values[READERS[1]]["none"]["settled"][:, 0]
    groups = {"ambiguous": settled == AMBIGUOUS, "settled": settled == SETTLED}
    if min(own.sum() for own in groups.values()) < 2:
        return None
    return {
        name: {
            plan: published.by_question(of["gain"], values[name]["none"]["gain"], groups)
            for plan, of in values[name].items()
        }
        for name in TESTED
    }


def _prediction(values: dict[str, ByPlan]) -> dict[str, Any] | None:
    """Under the plan `careful`; of the network by the cosine, as published, and by the reading.

    None of a single round, after which nothing changes.
    """
    if _num_rounds(values) < 2:
        return None
    of = {name: values[name]["careful"] for name in TESTED}
    concepts = {
        "language_model": of[TRAINED]["cosine"],
        "language_model_reading": of[TRAINED]["reading"],
        "exact": of["exact"]["activation"],
        "exact_own_answers_ignored": of["exact_own_answers_ignored"]["activation"],
    }
    uncertainty = {name: own["uncertainty"] for name, own in of.items()}
    uncertainty["language_model_reading"] = uncertainty[TRAINED]
    return {
        name: published.prediction(concept, uncertainty[name]) for name, concept in concepts.items()
    }


def _immoral(
    programs: Programs, values: dict[str, ByPlan], keys: Key[Array, "s b"]
) -> dict[str, Any] | None:
    """None where no immoral instruction is followed by rounds without another."""
    config = programs.config
    first = published.first_immoral(config.evaluation.immoral_at, config.task.rounds)
    if first is None:
        return None
    by_hazard = [
        [
            _stacked([programs.exact_activation(plan, row, hazard) for row in keys])
            for plan in ("immoral", "careful")
        ]
        for hazard in HAZARDS
    ]
    found: dict[str, Any] = {"round": first, "hazards": list(HAZARDS)}
    for place, name in enumerate(TESTED[1:]):
        offsets = [
            published.immoral_offsets(*(own[:, :, place] for own in both), first)
            for both in by_hazard
        ]
        found[name] = of_mean(np.stack(offsets, axis=2))  # [hazard, round after]
    of = values[TRAINED]
    found[TRAINED] = {
        quantity: of_mean(
            published.immoral_offsets(of["immoral"][quantity], of["careful"][quantity], first)
        )
        for quantity in ("activation", "reading", "cosine")
    }
    return found


def _num_rounds(values: dict[str, ByPlan]) -> int:
    return values[TRAINED]["careful"]["accuracy"].shape[-1]


def _laws(values: dict[str, ByPlan]) -> dict[str, Any] | None:
    """None of fewer than four rounds, whose first half has nothing to fit."""
    if _num_rounds(values) < 4:
        return None
    odds = {name: "activation" for name in TESTED} | {TRAINED: "reading"}
    return {
        "two_state": {
            name: {plan: laws.two_state(of["fine"]) for plan, of in values[name].items()}
            for name in TESTED
        },
        "additive": {
            name: {
                plan: laws.additive(of["evidence"], of[odds[name]])
                for plan, of in values[name].items()
            }
            for name in TESTED
        },
    }


# ---------------------------------------------------------------------------------------- steering


def _steering(
    programs: Programs,
    by_seed: list[Any],
    directions: list[list[Direction]],
    vectors: list[steering.Vectors],
    keys: list[Key[Array, " b"]],
    progress: Progress,
) -> dict[str, Any]:
    """On the first chunk of dialogues."""

    def measure(number, added):
        last, some = directions[number][-1], keys[number][: programs.size]
        return programs.network_values(by_seed[number], "none", some, last.raw, last.offset, added)

    found = steering.steered(measure, vectors, lambda f: progress(0.7 + 0.3 * f))
    layers = list(range(1, programs.config.model.num_layers + 1))
    about = {
        "doses": list(steering.DOSES),
        "layers": layers,
        "num_dialogues": min(programs.size, len(keys[0])),
    }
    return about | found


def summary(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The headline numbers, each with its name and interval."""
    last = len(found["rounds"]) - 1
    rows: list[tuple[str, Interval]] = [
        (f"probe of the last layer, R^2 in the last round, {source}", at(of, -1, last))
        for source, of in found["probe"].items()
    ]
    rows += [
        (f"shift by a {name} instruction, cosine with the {words}, {source}", at(of[key], -1, last))
        for source, of_source in found["shift"].items()
        for name, of in of_source.items()
        for key, words in (("cosine", "probe"), ("cosine_pattern", "pattern"))
    ]
    steered = found["steering"]
    layer = steering.shown_block(len(steered["layers"]))
    rows += [
        (
            f"{dose:+d} dose of {words} after block {layer + 1}: change of {quantity}",
            at(steered[name][quantity], layer, steering.DOSES.index(dose)),
        )
        for quantity in ("activation", "accuracy", "uncertainty")
        for name, words in STEERED_ALONG.items()
        for dose in (-1, 1)
    ]
    if found["prediction"]:
        rows += [
            (f"uncertainty did not rise, predicted by {name.replace('_', ' ')}", of)
            for name, of in found["prediction"][TRAINED].items()
        ]
    if found["immoral"]:
        of = found["immoral"][TRAINED]["reading"]
        rows += [
            (f"immoral instruction: change of the probe's reading, {words}", at(of, after))
            for after, words in enumerate(("at once", "a round later", "two rounds later"))
        ]
    rows += [
        (f"careful above none, {quantity.replace('_', ' ')}", at(of, last))
        for quantity, of in found["differences"][TRAINED]["careful"].items()
    ]
    rows.append(("rounds to convergence, careful", found["convergence"][TRAINED]["careful"]))
    if found["laws"]:
        two_state, additive = (found["laws"][law][TRAINED] for law in ("two_state", "additive"))
        rows += [
            ("two-state law, error of later accuracy, careful", two_state["careful"]["error"]),
            (
                "no change, error of later accuracy, careful",
                two_state["careful"]["error_of_no_change"],
            ),
            ("additive law, R^2 of later log-odds, careful", additive["careful"]["explained"]),
        ]
    return [{"name": name} | of for name, of in rows]
