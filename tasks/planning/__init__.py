"""Which training method fits into this machine."""
