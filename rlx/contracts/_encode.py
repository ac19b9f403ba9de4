"""Texts as a batch of arrays: host-side numpy, padded so that a jitted reward is rarely traced again."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from rlx._checks import is_array

Columns = Mapping[str, Any]
Encode = Callable[[list[str], list[str], Columns], Mapping[str, Any]]
_SHORTEST = 16


def encode_bytes(
    prompts: list[str], completions: list[str], columns: Columns, *, length: int | None = None
) -> dict[str, np.ndarray]:
    """The UTF-8 bytes of each completion, and the dataset columns that are numbers.

    T is the next power of two that holds the longest completion, at least 16, so texts of every length up to n cause
    at most log2(n) traces. What a term says must not depend on that padding: it reads "mask", or `length` is fixed
    (`functools.partial(encode_bytes, length=512)`).

    Args:
      prompts: `[B]` texts; not read.
      completions: `[B]` texts.
      columns: dataset columns by name, each with B rows. Lists of numbers and numeric arrays are kept (booleans as
        bool, integers as int32, others as float32); everything else is for an `encode` of your own.
      length: T, if it is to be the same always.

    Returns:
      "tokens" `[B, T]` int32, "mask" `[B, T]` bool, and the kept columns `[B, ...]`.

    Raises:
      ValueError: a column has another number of rows, or the name of something that is made here; a completion is
        longer than `length`.

    Example:
      >>> batch = encode_bytes(["say"], ["hé"], {"level": [3], "source": ["web"]})
      >>> batch["tokens"][0, :4].tolist(), int(batch["mask"].sum()), batch["tokens"].shape, batch["level"].tolist()
      ([104, 195, 169, 0], 3, (1, 16), [3])
    """
    rows = [np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8) for text in completions]
    return _padded(rows, length) | numeric_columns(columns, len(completions))


def encode_ids(
    prompts: list[str], completions: list[str], columns: Columns, *, length: int | None = None
) -> dict[str, np.ndarray]:
    """The token ids that the policy sampled, from the column "completion_ids", which TRL passes.

    As `encode_bytes`, with ids in the place of bytes: token-level terms then line up with the policy's own tokens.

    Args:
      prompts, completions: `[B]` texts; not read.
      columns: dataset columns and "completion_ids", B lists of integers.
      length: T, if it is to be the same always (TRL's `max_completion_length`).

    Returns:
      "tokens" `[B, T]` int32, "mask" `[B, T]` bool, and the numeric columns `[B, ...]`.

    Raises:
      ValueError: "completion_ids" is missing or has another number of rows; otherwise as `encode_bytes`.

    Example:
      >>> batch = encode_ids(["say"], ["hello"], {"completion_ids": [[7, 50256]]})
      >>> batch["tokens"][0, :3].tolist(), batch["mask"][0, :3].tolist()
      ([7, 50256, 0], [True, True, False])
    """
    ids = columns.get("completion_ids")
    if ids is None:
        raise ValueError("completion_ids: encode_ids reads this column, which only TRL passes; use encode_bytes")
    if len(ids) != len(completions):
        raise ValueError(f"completion_ids: {len(ids)} rows disagree with {len(completions)} completions")
    rows = [np.asarray([] if row is None else row, np.int64) for row in ids]
    for i, row in enumerate(rows):
        if row.ndim != 1 or np.any(row != row.astype(np.int32)):
            raise ValueError(f"completion_ids[{i}]: expected a list of int32 ids, got shape {row.shape}")
    return _padded(rows, length) | numeric_columns(columns, len(completions))


def numeric_columns(columns: Columns, size: int) -> dict[str, np.ndarray]:
    """The columns that are numbers, as arrays of `size` rows; what is not a list, or not of numbers, is left out."""
    kept = {}
    for name, column in columns.items():
        rows = isinstance(column, (list, tuple)) or (is_array(column) and np.ndim(column) > 0)
        if name == "completion_ids" or not rows:
            continue
        if len(column) != size:
            raise ValueError(f"column {name!r}: {len(column)} rows disagree with {size} completions")
        if name in ("tokens", "mask"):
            raise ValueError(f"column {name!r}: this name is taken by the encoded text; rename it or pass encode=")
        if isinstance(column, (list, tuple)) and not all(_is_number(x) for x in column):
            continue
        array = np.asarray(column)
        if array.dtype == np.bool_ or not array.size:
            kept[name] = array
        elif np.issubdtype(array.dtype, np.integer):
            if np.array_equal(array, array.astype(np.int32)):
                kept[name] = array.astype(np.int32)
        elif np.issubdtype(array.dtype, np.floating):
            kept[name] = array.astype(np.float32)
    return kept


def texts_of(name: str, values: Any, *, roles: tuple[str, ...] | None = None, none: str | None = None) -> list[str]:
    """Each row as one text: a string is itself, a conversation the contents of its messages of these roles, by line.

    A row that is None is `none`, if that is given.

    Raises:
      TypeError: names the row that is neither a text nor a list of messages.
    """
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, (Sequence, np.ndarray)):
        raise TypeError(f"{name}: expected a list of texts or of conversations, got {type(values).__name__}")
    rows = enumerate(values)
    return [none if v is None and none is not None else _text(f"{name}[{i}]", v, roles) for i, v in rows]


def padded_rows(array: np.ndarray, rows: int) -> np.ndarray:
    """Zero rows appended up to `rows`."""
    return np.concatenate([array, np.zeros((rows - array.shape[0], *array.shape[1:]), array.dtype)])


def power_of_two(size: int, least: int = 1) -> int:
    """The smallest power of two that is at least `size` and at least `least`."""
    return max(least, 1 << max(size - 1, 0).bit_length())


def _padded(rows: list[np.ndarray], length: int | None) -> dict[str, np.ndarray]:
    lengths = np.asarray([len(row) for row in rows], np.int64)
    longest = int(lengths.max(initial=0))
    if length is not None and longest > length:
        raise ValueError(f"length: {length} is shorter than completions[{lengths.argmax()}], {longest}; raise it")
    tokens = np.zeros((len(rows), power_of_two(longest, _SHORTEST) if length is None else length), np.int32)
    for row, values in zip(tokens, rows, strict=True):
        row[: len(values)] = values
    return {"tokens": tokens, "mask": np.arange(tokens.shape[1]) < lengths[:, None]}


def _text(where: str, value: Any, roles: tuple[str, ...] | None) -> str:
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Mapping) or not isinstance(value, Iterable) or isinstance(value, bytes):
        raise TypeError(f"{where}: expected a text or a list of messages, got {type(value).__name__}")
    parts = []
    for message in value:
        if not _has(message, "role"):
            raise TypeError(f'{where}: expected messages with "role" and "content", got {message!r}')
        if roles is None or _get(message, "role") in roles:
            parts += _contents(where, _get(message, "content"))
    return "\n".join(parts)


def _contents(where: str, content: Any) -> list[str]:
    if content is None:  # a message that only calls a tool
        return []
    if isinstance(content, str):
        return [content]
    if isinstance(content, Sequence):
        return [_get(part, "text") for part in content if _get(part, "type") == "text"]
    raise TypeError(f"{where}: expected content that is a text or a list of parts, got {type(content).__name__}")


def _has(message: Any, key: str) -> bool:
    return key in message if isinstance(message, Mapping) else hasattr(message, key)


def _get(message: Any, key: str) -> Any:
    """A field of a message: a dict in TRL, an object in verifiers."""
    return message.get(key) if isinstance(message, Mapping) else getattr(message, key, None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (bool, int, float, np.number, np.bool_))
