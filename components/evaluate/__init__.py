"""Measuring the base and every variant, gates that fail closed, and the page."""
