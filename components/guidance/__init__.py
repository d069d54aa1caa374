"""All-but-One: one LoRA adapter a request on the U-Net, how to load several at once, and purifying a real image."""

from components.guidance.adapters import (
    attach,
    check_adapters,
    load_adapters,
    target_modules,
    use_adapters,
    write_adapter,
)
from components.guidance.closed_form import Moments, corresponding, moments, start_in_closed_form, steer
from components.guidance.fuse import check_fusible, choose_prompts, confine, fuse, fused_files, write_fused
from components.guidance.gating import gate_adapters, gate_by_detection
from components.guidance.losses import GuidanceLoss, classifier_guidance, guidance_loss, relative_drift
from components.guidance.picture import read_geometry, read_photo
from components.guidance.prepare import Lesson, prepare
from components.guidance.purify import default_prompt, ladder, psnr, purify
from components.guidance.train import Cache, GuidanceStep, cache_trajectories, train_guidance

__all__ = [
    "Cache",
    "GuidanceLoss",
    "GuidanceStep",
    "Lesson",
    "Moments",
    "attach",
    "cache_trajectories",
    "check_adapters",
    "check_fusible",
    "choose_prompts",
    "classifier_guidance",
    "confine",
    "corresponding",
    "default_prompt",
    "fuse",
    "fused_files",
    "gate_adapters",
    "gate_by_detection",
    "guidance_loss",
    "ladder",
    "load_adapters",
    "moments",
    "prepare",
    "psnr",
    "purify",
    "read_geometry",
    "read_photo",
    "relative_drift",
    "start_in_closed_form",
    "steer",
    "target_modules",
    "train_guidance",
    "use_adapters",
    "write_adapter",
    "write_fused",
]
