"""Prefect flows: effects around the stages of dvc.yaml, whose mathematics they never call."""
