"""grpcurl, which knows nothing of Millrace, finds its way by server reflection."""
import json
import pathlib
import subprocess
import sys

import pytest

import harness

GRPCURL = pathlib.Path(sys.executable).parent / "grpcurl"


def grpcurl(*args, seconds=60):
    return subprocess.run([GRPCURL, "-plaintext", *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=seconds,
                          stdin=subprocess.DEVNULL, text=True)


def objects(text):
    """The JSON objects of a text, one after another."""
    decoder, values = json.JSONDecoder(), []
    text = text.lstrip()
    while text:
        value, end = decoder.raw_decode(text)
        values.append(value)
        text = text[end:].lstrip()
    return values


def test_list(tiny_cluster):
    listed = grpcurl(tiny_cluster.address, "list")
    assert listed.returncode == 0, listed.stderr
    services = listed.stdout.split()
    assert {"millrace.v1.Inference", "millrace.v1.Control", "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection"} <= set(services)


@pytest.mark.parametrize("symbol, said", [
    ("millrace.v1.Inference", ["rpc Generate ( .millrace.v1.GenerateRequest ) returns ( stream .millrace.v1.GenerateEvent )",
                               "rpc Tokenize", "rpc Detokenize"]),
    ("millrace.v1.Control", ["rpc GetServerInfo", "rpc GetModelInfo", "rpc GetLoad", "rpc Abort"]),
    ("millrace.v1.GenerateRequest", ["oneof input", "TokenIds token_ids", "Chat chat", "Sampling sampling", "Stop stop"]),
    ("millrace.v1.GenerateEvent", ["Started started", "PromptLogprobs prompt_logprobs", "TokenDelta tokens", "Finished finished"]),
])
def test_describe(tiny_cluster, symbol, said):
    described = grpcurl(tiny_cluster.address, "describe", symbol)
    assert described.returncode == 0, described.stderr
    for text in said:
        assert text in described.stdout


def test_health(tiny_cluster):
    checked = grpcurl("-d", '{"service": "millrace.v1.Inference"}', tiny_cluster.address, "grpc.health.v1.Health/Check")
    assert objects(checked.stdout) == [{"status": "SERVING"}], checked.stderr
    described = grpcurl(tiny_cluster.address, "describe", "grpc.health.v1.Health")
    assert "rpc Watch" in described.stdout, described.stderr
    unknown = grpcurl("-d", '{"service": "nobody"}', tiny_cluster.address, "grpc.health.v1.Health/Check")
    assert "NotFound" in unknown.stderr


def test_generate(tiny_cluster):
    body = {"token_ids": {"ids": [11, 12]}, "sampling": {"temperature": 0}, "stop": {"max_tokens": 5, "ignore_eos": True},
            "logprobs": 1}
    ran = grpcurl("-d", json.dumps(body), tiny_cluster.address, "millrace.v1.Inference/Generate")
    assert ran.returncode == 0, ran.stderr
    events = objects(ran.stdout)
    assert "started" in events[0] and events[-1]["finished"]["reason"] == "FINISH_REASON_LENGTH"
    ids = [token for event in events if "tokens" in event for token in event["tokens"].get("token_ids", [])]
    assert ids == tiny_cluster.client.generate([11, 12], 5, harness.GREEDY, {"ignore_eos": True}).ids


def test_an_error(tiny_cluster):
    ran = grpcurl("-d", '{"text": ""}', tiny_cluster.address, "millrace.v1.Inference/Generate")
    assert ran.returncode != 0
    assert "InvalidArgument" in ran.stderr and "EMPTY_PROMPT" in ran.stderr


def test_load_and_info(tiny_cluster):
    for method in ("GetServerInfo", "GetModelInfo", "GetLoad"):
        ran = grpcurl(tiny_cluster.address, f"millrace.v1.Control/{method}")
        assert ran.returncode == 0 and len(objects(ran.stdout)) == 1, ran.stderr
