r"""How many floating-point operations the matrix products of one training step need.

Forward, for one context whose T tokens go through a trunk of L layers, width D and hidden width H:

    projections  L 8 T D^2             queries, keys, values and output
    attention    L 4 T^2 D             q k^T and the weighted values, masked entries counted
    mlp          L 4 T D H

and what its world has outside the trunk (`benchmarks.worlds`). The gradient takes two products for
each of these, or one where the other factor is data. Only products are counted: norms, activations,
softmax, the rest of the loss and Adam are left out, so the share of the peak is a lower bound of
what the machine does.
"""

from benchmarks.worlds import subject_of
from icl_align.config import Config
from icl_align.world import world_of


def forward_flops(config: Config) -> dict[str, int]:
    """Operations of the products of one context's forward pass, by part.

    Raises:
      ValueError: the model makes a pass for every prefix, which the formula does not cover.
    """
    model, tokens = config.model, world_of(config).num_tokens(config)
    width, layers = model.width, model.num_layers
    hidden = (model.mlp_width or 4 * width) if model.mlp else 0
    trunk = {
        "projections": layers * 8 * tokens * width**2,
        "attention": layers * 4 * tokens**2 * width,
        "mlp": layers * 4 * tokens * width * hidden,
    }
    return trunk | subject_of(config).outside_trunk(config)


def step_flops(config: Config) -> int:
    """Operations of the products of one training step, of all contexts and seeds."""
    of_data = subject_of(config).of_data  # only one factor has a gradient
    parts = forward_flops(config)
    of_context = sum((2 if name in of_data else 3) * flops for name, flops in parts.items())
    return config.num_seeds * config.train.batch_size * of_context
