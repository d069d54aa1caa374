"""Run time of the text filter: the artifact, names, detection, the edit."""
