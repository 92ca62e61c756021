"""The measured parts as Markdown; no number is typed by hand."""

import textwrap
from collections.abc import Mapping
from typing import Any

from kinds import ROWS

from rlhf_jax.evaluation import Estimate
from rlhf_jax.report.markdown import table
from rlhf_jax.report.policies import written

Found = Mapping[str, Any]

HEAD = """# Reward models: every kind, measured

Written by `python benchmarks/reward_models`. In brackets 95 % bootstrap intervals over prompts: all pairs and answers
of a prompt are drawn together. Nothing was tuned on what is held out."""
ABOUT = {
    "world": """**The embedded world.** {rows:,} pairs whose labels are drawn from the judge's score and from a taste
        for length (ten words more add {length_taste:g} to the log-odds), and {half:,} prompts with four answers, of
        whose five ratings 70 % are missing. All models start from a tiny language model that was fine-tuned on the
        world's answers. Held out: {answers:,} answers to {prompts:,} prompts about subjects that no training set asks
        about. *Labels* are drawn as in training, *truth* is the judge. Of the judge the probes see the rating `overall`
        alone, rounded and mostly missing; the biased labels teach gate and tree.""",
    "graded": """**Graded answers** of real models: {train_answers:,} of {train_prompts:,} prompts, from four sets,
        each with its own grade. They are four objectives with holes: an answer has the grade of its set alone, and its
        length as a rating of verbosity. Pairs are all those of a prompt's answers with unequal grades. Backbone
        {backbone}, whose 256 positions hold short answers only. Held out: {answers:,} answers to {prompts:,} prompts
        of the sets' validation parts.""",
}
NAMES = {"world": "the embedded world", "graded": "graded answers of real models",
         "costs": "what features and probes cost"}
READ_IT = """A dash is what was not measured. Accuracy on held-out pairs; a pair counts where both answers have a
    score, so a kind that scored fewer answers stands on fewer pairs. *r with length*: correlation of score and
    characters within a prompt, mean over prompts with at least three scored answers. The backbone of ridge, armorm
    and tree is the Bradley-Terry model. ridge and regression are served by one rating ({overall}), the others are
    stored beside it. The score of odin is its quality head, that of ensemble the mean of four heads. Process and
    outcome models, which judge solutions in steps, are measured in configs/arithmetic."""
COSTS = """Each command is a process of its own: start, imports and compilation are counted. Answers of {set}, four per
    row, at most 256 tokens with their prompt; backbone {backbone}, float32. `probe` is ArmoRM with its default gate
    (three layers of 1,024 units, 2,000 steps of 1,024 pairs), two ratings regressed, one freed of the other. *Load of
    others*: how many of the {cores} cores other work kept busy meanwhile; with it the clock shows more than on a free
    machine."""


def page(found: Mapping[str, Found]) -> str:
    """The whole page, of whichever parts were measured."""
    parts = {name: found[name] for name in ABOUT if name in found}
    missing = [words for name, words in NAMES.items() if name not in found]
    sections = [HEAD, f"Not measured so far: {', '.join(missing)}." if missing else ""]
    sections += [_paragraph(ABOUT[name].format_map(part)) + "\n\n" + _when(part) for name, part in parts.items()]
    sections.append(_kinds(parts))
    for part in parts.values():
        sections += [_against(part), _ratings(part), _probes(part)]
    if "costs" in found:
        sections.append(_costs(found["costs"]))
    return "\n\n".join(section for section in sections if section) + "\n"


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False)


def _when(part: Found) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in part["versions"].items())
    return _paragraph(f"Measured on {part['day']} with {versions}.")


def _cell(row: Found | None, percent: bool = True, digits: int = 1, sign: bool = False) -> str:
    """A number with its interval."""
    if row is None:
        return "-"
    number, interval = written(Estimate.from_json({name: row[name] for name in ESTIMATE}), percent, digits)
    plus = "+" if sign and row["value"] > 0 else ""
    return f"{plus}{number} ({interval})" if interval else f"{plus}{number}"


ESTIMATE = ("value", "standard_error", "low", "high", "count")


def _kinds(parts: Mapping[str, Found]) -> str:
    """The one table: a row per kind, the columns of every part beside each other."""
    header, columns = ["kind", "made by"], []
    for name, part in parts.items():
        for truth, title in part["truths"].items():
            if pairs := [row[truth]["pairs"] for row in part["kinds"].values() if row[truth]]:
                header.append(f"{name}: {title}, {max(pairs):,} pairs")
                columns.append((part, truth))
        header += [f"{name}: {title}" for title in ("r with length", "answers scored")]
        columns += [(part, column) for column in ("length", "scored")]
    rows = [[name, f"`{row.made_by}`", *(_of_kind(part["kinds"].get(name), column) for part, column in columns)]
            for name, row in ROWS.items()]
    overall = ", ".join(f"{name}: {part['overall']}" for name, part in parts.items())
    return "## Every kind\n\n" + table(header, rows) + "\n\n" + _paragraph(READ_IT.format(overall=overall))


def _of_kind(row: Found | None, column: str) -> str:
    if row is None:
        return "-"
    match column:
        case "scored":
            return f"{row[column] * 100:.0f} %"
        case "length":
            return _cell(row[column], percent=False, digits=2)
        case _:
            return _cell(row[column])


def _title(part: Found, what: str) -> str:
    return f"## {part['title']}: {what}\n\n"


def _against(part: Found) -> str:
    """Differences from Bradley-Terry on the same pairs."""
    kinds = {name: row for name, row in part["kinds"].items() if name != "bradley_terry"}
    truths = {truth: title for truth, title in part["truths"].items()
              if any(row[f"{truth} against"] for row in kinds.values())}
    rows = [[name, *(_cell(row[f"{truth} against"], sign=True) for truth in truths)] for name, row in kinds.items()]
    if not truths:
        return ""
    return _title(part, "accuracy minus that of Bradley-Terry, on the same pairs") + table(
        ["kind", *truths.values()], rows)


def _ratings(part: Found) -> str:
    """How well the regressions give the ratings of held-out answers."""
    rows = [[name, f"{row['answers']:,}", f"{row['error']:.3f}", f"{row['of_constant']:.3f}",
             _cell(row["r2"], percent=False, digits=2), f"{row['rank']:.2f}"]
            for name, row in part["ratings"].items() if row]
    header = ["rating, in 0 to 1", "answers", "root mean squared error", "of a constant", "R2", "rank correlation"]
    return _title(part, "ratings of held-out answers, regressed (ridge)") + table(header, rows) if rows else ""


def _probes(part: Found) -> str:
    """What the probes' own reports say."""
    lines = []
    if armorm := part["probes"].get("armorm"):
        gate, debias = armorm["gate"], armorm["debias"]
        lines += [f"""ArmoRM's gate, on {gate['held_out']:,} pairs of training prompts held out of it: accuracy
                  {_cell(gate['accuracy'])}, of the plain sum of the de-biased ratings
                  {_cell(gate['accuracy_of_the_plain_sum'])}.""",
                  f"Rank correlation of each regressed rating with {debias['of']}, before and after de-biasing: "
                  + ", ".join(f"{name} {row['before']:.2f} and {row['after']:.2f}"
                              for name, row in debias["objectives"].items()) + "."]
    if tree := part["probes"].get("tree"):
        lines.append("What the tree looks at, mean importance over bootstraps of the prompts: " + ", ".join(
            f"{name} {row['mean']:.2f}" for name, row in tree["tree"]["importances"].items()) + ".")
    return "\n\n".join(map(_paragraph, lines))


def _costs(part: Found) -> str:
    rows = [[f"`{row['verb']}`", f"{row['answers']:,}", f"{row['seconds']:.0f}", f"{row['processor']:.0f}",
             f"{row['others']:.1f}", f"{row['peak'] / 2**20:,.0f} MiB"] for row in part["lines"]]
    header = ["command", "graded answers", "seconds", "processor seconds", "load of others", "peak memory"]
    return ("## What features and probes cost\n\n" + table(header, rows) + "\n\n"
            + _paragraph(COSTS.format_map(part)) + "\n\n" + _when(part))
