"""Verdicts: what is proved holds on random inputs, what is refuted reproduces, and nothing else is claimed."""

import dataclasses
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.contracts import (
    Chance,
    Contract,
    Expect,
    MaxMin,
    Nash,
    Signal,
    Stakeholder,
    Term,
    WeightedSum,
    _interval,
    verify,
)
from rlx.contracts._compile import term_values

SIGNALS = {
    "p": Signal("BT", "float32", (0.0, 1.0)),
    "l": Signal("BT", "float32", (-50.0, 0.0)),
    "x": Signal("BT", "float32", (-3.0, 2.0)),
    "m": Signal("BT", "bool"),
    "odd": Signal(("B", 41), "bool"),
    "t": Signal("BT", "int32", (0, 255)),
    "free": Signal("BT", "float32"),
}
TABLE = np.linspace(0.0, 1.0, 256, dtype=np.float32)


def contract_of(fn, low=0.0, high=1.0, **changes):
    term = Term("x", fn, range=(low, high), level=changes.pop("level", "sequence"))
    contract = Contract("v", terms=(term,), stakeholders=(Stakeholder("me", {"x": 1.0}),), signals=SIGNALS)
    return dataclasses.replace(contract, **changes)


def find(checks, name):
    (check,) = [check for check in checks if check.name == name]
    return check


PROVED = {
    "mean of a mask": (lambda b: jnp.mean(b["odd"], axis=-1), 0, 1),
    "any": (lambda b: jnp.any((b["t"] == 101) & b["m"], axis=-1), 0, 1),
    "exp of logp": (lambda b: jnp.exp(jnp.min(b["l"], axis=-1)), 0, 1),
    "tanh": (lambda b: jnp.max(jnp.tanh(b["l"]), axis=-1), -1, 0),
    "sigmoid": (lambda b: jnp.max(jax.nn.sigmoid(b["l"]), axis=-1), 0, 0.5),
    "masked mean": (
        lambda b: jnp.clip(
            jnp.sum(jnp.where(b["m"], b["p"], 0.0), axis=-1)
            / jnp.maximum(jnp.sum(b["m"], axis=-1, dtype=jnp.float32), 1),
            0,
            1,
        ),
        0,
        1,
    ),
    "table": (lambda b: jnp.mean(jnp.asarray(TABLE)[b["t"]], axis=-1), 0, 1),
    "square": (lambda b: jnp.max(b["x"] * b["x"], axis=-1), 0, 9),
    "where": (lambda b: jnp.where(b["x"][:, 0] > 0, b["p"][:, 0], 1.0), 0, 1),
    "count": (lambda b: jnp.sum(b["t"] > 97, axis=-1), 0, 32),
    "clip": (lambda b: jnp.clip(b["x"][:, 1], -1, 1), -1, 1),
    "relu": (lambda b: jax.nn.relu(b["x"])[:, 0], 0, 2),
    "cumsum": (lambda b: jnp.cumsum(b["m"].astype(jnp.float32), axis=-1)[:, -1], 0, 32),
    "matmul": (lambda b: (b["p"] @ jnp.full((32, 2), 1 / 32))[:, 0], 0, 1),
    "scan": (lambda b: jax.lax.scan(lambda c, x: (jnp.maximum(c, x), x), jnp.zeros(4), b["p"].T)[0], 0, 1),
    "cond": (lambda b: jax.lax.cond(b["m"][0, 0], lambda p: p[:, 0], lambda p: 1 - p[:, 1], b["p"]), 0, 1),
    "concatenate": (lambda b: jnp.max(jnp.concatenate([b["p"], -b["l"] / 64.0], axis=-1), axis=-1), 0, 1),
    "sort": (lambda b: jnp.sort(b["p"], axis=-1)[:, 3], 0, 1),
    "sqrt": (lambda b: jnp.sqrt(b["p"][:, 0]), 0, 1),
    "erf": (lambda b: jax.lax.erf(b["x"][:, 0]), -1, 1),
    "one hot": (lambda b: jnp.max(jax.nn.one_hot(b["t"][:, 0], 256), axis=-1), 0, 1),
    "integers": (lambda b: (b["t"][:, 0] % 7 + 1).astype(jnp.float32), 1, 7),
}


def draw(rng, size):
    batch = {}
    for name, signal in SIGNALS.items():
        shape = tuple({"B": 4, "T": 32}.get(dim, dim) for dim in signal.dims)
        low, high = signal.range or (0, 1)
        ends = rng.random(shape) < 0.3
        value = np.where(ends, rng.choice([low, high], shape), rng.uniform(low, high, shape))
        value = np.round(value) if signal.dtype in ("bool", "int32") else value
        batch[name] = jnp.asarray(value.astype(signal.dtype))
    return batch


@pytest.mark.parametrize("name", PROVED)
def test_proved_ranges_hold_on_random_batches(name):
    fn, low, high = PROVED[name]
    contract = contract_of(fn, low, high)
    check = find(verify(contract), "range:x")
    assert check.verdict == "PROVED", check.detail
    compiled = jax.jit(lambda batch: term_values(contract.terms[0], batch))
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = np.asarray(compiled(draw(rng, 4)))
        assert np.all((values >= np.float32(low)) & (values <= np.float32(high)))


REFUTED = {
    "a sum is not a mean": (lambda b: jnp.sum(b["p"], axis=-1), 0, 1),
    "too tight": (lambda b: jnp.max(b["x"], axis=-1), 0, 2),
    "0 / 0": (
        lambda b: jnp.sum(jnp.where(b["m"], b["p"], 0.0), axis=-1) / jnp.sum(b["m"], axis=-1, dtype=jnp.float32),
        0,
        1,
    ),
    "NaN that was clipped": (lambda b: jnp.clip(jnp.sqrt(b["x"][:, 0]), 0, 1), 0, 1),
    "log 0": (lambda b: jnp.log(b["p"][:, 0]), -1e6, 0),
    "undeclared range": (lambda b: b["free"][:, 0], 0, 1),
    "no rule, still refuted": (lambda b: jnp.abs(jnp.fft.fft(b["p"]))[:, 0], 0, 1),
    "integer overflow": (lambda b: (b["t"][:, 0] * 16_777_216).astype(jnp.float32), 0, 2.0**33),
}


@pytest.mark.parametrize("name", REFUTED)
def test_counterexamples_reproduce(name):
    fn, low, high = REFUTED[name]
    check = find(verify(contract_of(fn, low, high)), "range:x")
    assert check.verdict == "REFUTED", check.detail
    values = np.asarray(fn(check.counterexample))
    assert not np.all((values >= low) & (values <= high))
    for signal, value in check.counterexample.items():
        if SIGNALS[signal].range:
            assert np.all((value >= SIGNALS[signal].range[0]) & (value <= SIGNALS[signal].range[1]))


UNKNOWN = {
    "dependency": (lambda b: b["x"][:, 0] - b["x"][:, 0], -1, 1),
    "no rule": (lambda b: jnp.sin(jnp.abs(jnp.fft.fft(b["p"]))[:, 0]), -1, 1),
    "softmax": (lambda b: jax.nn.softmax(b["l"], axis=-1)[:, 0], 0, 1),
    "long loop": (lambda b: jax.lax.fori_loop(0, 10_000, lambda i, c: c * 0.5, b["p"][:, 0]), 0, 1),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_is_not_passed(name):
    fn, low, high = UNKNOWN[name]
    check = find(verify(contract_of(fn, low, high)), "range:x")
    assert check.verdict == "UNKNOWN", check.detail
    assert check.counterexample is None


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["add", "multiply", "divide"])
def test_intervals_hold_the_exact_and_the_rounded_result(name, dtype):
    """Of known numbers, against rational arithmetic: the interval is narrow and holds both."""
    rng = np.random.default_rng(0)
    exact = {"add": Fraction.__add__, "multiply": Fraction.__mul__, "divide": Fraction.__truediv__}[name]
    operation = {"add": jnp.add, "multiply": jnp.multiply, "divide": jnp.divide}[name]
    a, b = (np.asarray(rng.normal(size=200) * 10.0 ** rng.integers(-6, 6, 200), dtype) for _ in range(2))
    rounded = np.asarray(operation(jnp.asarray(a), jnp.asarray(b)), np.float64)
    found = getattr(_interval, name)(_interval.point(a), _interval.point(b), np.dtype(dtype))
    eps = float(jnp.finfo(dtype).eps)
    for i in range(200):
        low, high = Fraction(float(found.low[i])), Fraction(float(found.high[i]))
        truth = exact(Fraction(float(a[i])), Fraction(float(b[i])))
        assert low <= truth <= high
        assert low <= Fraction(float(rounded[i])) <= high
        assert high - low <= abs(truth) * 16 * Fraction(eps)


def test_sums_hold_every_order():
    values = (np.random.default_rng(0).normal(size=300) * 1e3).astype(np.float32)
    found = _interval.total(_interval.point(values), (0,), np.dtype(np.float32))
    exact = sum(Fraction(float(v)) for v in values)
    orders = [np.cumsum(values, dtype=np.float32)[-1], np.cumsum(np.sort(values), dtype=np.float32)[-1], values.sum()]
    for value in (exact, *(Fraction(float(order)) for order in orders)):
        assert Fraction(float(found.low)) <= value <= Fraction(float(found.high))
    ones = _interval.total(_interval.point(np.ones(300, np.float32)), (0,), np.dtype(np.float32))
    assert (float(ones.low), float(ones.high)) == (300.0, 300.0)


def test_a_fused_quotient_is_not_proved():
    """1 - mean of 41 ones is -3e-8 under jit on CPU: the division is a fused multiply-add. Not inside [0, 1]."""
    contract = contract_of(lambda b: 1.0 - jnp.mean(b["odd"], axis=-1))
    check = find(verify(contract), "range:x")
    assert check.verdict == "UNKNOWN"
    assert (
        find(
            verify(contract_of(lambda b: jnp.maximum(1.0 - jnp.mean(b["odd"], -1), 0.0), -1e-9, 1.001)), "range:x"
        ).verdict
        == "PROVED"
    )


def test_token_level_ranges_are_of_tokens():
    assert find(verify(contract_of(lambda b: jnp.exp(b["l"]), level="token")), "range:x").verdict == "PROVED"


@pytest.mark.parametrize(
    "fn",
    [
        lambda b: jax.pure_callback(lambda p: p[:, 0], jax.ShapeDtypeStruct((4,), jnp.float32), b["p"]),
        lambda b: (jax.debug.callback(print), b["p"][:, 0])[1],
        lambda b: jax.jit(lambda p: (jax.debug.print("x"), p[:, 0])[1])(b["p"]),
    ],
)
def test_callbacks_are_impure(fn):
    assert find(verify(contract_of(fn)), "pure:x").verdict == "REFUTED"


def test_pure_terms_are_proved_pure():
    assert find(verify(contract_of(lambda b: b["p"][:, 0])), "pure:x").verdict == "PROVED"


def test_shapes():
    assert find(verify(contract_of(lambda b: b["p"])), "shape:x").verdict == "REFUTED"
    assert find(verify(contract_of(lambda b: b["p"].T[:, 0])), "shape:x").verdict == "REFUTED"
    assert find(verify(contract_of(lambda b: b["p"][:, 0])), "shape:x").verdict == "PROVED"
    undeclared = contract_of(lambda b: b["zz"].nothing)
    assert find(verify(undeclared), "shape:x").verdict == "UNKNOWN"


def test_a_given_batch_decides_the_shapes():
    contract = contract_of(lambda b: b["p"][:, 0])
    checks = verify(contract, {"p": jax.ShapeDtypeStruct((6, 3), jnp.float32)})
    assert find(checks, "signals").verdict == "REFUTED"
    assert find(checks, "shape:x").verdict == "PROVED"
    full = {n: jax.ShapeDtypeStruct((6, 41), np.dtype(s.dtype)) for n, s in SIGNALS.items()}
    assert find(verify(contract, full), "signals").verdict == "PROVED"
    assert find(verify(contract, full | {"p": full["t"]}), "signals").verdict == "REFUTED"
    missing = find(verify(dataclasses.replace(contract, signals={}), {"q": full["p"]}), "shape:x")
    assert missing.verdict == "REFUTED"
    assert "KeyError" in missing.detail


def first(b):
    return b["p"][:, 0]


def test_names_weights_limits():
    assert find(verify(contract_of(first)), "names").verdict == "PROVED"
    bad = contract_of(first, stakeholders=(Stakeholder("me", {"y": 1.0}),))
    assert find(verify(bad), "names").verdict == "REFUTED"
    for weight, verdict in ((1.0, "PROVED"), (-1.0, "REFUTED"), (0.0, "REFUTED"), (float("nan"), "REFUTED")):
        contract = contract_of(first, stakeholders=(Stakeholder("me", {"x": 1.0}, weight=weight),))
        assert find(verify(contract), "weights").verdict == verdict
    limits = {
        (Expect("x") <= 0.5,): "PROVED",
        (Expect("x") >= 1.5,): "REFUTED",
        (Expect("x") <= 0.2, Expect("x") >= 0.4): "REFUTED",
        (Chance(Term("x", first, range=(0, 1)) > 0.5) <= 0.1,): "PROVED",
        (Chance(Term("x", first, range=(0, 1)) > 0.5) >= 1.1,): "REFUTED",
    }
    for constraints, verdict in limits.items():
        assert find(verify(contract_of(first, constraints=constraints)), "limits").verdict == verdict


@pytest.mark.parametrize("rule", [WeightedSum(), Nash(-0.1), MaxMin(0.1)])
def test_monotone_is_proved_for_weights_that_are_not_negative(rule):
    assert find(verify(contract_of(first, aggregate=rule)), "monotone").verdict == "PROVED"


def test_monotone_is_refuted_with_utilities_that_reproduce():
    people = (Stakeholder("a", {"x": 1.0}), Stakeholder("b", {"x": 1.0}, weight=-0.5))
    check = find(verify(contract_of(first, stakeholders=people)), "monotone")
    assert check.verdict == "REFUTED"
    less, more = check.counterexample["less"], check.counterexample["more"]
    assert np.all(more >= less)
    assert more @ np.array([1.0, -0.5]) < less @ np.array([1.0, -0.5])


def test_monotone_of_an_unknown_rule_is_unknown():
    class Own:
        def init(self, names):
            return {}

        def apply(self, utilities, weights, params):
            return jnp.sum(jnp.tanh(utilities), axis=-1)

        def problems(self, names):
            return []

    assert find(verify(contract_of(first, aggregate=Own())), "monotone").verdict == "UNKNOWN"


@pytest.mark.parametrize(("d", "verdict"), [(-0.1, "PROVED"), (0.0, "PROVED"), (0.5, "UNKNOWN"), (1.0, "REFUTED")])
def test_disagreement(d, verdict):
    assert find(verify(contract_of(first, aggregate=Nash(d))), "disagreement").verdict == verdict
