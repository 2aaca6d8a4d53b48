"""The same model, data, loss and optimiser in PyTorch, written as fast as a user well could.

The trunk is Hugging Face's GPT-2. Everything is vectorised over the batch and over all prefixes of
a context, contexts are drawn on the device, and no token is computed that no trained prediction
reads.
"""

import copy
import math
import time
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model

from benchmarks.torch_product import synchronize
from icl_align.alignment.options import Options, TaskConfig
from icl_align.alignment.tokens import TOKEN_LAYOUTS
from icl_align.config import TrainConfig


class Context(NamedTuple):
    """As `icl_align.alignment.contexts.Context`."""

    query: Float[Tensor, "b d"]
    responses: Float[Tensor, "b n d"]
    rewards: Float[Tensor, "b n"]
    target: Float[Tensor, "b d"]


def check_supported(config: Options) -> None:
    """Raises ValueError for a configuration that this model does not cover."""
    task, model, loss = config.task, config.model, config.loss
    supported = (
        (task.name, task.reward_transform) == ("shared_corruption", "identity")
        and (task.reward_noise, task.unit_norm_queries, task.shown_rewards) == (0, False, "given")
        and (model.attention, model.norm, model.activation) == ("softmax", "pre", "gelu")
        and (model.mlp, model.causal, model.positions, model.init) == (True, True, True, "gpt2")
        and model.tokens in ("triplet", "interleaved")
        and (loss.name, loss.score) == ("plackett_luce", "cosine")
        and config.num_seeds == 1
    )
    if not supported:
        raise ValueError("no such model in PyTorch")


def sample_contexts(task: TaskConfig, batch_size: int, device: torch.device) -> Context:
    """A batch of contexts with one corrupt policy each and no reward noise."""
    d, n = task.dim, task.num_responses
    query = torch.randn(batch_size, d, 1, device=device)
    policies = torch.randn(batch_size, 2 * d, d, device=device)
    answers = (policies @ query).view(batch_size, 2, 1, d)
    target, corrupt = answers[:, 0], answers[:, 1]
    rewards = torch.rand(batch_size, n, 1, device=device)
    responses = corrupt + rewards * (target - corrupt)
    return Context(query[..., 0], responses, rewards[..., 0], target[:, 0])


class Transformer(nn.Module):
    """The transformer of `icl_align.alignment.model` on Hugging Face's GPT-2.

    Args:
      config: see `check_supported`.
      attention: Hugging Face's "sdpa", fused, or "eager", written out.
    """

    def __init__(self, config: Options, attention: str = "sdpa"):
        super().__init__()
        check_supported(config)
        model, task = config.model, config.task
        self.tokens = model.tokens
        layout = TOKEN_LAYOUTS[model.tokens](task)
        self.every = layout.tokens_per_attempt
        self.embed = nn.Linear(layout.num_features, model.width)
        trunk = GPT2Config(
            vocab_size=1,  # tokens come embedded
            bos_token_id=None,
            eos_token_id=None,
            n_positions=self.every * task.num_responses + 1,
            n_embd=model.width,
            n_layer=model.num_layers,
            n_head=model.num_heads,
            n_inner=model.mlp_width,
            activation_function="gelu_new",
            layer_norm_epsilon=1e-5,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            attn_implementation=attention,
        )
        self.trunk = GPT2Model(trunk)
        self.trunk.wte.requires_grad_(False)
        self.read_out = nn.Linear(model.width, task.dim)

    def features(
        self,
        query: Float[Tensor, "b d"],
        responses: Float[Tensor, "b n d"],
        rewards: Float[Tensor, "b n"],
    ) -> Float[Tensor, "b t f"]:
        """Feature vectors of the tokens, as `TOKEN_LAYOUTS` lays them out."""
        b, n, d = responses.shape
        queries, r = query[:, None].expand(b, n, d), rewards[..., None]
        if self.tokens == "triplet":
            attempts = torch.cat([queries, responses, r, torch.ones_like(r)], dim=-1)
            start = nn.functional.pad(query, (0, attempts.shape[-1] - d))
            return torch.cat([start[:, None], attempts], dim=1)
        triplets = torch.stack([queries, responses, nn.functional.pad(r, (0, d - 1))], dim=2)
        return torch.cat([triplets.reshape(b, 3 * n, d), query[:, None]], dim=1)

    def forward(
        self,
        query: Float[Tensor, "b d"],
        responses: Float[Tensor, "b n d"],
        rewards: Float[Tensor, "b n"],
        first: int = 0,
    ) -> Float[Tensor, "b m d"]:
        """Predictions after `first`..n attempts."""
        x_BTD = self.embed(self.features(query, responses, rewards))
        x_BTD = self.trunk(inputs_embeds=x_BTD).last_hidden_state
        return self.read_out(x_BTD[:, self.every * first :: self.every])


def plackett_luce(
    predictions: Float[Tensor, "b m d"],
    responses: Float[Tensor, "b n d"],
    rewards: Float[Tensor, "b n"],
    first: int,
) -> Float[Tensor, ""]:
    """Mean Plackett-Luce loss of the predictions after first, first + 1, ... attempts.

    The context is sorted once. Scores are cosines, so their exponentials cannot overflow, and one
    product with a triangular matrix sums those of all places from each place on: 5 times as fast on
    CPU as `logcumsumexp`, and faster than `cumsum`.
    """
    n = responses.shape[1]
    order = torch.argsort(rewards, dim=-1, descending=True)
    ranked = responses.gather(1, order[..., None].expand_as(responses))
    scores = nn.functional.normalize(predictions, dim=-1, eps=1e-8)
    scores = scores @ nn.functional.normalize(ranked, dim=-1, eps=1e-8).transpose(1, 2)
    attempts = first + torch.arange(predictions.shape[1], device=order.device)
    where = order[:, None] < attempts[:, None]
    exponentials = scores.exp() * where
    below = torch.ones(n, n, device=order.device).tril()
    rest = torch.where(where, exponentials @ below, 1.0)
    return ((rest.log() - scores) * where).sum(-1).mean()


def training_loss(model: Transformer, config: Options, context: Context) -> Float[Tensor, ""]:
    """The training loss, of the trained predictions alone."""
    first, last = config.loss.min_attempts, config.last_attempts
    seen = context.responses[:, :last], context.rewards[:, :last]
    predictions = model(context.query, *seen, first=first)
    return plackett_luce(predictions, context.responses, context.rewards, first)


def learning_rate(train: TrainConfig, step: int) -> float:
    """As `icl_align.running.training.learning_rate_schedule`."""
    warmup = round(train.warmup_fraction * train.steps)
    if step < warmup:
        return train.learning_rate * step / warmup
    if train.schedule == "constant":
        return train.learning_rate
    done = min((step - warmup) / max(train.steps - warmup, 1), 1.0)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def fastest_adam(parameters: list[nn.Parameter]) -> str:
    """The quickest implementation of Adam for these parameters: "fused" or "foreach"."""
    seconds = {}
    for name in ("fused", "foreach"):
        own = [nn.Parameter(copy.deepcopy(p.detach())) for p in parameters]
        for p in own:
            p.grad = torch.zeros_like(p)
        adam = torch.optim.Adam(own, **{name: True})
        for count in (3, 20):  # the first times are thrown away
            synchronize(own[0].device)
            begun = time.perf_counter()
            for _ in range(count):
                adam.step()
            synchronize(own[0].device)
            seconds[name] = time.perf_counter() - begun
    return min(seconds, key=seconds.get)
