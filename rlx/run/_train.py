"""The loop of `Run.train`: restore, step, guard, log, save, roll back."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from ._exits import DataError, NonFiniteAbort
from ._guard import GuardState, guard, guard_init
from ._stage import Stage, check_iterator, iterator_state, place_iterator

StepFn = Callable[[Any, Any, Any], tuple[Any, dict[str, Any]]]


def train(
    stage: Stage,
    step_fn: StepFn,
    state: Any,
    *,
    data_iterator: Any,
    watch: tuple[str, ...],
    patience: int,
    rollbacks: int,
    skip_window: bool,
    jit: bool,
) -> Any:
    """See `Run.train`."""
    if data_iterator is not None:
        check_iterator(data_iterator)
    # Arrays of one's own: they are donated below, and the caller keeps his. None is weakly typed, since a restored
    # array is not either, and a run that goes on must compute in the same dtypes.
    template = state = jax.tree.map(_own, state)
    state = stage.restore(state, data_iterator=data_iterator)
    counts = _counts(stage.extra.get("guard"))
    if stage.saved is None:  # there is always a step to go back to
        stage.save(0, state, data_iterator=data_iterator, force=True, extra={"guard": _plain(counts)})
    update = guard(step_fn, watch=watch, jit_select=not jit)
    if jit:
        update = jax.jit(update, donate_argnums=(0, 1))

    done = stage.start
    while done < stage.steps:
        batch = None
        if data_iterator is not None:
            try:
                batch = next(data_iterator)
            except StopIteration as error:
                raise DataError(f"{stage.name}: the data ended after {done} of {stage.steps} steps") from error
        state, counts, metrics = update(state, counts, batch, done)
        done += 1
        stage.log(done, metrics)
        if done % stage.log_every == 0 or done == stage.steps:
            in_a_row = int(counts.consecutive)
            if in_a_row >= patience:
                _check_budget(stage, done, in_a_row, rollbacks)
                state, counts, done = _roll_back(stage, template, counts, done, data_iterator, skip_window)
        if stage.due(done):
            stage.save(done, state, data_iterator=data_iterator, extra={"guard": _plain(counts)})
    if stage.saved != stage.steps:  # killed after a rollback that skipped to the end
        stage.save(stage.steps, state, data_iterator=data_iterator, extra={"guard": _plain(counts)})
    return state


def _own(leaf: Any) -> jax.Array:
    if isinstance(leaf, jax.Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return leaf.copy()
        return jax.lax.convert_element_type(leaf.copy(), leaf.dtype)
    array = jnp.asarray(leaf)
    return jnp.array(array, dtype=array.dtype)


def _plain(counts: GuardState) -> list[int]:
    return [int(counts.consecutive), int(counts.skipped)]


def _counts(saved: list[int] | None) -> GuardState:
    if saved is None:
        return guard_init()
    return GuardState(consecutive=jnp.array(saved[0], jnp.int32), skipped=jnp.array(saved[1], jnp.int32))


def _check_budget(stage: Stage, done: int, in_a_row: int, rollbacks: int) -> None:
    used = len(stage.run.events.of("rollback", stage=stage.name))
    if used >= rollbacks:
        stage.run.metrics.sync()
        raise NonFiniteAbort(
            f"{stage.name}: the {in_a_row} updates before step {done} were not finite, after {used} rollbacks; "
            "look at the loss in metrics.jsonl, and lower the learning rate or clip the gradients"
        )


def _roll_back(
    stage: Stage, template: Any, counts: GuardState, done: int, data_iterator: Any, skip_window: bool
) -> tuple[Any, GuardState, int]:
    """Back to the newest verified checkpoint from before the bad updates.

    Forced checkpoints do not count, so that a run that was stopped in between goes back as far as one that was not.
    """
    checkpoints = stage.checkpoints
    last_good = done - int(counts.consecutive)

    def usable(manifest: dict[str, Any]) -> bool:
        return manifest["step"] <= last_good and checkpoints.due(manifest["step"])

    checkpoints.wait()
    steps = checkpoints.steps()
    regular = any(step <= last_good and checkpoints.due(step) for step in steps)
    found = checkpoints.restore(template, accept=usable if regular else None)
    if found is None:
        raise DataError(f"{stage.name}: no checkpoint before step {last_good} is left to go back to")
    if skip_window:
        go_on_at, iterator = done, iterator_state(data_iterator)
        counts = replace(counts, consecutive=jnp.zeros((), jnp.int32))
    else:
        go_on_at, iterator = found.step, found.extra["iterator"]
        place_iterator(data_iterator, iterator)
        counts = _counts([0, found.extra["guard"][1]])
        stage.run.metrics.cut(stage.name, go_on_at)
    stage.run.metrics.sync()
    stage.run.events.append(
        "rollback", stage=stage.name, at=done, to=found.step, go_on_at=go_on_at, iterator=iterator, guard=_plain(counts)
    )
    return found.state, counts, go_on_at
