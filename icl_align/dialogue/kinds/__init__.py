"""The kinds of dialogues there are, one file each."""

from icl_align.config import implemented
from icl_align.dialogue.kinds import (
    ambiguous_bias,
    commonsense_generation,
    detoxification,
    jailbreak_verdict,
    request,
    social_bias,
    visual_grounding,
    visual_question,
)
from icl_align.dialogue.kinds.kind import Kind
from icl_align.dialogue.options import KINDS

KIND_OF_NAME: dict[str, Kind] = implemented(
    KINDS,
    {
        "social_bias": social_bias.KIND,
        "ambiguous_bias": ambiguous_bias.KIND,
        "jailbreak_verdict": jailbreak_verdict.KIND,
        "visual_question": visual_question.KIND,
        "detoxification": detoxification.KIND,
        "commonsense_generation": commonsense_generation.KIND,
        "visual_grounding": visual_grounding.KIND,
        "request": request.KIND,
    },
)
