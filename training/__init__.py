"""How the models that ship were made; the product imports nothing of it."""

import components  # noqa: F401 - sets what keeps transformers quiet, before anything imports it
