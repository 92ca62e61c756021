"""Plans: the run's own programs compiled for devices that are not here; `reports` begins, `rlhf-jax plan` prints."""
