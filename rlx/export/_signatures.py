"""What a signature of a file is made of, checked before anything is traced."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from rlx._checks import is_array


def check_signatures(signatures: Any) -> None:
    """Check that these are `(fn, arguments)` by names that are identifiers, with static shapes.

    Raises:
      TypeError: names what is of another type.
      ValueError: no signature, a name that is no identifier, a shape that is not static.
    """
    if not isinstance(signatures, Mapping):
        raise TypeError(f"signatures: expected {{name: (fn, arguments)}}, got {type(signatures).__name__}")
    if not signatures:
        raise ValueError("signatures: at least one is needed")
    for name, one in signatures.items():
        if not isinstance(name, str):
            raise TypeError(f"signatures: names are strings, got {name!r}")
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ValueError(f"signatures: {name!r} is not an identifier")
        if not isinstance(one, Sequence) or len(one) != 2 or not callable(one[0]):
            raise TypeError(f"signatures: {name!r} is not (fn, arguments), got {type(one).__name__}")
        if not isinstance(one[1], Sequence) or isinstance(one[1], str):
            got = type(one[1]).__name__
            raise TypeError(f"signatures: the arguments of {name!r} are a list of ShapeDtypeStruct, got {got}")
        for i, leaf in enumerate(jax.tree.leaves(tuple(one[1]))):
            if not is_array(leaf):
                raise TypeError(f"signatures: argument {i} of {name!r} is not a ShapeDtypeStruct, got {leaf!r}")
            if not all(isinstance(size, int) and size >= 0 for size in leaf.shape):
                raise ValueError(
                    f"signatures: argument {i} of {name!r} has shape {leaf.shape}; shapes are static, write numbers"
                )
