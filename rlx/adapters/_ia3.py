"""IA3: one learned factor for each output, or each input, of a weight."""

import re

import jax
import jax.numpy as jnp

from rlx import weights

from ._adapter import Adapter, check_arrays, over_matrices


def ia3(*, where: str, feedforward: str | None = None) -> Adapter:
    """Rescale what a weight gives, or what it takes: y = l * (w x), or y = w (l * x).

    Args:
      where: a regular expression searched in each dotted path, such as `r"\\.(k|v|down)_proj\\."`.
      feedforward: those of them whose input is rescaled, such as `r"\\.down_proj\\."`; None for none.

    Returns:
      An `Adapter` with one array `scale` for each matched weight, ones at the start.

    Raises:
      ValueError: from `init`, a pattern that matches no weight; from `attach`, arrays that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import adapters
      >>> params = {"k_proj": {"weight": jnp.ones((3, 2))}, "down_proj": {"weight": jnp.ones((3, 2))}}
      >>> delta = adapters.ia3(where="_proj", feedforward="down").init(jax.random.key(0), params)
      >>> {path: arrays["scale"].shape for path, arrays in delta.items()}
      {'down_proj.weight': (2,), 'k_proj.weight': (3,)}

    References:
      Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than
      In-Context Learning", section 3.3.
    """

    def takes_input(path: str) -> bool:
        return feedforward is not None and re.search(feedforward, path) is not None

    def size(path: str, weight: weights.Weight) -> tuple[int, ...]:
        *stack, outputs, inputs = weight.shape
        return (*stack, inputs if takes_input(path) else outputs)

    def start(key: jax.Array, path: str, weight: weights.Weight) -> dict[str, jax.Array]:
        return {"scale": jnp.ones(size(path, weight), jnp.float32)}

    def adapt(path: str, weight: weights.Weight, arrays: dict[str, jax.Array]) -> weights.IA3:
        check_arrays(path, arrays, {"scale": size(path, weight)})
        if takes_input(path):
            return weights.IA3(base=weight, input_scale=arrays["scale"])
        return weights.IA3(base=weight, output_scale=arrays["scale"])

    return over_matrices(where, start, adapt)
