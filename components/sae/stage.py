"""Stage `sae`: trains the autoencoder on the corpus; it never sees a request."""

from __future__ import annotations

import matplotlib.pyplot as plt
from accelerate import Accelerator
from tqdm import tqdm

from components.collect.tables import read_table
from components.common.closure import code_of
from components.common.curves import write_curves
from components.common.files import digest, key_of, new_folder
from components.common.paths import CACHE, CORPUS, SAE
from components.common.sections import read_section
from components.common.stage import log, run_stage
from components.diffusion.folder import TEXT_PARTS, part_digests
from components.diffusion.params import BaseParams
from components.diffusion.text import load_towers
from components.sae.activations import cache_activations
from components.sae.model import SparseAutoencoder, write_sae
from components.sae.params import SaeParams
from components.sae.train import SaeStep, evaluate_sae, train_sae


def sae() -> None:
    """Caches activations, trains with resumable checkpoints, measures on held-out prompts, writes SAELens' format.

    Under `accelerate launch` every process caches and reads a file of its own, and the main one writes what comes out.
    """
    base, settings, process = read_section("base", BaseParams), read_section("sae", SaeParams), Accelerator()
    towers, table = load_towers(base.path, base.hookpoints, process.device), read_table(CORPUS)
    stores = {
        split: cache_activations(
            CACHE / "sae" / f"{split}-{process.process_index}.f32",
            towers,
            table.loc[table["split"] == split, "prompt"].tolist(),
            padding=settings.padding,
            seed=settings.seed,
        )
        for split in ("train", "held_out")
    }
    model = SparseAutoencoder(
        stores["train"].tokens.shape[1],
        settings.d_sae,
        k=settings.k,
        architecture="topk" if settings.activation == "topk" else "jumprelu",
    )
    inputs = {"corpus": digest(CORPUS)} | part_digests(base.path, TEXT_PARTS)
    hookpoint = ", ".join(base.hookpoints)
    code = code_of("components.sae.train")
    key = key_of(inputs | {"code": code, "params": settings.model_dump_json() + hookpoint})
    checkpoint = CACHE / "sae" / f"{key}.safetensors"
    loop = train_sae(model, stores["train"], settings, checkpoint=checkpoint)
    steps = list(tqdm(loop, total=settings.steps, desc="sae", unit="step", mininterval=5))
    if not process.is_main_process:
        return
    facts: dict[str, object] = dict(evaluate_sae(model, stores["held_out"]))
    with new_folder(SAE) as partial:
        write_sae(partial, model, hookpoint=hookpoint, params=settings.model_dump(), inputs=inputs, facts=facts)
        plot_training(steps).savefig(partial / "training.png", dpi=80)
        write_curves(partial, steps)
    checkpoint.unlink(missing_ok=True)
    log.info("sae: held-out fvu %.3f, l0 %.1f, dead %.2f", facts["fvu"], facts["l0"], facts["dead_fraction"])


def plot_training(steps: list[SaeStep]) -> plt.Figure:
    """Unexplained variance and dead latents over training."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    left.plot([s.step for s in steps], [s.fvu for s in steps])
    left.set(xlabel="step", ylabel="fraction of variance unexplained", yscale="log")
    right.plot([s.step for s in steps], [s.dead_fraction for s in steps])
    right.set(xlabel="step", ylabel="dead fraction", ylim=(0, 1))
    return figure


if __name__ == "__main__":
    run_stage(sae)
