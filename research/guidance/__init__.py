"""Studies of the adapters: each alone, several at once, and beside published erasers."""
