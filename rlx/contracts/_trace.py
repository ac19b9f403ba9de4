"""Tracing a term: the arrays that it reads, and its jaxpr."""

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from rlx._tree import named_leaves

from ._contract import Contract
from ._terms import Signal, Term

Spec = dict[str, jax.ShapeDtypeStruct]

_SIZES = {"B": 4, "T": 32}
_USUAL = {
    "tokens": Signal("BT", "int32"),
    "mask": Signal("BT", "bool"),
    "logp": Signal("BT", "float32"),
    "old_logp": Signal("BT", "float32"),
    "ref_logp": Signal("BT", "float32"),
}
_GUESSES = tuple(Signal(dims, dtype) for dtype in ("float32", "int32", "bool") for dims in ("B", "BT", "BTD"))
_MOST = 4096
# what a function raises when it is traced with a shape or dtype that it is not for
_MISFIT = (TypeError, ValueError, IndexError, AttributeError, NotImplementedError)


class Untraceable(ValueError):
    """A term cannot be traced; `guessed` says whether that is with signals that nobody declared."""

    def __init__(self, message: str, *, guessed: bool) -> None:
        super().__init__(message)
        self.guessed = guessed


class _Unread(KeyError):
    """A term read a signal that has no spec yet."""


class _Reader(dict):
    def __missing__(self, name: str) -> Any:
        raise _Unread(name)


# a term may hand its batch on to a function under jit or checkpoint
jax.tree_util.register_pytree_node(
    _Reader,
    lambda reader: ([reader[name] for name in sorted(reader)], tuple(sorted(reader))),
    lambda names, values: _Reader(zip(names, values, strict=True)),
)


def signal_spec(signal: Signal) -> jax.ShapeDtypeStruct:
    """A shape and dtype for a declared signal: B=4, T=32, other letters 8, numbers as they are."""
    shape = tuple(dim if isinstance(dim, int) else _SIZES.get(dim, 8) for dim in signal.dims)
    return jax.ShapeDtypeStruct(shape, np.dtype(signal.dtype))


def declared_spec(contract: Contract) -> Spec:
    """Specs of the contract's declared signals."""
    return {name: signal_spec(signal) for name, signal in contract.signals.items()}


@contextlib.contextmanager
def fixed_settings() -> Iterator[None]:
    """The same jaxpr whatever the process has set: 32 bits, standard promotion, default precision."""
    with (
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
        jax.default_matmul_precision("default"),
    ):
        yield


def term_spec(term: Term, known: Mapping[str, jax.ShapeDtypeStruct]) -> Spec:
    """The known specs, completed by guesses for signals that the term reads and nobody declared.

    A guess is the first combination, in a fixed order (usual names first, then float32, int32, bool of [B], [B, T],
    [B, T, D]), with which the term has the shape that its level says.

    Raises:
      Untraceable: no guess fits; says which signals to declare.
    """
    unread: list[str] = []
    rank = 1 if term.level == "sequence" else 2
    sizes = {tuple(_SIZES[letter] for letter in "BT"[:rank])}
    while True:
        options = [([_USUAL[name]] if name in _USUAL else []) + list(_GUESSES) for name in unread]
        found, first = None, None
        for choice in itertools.islice(itertools.product(*options), _MOST):
            spec = dict(known) | {name: signal_spec(signal) for name, signal in zip(unread, choice, strict=True)}
            try:
                out = jax.eval_shape(lambda batch: term(_Reader(batch)), spec)
            except _Unread as error:
                found = error.args[0]
                break
            except _MISFIT as error:
                first = first or error
                continue
            shape = getattr(out, "shape", None)
            if shape is not None and (shape in sizes if unread else len(shape) == rank):
                return spec
            first = first or ValueError(
                f"fn returned {'shape ' + str(shape) if shape is not None else type(out).__name__}"
            )
        if found is None:
            wanted = ", ".join(f"{name!r}: Signal(...)" for name in unread)
            hint = f"; declare signals={{{wanted}}}" if unread else ""
            message = f"term {term.name!r} cannot be traced{hint}: {type(first).__name__}: {first}"
            raise Untraceable(message, guessed=bool(unread)) from first
        unread.append(found)


def trace(term: Term, spec: Mapping[str, jax.ShapeDtypeStruct]) -> tuple[Any, list[str]]:
    """The closed jaxpr of a term, and the names of its inputs: specs in sorted order, then learned parameters."""
    batch = dict(spec)
    if term.params is None:
        return jax.make_jaxpr(lambda batch: term(batch))(batch), sorted(spec)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), np.asarray(leaf).dtype), term.params)
    names = [f"params.{name}" for name in named_leaves(shapes)]
    return jax.make_jaxpr(lambda batch, params: term(batch, params))(batch, shapes), [*sorted(spec), *names]
