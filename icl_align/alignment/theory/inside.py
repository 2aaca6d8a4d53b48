"""What a network holds inside: the token that is read by layer, and what its heads attend to."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from icl_align.alignment.contexts import Context, shown_to_transformer
from icl_align.alignment.losses import normalize
from icl_align.alignment.options import Options
from icl_align.alignment.theory.assembly import Network, as_module
from icl_align.alignment.theory.construction import constructed_step
from icl_align.alignment.theory.descent import held_out, last_answer
from icl_align.alignment.tokens import TOKEN_LAYOUTS

PROBED_STEPS = (1, 2, 5, 10, 20, 50)  # iterates of gradient descent that probes look for


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
    every = TOKEN_LAYOUTS[network.config.model.tokens].tokens_per_attempt
    layers = []
    for block, layer in zip(transformer.trunk.blocks, stream, strict=False):
        maps = block.attention.weights(block.attention_input(layer), visible)[:, :, -1]
        # The query's own token is the last where an attempt has several tokens, else the first.
        by_attempt = maps[..., :-1] if every > 1 else maps[..., 1:]
        by_attempt = by_attempt.reshape(*maps.shape[:-1], n, every).sum(axis=-1)
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


def probes(config: Options, params: Any, untrained: Any, num_contexts: int) -> dict[str, Any]:
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
        return np.asarray(normalize(last_answer(contexts, options, keys, config.loss.score)))

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
    config: Options, params: Any, untrained: Any, num_contexts: int
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
