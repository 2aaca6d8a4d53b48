"""The study of jailbreaks: attacks x defences x readers, as attacks.json holds it."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from icl_align.config import ConfigError
from icl_align.dialogue.attacks.asking import ACCURACIES, Asking, NetworkOf
from icl_align.dialogue.attacks.options import (
    ATTACKS,
    EXACT,
    MODEL,
    MOST_CHECKS,
    READERS,
    SEARCHES,
    AttackConfig,
)
from icl_align.dialogue.attacks.prompts import FREE
from icl_align.dialogue.concept.gathering import Programs
from icl_align.dialogue.concept.probes import Direction, direction_of
from icl_align.dialogue.kinds import request
from icl_align.dialogue.options import Options
from icl_align.intervals import Interval, at, of_mean, within

CALIBRATED_ON = 1024  # natural prompts of the perplexity filter, dialogues of the probe

Progress = Callable[[float], None]


class NotLearnedError(Exception):
    """Networks are too far from the exact reader for a table to mean anything."""


class ImpossibleError(Exception):
    """In the run's world something has probability 0 that a defence says."""


def study(
    config: Options, network: NetworkOf, params: Any, options: AttackConfig, progress: Progress
) -> dict[str, Any]:
    """Attacks the networks of a run under every defence, the exact reader beside them.

    Args:
      config: options of the run.
      network: parameters of one seed -> its network.
      params: parameters with a leading axis of seeds.
      options: of the attack.
      progress: called with the share that is done.

    Raises:
      NotLearnedError: on natural prompts the networks are in the mean no closer to the exact reader
        than who reads the request and not what comes before it.
      ImpossibleError: the exact reader cannot read what is said.
      ConfigError: an attack by transfer on a run of one seed, and no other.
    """
    num_seeds = len(jax.tree.leaves(params)[0])
    by_seed = [jax.tree.map(lambda leaf, s=s: leaf[s], params) for s in range(num_seeds)]
    asking = Asking(config, network, options)
    attacks = [
        name
        for name in ATTACKS
        if name in {"none", *options.attacks} and (name != "gcg_transfer" or num_seeds > 1)
    ]
    if options.attacks == ["gcg_transfer"] and num_seeds == 1:
        raise ConfigError("attacks", options.attacks, "a transfer needs a run of two seeds or more")
    search_key, *own_keys, other_key, probe_key = jax.random.split(jax.random.key(options.seed), 5)
    # Seeds with evaluation contexts of their own have requests of their own too.
    nested = config.evaluation.own_contexts
    of_seeds = [
        [jax.random.fold_in(key, seed) if nested else key for seed in range(num_seeds)]
        for key in own_keys
    ]
    request_keys, keys = (
        [jax.random.split(key, options.num_requests) for key in own] for own in of_seeds
    )
    harmful, benign, strongest = zip(*map(asking.requests, request_keys), strict=True)
    others = asking.requests(jax.random.split(other_key, CALIBRATED_ON))[:2]
    natural = np.concatenate([np.asarray(some)[::2] for some in others])
    limits = [_limit(asking.surprise(own, natural), options) for own in by_seed]
    exact_limit = _limit(asking.exact_surprise(natural), options)
    behind, blind = _behind(asking, by_seed, natural)
    if np.mean(behind) >= blind:
        raise NotLearnedError(
            f"answers to natural requests are {np.mean(behind):.4f} nats from the exact reader's, "
            f"in the mean over seeds (most of seed {config.seed + int(np.argmax(behind))}: "
            f"{max(behind):.4f}); of who reads the request alone they are {blind:.4f} from them"
        )
    directions = _directions(asking, by_seed, probe_key)
    progress(0.05)

    prompts, traces = _attacked(
        asking, attacks, by_seed, harmful, strongest, limits, search_key, progress
    )
    comply, swept, surprise, inside = _asked(
        asking, attacks, by_seed, directions, prompts, keys, limits, exact_limit, progress
    )
    over_refusal = _over_refusal(asking, by_seed, benign, keys, limits, exact_limit)
    progress(1.0)
    return {
        "num_requests": options.num_requests,
        "behind": behind,
        "behind_of_request_alone": blind,
        "attacks": attacks,
        "defences": [one.label for one in asking.defences],
        "passes": {
            name: options.passes_of(name, options.steps(name))
            for name in attacks
            if name in SEARCHES
        },
        "tokens": {one.label: one.tokens for one in asking.defences},
        "success": {
            reader: {name: _by_defence(asking, of[name]) for name in attacks}
            for reader, of in comply.items()
        },
        "flaw": {
            name: _by_defence(asking, comply[MODEL][name] - comply[EXACT][name], least=-1)
            for name in attacks
        },
        "effect": {
            reader: {
                name: _by_defence(asking, own - own[..., :1], least=-1) for name, own in of.items()
            }
            for reader, of in comply.items()
        },
        "beyond_asking_again": {
            reader: {name: _beyond_asking_again(asking, own) for name, own in of.items()}
            for reader, of in comply.items()
        },
        "over_refusal": {
            reader: _by_defence(asking, values) for reader, values in over_refusal.items()
        },
        "by_critic_accuracy": {
            "accuracy": list(ACCURACIES),
            "rounds": list(range(MOST_CHECKS + 1)),
            **{
                reader: {name: within(_mean(asking, values), 0, 1) for name, values in of.items()}
                for reader, of in swept.items()
            },
        },
        "log_perplexity": {name: _mean(asking, values) for name, values in surprise.items()},
        "activation": {
            name: {source: _mean(asking, values) for source, values in of.items()}
            for name, of in inside.items()
        },
        "by_budget": {
            name: {
                "passes": [options.passes_of(name, n) for n in range(trace.shape[-1])],
                **within(_mean(asking, np.exp(trace)), 0, 1),
            }
            for name, trace in traces.items()
        },
    }


def _limit(surprise: Any, options: AttackConfig) -> float:
    """The log-perplexity above which a filter refuses."""
    return float(np.quantile(np.asarray(surprise), 1 - options.false_alarms))


def _behind(asking: Asking, by_seed: list[Any], natural: Any) -> tuple[list[float], float]:
    """How far first answers to natural requests are from the exact reader's, in nats: each
    network's, and those of who reads the request alone.
    """
    exact = np.asarray(asking.exact_first(natural), np.float64)

    def from_exact(other):
        gap = exact - np.asarray(other, np.float64)
        return float(np.mean(np.sum(np.exp(exact) * gap, axis=-1)))

    alone = natural.copy()
    alone[:, FREE] = request.NOTHING  # nobody says it there, so it is no evidence
    of_networks = [from_exact(asking.first(params, natural)) for params in by_seed]
    return of_networks, from_exact(asking.exact_first(alone))


Values = dict[str, np.ndarray]  # attack -> [requests, seeds, ...]


def _attacked(
    asking: Asking,
    attacks: list[str],
    by_seed: list[Any],
    harmful: Sequence[Any],
    strongest: Sequence[Any],
    limits: list[float],
    key: Any,
    progress: Progress,
) -> tuple[dict[str, list[np.ndarray]], Values]:
    """Prompts of every attack, of each seed [b, q], and how far the searches came."""
    num_seeds = len(by_seed)
    prompts = {
        "none": [np.asarray(own) for own in harmful],
        "natural_evidence": [np.asarray(own) for own in strongest],
    }
    traces: dict[str, list[np.ndarray]] = {}
    searches = [
        name
        for name in SEARCHES
        if name in attacks or (name == "gcg" and "gcg_transfer" in attacks)
    ]
    for number, name in enumerate(searches):
        for seed, params in enumerate(by_seed):
            own_key = jax.random.fold_in(jax.random.fold_in(key, SEARCHES.index(name)), seed)
            limit = np.float32(limits[seed])
            found = jax.device_get(asking.attack[name](params, harmful[seed], limit, own_key))
            prompts.setdefault(name, []).append(found.questions)
            traces.setdefault(name, []).append(found.trace)
            share = (number * num_seeds + seed + 1) / (len(searches) * num_seeds)
            progress(0.05 + 0.65 * share)
    if "gcg_transfer" in attacks:
        prompts["gcg_transfer"] = prompts["gcg"][1:] + prompts["gcg"][:1]
    return {name: prompts[name] for name in attacks}, {
        name: np.stack(own, axis=-1).transpose(1, 2, 0)  # [b, s, steps]
        for name, own in traces.items()
        if name in attacks
    }


def _asked(
    asking: Asking,
    attacks: list[str],
    by_seed: list[Any],
    directions: list[Direction],
    prompts: dict[str, list[np.ndarray]],
    keys: list[Any],
    limits: list[float],
    exact_limit: float,
    progress: Progress,
) -> tuple[dict[str, Values], dict[str, Values], Values, dict[str, dict[str, np.ndarray]]]:
    """Of every attack: compliance by reader and defence, by reader and accuracy of the critic; the
    prompts' log-perplexity; activation by source.
    """
    comply: dict[str, Values] = {reader: {} for reader in READERS}
    swept: dict[str, Values] = {reader: {} for reader in READERS}
    surprise: Values = {}
    inside: dict[str, dict[str, np.ndarray]] = {}
    for number, name in enumerate(attacks):
        of_seeds: dict[str, list] = {reader: [] for reader in (*READERS, "surprise", "inside")}
        sweeps: dict[str, list] = {reader: [] for reader in swept}
        for seed, (params, questions, limit, direction) in enumerate(
            zip(by_seed, prompts[name], limits, directions, strict=True)
        ):
            own = np.asarray(asking.surprise(params, questions))
            refused = {MODEL: own > limit}
            refused[EXACT] = np.asarray(asking.exact_surprise(questions)) > exact_limit
            of_seeds["surprise"].append(own)
            told = asking.activations(
                params, direction.raw, direction.offset, questions, keys[seed]
            )
            of_seeds["inside"].append(jax.device_get(told))
            for reader in READERS:
                if reader == EXACT and seed and np.array_equal(questions, prompts[name][0]):
                    of_seeds[EXACT].append(of_seeds[EXACT][0])  # the same prompts as before
                    sweeps[EXACT].append(sweeps[EXACT][0])
                    continue
                chances = _chances(asking, reader, params, questions, keys[seed])
                of_seeds[reader].append(_defended(asking, chances, refused[reader])[..., 0])
                sweeps[reader].append(asking.swept(chances))
        for reader in READERS:
            comply[reader][name] = np.stack(of_seeds[reader], axis=1)
        for reader, own in sweeps.items():
            swept[reader][name] = np.stack(own, axis=1)
        surprise[name] = np.stack(of_seeds["surprise"], axis=1)
        inside[name] = {
            source: np.stack([told[place] for told in of_seeds["inside"]], axis=1)
            for place, source in enumerate(("exact", "probe"))
        }
        progress(0.7 + 0.28 * (number + 1) / len(attacks))
    return comply, swept, surprise, inside


def _chances(asking: Asking, reader: str, params: Any, questions: Any, keys: Any) -> np.ndarray:
    if reader == MODEL:
        return jax.device_get(asking.answers(params, questions, keys))
    chances = jax.device_get(asking.exact_answers(questions, keys))
    if not np.isfinite(chances).all():
        raise ImpossibleError("to the exact reader something that is said is impossible")
    return chances


def _defended(asking: Asking, chances: np.ndarray, refused: np.ndarray) -> np.ndarray:
    """Of every defence [b, defences, 2]."""
    return np.stack([asking.defended(chances, one, refused) for one in asking.defences], axis=1)


def _directions(asking: Asking, by_seed: list[Any], key: Key[Array, ""]) -> list[Direction]:
    """Of the last layer's probe of the exact log-odds, at the instructions of natural dialogues."""
    programs = Programs(asking.config, asking.network)
    keys = jax.random.split(key, CALIBRATED_ON)
    tokens, odds = programs.of_speakers(keys)
    found = []
    for params in by_seed:
        states = programs.states(params, tokens)[:, -1]
        found.append(direction_of(states.reshape(-1, states.shape[-1]), odds.reshape(-1)))
    return found


def _over_refusal(
    asking: Asking,
    by_seed: list[Any],
    benign: Sequence[Any],
    keys: list[Any],
    limits: list[float],
    exact_limit: float,
) -> Values:
    """Refusals of benign requests, by reader [b, s, defences]."""

    def of(reader, params, seed, refused):
        chances = _chances(asking, reader, params, benign[seed], keys[seed])
        return _defended(asking, chances, refused)[..., 1]

    found: dict[str, list[np.ndarray]] = {reader: [] for reader in READERS}
    for seed, (params, limit) in enumerate(zip(by_seed, limits, strict=True)):
        own = np.asarray(asking.surprise(params, benign[seed])) > limit
        found[MODEL].append(of(MODEL, params, seed, own))
        if not seed or not np.array_equal(benign[seed], benign[0]):
            exact = np.asarray(asking.exact_surprise(benign[seed])) > exact_limit
            found[EXACT].append(of(EXACT, None, seed, exact))
    return {reader: np.stack(values, axis=1) for reader, values in found.items()}


def _beyond_asking_again(asking: Asking, values: np.ndarray) -> dict[str, Any]:
    """What checks change in success, less what asking as often without a check does."""
    place = {one.label: n for n, one in enumerate(asking.defences)}
    found = {}
    for one in asking.defences:
        control = f"no_check {one.times}"
        if one.name.endswith("_check") and one.label != control and control in place:
            gap = values[..., place[one.label]] - values[..., place[control]]
            found[one.label] = within(_mean(asking, gap), -1, 1)
    return found


def _mean(asking: Asking, values: np.ndarray) -> Interval:
    """The interval of a mean over requests and seeds [b, s, ...]."""
    return of_mean(values, nested=asking.config.evaluation.own_contexts)


def _by_defence(asking: Asking, values: np.ndarray, least: int = 0) -> dict[str, Any]:
    """Intervals of values [requests, seeds, defences]."""
    whole = within(_mean(asking, values), least, 1)
    return {one.label: at(whole, place) for place, one in enumerate(asking.defences)}
