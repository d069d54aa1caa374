"""Fit time: a request's features, score, threshold and replacement."""
