"""A drop-in for `pipe.text_encoder` that runs the exported graph on onnxruntime.

    B prompts, L token positions (fixed), D hidden, R requests

Unlike `FilteredTextEncoder` it needs neither the filters nor torch's weights of the encoder, at the cost of what the
graph does not give: hidden states of other layers, attention masks, gradients.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPTextConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from components.common.errors import ArtifactError, UserError
from components.common.files import digest
from components.export.graph import INPUTS, OUTPUTS
from components.export.parity import REPORT, open_session
from components.filter.encoder import Detection

RESTORE = "restore both files: dvc checkout, or dvc repro export"


def read_report(graph: Path) -> dict[str, Any]:
    """What the export stage wrote beside a graph; `ArtifactError` if it is missing or speaks of other bytes."""
    path = graph.with_name(REPORT)
    for file in (graph, path):
        if not file.is_file():
            raise ArtifactError(f"{file} is missing", RESTORE)
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ArtifactError(f"{path} is not JSON", RESTORE) from error
    absent = [key for key in ("sha256", "requests", "max_length") if key not in report]
    if absent:
        raise ArtifactError(f"{path} does not name {', '.join(absent)}", RESTORE)
    found = digest(graph)
    if found != report["sha256"]:
        raise ArtifactError(f"{graph} has sha256 {found[:12]}…, not {report['sha256'][:12]}… as {REPORT} says", RESTORE)
    return report


class OnnxTextEncoder(PreTrainedModel):
    """The exported graph under CLIPTextModel's call convention, as StableDiffusionPipeline uses it.

    `detection` and `calls` are as in `FilteredTextEncoder`; put it into a pipeline with `install`, which keeps negative
    prompts unedited. A PreTrainedModel, because `from_pretrained(…, text_encoder=…)` takes nothing else. The graph runs
    in fp32 on its provider; `.to()` says in what dtype and on which device the hidden states are handed over.
    """

    config_class = CLIPTextConfig
    _supports_sdpa = True

    def __init__(
        self, graph: Path, *, provider: str = "CPUExecutionProvider", dtype: torch.dtype = torch.float32
    ) -> None:
        """Opens `graph`; `ArtifactError` if it is not the one of the report beside it, `UserError` without `provider`."""
        report = read_report(graph)
        session = open_session(graph, (provider,))
        shapes = {item.name: item.shape for item in (*session.get_inputs(), *session.get_outputs())}
        wanted = [report["max_length"], len(report["requests"])]
        found = [shapes.get(INPUTS[0], [None])[-1], shapes.get(OUTPUTS[1], [None])[-1]]
        if found != wanted:
            raise ArtifactError(f"{graph} takes (length, requests) {found}, not {wanted} as {REPORT} says", RESTORE)
        length, width = found[0], shapes[OUTPUTS[0]][-1]
        shape: Any = {"hidden_size": width, "max_position_embeddings": length, "use_attention_mask": False}
        super().__init__(CLIPTextConfig(**shape))
        self.session, self.requests = session, tuple(report["requests"])
        self.detection: Detection | None = None
        self.calls = 0
        self.register_buffer("place", torch.empty(0, dtype=dtype), persistent=False)  # what `.to()` moves

    @property
    def dtype(self) -> torch.dtype:
        """Of the hidden states that it returns."""
        return self.get_buffer("place").dtype

    @property
    def device(self) -> torch.device:
        """Of the hidden states that it returns; where the graph runs is the provider's affair."""
        return self.get_buffer("place").device

    @torch.no_grad()
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        output_hidden_states: bool = False,
        **_: Any,  # noqa: ANN401 - as CLIPTextModel's
    ) -> BaseModelOutput:
        """Hidden states (B, L, D) of tokens (B, L); `UserError` for what the graph cannot do."""
        length = self.config.max_position_embeddings
        if attention_mask is not None or output_hidden_states:
            raise UserError(
                f"the graph has no {'hidden states of other layers' if output_hidden_states else 'attention mask'}",
                "leave out clip_skip and use_attention_mask, or use FilteredTextEncoder",
            )
        if input_ids.shape[1] != length:
            raise UserError(
                f"the graph takes {length} tokens a prompt, not {input_ids.shape[1]}", "use the base model's tokenizer"
            )
        self.calls += 1
        hidden, scores, flagged = self.session.run(list(OUTPUTS), {INPUTS[0]: input_ids.long().cpu().numpy()})
        self.detection = Detection(torch.from_numpy(scores), torch.from_numpy(flagged))
        return BaseModelOutput(torch.from_numpy(hidden).to(self.get_buffer("place")))
