"""What rounds of careful instructions bring needs several heads."""

from experiments.claim import Claim, Scale
from experiments.dialogue import part_is_needed


def claim(scale: Scale) -> Claim:
    """What careful instructions bring, with and without the part; both at their best rates."""
    return part_is_needed(scale, "several heads", "one head", "single_head")
