"""The digest: what changes it, what does not, and that another process agrees."""

import dataclasses
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rfc8785

from rlx.contracts import Chance, Contract, Expect, MaxMin, Nash, Signal, Stakeholder, Term, WeightedSum, digest

SIGNALS = {"a": Signal("B", "float32"), "h": Signal("BT", "float32")}


def one(fn, **changes):
    contract = Contract("d", terms=(Term("x", fn),), stakeholders=(Stakeholder("me", {"x": 1.0}),), signals=SIGNALS)
    return dataclasses.replace(contract, **changes)


def plain(batch):
    return jnp.tanh(batch["a"] * 2.0 + 1.0)


def test_changed_code_changes_it():
    """An earlier public system gave two contracts with 10x different rewards one hash."""
    found = {
        digest(one(fn))
        for fn in (
            plain,
            lambda b: jnp.tanh(b["a"] * 20.0 + 1.0),
            lambda b: jnp.tanh(b["a"] * 2.0 - 1.0),
            lambda b: jnp.tanh(1.0 + 2.0 * b["h"][:, 0]),
            lambda b: jnp.sinh(b["a"] * 2.0 + 1.0),
        )
    }
    assert len(found) == 5


def test_changed_constraint_code_changes_it():
    two = [one(plain, constraints=(Chance(Term("c", lambda b, k=k: b["a"] * k) > 0.5) <= 0.1,)) for k in (1.0, 2.0)]
    assert digest(two[0]) != digest(two[1])


def test_renaming_calling_and_dead_code_do_not_change_it():
    def longer(data):
        unused = jnp.sum(data["h"])  # never returned
        del unused
        doubled = data["a"] * 2.0
        return jnp.tanh(doubled + 1.0)

    jitted = jax.jit(lambda value: jnp.tanh(value * 2.0 + 1.0))
    same = (plain, longer, lambda b: jitted(b["a"]), jax.checkpoint(plain))
    assert len({digest(one(fn)) for fn in same}) == 1


def test_closed_over_arrays_count_by_content():
    def table(values):
        array = jnp.asarray(values, jnp.float32)
        return lambda b: b["a"] + array[:4]

    first, again, other = (digest(one(table(v))) for v in ([1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 3, 5]))
    assert first == again != other


def test_bodies_of_loops_and_branches_count():
    def loop(step):
        return lambda b: jax.lax.scan(lambda c, x: (c * step + x, None), b["a"], b["h"].T)[0]

    def branch(sign):
        return lambda b: jax.lax.cond(b["a"][0] > 0, lambda x: x, lambda x: sign * x, b["a"])

    assert digest(one(loop(0.5))) == digest(one(loop(0.5))) != digest(one(loop(0.25)))
    assert digest(one(branch(-1.0))) == digest(one(branch(-1.0))) != digest(one(branch(-2.0)))


def test_a_gradient_written_by_hand_counts():
    def straight_through(slope):
        @jax.custom_vjp
        def hard(x):
            return jnp.sign(x)

        hard.defvjp(lambda x: (jnp.sign(x), None), lambda _, g: (slope * g,))
        return lambda b: hard(b["a"])

    assert digest(one(straight_through(1.0))) == digest(one(straight_through(1.0)))
    assert digest(one(straight_through(1.0))) != digest(one(straight_through(2.0)))
    assert digest(one(straight_through(1.0))) != digest(one(lambda b: jnp.sign(b["a"])))


CHANGES = {
    "name": {"name": "e"},
    "version": {"version": "2"},
    "provenance": {"provenance": {"author": "someone"}},
    "weight": {"stakeholders": (Stakeholder("me", {"x": 1.0}, weight=2.0),)},
    "coefficient": {"stakeholders": (Stakeholder("me", {"x": 1.5}),)},
    "stakeholder": {"stakeholders": (Stakeholder("you", {"x": 1.0}),)},
    "range": {"terms": (Term("x", plain, range=(-1.0, 1.0)),)},
    "unit": {"terms": (Term("x", plain, unit="nats"),)},
    "rule": {"aggregate": Nash()},
    "disagreement": {"aggregate": Nash(-1.0)},
    "other rule": {"aggregate": MaxMin(0.1)},
    "temperature": {"aggregate": MaxMin(0.2)},
    "limit": {"constraints": (Expect("x") <= 0.5,)},
    "other limit": {"constraints": (Expect("x") <= 0.25,)},
    "direction": {"constraints": (Expect("x") >= 0.5,)},
    "chance": {"constraints": (Chance(Term("x", plain) > 0.5) <= 0.5,)},
    "level": {"constraints": (Chance(Term("x", plain) > 0.6) <= 0.5,)},
    "strictness": {"constraints": (Chance(Term("x", plain) >= 0.6) <= 0.5,)},
    "signal": {"signals": SIGNALS | {"z": Signal("B")}},
    "signal range": {"signals": SIGNALS | {"a": Signal("B", range=(0.0, 1.0))}},
}


def test_every_number_and_name_counts():
    digests = {"plain": digest(one(plain))} | {name: digest(one(plain, **change)) for name, change in CHANGES.items()}
    assert len(set(digests.values())) == len(digests)


def test_numbers_count_as_float32():
    as_python, as_numpy = (
        one(plain, stakeholders=(Stakeholder("me", {"x": value}),)) for value in (0.1, np.float32(0.1))
    )
    assert digest(as_python) == digest(as_numpy)
    assert digest(one(plain, terms=(Term("x", plain, range=(0.0, float("inf"))),))) != digest(one(plain))


def test_settings_of_the_process_do_not_count():
    first = digest(one(plain))
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"), jax.default_matmul_precision("highest"):
        assert digest(one(plain)) == first


def test_another_process_agrees_and_the_text_is_pinned():
    """The golden value holds in every supported jax: the text has no version, address or variable name in it."""
    script = (
        "import jax.numpy as jnp\n"
        "from rlx.contracts import *\n"
        "fn = lambda batch: jnp.tanh(batch['a'] * 2.0 + 1.0)\n"
        "print(digest(Contract('d', terms=(Term('x', fn),), stakeholders=(Stakeholder('me', {'x': 1.0}),),\n"
        "                     signals={'a': Signal('B'), 'h': Signal('BT')})))\n"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()
    golden = "0f50028e817f357aacc16cb47637a9750ab3125d2ac5c7aafb3147916a27cd5f"
    assert other == digest(one(plain)) == golden


def test_undeclared_signals_are_guessed_the_same_way():
    usual = Contract(
        "d",
        terms=(Term("e", lambda b: jnp.any((b["tokens"] == 101) & b["mask"], axis=-1)),),
        stakeholders=(Stakeholder("me", {"e": 1.0}),),
    )
    declared = {"tokens": Signal("BT", "int32"), "mask": Signal("BT", "bool")}
    assert digest(usual) == digest(usual)
    codes = [digest(dataclasses.replace(usual, signals={**declared, "c": Signal("B")})), digest(usual)]
    assert codes[0] != codes[1]  # what is declared counts


def test_untraceable_terms_say_what_to_declare():
    with pytest.raises(ValueError, match=r"term 'x' cannot be traced; declare signals=\{'zz': Signal"):
        digest(one(lambda b: b["zz"].nothing))
    with pytest.raises(ValueError, match="wants 'gone'"):
        digest(one(plain, stakeholders=(Stakeholder("me", {"gone": 1.0}),)))


def test_rules_of_others_count_by_code():
    @dataclasses.dataclass(frozen=True)
    class Power(WeightedSum):
        exponent: float = 2.0

    @dataclasses.dataclass(frozen=True)
    class Own:
        exponent: float

        def init(self, names):
            return {}

        def apply(self, utilities, weights, params):
            return jnp.sum(utilities**self.exponent, axis=-1)

        def problems(self, names):
            return []

    found = {digest(one(plain, aggregate=rule)) for rule in (Own(2.0), Own(3.0), WeightedSum())}
    assert len(found) == 3


def test_the_text_is_rfc8785_of_the_document():
    """Parts that are remembered and put together, against the package on the whole."""
    from rlx.contracts._digest import _canonical, as_json

    family = [one(plain, **change) for change in CHANGES.values()]
    family += [one(plain, signals=SIGNALS | {"\U0001f600": Signal("B"), "\uffff": Signal(("B", 3), unit="ä")})]
    contains = Term("x", "rlx.contains@1", options={"tokens": [1, 2]})
    family += [one(plain, terms=(contains, Term("\u20ac", plain))) for _ in range(2)]
    for contract in family:
        document = as_json(contract)
        assert _canonical(document) == rfc8785.dumps(document)
