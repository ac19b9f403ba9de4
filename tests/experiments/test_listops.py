"""ListOps beside a parser in Python and numpy."""

from functools import partial

import jax
import numpy as np
import pytest

from experiments.listops import CLOSE, FIRST, OPERATORS, by_root, listops

FUNCTIONS = {
    "MIN": min,
    "MAX": max,
    "MED": lambda values: int(np.median(values)),
    "SM": lambda values: sum(values) % 10,
}


def parse(tokens: list[int], at: int, depth: int, seen: dict[int, int]) -> tuple[int, int, int]:
    """The value of what starts at a token, where it ends, how deep it is; `seen` keeps the value at each bracket."""
    if 1 <= tokens[at] <= 10:
        return tokens[at] - 1, at + 1, 0
    operator, values, deepest = OPERATORS[tokens[at] - FIRST], [], 0
    at += 1
    while tokens[at] != CLOSE:
        value, at, deep = parse(tokens, at, depth + 1, seen)
        values.append(value)
        deepest = max(deepest, deep)
    assert len(values) >= 2
    seen[at] = FUNCTIONS[operator](values)
    seen["most"] = max(seen.get("most", 0), len(values))
    return seen[at], at + 1, deepest + 1


@pytest.mark.parametrize(
    ("length", "depth", "arguments", "nested"), [(40, 3, 4, 0.5), (200, 10, 10, 0.25), (4, 1, 2, 0.9)]
)
def test_the_value_is_the_parsers(length: int, depth: int, arguments: int, nested: float) -> None:
    draw = partial(listops, length=length, depth=depth, arguments=arguments, nested=nested)
    keys = jax.random.split(jax.random.key(0), 64)
    drawn, full = jax.jit(lambda keys: (jax.vmap(draw)(keys), jax.vmap(partial(draw, every=True))(keys)))(keys)
    np.testing.assert_array_equal(drawn.tokens, full.tokens)
    depths, lengths, operators = [], [], set()
    for tokens, targets, every in zip(*(np.asarray(x) for x in (*drawn, full.targets)), strict=True):
        start = int(np.argmax(tokens > 0))
        seen: dict = {}
        value, end, deep = parse(tokens.tolist(), start, 0, seen)
        assert end == length
        assert not tokens[:start].any()
        assert targets[-1] == 1 + value
        assert set(targets[:-1].tolist()) == {-1}
        assert seen.pop("most") <= arguments
        assert {t: 1 + v for t, v in seen.items()} == {t: int(x) for t, x in enumerate(every) if x >= 0}
        depths.append(deep)
        lengths.append(length - start)
        operators |= set(tokens[tokens >= FIRST].tolist())
    assert max(depths) == depth if length < 200 else max(depths) >= 4
    assert operators == {*range(FIRST, FIRST + len(OPERATORS)), CLOSE}
    assert len(set(lengths)) > 5 or length == 4


def test_the_root_alone_says_more_than_chance() -> None:
    assert 0.2 < by_root(partial(listops, length=64, depth=4, arguments=5), examples=2048) < 0.5


def test_a_length_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="length"):
        listops(jax.random.key(0), length=3)
