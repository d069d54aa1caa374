"""Files of a world that do not make sense: each is refused with one sentence."""

import shutil
from pathlib import Path

import pytest
import yaml

from components.common.errors import UserError
from components.worlds.load import load_world
from components.worlds.templated import read_world
from tests.toyworld import TOY, write_toy

OPENMOJI = Path(__file__).parents[3] / "components" / "worlds" / "openmoji"


def put(*keys, value):
    """A change of one key of the file; without a value the key goes."""

    def change(content):
        for key in keys[:-1]:
            content = content[key]
        if value is None:
            del content[keys[-1]]
        else:
            content[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (put("default_style", value="oil"), "; default_style 'oil' is not among the styles (photo, woodcut)"),
        (put("default_style", value=None), "lacks the key 'default_style'; add it"),
        (put("colour", value=1), " has an unknown key 'colour'; remove it or mend its spelling"),
        (put("words", value="nltk"), ": words.package is 'nltk'; input should be 'wonderwords'"),
        (
            put("words", "nouns", value=["river"]),
            ": words.lists.nouns is ['river']; tuple should have at least 2 items",
        ),
        (put("concepts", "kettle", value=None), ": concepts; dictionary should have at least 4 items"),
        (put("styles", "woodcut", value=None), ": styles; dictionary should have at least 2 items"),
        (
            put("concepts", "cat", "aliases", value=[]),
            ": concepts.cat.aliases is []; tuple should have at least 1 item",
        ),
        (put("concepts", "cat", "neighbours", value=["lion"]), ": neighbour 'lion' of concept 'cat' is no concept"),
        (
            put("concepts", "dog", "aliases", value=["kitty"]),
            ": 'kitty' names two things; every name and alias means one",
        ),
        (put("concepts", "dog", "aliases", value=["Rex"]), ": the name 'Rex' is not in lower case with single spaces"),
        (
            put("templates", "select", value=None),
            ": templates has no split 'select'; each of train, select, calibrate,",
        ),
        (put("templates", "select", "plain", value=["this"]), "; template 'this' has no {c}; name there what it shows"),
        (put("templates", "train", "styled", value=["{c}"]), "; template '{c}' has no {s}; name there what it shows"),
        (put("templates", "train", "plain_pair", value=["{a}"]), "; template '{a}' has no {b}; name there what it"),
        (
            put("templates", "train", "plain", value=["{c} {x}"]),
            "; template '{c} {x}' has a slot {x} that nothing fills",
        ),
        (put("templates", "train", "plain", value=["{c"]), "; expected '}' before end of string"),
        (
            put("templates", "train", "english", value=["{j} {m}"]),
            "; no template has {n}; add one that speaks of a noun",
        ),
        (
            put("templates", "train", "plain", value=["draw {c}"]),
            ": template 'draw {c}' is in train and evaluate; leave it",
        ),
        (
            put("templates", "train", "plain", value=["a lamp on {c}"]),
            "; template 'a lamp on {c}' of train holds 'lamp', which is reserved for the evaluation",
        ),
    ],
)
def test_world_that_does_not_make_sense_is_refused(tmp_path, change, said):
    """Every slip in world.yaml is one sentence that names the file, the value and what to do."""
    path = write_toy(tmp_path) / "world.yaml"
    content = yaml.safe_load(TOY)
    change(content)
    path.write_text(yaml.safe_dump(content, sort_keys=False))

    with pytest.raises(UserError) as caught:
        read_world(path.parent)

    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"), [("", "input should be an object"), ("[1]", "input should be an object"), ("a: {", "is not YAML")]
)
def test_world_that_is_no_mapping_is_refused(tmp_path, text, said):
    """An empty file, a list and broken YAML are refused with one sentence."""
    path = write_toy(tmp_path) / "world.yaml"
    path.write_text(text)

    with pytest.raises(UserError, match=said) as caught:
        read_world(path.parent)
    assert str(path) in str(caught.value)


def test_unknown_world_is_refused():
    """A name that is no world, or none at all, lists those that ship."""
    for name in ("atlantis", ""):
        with pytest.raises(UserError) as caught:
            load_world(name)

        assert (
            str(caught.value) == f"world {name!r} is unknown; use one of open, openmoji, or a folder with a world.yaml"
        )


def test_world_folder_that_lacks_a_file_is_refused(tmp_path):
    """Without templates.yaml, and without world.yaml, the sentence names the file that is missing."""
    folder = Path(shutil.copytree(OPENMOJI, tmp_path / "mine", ignore=shutil.ignore_patterns("*.py")))
    assert load_world(str(folder)).name == "mine"
    (folder / "templates.yaml").unlink()

    with pytest.raises(UserError, match=r"mine has no templates.yaml; add it, or a key `templates` in world.yaml"):
        load_world(str(folder))
    (folder / "world.yaml").unlink()
    with pytest.raises(UserError, match=r"mine is no world: it has no world.yaml; mend `world` in params.yaml"):
        read_world(folder)
    with pytest.raises(UserError, match="mine' is unknown"):
        load_world(str(folder))
