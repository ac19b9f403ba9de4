"""A loop of a run: where it stands, its checkpoints, its lines of metrics."""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from time import monotonic, time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ._checkpoint import Restored, VerifiedCheckpointer
from ._exits import on_disk
from ._progress import Progress

if TYPE_CHECKING:
    from ._run import Run


class Stage:
    """A stage of a run; made by `Run.stage`, whose docstring shows the loop.

    A line of metrics and a checkpoint are numbered by the updates done: step index i ends with number i + 1.
    """

    def __init__(self, run: "Run", name: str, *, steps: int, save_every: int, log_every: int, progress: bool):
        """Use `Run.stage`."""
        self.run, self.name, self.steps, self.log_every = run, name, steps, log_every
        self.start = 0
        self.extra: dict[str, Any] = {}
        self.checkpoints = VerifiedCheckpointer(
            run.directory / "ckpt" / name, keep=run.keep, save_every=save_every, on_event=self._on_event
        )
        self._spent, self._began = 0.0, monotonic()
        self.saved: int | None = None
        self._show = progress
        self._progress: Progress | None = None

    def _on_event(self, kind: str, **data: Any) -> None:
        if kind != "checkpoint-deleted":
            self.run.events.append(kind, stage=self.name, **data)

    @property
    def seconds(self) -> float:
        """Seconds spent in this stage, over all restarts, up to the checkpoint that it went on from, and since."""
        return self._spent + monotonic() - self._began

    def restore(self, state: Any, *, data_iterator: Any = None) -> Any:
        """The state to go on from: of the newest verified checkpoint, or `state` itself; sets `start`.

        Lines of metrics beyond it are cut, since they will be written again.

        Raises:
          CheckpointCorrupt, CheckpointMismatch: see `VerifiedCheckpointer.restore`.
        """
        found = self.checkpoints.restore(state)
        if found is None:
            self.run.metrics.cut(self.name, 0)
            return state
        self._spent, self._began = float(found.extra["seconds"]), monotonic()
        self.saved = self.start = found.step
        self.extra = dict(found.extra)
        rollback = self._unfinished_rollback(found)
        if rollback is not None:
            self.start = rollback["go_on_at"]
            self.extra |= {"iterator": rollback["iterator"], "guard": rollback["guard"]}
        place_iterator(data_iterator, self.extra["iterator"])
        self.run.metrics.cut(self.name, self.start)
        if self.start < self.steps:
            self.run.events.append("restore", stage=self.name, step=found.step, sha256=found.sha256)
        return found.state

    def _unfinished_rollback(self, found: Restored) -> dict[str, Any] | None:
        """The last rollback, if it ended at this checkpoint and no checkpoint was written since."""
        done = self.run.events.of("rollback", stage=self.name)
        if len(done) > found.extra["rollbacks"] and done[-1]["to"] == found.step:
            return done[-1]
        return None

    def __iter__(self) -> Iterator[int]:
        """The indices of the steps that are left, from 0."""
        return iter(range(self.start, self.steps))

    def log(self, done: int, metrics: Mapping[str, Any] | None = None, /, **more: Any) -> None:
        """Write a line of metrics, if one is due after `done` updates; only then are values fetched from the device.

        Args:
          done: updates done.
          metrics: scalars by name; NaN and the infinities are written as null.
          more: more of them.
        """
        shown = {}
        if done % self.log_every == 0 or done == self.steps:
            import jax

            values = jax.device_get({**(metrics or {}), **more})
            with on_disk("writing metrics.jsonl"):
                shown = self.run.metrics.write(self.name, done, time(), values)
        if self._show and (shown or self._progress is not None):
            if self._progress is None:
                self._progress = Progress(self.steps, self.name, start=self.start, began=self._began)
            self._progress.update(done, **shown)

    def due(self, done: int) -> bool:
        """Whether `save` would save after `done` updates."""
        return self.run.stopping or done == self.steps or self.checkpoints.due(done)

    def save(
        self,
        done: int,
        state: Any,
        *,
        data_iterator: Any = None,
        force: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """Save the state after `done` updates, if it is due, is the last, or a signal asks the run to stop.

        Args:
          done: updates done.
          state: the state after them; its memory may be donated once this returns.
          data_iterator: its position is saved too.
          force: save although it is not due.
          extra: JSON values to keep, found in `extra` after `restore`.
        Raises:
          Preempted: a signal asked the run to stop, and the state is on disk.
          StorageError: the disk is full.
        """
        stopping = self.run.stopping
        if force or stopping or self.due(done):
            iterator = iterator_state(data_iterator)
            events = self.run.events

            def beside(digest: str) -> dict[str, Any]:
                events.append("save", stage=self.name, step=done, sha256=digest)
                return {
                    **(extra or {}),
                    "stage": self.name,
                    "seconds": round(self.seconds, 3),
                    "rollbacks": len(events.of("rollback", stage=self.name)),
                    "iterator": iterator,
                    "events": events.head,
                }

            with on_disk(f"saving step {done} of {self.name}"):
                self.run.metrics.sync()
                self.checkpoints.save(done, state, extra=beside)
            self.saved = done
        if stopping:
            self.checkpoints.wait()
            self.run.stop_if_asked(f"at step {done} of {self.steps} of {self.name}")

    def __enter__(self) -> "Stage":
        events = self.run.events
        if not events.of("stage", stage=self.name, steps=self.steps):
            events.append("stage", stage=self.name, steps=self.steps)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress is not None:
            self._progress.close()
        if error is not None:
            self.checkpoints.abandon()
            return
        self.checkpoints.close()
        events = self.run.events
        if self.saved == self.steps and not events.of("stage-done", stage=self.name, steps=self.steps):
            events.append("stage-done", stage=self.name, steps=self.steps, seconds=round(self.seconds, 3))


def check_iterator(data_iterator: Any) -> None:
    """Check that an iterator can say where it is and be placed there.

    Raises:
      TypeError: says what is missing.
    """
    for name in ("__next__", "get_state", "set_state"):
        if not callable(getattr(data_iterator, name, None)):
            raise TypeError(
                f"data_iterator: {type(data_iterator).__name__} has no {name}; a run can only go on with an iterator "
                "that knows its position, such as iter(grain.MapDataset....to_iter_dataset())"
            )


def iterator_state(data_iterator: Any) -> dict[str, str] | None:
    """An iterator's position as JSON text, or as base64 where it is bytes."""
    if data_iterator is None:
        return None
    state = data_iterator.get_state()
    if isinstance(state, bytes):
        return {"base64": b64encode(state).decode()}
    return {"json": json.dumps(state)}


def place_iterator(data_iterator: Any, state: dict[str, str] | None) -> None:
    """Set an iterator to a position that `iterator_state` gave."""
    if data_iterator is None or state is None:
        return
    data_iterator.set_state(b64decode(state["base64"]) if "base64" in state else json.loads(state["json"]))
