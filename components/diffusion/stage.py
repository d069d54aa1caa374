"""Stage `base`: checks the model that requests change, and writes the digests of its parts.

Which parts a model has depends on its architecture, and dvc.yaml cannot say "if it is there". So this one stage depends on the
whole folder, and the stages that read the model depend on what it writes: on the text parts, on the image parts, or on both.
"""

from __future__ import annotations

from components.common.files import canonical, write_text
from components.common.paths import BASE
from components.common.sections import read_section
from components.common.stage import log, run_stage
from components.diffusion.folder import IMAGE_PARTS, TEXT_PARTS, check_folder, part_digests, read_index
from components.diffusion.params import BaseParams


def base() -> None:
    """Writes data/base/text.json and data/base/image.json; `UserError` or `ArtifactError` for a model that cannot be used."""
    folder = read_section("base", BaseParams).path
    check_folder(folder)
    for name, parts in (("text", TEXT_PARTS), ("image", IMAGE_PARTS)):
        write_text(BASE / f"{name}.json", canonical(part_digests(folder, parts)))
    log.info("base: %s, a %s", folder, read_index(folder)["_class_name"])


if __name__ == "__main__":
    run_stage(base)
