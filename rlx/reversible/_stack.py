"""A stack of reversible layers as one scan whose backward pass keeps only the output."""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from rlx._compat import vary_together
from rlx._numerics import wide
from rlx._symbolic import materialised, primals
from rlx._tree import partition

from ._coupling import Coupling
from ._layer import Streams
from ._prepare import Prepared, fold, layers, prepare
from ._stream import checksum, differentiated_once

GROWTH = 100.0  # of rounding between anchors that are chosen here
StreamName = Literal["auto", "exact", "float32"]


def stack(
    coupling: Coupling,
    params: dict[str, Any],
    state: Streams,
    *,
    key: jax.Array | None = None,
    shared: Any = None,
    stream: StreamName = "auto",
    fraction_bits: int = 20,
    anchors: int | None = None,
    verify: bool = True,
) -> Any:
    """Apply a stack of reversible layers; the gradient recomputes every layer's input from its output.

    Activation memory does not grow with depth: the residual of the backward pass is the output
    alone, and nothing is computed for parameters that are not differentiated. Gradients are those
    of the function computed: exact in fixed point; in floating point up to the drift of the
    reconstruction, about 1e-6 relative at 24 float32 layers.

    Args:
      coupling: from `additive`, `affine`, `leapfrog`, `momentum` or `runge_kutta`.
      params: such as `{"f": ..., "g": ...}`; every leaf has the layers on axis 0.
      state: `(x1, x2)`, two pytrees of floating arrays of the same structure, such as `[B, T, D]`.
      key: a random key, or None. Step s of layer l (f is 0, g is 1) sees `fold_in(fold_in(key, l), s)`, and
        again the same one in the backward pass, so dropout replays.
      shared: values that every layer sees, such as an encoder's output; differentiable. When given,
        blocks are called `f(params, x, key, shared)`.
      stream: how the streams are held between layers. "float32"; "exact", int32 fixed point
        that reconstructs bit for bit whatever dtype the blocks compute in (NaN outside its range);
        "auto" takes "exact" when a block returns half precision and the coupling only adds. Exact
        streams have first derivatives only, and those of `stack`, not of `unstack`.
      fraction_bits: of "exact": a step is `2**-fraction_bits`, the range `2**(30 - fraction_bits)` (±1024).
      anchors: keep every `anchors`-th layer's input too, and start again from it in the backward pass, so that
        drift cannot pass it; costs `(layers - 1) // anchors` more states. None keeps none, or, in floating streams
        of a coupling whose inverse divides (`momentum`, a `coupling` below 1), as many as hold its growth below 100.
      verify: of "exact": keep a 32-bit checksum of every layer's input, and turn the gradients into NaN from
        the layer down that was not recomputed bit for bit (a block that is not deterministic).

    Returns:
      `(y1, y2)` with the shapes and dtypes of `state`. From a coupling with `has_aux`:
      `((y1, y2), {"f": aux, ...})`, aux stacked over the layers on axis 0; from `affine`: `((y1, y2), log_det)`.

    Raises:
      TypeError: a leaf of `state` is not floating, or a block captures a differentiated value by closure.
      ValueError: layers disagree on axis 0, a block's update has another shape than its stream, or the
        coupling multiplies and `stream` is "exact".

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
      be integers, see `FixedStream`; anchors bound the drift.
    """
    ready = prepare(coupling, params, state, key, shared, stream, fraction_bits, anchors)
    plan = _Plan(ready, _anchors(ready, coupling, anchors), verify and ready.held.exact)
    y, told = _run(plan, params, tuple(state), shared, key, ready.captured)
    if any(step.tells for step in coupling.steps):
        return y, sum(jnp.sum(log_det, axis=0) for log_det in told.values())
    return (y, told) if coupling.has_aux else y


def unstack(
    coupling: Coupling,
    params: dict[str, Any],
    state: Streams,
    *,
    key: jax.Array | None = None,
    shared: Any = None,
    stream: StreamName = "auto",
    fraction_bits: int = 20,
) -> Streams:
    """Undo `stack`: the inputs from the outputs.

    Args:
      coupling: as in `stack`.
      params: as in `stack`.
      state: `(y1, y2)`, what `stack` returned.
      key: as in `stack`.
      shared: as in `stack`.
      stream: as in `stack`. In "exact" the result is bit-exact on the fixed-point grid as long as
        float32 holds the outputs exactly (magnitudes below 16).
      fraction_bits: as in `stack`.

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
    ready = prepare(coupling, params, state, key, shared, stream, fraction_bits)
    layer = ready.close(ready.captured)

    def step(streams: Streams, inputs: Any) -> tuple[Streams, None]:
        p, index = inputs
        return layer.inverse(p, streams, fold(key, index), index, shared), None

    if ready.held.exact:
        params, state, shared = jax.tree.map(_once, (params, tuple(state), shared))
    streams, bad = ready.enter(state, ready.depth)
    streams, _ = lax.scan(step, streams, layers(params), reverse=True)
    return ready.leave(streams, bad, 0)


def drift(
    coupling: Coupling,
    params: dict[str, Any],
    state: Streams,
    *,
    key: jax.Array | None = None,
    shared: Any = None,
    stream: StreamName = "auto",
    fraction_bits: int = 20,
    anchors: int | None = None,
) -> jax.Array:
    """How far the inputs that the backward pass recomputes are from those of the forward pass.

    Keeps every layer's input to compare with, so it needs the memory that `stack` saves: a check on a small batch.

    Args:
      coupling: as in `stack`.
      params: as in `stack`.
      state: as in `stack`.
      key: as in `stack`.
      shared: as in `stack`.
      stream: as in `stack`.
      fraction_bits: as in `stack`.
      anchors: as in `stack`.

    Returns:
      `[layers]` float32: the largest absolute difference over each layer's input, 0 where it is bit for bit the same;
      NaN when an exact stream leaves its range.

    Raises:
      TypeError: as `stack`.
      ValueError: as `stack`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import reversible
      >>> block = reversible.additive(lambda p, x, key: jnp.tanh(p * x), lambda p, x, key: jnp.sin(p * x))
      >>> params, x = {"f": jnp.ones(9), "g": jnp.ones(9)}, jnp.linspace(-1, 1, 64)
      >>> bool(reversible.drift(block, params, (x, x), stream="float32").max() > 0)
      True
      >>> reversible.drift(block, params, (x, x), stream="exact")
      Array([0., 0., 0., 0., 0., 0., 0., 0., 0.], dtype=float32)
    """
    ready = prepare(coupling, params, state, key, shared, stream, fraction_bits, anchors)
    layer = ready.close(ready.captured)
    anchors = _anchors(ready, coupling, anchors)

    def forward(carry: Any, inputs: Any) -> tuple[Any, Any]:
        (streams, bad), (p, index) = carry, inputs
        after, _, over = layer.forward(p, streams, fold(key, index), index, shared)
        return (after, bad | over), streams

    def apart(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.max(jnp.abs(ready.held.decode(a - b, jnp.float32)), initial=0.0)

    def inverse(streams: Streams, inputs: Any) -> tuple[Streams, jax.Array]:
        (p, index), true = inputs
        streams = layer.inverse(p, streams, fold(key, index), index, shared)
        far = [jax.tree.reduce(jnp.maximum, jax.tree.map(apart, a, b)) for a, b in zip(streams, true, strict=True)]
        units = [unit ** index.astype(jnp.float32) for unit in coupling.units]
        lost = jnp.where(bad, jnp.nan, jnp.maximum(far[0] * units[0], far[1] * units[1]))
        if anchors is not None:
            streams = jax.tree.map(lambda s, t: jnp.where(index % anchors == 0, t, s), streams, true)
        return streams, lost

    (streams, bad), inputs = lax.scan(forward, ready.enter(state, 0), layers(params))
    return lax.scan(inverse, streams, (layers(params), inputs), reverse=True)[1]


def _anchors(ready: Prepared, coupling: Coupling, anchors: int | None) -> int | None:
    """How many layers apart anchors are; None where there are none."""
    if anchors is None and coupling.shrink < 1.0 and not ready.held.exact:
        anchors = max(1, int(math.log(GROWTH) / -math.log(coupling.shrink)))
    return anchors if anchors is not None and anchors < ready.depth else None


def _once(leaf: Any) -> Any:
    return differentiated_once(leaf) if jnp.issubdtype(leaf.dtype, jnp.inexact) else leaf


@dataclass(frozen=True, eq=False)
class _Plan:
    """What is fixed when the gradient rule is traced."""

    ready: Prepared
    anchors: int | None
    verify: bool

    @property
    def places(self) -> int:
        """How many layers' inputs are kept as anchors."""
        return 0 if self.anchors is None else (self.ready.depth - 1) // self.anchors


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _run(plan: _Plan, params: Any, state: Streams, shared: Any, key: jax.Array | None, captured: Any) -> Any:
    return _forward(plan, params, state, shared, key, captured)[0]


def _forward(
    plan: _Plan, params: Any, state: Streams, shared: Any, key: jax.Array | None, captured: Any
) -> tuple[Any, Any]:
    """The outputs with what the blocks told; and the streams at the end, the anchors and the checksums."""
    ready, every = plan.ready, plan.anchors
    layer = ready.close(captured)
    start, bad = ready.enter(state, 0)
    kept = None if every is None else jax.tree.map(lambda s: _room(s, plan.places), start)

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        streams, bad, kept = carry
        p, index = inputs
        check = checksum(streams) if plan.verify else None
        if every is not None:
            # Layer l's input is anchor l // every - 1; any other index is out of bounds and dropped.
            slot = jnp.where((index % every == 0) & (index > 0), index // every - 1, ready.depth)
            kept = jax.tree.map(lambda k, s: k.at[slot].set(s, mode="drop"), kept, streams)
        streams, told, over = layer.forward(p, streams, fold(key, index), index, shared)
        return (streams, bad | over, kept), (told, check)

    (streams, bad, kept), (told, checks) = lax.scan(step, (start, bad, kept), layers(params))
    return (ready.leave(streams, bad, ready.depth), told), (streams, kept, checks, bad)


def _room(s: jax.Array, places: int) -> jax.Array:
    """Space for anchors; made from the stream, so that it varies over the same devices."""
    return jnp.broadcast_to((s * 0)[None], (places, *s.shape))


def _save(plan: _Plan, params: Any, state: Any, shared: Any, key: Any, captured: Any) -> tuple[Any, Any]:
    """Forward, and what the backward pass needs: the output streams, and the parameters in two halves."""
    (params, trained), (state, _), (shared, moving), (key, _), (captured, caught) = (
        primals(tree) for tree in (params, state, shared, key, captured)
    )
    if any(caught):
        raise TypeError(
            "coupling: a block captures a differentiated value by closure; pass it to stack in params, or in shared"
        )
    if plan.ready.held.exact:
        params, state, shared = jax.tree.map(_once, (params, state, shared))
    out, found = _forward(plan, params, state, shared, key, captured)
    return out, (partition(params, trained), partition(shared, moving), found, key, captured)


def _backward(plan: _Plan, residual: Any, cotangent: Any) -> tuple[Any, Any, Any, None, None]:
    (trained, frozen), (moving, fixed), (streams, kept, checks, bad), key, captured = residual
    ready, every = plan.ready, plan.anchors
    layer = ready.close(captured)

    def step(carry: Any, inputs: Any) -> tuple[Any, Any]:
        streams, d, d_shared = carry
        (halves, index), d_told, check = inputs
        if every is not None:
            # The output of this layer is the input of the next, which may be an anchor.
            following = index + 1
            anchored = (following % every == 0) & (following < ready.depth)
            slot = jnp.clip(following // every - 1, 0, plan.places - 1)
            streams = jax.tree.map(lambda k, s: jnp.where(anchored, k[slot], s), kept, streams)
        streams, d, dp, more = layer.backward(halves, streams, d, d_told, fold(key, index), index, (moving, fixed))
        if check is not None:
            lost = checksum(streams) != check
            d = jax.tree.map(lambda c: jnp.where(lost, jnp.nan, c), d)
            dp = jax.tree.map(lambda c: jnp.where(lost, jnp.nan, c), dp)
        return (streams, d, jax.tree.map(lambda a, b: a + b.astype(a.dtype), d_shared, more)), dp

    d_state, d_told = materialised(cotangent)
    d = ready.enter_cotangent(d_state)
    if ready.held.exact:
        d = jax.tree.map(lambda c: jnp.where(bad, jnp.nan, c), d)
    d_shared = jax.tree.map(lambda leaf: vary_together((leaf, jnp.zeros_like(leaf, wide(leaf.dtype))))[1], moving)
    (_, d, d_shared), d_params = lax.scan(
        step, (streams, d, d_shared), (layers((trained, frozen)), d_told, checks), reverse=True
    )
    d_shared = jax.tree.map(lambda c, leaf: c.astype(leaf.dtype), d_shared, moving)
    return d_params, ready.leave_cotangent(d), d_shared, None, None


_run.defvjp(_save, _backward, symbolic_zeros=True)
