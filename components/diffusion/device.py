"""Where models compute."""

from __future__ import annotations

import torch
from accelerate import Accelerator


def accelerator_device() -> torch.device:
    """Where accelerate computes: this process's GPU if it has one, else the CPU; the CPU where ACCELERATE_USE_CPU is true."""
    return Accelerator(mixed_precision="no").device  # `PartialState`, asked first, would not read that variable
