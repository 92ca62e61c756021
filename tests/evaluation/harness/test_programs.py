"""Programs within limits: what passes, what does not, and that leaving early is no pass."""

import gzip
import json
import math
import time

import pytest

from rlhf_jax.evaluation.harness.code_tasks import continued, continued_to_fence, fenced, pass_at_1, pass_at_k
from rlhf_jax.evaluation.harness.programs import all_pass, can_cut_network, passes


@pytest.mark.parametrize(("program", "expected"), [
    ("assert sorted([2, 1]) == [1, 2]", True),
    ("import numpy as np\nassert np.ones(3) @ np.ones(3) == 3", True),
    ("print('x' * 10**6)", True),  # what it says goes nowhere
    ("assert False", False),
    ("def f(:", False),
    ("import sys\nsys.exit(0)", False),
    ("import os\nos._exit(0)", False),
    ("input()", False),
    ("x = bytearray(1 << 33)", False),
    ("open('big', 'wb').write(b'x' * (1 << 25))", False),
    ("import os\nassert 'HOME' not in os.environ and os.listdir() == []", True),
])
def test_a_program_passes_if_it_comes_to_its_end_within_the_limits(program, expected):
    assert passes(program, seconds=20.0) == expected


@pytest.mark.longer
def test_a_program_that_does_not_end_is_stopped_and_so_is_what_it_started():
    start = time.monotonic()
    assert not passes("import time\ntime.sleep(60)", seconds=1.0)
    assert not passes("import os\nwhile True:\n    os.fork() if False else None", seconds=1.0)
    assert time.monotonic() - start < 20


def test_a_program_has_no_network_where_the_system_allows_to_take_it():
    if not can_cut_network():
        pytest.skip("this system does not let a process give up the network")
    assert passes("import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9), 1)\n"
                  "except OSError as error:\n    assert error.errno == 101", seconds=20.0)  # network is unreachable


def test_pass_at_k_is_over_the_programs_of_a_problem():
    programs = ["def f(x):\n    return x", "def f(x):\n    return 1", "def f(x):", "def f(x):\n    return x + 0"]
    found = pass_at_k(["assert f(1) == 1\nassert f(2) == 2"], [programs], [1, 2, 5])
    assert found == {"pass@1": 0.5, "pass@2": pytest.approx(1 - 1 / math.comb(4, 2))}
    assert pass_at_1(["assert f(2) == 2"], [programs[0]]) == 1.0
    assert pass_at_1(["assert f(2) == 2"], [programs[:2]]) == 0.5


def test_programs_are_made_of_answers_as_the_harness_makes_them():
    doc = {"prompt": "def f():\n"}
    assert continued([["    return 1"]], [doc]) == [["def f():\n    return 1"]]
    assert continued_to_fence([["    return 1\n```\nThat was it"]], [doc]) == [["def f():\n    return 1\n"]]
    assert fenced([["\nx = 1\n```\nand ```y```", "x = 1"]], [doc]) == [["x = 1", ""]]


@pytest.mark.slow
def test_the_solutions_of_humaneval_pass_its_tests_and_empty_bodies_do_not(shared):
    with gzip.open(shared / "eval/humaneval/HumanEval.jsonl.gz") as stream:
        rows = [json.loads(line) for line in stream]
    for body, expected in (("canonical_solution", 164), (None, 0)):
        programs = [f"{row['prompt']}{row[body] if body else '    pass'}\n{row['test']}\ncheck({row['entry_point']})"
                    for row in rows]
        assert sum(all_pass(programs, seconds=30.0)) == expected
