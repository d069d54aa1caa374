"""Opens a world by its name: `components/worlds/<name>`, or the path of a folder of your own."""

from __future__ import annotations

from pathlib import Path

from components.common.errors import UserError
from components.worlds.base import World
from components.worlds.open_world import is_open, read_open_world
from components.worlds.templated import WORLD, read_world

HERE = Path(__file__).parent


def world_folder(name: str) -> Path:
    """Where the world of that name lies; `UserError` if there is none."""
    for folder in (HERE / name, Path(name)):
        if name and (folder / WORLD).is_file():
            return folder
    shipped = sorted(path.parent.name for path in HERE.glob(f"*/{WORLD}"))
    raise UserError(f"world {name!r} is unknown", f"use one of {', '.join(shipped)}, or a folder with a {WORLD}")


def load_world(name: str) -> World:
    """The world of that name; `UserError` if there is none or its files do not make sense."""
    folder = world_folder(name)
    return read_open_world(folder) if is_open(folder) else read_world(folder)
