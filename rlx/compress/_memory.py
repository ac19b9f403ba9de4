"""What is kept of a prefix, and attention that reads it together with new tokens in one softmax."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp

from rlx._checks import check_dtype, check_shapes
from rlx._numerics import wide
from rlx.attention import attention


@partial(jax.tree_util.register_dataclass, data_fields=["keys", "values", "log_mass"], meta_fields=[])
@dataclass(frozen=True, kw_only=True)
class Memory:
    """Entries, each a key and a value that stand for some tokens.

    Attributes:
      keys: `[..., M, K, D]`.
      values: `[..., M, K, E]`.
      log_mass: `[..., M, K]` float32 or wider, the log of how many tokens an entry stands for; 0 is one token as it
        was, -inf an empty entry, whose key and value are never read.
    """

    keys: jax.Array
    values: jax.Array
    log_mass: jax.Array

    @property
    def bytes(self) -> int:
        """Bytes of everything that is kept, empty entries and masses too."""
        return sum(x.size * x.dtype.itemsize for x in (self.keys, self.values, self.log_mass))

    @property
    def size(self) -> int:
        """M, how many entries there is room for."""
        return self.log_mass.shape[-2]

    @property
    def tokens(self) -> jax.Array:
        """`[..., K]`: how many tokens all entries stand for."""
        return jnp.sum(jnp.exp(self.log_mass), axis=-2)


def attend(
    q: jax.Array,
    memory: Memory,
    k: jax.Array | None = None,
    v: jax.Array | None = None,
    *,
    mask: jax.Array | None = None,
    sinks: jax.Array | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    chunk: int = 256,
) -> jax.Array:
    """Attention over a memory and, causally, over the tokens after it: one softmax over both.

    o[t] = sum_i w[t, i] v[i],  w[t, i] = softmax_i(softcap tanh(scale q[t] k[i] / softcap) + log mass[i])

    over all entries of the memory and the new tokens up to t, each of mass 1. The last query sees the last new token.
    A query that sees nothing gets zeros.

    Args:
      q: `[..., T, H, D]`, floating.
      memory: of K heads; H is a multiple of K, and H / K neighbouring query heads share a key head.
      k: `[..., S, K, D]`, new tokens that are kept as they are, S >= T; None is none.
      v: `[..., S, K, E]`.
      mask: `[..., S]` bool, false for new tokens that are padding.
      sinks: as in `rlx.attention.attention`.
      softcap: as there.
      scale: as there; 1 / sqrt(D) if None.
      chunk: as there.

    Returns:
      `[..., T, H, E]` in the dtype of `q`.

    Raises:
      TypeError, ValueError: name the argument that is wrong.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx.compress import Memory, attend
      >>> values, log_mass = jnp.array([[[1.0]], [[5.0]]]), jnp.log(jnp.array([[3.0], [1.0]]))
      >>> memory = Memory(keys=jnp.zeros((2, 1, 4)), values=values, log_mass=log_mass)
      >>> attend(jnp.ones((1, 1, 4)), memory)[0, 0]                     # three tokens of value 1, one of value 5
      Array([2.], dtype=float32)

    References:
      Bolya et al. 2023, "Token Merging" (arXiv 2210.09461), section 3, proportional attention: scores + log mass.
      Deviation: entries differ by key head.
    """
    check_memory(memory)
    check_dtype("floating", q=q)
    batch = memory.keys.shape[:-3]
    if batch != q.shape[:-3]:
        hint = "for one memory and many questions jax.vmap over q alone"
        raise ValueError(f"memory: leading dims {batch} disagree with {q.shape[:-3]} of q; {hint}")
    for name, x in (("keys", memory.keys), ("values", memory.values)):
        if x.dtype != q.dtype:
            raise TypeError(f"memory: dtype {x.dtype} of {name} disagrees with {q.dtype} of q; cast one of them")
    sizes = check_shapes(q=(q, "*THD"), keys=(memory.keys, "*MKD"))
    if (k is None) != (v is None):
        raise ValueError("v: k and v are both given or both None")
    keys, values, log_mass = filled(memory)
    T, K, H = (sizes[letter] for letter in "TKH")
    S = 0
    if k is not None and v is not None:
        check_dtype("floating", k=k, v=v)
        S = check_shapes(k=(k, "*SKD"), v=(v, "*SKE"), keys=(keys, "*MKD"), values=(values, "*MKE"))["S"]
        if T > S:
            raise ValueError(f"k: {S} new tokens are fewer than the {T} queries, of which the last sees the last token")
        if mask is not None:
            check_dtype("boolean", mask=mask)
            if mask.shape != k.shape[:-2]:
                raise ValueError(f"mask: expected shape {k.shape[:-2]}, got {mask.shape}")
            k, v = (jnp.where(mask[..., None, None], x, 0) for x in (k, v))
        same = (("k", k, keys), ("v", v, values))
        for name, new, old in same:
            if new.shape[:-3] != old.shape[:-3]:
                raise ValueError(f"{name}: leading dims {new.shape[:-3]} disagree with {old.shape[:-3]} of the memory")
            if new.dtype != old.dtype:
                raise TypeError(f"{name}: dtype {new.dtype} disagrees with {old.dtype} of the memory; cast one of them")
        keys, values = jnp.concatenate([keys, k], axis=-3), jnp.concatenate([values, v], axis=-3)
        one = jnp.zeros(mask.shape if mask is not None else k.shape[:-2], log_mass.dtype)
        one = one if mask is None else jnp.where(mask, one, -jnp.inf)
        one = jnp.broadcast_to(one[..., None], (*one.shape, K))
        log_mass = jnp.concatenate([log_mass, one], axis=-2)
    elif mask is not None:
        raise ValueError("mask: is of new tokens, and there are none; an empty entry has a log_mass of -inf")
    if K == 0 or H % K:
        raise ValueError(f"memory: {K} heads do not divide the {H} heads of q")
    bias = jnp.repeat(jnp.swapaxes(log_mass, -1, -2), H // K, axis=-2)[..., None, :]  # [..., H, 1, M + S]
    return attention(
        q,
        keys,
        values,
        causal=S > 0,
        offset=memory.size + S - T if S > 0 else 0,
        bias=bias,
        sinks=sinks,
        softcap=softcap,
        scale=scale,
        chunk=chunk,
    )


def check_memory(memory: Memory) -> dict[str, int]:
    """Check the shapes and dtypes of a memory; its sizes."""
    if not isinstance(memory, Memory):
        raise TypeError(f"memory: expected a Memory, got {type(memory).__name__}")
    keys, values, log_mass = memory.keys, memory.values, memory.log_mass
    check_dtype("floating", keys=keys, values=values, log_mass=log_mass)
    sizes = check_shapes(keys=(keys, "*MKD"), values=(values, "*MKE"), log_mass=(log_mass, "*MK"))
    for name, batch in (("values", values.shape[:-3]), ("log_mass", log_mass.shape[:-2])):
        if batch != keys.shape[:-3]:
            raise ValueError(f"{name}: leading dims {batch} disagree with {keys.shape[:-3]} of keys of the memory")
    return sizes


def filled(memory: Memory) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys, values and log masses, zeros where an entry is empty, whatever was there."""
    there = memory.log_mass > -jnp.inf
    keys, values = (jnp.where(there[..., None], x, 0) for x in (memory.keys, memory.values))
    return keys, values, memory.log_mass.astype(wide(memory.log_mass.dtype))
