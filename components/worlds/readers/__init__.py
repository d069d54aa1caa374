"""Readers of judges that a user has: each module has `open_judge(params, subjects)`."""
