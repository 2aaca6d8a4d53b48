"""What rounds of careful instructions bring needs softmax attention."""

from experiments.claim import Claim, Scale
from experiments.dialogue import part_is_needed


def claim(scale: Scale) -> Claim:
    """What careful instructions bring, with and without the part; both at their best rates."""
    return part_is_needed(scale, "softmax attention", "linear attention", "linear_attn")
