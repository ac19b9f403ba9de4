"""Real English that every Python carries: the topics of `help()`, as a data set, windows and prompts.

The text is the topics of `pydoc_data.topics` in the order of their keys, joined by newlines. A
topic is train or held-out by the sha256 of its key, one in ten by number. The text differs
between Python's patch versions, so a run prints its sha256.
"""

import contextlib
import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grain
import numpy as np
import tensorflow_datasets as tfds

NEWLINE, SPACE = 10, 32


class Topics(tfds.core.GeneratorBasedBuilder):
    """The topics as array_record files, one record a topic; read and written without TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "first"}  # noqa: RUF012 - the name and type are tfds'

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"topic": tfds.features.Text(), "text": tfds.features.Text()})
        return self.dataset_info_from_configs(features=features)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples(False), "heldout": self._generate_examples(True)}

    def _generate_examples(self, heldout: bool) -> Iterator[tuple[str, dict[str, str]]]:
        for topic, text in source().items():
            if is_heldout(topic) == heldout:
                yield topic, {"topic": topic, "text": text}


def source() -> dict[str, str]:
    """Topics and their texts, sorted by topic."""
    from pydoc_data.topics import topics

    return {topic: topics[topic] for topic in sorted(topics)}


def is_heldout(topic: str) -> bool:
    """Whether a topic is in the held-out split."""
    return int(hashlib.sha256(topic.encode()).hexdigest(), 16) % 10 == 0


@dataclass(frozen=True)
class Text:
    """Both splits as bytes.

    Attributes:
      train: `[N]` uint8.
      heldout: `[M]` uint8.
      sha256: of the whole text, train and held-out in the order of the topics.
    """

    train: np.ndarray
    heldout: np.ndarray
    sha256: str


def load(data_dir: str | Path) -> Text:
    """Write the data set if it is not there, and read it.

    Args:
      data_dir: where tfds keeps it. tfds writes aside and renames, so an interrupted write is made again.

    Returns:
      A `Text`.
    """
    digest = hashlib.sha256("\n".join(source().values()).encode()).hexdigest()
    # Another Python has another text, so each text has a directory of its own.
    builder = Topics(data_dir=str(Path(data_dir) / digest[:16]), file_format="array_record")
    tfds.disable_progress_bar()  # 79 records need none, nor the lines that tfds prints
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    return Text(_joined(builder, "train"), _joined(builder, "heldout"), digest)


def _joined(builder: Any, split: str) -> np.ndarray:
    records = {record["topic"]: record["text"] for record in builder.as_data_source(split)}
    return np.frombuffer(b"\n".join(records[topic] for topic in sorted(records)), np.uint8)


def train_iterator(text: np.ndarray, *, batch: int, length: int, seed: int) -> Any:
    """Windows of a text in a shuffled order, for ever.

    Args:
      text: `[N]` uint8.
      batch: windows a batch.
      length: tokens to predict in each.
      seed: of the order.

    Returns:
      A grain iterator of `{"tokens": int32 [batch, length + 1]}`; its `get_state()` is JSON, and
      `set_state` continues with exactly the batches that would have come.
    """
    if len(text) <= length:
        raise ValueError(f"text: {len(text)} bytes are too few for windows of {length + 1}")

    def window(start: int) -> dict[str, np.ndarray]:
        return {"tokens": text[start : start + length + 1].astype(np.int32)}

    windows = grain.MapDataset.range(len(text) - length).shuffle(seed=seed).repeat().map(window).batch(batch)
    return iter(windows.to_iter_dataset(grain.ReadOptions(num_threads=0)))


def heldout_windows(text: np.ndarray, *, length: int) -> dict[str, np.ndarray]:
    """Overlapping windows that score every byte but the first exactly once, after at least half a window of context.

    (In the first window, a byte has what there is.)

    Args:
      text: `[M]` uint8.
      length: tokens to predict in each window.

    Returns:
      `tokens [N, length + 1]` int32 and `score [N, length]` bool, true for the targets that count.
    """
    starts = [0]
    while starts[-1] + length < len(text) - 1:
        starts.append(min(starts[-1] + length // 2, len(text) - 1 - length))
    tokens = np.stack([text[s : s + length + 1] for s in starts]).astype(np.int32)
    score = np.zeros((len(starts), length), bool)
    done = 0
    for row, start in enumerate(starts):
        score[row, done - start :] = True
        done = start + length
    return {"tokens": tokens, "score": score}


def prompts(text: np.ndarray, n: int, *, length: int, seed: int) -> np.ndarray:
    """Snippets drawn at random with replacement: they start a word, end after one with a space, and cross no newline.

    Args:
      text: `[N]` uint8.
      n: how many.
      length: bytes in each.
      seed: of the draw.

    Returns:
      `[n, length]` int32.
    """
    windows = np.lib.stride_tricks.sliding_window_view(text, length)[1:]
    before = text[: len(windows)]
    good = np.isin(before, (NEWLINE, SPACE)) & (windows[:, 0] != SPACE)
    good &= (windows[:, -1] == SPACE) & (windows[:, -2] != SPACE) & ~(windows == NEWLINE).any(axis=1)
    found = np.flatnonzero(good)
    if len(found) == 0:
        raise ValueError(f"text: has no snippet of {length} bytes between word boundaries")
    chosen = np.random.default_rng(seed).choice(found, n)
    return windows[chosen].astype(np.int32)
