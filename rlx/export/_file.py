"""Write a file whole or not at all, and know it again."""

import hashlib
import os
from pathlib import Path

# After the content: readers of StableHLO and of TensorFlow Lite look only where their offsets point.
_SEAL = b"rlx.sha256"
_LENGTH = len(_SEAL) + hashlib.sha256().digest_size


def sealed(content: bytes) -> bytes:
    """The content, and a SHA-256 of it at its end."""
    return content + _SEAL + hashlib.sha256(content).digest()


def unsealed(whole: bytes) -> bytes | None:
    """What `sealed` was given; None if it does not end as that does.

    Raises:
      ValueError: it does, and is not what was sealed: says what to do.
    """
    content, seal = whole[:-_LENGTH], whole[-_LENGTH:]
    if not seal.startswith(_SEAL):
        return None
    if seal != _SEAL + hashlib.sha256(content).digest():
        raise ValueError("is damaged: its SHA-256 is another than the one at its end; copy or write it again")
    return content


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
