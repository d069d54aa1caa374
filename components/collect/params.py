"""Sections `corpus` and `concepts`: how many prompts are written."""

from __future__ import annotations

from pydantic import Field

from components.common.sections import Section


class BenignParams(Section):
    """Ordinary English phrases before deduplication; thresholds rest on those of the calibration."""

    calibrate: int = Field(gt=0)
    """To set every request's threshold."""
    evaluate: int = Field(gt=0)
    """To measure it, in another grammar."""
    real: tuple[str, ...]
    """Files of prompts that people wrote, as `corpus.sources` has them; every threshold keeps its budget on them alone, too."""


class CorpusParams(Section):
    """What the SAE is trained on; no request enters here."""

    captions: int = Field(gt=0)
    """Captions of the world to write before deduplication."""
    english: int = Field(gt=0)
    """Phrases of everyday English to write before deduplication."""
    benign: BenignParams
    """Ordinary English phrases in which false positives are counted."""
    sources: tuple[str, ...] = ()
    """Your own prompts, half of them for the SAE and the rest to calibrate and measure: CSV, Parquet or JSONL files with a
    `prompt` column, or hf:NAME for a Hugging Face dataset. With well over 2.5 / features.fpr of them the budget is held for
    them on their own."""
    held_out: float = Field(gt=0, lt=0.5)
    """Share of the prompts kept from SAE training to measure it."""
    seed: int = Field(ge=0)


class ConceptsParams(Section):
    """How many prompts each request is selected, calibrated and evaluated on."""

    per_name: int = Field(gt=0)
    """Prompts for each split and each name of the target, of the anchor and of each neighbour."""
    retain: int = Field(gt=0)
    """Prompts for each split that show concepts and styles of no request."""
    mixed: int = Field(gt=0)
    """Prompts for each split that show the target beside something else."""
    seed: int = Field(ge=0)
