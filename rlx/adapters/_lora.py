"""Low-rank adapters: LoRA, rsLoRA and DoRA."""

from typing import Literal

import jax
import jax.numpy as jnp

from rlx import weights
from rlx._checks import check_choice, check_range

from ._adapter import Adapter, check_arrays, dense_stack, over_matrices

Scaling = Literal["alpha/rank", "alpha/sqrt(rank)"]
Shapes = dict[str, tuple[int, ...]]


def lora(*, rank: int = 8, alpha: float = 16.0, where: str, scaling: Scaling = "alpha/rank") -> Adapter:
    """Low-rank adaptation: every matched weight becomes w + s b a.

    s = alpha / rank, or alpha / sqrt(rank) (rsLoRA)

    `a [rank, in]` starts uniform in ±1/sqrt(in) (as PEFT does), `b [out, rank]` at zero.

    Args:
      rank: the inner dimension.
      alpha: the numerator of the scale.
      where: a regular expression searched in each dotted path, such as `r"\\.(q|v)_proj\\."`.
      scaling: which scale.

    Returns:
      An `Adapter`. For stacked weights `[layers, out, in]` its arrays are stacked too.

    Raises:
      ValueError: `rank` or `alpha` out of range; from `init`, a pattern that matches no weight;
        from `attach`, arrays that do not fit.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import adapters, weights
      >>> params = {"q_proj": {"weight": jnp.eye(4)}, "o_proj": {"weight": jnp.eye(4)}}
      >>> adapter = adapters.lora(rank=2, where="q_proj")
      >>> delta = adapter.init(jax.random.key(0), params)
      >>> {name: array.shape for name, array in delta["q_proj.weight"].items()}
      {'a': (2, 4), 'b': (4, 2)}
      >>> bool(jnp.all(adapter.merge(params, delta)["q_proj"]["weight"] == params["q_proj"]["weight"]))
      True

    References:
      Hu et al. 2021, section 4.1; Kalajdzievski 2023, "A Rank Stabilization Scaling Factor for
      Fine-Tuning with LoRA", theorem 3.2.
    """
    scale = _scale(rank, alpha, scaling)

    def start(key: jax.Array, path: str, weight: weights.Weight) -> dict[str, jax.Array]:
        return _factors(key, weight, rank)

    def adapt(path: str, weight: weights.Weight, arrays: dict[str, jax.Array]) -> weights.LoRA:
        *stack, outputs, inputs = weight.shape
        check_arrays(path, arrays, {"a": (*stack, rank, inputs), "b": (*stack, outputs, rank)})
        return weights.LoRA(base=weight, a=arrays["a"], b=arrays["b"], scale=jnp.full(tuple(stack), scale, jnp.float32))

    return over_matrices(where, start, adapt)


def dora(*, rank: int = 8, alpha: float = 16.0, where: str, scaling: Scaling = "alpha/rank") -> Adapter:
    """Weight-decomposed low-rank adaptation: LoRA for the direction of each row, a trained norm for its length.

    w' = m (w + s b a) / ||w + s b a||, row by row; m starts at the row norms of w.

    Args:
      rank: as for `lora`.
      alpha: as for `lora`.
      where: as for `lora`.
      scaling: as for `lora`.

    Returns:
      An `Adapter` with arrays `a`, `b` and `magnitude [out]` for each matched weight.

    Raises:
      ValueError: as for `lora`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import adapters
      >>> params = {"q_proj": {"weight": 3 * jnp.eye(2)}}
      >>> adapters.dora(rank=1, where="q_proj").init(jax.random.key(0), params)["q_proj.weight"]["magnitude"]
      Array([3., 3.], dtype=float32)

    References:
      Liu et al. 2024, "DoRA: Weight-Decomposed Low-Rank Adaptation", equation 5. The norm is
      detached from the gradient (section 4.3), as in PEFT.
    """
    scale = _scale(rank, alpha, scaling)

    def start(key: jax.Array, path: str, weight: weights.Weight) -> dict[str, jax.Array]:
        rows = jnp.linalg.norm(dense_stack(weight).astype(jnp.float32), axis=-1)
        return {**_factors(key, weight, rank), "magnitude": rows}

    def adapt(path: str, weight: weights.Weight, arrays: dict[str, jax.Array]) -> weights.DoRA:
        *stack, outputs, inputs = weight.shape
        shapes: dict[str, tuple[int, ...]] = {
            "a": (*stack, rank, inputs),
            "b": (*stack, outputs, rank),
            "magnitude": (*stack, outputs),
        }
        check_arrays(path, arrays, shapes)
        return weights.DoRA(base=weight, scale=jnp.full(tuple(stack), scale, jnp.float32), **arrays)

    return over_matrices(where, start, adapt)


def _scale(rank: int, alpha: float, scaling: str) -> float:
    check_range("rank", rank, 1, 2**20)
    check_range("alpha", alpha, 0, 1e6, open_low=True)
    check_choice("scaling", scaling, ("alpha/rank", "alpha/sqrt(rank)"))
    return alpha / rank if scaling == "alpha/rank" else alpha / rank**0.5


def _factors(key: jax.Array, weight: weights.Weight, rank: int) -> dict[str, jax.Array]:
    *stack, outputs, inputs = weight.shape
    bound = inputs**-0.5
    return {
        "a": jax.random.uniform(key, (*stack, rank, inputs), jnp.float32, -bound, bound),
        "b": jnp.zeros((*stack, outputs, rank), jnp.float32),
    }
