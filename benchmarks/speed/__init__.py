"""Training speed beside other trainers, on the same rows."""
