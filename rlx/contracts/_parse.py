"""TOML or JSON text to plain values, safe to read: bounded, without doubled keys, every number finite."""

import json
import math
import re
import tomllib
from typing import Any, Literal

LARGEST_FILE = 1 << 20  # bytes
_DEEPEST = 64  # brackets
_LONGEST_KEY = 32  # dots in a TOML key
_LARGEST_INTEGER = 1 << 63


def plain_values(text: str | bytes, format: Literal["json", "toml"]) -> Any:
    """The document as dicts, lists, text, finite numbers and booleans.

    Raises:
      ValueError: with the path in the document.
    """
    if not isinstance(text, (str, bytes, bytearray)):
        raise TypeError(f"text: expected text or bytes, got {type(text).__name__}")
    if format not in ("json", "toml"):
        raise ValueError(f"format: {format!r} is not one of 'json', 'toml'")
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else bytes(text)
    if len(raw) > LARGEST_FILE:
        raise ValueError(f"$: {len(raw)} bytes, more than the {LARGEST_FILE} that a contract may have")
    try:
        decoded = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"$: not UTF-8 at byte {error.start}") from error
    _check_brackets(decoded, format)
    return _finite(_parse_json(decoded) if format == "json" else _parse_toml(decoded))


_JSON_TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|[\[\]{}]', re.DOTALL)
_TOML_TOKEN = re.compile(
    r'"""(?:\\.|[^\\])*?"""|\'\'\'.*?\'\'\'|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*|[\[\]{}.=,\n]', re.DOTALL
)


def _check_brackets(text: str, format: str) -> None:
    """Depth and the length of dotted keys, before a recursive parser sees them."""
    depth = dots = 0
    for token in (_JSON_TOKEN if format == "json" else _TOML_TOKEN).finditer(text):
        match token.group():
            case "[" | "{":
                depth, dots = depth + 1, 0
            case "]" | "}":
                depth = max(depth - 1, 0)
            case ".":
                dots += 1
            case "=" | "," | "\n":
                dots = 0
        if depth > _DEEPEST or dots > _LONGEST_KEY:
            line = text.count("\n", 0, token.start()) + 1
            what = f"nested deeper than {_DEEPEST}" if depth > _DEEPEST else f"a key of more than {_LONGEST_KEY} parts"
            raise ValueError(f"$: line {line}: {what}")


class _Pairs(list[tuple[str, Any]]):
    """A JSON object before its keys are known to be different."""


class _NotANumber:
    def __init__(self, text: str) -> None:
        self.text = text if len(text) <= 24 else f"{text[:20]}... ({len(text)} digits)"


def _parse_json(text: str) -> Any:
    def integer(digits: str) -> Any:
        return int(digits) if len(digits) <= 20 else _NotANumber(digits)

    def real(digits: str) -> Any:
        number = float(digits)
        return number if math.isfinite(number) else _NotANumber(digits)

    try:
        return json.loads(
            text, object_pairs_hook=_Pairs, parse_int=integer, parse_float=real, parse_constant=_NotANumber
        )
    except json.JSONDecodeError as error:
        raise ValueError(f"$: line {error.lineno}, column {error.colno}: {error.msg}") from error


def _parse_toml(text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"$: {error}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise ValueError(f"$: {error}") from error


def _finite(value: Any, path: str = "$") -> Any:
    """Plain values, or the path of the first that is none: not finite, doubled, a date, half a character."""
    match value:
        case _Pairs() | dict():
            pairs = value if isinstance(value, _Pairs) else list(value.items())
            found: dict[str, Any] = {}
            for key, item in pairs:
                where = f"{path}.{key}" if re.fullmatch(r"[\w-]{1,64}", key) else f"{path}[{key[:64]!r}]"
                if key in found:
                    raise ValueError(f"{where}: this key is there twice")
                _finite(key, where)
                found[key] = _finite(item, where)
            return found
        case list():
            return [_finite(item, f"{path}[{i}]") for i, item in enumerate(value)]
        case bool() | None:
            return value
        case int() if abs(value) < _LARGEST_INTEGER:
            return value
        case float() if math.isfinite(value):
            return value
        case str():
            try:
                value.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"{path}: half of a surrogate pair, which is no character") from error
            return value
    told = value.text if isinstance(value, _NotANumber) else repr(value)[:40]
    raise ValueError(f'{path}: {told} is not a finite number, text, list or table; an end of a range may be "inf"')
