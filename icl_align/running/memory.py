"""Whether a training fits in memory, asked before its arrays are made.

The state is counted: parameters and Adam's two moments, of every network. What a step needs beside
it is what the compiler says of the program.
"""

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import psutil
from jax.sharding import Mesh

from icl_align.config import TRAINING, Config, ConfigError, check, concerned, leaves, with_values
from icl_align.running.mesh import SEEDS, make_mesh
from icl_align.running.training import abstract_network

NOT_SIZES = ("seed", "train.steps", "train.log_every")
TRIES = 5  # sizes for which a program is compiled, to find one that fits
MOST_COMPILED_LAYERS = 8  # compiling takes longer with every block; all are alike

# A configuration -> the program of its steps, compiled.
Compile = Callable[[Config], Any]


def available_memory(devices: list[Any]) -> int:
    """Bytes that each of some devices of this process can still give, without the others' part."""
    stats = devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return available_on_host() // len(devices)


def available_on_host() -> int:
    """Bytes that this process can still have: of the machine, or of its control group, where a
    container or a scheduler sets a limit.
    """
    return min([psutil.virtual_memory().available, *_left_in_groups()])


def _left_in_groups(
    root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")
) -> Iterator[int]:
    """Bytes left in each control group of this process that has a limit, of either version."""
    names = {
        "": ("memory.max", "memory.current", "inactive_file"),
        "memory": ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in names:
                continue
            top = root / controllers
            limit, used, cache = names[controllers]
            group = top / path.lstrip("/")
            for folder in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):
                    stat = dict(
                        entry.split() for entry in (folder / "memory.stat").read_text().splitlines()
                    )
                    # Files that were read count as used, but make way.
                    held = int((folder / used).read_text()) - int(stat.get(cache, 0))
                    yield max(int((folder / limit).read_text()) - held, 0)  # "max": no limit
                if folder == top:
                    break


def state_bytes(config: Config) -> int:
    """Bytes of the parameters and Adam's moments of all networks of a configuration.

    From networks of one and of two blocks: all blocks are alike.
    """

    def of_parameters(num_layers):
        _, params = abstract_network(with_values(config, {"model.num_layers": num_layers}))
        return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params))

    one = of_parameters(1)
    more = (config.model.num_layers - 1) * (of_parameters(2) - one)
    return 3 * config.num_seeds * (one + more)


def refuse_state_that_cannot_fit(
    config: Config, mesh: Mesh, num_configs: int, compiled: Compile, fixed: bool = False
) -> None:
    """Before anything is made of the networks.

    Args:
      config: what the configurations share.
      mesh: the devices, each of which holds the networks of its place on the axis of seeds.
      num_configs: configurations that train together.
      compiled: the program of the steps of so many configurations.
      fixed: whether there is a run already whose options cannot change.

    Raises:
      ConfigError: the state, with the copy on the host from which it is saved, is larger than what
        there is; names the option that is most to blame, and a value with which all fits.
    """
    devices = mesh.local_devices
    there, needed = available_memory(devices), _state_on_a_device(config, mesh, num_configs)
    if needed <= there and num_configs * state_bytes(config) <= available_on_host():
        return
    about = (
        f"the networks and Adam's state need {_size(needed * len(devices))}, "
        f"there are {_size(there * len(devices))}"
    )
    raise _refusal(config, mesh, num_configs, about, None if fixed else compiled)


def refuse_step_that_cannot_fit(
    config: Config,
    mesh: Mesh,
    num_configs: int,
    program: Any,
    compiled: Compile,
    fixed: bool = False,
) -> None:
    """Before the first step, with the state in memory.

    Args:
      config, mesh, num_configs, compiled, fixed: as above.
      program: the compiled program of their steps.

    Raises:
      ConfigError: a step needs more than the devices have left; as above.
    """
    devices = mesh.local_devices
    there, needed = available_memory(devices), _temporary(program)
    if needed <= there:
        return
    about = (
        f"a step needs {_size(needed * len(devices))} beside the networks, "
        f"there are {_size(there * len(devices))}"
    )
    raise _refusal(config, mesh, num_configs, about, None if fixed else compiled)


# ------------------------------------------------------------------------------- a size that fits


def _refusal(
    config: Config, mesh: Mesh, num_configs: int, about: str, compiled: Compile | None
) -> ConfigError:
    """The error, with a value that would fit where one is found."""
    blamed = _blamed(config)
    # On a CPU batches are cut by themselves.
    keys = [] if mesh.local_devices[0].platform == "cpu" else ["devices.slice"]
    keys += blamed[:3]
    for key in keys if compiled is not None and jax.process_count() == 1 else []:
        fits = _largest_that_fits(config, key, num_configs, compiled)
        if fits is not None:
            named = key if key in blamed else blamed[0]
            allowed = f"cannot fit: {about}; {key}={fits} would fit"
            return ConfigError(named, _value(config, named), allowed)
    return ConfigError(blamed[0], _value(config, blamed[0]), f"cannot fit: {about}")


def _largest_that_fits(config: Config, key: str, num_configs: int, compiled: Compile) -> int | None:
    """A value of an option, below its own, with which state and step fit; None where none does."""

    def share(value, with_step=True):
        """Of what there is, that would be needed."""
        try:
            other = check(with_values(config, {key: value}))
            mesh = make_mesh(other, num_configs * other.num_seeds)
        except ConfigError:
            return math.inf
        needed = _state_on_a_device(other, mesh, num_configs)
        if with_step:
            needed += _step(other, compiled)
        return needed / max(available_memory(mesh.local_devices), 1)

    value = _largest_state(config, key, lambda value: share(value, with_step=False))
    shares: dict[int, float] = {}
    power = 2.0  # what is needed is a power of the value, nearly
    while value is not None and value not in shares and len(shares) < TRIES:
        shares[value] = now = share(value)
        if 0.5 < now <= 1:
            break
        if len(shares) > 1 and max(shares.values()) < math.inf:
            other, before = [*shares.items()][-2]
            power = min(max(math.log(before / now) / math.log(other / value), 0.5), 4.0)
        factor = 0.25 if now == math.inf else (0.9 / now) ** (1 / power)
        too_large = min((v for v, of in shares.items() if of > 1), default=_value(config, key))
        value = _round(config, key, min(int(value * factor), (too_large or value + 1) - 1))
    return max((value for value, of in shares.items() if of <= 1), default=None)


def _largest_state(config: Config, key: str, share: Callable[[int], float]) -> int | None:
    """The largest value, up to the option's own, with which the state alone fits."""
    low, high = 0, _value(config, key) or config.train.batch_size
    if share(high) <= 1:
        return high
    default = next(value for name, _, value in leaves(type(config)) if name == key)
    if share(min(default or 1, high)) > 1:
        return None
    while high - low > max(1, high // 50):
        middle = (low + high) // 2 if low else high // 2
        if share(_round(config, key, max(middle, 1))) <= 1:
            low = middle
        else:
            high = middle
    return _round(config, key, low) if low else None


def _state_on_a_device(config: Config, mesh: Mesh, num_configs: int) -> int | float:
    """Bytes; on a CPU with a device's part of the copy from which a checkpoint is written."""
    whole, devices = num_configs * state_bytes(config), mesh.local_devices
    copy = whole / len(devices) if devices[0].platform == "cpu" else 0
    return whole / mesh.shape[SEEDS] + copy


def _step(config: Config, compiled: Compile) -> int | float:
    """Bytes that a step needs on a device beside the state."""

    def of(num_layers):
        return _temporary(compiled(with_values(config, {"model.num_layers": num_layers})))

    layers, few = config.model.num_layers, MOST_COMPILED_LAYERS // 2
    if layers <= MOST_COMPILED_LAYERS:
        return of(layers)
    most = of(MOST_COMPILED_LAYERS)
    return most + (layers - MOST_COMPILED_LAYERS) * (most - of(few)) / few


def _temporary(program: Any) -> int:
    analysis = program.memory_analysis()
    return analysis.temp_size_in_bytes if analysis else 0


def _round(config: Config, key: str, value: int) -> int:
    """A number a person would choose, at most `value`, and one that goes with the others."""
    step = 10 ** max(len(str(value)) - 2, 0)
    if key == "model.width":
        heads = config.model.num_heads
        step = math.lcm(step, heads) if value >= math.lcm(step, heads) else heads
    return max(value // step * step, step)


def _blamed(config: Config) -> list[str]:
    """Options that are sizes, those first that exceed their defaults the most."""
    defaults = {key: value for key, _, value in leaves(type(config))}
    ratio = {
        key: value / (defaults[key] or 1)
        for key, field, value in leaves(config)
        if key in concerned(config, TRAINING) - set(NOT_SIZES)
        and isinstance(value, int)
        and not isinstance(value, bool)
    }
    return sorted(ratio, key=lambda key: -ratio[key])


def _value(config: Config, key: str) -> Any:
    return next(value for name, _, value in leaves(config) if name == key)


def _size(num_bytes: int | float) -> str:
    """In the largest unit of which there is one at least."""
    units = ["KiB", "MiB", "GiB", "TiB", "PiB"]
    power = min(max(int(math.log2(max(num_bytes, 1)) / 10), 1), len(units))
    return f"{num_bytes / 2 ** (10 * power):.3g} {units[power - 1]}"


def hand_back() -> None:
    """Hands memory that was freed back to the system, where the C library is glibc.

    Compilers free much of it in arenas of many threads, which keep it.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
