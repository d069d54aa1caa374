"""Purifying real images: DDIM inversion and resampling."""
