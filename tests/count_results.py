#!/usr/bin/env python3
"""Counts the tests in JUnit files: prints each failure, then "N passed, N failed". Exit 1 on a failure, or if a file has no test.

  count_results.py FILE.xml...
"""
import sys
import xml.etree.ElementTree as ElementTree


def outcome(case):
    """None for a pass, else what went wrong. A test that was skipped did not pass."""
    for tag in ("failure", "error", "skipped"):
        found = case.find(tag)
        if found is not None:
            return tag + ": " + (found.get("message") or (found.text or "").strip() or "no message").split("\n")[0][:200]
    if case.get("status") in ("fail", "notrun", "disabled"):
        return case.get("status")
    return None


def main(paths):
    passed, failed, empty = 0, 0, False
    for path in paths:
        try:
            cases = list(ElementTree.parse(path).getroot().iter("testcase"))
        except (OSError, ElementTree.ParseError) as error:
            print(f"no results in {path}: {error}")
            empty = True
            continue
        empty = empty or not cases
        for case in cases:
            what = outcome(case)
            passed += what is None
            failed += what is not None
            if what is not None:
                print(f"FAILED {case.get('classname') or ''} {case.get('name')}: {what}")
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or empty or passed == 0 else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
