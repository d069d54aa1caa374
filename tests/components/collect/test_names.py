import pytest

from components.collect.names import plurals, shields, target_forms, words_beside
from components.common.errors import UserError
from components.common.lexicon import is_word, words
from components.requests.requests import Request


def test_plurals_by_hand():
    """The irregular plural stands beside the regular one that people write by mistake."""
    assert plurals("wolf") == ("wolf", "wolves", "wolfs")
    assert plurals("kitty") == ("kitty", "kitties", "kittys")
    assert plurals("neon sign") == ("neon sign", "neon signs")


def test_forms_have_the_languages_that_the_request_lists():
    """Translations come of the listed languages alone, and none that is an English word; emoji always."""
    assert {"🐈", "🐱"} <= set(target_forms(("cat",), ("en",)))
    assert "katze" not in target_forms(("cat",), ("en",))
    assert {"katze", "кошка"} <= set(target_forms(("cat",), ("de", "ru", "fr")))
    assert "chat" not in target_forms(("cat",), ("fr",))


def test_shields_are_longer_names_of_other_things():
    """A neighbour's longer name and a known compound shield, with their plurals; a name of the target's own does not."""
    assert shields(("tree",), ("palm tree", "oak", "tree"))[:2] == ("palm tree", "palm trees")
    assert "hot dogs" in shields(("dog",), ())
    assert shields(("cat", "big cat"), ("big cat", "catalog")) == ()


def test_words_one_slip_away_are_words_of_their_own():
    """What the world knows as a word is no slip, however rare the dictionary says it is; of what that lists nothing need be said."""
    assert words_beside(("kitten", "kittens"), {"mitten", "bitten", "kitten", "house", "kittens"}) == ("mitten",)


def test_an_unknown_language_is_refused():
    """A request in a language without words or emoji names says which there are, before anything is loaded."""
    with pytest.raises(ValueError, match="language 'xx' is unknown; use some of ar, de"):
        Request(target="cat", kind="object", languages=("en", "xx"))
    with pytest.raises(UserError, match="'xx'"):
        words("xx")


def test_words_by_frequency():
    """Words that people use are words; strings that stand in some texts by mistake are none."""
    assert all(map(is_word, ("neo", "her", "catalog", "cathedral")))
    assert not any(map(is_word, ("kiten", "kittep", "nnon")))
