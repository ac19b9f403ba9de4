"""Config: flags over a file over defaults; every mistake names its field and exits with 2."""

import dataclasses
import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

import rlx.run
from rlx.run._config import differences, plain


class Kind(enum.Enum):
    ADAM = 1
    SGD = 2


@dataclass(frozen=True)
class Optim:
    lr: float = 0.1
    """Learning rate."""
    kind: Kind = Kind.ADAM
    betas: tuple[float, float] = (0.9, 0.99)


@dataclass(frozen=True)
class Config:
    """A test."""

    name: str
    steps: int = 10
    mode: Literal["fast", "slow"] = "fast"
    out: Path = Path("runs")
    seed: int | None = None
    flag: bool = False
    optim: Optim = field(default_factory=Optim)

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("--steps: 0 is not at least 1")


def parse(*argv: str) -> Config:
    return rlx.run.parse(Config, list(argv), prog="test")


def test_flags() -> None:
    assert parse("--name", "a", "--optim.lr", "2", "--optim.kind", "SGD", "--mode", "slow", "--flag") == Config(
        name="a", mode="slow", flag=True, optim=Optim(lr=2.0, kind=Kind.SGD)
    )


def test_flags_override_the_file(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"name": "f", "steps": 7, "out": "x/y", "seed": 3, "optim": {"lr": 1, "betas": [0.5, 0.6]}}')
    assert parse("--config", str(file), "--steps", "9", "--optim.kind", "SGD") == Config(
        name="f", steps=9, out=Path("x/y"), seed=3, optim=Optim(lr=1.0, kind=Kind.SGD, betas=(0.5, 0.6))
    )
    assert parse(f"--config={file}").steps == 7


def test_a_field_that_the_file_lacks_can_be_a_flag(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.json"
    file.write_text('{"steps": 7}')
    assert parse("--config", str(file), "--name", "b") == Config(name="b", steps=7)
    with pytest.raises(SystemExit) as caught:
        parse("--config", str(file))
    assert caught.value.code == 2
    assert "--name" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('{"stepz": 1}', "stepz: no such field; there are flag, mode, name, optim, out, seed, steps"),
        ('{"optim": {"rate": 1}}', "optim.rate: no such field; there are betas, kind, lr"),
        ('{"steps": 1, "steps": 2}', "steps: given twice"),
        ('{"optim": {"lr": NaN}}', "lr: NaN is not a number"),
        ('{"optim": {"lr": 1e999}}', "lr: an infinite number is not a number"),
        ('{"optim": {"betas": [1.0, -Infinity]}}', "betas: an infinite number"),
        ('{"steps": 1.5}', "steps: Expected `int`, got `float`"),
        ('{"steps": true}', "steps: Expected `int`, got `bool`"),
        ('{"steps": "3"}', "steps: Expected `int`, got `str`"),
        ('{"mode": "medium"}', "mode: Invalid enum value 'medium'"),
        ('{"optim": {"kind": "LION"}}', "optim.kind: 'LION' is not one of ADAM, SGD"),
        ('{"optim": 3}', "optim: expected an object of fields, got int 3"),
        ('{"out": 3}', "out: expected a path as text, got int 3"),
        ("[1]", "the file: expected an object of fields"),
        ("{", "Expecting property name"),
        ("[" * 100_000, "nested too deeply"),
        ("[[[NaN]]]", "NaN or an infinite number is not JSON"),
    ],
)
def test_a_wrong_file_exits_2(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, named: str) -> None:
    file = tmp_path / "c.json"
    file.write_text(text)
    with pytest.raises(SystemExit) as caught:
        parse("--name", "a", "--config", str(file))
    assert caught.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith(f"test: --config {file}: ")
    assert named in err


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--config"], "--config: expected the name"),
        (["--config", "no.json"], "--config no.json: No such file"),
        (["--config", "a", "--config=b"], "--config: given twice"),
        (["--steps", "x"], "--steps"),
        (["--optim.lr", "inf"], "--optim.lr: inf is not a finite number"),
        (["--mode", "medium"], "--mode"),
        (["--steps", "0"], "--steps"),
    ],
)
def test_a_wrong_flag_exits_2(capsys: pytest.CaptureFixture[str], argv: list[str], named: str) -> None:
    with pytest.raises(SystemExit) as caught:
        parse("--name", "a", *argv)
    assert caught.value.code == 2
    assert named in capsys.readouterr().err


def test_the_type_is_checked() -> None:
    with pytest.raises(TypeError, match="config: expected a dataclass type"):
        rlx.run.parse(int, [])
    taken = dataclasses.make_dataclass("Taken", [("config", str, "x")])
    with pytest.raises(TypeError, match="'config' is taken"):
        rlx.run.parse(taken, [])


def test_plain() -> None:
    assert plain(Config(name="a")) == {
        "name": "a",
        "steps": 10,
        "mode": "fast",
        "out": "runs",
        "seed": None,
        "flag": False,
        "optim": {"lr": 0.1, "kind": "ADAM", "betas": [0.9, 0.99]},
    }


@pytest.mark.parametrize(("value", "named"), [({"a": [object()]}, r"config\.a\[0\]"), ({"b": float("nan")}, "b: nan")])
def test_plain_names_what_json_lacks(value: Any, named: str) -> None:
    with pytest.raises(rlx.run.ConfigError, match=named):
        plain(value)


def test_differences() -> None:
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1}, "d": 3}) == [
        ("a.c", 2, "(absent)"),
        ("d", "(absent)", 3),
    ]
