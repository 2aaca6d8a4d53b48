"""The compiled programs of an evaluation, which divide its contexts among all devices.

One program measures what needs no training, the other measures networks. Both take a batch of
contexts of one fixed size; what they return has a leading axis of contexts, on the host.
"""

import functools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Key, UInt32

from icl_align.config import Config
from icl_align.running.devices import compiler_options
from icl_align.running.keys import evaluation_key, numbered_keys
from icl_align.running.memory import available_memory
from icl_align.running.mesh import everywhere
from icl_align.running.slices import slice_size
from icl_align.running.training import network_of
from icl_align.world import Untrained, world_of

PROGRAMS = ("untrained", "trained")
CONTEXTS = "contexts"  # the only axis of an evaluation's mesh
# Share of the free memory that one evaluation batch may take.
MEMORY_SHARE = 0.5
# Contexts of a slice of what needs no training, on a CPU; see benchmarks/NOTES.md.
CPU_UNTRAINED_SLICE = 16


class Measuring:
    """What a configuration's evaluation measures, for contexts of any numbers.

    Args:
      config: the options that the networks share.
      params: parameters with leading axes [c, s], configurations and seeds; the same on the host of
        every process.
      devices: by default those of this process.
    """

    def __init__(self, config: Config, params: Any, devices: list[Any] | None = None):
        devices = jax.local_devices() if devices is None else devices
        self._mesh = Mesh(np.asarray(devices), (CONTEXTS,))
        self._config, self._platform = config, devices[0].platform
        # On the host, where they are the same for every process.
        self._conditions = jax.tree.map(np.asarray, world_of(config).conditions(config))
        seed, seeds = config.evaluation.seed, range(config.seed, config.seed + config.num_seeds)
        if config.evaluation.own_contexts:
            self._keys = [_on_host(evaluation_key(seed, own)) for own in seeds]
            self._params = [
                jax.tree.map(lambda leaf, i=i: leaf[:, i : i + 1], params)
                for i in range(len(seeds))
            ]
        else:
            self._keys, self._params = [_on_host(evaluation_key(seed))], [params]
        self._programs: dict[tuple[str, int], _Compiling] = {}
        wanted = min(config.evaluation.batch_size, config.evaluation.num_contexts)
        self._sizes = dict.fromkeys(PROGRAMS, self._rounded(wanted))
        self._program("trained", self._sizes["trained"])  # needed in any case

    @property
    def num_samples(self) -> int:
        """Samples of contexts: one for all seeds, or one for each."""
        return len(self._keys)

    def fitting_size(self, program: str) -> int:
        """How many contexts a program takes at once: `evaluation.batch_size`, or as many as fit in
        memory, and a multiple of the number of devices.
        """
        while self._sizes[program] > self._mesh.size:
            analysis = self._program(program, self._sizes[program]).memory_analysis()
            needed = analysis.temp_size_in_bytes if analysis else 0
            budget = MEMORY_SHARE * available_memory(self._mesh.local_devices)
            if needed <= budget:
                break
            # Memory grows with the batch: go straight to the size that should fit.
            size = self._sizes[program]
            self._sizes[program] = self._rounded(min(size // 2, int(size * budget / needed)))
        return self._sizes[program]

    def halve(self, program: str) -> bool:
        """Has a program take half as many contexts from now on; False if it cannot."""
        size = self._sizes[program]
        self._sizes[program] = self._rounded(size // 2)
        return self._sizes[program] < size

    def untrained(self, condition: str, sample: int, first: int, size: int) -> Untrained:
        """What needs no training, on `size` contexts of a sample from number `first` on."""
        program = self._program("untrained", size)
        return jax.device_get(program(*self._arguments(condition, sample, first, size)))

    def trained(
        self, condition: str, sample: int, first: int, size: int, needed: Any
    ) -> dict[str, Any]:
        """What is measured of the networks [b, c, s, x], by quantity.

        Args:
          condition, sample, first, size: as in `untrained`.
          needed: of `untrained`, for these contexts.
        """
        program = self._program("trained", size)
        arguments = self._arguments(condition, sample, first, size)
        return jax.device_get(program(*arguments, self._params[sample], needed))

    def shapes(self, size: int) -> Untrained:
        """Shapes and types of what `untrained` returns."""
        return jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype),
            self._for_one.out_info,
        )

    def fingerprint(self, condition: str, sample: int) -> str:
        """All that the numbers of `untrained` depend on beside the contexts' numbers, as text.

        It is the program itself, for one context, with what it is called with: no option and no
        line of code that matters can be forgotten.
        """
        leaves = [*jax.tree.leaves(self._conditions[condition]), self._keys[sample]]
        return f"{self._text} {[leaf.tobytes() for leaf in leaves]}"

    @functools.cached_property
    def _for_one(self) -> jax.stages.Lowered:
        """`untrained` for one context, traced but not compiled."""
        with jax.default_matmul_precision("highest"):
            return jax.jit(self._untrained_of_slice).lower(*self._example(1))

    @functools.cached_property
    def _text(self) -> str:
        program = self._for_one.as_text()
        return f"{program} {jax.__version__} {jax.lib.__version__} {self._platform}"

    # ---------------------------------------------------------------------------------- programs

    def _rounded(self, size: int) -> int:
        across = self._mesh.size
        return -(-max(size, 1) // across) * across

    def _arguments(self, condition: str, sample: int, first: int, size: int) -> tuple:
        numbers = first + np.arange(size, dtype=np.int32)
        return self._conditions[condition], self._keys[sample], numbers

    def _example(self, size: int) -> tuple:
        return self._arguments(next(iter(self._conditions)), 0, 0, size)

    def _program(self, name: str, size: int) -> "_Compiling":
        """A program for batches of `size`; it compiles in the background until it is called."""
        if (name, size) not in self._programs:
            arguments = self._example(size)
            function = {"untrained": self._untrained, "trained": self._trained}[name]
            if name == "trained":
                arguments += self._params[0], self.shapes(size).needed
            # Accelerators round matrix products by default: too coarse for a regret.
            with jax.default_matmul_precision("highest"):
                lowered = jax.jit(function).lower(*arguments)
            options = compiler_options(self._mesh, level=1)
            self._programs[name, size] = _Compiling(lowered, options)
        return self._programs[name, size]

    def _untrained(
        self, condition: Any, key: UInt32[Array, " k"], indices: Int[Array, " b"]
    ) -> Any:
        def share(condition, key, indices):
            size = CPU_UNTRAINED_SLICE if self._platform == "cpu" else len(indices)
            return _in_slices(
                lambda own: self._untrained_of_slice(condition, key, own), indices, size
            )

        return self._divided(share, 1)(condition, key, indices)

    def _untrained_of_slice(
        self, condition: Any, key: UInt32[Array, " k"], indices: Int[Array, " b"]
    ) -> Untrained:
        keys = _keys_of(key, indices)
        return world_of(self._config).untrained(self._config, condition, keys)

    def _trained(
        self,
        condition: Any,
        key: UInt32[Array, " k"],
        indices: Int[Array, " b"],
        params: Any,
        needed: Any,
    ) -> Any:
        world, network = world_of(self._config), network_of(self._config)

        def share(condition, key, params, indices, needed):
            def of_slice(both):
                indices, needed = both
                keys = _keys_of(key, indices)

                def one(params):
                    return world.trained(self._config, condition, keys, network(params), needed)

                over = jax.lax.map if self._platform == "cpu" else lambda f, xs: jax.vmap(f)(xs)
                values = over(lambda own: over(one, own), params)  # [c, s, b, x]
                return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 2, 0), values)

            tokens = world.num_tokens_measured(self._config)
            size = slice_size(self._config, tokens, 1, len(indices), self._platform)
            return _in_slices(of_slice, (indices, needed), size)

        return self._divided(share, 2)(condition, key, params, indices, needed)

    def _divided(self, function: Any, num_divided: int) -> Any:
        """`function` on every device, its last `num_divided` arguments and its results cut along
        their leading axis.
        """

        def call(*arguments):
            whole = len(arguments) - num_divided
            found = jax.shard_map(
                function,
                mesh=self._mesh,
                in_specs=(*[P()] * whole, *[P(CONTEXTS)] * num_divided),
                out_specs=P(CONTEXTS),
                check_vma=False,
            )(*arguments)
            if jax.process_count() > 1:  # every process reads all of it
                found = jax.lax.with_sharding_constraint(found, everywhere(self._mesh))
            return found

        return call


def _on_host(key: Key[Array, ""]) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def _keys_of(key: UInt32[Array, " k"], indices: Int[Array, " b"]) -> Key[Array, " b"]:
    return numbered_keys(jax.random.wrap_key_data(key), indices)


class _Compiling:
    """A program that compiles in the background, and waits for that when it is called."""

    def __init__(self, lowered: jax.stages.Lowered, options: dict[str, Any]):
        background = ThreadPoolExecutor(1)
        self._compiled = background.submit(lowered.compile, options)
        background.shutdown(wait=False)

    def memory_analysis(self) -> Any:
        """Of the program; None where the platform says nothing."""
        return self._compiled.result().memory_analysis()

    def __call__(self, *arguments: Any) -> Any:
        return self._compiled.result()(*arguments)


def _in_slices(function: Any, xs: Any, size: int) -> Any:
    """`function` of arrays with a leading axis, called with at most `size` entries at a time."""
    length = len(jax.tree.leaves(xs)[0])
    if size >= length:
        return function(xs)
    whole = length // size * size
    parts = jax.tree.map(lambda x: x[:whole].reshape(-1, size, *x.shape[1:]), xs)
    found = jax.tree.map(
        lambda leaf: leaf.reshape(whole, *leaf.shape[2:]), jax.lax.map(function, parts)
    )
    if whole == length:
        return found
    rest = function(jax.tree.map(lambda x: x[whole:], xs))
    return jax.tree.map(lambda *both: jnp.concatenate(both), found, rest)
