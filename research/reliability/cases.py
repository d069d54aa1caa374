"""One mutated requests.yaml, params.yaml or table of prompts at a time."""

from __future__ import annotations

import csv
import io
import json
import random
import re
import unicodedata
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from research.reliability.mutate import NO_FILES, Case, encoded, fuzzed, yaml_case

PARAMS = yaml.safe_load((Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"))
OPTIONAL = ("sources", "relative_to_base", "attack", "second_judge")
"""Keys that docs/ say may be left out; a project without any judge is legal, too."""
NAMED = ("sizes", "images", "margin")
"""Mappings whose keys are the user's choice: one less is no mistake, one of a name that means nothing is."""
CHOICES = ("activation", "metric", "hold", "precision", "variant", "direction", "size")
WORDS = ("cat", "Dog", "wind turbine", "café", "naïve art", "rock 'n' roll", "007", "no", "猫", "lion", "x-ray", "null", "Straße")  # fmt: skip
INVISIBLE = ("\u200b", "\u202e", "\u00ad", "\u2060", "\x07", "\n", "\u2028", "\u3164", "\ufe0f", "\U000e0041", "\ud800")
IDS = ("../x", "..", "a/17", "ticket 17", "a@2024", "", "-x", "Upper", "joint", "a" * 64, "r\n", "${x}", "é", "a.b", "r;ls", "~")  # fmt: skip
NOT_TEXT = (True, 3, 3.5, None, [], ["a"], {}, float("nan"))


def _some_requests(rng: random.Random) -> dict[str, Any]:
    """Valid requests; no two names in the file are alike."""
    numbers = iter(range(1000))

    def names(low: int, high: int) -> list[str]:
        return [f"{rng.choice(WORDS)} {next(numbers)}" for _ in range(rng.randint(low, high))]

    return {
        f"r-{rng.randrange(16**8):08x}": {
            "target": names(1, 1)[0], "kind": rng.choice(["object", "style", "character", "category", "person", "explicit"]),
            "aliases": names(0, 4), "anchor": rng.choice(["", *names(1, 1)]), "neighbours": names(0, 2),
            "channels": rng.choice([["filter"], ["guidance"], ["filter", "guidance"]]),
        }
        for _ in range(rng.randint(1, 4))
    }  # fmt: skip


def _bad_name(rng: random.Random) -> tuple[str, object]:
    word = rng.choice(WORDS)
    return rng.choice(
        [
            ("no text", rng.choice(NOT_TEXT)), ("empty name", rng.choice(["", " ", "\t "])), ("comma", f"{word}, {word} two"),
            ("wide comma", f"{word}\uff0c2"), ("no letter", rng.choice([".", "--", "🐈", "?!", "＿"])), ("long name", "x " * 150),
            ("invisible", f"{word[:1]}{rng.choice(INVISIBLE)}{word[1:]}{word}"), ("only invisible", "\u200b"),
        ]
    )  # fmt: skip


def _other_spelling(name: str, rng: random.Random) -> str:
    """The same name in other letters."""
    wide = "".join(chr(ord(c) + 0xFEE0) if "!" < c <= "~" and c != "," else c for c in name)
    return rng.choice([name.upper(), name.title(), f" {name.replace(' ', '  ')} ", wide, name])


def _requests_meaning(content: dict[str, Any], rng: random.Random) -> str:
    """Makes valid requests such that they must be refused; says how."""
    requests = content["requests"]
    request_id = rng.choice(list(requests))
    request = requests[request_id]
    what = rng.choice(
        ["id", "target", "alias", "neighbour", "anchor", "many aliases", "same alias", "anchor is name", "neighbour is name", "shared name", "erased anchor", "missing", "kind", "channels", "text for list", "no mapping"]
    )  # fmt: skip
    said, bad = _bad_name(rng)
    name = _other_spelling(rng.choice([request["target"], *request["aliases"]]), rng)
    another = {"target": "something else", "kind": "object"}
    lists = {"alias": "aliases", "neighbour": "neighbours", "same alias": "aliases", "neighbour is name": "neighbours"}
    if what == "id":
        requests[rng.choice(IDS)] = requests.pop(request_id)
    elif what in lists:
        request[lists[what]].insert(0, bad if what in ("alias", "neighbour") else name)
    elif what in ("shared name", "erased anchor"):
        requests["another"] = another | ({"aliases": [name]} if what == "shared name" else {"anchor": name})
    elif what == "missing":
        del request[rng.choice(["target", "kind"])]
    elif what == "no mapping":
        content["requests"] = rng.choice([None, [], [request], "cat", 7, {request_id: None}, {request_id: [request]}])
    else:
        request |= {
            "target": {"target": bad},
            "anchor": {"anchor": "a, b" if bad in ("", " ", "\t ") else bad},
            "many aliases": {"aliases": [f"name {i}" for i in range(rng.choice([101, 1000]))]},
            "anchor is name": {"anchor": name},
            "kind": {"kind": rng.choice(["thing", "", "Object", True, None, ["object"]])},
            "channels": {"channels": rng.choice([[], ["erase"], ["filter", "filter"], "filter", None, [True]])},
            "text for list": {
                rng.choice(["aliases", "neighbours"]): rng.choice(["a, b", "kitty", None, 7, {"a": "b"}])
            },
        }[what]
    return f"{what} ({said})" if what in ("target", "alias", "neighbour", "anchor") else what


def requests_case(rng: random.Random) -> Case:
    """One requests.yaml."""
    if rng.random() < 0.02:
        return Case("no request", "accept", "requests.yaml", rng.choice([b"", b"# none\n", b"{}", b"requests: {}\n"]))
    case = yaml_case("requests.yaml", {"requests": _some_requests(rng)}, _requests_meaning, rng)
    return case._replace(must="refuse") if case.must == "either" and _is_wrong(case.content) else case


def _is_wrong(data: object) -> bool:
    """Whether altered bytes, as another reader (PyYAML) understands them, break a rule of requests.yaml."""
    try:
        requests = yaml.safe_load(bytes(data).decode("utf-8-sig"))["requests"]  # type: ignore[arg-type]
        names = [n for r in requests.values() for n in (r["target"], *r.get("aliases", ()), *r.get("neighbours", ()))]
        return not (
            all(re.fullmatch("[a-z0-9][a-z0-9-]{0,62}", request_id) for request_id in requests)
            and all(re.search(r"\w", n) and "," not in n and len(n) < 300 for n in names)
            and all(unicodedata.category(c)[0] != "C" for n in names for c in n.strip())
            and all(
                set(r) <= {"target", "kind", "aliases", "anchor", "neighbours", "channels"} for r in requests.values()
            )
        )
    except Exception:  # noqa: BLE001 - not what PyYAML reads, which is YAML 1.1; the product's may know better
        return False


def _places(content: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:  # noqa: ANN401 - YAML
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, below in items for place in ((*above, key), *_places(below, (*above, key)))]


def _params_meaning(content: dict[str, Any], rng: random.Random) -> str:
    """Makes valid parameters such that they must be refused; says how."""
    *above, key = rng.choice(_places(content))
    within: Any = content
    for part in above:
        within = within[part]
    value = within[key]
    numbers = (float("nan"), float("inf"), 10**20, "3", "many", "", None, True, [], [1], {})
    if rng.random() < 0.15 and isinstance(within, dict):
        if (above and key in OPTIONAL) or rng.random() < 0.5 or above[-1:] in ([name] for name in (*NAMED, "judge")):
            within["widht"] = rng.choice([value, 1, "x"])
            return (
                "unknown key"
                if above[-1:] != ["sizes"] or not isinstance(within["widht"], dict)
                else _params_meaning(content, rng)
            )
        del within[key]
        return f"missing {key}"
    if isinstance(value, bool):
        within[key] = rng.choice([0, 1, "false", "yes", None, 0.0, []])
    elif isinstance(value, int):
        within[key] = rng.choice([*numbers, -1, 1.5, 3.0])
    elif isinstance(value, float):
        within[key] = rng.choice(numbers)
    elif isinstance(value, str):
        within[key] = rng.choice(
            [
                v
                for v in (*NOT_TEXT, "nonsense" if key in CHOICES else False)
                if v is not None and not (key == "hookpoint" and v == ["a"])  # a list of one for each text encoder
            ]
        )
    else:
        within[key] = rng.choice([None, "text", 7, True, [7], {"a": 7}])
    return f"{key} is {within[key]!r}"


def params_case(rng: random.Random) -> Case:
    """One params.yaml."""
    return yaml_case("params.yaml", PARAMS, _params_meaning, rng)


def _csv(rows: list[list[str]], rng: random.Random) -> str:
    text = io.StringIO()
    csv.writer(text, quoting=rng.choice([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]), lineterminator=rng.choice(["\n", "\r\n"])).writerows(rows)  # fmt: skip
    return text.getvalue()


def _parquet(column: pa.Array, name: str = "prompt") -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({name: column, "id": pa.array(range(len(column)))}), out)
    return out.getvalue()


def _good_table(suffix: str, prompts: list[str], rng: random.Random) -> bytes:
    if suffix == ".csv":
        wide = rng.random() < 0.5
        rows = (
            [["id", "prompt"], *([str(i), p] for i, p in enumerate(prompts))]
            if wide
            else [["prompt"], *([p] for p in prompts)]
        )
        return (rng.choice(["", "\ufeff"]) + _csv(rows, rng)).encode()
    if suffix == ".jsonl":
        end, ascii_only = rng.choice(["\n", "\r\n", "\n\n"]), rng.random() < 0.5
        return end.join(json.dumps({"n": 7, "prompt": p}, ensure_ascii=ascii_only) for p in prompts).encode()
    kind = rng.choice([pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
    return _parquet(pa.array(prompts, pa.string()).cast(kind))


def _bad_table(suffix: str, prompts: list[str], rng: random.Random) -> tuple[str, bytes]:
    """What must be refused, and why."""
    good = [{"prompt": p} for p in prompts]
    lines = [json.dumps(row) for row in good]
    at = rng.randrange(len(lines))
    if suffix == ".csv":
        rows = [["id", "prompt"], *([str(i), p] for i, p in enumerate(prompts))]
        text = _csv(rows, rng)
        return rng.choice(
            [
                encoded(text, rng), ("unquoted comma", f"{text}9,a, b\n".encode()), ("short row", f"{text}9\n".encode()),
                ("empty", rng.choice([b"", b"\n \n"])), ("header alone", b"id,prompt\n"), ("blank prompts", b"id,prompt\n1, \n2,\n"),
                ("no column", text.replace("prompt", "Prompt").encode()), ("two columns", _csv([["prompt", "prompt"], *rows[1:]], rng).encode()),
                ("semicolons", text.replace(",", ";").encode()), ("open quote", f'{text}9,"a\n'.encode()), ("text behind a quote", f'{text}9,"a"b\n'.encode()),
                ("no header", _csv(rows[1:], rng).encode()), ("long field", f"{text}9,{'x' * 200_000}\n".encode()),
            ]
        )  # fmt: skip
    if suffix == ".jsonl":
        what, bad = rng.choice(
            [
                ("cut", lines[at][:-1]), ("list", '{"prompt": ["a"]}'), ("number", '{"prompt": 7}'), ("NaN", '{"prompt": NaN}'),
                ("true", '{"prompt": true}'), ("object", '{"prompt": {"a": 1}}'), ("half a character", '{"prompt": "\\udc80"}'),
                ("NUL", '{"prompt": "a\\u0000b"}'), ("array", json.dumps(good)), ("no object", rng.choice(["7", '"a"', "null", "[]"])),
                ("twice", '{"prompt": "a", "prompt": "b"}'), ("no key", '{"Prompt": "a"}'), ("nested", '{"x": ' + "[" * rng.choice([2_000, 100_000])),
                ("nested and closed", '{"prompt": ' + "[" * 50_000 + "]" * 50_000 + "}"), ("long number", '{"prompt": "a", "x": ' + "9" * 5000 + "}"),
                ("single quotes", "{'prompt': 'a'}"), ("two objects", lines[at] * 2), ("comma", f"{lines[at]},"),
            ]
        )  # fmt: skip
        text = "\n".join([*lines[:at], bad, *lines[at:]])
        return rng.choice([(what, text.encode())] * 9 + [encoded(text, rng)])
    whole = _parquet(pa.array(prompts))
    return rng.choice(
        [
            ("cut", whole[: rng.randrange(len(whole))]), ("numbers", _parquet(pa.array([7, 8]))), ("lists", _parquet(pa.array([["a"], ["b"]]))),
            ("binary", _parquet(pa.array([b"a"]))), ("no column", _parquet(pa.array(["a"]), "Prompt")), ("NUL", _parquet(pa.array(["a\0"]))),
            ("missing", _parquet(pa.array([None, " "]))), ("no rows", _parquet(pa.array([], pa.string()))), ("text", b"prompt\na\n"), ("empty", b""),
            ("structs", _parquet(pa.array([{"a": "b"}]))), ("half a character", _parquet(pa.Array.from_buffers(pa.string(), 1, [None, pa.py_buffer(b"\0\0\0\0\3\0\0\0"), pa.py_buffer(b"\xed\xa0\x80")]))),
        ]
    )  # fmt: skip


def table_case(rng: random.Random) -> Case:
    """One table of prompts."""
    suffix, sort = rng.choice([".csv", ".jsonl", ".parquet"]), rng.random()
    words = (*WORDS, "NA", "nan", "1e5", "True", "", "  ", 'said "hi", twice', "two\nlines", "a, b", "🐈", " edge ", "'", "\u2028", "\x85x")  # fmt: skip
    prompts = [*rng.choices(words, k=rng.randint(0, 12)), "last"]
    if sort < 0.05:
        return Case(kind := rng.choice(NO_FILES), "refuse", f"prompts{suffix}", kind)
    if sort < 0.07:
        return Case("another suffix", "refuse", "prompts.txt", b"prompt\na\n")
    if sort < 0.55:
        what, data = _bad_table(suffix, prompts, rng)
        return Case(what, "refuse", f"prompts{suffix}", data)
    good = _good_table(suffix, prompts, rng)
    if sort < 0.8:
        return Case("as it is", "accept", f"prompts{suffix}", good, [p for p in prompts if p.strip()])
    return Case("altered bytes", "either", f"prompts{suffix}", fuzzed(good, rng))
