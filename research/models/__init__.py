"""Any Stable Diffusion: what is counted on the stand-ins of SD 1.5, 2.1 and XL (tests/standins.py)."""
