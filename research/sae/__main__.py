"""`python -m research.sae`: how fast a sparse autoencoder trains."""

from research.sae.training import main

main()
