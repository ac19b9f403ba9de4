"""The remembered hash of a term's code: it is never that of code that has changed since."""

import functools
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import bench_contracts
from rlx.contracts import Contract, Signal, Stakeholder, Term, digest
from rlx.contracts._fingerprint import Changeable, fingerprint

SCALE = 1.0
TABLE = [1.0, 2.0]


def helper(value):
    return value * 2.0


def reads_a_global(batch):
    return batch["x"] * SCALE


def reads_a_function(batch):
    return helper(batch["x"])


def reads_inside(batch):
    return (lambda value: value * SCALE)(batch["x"])


def reads_a_list(batch):
    return batch["x"] * TABLE[0]


def of(fn):
    contract = Contract(
        "f", terms=(Term("x", fn),), stakeholders=(Stakeholder("me", {"x": 1.0}),), signals={"x": Signal("B")}
    )
    return digest(contract)


def closing_over(value):
    return lambda batch: batch["x"] * value


@pytest.mark.parametrize("fn", [reads_a_global, reads_inside])
def test_a_global_that_changes(monkeypatch, fn):
    before = of(fn)
    monkeypatch.setitem(globals(), "SCALE", 10.0)
    assert of(fn) != before
    monkeypatch.setitem(globals(), "SCALE", 1.0)
    assert of(fn) == before


def test_a_function_that_changes(monkeypatch):
    before = of(reads_a_function)
    monkeypatch.setitem(globals(), "helper", lambda value: value * 20.0)
    assert of(reads_a_function) != before


def test_a_list_that_changes_in_place():
    before = of(reads_a_list)
    TABLE[0] = 10.0
    try:
        assert of(reads_a_list) != before
    finally:
        TABLE[0] = 1.0
    assert of(reads_a_list) == before


def test_a_closure_that_changes():
    count = 1.0

    def fn(batch):
        return batch["x"] * count

    before = of(fn)
    count = 10.0
    assert of(fn) != before


@pytest.mark.parametrize(
    "make", [lambda: np.ones(4, np.float32), lambda: {"k": 1.0}, lambda: types.SimpleNamespace(k=1.0)]
)
def test_what_changes_in_place(make):
    value = make()

    def fn(batch):
        factor = value if isinstance(value, np.ndarray) else value["k"] if isinstance(value, dict) else value.k
        return batch["x"] * factor

    with pytest.raises(Changeable):
        fingerprint(fn)
    before = of(fn)
    if isinstance(value, np.ndarray):
        value[0] = 10.0
    elif isinstance(value, dict):
        value["k"] = 10.0
    else:
        value.k = 10.0
    assert of(fn) != before


def test_a_module_of_ones_own():
    module = types.ModuleType("settings_of_ones_own")
    module.scale = 1.0

    def fn(batch):
        return batch["x"] * module.scale

    before = of(fn)
    module.scale = 10.0
    assert of(fn) != before


def test_a_class_attribute():
    class Settings:
        scale = 1.0

    def fn(batch):
        return batch["x"] * Settings.scale

    before = of(fn)
    Settings.scale = 10.0
    assert of(fn) != before


def test_an_attribute_of_a_function():
    def scaled(value):
        return value * scaled.scale

    scaled.scale = 1.0
    fn = lambda batch: scaled(batch["x"])  # noqa: E731
    before = of(fn)
    scaled.scale = 10.0
    assert of(fn) != before


def test_defaults_partials_and_bytecode():
    def fn(batch, scale=1.0, *, shift=0.0):
        return batch["x"] * scale + shift

    seen = {of(fn)}
    fn.__defaults__ = (10.0,)
    seen.add(of(fn))
    fn.__kwdefaults__ = {"shift": 1.0}
    seen.add(of(fn))
    seen |= {of(functools.partial(fn, scale=value)) for value in (2.0, 3.0)}
    fn.__code__ = (lambda batch, scale=1.0, *, shift=0.0: batch["x"] - scale + shift).__code__
    seen.add(of(fn))
    assert len(seen) == 6


def test_values_that_only_look_equal():
    assert fingerprint(closing_over(0.0)) != fingerprint(closing_over(-0.0))
    assert fingerprint(closing_over(1)) != fingerprint(closing_over(1.0))
    assert fingerprint(closing_over(True)) != fingerprint(closing_over(1))
    assert fingerprint(closing_over(2.5)) == fingerprint(closing_over(2.5))


def test_an_array_is_not_taken_for_another_at_its_address():
    hashes = {of(closing_over(jnp.full(4, float(i)))) for i in range(50)}
    assert len(hashes) == 50


def test_recursion_and_jit():
    def power(value, n):
        return value if n == 0 else value * power(value, n - 1)

    assert of(lambda batch: power(batch["x"], 2)) != of(lambda batch: power(batch["x"], 3))
    assert of(jax.jit(lambda batch: batch["x"] * 2)) == of(lambda batch: batch["x"] * 2)


def test_the_hash_of_twenty_terms_is_quick():
    contract = bench_contracts.contract(bench_contracts.Config())
    first = digest(contract)
    best = min(_seconds(contract, first) for _ in range(20))
    assert best < 3e-3  # 0.9 ms on an idle core; 1 ms is promised, other tests run beside this one


def _seconds(contract, expected):
    start = time.perf_counter()
    assert digest(contract) == expected
    return time.perf_counter() - start
