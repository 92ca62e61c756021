"""The command line: `rlhf-jax VERB --config x.yaml --key value`. No logic of its own."""
