"""Quantisation-aware training: scales are a separate tree, and what is frozen computes what was trained."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from rlx import weights
from rlx._checks import check_choice, check_dtype, check_whole
from rlx._tree import replace_leaves
from rlx.weights._lowbit import RANGE

from ._layers import over_layers, storage
from ._quantize import Activations, Bits, checked_block, packed, quantize
from ._rules import Rule, as_matrix, as_weight, is_one, matrices, plan_bits

Scales = dict[str, jax.Array]
Start = Literal["mse", "minmax", "lsq"]


class QAT(NamedTuple):
    """Training for few bits, as three pure functions.

    Attributes:
      init: `init(params) -> scales`, float32 by the path of each weight; trained beside the parameters.
      attach: `attach(params, scales) -> params` with `weights.FakeQuantized` in place.
      freeze: `freeze(params, scales) -> params` with `weights.QuantizedWeight`: packed codes, whose products are
        those of `attach` bit by bit.
    """

    init: Callable[[Any], Scales]
    attach: Callable[[Any, Scales], Any]
    freeze: Callable[[Any, Scales], Any]


def qat(
    rule: Rule, *, block: int | None = None, activations: Activations = "dynamic_int8", start: Start = "mse"
) -> QAT:
    """Train a model for few bits: latent float weights, learned scales, rounding that gradients pass straight through.

    Differentiate `loss(attach(params, scales))` for both arguments, or for the scales alone. A scale's step is
    absolute: give it a learning rate well below the scales themselves (about a tenth of the weights' rate with Adam).

    Args:
      rule: as in `quantize_tree`; see `standard_rule`.
      block: as in `quantize`.
      activations: what products see: "dynamic_int8" is what the exported file computes.
      start: scales at the start: of the least squared error, "minmax", or LSQ's `2 mean|w| / sqrt(high)`.

    Returns:
      A `QAT(init, attach, freeze)`.

    Raises:
      ValueError: `activations` or `start` is not one of the choices; from the functions, as `plan_bits`, and
        scales that are not those of `init`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import quantize, weights
      >>> params = {"up": {"weight": jax.random.normal(jax.random.key(0), (4, 8))}}
      >>> training = quantize.qat({"up": 2})
      >>> scales = training.init(params)
      >>> x = jnp.ones((1, 8))
      >>> attached, frozen = training.attach(params, scales), training.freeze(params, scales)
      >>> y = weights.matmul(x, attached["up"]["weight"])
      >>> bool(jnp.array_equal(y, weights.matmul(x, frozen["up"]["weight"]))), frozen["up"]["weight"].codes.shape
      (True, (4, 2))

    References:
      Esser et al. 2019, "Learned Step Size Quantization" (arXiv 1902.08153); deviations in `weights.FakeQuantized`.
      "mse" as a start is not theirs.
    """
    check_choice("activations", activations, ("dynamic_int8", "float"))
    check_choice("start", start, ("mse", "minmax", "lsq"))
    if block is not None:
        check_whole("block", block, 1)

    def init(params: Any) -> Scales:
        leaves, found = matrices(params), {}
        for path, bits in plan_bits(params, rule).items():
            w = as_matrix(path, leaves[path])
            checked_block(w, block)
            found[path] = over_layers(first, bits, w)
        return found

    def first(bits: Bits, w: jax.Array) -> jax.Array:
        return _lsq_start(w, bits, block) if start == "lsq" else quantize(w, bits, block=block, scale=start).scale

    def attached(params: Any, scales: Scales) -> dict[str, weights.FakeQuantized]:
        leaves, plan = matrices(params), plan_bits(params, rule)
        if plan.keys() != scales.keys():
            raise ValueError(f"scales: are not of these weights: {', '.join(sorted(plan.keys() ^ scales.keys()))}")
        found = {}
        for path, bits in plan.items():
            w, scale = as_weight(path, leaves[path]), scales[path]
            check_dtype("floating", **{f"scales[{path!r}]": scale})
            expected = tuple(w.shape[:-1]) if block is None else (*w.shape[:-1], w.shape[-1] // block)
            if tuple(scale.shape) != expected:
                raise ValueError(f"scales: that of {path} has shape {tuple(scale.shape)}, expected {expected}")
            most, own = storage(bits, w.shape)
            found[path] = weights.FakeQuantized(
                base=w, scale=scale, bits=most, block=block, activations=activations, layer_bits=own
            )
        return found

    def attach(params: Any, scales: Scales) -> Any:
        return replace_leaves(params, attached(params, scales), is_one)

    def freeze(params: Any, scales: Scales) -> Any:
        return replace_leaves(params, {path: _frozen(w) for path, w in attached(params, scales).items()}, is_one)

    return QAT(init, attach, freeze)


def _frozen(w: weights.FakeQuantized) -> weights.QuantizedWeight:
    codes, scale = w.codes(), w.positive_scale()
    # There is no code for NaN: it shows in the scale that it shares.
    lost = jnp.any(jnp.isnan(codes).reshape(*scale.shape, -1), axis=-1)
    scale = jnp.where(lost, jnp.nan, scale)
    return packed(w, codes, scale, bits=w.bits, block=w.block, activations=w.activations, layer_bits=w.layer_bits)


def _lsq_start(w: jax.Array, bits: Bits, block: int | None) -> jax.Array:
    size = jnp.abs(w.astype(jnp.float32)).reshape(*w.shape[:-1], -1, block or w.shape[-1])
    scale = 2 * jnp.mean(size, axis=-1) / RANGE[bits][1] ** 0.5
    scale = jnp.where(scale == 0, 1.0, scale)
    return scale[..., 0] if block is None else scale
