"""Start-up on one machine or many, by JAX's own cluster detection."""

from __future__ import annotations

import os

import jax

_CLUSTER_MARKS = ("SLURM_JOB_ID", "JAX_COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES",
                  "OMPI_COMM_WORLD_SIZE", "RLHF_JAX_CLUSTER")


def initialize() -> None:
    """Joins the cluster this process was started in; does nothing on a lone machine.

    GKE and SLURM are recognised by JAX from their environment, and TPU VMs from the machine's metadata, for which
    RLHF_JAX_CLUSTER must be set; any other launcher sets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID.
    """
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    marks = [mark for mark in _CLUSTER_MARKS if mark in os.environ]
    alone = marks == ["TPU_WORKER_HOSTNAMES"] and "," not in hosts
    single_task = marks == ["SLURM_JOB_ID"] and os.environ.get("SLURM_NTASKS", "1") == "1"
    if not marks or alone or single_task or jax.distributed.is_initialized():
        return
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is None:
        jax.distributed.initialize()
    else:
        jax.distributed.initialize(address, int(os.environ["JAX_NUM_PROCESSES"]), int(os.environ["JAX_PROCESS_ID"]))


def is_main_process() -> bool:
    """True on the one process that writes logs and reports."""
    return jax.process_index() == 0
