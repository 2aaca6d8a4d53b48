"""The claims, in the order of the report: one module each, with `claim(scale) -> Claim`."""

import importlib

from experiments.claim import Claim, Scale

NAMES = (
    "attempts",
    "gradient_descent",
    "reward_noise",
    "depth",
    "softmax",
    "heads",
    "mlp",
    "controls",
    "ranking",
    "distribution",
    "data_process",
    "length",
    "tokens",
)


def load(name: str, scale: Scale) -> Claim:
    """The claim `name` at a scale."""
    return importlib.import_module(f"experiments.claims.{name}").claim(scale)
