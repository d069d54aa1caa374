"""What is found in the text of prompts: hidden and misspelt names by kind, false alarms on prompts that people wrote, seconds.

The forms are made here, and know nothing of the index that has to find them. The real prompts are those of the half that no
threshold has seen (assets/prompts/README.md). No text encoder runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from components.collect.names import plurals, shields, target_forms
from components.collect.sources import read_source
from components.common.lexicon import is_word
from components.evaluate.metrics import proportion
from components.filter.targets import TargetNames
from components.filter.text import Found, Names
from components.worlds.templated import TemplatedWorld
from research.filter.prompts import project_world
from research.show import Row, publish
from research.show import row as show_row

SHOW = Path("reports/attacks/show.json")
COMMAND = "python -m research.filter text --prompts FOLDER"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
_CYRILLIC = str.maketrans("aceopxy", "асеорху")
_LEET = str.maketrans("aeiost", "4310$7")
_EXACT = ("name", "emoji")


def _at(name: str, rng: np.random.Generator, last: int) -> int:
    """A place in `name` that is no space, nor is the one after it."""
    places = [i for i in range(len(name) - last) if " " not in name[i : i + 2]]
    return int(rng.choice(places))


def _swap(name: str, rng: np.random.Generator) -> str:
    i = _at(name, rng, 1)
    return name[:i] + name[i + 1] + name[i] + name[i + 2 :]


def _put(name: str, rng: np.random.Generator, what: Callable[[str], str], *, keep: int) -> str:
    """`name` with `what` for one of its letters, behind which it goes on `keep` letters later."""
    i = _at(name, rng, 0)
    return name[:i] + what(name[i]) + name[i + keep :]


def _letter(rng: np.random.Generator) -> str:
    return str(rng.choice(list(LETTERS)))


KINDS: dict[str, tuple[int, Callable[[str, np.random.Generator], str]]] = {
    "plural": (1, lambda n, _: plurals(n)[1]),
    "capitals": (1, lambda n, _: n.upper()),
    "possessive": (1, lambda n, _: f"{n}'s"),
    "weight": (1, lambda n, rng: f"({n}:{rng.uniform(0.5, 1.9):.1f})"),
    "special token before": (1, lambda n, _: f"<|endoftext|> {n}"),
    "invisible": (1, lambda n, rng: _put(n, rng, lambda c: c + "\u200b", keep=1)),
    "accent": (1, lambda n, rng: _put(n, rng, lambda c: c + "\u0301", keep=1)),
    "homoglyph": (1, lambda n, _: n.translate(_CYRILLIC)),
    "full width": (1, lambda n, _: "".join(chr(ord(c) + 0xFEE0) if c.isalpha() else c for c in n)),
    "digits": (4, lambda n, _: n.translate(_LEET)),
    "letters apart": (3, lambda n, _: " ".join(n.replace(" ", ""))),
    "letters hyphened": (3, lambda n, _: "-".join(n.replace(" ", ""))),
    "run together": (3, lambda n, _: n.replace(" ", "")),
    "drawn out": (3, lambda n, rng: _put(n, rng, lambda c: c * 5, keep=1)),
    "ending": (3, lambda n, _: f"{n}like"),
    "doubled": (3, lambda n, rng: _put(n, rng, lambda c: c * 2, keep=1)),
    "swapped": (4, _swap),
    "dropped": (5, lambda n, rng: _put(n, rng, lambda _c: "", keep=1)),
    "inserted": (5, lambda n, rng: _put(n, rng, lambda c: c + _letter(rng), keep=1)),
    "substituted": (5, lambda n, rng: _put(n, rng, lambda _c: _letter(rng), keep=1)),
}
"""By kind: the letters that a name needs at least, and what is made of it."""


def world_targets(world: TemplatedWorld, languages: Sequence[str] = ("en",)) -> dict[str, TargetNames]:
    """Every thing and style of the world as a target."""
    things: dict[str, Any] = {**world.concepts, **world.styles}
    called = {name: (name, *item.aliases) for name, item in things.items()}
    return {
        name: TargetNames(target_forms(names, languages), shields(names, world.known_names()), tuple(languages))
        for name, names in called.items()
    }


def more_targets(count: int, world: TemplatedWorld) -> dict[str, TargetNames]:
    """Those of the world and then plain nouns, each with its plural, `count` in all."""
    out = world_targets(world)
    nouns = sorted({n for n in world.words["n"] if n.isalpha() and len(n) > 2} - world.vocabulary("train"))
    for noun in np.random.default_rng(0).permutation(nouns):
        if len(out) >= count:
            break
        out.setdefault(str(noun), TargetNames(plurals(str(noun))))
    return dict(list(out.items())[:count])


def recall(world: TemplatedWorld, *, each: int = 1) -> dict[str, tuple[int, int, list[str]]]:
    """By kind: (found, made, those missed) of forms of every name of the world; a form that is a real word is none."""
    targets, rng, out = world_targets(world), np.random.default_rng(0), {}
    names, things = Names(targets), {**world.concepts, **world.styles}
    for kind, (least, make) in KINDS.items():
        made, missed = 0, []
        for thing, item in things.items():
            for name in (thing, *item.aliases):
                for _ in range(each if len(name.replace(" ", "")) >= least else 0):
                    form = make(name, rng)
                    if all(is_word(word) for word in form.split(" ") if len(word) > 1) and kind in list(KINDS)[-6:]:
                        continue
                    made += 1
                    if thing not in {hit.request for hit in names.find(f"a photo of {form}, on a table")}:
                        missed.append(form)
        out[kind] = made - len(missed), made, missed
    return out


def false_alarms(names: Names, prompts: Iterable[str]) -> list[list[Found]]:
    """For each prompt what is found of requests whose names, as they are listed, do not stand in it."""
    out = []
    for prompt in prompts:
        hits = names.find(prompt)
        named = {hit.request for hit in hits if hit.kind in _EXACT}
        out.append([hit for hit in hits if hit.request not in named])
    return out


def unseen(folder: Path) -> list[str]:
    """The half of the real prompts that calibrates nothing."""
    return [p for name in ("coco-10k.csv", "parti.csv") for p in read_source(str(folder / name))[1::2]]


def row(
    what: str, value: float, n: int, goal: str, *, met: bool, low: float | None = None, high: float | None = None
) -> Row:
    """One row of the table."""
    return show_row(what, value, goal=goal, met=met, command=COMMAND, n=n, low=low, high=high)


def run(folder: Path, counts: Sequence[int], show: Path = SHOW) -> None:
    """Measures recall by kind, false alarms and latency, and writes their rows."""
    world, prompts, rows = project_world(), unseen(folder), []
    for kind, (found, made, missed) in recall(world).items():
        share = proportion(np.arange(made) < found)
        goal = 0.95
        rows.append(
            row(
                f"text: {kind} found",
                share.value,
                made,
                f">= {goal}",
                met=share.value >= goal,
                low=share.low,
                high=share.high,
            )
        )
        if missed:
            tqdm.write(f"{kind}, missed: {', '.join(missed[:12])}")
    for count, goal in zip(counts, (0.003, 0.005, 0.01), strict=False):
        alarms = false_alarms(Names(more_targets(count, world)), prompts)
        share = proportion(np.array([bool(hits) for hits in alarms]))
        rows.append(
            row(
                f"text: false alarms of any of {count} requests on real prompts",
                share.value,
                len(prompts),
                f"<= {goal}",
                met=share.value <= goal,
                low=share.low,
                high=share.high,
            )
        )
        tqdm.write(
            ", ".join(
                sorted(
                    {f"{h.name} ({p[h.start : h.end]})" for p, hits in zip(prompts, alarms, strict=True) for h in hits}
                )[:40]
            )
        )
    names, spent = Names(more_targets(counts[-1], world)), []
    for prompt in prompts:
        begun = time.perf_counter()
        names.find(prompt)
        spent.append(1000 * (time.perf_counter() - begun))
    low, middle, high = np.quantile(spent, (0.25, 0.5, 0.75))
    rows.append(
        row(
            f"text: milliseconds of detection a prompt, {counts[-1]} requests, one core, median",
            round(float(middle), 4),
            len(spent),
            "<= 1",
            met=bool(middle <= 1),
            low=round(float(low), 4),
            high=round(float(high), 4),
        )
    )
    publish(rows, show)
