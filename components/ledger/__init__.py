"""The ledger: an append-only, hash-chained log of requests and releases; every state is a replay of it."""
