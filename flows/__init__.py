"""What runs, and in which order; `flows.cli` is the command."""
