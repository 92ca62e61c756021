"""Foreign rows into rows that `rows.parse_row` knows. A converter is a function of one row; `CONVERTERS` names them.

A column that a converter needs and does not find raises KeyError, which the funnel counts as missing_column.
"""

from rlhf_jax.data.converters.base import Converter, Row
from rlhf_jax.data.converters.sentiment import sentiment_pairs
from rlhf_jax.data.converters.table import CONVERTERS, find_converter

__all__ = ["CONVERTERS", "Converter", "Row", "find_converter", "sentiment_pairs"]
