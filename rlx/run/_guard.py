"""Updates that are not finite are not applied, inside jit; the host decides when that is too many."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from rlx._tree import named_leaves

_SMALL = 65_536


@jax.tree_util.register_dataclass
@dataclass(frozen=True, kw_only=True)
class GuardState:
    """Counts of updates that were not applied.

    Args:
      consecutive: int32 [], in a row up to now.
      skipped: int32 [], in all.
    """

    consecutive: jax.Array
    skipped: jax.Array


def guard_init() -> GuardState:
    """Both counts at zero."""
    return GuardState(consecutive=jnp.zeros((), jnp.int32), skipped=jnp.zeros((), jnp.int32))


def became_non_finite(old: Any, new: Any) -> jax.Array:
    """Whether any number of a tree is NaN or infinite and was finite before: bool [].

    A mask of -inf or a best loss of +inf that a state starts with is left alone.

    >>> bool(became_non_finite({"w": jnp.ones(2)}, {"w": jnp.array([1.0, jnp.nan])}))
    True
    >>> bool(became_non_finite({"best": jnp.array(jnp.inf)}, {"best": jnp.array(jnp.inf)}))
    False
    """
    bad = jnp.zeros((), bool)
    for before, after in _together(jax.tree.leaves(old), jax.tree.leaves(new)):
        bad |= jnp.any(~jnp.isfinite(after) & jnp.isfinite(before))
    return bad


def _together(old: list[Any], new: list[Any]) -> Iterator[tuple[jax.Array, jax.Array]]:
    """Large leaves alone, small ones of a dtype as one: a reduction for each would be compiled and run one by one."""
    small: dict[Any, list[tuple[jax.Array, jax.Array]]] = {}
    for before, after in zip(old, new, strict=True):
        if not jnp.issubdtype(after.dtype, jnp.inexact):
            continue
        if after.size > _SMALL or _sharded(before) or _sharded(after):
            yield before, after
        else:
            small.setdefault((before.dtype, after.dtype), []).append((before.ravel(), after.ravel()))
    for pairs in small.values():
        before, after = (jnp.concatenate(side) for side in zip(*pairs, strict=True))
        yield before, after


def _sharded(leaf: jax.Array) -> bool:
    """Whether its type says that it is divided along an explicit axis of a mesh; such leaves do not concatenate."""
    return any(axis is not None for axis in jax.typeof(leaf).sharding.spec)


def guard(
    step_fn: Callable[[Any, Any, Any], tuple[Any, dict[str, Any]]],
    *,
    watch: tuple[str, ...] = ("loss",),
    jit_select: bool = False,
) -> Callable[[Any, GuardState, Any, Any], tuple[Any, GuardState, dict[str, Any]]]:
    """Wrap a training step so that an update that is not finite leaves the state as it was.

    `state' = where(finite, step(state), state)`; unlike `optax.apply_if_finite`, which applies the update once
    its limit is passed, there is no limit here: the host reads `consecutive` and stops or rolls back.

        >>> def step(state, batch, index):
        ...     return state + batch, {"loss": batch}
        >>> state, counts, metrics = guard(step)(jnp.zeros(()), guard_init(), jnp.array(jnp.nan), 0)
        >>> float(state), int(counts.skipped), int(metrics["skipped"])
        (0.0, 1, 1)

    Args:
      step_fn: `(state, batch, step) -> (state, metrics)`.
      watch: metrics that count too, where `step_fn` returns them; the state always counts.
      jit_select: compile the choice between the old state and the new; for a step that is not traced as a whole.
    Returns:
      `(state, guard_state, batch, step) -> (state, guard_state, metrics)`, where metrics has `skipped` besides.
    Raises:
      ValueError: while tracing, the step changes a leaf's shape or dtype or the keys of the state; names the leaf.
    """

    select = jax.jit(_select) if jit_select else _select

    def guarded(state: Any, counts: GuardState, batch: Any, step: Any) -> tuple[Any, GuardState, dict[str, Any]]:
        new, metrics = step_fn(state, batch, step)
        _check_same(state, new)
        watched = [jnp.asarray(metrics[name]) for name in watch if name in metrics]
        kept, counts = select(state, new, watched, counts)
        return kept, counts, {**metrics, "skipped": counts.skipped}

    return guarded


def _select(old: Any, new: Any, watched: list[jax.Array], counts: GuardState) -> tuple[Any, GuardState]:
    bad = became_non_finite(old, new)
    for value in watched:
        bad |= ~jnp.all(jnp.isfinite(value))
    kept = jax.lax.cond(bad, lambda old, _: old, lambda _, new: new, old, new)
    consecutive = jnp.where(bad, counts.consecutive + 1, 0)
    return kept, GuardState(consecutive=consecutive, skipped=counts.skipped + bad.astype(jnp.int32))


def _check_same(old: Any, new: Any) -> None:
    before, after = named_leaves(old), named_leaves(new)
    for name in [*before, *after]:
        if name not in after or name not in before:
            verb = "loses" if name not in after else "adds"
            raise ValueError(f"step_fn: it {verb} the state's leaf {name}; a state keeps its keys")
        kinds = [f"{leaf.dtype}{list(leaf.shape)}" for leaf in (before[name], after[name])]
        if kinds[0] != kinds[1]:
            raise ValueError(f"step_fn: the state's leaf {name} goes in as {kinds[0]} and comes out as {kinds[1]}")
