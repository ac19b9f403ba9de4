"""Write a file whole or not at all."""

import os
from pathlib import Path


def writable(path: str | Path) -> Path:
    """The path, checked before the work that is to be written there.

    Raises:
      FileNotFoundError, IsADirectoryError, PermissionError: say what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path: {path} is a folder; give the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: there is no folder {path.parent}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise PermissionError(f"path: nothing can be written in the folder {path.parent}")
    return path


def write_whole(path: Path, content: bytes) -> None:
    """Replace the file at `path` in one step; on failure the old one, or none, stays."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
