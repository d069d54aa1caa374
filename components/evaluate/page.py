"""The page of an evaluation: a sentence, pictures before and after, what failed or came close, and the rest folded away.

One self-contained HTML file. Requests are called by their targets' names.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jinja2 import Environment
from PIL import Image, ImageDraw, ImageFont

from components.common.variants import DEFAULT, VARIANTS
from components.evaluate.gates import Gate, Verdict
from components.evaluate.images import ImageSpec, Painter, Wanted
from components.evaluate.measure import Plan, anchored_in, erased_of
from components.evaluate.summary import JOINT, PAGE, summarise
from components.worlds.base import Panel

SIDE = 256
"""Side of a picture on the page, pixels."""
SHOWN = 3
"""Prompts of each request that are shown before and after."""
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Expunge: evaluation</title><style>
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#1c1c1c}
table{border-collapse:collapse;margin:.6rem 0}td,th{border-bottom:1px solid #ddd;padding:.25rem .7rem;text-align:left}
img{max-width:100%}.pass{color:#0a7d33}.fail{color:#b3261e}.close{color:#8a5a00}small,figcaption{color:#555}
figure{margin:1rem 0}summary{cursor:pointer;font-weight:600;margin:.8rem 0}</style>
<h1>Evaluation: <span class="{{ 'pass' if verdict.passed else 'fail' }}">{{ 'pass' if verdict.passed else 'fail' }}</span></h1>
<p>{{ lines[0] }}</p><ul>{% for line in lines[1:-2] %}<li>{{ line }}{% endfor %}</ul>
{% for title, image in pictures %}<figure><img src="data:image/png;base64,{{ image }}"><figcaption>{{ title }}</figcaption></figure>
{% endfor %}
<h2>What failed, and what came close</h2>
{% if failed or close %}<table><tr><th>request<th>variant<th>metric<th>value<th>95 %<th>n<th>
{% for mark, gates in (('fail', failed), ('close', close)) %}{% for g in gates %}<tr><td>{{ name(g.request) }}<td>{{ g.variant }}<td>{{ g.metric }}
<td>{{ number(g.value) }}<td><small>{{ number(g.low) }} – {{ number(g.high) }}</small><td>{{ g.n }}
<td class="{{ mark }}">{{ g.reason }}{{ ', and its interval crosses the line' if mark == 'close' else '' }}{% endfor %}{% endfor %}</table>
{% else %}<p>No gate failed, and no interval crosses a gate's line.</p>{% endif %}
<details><summary>All gates ({{ verdict.gates|length }})</summary><table><tr><th>request<th>variant<th>metric<th>value<th>n<th>gate<th>
{% for g in verdict.gates %}<tr><td>{{ name(g.request) }}<td>{{ g.variant }}<td>{{ g.metric }}<td>{{ number(g.value) }}<td>{{ g.n }}
<td>{{ 'at least' if g.direction == 'at_least' else 'at most' }} {{ g.threshold }}
<td class="{{ 'pass' if g.passed else 'fail' }}">{{ g.reason }}{% endfor %}</table></details>
<details><summary>All numbers, with n and a 95 % interval</summary><p>A small n proves little.</p>
{% for scope, variants in metrics.items() %}<h3>{{ name(scope) }}</h3><table><tr><th>variant<th>metric<th>value<th>95 %<th>n
{% for variant, found in variants.items() %}{% for metric, m in found.items() %}
{% for label, r in ([(metric, m)] if 'value' in m else rows(metric, m)) %}<tr><td>{{ variant }}<td>{{ label }}<td>{{ number(r.value) }}
<td><small>{{ number(r.low) }} – {{ number(r.high) }}</small><td>{{ r.n }}{% endfor %}{% endfor %}{% endfor %}</table>{% endfor %}</details>
<details><summary>All images</summary><p>Every row of a grid has the same seeds.</p>{% for title, image in grids %}
<figure><img src="data:image/png;base64,{{ image }}"><figcaption>{{ title }}</figcaption></figure>{% endfor %}</details>
<details><summary>Plots</summary>{% for title, image in plots %}<figure><img src="data:image/png;base64,{{ image }}">
<figcaption>{{ title }}</figcaption></figure>{% endfor %}</details>
<details><summary>What was judged</summary><table>{% for what, sha in judged.items() %}<tr><td>{{ what }}<td><code>{{ sha[:16] }}…</code>{% endfor %}
</table></details></html>
"""


def write_page(
    folder: Path,
    record: Mapping[str, Any],
    verdict: Verdict,
    plan: Plan,
    painter: Painter,
    panel: Panel,
    roc: Path,
) -> None:
    """Writes `report.html` and its pictures, as PNG under `grids/`, into `folder`."""
    names = {i: target["target"] for i, target in record["targets"].items()} | {JOINT: "all requests at once"}
    pictures = before_and_after(plan, painter, panel)
    grids = all_grids(plan, painter, names)
    plots = [
        ("UA, IRA, CRA and anchor rate of every variant, with 95 % intervals", figure_png(plot_metrics(record, names)))
    ]
    plots.append(("Drift of the unconditional output by timestep", figure_png(plot_drift(record, names))))
    if roc.is_file():
        plots.append(("ROC of the filters on calibration prompts", roc.read_bytes()))
    (folder / "grids").mkdir()
    for index, (_, image) in enumerate([*pictures, *grids]):
        (folder / "grids" / f"{index:02d}.png").write_bytes(png(image))
    text = (
        Environment(autoescape=True)
        .from_string(_PAGE)
        .render(
            verdict=verdict,
            lines=summarise(record, verdict.record(), folder),
            pictures=[(title, encoded(png(image))) for title, image in pictures],
            failed=[gate for gate in verdict.gates if not gate.passed],
            close=[gate for gate in verdict.gates if gate.passed and came_close(gate)],
            metrics=record["requests"],
            judged=record["judged"],
            grids=[(title, encoded(png(image))) for title, image in grids],
            plots=[(title, encoded(image)) for title, image in plots],
            name=lambda scope: names.get(scope, scope),
            number=lambda value: "—" if value is None else f"{value:.4g}",
            rows=lambda metric, buckets: [(f"{metric} {key}", value) for key, value in buckets.items()],
        )
    )
    (folder / PAGE).write_text(text, encoding="utf-8")


def came_close(gate: Gate) -> bool:
    """Whether the interval of a value that passes reaches across the gate's line; a difference to the base has no interval here."""
    if gate.low is None or gate.high is None or not gate.low <= (gate.value or 0.0) <= gate.high:
        return False
    return gate.low < gate.threshold if gate.direction == "at_least" else gate.high > gate.threshold


def before_and_after(plan: Plan, painter: Painter, panel: Panel) -> list[tuple[str, np.ndarray]]:
    """(title, picture) of each request, then of unrelated prompts: the base above, the default variant below, labelled."""
    out = []
    for request_id, record in plan.records.items():
        specs = plan.targets[request_id]
        base, after = (painter.images(Wanted(specs, v, (request_id,))) for v in ("base", DEFAULT))
        right = ~erased_of(panel(base), record) & erased_of(panel(after), record)
        if record.anchor:
            right &= anchored_in(panel(after), record)
        chosen = most_different(specs, base, after, right)
        title = f"{record.request.target} → {record.request.anchor or 'nothing'}: the same prompts and seeds"
        out.append((title, labelled([specs[i].prompt for i in chosen], [base[chosen], after[chosen]])))
    everyone = tuple(plan.records)
    specs = plan.unrelated[:SHOWN]
    rows = [painter.images(Wanted(specs, v, everyone)) for v in ("base", DEFAULT)]
    out.append(
        ("Prompts that no request is about, with all requests acting", labelled([s.prompt for s in specs], rows))
    )
    return out


def most_different(specs: Sequence[ImageSpec], base: np.ndarray, after: np.ndarray, right: np.ndarray) -> list[int]:
    """At most `SHOWN` images, of different prompts, in which anyone sees the difference; those that the judge finds right first.

    A picture counts by how far its colours lie from the base's, seen from afar, and from those of pictures chosen before.
    """
    before, now = (afar(images) for images in (base, after))
    gap = np.abs(now - before).mean(1)
    chosen: list[int] = []
    while len(chosen) < SHOWN:
        taken = {specs[i].prompt for i in chosen}
        left = [i for i in range(len(specs)) if specs[i].prompt not in taken]
        if not left:
            break
        apart = [min([gap[i], *(np.abs(now[i] - now[j]).mean() for j in chosen)]) for i in range(len(specs))]
        chosen.append(max(left, key=lambda i: (right[i], apart[i])))
    return chosen


def afar(images: np.ndarray, *, cells: int = 16) -> np.ndarray:
    """Images (N, H, W, 3) as mean colours of a coarse grid, (N, cells · cells · 3) in [0, 255]."""
    small = [Image.fromarray(image).resize((cells, cells), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image, np.float32).ravel() for image in small])


def labelled(
    prompts: Sequence[str], rows: Sequence[np.ndarray], *, names: Sequence[str] = ("before", "after")
) -> np.ndarray:
    """Rows of images (N, H, W, 3) at `SIDE` pixels, each column under its prompt and each row beside its name."""
    margin, head, gap = 64, 28, 6
    width, height = margin + len(prompts) * (SIDE + gap), head + len(rows) * (SIDE + gap)
    sheet, font = Image.new("RGB", (width, height), "white"), ImageFont.load_default(14)
    draw = ImageDraw.Draw(sheet)
    for column, prompt in enumerate(prompts):
        text = prompt if draw.textlength(prompt, font) <= SIDE else shortened(prompt, draw, font)
        draw.text((margin + column * (SIDE + gap), 6), text, "#1c1c1c", font)
    for row, (name, images) in enumerate(zip(names, rows, strict=True)):
        top = head + row * (SIDE + gap)
        draw.text((6, top + SIDE // 2 - 8), name, "#1c1c1c", font)
        for column, image in enumerate(images):
            sheet.paste(thumbnail(image), (margin + column * (SIDE + gap), top))
    return np.asarray(sheet)


def shortened(text: str, draw: ImageDraw.ImageDraw, font: Any) -> str:  # noqa: ANN401 - Pillow's fonts have no common type
    """`text` cut to `SIDE` pixels, with an ellipsis."""
    while text and draw.textlength(f"{text}…", font) > SIDE:
        text = text[:-1]
    return f"{text}…"


def thumbnail(image: np.ndarray) -> Image.Image:
    """A picture at `SIDE` pixels; a small drawing keeps its pixels' edges."""
    method = Image.Resampling.NEAREST if image.shape[0] < SIDE else Image.Resampling.LANCZOS
    return Image.fromarray(image).resize((SIDE, SIDE), method)


def all_grids(
    plan: Plan, painter: Painter, names: Mapping[str, str], *, most: int = 12
) -> list[tuple[str, np.ndarray]]:
    """(title, grid) of every scope: a row for each variant, at most `most` images a row."""
    out = []
    for scope, members in plan.scopes.items():
        groups = {names[member]: plan.targets[member] for member in members} | {"unrelated prompts": plan.unrelated}
        for what, specs in groups.items():
            step = max(1, len(specs) // most)
            rows = [painter.images(Wanted(specs[::step][:most], v, members)) for v in VARIANTS]
            out.append((f"{names[scope]}: {what}; rows: {', '.join(VARIANTS)}", grid(rows)))
    return out


def grid(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of images (N, H, W, 3) as one picture; rows may differ in length."""
    width = max(len(row) for row in rows)
    padded = [np.concatenate([row, np.full((width - len(row), *row.shape[1:]), 255, np.uint8)]) for row in rows]
    return np.concatenate([np.concatenate(list(row), axis=1) for row in padded], axis=0)


def png(image: np.ndarray) -> bytes:
    """A picture (H, W, 3) uint8 as PNG."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png")
    return out.getvalue()


def plot_metrics(record: Mapping[str, Any], names: Mapping[str, str]) -> plt.Figure:
    """Bars with intervals: one panel a request, one group a metric, one bar a variant."""
    scopes = record["requests"]
    figure, axes = plt.subplots(1, len(scopes), figsize=(4 * len(scopes), 3.2), layout="constrained", squeeze=False)
    shown, width = ("ua", "ira", "cra", "anchor_rate"), 0.16
    for axis, (scope, variants) in zip(axes[0], scopes.items(), strict=True):
        for offset, variant in enumerate(variants):
            found = [variants[variant][n] for n in shown]
            values = [m["value"] or 0.0 for m in found]
            errors = [[v - (m["low"] or v), (m["high"] or v) - v] for v, m in zip(values, found, strict=True)]
            at = np.arange(len(shown)) + width * offset
            axis.bar(at, values, width, yerr=np.abs(np.array(errors)).T, label=variant, capsize=2)
        axis.set(title=names[scope], xticks=np.arange(len(shown)) + 2 * width, xticklabels=shown, ylim=(0, 1.05))
    axes[0][0].legend(fontsize=7)
    return figure


def plot_drift(record: Mapping[str, Any], names: Mapping[str, str]) -> plt.Figure:
    """Relative drift of the unconditional output, one line a scope."""
    figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
    for scope, variants in record["requests"].items():
        drift = variants["guidance"].get("uncond_drift", {})
        axis.plot(list(drift), [m["value"] for m in drift.values()], marker="o", label=names[scope])
    axis.set(xlabel="timestep", ylabel="relative drift", ylim=(0, None))
    axis.legend(fontsize=7)
    return figure


def figure_png(figure: plt.Figure) -> bytes:
    """A figure as PNG; it is closed."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=80)
    plt.close(figure)
    return out.getvalue()


def encoded(data: bytes) -> str:
    """Base64, for an image inside the page."""
    return base64.b64encode(data).decode()
