"""What the arrays on the two sides of a function are called."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax


def argument_paths(fn: Callable[..., Any], arguments: Sequence[Any]) -> list[str]:
    """`cache.keys` for a leaf of an argument called cache, `1.keys` where arguments have no names."""
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # a builtin
        parameters = []
    names = {i: p.name for i, p in enumerate(parameters) if p.kind != inspect.Parameter.VAR_POSITIONAL}
    return [
        ".".join(filter(None, [names.get(path[0].idx, str(path[0].idx)), _dotted(path[1:])]))
        for path, _ in jax.tree_util.tree_leaves_with_path(tuple(arguments))
    ]


def result_paths(results: Any) -> list[str]:
    """`logits` for a leaf of a dict, "" for a result that is one array."""
    return [_dotted(path) for path, _ in jax.tree_util.tree_leaves_with_path(results)]


def _dotted(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator=".")
