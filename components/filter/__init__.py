"""The text-encoder edit itself, shared by evaluation, export and serving."""

from components.filter.encoder import Detection, FilteredTextEncoder
from components.filter.edit import codes, edit, score

__all__ = ["Detection", "FilteredTextEncoder", "codes", "edit", "score"]
