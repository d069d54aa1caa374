"""MLflow: runs, metrics and registered candidates; the only importer of mlflow."""
