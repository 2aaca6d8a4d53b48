r"""How many floating-point operations the matrix products of one training step need.

For one context of N attempts, of which the last trained prediction sees N_last, with T tokens of F
features, L layers of width D and hidden width H, and M trained predictions of dimension d, forward:

    embedding    2 T F D               T = (tokens an attempt) N_last + 1
    projections  L 8 T D^2             queries, keys, values and output
    attention    L 4 T^2 D             q k^T and the weighted values, masked entries counted
    mlp          L 4 T D H
    read_out     2 M D d
    scores       2 M N d               ranking losses only

The gradient takes two products for each of these, or one where the other factor is data. Only
products are counted: norms, activations, softmax, the rest of the loss and Adam are left out, so
the share of the peak is a lower bound of what the machine does.
"""

from icl_align.config import Config

TOKENS_PER_ATTEMPT = {"triplet": 1, "triplet_norm": 1, "interleaved": 3}
FEATURES = {
    "triplet": lambda dim: 2 * dim + 2,
    "triplet_norm": lambda dim: 2 * dim + 3,
    "interleaved": lambda dim: dim,
}
OF_DATA = ("embedding", "scores")  # products with data: only one factor has a gradient


def last_attempts(config: Config) -> int:
    """Attempts that the last trained prediction sees."""
    most = config.loss.max_attempts
    return config.task.num_responses if most is None else most


def num_tokens(config: Config) -> int:
    """Tokens that the last trained prediction sees, itself included."""
    return TOKENS_PER_ATTEMPT[config.model.tokens] * last_attempts(config) + 1


def forward_flops(config: Config) -> dict[str, int]:
    """Operations of the products of one context's forward pass, by part.

    Raises:
      ValueError: the model makes a pass for every prefix, which the formula does not cover.
    """
    model, task, loss = config.model, config.task, config.loss
    if not (model.causal or model.sees_future):
        raise ValueError("the formula is for one pass over all tokens")
    tokens, width, layers = num_tokens(config), model.width, model.num_layers
    predictions = last_attempts(config) - loss.min_attempts + 1
    hidden = (model.mlp_width or 4 * width) if model.mlp else 0
    ranks = loss.name in ("plackett_luce", "bradley_terry")
    return {
        "embedding": 2 * tokens * FEATURES[model.tokens](task.dim) * width,
        "projections": layers * 8 * tokens * width**2,
        "attention": layers * 4 * tokens**2 * width,
        "mlp": layers * 4 * tokens * width * hidden,
        "read_out": 2 * predictions * width * task.dim,
        "scores": 2 * predictions * task.num_responses * task.dim if ranks else 0,
    }


def step_flops(config: Config) -> int:
    """Operations of the products of one training step, of all contexts and seeds."""
    parts = forward_flops(config)
    of_context = sum((2 if name in OF_DATA else 3) * flops for name, flops in parts.items())
    return config.num_seeds * config.train.batch_size * of_context
