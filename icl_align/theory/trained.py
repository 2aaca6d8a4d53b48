"""Whether the constructed network is what training finds.

Compares the transformers of a finished run with the gradient step, on contexts that no training
has seen: what they answer, how their answers depend on the responses, what their layers hold, what
their heads attend to, and whether training stays with the construction when it starts there.

Only directions are compared, as the cosine loss leaves the norm of an answer free. The constructed
network starts at the policy W = 0, where the direction of one step depends neither on the step size
nor on the norm of the query.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from icl_align.config import Config, GradientDescentConfig
from icl_align.contexts import (
    Context,
    evaluation_keys,
    sample_contexts,
    shown_to_transformer,
)
from icl_align.devices import make_mesh
from icl_align.learners import (
    best_attempt,
    gradient_descent,
    gradient_descent_steps,
    least_squares,
    plackett_luce_optimum,
    weighted_average,
)
from icl_align.losses import cosine_similarity, normalize, training_loss
from icl_align.packing import pack, unpack
from icl_align.theory.assembly import Network, as_module, run_last_row
from icl_align.theory.construction import DULL, SHARP, plackett_luce_network
from icl_align.training import (
    TrainState,
    abstract_transformer,
    init_state,
    make_chunk,
    make_optimizer,
    members_of,
)

# A learner here: contexts [b] and their keys -> the answers after all of their attempts [b, d].
Answer = Callable[[Context, Any], Float[Array, "b d"]]

ATTEMPTS = (2, 5, 10, 20)  # numbers of attempts at which answers are compared
PROBED_STEPS = (1, 2, 5, 10, 20, 50)  # iterates of gradient descent that probes look for
SLOW = 1 / 30  # of the run's learning rate, in training from the construction
TRANSFORMS: dict[str, Callable[[Array], Array]] = {
    "r^3": lambda r: r**3,
    "sqrt r": jnp.sqrt,
    "1 - (1 - r)^3": lambda r: 1 - (1 - r) ** 3,
    "1 - r": lambda r: 1 - r,  # the control: it turns the ranking round, and must move a ranker
}


def first_attempts(contexts: Context, n: int) -> Context:
    """The contexts cut after n attempts."""
    return contexts._replace(
        responses=contexts.responses[..., :n, :], rewards=contexts.rewards[..., :n]
    )


def constructed_step(config: Config) -> Network:
    """The constructed network for the run's task: one Plackett-Luce step from W = 0."""
    d = config.task.dim
    return plackett_luce_network(np.zeros((d, d)), 0.1, config.task.num_responses)


def plain_descent(num_steps: int, learning_rate: float) -> GradientDescentConfig:
    """The theory's descent: from W = 0, without momentum."""
    return GradientDescentConfig("sgd", learning_rate, num_steps, num_steps, "zero")


def _last_answer(
    contexts: Context, options: GradientDescentConfig, keys: Any, score: str
) -> Float[Array, "b d"]:
    """Gradient descent's answer after all attempts."""
    last = jnp.array([contexts.rewards.shape[-1]])
    return gradient_descent(contexts, options, keys, score=score, attempts=last)[..., 0, :]


def _published_descent(config: Config) -> GradientDescentConfig:
    """The run's `gradient_descent`, with the steps that its reward noise asks for."""
    steps = int(gradient_descent_steps(config.gradient_descent, config.task.reward_noise))
    return dataclasses.replace(config.gradient_descent, steps=steps)


def tuned_learning_rate(config: Config, num_steps: int) -> float:
    """The step size with which k plain steps come closest to the published descent, by cosine.

    Out of 16 between 0.001 and 1, on contexts apart from those of the comparison.
    """
    contexts, keys = held_out(config, 256, start=10**6)
    target = _last_answer(contexts, _published_descent(config), keys, config.loss.score)

    @jax.jit  # the contexts are arguments, as constants they would be folded for seconds
    def agreement(rate, contexts, keys, target):
        descent = dataclasses.replace(plain_descent(num_steps, 1.0), learning_rate=rate)
        answer = _last_answer(contexts, descent, keys, "negative_squared_distance")
        # A rate at which descent diverges is no candidate.
        cosines = cosine_similarity(answer, target)
        return jnp.mean(jnp.where(jnp.isfinite(cosines), cosines, -1.0))

    rates = np.geomspace(1e-3, 1.0, 16)
    return float(rates[np.argmax([agreement(rate, contexts, keys, target) for rate in rates])])


def held_out(config: Config, count: int, start: int = 0) -> tuple[Context, Any]:
    """Evaluation contexts number `start` on, and their keys."""
    keys = evaluation_keys(config.evaluation.seed, start + jnp.arange(count, dtype=jnp.int32))
    return jax.jit(lambda keys: sample_contexts(config.task, keys))(keys), keys


def learners(config: Config, params: Any, untrained: Any) -> dict[str, Answer]:
    """Name -> learner; one transformer for each seed of the run.

    Args:
      config: the run's.
      params: trained parameters, leading axis of seeds.
      untrained: the same before training.
    """
    step = constructed_step(config)
    rate, published = tuned_learning_rate(config, 32), _published_descent(config)

    def transformer(params, contexts, keys):
        network = Network(config, params)
        return run_last_row(network, shown_to_transformer(config.task, contexts, keys))

    def of_seed(params, seed):
        one = jax.tree.map(lambda leaf: leaf[seed], params)
        return lambda contexts, keys: transformer(one, contexts, keys)

    def after_all(learner):
        return lambda contexts, keys: learner(contexts)[..., -1, :]

    def descent(contexts, keys):
        return _last_answer(contexts, published, keys, config.loss.score)

    def plain(contexts, keys):
        return _last_answer(contexts, plain_descent(32, rate), keys, "negative_squared_distance")

    number = len(jax.tree.leaves(params)[0])
    return {
        **{f"transformer, seed {config.seed + s}": of_seed(params, s) for s in range(number)},
        "untrained": of_seed(untrained, 0),
        "constructed, 1 step": lambda contexts, keys: run_last_row(step, contexts),
        "plain descent, 32 steps": plain,
        "gradient_descent": descent,
        "plackett_luce_optimum": after_all(
            functools.partial(plackett_luce_optimum, score=config.loss.score)
        ),
        "best_attempt": after_all(best_attempt),
        "weighted_average": after_all(weighted_average),
        "least_squares": after_all(least_squares),
    }


def mean_with_interval(values: Float[Array | np.ndarray, " b"]) -> dict[str, float]:
    """Mean over contexts, and half the width of its 95% interval."""
    values = np.asarray(values, np.float64)
    half = 1.96 * values.std(ddof=1) / np.sqrt(len(values))
    return {"mean": float(values.mean()), "half_width": float(half)}


# ------------------------------------------------------------------------------------ comparisons


def agreement_of_answers(
    answers: dict[str, Answer], config: Config, num_contexts: int
) -> dict[int, dict[str, dict[str, dict[str, float]]]]:
    """Attempts -> learner -> learner -> mean cosine of their answers, in [-1, 1]."""
    contexts, keys = held_out(config, num_contexts)
    table = {}
    for n in sorted({min(n, config.task.num_responses) for n in ATTEMPTS}):
        cut = first_attempts(contexts, n)
        given = {name: jax.jit(answer)(cut, keys) for name, answer in answers.items()}
        table[n] = {
            one: {
                other: mean_with_interval(cosine_similarity(given[one], given[other]))
                for other in given
            }
            for one in given
        }
    return table


def sensitivity(answer: Answer, contexts: Context, keys: Any) -> Float[Array, "b d n d"]:
    """The Jacobian of the answer's direction with respect to the responses."""

    def direction(responses):
        return normalize(answer(contexts._replace(responses=responses), keys))

    directions, pull_back = jax.vjp(direction, contexts.responses)
    d = directions.shape[-1]
    # Contexts do not mix, so one pull-back serves the same entry of all of them.
    rows = [pull_back(jnp.zeros_like(directions).at[:, entry].set(1.0))[0] for entry in range(d)]
    return jnp.stack(rows, axis=1)


def agreement_of_sensitivities(
    answers: dict[str, Answer], config: Config, num_contexts: int, num_attempts: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Learner -> learner -> mean cosine of their Jacobians d direction / d responses."""
    contexts, keys = held_out(config, num_contexts)
    contexts = first_attempts(contexts, num_attempts)
    flat = {
        name: jax.jit(lambda c, k, answer=answer: sensitivity(answer, c, k))(contexts, keys)
        for name, answer in answers.items()
        if name != "plackett_luce_optimum"  # its search is a loop without a reverse derivative
    }
    flat = {name: jacobian.reshape(len(jacobian), -1) for name, jacobian in flat.items()}
    return {
        one: {
            other: mean_with_interval(cosine_similarity(flat[one], flat[other])) for other in flat
        }
        for one in flat
    }


def reaction_to_transforms(
    answers: dict[str, Answer], config: Config, num_contexts: int
) -> dict[str, dict[str, dict[str, float]]]:
    """Learner -> transform -> 1 - cosine of the answers to rewards r and f(r); 0 for a ranker."""
    contexts, keys = held_out(config, num_contexts)

    def moved(answer, transform):
        changed = contexts._replace(rewards=transform(contexts.rewards))
        given = jax.jit(answer)
        return 1 - cosine_similarity(given(contexts, keys), given(changed, keys))

    return {
        name: {
            label: mean_with_interval(moved(answer, transform))
            for label, transform in TRANSFORMS.items()
        }
        for name, answer in answers.items()
    }


# -------------------------------------------------------------------------------------- inside


def read_token_by_layer(
    network: Network, contexts: Context
) -> Float[Array, "layers_plus_1 b width"]:
    """The token that is read after all attempts: before the first block and after each block."""
    transformer = as_module(network)
    tokens = transformer.embedded(contexts)
    stream = transformer.trunk.residual_stream(tokens, transformer.visible(tokens.shape[-2]))
    return jnp.stack([layer[:, -1] for layer in stream])


def attention_by_rank(
    network: Network, shown: Context, rewards: Float[Array, "b n"]
) -> Float[Array, "layers h n"]:
    """Mean attention of the token that is read to the attempt of each rank, best first.

    For softmax, what is missing to 1 goes to the bare query's token. The three tokens of an attempt
    in interleaved tokens are taken together.

    Args:
      network: its weights.
      shown: the contexts as the network reads them.
      rewards: by which attempts are ranked; not those shown where a control hides or shuffles them.
    """
    transformer = as_module(network)
    tokens = transformer.embedded(shown)
    visible = transformer.visible(tokens.shape[-2])
    stream = transformer.trunk.residual_stream(tokens, visible)
    n = rewards.shape[-1]
    order = jnp.argsort(-rewards, axis=-1)
    layers = []
    for block, layer in zip(transformer.trunk.blocks, stream, strict=False):
        maps = block.attention.weights(block.attention_input(layer), visible)[:, :, -1]
        if network.config.model.tokens == "interleaved":
            by_attempt = maps[..., :-1].reshape(*maps.shape[:-1], n, 3).sum(axis=-1)
        else:
            by_attempt = maps[..., 1:]
        layers.append(jnp.take_along_axis(by_attempt, order[:, None], axis=-1).mean(axis=0))
    return jnp.stack(layers)


def probe(features: Float[np.ndarray, "b f"], targets: Float[np.ndarray, "b d"]) -> float:
    """Share of the targets' variance that a ridge regression explains on the second half.

    The first half is for fitting, with a penalty of 0.001 a standardised feature and context.
    """
    features = np.asarray(features, np.float64)
    targets = np.asarray(targets, np.float64)
    half = len(features) // 2
    deviation = features[:half].std(axis=0)
    scale = np.where(deviation > 1e-12, deviation, 1)
    centred = (features - features[:half].mean(axis=0)) / scale
    goal = targets - targets[:half].mean(axis=0)
    gram = centred[:half].T @ centred[:half] + 1e-3 * half * np.eye(centred.shape[-1])
    weights = np.linalg.solve(gram, centred[:half].T @ goal[:half])
    left = np.sum((goal[half:] - centred[half:] @ weights) ** 2)
    return float(1 - left / np.sum((goal[half:] - goal[half:].mean(axis=0)) ** 2))


def probes(config: Config, params: Any, untrained: Any, num_contexts: int) -> dict[str, Any]:
    """Held-out scores of linear probes from each layer to the directions of descent's iterates.

    The descent is the run's `gradient_descent`; its random starting policy is nothing that a
    transformer could know, so that early iterates have low scores whatever a layer holds. How low
    says the probe from the same iterate of a descent with another start.

    Returns:
      "steps"; "another_start", [steps]; and for "trained" and "untrained" a table
      [layers + 1, steps], mean over seeds.
    """
    contexts, keys = held_out(config, num_contexts)
    shown = shown_to_transformer(config.task, contexts, keys)

    other_keys = held_out(config, num_contexts, start=2 * 10**6)[1]

    def iterate(steps, keys):
        options = dataclasses.replace(config.gradient_descent, steps=steps)
        return np.asarray(normalize(_last_answer(contexts, options, keys, config.loss.score)))

    targets = [iterate(steps, keys) for steps in PROBED_STEPS]
    others = [iterate(steps, other_keys) for steps in PROBED_STEPS]

    @jax.jit
    def layers(params):
        return jax.vmap(lambda one: read_token_by_layer(Network(config, one), shown))(params)

    def scores(params):
        by_seed = np.asarray(layers(params))
        return np.mean(
            [[[probe(layer, goal) for goal in targets] for layer in seed] for seed in by_seed],
            axis=0,
        ).tolist()

    return {
        "steps": list(PROBED_STEPS),
        "another_start": [probe(*pair) for pair in zip(others, targets, strict=True)],
        "trained": scores(params),
        "untrained": scores(untrained),
    }


def attention_maps(
    config: Config, params: Any, untrained: Any, num_contexts: int
) -> dict[str, list[Any]]:
    """Attention by rank of trained, untrained and constructed networks: [seeds, layers, h, n]."""
    contexts, keys = held_out(config, num_contexts)
    shown = shown_to_transformer(config.task, contexts, keys)
    step = constructed_step(config)

    def of(config, params, shown):
        def all_seeds(params, shown, rewards):
            def one_seed(params):
                return attention_by_rank(Network(config, params), shown, rewards)

            return jax.vmap(one_seed)(params)

        return np.asarray(jax.jit(all_seeds)(params, shown, contexts.rewards)).tolist()

    return {
        "trained": of(config, params, shown),
        "untrained": of(config, untrained, shown),
        "constructed": of(
            step.config, jax.tree.map(lambda leaf: leaf[None], step.params), contexts
        ),
    }


def picks_by_rank(maps: Float[Array | np.ndarray, "*seeds layers h n"]) -> Float[Array, "*seeds n"]:
    """For each rank the largest mean attention that any head of any layer gives to it.

    1 at every rank but the last for the construction, which picks the best remaining attempt in
    turn; 1 / (n + 1) for a network that attends to all tokens alike.
    """
    return jnp.max(jnp.asarray(maps), axis=(-3, -2))


# ------------------------------------------------------------------------- training from it


def training_from_the_construction(
    config: Config,
    num_responses: int,
    num_steps: int,
    progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, Any]:
    """Trains the constructed network with the run's loss and optimiser, and watches where it goes.

    Starts: the sharp network and the dull one, each with the run's learning rate and with `SLOW`
    times that, and the same architecture initialised as usual. Queries have norm 1, and the target
    of "agreement" is the gradient step that the construction takes.

    Returns:
      "optimum", the least loss that any answers reach (None where the loss has none to find), and
      "starts": start -> rows of step, loss, agreement (cosine with the gradient step) and picks
      (`picks_by_rank`, mean over the ranks 1 to N - 1). Rows end where training diverges.
    """
    rate = 0.1
    task = dataclasses.replace(config.task, num_responses=num_responses, unit_norm_queries=True)
    loss = dataclasses.replace(config.loss, min_attempts=2, max_attempts=None)
    train = dataclasses.replace(config.train, steps=num_steps)
    zero = np.zeros((task.dim, task.dim))

    def build(sharpness):
        return plackett_luce_network(zero, rate, num_responses, sharpness=sharpness)

    model = build(SHARP).config.model
    own = Config(task=task, model=model, loss=loss, train=train, seed=config.seed)
    contexts, keys = held_out(own, 512)
    shown = shown_to_transformer(task, contexts, keys)
    step = _last_answer(contexts, plain_descent(1, rate), keys, "negative_squared_distance")

    @jax.jit
    def judge(params, contexts, shown, step):
        network = Network(own, params)
        predictions = as_module(network)(shown)
        maps = attention_by_rank(network, shown, contexts.rewards)
        return {
            "loss": training_loss(loss, predictions, contexts),
            "agreement": jnp.mean(cosine_similarity(predictions[:, -1], step)),
            "picks": jnp.mean(picks_by_rank(maps)[:-1]),
        }

    looks = sorted({0, *np.geomspace(1, num_steps, 9).astype(int).tolist()})
    starts = {
        "constructed": (build(SHARP), 1.0),
        "constructed, slow": (build(SHARP), SLOW),
        "dull": (build(DULL), 1.0),
        "dull, slow": (build(DULL), SLOW),
        "initialised": (None, 1.0),
    }
    chunk = make_chunk(own, num_steps, make_mesh(own, 1, jax.local_devices()[:1]))
    rows: dict[str, Any] = {}
    for place, (name, (network, pace)) in enumerate(starts.items()):
        paced = dataclasses.replace(train, learning_rate=pace * train.learning_rate)
        members, state = members_of(dataclasses.replace(own, train=paced)), init_state(own)
        if network is not None:
            params = jax.tree.map(lambda leaf: leaf[None], network.params)
            member = jax.tree.map(lambda leaf: leaf[0], members)
            opt_state = jax.vmap(make_optimizer(train, member).init)(params)
            state = TrainState(params, opt_state, state.step)
        state = pack(state, leading=1)
        rows[name] = []
        for before, after in zip([0, *looks], looks, strict=False):
            if after > before:
                state, _ = chunk(members, state, after - before)
            packed = jax.tree.map(lambda leaf: leaf[0], state.params)
            params = unpack(packed, like=abstract_transformer(own)[1])
            values = judge(params, contexts, shown, step)
            if not all(map(np.isfinite, values.values())):
                break  # diverged: the rows end here
            rows[name].append({"step": after} | {key: float(v) for key, v in values.items()})
            progress((place + after / num_steps) / len(starts))
    best = None
    if loss.name == "plackett_luce":
        optimum = plackett_luce_optimum(contexts, loss.score)
        best = float(training_loss(loss, optimum, contexts))
    return {"optimum": best, "starts": rows}


# ---------------------------------------------------------------------------------- all of it


def compare(
    config: Config,
    state: TrainState,
    num_contexts: int,
    progress: Callable[[float], None] = lambda fraction: None,
) -> dict[str, Any]:
    """Everything above, for a finished run; plain lists and numbers, as JSON holds them."""
    untrained = init_state(config).params
    answers = learners(config, state.params, untrained)
    n = config.task.num_responses
    results: dict[str, Any] = {"num_contexts": num_contexts, "seeds": config.num_seeds}
    results["agreement"] = agreement_of_answers(answers, config, num_contexts)
    progress(0.15)
    results["sensitivity"] = agreement_of_sensitivities(
        answers, config, min(num_contexts, 256), min(n, 10)
    )
    progress(0.3)
    results["transforms"] = reaction_to_transforms(answers, config, num_contexts)
    progress(0.35)
    results["probes"] = probes(config, state.params, untrained, 4 * num_contexts)
    progress(0.45)
    results["attention"] = attention_maps(config, state.params, untrained, num_contexts)
    results["picks"] = {
        name: np.mean(picks_by_rank(np.asarray(maps)), axis=0).tolist()
        for name, maps in results["attention"].items()
    }
    progress(0.5)
    results["training"] = training_from_the_construction(
        config, min(n, 6), config.train.steps, lambda share: progress(0.5 + share / 2)
    )
    return results
