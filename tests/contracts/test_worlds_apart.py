"""The product knows no particular world."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = ("components", "expunge", "flows", "deploy")
WORLDS = ROOT / "components" / "worlds"


def product_files():
    """Every file of the product outside the worlds' own folders."""
    return [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.is_file()
        and path.suffix != ".pyc"
        and (path.parent == WORLDS or not path.is_relative_to(WORLDS))
        and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
    ]


def test_no_product_file_names_a_particular_world():
    """What is installed, run and read names OpenMoji nowhere but in that world's folder."""
    files = product_files()
    found = [p for p in files if re.search("openmoji", p.read_text(encoding="utf-8", errors="ignore"), re.IGNORECASE)]

    assert len(files) > 60
    assert [str(path.relative_to(ROOT)) for path in found] == []


def test_worlds_and_the_embedded_models_lie_where_this_test_thinks():
    """The world that is left out above is there: otherwise the search would prove nothing."""
    assert (WORLDS / "openmoji" / "world.yaml").is_file()
    assert "OpenMoji" in (WORLDS / "openmoji" / "render.py").read_text()
