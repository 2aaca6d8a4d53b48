"""What contenders in PyTorch share, and the machine's peak as PyTorch reaches it."""

import time
from typing import Any

import torch

from benchmarks.worker import Contender


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def torch_device() -> torch.device:
    """What PyTorch computes on; float32 products as fast there as JAX's are by default."""
    torch.set_float32_matmul_precision("high")
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class TorchContender(Contender):
    """What all contenders in PyTorch share."""

    def device_peak(self) -> int | None:
        """As in `Contender`."""
        return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None


class Product(TorchContender):
    """A product of two square matrices.

    Args:
      size: of the matrices.
      dtype: float32 or bfloat16.
    """

    def __init__(self, size: int, dtype: str):
        self.size, self.dtype = size, dtype

    def build(self) -> dict[str, Any]:
        """Makes the matrices and multiplies once."""
        self.device = torch_device()
        shape = (self.size, self.size)
        pair = torch.randn(2, *shape, device=self.device).to(getattr(torch, self.dtype))
        self.left, self.right = pair
        self.out = torch.empty_like(self.left)
        self.steps(1)
        return {"platform": self.device.type}

    def steps(self, count: int) -> dict[str, float]:
        """Multiplies `count` times; the seconds."""
        synchronize(self.device)
        begun = time.perf_counter()
        for _ in range(count):
            torch.matmul(self.left, self.right, out=self.out)
        synchronize(self.device)
        return {"seconds": time.perf_counter() - begun}
