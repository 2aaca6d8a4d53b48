"""Devices that train together: a mesh of networks x contexts, and the processes that hold it.

The mesh has an axis `seeds`, along which the members of a state are divided, and an axis `batch`,
along which every batch of contexts is. One device is a mesh of one; nothing else changes.

In a cluster every process calls the same compiled programs in the same order. The process that
leads decides which, and is the only one that reads or writes files: see `crew.Crew`.
"""

import contextlib
import hashlib
import math
import os
import platform
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from icl_align.config import Config, ConfigError, DevicesConfig
from icl_align.shares import visible_cores

SEEDS, BATCH = "seeds", "batch"


def join_cluster(devices: DevicesConfig) -> None:
    """Makes this process one of those of the cluster; before anything asks JAX for a device.

    Raises:
      ConfigError: nothing says which processes there are.
    """
    if not devices.cluster or jax.distributed.is_initialized():
        return
    try:
        jax.distributed.initialize(devices.coordinator, devices.num_processes, devices.process_id)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            "devices.cluster",
            True,
            f"needs Slurm, Open MPI or a TPU pod, or else devices.coordinator=HOST:PORT, "
            f"devices.num_processes and devices.process_id ({reason})",
        ) from error


def set_up_jax(keep_programs: bool = True) -> None:
    """How JAX runs and compiles; before anything asks it for a device.

    Each core of a CPU that this process may use becomes a device, unless JAX_NUM_CPU_DEVICES says
    how many: cores that train on contexts of their own are faster than cores that share every small
    product. Programs do not say which lines of source they come from, which compiles them sooner;
    the named scopes of a profile stay.

    Args:
      keep_programs: whether compiled programs are kept for the next start, in
        JAX_COMPILATION_CACHE_DIR or else below ~/.cache, in a folder of this kind of processor: a
        home may be shared by machines that cannot run each other's programs.
    """
    jax.config.update("jax_traceback_in_locations_limit", 0)
    if "JAX_NUM_CPU_DEVICES" not in os.environ:
        with contextlib.suppress(RuntimeError):  # JAX has its devices already
            jax.config.update("jax_num_cpu_devices", max(1, len(visible_cores())))
    if not keep_programs:
        return
    if jax.config.jax_compilation_cache_dir is None:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = cache / "icl_align" / _kind_of_processor()
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def _kind_of_processor() -> str:
    about = platform.processor() + platform.machine()
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        about += "".join(line for line in text.splitlines() if line.startswith("flags"))[:5000]
    return hashlib.sha256(about.encode()).hexdigest()[:12]


def leads() -> bool:
    """Whether this process decides, reads and writes for all."""
    return jax.process_index() == 0


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
