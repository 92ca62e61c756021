"""The tables of measures in docs/numbers.md are those of the code."""

import importlib.util
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"
SPEC = importlib.util.spec_from_file_location("measures", DOCS / "measures.py")
measures = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(measures)


def test_the_tables_are_written_by_the_command():
    page = (DOCS / "numbers.md").read_text()
    assert measures.written(page) == page
    assert "| Win rate by proxy |" in page


def test_a_page_without_a_place_for_a_table_is_refused():
    with pytest.raises(ValueError, match="no place for the table of policy measures"):
        measures.written("# Numbers\n")
