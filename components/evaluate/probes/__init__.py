"""Probes beyond text: real images, latents, learned embeddings, a classifier's gradient and fine-tuning."""
