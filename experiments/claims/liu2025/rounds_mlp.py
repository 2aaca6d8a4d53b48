"""What rounds of careful instructions bring needs an MLP."""

from experiments.claim import Claim
from experiments.dialogue import DialogueScale, part_is_needed


def claim(scale: DialogueScale) -> Claim:
    """What careful instructions bring, with and without the part; both at their best rates."""
    return part_is_needed(scale, "an MLP", "no MLP", "no_mlp", scale.width_without_mlp)
