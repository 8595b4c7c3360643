"""What the tests of the chart and of its pods start from."""
import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(pathlib.Path(__file__).parent))


@pytest.fixture(scope="session")
def real_model():
    """SmolLM2-135M-Instruct, as deploy/get_model.sh leaves it."""
    path = os.environ.get("MILLRACE_TEST_MODEL")
    if not path:
        path = subprocess.run([ROOT / "deploy" / "get_model.sh"], check=True, stdout=subprocess.PIPE).stdout.decode().strip()
    return pathlib.Path(path)


@pytest.fixture(scope="session")
def golden():
    """Cases of what an independent program chooses greedily, by name."""
    return {case["name"]: case for case in json.loads((ROOT / "tests" / "golden" / "smollm2.json").read_text())["cases"]}


@pytest.fixture(scope="session")
def protos(tmp_path_factory):
    """A folder with Python code made from proto/, which containers may read too."""
    folder = tmp_path_factory.mktemp("protos")
    folder.chmod(0o755)
    source = ROOT / "proto"
    files = sorted(str(path.relative_to(source)) for path in (source / "millrace").rglob("*.proto"))
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{source}", f"--python_out={folder}", f"--grpc_python_out={folder}",
                    *files], check=True, cwd=source)
    return folder


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failed test shows what its pods did."""
    report = (yield).get_result()
    if report.failed and "cluster" in getattr(item, "funcargs", {}):
        report.sections.append(("pods", item.funcargs["cluster"].report()))
