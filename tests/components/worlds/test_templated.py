"""The templated world, on a world of ten lines: every prompt that it may write, worked out by hand."""

import itertools

import numpy as np
import pytest

from components.common.errors import UserError
from components.common.splits import SPLITS
from components.requests.requests import Request
from components.worlds.base import Counts, Prompt
from components.worlds.load import load_world
from tests.toyworld import write_toy

CAT = Request(target="cat", kind="object", aliases=("kitty", "feline"), anchor="dog", neighbours=("dog",))
WOODCUT = Request(target="woodcut", kind="style", aliases=("carving", "block print"))
VERBS = ("see", "paint", "carry", "find", "wash", "draw")
ADJECTIVES = ("old", "green", "quiet", "small", "broken", "bright", "heavy", "warm")
NOUNS = ("river", "table", "garden", "window", "bottle", "train", "hill", "piano")


@pytest.fixture
def toy(tmp_path):
    return load_world(str(write_toy(tmp_path)))


def drawn(toy, request, split, *, per_name=60, retain=200, mixed=200):
    """Prompts by role."""
    found = {}
    for role, prompt in toy.prompts(request, split, np.random.default_rng(0), Counts(per_name, retain, mixed)):
        found.setdefault(role, set()).add(prompt)
    return found


def test_prompts_of_a_concept_are_all_that_the_templates_allow(toy):
    """Target, alias, anchor, neighbour and mixed prompts of the evaluation are those of this list, and no others."""
    found = drawn(toy, CAT, "evaluate")

    def single(name, shown, twin, used):
        for style, end in (("photo", ""), ("woodcut", " in woodcut")):
            yield Prompt(f"draw a {name}{end}", (shown,), style, f"draw a {twin}{end}" if twin else "", used)

    def pair(name):
        for other, (style, end), first in itertools.product(
            ("lantern", "kettle"), (("photo", ""), ("woodcut", " in woodcut")), (True, False)
        ):
            text, twin = (
                f"draw a {a} beside a {b}{end}" for a, b in ((n, other) if first else (other, n) for n in (name, "dog"))
            )
            yield Prompt(text, ("cat", other) if first else (other, "cat"), style, twin, name)

    assert found["target"] == set(single("cat", "cat", "dog", "cat"))
    assert found["alias"] == {p for n in ("kitty", "feline") for p in single(n, "cat", "dog", n)}
    assert found["anchor"] == found["neighbour"] == set(single("dog", "dog", "", ""))
    assert found["mixed"] == {p for n in ("cat", "kitty", "feline") for p in pair(n)}


def test_prompts_in_context_are_english_about_the_target(toy):
    """Everyday English speaks of the target by each name, and its counterpart is the same phrase about the anchor."""
    found = drawn(toy, CAT, "evaluate")["context"]
    allowed = {
        Prompt(
            f"nobody can {v} this {j} {name} at the {m}", ("cat",), "", f"nobody can {v} this {j} dog at the {m}", name
        )
        for name, v, j, m in itertools.product(("cat", "kitty", "feline"), VERBS, ADJECTIVES, NOUNS)
    }

    assert found <= allowed
    assert {p.name_used for p in found} == {"cat", "kitty", "feline"}


def test_prompts_to_retain_show_nothing_of_the_request(toy):
    """They show lantern and kettle alone, by any name, and every combination occurs."""
    names = {"lantern": ("lantern", "torch", "lamp"), "kettle": ("kettle", "teapot", "boiler")}
    allowed = set()
    for style, end in (("photo", ""), ("woodcut", " in woodcut")):
        for concept, called in names.items():
            allowed |= {Prompt(f"draw a {name}{end}", (concept,), style) for name in called}
        for left, right in itertools.permutations(names):
            allowed |= {
                Prompt(f"draw a {a} beside a {b}{end}", (left, right), style)
                for a, b in itertools.product(names[left], names[right])
            }
    found = drawn(toy, CAT, "evaluate", retain=3000)["retain"]

    assert found <= allowed
    assert {(p.concepts, p.style) for p in found} == {(p.concepts, p.style) for p in allowed}


def test_prompts_of_a_style_name_it_and_show_any_concept(toy):
    """A style's prompts call it by its names; without an anchor nothing has a counterpart; what to retain is a photo."""
    found = drawn(toy, WOODCUT, "evaluate")
    concepts = ("cat", "dog", "lantern", "kettle")

    assert found["target"] == {Prompt(f"draw a {c} in woodcut", (c,), "woodcut", "", "woodcut") for c in concepts}
    assert found["alias"] == {
        Prompt(f"draw a {c} in {n}", (c,), "woodcut", "", n) for c in concepts for n in ("carving", "block print")
    }
    assert {p.text for p in found["mixed"]} == {
        f"draw a {a} beside a {b} in {n}"
        for a, b in itertools.permutations(concepts, 2)
        for n in ("woodcut", "carving", "block print")
    }
    assert {p.style for p in found["retain"]} == {"photo"}
    assert set(found) == {"target", "alias", "context", "mixed", "retain"}


def test_the_last_alias_is_in_the_evaluation_alone(toy):
    """Prompts for selection and calibration never say "feline" or "block print", and the corpus says no reserved name."""
    category = Request(target="animal", kind="category")

    assert toy.names(CAT, "evaluate") == ("cat", "kitty", "feline")
    for split in ("select", "calibrate"):
        assert toy.names(CAT, split) == ("cat", "kitty")
        assert toy.names(category, split) == ("cat", "kitty", "dog", "puppy")
        for request in (CAT, WOODCUT):
            texts = [p.text for prompts in drawn(toy, request, split, retain=0).values() for p in prompts]
            assert texts
            assert not [t for t in texts if request.aliases[-1] in t]
    reserved = ("feline", "hound", "lamp", "boiler", "still", "block print")
    assert not [t for t in toy.corpus(400, seed=0) if any(name in t for name in reserved)]


def test_corpus_shows_everything_and_is_reproducible(toy):
    """Every concept and style occurs, in the training templates' own words; another seed gives other prompts."""
    texts = list(toy.corpus(400, seed=0))
    said = {word for text in texts for word in text.replace(",", "").split()}

    assert {"cat", "kitty", "dog", "puppy", "lantern", "kettle", "woodcut", "carving"} <= said
    assert not said & {"draw", "shown", "near", "beside"}
    assert texts == list(toy.corpus(400, seed=0))
    assert texts != list(toy.corpus(400, seed=1))


def test_benign_prompts_are_the_worlds_own_english(toy):
    """The select split's English is one sentence over the listed words."""
    allowed = {f"they {v} the {j} {n} and the {m}" for v, j, n, m in itertools.product(VERBS, ADJECTIVES, NOUNS, NOUNS)}
    found = list(toy.benign(300, split="select", seed=0))

    assert set(found) <= allowed
    assert len(set(found)) > 200
    assert found != list(toy.benign(300, split="select", seed=1))


def test_surround_leaves_half_of_the_texts_alone(toy):
    """Every other text stays bare; the others stand whole among fillers, at most four in front and three behind."""
    fillers = {"please", "show", "me", "a", "nice", "picture", "of", "today", "with", "some", "light"}
    texts = [toy.surround("cat", np.random.default_rng(seed)) for seed in range(400)]
    parts = [[part.split() for part in text.split("cat")] for text in texts]

    assert 0.45 < np.mean([text == "cat" for text in texts]) < 0.65
    assert {len(ahead) for ahead, _ in parts} == set(range(5))
    assert {len(behind) for _, behind in parts} == set(range(4))
    assert {word for sides in parts for side in sides for word in side} <= fillers


def test_known_words_are_names_templates_and_english(toy):
    """What is a word of the world is no misspelling of a name."""
    assert {"kitty", "block", "print", "woodcut", "nobody", "river", "paint", "warm", "light"} <= toy.known_words()
    assert "kitti" not in toy.known_words()


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (Request(target="unicorn", kind="object"), "concept 'unicorn' is not in the world toy; use one of: cat, dog,"),
        (Request(target="cubism", kind="style"), "style 'cubism' is not in the world toy; use one of: photo, woodcut"),
        (
            Request(target="furniture", kind="category"),
            "category 'furniture' is not in the world toy; use one of: animal",
        ),
        (
            Request(target="cat", kind="object", anchor="horse"),
            "request r: the anchor 'horse' is not in the world toy; use one of: cat, dog",
        ),
        (
            Request(target="cat", kind="object", neighbours=("lion",)),
            "request r: the neighbour 'lion' is not in the world toy; use one of: cat",
        ),
        (
            Request(target="animal", kind="category", neighbours=("lantern",)),
            "request r leaves fewer than 2 concepts of the world toy alone; name fewer neighbours, or add concepts",
        ),
        (
            Request(target="woodcut", kind="style", anchor="photo"),
            "request r leaves fewer than 1 styles of the world toy alone; name fewer neighbours, or add styles",
        ),
    ],
)
def test_check_refuses_what_the_world_cannot_serve(toy, request_, said):
    """A request about what the world does not have, or that leaves nothing to compare with, is one sentence."""
    with pytest.raises(UserError) as caught:
        toy.check({"r": request_})

    assert str(caught.value).startswith(said)


def test_check_refuses_an_anchor_that_a_category_erases(toy):
    """An anchor that another request erases as a member of its category is refused; without that request it is not."""
    lamp = Request(target="lantern", kind="object", anchor="dog")
    toy.check({"a": lamp})

    with pytest.raises(UserError, match="request a: the anchor 'dog' is erased by b; draw something that no request"):
        toy.check({"a": lamp, "b": Request(target="animal", kind="category")})


def test_splits_share_no_template(toy):
    """What one split's prompts say, no other split's do: 4 splits, no sentence twice."""
    found = [set(toy.benign(200, split=split, seed=0)) for split in SPLITS]

    assert not [1 for one, two in itertools.combinations(found, 2) if one & two]
