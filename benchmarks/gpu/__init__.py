"""Memory, speed and merges of Llama-shaped models with random weights: needs a GPU to matter, runs on a processor."""
