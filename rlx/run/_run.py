"""A training run: one directory, one process, everything in it survives a kill."""

import fcntl
import hashlib
import json
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from time import monotonic
from types import FrameType, TracebackType
from typing import Any

from ._config import differences, plain
from ._environment import environment
from ._events import EventLog
from ._exits import ConfigError, ConfigMismatch, DataError, Exit, Preempted, RunError, RunLocked, StorageError, on_disk
from ._files import canonical, strict_loads, write_atomic
from ._metrics import Metrics
from ._progress import Progress
from ._stage import Stage
from ._train import StepFn, train

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\Z")


def sha256_file(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Run:
    """A run's directory, held by one process at a time.

    Killed at any moment and started again with the same command, a run ends with the same parameters as one that
    was never killed, provided that a step depends on its state, its batch and its number alone
    (`jax.random.fold_in(key, step)`), and that the device computes the same twice.

        directory/
          config.json    what was asked for; a run goes on only with the same
          env.json       versions, device, git
          metrics.jsonl  one line a logged step: the source of truth; tb/ is TensorBoard's copy
          events.jsonl   what happened, chained by sha256
          results/       what `result` computed
          ckpt/<stage>/  verified checkpoints

        >>> import tempfile, jax.numpy as jnp, rlx
        >>> def step(w, batch, index):
        ...     return w - 0.5 * w, {"loss": jnp.sum(w**2)}
        >>> with rlx.run.Run.open(tempfile.mkdtemp(), {"lr": 0.5}, tensorboard=False) as run:
        ...     w = run.train("fit", step, jnp.ones(2), steps=3, save_every=2, progress=False)
        ...     norm = run.result("norm", lambda: {"norm": float(jnp.sum(w))})
        >>> w.tolist(), norm
        ([0.125, 0.125], {'norm': 0.25})
    """

    def __init__(self, directory: Path, lock: int, *, config: Any, keep: int, tensorboard: bool):
        """Use `Run.open`."""
        self.directory, self.config, self.keep = directory, config, keep
        self._lock: int | None = lock
        self._signal: int | None = None
        self._handlers: dict[int, Any] = {}
        self.events = EventLog(directory / "events.jsonl")
        self.metrics = Metrics(directory, tensorboard=tensorboard)
        self.environment = environment()

    @classmethod
    def open(
        cls,
        directory: str | Path,
        config: Any,
        *,
        may_differ: Collection[str] = (),
        keep: int = 3,
        tensorboard: bool = True,
    ) -> "Run":
        """Begin a run, or go on with the one that the directory holds.

        Args:
          directory: made when it does not exist.
          config: a dataclass or a mapping of JSON values.
          may_differ: dotted names of fields that may have another value when the run goes on.
          keep: checkpoints kept in each stage.
          tensorboard: mirror the metrics to `tb/`.
        Returns:
          Run; a context manager.
        Raises:
          RunLocked: another process holds the directory.
          ConfigMismatch: the run was begun with another config; names the field and both values.
          DataError: config.json or events.jsonl is damaged.
          StorageError: the disk is full.
        """
        directory = Path(directory).absolute()
        values = plain(config)
        with on_disk(f"opening {directory}"):
            directory.mkdir(parents=True, exist_ok=True)
            lock = _take_lock(directory)
            try:
                resumed = _settle_config(directory, values, may_differ)
                run = cls(directory, lock, config=values, keep=keep, tensorboard=tensorboard)
                run._begin(resumed)
            except BaseException:
                os.close(lock)
                raise
        return run

    def _begin(self, resumed: bool) -> None:
        digest = hashlib.sha256(canonical(self.config)).hexdigest()
        self.events.append("start", config_sha256=digest, pid=os.getpid(), host=socket.gethostname(), resumed=resumed)
        path = self.directory / "env.json"
        if not path.exists():
            write_atomic(path, json.dumps(self.environment, indent=1).encode() + b"\n")
        else:
            changed = differences(strict_loads(path.read_bytes()), json.loads(json.dumps(self.environment)))
            if changed:
                self.events.append("environment", changed=[list(change) for change in changed])
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._handlers[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signal = number

    @property
    def stopping(self) -> bool:
        """Whether a signal asked the run to stop; the next `Stage.save` does."""
        return self._signal is not None

    def stop_if_asked(self, where: str) -> None:
        """Raise Preempted if a signal asked the run to stop.

        Raises:
          Preempted: exit code 75.
        """
        if self._signal is not None:
            name = signal.Signals(self._signal).name
            raise Preempted(f"stopped by {name} {where}; everything is saved, the same command goes on from here")

    def stage(
        self, name: str, *, steps: int, save_every: int = 100, log_every: int = 10, progress: bool = True
    ) -> Stage:
        """A loop of the run with its own checkpoints, for a loop that you write yourself.

            with run.stage("pretrain", steps=1000) as stage:
                state = stage.restore(state)
                for step in stage:
                    state, metrics = update(state, step)
                    stage.log(step + 1, metrics)
                    stage.save(step + 1, state)     # when it is due, and before a signal stops the run

        Args:
          name: letters, digits, "_" and "-".
          steps: how many updates it has in all.
          save_every: updates between checkpoints.
          log_every: updates between lines of metrics.jsonl.
          progress: show it on stderr.
        Returns:
          Stage; a context manager and an iterable of the steps that are left.
        """
        _check_name("name", name)
        for argument, value in (("steps", steps), ("save_every", save_every), ("log_every", log_every)):
            if value < 1:
                raise ValueError(f"{argument}: {value} is not at least 1")
        return Stage(self, name, steps=steps, save_every=save_every, log_every=log_every, progress=progress)

    def train(
        self,
        name: str,
        step_fn: StepFn,
        state: Any,
        *,
        steps: int,
        save_every: int = 100,
        log_every: int = 10,
        data_iterator: Any = None,
        watch: Sequence[str] = ("loss",),
        patience: int = 3,
        rollbacks: int = 2,
        skip_window: bool = True,
        jit: bool = True,
        progress: bool = True,
    ) -> Any:
        """Train to the end of a stage, from wherever it stands; a stage that is done only gives back its state.

        Updates that are not finite are not applied. After `patience` of them in a row, seen when metrics are
        logged, the stage goes back to the newest verified checkpoint before them. After `rollbacks` of these it
        ends with exit code 70. A signal ends it with 75 after the step and a forced save.

        Args:
          name: the stage's name.
          step_fn: `(state, batch, step) -> (state, metrics)`: step counts from 0, batch is None without an iterator,
            metrics are scalars. It is jitted here, and the state's memory is donated: give a plain function.
          state: a pytree of arrays, as it is before the first step.
          steps: updates in all.
          save_every: updates between checkpoints.
          log_every: updates between lines of metrics.
          data_iterator: gives batches; `get_state` and `set_state` place it (grain's iterators have them).
          watch: metrics that must be finite too.
          patience: updates in a row that may be not finite.
          rollbacks: how often the stage may go back, over all its restarts.
          skip_window: do not see the steps and batches again that led to a rollback.
          jit: False for a step that cannot be traced; it must not donate its state.
          progress: show it on stderr.
        Returns:
          The state after the last step.
        Raises:
          NonFiniteAbort, Preempted, DataError, StorageError, CheckpointCorrupt, CheckpointMismatch: each carries
            the exit code that `rlx.run.main` turns it into.
        """
        for argument, value, least in (("patience", patience, 1), ("rollbacks", rollbacks, 0)):
            if value < least:
                raise ValueError(f"{argument}: {value} is not at least {least}")
        stage = self.stage(name, steps=steps, save_every=save_every, log_every=log_every, progress=progress)
        with stage:
            return train(
                stage,
                step_fn,
                state,
                data_iterator=data_iterator,
                watch=tuple(watch),
                patience=patience,
                rollbacks=rollbacks,
                skip_window=skip_window,
                jit=jit,
            )

    def result(self, name: str, compute: Callable[[], Any], *, files: Sequence[str] = ()) -> Any:
        """Compute a small result once; a run that goes on reads it instead.

        Args:
          name: results/<name>.json.
          compute: gives JSON values, dataclasses or numpy scalars.
          files: files, relative to the run's directory, that `compute` writes; when one of them is missing or is
            no longer what was written, it is computed again.
        Returns:
          The result as JSON has it, the first time too.
        Raises:
          DataError: the result has no JSON form, NaN included; names the field.
        """
        _check_name("name", name)
        path = self.directory / "results" / f"{name}.json"
        for event in self.events.of("result", name=name)[-1:]:
            paths = {path: event["sha256"], **{self.directory / f: digest for f, digest in event["files"].items()}}
            named = set(files) <= event["files"].keys()
            if named and all(p.is_file() and sha256_file(p) == digest for p, digest in paths.items()):
                return strict_loads(path.read_bytes())
            self.events.append("result-damaged", name=name)
        self.stop_if_asked(f"before {name}")
        began = monotonic()
        try:
            value = plain(compute(), name)
        except ConfigError as error:
            raise DataError(f"result {error}") from error
        data = json.dumps(value, indent=1, ensure_ascii=False).encode() + b"\n"
        with on_disk(f"writing {path}"):
            write_atomic(path, data)
            self.events.append(
                "result",
                name=name,
                sha256=hashlib.sha256(data).hexdigest(),
                files={file: sha256_file(self.directory / file) for file in files},
                seconds=round(monotonic() - began, 3),
            )
        self.stop_if_asked(f"after {name}")
        return strict_loads(data)

    def timings(self) -> dict[str, float]:
        """Seconds of each finished stage and result, over all restarts, in the order in which they ended."""
        found: dict[str, float] = {}
        for entry in self.events.entries:
            if entry["kind"] in ("stage-done", "result"):
                data = entry["data"]
                found[data["stage" if entry["kind"] == "stage-done" else "name"]] = data["seconds"]
        return found

    def progress(self, total: int, label: str) -> Progress:
        """Progress of something that is no stage: a context manager with `update(done, **metrics)`."""
        return Progress(total, label)

    def __enter__(self) -> "Run":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code = int(error.code) if isinstance(error, RunError) else int(Exit.OK) if error is None else 1
        reason = "" if error is None else f"{type(error).__name__}: {error}"[:500]
        try:
            with on_disk(f"closing {self.directory}"):
                self.close(code=code, reason=reason)
        except StorageError:
            if error is None:  # else the error that is under way says more
                raise

    def close(self, *, code: int = 0, reason: str = "") -> None:
        """Write the last event, give the directory and the signals back."""
        if self._lock is None:
            return
        try:
            self.events.append("end", code=code, reason=reason)
            self.metrics.close()
            self.events.close()
        finally:
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._handlers.clear()
            lock, self._lock = self._lock, None
            os.close(lock)


def _check_name(argument: str, name: str) -> None:
    if not _NAME.match(name):
        raise ValueError(f"{argument}: {name!r} may have letters, digits, '_' and '-' only")


def _take_lock(directory: Path) -> int:
    descriptor = os.open(directory / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 200).decode(errors="replace").strip() or "another process"
        os.close(descriptor)
        raise RunLocked(f"{directory} is in use by {holder}; wait for it, stop it, or use another directory") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return descriptor


def _settle_config(directory: Path, values: Any, may_differ: Collection[str]) -> bool:
    """Write config.json, or compare with the one that stands; whether there was one."""
    path = directory / "config.json"
    if not path.exists():
        write_atomic(path, json.dumps(values, indent=1, ensure_ascii=False).encode() + b"\n")
        return False
    try:
        old = strict_loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path}: {error}") from error
    wrong = [change for change in differences(old, values) if change[0] not in may_differ]
    if wrong:
        each = "; ".join(f"{name}: the run has {was!r}, now {now!r}" for name, was, now in wrong[:5])
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ConfigMismatch(f"{each}{more}. Give the old value to go on in {directory}, or use another directory")
    return True
