"""The workflow: stages, the run manifest, the online iteration and its baselines."""
