"""A chain by a schedule is the plain chain, and what is run again is held back until its cotangent is there."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import memory
from rlx.memory import Block, Keep, Recompute, Reverse
from rlx.memory._lower import Lowering

B, D = 4, 8
WIDE = 512


def layer(p: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Dropout from a key among the parameters, and a counter beside the activation."""
    x = jnp.tanh(state["x"] @ p["w"])
    x = jnp.where(jax.random.bernoulli(p["key"], 0.8, x.shape), x, jnp.zeros_like(x))
    return {"x": state["x"] + x @ p["v"], "depth": state["depth"] + 1}


def coupling(p: jax.Array, state: dict[str, Any]) -> dict[str, Any]:
    a, b = jnp.split(state["x"], 2, -1)
    a = a + jnp.tanh(b @ p)
    return {"x": jnp.concatenate([a, b + jnp.sin(a @ p)], -1), "depth": state["depth"] + 1}


def uncoupling(p: jax.Array, state: dict[str, Any]) -> dict[str, Any]:
    a, b = jnp.split(state["x"], 2, -1)
    b = b - jnp.sin(a @ p)
    return {"x": jnp.concatenate([a - jnp.tanh(b @ p), b], -1), "depth": state["depth"] - 1}


def weights(seed: int, *stack: int) -> dict[str, Any]:
    k = jax.random.split(jax.random.key(seed), 3)
    keys = jax.random.split(k[2], stack) if stack else k[2]
    return {name: 0.2 * jax.random.normal(k[i], (*stack, D, D)) for i, name in enumerate("wv")} | {"key": keys}


def halves(seed: int, *stack: int) -> jax.Array:
    return 0.3 * jax.random.normal(jax.random.key(seed), (*stack, D // 2, D // 2))


BLOCKS = [
    Block(fn=layer, params=weights(0)),
    Block(fn=coupling, params=halves(1), inverse=uncoupling),
    Block(fn=coupling, params=halves(2, 3), inverse=uncoupling, repeat=3),
    Block(fn=layer, params=weights(3, 5), repeat=5),
]
SIZE = 10


def plain(params: list[Any], x: Any) -> Any:
    x = coupling(params[1], layer(params[0], x))
    for i in range(3):
        x = coupling(params[2][i], x)
    for i in range(5):
        x = layer(jax.tree.map(lambda leaf, i=i: leaf[i], params[3]), x)
    return x


SCHEDULES = {
    "kept": [
        *(Keep(0, "dots"), Keep(1, offload=True), Recompute(2, 5, (Keep(2), Keep(3), Keep(4)), True)),
        *(Keep(i, "dots") for i in range(5, 8)),
        *(Keep(i, "keep", True) for i in range(8, SIZE)),
    ],
    "nested": [
        Recompute(0, 4, (Keep(0, "dots"), Recompute(1, 3, (Keep(1), Keep(2))), Keep(3))),
        Keep(4),
        Recompute(5, 7, (Recompute(5, 6, (Keep(5),)), Keep(6))),
        Recompute(7, 9, (Recompute(7, 8, (Keep(7),)), Keep(8))),
        Keep(9),
    ],
    "undone": [Recompute(0, 4, (Keep(0), Reverse(1, 4))), Reverse(4, 5), *(Keep(i) for i in range(5, SIZE))],
}


def split(params: list[Any]) -> tuple[list[Any], list[Any]]:
    """What is trained, and the keys."""
    trained = [{n: v for n, v in p.items() if n != "key"} if isinstance(p, dict) else p for p in params]
    return trained, [{"key": p["key"]} if isinstance(p, dict) else {} for p in params]


def value(run: Any) -> Any:
    def of(trained: list[Any], x: jax.Array, keys: list[Any]) -> jax.Array:
        params = [{**t, **k} if isinstance(t, dict) else t for t, k in zip(trained, keys, strict=True)]
        return jnp.sum(jnp.sin(run(params, {"x": x, "depth": jnp.zeros((), jnp.int32)})["x"]))

    return of


@pytest.mark.parametrize("name", SCHEDULES)
def test_values_and_gradients_are_those_of_the_plain_chain(name: str, key: jax.Array) -> None:
    """Trees with integers, keys among the parameters, stacks and single blocks; under jit and vmap."""
    run = Lowering(BLOCKS, memory.POLICIES).chain(SCHEDULES[name])
    trained, keys = split([block.params for block in BLOCKS])
    x = jax.random.normal(key, (2, B, D))

    def step(run: Any) -> Any:
        return jax.jit(jax.vmap(jax.value_and_grad(value(run), argnums=(0, 1)), in_axes=(None, 0, None)))

    expected = step(plain)(trained, x, keys)
    for a, b in zip(jax.tree.leaves(step(run)(trained, x, keys)), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)


def test_what_is_not_differentiated_has_no_gradient_computed() -> None:
    """Frozen weights of a block that is run again: two of the four products of the backward pass are gone."""
    block = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]  # noqa: E731
    run = Lowering([Block(fn=block, params=None)], memory.POLICIES).chain([Recompute(0, 1, (Keep(0),))])
    p = {"a": jax.ShapeDtypeStruct((D, D), jnp.float32), "b": jax.ShapeDtypeStruct((D, D), jnp.float32)}
    x = jax.ShapeDtypeStruct((B, D), jnp.float32)
    loss = lambda b, a, x: jnp.sum(run([{"a": a, "b": b}], x))  # noqa: E731
    one, both = (memory.flops(jax.grad(loss, argnums=n), p["b"], p["a"], x) for n in (0, (0, 1, 2)))
    assert both - one >= 3 * 2 * B * D * D


def mlp(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x + jax.nn.gelu(x @ p["u"]) @ p["d"]


def narrow(p: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    return x + jnp.tanh(x @ p["u"][:, :D]) @ p["d"][:D]


def shape(*dims: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(dims, jnp.float32)


MLP = {"u": shape(D, 4 * D), "d": shape(4 * D, D)}
STREAM = WIDE * D * 4


def temporary(run: Any, params: Any) -> float:
    """Temporary bytes of the gradient, in streams."""
    step = jax.jit(jax.grad(lambda p, x: jnp.sum(run(p, x) ** 2)))
    return step.lower(params, shape(WIDE, D)).compile().memory_analysis().temp_size_in_bytes / STREAM


def test_unrolled_blocks_are_run_again_late() -> None:
    """Twelve single blocks hold their inputs; with jax.checkpoint, XLA:CPU of jax 0.10 holds all that it saved."""
    depth = 12
    lowering = Lowering([Block(fn=mlp, params=MLP)] * depth, memory.POLICIES)

    def checkpointed(params: Any, x: Any) -> Any:
        for p in params:
            x = jax.checkpoint(mlp)(p, x)
        return x

    each = lowering.chain([Recompute(i, i + 1, (Keep(i),)) for i in range(depth)])
    plain = lowering.chain([Keep(i) for i in range(depth)])
    runs = {"each": each, "checkpoint": checkpointed, "plain": plain}
    held = {name: temporary(run, [MLP] * depth) for name, run in runs.items()}
    # an activation a block and one block's residuals and workspace; 11 streams a block
    assert held["each"] < depth + 20
    assert held["each"] < held["checkpoint"] + 4
    assert held["plain"] > 10 * depth


def test_a_stack_holds_what_a_scan_with_checkpoint_holds() -> None:
    depth = 12
    params = {"u": shape(depth, D, 4 * D), "d": shape(depth, 4 * D, D)}
    lowering = Lowering([Block(fn=mlp, params=params, repeat=depth)], memory.POLICIES)

    def scanned(p: Any, x: Any) -> Any:
        return jax.lax.scan(jax.checkpoint(lambda x, p: (mlp(p, x), None)), x, p)[0]

    each = lowering.chain([Recompute(i, i + 1, (Keep(i),)) for i in range(depth)])
    assert temporary(lambda p, x: each([p], x), params) <= temporary(scanned, params) + 1


def test_a_plan_is_carried_out_within_its_budget_by_the_compilers_count() -> None:
    blocks = [(mlp, MLP), (narrow, MLP)] * 4
    costs = memory.profile(blocks, shape(WIDE, D))
    assert costs.blocks[0].choices[0].saved_bytes == pytest.approx(12 * STREAM, rel=0.15)
    assert [block.output_bytes for block in costs.blocks] == [STREAM] * 8
    wide = memory.plan(costs, 10**9)
    assert wide.work == wide.least_work
    budget = int(0.45 * wide.peak_bytes)
    found = memory.plan(costs, budget)
    run = memory.apply(found, blocks)
    proof = run.certificate
    assert proof.compiled_bytes <= budget
    assert proof.compiled_bytes == proof.attempts[-1].compiled_bytes
    assert proof.planned_bytes <= budget
    assert proof.bound <= proof.work
    assert proof.plan.extra_work > 0
    key = jax.random.key(0)
    params = [jax.tree.map(lambda leaf: 0.1 * jax.random.normal(key, leaf.shape), p) for _, p in blocks]
    x = jax.random.normal(key, (WIDE, D))

    def loss(chain: Any) -> Any:
        return jax.jit(jax.grad(lambda p: jnp.sum(chain(p, x) ** 2)))

    def unplanned(p: Any, x: Any) -> Any:
        for (fn, _), own in zip(blocks, p, strict=True):
            x = fn(own, x)
        return x

    for a, b in zip(jax.tree.leaves(loss(run)(params)), jax.tree.leaves(loss(unplanned)(params)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-4)
    with pytest.raises(ValueError, match="params: 1 entries for 8 blocks"):
        run(params[:1], x)


def test_a_model_that_is_too_low_is_corrected_and_what_cannot_be_is_refused() -> None:
    """Prices made by hand that say nothing of residuals: the compiler's count decides."""
    keep = memory.Choice(name="keep", saved_bytes=STREAM, backward=2.0)
    block = memory.BlockCost(input_bytes=STREAM, output_bytes=STREAM, forward=1.0, choices=(keep,))
    costs = memory.Costs(blocks=(block,) * 8)
    blocks = [(mlp, MLP)] * 8
    found = memory.plan(costs, 60 * STREAM)
    assert found.work == found.least_work
    with pytest.raises(ValueError, match="x: these prices were made by hand"):
        memory.apply(found, blocks)
    proof = memory.apply(found, blocks, shape(WIDE, D)).certificate
    assert proof.attempts[0].compiled_bytes > proof.budget_bytes >= proof.compiled_bytes
    assert 2 <= len(proof.attempts) <= 4
    with pytest.raises(ValueError, match=r"plan: no schedule compiled to its 196,608 bytes; the least of \d was"):
        memory.apply(memory.plan(costs, 12 * STREAM), blocks, shape(WIDE, D))
    with pytest.raises(ValueError, match="blocks: 7 blocks, the plan is for 8"):
        memory.apply(found, blocks[1:])
    with pytest.raises(ValueError, match="policies: the plan keeps by 'keep'"):
        memory.apply(found, blocks, shape(WIDE, D), policies={"dots": memory.POLICIES["dots"]})


def test_room_to_spare_is_used_when_asked_for() -> None:
    """Prices made by hand that say twice what there is of residuals."""
    keep = memory.Choice(name="keep", saved_bytes=24 * STREAM, backward=2.0)
    block = memory.BlockCost(input_bytes=STREAM, output_bytes=STREAM, forward=1.0, choices=(keep,))
    found = memory.plan(memory.Costs(blocks=(block,) * 6), 80 * STREAM)
    once, tight = (
        memory.apply(found, [(mlp, MLP)] * 6, shape(WIDE, D), tighten=tighten).certificate for tighten in (False, True)
    )
    assert len(once.attempts) == 1
    assert tight.work < once.work
    assert tight.bound <= tight.work
    assert tight.compiled_bytes <= tight.budget_bytes == found.budget_bytes


def test_one_block_is_priced_by_its_function_and_arguments() -> None:
    w = shape(D, D)
    costs = memory.profile(lambda w, v, x: jnp.tanh(x @ w) @ v, w, w, shape(B, D), policies={"keep": None})
    (block,) = costs.blocks
    assert (block.input_bytes, block.output_bytes) == (B * D * 4, B * D * 4)
    assert block.forward == 2 * (2 * B * D * D) + B * D
    # of each product two in the backward pass, and what tanh adds
    assert block.choices[0].backward == pytest.approx(2 * block.forward, rel=0.1)
    assert costs.unit == "flops"


def test_a_block_that_can_be_undone_is_priced_that_way() -> None:
    state = {"x": shape(B, D), "depth": jax.ShapeDtypeStruct((), jnp.int32)}
    costs = memory.profile(coupling, shape(D // 2, D // 2), state, policies={"keep": None}, inverse=uncoupling)
    price = costs.blocks[0].reverse
    assert price is not None
    assert costs.blocks[0].choices[0].backward < price.backward < 2.5 * costs.blocks[0].choices[0].backward


class Unhashable:
    __hash__ = None

    def __call__(self, params: Any, x: Any) -> Any:
        return x


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: memory.profile(3, shape(2)), TypeError, "fn: expected a function or a list of blocks, got int"),
        (lambda: memory.profile(mlp), TypeError, "args: the chain's input is missing"),
        (lambda: memory.profile([(mlp, MLP)], MLP, shape(2)), TypeError, "args: a list of blocks takes its input"),
        (lambda: memory.profile([mlp], shape(2)), TypeError, r"blocks: expected Block or \(fn, params\) at 0"),
        (lambda: memory.profile([], shape(2)), ValueError, "blocks: a chain has at least one"),
        (lambda: memory.profile(mlp, MLP, 3.0), TypeError, "args: expected arrays or shapes for the input, got float"),
        (lambda: memory.profile(mlp, MLP, shape(2), policies={}), ValueError, "policies: at least one"),
        (lambda: Block(fn=mlp, params=MLP, repeat=3), ValueError, "expected 3 layers on axis 0"),
        (lambda: Block(fn=mlp, params=MLP, repeat=0), ValueError, "repeat: 0 is outside"),
        (lambda: Block(fn=mlp, params=None, repeat=3), ValueError, "params: a stack of 3 layers has no array"),
        (lambda: Block(fn=mlp, params={"w": 2.0}), TypeError, "params: w is float; expected arrays or shapes"),
        (lambda: Block(fn=Unhashable(), params=MLP), TypeError, "fn: Unhashable cannot be hashed"),
        (lambda: memory.profile(mlp, 2.0, shape(2)), TypeError, "params: .* is float"),
    ],
)
def test_arguments_that_are_wrong_are_named(call: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.slow
def test_reversible_blocks_are_flat_in_depth_when_compiled() -> None:
    """Single blocks and stacks: twice the depth, the same temporary bytes."""

    def held(depth: int, stack: bool) -> float:
        params = shape(depth, D // 2, D // 2) if stack else shape(D // 2, D // 2)
        one = Block(fn=coupling, params=params, inverse=uncoupling, repeat=depth if stack else None)
        run = Lowering([one] * (1 if stack else depth), memory.POLICIES).chain([Reverse(0, depth)])
        start = {"depth": jnp.zeros((), jnp.int32)}
        return temporary(
            lambda p, x: run([p] if stack else p, start | {"x": x})["x"], params if stack else [params] * depth
        )

    assert abs(held(16, False) - held(8, False)) < 0.5
    assert abs(held(64, True) - held(32, True)) < 0.5


@pytest.mark.slow
def test_seconds_are_measured() -> None:
    block = Block(fn=mlp, params=jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), MLP))
    costs = memory.profile([block], jnp.ones((WIDE, D)), unit="seconds", policies={"keep": None})
    assert costs.unit == "seconds"
    assert 0 < costs.blocks[0].forward < 1


def test_the_backward_pass_of_blocks_without_parameters_is_counted() -> None:
    """What comes before the chain asks for the gradient of its input, so the certificate has it in it."""
    blocks = [(lambda p, x: jnp.tanh(x) * jnp.sin(x), None)] * 4 + [(lambda p, x: x @ p, jnp.ones((16, 16)))]
    x = jnp.ones((256, 16))
    costs = memory.profile(blocks, x)
    run = memory.apply(memory.plan(costs, 2**24), blocks)

    def value(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(run(params, x))

    step = jax.jit(jax.value_and_grad(value, argnums=(0, 1))).lower([p for _, p in blocks], x).compile()
    assert step.memory_analysis().temp_size_in_bytes <= 1.02 * run.certificate.compiled_bytes


def test_what_a_stack_captures_is_held_once() -> None:
    table = jnp.ones((64, 64))

    def fn(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.sin(table @ (x @ w))

    def temporary(layers: int) -> int:
        block = Block(fn=fn, params=jnp.ones((layers, 64, 64)), repeat=layers)
        costs = memory.profile([block], jnp.ones((64, 64)))
        run = memory.apply(memory.plan(costs, 2**30), [block])
        return run.certificate.compiled_bytes

    a_layer = (temporary(24) - temporary(8)) / 16
    assert a_layer <= 2.1 * 64 * 64 * 4  # the input and the cosine, and not the table again
