"""What every stage has in common: deterministic torch, a log, the lock, and one sentence instead of a traceback."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable

from components.common.lock import stage_running
from components.common.process import die_with_parent
from components.common.settings import apply_settings
from components.common.toplevel import one_sentence

log = logging.getLogger("expunge")
THREADS = 2
"""Torch threads of a stage: sums are split among threads, so a fixed number keeps the bytes the same."""


def run_stage(stage: Callable[..., None], *arguments: str) -> None:
    """Runs a stage as a program: exits with 0, or prints one sentence and exits with the error's code.

    A stage ends with the `dvc` or the writer that started it.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for noisy in ("httpx", "diffusers", "transformers", "accelerate"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    apply_settings()
    die_with_parent()
    if torch := sys.modules.get("torch"):  # a stage that computes has imported it
        torch.set_num_threads(THREADS)
        torch.use_deterministic_algorithms(mode=True)
    with one_sentence("expunge"), stage_running():
        stage(*arguments)
