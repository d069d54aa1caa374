"""MLflow: runs, metrics and registered candidates; the only importer of mlflow."""

from components.registry.registry import MODEL, flatten, register_candidate, tracking_uri

__all__ = ["MODEL", "flatten", "register_candidate", "tracking_uri"]
