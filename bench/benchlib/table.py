"""Rows of a benchmark: what was measured, beside its target and what it refers to."""
import dataclasses
import json
import pathlib

NOT_AVAILABLE = "not available"


@dataclasses.dataclass
class Row:
    id: str
    what: str
    target: str                 # as people read it
    limit: float = None         # the target as a number; None: the row only tells
    at_most: bool = True        # measured must be at most `limit`; otherwise at least
    measured: float = None      # None: not available
    unit: str = "%"             # "%": `measured` is a share; "": a plain ratio; otherwise the unit itself
    spread: dict = None         # measure.spread of the values that `measured` is the median of
    reference: str = ""         # what it refers to, with its value
    noise: dict = None          # noise.summary while it was measured
    note: str = ""
    details: dict = dataclasses.field(default_factory=dict)

    @property
    def verdict(self):
        if self.measured is None:
            return NOT_AVAILABLE
        if self.limit is None:
            return "-"
        return "met" if (self.measured <= self.limit if self.at_most else self.measured >= self.limit) else "MISSED"

    def text(self, value):
        if value is None:
            return NOT_AVAILABLE
        if self.unit == "%":
            return f"{100 * value:.1f} %"
        return f"{value:.3f}" if not self.unit else f"{value:.4g} {self.unit}"

    def measured_text(self):
        text = self.text(self.measured)
        if self.measured is not None and self.spread and self.spread["n"] > 1:
            text += f" ({self.text(self.spread['low'])} to {self.text(self.spread['high'])}, n={self.spread['n']})"
        return text

    def to_json(self):
        return {**dataclasses.asdict(self), "verdict": self.verdict}


def noise_text(noise):
    if not noise:
        return ""
    return ", ".join(f"{key} {100 * noise[key]['max']:.0f} %" for key in ("steal", "foreign") if key in noise)


def print_table(rows, out):
    """A table that is also Markdown."""
    header = ("", "what", "measured (quartiles)", "target", "reference", "verdict", "worst noise")
    lines = [header] + [(row.id, row.what, row.measured_text(), row.target, row.reference, row.verdict, noise_text(row.noise))
                        for row in rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for number, line in enumerate(lines):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |", file=out)
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|", file=out)
    for row in rows:
        if row.note:
            print(f"{row.id}: {row.note}", file=out)


def write_json(path, rows, **more):
    pathlib.Path(path).write_text(json.dumps({**more, "rows": [row.to_json() for row in rows]}, indent=1) + "\n")
