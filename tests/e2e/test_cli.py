"""`millrace`, the command line client."""
import fcntl
import json
import os
import pty
import signal
import struct
import subprocess
import termios
import time

import pytest

import harness


def millrace(cluster, command, *args, stdin=None):
    done = subprocess.run([harness.BIN / "millrace", command, "--server", cluster.address, *map(str, args)],
                          input=stdin, stdin=subprocess.DEVNULL if stdin is None else None,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=harness.PATIENCE)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="module")
def cluster(real_model, logs):
    # The golden text is that of float32.
    with harness.Cluster(real_model, logs, stages=2, coordinator=["--activations", "f32"]) as it:
        yield it


def test_generate_prints_the_text(cluster, golden):
    case = next(c for c in golden if c["name"] == "capital")
    code, out, err = millrace(cluster, "generate", "--max-tokens", 100, "--temperature", 0, case["text"])
    assert code == 0, err
    assert out.rstrip("\n") == case["greedy_text"]


def test_generate_reads_standard_input(cluster, golden):
    case = next(c for c in golden if c["name"] == "code_python")
    code, out, err = millrace(cluster, "generate", "--max-tokens", 48, "--temperature", 0, "-", stdin=case["text"].encode())
    assert (code, out.rstrip("\n")) == (0, case["greedy_text"].rstrip("\n")), err


def test_generate_json_is_one_event_a_line(cluster, golden):
    case = next(c for c in golden if c["name"] == "story")
    code, out, err = millrace(cluster, "generate", "--json", "--max-tokens", 12, "--temperature", 0, "--logprobs", 2, case["text"])
    assert code == 0, err
    events = [json.loads(line) for line in out.splitlines()]
    assert events[0]["started"]["prompt_tokens"] == len(case["ids"])
    assert [i for e in events if "tokens" in e for i in e["tokens"]["token_ids"]] == case["greedy"][:12]
    assert all(len(p["top"]) == 2 for e in events if "tokens" in e for p in e["tokens"]["logprobs"])
    assert events[-1]["finished"]["usage"]["completion_tokens"] == 12


def test_chat(cluster, golden):
    case = next(c for c in golden if c["name"] == "chat_system")
    code, out, err = millrace(cluster, "chat", "--system", case["messages"][0]["content"], "--temperature", 0,
                              "--max-tokens", 64, case["messages"][1]["content"])
    assert (code, out.rstrip("\n")) == (0, case["greedy_text"].rstrip("\n")), err


def test_a_conversation_remembers(cluster):
    code, out, err = millrace(cluster, "chat", "--json", "--temperature", 0, "--max-tokens", 8,
                              stdin=b"My name is Ada.\nWhat is my name?\n")
    assert code == 0, err
    prompts = [json.loads(line)["started"]["prompt_tokens"] for line in out.splitlines() if "started" in json.loads(line)]
    assert len(prompts) == 2 and prompts[1] > prompts[0] + 8


def test_tokenize(cluster, golden):
    case = next(c for c in golden if c["name"] == "emoji")
    code, out, err = millrace(cluster, "tokenize", "--json", case["text"])
    assert code == 0, err
    assert json.loads(out)["token_ids"] == case["ids"]
    code, out, err = millrace(cluster, "tokenize", case["text"])
    assert code == 0 and str(case["ids"][0]) in out


def test_status(cluster):
    code, out, err = millrace(cluster, "status", "--wait", "10s")
    assert code == 0, err
    assert "serving" in out and "stage" in out
    code, out, err = millrace(cluster, "status", "--json")
    assert code == 0, err
    status = json.loads(out)
    assert status["server"]["state"] == "STATE_SERVING"
    assert status["model"]["layers"] == 30
    assert sum(stage["num_layers"] for stage in status["load"]["stages"]) == 30


def test_status_watch_goes_on_until_ctrl_c(cluster):
    process = subprocess.Popen([harness.BIN / "millrace", "status", "--server", cluster.address, "--watch"],
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        lines = [process.stdout.readline().decode() for _ in range(2)]
        assert all(line.startswith("serving, ") and "stage 1 busy" in line for line in lines), lines
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
        assert (process.returncode, err) == (0, b"")
    finally:
        process.kill()
        process.communicate()


def test_status_watch_draws_over_itself_on_a_terminal(cluster):
    """A narrow terminal cuts the lines: one that wraps would be two, and the picture would creep down."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    process = subprocess.Popen([harness.BIN / "millrace", "status", "--server", cluster.address, "--watch"],
                               stdin=subprocess.DEVNULL, stdout=follower, stderr=subprocess.PIPE)
    try:
        seen = b""
        while seen.count(b"worker") < 2 and seen.count(b"\x1b[J") < 2:
            seen += os.read(leader, 4096)
        first, second = seen.replace(b"\r", b"").split(b"\x1b[J")[:2]
        drawn = first.split(b"\x1b[")[0].splitlines()
        assert first.endswith(b"\x1b[%dF" % len(drawn)) and second.startswith(b"server")
        assert max(len(line) for line in drawn) == 40
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()
        os.close(leader)
        os.close(follower)


def test_text_is_streamed_and_ctrl_c_cancels(cluster):
    """Text comes while the answer is still being made; SIGINT ends the request on the server, too."""
    process = subprocess.Popen([harness.BIN / "millrace", "generate", "--server", cluster.address, "--temperature", "0",
                                "--ignore-eos", "Once upon a time"], stdin=subprocess.DEVNULL,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        assert os.read(process.stdout.fileno(), 1)
        assert cluster.client.load().running_requests == 1
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        out, err = process.communicate(timeout=10)
        assert time.monotonic() - began < 2
        assert process.returncode != 0
        assert b"CANCELLED" in err
    finally:
        process.kill()
        process.communicate()
    cluster.client.wait_idle(5)


@pytest.mark.parametrize("args, said", [
    (["generate"], "PROMPT"),
    (["generate", "--max-tokens", "many", "x"], "--max-tokens"),
    (["generate", "--no-such-flag", "x"], "--no-such-flag"),
    (["dance"], "dance"),
    ([], "usage"),
])
def test_wrong_usage(args, said):
    code, out, err = harness.run_program("millrace", *args)
    assert code == 2 and said in err


def test_server_errors_are_one_line(cluster):
    code, out, err = millrace(cluster, "generate", "--top-p", 0.5, "--min-p", 0.5, "--request-id", "x" * 200, "hello")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert "INVALID_ARGUMENT" in err and "200" in err and "128" in err


def test_nobody_listens():
    code, out, err = harness.run_program("millrace", "status", "--server", "127.0.0.1:1", seconds=30)
    assert code == 1
    assert "127.0.0.1:1" in err and len(err.splitlines()) == 1
    began = time.monotonic()
    code, out, err = harness.run_program("millrace", "status", "--server", "127.0.0.1:1", "--wait", "1s", seconds=30)
    assert code == 1 and time.monotonic() - began < 10
