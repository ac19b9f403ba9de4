"""Contracts from files: what is written comes back, and what is hostile is refused at once, with its path."""

import json
import time
import tomllib

import jax.numpy as jnp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlx.contracts import (
    Always,
    Chance,
    Contract,
    CVaR,
    Eventually,
    Example,
    Expect,
    MaxMin,
    Nash,
    Signal,
    Stakeholder,
    Term,
    Until,
    compile,
    digest,
    dumps,
    load,
    loads,
    register,
    verify,
)

short = Term("short", "rlx.length_share@1", unit="share")
toxicity = Term("toxicity", "rlx.signal@1", level="token", options={"signal": "toxicity"}, range=(0.0, float("inf")))
FULL = Contract(
    "brief",
    "2",
    terms=(short,),
    stakeholders=(
        Stakeholder("reader", {"short": 1.0}),
        Stakeholder("editor", {"short": -1.0, "toxicity": -0.1}, 2.0, "points"),
    ),
    aggregate=Nash({"reader": -0.1, "editor": -4.0}),
    constraints=(
        Expect(short) <= 0.9,
        Chance(short > 0.5) <= 0.25,
        Chance(~Eventually((toxicity > 0.5) & (toxicity < 0.7), 1, 3)) >= 0.9,
        CVaR("short", 0.5, at=0.25) <= 0.9,
        CVaR("short") >= 0.1,
        Always(toxicity < 0.25),
        Until(toxicity < 1.0, (toxicity < 0.1) | (short > 0.5), 0, 8),
    ),
    signals={
        "mask": Signal("BT", "bool", (0, 1)),
        "toxicity": Signal("BT", "float32", (0, 1)),
        "other": Signal(("B", "T", 3)),
    },
    tests=(
        Example(
            "two",
            {"mask": [[1, 1], [1, 0]], "toxicity": [[0.5, 0.0], [0.0, 0.0]]},
            satisfied=(False, True),
            total=(-9, 9),
        ),
    ),
    provenance={"who": ["ä", None, True, 1.5, 3]},
)
TOML = """
format = "rlx.contract/2"
name = "brief"

[signals.mask]
dims = "BT"
dtype = "bool"
range = [0, 1]

[[terms]]
name = "short"
fn = "rlx.length_share@1"
range = [0, "inf"]

[[stakeholders]]
name = "reader"
utility = { short = -1 }

[[constraints]]
kind = "chance"
event = { kind = "event", term = "short", relation = ">", value = 0.5 }
relation = "<="
limit = 0.25
"""


def changed(**changes):
    """FULL as a document with top-level fields replaced."""
    return json.dumps(json.loads(dumps(FULL)) | changes)


def is_contract_or_refusal(text):
    """Whether a contract comes out, or a refusal that has a path; any other exception passes through."""
    try:
        return isinstance(loads(text), Contract)
    except ValueError as error:
        return str(error).startswith("$")


def test_what_is_written_comes_back():
    text = dumps(FULL)
    again = loads(text)
    assert digest(again) == digest(FULL)
    assert dumps(again) == text
    assert [str(c) for c in again.constraints] == [str(c) for c in FULL.constraints]
    assert loads(text.encode()) == loads("\ufeff" + text) == again


def test_a_loaded_contract_rewards_the_same():
    batch = {"mask": jnp.asarray([[True, True, False]]), "toxicity": jnp.asarray([[0.2, 0.6, 0.0]])}
    ours, read = compile(FULL), compile(loads(dumps(FULL)))
    assert ours(ours.params, batch).total.tolist() == read(read.params, batch).total.tolist()
    assert ours(ours.params, batch).violated.tolist() == read(read.params, batch).violated.tolist()


@pytest.mark.parametrize("rule", [MaxMin(0.2), Nash(-0.5), Nash((-0.5, -4.0))])
def test_rules_come_back(rule):
    contract = Contract(
        "r", terms=FULL.terms, stakeholders=(FULL.stakeholders[0], Stakeholder("b", {"short": -1.0})), aggregate=rule
    )
    assert digest(loads(dumps(contract))) == digest(contract)


def test_toml_is_the_same_document(tmp_path):
    from_toml = loads(TOML, format="toml")
    from_json = loads(json.dumps(tomllib.loads(TOML)))
    assert digest(from_toml) == digest(from_json)
    for suffix, text in ((".toml", TOML), (".json", dumps(from_toml))):
        path = tmp_path / f"c{suffix}"
        path.write_text(text)
        assert digest(load(path)) == digest(from_toml)
    with pytest.raises(ValueError, match=r"c\.yaml: expected a file name that ends in \.json or \.toml"):
        load(tmp_path / "c.yaml")


def test_the_files_own_tests_run():
    verdicts = {check.name: check.verdict for check in verify(FULL)}
    assert verdicts["test:two"] == "PROVED"


def test_code_cannot_be_written():
    with pytest.raises(ValueError, match=r"term 'x': its fn is a Python function.*register it"):
        dumps(Contract("c", terms=(Term("x", lambda b: b["x"]),), stakeholders=(Stakeholder("me", {"x": 1.0}),)))
    learned = register("tests.learned@1")(lambda params, batch: params * batch["x"])
    assert callable(learned)
    term = Term("x", "tests.learned@1", params=jnp.ones(()))
    with pytest.raises(ValueError, match="learned parameters"):
        dumps(Contract("c", terms=(term,), stakeholders=(Stakeholder("me", {"x": 1.0}),)))


def test_an_identifier_means_one_function():
    register("tests.one@1")(lambda batch: batch["x"])
    with pytest.raises(ValueError, match=r"'tests.one@1' is already"):
        register("tests.one@1")(short)
    with pytest.raises(ValueError, match="not of the form"):
        register("../one")
    with pytest.raises(
        ValueError, match=r"'tests.none@1' of term 'x' is not registered here; there are .*rlx\.signal@1"
    ):
        Term("x", "tests.none@1")


BASE = '{"format": "rlx.contract/2", "name": "x", "stakeholders": [{"name": "m", "utility": {"t": 1}}]'
REFUSED = {
    "unknown field": (changed(zz=1), r"^\$\.zz: object contains unknown field"),
    "unknown nested field": (
        changed(terms=[{"name": "t", "fn": "rlx.signal@1", "code": "x"}]),
        r"^\$\.terms\[0\]\.code: ",
    ),
    "NaN": (BASE + ', "provenance": {"a": [1, NaN]}}', r"^\$\.provenance\.a\[1\]: NaN is not a finite number"),
    "1e999": (BASE + ', "provenance": {"a": -1e999}}', r"^\$\.provenance\.a: -1e999 is not a finite number"),
    "huge integer": (
        BASE + ', "provenance": {"a": ' + "9" * 100_000 + "}}",
        r"^\$\.provenance\.a: 9{20}\.\.\. \(100000 digits\)",
    ),
    "doubled key": (
        BASE + ', "provenance": {"a": {"b": 1, "b": 2}}}',
        r"^\$\.provenance\.a\.b: this key is there twice",
    ),
    "doubled at the top": (BASE + ', "name": "y"}', r"^\$\.name: this key is there twice"),
    "deep list": (BASE + ', "provenance": ' + "[" * 100_000, r"^\$: line 1: nested deeper than 64"),
    "deep object": ('{"a":' * 5_000, r"^\$: line 1: nested deeper than 64"),
    "1e12 elements": (
        changed(signals={"s": {"dims": [1_000_000, 1_000_000]}}),
        r"^\$\.signals\.s\.dims: 1e\+12 elements",
    ),
    "name is a path": (changed(name="../x"), r"^\$\.name: expected `str` matching regex"),
    "term name is a path": (changed(terms=[{"name": "../x", "fn": "rlx.signal@1"}]), r"^\$\.terms\[0\]\.name: "),
    "signal name is a path": (changed(signals={"../x": {}}), r"^\$\.signals: expected `str` matching"),
    "wrong type": (
        changed(constraints=[{"kind": "expect", "term": "short", "limit": "0.9"}]),
        r"^\$\.constraints\[0\]\.limit: expected `float`, got `str`",
    ),
    "a boolean is no number": (
        changed(constraints=[{"kind": "expect", "term": "short", "limit": True}]),
        r"^\$\.constraints\[0\]\.limit: ",
    ),
    "unknown kind": (changed(constraints=[{"kind": "hope"}]), r"^\$\.constraints\[0\]\.kind: invalid value 'hope'"),
    "empty range": (
        changed(terms=[{"name": "short", "fn": "rlx.length_share@1", "range": [1, 0]}]),
        r"^\$\.terms\[0\]: range: ",
    ),
    "unregistered": (changed(terms=[{"name": "short", "fn": "os.system@1"}]), r"^\$\.terms\[0\]: fn: 'os\.system@1'"),
    "unknown rule": (changed(aggregate={"rule": "dictator"}), r"^\$\.aggregate\.rule: 'dictator' is not one of"),
    "unknown rule field": (changed(aggregate={"rule": "nash", "flor": 1}), r"^\$\.aggregate\.flor: "),
    "text in a rule": (changed(aggregate={"rule": "nash", "floor": "1"}), r"^\$\.aggregate\.floor: expected a number"),
    "negative floor": (changed(aggregate={"rule": "nash", "floor": -1}), r"^\$\.aggregate: floor: "),
    "negative weight": (
        changed(stakeholders=[{"name": "a", "utility": {"short": 1}, "weight": -1}], aggregate={"rule": "nash"}),
        r"^\$: .*weight -1",
    ),
    "no stakeholder": (changed(stakeholders=[]), r"^\$\.stakeholders: "),
    "window backwards": (
        changed(
            constraints=[
                {
                    "kind": "formula",
                    "holds": {
                        "kind": "always",
                        "of": {"kind": "event", "term": "toxicity", "relation": "<", "value": 1},
                        "first": 3,
                        "last": 1,
                    },
                }
            ]
        ),
        r"^\$\.constraints\[0\]\.holds: last: ",
    ),
    "ragged example": (
        changed(tests=[{"name": "t", "batch": {"x": [[1], [1, 2]]}, "total": [0, 1]}]),
        r"^\$\.tests\[0\]\.batch\.x: rows of different lengths",
    ),
    "text in an example": (
        changed(tests=[{"name": "t", "batch": {"x": ["a"]}, "total": [0, 1]}]),
        r"^\$\.tests\[0\]\.batch\.x: ",
    ),
    "half a character": (changed(version="\ud800"), r"^\$\.version: half of a surrogate pair"),
    "other format": (changed(format="rlx.contract/1"), r"^\$\.format: "),
    "not an object": ("[]", r"^\$: expected `object`"),
    "no JSON": ("{", r"^\$: line 1, column 2: "),
    "empty": ("", r"^\$: line 1, column 1: "),
    "not UTF-8": (b'{"a": "\xff"}', r"^\$: not UTF-8 at byte 7"),
    "2 MiB": (" " * (1 << 21), r"^\$: 2097152 bytes"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_hostile_json_is_refused_at_once(name):
    text, message = REFUSED[name]
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message):
        loads(text)
    assert time.perf_counter() - start < 0.5


REFUSED_TOML = {
    "doubled key": (TOML + "\nlimit = 1\nlimit = 2", r"^\$: Cannot overwrite a value"),
    "nan": (TOML + "\n[provenance]\na = nan", r"^\$\.provenance\.a: nan is not a finite number"),
    "infinite": (TOML.replace('"inf"', "inf"), r'^\$\.terms\[0\]\.range\[1\]: inf is not .*"inf"'),
    "1e999": (TOML + "\n[provenance]\na = 1e999", r"^\$\.provenance\.a: inf is not"),
    "long key": ("a." * 100_000 + "a = 1", r"^\$: line 1: a key of more than 32 parts"),
    "long inline key": ("x = {" + "a . " * 100_000 + "a = 1}", r"^\$: line 1: a key of more than 32 parts"),
    "deep": ("x = " + "[" * 100_000, r"^\$: line 1: nested deeper than 64"),
    "date": (TOML + "\n[provenance]\na = 1979-05-27", r"^\$\.provenance\.a: "),
    "digits": ("x = " + "9" * 10_000, r"^\$: Exceeds the limit"),
}


@pytest.mark.parametrize("name", REFUSED_TOML)
def test_hostile_toml_is_refused_at_once(name):
    text, message = REFUSED_TOML[name]
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message):
        loads(text, format="toml")
    assert time.perf_counter() - start < 0.5


def test_brackets_in_text_are_text():
    assert loads(changed(provenance={"a": "[" * 1000})).provenance == {"a": "[" * 1000}
    toml = TOML + "\n[provenance]\na = '''" + "[." * 1000 + "'''\nb = \"\\\"[[[\" # " + "[" * 1000 + "\n"
    assert loads(toml, format="toml").provenance["a"] == "[." * 1000


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_changed_byte_is_refused_or_another_contract(data):
    """Nothing but ValueError comes out of a damaged file."""
    raw = bytearray(dumps(FULL).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place : place + data.draw(st.integers(0, 2))] = data.draw(st.binary(max_size=2))
    assert is_contract_or_refusal(bytes(raw))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10) | st.floats(-5, 5) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_any_value_anywhere_is_refused_with_its_path(data):
    tree = json.loads(dumps(FULL))
    place, key = tree, data.draw(st.sampled_from(sorted(tree)))
    while isinstance(place[key], (dict, list)) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = (
            data.draw(st.sampled_from(sorted(place)))
            if isinstance(place, dict)
            else data.draw(st.integers(0, len(place) - 1))
        )
    place[key] = data.draw(json_values)
    assert is_contract_or_refusal(json.dumps(tree))
