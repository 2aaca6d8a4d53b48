"""The options that all worlds share, and how an option is declared and checked.

An option is declared once, here or in the `options.py` of its world. The command line, `--help`,
the checks and the defaults of `conf/` all read the dataclasses. Importing this module is cheap: it
needs neither JAX nor Hydra.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Optional, TypeVar

ATTENTIONS = ("softmax", "linear", "linear_normalized")
ACTIVATIONS = ("gelu", "gelu_exact", "relu")
NORMS = ("pre", "pre_post", "none")
INITIALISATIONS = ("gpt2", "torch")
SCHEDULES = ("cosine", "constant")
PRECISIONS = ("default", "float32", "tensorfloat32", "bfloat16")
FIGURE_FORMATS = ("png", "pdf", "svg")
WANDB_MODES = ("online", "offline", "disabled")

# What an option has to do with: what is trained, what is evaluated, and where it is computed.
TRAINING, EVALUATION, MACHINE = "training", "evaluation", "machine"

Code = TypeVar("Code")


def implemented(names: tuple[str, ...], code: Mapping[str, Code]) -> dict[str, Code]:
    """The table that ties a closed list of names to its code, as a dict.

    Every such list meets its code in one table, and whoever chooses looks it up there.

    Raises:
      TypeError: a name has no code, or code has no name; so importing the module fails.
    """
    if set(code) != set(names):
        missing, unknown = set(names) - set(code), set(code) - set(names)
        raise TypeError(f"names without code: {sorted(missing)}; without a name: {sorted(unknown)}")
    return dict(code)


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
    of: tuple[str, ...] | None = None,
    traced: bool = False,
) -> Any:
    """A dataclass field with its meaning and its allowed values.

    Args:
      default: the default; a list becomes a default factory.
      help: one line for `--help`.
      choices: the closed list of names the value is taken from.
      least, most: inclusive bounds; for a list, of each entry.
      above: exclusive lower bound.
      of: what it has to do with, where that is not what its section has to do with.
      traced: a number that is an argument of the compiled program: changing it compiles nothing
        anew, and configurations that differ in nothing else train together.
    """
    metadata = {"help": help, "choices": choices, "least": least, "most": most, "above": above}
    metadata |= {"of": of, "traced": traced}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(options: type, *of: str) -> Any:
    """A dataclass field that holds the options of the dataclass `options`.

    Args:
      options: the section.
      of: some of TRAINING, EVALUATION and MACHINE. A run that goes on refuses other values of what
        is of its training, and takes those of its machine from the new start; an evaluation of a
        finished run may change what is of the evaluation.
    """
    return dataclasses.field(default_factory=options, metadata={"of": of})


@dataclasses.dataclass
class TrunkConfig:
    """The transformer; every ablation of it is one of these fields, or one of its world's."""

    num_layers: int = option(4, "blocks in the trunk", least=1)
    num_heads: int = option(4, "attention heads; must divide width", least=1)
    width: int = option(64, "width of the residual stream", least=1)
    attention: str = option("softmax", "attention weights", choices=ATTENTIONS)
    mlp: bool = option(True, "MLP in every block")
    mlp_width: Optional[int] = option(None, "hidden width of the MLP; null is 4 x width", least=1)
    activation: str = option("gelu", "of the MLP; gelu is GPT-2's tanh form", choices=ACTIVATIONS)
    norm: str = option(
        "pre",
        "layer norm: before each sublayer; before and after attention's residual; or none",
        choices=NORMS,
    )
    causal: bool = option(True, "causal mask; false attends both ways within what was seen so far")
    positions: bool = option(True, "learned positions")
    init: str = option(
        "gpt2", "initialisation of the trunk: GPT-2's or PyTorch's", choices=INITIALISATIONS
    )


@dataclasses.dataclass
class TrainConfig:
    """The training loop."""

    steps: int = option(600, "optimiser steps", least=1)
    batch_size: int = option(128, "contexts a step", least=1)
    learning_rate: float = option(2e-3, "peak learning rate of Adam", above=0, traced=True)
    warmup_fraction: float = option(
        0.1, "share of the steps spent on linear warm-up", least=0, most=1
    )
    schedule: str = option("cosine", "after the warm-up", choices=SCHEDULES)
    clip_norm: Optional[float] = option(
        1.0, "largest global gradient norm; null does not clip", above=0, traced=True
    )
    log_every: int = option(10, "steps between two rows of metrics.jsonl", least=1)
    precision: str = option(
        "default",
        "of matrix products: the device's own; float32; TensorFloat-32; or bfloat16 activations",
        choices=PRECISIONS,
    )
    checkpoint_every: int = option(100, "steps between two checkpoints", least=1, of=())
    keep_checkpoints: int = option(3, "newest checkpoints that are kept", least=2, of=())


@dataclasses.dataclass
class EvaluationConfig:
    """On what the network, and all that it is compared with, are measured."""

    num_contexts: int = option(1024, "contexts under every condition", least=2)
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

    mode: str = option("offline", "offline writes to the run folder only", choices=WANDB_MODES)
    project: str = option("icl_align", "project")
    entity: Optional[str] = option(None, "user or team; null is the account's default")
    name: Optional[str] = option(None, "display name of the run; null lets W&B choose")
    group: Optional[str] = option(None, "group; null is the sweep's folder in a sweep")


@dataclasses.dataclass
class Config:
    """The options of a run; a world's are its subclass `Options`, in `icl_align.WORLD.options`."""

    world: str = option("alignment", "what is simulated; world=NAME --help lists its options")
    model: TrunkConfig = section(TrunkConfig, TRAINING)
    train: TrainConfig = section(TrainConfig, TRAINING)
    evaluation: EvaluationConfig = section(EvaluationConfig, EVALUATION)
    devices: DevicesConfig = section(DevicesConfig, MACHINE)
    wandb: WandbConfig = section(WandbConfig)
    seed: int = option(0, "first training seed", least=0, most=2**31 - 1)
    num_seeds: int = option(1, "seeds trained at once, from seed upwards", least=1)
    extend: Optional[str] = option(
        None, "run folder whose training goes on, to more train.steps, in this run's own folder"
    )

    measures: ClassVar[Any]  # `world.Measures`: the names of what the world measures

    def check_together(self, trained: Optional["Config"] = None) -> None:
        """Raises ConfigError if options that are allowed alone do not go together.

        Args:
          trained: the configuration of the finished run that is evaluated under this one; None if
            this one is to be trained.
        """
        model = self.model
        if model.width % model.num_heads:
            small = [n for n in range(1, math.isqrt(model.width) + 1) if model.width % n == 0]
            divisors = {*small, *(model.width // n for n in small)}
            near = sorted(divisors, key=lambda n: abs(n - model.num_heads))[:6]
            some = ", ".join(map(str, sorted(near)))
            raise ConfigError(
                "model.num_heads",
                model.num_heads,
                f"must divide model.width={model.width}, such as {some}",
            )
        _check_cluster(self.devices)
        if self.seed + self.num_seeds - 1 > 2**31 - 1:
            raise ConfigError("num_seeds", self.num_seeds, "seed + num_seeds must stay below 2^31")


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
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
        some = "a list of some of " if field.type == list[str] else "one of "
        return some + ", ".join(rule["choices"])
    kind = {int: "a whole number", Optional[int]: "a whole number or null"}.get(field.type)
    kind = kind or {float: "a number", Optional[float]: "a number or null"}.get(field.type)
    kind = kind or {
        bool: "true or false",
        list[float]: "a list of numbers",
        list[int]: "a list of whole numbers",
    }.get(field.type, "text")
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
    values = value if isinstance(value, (list, tuple)) else [value]
    if rule["choices"]:
        return bool(values) and all(entry in rule["choices"] for entry in values)
    for entry in values:
        if isinstance(entry, (int, float)) and not isinstance(entry, bool):
            least = -math.inf if rule["least"] is None else rule["least"]
            most = math.inf if rule["most"] is None else rule["most"]
            above = -math.inf if rule["above"] is None else rule["above"]
            if not math.isfinite(entry) or not least <= entry <= most or entry <= above:
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
        if isinstance(value, int) and abs(value) >= 2**31:
            raise ConfigError(key, value, "must be below 2^31")
    return options


def check(config: Config, trained: Config | None = None) -> Config:
    """Returns `config` if every option is allowed, alone and together.

    Args:
      config: the options.
      trained: as in `Config.check_together`.

    Raises:
      ConfigError: naming the first key that is not, its value, and what is allowed.
    """
    check_each(config).check_together(trained)
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


def sections(config: Config, what: str) -> list[str]:
    """Names of the sections that have to do with `what`: TRAINING, EVALUATION or MACHINE."""
    fields = dataclasses.fields(config)
    return [field.name for field in fields if what in (field.metadata["of"] or ())]


def concerned(config: Config, what: str) -> set[str]:
    """Keys of the options that have to do with `what`; the world and the seeds are of TRAINING."""
    found = set()
    for top in dataclasses.fields(config):
        if not dataclasses.is_dataclass(getattr(config, top.name)):
            found |= {top.name} if what == TRAINING else set()
            continue
        for key, field, _ in leaves(getattr(config, top.name), f"{top.name}."):
            of = top.metadata["of"] if field.metadata["of"] is None else field.metadata["of"]
            found |= {key} if what in of else set()
    return found


def differences(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (old value, new value), wherever the two differ."""
    after = {key: value for key, _, value in leaves(new)}
    return {key: (value, after[key]) for key, _, value in leaves(old) if value != after.get(key)}


def with_values(config: Code, values: Mapping[str, Any]) -> Code:
    """A copy of options with other values of the dotted keys given; they may be traced."""
    for key, value in values.items():
        config = _with(config, key.split("."), value)
    return config


def _with(node: Any, path: list[str], value: Any) -> Any:
    changed = copy.copy(node)  # not through the constructor: a traced number is no float
    inner = value if len(path) == 1 else _with(getattr(node, path[0]), path[1:], value)
    setattr(changed, path[0], inner)
    return changed


def traced_values(config: Config) -> dict[str, float]:
    """Key -> value of the options that are arguments of the compiled program; not of null ones."""
    values = {key: value for key, field, value in leaves(config) if field.metadata["traced"]}
    return {key: value for key, value in values.items() if value is not None}


def program_key(config: Config) -> str:
    """Equal for configurations that can train and be evaluated as one program."""
    traced = traced_values(config)
    free = ("wandb.", "train.keep_checkpoints")
    parts = {key: value for key, _, value in leaves(config) if not key.startswith(free)}
    return repr(parts | dict.fromkeys(traced))
