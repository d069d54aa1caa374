"""Tables of README.md and docs/results.md, made from the results in git: `make tables` writes them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from cells import ROOT, Column, Metric, hits, largest_drift, numbers, read, shares, table

VARIANTS = ("base", "filter", "guidance", "summed", "gated")


# What ships


def readme_row() -> str:
    """One row for each request: what is gone, what is drawn instead, what it costs others."""
    record = read("reports/evaluate/metrics.json")
    rows = [(target, record["requests"][i]) for i, target in record["targets"].items()]
    return table(
        Column("erased", [f"{target['target']} → {target['anchor'] or 'nothing'}" for target, _ in rows]),
        Column("target gone (UA)", [f"{hits(found['gated']['ua'])} images" for _, found in rows]),
        Column("anchor drawn", [_anchors(found["gated"]) for _, found in rows]),
        Column("unrelated images, SSIM to the base's", [_similar(found["gated"]) for _, found in rows]),
        Column("everyday prompts edited by mistake", [hits(found["filter"]["fpr"]) for _, found in rows]),
    )


def _anchors(found: Mapping[str, Metric]) -> str:
    return "—" if found["anchor_rate"]["value"] is None else f"{hits(found['anchor_rate'])} images"


def _similar(found: Mapping[str, Metric]) -> str:
    return f"{found['ssim_unrelated']['value']:.3f} (n = {found['ssim_unrelated']['n']})"


def scopes() -> list[tuple[str, dict[str, Any]]]:
    """(target's name or 'both at once', metrics by variant) of the last evaluation."""
    record = read("reports/evaluate/metrics.json")
    names = {i: target["target"] for i, target in record["targets"].items()} | {"joint": "all at once"}
    return [(name, record["requests"][i]) for i, name in names.items()]


def evaluation_table() -> str:
    """Every variant of every request."""
    rows = [(name, variant, found[variant]) for name, found in scopes() for variant in VARIANTS]
    several = [
        (title, key) for title, key in (("UA", "ua"), ("anchor rate", "anchor_rate"), ("IRA", "ira"), ("CRA", "cra"))
    ]
    return table(
        Column("target", [name for name, _, _ in rows]),
        Column("variant", [variant for _, variant, _ in rows]),
        *(Column(title, [hits(found[key]) for *_, found in rows]) for title, key in several),
        numbers("CLIP score", [found["clip_unrelated"] for *_, found in rows]),
        numbers("SSIM", [found["ssim_unrelated"] for *_, found in rows]),
        Column("drift (%)", [largest_drift(found) for *_, found in rows]),
    )


def filter_table() -> str:
    """The filters on prompts that they have not seen."""
    rows = [(name, found["filter"]) for name, found in scopes()]
    return table(
        Column("target", [name for name, _ in rows]),
        numbers("AUROC", [found["auroc"] for _, found in rows], 4),
        *(
            Column(title, [hits(found[key]) for _, found in rows])
            for title, key in (
                ("prompts that name the target: flagged", "tpr"),
                ("everyday prompts: flagged", "fpr"),
                ("prompts about neighbours: flagged", "fpr_neighbours"),
            )
        ),
        numbers("largest change of an unflagged prompt", [found["passthrough_max_abs"] for _, found in rows], 0),
    )


# Adapters


def attacks_table() -> str:
    """How far attackers get by text, with the default variant."""
    listed = [row for row in rows_of("reports/attacks/show.json") if "corrected ASR, upper bound, " in row["what"]]
    said = [row["what"].split(": corrected ASR, upper bound, ") for row in listed]
    return table(
        Column("target", [target for target, _ in said]),
        Column("tier or attack", [attack.removesuffix(", gated") for _, attack in said]),
        Column("attempts that count", [str(row["n"]) for row in listed]),
        Column(
            "corrected success rate, 95 % (%)",
            ["—" if row["high"] is None else f"{100 * row['low']:.1f} to {100 * row['high']:.1f}" for row in listed],
        ),
        Column("goal", [_percent(row["goal"]) for row in listed]),
        Column("met", ["yes" if row["met"] else "no" for row in listed]),
    )


def probes_table() -> str:
    """What probes bring back through the default variant, by target."""
    found: dict[str, dict[str, str]] = {}
    for row in rows_of("reports/attacks/show.json"):
        what = row["what"]
        if "recovered by " in what and what.endswith(", gated"):
            target, probe = what.removesuffix(", upper bound, gated").split(": recovered by ")
            said = f"{100 * row['low']:.0f} to {100 * row['high']:.0f} % (n={row['n']})"
            found.setdefault(probe, {})[target.split(": ")[-1]] = said
    targets = list(dict.fromkeys(target for each in found.values() for target in each))
    return table(
        Column("probe", list(found)),
        *(Column(target, [found[probe].get(target, "—") for probe in found]) for target in targets),
    )


def _percent(goal: str) -> str:
    """`≤ 0.05, n ≥ 142` with its rate in percent."""
    rate, comma, rest = goal.removeprefix("≤ ").partition(",")
    return f"≤ {100 * float(rate):g} %{comma}{rest}"


def rows_of(path: str) -> list[dict[str, Any]]:
    """The rows of a show.json."""
    return json.loads((ROOT / path).read_text(encoding="utf-8"))


def adapters_table() -> str:
    """Each adapter alone."""
    record = read("research/results/guidance/metrics.json")
    rows = [(record["requests"][i], found) for i, found in record["alone"].items()]
    return table(
        Column("target → anchor", [f"{r['target']} → {r['anchor']}" for r, _ in rows]),
        Column("target gone", [hits(found["ua"]) for _, found in rows]),
        Column("anchor drawn", [hits(found["anchor_rate"]) for _, found in rows]),
        Column("neighbours found", [hits(found["neighbours"]) for _, found in rows]),
        _change([found for _, found in rows]),
        numbers("SSIM", [found["ssim_unrelated"] for _, found in rows]),
        numbers("SSIM, everyday English", [found["ssim_ordinary"] for _, found in rows], 2),
        Column("drift (%)", [largest_drift(found) for _, found in rows]),
        Column("training (s)", [f"{found['seconds']['value']:.0f}" for _, found in rows]),
    )


def together_table() -> str:
    """Several adapters at once: summed, fused, gated."""
    record = read("research/results/guidance/metrics.json")["together"]
    order = {"guidance": "summed", "fused": "fused", "gated": "gated"}
    rows = sorted(record.items(), key=lambda item: (int(item[0].split()[0]), list(order).index(item[0].split()[1])))
    found = [metrics for _, metrics in rows]
    return table(
        Column("adapters", [name.split()[0] for name, _ in rows]),
        Column("acting", [order[name.split()[1]] for name, _ in rows]),
        Column("target gone", [hits(each["ua"]) for each in found]),
        Column("anchor drawn", [hits(each["anchor_rate"]) for each in found]),
        Column("neighbours found", [hits(each["neighbours"]) for each in found]),
        _change(found),
        numbers("SSIM", [each["ssim_unrelated"] for each in found]),
        numbers("SSIM, everyday English", [each["ssim_ordinary"] for each in found], 2),
    )


def _change(found: Iterable[Mapping[str, Metric]]) -> Column:
    """How many more unrelated concepts are found than in the base's images, in points."""
    listed = [each["concepts_change"] for each in found]
    title = f"unrelated concepts (points, n = {listed[0]['n']})"
    return Column(
        title, ["{:+.2f} [{:.1f}, {:.1f}]".format(*(100 * m[k] for k in ("value", "low", "high"))) for m in listed]
    )


def purification_table() -> str:
    """Purified renders of each target."""
    record = read("research/results/guidance/metrics.json")
    found = list(record["purification"].values())
    pairs = (("anchor drawn", "anchor_rate"), ("rest of the image found", "cra"))
    return table(
        Column("target", [record["requests"][i]["target"] for i in record["purification"]]),
        Column("target gone", [hits(each["ua"]) for each in found]),
        Column("by the base alone", [hits(each["ua_base"]) for each in found]),
        *(
            Column(title, [hits(each[key]) for each in found])
            for name, key_ in pairs
            for title, key in ((name, key_), ("by the ideal", f"{key_}_base"))
        ),
        numbers("PSNR of the loop", [each["loop_psnr"] for each in found], 1),
    )


def erasers_table(target: str) -> str:
    """Published erasers and ours after the same seconds of preparation and training."""
    record = read(f"research/results/guidance_baselines-{target}.json")
    speed = {each["contender"]: each["steps_per_second"] for each in record["speed"]}
    rows = [found for found in record["quality"] if found["budget"] in (0.0, max(record["budgets"]))]
    return table(
        Column("method", [r["contender"] for r in rows]),
        Column("seconds", [f"{r['seconds']:.0f}" for r in rows]),
        *(
            Column(title, [hits(r[key]) for r in rows])
            for title, key in (("UA", "ua"), ("anchor rate", "anchor_rate"), ("IRA", "ira"))
        ),
        numbers("SSIM", [r["ssim_unrelated"] for r in rows]),
        Column("drift (%)", [f"{100 * r['drift']['value']:.2f}" for r in rows]),
        Column(
            "steps/s", [f"{speed[r['contender']]['median']:.1f}" if speed.get(r["contender"]) else "—" for r in rows]
        ),
    )


def esd_line(target: str) -> str:
    """How long a step of ESD takes against one of ours."""
    record = read(f"research/results/guidance_baselines-{target}.json")
    ratio = next(each for each in record["speed"] if each["contender"] == "esd")["ratio"]
    return (
        f"One ESD step takes as long as about {1 / ratio['median']:.0f} of ours (ratio {ratio['median']:.3f}, quartiles"
        f" {ratio['q1']:.3f}–{ratio['q3']:.3f}, n = {ratio['n']}), because ESD samples inside the step."
    )


# The filter


def detection_table() -> str:
    """Every detector over all requests of the report."""
    record = read("research/results/filter/metrics.json")["detection"]
    keys = {
        "all names": "tpr",
        "unseen alias": "tpr alias unseen",
        "misspelt": "tpr misspelt",
        "last in a long prompt": "tpr long, target last",
    }
    found = list(record.values())
    return table(
        Column("detector", list(record)),
        numbers("AUROC", [each["auroc"] for each in found], 4),
        *(shares(title, [each[key] for each in found]) for title, key in keys.items()),
        shares("everyday prompts", [each["fpr benign"] for each in found], 2),
    )


def many_table() -> str:
    """Many requests at once, beside ItD's one feature set and threshold."""
    record = read("research/results/filter/metrics.json")["together"]
    counts = sorted(record, key=int)
    keys = {
        "ours: found": "tpr", "ours: false alarms": "fpr any", "ItD, our budget: found": "itd tpr, our budget",
        "ItD, our budget: false alarms": "itd fpr, our budget", "ItD, published rule: found": "itd tpr, published rule",
        "ItD, published rule: false alarms": "itd fpr, published rule",
    }  # fmt: skip
    return table(
        Column("requests", counts),
        *(
            Column(f"{title} (%)", [f"{100 * record[n][key]['value']:.2f}" for n in counts])
            for title, key in keys.items()
        ),
    )


def edits_table() -> str:
    """What each edit does to images of each target."""
    targets = read("reports/evaluate/metrics.json")["targets"]
    edits = read("research/results/filter/metrics.json")["edits"]
    titles = {"ua": "gone", "anchor_rate": "anchor drawn", "ira": "rest found"}
    names = sorted(next(iter(edits.values())), key=lambda name: (name != "none", not name.startswith("replace")))
    columns = (
        Column(f"{targets[i]['target']}: {title}", [hits(edits[i][name][key]) for name in names])
        for i in edits
        for key, title in titles.items()
    )
    return table(Column("edit", names), *columns)


def latency_table() -> str:
    """What a filter costs in time, file and memory."""
    found = {(r["contender"], r["batch"]): r for r in read("research/results/filter_latency.json")["results"]}
    names = list(dict.fromkeys(name for name, _ in found))
    batches = sorted({batch for _, batch in found})
    return table(
        Column("encoder with", [name.removeprefix("encoder, ").replace("encoder", "nothing") for name in names]),
        *(
            Column(
                f"latency at batch {batch}", [_quartiles(found[name, batch]["ratio_within_turns"]) for name in names]
            )
            for batch in batches
        ),
        Column("file (MiB)", [f"{found[name, batches[0]]['file_mib']:.0f}" for name in names]),
        Column("memory (MiB)", [f"{found[name, batches[0]]['resident_mib']:.0f}" for name in names]),
    )


def adding_line() -> str:
    """What adding a request to a hundred costs."""
    found = read("research/results/filter_adding.json")["seconds_to_add"]["100"]["total"]
    return (
        f"Adding one request to 100 takes {found['median']:.2f} s after its prompts are read"
        f" (quartiles {found['q1']:.2f}–{found['q3']:.2f}, n = {found['n']}; `research/results/filter_adding.json`)."
    )


def _quartiles(ratio: Mapping[str, float]) -> str:
    return f"{ratio['median']:.2f} [{ratio['q1']:.2f}, {ratio['q3']:.2f}]"


def minilm_table() -> str:
    """Up to a thousand concepts on a pretrained text encoder."""
    rows = [
        row for row in read("research/results/minilm.json")["results"] if row["concepts"] > 1
    ]  # one alone proves nothing
    own = [row["own thresholds"] for row in rows]
    return table(
        Column("concepts", [str(row["concepts"]) for row in rows]),
        *(
            shares(title, [each[key] for each in own])
            for title, key in (("captions", "tpr target"), ("English sentences", "tpr context"))
        ),
        shares("false alarms of one", [row["fpr_each"] for row in rows], 2),
        shares("false alarms of any", [each["fpr any"] for each in own]),
        shares("captions at 1 % of any", [row["together"]["0.01"]["tpr target"] for row in rows]),
    )


# Training


def sae_table() -> str:
    """Tokens a second of whole training steps, and the ratio to the published loop."""
    shapes = {"256 × 2¹¹": "256_2048_16_1024", "768 × 2¹⁴": "768_16384_64_1024", "768 × 2¹⁷": "768_131072_64_256"}
    found: dict[tuple[str, str, str], str] = {}
    names: dict[str, None] = {}
    for shape, file in shapes.items():
        for each in read(f"research/results/sae_training_{file}_cpu.json")["results"]:
            names.setdefault(each["contender"])
            rate, ratio = each["tokens_per_second"]["median"], each["ratio"]["median"]
            found[each["contender"], shape, each["auxk"]] = f"{rate:,.0f} ({ratio:.1f}×)"
    return table(
        Column("trainer", list(names)),
        *(
            Column(f"{shape}, {auxk}", [found.get((name, shape, auxk), "—") for name in names])
            for shape in shapes
            for auxk in ("idle", "busy")
        ),
    )


def base_table() -> str:
    """Base model and judge: every metric of reports/base beside its target."""
    from training.openmoji.report import AT_MOST, TARGETS

    record = read("reports/base/metrics.json")
    found = {key: record[key] for key in TARGETS}
    seconds = "seconds_per_image"
    return table(
        Column("what", [text for text, _ in TARGETS.values()]),
        Column("measured", [_plain(m, percent=key != seconds) for key, m in found.items()]),
        Column("n", [str(m["n"]) for m in found.values()]),
        Column(
            "target",
            [
                f"{'≤' if key in AT_MOST else '≥'} {least:g}" if key == seconds else f"{'≤' if key in AT_MOST else '≥'} {100 * least:.3g} %"
                for key, (_, least) in TARGETS.items()
            ],
        ),
    )  # fmt: skip


def _plain(m: Metric, *, percent: bool) -> str:
    if percent:
        return "{:.1f} % [{:.1f}, {:.1f}]".format(*(100 * m[key] for key in ("value", "low", "high")))
    return f"{m['value']:.2f} [{m['low']:.2f}, {m['high']:.2f}]"
