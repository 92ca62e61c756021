"""The data funnel: how many rows were read, were valid and were kept, and where each of the others went.

Silent loss of rows is the commonest root of spoiled runs. Nothing leaves the data
path here without a reason and a count, and rows that cannot be used lie in a quarantine file with their row number.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlhf_jax.data.bad_row import BadRow
from rlhf_jax.data.json_values import writable
from rlhf_jax.data.jsonl import write_jsonl_atomic
from rlhf_jax.data.on_disk import OnDisk
from rlhf_jax.data.sources import SourceRow


@dataclasses.dataclass
class Funnel:
    """Counts of rows: read -> valid -> kept.

    Attributes:
      read: rows read, after a converter has split or joined them.
      invalid: rows that could not be used, by reason; valid = read - invalid.
      dropped: valid rows left out on purpose (ties, duplicates, too long), by reason; kept = valid - dropped.
      notes: what was done to kept rows, by kind (truncations, renamed ids, responses left out, rows of one answer that
        were joined to an earlier one of their prompt); they change no sum.
      quarantine: where invalid rows are kept apart while they are read and rendered; no part of the counts.
    """

    read: int = 0
    invalid: Counter[str] = dataclasses.field(default_factory=Counter)
    dropped: Counter[str] = dataclasses.field(default_factory=Counter)
    notes: Counter[str] = dataclasses.field(default_factory=Counter)
    quarantine: Quarantine | None = dataclasses.field(default=None, compare=False, repr=False)

    def refuse(self, where: SourceRow | None, error: BadRow) -> None:
        """Counts a row that cannot be used and puts it aside. Raises TooManyBadRows as `Quarantine.add`."""
        self.invalid[error.reason] += 1
        if self.quarantine is not None:
            self.quarantine.add(where or SourceRow("(no file)", self.read, error), error)

    @property
    def valid(self) -> int:
        return self.read - self.invalid.total()

    @property
    def kept(self) -> int:
        return self.valid - self.dropped.total()

    def merged(self, other: Funnel) -> Funnel:
        """The sum of two funnels over different rows, for example those of two hosts."""
        return Funnel(self.read + other.read, self.invalid + other.invalid, self.dropped + other.dropped,
                      self.notes + other.notes)

    def to_json(self) -> dict[str, Any]:
        """Plain counts for a manifest or a metrics file; keys sorted."""
        counts = {name: dict(sorted(getattr(self, name).items())) for name in ("invalid", "dropped", "notes")}
        return {"read": self.read, "valid": self.valid, "kept": self.kept, **counts}

    @staticmethod
    def from_json(row: Mapping[str, Any]) -> Funnel:
        invalid, dropped, notes = (Counter(row[name]) for name in ("invalid", "dropped", "notes"))
        return Funnel(row["read"], invalid, dropped, notes)

    def __str__(self) -> str:
        """A small table for the terminal and the run page."""
        lines = [f"rows read  {self.read:>9,}"]
        lines += [f"  invalid  {-count:>9,}  {reason}" for reason, count in self.invalid.most_common()]
        lines += [f"valid      {self.valid:>9,}"]
        lines += [f"  dropped  {-count:>9,}  {reason}" for reason, count in self.dropped.most_common()]
        lines += [f"kept       {self.kept:>9,}"]
        lines += [f"  of these {count:>9,}  {note}" for note, count in self.notes.most_common()]
        return "\n".join(lines)


class TooManyBadRows(ValueError):
    """More rows are unusable than the budget `max_bad_rows` allows."""


@dataclasses.dataclass
class Quarantine:
    """Rows that could not be used, kept apart with row number, reason and message, within a budget.

    Attributes:
      path: JSONL file they go to when `close` is called; None keeps only the counts.
      max_bad_rows: an int is a number of rows, checked at each one; a float in [0, 1] is a share, checked at the end.
      hint: what would read the rows, for the error.
    """

    path: str | Path | None = None
    max_bad_rows: int | float = 0.02
    rows: OnDisk[dict[str, Any]] = dataclasses.field(default_factory=OnDisk)
    hint: str = ""

    def add(self, where: SourceRow, error: BadRow) -> None:
        """Puts one row aside. Raises TooManyBadRows when a budget in rows is spent."""
        row = where.row if isinstance(where.row, Mapping) else None
        self.rows.append({"source": where.source, "row_number": where.number, "reason": error.reason,
                          "message": error.message, "row": writable(row, exact=True)})
        if isinstance(self.max_bad_rows, int) and len(self.rows) > self.max_bad_rows:
            self.close(read=None)

    def close(self, read: int | None, *, cut: bool = False) -> None:
        """Writes the file (also over one of an earlier run) and holds the share of bad rows against the budget.

        Args:
          read: number of rows read in all; None where reading stopped early.
          cut: there are more rows, which nobody asked for: a share of few rows is rounded up to a whole row.

        Raises:
          TooManyBadRows: the budget is exceeded; the first rows are shown.
        """
        if self.path is not None:
            write_jsonl_atomic(self.path, self.rows)
        if isinstance(self.max_bad_rows, int):
            exceeded, budget = len(self.rows) > self.max_bad_rows, f"{self.max_bad_rows} rows"
        else:
            allowed = self.max_bad_rows * (read or 0)
            exceeded, budget = len(self.rows) > (math.ceil(allowed) if cut else allowed), (
                f"{self.max_bad_rows:.2%} of the rows")
        if exceeded:
            first = "\n".join(f"  {r['source']}, row {r['row_number']}: {r['message']} [{r['reason']}]"
                              for r in self.rows[:3])
            where = f" All of them are in {self.path}." if self.path is not None else ""
            raise TooManyBadRows(
                f"{len(self.rows)} of {'the first' if read is None else read} rows cannot be used and max_bad_rows "
                f"allows {budget}. The first of them:\n{first}\n{self.hint}Repair the data, choose a converter, or "
                f"raise max_bad_rows.{where}")
