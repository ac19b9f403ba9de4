"""The record of reversible layers: the page has its numbers, and every target was reached."""

import json
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/reversible.md").read_text()


def test_the_page_has_the_numbers_of_the_record() -> None:
    record = json.loads((ROOT / "docs/benchmarks/reversible_layers.json").read_text())
    assert [row["what"] for row in record["rows"] if not row["kept"]] == []
    assert len(record["rows"]) == 5
    for name, cells in record["depths"].items():
        for cell in cells.values():
            assert f"{cell['bytes'] / 2**20:,.1f}" in PAGE or f"{cell['bytes'] / 2**20:,.0f}" in PAGE, name
        assert f"{record['slopes'][name]:.1f}" in PAGE
        assert f"{record['work'][name]:.2f}×" in PAGE
    after = record["trained"]
    for name in ("gradient error, exact", "gradient error, stored", "first layer, exact", "first layer, stored"):
        assert f"{after[name]:.5f}" in PAGE
    assert f"{after['inversion error, float32']:.3f}" in PAGE


def test_the_page_has_the_numbers_of_the_conversion() -> None:
    record = json.loads((ROOT / "docs/benchmarks/reversible_conversion.json").read_text())
    for row in record["bits"].values():
        assert f"{row['taken over']:.3f} | {row['fine-tuned']:.3f} |" in PAGE


def test_the_readme_has_rows_of_the_records() -> None:
    """Every row of the README's table of memory is a row of a record."""
    readme = (ROOT / "README.md").read_text().split("## Training inside the memory there is")[1].split("\n## ")[0]
    known = {
        f"| {row['what'].strip()} | {row['rlx']} | {row['peer']} | {row['target']} |"
        for name in ("reversible_layers", "memory", "attention", "attention_trained", "compression", "scaling")
        for row in json.loads((ROOT / f"docs/benchmarks/{name}.json").read_text())["rows"]
    }
    rows = [line for line in readme.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 15
    assert set(rows) <= known
