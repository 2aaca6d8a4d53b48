"""Writes the weights of a transformer by the names of channels of its residual stream.

A network is described as the channels of its stream, what the embedding and the positions put
there, and for every block its heads and MLP units. `assemble` turns this into parameters of the
project's own `Transformer`; nothing else is needed to run it.
"""

import dataclasses
import functools
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from icl_align.alignment.contexts import Context
from icl_align.alignment.model import Transformer
from icl_align.alignment.options import Options
from icl_align.config import check

# Features of a `triplet_norm` token, in order; sizes in units of d or 1.
FEATURES = ("query", "response", "norm", "reward", "one")


class Network(NamedTuple):
    """A transformer with its weights."""

    config: Options
    params: Any  # as in `TrainState.params`, of one seed


@dataclasses.dataclass(frozen=True)
class Logit:
    """A term of a head's logits, (query + query_bias) . (sum of factor x key).

    The query is a channel of the token that attends, the keys are of the token attended to.
    Without a query channel the query is the constant 1, and the keys are channels of size 1.
    """

    key: dict[str, float]
    query: str | None = None
    query_bias: float = 0.0


@dataclasses.dataclass(frozen=True)
class Head:
    """One attention head: its logits, and what it adds: factor x attended `source` to `to`."""

    logits: tuple[Logit, ...]
    copies: tuple[tuple[str, str, float], ...]  # (source, to, factor)


@dataclasses.dataclass(frozen=True)
class Unit:
    """ReLU units, one for each entry of the widest channel named in `inputs`.

    relu(bias + sum of factor x input) is added with a factor to each output; a channel of size 1 is
    shared by all entries.
    """

    inputs: dict[str, float]
    outputs: dict[str, float]
    bias: float = 0.0


@dataclasses.dataclass(frozen=True)
class BlockPlan:
    """What one block does."""

    heads: tuple[Head, ...]
    units: tuple[Unit, ...] = ()


def channels(**sizes: int) -> dict[str, slice]:
    """Named slices of the residual stream, one after the other."""
    ends = np.cumsum(list(sizes.values())).tolist()
    return {
        name: slice(end - size, end) for (name, size), end in zip(sizes.items(), ends, strict=True)
    }


def _size(where: slice) -> int:
    return where.stop - where.start


def head_width(stream: dict[str, slice], plans: list[BlockPlan]) -> int:
    """The width that the widest head of the plans needs for its queries, keys or values."""
    widths = [1]
    for head in (head for plan in plans for head in plan.heads):
        widths.append(sum(_size(stream[next(iter(term.key))]) for term in head.logits))
        widths.append(sum(_size(stream[name]) for name in {source for source, _, _ in head.copies}))
    return max(widths)


def mlp_width(stream: dict[str, slice], plans: list[BlockPlan]) -> int:
    """The number of MLP units that the busiest block of the plans needs."""
    return max(sum(_unit_size(stream, unit) for unit in plan.units) for plan in plans)


def _unit_size(stream: dict[str, slice], unit: Unit) -> int:
    return max(_size(stream[name]) for name in unit.inputs)


def assemble(
    config: Options,
    stream: dict[str, slice],
    embed: dict[tuple[str, str], Any],
    positions: dict[str, np.ndarray],
    plans: list[BlockPlan],
    read_out: dict[str, float],
    dtype: Any,
) -> Network:
    """The network that does what the plans say.

    Args:
      config: its model section, with one block for each plan.
      stream: the channels.
      embed: (feature, channel) -> factor or matrix (from feature to channel).
      positions: channel -> values, one row for each token.
      plans: one for each block.
      read_out: channel -> factor in the prediction.
      dtype: of the parameters.

    Raises:
      ConfigError: the configuration is not allowed.
      ValueError: the model has no room for the plans.
    """
    check(config, trained=config)  # its loss does not matter: nothing trains it
    model = config.model
    needed = {
        "blocks": (len(plans), model.num_layers),
        "heads": (max(len(plan.heads) for plan in plans), model.num_heads),
        "width of a head": (head_width(stream, plans), model.width // model.num_heads),
        "MLP units": (mlp_width(stream, plans), (model.mlp_width or 4 * model.width) * model.mlp),
        "width": (max(place.stop for place in stream.values()), model.width),
    }
    for name, (least, given) in needed.items():
        if given < least or (name == "blocks" and given != least):
            raise ValueError(f"the plans need {name}: {least}, and the model has {given}")
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), parameter_shapes(config))
    d = config.task.dim
    features = channels(**{name: d if name in ("query", "response") else 1 for name in FEATURES})
    for (feature, channel), factor in embed.items():
        _connect(params["embed"]["kernel"], features[feature], stream[channel], factor)
    for channel, values in positions.items():
        rows = np.asarray(values).reshape(len(values), -1)
        params["positions"][: len(rows), stream[channel]] = rows
    for plan, block in zip(plans, params["trunk"]["blocks"].values(), strict=True):
        _write_attention(block["attention"], stream, plan.heads, config.model.num_heads)
        if plan.units:
            _write_mlp(block["mlp"], stream, plan.units)
    for channel, factor in read_out.items():
        _connect(params["read_out"]["kernel"], stream[channel], slice(0, d), factor)
    return Network(config, jax.device_put(jax.tree.map(lambda leaf: leaf.astype(dtype), params)))


def _connect(kernel: np.ndarray, source: slice, to: slice, factor: Any) -> None:
    """Adds factor x identity, or a matrix, from `source` to `to`."""
    matrix = np.asarray(factor)
    kernel[source, to] += matrix if matrix.ndim else matrix * np.eye(_size(source))


def _write_attention(
    weights: dict[str, Any], stream: dict[str, slice], heads: tuple[Head, ...], num_heads: int
) -> None:
    size = len(weights["key"]["bias"]) // num_heads
    root = np.sqrt(size)  # attention divides the logits by it
    for number, head in enumerate(heads):
        end = number * size
        for term in head.logits:
            start, end = end, end + _size(stream[next(iter(term.key))])
            for channel, factor in term.key.items():
                _connect(weights["key"]["kernel"], stream[channel], slice(start, end), factor)
            if term.query is None:
                weights["query"]["bias"][start:end] = root
            else:
                query = stream[term.query]
                _connect(weights["query"]["kernel"], query, slice(start, end), root)
                weights["query"]["bias"][start:end] = root * term.query_bias
        end, slots = number * size, {}
        for source, to, factor in head.copies:
            if source not in slots:
                start, end = end, end + _size(stream[source])
                slots[source] = slice(start, end)
                _connect(weights["value"]["kernel"], stream[source], slots[source], 1.0)
            _connect(weights["out"]["kernel"], slots[source], stream[to], factor)


def _write_mlp(weights: dict[str, Any], stream: dict[str, slice], units: tuple[Unit, ...]) -> None:
    end = 0
    for unit in units:
        start, end = end, end + _unit_size(stream, unit)
        hidden = slice(start, end)
        weights["up"]["bias"][hidden] = unit.bias
        for channel, factor in unit.inputs.items():
            shared = _size(stream[channel]) == 1
            matrix = np.full((1, end - start), factor) if shared else factor
            _connect(weights["up"]["kernel"], stream[channel], hidden, matrix)
        for channel, factor in unit.outputs.items():
            _connect(weights["down"]["kernel"], hidden, stream[channel], factor)


def parameter_shapes(config: Options) -> Any:
    """The shapes of a transformer's parameters, nested as in `TrainState.params`."""
    return _abstract(pickle.dumps((config.model, config.task)))[1]


@functools.cache  # tracing takes a tenth of a second
def _abstract(pickled: bytes) -> tuple[nnx.GraphDef, Any]:
    model, task = pickle.loads(pickled)
    network = nnx.eval_shape(lambda: Transformer(model, task, rngs=nnx.Rngs(0)))
    return nnx.graphdef(network), nnx.to_pure_dict(nnx.state(network, nnx.Param))


def compile_quickly(function: Callable) -> Callable:
    """`jax.jit` without optimisation, for deep networks that run once."""
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def as_module(network: Network) -> Transformer:
    """The network as the module that training uses."""
    graph, _ = _abstract(pickle.dumps((network.config.model, network.config.task)))
    return nnx.merge(graph, nnx.State(network.params))


def run(
    network: Network,
    context: Context,
    attempt_queries: Float[Array, "*batch n d"] | None = None,
) -> Float[Array, "*batch n_plus_1 d"]:
    """The network's predictions, by the forward pass of the project's transformer.

    Matrix products keep full precision on accelerators too, where the default would round them.
    """
    with jax.default_matmul_precision("highest"):
        return as_module(network)(context, attempt_queries)


def run_last_row(
    network: Network,
    context: Context,
    attempt_queries: Float[Array, "*batch n d"] | None = None,
) -> Float[Array, "*batch d"]:
    """The last row of `run`, in one pass where `run` makes one for each row."""
    transformer = as_module(network)
    with jax.default_matmul_precision("highest"):
        x_BTD = transformer.embedded(context, attempt_queries)
        visible_TT = transformer.visible(x_BTD.shape[-2])
        return transformer.read_out(transformer.trunk(x_BTD, visible_TT)[..., -1, :])
