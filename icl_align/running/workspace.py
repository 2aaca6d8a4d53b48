"""The Weights & Biases workspace: training, curves by learner, ablations and verdicts."""

import contextlib
import dataclasses
import re
import unicodedata
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Optional

from icl_align.config import ConfigError, WandbConfig, option
from icl_align.running.compose import DEFAULT_WORLD
from icl_align.running.errors import USAGE_ERROR, RunError
from icl_align.running.tracking import curve_name, final_name, why_no_account
from icl_align.world import WORLDS, Measures, options_of

TRAINING = {
    "train/loss": "loss",
    "train/grad_norm": "gradient norm",
    "train/learning_rate": "learning rate",
    "perf/contexts_per_second": "contexts a second",
}
COMPARE = ("ablation", "name")


@dataclasses.dataclass
class DashboardConfig:
    """The options of `python -m icl_align.dashboard` that do not depend on the world."""

    entity: Optional[str] = option(None, "user or team; null is the account's default")
    project: str = option(WandbConfig().project, "project that has the runs")
    group: Optional[str] = option(None, "campaign or sweep to show; null shows all runs")
    name: Optional[str] = option(None, "name of the workspace; null is the group, or the project")
    compare: str = option(
        "ablation", "runs of one ablation, or of one name, are a line or bar", choices=COMPARE
    )
    world: str = option(DEFAULT_WORLD, "world of the runs", choices=WORLDS)


def dashboard_options(world: str) -> type[DashboardConfig]:
    """All options for the runs of a world: those, and the conditions they were evaluated under."""
    of_world = options_of(world)
    evaluation, name = of_world().evaluation, of_world.measures.condition
    [field] = [field for field in dataclasses.fields(evaluation) if field.name == name]
    conditions = dataclasses.field(
        default_factory=lambda: list(getattr(evaluation, name)),
        metadata={**field.metadata, "help": "what the runs were evaluated under"},
    )
    extra = [("world", str, option(world, "world of the runs", choices=WORLDS))]
    extra.append((name, field.type, conditions))
    return dataclasses.make_dataclass("DashboardOptions", extra, bases=(DashboardConfig,))


def save_workspace(options: DashboardConfig) -> str:
    """Saves the workspace of `options` as a new view of the project, and returns its address.

    Raises:
      ConfigError: no account is known, or it sees no such project or group.
      RunError: wandb-workspaces is not installed, or W&B does not answer as it should.
    """
    _workspaces()  # before anything goes over the network
    reason = why_no_account()
    if reason:
        raise RunError(f"W&B: {reason}", USAGE_ERROR)
    import wandb

    with _as_run_error():
        api = wandb.Api()
        entity = options.entity or api.default_entity
    if entity is None:
        raise ConfigError("entity", None, "the account has no default; name a user or team")
    options = dataclasses.replace(options, entity=entity)
    path = f"{entity}/{options.project}"
    with _as_run_error():
        try:
            filters = {"group": options.group} if options.group else {}
            num_runs = len(api.runs(path, filters=filters, per_page=1))
        except ValueError as error:
            raise ConfigError("project", path, "not found, or not open to this account") from error
    if num_runs == 0:
        key = "group" if options.group else "project"
        raise ConfigError(key, getattr(options, key), f"has no run in {path}")
    with _as_run_error():
        return build_workspace(options).save().url


@contextlib.contextmanager
def _as_run_error() -> Iterator[None]:
    """Turns whatever the W&B client raises, which has no common class, into one line."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:
        raise RunError(f"Weights & Biases: {' '.join(str(error).split())}") from error


def _workspaces() -> tuple[ModuleType, ModuleType]:
    """The modules of workspaces and of panels.

    Raises:
      RunError: wandb-workspaces is not installed.
    """
    try:
        with warnings.catch_warnings():  # it still uses what pydantic 2 calls deprecated
            warnings.simplefilter("ignore", DeprecationWarning)
            import wandb_workspaces.reports.v2 as panels
            import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise RunError(
            "the dashboard needs wandb-workspaces: pip install -e '.[dashboard]'"
        ) from error
    return workspaces, panels


# --------------------------------------------------------------------------------------- the panels


def build_workspace(options: DashboardConfig) -> Any:
    """The workspace as wandb-workspaces describes it; nothing is sent.

    Runs are grouped, by ablation or by name: every line and bar is a mean over one group.

    Args:
      options: with the entity named.

    Raises:
      RunError: wandb-workspaces is not installed.
    """
    workspaces, panels = _workspaces()
    from wandb_workspaces import expr

    measures = options_of(options.world).measures
    conditions = measures.conditions(options)
    sections = {
        "Training": training_panels(panels),
        "Curves by learner": curve_panels(panels, measures, conditions),
        "Ablations": ablation_panels(panels, measures, conditions, options.compare),
        "Verdicts": verdict_panels(panels),
    }
    headline = [
        f"summary:{final_name(measures, quantity, conditions[0])}"
        for quantity in measures.quantities
    ]
    return workspaces.Workspace(
        entity=options.entity,
        project=options.project,
        name=_without_symbols(options.name or options.group or options.project),
        sections=[
            workspaces.Section(name=name, panels=content, is_open=True)
            for name, content in sections.items()
        ],
        runset_settings=workspaces.RunsetSettings(
            filters=_is_group(options.group) if options.group else "",
            groupby=[
                {"ablation": expr.Config("ablation"), "name": expr.Metric("Name")}[options.compare]
            ],
            order=[  # the verdicts after all trained runs, those newest first
                expr.Ordering(expr.Metric("JobType"), ascending=True),
                expr.Ordering(expr.Metric("CreatedTimestamp"), ascending=False),
            ],
            pinned_columns=headline,
        ),
    )


def _without_symbols(name: str) -> str:
    """A name that W&B takes for a workspace: it refuses symbols such as = and +."""
    return "".join("-" if unicodedata.category(letter)[0] == "S" else letter for letter in name)


def _is_group(group: str) -> str:
    """The filter for a group; what the grammar of filters would read is escaped."""
    escaped = re.sub(r"[^\w /.-]", lambda letter: f"\\U{ord(letter[0]):08x}", group)
    return f'Metric("Group") == "{escaped}"'


def training_panels(panels: ModuleType) -> list:
    """Loss, gradient norm, learning rate and speed against the training step."""
    return [panels.LinePlot(title=title, x="Step", y=[name]) for name, title in TRAINING.items()]


def curve_panels(panels: ModuleType, measures: Measures, conditions: list[str]) -> list:
    """One row of plots for all learners under the first condition, one for the trained one under
    all.

    Learners are drawn for one group of runs, the first of the list: of more, the lines would hide
    each other.
    """
    by = _words(measures.condition)

    def plot(title, names):
        return panels.LinePlot(
            title=f"{title} (first group of the list)",
            x=measures.axis,
            title_x=measures.axis,
            y=names,
            max_runs_to_show=1,
        )

    learners = [
        plot(
            f"{_words(quantity)} by learner, {by} {conditions[0]}",
            [curve_name(measures, quantity, name, conditions[0]) for name in measures.learners],
        )
        for quantity in measures.quantities
    ]
    trained = [
        plot(
            f"{_words(quantity)} of the {_words(measures.trained)}, by {by}",
            [curve_name(measures, quantity, measures.trained, one) for one in conditions],
        )
        for quantity in measures.quantities
    ]
    return learners + trained


def _words(name: str) -> str:
    return name.replace("_", " ")


def ablation_panels(
    panels: ModuleType, measures: Measures, conditions: list[str], compare: str
) -> list:
    """Bars of the headline numbers: means over the runs of a group, with their spread."""
    group = {"ablation": panels.Config("ablation"), "name": panels.Metric("Name")}[compare]
    return [
        panels.BarPlot(
            title=f"{_words(quantity)}, {_words(measures.condition)} {condition}",
            metrics=[final_name(measures, quantity, condition)],
            groupby=group,
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            max_bars_to_show=50,
        )
        for condition in conditions
        for quantity in measures.quantities
    ]


def verdict_panels(panels: ModuleType) -> list:
    """The table of verdicts, and its effects as bars."""
    return [
        panels.WeavePanelSummaryTable(table_name="verdicts", layout=panels.Layout(w=24, h=10)),
        panels.CustomChart(
            query={"summaryTable": {"tableKey": "verdicts"}},
            chart_name="wandb/bar/v0",
            chart_fields={"label": "judgement", "value": "effect"},
            chart_strings={"title": "effect of each judgement"},
        ),
    ]
