"""Answers in, scores and comparisons out."""
