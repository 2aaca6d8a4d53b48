"""Into which slices a device cuts its contexts, so that activations stay in the cache of a CPU."""

import math

from icl_align.config import Config

# Tokens of a slice on a CPU; see benchmarks/NOTES.md.
CPU_TOKENS = 384


def slice_size(
    config: Config, num_tokens: int, num_members: int, num_contexts: int, platform: str
) -> int:
    """How many of `num_contexts` contexts of each member a device computes the gradient of at once.

    It divides `num_contexts`. On a CPU a slice is as long as the cache likes: more pays for memory,
    fewer for starting many small products.

    Args:
      config: `devices.slice` bounds it from above.
      num_tokens: of a context.
      num_members: networks on the device.
      num_contexts: of each network, on the device.
      platform: "cpu", or any other for an accelerator.
    """
    small = [n for n in range(1, math.isqrt(num_contexts) + 1) if num_contexts % n == 0]
    divisors = sorted({*small, *(num_contexts // n for n in small)})
    if config.devices.slice is not None:
        return max(n for n in divisors if n <= config.devices.slice)
    if platform != "cpu":
        return num_contexts
    wanted = max(1, CPU_TOKENS // (num_members * num_tokens))
    return min(divisors, key=lambda n: abs(math.log(n / wanted)))
