import jax
import pytest

from rlhf_jax.parallel import distributed


@pytest.fixture
def joined(monkeypatch):
    """The arguments of every call of jax.distributed.initialize, in an environment without any cluster."""
    for mark in (*distributed._CLUSTER_MARKS, "SLURM_NTASKS"):
        monkeypatch.delenv(mark, raising=False)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args: calls.append(args))
    return calls


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, []),
    ({"RLHF_JAX_CLUSTER": "1"}, [()]),  # a TPU VM: JAX asks the metadata
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, []),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, [()]),
    ({"SLURM_JOB_ID": "7"}, []),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, [()]),
    ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}, [("a:1", 2, 1)]),
])
def test_joins_a_cluster_where_there_is_one(joined, monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert joined == expected
