"""Whether a version may go into production: evidence, policy, decision, and what was decided before."""
