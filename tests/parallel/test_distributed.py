from collections import Counter

import jax
import pytest

from rlhf_jax.parallel import distributed


@pytest.fixture
def joined(monkeypatch):
    """The arguments of every call of jax.distributed.initialize, in an environment without any cluster."""
    for mark in (*distributed._CLUSTER_MARKS, "SLURM_NTASKS"):
        monkeypatch.delenv(mark, raising=False)
    calls = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **more: calls.append((*args, more)))
    return calls


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, []),
    ({"RLHF_JAX_CLUSTER": "1"}, [({},)]),  # a TPU VM: JAX asks the metadata
    ({"TPU_WORKER_HOSTNAMES": "localhost"}, []),
    ({"TPU_WORKER_HOSTNAMES": "a,b"}, [({},)]),
    ({"SLURM_JOB_ID": "7"}, []),
    ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}, [({},)]),
    ({"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"},
     [("a:1", 2, 1, {"cluster_detection_method": "deactivate"})]),
])
def test_joins_a_cluster_where_there_is_one(joined, monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    distributed.initialize()
    assert joined == expected


def test_a_coordinator_without_numbers_is_an_error_that_says_what_is_missing(joined, monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "a:1")
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(ValueError, match=r"'a:1' is set and JAX_NUM_PROCESSES is not"):
        distributed.initialize()
    assert joined == []


def test_alone_what_processes_tell_each_other_is_what_this_one_says():
    assert distributed.gather({"a": 1}) == [{"a": 1}]
    assert distributed.on_main(lambda: 3) == 3
    assert distributed.divided([1, 2, 3], lambda some: [2 * x for x in some]) == [2, 4, 6]


def test_counts_of_all_processes_are_added_up(monkeypatch):
    here = Counter(no_score=2, prompt_too_long=1)
    assert distributed.gather_counts(here) == {"no_score": 2, "prompt_too_long": 1}
    monkeypatch.setattr(distributed, "gather", lambda value: [value, {}, {"no_score": 3, "no_letter": 1}])
    assert distributed.gather_counts(here) == {"no_score": 5, "prompt_too_long": 1, "no_letter": 1}
    assert type(distributed.gather_counts(here)) is dict


@pytest.mark.parametrize(("process", "raised", "message"), [
    (0, KeyError, "no such key"), (1, RuntimeError, "KeyError on the main process: 'no such key'")])
def test_whatever_goes_wrong_on_the_main_process_is_raised_on_all(process, raised, message, monkeypatch):
    said, told = [{"error": "KeyError on the main process: 'no such key'"}, {}], []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    monkeypatch.setattr(distributed, "gather", lambda value: told.append(value) or said)
    with pytest.raises(raised, match=message):
        distributed.on_main(lambda: {}["no such key"])
    assert told == [said[process]]
