"""Tables of the README, made from the reports in git; `make readme` writes them and a test compares."""

from __future__ import annotations

import json
from pathlib import Path

ROOT = Path(__file__).parents[1]


def base_table() -> str:
    """Base model and judge: value, interval, n and target of every metric of reports/base."""
    from components.evaluate.base import AT_MOST, TARGETS

    found = json.loads((ROOT / "reports/base/metrics.json").read_text())
    rows = ["| what | measured | 95 % interval | n | wanted |", "|---|---|---|---|---|"]
    for key, (text, least) in TARGETS.items():
        m = found[key]
        if key == "seconds_per_image":
            rows.append(f"| {text} | {m['value']:.2f} | {m['low']:.2f} – {m['high']:.2f} | {m['n']} | ≤ {least} |")
        else:
            value, low, high = (f"{100 * m[k]:.1f} %" for k in ("value", "low", "high"))
            sign = "≤" if key in AT_MOST else "≥"
            rows.append(f"| {text} | {value} | {low} – {high} | {m['n']} | {sign} {100 * least:.3g} % |")
    note = f"{found['solver_steps']} solver steps, {found['seeds']} seed(s) of every concept in every style."
    return "\n".join([*rows, "", note])


def evaluation_table() -> str:
    """The four variants: UA, IRA, CRA, anchor rate and SSIM for every request and all together."""
    record = json.loads((ROOT / "reports/evaluate/metrics.json").read_text())
    names = ("ua", "ira", "cra", "anchor_rate", "ssim_unrelated")
    rows = [f"| request | variant | {' | '.join(names)} |", f"|{'---|' * (len(names) + 2)}"]
    for scope, variants in record["requests"].items():
        for variant, found in variants.items():
            cells = [_cell(found[n]) for n in names]
            rows.append(f"| {scope} | {variant} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", f"Size `{record['size']}`; each cell is value [95 % interval], n."])


def filter_table() -> str:
    """The filter on prompts it has not seen: AUROC, TPR, FPR and pass-through."""
    record = json.loads((ROOT / "reports/evaluate/metrics.json").read_text())
    names = ("auroc", "tpr", "fpr", "fpr_neighbours", "passthrough_max_abs")
    rows = [f"| request | {' | '.join(names)} |", f"|{'---|' * (len(names) + 1)}"]
    for scope, variants in record["requests"].items():
        found = variants["filter"]
        rows.append(f"| {scope} | {' | '.join(_cell(found[n]) if n in found else '' for n in names)} |")
    return "\n".join(rows)


def _cell(m: dict[str, float | None]) -> str:
    if m["value"] is None:
        return "—"
    interval = "" if m["low"] == m["high"] else f" [{m['low']:.3f}, {m['high']:.3f}]"
    return f"{m['value']:.3f}{interval}, {m['n']}"
