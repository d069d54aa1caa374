"""Stable Diffusion pipelines: opening them, encoding prompts as they do, hooks, and sampling with a seed for each image."""
