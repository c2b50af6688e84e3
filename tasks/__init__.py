"""The eight steps of a retraining, and what they are made of: models, data, the registry, evaluation, training."""
