"""A training of this package that says how well it refines."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.jax_worker import Training
from icl_align.alignment.contexts import Context, sample_contexts
from icl_align.alignment.metrics import refinement_error
from icl_align.running.keys import evaluation_keys
from icl_align.running.training import network_of


class Refining(Training):
    """As `Training`, with the refinement error of what is trained."""

    learner = None

    def draw(self, path: str, count: int) -> dict[str, Any]:
        """Writes `count` evaluation contexts without reward noise."""
        draw = jax.jit(lambda keys: sample_contexts(self.config.task, keys, 0.0))
        contexts = draw(evaluation_keys(self.config.evaluation.seed, jnp.arange(count)))
        np.savez(path, **{name: np.asarray(a) for name, a in contexts._asdict().items()})
        return {}

    def error(self, path: str, attempts: int) -> dict[str, float]:
        """Mean refinement error of the first seed on the contexts of file `path`."""
        if self.learner is None:
            network = network_of(self.config)

            def mean_error(params, context):
                row = network(params)(context)[:, attempts : attempts + 1]
                return jnp.mean(refinement_error(row, context))

            self.learner = jax.jit(mean_error)
            with np.load(path) as arrays:
                self.contexts = Context(**{name: jnp.asarray(arrays[name]) for name in arrays})
        params = jax.tree.map(lambda leaf: leaf[0], self.crew.host_state().params)
        return {"error": float(self.learner(params, self.contexts))}
