"""What rounds of careful instructions bring needs depth."""

from experiments.claim import Claim
from experiments.dialogue import DialogueScale, part_is_needed


def claim(scale: DialogueScale) -> Claim:
    """What careful instructions bring, with and without the part; both at their best rates."""
    return part_is_needed(scale, "depth", "one block", "shallow", scale.width_of_one_block)
