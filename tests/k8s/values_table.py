#!/usr/bin/env python3
"""The table of values in the chart's README, from the comments of values.yaml.

  values_table.py [--check]

Writes it between the markers of README.md; --check: only compares, exit 1 if it differs.
"""
import json
import pathlib
import re
import sys

import yaml

CHART = pathlib.Path(__file__).resolve().parents[2] / "k8s" / "millrace"
BEGIN, END = "<!-- values: begin -->", "<!-- values: end -->"


def rows(text):
    """(path, default, comment) of each value that is not a map of values, in the order of the file."""
    values = yaml.safe_load(text)
    comment, path, found = [], [], []
    for line in text.splitlines():
        stripped = line.strip()
        if stripped.startswith("#"):
            comment.append(stripped.lstrip("# "))
            continue
        match = re.match(r"^( *)([A-Za-z][A-Za-z0-9]*):", line)
        if not match:
            comment = []
            continue
        depth = len(match.group(1)) // 2
        path = path[:depth] + [match.group(2)]
        value = values
        try:
            for key in path:
                value = value[key]
        except (KeyError, TypeError):  # within a value, as a resource list
            comment = []
            continue
        inline = line[match.end():].strip()
        if isinstance(value, dict) and value and not inline:
            if comment:
                found.append((".".join(path), None, " ".join(comment)))
        elif any(name == ".".join(path[:n]) for n in range(1, len(path)) for name, default, _ in found if default is not None):
            pass
        else:
            found.append((".".join(path), value, " ".join(comment)))
        comment = []
    return found


def table(text):
    lines = ["| value | default | what |", "|---|---|---|"]
    for path, default, comment in rows(text):
        shown = "" if default is None else "`" + json.dumps(default).replace("|", "\\|") + "`"
        lines.append(f"| `{path}` | {shown} | {comment.replace('|', chr(92) + '|')} |")
    return "\n".join(lines)


def main(args):
    readme = CHART / "README.md"
    text = readme.read_text()
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    new = f"{before}{BEGIN}\n{table((CHART / 'values.yaml').read_text())}\n{END}{after}"
    if args == ["--check"]:
        if new != text:
            print("k8s/millrace/README.md: the table differs from values.yaml: run tests/k8s/values_table.py", file=sys.stderr)
            return 1
        return 0
    readme.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
