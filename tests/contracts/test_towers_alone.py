"""Whoever needs a prompt's states asks the towers: what a special token is, and which encoders there are, is read in one place."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ALLOWED = {"components/diffusion/text.py"}
"""Makes towers of a pipeline."""
PARTS = ("text_encoder", "text_encoder_2", "tokenizer_2", "eos_token_id")


def misuses(text):
    """Attributes by which a file reads a pipeline's encoder or tokenizer, or a configuration's EOS."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute):
            owner = ast.unparse(node.value)
            if node.attr in PARTS and "tokenizer" not in owner:
                found.append(f"{owner}.{node.attr}")
            if node.attr == "tokenizer" and owner.split(".")[-1] in ("pipe", "pipeline"):
                found.append(f"{owner}.tokenizer")
    return found


@pytest.mark.parametrize("folder", ["components", "flows", "expunge", "research"])
def test_nobody_else_reads_a_pipelines_text_side(folder):
    """Neither `pipe.text_encoder` nor `pipe.tokenizer` nor `config.eos_token_id`, whatever the pipeline is called."""
    found = {
        path.relative_to(ROOT).as_posix(): wrong
        for path in (ROOT / folder).rglob("*.py")
        if (wrong := misuses(path.read_text(encoding="utf-8")))
    }

    assert {name: wrong for name, wrong in found.items() if name not in ALLOWED} == {}


def test_the_search_finds_what_it_looks_for():
    """Each form is found; the tokenizer's own EOS is allowed."""
    wrong = (
        "a = pipe.text_encoder(x)\nb = self.pipe.tokenizer\nc = encoder.config.eos_token_id\nd = pipe.text_encoder_2\n"
    )

    assert len(misuses(wrong)) == 4
    assert misuses("a = tokenizer.eos_token_id\nb = tower.tokenizer\n") == []
