"""What a difference means: tightening allows less, loosening more, neutral the same; and nothing goes unseen."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from rlx.contracts import (
    Always,
    Chance,
    Contract,
    CVaR,
    Event,
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
    diff,
    digest,
)

x = Term("x", lambda b: b["x"], range=(-1.0, 1.0))
y = Term("y", lambda b: b["y"], level="token", range=(-1.0, 1.0))
BASE = Contract(
    "c",
    terms=(x, y),
    stakeholders=(Stakeholder("reader", {"x": 1.0}), Stakeholder("editor", {"y": 1.0}, weight=2.0)),
    signals={"x": Signal("B", range=(-1.0, 1.0)), "y": Signal("BT", range=(-1.0, 1.0)), "mask": Signal("BT", "bool")},
)


def having(*constraints):
    return dataclasses.replace(BASE, constraints=constraints)


# each pair: what it is from the first to the second
CONSTRAINTS = {
    "added": ((), (Expect(x) <= 0.5,), "tightening"),
    "lower limit": ((Expect(x) <= 0.5,), (Expect(x) <= 0.25,), "tightening"),
    "higher demand": ((Expect(x) >= 0.1,), (Expect(x) >= 0.2,), "tightening"),
    "rarer": ((Chance(x > 0.5) <= 0.2,), (Chance(x > 0.5) <= 0.1,), "tightening"),
    "a wider event": ((Chance(x > 0.5) <= 0.2,), (Chance(x > 0.2) <= 0.2,), "tightening"),
    "a wider event by equality": ((Chance(x > 0.5) <= 0.2,), (Chance(x >= 0.5) <= 0.2,), "tightening"),
    "a wider event below": ((Chance(x < -0.5) <= 0.2,), (Chance(x < -0.2) <= 0.2,), "tightening"),
    "a harder event": ((Chance(x > 0.2) >= 0.2,), (Chance(x > 0.5) >= 0.2,), "tightening"),
    "a longer tail": ((CVaR(x, 0.5, at=0.2) <= 0.7,), (CVaR(x, 0.8, at=0.2) <= 0.7,), "tightening"),
    "a lower bar": ((Always(y < 0.9),), (Always(y < 0.7),), "tightening"),
    "a longer always": ((Always(y < 0.7, 0, 1),), (Always(y < 0.7, 0, 3),), "tightening"),
    "a shorter eventually": ((Eventually(y > 0.2, 0, 3),), (Eventually(y > 0.2, 0, 1),), "tightening"),
    "a negation": ((~Eventually(y > 0.8),), (~Eventually(y > 0.6),), "tightening"),
    "until sooner": ((Until(y < 0.9, y > 0.1, 0, 3),), (Until(y < 0.9, y > 0.1, 0, 2),), "tightening"),
    "two parts": ((Always((y < 0.9) & (y > -0.9)),), (Always((y < 0.8) & (y > -0.8)),), "tightening"),
    "a chance of a formula": ((Chance(Always(y < 0.8)) >= 0.5,), (Chance(Always(y < 0.6)) >= 0.5,), "tightening"),
    "both ways": ((Always((y < 0.9) & (y > -0.8)),), (Always((y < 0.8) & (y > -0.9)),), "breaking"),
    "another window": ((Always(y < 0.9, 0, 1),), (Always(y < 0.9, 1, 2),), "breaking"),
    "lower limit, narrower event": ((Chance(x > 0.2) <= 0.2,), (Chance(x > 0.5) <= 0.1,), "breaking"),
    "another term": ((Expect(x) <= 0.5,), (Expect(y) <= 0.5,), "tightening"),  # one removed, one added
    "a price": ((Expect(x) <= 0.5,), (dataclasses.replace(Expect(x) <= 0.5, multiplier=1.0),), "neutral"),
}
MIRROR = {"tightening": "loosening", "loosening": "tightening", "breaking": "breaking", "neutral": "neutral"}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_constraints(name):
    before, after, kind = CONSTRAINTS[name]
    found = diff(having(*before), having(*after))
    assert found.kind == kind
    if name != "another term":
        assert len(found.changes) == 1
        assert diff(having(*after), having(*before)).kind == MIRROR[kind]


def allowed(reward, batch):
    """What each constraint's batch of texts says: mean cost at most the threshold; no text fails a formula."""
    contract, out = reward.contract, reward(reward.params, batch)
    means = np.asarray(out.costs, np.float64).mean(0) <= np.asarray(reward.params["thresholds"], np.float64) + 1e-7
    whole = [
        not out.violated[:, m].any()
        if type(c.of) in (Always, Eventually, Until) or str(c).startswith("~")
        else means[m]
        for m, c in enumerate(contract.constraints)
    ]
    return all(whole)


TIGHTER = [name for name, (_, _, kind) in CONSTRAINTS.items() if kind == "tightening" and name != "another term"]


@pytest.mark.parametrize("name", TIGHTER)
def test_what_the_tighter_contract_allows_the_other_allowed(name):
    before, after, _ = CONSTRAINTS[name]
    looser, tighter = compile(having(*before)), compile(having(*after))
    rng = np.random.default_rng(0)
    counts = np.zeros((2, 2), int)
    for _ in range(150):
        middle, size = rng.uniform(-1, 1), rng.uniform(0, 1)
        values = np.clip(middle + size * rng.uniform(-1, 1, (6, 5)), -1, 1).astype(np.float32)
        batch = {"x": jnp.asarray(values[:, 0]), "y": jnp.asarray(values[:, 1:]), "mask": jnp.ones((6, 4), bool)}
        counts[int(allowed(looser, batch)), int(allowed(tighter, batch))] += 1
    assert counts[0, 1] == 0
    assert counts[1, 1] > 0


OTHERS = {
    "version": ({"version": "2"}, "neutral", "everyone"),
    "name": ({"name": "d"}, "neutral", "everyone"),
    "provenance": ({"provenance": {"a": 1}}, "neutral", "everyone"),
    "tests": ({"tests": (Example("e", {"x": [0.5]}, total=(0, 1)),)}, "neutral", "everyone"),
    "an unused term": ({"terms": (x, y, Term("z", lambda b: b["x"]))}, "neutral", "everyone"),
    "code": ({"terms": (Term("x", lambda b: 2 * b["x"], range=(-1.0, 1.0)), y)}, "breaking", "reader"),
    "unit": ({"terms": (dataclasses.replace(x, unit="nat"), y)}, "breaking", "reader"),
    "reduce": ({"terms": (x, dataclasses.replace(y, reduce="sum"))}, "breaking", "editor"),
    "a narrower promise": ({"terms": (dataclasses.replace(x, range=(-0.5, 1.0)), y)}, "tightening", "reader"),
    "a wider promise": ({"terms": (dataclasses.replace(x, range=(-2.0, 1.0)), y)}, "loosening", "reader"),
    "another promise": ({"terms": (dataclasses.replace(x, range=(-2.0, 0.5)), y)}, "breaking", "reader"),
    "weight": ({"stakeholders": (BASE.stakeholders[0], Stakeholder("editor", {"y": 1.0}, 3.0))}, "breaking", "editor"),
    "coefficient": ({"stakeholders": (Stakeholder("reader", {"x": 2.0}), BASE.stakeholders[1])}, "breaking", "reader"),
    "wants more": (
        {"stakeholders": (Stakeholder("reader", {"x": 1.0, "y": 1.0}), BASE.stakeholders[1])},
        "breaking",
        "reader",
    ),
    "gone": ({"stakeholders": BASE.stakeholders[:1]}, "breaking", "editor"),
    "new": ({"stakeholders": (*BASE.stakeholders, Stakeholder("owner", {"x": -1.0}))}, "breaking", "owner"),
    "order": ({"stakeholders": BASE.stakeholders[::-1]}, "breaking", "everyone"),
    "rule": ({"aggregate": Nash(-2.0)}, "breaking", "reader"),
    "number of the rule": ({"aggregate": MaxMin(0.1)}, "breaking", "editor"),
    "dtype": ({"signals": BASE.signals | {"x": Signal("B", "float16", (-1.0, 1.0))}}, "breaking", "callers"),
    "dims": (
        {"signals": BASE.signals | {"x": Signal(("B",), range=(-1.0, 1.0)), "q": Signal("BTD")}},
        "breaking",
        "callers",
    ),
    "narrower input": ({"signals": BASE.signals | {"x": Signal("B", range=(0.0, 1.0))}}, "tightening", "callers"),
    "input without a range": ({"signals": BASE.signals | {"x": Signal("B")}}, "loosening", "callers"),
    "input no longer declared": (
        {"signals": {n: s for n, s in BASE.signals.items() if n != "mask"}},
        "loosening",
        "callers",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_changes(name):
    changes, kind, whom = OTHERS[name]
    found = diff(BASE, dataclasses.replace(BASE, **changes))
    assert found.kind == kind
    assert whom in found.changes[0].whom
    assert max(map(len, str(found).splitlines())) <= 80


def test_no_difference_is_no_change_of_the_digest_and_the_reverse():
    family = [BASE, *(dataclasses.replace(BASE, **changes) for changes, _, _ in OTHERS.values())]
    family += [having(*constraints) for pair in CONSTRAINTS.values() for constraints in pair[:2]]
    family += [dataclasses.replace(BASE, stakeholders=BASE.stakeholders, terms=(x, y))]
    hashes = [digest(contract) for contract in family]
    for i in range(len(family)):
        for j in range(0, len(family), 7):
            assert bool(diff(family[i], family[j])) == (hashes[i] != hashes[j])


def test_the_most_serious_comes_first_and_names_the_kind():
    after = dataclasses.replace(having(Expect(x) <= 0.5), version="2", aggregate=Nash(-2.0))
    found = diff(BASE, after)
    assert [change.kind for change in found.changes] == ["breaking", "tightening", "neutral"]
    assert found.kind == "breaking"
    assert not diff(BASE, BASE)
    assert str(diff(BASE, BASE)) == "no change"
    assert diff(BASE, BASE).kind == "neutral"


def test_numbers_are_the_float32_that_they_are_computed_with():
    assert not diff(having(Expect(x) <= 0.1), having(Expect(x) <= float(np.float32(0.1))))
    assert isinstance(Event("x", ">", 0.1), Event)
