"""Builds the ONNX graph: tokens to what the U-Net reads of them, and the filters' decision.

    B prompts (dynamic), L token positions (fixed), D hidden, E pooled, R requests

    SD 1.x, 2.x   input_ids, named                                 last_hidden_state, concept_scores, flagged
    SDXL          input_ids, named, input_ids_2, forth_2, back_2   prompt_embeds, pooled_prompt_embeds, concept_scores, flagged

`named` says at which tokens text has found a name (components/filter/text.py): 1, 0, or -1 where the graph shall look for the
listed tokens itself. `forth_2` and `back_2` say which positions of the two tokenizations correspond (components/diffusion/towers.py). A graph of
more than 2 GiB, which a file of ONNX cannot hold, has its weights beside it in `<graph>.data`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from torch import nn

from components.diffusion.encode import Encoded, Matched, content_mask, special_tokens
from components.filter.encoder import FilteredTextEncoder

MAX_BATCH = 256
INLINE = 2 * 2**30 - 2**26
"""Bytes of weights up to which a graph is one file."""
_STATES = {1: ("last_hidden_state",), 2: ("prompt_embeds", "pooled_prompt_embeds")}


def input_names(towers: int) -> tuple[str, ...]:
    """The graph's inputs: `named` (B, L, R) int64, the others (B, L) int64."""
    return (
        "input_ids",
        "named",
        *(f"{name}_{t}" for t in range(2, towers + 1) for name in ("input_ids", "forth", "back")),
    )


def output_names(towers: int) -> tuple[str, ...]:
    """The graph's outputs: the states (B, L, D), SDXL's pooled output (B, E), then (B, R) scores and (B, R) bool."""
    return (*_STATES[towers], "concept_scores", "flagged")


def feed_of(encoded: Encoded, requests: int, named: torch.Tensor | None = None) -> dict[str, np.ndarray]:
    """Tokens as the graph of so many requests takes them, by input; `named` (B, L, R) bool is what text has found, if asked."""
    shape = (*encoded.input_ids.shape, requests)
    at = torch.full(shape, -1, dtype=torch.int64) if named is None else named.long()
    tensors = [encoded.input_ids, at, *(part for other in encoded.others for part in other)]
    return {n: t.cpu().numpy() for n, t in zip(input_names(1 + len(encoded.others)), tensors, strict=True)}


def data_of(graph: Path) -> Path:
    """Where a graph's weights lie if they are not in the graph itself."""
    return graph.with_name(f"{graph.name}.data")


class ExportedFilter(nn.Module):
    """The filtered encoders with their decision as outputs, which is what a graph can carry."""

    def __init__(self, encoder: FilteredTextEncoder) -> None:
        super().__init__()
        self.encoder = encoder
        self.eos, _ = special_tokens(encoder.towers.first.tokenizer)

    def forward(
        self,
        input_ids: torch.Tensor,
        named: torch.Tensor,
        input_ids_2: torch.Tensor | None = None,
        forth_2: torch.Tensor | None = None,
        back_2: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Tokens (B, L) and names (B, L, R), in SDXL with the second tokenizer's and both maps, to the graph's outputs."""
        others = ()
        if input_ids_2 is not None and forth_2 is not None and back_2 is not None:
            others = (Matched(input_ids_2, forth_2, back_2),)
        encoded = Encoded(input_ids, content_mask(input_ids, self.eos), others)
        listed = self.encoder.listed(input_ids)
        cond, decision = self.encoder.encode(encoded, (named > 0) | ((named < 0) & listed))
        pooled = () if cond.pooled is None else (cond.pooled,)
        return cond.states, *pooled, decision.scores, decision.flagged


def export_graph(
    encoder: FilteredTextEncoder, example: Encoded, path: Path, *, opset: int, inline: int = INLINE
) -> None:
    """Writes the graph with a dynamic batch, and has onnx check it; `example` holds two prompts."""
    towers = 1 + len(example.others)
    batch = {0: torch.export.Dim("batch", min=1, max=MAX_BATCH)}
    with torch.no_grad():
        program = torch.onnx.export(
            ExportedFilter(encoder).eval(),
            tuple(torch.from_numpy(array) for array in feed_of(example, len(encoder.requests)).values()),
            dynamo=True,
            input_names=list(input_names(towers)),
            output_names=list(output_names(towers)),
            dynamic_shapes=(batch,) * len(input_names(towers)),
            opset_version=opset,
            verbose=False,
        )
    assert program is not None  # it is, with dynamo
    size = sum(part.numel() * part.element_size() for part in encoder.parameters())
    program.save(str(path), external_data=size > inline)
    onnx.save(without_traces(onnx.load(str(path), load_external_data=False)), str(path))
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
