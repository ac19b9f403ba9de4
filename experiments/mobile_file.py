"""The network as one TensorFlow Lite file with five signatures, and what it answers through LiteRT."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import mobile_data as data
from experiments import mobile_scenes as scenes
from experiments import mobile_words as words
from experiments.mobile_judge import PROMPT, Answers
from rlx import export
from rlx.models import multimodal


def signatures(params: Any, config: multimodal.Config) -> dict[str, Any]:
    """What the file offers, a batch of one each.

    read: a word crop; logits `[1, 32, classes]`.
    look: a scene; its vector `[1, E]`, and the keys and values that the decoder looks at.
    embed_text: tokens `[1, 20]` and their number; a vector `[1, E]`.
    prefill: a prompt `[1, 14]`, its length, and what `look` gave; logits `[1, V]` and a cache.
    step: a token, its position, what `look` gave, the cache; logits and the cache.
    """
    params = jax.tree.map(np.asarray, params)
    heads, width = config.num_attention_heads, config.hidden_size // config.num_attention_heads
    tokens = int(np.prod(config.tokens("scene")))

    def cache(layers: int, length: int) -> multimodal.Cache:
        leaf = jax.ShapeDtypeStruct((layers, 1, heads, length, width), jnp.float32)
        return multimodal.Cache(leaf, leaf)

    seen = cache(config.decoder_layers, tokens)
    past = cache(config.text_layers + config.decoder_layers, config.max_length)
    one = jax.ShapeDtypeStruct((1,), jnp.int32)

    def ids(length: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, length), jnp.int32)

    def read(pixels: jax.Array) -> jax.Array:
        return multimodal.read(params, config, pixels)

    def look(pixels: jax.Array) -> tuple[jax.Array, multimodal.Cache]:
        x = multimodal.encode(params, config, pixels, kind="scene")
        return multimodal.embed_image(params, x), multimodal.memory(params, config, x)

    def embed_text(input_ids: jax.Array, lengths: jax.Array) -> jax.Array:
        return multimodal.embed_text(params, config, input_ids, lengths)

    def prefill(input_ids: jax.Array, lengths: jax.Array, seen: multimodal.Cache) -> Any:
        return multimodal.prefill(params, config, seen, input_ids, lengths)

    def step(token: jax.Array, position: jax.Array, seen: multimodal.Cache, past: multimodal.Cache) -> Any:
        return multimodal.step(params, config, seen, past, token, position)

    return {
        "read": (read, [jax.ShapeDtypeStruct((1, words.HEIGHT, words.WIDTH, 3), jnp.uint8)]),
        "look": (look, [jax.ShapeDtypeStruct((1, scenes.SIDE, scenes.SIDE, 3), jnp.uint8)]),
        "embed_text": (embed_text, [ids(data.TEXT), one]),
        "prefill": (prefill, [ids(PROMPT), one, seen]),
        "step": (step, [one, one, seen, past]),
    }


def write(params: Any, config: multimodal.Config, path: str | Path) -> export.Exported:
    """Write the file, with the tokeniser and the letters of the reader inside."""
    inside = {"tokenizer.json": data.tokenizer(), "letters": words.LETTERS, "special": list(data.SPECIAL)}
    return export.to_tflite(signatures(params, config), path, metadata=inside)


class File:
    """The file, one input at a time.

    Args:
      path: the file.
      threads: of the interpreter.
    """

    def __init__(self, path: str | Path, *, threads: int = 2) -> None:
        self.model = export.load_tflite(path, threads=threads)

    def read(self, pixels: np.ndarray) -> np.ndarray:
        """Logits `[32, classes]` of a crop `[32, 128, 3]`."""
        return self.model("read", pixels[None])[0][0]

    def say(self, pixels: np.ndarray, prompt: np.ndarray, length: int, *, most: int = data.TEXT - 2) -> list[int]:
        """Tokens after a prompt about a scene `[64, 64, 3]`, up to the end or `most`."""
        _, *seen = self.model("look", pixels[None])
        logits, *cache = self.model("prefill", prompt[None], np.array([length], np.int32), *seen)
        said: list[int] = []
        while len(said) < most:
            said.append(int(np.argmax(logits[0])))
            if said[-1] == data.END:
                break
            position = np.array([length + len(said) - 1], np.int32)
            logits, *cache = self.model("step", np.array(said[-1:], np.int32), position, *seen, *cache)
        return said

    def answers(self) -> Answers:
        """As `mobile_judge.judge` wants it."""

        def say(pixels: np.ndarray, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            found = np.full((len(pixels), data.TEXT), data.END, np.int32)
            for i in range(len(pixels)):
                said = self.say(pixels[i], ids[i], int(lengths[i]))
                found[i, : len(said)] = said
            return found

        def texts(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            rows = [self.model("embed_text", ids[i : i + 1], lengths[i : i + 1])[0][0] for i in range(len(ids))]
            return np.stack(rows)

        return Answers(
            read=lambda pixels: np.stack([self.read(x) for x in pixels]),
            say=say,
            images=lambda pixels: np.stack([self.model("look", x[None])[0][0] for x in pixels]),
            texts=texts,
        )
