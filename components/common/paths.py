"""Where artifacts lie, relative to the project's root; dvc.yaml says which stage reads and writes which."""

from __future__ import annotations

from pathlib import Path

BASE = Path("data/base")
CORPUS = Path("data/corpus")
CONCEPTS = Path("data/concepts")
SAE = Path("models/sae")
FILTER = Path("models/filter")
GUIDANCE = Path("models/guidance")
ONNX = Path("models/onnx")
EVALUATE = Path("reports/evaluate")
CACHE = Path(".cache")
"""Resumable training state and activations; safe to delete at any time."""
