"""Studies of the autoencoder."""
