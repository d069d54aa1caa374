"""The open world: any target may be named; its files say what stands beside it and how prompts read."""
