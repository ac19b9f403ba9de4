"""Rounding with error feedback: later inputs make up for what the rounding of earlier ones did."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rlx import weights
from rlx._checks import check_dtype, check_range, check_whole
from rlx.weights._lowbit import RANGE, spread

from ._quantize import Activations, Bits, checked_block, packed, quantize
from ._scales import Scale

_COLUMNS = 64  # whose errors are passed on within a block before one product passes them on to the rest


def gptq(
    w: jax.Array,
    moment: jax.Array,
    bits: Bits,
    *,
    block: int | None = None,
    activations: Activations = "dynamic_int8",
    scale: Scale = "mse",
    damping: float = 0.01,
    sweeps: int = 2,
) -> weights.QuantizedWeight:
    """Round a weight so that its products with the calibration data change least.

    error(q) = sum_rows (x w.T - x q.T)^2 = sum_o (w - q)_o H (w - q)_o.T,   H = sum_rows x x.T

    Inputs are rounded one after the other, those of the largest H_ii first; the rounding error of each is spread over
    those not yet rounded, as the Cholesky factor of the inverse of H + damping mean(H_ii) 1 says. An output whose
    plain rounding has the smaller error keeps that, so the result is never worse than `quantize` with
    the same scales.

    Args:
      w: `[..., out, in]`, floating; leading axes are stacked layers.
      moment: `[..., in, in]`, from `calibrate`. An input that is always zero is rounded plainly.
      bits: 2, 4 or 8.
      block: as in `quantize`.
      activations: as in `quantize`; the error is of float activations in any case.
      scale: as in `quantize`. Scales are those of the weight as it was, blockwise ones too.
      damping: added to the diagonal of H, as a share of its mean. With too little of it a Cholesky factor in float32
        may not exist; then plain rounding stays.
      sweeps: how often each code is then changed to the best one given all others, and (without blocks) each
        scale to the best given the codes; 0 is GPTQ alone. A sweep costs about what the
        feedback did, and none makes the error larger.

    Returns:
      A `weights.QuantizedWeight`.

    Raises:
      TypeError: `w` or `moment` is not floating.
      ValueError: `moment` is not `[..., in, in]` of the weight, or holds NaN or infinity; `damping` is not positive.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import quantize
      >>> w = jnp.array([[1.0, 0.4, 0.4]])
      >>> x = jnp.array([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
      >>> q = quantize.gptq(w, x.T @ x, 2, scale="minmax")
      >>> quantize.quantize(w, 2).dense().tolist(), (100 * q.dense()).round().tolist()
      ([[1.0, 0.0, 0.0]], [[90.0, 0.0, 90.0]])

    References:
      Frantar et al. 2022, "GPTQ", algorithm 1 (arXiv 2210.17323). Here inputs are always in order of H_ii (the authors'
      later `act_order`), blocks keep the scales of the original weight (their `static_groups`), and an
      output keeps plain rounding where that is better. Sweeps: Behdin et al. 2023, "QuantEase", with scales refitted.
    """
    check_dtype("floating", w=w, moment=moment)
    check_range("damping", damping, 0.0, 1e6, open_low=True)
    check_whole("sweeps", sweeps, 0)
    w, moment = jnp.asarray(w), jnp.asarray(moment)
    checked_block(w, block)
    expected = (*w.shape[:-2], w.shape[-1], w.shape[-1])
    if tuple(moment.shape) != expected:
        raise ValueError(f"moment: expected [..., in, in] = {expected} for w of shape {w.shape}, got {moment.shape}")
    if not isinstance(moment, jax.core.Tracer) and not bool(np.isfinite(moment).all()):
        raise ValueError("moment: holds NaN or infinity; were the activations of the calibration finite?")
    plain = quantize(w, bits, block=block, activations=activations, scale=scale)
    codes, scales = _stacked(w, moment, plain.integers(), plain.scale, damping, bits, block, int(sweeps))
    return packed(w, codes, scales, bits=bits, block=block, activations=activations)


def output_error(w: jax.Array, q: jax.Array, moment: jax.Array) -> jax.Array:
    """`(w - q)_o H (w - q)_o.T` of each output: `[..., out]`."""
    apart = w.astype(jnp.float32) - q.astype(jnp.float32)
    return jnp.sum(jnp.matmul(apart, moment.astype(jnp.float32), precision=lax.Precision.HIGHEST) * apart, axis=-1)


@partial(jax.jit, static_argnames=("bits", "block", "sweeps"))
def _stacked(
    w: jax.Array,
    h: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    damping: float | jax.Array,
    bits: int,
    block: int | None,
    sweeps: int,
) -> tuple[jax.Array, jax.Array]:
    """`_round` of one matrix or of a stack of them."""
    one = partial(_round, bits=bits, block=block, sweeps=sweeps, damping=jnp.asarray(damping, jnp.float32))
    for _ in w.shape[:-2]:
        one = jax.vmap(one)
    return one(w.astype(jnp.float32), h.astype(jnp.float32), codes.astype(jnp.float32), scale)


def _round(
    w: jax.Array,
    h: jax.Array,
    plain: jax.Array,
    scale: jax.Array,
    *,
    bits: int,
    block: int | None,
    sweeps: int,
    damping: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Codes `[out, in]` and scales of one matrix, given those of plain rounding."""
    steps = jnp.broadcast_to(spread(scale, block, 2), w.shape)
    best, kept = _feedback(w, h, steps, bits, damping), scale
    for _ in range(sweeps):
        best = _sweep(w, h, best, jnp.broadcast_to(spread(kept, block, 2), w.shape), bits)
        if block is None:
            kept = _refit(w, h, best, kept)
    finer = jnp.broadcast_to(spread(kept, block, 2), w.shape)
    # NaN compares false: rows of NaN stay as plain rounding left them.
    better = output_error(w, best * finer, h) <= output_error(w, plain * steps, h)
    codes = jnp.where(better[:, None], best, plain)
    return codes, jnp.where(better if block is None else better[:, None], kept, scale)


def _feedback(w: jax.Array, h: jax.Array, steps: jax.Array, bits: int, damping: jax.Array) -> jax.Array:
    outputs, inputs = w.shape
    diagonal = jnp.diagonal(h)
    dead = diagonal <= 0
    mean = jnp.mean(diagonal)
    order = jnp.argsort(-diagonal)
    # A dead input has nothing to pass on and takes nothing: its row and column of H are those of the identity.
    h = jnp.where(dead[:, None] | dead[None], 0.0, h) / jnp.where(mean > 0, mean, 1.0)
    h = h + jnp.diag(jnp.where(dead, 1.0, damping))
    room = -inputs % _COLUMNS
    h = jnp.pad(h[order][:, order], ((0, room), (0, room)))
    h = h + jnp.diag(jnp.pad(jnp.zeros(inputs, h.dtype), (0, room), constant_values=1.0))
    upper = _inverse_factor(h)
    w = jnp.pad(w[:, order], ((0, 0), (0, room)))
    steps = jnp.pad(steps[:, order], ((0, 0), (0, room)), constant_values=1.0)
    width = inputs + room
    at = jnp.arange(width)

    def chunk(i: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        w, codes = carry
        start = i * _COLUMNS
        part = lax.dynamic_slice(w, (0, start), (outputs, _COLUMNS))
        step = lax.dynamic_slice(steps, (0, start), (outputs, _COLUMNS))
        rows = lax.dynamic_slice(upper, (start, 0), (_COLUMNS, width))
        near = lax.dynamic_slice(rows, (0, start), (_COLUMNS, _COLUMNS))

        def column(j: jax.Array, inner: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            part, code, errors = inner
            value, one = part[:, j], step[:, j]
            chosen = jnp.clip(jnp.round(value / one), *RANGE[bits])
            error = (value - chosen * one) / near[j, j]
            later = jnp.where(jnp.arange(_COLUMNS) > j, near[j], 0.0)
            return part - error[:, None] * later[None], code.at[:, j].set(chosen), errors.at[:, j].set(error)

        empty = jnp.zeros_like(part)
        _, code, errors = lax.fori_loop(0, _COLUMNS, column, (part, empty, empty))
        beyond = jnp.where((at >= start + _COLUMNS)[None], rows, 0.0)
        return w - jnp.matmul(errors, beyond), lax.dynamic_update_slice(codes, code, (0, start))

    _, codes = lax.fori_loop(0, width // _COLUMNS, chunk, (w, jnp.zeros_like(w)))
    return jnp.zeros((outputs, inputs), codes.dtype).at[:, order].set(codes[:, :inputs])


def _inverse_factor(h: jax.Array) -> jax.Array:
    """Upper triangular U with U.T U = inverse of h.

    With J the reversal, J h J = L L.T; then inverse(h) = (J L^-1 J).T (J L^-1 J) and J L^-1 J is upper triangular: one
    Cholesky of h itself and one triangular solve, never the inverse of an inverse.
    """
    lower = jnp.linalg.cholesky(h[::-1, ::-1])
    eye = jnp.eye(len(h), dtype=h.dtype)
    return jax.scipy.linalg.solve_triangular(lower, eye, lower=True)[::-1, ::-1]


def _sweep(w: jax.Array, h: jax.Array, codes: jax.Array, steps: jax.Array, bits: int) -> jax.Array:
    """Each code, input by input, to the best one given all the others."""
    diagonal = jnp.diagonal(h)

    def column(j: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        codes, pull = carry  # pull = (w - q) H
        alive = diagonal[j] > 0
        ideal = codes[:, j] + pull[:, j] / (jnp.where(alive, diagonal[j], 1.0) * steps[:, j])
        chosen = jnp.where(alive, jnp.clip(jnp.round(ideal), *RANGE[bits]), codes[:, j])
        moved = (chosen - codes[:, j]) * steps[:, j]
        return codes.at[:, j].set(chosen), pull - moved[:, None] * h[j][None]

    pull = jnp.matmul(w - codes * steps, h, precision=lax.Precision.HIGHEST)
    return lax.fori_loop(0, w.shape[1], column, (codes, pull))[0]


def _refit(w: jax.Array, h: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    """The scale of each output that is best for its codes."""
    toward = jnp.matmul(codes, h, precision=lax.Precision.HIGHEST)
    power, dot = jnp.sum(toward * codes, axis=-1), jnp.sum(toward * w, axis=-1)
    good = (power > 0) & (dot > 0)
    return jnp.where(good, dot / jnp.where(good, power, 1.0), scale)
