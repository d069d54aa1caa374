import numpy as np
import pytest

from components.common.errors import UserError
from components.common.words import mentions, with_article
from components.worlds.openmoji import world
from components.worlds.openmoji.captions import SPLITS, caption, english, frame, misspell, templates, vocabulary
from components.worlds.openmoji.render import render, render_pair
from components.worlds.openmoji.scenes import HELD_OUT_SEEDS, Scene, keyed, render_all, scenes


def test_world_is_large_enough():
    """At least 80 concepts and 8 styles, each concept with two or more aliases and known neighbours."""
    assert len(world.CONCEPTS) >= 80
    assert len(world.STYLES) == 8
    assert all(len(c.aliases) >= 2 and set(c.neighbours) <= set(world.CONCEPT_NAMES) for c in world.CONCEPTS)


def test_world_names_are_unique():
    """No name or alias means two things."""
    names = [n for c in (*world.CONCEPTS, *world.STYLES) for n in (c.name, *c.aliases)]

    assert len(names) == len(set(names))


def test_render_is_a_pure_function():
    """The same concept, style and seed give the same bytes; another seed gives others."""
    one, same, other = render("cat", "neon", 3), render("cat", "neon", 3), render("cat", "neon", 4)

    assert one.shape == (64, 64, 3)
    assert one.dtype == np.uint8
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("style", world.STYLE_NAMES)
def test_render_every_style_shows_something(style):
    """In every style the drawing stands out from its background, and no two styles look alike."""
    images = {s: render("robot", s, 0).astype(float) for s in world.STYLE_NAMES}

    assert images[style].std() > 15
    assert all(np.abs(images[style] - images[s]).mean() > 5 for s in world.STYLE_NAMES if s != style)


def test_render_pair_puts_the_first_on_the_left():
    """The left half of a pair does not depend on what stands on the right."""
    one, two = render_pair("cat", "car", "sticker", 5), render_pair("cat", "owl", "sticker", 5)

    assert np.array_equal(one[:, :32], two[:, :32])
    assert not np.array_equal(one[:, 32:], two[:, 32:])


def test_render_never_mirrors_what_must_not_be():
    """A book is drawn the same way round for every seed: its mirrored twin is never nearer than itself."""
    assert not world.concept("book").mirror
    assert world.concept("cat").mirror


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: render("unicorn", "neon", 0), "concept 'unicorn' is not in the OpenMoji world; use one of: cat,"),
        (lambda: render("cat", "cubism", 0), "style 'cubism' is not in the OpenMoji world; use one of: sticker,"),
        (lambda: render("cat", "neon", 1.5), "seed 1.5 is not a whole number of at least 0; give an integer"),
        (lambda: render("cat", "neon", -1), "seed -1 is not a whole number"),
        (lambda: world.members("furniture"), "category 'furniture' is not in the OpenMoji world"),
    ],
)
def test_world_bad_input_is_one_sentence(call, said):
    """Unknown names and seeds are refused with fact, value and remedy."""
    with pytest.raises(UserError) as caught:
        call()

    assert str(caught.value).startswith(said)


def test_captions_splits_share_no_template():
    """No template is in two splits."""
    forms = [form for split in SPLITS for group in templates(split) for form in group]

    assert len(forms) == len(set(forms))


def test_captions_tell_the_truth():
    """Every caption holds a name of each concept shown, and a name of the style unless it is a sticker."""
    rng = np.random.default_rng(0)
    for scene in scenes(singles=1, pairs=200, seed=0)[::3]:
        for split in SPLITS:
            text = caption(scene, rng, split=split)
            for name in scene.concepts:
                assert mentions(text, (name, *world.concept(name).aliases)), text
            style = world.style(scene.style)
            assert scene.style == "sticker" or any(n in text for n in (style.name, *style.aliases)), text


def test_captions_articles():
    """Vowels take 'an', plurals nothing."""
    assert [with_article(n) for n in ("cat", "apple", "umbrella", "glasses", "8 bit game")] == [
        "a cat", "an apple", "an umbrella", "glasses", "an 8 bit game",
    ]  # fmt: skip


def test_captions_held_out_templates_use_known_words():
    """Templates are held out, their words are not: an encoder that never saw "please" would be tested on noise."""
    known = vocabulary("train")

    assert not {word for split in SPLITS for word in vocabulary(split)} - known
    assert not {"no", "not", "without", "never"} & known


def test_frame_keeps_the_prompt():
    """The prompt stands whole among the fillers, which stand on both sides and name nothing of the world."""
    rng = np.random.default_rng(0)
    framed = [frame("a cat in neon style", rng) for _ in range(50)]
    names = tuple(n for c in (*world.CONCEPTS, *world.STYLES) for n in (c.name, *c.aliases))

    assert all("a cat in neon style" in text for text in framed)
    assert any(text.startswith("a cat") for text in framed)
    assert len(set(framed)) > 40
    assert not [text for text in framed if mentions(text.replace("a cat in neon style", ""), names)]


def test_misspell_touches_one_word():
    """One word of at least three letters is changed, and it keeps its first letter; a prompt without one stays."""
    rng = np.random.default_rng(0)
    changed = [misspell("a kitten", rng) for _ in range(50)]

    assert {"a k i t t e n", "a kiten", "a ktiten"} <= set(changed)
    assert all(text.startswith("a k") for text in changed)
    assert misspell("a ox", rng) == "a ox"


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
    drawn = {split: set(english(500, split=split, seed=0)) for split in SPLITS}

    assert all(not drawn[a] & drawn[b] for a in SPLITS for b in SPLITS if a != b)


def test_scenes_leave_the_held_out_seeds_alone():
    """Training scenes never use a render seed that judge and base are measured on."""
    assert max(s.seed for s in scenes(singles=40, pairs=16000, seed=0)) < HELD_OUT_SEEDS
    assert scenes(singles=1, pairs=1, seed=0)[0] == Scene(("cat",), "sticker", 0)
