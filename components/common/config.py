"""params.yaml as frozen classes, one a section; every field says its unit, and an unknown key is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from components.common.errors import UserError

PARAMS = Path("params.yaml")


class Section(BaseModel):
    """Base of all sections: immutable, no unknown keys, attribute docstrings kept as field descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class BaseParams(Section):
    """The model that requests change, and what measures it."""

    path: Path
    """Folder of a diffusers StableDiffusionPipeline."""
    judge: Path
    """Folder of the judge artifact."""
    clip: Path
    """Folder of the image tower and projections that the text encoder was trained with, for CLIP scores."""
    hookpoint: str
    """Module of the text encoder whose output (its residual stream) the SAE reads, such as encoder.layers.2."""


class OpenmojiParams(Section):
    """How the base model and the judge that ship were trained; the stage is frozen."""

    singles: int = Field(gt=0)
    """Renders of each concept in each style."""
    pairs: int = Field(gt=0)
    """Renders of two concepts."""
    vae_steps: int = Field(gt=0)
    """Optimiser steps of the autoencoder, 8 images each."""
    text_steps: int = Field(gt=0)
    """Optimiser steps of the text encoder, 160 captions and 96 phrases each."""
    teacher_captions: int = Field(gt=0)
    """Captions with a teacher embedding."""
    teacher_english: int = Field(gt=0)
    """English phrases with a teacher embedding."""
    unet_steps: int = Field(gt=0)
    """Optimiser steps of the U-Net, 48 images each."""
    judge_steps: int = Field(gt=0)
    """Optimiser steps of the judge, 64 images each."""
    seed: int = Field(ge=0)


class BenignParams(Section):
    """Ordinary English phrases before deduplication; thresholds rest on those of the calibration."""

    calibrate: int = Field(gt=0)
    """To set every request's threshold."""
    evaluate: int = Field(gt=0)
    """To measure it, in another grammar."""


class CorpusParams(Section):
    """What the SAE is trained on; no request enters here."""

    captions: int = Field(gt=0)
    """Captions of the OpenMoji world to draw before deduplication."""
    english: int = Field(gt=0)
    """Ordinary English phrases to draw before deduplication."""
    benign: BenignParams
    """Ordinary English phrases in which false positives are counted."""
    sources: tuple[str, ...] = ()
    """Your own prompts, half of them for the SAE and the rest to calibrate and measure: CSV, Parquet or JSONL files with a
    `prompt` column, or hf:NAME for a Hugging Face dataset. With well over 2.5 / features.fpr of them the budget is held for
    them on their own."""
    held_out: float = Field(gt=0, lt=0.5)
    """Share of the prompts kept from SAE training to measure it."""
    seed: int = Field(ge=0)


class ConceptsParams(Section):
    """How many prompts each request is selected, calibrated and evaluated on."""

    per_name: int = Field(gt=0)
    """Prompts for each split and each name of the target, of the anchor and of each neighbour."""
    retain: int = Field(gt=0)
    """Prompts for each split that show concepts and styles of no request."""
    mixed: int = Field(gt=0)
    """Prompts for each split that show the target beside something else."""
    seed: int = Field(ge=0)


class SaeParams(Section):
    """The sparse autoencoder on the text encoder's residual stream."""

    activation: Literal["batchtopk", "topk"]
    """batchtopk is stored as JumpReLU with one threshold; topk is the form of Interpret-then-Deactivate."""
    d_sae: int = Field(gt=0)
    """Latents."""
    k: int = Field(gt=0)
    """Active latents a token, on average (batchtopk) or exactly (topk)."""
    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch: int = Field(gt=0)
    """Tokens a step."""
    lr: float = Field(gt=0)
    """Adam's learning rate."""
    auxk: int = Field(gt=0)
    """Dead latents that reconstruct the residual in the auxiliary loss."""
    auxk_coefficient: float = Field(ge=0)
    """Weight of the auxiliary loss."""
    dead_after: int = Field(gt=0)
    """Tokens without a single activation after which a latent counts as dead."""
    padding: float = Field(ge=0, le=1)
    """Share of the repeated padding positions that is trained on."""
    seed: int = Field(ge=0)

    @model_validator(mode="after")
    def _k_fits(self) -> SaeParams:
        if self.k >= self.d_sae:
            raise ValueError(f"sae.k={self.k} must be smaller than sae.d_sae={self.d_sae}")
        return self


class FeaturesParams(Section):
    """Selection of a request's features and calibration of its threshold."""

    max_features: int = Field(gt=0)
    """Features of the target kept for each request at most."""
    context_features: int = Field(ge=0)
    """Further features that tell the target from what is mistaken for it; evidence only."""
    min_contrast: float = Field(gt=0, lt=1)
    """Least difference in firing frequency between tokens of the target and of what is kept."""
    fpr: float = Field(gt=0, lt=1)
    """False-positive budget on calibration prompts that do not carry the target."""
    edit: Literal["replace", "zero", "flip"]
    """What a flagged prompt undergoes: the step to the anchor (zero without one), its features switched off, or times -8."""
    positions: tuple[Literal["target", "later", "eos", "padding"], ...] = Field(min_length=1)
    """Which classes of positions are edited; those before the target never are."""


class GuidanceParams(Section):
    """All-but-One fine-tuning of one LoRA adapter a request."""

    parameters: Literal["xattn-v", "xattn-kv", "xattn", "attn"]
    """Which projections get a LoRA: cross-attention values, keys and values, all of cross-attention, all of attention."""
    rank: int = Field(gt=0)
    """Rank of the LoRA."""
    start: Literal["closed-form", "random"]
    """Where values, and keys if they have a LoRA, start: at the least-squares map of the target's states to the anchor's, or where they change nothing."""
    start_retain_weight: float = Field(gt=0)
    """μ: weight of the states to keep in that map, and in the axes along which an adapter is trained, whatever its start."""
    start_uncond_weight: float = Field(ge=0)
    """ν: weight of the empty prompt's states in both."""
    trajectories: int = Field(gt=0)
    """Cached sampling trajectories of the frozen model, about the target or its anchor."""
    retain_trajectories: int = Field(gt=0)
    """The same about what is to be kept: one in eight about neighbours, five of two concepts."""
    solver_steps: int = Field(gt=0)
    """Solver steps of a cached trajectory; x_t is kept at each of them."""
    retain_solver_steps: int = Field(gt=0)
    """Solver steps of one about what is to be kept: fewer of them, and more prompts, at the same price."""
    guidance_scale: float = Field(ge=1)
    """Classifier-free guidance of the cached trajectories."""
    steps: int = Field(gt=0)
    """Optimiser steps."""
    batch: int = Field(gt=0)
    """Samples a step about the target; without null_space as many, and half as many more, with the empty prompt."""
    retain_batch: int = Field(gt=0)
    """Samples a step of prompts to retain."""
    lr: float = Field(gt=0)
    """AdamW's learning rate."""
    uncond_weight: float = Field(ge=0)
    """λ: weight of the drift of the unconditional score; in the null space it is held without."""
    retain_weight: float = Field(ge=0)
    """Weight of the drift on prompts to retain, neighbours first."""
    map_weight: float = Field(ge=0)
    """Weight in training of what the closed-form start minimises over all prompts, a mean over the layers that have a LoRA and read
    the prompt; with that start alone."""
    negative_guidance: float = Field(ge=0)
    """η: without an anchor the target's guidance term is trained to be -η times what it was; 0: to be nothing."""
    anchor_share: float = Field(ge=0, le=1)
    """Part of the cached trajectories about the target that draw the anchor instead; none without an anchor."""
    precision: Literal["no", "bf16"]
    """Of the U-Net's passes, in training and in sampling what it trains on: float32, or bfloat16 where it can; the adapter is
    float32 either way."""
    gradient_checkpointing: bool
    """Compute activations twice rather than keep them: a large U-Net then fits."""
    null_space: bool
    """Keep the adapter blind to what carries the empty prompt, so that the unconditional score hardly moves; with xattn-v and xattn-kv alone."""
    seed: int = Field(ge=0)

    @property
    def only_reads_prompt(self) -> bool:
        """Whether all layers of an adapter read the prompt: it is then a map of the prompt's hidden states."""
        return self.parameters in ("xattn-v", "xattn-kv")

    @model_validator(mode="after")
    def _null_space_holds(self) -> GuidanceParams:
        if self.null_space and not self.only_reads_prompt:
            raise ValueError(
                f"guidance.null_space needs an adapter of keys and values, or of values alone, not guidance.parameters={self.parameters!r}; "
                "use xattn-v, xattn-kv or null_space: false"
            )
        return self


class SizeParams(Section):
    """How many images an evaluation draws."""

    templates: int = Field(gt=0)
    """Target prompts for each request."""
    seeds: int = Field(gt=0)
    """Images of each prompt."""
    retain: int = Field(gt=0)
    """Prompts that show concepts and styles to retain, shared by all requests."""


class GateParams(Section):
    """One line that a candidate must not cross."""

    metric: str
    """A key of metrics.json below a request and a variant, such as ua."""
    variant: Literal["base", "filter", "guidance", "both", "gated"]
    """Which model the metric is taken of."""
    direction: Literal["at_least", "at_most"]
    """On which side of the threshold a candidate passes."""
    threshold: float
    """The line, in the metric's unit; with `relative_to_base` the allowed difference to base."""
    relative_to_base: bool = False
    """Compare the difference to the base model instead of the value."""
    n: int = Field(gt=0)
    """Fewest observations that count as evidence."""


class EvaluateParams(Section):
    """Measuring the variants."""

    size: str
    """Which of `sizes` to draw."""
    sizes: dict[str, SizeParams]
    """`quick` for make run, `full` for a promotion."""
    solver_steps: int = Field(gt=0)
    """Solver steps an image."""
    guidance_scale: float = Field(ge=1)
    """Classifier-free guidance of evaluated images."""
    batch: int = Field(gt=0)
    """Images drawn at once."""
    seed: int = Field(ge=0)
    gates: tuple[GateParams, ...]

    @model_validator(mode="after")
    def _size_is_known(self) -> EvaluateParams:
        if self.size not in self.sizes:
            raise ValueError(f"evaluate.size={self.size!r} is not among evaluate.sizes ({', '.join(self.sizes)})")
        return self


class ExportParams(Section):
    """The ONNX filter."""

    opset: int = Field(ge=18)
    """ONNX operator set."""
    prompts: int = Field(ge=256)
    """Prompts on which ONNX and torch must agree."""
    tolerance: float = Field(gt=0)
    """Largest absolute difference of hidden states."""


class Params(Section):
    """All of params.yaml."""

    base: BaseParams
    openmoji: OpenmojiParams
    corpus: CorpusParams
    concepts: ConceptsParams
    sae: SaeParams
    features: FeaturesParams
    guidance: GuidanceParams
    evaluate: EvaluateParams
    export: ExportParams


def read_yaml(path: Path) -> Any:  # noqa: ANN401 - YAML
    """The content of a YAML file; `UserError` if it is missing or no YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist", "run from the root of the project") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path} is not YAML ({str(error).splitlines()[0]})", "mend the file") from error


def first_problem(error: ValidationError, where: str) -> UserError:
    """The first thing that pydantic found, as one sentence."""
    problem = error.errors()[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        return UserError(f"{where} has an unknown key {key!r}", "remove it or mend its spelling")
    value = "" if isinstance(problem["input"], dict) else f" is {problem['input']!r}"
    message = problem["msg"].removeprefix("Value error, ")
    return UserError(f"{where}: {key}{value}" if key else where, message[0].lower() + message[1:])


def load_params(path: Path = PARAMS) -> Params:
    """params.yaml, checked; `UserError` for an unknown key, a missing one or a value out of range."""
    try:
        return Params.model_validate(read_yaml(path))
    except ValidationError as error:
        raise first_problem(error, str(path)) from error
