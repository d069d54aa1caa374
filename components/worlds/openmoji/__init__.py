"""The embedded world: drawings of OpenMoji in eight styles."""
