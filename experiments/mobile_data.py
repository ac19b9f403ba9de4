"""Word crops and scenes as data sets on disk, their tokens, and balanced batches of both.

The two builders render without the network and write array_record files by tfds; grain gives batches in an order
that a killed run goes on with.
"""

import contextlib
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import grain
import numpy as np
import tensorflow_datasets as tfds

from experiments import mobile_scenes as scenes
from experiments import mobile_words as words

PAD, END, CAPTION, ASK, ANSWER = range(5)
SPECIAL = ("<pad>", "<end>", "<caption>", "<ask>", "<answer>")
TEXT = 17
QUESTION = 12
COLUMNS = 32
GRID = (4, 8)
TOKENS = GRID[0] * GRID[1]
QUESTIONS_EACH = 4
TEST_SEED = 1_000_000


@dataclass
class Size(tfds.core.BuilderConfig):
    """How many examples a data set has; it is named by it."""

    count: int = 0


class Words(tfds.core.GeneratorBasedBuilder):
    """Word crops: pixels, the word, and where its letters are."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "first"}  # noqa: RUF012 - the name and type are tfds'

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "pixels": tfds.features.Tensor(shape=(words.HEIGHT, words.WIDTH, 3), dtype=np.uint8),
            "classes": tfds.features.Tensor(shape=(words.LONGEST,), dtype=np.int32),
            "columns": tfds.features.Tensor(shape=(COLUMNS,), dtype=np.int32),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        rng = np.random.default_rng([self.builder_config.count, 0])
        for i in range(self.builder_config.count):
            crop = words.draw_crop(rng, held_out=False)
            yield i, {"pixels": crop.pixels, "classes": classes(crop.word), "columns": columns(crop)}


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Scenes: pixels, the tokens of the caption, and of a few questions with their answers."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "first"}  # noqa: RUF012

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
            "pixels": tfds.features.Tensor(shape=(scenes.SIDE, scenes.SIDE, 3), dtype=np.uint8),
            "caption": tfds.features.Tensor(shape=(TEXT,), dtype=np.int32),
            "asked": tfds.features.Tensor(shape=(QUESTIONS_EACH, QUESTION), dtype=np.int32),
            "places": tfds.features.Tensor(shape=(3, TOKENS), dtype=np.int32),
        }
        return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        rng = np.random.default_rng([self.builder_config.count, 1])
        for i in range(self.builder_config.count):
            scene = scenes.draw_scene(rng, held_out=False)
            asked = [scenes.ask(rng, scene.things) for _ in range(QUESTIONS_EACH)]
            yield (
                i,
                {
                    "pixels": scene.pixels,
                    "caption": caption_ids(scenes.caption(scene.things)),
                    "asked": np.stack([asked_ids(one.question, one.answer) for one in asked]),
                    "places": places(scene.things),
                },
            )


@dataclass(frozen=True)
class Bank:
    """Both training sets in memory, by the names of their features."""

    words: dict[str, np.ndarray]
    scenes: dict[str, np.ndarray]


def load(data_dir: str | Path, *, crops: int, pictures: int) -> Bank:
    """Render the data sets if they are not there, and read them.

    Args:
      data_dir: where tfds keeps them, by the fonts that this system has.
      crops: how many word crops.
      pictures: how many scenes.

    Returns:
      A `Bank`.
    """
    fonts = json.dumps({design: [Path(p).name for p in files] for design, files in words.fonts().items()})
    folder = Path(data_dir) / hashlib.sha256(fonts.encode()).hexdigest()[:16]
    return Bank(_read(Words, folder, crops), _read(Scenes, folder, pictures))


def _read(kind: type[Any], folder: Path, count: int) -> dict[str, np.ndarray]:
    named: Any = Size  # whose other fields tfds declares in a way that a type checker cannot see
    size = named(name=str(count), count=count)
    builder = kind(data_dir=str(folder), config=size, file_format="array_record")
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    source = builder.as_data_source("train")
    arrays: dict[str, np.ndarray] = {}
    for i in range(len(source)):
        for name, value in source[i].items():
            if name not in arrays:
                arrays[name] = np.empty((len(source), *value.shape), value.dtype)
            arrays[name][i] = value
    return arrays


def batches(bank: Bank, *, batch: int, seed: int) -> Any:
    """Half crops and half scenes in each batch, in an order of their own, for ever.

    Args:
      bank: what to draw from.
      batch: crops a batch, and scenes a batch.
      seed: of both orders.

    Returns:
      A grain iterator of `{"crops": uint8 [B, 32, 128, 3], "classes", "columns", "scenes": uint8 [B, 64, 64, 3],
      "places", "captions": int32 [B, TEXT], "asked": int32 [2 B, QUESTION]}`, two questions a scene; its state is JSON.
    """

    def order(count: int, salt: int) -> grain.MapDataset:
        return grain.MapDataset.range(count).shuffle(seed=seed + salt).repeat().batch(batch)

    def gather(pair: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
        crop, scene = pair
        one, two = ((scene + np.arange(batch) + i) % QUESTIONS_EACH for i in (0, 2))
        return {
            "crops": bank.words["pixels"][crop],
            "classes": bank.words["classes"][crop],
            "columns": bank.words["columns"][crop],
            "scenes": bank.scenes["pixels"][scene],
            "places": bank.scenes["places"][scene],
            "captions": bank.scenes["caption"][scene],
            "asked": np.concatenate([bank.scenes["asked"][scene, one], bank.scenes["asked"][scene, two]]),
        }

    both = [order(len(part["pixels"]), salt) for salt, part in enumerate((bank.words, bank.scenes))]
    zipped = grain.experimental.ZipMapDataset(both).map(gather)
    return iter(zipped.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))


def classes(word: str) -> np.ndarray:
    """`[11]` int32: the reader's classes, 1 for the first letter of `words.LETTERS`, 0 after the end."""
    found = np.zeros(words.LONGEST, np.int32)
    found[: len(word)] = [words.LETTERS.index(letter) + 1 for letter in word]
    return found


def columns(crop: words.Crop) -> np.ndarray:
    """`[32]` int32: the class of the letter whose middle is in each column of tokens, or 0."""
    found = np.zeros(COLUMNS, np.int32)
    place = np.clip(crop.middles * COLUMNS // words.WIDTH, 0, COLUMNS - 1).astype(int)
    found[place] = classes(crop.word)[: len(crop.word)]
    return found


def places(things: tuple[scenes.Thing, ...]) -> np.ndarray:
    """`[3, 32]` int32: which thing, colour and size the token of a thing's middle holds, counted from 1; else 0."""
    found = np.zeros((3, *GRID), np.int32)
    for one in things:
        row, column = one.y * GRID[0] // scenes.SIDE, one.x * GRID[1] // scenes.SIDE
        names = scenes.THINGS, list(scenes.COLOURS), scenes.SIZES
        found[:, row, column] = [
            list(part).index(name) + 1 for part, name in zip(names, (one.thing, one.colour, one.size), strict=True)
        ]
    return found.reshape(3, TOKENS)


def collapse(best: np.ndarray) -> str:
    """The word of classes `[32]`: repeated ones count once, blanks not at all."""
    kept = best[(best != 0) & (best != np.concatenate([[0], best[:-1]]))]
    return "".join(words.LETTERS[i - 1] for i in kept)


_SMALL, _CAPITAL, _DIGIT = (
    np.array([True] + [kind(letter) for letter in words.LETTERS]) for kind in (str.islower, str.isupper, str.isdigit)
)


def read_word(logits: np.ndarray) -> str:
    """The word of the reader's logits `[32, classes]`.

    A word is in small letters, or in capitals, or a number, or begins with one capital. Each of the four is read by
    itself, the best class of each column among those that it allows; the one whose columns are likeliest counts. So an
    O among small letters is an o.
    """
    top = logits.max(axis=1, keepdims=True)
    scores = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))

    def reading(allowed: np.ndarray) -> tuple[float, np.ndarray]:
        among = np.where(allowed, scores, -np.inf)
        return float(among.max(axis=1).sum()), among.argmax(axis=1)

    found = [reading(kind[None]) for kind in (_SMALL, _CAPITAL, _DIGIT)]
    first = found[1][1]
    if first.any():
        start = int(np.argmax(first > 0))
        allowed = np.tile(_SMALL, (len(scores), 1))
        allowed[: start + 1] = _CAPITAL
        allowed[start + 1 :, first[start]] = True  # the same letter may go on into the next column
        found.append(reading(allowed))
    return collapse(max(found, key=lambda one: one[0])[1])


class Tokens(NamedTuple):
    """Ids by word, and words by id."""

    ids: dict[str, int]
    words: tuple[str, ...]


@cache
def tokens() -> Tokens:
    """Every word of captions, questions and answers after the special tokens."""
    found = (*SPECIAL, *scenes.vocabulary())
    return Tokens({word: i for i, word in enumerate(found)}, found)


def tokenizer() -> str:
    """The tokeniser as the JSON of Hugging Face's `tokenizers`: words between spaces."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    model = Tokenizer(models.WordLevel(tokens().ids, unk_token=SPECIAL[PAD]))
    model.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return str(model.to_str())


def encode(text: str) -> list[int]:
    """The ids of words between spaces."""
    return [tokens().ids[word] for word in text.split()]


def decode(ids: Any) -> str:
    """The words of ids up to the end."""
    found = [int(i) for i in ids]
    return " ".join(tokens().words[i] for i in (found[: found.index(END)] if END in found else found))


def caption_ids(text: str) -> np.ndarray:
    """`[TEXT]` int32: `<caption> words <end>`."""
    return _padded([CAPTION, *encode(text), END], TEXT)


def asked_ids(question: str, answer: str) -> np.ndarray:
    """`[QUESTION]` int32: `<ask> words <answer> word <end>`."""
    return _padded([ASK, *encode(question), ANSWER, *encode(answer), END], QUESTION)


def _padded(ids: list[int], width: int) -> np.ndarray:
    if len(ids) > width:
        raise ValueError(f"ids: {len(ids)} tokens do not fit {width}")
    return np.array(ids + [PAD] * (width - len(ids)), np.int32)
