"""The toy world as the protocol of `icl_align.world` asks."""

import jax
import jax.numpy as jnp
from flax import nnx

from icl_align.world import Sample, Untrained

NUM_POINTS = 4


class Line(nnx.Module):
    """y = w x; it has no trunk."""

    def __init__(self, rngs):
        self.weight = nnx.Param(jax.random.normal(rngs.params(), ()))

    def __call__(self, x):
        return self.weight * x


class Toy:
    def _points(self, config, keys, shift=0.0):
        x = shift + jax.vmap(lambda key: jax.random.normal(key, (NUM_POINTS,)))(keys)
        return x, config.task.slope * x

    def sample(self, config, keys):
        return Sample(*self._points(config, keys))

    def given(self, config, arrays):
        return jnp.asarray(arrays)

    def shown(self, config, given, keys):
        return given / config.task.slope

    def learners(self, config):
        return {"zero": lambda given, keys: jnp.zeros_like(given)}

    def network(self, config, rngs):
        return Line(rngs)

    def num_tokens(self, config):
        return NUM_POINTS

    def num_tokens_measured(self, config):
        return NUM_POINTS

    def answers(self, config, network, shown):
        return network(shown)

    def loss(self, config, answers, given):
        return jnp.mean((answers - given) ** 2)

    def conditions(self, config):
        return {str(s): jnp.asarray(s, jnp.float32) for s in config.evaluation.shift}

    def untrained(self, config, condition, keys):
        _, y = self._points(config, keys, condition)
        return Untrained({"zero": {"distance": jnp.abs(y)}}, {"line": y}, {})

    def trained(self, config, condition, keys, network, needed):
        x, _ = self._points(config, keys, condition)
        return {"distance": jnp.abs(network(x) - needed["line"])}

    def figure(self, config, curves):
        from matplotlib.figure import Figure

        figure = Figure()
        axes = figure.subplots()
        for shift, quantities in curves["learners"]["network"].items():
            axes.plot(curves["points"], quantities["distance"]["mean"], label=shift)
        return figure


WORLD = Toy()
