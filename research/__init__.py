"""The laboratory: studies that compare methods, their baselines and results."""
