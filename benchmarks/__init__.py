"""Speed against other ways of doing the same, and runs on real sets."""
