"""All-but-One fine-tuning: one LoRA adapter a request on the U-Net, and how to load several at once."""

from components.guidance.adapters import attach, load_adapters, target_modules, use_adapters, write_adapter
from components.guidance.losses import GuidanceLoss, classifier_guidance, guidance_loss, relative_drift
from components.guidance.train import Cache, GuidanceStep, cache_trajectories, train_guidance

__all__ = [
    "Cache",
    "GuidanceLoss",
    "GuidanceStep",
    "attach",
    "cache_trajectories",
    "classifier_guidance",
    "guidance_loss",
    "load_adapters",
    "relative_drift",
    "target_modules",
    "train_guidance",
    "use_adapters",
    "write_adapter",
]
