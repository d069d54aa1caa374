"""Studies of the text filter."""
