"""Contenders in JAX: a training of this package, two of its parts, and the machine's peak."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from benchmarks.worker import Contender
from icl_align.attention import attend
from icl_align.running.compose import compose_config
from icl_align.running.crew import MOST_STEPS_A_CHUNK, Crew
from icl_align.running.devices import set_up_jax
from icl_align.running.keys import training_keys
from icl_align.running.mesh import make_mesh
from icl_align.running.training import abstract_network
from icl_align.world import world_of


class JaxContender(Contender):
    """What all contenders in JAX share."""

    def device_peak(self) -> int | None:
        """As in `Contender`."""
        device = jax.local_devices()[0]
        statistics = None if device.platform == "cpu" else device.memory_stats()
        return (statistics or {}).get("peak_bytes_in_use")


def device_facts() -> dict[str, str]:
    """What JAX computes on."""
    device = jax.local_devices()[0]
    return {"platform": device.platform, "device": device.device_kind}


class Training(JaxContender):
    """Training steps as `python -m icl_align.train` makes them, on one accelerator or all cores.

    Args:
      overrides: of the configuration.
    """

    def __init__(self, overrides: list[str]):
        self.config = compose_config(overrides)

    def build(self) -> dict[str, Any]:
        """Compiles and does the first step."""
        set_up_jax(keep_programs=False)  # as the command does
        devices = jax.local_devices()
        on_cpu = devices[0].platform == "cpu"
        mesh = make_mesh(self.config, self.config.num_seeds, devices if on_cpu else devices[:1])
        self.crew = Crew()
        begun = time.perf_counter()
        self.crew.begin([self.config], mesh)
        program = self.crew.compiled()
        seconds = time.perf_counter() - begun
        self.steps(1)
        analysis = program.memory_analysis()
        return {
            **device_facts(),
            "compile_seconds": seconds,
            "parameters": self.crew.num_parameters,
            "temporary_bytes": analysis.temp_size_in_bytes * mesh.size if analysis else None,
        }

    def steps(self, count: int) -> dict[str, float]:
        """Does `count` steps; the seconds and the last loss."""
        begun = time.perf_counter()
        left = count
        while left:
            size = min(left, MOST_STEPS_A_CHUNK)
            metrics = self.crew.steps(size)
            left -= size
        loss = metrics["train/loss"][-1]
        return {"seconds": time.perf_counter() - begun, "loss": float(loss.mean())}


class Repeated(JaxContender):
    """Steps `carry -> carry` in one compiled loop; each reads what the last one wrote.

    A subclass gives `start`, the first carry, and `step`.
    """

    def start(self) -> Any:
        """The first carry."""
        raise NotImplementedError

    def step(self, carry: Any) -> Any:
        """One step."""
        raise NotImplementedError

    def build(self) -> dict[str, Any]:
        """Compiles and does the first step."""
        self.carry = self.start()

        def run(carry, count):
            return lax.fori_loop(0, count, lambda _, one: self.step(one), carry)

        self.program = jax.jit(run, donate_argnums=0).lower(self.carry, 1).compile()
        self.steps(1)
        return device_facts()

    def steps(self, count: int) -> dict[str, float]:
        """Does `count` steps; the seconds."""
        begun = time.perf_counter()
        self.carry = jax.block_until_ready(self.program(self.carry, np.int32(count)))
        return {"seconds": time.perf_counter() - begun}


class Loss(Repeated):
    """The training loss of all prefixes and its gradient, without the model.

    Args:
      overrides: of the configuration.
    """

    def __init__(self, overrides: list[str]):
        self.config = compose_config(overrides)

    def start(self) -> Any:
        """Answers, and what they are judged by."""
        sample = world_of(self.config).sample(
            self.config, training_keys(0, 0, self.config.train.batch_size)
        )
        graph, params = abstract_network(self.config)
        shape = nnx.eval_shape(
            lambda params: nnx.merge(graph, nnx.State(params))(sample.shown), params
        )
        return jax.random.normal(jax.random.key(0), shape.shape), sample.given

    def step(self, carry: Any) -> Any:
        """Gradient descent on the answers."""
        answers, given = carry
        world = world_of(self.config)
        gradient = jax.grad(lambda a: world.loss(self.config, a, given))(answers)
        # Other contexts every step, or XLA would do what depends on them alone once, before.
        return answers - 0.1 * gradient, jax.tree.map(lambda x: jnp.roll(x, 1, axis=0), given)


class Attention(Repeated):
    """Attention of all layers and its gradient, from queries, keys and values, no projections.

    Args:
      overrides: of the configuration.
    """

    def __init__(self, overrides: list[str]):
        self.config = compose_config(overrides)

    def start(self) -> Any:
        """Queries, keys and values of all heads."""
        model, batch_size = self.config.model, self.config.train.batch_size
        tokens = world_of(self.config).num_tokens(self.config)
        width = model.width // model.num_heads
        shape = (3, batch_size, model.num_heads, tokens, width)
        return jax.random.normal(jax.random.key(0), shape)

    def step(self, carry: Any) -> Any:
        """One layer after the other, each on what the gradient of the last one changed."""
        tokens = carry.shape[-2]
        visible = jnp.tril(jnp.ones((tokens, tokens), bool))

        def layer(_, qkv):
            out, pull = jax.vjp(lambda qkv: attend(self.config.model.attention, *qkv, visible), qkv)
            return qkv - 0.1 * pull(out)[0]

        return lax.fori_loop(0, self.config.model.num_layers, layer, carry)


class Product(Repeated):
    """A product of two square matrices.

    Args:
      size: of the matrices.
      dtype: float32 or bfloat16.
    """

    def __init__(self, size: int, dtype: str):
        self.size, self.dtype = size, dtype

    def start(self) -> Any:
        """Two matrices that neither grow nor shrink a third."""
        keys = jax.random.split(jax.random.key(0))
        left, right = (jax.random.normal(k, (self.size, self.size)) for k in keys)
        return left.astype(self.dtype), (right / self.size**0.5).astype(self.dtype)

    def step(self, carry: Any) -> Any:
        """The first becomes the product of both."""
        left, right = carry
        return left @ right, right


class Copy(Repeated):
    """A large array read and written once, on JAX's device.

    Args:
      num_bytes: of the array.
    """

    def __init__(self, num_bytes: int):
        self.num_bytes = num_bytes

    def start(self) -> Any:
        """The array."""
        return jnp.arange(self.num_bytes // 4, dtype=jnp.float32)

    def step(self, carry: Any) -> Any:
        """A pass over the array that cannot be left out."""
        return -carry
