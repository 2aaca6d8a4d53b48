"""icl_align from Python: what the commands do, on the same code, for notebooks and scripts.

Arrays may be NumPy's or JAX's; they have a leading axis of contexts. What the user set in JAX (64
bits, strict promotion) stays as it is, and has no effect here.

Examples:
  >>> import icl_align
  >>> run = icl_align.train("+scale=smoke", "wandb.mode=disabled", folder="run")
  >>> run = icl_align.load("run")  # the same, at any later time
  >>> run.config.model.num_layers, run.seeds, run.step
  (1, [0], 20)
  >>> curve = run.curves["learners"]["transformer"]["0.0"]["refinement_error"]
  >>> len(curve["mean"]), len(curve["low"])  # after 0 to 20 attempts
  (21, 21)

  Contexts, and what a network and the other learners answer to them:

  >>> contexts = icl_align.sample(run.config, num_contexts=3)
  >>> contexts.responses.shape, contexts.rewards.shape  # contexts, attempts, dimension
  ((3, 20, 5), (3, 20))
  >>> run.predict(contexts).shape  # contexts, attempts read (0 to 20), dimension
  (3, 21, 5)
  >>> run.predict((contexts.query, contexts.responses[:, :2], contexts.rewards[:, :2])).shape
  (3, 3, 5)
  >>> icl_align.learners(run.config)["best_attempt"](contexts).shape
  (3, 21, 5)

  The same network without the bias of its read-out:

  >>> def without_bias(params):
  ...     params["read_out"]["bias"] = 0 * params["read_out"]["bias"]
  ...     return params
  >>> run.changed(without_bias).predict(contexts).shape
  (3, 21, 5)

  Other curves of the same networks:

  >>> options = ["evaluation.reward_noise=[0.1]", "evaluation.num_contexts=8"]
  >>> list(icl_align.evaluate(run, *options)["learners"]["gradient_descent"])
  ['0.1']
"""

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl_align.config import Config
from icl_align.running.checkpoints import newest_state
from icl_align.running.comparison import runs_in, table
from icl_align.running.compose import compose_config
from icl_align.running.curves_file import read_curves
from icl_align.running.devices import learners_folder, set_up_jax
from icl_align.running.evaluation import compute_curves
from icl_align.running.files import DamagedFileError
from icl_align.running.kept import Kept
from icl_align.running.keys import evaluation_keys
from icl_align.running.loop import Start
from icl_align.running.metrics_file import read_rows
from icl_align.running.reevaluation import evaluation_config
from icl_align.running.run import run as train_in_folder
from icl_align.running.run_folder import config_of_run
from icl_align.running.study import read_study
from icl_align.running.terminal import Terminal
from icl_align.running.training import TrainState, network_of
from icl_align.world import world_of


@dataclasses.dataclass(frozen=True)
class Run:
    """A trained run.

    Attributes:
      folder: where it lies.
      config: its options, `run.config.model.num_layers` and so on.
      step: how far its training has come.
      curves: what curves.json holds; None where it was not evaluated yet.
      state: parameters and Adam's state, each array with a leading axis of seeds; `params` gives
        those of one.
      study: in the dialogue world what concept.json holds; None where there is none.
    """

    folder: Path
    config: Config
    step: int
    curves: dict[str, Any] | None
    state: TrainState
    study: dict[str, Any] | None = None

    def __repr__(self) -> str:
        seeds = f"{len(self.seeds)} seed{'s' if len(self.seeds) > 1 else ''}"
        return f"<Run {self.folder}: world={self.config.world}, {seeds}, step {self.step}>"

    @property
    def seeds(self) -> list[int]:
        """The training seeds, one network each."""
        return [self.config.seed + place for place in range(self.config.num_seeds)]

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl: `{"step": 10, "train/loss": ..., ...}`."""
        return read_rows(self.folder / "metrics.jsonl", Terminal().warn)

    def params(self, seed: int | None = None) -> Any:
        """The parameters of one network, nested dicts of arrays.

        Args:
          seed: one of `seeds`; the first where none is given.

        Raises:
          ValueError: no network was trained with this seed.
        """
        seed = self.config.seed if seed is None else seed
        if seed not in self.seeds:
            raise ValueError(f"seed={seed}: must be one of {self.seeds}")
        place = self.seeds.index(seed)
        return jax.tree.map(lambda leaf: leaf[place], self.state.params)

    def changed(self, change: Callable[[Any], Any]) -> "Run":
        """A run whose networks have other parameters, to take a part out or to put one in.

        Nothing is written, and `curves` is None; `icl_align.evaluate` gives those of the change.

        Args:
          change: parameters of one network, as `params` gives them -> parameters of the same
            shapes; other types of numbers become the run's. It is called for every seed.

        Raises:
          ValueError: the shapes are others.
        """
        before = [self.params(seed) for seed in self.seeds]
        after = [change(jax.tree.map(jnp.asarray, params)) for params in before]
        shapes = [jax.tree.map(jnp.shape, params) for params in (*before, *after)]
        if any(one != shapes[0] for one in shapes):
            raise ValueError("the changed parameters do not have the shapes of the run's")
        params = jax.tree.map(
            lambda like, *leaves: np.stack(leaves).astype(like.dtype), self.state.params, *after
        )
        return dataclasses.replace(
            self, state=self.state._replace(params=params), curves=None, study=None
        )

    def predict(self, given: Any, *, seed: int | None = None, key: int = 0) -> np.ndarray:
        """What a trained network answers to contexts of one's own.

        It sees of them what the run's networks were shown in training: of a run without rewards
        (`+ablation=no_reward`) none, of one with shuffled rewards shuffled ones.

        Args:
          given: as the world's `sample` gives it, or its arrays by hand. In the alignment world
            `(query [b, d], responses [b, n, d], rewards [b, n])`, with any n that was trained on
            or less; a target may follow, and is not looked at.
          seed: as in `params`.
          key: of what is drawn on the way, such as the shuffling.

        Returns:
          In the alignment world responses [b, n + 1, d]: entry [:, k] after k attempts.

        Raises:
          ValueError: the arrays do not fit each other, or the run.
        """
        program = functools.partial(self._program, self.params(seed))
        return _answers(program, self.config, given, key)

    def read(self, tokens: Any, *, seed: int | None = None) -> np.ndarray:
        """`predict` by the name it has in the dialogue world.

        Args:
          tokens: [b, l], whole numbers.
          seed: as in `params`.

        Returns:
          Logits [b, l, v]: row [:, p] of token p + 1, given those up to p.
        """
        return self.predict(tokens, seed=seed)

    def figure(self) -> Any:
        """The figure of `curves.png`, to change or to save in any format.

        Returns:
          A `matplotlib.figure.Figure`: `run.figure().savefig("curves.pdf")`.

        Raises:
          ValueError: the run was not evaluated yet.
        """
        if self.curves is None:
            raise ValueError(f"{self.folder} has no curves; icl_align.evaluate(run) makes some")
        return world_of(self.config).figure(self.config, self.curves)

    @functools.cached_property
    def _program(self) -> Callable[[Any, Any, Any], Any]:
        network, world = network_of(self.config), world_of(self.config)

        def predict(params, given, keys):
            return network(params)(world.shown(self.config, given, keys))

        return jax.jit(predict)


def load(folder: str | Path) -> Run:
    """The run in a folder, with the parameters of its newest whole checkpoint.

    Nothing in the folder is changed, so a run that is still training can be looked at.

    Raises:
      ConfigError: the folder holds no run, or none with a checkpoint.
    """
    folder = Path(folder)
    config = config_of_run(folder)
    with _own_settings():
        step, state = newest_state(folder, config, Terminal().warn)
    curves = None
    try:
        curves = read_curves(folder / "curves.json", config.measures)
    except DamagedFileError as error:
        Terminal().warn(f"{error}; icl_align.evaluate(...) makes them again")
    study = None
    try:
        study = read_study(config, step, folder)
    except DamagedFileError as error:
        Terminal().warn(f"{error}; python -m icl_align.evaluate makes it again")
    return Run(folder, config, step, curves, state, study)


def train(*overrides: str, folder: str | Path) -> Run:
    """Trains and evaluates, as `python -m icl_align.train OVERRIDES hydra.run.dir=FOLDER` does.

    A folder whose training was interrupted goes on where it stopped.

    Args:
      overrides: as on the command line: `"train.steps=200", "+ablation=linear_attn"`.
      folder: the run folder.

    Raises:
      ConfigError: an override is not allowed.
      RunError: the folder belongs to another run, training diverged, or Ctrl-C stopped it; what
        was trained is saved, and the same call goes on.
    """
    config = compose_config(list(overrides))
    importlib.import_module("matplotlib")  # a wrong MPLBACKEND is no reason to fail after training
    with _own_settings():
        set_up_jax()
        train_in_folder(config, Path(folder), Start(list(overrides)))
    return load(folder)


def evaluate(run: Run | str | Path, *overrides: str) -> dict[str, Any]:
    """Curves of a run under other options, as `python -m icl_align.evaluate` computes them.

    Nothing is written.

    Args:
      run: the run, or its folder.
      overrides: as on the command line: `"evaluation.reward_noise=[0.1]"`.

    Returns:
      What curves.json would hold: `curves["learners"][LEARNER][CONDITION][QUANTITY]["mean"]` is a
      list along the axis, `["low"]` and `["high"]` its 95% interval.

    Raises:
      ConfigError: an override is not allowed, or would need another network.
    """
    run = run if isinstance(run, Run) else load(run)
    config = evaluation_config(run.config, list(overrides))
    with _own_settings():
        return compute_curves(config, run.state, kept=Kept(learners_folder()))


def compare(
    *folders: "Run | str | Path", at: int | None = None, condition: str | None = None
) -> tuple[list[str], list[list[str]]]:
    """The table of `python -m icl_align.compare`: the options that differ, and headline numbers.

    Args:
      folders: each a run or its folder, or a folder that holds runs, such as a sweep's.
      at: place on the axis, such as attempts; by default where headline numbers are taken.
      condition: as in curves.json, such as "0.25"; by default the first.

    Returns:
      The header, and a row of text for each run.

    Raises:
      ConfigError: a folder holds no run, or no run has such numbers.
    """
    paths = [one.folder if isinstance(one, Run) else Path(one) for one in folders]
    _, header, rows = table(runs_in(paths, Terminal().warn), at, condition)
    return header, rows


def sample(*options: Config | str, num_contexts: int = 8, seed: int = 0) -> Any:
    """Contexts as a world draws them for training.

    Args:
      options: a configuration, such as that of a run, or overrides as on the command line.
      num_contexts: how many, b; more contexts begin with those of fewer.
      seed: of the sample; none coincides with those of training.

    Returns:
      In the alignment world a `Context`: query [b, d], responses [b, n, d], rewards [b, n] in
      [0, 1], target [b, d].

    Raises:
      ValueError: there would be none.
      ConfigError: an override is not allowed.
    """
    if num_contexts < 1:
        raise ValueError(f"num_contexts={num_contexts}: must be at least 1")
    config = _config(options)
    with _own_settings():
        keys = evaluation_keys(seed, jnp.arange(num_contexts))
        drawn = jax.jit(lambda keys: world_of(config).sample(config, keys).given)(keys)
        return jax.device_get(drawn)


def learners(*options: Config | str) -> dict[str, Callable[..., np.ndarray]]:
    """The learners that need no training, by name: gradient descent, the best attempt, ...

    Each takes what `Run.predict` takes, and returns what it returns.

    Args:
      options: as in `sample`.
    """
    config = _config(options)

    def callable_of(learner):
        program = jax.jit(learner)
        return lambda given, key=0: _answers(program, config, given, key)

    every = world_of(config).learners(config)
    return {name: callable_of(learner) for name, learner in every.items()}


def _answers(
    program: Callable[[Any, Any], Any], config: Config, arrays: Any, key: int
) -> np.ndarray:
    """What a program of (given, keys) answers to arrays of one's own."""
    with _own_settings():
        given = world_of(config).given(config, arrays)
        num_contexts = len(jax.tree.leaves(given)[0])
        return np.asarray(program(given, evaluation_keys(key, jnp.arange(num_contexts))))


def _config(options: tuple[Config | str, ...]) -> Config:
    if len(options) == 1 and isinstance(options[0], Config):
        return options[0]
    for one in options:
        if not isinstance(one, str):
            words = "one configuration, or overrides such as 'task.dim=3'"
            raise TypeError(f"options must be {words}, not {type(one).__name__}")
    return compose_config(list(options))


@contextlib.contextmanager
def _own_settings() -> Iterator[None]:
    """JAX as the commands use it, whatever the user's program has set for itself."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        yield
