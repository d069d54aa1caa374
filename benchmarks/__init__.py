"""Benchmarks against other implementations and methods; scripts, not tests."""
