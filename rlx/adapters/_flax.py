"""Models of flax: their kernels are `[in, out]`, some with more axes, and their modules multiply by themselves."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from rlx import weights
from rlx._checks import is_array
from rlx._names import some
from rlx._tree import named_leaves, replace_leaves

from ._adapter import Adapter, Delta, Params, Recipe
from ._sites import compiled, is_weight, weights_of


def over_kernels(
    adapter: Adapter, *, inputs: Mapping[str, int] | None = None, stacked: Mapping[str, int] | None = None
) -> Adapter:
    """An adapter for a tree of flax (linen, or nnx as a pure dict), whose `kernel`s are `[in, out]`.

    The adapter sees each kernel as the `[out, in]` matrix that it stands for: axes of inputs first, the rest
    outputs. Everything else stays as it is.

    Args:
      adapter: for the matrices; its `where` is searched in paths such as `Dense_0.kernel`.
      inputs: by regular expression, how many axes of a kernel are inputs; the first that matches counts.
        None: 1, but all but the last for convolutions (four axes and more) and for kernels of three axes
        whose path has a part `out`, as the projection after flax's attention has.
      stacked: by regular expression, how many leading axes are of repeated layers (`nn.scan`); others have none.

    Returns:
      An `Adapter`. `merge` gives a tree for the model's own `apply`, and may be differentiated (it makes each
      adapted kernel anew); `attach` is factored and wants `linen_apply`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from rlx import adapters
      >>> params = {"Dense_0": {"kernel": jnp.ones((3, 5)), "bias": jnp.zeros(5)}}
      >>> adapter = adapters.over_kernels(adapters.lora(rank=2, where="Dense_0"))
      >>> delta = adapter.init(jax.random.key(0), params)
      >>> {name: array.shape for name, array in delta["Dense_0.kernel"].items()}
      {'a': (2, 3), 'b': (5, 2)}
      >>> adapter.merge(params, delta)["Dense_0"]["kernel"].shape
      (3, 5)
    """

    def axes(path: str, ndim: int) -> tuple[int, int]:
        """Leading axes of layers, and axes of inputs after them."""
        first = next((n for pattern, n in (stacked or {}).items() if re.search(pattern, path)), 0)
        own = next((n for pattern, n in (inputs or {}).items() if re.search(pattern, path)), None)
        rest = ndim - first
        if own is None:
            out = rest == 3 and "out" in path.split(".")
            own = rest - 1 if rest >= 4 or out else 1
        if not 1 <= own < rest:
            raise ValueError(f"inputs: {path} has {rest} axes, {own} of them cannot be inputs")
        return first, own

    def is_kernel(path: str, leaf: Any) -> bool:
        return path.split(".")[-1] == "kernel" and not is_weight(leaf) and len(leaf.shape) >= 2

    for name, patterns in (("inputs", inputs), ("stacked", stacked)):
        for pattern in patterns or {}:
            compiled(name, pattern)

    def view(params: Params) -> Params:
        found = {}
        for path, leaf in weights_of(params).items():
            if is_kernel(path, leaf):
                first, own = axes(path, leaf.ndim)
                found[path] = weights.Kernel(kernel=leaf, inputs=own, outputs=leaf.ndim - first - own)
        return replace_leaves(params, found, is_weight)

    def init(key: jax.Array, params: Params) -> Delta:
        return adapter.init(key, view(params))

    def attach(params: Params, delta: Delta, *, key: jax.Array | None = None) -> Params:
        attached = named_leaves(adapter.attach(view(params), delta, key=key), is_weight)
        return replace_leaves(params, {path: attached[path] for path in delta}, is_weight)

    def merge(params: Params, delta: Delta) -> Params:
        leaves = weights_of(params)
        twice = [path for path in delta if is_weight(leaves.get(path))]
        if twice:
            raise ValueError(f"params: {some(twice)} adapted already; detach first")
        merged = named_leaves(adapter.merge(view(params), delta), is_weight)
        found = {}
        for path, leaf in leaves.items():
            if path in delta and is_kernel(path, leaf):
                found[path] = jnp.swapaxes(merged[path], -1, -2).reshape(leaf.shape)
            elif merged[path] is not leaf and not is_kernel(path, leaf):
                found[path] = merged[path]
        return replace_leaves(params, found, is_weight)

    return Adapter(init, attach, merge, Recipe("kernels", parts=(adapter,)))


def linen_apply(module: Any) -> Callable[..., Any]:
    """`module.apply` for parameters in which `over_kernels(...).attach`, or `rlx.quantize`, has put other weights.

    Dense layers multiply through `rlx.weights`, factored; an adapted weight in a layer of another kind is an
    error (use `merge` for those).

    Args:
      module: a `flax.linen.Module`.

    Returns:
      `apply(variables, *args, **kwargs)`.

    Raises:
      TypeError: from the call, an adapted weight in a layer that is not `nn.Dense`.

    Example:
      >>> import flax.linen as nn, jax, jax.numpy as jnp
      >>> from rlx import adapters
      >>> module = nn.Sequential([nn.Dense(8), nn.relu, nn.Dense(2)])
      >>> params = module.init(jax.random.key(0), jnp.ones((1, 4)))["params"]
      >>> adapter = adapters.over_kernels(adapters.lora(rank=2, where="layers_2"))
      >>> attached = adapter.attach(params, adapter.init(jax.random.key(1), params))
      >>> adapters.linen_apply(module)({"params": attached}, jnp.ones((3, 4))).shape
      (3, 2)
    """
    from flax import linen as nn

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        layer = context.module
        own = layer.variables.get("params", {})
        if context.method_name != "__call__" or not any(is_weight(leaf) for leaf in own.values()):
            return call(*args, **kwargs)
        at = ".".join(layer.path)
        if not isinstance(layer, nn.Dense):
            raise TypeError(f"module: {type(layer).__name__} at {at} is adapted; use merge for it")
        kernel = base = own["kernel"]
        while isinstance(base, weights.Adapted):
            base = base.base
        if is_array(base):
            raise TypeError(f"module: {at}.kernel is [in, out] and was adapted as [out, in]; use over_kernels(adapter)")
        bias = layer.get_variable("params", "bias") if layer.use_bias else None
        return weights.linear(args[0], kernel, bias)

    def apply(variables: Any, *args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(intercept):
            return module.apply(variables, *args, **kwargs)

    return apply
