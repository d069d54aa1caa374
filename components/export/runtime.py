"""The exported graph on onnxruntime: a text encoder that needs neither torch's weights of the encoder nor the filters.

    B prompts, L token positions (fixed)

The graph gives no hidden states of other layers, takes no attention mask and has no gradients.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from components.common.errors import ArtifactError, UserError
from components.common.files import digest
from components.diffusion.conditioning import Conditioning
from components.diffusion.encode import Encoded
from components.export.graph import data_of, feed_of, output_names
from components.export.parity import open_session
from components.export.report import REPORT, RESTORE, read_sealed
from components.filter.encoder import Decision


def read_report(graph: Path) -> dict[str, Any]:
    """What the export stage wrote beside a graph; `ArtifactError` if it is missing or speaks of other bytes."""
    path = graph.with_name(REPORT)
    report = read_sealed(path)
    if report.get("sha256", "") is None:
        raise ArtifactError(f"{graph.parent} holds no graph, for no request has a filter", "erase by the adapters")
    absent = [key for key in ("sha256", "requests", "max_length") if key not in report]
    if absent:
        raise ArtifactError(f"{path} does not name {', '.join(absent)}", RESTORE)
    files = {graph: report["sha256"]}
    if report.get("data_sha256"):
        files[data_of(graph)] = report["data_sha256"]
    for file, wanted in files.items():
        if not file.is_file():
            raise ArtifactError(f"{file} is missing", RESTORE)
        if (found := digest(file)) != wanted:
            raise ArtifactError(f"{file} has sha256 {found[:12]}…, not {wanted[:12]}… as {REPORT} says", RESTORE)
    return report


class OnnxTextEncoder:
    """The exported graph as a text encoder: tokens to hidden states and decision.

    It remembers nothing, so that several threads may encode at once.
    """

    def __init__(self, graph: Path, *, provider: str = "CPUExecutionProvider") -> None:
        """Opens `graph`; `ArtifactError` if it is not the one of the report beside it, `UserError` without `provider`."""
        report = read_report(graph)
        session = open_session(graph, (provider,))
        shapes = {item.name: item.shape for item in (*session.get_inputs(), *session.get_outputs())}
        wanted = [report["max_length"], len(report["requests"])]
        found = [shapes.get("input_ids", [None])[-1], shapes.get("concept_scores", [None])[-1]]
        if found != wanted:
            raise ArtifactError(f"{graph} takes (length, requests) {found}, not {wanted} as {REPORT} says", RESTORE)
        self.session, self.requests, self.length = session, tuple(report["requests"]), int(report["max_length"])
        self.towers = (len(session.get_inputs()) + 1) // 3

    def encode(self, encoded: Encoded, named: torch.Tensor | None = None) -> tuple[Conditioning, Decision]:
        """(states and pooled output, fp32 on the CPU and without time ids; decision) of the tokens of B prompts.

        `named` (B, L, R) bool says where text has found names (components/filter/text.py); without it listed tokens decide.
        `UserError` for tokens of another length or of another number of tokenizers.
        """
        found = encoded.input_ids.shape[1], 1 + len(encoded.others)
        if found != (self.length, self.towers):
            raise UserError(
                f"the graph takes {self.length} tokens a prompt from {self.towers} tokenizer(s), not {found[0]} from {found[1]}",
                "use the base model's tokenizers",
            )
        outputs = self.session.run(list(output_names(self.towers)), feed_of(encoded, len(self.requests), named))
        *states, scores, flagged = map(torch.from_numpy, outputs)
        return Conditioning(*states), Decision(self.requests, scores, flagged)
