"""Tables of the README, made from the reports in git; `make readme` writes them and a test compares."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def base_table() -> str:
    """Base model and judge: value, interval, n and target of every metric of reports/base."""
    from training.openmoji.report import AT_MOST, TARGETS

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
    """Every variant: UA, IRA, CRA, anchor rate, CLIP score and SSIM for every request and all together."""
    record = json.loads((ROOT / "reports/evaluate/metrics.json").read_text())
    names = ("ua", "ira", "cra", "anchor_rate", "clip_unrelated", "ssim_unrelated")
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


def detection_table() -> str:
    """Every detector over all requests of reports/filter: AUROC, TPR by role, FPR."""
    record = json.loads((ROOT / "reports/filter/metrics.json").read_text())
    keys = ("auroc", "tpr", "tpr alias unseen", "tpr misspelt", "tpr long, target last", "fpr benign")
    rows = [f"| detector | {' | '.join(keys)} |", f"|{'---|' * (len(keys) + 1)}"]
    for name, found in record["detection"].items():
        rows.append(f"| {name} | {' | '.join(_cell(found[k], 4) for k in keys)} |")
    note = (
        f"{len(record['requests'])} requests, {record['benign']} benign prompts; each cell is value [95 % interval], n."
    )
    return "\n".join([*rows, "", note])


def together_table() -> str:
    """Many requests at once, beside ItD's one feature set and threshold."""
    record = json.loads((ROOT / "reports/filter/metrics.json").read_text())["together"]
    counts = sorted(record, key=int)
    keys = list(record[counts[0]])
    rows = [f"| requests | {' | '.join(keys)} |", f"|{'---|' * (len(keys) + 1)}"]
    return "\n".join(rows + [f"| {c} | {' | '.join(_cell(record[c][k], 4) for k in keys)} |" for c in counts])


def edits_table() -> str:
    """What each edit does to images, by request."""
    record = json.loads((ROOT / "reports/filter/metrics.json").read_text())["edits"]
    keys = ("gone", "anchored", "kept", "recognisable")
    rows = [f"| request | edit | {' | '.join(keys)} |", f"|{'---|' * (len(keys) + 2)}"]
    for request, edits in record.items():
        rows += [f"| {request} | {name} | {' | '.join(_cell(m[k]) for k in keys)} |" for name, m in edits.items()]
    return "\n".join(rows)


def adapters_table() -> str:
    """The adapters alone, one by one and together."""
    record = json.loads((ROOT / "reports/guidance/metrics.json").read_text())
    keys = ("ua_base", "ua", "anchor_rate", "neighbours_base", "neighbours", "concepts_kept_base", "concepts_kept",
            "concepts_change", "concepts_change_one", "styles_kept", "ssim_unrelated", "ssim_ordinary")  # fmt: skip
    rows = [f"| adapters | {' | '.join(keys)} | largest drift | seconds |", f"|{'---|' * (len(keys) + 3)}"]
    names = {k: f"{r['target']} → {r['anchor'] or 'nothing'}" for k, r in record["requests"].items()}
    listed = {names.get(k, k): v for k, v in record["alone"].items()}
    listed |= {re.sub(r"^(\d+)", r"\1 together", k): v for k, v in _by_count(record["together"])}
    for name, found in listed.items():
        drift = f"{100 * _largest(found):.2f} %" if found["uncond_drift"] else "—"
        seconds = f"{found['seconds']['value']:.0f}" if "seconds" in found else ""
        cells = (_cell(found[k]) if k in found else "—" for k in keys)
        rows.append(f"| {name} | {' | '.join(cells)} | {drift} | {seconds} |")
    return "\n".join(rows)


def adapters_summary() -> str:
    """What the table of the adapters comes to, in a few lines."""
    record = json.loads((ROOT / "reports/guidance/metrics.json").read_text())
    single = {r["target"]: record["alone"][name] for name, r in record["requests"].items() if name in record["alone"]}
    (free,) = (found for name, found in record["alone"].items() if name not in record["requests"])
    (images,) = {found["concepts_kept_base"]["n"] for found in single.values()}
    (base,) = {found["concepts_kept_base"]["value"] for found in single.values()}
    changed, of_one = (
        "; ".join(f"*{name}* {_points(found[key])}" for name, found in single.items())
        for key in ("concepts_change", "concepts_change_one")
    )
    (alone,) = {found["concepts_change_one"]["n"] for found in single.values()}
    drift = 100 * max(_largest(found) for found in single.values())
    loose = 100 * _largest(free)
    several = []
    for key, found in _by_count(record["together"]):
        count, _, way = key.partition(", ")
        several.append(
            f"- {count} requests, {way or 'summed'}: {_points(found['concepts_change'])} points of unrelated concepts;"
            f" target gone {_images([found], 'ua')}, anchor {_images([found], 'anchor_rate')},"
            f" neighbours {_images([found], 'neighbours')}."
        )
    return "\n".join(
        [
            (
                f"The target is gone from {_images(single.values(), 'ua')} images of the {len(single)} kinds, the anchor stands in"
                f" {_images(single.values(), 'anchor_rate')}. The unconditional output drifts by {drift:.2f} % at most; with nothing to hold"
                f" it (neither λ nor ν nor the null space, and all of cross-attention trained) by {loose:.2f} %, {'within' if loose <= 1 else 'beyond'}"
                " the gate of 1 %."
            ),
            (
                f"Of unrelated concepts the base draws {100 * base:.1f} % (n = {images}). Prompt by prompt one adapter changes that, in points"
                f" with the interval of the pairs, by: {changed}, where −1 is the aim. Where one concept is shown, and not two (n = {alone}): {of_one}. Several at once:"
            ),
            "",
            *several,
        ]
    )


def erasers_table(target: str) -> str:
    """Published erasers and ours after the same seconds of preparation and training, on one request."""
    record = json.loads((ROOT / f"benchmarks/results/guidance_baselines-{target}.json").read_text())
    names = ("ua", "anchor_rate", "ira", "ssim_unrelated")
    rows = [f"| method | seconds | {' | '.join(names)} | drift | steps/s |", f"|{'---|' * (len(names) + 4)}"]
    speed = {each["contender"]: each["steps_per_second"] for each in record["speed"]}
    shown = set()
    for found in record["quality"]:
        name, seconds = found["contender"], found["seconds"]
        if found["budget"] in (0.0, *sorted(record["budgets"])[-2:]) and (name, seconds) not in shown:
            shown.add((name, seconds))  # a method that has ended is the same at every later budget
            cells = " | ".join(_cell(found[key]) for key in names)
            rate = f"{speed[name]['median']:.2f}" if speed.get(name) else ""
            rows.append(f"| {name} | {seconds:.0f} | {cells} | {100 * found['drift']['value']:.2f} % | {rate} |")
    where = record["environment"]
    slow = next(each for each in record["speed"] if each["contender"] == "esd")["ratio"]
    note = (
        f"*{record['request']['target']}* → *{record['request']['anchor']}*, {where['date']}, {where['hardware']['threads']} cores"
        f" ({where['hardware']['processor']}). Of ESD's scheme, with sampling inside the step, {slow['median']:.3f} steps"
        f" [{slow['q1']:.3f}, {slow['q3']:.3f}] go into the time of one of ours (median and quartiles of {slow['n']} turns)."
    )
    return "\n".join([*rows, "", note])


def purification_table() -> str:
    """What purification does to held-out renders of each target."""
    record = json.loads((ROOT / "reports/guidance/metrics.json").read_text())
    keys = ("gone_base", "gone", "anchored_base", "anchored", "kept_base", "kept", "loop")
    rows = [f"| target | {' | '.join(keys)} |", f"|{'---|' * (len(keys) + 1)}"]
    for name, found in record["purification"].items():
        rows.append(f"| {record['requests'][name]['target']} | {' | '.join(_cell(found[k]) for k in keys)} |")
    rows += [
        "",
        (
            "`gone_base`: by resampling with the base alone. `kept`: the style of the image, or for a style its concept. `anchored_base` and `kept_base`:"
            " by the base prompted with the anchor, as a perfect adapter would. `loop`: PSNR of up and down with the base to what the"
            " autoencoder alone returns, decibels."
        ),
    ]
    return "\n".join(rows)


def _by_count(together: dict[str, dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Groups of adapters, the smallest first; in JSON "10" comes before "5"."""
    return sorted(together.items(), key=lambda item: int(item[0].partition(",")[0]))


def _points(m: dict[str, float]) -> str:
    return f"{100 * m['value']:+.2f} [{100 * m['low']:.1f}, {100 * m['high']:.1f}]"


def _images(found: Iterable[dict[str, dict[str, float]]], key: str) -> str:
    """So many of so many images, over all of `found`."""
    counted = [(round(each[key]["value"] * each[key]["n"]), each[key]["n"]) for each in found]
    return f"{sum(hits for hits, _ in counted)} of {sum(n for _, n in counted)}"


def _largest(found: dict[str, dict[str, dict[str, float]]]) -> float:
    return max(bucket["value"] for bucket in found["uncond_drift"].values())


def _cell(m: dict[str, float | None], digits: int = 3) -> str:
    if m["value"] is None:
        return "—"
    bounded = m["low"] is not None and m["low"] != m["high"]
    interval = f" [{m['low']:.{digits}f}, {m['high']:.{digits}f}]" if bounded else ""
    return f"{m['value']:.{digits}f}{interval}, {m['n']}"
