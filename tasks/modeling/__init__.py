"""Base models, methods, the training process, generation and merging."""
