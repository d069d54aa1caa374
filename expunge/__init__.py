"""The library's one door: `from expunge import Eraser`.

Names are imported when they are asked for, so that `import expunge` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from components.common.errors import ArtifactError, ExpungeError, StageError, UserError
    from components.eraser import Drawing, Erased
    from components.filter.encoder import Decision
    from components.requests.requests import Request
    from expunge.eraser import Eraser

_HOME = {
    "ArtifactError": "components.common.errors",
    "Decision": "components.filter.encoder",
    "Drawing": "components.eraser",
    "Erased": "components.eraser",
    "Eraser": "expunge.eraser",
    "ExpungeError": "components.common.errors",
    "Request": "components.requests.requests",
    "StageError": "components.common.errors",
    "UserError": "components.common.errors",
}
__all__ = [
    "ArtifactError",
    "Decision",
    "Drawing",
    "Erased",
    "Eraser",
    "ExpungeError",
    "Request",
    "StageError",
    "UserError",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'expunge' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
