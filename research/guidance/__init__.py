"""Studies of the adapters."""
