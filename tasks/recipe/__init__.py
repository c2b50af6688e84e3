"""What one retraining is asked for: the keys of a recipe, and how its file is read and explained."""
