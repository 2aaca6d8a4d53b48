"""What `--help` prints."""

import re
from pathlib import Path

from icl_align.config import Config, allowed, leaves, setting
from icl_align.running.compose import ADDED_GROUPS, CONF, groups_of
from icl_align.world import options_of


def options_help(schema: type) -> list[str]:
    """Two lines for each option: its default and meaning, and what is allowed."""
    lines, section = [], None
    for key, field, default in leaves(schema):
        name = key.rpartition(".")[0] or "run"
        if name != section and issubclass(schema, Config):
            section = name
            lines += ["", f"{section}"]
        lines.append(f"  {setting(key, default):<40} {field.metadata['help']}")
        lines.append(f"  {'':<40} {allowed(field)}")
    return lines


def _first_comment(file: Path) -> str:
    lines = [line[1:].strip() for line in file.read_text().splitlines() if line.startswith("#")]
    lines = [line for line in lines if not line.startswith("@package")]
    # A sentence ends where the next begins, not at "et al.".
    return re.split(r"\.\s+(?=[A-Z])", " ".join(lines))[0].rstrip(".")


def help_text(world: str) -> str:
    """What `python -m icl_align.train world=WORLD --help` prints."""
    lines = [
        "Trains a tiny transformer, compares it with every other learner, and leaves a run folder:",
        "metrics.jsonl, curves.json, curves.png, checkpoints/, wandb/.",
        "",
        "usage: python -m icl_align.train [KEY=VALUE ...] [+ablation=NAME]",
        "       python -m icl_align.train hydra.run.dir=DIR      goes on with the run in DIR",
        "       python -m icl_align.train -m KEY=A,B,C           a sweep, one run for each value",
        "",
        "choices (they combine: '+ablation=[linear_attn,no_mlp]')",
    ]
    for group, names in groups_of(options_of(world)).items():
        plus = "+" if group in ADDED_GROUPS else ""
        for name in names:
            comment = _first_comment(CONF / group / f"{name}.yaml")
            lines.append(f"  {plus + group + '=' + name:<36} {comment}".rstrip())
    lines += ["", "with -m"]
    for file in sorted(CONF.glob("hydra/*/*.yaml")):
        lines.append(f"  {f'hydra/{file.parent.name}={file.stem}':<36} {_first_comment(file)}")
    lines += options_help(options_of(world))
    lines += ["", "Hydra's own flags: --hydra-help. Full configuration: --cfg job."]
    return "\n".join(lines)
