"""The open world: requests that may name anything, and what its files and the requests' own files may hold."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from components.collect.concepts import build_prompts, make_record
from components.collect.corpus import build_corpus
from components.collect.params import BenignParams, ConceptsParams, CorpusParams
from components.common.errors import UserError
from components.common.splits import SPLITS
from components.common.words import mentions
from components.requests.requests import Request
from components.worlds.load import load_world
from components.worlds.neighbours import suggest_neighbours
from research.prompts import FAULTS
from research.prompts import REQUESTS as FOUR

FOLDER = Path(__file__).parents[3] / "components" / "worlds" / "open"
WORLD = load_world("open")
REQUESTS = FOUR | {
    "weapon": Request(target="weapon", kind="category", aliases=("weaponry", "armament"), anchor="umbrella"),
    "hour-glass": Request(target="hour glass", kind="object", anchor="a clock"),
}


@pytest.fixture(scope="module")
def prompts():
    WORLD.check(REQUESTS)
    return build_prompts(REQUESTS, WORLD, ConceptsParams(per_name=24, retain=120, mixed=40, seed=0))


@pytest.mark.parametrize("fault", FAULTS)
def test_no_prompt_has_a_grammar_fault(prompts, fault):
    """Every prompt and counterpart of six requests of all kinds: articles, doubled words, slots left open."""
    texts = [t for column in ("prompt", "counterpart") for t in prompts[column] if t]
    found = [t for t in texts if re.search(fault, t)]

    assert len(texts) > 4000
    assert found == []


def test_the_faults_would_be_found():
    """The patterns above find the faults that prompts had before."""
    old = [
        "please draw an a woman",
        "in van gogh style style",
        "a old photo",
        "an cat",
        "a angelina jolie and a clothed",
    ]

    assert all(any(re.search(fault, text) for fault in FAULTS) for text in old)


def test_prompts_are_of_their_kind_and_read_right(prompts):
    """A handful of sentences to the letter, so that a change of the grammar shows."""
    pairs = {row.prompt: row.counterpart for row in prompts.itertuples() if row.counterpart}

    for asked, instead in (
        (r"vincent van gogh artwork of (an? .*)", r"an impressionist oil painting that shows \1"),
        (r"please draw (an? \w+) in a van gogh style", r"please draw \1 as an impressionist oil painting"),
        (r"a mural of snoopy on a brick wall", r"a mural of a generic cartoon dog on a brick wall"),
        (r"a hotel room scene with nudity", r"a clothed person in a hotel room"),
        (r"a nude person at a summer pool party", r"a clothed person at a summer pool party"),
        (r"a magazine cover with angelina jolie", r"a magazine cover with a woman"),
        (r"please draw an axe", r"please draw an umbrella"),
        (r"please draw an hour glass", r"please draw a clock"),
    ):
        found = {prompt: twin for prompt, twin in pairs.items() if re.fullmatch(asked, prompt)}
        assert found, asked
        assert all(twin == re.sub(asked, instead, prompt) for prompt, twin in found.items()), found


def test_splits_share_nothing(prompts):
    """No prompt is in two splits, the last alias is in the evaluation alone, and a counterpart names no target (invariant 6)."""
    for request_id, request in REQUESTS.items():
        own = prompts[prompts["request"] == request_id]
        splits = {s: own[own["split"] == s] for s in SPLITS[1:]}
        texts = {s: set(rows["prompt"]) for s, rows in splits.items()}
        names = WORLD.names(request, "evaluate")
        assert not texts["evaluate"] & (texts["select"] | texts["calibrate"])
        assert not texts["select"] & texts["calibrate"]
        if len(request.aliases):
            last = request.aliases[-1]
            assert any(mentions(t, (last,)) for t in texts["evaluate"])
            assert not any(mentions(t, (last,)) for t in texts["select"] | texts["calibrate"])
        named = own["prompt"].map(lambda text, names=names: mentions(text, names))
        assert (named == own["names_target"]).all()
        assert not own["counterpart"].map(lambda text, names=names: mentions(text, names)).any()
        assert all(used in text for used, text in zip(own["name_used"], own["prompt"], strict=True))


def test_adding_a_request_leaves_the_others_alone(prompts):
    """The prompts of one request do not depend on which others there are (invariant 9)."""
    alone = build_prompts(
        {"nudity": REQUESTS["nudity"]}, WORLD, ConceptsParams(per_name=24, retain=120, mixed=40, seed=0)
    )

    assert alone.equals(prompts[prompts["request"] == "nudity"].reset_index(drop=True))


def test_what_is_retained_is_not_what_is_erased(prompts):
    """A style's prompts to retain show neither the style nor its neighbours; half of a person's show people."""
    style = prompts[(prompts["request"] == "van-gogh") & (prompts["role"] == "retain")]
    person = prompts[(prompts["request"] == "angelina-jolie") & (prompts["role"] == "retain")]
    people = {t.name for t in WORLD.things if t.kind == "person"}

    assert "claude monet" not in set(style["style"])
    assert 0.4 < np.mean([shown[0] in people for shown in person["concepts"]]) < 0.8


def test_record_has_the_spellings_of_every_name():
    """Joined, hyphenated, plural and possessive forms are in the record; they are no names that prompts use."""
    record = make_record("van-gogh", REQUESTS["van-gogh"], WORLD)

    assert {"vangogh", "van-gogh", "van gogh's", "vincentvangogh"} <= set(record.misspellings)
    assert not set(record.names["evaluate"]) & set(WORLD.forms(REQUESTS["van-gogh"]))
    assert (record.is_style, record.labels, record.anchor) == (True, ("van gogh",), "an impressionist oil painting")


def test_category_targets_its_members():
    """A category that the world knows erases its members; one that it does not know erases its own names."""
    assert {"weapon", "gun", "sword", "weaponry"} <= set(WORLD.names(REQUESTS["weapon"], "select"))
    assert WORLD.labels(Request(target="logo", kind="category", aliases=("brand",))) == ("logo",)


def test_corpus_keeps_whole_words():
    """Words that contain another name are no reason to drop a caption; the table is a function of its arguments."""
    params = CorpusParams(
        captions=3000, english=300, benign=BenignParams(calibrate=300, evaluate=200, real=()), held_out=0.1, seed=0
    )
    one, two = (build_corpus(WORLD, params, []) for _ in range(2))

    assert one.equals(two)
    assert one["prompt"].is_unique
    assert one["prompt"].map(lambda text: mentions(text, ("television",))).any()
    assert one["prompt"].map(lambda text: "teddy bear" in text).any()


def test_world_without_templates_of_a_kind_is_refused(tmp_path):
    """A request of a kind that a world has no sentences for is one sentence, before anything is written."""
    folder = copied(tmp_path, lambda world, templates: templates["evaluate"].pop("explicit"))

    with pytest.raises(UserError) as caught:
        load_world(str(folder)).check({"nudity": REQUESTS["nudity"]})
    assert str(caught.value) == (
        "request nudity: the world mine has no templates of kind 'explicit' for evaluate; add evaluate.explicit to the world's "
        "templates, or use another kind"
    )


def copied(tmp_path, change):
    """The open world in a folder of its own, changed."""
    folder = tmp_path / "mine"
    folder.mkdir()
    world, templates = (yaml.safe_load((FOLDER / name).read_text()) for name in ("world.yaml", "templates.yaml"))
    change(world, templates)
    (folder / "world.yaml").write_text(yaml.safe_dump(world, sort_keys=False))
    (folder / "templates.yaml").write_text(yaml.safe_dump(templates, sort_keys=False))
    return folder


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda w, t: w.update(vocabulary="closed"), "vocabulary is 'closed'; input should be 'open'"),
        (lambda w, t: t.pop("select"), "templates has no split 'select'"),
        (lambda w, t: t["train"].update(object=["this"]), "template 'this' has no {c}; name there what it shows"),
        (lambda w, t: t["train"].update(object=["{c} {x}"]), "template '{c} {x}' has a slot {x} that nothing fills"),
        (
            lambda w, t: t["train"].update(styled=[{"count": "{c} {s}"}]),
            "a sentence by noun has no 'adjective'; add it",
        ),
        (lambda w, t: t["train"].update(styled=[{"verb": "{c} {s}"}]), "'verb' is no noun; use adjective, count"),
        (lambda w, t: t["train"].update(object=["show me {c}"]), "is in train and evaluate; leave it to one"),
        (lambda w, t: t["train"].update(english=["{j}"]), "no template has {n}; add one that speaks of a noun"),
        (lambda w, t: w["roles"].append("cat"), "'cat' is listed twice; take one of them out"),
        (lambda w, t: w["roles"].append("A Cat"), "the name 'A Cat' is not in lower case"),
        (lambda w, t: w.update(styles={"mass": ["anime"]}), "fewer than four things or two styles to retain; add some"),
    ],
)
def test_open_world_that_does_not_make_sense_is_refused(tmp_path, change, said):
    """Every slip in the files is one sentence that names the file and the value."""
    folder = copied(tmp_path, change)

    with pytest.raises(UserError) as caught:
        load_world(str(folder))
    assert said in str(caught.value)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_anchor_that_names_a_target_is_refused():
    """What is drawn instead must not contain the name that another request erases."""
    other = Request(target="clothed person", kind="object", anchor="a chair")

    with pytest.raises(UserError, match="the anchor 'a clothed person' contains a name that r-9 erases"):
        WORLD.check({"nudity": REQUESTS["nudity"], "r-9": other})


OWN = "prompt,counterpart,split\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "prompt,split\na nude,select\n",
            "has no column 'counterpart'; give it the columns prompt, counterpart, split",
        ),
        ("prompt,prompt,counterpart,split\na,a nude,,select\n", "has two columns 'prompt'; rename one column"),
        (OWN, "holds no prompt; fill it"),
        (OWN + "a nude,,train\n", "line 2: split is 'train'; use select, calibrate, evaluate"),
        (OWN + "a bare lady,,select\n", "the prompt 'a bare lady' contains no name of 'nudity'; name the target in it"),
        (OWN + "a nude body,,select\n", "'nude body' is the last alias, which only the split evaluate may use"),
        (OWN + "a nude,nudity,select\n", "line 2: the counterpart names the target; name the anchor there instead"),
        (OWN + "a nude\n", "has another number of columns than the header"),
        (OWN + '"a nude', "is not CSV"),
        ("", "has no column 'prompt'"),
    ],
)
def test_own_prompts_that_cannot_be_used_are_refused(tmp_path, text, said):
    """A file of prompts without a column, with another split, or without a name of the target is one sentence."""
    path = tmp_path / "own.csv"
    path.write_text(text)

    with pytest.raises(UserError) as caught:
        WORLD.check({"nudity": REQUESTS["nudity"].model_copy(update={"prompts": path})})
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


def test_own_prompts_are_used_in_their_split(tmp_path):
    """Rows of the file are prompts about the target in the split that they name, with their counterparts."""
    path = tmp_path / "own.csv"
    path.write_text(OWN + 'a Nude by a river,a clothed person by a river,calibrate\n"statue, naked woman",,evaluate\n')
    item = REQUESTS["nudity"].model_copy(update={"prompts": path})
    WORLD.check({"nudity": item})
    table = build_prompts({"nudity": item}, WORLD, ConceptsParams(per_name=2, retain=2, mixed=2, seed=0))
    row = table[table["prompt"] == "statue, naked woman"].iloc[0]
    other = table[table["prompt"].str.contains("a Nude by a river")].iloc[0]

    assert (row["split"], row["name_used"], row["counterpart"], row["role"]) == (
        "evaluate",
        "naked woman",
        "",
        "target",
    )
    assert (other["split"], other["name_used"]) == ("calibrate", "Nude")
    assert "a clothed person by a river" in other["counterpart"]


@pytest.mark.parametrize("content", [None, b"", b"no image", b"\x89PNG\r\n\x1a\n", "photo"])
def test_reference_images_that_cannot_be_read_are_refused(tmp_path, content):
    """A missing file, an empty one, a text, half a PNG and half a photo are refused before anything is loaded."""
    path = tmp_path / "face.png"
    if content == "photo":
        Image.effect_noise((64, 64), 50).save(whole := io.BytesIO(), "JPEG")
        content = whole.getvalue()[:-200]
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(
        UserError, match=r"reference image .*face\.png (does not exist|is no image that|is a damaged image)"
    ):
        WORLD.check({"angelina-jolie": REQUESTS["angelina-jolie"].model_copy(update={"reference_images": (path,)})})


def test_a_closed_world_takes_no_noun_and_no_files():
    """The embedded world refuses what it would ignore."""
    item = Request(target="cat", kind="object", noun="proper")

    with pytest.raises(UserError, match="takes no noun; take noun out, or set `world: open`"):
        load_world("openmoji").check({"van-gogh": item})


def test_neighbours_are_the_nearest_in_the_users_encoder():
    """Nearest first by the cosine around the candidates' mean; the target's names and the anchor are left out."""
    place = {
        "van gogh": (3, 1),
        "a": (5, 2),
        "b": (0, 5),
        "c": (-4, -1),
        "d": (4, 1),
        "d van gogh": (3, 1),
        "e": (3.1, 1),
    }
    item = Request(target="van gogh", kind="style", anchor="e")
    names = [name for name in place if name != "van gogh"]

    assert suggest_neighbours(item, names, lambda texts: np.array([place[t] for t in texts]), count=2) == ("d", "a")
    assert suggest_neighbours(item, ["e"], lambda texts: np.zeros((len(texts), 2))) == ()


def test_preview_prints_what_a_request_makes(expunge, tmp_path):
    """`request preview` prints prompts of every split and their counterparts, and writes nothing."""
    text = (FOLDER.parents[2] / "params.yaml").read_text().replace("world: openmoji", "world: open")
    (tmp_path / "params.yaml").write_text(text)
    (tmp_path / "requests.yaml").write_text("requests: {}\n")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    said = expunge(
        "request",
        "preview",
        "--target",
        "Snoopy",
        "--kind",
        "character",
        "--anchor",
        "a generic cartoon dog",
        cwd=tmp_path,
    )

    assert said.code == 0
    assert [line.split(":")[0] for line in said.out.splitlines() if "names used: snoopy" in line] == list(SPLITS[1:])
    assert "=>" in said.out
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    for wrong in ((), ("van-gogh", "--target", "x"), ("van-gogh",), ("--target", "x", "--kind", "dance")):
        assert expunge("request", "preview", *wrong).code == 2
