"""A training run as its users meet it: config, verified checkpoints, resume, guards, metrics, progress.

`parse` makes a frozen dataclass of flags and a JSON file; `Run.open` takes a directory; `run.train` and
`run.stage` carry a loop through kills, signals, damaged checkpoints and updates that are not finite; `run.result`
computes once; `main` turns errors into exit codes (`Exit`). `python -m rlx.run status DIR` and `... verify DIR`
look at a run from outside. Names load on first use, so that `--help` costs neither jax nor orbax.

    config = rlx.run.parse(Config)
    with rlx.run.Run.open("runs/one", config) as run:
        params = run.train("fit", step_fn, params, steps=1000, save_every=100)
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._checkpoint import Restored as Restored
    from ._checkpoint import VerifiedCheckpointer as VerifiedCheckpointer
    from ._checkpoint import verify_checkpoints as verify_checkpoints
    from ._config import parse as parse
    from ._environment import environment as environment
    from ._events import ChainReport as ChainReport
    from ._events import EventLog as EventLog
    from ._events import verify_events as verify_events
    from ._exits import CheckpointCorrupt as CheckpointCorrupt
    from ._exits import CheckpointMismatch as CheckpointMismatch
    from ._exits import ConfigError as ConfigError
    from ._exits import ConfigMismatch as ConfigMismatch
    from ._exits import DataError as DataError
    from ._exits import Exit as Exit
    from ._exits import NonFiniteAbort as NonFiniteAbort
    from ._exits import Preempted as Preempted
    from ._exits import RunError as RunError
    from ._exits import RunLocked as RunLocked
    from ._exits import StorageError as StorageError
    from ._exits import main as main
    from ._files import write_atomic as write_atomic
    from ._guard import GuardState as GuardState
    from ._guard import guard as guard
    from ._guard import guard_init as guard_init
    from ._inspect import Inspection as Inspection
    from ._inspect import read_result as read_result
    from ._inspect import status as status
    from ._inspect import verify as verify
    from ._manifest import StepReport as StepReport
    from ._metrics import read_metrics as read_metrics
    from ._progress import Progress as Progress
    from ._run import Run as Run
    from ._stage import Stage as Stage

# The same names by the file that holds them; a test compares the two lists.
_FILES = {
    "_checkpoint": ("Restored", "VerifiedCheckpointer", "verify_checkpoints"),
    "_config": ("parse",),
    "_environment": ("environment",),
    "_events": ("ChainReport", "EventLog", "verify_events"),
    "_exits": (
        "CheckpointCorrupt",
        "CheckpointMismatch",
        "ConfigError",
        "ConfigMismatch",
        "DataError",
        "Exit",
        "NonFiniteAbort",
        "Preempted",
        "RunError",
        "RunLocked",
        "StorageError",
        "main",
    ),
    "_files": ("write_atomic",),
    "_guard": ("GuardState", "guard", "guard_init"),
    "_inspect": ("Inspection", "read_result", "status", "verify"),
    "_manifest": ("StepReport",),
    "_metrics": ("read_metrics",),
    "_progress": ("Progress",),
    "_run": ("Run",),
    "_stage": ("Stage",),
}
_HOME = {name: file for file, names in _FILES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module 'rlx.run' has no attribute {name!r}; it has {', '.join(sorted(_HOME))}")


def __dir__() -> list[str]:
    return sorted(_HOME)
