"""Contenders in PyTorch: the same training, eager or compiled."""

import time
from typing import Any

import numpy as np
import torch

from benchmarks.alignment.torch_gpt2 import (
    Context,
    Transformer,
    fastest_adam,
    learning_rate,
    sample_contexts,
    training_loss,
)
from benchmarks.torch_product import TorchContender, synchronize, torch_device
from icl_align.running.compose import compose_config


class Training(TorchContender):
    """Training steps of the same model.

    Args:
      overrides: of the configuration.
      compiled: with `torch.compile`.
      attention: as in `torch_gpt2.Transformer`.
    """

    def __init__(self, overrides: list[str], compiled: bool, attention: str):
        self.config = compose_config(overrides)
        self.compiled, self.attention = compiled, attention
        self.step, self.contexts = 0, None

    def build(self) -> dict[str, Any]:
        """Makes the model, compiles it if asked, and does the first step."""
        self.device = torch_device()
        torch.manual_seed(self.config.seed)
        self.model = Transformer(self.config, self.attention).to(self.device)
        self.parameters = [p for p in self.model.parameters() if p.requires_grad]
        begun = time.perf_counter()
        adam = fastest_adam(self.parameters)
        trial_seconds = time.perf_counter() - begun
        rate = self.config.train.learning_rate
        self.adam = torch.optim.Adam(self.parameters, lr=rate, **{adam: True})
        self.loss = training_loss
        if self.compiled:  # small steps on an accelerator wait for Python: record them
            mode = "reduce-overhead" if self.device.type == "cuda" else "default"
            self.loss = torch.compile(training_loss, mode=mode)
        seconds = self.steps(1)["seconds"]
        return {
            "platform": self.device.type,
            "compile_seconds": seconds if self.compiled else 0.0,  # and the one step
            "parameters": sum(p.numel() for p in self.parameters),
            "adam": adam,
            "adam_trial_seconds": trial_seconds,
            "threads": torch.get_num_threads(),
        }

    def steps(self, count: int) -> dict[str, float]:
        """Does `count` steps; the seconds and the last loss."""
        synchronize(self.device)
        begun = time.perf_counter()
        for _ in range(count):
            loss = self.one_step(
                sample_contexts(self.config.task, self.config.train.batch_size, self.device)
            )
        synchronize(self.device)
        return {"seconds": time.perf_counter() - begun, "loss": float(loss.detach())}

    def one_step(self, context: Context) -> torch.Tensor:
        """One optimiser step on a batch; its loss."""
        train = self.config.train
        self.adam.zero_grad(set_to_none=True)
        loss = self.loss(self.model, self.config, context)
        loss.backward()
        if train.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, train.clip_norm)
        for group in self.adam.param_groups:
            group["lr"] = learning_rate(train, self.step)
        self.adam.step()
        self.step += 1
        return loss

    @torch.no_grad()
    def error(self, path: str, attempts: int) -> dict[str, float]:
        """Mean refinement error on the contexts of file `path`."""
        if self.contexts is None:
            with np.load(path) as arrays:
                as_tensors = {n: torch.from_numpy(arrays[n]).to(self.device) for n in arrays}
            self.contexts = Context(**as_tensors)
        query, responses, rewards, target = self.contexts
        seen = responses[:, :attempts], rewards[:, :attempts]
        row = self.model(query, *seen, first=attempts)[:, 0]
        cosine = torch.nn.functional.cosine_similarity(row, target, dim=-1, eps=1e-8)
        return {"error": float((1 - cosine).mean())}
