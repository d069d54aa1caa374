"""The text-encoder edit itself, shared by evaluation, export and serving."""

from components.filter.edit import codes, edit, evidence, score
from components.filter.encoder import Detection, FilteredTextEncoder

__all__ = ["Detection", "FilteredTextEncoder", "codes", "edit", "evidence", "score"]
