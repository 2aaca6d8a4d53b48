"""Every option of the simulator: its name, default, meaning and what is allowed.

This is the only place where an option is declared. The command line, `--help`, the checks and the
defaults of `conf/` all read the dataclasses below. Importing this module is cheap: it needs neither
JAX nor Hydra.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, Optional

ATTENTIONS = ("softmax", "linear", "linear_normalized")
TASKS = ("shared_corruption", "independent_corruption")
TOKENS = ("triplet", "triplet_norm", "interleaved")
LOSSES = ("plackett_luce", "bradley_terry", "squared", "cosine")
LEARNERS = (
    "transformer",
    "gradient_descent",
    "plackett_luce_optimum",
    "best_attempt",
    "weighted_average",
    "least_squares",
)


class ConfigError(ValueError):
    """An option that cannot be used: names the key, the value and what is allowed, in one line."""

    def __init__(self, key: str, value: Any, allowed: str):
        self.key, self.value, self.allowed = key, value, allowed
        super().__init__(f"{setting(key, value)}: {allowed}")


def setting(key: str, value: Any) -> str:
    """An option as it would be typed: key=value."""
    return f"{key}={_show(value)}"


def _show(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_show, value)) + "]"
    return str(value)


def option(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    least: int | float | None = None,
    most: int | float | None = None,
    above: int | float | None = None,
) -> Any:
    """A dataclass field with its meaning and its allowed values.

    Args:
      default: the default; a list becomes a default factory.
      help: one line for `--help`.
      choices: the closed list of names the value is taken from.
      least, most: inclusive bounds; for a list, of each entry.
      above: exclusive lower bound.
    """
    metadata = {"help": help, "choices": choices, "least": least, "most": most, "above": above}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass
class TaskConfig:
    """How contexts are drawn."""

    name: str = option("shared_corruption", "how responses are corrupted", choices=TASKS)
    dim: int = option(5, "dimension d of queries and responses", least=1)
    num_responses: int = option(20, "attempts N in a context; 2 is the Bradley-Terry case", least=2)
    reward_noise: float = option(
        0.0, "probability that a reward is replaced by a fresh U(0, 1) draw", least=0, most=1
    )
    reward_transform: str = option(
        "identity", "monotone map of the rewards", choices=("identity", "power", "rank")
    )
    reward_power: float = option(3.0, "exponent of reward_transform=power", above=0)
    unit_norm_queries: bool = option(False, "scale every query to norm 1")
    shown_rewards: str = option(
        "given",
        "what the transformer is shown of the rewards; losses always use the given ones",
        choices=("given", "none", "shuffled"),
    )


@dataclasses.dataclass
class ModelConfig:
    """The transformer; every ablation is one of these fields."""

    num_layers: int = option(4, "blocks in the trunk", least=1)
    num_heads: int = option(4, "attention heads; must divide width", least=1)
    width: int = option(64, "width of the residual stream", least=1)
    attention: str = option("softmax", "attention weights", choices=ATTENTIONS)
    mlp: bool = option(True, "MLP in every block")
    mlp_width: Optional[int] = option(None, "hidden width of the MLP; null is 4 x width", least=1)
    activation: str = option(
        "gelu", "of the MLP; gelu is GPT-2's tanh form", choices=("gelu", "gelu_exact", "relu")
    )
    norm: str = option(
        "pre",
        "layer norm: before each sublayer; before and after attention's residual; or none",
        choices=("pre", "pre_post", "none"),
    )
    causal: bool = option(
        True, "causal mask; false attends both ways within the attempts seen so far"
    )
    sees_future: bool = option(
        False, "one unmasked pass that also reads later attempts (the published variants' leak)"
    )
    tokens: str = option(
        "triplet",
        "one token an attempt; the same with ||y||^2 beside it; or three as published",
        choices=TOKENS,
    )
    positions: bool = option(True, "learned positions")
    init: str = option(
        "gpt2", "initialisation of the trunk: GPT-2's or PyTorch's", choices=("gpt2", "torch")
    )


@dataclasses.dataclass
class LossConfig:
    """What training minimises, averaged over the predictions after min..max attempts."""

    name: str = option(
        "plackett_luce", "a ranking of the attempts, or regression to the target", choices=LOSSES
    )
    score: str = option(
        "cosine",
        "score of a response given a prediction",
        choices=("cosine", "negative_squared_distance"),
    )
    min_attempts: int = option(2, "first prediction that is trained on", least=0)
    max_attempts: Optional[int] = option(
        None, "last prediction that is trained on; null is task.num_responses", least=0
    )


@dataclasses.dataclass
class TrainConfig:
    """The training loop."""

    steps: int = option(600, "optimiser steps", least=1)
    batch_size: int = option(128, "contexts a step", least=1)
    learning_rate: float = option(2e-3, "peak learning rate of Adam", above=0)
    warmup_fraction: float = option(
        0.1, "share of the steps spent on linear warm-up", least=0, most=1
    )
    schedule: str = option("cosine", "after the warm-up", choices=("cosine", "constant"))
    clip_norm: Optional[float] = option(
        1.0, "largest global gradient norm; null does not clip", above=0
    )
    log_every: int = option(10, "steps between two rows of metrics.jsonl", least=1)
    precision: str = option(
        "default",
        "of matrix products: the device's own; float32; TensorFloat-32; or bfloat16 activations",
        choices=("default", "float32", "tensorfloat32", "bfloat16"),
    )
    checkpoint_every: int = option(100, "steps between two checkpoints", least=1)
    keep_checkpoints: int = option(3, "newest checkpoints that are kept", least=2)


@dataclasses.dataclass
class GradientDescentConfig:
    """The learner `gradient_descent`; the defaults are the published baseline's."""

    optimizer: str = option("adam", "update rule", choices=("adam", "sgd"))
    learning_rate: float = option(0.1, "step size", above=0)
    steps: int = option(50, "steps at reward noise 0", least=0)
    steps_at_full_noise: int = option(
        25, "steps at reward noise 1; linear in between, rounded down", least=0
    )
    init: str = option(
        "torch", "initial policy: PyTorch's Linear, or zero", choices=("torch", "zero")
    )


@dataclasses.dataclass
class EvaluationConfig:
    """Learners x attempts x reward noise."""

    num_contexts: int = option(1024, "contexts at every noise level", least=2)
    reward_noise: list[float] = option(
        [0.0, 0.25, 0.5, 0.75, 1.0], "reward-noise levels", least=0, most=1
    )
    batch_size: int = option(
        256, "contexts evaluated at once; halved by itself until they fit in memory", least=1
    )
    seed: int = option(0, "seed of the evaluation contexts, apart from the training ones", least=0)
    own_contexts: bool = option(
        False,
        "every training seed has evaluation contexts of its own, so that seeds are replicates",
    )


@dataclasses.dataclass
class DevicesConfig:
    """How training is divided among devices; no result depends on it beyond rounding."""

    seeds: Optional[int] = option(
        None, "devices that divide the networks; null is the most that divides devices too", least=1
    )
    batch: Optional[int] = option(
        None, "devices that divide every batch; null is as many as can of those left", least=1
    )
    slice: Optional[int] = option(
        None,
        "most contexts of a network whose gradient a device computes at once; null is all of its "
        "share on an accelerator, and on a CPU what suits its cache",
        least=1,
    )
    cluster: bool = option(
        False, "this process trains with others; Slurm, Open MPI and TPU pods say with which"
    )
    coordinator: Optional[str] = option(
        None, "HOST:PORT of process 0 of a cluster where nothing else says it"
    )
    num_processes: Optional[int] = option(None, "processes of such a cluster", least=1)
    process_id: Optional[int] = option(None, "number of this process in it, from 0", least=0)
    profile: bool = option(
        False, "write profile/ into the run folder: some steps of training, for XProf or Perfetto"
    )


@dataclasses.dataclass
class WandbConfig:
    """Weights & Biases; nothing is ever asked at the terminal."""

    mode: str = option(
        "offline",
        "offline writes to the run folder only",
        choices=("online", "offline", "disabled"),
    )
    project: str = option("icl_align", "project")
    entity: Optional[str] = option(None, "user or team; null is the account's default")
    name: Optional[str] = option(None, "display name of the run; null lets W&B choose")
    group: Optional[str] = option(None, "group; null is the sweep's folder in a sweep")


@dataclasses.dataclass
class Config:
    """All options of `python -m icl_align.train`."""

    task: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    gradient_descent: GradientDescentConfig = dataclasses.field(
        default_factory=GradientDescentConfig
    )
    evaluation: EvaluationConfig = dataclasses.field(default_factory=EvaluationConfig)
    devices: DevicesConfig = dataclasses.field(default_factory=DevicesConfig)
    wandb: WandbConfig = dataclasses.field(default_factory=WandbConfig)
    seed: int = option(0, "first training seed", least=0, most=2**31 - 1)
    num_seeds: int = option(1, "seeds trained at once, from seed upwards", least=1)


@dataclasses.dataclass
class TheoryConfig:
    """All options of `python -m icl_align.theory`."""

    run_dir: Optional[str] = option(
        None, "compare the transformers of this run with the construction; null builds and tests it"
    )
    folder: Optional[str] = option(
        None, "where results go; null is runs/theory, or theory/ in the run's folder"
    )
    seed: int = option(
        0, "seed of the random problems and of the repairs", least=0, most=2**31 - 2**16
    )
    num_problems: int = option(32, "random problems for each line of the exactness table", least=1)
    repair_steps: int = option(300, "Adam steps of every repair of a knock-out", least=1)
    repair_seeds: int = option(1, "starts from scratch for each learning rate", least=1, most=2**10)
    num_contexts: int = option(512, "contexts on which a run is compared; needs run_dir", least=8)


def leaves(node: Any = Config, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """(dotted key, field, value) of every option; for a class the values are its defaults."""
    node = node() if isinstance(node, type) else node
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.")
        else:
            yield prefix + field.name, field, value


def allowed(field: dataclasses.Field) -> str:
    """What an option may be, in words, for `--help` and for errors."""
    rule = field.metadata
    if rule["choices"]:
        return "one of " + ", ".join(rule["choices"])
    kind = {int: "a whole number", Optional[int]: "a whole number or null"}.get(field.type)
    kind = kind or {float: "a number", Optional[float]: "a number or null"}.get(field.type)
    kind = kind or {bool: "true or false", list[float]: "a list of numbers"}.get(field.type, "text")
    if rule["least"] is not None and rule["most"] is not None:
        return f"{kind} in [{rule['least']}, {rule['most']}]"
    if rule["least"] is not None:
        return f"{kind}, at least {rule['least']}"
    if rule["above"] is not None:
        return f"{kind}, above {rule['above']}"
    return kind


def _is_allowed(field: dataclasses.Field, value: Any) -> bool:
    if value is None:
        return field.type in (Optional[int], Optional[float], Optional[str])
    rule = field.metadata
    if rule["choices"]:
        return value in rule["choices"]
    values = value if isinstance(value, (list, tuple)) else [value]
    for entry in values:
        if isinstance(entry, (int, float)) and not isinstance(entry, bool):
            if not math.isfinite(entry):
                return False
            if rule["least"] is not None and entry < rule["least"]:
                return False
            if rule["most"] is not None and entry > rule["most"]:
                return False
            if rule["above"] is not None and entry <= rule["above"]:
                return False
    return bool(values)


def check_each(options: Any) -> Any:
    """Returns the dataclass `options` if every option is allowed by itself.

    Raises:
      ConfigError: naming the first key that is not, its value, and what is allowed.
    """
    for key, field, value in leaves(options):
        if not _is_allowed(field, value):
            raise ConfigError(key, value, f"must be {allowed(field)}")
    return options


def check(config: Config) -> Config:
    """Returns `config` if every option is allowed, alone and together.

    Raises:
      ConfigError: naming the first key that is not, its value, and what is allowed.
    """
    check_each(config)
    model, loss, task = config.model, config.loss, config.task
    if model.width % model.num_heads:
        divisors = [str(n) for n in range(1, model.width + 1) if model.width % n == 0]
        raise ConfigError(
            "model.num_heads",
            model.num_heads,
            f"must divide model.width={model.width}, so one of {', '.join(divisors)}",
        )
    if model.sees_future and model.causal:
        raise ConfigError("model.sees_future", True, "needs model.causal=false")
    last = task.num_responses if loss.max_attempts is None else loss.max_attempts
    if last > task.num_responses:
        raise ConfigError(
            "loss.max_attempts", last, f"must be at most task.num_responses={task.num_responses}"
        )
    ranking = loss.name in ("plackett_luce", "bradley_terry")
    if ranking and loss.min_attempts < 2:
        raise ConfigError(
            "loss.min_attempts", loss.min_attempts, "must be at least 2: one attempt has no ranking"
        )
    if loss.min_attempts > last:
        raise ConfigError(
            "loss.min_attempts", loss.min_attempts, f"must be at most the last prediction, {last}"
        )
    _check_cluster(config.devices)
    if config.seed + config.num_seeds - 1 > 2**31 - 1:
        raise ConfigError("num_seeds", config.num_seeds, "seed + num_seeds must stay below 2^31")
    return config


def _check_cluster(devices: DevicesConfig) -> None:
    by_hand = ("coordinator", "num_processes", "process_id")
    given = [name for name in by_hand if getattr(devices, name) is not None]
    if given and not devices.cluster:
        raise ConfigError("devices.cluster", False, f"must be true with devices.{given[0]}")
    for name in by_hand:
        if given and name not in given:
            needed = ", ".join(f"devices.{one}" for one in by_hand)
            raise ConfigError(f"devices.{name}", None, f"needed too: all of {needed}, or none")
    if given and devices.process_id >= devices.num_processes:
        raise ConfigError(
            "devices.process_id",
            devices.process_id,
            f"must be below devices.num_processes={devices.num_processes}",
        )
    if given and not devices.coordinator.rpartition(":")[2].isdigit():
        raise ConfigError("devices.coordinator", devices.coordinator, "must be HOST:PORT")


# Keys that say where a run runs: a run that goes on takes those of the new start.
OF_THE_MACHINE = ("devices.",)
# Keys that may change when a run goes on: they do not touch what is trained or logged.
FREE_ON_RESUME = ("evaluation.", "gradient_descent.", "wandb.", "train.checkpoint_every",
                  "train.keep_checkpoints", *OF_THE_MACHINE)  # fmt: skip


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old value, new value), wherever the two differ."""
    after = {key: value for key, _, value in leaves(new)}
    return {key: (value, after[key]) for key, _, value in leaves(old) if value != after[key]}


# Options whose value is an argument of the compiled program: changing them compiles nothing anew.
TRACED = ("train.learning_rate", "train.clip_norm", "task.reward_noise")


def program_key(config: Config) -> str:
    """Equal for configurations that can train and be evaluated as one program."""
    free = ("wandb.", "train.keep_checkpoints")
    parts = {key: value for key, _, value in leaves(config) if not key.startswith(free)}
    parts |= {key: parts[key] is None for key in TRACED}
    return repr(parts)
