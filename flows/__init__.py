"""Prefect flows: effects around the stages of dvc.yaml, whose mathematics they never call."""

from components.common.settings import apply_settings

apply_settings()  # before Prefect is imported
