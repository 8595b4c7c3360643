"""Scripts that people run explain themselves, and do so before they do anything else. Run by pytest."""
import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Run by the build and by images, not by people.
OTHERS = {"cmake/nvcc.sh", "deploy/docker/list_packages.sh"}
LISTED = subprocess.run(["git", "-C", str(ROOT), "ls-files", "--stage", "*.sh"], stdout=subprocess.PIPE, text=True, check=True).stdout
SCRIPTS = [path for mode, path in ((line.split()[0], line.split("\t")[1]) for line in LISTED.splitlines())
           if mode == "100755" and path not in OTHERS]


def run(script, *args):
    return subprocess.run([str(ROOT / script), *args], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                          timeout=30)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_is_the_scripts_header(script):
    done = run(script, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    header = (ROOT / script).read_text().splitlines()[1].removeprefix("# ")
    assert done.stdout.startswith(header)
    assert script in done.stdout


# Those of bench/ hand options on to the program that they build first.
@pytest.mark.parametrize("script", [script for script in SCRIPTS if not script.startswith("bench/")])
def test_an_unknown_option_is_refused_in_one_line(script):
    done = run(script, "--no-such-option")
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "--no-such-option" in done.stderr
