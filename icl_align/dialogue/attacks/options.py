"""The options of `python -m icl_align.attack`."""

import dataclasses
from typing import Optional

from icl_align.config import FIGURE_FORMATS, ConfigError, option

ATTACKS = (
    "none",
    "natural_evidence",
    "random_search",
    "gcg_natural",
    "gcg",
    "gcg_transfer",
    "autodan",
    "gcg_adaptive",
)
SEARCHES = ("random_search", "gcg_natural", "gcg", "autodan", "gcg_adaptive")  # of them
READERS = ("language_model", "exact")
MODEL, EXACT = READERS
DEFENCES = (
    "none",
    "self_reminder",
    "in_context_refusals",
    "perplexity_filter",
    "smoothing",
    "own_check",
    "critic_check",
    "random_check",
    "wrong_check",
    "no_check",
    "backup",
)


@dataclasses.dataclass
class AttackConfig:
    """All options of `python -m icl_align.attack`."""

    run_dir: Optional[str] = option(None, "a finished run of task=request, to attack it")
    folder: Optional[str] = option(
        None, "where attacks.json and the figure go; null is the run's folder"
    )
    attacks: list[str] = option(list(ATTACKS), "which attacks", choices=ATTACKS)
    defences: list[str] = option(list(DEFENCES), "which defences", choices=DEFENCES)
    seed: int = option(0, "of the requests and of the search", least=0, most=2**31 - 1)
    num_requests: int = option(128, "harmful requests, and as many benign ones", least=2)
    budget: int = option(
        512, "forward passes an attack may spend on a request; a gradient counts as 3", least=1
    )
    candidates: int = option(
        13, "replacements tried at each step, and size of a population", least=2
    )
    top_k: int = option(
        4, "tokens of the steepest gradient at each place that GCG draws from", least=1
    )
    elites: float = option(0.1, "share of a population that goes on as it is", least=0, most=1)
    crossover: float = option(0.5, "share of children that have two parents", least=0, most=1)
    mutation: float = option(
        0.2, "share of a child's tokens that the network writes anew", least=0, most=1
    )
    draws: int = option(4, "roll-outs of each request under each defence", least=1)
    critic_accuracy: float = option(
        0.9, "of the critic in critic_check: how often it is right", least=0, most=1
    )
    false_alarms: float = option(
        0.05, "share of natural prompts that the perplexity filter refuses", least=0, most=1
    )
    copies: int = option(10, "perturbed prompts of smoothing", least=2)
    perturbed: int = option(2, "tokens of a persona of 6 that smoothing replaces", least=1, most=6)
    figure: Optional[str] = option(
        None, "where runs are compared: a file for a picture, .png, .pdf or .svg"
    )
    figure_format: str = option("png", "of the figure", choices=FIGURE_FORMATS)

    def check_together(self) -> None:
        """Raises ConfigError if options that are allowed alone do not go together."""
        for key in ("attacks", "defences"):
            values = getattr(self, key)
            if not values or len({*values}) < len(values):
                raise ConfigError(key, values, "must be one or more, each once")
        if self.num_elites >= self.candidates:
            raise ConfigError("elites", self.elites, f"leaves no child of {self.candidates}")
        for name in self.attacks:
            search = "gcg" if name == "gcg_transfer" else name
            least = self.passes_of(search, 1) if search in SEARCHES else 0
            if least > self.budget:
                reason = f"{name} takes {least} passes with candidates={self.candidates}"
                raise ConfigError("budget", self.budget, reason)

    @property
    def num_elites(self) -> int:
        """Prompts of a population that go on as they are."""
        return max(1, round(self.elites * self.candidates))

    def passes_of(self, search: str, steps: int) -> int:
        """Forward passes of a network over a prompt, of so many steps and what is before them."""
        of_gradient = self.candidates + GRADIENT_PASSES
        before, each = {
            "random_search": (1, self.candidates),
            "gcg_natural": (1, of_gradient),
            "gcg": (1, of_gradient),
            "autodan": (self.candidates, CHILD_PASSES * (self.candidates - self.num_elites)),
            "gcg_adaptive": (TRANSCRIPTS, TRANSCRIPTS * of_gradient),
        }[search]
        return before + each * steps

    def steps(self, search: str) -> int:
        """As many as the budget allows."""
        before = self.passes_of(search, 0)
        return (self.budget - before) // (self.passes_of(search, 1) - before)


# What a step costs, in forward passes of the network over a prompt.
GRADIENT_PASSES = 3  # forward and, at twice the cost, backward
CHILD_PASSES = 2  # to write it, and to judge it
MOST_CHECKS = 3  # rounds of checking, examples, stored refusals
TRANSCRIPTS = 4  # of what is said before the last answer: complied or refused, fine or flawed
