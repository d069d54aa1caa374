"""Stable Diffusion pipelines: opening them, encoding prompts as they do, hooks, and sampling with a seed for each image."""

from components.diffusion.encode import (
    Encoded,
    content_mask,
    encode,
    find_tokens,
    spelling_patterns,
    tokenize,
    word_ends,
)
from components.diffusion.hooks import read_hookpoint, resolve_hookpoint, rewrite_hookpoint
from components.diffusion.load import accelerator_device, check_folder, folder_digests, load_pipeline, load_text
from components.diffusion.sampling import Trajectory, decode_latents, sample, trajectories
from components.diffusion.trie import Trie, build_trie, find_names

__all__ = [
    "Encoded",
    "Trajectory",
    "Trie",
    "accelerator_device",
    "build_trie",
    "check_folder",
    "content_mask",
    "decode_latents",
    "encode",
    "find_names",
    "find_tokens",
    "folder_digests",
    "load_pipeline",
    "load_text",
    "read_hookpoint",
    "resolve_hookpoint",
    "rewrite_hookpoint",
    "sample",
    "spelling_patterns",
    "tokenize",
    "trajectories",
    "word_ends",
]
