"""The eraser as the library shows it: of a project's working tree, or of a release."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from components import eraser
from components.common.variants import Variant
from components.registry.served import open_release
from components.registry.working import check_trained

if TYPE_CHECKING:
    import torch


class Eraser(eraser.Eraser):
    """A pipeline with the filters and adapters of some requests."""

    @classmethod
    def open(
        cls,
        project: Path | str = ".",
        *,
        variant: Variant | None = None,
        requests: Sequence[str] | None = None,
        device: torch.device | None = None,
        guard: bool = True,
    ) -> Self:
        """As `open` of the eraser below it; `ArtifactError` too for filters or adapters that were made for other requests than requests.yaml lists."""
        check_trained(Path(project), requests, variant)
        return super().open(project, variant=variant, requests=requests, device=device, guard=guard)

    @classmethod
    def from_release(
        cls,
        release: str | Path,
        *,
        base: Path | str | None = None,
        variant: Variant | None = None,
        requests: Sequence[str] | None = None,
        device: torch.device | None = None,
    ) -> Self:
        """The eraser of a release: `models:/expunge@champion`, `models:/expunge/3`, or a folder that `expunge pull` wrote.

        A version is fetched through MLFLOW_TRACKING_URI and stays in the user's cache; every byte of it is checked. `base` is the
        folder of the diffusers pipeline, by default the path in the release's params, and must be the one that was evaluated.
        """
        folder = None if base is None else Path(base)
        return open_release(cls, release, base=folder, variant=variant, requests=requests, device=device)
