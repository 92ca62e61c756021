"""Training: one step for every objective, the fit loop, checkpoints, evaluation over packed groups."""
