"""Files that can be trusted: digests, whole writes, locks, and what is fetched from a model hub."""
