"""Builds the ONNX graph: `input_ids` to `last_hidden_state`, `concept_scores`, `flagged`.

B prompts (dynamic), L token positions (fixed), D hidden, R requests
"""

from __future__ import annotations

from pathlib import Path

import onnx
import torch
from torch import nn

from components.filter.encoder import FilteredTextEncoder

INPUTS = ("input_ids",)
OUTPUTS = ("last_hidden_state", "concept_scores", "flagged")
MAX_BATCH = 256


class ExportedFilter(nn.Module):
    """The filtered encoder with its decision as outputs, which is what a graph can carry."""

    def __init__(self, encoder: FilteredTextEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, L) int64 to (B, L, D), (B, R) and (B, R) bool."""
        hidden, decision = self.encoder.encode(input_ids)
        return hidden, decision.scores, decision.flagged


def export_graph(encoder: FilteredTextEncoder, example_ids: torch.Tensor, path: Path, *, opset: int) -> None:
    """Writes the graph with a dynamic batch, and has onnx check it. `example_ids` is (2, L)."""
    program = torch.onnx.export(
        ExportedFilter(encoder).eval(),
        (example_ids,),
        dynamo=True,
        input_names=list(INPUTS),
        output_names=list(OUTPUTS),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=MAX_BATCH)},),
        opset_version=opset,
        verbose=False,
    )
    assert program is not None  # it is, with dynamo
    program.save(str(path))
    onnx.save(without_traces(onnx.load(str(path))), str(path))
    onnx.checker.check_model(str(path), full_check=True)


def without_traces(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph without what the exporter noted of its making: it names folders, so that no two checkouts agree."""
    for node in model.graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("metadata_props")
        value.ClearField("doc_string")
    return model
