"""What the rule scripts share: the tracked sources, C++ without comments and strings, and how findings are printed."""
import pathlib
import re
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def tracked(*suffixes, root=ROOT):
    """Paths (relative, as strings) of the files that git tracks or would track, with one of these suffixes."""
    out = subprocess.run(["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
                         check=True, stdout=subprocess.PIPE).stdout.decode()
    names = sorted(name for name in set(out.split("\0")) if name and (root / name).is_file())
    return [name for name in names if not suffixes or name.endswith(suffixes)]


_TOKEN = re.compile(
    r'//[^\n]*'
    r'|/\*.*?\*/'
    r'|R"(?P<mark>[^()\\\s]{0,16})\(.*?\)(?P=mark)"'
    r'|"(?:\\.|[^"\\\n])*"'
    r"|(?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'",
    re.DOTALL)


def strip_cpp(text, keep_strings=False):
    """The text with comments blanked, and strings too unless they are to be kept; line numbers stay."""
    def blank(match):
        token = match.group(0)
        if keep_strings and not token.startswith("/"):
            return token
        return re.sub(r"[^\n]", " ", token)
    return _TOKEN.sub(blank, text)


def report(rule, findings):
    """Prints `path:line: message` for each finding and returns the exit code."""
    for path, line, message in findings:
        print(f"{path}:{line}: {message}")
    print(f"{rule}: {len(findings)} finding(s)", file=sys.stderr)
    return 1 if findings else 0
