"""Sources, the output place, and the stores they lie in."""
