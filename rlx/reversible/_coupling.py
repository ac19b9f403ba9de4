"""Couplings: a layer's forward step, its inverse, and its gradient from the outputs alone."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from rlx._tree import combine

from ._stream import Stream

Block = Callable[[Any, Any, jax.Array | None], Any]
Params = dict[str, Any]
State = tuple[Any, Any]


@dataclass(frozen=True)
class Additive:
    """The additive coupling of two residual blocks; make it with `additive`."""

    f: Block
    g: Block

    def forward(
        self, params: Params, state: State, key: jax.Array | None, stream: Stream, like: State
    ) -> tuple[State, State]:
        """`y1 = x1 + f(x2)`, `y2 = x2 + g(y1)` on the streams; returns `(y1, y2)` and the two updates."""
        x1, x2 = state
        key_f, key_g = _split(key)
        update1 = self.f(params["f"], _each(stream.decode, x2, like[1]), key_f)
        y1 = _each(stream.add, x1, update1)
        update2 = self.g(params["g"], _each(stream.decode, y1, like[0]), key_g)
        y2 = _each(stream.add, x2, update2)
        return (y1, y2), (update1, update2)

    def inverse(self, params: Params, state: State, key: jax.Array | None, stream: Stream, like: State) -> State:
        """`x2 = y2 - g(y1)`, `x1 = y1 - f(x2)` on the streams."""
        y1, y2 = state
        key_f, key_g = _split(key)
        x2 = _each(stream.subtract, y2, self.g(params["g"], _each(stream.decode, y1, like[0]), key_g))
        x1 = _each(stream.subtract, y1, self.f(params["f"], _each(stream.decode, x2, like[1]), key_f))
        return x1, x2

    def backward(
        self,
        params: tuple[Params, Params],
        state: State,
        cotangent: State,
        key: jax.Array | None,
        stream: Stream,
        like: State,
    ) -> tuple[State, State, Params]:
        """Inputs, their cotangents and the trained parameters' from outputs and their cotangents.

        `params` is `(trained, frozen)`, two halves of one tree; nothing is computed for what is
        frozen. Each block runs once: its value undoes the layer, its linearisation carries the gradient.
        """
        (trained, frozen), (y1, y2), (dy1, dy2) = params, state, cotangent
        key_f, key_g = _split(key)

        def g(p: Any, x: Any) -> Any:
            return self.g(combine(p, frozen["g"]), x, key_g)

        def f(p: Any, x: Any) -> Any:
            return self.f(combine(p, frozen["f"]), x, key_f)

        update, pullback = jax.vjp(g, trained["g"], _each(stream.decode, y1, like[0]))
        x2 = _each(stream.subtract, y2, update)
        d_params_g, through = pullback(_cast(dy2, update))
        dx1 = _each(jnp.add, dy1, _cast(through, dy1))

        update, pullback = jax.vjp(f, trained["f"], _each(stream.decode, x2, like[1]))
        x1 = _each(stream.subtract, y1, update)
        d_params_f, through = pullback(_cast(dx1, update))
        dx2 = _each(jnp.add, dy2, _cast(through, dy2))
        return (x1, x2), (dx1, dx2), {"f": d_params_f, "g": d_params_g}


def additive(f: Block, g: Block) -> Additive:
    """Couple two residual blocks so that the layer can be undone.

    y1 = x1 + f(p_f, x2),  y2 = x2 + g(p_g, y1)

    Args:
      f: `f(params, x, key) -> update`, a pure function of one stream that returns the stream's
        shape, such as attention after a norm. `key` is None unless `stack` was given one.
      g: the same, such as an MLP after a norm.

    Returns:
      A coupling for `stack` and `unstack`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import reversible
      >>> block = reversible.additive(lambda p, x, key: p * x, lambda p, x, key: p + x)
      >>> params = {"f": jnp.array([2.0]), "g": jnp.array([1.0])}
      >>> reversible.stack(block, params, (jnp.array(1.0), jnp.array(3.0)))
      (Array(7., dtype=float32), Array(11., dtype=float32))

    References:
      Gomez et al. 2017, "The Reversible Residual Network", equations 6 and 7.
    """
    return Additive(f, g)


def _split(key: jax.Array | None) -> tuple[jax.Array | None, jax.Array | None]:
    return (None, None) if key is None else (jax.random.fold_in(key, 0), jax.random.fold_in(key, 1))


def _each(op: Callable[[jax.Array, jax.Array], jax.Array], s: Any, delta: Any) -> Any:
    return jax.tree.map(op, s, delta)


def _cast(tree: Any, like: Any) -> Any:
    return jax.tree.map(lambda leaf, target: leaf.astype(target.dtype), tree, like)
