"""Times own rounds on this machine.

python -m benchmarks.alignment.own_rounds [KEY=VALUE ...]

Training steps a second with given attempts, with own ones, with a gradient through them and with a
learned critic; and roll-outs a second of a transformer that keeps what it has read beside one that
reads all anew for every answer. The options are those of python -m icl_align.train. On one device.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from icl_align.alignment.contexts import sample_contexts
from icl_align.alignment.model import Transformer
from icl_align.alignment.rounds.critics import critic_of, line_of
from icl_align.alignment.rounds.roll_out import (
    InSteps,
    in_steps,
    own_rounds,
    transformer_in_steps,
)
from icl_align.config import Config
from icl_align.running.command import show
from icl_align.running.compose import compose_config
from icl_align.running.errors import one_line_errors
from icl_align.running.mesh import make_mesh
from icl_align.running.packing import pack
from icl_align.running.terminal import Terminal
from icl_align.running.training import init_state, make_chunk, members_of, network_of

STEPS, CONTEXTS, REPEATS = 10, 256, 7
OWN = "train.own_rounds_share=0.5"
TRAINED = {
    "given attempts": [],
    "own attempts": [OWN],
    "own attempts, with gradient": [OWN, "train.own_rounds_gradient=true"],
    "a learned critic": ["loss.critic_weight=1"],
}


def training(config: Config) -> Callable[[], Any]:
    """Some steps of a configuration, as training makes them."""
    chunk = make_chunk(config, STEPS, make_mesh(config, 1, jax.local_devices()[:1]))
    members, state = members_of(config), pack(init_state(config), leading=1)

    def steps():
        nonlocal state
        state, metrics = chunk(members, state, STEPS)
        return metrics

    return steps


def rolling(config: Config, reads: Callable[[Transformer], InSteps]) -> Callable[[], Any]:
    """The own rounds of an untrained network on some contexts."""
    params = jax.tree.map(lambda leaf: leaf[0], init_state(config).params)
    keys = jax.random.split(jax.random.key(0), CONTEXTS)
    options = config.own_rounds

    @jax.jit
    def program(params, keys):
        return own_rounds(
            reads(network_of(config)(params)),
            sample_contexts(config.task, keys),
            line_of(config.task, keys),
            critic_of(options, config.task),
            keys,
            given=options.given_attempts,
            rounds=config.task.num_responses - options.given_attempts,
            scale=options.scale,
        )

    return lambda: program(params, keys)


def whole_passes(network: Transformer) -> InSteps:
    """A transformer that reads all anew for every answer."""
    return in_steps(lambda contexts, n: jnp.take(network(contexts), n, axis=-2))


def seconds_of(cases: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Of REPEATS calls of each, in turn."""
    for call in cases.values():
        jax.block_until_ready(call())
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(REPEATS):
        for name, call in cases.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            taken[name].append(time.perf_counter() - start)
    return taken


def rows_of(taken: dict[str, list[float]], each: int) -> list[list[str]]:
    """Name, median with least and most a second, and the ratio of medians to the first."""
    first = statistics.median(next(iter(taken.values())))
    return [
        [
            name,
            f"{each / statistics.median(times):.1f}",
            f"{each / max(times):.1f} to {each / min(times):.1f}",
            f"{first / statistics.median(times):.2f}",
        ]
        for name, times in taken.items()
    ]


def main(overrides: list[str] | None = None) -> None:
    """The command `python -m benchmarks.alignment.own_rounds`."""
    overrides = sys.argv[1:] if overrides is None else overrides
    if {"-h", "--help"} & {*overrides}:
        show(__doc__.strip())
        return
    with one_line_errors():
        configs = {name: compose_config([*overrides, *own]) for name, own in TRAINED.items()}
        plain = configs["given attempts"]
        terminal = Terminal()
        taken = seconds_of({name: training(config) for name, config in configs.items()})
        header = ["", "median", "range", "beside the first"]
        terminal.table("training steps a second", header, rows_of(taken, STEPS))
        rolled = {
            "reads all anew": rolling(plain, whole_passes),
            "keeps what it has read": rolling(plain, transformer_in_steps),
        }
        terminal.table(
            "contexts rolled out a second", header, rows_of(seconds_of(rolled), CONTEXTS)
        )


if __name__ == "__main__":
    main()
