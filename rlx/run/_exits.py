"""How a run ends: exit codes, errors that carry one, and the wrapper that turns errors into exits."""

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import NoReturn


class Exit(IntEnum):
    """Exit codes of a run, after sysexits.h where it has one; a scheduler restarts on PREEMPTED alone.

    >>> int(Exit.PREEMPTED)
    75
    """

    OK = 0
    CONFIG = 2  # a flag, a field or a directory that does not fit: starting again does not help
    DATA = 65  # the data ended early or is damaged
    NON_FINITE = 70  # the rollbacks are spent and the updates are still not finite
    STORAGE = 74  # the disk is full, or gave back other bytes than were written
    PREEMPTED = 75  # stopped by a signal after a forced save: start again to go on


class RunError(Exception):
    """An error that a user can act on; `code` is the exit code that `main` turns it into."""

    code = Exit.CONFIG


class ConfigError(RunError):
    """A config file or a field of it is wrong."""


class ConfigMismatch(ConfigError):
    """The config of a run that goes on differs from the one that it was started with."""


class RunLocked(RunError):
    """Another process works in the same directory."""


class CheckpointMismatch(RunError):
    """A checkpoint is sound, but it holds other leaves, shapes or dtypes than the state to restore."""


class DataError(RunError):
    """The data ended early, or a record of the run is damaged."""

    code = Exit.DATA


class NonFiniteAbort(RunError):
    """Too many updates in a row were not finite, and the rollbacks are spent."""

    code = Exit.NON_FINITE


class StorageError(RunError):
    """Writing failed: the disk is full or broken."""

    code = Exit.STORAGE


class CheckpointCorrupt(StorageError):
    """There are checkpoints, and not one of them is what was written."""


class Preempted(RunError):
    """A signal asked the run to stop; its state was saved."""

    code = Exit.PREEMPTED


_DISK = {errno.ENOSPC: "no space left", errno.EDQUOT: "quota exceeded", errno.EFBIG: "file too large"}
_DISK |= {errno.EIO: "input/output error", errno.EROFS: "read-only file system"}


def storage_error(error: BaseException, doing: str) -> StorageError | None:
    """The StorageError that stands for `error`, or None where it is not about the disk.

    TensorStore reports a full disk as a ValueError whose text starts with RESOURCE_EXHAUSTED, and
    others as one that quotes the operating system.
    """
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _DISK:
            where = f" ({seen.filename})" if seen.filename else ""
            return StorageError(f"{doing}: {_DISK[seen.errno]}{where}; make room and start again")
        text = str(seen)
        for number, meaning in _DISK.items():
            if os.strerror(number) in text or (number == errno.ENOSPC and "RESOURCE_EXHAUSTED" in text):
                return StorageError(f"{doing}: {meaning}; make room and start again")
        seen = seen.__cause__ or seen.__context__
    return None


@contextmanager
def on_disk(doing: str) -> Iterator[None]:
    """Errors about the disk become StorageError; others pass."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        known = storage_error(error, doing)
        if known is None:
            raise
        raise known from error


def main(function: Callable[[], object], *, prog: str | None = None) -> NoReturn:
    """Call `function` and exit: 0 when it returns, an error's own code and one line on stderr when it does not.

    Errors that a user can act on (`RunError`, a full disk) show no traceback; any other error is a
    defect and keeps its own.

        >>> import rlx
        >>> def job():
        ...     raise rlx.run.ConfigMismatch("seed: the run has 0, now 1")
        >>> rlx.run.main(job, prog="job")
        Traceback (most recent call last):
        SystemExit: 2

    Args:
      function: called without arguments; an int that it returns is the exit code.
      prog: name in front of the message; the script's name by default.
    """
    prog = prog or os.path.basename(sys.argv[0])
    try:
        with on_disk("writing"):
            code = function()
    except RunError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        code = int(error.code)
    sys.exit(code if isinstance(code, int) else int(Exit.OK))
