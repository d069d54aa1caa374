"""Do the prompts of real requests read right? Fifty of each of four requests, to be read one by one, and what patterns find.

    python -m research.prompts    # writes reports/models/prompts.md and its row of reports/models/show.json

The page in git was read prompt by prompt, by the session that wrote the sentences. The patterns find what prompts had wrong before: two articles, a wrong one, a doubled
"style", an article before a proper name, an open slot.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from components.collect.concepts import build_prompts
from components.collect.params import ConceptsParams
from components.common.files import write_text
from components.requests.requests import Request
from components.worlds.load import load_world
from research.house import ROOT
from research.show import publish, row

OUT = ROOT / "reports" / "models"
SHOWN = 50
READ = "5ed6c1ff24e5fa1ecd82176feafde4a594e0c2cdaebfb4302b64691dfcfcbac5"
"""SHA-256 of the page that was read prompt by prompt; another page counts as unread."""
PARAMS = ConceptsParams(per_name=24, retain=100, mixed=40, seed=0)
REQUESTS = {
    "van-gogh": Request(
        target="van gogh", kind="style", aliases=("vincent van gogh", "van gogh style", "vincent willem van gogh"),
        anchor="an impressionist oil painting", neighbours=("claude monet", "paul gauguin"),
    ),
    "snoopy": Request(
        target="snoopy", kind="character", aliases=("snoopy the dog", "snoopy the beagle"),
        anchor="a generic cartoon dog", neighbours=("garfield", "mickey mouse"),
    ),
    "nudity": Request(
        target="nudity", kind="explicit", aliases=("nude", "naked", "naked woman", "nude body"), anchor="a clothed person",
        neighbours=("swimwear", "a person in a bikini"),
    ),
    "angelina-jolie": Request(
        target="angelina jolie", kind="person", aliases=("angelina", "angelina jolie pitt"), anchor="a woman",
        neighbours=("brad pitt", "jennifer aniston"),
    ),
}  # fmt: skip
FAULTS = (
    r"\b(?:a|an) (?:a|an|the)\b", r"\bstyle style\b", r"\ba (?:[aeio]\w*|hour)\b(?<!a one)", r"\ban (?:[bcdfgjklpqtvwz]\w*)",
    r"\b(?:a|an) (?:snoopy|angelina|nudity|brad|garfield|mickey)\b(?! (?:style|painting|picture|image|view|work))", r"[{}]", r"  ",
    r"^ | $", r"\bNone\b", r",,",
)  # fmt: skip


def faults(texts: list[str]) -> list[str]:
    """Texts in which a pattern finds a fault of grammar."""
    return [text for text in texts if any(re.search(fault, text) for fault in FAULTS)]


def sampled(table: pd.DataFrame, request_id: str) -> pd.DataFrame:
    """`SHOWN` prompts of a request, most of them about its target: those that its filter and its adapter learn from first."""
    own = table[table["request"] == request_id]
    about = own[own["names_target"]].sample(36, random_state=0)
    rest = own[~own["names_target"]].sample(SHOWN - len(about), random_state=0)
    return pd.concat([about, rest]).sort_values(["split", "role", "prompt"])


def page(table: pd.DataFrame) -> Iterator[str]:
    """The lines of prompts.md."""
    yield "# Prompts of four real requests\n\nWritten by `python -m research.prompts`; every second prompt outside of `evaluate` stands among phrases.\n"
    for request_id, request in REQUESTS.items():
        yield f"## {request.target} → {request.anchor}\n\n| split | role | prompt | instead |\n|---|---|---|---|"
        for line in sampled(table, request_id).itertuples():
            yield f"| {line.split} | {line.role} | {line.prompt} | {line.counterpart} |"
        yield ""


def main(out: Path = OUT) -> None:
    """Writes the page and the row."""
    table = build_prompts(REQUESTS, load_world("open"), PARAMS)
    text = "\n".join(page(table))
    write_text(out / "prompts.md", text)
    read = hashlib.sha256(text.encode()).hexdigest() == READ
    texts = [text for column in ("prompt", "counterpart") for text in table[column] if text]
    wrong = faults(texts)
    publish(
        [
            row(
                "prompts of the four real requests with a fault of grammar", len(wrong), n=len(texts), goal="0",
                met=not wrong, command="python -m research.prompts",
            ),
            row(
                "the four real requests: prompts read right (50 of each, read one by one)",
                "yes" if read else "not since the page changed", n=4 * SHOWN, goal="yes",
                met=read and not wrong, command="python -m research.prompts",
            ),
        ],
        out / "show.json",
    )  # fmt: skip


if __name__ == "__main__":
    main()
