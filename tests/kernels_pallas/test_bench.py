"""The bench: what it times, what it says of it, and that a ratio inside the noise is none."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import _timing, bench
from kernels_pallas._case import Case

TOP = {"matmul_tflops": 1.0, "copy_gbs": 10.0}
FIELDS = {
    *("op", "shape", "dtype", "direction", "implementation", "ms", "tflops", "gbs", "floor_ms", "frac_of_floor"),
    *("peak_bytes", "spread", "ratio", "error", "error_against"),
}


def case() -> Case:
    def arguments() -> tuple[jax.Array, ...]:
        return (jnp.arange(12, dtype=jnp.float32).reshape(3, 4),)

    return Case(
        op="square",
        shape={"n": 3},
        dtype="float32",
        direction="forward",
        arguments=arguments,
        implementations={"ours": lambda x: x * x + 1e-3, "xla": lambda x: x * x},
        unsupported={"mosaic_gpu": "no GPU"},
        flops=12.0,
        bytes=96.0,
        truth=lambda x: x * x,
    )


def test_a_record_has_every_field_and_the_true_error() -> None:
    ours, xla, missing = bench.measure(case(), TOP, rounds=3, calls=2)
    assert ours.keys() == xla.keys() == FIELDS
    assert [r["implementation"] for r in (ours, xla, missing)] == ["ours", "xla", "mosaic_gpu"]
    assert missing["unsupported"] == "no GPU"
    x = np.arange(12.0)
    assert ours["error"] == pytest.approx(1e-3 * 12**0.5 / np.linalg.norm(x * x), rel=1e-3)
    assert xla["error"] == 0
    assert ours["ms"]["n"] == 3
    assert ours["ms"]["p20"] <= ours["ms"]["median"] <= ours["ms"]["p80"]
    assert ours["floor_ms"] == pytest.approx(96 / 10 / 1e6)
    assert set(ours["ratio"]) == {"xla"}
    printed = bench.table([ours, xla, missing])
    assert max(map(len, printed.splitlines())) <= 80
    assert "left out: no GPU" in printed


def test_without_a_truth_the_error_is_against_xla() -> None:
    ours, xla, _ = bench.measure(dataclasses.replace(case(), truth=None), TOP, rounds=1, calls=1)
    assert ours["error_against"] == "xla"
    assert xla["error"] == 0 < ours["error"]


def test_a_ratio_inside_the_spread_is_none() -> None:
    assert _timing.spread([1.0, 2.0, 1.0], [1.1, 2.2, 1.1]) == pytest.approx(0.1)
    assert _timing.ratio([1.0, 2.0], [1.05, 2.1], 0.1) is None
    assert _timing.ratio([1.0, 2.0], [3.0, 6.0], 0.1) == 3.0


def test_order_changes_from_round_to_round() -> None:
    called = []
    _timing.interleaved({n: lambda n=n: called.append(n) for n in "abc"}, rounds=3, calls=1)
    assert "".join(called) == "abc" + "abcbcacab"


def test_the_cases_of_every_operation_are_made_for_this_device_and_for_a_large_one() -> None:
    for large in (False, True):
        for one in bench.cases(large):
            assert "xla" in one.implementations
            assert one.flops > 0
            shapes = jax.eval_shape(one.arguments)
            outputs = [jax.eval_shape(way, *shapes) for way in one.implementations.values()]
            assert all(jax.tree.structure(out) == jax.tree.structure(outputs[0]) for out in outputs)


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[2] / "docs" / "benchmarks").glob("*/*.json")), ids=lambda path: path.stem
)
def test_a_committed_record_has_the_fields(path: Path) -> None:
    record = json.loads(path.read_text())
    assert record["schema"] == bench.SCHEMA
    assert record["ceilings"].keys() == TOP.keys()
    for one in record["records"]:
        assert "unsupported" in one or one.keys() == FIELDS
