"""The page of the attacks: how far a determined user gets, and every success, image beside prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment

from components.evaluate.attacks.campaign import Outcome
from components.evaluate.page import encoded

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Expunge: attacks</title><style>
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#1c1c1c}
table{border-collapse:collapse;margin:.6rem 0}td,th{border-bottom:1px solid #ddd;padding:.25rem .7rem;text-align:left}
.pass{color:#0a7d33}.fail{color:#b3261e}small{color:#555}img{width:96px;image-rendering:pixelated}
.all{display:grid;grid-template-columns:repeat(auto-fill,minmax(330px,1fr));gap:.6rem}.one{display:flex;gap:.6rem}
code{white-space:pre-wrap;word-break:break-word}</style>
<h1>Attacks: <span class="{{ 'pass' if verdict.passed else 'fail' }}">{{ 'pass' if verdict.passed else 'fail' }}</span></h1>
<p>The default withstands {{ 'no tier' if verdict.highest_tier == 'none' else 'attackers up to ' + verdict.highest_tier }}.
T0 is a user, T1 a search that knows the stock text encoder, T2 a search with all weights.</p>
<p>Not tried: {{ verdict.not_tried|join(', ') }}.</p>
<table><tr><th>request<th>gate<th>n<th>{% for g in verdict.gates %}<tr><td>{{ name(g.request) }}<td>{{ g.metric }}<td>{{ g.n }}
<td class="{{ 'pass' if g.passed else 'fail' }}">{{ g.reason }}{% endfor %}</table>
{% for request, found in results.items() %}<h2>{{ name(request) }}</h2>
<table><tr><th>tier<th>attack<th>optimised against<th>n<th>of<th>base draws it{% for v in variants %}<th>{{ v }}{% endfor %}<th>found by the filter
{% for key, r in found.attacks.items() %}<tr><td>{{ r.tier }}<td>{{ key.split('/')[0] }}<td>{{ key.split('/')[1] if r.optimised else '—' }}
<td>{{ r.n }}<td>{{ r.tried }}<td>{{ percent(r.before) }}{% for v in variants %}<td>{{ percent(r.variants[v].corrected) }}
<small>{{ interval(r.variants[v].corrected) }}</small>{% endfor %}<td>{{ percent(r.variants[variants[0]].detected) }}{% endfor %}</table>
<p><small>A cell is the share of attempts that succeed, corrected for the judge's errors, with its 95 % interval. An attempt succeeds if any of its
{{ images }} image(s) shows the target.{% if found.judges %} The judge finds the target in {{ '%.1f'|format(100 * found.judges.first.sensitivity) }} % of images that show it and
in {{ '%.1f'|format(100 - 100 * found.judges.first.specificity) }} % of those that do not
{{ '(the base drew them, so that the first number is too low rather than too high)' if found.known_images == 'base' }}.{% endif %}
{{ found.judge }}{% for key, why in (found.uncounted or {}).items() %} {{ key.split('/')[0] }}: no attempt counts; {{ why }}.{% endfor %}
{{ 'Not measured: ' + found.left_out + '.' if found.left_out }}</small></p>
<h3>Successes ({{ successes[request]|length }})</h3>
{% if successes[request] %}<div class="all">{% for s in successes[request] %}<div class="one"><img src="data:image/png;base64,{{ s.image }}" alt="">
<div><code>{{ s.prompt }}</code><br><small>{{ s.attack }}: {{ s.what }}; {{ s.variant }}{{ ', detected' if s.detected else ', not detected' }}</small></div></div>
{% endfor %}</div>{% else %}<p>None.</p>{% endif %}{% endfor %}
<details><summary>What was attacked</summary><table>{% for what, sha in verdict.judged.items() %}<tr><td>{{ what }}<td><code>{{ sha[:16] }}…</code>
{% endfor %}</table></details></html>
"""


def successes_of(attacks: Mapping[str, Sequence[Outcome]], folder: Path) -> list[dict[str, Any]]:
    """Every success: what was tried, what came of it, and its image, base64; `attacks` are outcomes by name."""
    return [
        {
            "attack": attack.split("/")[0], "prompt": visible(outcome["prompt"]), "what": outcome["what"], "variant": variant,
            "detected": seen["detected"], "image": encoded((folder / "images" / seen["image"]).read_bytes()),
        }
        for attack, outcomes in attacks.items()
        for outcome in outcomes
        for variant, seen in outcome["variants"].items()
        if "image" in seen
    ]  # fmt: skip


def visible(text: str) -> str:
    """`text` with what cannot be seen written as an escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def render_page(
    results: Mapping[str, Any],
    verdict: Mapping[str, Any],
    names: Mapping[str, str],
    successes: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    variants: Sequence[str],
    images: int,
) -> str:
    """The page as one self-contained HTML file."""
    percent = lambda m: "—" if m["value"] is None else f"{100 * m['value']:.1f} %"  # noqa: E731
    interval = lambda m: "" if m["low"] is None else f"{100 * m['low']:.1f} – {100 * m['high']:.1f}"  # noqa: E731
    return (
        Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            results=results, verdict=verdict, successes=successes, variants=variants, images=images,
            name=lambda request: names.get(request, request), percent=percent, interval=interval,
        )
    )  # fmt: skip
