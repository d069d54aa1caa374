"""Training state: modules, optimiser and step, as safetensors behind their SHA-256, written in one move, without a pickle.

Every trainer here draws its randomness from (seed, step), so that state is all a resumed run needs to end in the same
bytes as an unbroken one.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import nn

from components.common.files import write_bytes

log = logging.getLogger("expunge")
STEP = "step"
_DIGEST = hashlib.sha256().digest_size


def save_checkpoint(
    path: Path,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    step: int,
    extra: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Writes everything that `load_checkpoint` restores; the old file stays whole until the new one is."""
    tensors = {STEP: torch.tensor(step)}
    for name, module in modules.items():
        tensors |= {f"module/{name}/{k}": v.detach().cpu().contiguous() for k, v in module.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{k}": torch.as_tensor(v).cpu() for k, v in state.items()}
    tensors |= {f"extra/{k}": v.detach().cpu().contiguous() for k, v in (extra or {}).items()}
    payload = save({k: v.contiguous().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()})
    write_bytes(path, hashlib.sha256(payload).digest() + payload)


def load_checkpoint(
    path: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer
) -> tuple[int, dict[str, torch.Tensor]]:
    """Restores modules and optimiser in place; returns (the step to go on from, the extra tensors).

    Without a file, or with one that was altered or cut short, it returns (0, {}) and changes nothing.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return 0, {}
    if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
        log.warning("%s was altered or cut short; training begins anew", path)
        return 0, {}
    tensors = load(content[_DIGEST:])
    for name, module in modules.items():
        prefix = f"module/{name}/"
        module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    whole = optimizer.state_dict()
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer/"):
            _, index, field = key.split("/")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({"state": state, "param_groups": whole["param_groups"]})
    for parameter, moments in optimizer.state.items():  # a fused optimiser walks through memory: layouts must agree
        for field, value in moments.items():
            if value.shape == parameter.shape:
                moments[field] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    extra = {k.removeprefix("extra/"): v for k, v in tensors.items() if k.startswith("extra/")}
    return int(tensors[STEP]), extra
