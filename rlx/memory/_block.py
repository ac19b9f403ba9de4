"""A block of a chain: a function of parameters and an activation."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax

from rlx._checks import check_whole, is_array
from rlx._tree import named_leaves

Function = Callable[[Any, Any], Any]
Policy = Callable[..., Any] | None

POLICIES: Mapping[str, Policy] = {"keep": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


@dataclass(frozen=True, kw_only=True)
class Block:
    """One block of a chain, or a stack of equal ones.

    Attributes:
      fn: `fn(params, x) -> y`, pure; activations may be any pytree. What it computes with must come in through
        `params` or `x`: a differentiated value must not be captured by closure.
      params: a pytree; for a stack every leaf has the layers on axis 0, and they run in one `lax.scan`.
      inverse: `inverse(params, y) -> x` of a block that can be undone, or None.
      repeat: the number of layers of a stack, or None for a block by itself.
    """

    fn: Function
    params: Any
    inverse: Function | None = None
    repeat: int | None = None

    def __post_init__(self) -> None:
        """Check the parameters and the stack."""
        for name, fn in (("fn", self.fn), ("inverse", self.inverse)):
            if not callable(fn) and not (name == "inverse" and fn is None):
                raise TypeError(f"{name}: expected a function of (params, x), got {type(fn).__name__}")
            if not isinstance(fn, Hashable):
                raise TypeError(f"{name}: {type(fn).__name__} cannot be hashed; wrap it: lambda params, x: ...")
        leaves = named_leaves(self.params)
        for path, leaf in leaves.items():
            if not is_array(leaf):
                raise TypeError(f"params: {path or 'it'} is {type(leaf).__name__}; expected arrays or shapes")
        if self.repeat is None:
            return
        check_whole("repeat", self.repeat, 1)
        if not leaves:
            raise ValueError(
                f"params: a stack of {self.repeat} layers has no array; it needs the layers on axis 0 of one"
            )
        for path, leaf in leaves.items():
            if leaf.shape[:1] != (self.repeat,):
                raise ValueError(f"params: {path} has shape {leaf.shape}, expected {self.repeat} layers on axis 0")

    @property
    def size(self) -> int:
        """How many blocks of the chain it is."""
        return 1 if self.repeat is None else self.repeat

    def layer(self) -> Any:
        """Shapes of one layer's parameters."""
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.params)
        if self.repeat is None:
            return shapes
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), shapes)


def as_blocks(blocks: Sequence[Any]) -> tuple[Block, ...]:
    """Blocks from blocks or `(fn, params)` pairs."""
    found = []
    for i, block in enumerate(blocks):
        if isinstance(block, tuple) and len(block) == 2:
            block = Block(fn=block[0], params=block[1])
        if not isinstance(block, Block):
            raise TypeError(f"blocks: expected Block or (fn, params) at {i}, got {type(block).__name__}")
        found.append(block)
    if not found:
        raise ValueError("blocks: a chain has at least one")
    return tuple(found)


def shapes_of(tree: Any) -> Any:
    """A tree's shapes and dtypes."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def size_of(tree: Any) -> int:
    """Bytes of a tree of arrays or shapes."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def temporary(fn: Callable[..., Any], *args: Any) -> int:
    """Temporary bytes of a compiled function, by the compiler's count."""
    found = jax.jit(fn).lower(*args).compile().memory_analysis()
    if found is None:
        raise NotImplementedError(f"the compiler for {jax.default_backend()!r} does not say what it allocates")
    return int(found.temp_size_in_bytes)
