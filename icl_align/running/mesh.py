"""A mesh of devices that train together: networks x contexts.

It has an axis `seeds`, along which the members of a state are divided, and an axis `batch`, along
which every batch of contexts is. One device is a mesh of one; nothing else changes.
"""

import math
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from icl_align.config import Config, ConfigError

SEEDS, BATCH = "seeds", "batch"


def make_mesh(config: Config, num_networks: int, devices: list[Any] | None = None) -> Mesh:
    """The devices as [seeds, batch], as `config.devices` asks.

    The networks are divided first, since they need not talk to each other: by the greatest common
    divisor of their number and the devices'. Then every batch, by as many of the devices left to
    each network as divide it evenly. The rest stay idle.

    Args:
      config: gives the sizes of both axes, where they are not null, and the batch.
      num_networks: members of the state: configurations times seeds.
      devices: by default all devices of all processes.

    Raises:
      ConfigError: an axis does not divide what lies along it, there are not so many devices, or a
        process would hold none of the mesh.
    """
    devices = jax.devices() if devices is None else devices
    batch_size = config.train.batch_size
    seeds, batch = config.devices.seeds, config.devices.batch
    if seeds is not None and num_networks % seeds:
        raise ConfigError("devices.seeds", seeds, f"must divide the {num_networks} networks")
    if batch is not None and batch_size % batch:
        raise ConfigError("devices.batch", batch, f"must divide train.batch_size={batch_size}")
    if seeds is None:
        seeds = math.gcd(num_networks, len(devices) // (batch or 1) or 1)
    if batch is None:
        left = len(devices) // seeds
        batch = max(n for n in range(1, max(left, 1) + 1) if batch_size % n == 0)
    if seeds * batch > len(devices):
        key, value = ("seeds", seeds) if seeds > len(devices) else ("batch", batch)
        raise ConfigError(
            f"devices.{key}",
            value,
            f"{seeds} x {batch} devices asked for, there are {len(devices)}",
        )
    used = np.asarray(devices[: seeds * batch]).reshape(seeds, batch)
    idle = jax.process_count() - len({device.process_index for device in used.flat})
    if idle:
        raise ConfigError(
            "devices.cluster",
            True,
            f"{seeds} x {batch} of {len(devices)} devices can be used, which leaves {idle} "
            f"processes without work: choose train.batch_size or num_seeds so that they divide",
        )
    return Mesh(used, (SEEDS, BATCH))


def divided(mesh: Mesh) -> NamedSharding:
    """Sharding of a state: its leading axis, the members, along the mesh's seeds."""
    return NamedSharding(mesh, P(SEEDS))


def everywhere(mesh: Mesh) -> NamedSharding:
    """Sharding of what every device holds whole."""
    return NamedSharding(mesh, P())
