"""A frozen dataclass is the config: flags and a JSON file fill it, canonical JSON stores it."""

import dataclasses
import enum
import math
import os
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from ._exits import ConfigError, Exit
from ._files import strict_loads

C = TypeVar("C")


def parse(
    config: type[C], argv: Sequence[str] | None = None, *, prog: str | None = None, description: str | None = None
) -> C:
    """Fill a dataclass from the command line; `--config FILE.json` is read first, flags override it.

    A wrong flag or value exits with 2 and names the flag; so does a file with an unknown field, a field given
    twice, a NaN or a value of another type. `--help` imports neither jax nor orbax.

        >>> import dataclasses, rlx
        >>> @dataclasses.dataclass(frozen=True)
        ... class Config:
        ...     steps: int = 100
        ...     lr: float = 1e-3
        >>> rlx.run.parse(Config, ["--steps", "5"])
        Config(steps=5, lr=0.001)

    Args:
      config: a dataclass type, best frozen; its fields' docstrings or comments are the help texts.
      argv: the arguments without the program's name; `sys.argv[1:]` by default.
      prog: the program's name in the help and in messages.
      description: the first lines of the help; the dataclass's docstring by default.
    Returns:
      An instance of `config`.
    Raises:
      SystemExit: 0 after `--help`, 2 after a mistake.
    """
    import tyro

    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise TypeError(f"config: expected a dataclass type, got {config!r}")
    if any(field.name == "config" for field in dataclasses.fields(config)):
        raise TypeError("config: the field name 'config' is taken by --config FILE.json; rename the field")
    prog = prog or os.path.basename(sys.argv[0])
    rest, file = _take_file(list(sys.argv[1:] if argv is None else argv), prog)
    text = description if description is not None else (config.__doc__ or "").strip()
    text = f"{text}\n\n--config FILE.json sets fields first; flags override them.".strip()
    default: Any = tyro.MISSING
    if file is not None:
        try:
            default = _with_file(config, file)
        except ConfigError as error:
            _fail(prog, str(error))
    try:
        made = tyro.cli(
            config, args=rest, prog=prog, description=text, **({} if file is None else {"default": default})
        )
    except ValueError as error:  # from the dataclass's own __post_init__
        _fail(prog, str(error))
    for name, value in flatten(made).items():
        if isinstance(value, float) and not math.isfinite(value):
            _fail(prog, f"--{name.replace('_', '-')}: {value} is not a finite number")
    return made


def _fail(prog: str, message: str) -> NoReturn:
    print(f"{prog}: {message}", file=sys.stderr)
    raise SystemExit(int(Exit.CONFIG))


def _take_file(argv: list[str], prog: str) -> tuple[list[str], Path | None]:
    rest, files = [], []
    words = iter(argv)
    for word in words:
        if word == "--config":
            value = next(words, None)
            if value is None:
                _fail(prog, "--config: expected the name of a JSON file")
            files.append(value)
        elif word.startswith("--config="):
            files.append(word.removeprefix("--config="))
        else:
            rest.append(word)
    if len(files) > 1:
        _fail(prog, "--config: given twice")
    return rest, Path(files[0]) if files else None


def _with_file(config: type[C], path: Path) -> C:
    try:
        values = strict_loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"--config {path}: {error}") from error
    try:
        return fill(config, values)
    except ConfigError as error:
        raise ConfigError(f"--config {path}: {error}") from error


def fill(config: type[C], values: Any, at: str = "") -> C:
    """A dataclass filled from JSON values; what is absent keeps its default, or stays to be given as a flag.

    `__post_init__` does not run here, since fields may still be missing; it runs on what flags complete.

    Raises:
      ConfigError: names an unknown field, or the one whose value has another type.
    """
    import tyro

    if not isinstance(values, dict):
        raise ConfigError(f"{at or 'the file'}: expected an object of fields, got {_shown(values)}")
    hints = get_type_hints(config)
    fields = {field.name: field for field in dataclasses.fields(config) if field.init}  # type: ignore[arg-type]
    for name in values:
        if name not in fields:
            known = ", ".join(sorted(fields))
            raise ConfigError(f"{_join(at, name)}: no such field; there are {known}")
    made = object.__new__(config)
    for name, field in fields.items():
        path = _join(at, name)
        if name in values:
            value = _convert(hints[name], values[name], path)
        elif field.default is not dataclasses.MISSING:
            value = field.default
        elif field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        else:
            value = tyro.MISSING
        object.__setattr__(made, name, value)
    return made


def _convert(kind: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return fill(kind, value, path)
    if get_origin(kind) in (Union, types.UnionType):
        if any(dataclasses.is_dataclass(part) for part in get_args(kind)):
            raise ConfigError(f"{path}: a choice between several configs cannot be set in a file; give it as a flag")
    elif kind is Path:
        if not isinstance(value, str):
            raise ConfigError(f"{path}: expected a path as text, got {_shown(value)}")
        return Path(value)
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        if value not in kind.__members__:
            raise ConfigError(f"{path}: {value!r} is not one of {', '.join(kind.__members__)}")
        return kind[value]
    import msgspec

    def decode(expected: type, given: Any) -> Any:
        if expected is Path and isinstance(given, str):
            return Path(given)
        raise NotImplementedError(f"a {expected.__name__} cannot be set in a file")

    try:
        return msgspec.convert(value, kind, strict=True, dec_hook=decode)
    except (msgspec.ValidationError, NotImplementedError) as error:
        raise ConfigError(f"{path}: {error}") from error


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r}"


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def plain(value: Any, path: str = "config") -> Any:
    """A config as JSON values: dataclasses and mappings become objects, tuples lists, paths text, enums names.

    Raises:
      ConfigError: a value has no JSON form; names the field.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name), _join(path, field.name))
            for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(name): plain(part, _join(path, str(name))) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(part, f"{path}[{index}]") for index, part in enumerate(value)]
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path}: {value} is not a finite number")
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return plain(value.item(), path)
    raise ConfigError(f"{path}: it can hold numbers, text, lists and dataclasses, not {type(value).__name__}")


def flatten(value: Any) -> dict[str, Any]:
    """A config's values by their dotted names."""
    found: dict[str, Any] = {}

    def walk(part: Any, at: str) -> None:
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            part = {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}
        if isinstance(part, Mapping) and part:
            for name, inner in part.items():
                walk(inner, _join(at, str(name)))
        else:
            found[at] = part

    walk(value, "")
    return found


def differences(old: Any, new: Any) -> list[tuple[str, Any, Any]]:
    """The fields in which two plain configs differ: name, old and new value; "(absent)" for a missing one.

    >>> differences({"lr": 1, "seed": 0}, {"lr": 1, "seed": 1})
    [('seed', 0, 1)]
    """
    first, second = flatten(old), flatten(new)
    names = [*first, *(name for name in second if name not in first)]
    pairs = [(name, first.get(name, "(absent)"), second.get(name, "(absent)")) for name in names]
    return [(name, a, b) for name, a, b in pairs if a != b]
