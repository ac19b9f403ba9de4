"""Units, limits that contradict, and the tests that a contract carries."""

import dataclasses
import itertools

import numpy as np
import pytest

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
    Stakeholder,
    Term,
    Until,
    WeightedSum,
    compile,
    verify,
)

x = Term("x", lambda b: b["x"], unit="score", range=(-1.0, 1.0))
z = Term("z", lambda b: b["x"], unit="nat", range=(-1.0, 1.0))
plain = Term("plain", lambda b: b["x"])
y = Term("y", lambda b: b["y"], level="token", range=(-1.0, 1.0))
BASE = Contract("c", terms=(x, z, plain), stakeholders=(Stakeholder("me", {"x": 1.0}),))


def verdict(contract, name):
    (check,) = [check for check in verify(contract) if check.name == name]
    return check.verdict


@pytest.mark.parametrize(
    ("people", "rule", "expected"),
    [
        ((Stakeholder("a", {"x": 1.0}),), WeightedSum(), "PROVED"),
        ((Stakeholder("a", {"x": 1.0, "z": 1.0}),), WeightedSum(), "REFUTED"),
        ((Stakeholder("a", {"x": 1.0, "z": 1.0}, unit="points"),), WeightedSum(), "PROVED"),
        ((Stakeholder("a", {"x": 1.0, "plain": 1.0}),), WeightedSum(), "UNKNOWN"),
        ((Stakeholder("a", {"x": 1.0}), Stakeholder("b", {"z": 1.0})), WeightedSum(), "REFUTED"),
        ((Stakeholder("a", {"x": 1.0}), Stakeholder("b", {"z": 1.0})), MaxMin(), "REFUTED"),
        ((Stakeholder("a", {"x": 1.0}), Stakeholder("b", {"z": 1.0})), Nash(-2.0), "PROVED"),
    ],
)
def test_units(people, rule, expected):
    assert verdict(dataclasses.replace(BASE, stakeholders=people, aggregate=rule), "units") == expected


@pytest.mark.parametrize(
    ("constraints", "expected"),
    [
        ((Expect(x) <= 0.5, Expect(x) >= 0.4), "PROVED"),
        ((Expect(x) <= 0.3, Expect(x) >= 0.4), "REFUTED"),
        ((CVaR(x, 0.9) <= 0.3, Expect(x) >= 0.4), "REFUTED"),  # the mean is at most the CVaR
        ((CVaR(x, 0.9) <= -2.0,), "REFUTED"),
        ((Chance(x > 0.5) <= 0.1, Chance(x > 0.7) >= 0.2), "REFUTED"),  # part of it is more probable than the whole
        ((Chance(x > 0.7) <= 0.1, Chance(x > 0.5) >= 0.2), "PROVED"),
        ((Chance(x >= 0.5) <= 0.1, Chance(x > 0.5) >= 0.2), "REFUTED"),
        ((Chance(x > 2.0) >= 0.2,), "REFUTED"),  # outside the range
        ((Chance(x > -2.0) <= 0.2,), "REFUTED"),  # always so
        ((Always(y < 0.5),), "PROVED"),
        ((Always(y < -1.5),), "REFUTED"),
        ((Always(y < 0.2), Eventually(y > 0.5)), "REFUTED"),
        ((Always(y < 0.2), Always(y > 0.1)), "PROVED"),
        ((Always(y < 0.2), Always(y > 0.2)), "REFUTED"),
        ((Until(y < 0.0, y > 2.0),), "REFUTED"),
        ((Always(y < 0.5) & Always(x > 0.9),), "PROVED"),
        ((Eventually(y > 0.5), Eventually(y < -0.5)), "UNKNOWN"),  # a text that moves: no constant one
    ],
    ids=lambda v: " and ".join(map(str, v)) if isinstance(v, tuple) else v,
)
def test_limits(constraints, expected):
    assert verdict(dataclasses.replace(BASE, constraints=constraints), "limits") == expected


def test_refuted_limits_are_met_by_no_text():
    """Formulas of a grid against texts of a grid, length 1 to 3: REFUTED is never said of what a text satisfies."""
    formulas = [Always(y < 0.0), Always(y > 0.4), Eventually(y > 0.6), ~Eventually(y > -0.5), Until(y < 0.0, y >= 0.5)]
    texts = [
        np.array(t, np.float32) for n in (1, 2, 3) for t in itertools.product([-1.0, -0.6, 0.2, 0.5, 0.8], repeat=n)
    ]
    padded = np.array([np.pad(t, (0, 3 - len(t))) for t in texts])
    mask = np.array([np.arange(3) < len(t) for t in texts])
    batch = {"x": padded[:, 0], "y": padded, "mask": mask}
    said = set()
    for pair in itertools.combinations(formulas, 2):
        contract = dataclasses.replace(BASE, constraints=pair)
        found = verdict(contract, "limits")
        said.add(found)
        reward = compile(contract)
        met = bool(np.any(~np.any(np.asarray(reward(reward.params, batch).violated), axis=1)))
        assert not (found == "REFUTED" and met)
        assert not (found == "PROVED" and not met)
    assert {"REFUTED", "PROVED"} <= said


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (Example("e", {"x": [0.5, -0.5]}, ranking=(0, 1)), "PROVED"),
        (Example("e", {"x": [0.5, -0.5]}, ranking=(1, 0)), "REFUTED"),
        (Example("e", {"x": [0.5, 0.5]}, ranking=(0, 1)), "REFUTED"),  # a tie
        (Example("e", {"x": [0.5, -0.5]}, ranking=(0, 0)), "REFUTED"),
        (Example("e", {"x": [0.5, -0.5]}, satisfied=(False, True)), "PROVED"),
        (Example("e", {"x": [0.5, -0.5]}, satisfied=(True, True)), "REFUTED"),
        (Example("e", {"x": [0.5]}, terms={"x": (0.4, 0.6)}, total=(0.4, 0.6)), "PROVED"),
        (Example("e", {"x": [0.5]}, terms={"x": (0.6, 0.7)}), "REFUTED"),
        (Example("e", {"x": [0.5]}, total=(0.6, 0.7)), "REFUTED"),
        (Example("e", {"q": [0.5]}, total=(0.6, 0.7)), "REFUTED"),
    ],
)
def test_examples(example, expected):
    contract = dataclasses.replace(BASE, constraints=(Expect(x) <= 0.0,), tests=(example,))
    assert verdict(contract, "test:e") == expected


def test_bad_examples_are_refused():
    with pytest.raises(ValueError, match="example 'e': expects nothing"):
        Example("e", {"x": [0.5]})
    with pytest.raises(ValueError, match="is empty"):
        Example("e", {"x": [0.5]}, total=(1.0, 0.0))
    contract = dataclasses.replace(BASE, tests=(Example("e", {"x": [0.5]}, terms={"gone": (0, 1)}),))
    with pytest.raises(ValueError, match="test 'e' expects 'gone', which is not a term"):
        compile(contract)
