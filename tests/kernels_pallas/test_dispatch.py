"""The choice of an implementation, the table that it reads, and the tuner that fills the table."""

import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas import _dispatch, _table, tune
from kernels_pallas._case import Case
from kernels_pallas._dispatch import choose
from kernels_pallas._table import Entry

SIZES = {"n": 5000, "d": 4096}
ABLE = {"xla": None, "mosaic_gpu": None}


def entry(ratio: float, **other: Any) -> Entry:
    fields = {
        "operation": "op",
        "device": _dispatch.device(),
        "dtype": "bfloat16",
        "bucket": {"n": 8192, "d": 4096},
        "implementation": "mosaic_gpu",
        "direction": "forward",
        "config": {"rows": 64},
        "ratio": ratio,
        "record": "",
    }
    return Entry(**(fields | other))


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(_table, "TABLE", tmp_path / "table.json")
    return tmp_path / "table.json"


def chosen(implementation: str = "auto", ways: Any = ABLE) -> tuple[str, Any]:
    return choose("op", implementation, ways, shape=SIZES, dtype=jnp.bfloat16)


def test_what_is_asked_for_is_never_replaced() -> None:
    assert chosen("mosaic_gpu")[0] == "mosaic_gpu"
    with pytest.raises(NotImplementedError, match=r"implementation: 'mosaic_gpu' needs more; use 'xla' or 'reference'"):
        chosen("mosaic_gpu", {"xla": None, "mosaic_gpu": "needs more", "reference": None})
    with pytest.raises(NotImplementedError, match="implementation: 'triton' is not one of 'auto', 'xla', 'mosaic_gpu'"):
        chosen("triton")


def test_auto_takes_what_was_recorded_to_win_here(table: Path) -> None:
    assert chosen() == ("xla", {})
    _table.write(table, [entry(1.2)])
    assert chosen() == ("mosaic_gpu", {"forward": {"rows": 64}})
    assert chosen("auto", {"xla": None, "mosaic_gpu": "cannot"})[0] == "xla"
    assert chosen("xla") == ("xla", {})
    # Slower in the other direction; then as fast; then faster only there.
    _table.write(table, [entry(0.9, direction="both")])
    assert chosen()[0] == "xla"
    _table.write(table, [entry(1.0, direction="both", config={"rows": 128})])
    assert chosen() == ("mosaic_gpu", {"both": {"rows": 128}, "forward": {"rows": 64}})
    _table.write(table, [entry(1.0)])
    assert chosen()[0] == "xla"
    assert chosen("mosaic_gpu")[1]["forward"] == {"rows": 64}


@pytest.mark.parametrize(
    "other", [{"device": "another"}, {"dtype": "float16"}, {"bucket": {"n": 4096, "d": 4096}}, {"operation": "of"}]
)
def test_a_row_counts_for_its_own_device_dtype_and_sizes_alone(table: Path, other: dict[str, Any]) -> None:
    _table.write(table, [entry(2.0, **other)])
    assert chosen() == ("xla", {})


def test_auto_says_once_what_it_took(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "kernels_pallas"):
        for _ in range(2):
            choose("said", "auto", ABLE, shape={"n": 3}, dtype=jnp.float32)
    assert [record.getMessage() for record in caplog.records] == ["said: 'xla' of n=3"]


def test_a_table_with_other_fields_is_refused(table: Path) -> None:
    table.write_text(json.dumps([{"operation": "op"}]))
    with pytest.raises(ValueError, match=r"a row of table.json has the fields \['operation'\]"):
        chosen()


def test_the_table_of_the_package_can_be_read_and_every_row_names_its_record() -> None:
    for row in _table.entries(_table.TABLE):
        assert row.record.startswith("docs/benchmarks/")
        assert _table.bucket(row.bucket) == row.bucket


@dataclasses.dataclass(frozen=True)
class Turns:
    turns: int


def work(x: jax.Array, turns: int) -> jax.Array:
    return jax.lax.fori_loop(0, turns, lambda _, y: jnp.tanh(y + x), x)


def case(tuned: Callable[[Turns], Callable[..., Any]], turns: tuple[int, ...]) -> Case:
    return Case(
        op="op",
        shape={"n": 200_000},
        dtype="float32",
        direction="forward",
        arguments=lambda: (jnp.linspace(0, 1, 200_000, dtype=jnp.float32),),
        implementations={"xla": lambda x: x + 0 * work(x, 40)},
        unsupported={},
        flops=1.0,
        bytes=1.0,
        configs=[Turns(n) for n in turns],
        tuned=tuned,
    )


def test_the_tuner_finds_the_fastest_that_is_right() -> None:
    def tuned(config: Turns) -> Callable[..., Any]:
        if config.turns == 3:
            raise NotImplementedError("three is too many")
        return lambda x: x * (2 if config.turns == 1 else 1) + 0 * work(x, config.turns)

    row, left_out = tune.tune(case(tuned, (1, 20, 2, 3)), rounds=5, calls=1, record="docs/benchmarks/none.json")
    assert row is not None
    assert row.config == {"turns": 2}
    assert row.ratio > 2
    assert row.bucket == {"n": 262_144}
    assert left_out == {"Turns(turns=3)": "three is too many", "Turns(turns=1)": "differs from XLA by 1.0e+00"}


def test_where_nothing_runs_there_is_no_row() -> None:
    row, left_out = tune.tune(case(lambda _: lambda x: 2 * x, (1,)), rounds=1, calls=1, record="")
    assert row is None
    assert len(left_out) == 1
