"""tests/count_results.py counts what did not pass as failed. Run by pytest."""
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))
import count_results  # noqa: E402


def run(tmp_path, capsys, *texts):
    paths = []
    for number, text in enumerate(texts):
        path = tmp_path / f"{number}.xml"
        path.write_text(text)
        paths.append(str(path))
    code = count_results.main(paths)
    return code, capsys.readouterr().out.strip().split("\n")


def suite(*cases):
    return "<testsuites><testsuite>" + "".join(cases) + "</testsuite></testsuites>"


PASS = '<testcase name="a" classname="c" status="run"/>'


def test_passes(tmp_path, capsys):
    assert run(tmp_path, capsys, suite(PASS), suite(PASS, PASS)) == (0, ["3 passed, 0 failed"])


def test_failures_errors_skips_and_disabled_tests_are_failures(tmp_path, capsys):
    bad = ['<testcase name="x"><failure message="m"/></testcase>', '<testcase name="x"><error/></testcase>',
           '<testcase name="x"><skipped/></testcase>', '<testcase name="x" status="notrun"/>',
           '<testcase name="x" status="disabled"/>', '<testcase name="x" status="fail"/>']
    code, lines = run(tmp_path, capsys, suite(PASS, *bad))
    assert code == 1
    assert lines[-1] == "1 passed, 6 failed"
    assert len(lines) == 7


def test_nothing_ran(tmp_path, capsys):
    assert run(tmp_path, capsys, suite())[0] == 1


def test_one_of_two_suites_is_empty(tmp_path, capsys):
    assert run(tmp_path, capsys, suite(PASS), suite())[0] == 1


def test_a_broken_file(tmp_path, capsys):
    code, lines = run(tmp_path, capsys, suite(PASS), "<testsuites>")
    assert code == 1
    assert lines[-1] == "1 passed, 0 failed"
