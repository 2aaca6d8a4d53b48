"""Times roll-outs of the dialogue world on this machine.

python -m benchmarks.dialogue [KEY=VALUE ...]

Roll-outs a second of every reader, those of the language model with and without a memory of keys
and values, and how the cost of roll-outs and of a training step grows with rounds and concepts.
The options are those of python -m icl_align.train world=dialogue. On one device.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.growth import fit_exponent
from icl_align.config import Config
from icl_align.dialogue.additive import fitted_weights
from icl_align.dialogue.model import language_model
from icl_align.dialogue.readers import EVIDENCE
from icl_align.dialogue.rounds import plan_named, roll_out, roll_out_language_model
from icl_align.running.command import show
from icl_align.running.compose import compose_config
from icl_align.running.errors import one_line_errors
from icl_align.running.terminal import Terminal
from icl_align.running.training import init_state, loss_of

DIALOGUES, REPEATS = 512, 7
ROUNDS = (4, 8, 16, 32)
CONCEPTS = (2, 4, 8, 16)


class WholePasses(nnx.Module):
    """A language model that reads all tokens from anew for every row: what the memory spares."""

    def __init__(self, network: nnx.Module):
        self.network = network

    def begin(self, batch: tuple[int, ...], length: int) -> Any:
        """As of a language model."""
        return jnp.zeros((*batch, length), jnp.int32)

    def read_on(self, past: Any, tokens: Any, start: Any, added: Any = None) -> tuple[Any, Any]:
        """As of a language model."""
        past = jax.lax.dynamic_update_slice_in_dim(past, tokens, start, axis=1)
        rows = self.network(past)
        return jax.lax.dynamic_slice_in_dim(rows, start, tokens.shape[1], axis=1), past


def seconds_of(function: Callable[..., Any], *arguments: Any) -> list[float]:
    """Of REPEATS calls of a compiled function."""
    jax.block_until_ready(function(*arguments))
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        taken.append(time.perf_counter() - start)
    return taken


def exact_seconds(config: Config, name: str = "exact") -> list[float]:
    """Of roll-outs of a reader that needs no training."""
    plan = plan_named("careful", config.task, config.evaluation)
    weights = fitted_weights(config.task)

    def program(keys):
        return roll_out(config, EVIDENCE[name], plan, keys, weights).answer

    return seconds_of(jax.jit(program), jax.random.split(jax.random.key(0), DIALOGUES))


def model_seconds(
    config: Config, wrap: Callable[[nnx.Module], nnx.Module] = lambda network: network
) -> list[float]:
    """Of roll-outs of the language model."""
    graph, state = nnx.split(language_model(config, nnx.Rngs(0)))
    plan = plan_named("careful", config.task, config.evaluation)

    def program(state, keys):
        network = wrap(nnx.merge(graph, state))
        return roll_out_language_model(config, network, plan, keys).answer

    keys = jax.random.split(jax.random.key(0), DIALOGUES)
    return seconds_of(jax.jit(program), state, keys)


def step_seconds(config: Config) -> list[float]:
    """Of the loss and its gradient on one batch."""
    params = jax.tree.map(lambda leaf: leaf[0], init_state(config).params)
    keys = jax.random.split(jax.random.key(0), config.train.batch_size)
    return seconds_of(jax.jit(jax.grad(lambda p: loss_of(config, p, keys))), params)


def main(arguments: list[str]) -> None:
    """The command."""
    if {"-h", "--help"} & set(arguments):
        show(__doc__.strip())
        return
    with one_line_errors():
        config = compose_config(["world=dialogue", *arguments])
        terminal = Terminal()
        whole, cached = model_seconds(config, WholePasses), model_seconds(config)
        rows = [_row("language_model", cached), _row("language_model, whole passes", whole)]
        rows += [_row(name, exact_seconds(config, name)) for name in EVIDENCE]
        header = ["reader", "roll-outs/s", "seconds (range)"]
        terminal.table(f"{DIALOGUES} roll-outs at once, median of {REPEATS}", header, rows)
        ratio = np.median(whole) / np.median(cached)
        terminal.say(f"whole passes take {ratio:.1f} times as long as a memory of keys and values")
        growth = []
        for axis, values, of in (
            ("rounds", ROUNDS, lambda n: [f"task.rounds={n}"]),
            ("concepts", CONCEPTS, lambda n: [f"task.prior={[1 / n] * n}".replace(" ", "")]),
        ):
            sizes = [compose_config(["world=dialogue", *arguments, *of(n)]) for n in values]
            for name, measure in (
                ("exact", exact_seconds),
                ("language_model", model_seconds),
                ("training step", step_seconds),
            ):
                medians = [statistics.median(measure(size)) for size in sizes]
                found = fit_exponent(values, medians)
                cells = " ".join(f"{1e3 * median:.0f}" for median in medians)
                growth.append([name, axis, " ".join(map(str, values)), cells, str(found)])
        header = ["", "against", "sizes", "median ms", "exponent"]
        terminal.table("growth of the time", header, growth)


def _row(name: str, taken: list[float]) -> list[str]:
    median = statistics.median(taken)
    return [name, f"{DIALOGUES / median:.0f}", f"{median:.4f} ({min(taken):.4f}-{max(taken):.4f})"]


if __name__ == "__main__":
    main(sys.argv[1:])
