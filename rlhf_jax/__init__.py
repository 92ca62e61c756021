"""RLHF Workflow in JAX: reward models, the DPO family and online iterative DPO as pure, sharded functions.

Importing this package, or `rlhf_jax.losses`, costs one import of jax; every other room is imported by name.
"""

__version__ = "0.2.0"
