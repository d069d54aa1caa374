"""Speed of training a sparse autoencoder, in tokens a second: ours and others on the same shapes, dtype and optimiser.

    python -m research.sae --shape small

Contenders (research/sae/contenders.py) take turns, a few steps each, so
that whatever else the machine does meets all of them; a ratio is taken within one turn. `auxk` says whether the
auxiliary loss has work: `idle` is a run without a dead latent, `busy` one in which every latent counts as dead that did
not fire in the last batch.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from tqdm import tqdm

from components.diffusion.device import accelerator_device
from components.sae.activations import ActivationStore
from research.record import RESULTS, environment, publish, quartiles, spread, table
from research.sae.contenders import BASELINE, CONTENDERS, SHAPES, Shape, Task

NAME = "sae_training"
PACKAGES = ("expunge", "torch", "accelerate", "sae-lens", "eai-sparsify")
TOKENS = 16384
"""Rows of the file that batches are drawn from."""
BYTES = 4 * 4 + 4
"""A parameter in float32: weight, gradient, Adam's two moments, and as much again for what a step holds."""


PARTS: dict[str, tuple[str, ...]] = {
    "the encoder's product": ("aten::addmm", "aten::mm", "aten::bmm", "aten::matmul"),
    "ranking": ("aten::topk",),
    "memory: fills and copies": ("aten::copy_", "aten::fill_", "aten::zero", "Optimizer.zero_grad"),
    "decoder and gradients, active latents": (
        "aten::_embedding_bag",
        "aten::index",
        "aten::gather",
        "aten::scatter",
        "aten::sort",
    ),
    "Adam": ("aten::_fused_adam", "aten::_foreach", "Optimizer.step"),
}
"""Names of torch's operations by what they are for, the first that fits; dense decoders count with the products."""
OTHER = "everything else"


def write_tokens(path: Path, d_in: int, *, tokens: int = TOKENS) -> ActivationStore:
    """A file of tokens that are sparse sums of 4 D directions, so that latents have something to find."""
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(4 * d_in, d_in)).astype(np.float32)
    with path.open("wb") as file:
        for _ in range(0, tokens, 1024):
            weights = (rng.random((1024, len(parts))) < 8 / len(parts)) * rng.random((1024, len(parts)))
            file.write((weights.astype(np.float32) @ parts).tobytes())
    return ActivationStore(path, d_in)


def free_bytes(device: torch.device) -> int:
    """Memory that is free on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")


def start(names: Sequence[str], task: Task) -> tuple[dict[str, Iterator[object]], dict[str, str]]:
    """(contenders that have taken their first step, why the others cannot run)."""
    d_in, d_sae, _, batch = task.shape
    need = BYTES * 2 * d_in * d_sae + 4 * 8 * batch * d_sae
    running: dict[str, Iterator[object]] = {}
    absent: dict[str, str] = {}
    for name in tqdm(names, desc="first steps", unit="contender"):
        if free_bytes(task.device) < need:
            absent[name] = f"needs {need / 2**30:.1f} GiB"
            continue
        try:
            steps = CONTENDERS[name](task)
            next(steps)
        except ImportError as error:
            absent[name] = f"not installed ({error.name})" if error.name else "not installed"
            continue
        running[name] = steps
    return running, absent


def take(steps: Iterator[object], count: int, device: torch.device) -> float:
    """Seconds for `count` steps."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begun = time.perf_counter()
    for _ in range(count):
        next(steps)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - begun


def measure(names: Sequence[str], task: Task, *, steps: int, repeats: int) -> list[dict[str, Any]]:
    """One record a contender: tokens a second, and its ratio to the baseline within each of `repeats` turns."""
    running, absent = start(names, task)
    seconds: dict[str, list[float]] = {name: [] for name in running}
    for repeat in tqdm(range(repeats), desc="turns", unit="turn"):
        order = list(running)
        for name in order[repeat % len(order) :] + order[: repeat % len(order)]:
            seconds[name].append(take(running[name], steps, task.device))
    tokens = steps * task.shape.batch
    return [
        {
            "contender": name,
            "auxk": "busy" if task.busy else "idle",
            "why_not": absent.get(name),
            "tokens_per_second": quartiles([tokens / s for s in seconds[name]]) if name in seconds else None,
            "ratio": quartiles([b / s for b, s in zip(seconds[BASELINE], seconds[name], strict=True)])
            if name in seconds and BASELINE in seconds
            else None,
        }
        for name in names
    ]


def parts_of(name: str, task: Task, *, steps: int) -> dict[str, float]:
    """Milliseconds of one contender's step by `PARTS`, from torch's profiler, after three steps to warm up."""
    running = CONTENDERS[name](task)
    take(running, 3, task.device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        take(running, steps, task.device)
    spent = dict.fromkeys([*PARTS, OTHER], 0.0)
    for event in profiler.key_averages():
        part = next((p for p, names in PARTS.items() if event.key.startswith(names)), OTHER)
        spent[part] += event.self_cpu_time_total / 1000 / steps
    return spent


def plot_parts(found: dict[str, dict[str, float]]) -> plt.Figure:
    """One stacked bar a contender: what its step is spent on, those parts first that no exact trainer is without."""
    figure, axis = plt.subplots(figsize=(8, 0.6 + 0.5 * len(found)), layout="constrained")
    left = np.zeros(len(found))
    for part in [*PARTS, OTHER]:
        width = np.array([spent[part] for spent in found.values()])
        axis.barh(list(found), width, left=left, label=part)
        left += width
    axis.set(xlabel="milliseconds a step")
    axis.invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    return figure


def profile(shape: Shape, names: Sequence[str], *, steps: int, out: Path = RESULTS) -> dict[str, dict[str, float]]:
    """Profiles the named contenders on the CPU without a dead latent, and publishes numbers and plot."""
    with tempfile.TemporaryDirectory() as folder:
        store = write_tokens(Path(folder) / "tokens.f32", shape.d_in, tokens=max(TOKENS, shape.batch))
        task = Task(shape, store, torch.device("cpu"), busy=False)
        found: dict[str, dict[str, float]] = {}
        for name in tqdm(names, desc="profile", unit="contender"):
            try:
                found[name] = parts_of(name, task, steps=steps)
            except ImportError as error:
                tqdm.write(f"{name}: not installed ({error.name})")
        del store
    rows = [[name, *(f"{ms:.1f}" for ms in spent.values())] for name, spent in found.items()]
    record = {"environment": environment(PACKAGES), "shape": shape._asdict(), "steps": steps, "milliseconds": found}
    title = "_".join((f"{NAME}_parts", *map(str, shape), "cpu"))
    publish(title, record, table(("contender", *PARTS, OTHER), rows), out)
    plot_parts(found).savefig(out / f"{title}.png", dpi=80)
    return found


def run(
    shape: Shape, device: torch.device, names: Sequence[str], *, steps: int, repeats: int, out: Path = RESULTS
) -> list[dict[str, Any]]:
    """Measures with the auxiliary loss idle and busy, publishes, and returns the records."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        store = write_tokens(Path(folder) / "tokens.f32", shape.d_in, tokens=max(TOKENS, shape.batch))
        for busy in (False, True):
            found += measure(names, Task(shape, store, device, busy), steps=steps, repeats=repeats)
        del store
    rows = [
        [r["contender"], r["auxk"], r["why_not"] or spread(r["tokens_per_second"]), spread(r["ratio"])] for r in found
    ]
    sizes = ", ".join(f"{name} {size}" for name, size in shape._asdict().items())
    title = f"{sizes}, float32, {steps} steps a turn, {repeats} turns; median [quartiles]\n\n"
    record = {
        "environment": environment(PACKAGES, device),
        "shape": shape._asdict(),
        "steps_per_turn": steps,
        "results": found,
    }
    text = title + table(("contender", "auxk", "tokens/s", f"ratio to {BASELINE}"), rows)
    publish("_".join((NAME, *map(str, shape), device.type)), record, text, out)
    return found


def main() -> None:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--contenders", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="NAME")
    parser.add_argument("--steps", type=int, default=0, help="steps a turn; 0: about as many tokens for every shape")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--profile", action="store_true", help="what a step is spent on, on the CPU, instead of its speed"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny shape, to see that everything runs; no results")
    given = parser.parse_args()
    if given.profile and given.device != "cpu":
        parser.error("--profile: of the CPU alone; leave --device out")
    if given.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: there is no CUDA device; use --device cpu")
    os.environ["ACCELERATE_USE_CPU"] = str(given.device == "cpu").lower()
    torch.set_num_threads(given.threads)
    shape = Shape(8, 64, 4, 32) if given.quick else SHAPES[given.shape]
    steps = given.steps or max(1, 10 * SHAPES["small"].d_sae // shape.d_sae)
    with tempfile.TemporaryDirectory() as nowhere:
        out = Path(nowhere) if given.quick else RESULTS
        if given.profile:
            profile(shape, given.contenders, steps=max(5, steps), out=out)
            return
        run(shape, accelerator_device(), given.contenders, steps=steps, repeats=given.repeats, out=out)
