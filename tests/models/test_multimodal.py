"""The network of images and text: its equations, its cache, and low-bit weights in every place."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx import export, quantize
from rlx.models import multimodal

CONFIG = multimodal.Config(
    vocab_size=11,
    classes=5,
    images=(
        ("word", multimodal.Image(height=8, width=16, merge=(2, 1))),
        ("scene", multimodal.Image(height=8, width=8, merge=(1, 2))),
    ),
    stem_size=6,
    stem_layers=2,
    hidden_size=8,
    num_attention_heads=2,
    intermediate_size=12,
    vision_layers=2,
    text_layers=1,
    decoder_layers=2,
    max_length=7,
    embedding_size=4,
)
RULE = {"patch_embed|embed|reader|lm_head|_projection": 8, "_proj|merge": 2}


# One layer of each sort, for tests that compile much.
SMALL = replace(CONFIG, stem_layers=1, vision_layers=1, decoder_layers=1)


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(multimodal.init, static_argnums=1)(jax.random.key(0), CONFIG)


@pytest.fixture(scope="module")
def seen(params: Any) -> Any:
    @jax.jit
    def look(params: Any, pixels: jax.Array) -> Any:
        return multimodal.memory(params, CONFIG, multimodal.encode(params, CONFIG, pixels, kind="scene"))

    return look(params, _pixels(2, 8, 8))


def _pixels(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)


def _ids(count: int, length: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, CONFIG.vocab_size, (count, length)).astype(np.int32)


def _norm(x: np.ndarray, weight: Any) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, -1, keepdims=True) + 1e-6) * np.asarray(weight, np.float64)


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """One example, `[T, D]` over `[S, D]`, head by head."""
    parts = []
    for h, (a, b, c) in enumerate(zip(*(np.split(x, CONFIG.num_attention_heads, -1) for x in (q, k, v)), strict=True)):
        scores = a @ b.T / np.sqrt(a.shape[-1]) + (0 if bias is None else bias[h])
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        parts.append(shares / shares.sum(-1, keepdims=True) @ c)
    return np.concatenate(parts, -1)


def test_the_tokens_of_an_image_are_the_equations(params: Any) -> None:
    pixels = _pixels(1, 8, 16)
    actual = jax.jit(lambda p, x: multimodal.encode(p, CONFIG, x, kind="word"))(params, pixels)

    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["vision"]
    x = pixels[0] / 255
    x = x - x.mean((0, 1))
    x = x / np.sqrt((x * x).mean() + 1e-3)
    far = np.sqrt((x * x).sum(-1, keepdims=True) + 1e-6)
    x = np.concatenate([x, far - far.mean()], -1)
    grid = np.zeros((2, 4, CONFIG.stem_size))
    for i in range(2):
        for j in range(4):
            patch = x[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].reshape(-1)
            grid[i, j] = p["patch_embed"]["weight"] @ patch + p["patch_embed"]["bias"]
    for layer in range(2):
        s = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p["stem"]["layers"])
        around = np.zeros_like(grid)
        for i in range(2):
            for j in range(4):
                for a in range(3):
                    for b in range(3):
                        if 0 <= i + a - 1 < 2 and 0 <= j + b - 1 < 4:
                            around[i, j] += s["neighbours"][a, b] * grid[i + a - 1, j + b - 1]
        inner = _gelu(_norm(around, s["norm"]["weight"]) @ s["up_proj"]["weight"].T)
        grid = grid + inner @ s["down_proj"]["weight"].T
    rows = np.stack([np.concatenate([grid[0, j], grid[1, j]]) for j in range(4)])
    x = rows @ p["merge"]["word"]["weight"].T + p["position"]["word"]
    distance = np.abs(np.arange(4)[:, None] - np.arange(4)[None])
    for layer in range(2):
        s = jax.tree.map(lambda leaf, layer=layer: leaf[layer], p["layers"])
        q, k, v = np.split(_norm(x, s["attention_norm"]["weight"]) @ s["qkv_proj"]["weight"].T, 3, -1)
        bias = -s["nearness"][:, None, None] * distance
        x = x + _attend(q, k, v, bias) @ s["o_proj"]["weight"].T
        x = x + _gelu(_norm(x, s["mlp_norm"]["weight"]) @ s["up_proj"]["weight"].T) @ s["down_proj"]["weight"].T
    np.testing.assert_allclose(actual[0], _norm(x, p["norm"]["weight"]), rtol=2e-4, atol=2e-5)


def test_logits_of_text_are_the_equations(params: Any, seen: Any) -> None:
    ids = _ids(2, 5)
    actual = jax.jit(lambda p, s, i: multimodal.apply(p, CONFIG, s, i))(params, seen, ids)

    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x = p["embed_tokens"]["weight"][ids[0]] + p["position_embedding"]["weight"][:5]
    causal = np.where(np.tril(np.ones((5, 5))), 0, -np.inf)
    bias = np.stack([causal, causal])
    stacks = [(p["text"]["layers"], 0, None), (p["decoder"]["layers"], 0, 0), (p["decoder"]["layers"], 1, 1)]
    for stack, layer, looks in stacks:
        s = jax.tree.map(lambda leaf, layer=layer: leaf[layer], stack)
        q, k, v = np.split(_norm(x, s["attention_norm"]["weight"]) @ s["qkv_proj"]["weight"].T, 3, -1)
        x = x + _attend(q, k, v, bias) @ s["o_proj"]["weight"].T
        if looks is not None:
            keys, values = (np.concatenate(list(np.asarray(leaf[looks, 0], np.float64)), -1) for leaf in seen)
            q = _norm(x, s["cross_norm"]["weight"]) @ s["cross_q_proj"]["weight"].T
            x = x + _attend(q, keys, values) @ s["cross_o_proj"]["weight"].T
        x = x + _gelu(_norm(x, s["mlp_norm"]["weight"]) @ s["up_proj"]["weight"].T) @ s["down_proj"]["weight"].T
    expected = _norm(x, p["decoder"]["norm"]["weight"]) @ p["lm_head"]["weight"].T
    np.testing.assert_allclose(actual[0], expected, rtol=2e-4, atol=2e-5)


def test_the_cache_gives_the_logits_of_the_whole_text(params: Any, seen: Any) -> None:
    ids, start = _ids(2, 7), np.array([2, 3], np.int32)
    whole = np.asarray(jax.jit(lambda p, s, i: multimodal.apply(p, CONFIG, s, i))(params, seen, ids))
    logits, cache = jax.jit(lambda p, s, i, n: multimodal.prefill(p, CONFIG, s, i, n))(params, seen, ids[:, :4], start)
    np.testing.assert_allclose(logits, whole[[0, 1], start - 1], rtol=1e-5, atol=1e-5)
    step = jax.jit(lambda p, s, c, t, n: multimodal.step(p, CONFIG, s, c, t, n))
    for more in range(4):
        place = start + more
        logits, cache = step(params, seen, cache, ids[[0, 1], place], place)
        np.testing.assert_allclose(logits, whole[[0, 1], place], rtol=1e-5, atol=1e-5)


def test_what_follows_a_text_does_not_count(params: Any, seen: Any) -> None:
    ids, lengths = _ids(2, 7), np.array([3, 5], np.int32)
    other = ids.copy()
    other[0, 3:], other[1, 5:] = 9, 9

    @jax.jit
    def both(params: Any, ids: jax.Array) -> Any:
        return (
            multimodal.embed_text(params, CONFIG, ids, lengths),
            multimodal.prefill(params, CONFIG, seen, ids, lengths)[0],
            multimodal.apply(params, CONFIG, seen, ids)[:, :3],
        )

    jax.tree.map(np.testing.assert_array_equal, both(params, ids), both(params, other))


def test_vectors_have_length_one(params: Any) -> None:
    image = jax.jit(lambda p, x: multimodal.embed_image(p, multimodal.encode(p, CONFIG, x, kind="scene")))(
        params, _pixels(3, 8, 8)
    )
    text = jax.jit(lambda p, i: multimodal.embed_text(p, CONFIG, i, np.array([7, 1, 4])))(params, _ids(3, 7))
    for vectors in (image, text):
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, rtol=1e-5)


def test_a_flat_image_is_finite(params: Any) -> None:
    flat = np.full((1, 8, 16, 3), 255, np.uint8)
    logits = jax.jit(lambda p, x: multimodal.read(p, CONFIG, x))(params, flat)
    assert logits.shape == (1, 4, 5)
    assert np.isfinite(logits).all()


def test_a_token_outside_is_seen(params: Any, seen: Any) -> None:
    ids = _ids(2, 3)
    ids[1, 1] = CONFIG.vocab_size
    logits = np.asarray(jax.jit(lambda p, i: multimodal.apply(p, CONFIG, seen, i))(params, ids))
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1, 1:]).all()


def test_a_layer_more_moves_no_other_draw(params: Any) -> None:
    deeper = jax.jit(multimodal.init, static_argnums=1)(jax.random.key(0), replace(CONFIG, decoder_layers=3))
    np.testing.assert_array_equal(
        deeper["vision"]["layers"]["qkv_proj"]["weight"], params["vision"]["layers"]["qkv_proj"]["weight"]
    )
    assert {path: leaf.shape for path, leaf in _named(params).items()} == multimodal.shapes(CONFIG)


def _named(tree: Any) -> dict[str, Any]:
    return {".".join(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def test_trained_rounding_is_the_frozen_weights() -> None:
    params = jax.jit(multimodal.init, static_argnums=1)(jax.random.key(0), SMALL)
    training = quantize.qat(RULE, start="minmax")
    scales = training.init(params)
    ids, crops = _ids(2, 4), _pixels(2, 8, 16)

    @jax.jit
    def run(params: Any) -> Any:
        seen = multimodal.memory(params, SMALL, multimodal.encode(params, SMALL, crops, kind="word"))
        return multimodal.apply(params, SMALL, seen, ids)

    frozen = run(training.freeze(params, scales))
    np.testing.assert_array_equal(run(training.attach(params, scales)), frozen)
    slopes = jax.jit(jax.grad(lambda p, s: jnp.sum(run(training.attach(p, s)) ** 2), argnums=1))(params, scales)
    unused = {"vision.merge.scene.weight", "reader.weight", "image_projection.weight", "text_projection.weight"}
    assert all(np.isfinite(leaf).all() and np.any(leaf) for path, leaf in slopes.items() if path not in unused)


def test_the_file_computes_what_jax_does(tmp_path: Any) -> None:
    params = jax.jit(multimodal.init, static_argnums=1)(jax.random.key(0), SMALL)
    low = jax.tree.map(np.asarray, quantize.quantize_tree(params, RULE, scale="minmax"))

    def cache(layers: int, length: int) -> multimodal.Cache:
        leaf = jax.ShapeDtypeStruct((layers, 1, 2, length, 4), jnp.float32)
        return multimodal.Cache(leaf, leaf)

    def step(token: Any, position: Any, seen: Any, past: Any) -> Any:
        return multimodal.step(low, SMALL, seen, past, token, position)

    one = jax.ShapeDtypeStruct((1,), jnp.int32)
    signatures = {
        "read": (lambda x: multimodal.read(low, SMALL, x), [jax.ShapeDtypeStruct((1, 8, 16, 3), jnp.uint8)]),
        "step": (step, [one, one, cache(1, 8), cache(2, 7)]),
    }
    written = export.to_tflite(signatures, tmp_path / "model.tflite")
    assert sorted(set(written.quantized.values())) == [2, 8]
    rng = np.random.default_rng(2)
    filled = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), (cache(1, 8), cache(2, 7)))
    arguments = {"read": [_pixels(1, 8, 16)], "step": [np.array([3], np.int32), np.array([2], np.int32), *filled]}
    for name, given in arguments.items():
        expected = jax.tree.leaves(jax.jit(signatures[name][0])(*given))
        for actual, leaf in zip(export.run_tflite(written.path, name, *given), expected, strict=True):
            np.testing.assert_allclose(actual, leaf, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda p, s: multimodal.encode(p, CONFIG, _pixels(1, 8, 8), kind="page"),
            ValueError,
            "kind: 'page' is not one of",
        ),
        (
            lambda p, s: multimodal.encode(p, CONFIG, _pixels(1, 8, 8), kind="word"),
            ValueError,
            "pixels: 'word' images are",
        ),
        (lambda p, s: multimodal.apply(p, CONFIG, s, _ids(2, 8)), ValueError, "1 to 7 tokens"),
        (
            lambda p, s: multimodal.apply(p, CONFIG, s.keys, _ids(2, 3)),
            TypeError,
            "seen: expected the Cache that `memory` returns",
        ),
        (lambda p, s: multimodal.apply(p, CONFIG, s, np.ones((2, 3), np.float32)), TypeError, "input_ids"),
        (lambda p, s: multimodal.apply(p, CONFIG, s, _ids(3, 3)), ValueError, "input_ids: dim B=3"),
        (lambda p, s: multimodal.embed_text(p, CONFIG, _ids(2, 3), np.ones(2, np.float32)), TypeError, "lengths"),
    ],
)
def test_mistakes_name_the_argument(params: Any, seen: Any, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(params, seen)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_attention_heads": 3}, "num_attention_heads"),
        ({"hidden_size": 0}, "hidden_size"),
        ({"images": ()}, "images"),
        ({"images": (("word", multimodal.Image(height=10, width=16, merge=(2, 1))),)}, "images: 'word': 10"),
    ],
)
def test_a_bad_configuration_names_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **change)


def test_images_that_are_no_pairs_say_so() -> None:
    image = multimodal.Image(height=8, width=16, merge=(2, 1))
    for images in ({"word": image}, ("word", image), image):
        with pytest.raises(TypeError, match="images: expected pairs"):
            replace(CONFIG, images=images)


def test_a_length_outside_gives_nan_and_a_padding_that_is_no_token_does_not(params: Any, seen: Any) -> None:
    ids = np.array([[1, 2, -1], [4, 5, 99], [1, 2, 3], [1, 2, 3]], np.int32)
    lengths = np.array([2, 2, 0, 4], np.int32)
    four = multimodal.Cache(*(jnp.concatenate([leaf, leaf], axis=1) for leaf in seen))
    embed = jax.jit(lambda ids, lengths: multimodal.embed_text(params, CONFIG, ids, lengths))
    begin = jax.jit(lambda ids, lengths: multimodal.prefill(params, CONFIG, four, ids, lengths))
    clean = np.where(np.arange(3)[None] < 2, ids, 0).astype(np.uint8)
    (logits, cache), (expected, _) = begin(ids, lengths), begin(clean, np.full(4, 2, np.uint8))
    for actual, plain in ((embed(ids, lengths), embed(clean, np.full(4, 2, np.uint8))), (logits, expected)):
        np.testing.assert_array_equal(actual[:2], plain[:2])
        assert np.isnan(actual[2:]).all()
    assert all(np.isfinite(leaf).all() for leaf in cache)


def test_no_images_no_texts_and_no_layers_are_empty_arrays() -> None:
    config = replace(CONFIG, stem_layers=0, vision_layers=0, text_layers=0, decoder_layers=0)
    params = multimodal.init(jax.random.key(0), config)

    @jax.jit
    def run(pixels: Any, ids: Any, lengths: Any) -> Any:
        tokens = multimodal.encode(params, config, pixels, kind="word")
        seen = multimodal.memory(params, config, tokens)
        logits, cache = multimodal.prefill(params, config, seen, ids, lengths)
        logits, cache = multimodal.step(params, config, seen, cache, ids[:, 0], lengths)
        return multimodal.embed_text(params, config, ids, lengths), logits, seen, cache

    for batch in (2, 0):
        vector, logits, seen, cache = run(_pixels(batch, 8, 16), _ids(2, 3)[:batch], np.full(batch, 3, np.int32))
        assert (vector.shape, logits.shape) == ((batch, config.embedding_size), (batch, config.vocab_size))
        assert (seen.keys.shape[:2], cache.values.shape[:2]) == ((0, batch), (0, batch))
        assert np.isfinite(vector).all()


def test_no_examples_are_none_through_every_layer(params: Any) -> None:
    @jax.jit
    def run(pixels: Any, ids: Any, lengths: Any) -> Any:
        seen = multimodal.memory(params, CONFIG, multimodal.encode(params, CONFIG, pixels, kind="word"))
        return multimodal.prefill(params, CONFIG, seen, ids, lengths)[0]

    found = run(_pixels(0, 8, 16), np.zeros((0, 3), np.int32), np.zeros(0, np.int32))
    assert found.shape == (0, CONFIG.vocab_size)


def _stacked(params: Any, stack: str, count: int) -> Any:
    part = params[stack]
    layers = jax.tree.map(lambda leaf: np.resize(leaf, (count, *leaf.shape[1:])), part["layers"])
    return params | {stack: part | {"layers": layers}}


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p, s, x: multimodal.encode(p, CONFIG, x.astype(np.int8), kind="word"), TypeError, "pixels: .*int8"),
        (lambda p, s, x: multimodal.encode(p, CONFIG, x > 9, kind="word"), TypeError, "pixels: .*bool"),
        (lambda p, s, x: multimodal.encode(p, CONFIG, x + 1j, kind="word"), TypeError, "pixels: .*complex"),
        (lambda p, s, x: multimodal.encode({}, CONFIG, x, kind="word"), ValueError, "params: there is no 'vision"),
        (lambda p, s, x: multimodal.encode(None, CONFIG, x, kind="word"), ValueError, "params: there is no 'vision"),
        (
            lambda p, s, x: multimodal.encode(_stacked(p, "vision", 5), CONFIG, x, kind="word"),
            ValueError,
            r"params: 'vision.layers.*has shape \(5, .*the config says",
        ),
        (
            lambda p, s, x: multimodal.apply(p, replace(CONFIG, text_layers=4), s, _ids(2, 3)),
            ValueError,
            "params: 'text.layers.*has shape",
        ),
        (
            lambda p, s, x: multimodal.apply(_stacked(p, "decoder", 5), CONFIG, s, _ids(2, 3)),
            ValueError,
            "params: 'decoder.layers.*has shape",
        ),
        (
            lambda p, s, x: multimodal.read({n: v for n, v in p.items() if n != "reader"}, CONFIG, x),
            ValueError,
            "params: there is no 'reader'",
        ),
        (lambda p, s, x: multimodal.memory(p, CONFIG, np.ones((3, 8), np.float32)), ValueError, "tokens: expected"),
        (lambda p, s, x: multimodal.memory(p, CONFIG, np.ones((1, 3, 8), np.int32)), TypeError, "tokens"),
        (lambda p, s, x: multimodal.embed_image(p, np.ones((3, 8), np.float32)), ValueError, "tokens: expected"),
        (lambda p, s, x: multimodal.apply(p, CONFIG, None, _ids(2, 3)), TypeError, "seen: expected the Cache"),
        (
            lambda p, s, x: multimodal.apply(
                p, CONFIG, multimodal.Cache(s.keys[:, :, :1], s.values[:, :, :1]), _ids(2, 3)
            ),
            ValueError,
            "seen: expected keys and values",
        ),
        (
            lambda p, s, x: multimodal.apply(p, CONFIG, multimodal.Cache(s.keys, s.values[:, :1]), _ids(2, 3)),
            ValueError,
            "seen.values: dim B=1",
        ),
        (
            lambda p, s, x: multimodal.prefill(p, CONFIG, s, _ids(2, 3), np.array([3], np.int32)),
            ValueError,
            "lengths: dim B=1",
        ),
        (lambda p, s, x: multimodal.embed_text(p, CONFIG, _ids(2, 3), np.int32(3)), ValueError, "lengths: expected"),
        (lambda p, s, x: multimodal.step(p, CONFIG, s, s, _ids(2, 1), np.ones(2, int)), ValueError, "token: expected"),
        (lambda p, s, x: multimodal.step(p, CONFIG, s, s, np.ones(2, int), np.array(1)), ValueError, "position"),
        (lambda p, s, x: multimodal.step(p, CONFIG, s, s, *np.ones((2, 2), int)), ValueError, "cache: expected keys"),
    ],
)
def test_what_would_be_computed_wrong_is_refused(params: Any, seen: Any, call: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        call(params, seen, _pixels(2, 8, 16))
