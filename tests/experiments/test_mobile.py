"""The phone's network: what is rendered, what is held out, how it is judged, and a whole small run."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import mobile_data as data
from experiments import mobile_judge as judge
from experiments import mobile_report, mobile_train, mobile_vlm, mobile_words
from experiments import mobile_scenes as scenes

THINGS = (
    scenes.Thing("circle", "red", "small", 10, 40),
    scenes.Thing("seven", "blue", "large", 30, 12),
    scenes.Thing("star", "green", "small", 50, 50),
)


@pytest.fixture
def two_fonts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One design for each side, of those that matplotlib brings: the machine may have no others."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    sides = {False: ((str(folder / "DejaVuSans.ttf"),),), True: ((str(folder / "DejaVuSerif.ttf"),),)}
    monkeypatch.setattr(mobile_words, "fonts_of", sides.__getitem__)


def test_a_mask_says_where_its_letters_are(two_fonts: None) -> None:
    mask, middles = mobile_words.draw_mask(np.random.default_rng(0), "lil", mobile_words.fonts_of(False))
    ink = np.flatnonzero(mask.max(axis=0) > 100)
    runs = np.split(ink, np.flatnonzero(np.diff(ink) > 1) + 1)
    assert len(runs) == 3
    np.testing.assert_allclose([run.mean() for run in runs], middles, atol=1.5)


def test_crops_of_a_seed_are_the_same_and_fit(two_fonts: None) -> None:
    first, again = (mobile_words.draw_crops(5, 20, held_out=False) for _ in range(2))
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one.pixels, two.pixels)
        assert one.word == two.word
    assert {crop.pixels.shape for crop in first} == {(32, 128, 3)}
    assert all(1 < len(crop.word) <= mobile_words.LONGEST and crop.word.isalnum() for crop in first)
    assert all(crop.middles.min() >= 0 and crop.middles.max() < 128 for crop in first)


def test_no_word_or_photograph_is_on_both_sides() -> None:
    assert not set(mobile_words.words_of(True)) & set(mobile_words.words_of(False))
    assert len(mobile_words.photos_of(True)) + len(mobile_words.photos_of(False)) == len(mobile_words.PHOTOS)
    assert 3 <= len(mobile_words.photos_of(True)) < len(mobile_words.photos_of(False))


def test_columns_read_back_as_the_word() -> None:
    crop = mobile_words.Crop(np.zeros((32, 128, 3), np.uint8), "hello", np.array([6, 18, 30, 42, 54], np.float32))
    assert data.collapse(data.columns(crop)) == "hello"
    assert data.collapse(np.array([8, 8, 0, 8, 0, 0, 5, 5])) == "hhe"
    assert data.classes("ab").tolist() == [1, 2] + [0] * 9


@pytest.mark.parametrize("word", ["covers", "Covers", "COVERS", "646", "Oo", "hello"])
def test_a_word_is_read_in_one_case(word: str) -> None:
    logits = np.zeros((32, 63))
    for i, letter in enumerate(word):
        other = letter.lower() if letter.isupper() else letter.upper()
        logits[2 * i, data.words.LETTERS.index(letter) + 1] = 9
        logits[2 * i, data.words.LETTERS.index(other) + 1] = 9.5 if i == len(word) // 2 and len(word) > 3 else 5
    logits[:, 0] = np.where(logits.max(axis=1) > 0, -5, 9)
    logits[1, 0], logits[1, data.words.LETTERS.index(word[0]) + 1] = 0, 9  # the first letter is two columns wide
    assert data.read_word(logits) == word


def test_held_out_pairs_are_never_seen_in_training() -> None:
    def rare(scene: scenes.Scene) -> list[bool]:
        return [scenes.pair_is_held_out(one.colour, one.thing) for one in scene.things]

    assert not any(any(rare(scene)) for scene in scenes.draw_scenes(0, 300, held_out=False))
    assert all(any(rare(scene)) for scene in scenes.draw_scenes(0, 300, held_out=True))
    assert len(scenes.pairs(True)) + len(scenes.pairs(False)) == 105
    # Each colour and each thing of a held-out pair is in training, in other company.
    for part in (0, 1):
        assert {pair[part] for pair in scenes.pairs(True)} <= {pair[part] for pair in scenes.pairs(False)}


def test_a_caption_says_what_is_there() -> None:
    assert scenes.caption(THINGS) == "a small red circle below a large blue seven and a small green star"
    assert scenes.caption(THINGS[:1]) == "a small red circle"
    assert judge.attributes("a small red circle below a seven") == Counter(
        {("circle", "small"): 1, ("circle", "red"): 1}
    )


@pytest.mark.parametrize(
    ("kind", "possible"),
    [
        (
            "colour",
            {
                ("what color is the circle", "red"),
                ("what color is the seven", "blue"),
                ("what color is the star", "green"),
            },
        ),
        ("count", {("how many things are there", "three")}),
        ("digit", {("which digit is there", "seven")}),
        (
            "size",
            {
                ("what size is the circle", "small"),
                ("what size is the seven", "large"),
                ("what size is the star", "small"),
            },
        ),
        ("thing", {("what is red", "circle"), ("what is blue", "seven"), ("what is green", "star")}),
    ],
)
def test_answers_are_the_truth(kind: str, possible: set[tuple[str, str]]) -> None:
    rng = np.random.default_rng(0)
    asked = [scenes.ask(rng, THINGS, kind) for _ in range(40)]
    assert {(one.question, one.answer) for one in asked if one.kind == kind} == possible


def test_yes_and_no_are_the_truth_and_both_come() -> None:
    rng = np.random.default_rng(0)
    there = {(one.colour, one.thing) for one in THINGS}
    answers = Counter()
    for _ in range(200):
        one = scenes.ask(rng, THINGS, "exists")
        colour, thing = one.question.split()[-2:]
        assert one.answer == ("yes" if (colour, thing) in there else "no")
        answers[one.answer] += 1
    assert min(answers.values()) > 50
    by_name = {one.thing: one for one in THINGS}
    for _ in range(200):
        one = scenes.ask(rng, THINGS, "relation")
        words = one.question.split()
        if one.kind == "relation":
            true = scenes.relation(by_name[words[2]], by_name[words[-1]])
            assert one.answer == ("yes" if " ".join(words[3:-2]) == true else "no")


def test_training_names_no_pair_that_is_held_out() -> None:
    rng = np.random.default_rng(0)
    for scene in scenes.draw_scenes(2, 300, held_out=False):
        one = scenes.ask(rng, scene.things, "exists")
        if one.kind == "exists":
            colour, thing = one.question.split()[-2:]
            assert not scenes.pair_is_held_out(colour, thing)
    asked = [scenes.ask(rng, THINGS, "exists", held_out=True).question.split()[-2:] for _ in range(200)]
    assert any(scenes.pair_is_held_out(colour, thing) for colour, thing in asked)


def test_a_colour_is_not_told_from_things_that_it_is_never_shown_with() -> None:
    ids, words = data.tokens()
    colour, other = scenes.pairs(held_out=True)[0]
    thing = next(t for c, t in scenes.pairs(held_out=False) if c == colour)
    rival = next(t for c, t in scenes.pairs(held_out=False) if c == colour and t != thing)
    for texts in (data.caption_ids(f"a small {colour} {thing}"), data.asked_ids(f"what is {colour}", thing)):
        place = int(np.argmax(texts == ids[thing]))
        logits = np.zeros((1, len(texts) - 1, len(words)), np.float32)

        def lost(logits: np.ndarray, name: str, texts: np.ndarray = texts, place: int = place) -> float:
            changed = logits.copy()
            changed[0, place - 1, ids[name]] = 9.0
            return float(mobile_train.surprise(jnp.asarray(changed), jnp.asarray(texts[None])))

        alone = float(mobile_train.surprise(jnp.asarray(logits), jnp.asarray(texts[None])))
        assert lost(logits, other) == pytest.approx(alone)
        assert lost(logits, rival) > alone + 4
        assert lost(logits, thing) < alone - 2


def test_every_text_fits_and_reads_back() -> None:
    rng = np.random.default_rng(0)
    for scene in scenes.draw_scenes(1, 100, held_out=True):
        caption = scenes.caption(scene.things)
        assert data.decode(data.caption_ids(caption)[1:]) == caption
        one = scenes.ask(rng, scene.things)
        assert len(data.encode(one.question)) + 2 <= judge.PROMPT
        assert data.decode(data.asked_ids(one.question, one.answer)[1:]).endswith(one.answer)
    with pytest.raises(ValueError, match="do not fit"):
        data.caption_ids("a " * 30)


def test_the_tokeniser_in_the_file_gives_the_same_ids() -> None:
    from tokenizers import Tokenizer

    assert Tokenizer.from_str(data.tokenizer()).encode("a small red circle").ids == data.encode("a small red circle")


def test_places_are_those_of_the_things() -> None:
    found = data.places(THINGS).reshape(3, 4, 8)
    assert found[:, 2, 1].tolist() == [1, 1, 1]  # circle, red, small at (10, 40)
    assert found[:, 0, 3].tolist() == [13, 3, 2]  # seven, blue, large at (30, 12)
    assert np.count_nonzero(found[0]) == 3


def test_a_perfect_network_scores_one_and_an_empty_one_less() -> None:
    held_out = judge.Tests(
        [
            mobile_words.Crop(np.full((32, 128, 3), i, np.uint8), "ab", np.array([10.0, 30.0], np.float32))
            for i in (0, 1)
        ],
        scenes.draw_scenes(data.TEST_SEED, 150, held_out=True),
        [],
    )
    rng = np.random.default_rng(0)
    held_out = held_out._replace(
        asked=[(i, scenes.ask(rng, s.things, held_out=True)) for i, s in enumerate(held_out.scenes)]
    )
    captions = {s.pixels.tobytes(): scenes.caption(s.things) for s in held_out.scenes}
    answers = {(held_out.scenes[i].pixels.tobytes(), one.question): one.answer for i, one in held_out.asked}
    texts = sorted(set(captions.values()))

    def one_hot(text: str) -> np.ndarray:
        return np.eye(len(texts), dtype=np.float32)[texts.index(text)]

    def say(pixels: np.ndarray, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        rows = []
        for x, row, length in zip(pixels, ids, lengths, strict=True):
            question = data.decode(row[1 : length - 1]) if row[0] == data.ASK else None
            said = captions[x.tobytes()] if question is None else answers[x.tobytes(), question]
            rows.append(data.caption_ids(said)[1:])
        return np.stack(rows)

    perfect = judge.Answers(
        read=lambda x: np.tile(9 * np.eye(63)[[1, 0, 2, 2] + [0] * 28], (len(x), 1, 1)),
        say=say,
        images=lambda x: np.stack([one_hot(captions[one.tobytes()]) for one in x]),
        texts=lambda ids, lengths: np.stack([one_hot(data.decode(row[1:])) for row in ids]),
    )
    assert judge.judge(perfect, held_out) == {"words": 1.0, "answers": 1.0, "attributes": 1.0, "retrieval": 1.0}
    silent = judge.Answers(
        read=lambda x: np.tile(9 * np.eye(63)[[0] * 32], (len(x), 1, 1)),
        say=lambda x, ids, lengths: np.full((len(x), 3), data.END),
        images=lambda x: np.ones((len(x), 2)),
        texts=lambda ids, lengths: np.ones((len(ids), 2)),
    )
    assert judge.judge(silent, held_out) == {"words": 0.0, "answers": 0.0, "attributes": 0.0, "retrieval": 0.01}


def test_a_colour_on_the_wrong_thing_is_wrong() -> None:
    true = "a small red circle left of a large blue star"
    assert judge.attribute_f1([(true, true)]) == 1.0
    assert judge.attribute_f1([("a small blue circle left of a large red star", true)]) == 0.5


def test_batches_go_on_where_they_were() -> None:
    bank = data.Bank(
        {"pixels": np.arange(40, dtype=np.uint8), "classes": np.arange(40), "columns": np.arange(40)},
        {
            "pixels": np.arange(24, dtype=np.uint8),
            "places": np.arange(24),
            "caption": np.arange(24)[:, None],
            "asked": np.arange(24)[:, None, None] + 100 * np.arange(4)[None, :, None],
        },
    )
    batches = data.batches(bank, batch=4, seed=3)
    seen = [next(batches) for _ in range(3)]
    state = batches.get_state()
    expected = [next(batches) for _ in range(5)]
    batches.set_state(state)
    for one in expected:
        for name, value in next(batches).items():
            np.testing.assert_array_equal(value, one[name])
    for one in seen:
        np.testing.assert_array_equal(one["captions"][:, 0], one["scenes"])
        np.testing.assert_array_equal(one["asked"][:, 0] % 100, np.tile(one["scenes"], 2))
        assert (one["asked"][:4] != one["asked"][4:]).all()  # two questions about each
    whole = np.concatenate([one["crops"] for one in seen + expected])
    assert len(set(whole.tolist())) == 32  # no crop twice before all were seen


def test_the_page_has_the_rows_of_the_records() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = (docs / "mobile.md").read_text()
    short, long = (json.loads((docs / f"benchmarks/mobile_{name}.json").read_text()) for name in ("cpu", "long"))
    for row in mobile_report.page_rows(short, long):
        assert row in page
    for record in (short, long):
        assert f"in {record['training_s']:.0f} s" in page
        assert f"{record['file']['bytes']:,} bytes" in page
        assert record["file"]["answer_ms"] <= 200
        assert record["file"]["word_ms"] <= record["tesseract"]["word_ms"]
        assert abs(record["low_bit"]["words"] - record["file"]["words"]) < 0.01
    log = [json.loads(line) for line in (docs / "benchmarks/mobile_long.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in (log[0], log[-1])] == [("common", 100), ("low_bit", 9000)]


def test_the_page_has_the_size_of_the_larger_file() -> None:
    root = Path(__file__).parents[2]
    record = json.loads((root / "docs/benchmarks/mobile_size.json").read_text())
    assert record["parameters"] >= 60_000_000
    assert record["bytes"] < record["limit"]
    page = (root / "docs/mobile.md").read_text()
    for number in ("parameters", "at_2_bits", "bytes"):
        assert f"{record[number]:,}" in page


@pytest.mark.slow
def test_a_whole_small_run(two_fonts: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config: Any = mobile_vlm.Config(
        directory=str(tmp_path / "run"),
        crops=64,
        pictures=64,
        batch=8,
        steps=6,
        stem=8,
        stem_layers=1,
        width=16,
        heads=2,
        inner=16,
        vision_layers=1,
        decoder_layers=1,
        test_crops=20,
        test_pictures=140,
    )
    mobile_vlm.job(config)
    report = (tmp_path / "run" / "report.json").read_text()
    said = capsys.readouterr().out
    assert (tmp_path / "run" / "answers.png").stat().st_size > 10_000
    assert '"tesseract"' in report
    assert max(len(line) for line in said.splitlines()) <= 80
    assert "questions answered" in said
    mobile_vlm.job(config)  # goes on: nothing is left to do
    assert capsys.readouterr().out == said


def test_a_preset_sets_the_defaults() -> None:
    assert mobile_vlm.parse(["--preset", "gpu"]).width == mobile_vlm.GpuConfig().width
    assert mobile_vlm.parse(["--preset=long", "--steps", "7"]).steps == 7
    assert mobile_vlm.parse([]) == mobile_vlm.Config()
