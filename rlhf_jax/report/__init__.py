"""The report: what a person looks at after a run."""

from .headline import headline
from .markdown import write_markdown
from .page import write_report
from .seeds import aggregate, write_seeds_markdown

__all__ = ["aggregate", "headline", "write_markdown", "write_report", "write_seeds_markdown"]
