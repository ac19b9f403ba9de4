"""A weight behind a fixed rotation of its inputs that spreads outliers over all of them."""

import hashlib
import math
from dataclasses import dataclass, field
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from rlx._numerics import wide

from ._operations import Over, dense, matmul, take

_LARGEST = 64  # of the factors of a power of two: two small products rather than one large
_MOST = 256  # of the others: a row is multiplied by each factor as a dense matrix


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class Hadamard(Over):
    """A weight that is kept rotated, `base = w Q`, and rotates its activations: `y = (x Q) @ base.T = x @ w.T`.

    Q = diag(signs) (F_1 ⊗ ... ⊗ F_n), orthogonal, every entry of the size of 1 / sqrt(in): random signs and a
    Kronecker product of small Hadamard matrices. Rotating costs `in * (sum of the factors' sizes)` a row.
    `quantize.rotate` makes it.

    Attributes:
      base: the rotated weight `[out, in]`.
      seed: of the signs; they are no leaf of the tree.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import quantize, weights
      >>> w = jnp.array([[100.0, 1.0, 1.0, 1.0]])
      >>> turned = quantize.rotate(w)
      >>> jnp.abs(turned.base).round(1).tolist(), weights.matmul(jnp.ones(4), turned).round(2).tolist()
      ([[49.5, 49.5, 51.5, 49.5]], [103.0])

    References:
      Ashkboos et al. 2024, "QuaRot: Outlier-Free 4-Bit Inference in Rotated LLMs", section 3; Chee et al. 2023, "QuIP",
      and Tseng et al. 2024, "QuIP#", section 3, for the random signs. Here each weight's inputs alone are rotated,
      and at the product, so a model stays the same function whatever its norms are; nothing is folded into
      neighbouring weights.
    """

    seed: int = field(default=0, metadata={"static": True})

    def matmul(self, x: jax.Array) -> jax.Array:
        """`(x Q) @ base.T`: `[..., in] -> [..., out]`."""
        return matmul(rotated(x, self.seed), self.base)

    def take(self, ids: jax.Array) -> jax.Array:
        """Rows of the weight, turned back: `[...] -> [..., in]`."""
        return rotated(take(self.base, ids), self.seed, back=True)

    def dense(self) -> jax.Array:
        """`base Q.T`, computed in float32 or wider and rounded once."""
        return rotated(dense(self.base), self.seed, back=True)


def rotated(x: jax.Array, seed: int, *, back: bool = False) -> jax.Array:
    """`x Q`, or with `back` `x Q.T`, along the last axis, in x's dtype and computed in float32 or wider."""
    dtype, width = wide(x.dtype), x.shape[-1]
    turn = jnp.asarray(signs(width, seed), dtype).reshape((1,) * (x.ndim - 1) + (width,))
    y = x.astype(dtype) if back else x.astype(dtype) * turn
    left, right = 1, width
    for factor in factors(width):
        size = len(factor)
        right //= size
        matrix = jnp.asarray(factor.T if back else factor, dtype)
        y = jnp.einsum("...fr,fg->...gr", y.reshape(*x.shape[:-1], left, size, right), matrix)
        left *= size
    y = y.reshape(x.shape)
    return (y * turn if back else y).astype(x.dtype)


@cache
def signs(width: int, seed: int) -> np.ndarray:
    """`[width]` of ones and minus ones; of width and seed alone, on every machine."""
    raw = hashlib.shake_256(f"hadamard {seed}".encode()).digest(-(-width // 8))
    return np.unpackbits(np.frombuffer(raw, np.uint8))[:width].astype(np.int8) * 2 - 1


@cache
def factors(width: int) -> tuple[np.ndarray, ...]:
    """Orthogonal float64 matrices whose sizes multiply to `width`, all entries near 1 / sqrt(size).

    Powers of two are Sylvester's. An odd factor m takes as many twos as the smallest known Hadamard matrix of size
    m 2^b, at most 256, needs (Paley's constructions for primes); where none is known it is the cosine transform of
    size m, whose entries are at most sqrt(2) larger.
    """
    odd = width
    while odd % 2 == 0:
        odd //= 2
    found: list[np.ndarray] = []
    if odd > 1:
        sizes = [odd * 2**b for b in range(2, round(math.log2(width // odd)) + 1) if odd * 2**b <= _MOST]
        known = next((matrix for size in sizes if (matrix := _paley(size)) is not None), None)
        found.append(_cosine(odd) if known is None else known / math.sqrt(len(known)))
    twos = round(math.log2(width // math.prod(len(matrix) for matrix in found)))
    parts = -(-twos // round(math.log2(_LARGEST)))
    for i in range(parts):
        found.append(_sylvester(twos // parts + (i < twos % parts)))
    return tuple(found)


def _sylvester(power: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    for _ in range(power):
        matrix = np.kron(np.array([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix / math.sqrt(2**power)


def _paley(size: int) -> np.ndarray | None:
    """A Hadamard matrix of ones and minus ones, or None where Paley's two constructions give none for a prime."""
    if _is_prime(size - 1) and size % 4 == 0:
        q, first = size - 1, True
    elif _is_prime(size // 2 - 1) and (size // 2 - 1) % 4 == 1:
        q, first = size // 2 - 1, False
    else:
        return None
    squares = np.isin(np.arange(q), np.arange(1, q) ** 2 % q)
    residue = np.where(squares, 1.0, -1.0)
    residue[0] = 0.0
    jacobsthal = residue[(np.arange(q)[:, None] - np.arange(q)[None]) % q]
    core = np.zeros((q + 1, q + 1))
    core[0, 1:], core[1:, 0], core[1:, 1:] = 1.0, -1.0 if first else 1.0, jacobsthal
    if first:
        return core + np.eye(q + 1)
    return np.kron(core, np.array([[1.0, 1.0], [1.0, -1.0]])) + np.kron(np.eye(q + 1), np.array([[1, -1], [-1, -1]]))


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, math.isqrt(n) + 1))


def _cosine(size: int) -> np.ndarray:
    n = np.arange(size)
    matrix = math.sqrt(2 / size) * np.cos(math.pi * (n[:, None] + 0.5) * n[None] / size)
    matrix[:, 0] = 1 / math.sqrt(size)
    return matrix
