import numpy as np
import pytest

from components.collect.spelling import misspellings, slips
from components.common.lexicon import is_word
from components.common.words import mentions
from components.worlds.load import load_world
from training.openmoji.captions import misspell

KNOWN = load_world("openmoji").known_words()


def test_slips_by_hand():
    """A word of three letters has one letter doubled; a longer one also loses one or swaps two neighbours."""
    assert set(slips("cat")) == {"ccat", "caat", "catt"}
    assert set(slips("neon")) == {
        "nneon", "neeon", "neoon", "neonn",
        "eon", "non", "nen", "neo",
        "enon", "noen", "neno",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["cat", "kitten", "neon sign"])
def test_misspellings_hold_every_slip_of_the_world(name):
    """Whatever `misspell`, which knows nothing of this list, makes of a name is on the list, unless real words remain."""
    rng, listed = np.random.default_rng(0), set(misspellings([name], frozenset()))
    found = {misspell(name, rng) for _ in range(300)}
    long = {f for f in found - {name} if len(name) > 3 or len(f) > len(name)}  # a dropped or swapped letter of three

    slips_alone = {form for form in long if not all(is_word(word) and len(word) > 1 for word in form.split(" "))}
    assert slips_alone <= listed
    assert len(slips_alone) >= 2


def test_misspellings_are_no_words():
    """What is left of a name when a letter is lost may be another word, which nobody asked to erase."""
    assert "king" not in misspellings(["kings"], KNOWN)
    assert {"c a t", "caat"} <= set(misspellings(["cat"], KNOWN))
    assert not set(misspellings(["cat", "neon", "ghost", "robot"], KNOWN)) & KNOWN


def test_misspellings_are_no_words_of_the_languages_dictionary():
    """What a dictionary knows is no slip, though the world never uses it: "her" of "hero", "neo" of "neon", "feine" in German."""
    assert not {"her", "neo", "non"} & set(misspellings(["hero", "neon"], frozenset()))
    assert "feine" in misspellings(["feline"], frozenset())
    assert "feine" not in misspellings(["feline"], frozenset(), ("en", "de"))


def test_misspellings_of_one_name_name_no_other():
    """No misspelt form holds a name of the world as a whole word, so that one request does not flag another's prompts."""
    forms = misspellings(["cat", "car", "bat", "boat", "coat"], KNOWN)

    assert not any(mentions(form, ("cat", "car", "bat", "boat", "goat", "bear")) for form in forms)
