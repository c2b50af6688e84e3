"""The training process: a job file in, a log of events out."""
