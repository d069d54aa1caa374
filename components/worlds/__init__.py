"""Worlds: what can be drawn, how prompts about it are phrased, and who judges images."""
