"""The record of low bits: the page has its numbers, and what was not reached is said there."""

import json
from pathlib import Path

from experiments import bench_quantize

ROOT = Path(__file__).parents[2]
METHODS = ("min-max", "least squares", "GPTQ", "GPTQ, 2 sweeps", "rotation, GPTQ, 2 sweeps")


def record() -> dict[str, dict]:
    rows = json.loads((ROOT / "docs/benchmarks/quantize.json").read_text())["rows"]
    return {row["what"]: row for row in rows}


def error(what: str) -> float:
    return float(record()[what]["rlx"].removeprefix("error "))


def test_the_page_has_the_numbers_of_the_record() -> None:
    page = (ROOT / "docs/quantize.md").read_text()
    for row in record().values():
        number = row["rlx"].removeprefix("error ").split()[0]
        assert number in page, row
    for row in record().values():
        assert row["kept"] or f"{row['what']}: not reached" in page, row


def test_the_page_has_the_numbers_of_layers_with_bits_of_their_own() -> None:
    page = (ROOT / "docs/quantize.md").read_text()
    first, *rows = json.loads((ROOT / "docs/benchmarks/quantize_layers.json").read_text())["rows"]
    assert first["rlx"] == "3.125 bits a byte"
    for row in rows:
        held, size = row["peer"].removesuffix(" bytes").split(" bits a byte, ")
        assert f"| {int(size):,} | {row['rlx'].removeprefix('error ')} | {held} |" in page, row
    assert rows[1]["peer"].split(", ")[1] == rows[2]["peer"].split(", ")[1]
    uniform, outer, four, own = (float(row["rlx"].removeprefix("error ")) for row in rows)
    assert own < four < outer < uniform


def test_every_method_is_there_at_every_number_of_bits() -> None:
    rows = record()
    assert {f"{bits} bits, {name}" for bits in (8, 4, 2) for name in METHODS} <= rows.keys()
    assert {"float", "4 bits, training", "2 bits, training"} <= rows.keys()
    for bits in (4, 2):
        assert error(f"{bits} bits, GPTQ, 2 sweeps") < error(f"{bits} bits, least squares")


def test_bytes_are_those_of_the_tables_and_uniform_rules() -> None:
    from rlx.models import decoder

    params = decoder.init(bench_quantize.jax.random.key(0), bench_quantize.MODEL)
    rule = {bench_quantize.LAYERS: 2, bench_quantize.TABLE: 8}
    sizes = bench_quantize.quantize.sizes(params)
    assert bench_quantize.total_bytes(params, rule) == sum(
        row[8 if "embed" in path else 2] for path, row in sizes.items()
    )
    assert f"{bench_quantize.total_bytes(params, rule)} bytes" in record()["2 bits, training"]["peer"]


def test_the_texts_are_apart() -> None:
    train, held = bench_quantize.texts()
    assert len(train) > 5 * len(held) > 10_000
    assert bench_quantize.windows(held, 3, 8, 0).shape == (3, 9)
