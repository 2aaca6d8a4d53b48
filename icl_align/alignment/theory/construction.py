r"""Transformers built by hand that do gradient descent on the ranking loss of their context.

The linear policy f(x) = W x is scored by s_i = -||W x - y_i||^2. One step of size eta on the
Plackett-Luce loss of N attempts moves its prediction at x by (Wang et al. 2024, Section 3)

    2 eta ||x||^2 \sum_{i=1}^{N-1} ( y_tau(i) - \sum_{j>=i} beta_ij y_tau(j) ),
    beta_i. = softmax of s over the attempts j >= i,  tau the order of decreasing reward.

The networks here are weights of the project's own `Transformer`, with softmax attention, ReLU and
no layer norm, on `triplet_norm` tokens, each token seeing all attempts (`causal=False`). Each block
makes one term of the sum, by three moves:

    pick      head 1, a sharp softmax over the rewards: adds the best remaining response to
              `update`, and subtracts its reward from every `gap`, the reward less the last pick's
    average   head 2, softmax over the scores: subtracts the Boltzmann average from `update`
    strike    one ReLU unit, above 0 only where gap = 0: lowers the `mask` of the picked attempt

Sizes, beside those of the paper, for d dimensions and N attempts:

    network                     blocks      heads  MLP width  width
    Bradley-Terry, paper        1           2      none
    Bradley-Terry, here         k           2      none       2 d + 2
    Plackett-Luce, paper        N - 1       3      yes
    Plackett-Luce, here, k = 1  N - 1       2      1          3 d + 3 (even)
    Plackett-Luce, here, k > 1  k (N - 1)   2      2 d + 1    3 d + 3 (even)
    Q queries, here             k N + 1     6      2 d + 1    6 (d + Q + 1)

Rows n < N of the prediction are exact too: once all n attempts are struck off, picks and averages
cancel exactly, since both heads then attend to the one attempt that was struck the least. For
limits, with measured figures, see `exactness.py`.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from icl_align.alignment.options import ModelConfig, Options, TaskConfig
from icl_align.alignment.theory.assembly import (
    BlockPlan,
    Head,
    Logit,
    Network,
    Unit,
    assemble,
    channels,
    head_width,
    mlp_width,
)

REWARD_RANGE = 1.0  # rewards lie in [0, 1]


class Sharpness(NamedTuple):
    """How sharply the networks tell attempts apart.

    The defaults are exact to rounding wherever the rewards differ by at least `smallest_gap`.
    """

    smallest_gap: float = 1e-6  # of two rewards; closer ones may count as equal
    certainty: float = 64.0  # log of the odds with which a reward higher by that gap is picked
    score_range: float = 1e6  # of the scores -||y_hat - y||^2; beyond it the struck come back

    @property
    def per_reward(self) -> float:
        """Logit of head 1 for a unit of reward."""
        return self.certainty / self.smallest_gap


SHARP = Sharpness()
# No gradient passes through SHARP; training that starts from a construction starts from this one.
DULL = Sharpness(smallest_gap=0.05, certainty=4.0, score_range=30.0)


def _to_room(
    task: TaskConfig, stream: dict[str, slice], plans: list[BlockPlan], num_heads: int
) -> Options:
    """The smallest architecture of the family that has room for the plans."""
    needed = max(
        max(place.stop for place in stream.values()), num_heads * head_width(stream, plans)
    )
    units = mlp_width(stream, plans)
    model = ModelConfig(
        num_layers=len(plans),
        num_heads=num_heads,
        width=-(-needed // num_heads) * num_heads,
        mlp=units > 0,
        mlp_width=units or None,
        activation="relu",
        norm="none",
        causal=False,
        tokens="triplet_norm",
        positions=True,
    )
    return Options(task=task, model=model)


def _embed(policy: Float[np.ndarray, "d d"]) -> dict[tuple[str, str], Any]:
    """What every network reads of a token; the prediction starts at W x, the gap at the reward."""
    return {
        ("query", "prediction"): policy.T,
        ("response", "response"): 1.0,
        ("norm", "norm"): 1.0,
        ("reward", "gap"): 1.0,
    }


def _check_sizes(num_steps: int, num_responses: int = 2, num_queries: int = 1) -> None:
    """Raises ValueError for sizes that no network has."""
    sizes = {
        "num_steps": (num_steps, 1),
        "num_responses": (num_responses, 2),
        "num_queries": (num_queries, 1),
    }
    for name, (given, least) in sizes.items():
        if given < least:
            raise ValueError(f"{name}={given}: must be at least {least}")


def _bare_query_apart(num_tokens: int, sharpness: Sharpness) -> dict[str, np.ndarray]:
    """Positions that keep the bare query's token from being picked or averaged."""
    most_struck = num_tokens**2  # above the sum of what the blocks of one step can strike off
    apart = np.zeros(num_tokens)
    apart[0] = 1
    return {
        "gap": -4 * REWARD_RANGE * most_struck * apart,
        "norm": 2 * sharpness.score_range * most_struck * apart,
    }


def _pick(
    sharpness: Sharpness, *more: Logit, avoid: Mapping[str, float] = MappingProxyType({})
) -> Head:
    """Head 1: the best remaining attempt; all gaps become relative to its reward."""
    # A struck attempt loses to any other, whatever their rewards.
    slope = sharpness.per_reward
    logit = Logit({"gap": slope, "mask": 2 * slope * REWARD_RANGE} | dict(avoid))
    return Head((logit, *more), (("response", "update", 1.0), ("gap", "gap", -1.0)))


def _average(
    sharpness: Sharpness, *more: Logit, avoid: Mapping[str, float] = MappingProxyType({})
) -> Head:
    """Head 2: the Boltzmann average of the remaining attempts under the current prediction."""
    # -||y_hat - y||^2 up to -||y_hat||^2, which no softmax sees.
    scores = Logit({"response": 2.0}, query="prediction")
    rest = Logit({"norm": -1.0, "mask": sharpness.score_range} | dict(avoid))
    return Head((scores, rest, *more), (("response", "update", -1.0),))


def _strike(place: int, sharpness: Sharpness) -> Unit:
    """Lowers the mask by `place` where the gap is 0 and the mask is 0.

    Attempts are struck by different amounts, so that one is always the least struck.
    """
    slope = 2 / sharpness.smallest_gap  # 1 at gap 0; 0 from -smallest_gap / 2 on
    veto = 2 * (slope * REWARD_RANGE + 1)  # the struck ones have gaps above 0
    return Unit({"gap": slope, "mask": veto}, {"mask": -float(place)}, bias=1.0)


def _clear(channel: str, also: dict[str, float] | None = None) -> tuple[Unit, Unit]:
    """Sets a channel to 0, by x - relu(x) + relu(-x), after adding factor x channel to others."""
    also = also or {}
    plus = Unit({channel: 1.0}, {channel: -1.0} | also)
    minus = Unit({channel: -1.0}, {channel: 1.0} | {name: -f for name, f in also.items()})
    return plus, minus


UNSTRIKE = Unit({"mask": -1.0}, {"mask": 1.0})  # the mask is at most 0


def bradley_terry_network(
    policy: Float[np.ndarray, "d d"],
    learning_rate: float,
    num_steps: int = 1,
    *,
    query_norm: float = 1.0,
    sharpness: Sharpness = SHARP,
    dtype: Any = jnp.float32,
) -> Network:
    """Gradient descent on the Bradley-Terry loss of two attempts: one block a step, no MLP.

    With one term in the sum nothing has to be struck off. Source: Wang et al. (2024), Section 3, on
    one layer of two-head softmax attention.

    Args:
      policy: the starting policy W; the prediction starts at W x.
      learning_rate: eta.
      num_steps: k >= 1.
      query_norm: ||x||, which must be the same for every context.
      sharpness: see `plackett_luce_network`.
      dtype: of the parameters.

    Raises:
      ValueError: num_steps is below 1.
    """
    _check_sizes(num_steps)
    d = len(policy)
    stream = channels(response=d, norm=1, gap=1, prediction=d)
    rate = 2 * learning_rate * query_norm**2
    scores = Logit({"response": 2.0}, query="prediction")
    plan = BlockPlan(
        (
            Head((Logit({"gap": sharpness.per_reward}),), (("response", "prediction", rate),)),
            Head((scores, Logit({"norm": -1.0})), (("response", "prediction", -rate),)),
        )
    )
    plans = [plan] * num_steps
    return assemble(
        _to_room(TaskConfig(dim=d, num_responses=2), stream, plans, num_heads=2),
        stream,
        embed=_embed(policy),
        positions=_bare_query_apart(3, sharpness),
        plans=plans,
        read_out={"prediction": 1.0},
        dtype=dtype,
    )


def plackett_luce_network(
    policy: Float[np.ndarray, "d d"],
    learning_rate: float,
    num_responses: int,
    num_steps: int = 1,
    *,
    query_norm: float = 1.0,
    sharpness: Sharpness = SHARP,
    dtype: Any = jnp.float32,
) -> Network:
    """Gradient descent, k steps, on the Plackett-Luce loss of up to N attempts at one query.

    N - 1 blocks a step. The last block of every step but the last hands the update over to the
    prediction and takes the strikes back, with 2 d + 1 ReLU units. Source: Wang et al. (2024),
    Theorem 3.3 (there N - 1 blocks of three heads and an MLP, for one step).

    Args:
      policy: the starting policy W; the prediction starts at W x.
      learning_rate: eta.
      num_responses: N >= 2.
      num_steps: k >= 1.
      query_norm: ||x||, the same for every context; `several_queries_network` takes any.
      sharpness: among others the smallest gap of two rewards. A tie is no preference to the loss,
        but the network picks tied attempts together, as their mean, in one block; each block that
        is so left over makes the first term once more.
      dtype: of the parameters.

    Raises:
      ValueError: a size is too small.
    """
    _check_sizes(num_steps, num_responses)
    d = len(policy)
    stream = channels(response=d, norm=1, gap=1, mask=1, prediction=d, update=d)
    rate = 2 * learning_rate * query_norm**2
    heads = (_pick(sharpness), _average(sharpness))
    step = [BlockPlan(heads, (_strike(i, sharpness),)) for i in range(1, num_responses)]
    hand_over = BlockPlan(heads, (*_clear("update", {"prediction": rate}), UNSTRIKE))
    plans = [*step[:-1], hand_over] * (num_steps - 1) + step
    return assemble(
        _to_room(TaskConfig(dim=d, num_responses=num_responses), stream, plans, num_heads=2),
        stream,
        embed=_embed(policy),
        positions=_bare_query_apart(num_responses + 1, sharpness),
        plans=plans,
        read_out={"prediction": 1.0, "update": rate},
        dtype=dtype,
    )


def several_queries_network(
    policy: Float[np.ndarray, "d d"],
    learning_rate: float,
    num_queries: int,
    num_responses: int,
    num_steps: int = 1,
    *,
    largest_query_norm: float = 1.0,
    sharpness: Sharpness = SHARP,
    dtype: Any = jnp.float32,
) -> Network:
    r"""Gradient descent, k steps, on the summed losses of Q queries, read off at a fresh query.

    Positions say which query an attempt belongs to, and every query's attempts are ranked apart.
    The step on the summed loss moves the prediction at any query x by

        2 eta \sum_q (x . x_q) update_q,

    a product of two things that the network holds. A linear attention would form it; here six
    softmax heads do, as a finite difference: beside the bare query's token as an attention sink,
    the weight of an attempt is close to exp(eps x . x_q - lambda), and a seven-point stencil in
    eps keeps the linear part. This is exact in the limit only; eps and lambda balance truncation
    and rounding. With Q = 1 and the query itself as the fresh one this takes queries of any norm.

    N blocks a step (the ranking and the product), and a last one that hands the fresh query's
    answer to the token that is read. Source: Wang et al. (2024), appendix on multiple queries,
    which tells the queries apart by positions.

    Args:
      policy: the starting policy W.
      learning_rate: eta.
      num_queries: Q >= 1.
      num_responses: attempts at each query, >= 2.
      num_steps: k >= 1.
      largest_query_norm: bound on the norm of all queries; far smaller ones lose precision.
      sharpness: see `plackett_luce_network`.
      dtype: of the parameters.

    Raises:
      ValueError: a size is too small.
    """
    _check_sizes(num_steps, num_responses, num_queries)
    d, total = len(policy), num_queries * num_responses
    stream = channels(
        query=d, key_query=d, response=d, norm=1, gap=1, mask=1,
        group=num_queries, fresh=1, follows=1, prediction=d, update=d,
    )  # fmt: skip
    # The sink's logit: its exponential drowns the attempts', up to a rounding error. Just below a
    # power of two, where numbers lie twice as close as above it.
    sink = 2 ** np.floor(np.log2(-np.log(float(jnp.finfo(dtype).eps) / 2))) - 0.5
    rounding = float(jnp.finfo(dtype).eps) * sink / 2
    # Least is the sum of the stencil's truncation, z^6 / 140, and its rounding, 1.8 rounding / z.
    epsilon = (42 * rounding) ** (1 / 7) / largest_query_norm**2
    # Worst of all is a token of another query; next the bare query's, which so attends to itself.
    slope = sharpness.per_reward * REWARD_RANGE
    apart = 8 * (slope + sharpness.score_range) * num_responses**2
    same_query = Logit({"group": 2 * apart}, query="group", query_bias=-1.0)
    avoid = {"fresh": -apart}
    heads = (
        _pick(sharpness, same_query, avoid=avoid),
        _average(sharpness, same_query, avoid=avoid),
    )
    step = [BlockPlan(heads, (_strike(i, sharpness),)) for i in range(1, num_responses)]
    # The sink's own x must not count as a key.
    gate = (
        Unit({"query": 1.0, "fresh": -2 * largest_query_norm}, {"key_query": 1.0}),
        Unit({"query": -1.0, "fresh": -2 * largest_query_norm}, {"key_query": -1.0}),
    )
    first = BlockPlan(heads, (*gate, *step[0].units))
    # The derivative at 0 from the values at +-h, +-2 h and +-3 h.
    stencil = {1: 45 / 60, 2: -9 / 60, 3: 1 / 60, -1: -45 / 60, -2: 9 / 60, -3: -1 / 60}
    one_each = Logit({"fresh": sink, "follows": -1e4})
    product = tuple(
        Head(
            (Logit({"key_query": shift * epsilon}, query="query"), one_each),
            (("update", "prediction", 2 * learning_rate * weight * np.exp(sink) / epsilon),),
        )
        for shift, weight in stencil.items()
    )
    apply = BlockPlan(product, (*_clear("update"), UNSTRIKE))
    from_fresh = Head((Logit({"fresh": 1e4}),), (("prediction", "update", 1.0),))
    plans = [first, *step[1:], apply]
    plans += [*step, apply] * (num_steps - 1)
    plans += [BlockPlan((from_fresh,))]
    place = np.arange(total + 1)
    group = (place[:, None] - 1) // num_responses == np.arange(num_queries)
    return assemble(
        _to_room(TaskConfig(dim=d, num_responses=total), stream, plans, num_heads=len(product)),
        stream,
        embed=_embed(policy) | {("query", "query"): 1.0},
        positions={
            "group": group.astype(float),
            "fresh": (place == 0).astype(float),
            "follows": ((place > 0) & ((place - 1) % num_responses > 0)).astype(float),
        },
        plans=plans,
        read_out={"update": 1.0},
        dtype=dtype,
    )


def constructed_step(config: Options) -> Network:
    """The constructed network for the run's task: one Plackett-Luce step from W = 0."""
    d = config.task.dim
    return plackett_luce_network(np.zeros((d, d)), 0.1, config.task.num_responses)
