"""The options of `python -m experiments`, and those that a campaign's folder holds."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any, Optional

from experiments.claim import Scale
from experiments.studies import studies
from icl_align.config import FIGURE_FORMATS, ConfigError, WandbConfig, option, setting
from icl_align.world import WORLDS

SEEDS_FILE = "seeds.json"  # the options that the report was made with
SEED_OPTIONS = ("seed", "num_seeds", "most_seeds", "pilot_seeds")
HELD_OPTIONS = ("scale", *SEED_OPTIONS)  # of one folder


@dataclasses.dataclass
class CampaignOptions:
    """The options of `python -m experiments`."""

    scale: str = option("small", "size of every run")
    world: Optional[str] = option(None, "only the claims of this world", choices=WORLDS)
    folder: Optional[str] = option(None, "the campaign's folder; null is campaigns/SCALE")
    seed: int = option(100, "first training seed that is judged", least=0, most=2**31 - 2**16)
    num_seeds: Optional[int] = option(
        None, "training seeds that are judged; null is the scale's", least=2, most=2**10
    )
    most_seeds: Optional[int] = option(
        None,
        "of primary judgements, if the pilot asks for more; null is num_seeds or the scale's",
        least=1,
        most=2**10,
    )
    pilot_seeds: Optional[int] = option(
        None, "and of the pilot; 0 makes none; null is the scale's", least=0, most=2**10
    )
    networks_at_once: int = option(
        16, "most networks (configurations x seeds) that one job trains together", least=1
    )
    jobs_at_once: Optional[int] = option(
        None,
        "jobs side by side on this machine, each with its share of it; null is the scale's",
        least=1,
    )
    figure_format: str = option(
        "png", "of the figures that the report leaves beside its own", choices=FIGURE_FORMATS
    )
    wandb: WandbConfig = dataclasses.field(default_factory=WandbConfig)

    def scales(self) -> dict[str, Scale]:
        """World -> its sizes, with the seeds and the jobs at once asked for.

        Raises:
          ConfigError: no world has this scale.
        """
        named = {world: own.SCALES for world, own in studies().items()}
        every = dict.fromkeys(name for of_world in named.values() for name in of_world)
        if self.scale not in every:
            raise ConfigError("scale", self.scale, f"must be one of {', '.join(every)}")
        return {
            world: self._as_asked(of_world[self.scale])
            for world, of_world in named.items()
            if self.scale in of_world
        }

    def _as_asked(self, scale: Scale) -> Scale:
        own = scale.seeds
        judged = own.judged if self.num_seeds is None else self.num_seeds
        most = (self.num_seeds or own.most) if self.most_seeds is None else self.most_seeds
        if most < judged:
            raise ConfigError("most_seeds", most, f"must be at least num_seeds={judged}")
        pilot = own.pilot if self.pilot_seeds is None else self.pilot_seeds
        first = own.first_pilot
        if pilot and self.seed < first + pilot and first < self.seed + most:
            overlap = (
                f"the pilot has seeds {first} to {first + pilot - 1}, and up to {self.seed} to "
                f"{self.seed + most - 1} are judged; name another seed= or fewer pilot_seeds="
            )
            raise ConfigError("seed", self.seed, overlap)
        seeds = dataclasses.replace(own, judged=judged, most=most, pilot=pilot, first=self.seed)
        at_once = self.jobs_at_once or scale.jobs_at_once
        return dataclasses.replace(scale, seeds=seeds, jobs_at_once=at_once)


def folder_of(options: CampaignOptions) -> Path:
    """The campaign's."""
    return Path(options.folder or f"campaigns/{options.scale}").absolute()


def keep_seeds(folder: Path, options: CampaignOptions) -> None:
    """Leaves scale and seeds beside the runs; others belong into another folder.

    Raises:
      ConfigError: the folder holds a campaign of another scale or other seeds, or nobody can say
        of which.
    """
    from icl_align.running.files import DamagedFileError, read_json, write_json

    asked = {name: getattr(options, name) for name in HELD_OPTIONS}
    with contextlib.suppress(FileNotFoundError):
        try:
            held = read_json(folder / SEEDS_FILE)
        except DamagedFileError as error:
            raise ConfigError("folder", folder, f"{error}; put the file back") from error
        for name, value in asked.items():
            if value != held.get(name, value):
                reason = f"{folder} is a campaign of {setting(name, held.get(name))}; name another"
                raise ConfigError(name, value, f"{reason} folder=")
    write_json(folder / SEEDS_FILE, asked)


def take_seeds(folder: Path, held: dict[str, Any], options: CampaignOptions) -> None:
    """Takes the seeds that a folder holds where no others are named.

    Raises:
      ConfigError: the folder holds a campaign of another scale.
    """
    if options.scale != held.get("scale", options.scale):
        reason = f"{folder} is a campaign of {setting('scale', held['scale'])}; name that too"
        raise ConfigError("scale", options.scale, reason)
    default = CampaignOptions()
    for name in SEED_OPTIONS:
        if getattr(options, name) == getattr(default, name):
            setattr(options, name, held.get(name, getattr(default, name)))
