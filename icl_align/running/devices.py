"""The devices of this process, how JAX uses them, and the cluster it may be part of.

In a cluster every process calls the same compiled programs in the same order. The process that
leads decides which, and is the only one that reads or writes files: see `crew.Crew`.
"""

import contextlib
import hashlib
import os
import platform
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from icl_align.config import ConfigError, DevicesConfig
from icl_align.running.shares import visible_cores


def _join_cluster(devices: DevicesConfig) -> None:
    """Makes this process one of those of the cluster; before anything asks JAX for a device."""
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
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / _kind_of_processor()))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


def set_up_command(devices: DevicesConfig | None = None) -> None:
    """JAX for a command: as `set_up_jax` has it, in its cluster, with a device that there is.

    What the environment says for other programs has no effect: everything is float32, with NumPy's
    promotion, and figures go to files.

    Args:
      devices: the cluster that the process may be part of.

    Raises:
      ConfigError: nothing says which processes there are, or JAX finds no device as asked for.
    """
    set_up_jax()
    os.environ["MPLBACKEND"] = "agg"
    if devices is not None:
        _join_cluster(devices)
    check_jax()


def check_jax() -> None:
    """JAX as programs here rely on it, with a device that there is.

    Raises:
      ConfigError: JAX finds no device as asked for.
    """
    jax.config.update("jax_enable_x64", False)
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    jax.config.update("jax_numpy_rank_promotion", "allow")
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        asked = os.environ.get("JAX_PLATFORMS") or jax.config.jax_platforms or ""
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            "JAX_PLATFORMS",
            asked,
            f"JAX finds no such device here ({reason}); unset it to get what there is, or say cpu; "
            "for a GPU install the extra cuda, for a TPU the extra tpu",
        ) from error


def cache_folder() -> Path:
    """Where things are kept that can be made again: `icl_align` in XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "icl_align"


def learners_folder() -> Path | None:
    """Where what needs no training is kept for later runs; None where there is no home."""
    try:
        return cache_folder() / "learners"
    except RuntimeError:
        return None


def _kind_of_processor() -> str:
    about = platform.processor() + platform.machine()
    with contextlib.suppress(OSError):
        text = Path("/proc/cpuinfo").read_text()
        about += "".join(line for line in text.splitlines() if line.startswith("flags"))[:5000]
    return hashlib.sha256(about.encode()).hexdigest()[:12]


def leads() -> bool:
    """Whether this process decides, reads and writes for all."""
    return jax.process_index() == 0


def compiler_options(mesh: Mesh, level: int) -> dict[str, Any]:
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
