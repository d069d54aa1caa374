"""Prompts: what the SAE is trained on, and what each request is selected, calibrated and evaluated on."""
