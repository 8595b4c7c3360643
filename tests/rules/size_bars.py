#!/usr/bin/env python3
"""Checks sizes: no C++ or CUDA file over 500 lines, no function over 80 lines (kernels and their tests' loops: 120) or 5 parameters.

  size_bars.py           exit 1 and one line per finding
  size_bars.py --list    also the ten longest functions

The scan is lexical: comments and strings are blanked, braces are matched, and a block counts as a function body when a
parameter list, and nothing that makes it a control statement, a type, a namespace or an initialiser, stands before it.
"""
import re
import sys

from sources import ROOT, report, strip_cpp, tracked

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 80
MAX_KERNEL_LINES = 120
MAX_PARAMETERS = 5

CONTROL = {"if", "for", "while", "switch", "catch", "return", "do", "else", "try", "sizeof", "alignof", "decltype"}
NOT_FUNCTION = re.compile(r"(^|[;{}\s])(namespace|class|struct|union|enum|extern)\b(?![^;{}]*\))")
# Functions of libraries that are stood in for: others decide what their parameters are.
STOOD_IN_FOR = re.compile(r"^(cuda|cublas|nccl)[A-Z]\w*$")
LEADING = re.compile(r"(\s|(public|private|protected)\s*:(?!:))*")
# What may stand between a parameter list and its body.
TAIL = re.compile(r"^\s*(const|noexcept|override|final|mutable|constexpr|try|&&?|->\s*[\w:<>,&*\s\[\]()]+|"
                  r"requires\s+[^{]+|ABSL_\w+(\s*\([^()]*\))?|[A-Z_]{4,}(\s*\([^()]*\))?|\s)*$")


def blank_preprocessor(text):
    """Directives, with their continuation lines, blanked."""
    out, continued = [], False
    for line in text.split("\n"):
        directive = continued or line.lstrip().startswith("#")
        continued = directive and line.rstrip().endswith("\\")
        out.append("" if directive else line)
    return "\n".join(out)


def match_back(text, close, opener, closer):
    """Index of the bracket that `text[close]` closes, or -1."""
    depth = 0
    for i in range(close, -1, -1):
        if text[i] == closer:
            depth += 1
        elif text[i] == opener:
            depth -= 1
            if depth == 0:
                return i
    return -1


def without_initialisers(head):
    """The head of a constructor up to its member initialisers; the head itself where there are none."""
    depth = 0
    for i, char in enumerate(head):
        if char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
        elif char == ":" and depth == 0 and head[i - 1:i] != ":" and head[i + 1:i + 2] != ":" and \
                head[:i].rstrip().endswith((")", "noexcept")):
            return head[:i]
    return head


def split_parameters(text):
    """How many parameters a list has."""
    if text.strip() in ("", "void"):
        return 0
    depth, count = 0, 1
    for char in text:
        if char in "([{<":
            depth += 1
        elif char in ")]}>":
            depth -= 1
        elif char == "," and depth == 0:
            count += 1
    return count


def function_of(head):
    """(name, parameters) if `head`, the text before a `{`, opens a function body; else None."""
    signature = without_initialisers(head)
    if signature != head and re.search(r"[\w>]\s*$", head):
        return None  # the brace of a member initialiser
    head = signature
    close = head.rfind(")")
    if close < 0 or NOT_FUNCTION.search(head[close:]) or not TAIL.match(head[close + 1:]):
        return None
    # Annotations after the list have parentheses of their own: step over them.
    while True:
        start = match_back(head, close, "(", ")")
        if start < 0:
            return None
        name = re.search(r"(operator\s*(?:\(\)|\[\]|[^\s\w(]+)|[~\w:]+)\s*$", head[:start])
        before = head[:start].rstrip()
        if name and re.fullmatch(r"(ABSL_\w+|noexcept|[A-Z_]{6,})", name.group(1)) and ")" in head[:name.start()]:
            close = head.rfind(")", 0, name.start())
            continue
        break
    if before.endswith("]"):
        return "lambda", split_parameters(head[start + 1:close])
    if not name or name.group(1).split("::")[-1] in CONTROL:
        return None
    if re.search(r"(=|\breturn|,|\()\s*$", head[:name.start()]):
        return None
    return name.group(1), split_parameters(head[start + 1:close])


def functions(text):
    """(name, first line, lines, parameters) of each function of a C++ text, lambdas excluded."""
    code = blank_preprocessor(strip_cpp(text))
    found, stack, head_start = [], [], 0
    line_of = lambda index: code.count("\n", 0, index) + 1
    depth_paren = 0
    for i, char in enumerate(code):
        if char == "(":
            depth_paren += 1
        elif char == ")":
            depth_paren -= 1
        elif char == ";" and depth_paren <= 0:
            head_start = i + 1
        elif char == "{":
            head = code[head_start:i]
            entry = function_of(head) if depth_paren <= 0 else None
            first = head_start + LEADING.match(head).end()
            stack.append((entry, first, depth_paren, head_start))
            depth_paren, head_start = 0, i + 1
        elif char == "}":
            if not stack:
                raise ValueError(f"line {line_of(i)}: a brace that nothing opened")
            entry, first, depth_paren, outer_head = stack.pop()
            if entry and entry[0] != "lambda":
                found.append((entry[0], line_of(first), line_of(i) - line_of(first) + 1, entry[1]))
            if depth_paren <= 0:
                # `T x{...}` and member initialisers go on after the brace; a body does not.
                follows = code[i + 1:i + 80].lstrip()[:1]
                goes_on = follows in (",", ";", ")", ".", "(", "{")
                head_start = outer_head if goes_on else i + 1
    if stack:
        raise ValueError("a brace is not closed")
    return found


def check_text(path, text):
    findings = []
    lines = text.count("\n") + (not text.endswith("\n"))
    if lines > MAX_FILE_LINES:
        findings.append((path, 1, f"{lines} lines; the limit is {MAX_FILE_LINES}: split the file"))
    kernel = "kernels/" in path
    limit = MAX_KERNEL_LINES if kernel else MAX_FUNCTION_LINES
    for name, line, length, parameters in functions(text):
        if length > limit:
            findings.append((path, line, f"{name} has {length} lines; the limit is {limit}"))
        # A test's macro has two names; a kernel's innermost loops take what they need.
        if parameters > MAX_PARAMETERS and not kernel and not STOOD_IN_FOR.match(name):
            findings.append((path, line, f"{name} has {parameters} parameters; the limit is {MAX_PARAMETERS}: make it a struct"))
    return findings


def main():
    findings, everything = [], []
    for path in tracked(".cc", ".h", ".cu", ".cuh"):
        text = (ROOT / path).read_text(encoding="utf-8")
        try:
            findings += check_text(path, text)
            everything += [(length, path, line, name) for name, line, length, _ in functions(text)]
        except ValueError as error:
            findings.append((path, 1, f"cannot be scanned: {error}"))
    if "--list" in sys.argv:
        for length, path, line, name in sorted(everything, reverse=True)[:10]:
            print(f"{length:4} lines  {path}:{line} {name}")
        print(f"{len(everything)} functions")
    return report("size_bars", findings)


if __name__ == "__main__":
    sys.exit(main())
