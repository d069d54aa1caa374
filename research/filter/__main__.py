"""`python -m research.filter`: studies of the text filter; run from the root of a project whose stages have run."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, add_completion=False, help=__doc__, pretty_exceptions_enable=False)
# each study is imported where it runs: torch and onnxruntime are slow to import, and no study needs all


@app.command()
def report(
    count: Annotated[int, typer.Option("--requests", min=1, help="Those that ship, then more of the world.")] = 40,
    benign: Annotated[int, typer.Option(min=1000, help="Everyday prompts that measure false positives.")] = 20_000,
    images: Annotated[int, typer.Option(min=0, help="Prompts of each kind on which edits are compared; 0: none.")] = 48,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("research/results/filter"),
) -> None:
    """Compares detectors on prompts and edits on images."""
    from research.filter.report import report_filter  # noqa: PLC0415

    record = report_filter(count=count, benign=benign, images=images, out=out)
    for name, found in record["detection"].items():
        tpr, fpr = found["tpr"], found["fpr benign"]
        typer.echo(
            f"{name:<14} AUROC {found['auroc']['value']:.4f}  TPR {tpr['value']:.4f} (n={tpr['n']})"
            f"  FPR {fpr['value']:.5f} (n={fpr['n']})"
        )


@app.command()
def latency(
    requests: Annotated[list[int], typer.Option(help="Requests in one filter; repeatable.")] = [1, 10, 40],  # noqa: B006
    batches: Annotated[list[int], typer.Option(help="Prompts in a batch; repeatable.")] = [1, 16],  # noqa: B006
    log2_d_sae: Annotated[list[int], typer.Option(help="Width of the dense form; repeatable.")] = [17, 19],  # noqa: B006
    repeats: Annotated[int, typer.Option(min=3, help="Turns of every race.")] = 10,
    seconds: Annotated[float, typer.Option(help="Of a race, after which no further turn begins.")] = 45.0,
    *,
    quick: Annotated[bool, typer.Option(help="Three turns, a small SAE, no results.")] = False,
) -> None:
    """Times the filter on onnxruntime, at the sizes of CLIP ViT-L."""
    from research.filter.graphs import Shape  # noqa: PLC0415
    from research.filter.latency import run  # noqa: PLC0415
    from research.record import RESULTS  # noqa: PLC0415

    widths = [2**12] if quick else [2**n for n in log2_d_sae]
    with tempfile.TemporaryDirectory() as nowhere:
        out = Path(nowhere) if quick else RESULTS
        run(Shape(), requests, widths, batches, repeats=3 if quick else repeats, seconds=seconds, out=out)


@app.command()
def minilm(
    concepts: Annotated[list[int], typer.Option(help="How many act at once; repeatable.")] = [1, 10, 100, 1000],  # noqa: B006
) -> None:
    """Fits up to 1,000 concepts on a pretrained text encoder."""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    from research.filter.minilm_study import run  # noqa: PLC0415

    run(sorted(set(concepts)))


@app.command()
def adding(
    count: Annotated[list[int], typer.Option(help="Requests that exist; repeatable.")] = [1, 100],  # noqa: B006
) -> None:
    """Times adding one request when many exist."""
    from research.filter.adding import run  # noqa: PLC0415

    run(count)


@app.command()
def text(
    prompts: Annotated[Path, typer.Option(help="Folder with coco-10k.csv and parti.csv.")],
    requests: Annotated[list[int], typer.Option(help="How many act at once; repeatable.")] = [10, 100, 1000],  # noqa: B006
) -> None:
    """Finds names in text: by kind of evasion, false alarms on real prompts, latency."""
    from research.filter.text import run  # noqa: PLC0415

    run(prompts, sorted(set(requests)))


@app.command()
def gates(
    unrelated: Annotated[int, typer.Option(min=8, help="Unrelated prompts to draw.")] = 200,
    tried: Annotated[int, typer.Option(min=4, help="Evading prompts to draw, for each request.")] = 120,
    drawn: Annotated[int, typer.Option(min=512, help="Random prompts to search them among.")] = 40_000,
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("research/results"),
) -> None:
    """When should an adapter act? Evading prompts against unrelated images."""
    from research.filter.gates import run  # noqa: PLC0415

    run(unrelated=unrelated, tried=tried, drawn=drawn, out=out)


@app.command()
def many(
    prompts: Annotated[Path, typer.Option(help="Folder with coco-10k.csv and parti.csv.")],
    encoder: Annotated[str, typer.Option(help="openmoji (the world's own, up to 80 requests) or minilm.")] = "openmoji",
    requests: Annotated[list[int], typer.Option(help="How many act at once; repeatable.")] = [1, 2, 10],  # noqa: B006
    out: Annotated[Path, typer.Option(help="Folder to write.")] = Path("research/results"),
) -> None:
    """How often does any of many requests flag a real prompt that names none of them?"""
    os.environ["ACCELERATE_USE_CPU"] = "true"
    from research.filter.many import run  # noqa: PLC0415

    run(encoder, prompts, sorted(set(requests)), out)


app()
