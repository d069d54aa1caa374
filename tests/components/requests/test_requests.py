from pathlib import Path

import pytest
import yaml

from components.common.errors import UserError
from components.requests.edit import add_request
from components.requests.requests import Request, check_id, check_names, load_requests
from components.worlds.load import load_world

ROOT = Path(__file__).parents[3]
CAT = {"target": "cat", "kind": "object", "aliases": ["kitty", "feline"], "anchor": "dog", "neighbours": ["lion"]}


def write(path, *records):
    path.write_text(yaml.safe_dump({"requests": {f"r-{i}": record for i, record in enumerate(records)}}))
    return path


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"target": ""}, "target"),
        ({"target": "  "}, "a name is empty; write it or take it out"),
        ({"aliases": [""]}, "a name is empty"),
        ({"neighbours": [" "]}, "a name is empty"),
        ({"aliases": ["kitty, feline"]}, "a name holds a comma; list each name on its own"),
        ({"aliases": ["kitty，feline"]}, "a name holds a comma"),
        ({"target": "."}, "a name holds no letter or digit; write it in words"),
        ({"aliases": ["🐈"]}, "a name holds no letter or digit"),
        ({"aliases": ["\u200b"]}, "a name holds an invisible or control character; take it out"),
        ({"aliases": ["kit\u200bty"]}, "a name holds an invisible"),
        ({"anchor": "d\u202eog"}, "a name holds an invisible"),
        ({"target": "\u3164cat"}, "a name holds an invisible"),
        ({"target": "big\ncat"}, "a name holds an invisible or control character"),
        ({"aliases": ["x" * 201]}, "a name is longer than 200 characters"),
        ({"aliases": [f"cat{i}" for i in range(101)]}, "at most 100 items"),
        ({"aliases": ["feline", "Feline"]}, "'feline' and 'feline' are one name; take one of them out"),
        ({"aliases": ["CAT"]}, "'cat' and 'cat' are one name"),
        ({"aliases": ["ｃａｔ"]}, "'cat' and 'ｃａｔ' are one name"),
        ({"aliases": ["straße", "STRASSE"]}, "are one name"),
        ({"anchor": "ＣＡＴ"}, "is the target itself"),
        ({"aliases": "kitty"}, "aliases is 'kitty'"),
        ({"aliases": [True]}, "aliases.0 is True"),
        ({"target": 7}, "target is 7"),
        ({"channels": ["filter", "filter"]}, "channels names one twice"),
        ({"anchor": "cat"}, "the anchor 'cat' is the target itself; name something else"),
        ({"anchor": "Kitty"}, "the anchor 'kitty' is the target itself"),
        ({"neighbours": ["lion", "cat"]}, "'cat' is target and neighbour at once"),
        ({"channels": []}, "channels is empty; use filter, guidance or both"),
        ({"channels": ["erase"]}, "channels"),
        ({"kind": "thing"}, "kind"),
        ({"colour": "red"}, "unknown key 'requests.r-0.colour'"),
    ],
)
def test_request_bad_input_is_one_sentence(tmp_path, change, said):
    """What does not make sense is refused with the request's id and the reason."""
    with pytest.raises(UserError) as caught:
        load_requests(write(tmp_path / "requests.yaml", CAT | change))

    assert said in str(caught.value)
    assert "requests.r-0" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_request_names_are_unique_over_requests(tmp_path):
    """One alias cannot belong to two requests."""
    other = {"target": "lion", "kind": "object", "aliases": ["ＦＥＬＩＮＥ"]}

    with pytest.raises(UserError, match="'ｆｅｌｉｎｅ' is a name of both r-0 and r-1; leave it to one of them"):
        load_requests(write(tmp_path / "requests.yaml", CAT, other))


def test_request_anchor_that_another_request_erases_is_refused(tmp_path):
    """Nothing may draw what another request erases, whether it says so by a name or by its category."""
    dog = {"target": "dog", "kind": "object", "anchor": "horse"}
    weapon = {"target": "weapon", "kind": "category", "anchor": "umbrella"}
    axe = {"target": "key", "kind": "object", "anchor": "axe"}

    with pytest.raises(UserError, match="the anchor 'dog' of r-0 is erased by r-1; draw something that no request"):
        load_requests(write(tmp_path / "requests.yaml", CAT, dog))
    with pytest.raises(UserError, match="request r-1: the anchor 'axe' is erased by r-0; draw something"):
        load_world("openmoji").check(load_requests(write(tmp_path / "requests.yaml", weapon, axe)))


@pytest.mark.parametrize(
    "request_id",
    ["../x", "legal/17", "ticket 17", "acme@2024", "", "-x", "X", "joint", "a" * 64, "r-1\n", "${x}", "é", ".", "a.b"],
)
def test_an_id_that_is_no_plain_word_is_refused(tmp_path, request_id):
    """An id becomes part of paths and commands, so the file that holds another is not read."""
    with pytest.raises(UserError, match=r"request id .* is not allowed; use at most 63 of a-z, 0-9 and -"):
        check_id(request_id)
    path = tmp_path / "requests.yaml"
    path.write_text(yaml.safe_dump({"requests": {request_id: CAT}}))
    with pytest.raises(UserError, match=r"requests.yaml: request id .* is not allowed") as caught:
        load_requests(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("request_id", ["r-5c1e09a7", "a", "0", "17", "a" * 63, "joint-1"])
def test_plain_ids_are_allowed(tmp_path, request_id):
    """Letters, digits and hyphens, up to 63 of them."""
    path = tmp_path / "requests.yaml"
    path.write_text(yaml.safe_dump({"requests": {request_id: CAT}}))

    assert list(load_requests(path)) == [request_id]


@pytest.mark.parametrize("content", ["", "# none\n", "{}", "requests: {}\n"])
def test_no_request_at_all_is_valid(tmp_path, content):
    """An empty file and an empty mapping hold no request."""
    path = tmp_path / "requests.yaml"
    path.write_text(content)

    assert load_requests(path) == {}


@pytest.mark.parametrize("content", ["", "{}\n", "requests: {}\n"])
def test_dvc_parses_the_graph_without_any_request(tmp_path, content):
    """The graph resolves to the stages that no request adds to."""
    from dvc.parsing import DataResolver
    from dvc.repo import Repo

    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "requests.yaml").write_text(content)
    repo = Repo.init(tmp_path, no_scm=True)
    resolver = DataResolver(repo, str(tmp_path), yaml.safe_load((tmp_path / "dvc.yaml").read_text()))

    assert list(resolver.get_keys()) == [
        "base",
        "corpus",
        "sae",
        "concepts",
        "features",
        "evaluate",
        "attack",
        "export",
    ]


def test_names_that_look_like_other_values_are_names(tmp_path):
    """`no` is a word to this reader as it is to dvc, and a name may hold digits, accents, hyphens and apostrophes."""
    path = tmp_path / "requests.yaml"
    path.write_text("requests: {r-1: {target: no, kind: object, aliases: ['007', Café, \"rock 'n' roll\", a-b]}}")

    assert load_requests(path)["r-1"].names == ("no", "007", "café", "rock 'n' roll", "a-b")


def test_requests_that_overlap_in_the_world_are_refused(tmp_path):
    """A category and one of its members erase the same thing, in either order."""
    weapon = {"target": "weapon", "kind": "category", "anchor": "umbrella"}
    axe = {"target": "axe", "kind": "object", "anchor": "key"}
    world = load_world("openmoji")

    for records in ((weapon, axe), (axe, weapon)):
        with pytest.raises(UserError, match="request r-1: 'axe' is erased by r-0 already; withdraw one of the two"):
            world.check(load_requests(write(tmp_path / "requests.yaml", *records)))


@pytest.mark.parametrize("alias", ["the", "It", "for all of you", "ｔｈｅ", "the.", "“you”!", "of/and"])
def test_a_name_of_everyday_words_alone_is_refused_where_it_comes_in(tmp_path, alias):
    """In whichever spelling; what was written before the rule can still be read."""
    path = write(tmp_path / "requests.yaml", CAT)
    before = path.read_text()
    with pytest.raises(UserError, match="stands in nearly every prompt; add a word that tells the target apart"):
        add_request({"target": "owl", "kind": "object", "aliases": [alias]}, path)
    assert path.read_text() == before

    assert load_requests(write(path, CAT | {"aliases": [alias]}))
    for name in ("for all of us", "no", "the who band", "猫"):
        check_names(Request(target=name, kind="object"))
