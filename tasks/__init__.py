"""Verbs are Prefect tasks, nouns are plain Python."""
