"""A stack of reversible layers as one scan whose backward pass keeps only the output."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from rlx._checks import check_choice, check_dtype
from rlx._numerics import wide
from rlx._tree import named_leaves, partition

from ._coupling import Additive, Block, Params, State
from ._stream import FixedStream, FloatStream, Stream

StreamName = Literal["auto", "exact", "float32"]
Residual = tuple[tuple[Params, Params], State, State, jax.Array | None, list[jax.Array]]
Close = Callable[[list[jax.Array]], Additive]


def stack(
    coupling: Additive, params: Params, state: State, *, key: jax.Array | None = None, stream: StreamName = "auto"
) -> State:
    """Apply a stack of reversible layers; the gradient recomputes every layer's input from its output.

    Activation memory does not grow with depth: the residual of the backward pass is the output
    alone, and nothing is computed for parameters that are not differentiated. Gradients are those
    of the function computed: exact in fixed point; in floating point up to the drift of the
    reconstruction, about 1e-6 relative at 24 float32 layers.

    Args:
      coupling: `additive(f, g)`.
      params: `{"f": ..., "g": ...}`; every leaf has the layers on axis 0.
      state: `(x1, x2)`, two pytrees of floating arrays of the same structure, such as `[B, T, D]`.
      key: a random key, or None. Layer `l` sees `fold_in(key, l)`, and again the same one in
        the backward pass, so dropout replays.
      stream: how the streams are held between layers. "float32"; "exact", int32 fixed point
        that reconstructs bit for bit whatever dtype the blocks compute in, in the range ±1024
        (NaN outside); "auto" takes "exact" when a block returns half precision. Exact streams
        have first derivatives only, and those of `stack`, not of `unstack`.

    Returns:
      `(y1, y2)` with the shapes and dtypes of `state`.

    Raises:
      TypeError: a leaf of `state` is not floating.
      ValueError: layers disagree on axis 0, or a block's update has another shape than its stream.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import reversible
      >>> block = reversible.additive(lambda p, x, key: jnp.tanh(p * x), lambda p, x, key: jnp.tanh(p + x))
      >>> params = {"f": jnp.ones(12), "g": jnp.zeros(12)}
      >>> loss = lambda params: sum(jnp.sum(y) for y in reversible.stack(block, params, (jnp.ones(4), jnp.ones(4))))
      >>> jax.grad(loss)(params)["g"].shape
      (12,)

    References:
      Gomez et al. 2017, "The Reversible Residual Network", algorithm 1. Deviation: streams may
      be integers, see `FixedStream`.
    """
    held, close, captured = _prepare(coupling, params, state, key, stream)
    return _run(close, held, params, state, key, captured)


def unstack(
    coupling: Additive, params: Params, state: State, *, key: jax.Array | None = None, stream: StreamName = "auto"
) -> State:
    """Undo `stack`: the inputs from the outputs.

    Args:
      coupling: as in `stack`.
      params: as in `stack`.
      state: `(y1, y2)`, what `stack` returned.
      key: as in `stack`.
      stream: as in `stack`. In "exact" the result is bit-exact on the fixed-point grid as long as
        float32 holds the outputs exactly (magnitudes below 16).

    Returns:
      `(x1, x2)`.

    Raises:
      TypeError: as `stack`.
      ValueError: as `stack`.

    Example:
      >>> import jax.numpy as jnp
      >>> from rlx import reversible
      >>> block = reversible.additive(lambda p, x, key: p * x, lambda p, x, key: p + x)
      >>> params = {"f": jnp.array([2.0]), "g": jnp.array([1.0])}
      >>> reversible.unstack(block, params, (jnp.array(7.0), jnp.array(11.0)))
      (Array(1., dtype=float32), Array(3., dtype=float32))
    """
    held, _, _ = _prepare(coupling, params, state, key, stream)

    def layer(s: State, inputs: tuple[Params, jax.Array]) -> tuple[State, None]:
        p, index = inputs
        return coupling.inverse(p, s, _fold(key, index), held, _template(state)), None

    start = jax.tree.map(held.encode, state)
    bad = jax.tree.reduce(jnp.logical_or, jax.tree.map(held.overflow, start, state))
    streams, _ = lax.scan(layer, start, _layers(params), reverse=True)
    return jax.tree.map(lambda s, y: jnp.where(bad, jnp.nan, held.decode(s, y)), streams, state)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _run(
    close: Close, held: Stream, params: Params, state: State, key: jax.Array | None, captured: list[jax.Array]
) -> State:
    return _forward(close(captured), held, params, state, key)[0]


def _forward(
    coupling: Additive, held: Stream, params: Params, state: State, key: jax.Array | None
) -> tuple[State, State]:
    """The outputs, and the streams that hold them."""
    like = _template(state)

    def layer(carry: tuple[State, jax.Array], inputs: tuple[Params, jax.Array]) -> tuple[tuple[State, jax.Array], None]:
        s, bad = carry
        p, index = inputs
        s, updates = coupling.forward(p, s, _fold(key, index), held, like)
        over = jax.tree.map(held.overflow, s, updates)
        return (s, jax.tree.reduce(jnp.logical_or, over, bad)), None

    start = jax.tree.map(held.encode, state)
    bad = jax.tree.reduce(jnp.logical_or, jax.tree.map(held.overflow, start, state))
    (streams, bad), _ = lax.scan(layer, (start, bad), _layers(params))
    y = jax.tree.map(lambda s, x: jnp.where(bad, jnp.nan, held.decode(s, x)), streams, state)
    return y, streams


def _save(close: Close, held: Stream, params: Any, state: Any, key: Any, captured: Any) -> tuple[State, Residual]:
    """Forward, and what the backward pass needs: the output streams, and the parameters in two halves."""
    if any(primal.perturbed and jnp.issubdtype(primal.value.dtype, jnp.inexact) for primal in captured):
        raise TypeError("coupling: f or g captures a differentiated value by closure; pass it to stack in params")
    trained = _is_trained(params)
    params, state, key, captured = (_values(tree) for tree in (params, state, key, captured))
    y, streams = _forward(close(captured), held, params, state, key)
    return y, (partition(params, trained), streams, _template(state), key, captured)


def _backward(close: Close, held: Stream, residual: Residual, cotangent: Any) -> tuple[Params, State, None, None]:
    (trained, frozen), streams, like, key, captured = residual
    coupling = close(captured)

    def layer(
        carry: tuple[State, State], inputs: tuple[tuple[Params, Params], jax.Array]
    ) -> tuple[tuple[State, State], Params]:
        s, ds = carry
        halves, index = inputs
        s, ds, dp = coupling.backward(halves, s, ds, _fold(key, index), held, like)
        return (s, ds), dp

    cotangent = jax.tree.map(_materialise, cotangent, is_leaf=_is_zero)
    d_streams = jax.tree.map(lambda c: c.astype(wide(c.dtype)), cotangent)
    (_, dx), d_params = lax.scan(layer, (streams, d_streams), _layers((trained, frozen)), reverse=True)
    return d_params, jax.tree.map(lambda d, t: d.astype(t.dtype), dx, like), None, None


_run.defvjp(_save, _backward, symbolic_zeros=True)


def _values(tree: Any) -> Any:
    return jax.tree.map(lambda primal: primal.value, tree, is_leaf=_is_primal)


def _is_trained(tree: Any) -> Any:
    return jax.tree.map(
        lambda primal: bool(primal.perturbed) and jnp.issubdtype(primal.value.dtype, jnp.inexact),
        tree,
        is_leaf=_is_primal,
    )


def _is_primal(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.CustomVJPPrimal)


def _is_zero(leaf: Any) -> bool:
    return isinstance(leaf, jax.custom_derivatives.SymbolicZero)


def _materialise(cotangent: Any) -> jax.Array:
    return jnp.zeros(cotangent.shape, cotangent.dtype) if _is_zero(cotangent) else cotangent


def _layers(params: Any) -> tuple[Any, jax.Array]:
    return params, jnp.arange(jax.tree.leaves(params)[0].shape[0])


def _fold(key: jax.Array | None, index: jax.Array) -> jax.Array | None:
    return None if key is None else jax.random.fold_in(key, index)


def _template(state: State) -> State:
    """Empty arrays that carry the dtypes of the state through residuals and scans."""
    return jax.tree.map(lambda x: jnp.zeros((0,), x.dtype), state)


def _prepare(
    coupling: Additive, params: Params, state: State, key: jax.Array | None, stream: StreamName
) -> tuple[Stream, Close, list[jax.Array]]:
    """Check the arguments by tracing one layer; choose how the streams are held; hoist what the blocks capture."""
    check_choice("stream", stream, ("auto", "exact", "float32"))
    _check_layers(params)
    for path, leaf in named_leaves(state).items():
        check_dtype("floating", **{f"state.{path}": leaf})
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), params)
    f, captured_f, dtypes_f = _trace("f", coupling.f, one["f"], state[1], state[0], key)
    g, captured_g, dtypes_g = _trace("g", coupling.g, one["g"], state[0], state[1], key)

    def close(captured: list[jax.Array]) -> Additive:
        return Additive(partial(f, captured[: len(captured_f)]), partial(g, captured[len(captured_f) :]))

    half = any(jnp.finfo(dtype).bits < 32 for dtype in dtypes_f + dtypes_g)
    held = FixedStream() if stream == "exact" or (stream == "auto" and half) else FloatStream()
    return held, close, captured_f + captured_g


def _check_layers(params: Params) -> None:
    if not (isinstance(params, dict) and params.keys() == {"f", "g"}):
        raise ValueError('params: expected {"f": ..., "g": ...}')
    depths = {path: jnp.shape(leaf)[:1] for path, leaf in named_leaves(params).items()}
    if len(set(depths.values())) != 1 or () in depths.values():
        found = ", ".join(f"{path} {size}" for path, size in depths.items())
        raise ValueError(f"params: every leaf must have the same number of layers on axis 0, got {found or 'no leaf'}")


def _trace(
    name: str, block: Block, params: Any, source: Any, target: Any, key: jax.Array | None
) -> tuple[Callable[..., Any], list[jax.Array], list[Any]]:
    """A block as a function of what it captured too, those captured values, and the dtypes of its update.

    The backward pass of a custom_vjp may be traced after the values that a closure captured
    are out of scope, so they are made arguments.
    """
    closed, update = jax.make_jaxpr(block, return_shape=True)(params, source, key)
    shapes = jax.tree.map(jnp.shape, update), jax.tree.map(jnp.shape, target)
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name}: its update {shapes[0]} must have the shape of its stream, {shapes[1]}")
    structure = jax.tree.structure(update)

    def run(captured: list[jax.Array], p: Any, x: Any, layer_key: jax.Array | None) -> Any:
        leaves = jax.core.eval_jaxpr(closed.jaxpr, captured, *jax.tree.leaves((p, x, layer_key)))
        return jax.tree.unflatten(structure, leaves)

    return run, list(closed.consts), [leaf.dtype for leaf in jax.tree.leaves(update)]
