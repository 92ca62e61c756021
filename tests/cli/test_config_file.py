"""YAML of configs: plain values within limits; what is none is said with the file and the place."""

import pytest

from rlhf_jax.cli.config_file import MAX_BYTES, MAX_VALUES, read_config, read_value

BOMB = "a0: &a0 [x, x]\n" + "\n".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40))


def test_plain_values_merges_and_aliases_are_read():
    text = "base: &base {beta: 0.1, rate: 1.0e-3}\ndpo: {<<: *base, beta: 0.2}\nnames: [a, null, true, 3]\n"
    assert read_value(text) == {"base": {"beta": 0.1, "rate": 1e-3}, "dpo": {"beta": 0.2, "rate": 1e-3},
                                "names": ["a", None, True, 3]}


def test_a_date_is_the_text_that_it_is_written_as():
    assert read_value("title: 2024-05-07") == {"title": "2024-05-07"}


def test_a_key_that_is_a_number_is_a_name_like_any_other():
    assert read_value("{1: a, null: b}") == {"1": "a", "None": "b"}


@pytest.mark.longer
@pytest.mark.parametrize(("text", "said"), [
    (BOMB, f"more than {MAX_VALUES:,} values, aliases written out"),
    ("a: &a [*a]", "a value holds itself"),
    ("a: &a {b: *a}", "a value holds itself"),
    (f"a: [{'x,' * MAX_VALUES}x]", f"more than {MAX_VALUES:,} values"),
    ("a: " + "[" * 20_000, "nested too deeply"),
    ("a: " + "{b: " * 20_000, "nested too deeply"),
    (f"a: {'x' * MAX_BYTES}", f"a config at most {MAX_BYTES:,}"),
    ("a: 1\na: 2", "the key 'a' is given twice"),
    ("? [a, b]\n: 1", "a key is a list or a mapping instead of a name"),
    ("? {a: b}\n: 1", "a key is a list or a mapping instead of a name"),
    ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
    ("a: !!binary aGk=", "could not determine a constructor"),
    ("a: !!set {b}", "could not determine a constructor"),
    (f"a: {'9' * 5000}", "integer string"),
    ("a: [1", "line 1"),
    ("a: \0", "special characters are not allowed"),
])
def test_what_is_no_plain_mapping_of_a_sane_size_is_refused_at_once_with_its_file(text, said, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"config.yaml is not valid YAML: (?s:.*){said}"):
        read_config(str(path))


@pytest.mark.parametrize(("content", "said"), [
    (b"a: \xff\xfe", "is not valid YAML"), (b"", "holds NoneType"), (b"- 1", "holds list"), (b"x", "holds str")])
def test_so_is_a_file_of_other_bytes(content, said, tmp_path):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ValueError, match=f"config.yaml {said}"):
        read_config(str(tmp_path / "config.yaml"))
