"""The examples in the docstrings of the losses give what they say, to the digits that are written."""

import doctest
import inspect
import re

import pytest

from rlhf_jax import losses
from rlhf_jax.losses import PairLogps

NUMBER = re.compile(r"-?\d+\.\d*(?:e[+-]?\d+)?")
TYPES = {"DIVERGENCES", "LOSSES", "Loss", "PreferenceLoss", "Responses", "Term", "TokenStats"}
"""Public names that compute nothing."""


class Digits(doctest.OutputChecker):
    """Numbers may differ by half of the last digit that is written."""

    def check_output(self, want, got, optionflags):
        wanted, given = NUMBER.findall(want), NUMBER.findall(got)
        if re.sub(r"\s+", "", NUMBER.sub("#", want)) != re.sub(r"\s+", "", NUMBER.sub("#", got)):
            return False
        return all(abs(float(a) - float(b)) <= 0.51 * 10.0 ** -len(a.partition(".")[2])
                   for a, b in zip(wanted, given, strict=True))


def run(name, names):
    test = doctest.DocTestParser().get_doctest(inspect.getdoc(getattr(losses, name)), names, name, None, None)
    runner = doctest.DocTestRunner(Digits(), verbose=False)
    said = []
    runner.run(test, out=said.append, clear_globs=False)
    assert not runner.failures, "".join(said)
    return test


@pytest.fixture(scope="module")
def names():
    """What the example of `PairLogps` defines."""
    return run("PairLogps", {}).globs


@pytest.mark.parametrize("name", [name for name in losses.__all__ if name not in TYPES])
def test_an_example_gives_what_it_says(name, names):
    assert run(name, dict(names)).examples


@pytest.mark.parametrize("name", losses.LOSSES)
def test_a_loss_names_its_paper(name):
    documented = inspect.getdoc(losses.LOSSES[name].function) + inspect.getmodule(losses.LOSSES[name].function).__doc__
    assert losses.LOSSES[name].paper in documented
    assert re.search(r'"[^"]+"\s+\(20\d\d\)', documented)


def test_the_checker_sees_another_digit():
    assert Digits().check_output("Array([0.1234], dtype=float32)\n", "Array([0.12344], dtype=float32)\n", 0)
    assert not Digits().check_output("Array([0.1234], dtype=float32)\n", "Array([0.1236], dtype=float32)\n", 0)
    assert not Digits().check_output("Array([0.5], dtype=float32)\n", "Array([0.5, 0.5], dtype=float32)\n", 0)
    assert isinstance(PairLogps.__doc__, str)
