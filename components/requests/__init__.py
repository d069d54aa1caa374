"""requests.yaml: what must be erased."""
