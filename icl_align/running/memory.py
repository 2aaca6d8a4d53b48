"""Whether a training fits in memory, asked before its arrays are made.

The state is counted: parameters and Adam's two moments, of every network. What a step needs beside
it is what the compiler says of the program.
"""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import psutil
from jax.sharding import Mesh

from icl_align.config import TRAINING, Config, ConfigError, check, concerned, leaves, with_values
from icl_align.running.mesh import SEEDS
from icl_align.running.training import abstract_network

NOT_SIZES = ("seed", "train.steps", "train.log_every")
TRIES = 4  # programs compiled to find a size that fits


def available_memory(devices: list[Any]) -> int:
    """Bytes that each of some devices of this process can still give, without the others' part."""
    stats = devices[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    return _available_on_host() // len(devices)


def _available_on_host() -> int:
    """Bytes that this process can still have: of the machine, or of its control group, where a
    container or a scheduler sets a limit.
    """
    available = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError, IndexError):
        root = Path("/sys/fs/cgroup")
        own = root / Path("/proc/self/cgroup").read_text().split("::/")[1].splitlines()[0]
        for group in (own, *own.parents):
            with contextlib.suppress(OSError, ValueError):
                limit = int((group / "memory.max").read_text())  # "max" where there is none
                used = int((group / "memory.current").read_text())
                available = min(available, max(limit - used, 0))
    return available


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


def refuse_state_that_cannot_fit(config: Config, mesh: Mesh, num_configs: int = 1) -> None:
    """Before anything is made of the networks.

    Args:
      config: what the configurations share.
      mesh: the devices, each of which holds the networks of its place on the axis of seeds.
      num_configs: configurations that train together.

    Raises:
      ConfigError: the state is larger than what a device, or the host that saves it, has left;
        names the option that is most to blame, and a value that would fit.
    """
    devices = mesh.local_devices
    on_host = devices[0].platform == "cpu"
    budget = available_memory(devices)

    def needed(config):
        whole = num_configs * state_bytes(config)
        on_a_device = 2 * whole / mesh.shape[SEEDS]  # gradient and update take as much, nearly
        # A checkpoint is written from a copy on the host.
        return on_a_device + whole / len(devices) if on_host else on_a_device

    if needed(config) <= budget:
        return
    key, fits = _largest_that_fits(config, lambda other: needed(other) <= budget)
    about = (
        f"parameters, gradient and Adam's state need {_size(needed(config) * len(devices))}, "
        f"there are {_size(budget * len(devices))}"
    )
    raise _refusal(config, key, about, fits)


def refuse_step_that_cannot_fit(
    config: Config, mesh: Mesh, program: Any, compiled: Callable[[Config], Any]
) -> None:
    """Before the first step, with the state in memory.

    Args:
      config: what the configurations that train together share.
      mesh: the devices.
      program: the compiled program of their steps.
      compiled: that of another configuration.

    Raises:
      ConfigError: a step needs more than the devices have left; as above.
    """
    devices = mesh.local_devices
    budget, needed = available_memory(devices), _needed(program)
    if needed <= budget:
        return
    about = (
        f"a step needs {_size(needed * len(devices))} beside the networks, "
        f"there are {_size(budget * len(devices))}"
    )
    keys = [] if devices[0].platform == "cpu" else ["devices.slice"]  # there it is cut by itself
    keys.append(_blamed(config)[0])
    for key in keys if jax.process_count() == 1 else []:
        found = _largest_whose_step_fits(config, key, needed, budget, compiled)
        if found is not None:
            raise _refusal(config, key, about, found)
    raise _refusal(config, keys[-1], about, None)


def _largest_whose_step_fits(
    config: Config, key: str, needed: int, budget: int, compiled: Callable[[Config], Any]
) -> int | None:
    """As the compiler says, of a few values; what is needed is a power of the value, nearly."""
    value = _value(config, key) or config.train.batch_size
    tried, power, fits = [(value, needed)], 2.0, None
    for _ in range(TRIES):
        value, taken = tried[-1]
        value = _round(config, key, int(value * (0.9 * budget / taken) ** (1 / power)))
        if value in dict(tried):
            break
        try:
            taken = _needed(compiled(check(with_values(config, {key: value}))))
        except (ConfigError, ValueError):
            break
        if taken <= budget:
            fits = max(value, fits or 0)
        slope = math.log(tried[-1][1] / taken) / math.log(tried[-1][0] / value)
        power = min(max(slope, 0.5), 4.0)
        tried.append((value, taken))
        if 0.5 * budget < taken <= budget:
            break
    return fits


def _needed(program: Any) -> int:
    analysis = program.memory_analysis()
    return analysis.temp_size_in_bytes if analysis else 0


def _largest_that_fits(config: Config, fits: Callable[[Config], bool]) -> tuple[str, int | None]:
    """The option to blame, and its largest value that fits; None where none does."""
    defaults = {key: value for key, _, value in leaves(type(config))}
    for key in _blamed(config):
        if not fits(with_values(config, {key: min(defaults[key] or 1, _value(config, key))})):
            continue
        low, high = 0, _value(config, key)  # low fits, or is none; high does not
        while high - low > max(1, high // 50):
            middle = (low + high) // 2 if low else high // 2
            value = _round(config, key, middle)
            if fits(with_values(config, {key: max(value, 1)})):
                low = middle
            else:
                high = middle
        value = _round(config, key, low)
        if low and fits(with_values(config, {key: value})):
            return key, value
    return _blamed(config)[0], None  # of several that are too large


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


def _refusal(config: Config, key: str, about: str, fits: int | None) -> ConfigError:
    hint = f"; {key}={fits} would fit" if fits else ""
    return ConfigError(key, _value(config, key), f"cannot fit: {about}{hint}")


def _size(num_bytes: int | float) -> str:
    """In the largest unit of which there is one at least."""
    units = ["KiB", "MiB", "GiB", "TiB", "PiB"]
    power = min(max(int(math.log2(max(num_bytes, 1)) / 10), 1), len(units))
    return f"{num_bytes / 2 ** (10 * power):.3g} {units[power - 1]}"
