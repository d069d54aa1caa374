"""The sparse autoencoder on the text encoder's residual stream; no request enters its training."""
