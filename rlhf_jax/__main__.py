"""`python -m rlhf_jax VERB ...`: the command line where its console script is not on the path."""

from rlhf_jax.cli.main import main

main()
