"""Interval bounds hold every value: each rule alone, random compositions, and the terms that people write."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments import bench_intervals
from rlx.contracts import Contract, Signal, Stakeholder, Term, verify
from rlx.contracts._bounds import RULES, bounds
from rlx.contracts._canonical import subjaxprs
from rlx.contracts._interval import Interval, Unsupported

LAX = jax.lax
# x is [2, 6]; where a function needs other values it makes them of x
ONE_RULE = {
    "add": lambda x: x + x[:, ::-1],
    "sub": lambda x: x - x[:, ::-1],
    "mul": lambda x: x * x[:, ::-1],
    "own square": lambda x: x * x,
    "div": lambda x: x / (jnp.abs(x[:, ::-1]) + 0.5),
    "neg": lambda x: -x,
    "square": jnp.square,
    "integer_pow": lambda x: x**5,
    "even power": lambda x: x**4,
    "negative power": lambda x: (jnp.abs(x) + 0.5) ** -3,
    "abs": jnp.abs,
    "sign": jnp.sign,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "round": jnp.round,
    "max": lambda x: jnp.maximum(x, x[:, ::-1]),
    "min": lambda x: jnp.minimum(x, 0.25),
    "clamp": lambda x: LAX.clamp(-0.5, x, 1.0),
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "tanh": jnp.tanh,
    "logistic": jax.nn.sigmoid,
    "erf": LAX.erf,
    "erfc": LAX.erfc,
    "log": lambda x: jnp.log(jnp.abs(x) + 0.1),
    "log1p": lambda x: jnp.log1p(jnp.abs(x)),
    "sqrt": lambda x: jnp.sqrt(jnp.abs(x)),
    "rsqrt": lambda x: LAX.rsqrt(jnp.abs(x) + 0.1),
    "cbrt": jnp.cbrt,
    "atan": jnp.arctan,
    "asin": lambda x: jnp.arcsin(jnp.clip(x, -1, 1)),
    "sinh": jnp.sinh,
    "cosh": jnp.cosh,
    "asinh": jnp.arcsinh,
    "sin": lambda x: jnp.sin(3 * x),
    "cos": lambda x: jnp.cos(3 * x),
    "sin far": lambda x: jnp.sin(400 * x),
    "sin farther": lambda x: jnp.sin(4000 * x),
    "tan": lambda x: jnp.tan(jnp.clip(x, -1.5, 1.5)),
    "tan across a pole": jnp.tan,
    "atan2": lambda x: jnp.arctan2(x, x[:, ::-1]),
    "pow": lambda x: jnp.abs(x) ** (x[:, ::-1]),
    "pow below one": lambda x: jnp.minimum(jnp.abs(x), 1.0) ** 2.5,
    "lt": lambda x: x < x[:, ::-1],
    "le": lambda x: x <= 0.0,
    "gt": lambda x: x > 0.5,
    "ge": lambda x: x >= x[:, ::-1],
    "eq": lambda x: jnp.round(x) == 0.0,
    "ne": lambda x: jnp.round(x) != 1.0,
    "is_finite": jnp.isfinite,
    "logic": lambda x: ((x > 0) & (x < 1)) | ~(x > -1) ^ (x > 0.5),
    "select_n": lambda x: jnp.where(x > 0, x, -0.5 * x),
    "rem": lambda x: jnp.round(10 * x).astype(jnp.int32) % 3,
    "convert": lambda x: (4 * x).astype(jnp.int32).astype(jnp.float32),
    "bfloat16": lambda x: x.astype(jnp.bfloat16).astype(jnp.float32),
    "sum": lambda x: jnp.sum(x, axis=1),
    "prod": lambda x: jnp.prod(x, axis=1),
    "max of": lambda x: jnp.max(x, axis=1),
    "min of": lambda x: jnp.min(x, axis=0),
    "any": lambda x: jnp.any(x > 1, axis=1),
    "all": lambda x: jnp.all(x > -1, axis=1),
    "argmax": lambda x: jnp.argmax(x, axis=1),
    "argmin": lambda x: jnp.argmin(x, axis=1),
    "cumsum": lambda x: jnp.cumsum(x, axis=1),
    "cumsum reverse": lambda x: LAX.cumsum(x, axis=1, reverse=True),
    "cummax": lambda x: LAX.cummax(x, axis=1),
    "cummin": lambda x: LAX.cummin(x, axis=1, reverse=True),
    "sort": lambda x: jnp.sort(x, axis=1),
    "argsort": lambda x: jnp.argsort(x, axis=1),
    "top_k": lambda x: LAX.top_k(x, 3)[0],
    "dot_general": lambda x: x @ jnp.linspace(-1, 1, 12).reshape(6, 2),
    "products": lambda x: jnp.einsum("bt,bs->bts", x, x),
    "reshape": lambda x: jnp.squeeze(x.reshape(3, 4, 1)) + 1.0,
    "expand_dims": lambda x: LAX.expand_dims(x, (0,)),
    "broadcast": lambda x: jnp.broadcast_to(x[:, None], (2, 3, 6)),
    "transpose": lambda x: x.T,
    "rev": lambda x: LAX.rev(x, (1,)),
    "slice": lambda x: x[:, 1:5:2],
    "split": lambda x: jnp.split(x, 2, axis=1)[1],
    "concatenate": lambda x: jnp.concatenate([x, -x], axis=1),
    "pad": lambda x: jnp.pad(x, ((0, 0), (1, 2)), constant_values=9.0),
    "iota": lambda x: x * jnp.arange(6, dtype=jnp.float32)[None],
    "gather": lambda x: jnp.linspace(-1, 1, 7)[jnp.clip(jnp.round(3 * x + 3), 0, 6).astype(jnp.int32)],
    "dynamic_slice": lambda x: LAX.dynamic_slice(x, (0, jnp.argmax(x[0])), (2, 2)),
    "dynamic_update_slice": lambda x: LAX.dynamic_update_slice(x, 2 * x[:, :2], (0, jnp.argmax(x[0]))),
    "cond": lambda x: LAX.cond(x[0, 0] > 0, lambda v: v + 1, lambda v: -v, x),
    "scan": lambda x: LAX.scan(lambda c, v: (0.5 * c + v, c), jnp.zeros(2), x.T)[1],
    "stop_gradient": LAX.stop_gradient,
    "barrier": lambda x: LAX.optimization_barrier(x),
    "copy": jnp.copy,
    "custom gradient": jax.nn.relu,
    "gradient": lambda x: jax.grad(lambda v: jnp.sum(jnp.tanh(v) * v))(x),
}


def primitives(jaxpr):
    found = set()
    for equation in jaxpr.eqns:
        found.add(equation.primitive.name)
        for inner in subjaxprs(equation):
            found |= primitives(inner)
    return found


def outside(fn, low, high, draws, rng):
    """How many values at random points and corners of a box, under jit and not, are outside the bounds."""
    closed = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct(low.shape, jnp.float32))
    found = bounds(closed, [Interval(low.astype(np.float64), high.astype(np.float64))])[0]
    points = low + (high - low) * rng.random((draws, *low.shape)).astype(np.float32)
    corner = np.where(rng.random(points.shape) < 0.5, low, high)
    points[::3] = corner[::3]
    points = np.clip(points, low, high)
    values = [jax.jit(jax.vmap(fn))(points), *(np.asarray(fn(jnp.asarray(p)))[None] for p in points[:2])]
    bad = 0
    for value in values:
        value = np.asarray(value, np.float64)
        inside = (value >= found.low) & (value <= found.high)
        bad += int(np.sum(~(inside | (np.isnan(value) & found.nan))))
    return bad


@pytest.mark.parametrize("name", ONE_RULE)
def test_each_rule_holds(name):
    rng = np.random.default_rng(0)
    with jax.numpy_dtype_promotion("standard"):
        for scale in (0.01, 0.3, 2.0):
            middle = rng.uniform(-2, 2, (2, 6))
            low, high = (
                np.clip(middle + s * scale * rng.random((2, 6)), -2.5, 2.5).astype(np.float32) for s in (-1, 1)
            )
            assert outside(ONE_RULE[name], low, high, 60, rng) == 0


def test_every_rule_is_in_the_table():
    used = set()
    for fn in ONE_RULE.values():
        with jax.numpy_dtype_promotion("standard"):
            used |= primitives(jax.make_jaxpr(fn)(jax.ShapeDtypeStruct((2, 6), jnp.float32)).jaxpr)
    # names that one version of jax has and another has not; stop_gradient leaves no trace
    elsewhere = {"add_any", "copy", "copy_p", "stop_gradient", "reduce_or", "reduce_and", "exp2", "square"}
    elsewhere |= {"integer_pow", "expand_dims", "one_minus_square"}
    assert set(RULES) - used <= elsewhere


UNARY = [
    "tanh",
    "exp",
    "abs",
    "neg",
    "sin",
    "cos",
    "relu",
    "sigmoid",
    "square",
    "floor",
    "sqrt",
    "log1p",
    "clip",
    "cumsum",
]
OPS = {
    **{n: getattr(jnp, n) for n in ("tanh", "exp", "abs", "sin", "cos", "square", "floor")},
    "neg": jnp.negative,
    "relu": lambda v: jnp.maximum(v, 0.0),
    "sigmoid": jax.nn.sigmoid,
    "sqrt": lambda v: jnp.sqrt(jnp.maximum(v, 0.0)),
    "log1p": lambda v: jnp.log1p(jnp.abs(v)),
    "clip": lambda v: jnp.clip(v, -1.0, 2.0),
    "cumsum": lambda v: jnp.cumsum(v, axis=-1),
    "add": jnp.add,
    "sub": jnp.subtract,
    "mul": jnp.multiply,
    "max": jnp.maximum,
    "min": jnp.minimum,
    "where": lambda a, b: jnp.where(a > b, a, 0.5 * b),
    "div": lambda a, b: a / (1.0 + jnp.abs(b)),
}
programs = st.recursive(
    st.sampled_from(["x", "reversed", "one"]),
    lambda inner: (
        st.tuples(st.sampled_from(UNARY), inner)
        | st.tuples(st.sampled_from(["add", "sub", "mul", "max", "min", "where", "div"]), inner, inner)
    ),
    max_leaves=6,
)


def run(program, x):
    match program:
        case "x":
            return x
        case "reversed":
            return x[::-1]
        case "one":
            return jnp.ones_like(x)
    return OPS[program[0]](*(run(part, x) for part in program[1:]))


@settings(max_examples=60, deadline=None)
@given(programs, st.integers(0, 2**31), st.sampled_from([0.01, 0.5, 3.0]))
def test_random_compositions_hold(program, seed, scale):
    rng = np.random.default_rng(seed)
    middle = rng.uniform(-3, 3, 4)
    low, high = ((middle + s * scale * rng.random(4)).astype(np.float32) for s in (-1, 1))
    assert outside(lambda x: run(program, x), low, high, 100, rng) == 0


def test_a_hundred_thousand_points_of_the_benchmark():
    """The functions that are compared with immrax, whose own row is in the benchmark."""
    found = [bench_intervals.measure(case, 1600, 16) for case in bench_intervals.CASES]
    assert sum(r.points for r in found) >= 100_000
    assert {r.name: r.outside for r in found if r.outside} == {}
    assert [r.name for r in found if "no rule" in r.note] == []


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: jax.random.uniform(jax.random.key(0), x.shape) + x,
        lambda x: jnp.abs(jnp.fft.fft(x)),
        lambda x: jax.lax.while_loop(lambda v: jnp.all(v < 9), lambda v: 2 * v, x),
        lambda x: jnp.linalg.cholesky(x @ x.T),
    ],
)
def test_what_has_no_rule_is_unsupported(fn):
    closed = jax.make_jaxpr(fn)(jax.ShapeDtypeStruct((2, 6), jnp.float32))
    with pytest.raises(Unsupported):
        bounds(closed, [Interval(np.zeros((2, 6)), np.ones((2, 6)))])


# terms as people write them, with the ranges that they would declare
SIGNALS = {
    "tokens": Signal("BT", "int32", (0, 255)),
    "mask": Signal("BT", "bool", (0, 1)),
    "logp": Signal("BT", "float32", (-50.0, 0.0)),
    "toxicity": Signal("BT", "float32", (0.0, 1.0)),
    "score": Signal("B", "float32", (-5.0, 5.0)),
    "vector": Signal(("B", 8), "float32", (-3.0, 3.0)),
    "other": Signal(("B", 8), "float32", (-3.0, 3.0)),
}


def masked_mean(values, mask):
    mask = mask.astype(jnp.float32)
    return jnp.sum(values * mask, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1.0)


TERMS = {
    "toxic anywhere": (lambda b: jnp.max(jnp.where(b["mask"], b["toxicity"], 0.0), axis=1), 0, 1),
    "contains": (lambda b: jnp.any((b["tokens"] == 101) & b["mask"], axis=1), 0, 1),
    "share of vowels": (lambda b: jnp.mean(jnp.isin(b["tokens"], jnp.array([97, 101, 105])), axis=1), 0, 1),
    "brevity": (lambda b: jnp.clip(1.0 - jnp.mean(b["mask"].astype(jnp.float32), axis=1), 0, 1), 0, 1),
    "length": (lambda b: jnp.sum(b["mask"], axis=1), 0, 32),
    "words": (lambda b: jnp.minimum(jnp.sum((b["tokens"] == 32) & b["mask"], axis=1) / 5.0, 1.0), 0, 1),
    "least likely token": (lambda b: jnp.exp(jnp.min(jnp.where(b["mask"], b["logp"], 0.0), axis=1)), 0, 1),
    "logistic score": (lambda b: jax.nn.sigmoid(0.7 * b["score"] - 0.1), 0, 1),
    "squashed score": (lambda b: jnp.tanh(b["score"]), -1, 1),
    "clipped score": (lambda b: jnp.clip(b["score"] / 5.0, -1.0, 1.0), -1, 1),
    "scaled score": (lambda b: (b["score"] + 5.0) / 10.0, -0.001, 1.001),
    "mean likelihood, clipped": (lambda b: jnp.clip(jnp.exp(masked_mean(b["logp"], b["mask"])), 0.0, 1.0), 0, 1),
    "cosine, clipped": (
        lambda b: jnp.clip(
            jnp.sum(b["vector"] * b["other"], axis=1)
            / jnp.sqrt(1e-6 + jnp.sum(b["vector"] ** 2, axis=1) * jnp.sum(b["other"] ** 2, axis=1)),
            -1.0,
            1.0,
        ),
        -1,
        1,
    ),
    "repetition": (lambda b: jnp.mean(b["tokens"][:, 1:] == b["tokens"][:, :-1], axis=1), 0, 1),
    "rank of the first": (lambda b: jnp.argsort(b["vector"], axis=1)[:, 0], 0, 7),
    "distance": (lambda b: jnp.sqrt(jnp.sum((b["vector"] - b["other"]) ** 2, axis=1)), 0, 17),
}


@pytest.mark.parametrize("name", TERMS)
def test_terms_as_people_write_them_are_proved(name):
    fn, low, high = TERMS[name]
    term = Term("x", fn, range=(low, high))
    contract = Contract("t", terms=(term,), stakeholders=(Stakeholder("me", {"x": 1.0}),), signals=SIGNALS)
    with jax.numpy_dtype_promotion("standard"):
        (check,) = [c for c in verify(contract) if c.name == "range:x"]
    assert check.verdict == "PROVED", check.detail
