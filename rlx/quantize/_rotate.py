"""Rotate weights before they are rounded, so that no input stands out."""

from typing import Any

import jax
import jax.numpy as jnp

from rlx import weights
from rlx._checks import check_dtype, check_whole
from rlx._names import some
from rlx._tree import replace_leaves
from rlx.weights._hadamard import rotated

from ._rules import is_kernel, is_one, matching, matrices


def rotate(w: jax.Array, *, seed: int = 0) -> weights.Hadamard:
    """Keep a weight rotated by a randomised Hadamard matrix; it stays the same function.

    x @ w.T = (x Q) @ (w Q).T

    Any width has a rotation: powers of two have Sylvester's matrix; others its Kronecker product with a small one of
    Paley's, or with a cosine transform where none is known. An odd prime width is a cosine transform alone, dense.

    Args:
      w: `[..., out, in]`, floating.
      seed: of the signs, a whole number.

    Returns:
      A `weights.Hadamard` whose `base` is `w Q`, in the dtype of `w`: quantise that. Each product rotates its
      activations too, which also spreads the outliers that make the int8 rounding of activations coarse.

    Raises:
      TypeError: `w` is not floating; `seed` is no whole number.
      ValueError: `w` is no matrix.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import quantize, weights
      >>> w = jax.random.normal(jax.random.key(0), (5, 12))
      >>> bool(jnp.allclose(weights.dense(quantize.rotate(w)), w, atol=1e-5))
      True

    References:
      As `weights.Hadamard`.
    """
    check_dtype("floating", w=w)
    check_whole("seed", seed)
    w = jnp.asarray(w)
    if w.ndim < 2 or 0 in w.shape:
        raise ValueError(f"w: expected dims [..., out, in], none of them 0, got shape {w.shape}")
    return weights.Hadamard(base=rotated(w, int(seed)), seed=int(seed))


def rotate_tree(params: Any, *, where: str = "", seed: int = 0) -> Any:
    """Rotate the weights of a tree: `calibrate`, `quantize_tree` and `qat` then find them at `...weight.base`.

    Args:
      params: a tree of arrays.
      where: a regular expression searched in the path of each weight; leave out tables that are looked up, whose
        rows would each be turned back.
      seed: of the signs, the same for all.

    Returns:
      The tree with a `weights.Hadamard` in place of each weight that was found.

    Raises:
      ValueError: `where` matches no weight, or a kernel of flax, whose module multiplies by itself.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize
      >>> turned = quantize.rotate_tree({"up": {"weight": jnp.ones((4, 8))}}, where="up")
      >>> small = quantize.quantize_tree(turned, {r"up\\.weight": 4})
      >>> type(small["up"]["weight"]).__name__, type(small["up"]["weight"].base).__name__
      ('Hadamard', 'QuantizedWeight')
    """
    chosen = matching(matrices(params), "where", where)
    kernels = [path for path, leaf in chosen.items() if is_kernel(path, leaf)]
    if kernels:
        raise ValueError(f"where: {some(kernels)} are kernels of flax, whose modules would multiply by what is turned")
    return replace_leaves(params, {path: rotate(leaf, seed=seed) for path, leaf in chosen.items()}, is_one)
