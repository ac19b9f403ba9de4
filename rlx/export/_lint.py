"""What of a function TensorFlow Lite cannot compute or computes differently, before anything is converted."""

import functools
import inspect
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal

from rlx.weights._lowbit import exporting

from ._lint_rules import Kind, Verdict, judge
from ._signatures import check_signatures
from ._tflite_weights import Recorder

_INFINITY = Verdict(
    "differs",
    "an infinite constant becomes the greatest finite number (3.4e38)",
    "use jnp.finfo(jnp.float32).min or .max in masks, or keep infinity out of what is exported",
)
# What passes its operand on, and what gives the same with the greatest finite number in infinity's place.
_PASSES = (
    "broadcast_in_dim",
    "convert_element_type",
    "reshape",
    "squeeze",
    "expand_dims",
    "transpose",
    "copy",
    "slice",
)
_HARMLESS = (
    *("max", "min", "clamp", "reduce_max", "reduce_min", "cummax", "cummin", "reduce_window_max", "reduce_window_min"),
    *("gt", "lt", "ge", "le", "exp", "stop_gradient"),
)
# jnp's own, which mend the sign of a remainder afterwards, or become an operation of their own.
_MENDED = ("remainder", "floor_divide", "divmod", "mod")
_LIBRARIES = tuple(str(Path(module.__file__).parent) + os.sep for module in (jax, np) if module.__file__)
_OWN = str(Path(__file__).parents[1]) + os.sep


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One operation that does not come through as it is.

    Attributes:
      signature: of which function.
      operation: its name in JAX: "sort"; "infinity" for a constant.
      kind: "no builtin", where the conversion or the interpreter fails, or "differs", where the file computes
        something else.
      what: what happens.
      instead: what to do.
      place: file and line of the model, the innermost that is neither jax's nor rlx's; "" if there is none.
    """

    signature: str
    operation: str
    kind: Kind
    what: str
    instead: str
    place: str

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        return f"{where}{self.operation} in {self.signature!r}: {self.what}; {self.instead}"


def lint(signatures: Mapping[str, tuple[Callable[..., Any], Sequence[Any]]]) -> list[Finding]:
    """Look for operations that TensorFlow Lite has no builtin for, or computes differently.

    The functions are traced, not converted: this takes no TensorFlow. Operations inside jit, scan,
    while, cond and custom derivatives are seen. What is not in the table is taken to be fine;
    `docs/export.md` has the table, and what depends on the values of the arguments (NaN, an index
    outside) and so cannot be seen here.

    Args:
      signatures: as for `to_tflite`.

    Returns:
      A finding for each kind of operation at each line, in the order of the functions.

    Raises:
      NotImplementedError, TypeError: a quantised weight that cannot be exported, or signatures of another form, as
        `to_tflite` says it.
      ValueError: no signature, or one that is none, as `to_tflite` says it.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import export
      >>> (found,) = export.lint({"best": (lambda x: jax.lax.top_k(x, 2), [jax.ShapeDtypeStruct((8,), jnp.float32)])})
      >>> found.operation, found.kind, found.instead
      ('top_k', 'no builtin', 'take argmax again and again, or do it on the host')
    """
    check_signatures(signatures)
    found: dict[Finding, None] = {}
    for name, (fn, arguments) in signatures.items():
        with exporting(Recorder()):
            closed = jax.make_jaxpr(fn)(*arguments)
        for operation, verdict, place in _Walk().closed(closed, [], _definition(fn)):
            found.setdefault(
                Finding(
                    signature=name,
                    operation=operation,
                    kind=verdict.kind,
                    what=verdict.what,
                    instead=verdict.instead,
                    place=place,
                )
            )
    return list(found)


def check(findings: Sequence[Finding], allow: Sequence[str]) -> None:
    """Raise one error for all findings, but those that differ and are allowed.

    Raises:
      ValueError: lists them, or names what is allowed and is nothing that differs.
    """
    known = {one.operation for one in findings if one.kind == "differs"}
    for name in allow:
        if name not in known:
            said = ", ".join(map(repr, sorted(known))) or "nothing"
            raise ValueError(f"allow: {name!r} is not among what differs: {said}")
    missing = [one for one in findings if one.kind == "no builtin"]
    differ = [one for one in findings if one.kind == "differs" and one.operation not in allow]
    lines = []
    if missing:
        names = ", ".join(dict.fromkeys(one.operation for one in missing))
        lines += [f"no TensorFlow Lite builtin for {names}", *(f"  {one}" for one in missing)]
    if differ:
        names = tuple(dict.fromkeys(one.operation for one in differ))
        lines += [f"TensorFlow Lite computes something else (to have it so: allow={names})"]
        lines += [f"  {one}" for one in differ]
    if lines:
        raise ValueError("signatures: " + "\n".join(lines))


Found = tuple[str, Verdict, str]


class _Walk:
    """Equations in order; which variables are constants, and which are infinite ones."""

    def __init__(self) -> None:
        self.fixed: set[Any] = set()
        self.infinite: set[Any] = set()

    def closed(self, closed: ClosedJaxpr, given: Sequence[Any], outer: str) -> Iterator[Found]:
        for variable, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
            self._constant(variable, value)
        yield from self.jaxpr(closed.jaxpr, given, outer)

    def jaxpr(self, jaxpr: Jaxpr, given: Sequence[Any], outer: str) -> Iterator[Found]:
        """`given` are the operands that the arguments stand for, if that is known; `outer` is the line of the call."""
        if len(given) == len(jaxpr.invars):
            for inside, outside in zip(jaxpr.invars, given, strict=True):
                self._same(inside, outside)
        for equation in jaxpr.eqns:
            yield from self._equation(equation, outer)

    def _equation(self, equation: Any, outer: str) -> Iterator[Found]:
        name, place = equation.primitive.name, _place(equation, outer)
        inner = list(_inside(equation.params.values()))
        verdict = judge(equation, self._fixed)
        if verdict is not None:
            yield name, verdict, place
        infinite = any(self._infinite(operand) for operand in equation.invars)
        if name in _PASSES:
            for out in equation.outvars:
                self._same(out, equation.invars[0])
        elif infinite and not inner and name not in _HARMLESS:
            yield "infinity", _INFINITY, place
        for one in inner:
            jaxpr = one.jaxpr if isinstance(one, ClosedJaxpr) else one
            surplus = len(equation.invars) - len(jaxpr.invars)
            given = equation.invars[1:] if name == "cond" else equation.invars if surplus == 0 else []
            walked = (self.closed if isinstance(one, ClosedJaxpr) else self.jaxpr)(one, given, place)
            mended = name in ("jit", "pjit") and equation.params.get("name") in _MENDED
            yield from (found for found in walked if not (mended and found[0] in ("rem", "round")))
            if name in ("jit", "pjit"):
                for out, result in zip(equation.outvars, jaxpr.outvars, strict=True):
                    self._same(out, result)

    def _constant(self, variable: Any, value: Any) -> None:
        self.fixed.add(variable)
        array = np.asarray(value) if np.issubdtype(getattr(value, "dtype", np.int32), np.floating) else None
        if array is not None and np.isinf(array).any():
            self.infinite.add(variable)

    def _same(self, new: Any, old: Any) -> None:
        if self._fixed(old):
            self.fixed.add(new)
        if self._infinite(old):
            self.infinite.add(new)

    def _fixed(self, operand: Any) -> bool:
        return isinstance(operand, Literal) or operand in self.fixed

    def _infinite(self, operand: Any) -> bool:
        if isinstance(operand, Literal):
            dtype = getattr(operand.aval, "dtype", np.int32)
            return bool(np.issubdtype(dtype, np.floating) and np.isinf(operand.val))
        return operand in self.infinite


def _inside(values: Any) -> Iterator[Any]:
    """The jaxprs among the parameters of an equation, those in tuples too."""
    for value in values:
        if isinstance(value, (Jaxpr, ClosedJaxpr)):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _inside(value)


def _place(equation: Any, outer: str) -> str:
    """The innermost line that is the user's, of the operation or of the call around it; else rlx's own."""
    traceback = equation.source_info.traceback
    frames = [] if traceback is None else [(frame.file_name, frame.line_num) for frame in traceback.frames]
    outside = [frame for frame in frames if not frame[0].startswith(_LIBRARIES)]
    own = [frame for frame in outside if not frame[0].startswith(_OWN)]
    return f"{own[0][0]}:{own[0][1]}" if own else outer or (f"{outside[0][0]}:{outside[0][1]}" if outside else "")


def _definition(fn: Any) -> str:
    """Where a function begins, if it is the user's."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    code = getattr(inspect.unwrap(fn), "__code__", None)
    library = code is None or code.co_filename.startswith((*_LIBRARIES, _OWN))
    return "" if library else f"{code.co_filename}:{code.co_firstlineno}"
