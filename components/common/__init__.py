"""What every slice uses."""
