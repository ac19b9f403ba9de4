"""A schedule as a JAX function: what is to run again or be undone is held back until its cotangent is there.

A compiler is free to run early what `jax.checkpoint` would run again, and XLA:CPU of jax 0.10 does: its barriers are
gone when it schedules. So the backward pass of every such part is the branch of a conditional that nobody can decide
at compile time and that has the cotangent among its operands, or the body of a scan.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend import core

from rlx._symbolic import materialised, primals
from rlx._tree import combine, partition

from ._block import Block, Function, Policy
from ._steps import Recompute, Reverse, Step, shifted

Params = dict[int, Any]  # of the blocks of a segment; a stack's leaves have the segment's layers on axis 0


def ordered(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a part that runs when all its arguments are there, and whose temporaries live only as long."""

    def run(*args: Any) -> Any:
        shapes = jax.eval_shape(fn, *args)
        always = lax.optimization_barrier(jnp.ones((), bool))
        never = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
        return lax.cond(always, fn, lambda *_: never, *args)

    return run


def at_once(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself, inside the body of a scan."""
    return fn


Order = Callable[[Callable[..., Any]], Callable[..., Any]]


def recomputed(fn: Function, order: Order, *, offload: bool = False) -> Function:
    """The function, with nothing held but its arguments (`offload`: the activation on the host)."""

    @jax.custom_vjp
    def run(params: Any, x: Any) -> Any:
        return fn(params, x)

    def forward(params: Any, x: Any) -> Any:
        (params, x), trained = primals((params, x))
        y = fn(params, x)
        return y, partition((params, _to_host(x) if offload else x), trained)

    def backward(held: Any, cotangent: Any) -> Any:
        cotangent = floats(cotangent)
        if offload:
            # fetched when the cotangent is there, not before
            (params, still), cotangent = _fetch(held, cotangent)
            held = params, still

        def again(moving: Any, still: Any, cotangent: Any) -> Any:
            _, pullback = jax.vjp(lambda moving: floats(fn(*combine(moving, still))), moving)
            return pullback(cotangent)[0]

        return order(again)(*held, cotangent)

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run


def kept(fn: Function, policy: Policy, order: Order, *, offload: bool = False) -> Function:
    """The function, with what a policy saves held (None: everything; `offload`: on the host)."""
    if policy is None and not offload:
        return fn
    saving = fn if policy is None else jax.checkpoint(fn, policy=policy, prevent_cse=False)

    @jax.custom_vjp
    def run(params: Any, x: Any) -> Any:
        return fn(params, x)

    def forward(params: Any, x: Any) -> Any:
        values, trained = primals((params, x))
        moving, still = partition(values, trained)

        def float_part(moving: Any) -> Any:
            y = saving(*combine(moving, still))
            return floats(y), y

        _, pullback, y = jax.vjp(float_part, moving, has_aux=True)
        if offload:
            inputs = jax.tree.leaves(values)
            is_input = jax.tree.map(lambda leaf: any(leaf is x for x in inputs), pullback)
            pullback = jax.tree.map(lambda leaf, own: leaf if own else _to_host(leaf), pullback, is_input)
        return y, pullback

    def backward(pullback: Any, cotangent: Any) -> Any:
        cotangent = floats(cotangent)
        if offload:
            pullback, cotangent = _fetch(pullback, cotangent)
        return order(lambda pullback, cotangent: pullback(cotangent)[0])(pullback, cotangent)

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run


def scanned(fn: Function) -> Function:
    """The function in a scan over layers; what is held for the backward pass is stacked, parameters are not."""

    @jax.custom_vjp
    def run(layers: Any, x: Any) -> Any:
        return lax.scan(lambda x, layer: (fn(layer, x), None), x, layers)[0]

    def forward(layers: Any, x: Any) -> Any:
        (layers, x), (trained, _) = primals((layers, x))
        moving, still = partition(layers, trained)

        def both(layer: Any, x: Any) -> Any:
            floating, rest = partition(x, jax.tree.map(is_float, x))

            def float_part(moving: Any, floating: Any) -> Any:
                y = fn(combine(moving, layer[1]), combine(floating, rest))
                return floats(y), y

            _, pullback, y = jax.vjp(float_part, layer[0], floating, has_aux=True)
            return y, pullback

        one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), (moving, still))
        traced, (_, pullback) = jax.make_jaxpr(both, return_shape=True)(one, x)
        inputs = {var: i for i, var in enumerate(traced.jaxpr.invars[: len(jax.tree.leaves(one))])}
        inputs |= {var: -1 - i for i, var in enumerate(traced.jaxpr.constvars)}  # captured, so the same in every layer
        result = len(jax.tree.leaves(x))
        held = traced.jaxpr.outvars[result:]
        # what the backward pass takes from the parameters it finds there again
        source = [None if isinstance(var, core.Literal) else inputs.get(var) for var in held]

        def layer(x: Any, layer: Any) -> Any:
            found = jax.core.eval_jaxpr(traced.jaxpr, traced.consts, *jax.tree.leaves((layer, x)))
            own = [leaf for leaf, at in zip(found[result:], source, strict=True) if at is None]
            return jax.tree.unflatten(jax.tree.structure(x), found[:result]), own

        y, own = lax.scan(layer, x, (moving, still))
        return y, (
            own,
            traced.consts,
            (moving, still),
            _Static((tuple(source), jax.tree.structure(pullback))),
            _template(x),
        )

    def backward(held: Any, cotangent: Any) -> Any:
        own, consts, layers, static, template = held
        source, structure = static.value

        def layer(cotangent: Any, inputs: Any) -> Any:
            own, layer = iter(inputs[0]), jax.tree.leaves(inputs[1])
            leaves = [next(own) if at is None else layer[at] if at >= 0 else consts[-1 - at] for at in source]
            of_layer, of_x = jax.tree.unflatten(structure, leaves)(cotangent)
            return floats(of_x), of_layer

        found, of_layers = lax.scan(layer, floats(cotangent), (own, layers), reverse=True)
        leaves = iter(found)
        return of_layers, jax.tree.map(lambda leaf: next(leaves) if is_float(leaf) else None, template)

    run.defvjp(forward, backward, symbolic_zeros=True)
    return run


def undo(block: Block, order: Order) -> Callable[..., Any]:
    """One block backwards: `(moving, still, y, cotangents) -> x, its cotangents, the parameters'`."""
    inverse = block.inverse
    if inverse is None:
        raise ValueError("blocks: the plan undoes a block that has no inverse; give the blocks that were profiled")

    def back(moving: Any, still: Any, y: Any, cotangent: Any) -> Any:
        x = inverse(combine(moving, still), y)
        inputs, rest = partition(x, jax.tree.map(is_float, x))
        _, pullback = jax.vjp(
            lambda moving, x: floats(block.fn(combine(moving, still), combine(x, rest))), moving, inputs
        )
        of_params, of_x = pullback(cotangent)
        return x, jax.tree.leaves(of_x), of_params

    return order(back)


class Lowering:
    """Functions of segments of a chain of blocks, made from steps."""

    def __init__(self, blocks: Sequence[Block], policies: Mapping[str, Policy]) -> None:
        self.blocks, self.policies = blocks, policies
        self.owner: list[int] = []
        self.first: list[int] = []
        for b, block in enumerate(blocks):
            self.first.append(len(self.owner))
            self.owner += [b] * block.size

    def take(self, params: Params, whole: tuple[int, int], part: tuple[int, int]) -> Params:
        """The parameters of the blocks of a part out of those of a segment.

        A stack's leaves have the layers on axis 0 where a segment has several of them; of one layer there is no axis.
        """
        taken = {}
        for b in sorted({self.owner[i] for i in range(*part)}):
            (begin, end), (low, high) = self._layers(b, whole), self._layers(b, part)
            if end - begin == high - low:
                taken[b] = params[b]
            elif high - low == 1:
                taken[b] = jax.tree.map(lambda leaf, at=low - begin: leaf[at], params[b])
            else:
                taken[b] = jax.tree.map(lambda leaf, at=slice(low - begin, high - begin): leaf[at], params[b])
        return taken

    def _layers(self, b: int, part: tuple[int, int]) -> tuple[int, int]:
        """The blocks of an entry that are in a segment."""
        return max(part[0], self.first[b]), min(part[1], self.first[b] + self.blocks[b].size)

    def chain(self, steps: Sequence[Step]) -> Callable[[Sequence[Any], Any], Any]:
        """The whole chain, of parameters as the blocks have them."""
        run = self.segment(steps)

        def whole(params: Sequence[Any], x: Any) -> Any:
            if len(params) != len(self.blocks):
                raise ValueError(f"params: {len(params)} entries for {len(self.blocks)} blocks")
            entries = {
                b: jax.tree.map(lambda leaf: leaf[0], own) if self.blocks[b].repeat == 1 else own
                for b, own in enumerate(params)
            }
            return run(entries, x)

        return whole

    def segment(self, steps: Sequence[Step]) -> Callable[[Params, Any], Any]:
        """The steps one after the other; equal steps of one stack in a scan."""
        groups: list[list[Step]] = []
        for step in steps:
            if groups and self._alike(groups[-1][-1], step):
                groups[-1].append(step)
            else:
                groups.append([step])
        whole = steps[0].start, steps[-1].stop

        def run(params: Params, x: Any) -> Any:
            for group in groups:
                own = self.take(params, whole, (group[0].start, group[-1].stop))
                x = self._scanned(group, own, x) if len(group) > 1 else self.step(group[0], ordered)(own, x)
            return x

        return run

    def _alike(self, one: Step, other: Step) -> bool:
        same = {self.owner[one.start], self.owner[one.stop - 1], self.owner[other.start], self.owner[other.stop - 1]}
        return len(same) == 1 and shifted(one, other.start - one.start) == other

    def _scanned(self, group: Sequence[Step], params: Params, x: Any) -> Any:
        ((b, stacked),) = params.items()
        length = group[0].stop - group[0].start
        if length > 1:
            stacked = jax.tree.map(lambda leaf: leaf.reshape(len(group), length, *leaf.shape[1:]), stacked)
        one = self.step(group[0], at_once)
        return scanned(lambda layer, x: one({b: layer}, x))(stacked, x)

    def step(self, step: Step, order: Order) -> Callable[[Params, Any], Any]:
        """One step, as a function of the parameters of its blocks."""
        if isinstance(step, Reverse):
            return self._reversed(step, order)
        if isinstance(step, Recompute):
            return recomputed(self.segment(step.steps), order, offload=step.offload)
        b = self.owner[step.block]
        fn = kept(self.blocks[b].fn, self.policies[step.choice], order, offload=step.offload)
        return lambda params, x: fn(params[b], x)

    def _reversed(self, step: Reverse, order: Order) -> Callable[[Params, Any], Any]:
        """A run of blocks of which only the output is held."""
        part = step.start, step.stop
        owners = sorted({self.owner[i] for i in range(*part)})
        several = {b: self._layers(b, part)[1] - self._layers(b, part)[0] > 1 for b in owners}

        def plain(params: Params, x: Any) -> Any:
            for b in owners:
                fn, own = self.blocks[b].fn, params[b]
                x = lax.scan(lambda x, p, fn=fn: (fn(p, x), None), x, own)[0] if several[b] else fn(own, x)
            return x

        run = jax.custom_vjp(plain)

        def forward(params: Params, x: Any) -> Any:
            (params, x), (trained, _) = primals((params, x))
            y = plain(params, x)
            return y, (partition(params, trained), y)

        def backward(held: Any, cotangent: Any) -> Any:
            (moving, still), y = held
            cotangents, grads = floats(cotangent), {}
            for b in reversed(owners):
                back = undo(self.blocks[b], at_once if several[b] else order)
                if several[b]:

                    def layer(carry: Any, halves: Any, back: Callable[..., Any] = back) -> Any:
                        x, cotangents, grad = back(*halves, *carry)
                        return (x, cotangents), grad

                    halves = moving[b], still[b]
                    (y, cotangents), grads[b] = lax.scan(layer, (y, cotangents), halves, reverse=True)
                else:
                    y, cotangents, grads[b] = back(moving[b], still[b], y, cotangents)
            found = iter(cotangents)
            return grads, jax.tree.map(lambda leaf: next(found) if is_float(leaf) else None, y)

        run.defvjp(forward, backward, symbolic_zeros=True)
        return run


def is_float(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.inexact)


def floats(tree: Any) -> list[jax.Array]:
    """The leaves that have a derivative; cotangents that are nought by structure become arrays."""
    return [leaf for leaf in jax.tree.leaves(materialised(tree)) if is_float(leaf)]


def _template(tree: Any) -> Any:
    """Empty arrays that carry a tree's dtypes."""
    return jax.tree.map(lambda leaf: jnp.zeros((0,), leaf.dtype), tree)


@jax.tree_util.register_static
@dataclass(frozen=True)
class _Static:
    """Something hashable among residuals."""

    value: Any


def _to_host(tree: Any) -> Any:
    return jax.device_put(tree, jax.memory.Space.Host)


def _fetch(held: Any, cotangent: Any) -> Any:
    """What is on the host, on the device again; not before the cotangent is there."""
    held, cotangent = lax.optimization_barrier((held, cotangent))
    return jax.device_put(held, jax.memory.Space.Device), cotangent
