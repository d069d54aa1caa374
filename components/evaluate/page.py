"""The page of an evaluation: verdict, numbers with intervals, plots and image grids in one self-contained HTML file."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from jinja2 import Environment
from PIL import Image

from components.evaluate.gates import Verdict
from components.requests.requests import Request

_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Expunge: evaluation</title><style>
body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2rem auto;padding:0 1rem;color:#1c1c1c}
table{border-collapse:collapse;margin:.6rem 0}td,th{border-bottom:1px solid #ddd;padding:.25rem .7rem;text-align:left}
img{max-width:100%;image-rendering:pixelated}.pass{color:#0a7d33}.fail{color:#b3261e}small{color:#666}
figure{margin:1rem 0}figcaption{color:#555}</style>
<h1>Evaluation: <span class="{{ 'pass' if verdict.passed else 'fail' }}">{{ 'pass' if verdict.passed else 'fail' }}</span></h1>
<p>Size <b>{{ size }}</b>. Numbers carry n and a 95 % interval; a small n proves little.
Base {{ base[:12] }}…, judge {{ judge[:12] }}….</p>
<h2>Requests</h2><table><tr><th>id<th>target<th>kind<th>anchor<th>neighbours<th>channels
{% for id, r in requests.items() %}<tr><td>{{ id }}<td>{{ r.target }}<td>{{ r.kind }}<td>{{ r.anchor or '—' }}
<td>{{ r.neighbours|join(', ') }}<td>{{ r.channels|join(', ') }}{% endfor %}</table>
<h2>Gates</h2><table><tr><th>request<th>metric<th>variant<th>value<th>n<th>gate<th>
{% for g in verdict.gates %}<tr><td>{{ g.request }}<td>{{ g.metric }}<td>{{ g.variant }}
<td>{{ '—' if g.value is none else '%.4g'|format(g.value) }}<td>{{ g.n }}
<td>{{ 'at least' if g.direction == 'at_least' else 'at most' }} {{ g.threshold }}
<td class="{{ 'pass' if g.passed else 'fail' }}">{{ g.reason }}{% endfor %}</table>
{% for scope, variants in metrics.items() %}<h2>{{ scope }}</h2><table><tr><th>variant<th>metric<th>value<th>95 %<th>n
{% for variant, found in variants.items() %}{% for name, m in found.items() %}{% if 'value' in m %}
<tr><td>{{ variant }}<td>{{ name }}<td>{{ '—' if m.value is none else '%.4g'|format(m.value) }}
<td><small>{{ '' if m.low is none else '%.4g – %.4g'|format(m.low, m.high) }}</small><td>{{ m.n }}
{% else %}{% for bucket, b in m.items() %}<tr><td>{{ variant }}<td>{{ name }} {{ bucket }}<td>{{ '%.4g'|format(b.value) }}
<td><small>{{ '%.4g – %.4g'|format(b.low, b.high) }}</small><td>{{ b.n }}{% endfor %}{% endif %}{% endfor %}{% endfor %}
</table>{% endfor %}
<h2>Images</h2><p>Same seeds in every row of a grid.</p>
{% for title, image, rows in grids %}<figure><img src="data:image/png;base64,{{ image }}" width="960">
<figcaption>{{ title }} — rows: {{ rows|join(', ') }}</figcaption></figure>{% endfor %}
<h2>Plots</h2>{% for title, image in plots %}<figure><img src="data:image/png;base64,{{ image }}">
<figcaption>{{ title }}</figcaption></figure>{% endfor %}</html>
"""


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


def write_report(
    folder: Path,
    record: Mapping[str, Any],
    verdict: Verdict,
    requests: Mapping[str, Request],
    pages: Sequence[tuple[str, np.ndarray, list[str]]],
    roc: Path,
) -> None:
    """Writes `report.html` and the grids as PNG into `folder`."""
    plots = [("UA, IRA and CRA of every variant, with 95 % intervals", _encoded(_figure_png(plot_metrics(record))))]
    plots.append(("Unconditional drift by timestep", _encoded(_figure_png(plot_drift(record)))))
    if roc.is_file():
        plots.append(("ROC of the filter on calibration prompts", _encoded(roc.read_bytes())))
    (folder / "grids").mkdir()
    for index, (_, image, _) in enumerate(pages):
        (folder / "grids" / f"{index:02d}.png").write_bytes(png(image))
    page = Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        verdict=verdict,
        size=record["size"],
        base=record["base"],
        judge=record["judge"],
        requests=requests,
        metrics=record["requests"],
        grids=[(title, _encoded(png(image)), rows) for title, image, rows in pages],
        plots=plots,
    )
    (folder / "report.html").write_text(text, encoding="utf-8")


def plot_metrics(record: Mapping[str, Any]) -> plt.Figure:
    """Bars with intervals: one panel a request, one group a metric, one bar a variant."""
    scopes = record["requests"]
    figure, axes = plt.subplots(1, len(scopes), figsize=(4 * len(scopes), 3.2), layout="constrained", squeeze=False)
    names, width = ("ua", "ira", "cra", "anchor_rate"), 0.16
    for axis, (scope, variants) in zip(axes[0], scopes.items(), strict=True):
        for offset, variant in enumerate(variants):
            found = [variants[variant][n] for n in names]
            values = [m["value"] or 0.0 for m in found]
            errors = [[v - (m["low"] or v), (m["high"] or v) - v] for v, m in zip(values, found, strict=True)]
            at = np.arange(len(names)) + width * offset
            axis.bar(at, values, width, yerr=np.abs(np.array(errors)).T, label=variant, capsize=2)
        axis.set(title=scope, xticks=np.arange(len(names)) + 2 * width, xticklabels=names, ylim=(0, 1.05))
    axes[0][0].legend(fontsize=7)
    return figure


def plot_drift(record: Mapping[str, Any]) -> plt.Figure:
    """Relative drift of the unconditional output, one line a request."""
    figure, axis = plt.subplots(figsize=(5, 3), layout="constrained")
    for scope, variants in record["requests"].items():
        drift = variants["guidance"].get("uncond_drift", {})
        axis.plot(list(drift), [m["value"] for m in drift.values()], marker="o", label=scope)
    axis.set(xlabel="timestep", ylabel="relative drift", ylim=(0, None))
    axis.legend(fontsize=7)
    return figure


def _figure_png(figure: plt.Figure) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=80)
    plt.close(figure)
    return out.getvalue()


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()
