"""Prompts: what the SAE is trained on, and what each request is selected, calibrated and evaluated on."""

from components.collect.concepts import PROMPT_COLUMNS, build_prompts
from components.collect.corpus import build_corpus, read_source

__all__ = ["PROMPT_COLUMNS", "build_corpus", "build_prompts", "read_source"]
