"""The text-encoder edit itself, shared by evaluation, export and serving."""

from components.filter.edit import codes, evidence, spelt, step
from components.filter.encoder import Detection, FilteredTextEncoder
from components.filter.explain import Contribution, Place, Reason, explain, explain_prompt
from components.filter.install import FilteringEncoder, install

__all__ = [
    "Contribution",
    "Detection",
    "FilteredTextEncoder",
    "FilteringEncoder",
    "Place",
    "Reason",
    "codes",
    "evidence",
    "explain",
    "explain_prompt",
    "install",
    "spelt",
    "step",
]
