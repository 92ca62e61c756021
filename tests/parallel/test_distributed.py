import socket
import threading
from collections import Counter
from contextlib import nullcontext

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


@pytest.mark.parametrize(("changes", "words"), [
    *(({"JAX_COORDINATOR_ADDRESS": address}, f"{address!r} is no HOST:PORT")
      for address in ("abc", "", "abc:", ":8476", "abc:x", "abc:0", "abc:70000", "abc:-1")),
    *(({"JAX_PROCESS_ID": number}, f"JAX_PROCESS_ID = {number!r}") for number in ("2", "-1", "one", "")),
    *(({"JAX_NUM_PROCESSES": count}, f"JAX_NUM_PROCESSES = {count!r}") for count in ("1", "0", "two", "2.0")),
])
def test_nonsense_in_the_environment_of_a_process_is_an_error_that_names_it(joined, monkeypatch, changes, words):
    sound = {"JAX_COORDINATOR_ADDRESS": "a:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
    for name, value in {**sound, **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        distributed.initialize()
    assert joined == []


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_that_is_taken_is_an_error_of_process_0_before_it_joins(joined, monkeypatch, family):
    if family == socket.AF_INET6 and not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no IPv6")
    with socket.create_server(("", 0), family=family) as taken:
        port = taken.getsockname()[1]
        address = f"localhost:{port}"
        for name, value in {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("JAX_PROCESS_ID", "0")
        with pytest.raises(ValueError, match=f"port {port} .*give all processes another port"):
            distributed.initialize()
        monkeypatch.setenv("JAX_PROCESS_ID", "1")  # for that one it should be taken
        distributed.initialize()
    monkeypatch.setenv("JAX_PROCESS_ID", "0")
    distributed.initialize()
    assert joined == [(address, 2, number, {"cluster_detection_method": "deactivate"}) for number in (1, 0)]


class Store(dict):
    """The coordinator's key-value store."""

    key_value_set, key_value_delete = dict.__setitem__, dict.__delitem__

    def key_value_dir_get(self, place):
        return [item for item in self.items() if item[0].startswith(place)]


@pytest.mark.parametrize(("came", "said"), [([], "1, 2, 3;"), ([1, 3], "2;"), ([3, 2, 1], "none that is late;")])
def test_who_has_not_come_in_time_is_named_and_the_process_ends(monkeypatch, capfd, came, said):
    store, ended = Store(), threading.Event()

    def never(value):
        here, = store
        store.update({f"{here.rpartition('/')[0]}/{process}": "" for process in came} | {"rlhf_jax/999999/2": ""})
        assert ended.wait(60)
        raise ConnectionError

    monkeypatch.setattr("orbax.checkpoint.multihost.get_jax_distributed_client", lambda: store)
    monkeypatch.setattr(distributed.multihost_utils, "process_allgather", never)
    monkeypatch.setattr(distributed.os, "_exit", lambda status: ended.set())
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setenv("RLHF_JAX_BARRIER_SECONDS", "0.05")
    with pytest.raises(ConnectionError):
        distributed.gather("here")
    assert f"process 0 of 4 has waited 0.05 seconds for process {said}" in capfd.readouterr().err


@pytest.mark.parametrize("seen", [[True, True, True], [True, False, True], [True, False, False]])
def test_a_folder_that_is_not_the_same_for_all_is_refused_by_all(monkeypatch, tmp_path, seen):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    monkeypatch.setattr(distributed, "on_main", lambda fn: fn())
    monkeypatch.setattr(distributed, "gather", lambda value: [value, *seen[1:]])
    blind = ", ".join(str(i) for i, sees in enumerate(seen) if not sees)
    with pytest.raises(ValueError, match=f"process {blind} does not find") if blind else nullcontext():
        distributed.check_shared(tmp_path)
    assert not list(tmp_path.iterdir())


def test_alone_what_processes_tell_each_other_is_what_this_one_says():
    assert distributed.gather({"a": 1}) == [{"a": 1}]
    assert distributed.on_main(lambda: 3) == 3
    assert distributed.map_over_processes([1, 2, 3], lambda some: [2 * x for x in some]) == [2, 4, 6]


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
