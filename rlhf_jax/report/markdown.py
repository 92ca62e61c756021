"""The headline and the comparison table as Markdown, for a repository's results page."""

from __future__ import annotations

import html
from collections.abc import Sequence

from rlhf_jax.evaluation import Results
from rlhf_jax.report.headline import headline
from rlhf_jax.report.policies import present_measures, show


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others numbers. Pipes in cells are escaped."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def joined(parts: Sequence[str]) -> str:
    """Paragraphs of text as Markdown in which no HTML is meant."""
    return html.escape("\n\n".join(part for part in parts if part), quote=False) + "\n"


def write_markdown(results: Results) -> str:
    """Title, what the numbers say, and the table of policies with 95 % intervals; ends with a newline.

    What stands in the results is text: HTML in it is shown, not obeyed.
    """
    policies = results.policies
    measures = present_measures(policies)
    parts = [f"## {results.title}", results.subtitle or "", "\n".join(headline(results)), *results.notes]
    if measures:
        rows = []
        for policy in policies:
            cells = [show(policy.get(m.name), m) for m in measures]
            rows.append([policy.label, *(f"{number} ({range_})" if range_ else number for number, range_ in cells)])
        parts.append(table(["policy", *(m.title for m in measures)], rows))
        parts.append(f"Means over {max(p.prompts for p in policies):,} prompts; in brackets, 95 % bootstrap intervals "
                     "over prompts.")
    return joined(parts)
