#!/usr/bin/env python3
"""Checks that tracked text names no path of one machine or package index, and leaves nothing marked as undone.

  forbidden_text.py      exit 1 and one line per finding
"""
import re
import sys

from sources import ROOT, report, tracked

# Written in pieces, so that this file does not find itself.
PATTERNS = [
    (re.compile(r"(?<![\w.}/])/(wo" + r"rk|ro" + r"ot)/"), "a path of one machine"),
    (re.compile(r"py" + r"pi\.org|files\.python" + r"hosted", re.I), "the host of a package index"),
    (re.compile(r"\b(TO" + r"DO|FIX" + r"ME|X" + r"XX|HA" + r"CK)\b"), "something left undone"),
    (re.compile(r"\bDISABLED" + r"_|GTEST" + r"_SKIP|pytest\.sk" + r"ip|mark\.sk" + r"ip|mark\.x" + r"fail"), "a test that is not run"),
]
TEXT = (".cc", ".h", ".py", ".sh", ".md", ".txt", ".cmake", ".proto", ".yaml", ".yml", ".json", ".toml", ".cfg", "run")
DATA = ("tests/golden/", "tests/fuzz/corpus/")


def check_text(path, text):
    findings = []
    for number, line in enumerate(text.split("\n"), 1):
        for pattern, what in PATTERNS:
            match = pattern.search(line)
            if match:
                findings.append((path, number, f"{what}: {match.group(0)}"))
    return findings


def main():
    findings = []
    for path in tracked(*TEXT):
        if path.startswith(DATA) and not path.endswith(".py"):
            continue
        findings += check_text(path, (ROOT / path).read_text(encoding="utf-8", errors="replace"))
    return report("forbidden_text", findings)


if __name__ == "__main__":
    sys.exit(main())
