"""Section `export`."""

from __future__ import annotations

from pydantic import Field

from components.common.sections import Section


class ExportParams(Section):
    """The ONNX filter."""

    opset: int = Field(ge=18, le=23)
    """ONNX operator set; 23 is the newest that torch writes."""
    prompts: int = Field(ge=256)
    """Prompts on which ONNX and torch must agree."""
    tolerance: float = Field(gt=0)
    """Largest absolute difference of hidden states."""
