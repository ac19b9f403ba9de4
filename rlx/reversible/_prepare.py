"""The arguments of a stack, checked by tracing one layer, and the way between values and streams."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from rlx._checks import check_choice, check_dtype, check_whole
from rlx._numerics import wide
from rlx._tree import named_leaves

from ._coupling import Coupling, Step
from ._layer import Layer, Streams
from ._rules import Linear
from ._stream import FixedStream, FloatStream, Stream


@dataclass(frozen=True, eq=False)
class Prepared:
    """A coupling that was traced once.

    Attributes:
      close: a layer from the values that its blocks captured, which are made arguments: the backward
        pass of a custom_vjp may be traced after what a closure captured is out of scope.
      captured: those values.
      held: how the streams are held.
      like: shapes and dtypes of the state.
      units: as in the coupling.
      depth: the number of layers.
    """

    close: Callable[[Any], Layer]
    captured: list[jax.Array]
    held: Stream
    like: Streams
    units: tuple[float, float]
    depth: int

    def enter(self, state: Streams, layer: int) -> tuple[Streams, jax.Array]:
        """The streams that hold the state at a layer's input, and whether it is out of range."""
        scaled = tuple(
            x if unit == 1.0 else jax.tree.map(lambda leaf, u=unit: leaf / u**layer, x)
            for x, unit in zip(state, self.units, strict=True)
        )
        streams = jax.tree.map(self.held.encode, scaled)
        over = jax.tree.map(self.held.overflow, streams, scaled)
        return streams, jax.tree.reduce(jnp.logical_or, over)

    def leave(self, streams: Streams, bad: jax.Array, layer: int) -> Streams:
        """The state that the streams hold at a layer's input; NaN where `bad`."""

        def value(s: jax.Array, like: Any, unit: float) -> jax.Array:
            x = self.held.decode(s, wide(like.dtype)) * unit**layer if unit != 1.0 else self.held.decode(s, like.dtype)
            return jnp.where(bad, jnp.nan, x.astype(like.dtype))

        return tuple(
            jax.tree.map(partial(value, unit=unit), s, like)
            for s, like, unit in zip(streams, self.like, self.units, strict=True)
        )

    def enter_cotangent(self, cotangent: Streams) -> Streams:
        """Cotangents of the last streams from those of the outputs."""
        return tuple(
            jax.tree.map(lambda c, u=unit: c.astype(wide(c.dtype)) * u**self.depth, c)
            for c, unit in zip(cotangent, self.units, strict=True)
        )

    def leave_cotangent(self, cotangent: Streams) -> Streams:
        """Cotangents of the inputs from those of the first streams."""
        return jax.tree.map(lambda c, like: c.astype(like.dtype), cotangent, self.like)


def prepare(
    coupling: Coupling,
    params: Any,
    state: Streams,
    key: jax.Array | None,
    shared: Any,
    stream: str,
    fraction_bits: int,
    anchors: int | None = None,
) -> Prepared:
    """Check the arguments by tracing one layer; choose how the streams are held; hoist what the blocks capture."""
    check_choice("stream", stream, ("auto", "exact", "float32"))
    check_whole("fraction_bits", fraction_bits, 1, 29)
    if anchors is not None:
        check_whole("anchors", anchors, 1)
    if not isinstance(coupling, Coupling):
        raise TypeError(f"coupling: expected one from additive, affine, ..., got {type(coupling).__name__}")
    if not (isinstance(state, (tuple, list)) and len(state) == 2):
        raise TypeError("state: expected a pair (x1, x2) of pytrees")
    depth = _depth(coupling, params)
    if not jax.tree.leaves(state[0]) or not jax.tree.leaves(state[1]):
        raise ValueError("state: each stream needs at least one array")
    for path, leaf in named_leaves(tuple(state)).items():
        check_dtype("floating", **{f"state.{path}": leaf})
    like = jax.tree.map(lambda leaf: _spec(leaf, leaf.shape, leaf.dtype), tuple(state))
    one = jax.tree.map(lambda leaf: _spec(leaf, leaf.shape[1:], leaf.dtype), params)

    traced = [_trace(step, coupling.has_aux, one, like, key, shared) for step in coupling.steps]
    counts = [len(captured) for _, captured, _ in traced]
    half = any(jnp.finfo(dtype).bits < 32 for _, _, dtypes in traced for dtype in dtypes)
    adds = all(isinstance(step.rule, Linear) and step.rule.keep == 1.0 for step in coupling.steps)
    if stream == "exact" and not adds:
        raise ValueError("stream: 'exact' needs a coupling that only adds (additive, leapfrog, momentum, runge_kutta)")
    held = FixedStream(fraction_bits) if stream == "exact" or (stream == "auto" and half and adds) else FloatStream()

    def close(captured: list[jax.Array]) -> Layer:
        blocks, start = [], 0
        for (run, _, _), count in zip(traced, counts, strict=True):
            blocks.append(partial(run, captured[start : start + count]))
            start += count
        return Layer(coupling, tuple(blocks), held, like)

    return Prepared(close, [c for _, found, _ in traced for c in found], held, like, coupling.units, depth)


def layers(params: Any) -> tuple[Any, jax.Array]:
    """What a scan over the layers takes: each layer's parameters and its index."""
    return params, jnp.arange(jax.tree.leaves(params)[0].shape[0])


def fold(key: jax.Array | None, index: jax.Array) -> jax.Array | None:
    """The key of a layer."""
    return None if key is None else jax.random.fold_in(key, index)


def _depth(coupling: Coupling, params: Any) -> int:
    """The number of layers, which every leaf has on axis 0."""
    if not (isinstance(params, dict) and params.keys() == set(coupling.names)):
        expected = ", ".join(f'"{name}": ...' for name in coupling.names)
        raise ValueError(f"params: expected {{{expected}}}")
    depths = {path: jnp.shape(leaf)[:1] for path, leaf in named_leaves(params).items()}
    if len(set(depths.values())) != 1 or () in depths.values():
        found = ", ".join(f"{path} {size}" for path, size in depths.items())
        raise ValueError(f"params: every leaf must have the same number of layers on axis 0, got {found or 'no leaf'}")
    (depth,) = next(iter(depths.values()))
    return depth


def _spec(leaf: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """The abstract value of another shape and dtype that varies over the same devices (inside `shard_map`)."""
    abstract = leaf if isinstance(leaf, jax.core.ShapedArray) else jax.typeof(leaf)
    if jax.dtypes.issubdtype(dtype, jax.dtypes.extended):  # typed random keys
        return abstract.update(shape=shape)
    return abstract.update(shape=shape, dtype=jnp.dtype(dtype), weak_type=False)


def _trace(
    step: Step, has_aux: bool, one: Any, like: Streams, key: jax.Array | None, shared: Any
) -> tuple[Callable[..., Any], list[jax.Array], list[Any]]:
    """A step's block as a function of what it captured too, those captured values, and the dtypes of its update."""
    name = step.name
    source = like[step.source]
    if name is None:
        source = jax.tree.map(lambda leaf: _spec(leaf, leaf.shape, wide(leaf.dtype)), source)

    def block(p: Any, x: Any, layer_key: jax.Array | None, common: Any) -> Any:
        out = step.block(p, x, layer_key) if shared is None else step.block(p, x, layer_key, common)
        if not has_aux or name is None:
            return out, None
        if not (isinstance(out, tuple) and len(out) == 2):
            raise TypeError(f"{name}: with has_aux a block returns (update, aux), got {type(out).__name__}")
        return out

    p = None if name is None else one[name]
    closed, out = jax.make_jaxpr(block, return_shape=True)(p, source, key, shared)
    _check_update(step, out[0], like[step.target])
    structure = jax.tree.structure(out)

    def run(captured: list[jax.Array], p: Any, x: Any, layer_key: jax.Array | None, common: Any) -> Any:
        leaves = jax.core.eval_jaxpr(closed.jaxpr, captured, *jax.tree.leaves((p, x, layer_key, common)))
        return jax.tree.unflatten(structure, leaves)

    return run, list(closed.consts), [leaf.dtype for leaf in jax.tree.leaves(out[0])] if name is not None else []


def _check_update(step: Step, update: Any, target: Any) -> None:
    expected = (target, target) if step.tells else target
    shapes = jax.tree.map(lambda leaf: leaf.shape, update), jax.tree.map(lambda leaf: leaf.shape, expected)
    if shapes[0] != shapes[1]:
        what = "its (log_scale, shift)" if step.tells else "its update"
        if step.name is None:
            raise ValueError(f"state: streams of one shape are needed, got {shapes[0]} and {shapes[1]}")
        raise ValueError(f"{step.name}: {what} {shapes[0]} must have the shape of its stream, {shapes[1]}")
    for leaf in jax.tree.leaves(update):
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(f"{step.name}: its update must be floating, got {leaf.dtype}")
