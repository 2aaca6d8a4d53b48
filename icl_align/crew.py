"""The processes that train together; alone, a process is a crew of one.

Process 0 leads: it alone reads and writes files, and tells the others what to call next. So they
all call the same compiled programs in the same order, which is what JAX asks of a cluster, and no
decision that depends on a clock, a file or a signal is ever made twice.
"""

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from icl_align.config import Config
from icl_align.devices import divided, everywhere, make_mesh
from icl_align.packing import pack, unpack
from icl_align.run_folder import from_dict
from icl_align.training import (
    TrainState,
    init_state,
    make_chunk,
    members_of,
    state_shapes,
)

BEGIN, STEPS, HOST_STATE, WAIT, DISMISS = range(5)
# A chunk never has more steps, so that its metrics stay small.
MOST_STEPS_A_CHUNK = 500


class Crew:
    """A state on all devices of a mesh, and the program that steps it.

    The leader calls `begin`, then `steps`, `host_state` and `wait` as it likes, and in the end
    `dismiss`, whatever happened. The others call `follow`.

    Args:
      stopping: whether this process was asked to stop.
    """

    def __init__(self, stopping: Callable[[], bool] = lambda: False):
        self._stopping = stopping
        self.stop_asked = False  # of any process, when it last heard of the others
        self._program: Any = None

    def begin(self, configs: list[Config], mesh: Mesh, restored: TrainState | None = None) -> None:
        """Makes the state of the members of all configurations: a restored host state, or fresh."""
        about = {
            "configs": [dataclasses.asdict(config) for config in configs],
            "restored": restored is not None,
        }
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        self._tell(BEGIN, len(text))
        _from_leader(text)
        self._begin(configs, mesh, _from_leader(restored) if restored is not None else None)

    @property
    def num_parameters(self) -> int:
        """Trainable scalars of one member."""
        return sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(self._state.params))

    def compiled(self) -> jax.stages.Compiled:
        """The program of `steps`, which `begin` starts to compile in the background."""
        return self._program.result()

    def steps(self, num_steps: int) -> dict[str, np.ndarray]:
        """Takes some steps, at most `most` at once; returns their metrics, [num_steps, s]."""
        self._tell(STEPS, num_steps)
        return self._steps(num_steps)

    def host_state(self) -> TrainState:
        """A copy of the whole state on the host."""
        self._tell(HOST_STATE)
        return self._host_state()

    def wait(self) -> None:
        """Hears of the others while there is nothing for them to do."""
        self._tell(WAIT)

    def dismiss(self, status: int) -> None:
        """Lets the others go, with this exit status."""
        self._tell(DISMISS, status)

    def follow(self) -> int:
        """Does what the leader says until it dismisses; returns its exit status."""
        while True:
            command, number = self._tell()
            if command == BEGIN:
                about = json.loads(_from_leader(np.zeros(number, np.uint8)).tobytes())
                configs = [from_dict(values) for values in about["configs"]]
                members = members_of(*configs)
                restored = None
                if about["restored"]:
                    restored = _from_leader(_zeros(state_shapes(configs[0], members)))
                self._begin(configs, make_mesh(configs[0], len(members.seed)), restored)
            elif command == STEPS:
                self._steps(number)
            elif command == HOST_STATE:
                self._host_state()
            elif command == DISMISS:
                return number

    def _tell(self, command: int = WAIT, number: int = 0) -> tuple[int, int]:
        """What the leader says; everybody learns whether anybody was asked to stop."""
        said = np.array([[command, number, self._stopping()]], np.int32)
        if jax.process_count() > 1:
            said = multihost_utils.process_allgather(said[0])
        self.stop_asked = bool(said[:, 2].any())
        return int(said[0, 0]), int(said[0, 1])

    def _begin(self, configs: list[Config], mesh: Mesh, restored: TrainState | None) -> None:
        config, self._mesh = configs[0], mesh
        self.most = min(MOST_STEPS_A_CHUNK, config.train.checkpoint_every, config.train.steps)
        self._members = _place(members_of(*configs), mesh)
        self._shapes = state_shapes(config, self._members)
        self._gather = jax.jit(lambda state: state, out_shardings=everywhere(mesh))
        # A run that has all its steps is only evaluated.
        if restored is None or restored.step[0] < config.train.steps:
            self._compile(config)
        if restored is None:
            # Compiled beside the program of the steps, and without LLVM's passes: it runs once.
            fresh = jax.jit(lambda m: pack(init_state(config, m), 1), out_shardings=divided(mesh))
            self._state = fresh.lower(self._members).compile(_options(mesh, level=0))(self._members)
        else:
            self._state = _place(pack(restored, leading=1), mesh)

    def _compile(self, config: Config) -> None:
        """Starts to compile `steps` in the background."""
        # From shapes alone, so that a run that goes on has a new one's program to the last bit.
        state = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=divided(self._mesh)),
            jax.eval_shape(functools.partial(pack, leading=1), self._shapes),
        )
        chunk = make_chunk(config, self.most, self._mesh)
        lowered = chunk.lower(self._members, state, np.int32(1))
        background = ThreadPoolExecutor(1)
        self._program = background.submit(lowered.compile, _options(self._mesh, level=1))
        background.shutdown(wait=False)

    def _steps(self, num_steps: int) -> dict[str, np.ndarray]:
        self._state, metrics = self.compiled()(self._members, self._state, np.int32(num_steps))
        return {name: np.asarray(values)[:num_steps] for name, values in metrics.items()}

    def _host_state(self) -> TrainState:
        state = self._state
        if jax.process_count() > 1:
            state = self._gather(state)
        copied = jax.tree.map(np.array, state)  # the next steps overwrite the state
        return unpack(copied, self._shapes, leading=1)


def _options(mesh: Mesh, level: int) -> dict[str, Any]:
    """Compiler options: on a CPU, LLVM's optimisation level, unless XLA_FLAGS says another.

    Level 1 compiles in three quarters of the usual level's time to programs that are as fast.
    """
    if mesh.devices.flat[0].platform != "cpu":
        return {}
    options: dict[str, Any] = {}
    if mesh.local_mesh.size > 1:  # each is a core: see `devices.set_up_jax`
        options["xla_cpu_multi_thread_eigen"] = False
    if "xla_backend_optimization_level" not in os.environ.get("XLA_FLAGS", ""):
        options["xla_backend_optimization_level"] = level
    return options


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda array: np.zeros(array.shape, array.dtype), shapes)


def _from_leader(tree: Any) -> Any:
    """The leader's host arrays, in every process; the others pass any of the same shapes."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(tree))


def _place(tree: Any, mesh: Mesh) -> Any:
    """Arrays with a leading axis of members, the same in every process, onto the mesh."""

    def one(leaf):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, divided(mesh), lambda part: leaf[part])

    return jax.tree.map(one, tree)
