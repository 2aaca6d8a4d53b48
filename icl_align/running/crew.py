"""The processes that train together; alone, a process is a crew of one.

Process 0 leads: it alone reads and writes files, and tells the others what to call next. So they
all call the same compiled programs in the same order, which is what JAX asks of a cluster, and no
decision that depends on a clock, a file or a signal is ever made twice.
"""

import dataclasses
import functools
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from icl_align.config import Config
from icl_align.running.devices import compiler_options
from icl_align.running.evaluation import by_configuration
from icl_align.running.measuring import Measuring
from icl_align.running.memory import refuse_step_that_cannot_fit
from icl_align.running.mesh import divided, everywhere, make_mesh
from icl_align.running.packing import pack, unpack
from icl_align.running.run_folder import from_dict
from icl_align.running.training import (
    Member,
    TrainState,
    init_state,
    make_chunk,
    members_of,
    state_shapes,
)
from icl_align.world import Untrained

BEGIN, STEPS, HOST_STATE, WAIT, DISMISS, BEGIN_MEASURING, UNTRAINED, TRAINED = range(8)
# The same in every run: what a step rounds to may not depend on where chunks end.
MOST_STEPS_A_CHUNK = 500


class Crew:
    """A state on all devices of a mesh, the program that steps it, and those that measure it.

    The leader calls `begin`, then `steps`, `host_state` and `wait` as it likes, `begin_measuring`
    and what a `Measurer` has, and in the end `dismiss`, whatever happened. The others call
    `follow`.

    Args:
      stopping: whether this process was asked to stop.
    """

    def __init__(self, stopping: Callable[[], bool] = lambda: False):
        self._stopping = stopping
        self.stop_asked = False  # of any process, when it last heard of the others
        self._program: Any = None
        self._measuring: Any = None

    def begin(self, configs: list[Config], mesh: Mesh, restored: TrainState | None = None) -> None:
        """Makes the state of the members of all configurations: a restored host state, or fresh."""
        about = {
            "configs": [dataclasses.asdict(config) for config in configs],
            "restored": restored is not None,
        }
        self._tell_more(BEGIN, about)
        self._begin(configs, mesh, _from_leader(restored) if restored is not None else None)

    @property
    def num_parameters(self) -> int:
        """Trainable scalars of one member."""
        return sum(math.prod(leaf.shape[1:]) for leaf in jax.tree.leaves(self._shapes.params))

    def compiled(self) -> jax.stages.Compiled:
        """The program of `steps`, which `begin` starts to compile in the background."""
        return self._program.result()

    def refuse_step_that_cannot_fit(self, fixed: bool) -> None:
        """Raises ConfigError if a step needs more memory than there is.

        Args:
          fixed: whether there is a run already whose options cannot change.
        """
        number = len(self._configs)
        refuse_step_that_cannot_fit(
            self._configs[0],
            self._mesh,
            number,
            self.compiled(),
            functools.partial(compiled_steps, number),
            fixed,
        )

    def steps(self, num_steps: int) -> dict[str, np.ndarray]:
        """Takes some steps, at most MOST_STEPS_A_CHUNK; returns their metrics, [num_steps, s]."""
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

    def begin_measuring(self, places: list[int]) -> None:
        """Gets ready to measure the networks of configurations number `places`, on all devices."""
        self._tell_more(BEGIN_MEASURING, {"places": places})
        self._begin_measuring(places)

    @property
    def num_samples(self) -> int:
        """As `Measuring.num_samples`."""
        return self._measuring.num_samples

    def fitting_size(self, program: str) -> int:
        """As `Measuring.fitting_size`, by the leader's memory."""
        return self._measuring.fitting_size(program)

    def halve(self, program: str) -> bool:
        """As `Measuring.halve`; not in a cluster, where the others had memory enough."""
        return jax.process_count() == 1 and self._measuring.halve(program)

    def shapes(self, size: int) -> Untrained:
        """As `Measuring.shapes`."""
        return self._measuring.shapes(size)

    def fingerprint(self, condition: str, sample: int) -> str:
        """As `Measuring.fingerprint`."""
        return self._measuring.fingerprint(condition, sample)

    def untrained(self, condition: str, sample: int, first: int, size: int) -> Untrained:
        """As `Measuring.untrained`."""
        self._tell_more(UNTRAINED, {"which": (condition, sample, first, size)})
        return self._measuring.untrained(condition, sample, first, size)

    def trained(
        self, condition: str, sample: int, first: int, size: int, needed: Any
    ) -> dict[str, Any]:
        """As `Measuring.trained`."""
        self._tell_more(TRAINED, {"which": (condition, sample, first, size)})
        return self._measuring.trained(condition, sample, first, size, _from_leader(needed))

    def follow(self) -> int:
        """Does what the leader says until it dismisses; returns its exit status."""
        while True:
            command, number = self._tell()
            if command == DISMISS:
                return number
            if command == STEPS:
                self._steps(number)
            elif command == HOST_STATE:
                self._host_state()
            elif command != WAIT:
                about = json.loads(_from_leader(np.zeros(number, np.uint8)).tobytes())
                self._follow(command, about)

    def _follow(self, command: int, about: dict[str, Any]) -> None:
        """What the leader had more to say of."""
        if command == BEGIN:
            configs = [from_dict(values) for values in about["configs"]]
            members = members_of(*configs)
            restored = None
            if about["restored"]:
                restored = _from_leader(_zeros(state_shapes(configs[0], members)))
            self._begin(configs, make_mesh(configs[0], len(members.seed)), restored)
        elif command == BEGIN_MEASURING:
            self._begin_measuring(about["places"])
        elif command == UNTRAINED:
            self._measuring.untrained(*about["which"])
        elif command == TRAINED:
            size = about["which"][-1]
            needed = _from_leader(_zeros(self._measuring.shapes(size).needed))
            self._measuring.trained(*about["which"], needed)
        else:
            raise AssertionError(f"no command {command}")

    def _tell_more(self, command: int, about: dict[str, Any]) -> None:
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        self._tell(command, len(text))
        _from_leader(text)

    def _tell(self, command: int = WAIT, number: int = 0) -> tuple[int, int]:
        """What the leader says; everybody learns whether anybody was asked to stop."""
        said = np.array([[command, number, self._stopping()]], np.int32)
        if jax.process_count() > 1:
            said = multihost_utils.process_allgather(said[0])
        self.stop_asked = bool(said[:, 2].any())
        return int(said[0, 0]), int(said[0, 1])

    def _begin(self, configs: list[Config], mesh: Mesh, restored: TrainState | None) -> None:
        config, self._mesh = configs[0], mesh
        self._configs = configs
        self._members = _place(members_of(*configs), mesh)
        self._shapes = state_shapes(config, self._members)
        self._gather = jax.jit(lambda state: state, out_shardings=everywhere(mesh))
        # A run that has all its steps is only evaluated.
        if restored is None or restored.step[0] < config.train.steps:
            self._compile(config)
        if restored is None:
            # Compiled beside the program of the steps, and without LLVM's passes: it runs once.
            fresh = jax.jit(lambda m: pack(init_state(config, m), 1), out_shardings=divided(mesh))
            self._state = fresh.lower(self._members).compile(compiler_options(mesh, level=0))(
                self._members
            )
        else:
            self._state = _place(pack(restored, leading=1), mesh)

    def _compile(self, config: Config) -> None:
        """Starts to compile `steps` in the background."""
        lowered = _lowered_steps(config, self._members, self._mesh)
        background = ThreadPoolExecutor(1)
        self._program = background.submit(lowered.compile, compiler_options(self._mesh, level=1))
        background.shutdown(wait=False)

    def _begin_measuring(self, places: list[int]) -> None:
        params = by_configuration(self._configs, self._host_state().params)
        own = jax.tree.map(lambda leaf: leaf[np.array(places)], params)
        self._measuring = Measuring(self._configs[places[0]], own, jax.devices())

    def _steps(self, num_steps: int) -> dict[str, np.ndarray]:
        self._state, metrics = self.compiled()(self._members, self._state, np.int32(num_steps))
        return {name: np.asarray(values)[:num_steps] for name, values in metrics.items()}

    def _host_state(self) -> TrainState:
        state = self._state
        if jax.process_count() > 1:
            state = self._gather(state)
        copied = jax.tree.map(np.array, state)  # the next steps overwrite the state
        return unpack(copied, self._shapes, leading=1)


def compiled_steps(num_configs: int, config: Config) -> jax.stages.Compiled:
    """The program of the steps of so many configurations that are alike."""
    members = members_of(*[config] * num_configs)
    mesh = make_mesh(config, len(members.seed))
    return _lowered_steps(config, members, mesh).compile(compiler_options(mesh, level=0))


def _lowered_steps(config: Config, members: Member, mesh: Mesh) -> jax.stages.Lowered:
    # From shapes alone, so that a run that goes on has a new one's program to the last bit.
    shapes = jax.eval_shape(functools.partial(pack, leading=1), state_shapes(config, members))
    state = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=divided(mesh)), shapes
    )
    return make_chunk(config, MOST_STEPS_A_CHUNK, mesh).lower(members, state, np.int32(1))


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
