"""The text of the main job, and the n-gram models that it is measured by."""

import json
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from experiments import topics
from experiments.ngram import KneserNey

# tfds and its protobuf warn while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> topics.Text:
    return topics.load(tmp_path_factory.mktemp("data"))


def test_the_data_set_is_the_text(text: topics.Text) -> None:
    source = topics.source()
    train = "\n".join(body for topic, body in source.items() if not topics.is_heldout(topic))
    heldout = "\n".join(body for topic, body in source.items() if topics.is_heldout(topic))
    assert text.train.tobytes() == train.encode()
    assert text.heldout.tobytes() == heldout.encode()
    assert 0.05 < len(text.heldout) / len(text.train) < 0.2


def test_a_second_load_reads_what_is_there(text: topics.Text, tmp_path: Path) -> None:
    topics.load(tmp_path)
    files = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.array_record*")}
    assert files
    again = topics.load(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.array_record*")} == files
    assert np.array_equal(again.train, text.train)


def test_the_iterator_resumes_exactly(text: topics.Text) -> None:
    def start() -> object:
        return topics.train_iterator(text.train, batch=4, length=16, seed=3)

    first = start()
    for _ in range(5):
        next(first)
    state = json.loads(json.dumps(first.get_state()))
    expected = [next(first)["tokens"] for _ in range(4)]
    second = start()
    second.set_state(state)
    assert all(np.array_equal(next(second)["tokens"], batch) for batch in expected)
    assert expected[0].shape == (4, 17)
    assert expected[0].dtype == np.int32
    joined = text.train.tobytes()
    assert all(row.astype(np.uint8).tobytes() in joined for row in expected[0])
    other = topics.train_iterator(text.train, batch=4, length=16, seed=4)
    assert not np.array_equal(next(other)["tokens"], next(start())["tokens"])


@pytest.mark.parametrize("size", [17, 18, 100, 101, 1000])
def test_every_heldout_byte_is_scored_once_with_context(text: topics.Text, size: int) -> None:
    part = text.heldout[:size]
    windows = topics.heldout_windows(part, length=16)
    scored = np.concatenate([row[1:][score] for row, score in zip(windows["tokens"], windows["score"], strict=True)])
    assert np.array_equal(scored, part[1:])
    assert all(not score[:8].any() for score in windows["score"][1:])


def test_prompts_are_whole_words_on_one_line(text: topics.Text) -> None:
    drawn = topics.prompts(text.heldout, 200, length=24, seed=0)
    joined = text.heldout.tobytes()
    for row in drawn:
        snippet = row.astype(np.uint8).tobytes()
        at = joined.index(snippet)
        assert b"\n" not in snippet
        assert snippet[-1:] == b" "
        assert snippet[-2:-1] != b" "
        assert snippet[:1] != b" " or at == 0
    assert np.array_equal(drawn, topics.prompts(text.heldout, 200, length=24, seed=0))
    assert not np.array_equal(drawn, topics.prompts(text.heldout, 200, length=24, seed=1))


def slow_kneser_ney(text: bytes, order: int, history: bytes) -> list[float]:
    """Chen & Goodman's equations with dictionaries, one history at a time: the oracle."""

    @cache
    def counts(n: int) -> Counter[bytes]:
        raw = Counter(text[i : i + n] for i in range(len(text) - n + 1))
        if n == order:
            return raw
        return Counter(gram[1:] for gram in counts(n + 1))

    def p(n: int, h: bytes, w: int) -> float:
        if n == 0:
            return 1 / 256
        c = counts(n)
        of = Counter(c.values())
        y = of[1] / (of[1] + 2 * of[2])
        d = [0, 1 - 2 * y * of[2] / of[1], 2 - 3 * y * of[3] / of[2], 3 - 4 * y * of[4] / of[3]]
        followers = {gram: count for gram, count in c.items() if gram[:-1] == h}
        total = sum(followers.values())
        lower = p(n - 1, h[1:], w)
        if total == 0:
            return lower
        own = c[h + bytes([w])]
        left = sum(d[min(count, 3)] for count in followers.values())
        return (max(own - d[min(own, 3)], 0) if own else 0) / total + left / total * lower

    return [p(order, history, w) for w in range(256)]


def test_kneser_ney_is_that_of_the_equations(text: topics.Text) -> None:
    part = text.train[5000:9000]
    model = KneserNey(part, 3)
    for history in (b"th", b"e ", b"qq", part[:2].tobytes()):
        actual = [model.probabilities(np.frombuffer(history + bytes([w]), np.uint8))[-1] for w in range(0, 256, 5)]
        np.testing.assert_allclose(actual, slow_kneser_ney(part.tobytes(), 3, history)[::5], atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one_for_seen_and_unseen_contexts(text: topics.Text, order: int) -> None:
    model = KneserNey(text.train, order)
    for history in (b"the functio", b"zqzqzqzq", b"\xff\xfe\xfd\xfc\xfb", b"a"):
        total = sum(model.probabilities(np.frombuffer(history + bytes([w]), np.uint8))[-1] for w in range(256))
        assert total == pytest.approx(1, abs=1e-9)


def test_longer_contexts_predict_better_and_the_figures_are_as_measured(text: topics.Text) -> None:
    bits = {n: KneserNey(text.train, n).bits_per_byte(text.heldout) for n in (1, 2, 3, 5)}
    assert bits[1] > bits[2] > bits[3] > bits[5]
    # Another split of the same text gave 2.90 and 2.10.
    assert bits[3] == pytest.approx(2.90, abs=0.15)
    assert bits[5] == pytest.approx(2.10, abs=0.15)
