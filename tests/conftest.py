"""Shared by all tests: quick compilation, the hypothesis profile, and a sampler of contexts."""

import atexit
import functools
import os
import shutil
import signal
import tempfile
import time

import hypothesis
import jax
import jax.numpy as jnp
import pytest

from icl_align.alignment.contexts import sample_contexts
from icl_align.alignment.options import TaskConfig
from runs import ROOT

# What tests rely on is set here, not inherited: a shell that starts them in the background ignores
# SIGINT, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, signal.SIG_DFL)
os.umask(0o022)
os.environ |= {"TZ": "UTC", "LC_ALL": "C.UTF-8", "COLUMNS": "80"}
time.tzset()
for name in list(os.environ):
    if name.startswith(("JAX_", "WANDB_", "XLA_", "HYDRA_", "CUDA_")):
        del os.environ[name]
for name in ("PYTHONIOENCODING", "MPLBACKEND", "FORCE_COLOR", "NO_COLOR"):
    os.environ.pop(name, None)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = "1"
# One folder for all that tests and their processes leave, removed at the end.
OWN_FOLDER = "ICL_ALIGN_TESTS"
if OWN_FOLDER not in os.environ:
    os.environ[OWN_FOLDER] = tempfile.mkdtemp(prefix="icl_align_tests_")
    # The process that started the others removes it, whatever ends it but a kill.
    atexit.register(shutil.rmtree, os.environ[OWN_FOLDER], ignore_errors=True)
os.environ["TMPDIR"] = os.environ[OWN_FOLDER]
for name in ("XDG_CACHE_HOME", "WANDB_CACHE_DIR"):  # a part of W&B reads only its own
    os.environ[name] = os.path.join(os.environ[OWN_FOLDER], "cache")
os.environ["XDG_DATA_HOME"] = os.path.join(os.environ[OWN_FOLDER], "data")
tempfile.tempdir = None  # it is read anew
# Programs here run once on tiny arrays: compiling them quickly matters more than their speed. Runs
# in this process, in the other workers and in processes of their own share what is compiled.
QUICKLY = "--xla_backend_optimization_level=0"
if jax.__version_info__[:2] == (0, 10):  # a flag that another version may not know ends the process
    QUICKLY += " --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = QUICKLY
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ[OWN_FOLDER], "programs")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
# What JAX has read from the environment when it was imported, above.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 1)
jax.config.update("jax_enable_x64", False)
jax.config.update("jax_numpy_dtype_promotion", "standard")
jax.config.update("jax_numpy_rank_promotion", "allow")
jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.05)
jax.config.update("jax_traceback_in_locations_limit", 0)  # as in a run; compiles sooner


hypothesis.settings.register_profile("icl_align", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("icl_align")

MOST_CONTEXTS = 4000


@pytest.fixture(scope="session")
def draw():
    """draw(num_contexts, reward_noise, seed, **task options) -> Context.

    One program for each set of options: MOST_CONTEXTS are drawn and the first few kept.
    """

    @functools.cache
    def sampler(options):
        task = TaskConfig(**dict(options))
        return jax.jit(lambda keys, p: sample_contexts(task, keys, p))

    @functools.cache
    def most(options, reward_noise, seed):
        keys = jax.random.split(jax.random.key(seed), MOST_CONTEXTS)
        return jax.device_get(sampler(options)(keys, reward_noise))

    def draw(num_contexts, reward_noise=0.0, seed=0, **options):
        contexts = most(tuple(sorted(options.items())), float(reward_noise), seed)
        return jax.tree.map(lambda array: jnp.asarray(array[:num_contexts]), contexts)

    return draw


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """A copy of the packages in which the toy world is registered, for what knows no world."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in ("icl_align", "conf", "experiments"):
        shutil.copytree(ROOT / package, folder / package)
    own = ROOT / "tests" / "toy"
    (folder / "icl_align" / "toy").mkdir()
    for name in ("options.py", "world.py"):
        shutil.copy(own / name, folder / "icl_align" / "toy")
    shutil.copy(own / "toy.yaml", folder / "conf" / "world")
    shutil.copy(own / "study.py", folder / "experiments" / "toy.py")
    registry = folder / "icl_align" / "world.py"
    text = registry.read_text()
    assert text.count('WORLDS = ("alignment",') == 1
    registry.write_text(text.replace('WORLDS = ("alignment",', 'WORLDS = ("toy", "alignment",'))
    return folder
