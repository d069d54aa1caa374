"""The command line, `expunge`."""
