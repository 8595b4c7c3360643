"""What is wrong is refused with a line that says what it was, what it got and what the limit is; others are not disturbed."""
import math
import os
import re
import socket
import threading

import grpc
import pytest

import harness
from millrace.v1 import inference_pb2

INVALID = grpc.StatusCode.INVALID_ARGUMENT
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED
NAN, INF = math.nan, math.inf


def sampling(**options):
    return harness.request([5], 4, options)


def stop(**options):
    return harness.request([5], None, harness.GREEDY, options)


# Name: the request, the code, and what the message must say.
REQUESTS = {
    "no input": (inference_pb2.GenerateRequest(), INVALID, ["input"]),
    "empty text": (harness.request(""), INVALID, ["empty"]),
    "empty ids": (inference_pb2.GenerateRequest(token_ids={}), INVALID, ["empty"]),
    "empty chat": (inference_pb2.GenerateRequest(chat={}), INVALID, ["no messages"]),
    "unknown role": (harness.request([("wizard", "hi")]), INVALID, ["wizard", "system, user or assistant"]),
    "prompt past the context": (harness.request([5] * 4097), INVALID, ["4097", "4096"]),
    "prompt that leaves no room": (harness.request([5] * 4096), INVALID, ["4096"]),
    "text past the context": (harness.request("word " * 9000), INVALID, ["4096"]),
    "token id out of range": (harness.request([5, 49152]), INVALID, ["49152", "token_ids[1]", "49151"]),
    "huge token id": (harness.request([4294967295]), INVALID, ["4294967295"]),
    "negative temperature": (sampling(temperature=-0.5), INVALID, ["temperature", "-0.5"]),
    "NaN temperature": (sampling(temperature=NAN), INVALID, ["temperature", "nan"]),
    "infinite temperature": (sampling(temperature=INF), INVALID, ["temperature", "inf"]),
    "top_p 0": (sampling(top_p=0.0), INVALID, ["top_p", "(0, 1]"]),
    "top_p above 1": (sampling(top_p=1.5), INVALID, ["top_p", "1.5"]),
    "NaN top_p": (sampling(top_p=NAN), INVALID, ["top_p", "nan"]),
    "negative min_p": (sampling(min_p=-1.0), INVALID, ["min_p", "-1"]),
    "NaN min_p": (sampling(min_p=NAN), INVALID, ["min_p", "nan"]),
    "repetition_penalty 0": (sampling(repetition_penalty=0.0), INVALID, ["repetition_penalty", "0"]),
    "NaN repetition_penalty": (sampling(repetition_penalty=NAN), INVALID, ["repetition_penalty", "nan"]),
    "presence_penalty too large": (sampling(presence_penalty=2.5), INVALID, ["presence_penalty", "2.5"]),
    "NaN frequency_penalty": (sampling(frequency_penalty=NAN), INVALID, ["frequency_penalty", "nan"]),
    "logit_bias too large": (sampling(logit_bias={5: 101.0}), INVALID, ["logit_bias", "101"]),
    "NaN logit_bias": (sampling(logit_bias={5: NAN}), INVALID, ["logit_bias", "nan"]),
    "logit_bias of no token": (sampling(logit_bias={50000: 1.0}), INVALID, ["logit_bias", "50000"]),
    "1025 logit_biases": (sampling(logit_bias={i: 1.0 for i in range(1025)}), INVALID, ["1025", "1024"]),
    "max_tokens 0": (harness.request([5], 0), INVALID, ["max_tokens", "0", "1"]),
    "min_tokens above max_tokens": (harness.request([5], 4, stop={"min_tokens": 5}), INVALID, ["min_tokens", "5", "4"]),
    "1,000 stop strings": (stop(strings=[f"s{i}" for i in range(1000)]), INVALID, ["1000", "64"]),
    "empty stop string": (stop(strings=["x", ""]), INVALID, ["stop.strings[1]"]),
    "long stop string": (stop(strings=["x" * 257]), INVALID, ["257", "256"]),
    "65 stop tokens": (stop(token_ids=list(range(65))), INVALID, ["65", "64"]),
    "stop token out of range": (stop(token_ids=[49152]), INVALID, ["49152"]),
    "33 logprobs": (harness.request([5], 4, logprobs=33), INVALID, ["logprobs", "33", "32"]),
    "33 prompt_logprobs": (harness.request([5], 4, prompt_logprobs=33), INVALID, ["prompt_logprobs", "33", "32"]),
    "long request_id": (harness.request([5], 4, request_id="x" * 129), INVALID, ["request_id", "129", "128"]),
    "10 MB of text": (harness.request("a" * 10_000_000), EXHAUSTED, ["bytes", "limit"]),
    "10 MB of chat": (harness.request([("user", "a" * 10_000_000)]), EXHAUSTED, ["bytes", "limit"]),
    "10 MB of ids": (harness.request([5] * 2_500_000), EXHAUSTED, ["bytes", "limit"]),
}


def assert_one_clear_line(text, said=()):
    assert 10 < len(text) < 600 and "\n" not in text, text
    for word in said:
        assert str(word).lower() in text.lower(), f"{text!r} does not say {word!r}"


@pytest.mark.parametrize("name", sorted(REQUESTS))
def test_generate_refuses(tiny, name):
    message, code, said = REQUESTS[name]
    before = tiny.load()
    with harness.raises_status(code) as caught:
        harness.collect(tiny.stream(message))
    assert_one_clear_line(caught.error.details(), said)
    assert not harness.error_detail(caught.error).retryable
    assert tiny.load().stages[0].microbatches == before.stages[0].microbatches, "a refused request cost a step"


def test_text_that_is_not_utf_8_is_refused(tiny):
    raw = inference_pb2.GenerateRequest(text="x").SerializeToString().replace(b"x", b"\xff")
    call = tiny.channel.unary_stream("/millrace.v1.Inference/Generate")
    with harness.raises_status(INVALID, grpc.StatusCode.INTERNAL):
        list(call(raw, timeout=10))


def test_bytes_that_are_no_message_are_refused(tiny):
    call = tiny.channel.unary_stream("/millrace.v1.Inference/Generate")
    for raw in (b"\xff" * 64, b"\x0a\xff\xff\xff\xff\x0f", b"\x12\x05abc"):
        with harness.raises_status(INVALID, grpc.StatusCode.INTERNAL):
            list(call(raw, timeout=10))
    assert len(tiny.generate([5], 3, harness.GREEDY, {"ignore_eos": True}).ids) == 3


def test_a_message_past_the_limit_of_the_connection(tiny):
    with harness.raises_status(EXHAUSTED):
        harness.collect(tiny.stream(harness.request("a" * (40 << 20))))
    assert tiny.serving()


def test_the_live_request_id_again(tiny):
    call = tiny.stream(harness.request([5], None, harness.GREEDY, {"ignore_eos": True}, request_id="mine"))
    assert next(call).started.request_id == "mine"
    with harness.raises_status(grpc.StatusCode.ALREADY_EXISTS) as caught:
        tiny.generate([6], 2, request_id="mine")
    assert_one_clear_line(caught.error.details(), ["mine"])
    assert harness.error_detail(caught.error).reason
    call.cancel()
    tiny.wait_idle()
    # Once it is over, the name is free.
    assert tiny.generate([6], 2, harness.GREEDY, {"ignore_eos": True}, request_id="mine").started.request_id == "mine"


def test_tokenize_and_detokenize_refuse(tiny):
    cases = [
        (tiny.inference.Tokenize, inference_pb2.TokenizeRequest(), INVALID),
        (tiny.inference.Tokenize, inference_pb2.TokenizeRequest(chat={"messages": [{"role": "wizard"}]}), INVALID),
        (tiny.inference.Tokenize, inference_pb2.TokenizeRequest(text="a" * 10_000_000), EXHAUSTED),
        (tiny.inference.Detokenize, inference_pb2.DetokenizeRequest(token_ids=[49152]), INVALID),
        (tiny.inference.Detokenize, inference_pb2.DetokenizeRequest(token_ids=[5] * 2_500_000), EXHAUSTED),
    ]
    for call, message, code in cases:
        with harness.raises_status(code) as caught:
            call(message, timeout=20)
        assert_one_clear_line(caught.error.details())
        harness.error_detail(caught.error)


def test_others_are_not_disturbed(tiny):
    """While every bad request is made, a good one streams what it streams alone."""
    good = harness.request([11, 12], 1500, harness.GREEDY, {"ignore_eos": True}, logprobs=1)
    expected = harness.collect(tiny.stream(good)).bits()
    answers = []
    thread = threading.Thread(target=lambda: answers.append(harness.collect(tiny.stream(good)).bits()))
    thread.start()
    refused = 0
    while thread.is_alive() or refused < len(REQUESTS):
        for message, code, _ in REQUESTS.values():
            if message.ByteSize() > 1_000_000:
                continue
            with harness.raises_status(code):
                harness.collect(tiny.stream(message))
            refused += 1
    thread.join()
    assert answers == [expected]


# ---- programs ----

COORDINATOR, WORKER = "millrace-coordinator", "millrace-worker"


def assert_refused(code, out, err, expected_code, said):
    assert code == expected_code, (code, err)
    lines = [line for line in err.splitlines() if line.strip()]
    # Warnings of other things may stand before it; the reason is the last line, and one line.
    assert lines, "nothing on stderr"
    assert_one_clear_line(lines[-1], said)
    assert "listening on" not in out


@pytest.mark.parametrize("program, args, said", [
    (COORDINATOR, [], ["--model"]),
    (COORDINATOR, ["--no-such-flag"], ["--no-such-flag"]),
    (COORDINATOR, ["--model"], ["--model"]),
    (COORDINATOR, ["--model", "m.gguf", "--stages", "0"], ["--stages", "0"]),
    (COORDINATOR, ["--model", "m.gguf", "--stages", "two"], ["--stages", "two"]),
    (COORDINATOR, ["--model", "m.gguf", "--stages", "99999999999999999999"], ["--stages"]),
    (COORDINATOR, ["--model", "m.gguf", "--listen", "nonsense"], ["--listen", "nonsense"]),
    (COORDINATOR, ["--model", "m.gguf", "--listen", "127.0.0.1:99999"], ["--listen", "99999"]),
    (COORDINATOR, ["--model", "m.gguf", "--layers", "3,x"], ["--layers", "x"]),
    (COORDINATOR, ["--model", "m.gguf", "--max-rows", "0"], ["--max-rows", "0"]),
    (COORDINATOR, ["--model", "m.gguf", "--kv-block-tokens", "17"], ["--kv-block-tokens", "17"]),
    (COORDINATOR, ["--model", "m.gguf", "--grace", "soon"], ["--grace", "soon"]),
    (COORDINATOR, ["--model", "m.gguf", "stray"], ["stray"]),
    (WORKER, [], ["--coordinator"]),
    (WORKER, ["--coordinator", "nonsense"], ["--coordinator", "nonsense"]),
    (WORKER, ["--coordinator", "127.0.0.1:1", "--stage", "-2"], ["--stage", "-2"]),
    (WORKER, ["--coordinator", "127.0.0.1:1", "--kv-memory", "lots"], ["--kv-memory", "lots"]),
    (WORKER, ["--coordinator", "127.0.0.1:1", "--isa", "sse9"], ["--isa", "sse9"]),
    (WORKER, ["--coordinator", "127.0.0.1:1", "--tensor-parallel", "0"], ["--tensor-parallel", "0"]),
])
def test_wrong_flags(program, args, said):
    assert_refused(*harness.run_program(program, *args), 2, said)


@pytest.mark.parametrize("text, said", [
    ("model: m.gguf\nno_such_key: 1\n", ["no_such_key", ":2:1"]),
    ("model: m.gguf\nstages: many\n", ["stages", ":2:"]),
    ("model: [a\n", [":"]),
    ("- model\n", [":1:"]),
])
def test_wrong_config_files_name_line_and_column(tmp_path, text, said):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    assert_refused(*harness.run_program(COORDINATOR, "--config", path), 2, ["c.yaml", *said])


def test_a_missing_config_file(tmp_path):
    assert_refused(*harness.run_program(COORDINATOR, "--config", tmp_path / "none.yaml"), 2, ["none.yaml"])


def test_flags_win_over_the_config_file(random_model, tmp_path, logs):
    path = tmp_path / "c.yaml"
    path.write_text(f"model: {random_model('f32')}\nstages: 4\nlisten: 127.0.0.1:0\nmax-rows: 32\n")
    process = harness.Process("coordinator", [harness.BIN / COORDINATOR, "--config", path, "--stages", 2], logs)
    try:
        client = harness.Client(process.address())
        assert "2" in client.server_info().state_detail
        client.close()
        assert process.stop() == 0
    finally:
        process.close()


def test_a_port_in_use(random_model):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        result = harness.run_program(COORDINATOR, "--model", random_model("f32"), "--stages", 1, "--listen", address)
        assert_refused(*result, 1, [address])


def test_a_missing_model_and_one_that_is_none(tmp_path):
    missing = tmp_path / "missing.gguf"
    assert_refused(*harness.run_program(COORDINATOR, "--model", missing, "--stages", 1, "--listen", "127.0.0.1:0"), 1, [missing])
    folder = tmp_path / "folder.gguf"
    folder.mkdir()
    assert_refused(*harness.run_program(COORDINATOR, "--model", folder, "--stages", 1, "--listen", "127.0.0.1:0"), 1, [folder])
    text = tmp_path / "text.gguf"
    text.write_text("This is not a model, whatever its name says.\n" * 9)
    assert_refused(*harness.run_program(COORDINATOR, "--model", text, "--stages", 1, "--listen", "127.0.0.1:0"), 1, [text])
    empty = tmp_path / "empty.gguf"
    empty.touch()
    assert_refused(*harness.run_program(COORDINATOR, "--model", empty, "--stages", 1, "--listen", "127.0.0.1:0"), 1, [empty])


def test_more_stages_than_layers(random_model):
    result = harness.run_program(COORDINATOR, "--model", random_model("f32"), "--stages", 6, "--listen", "127.0.0.1:0")
    assert result[0] in (1, 2)
    assert_refused(*result, result[0], ["6", "5"])


def test_layers_that_do_not_add_up(random_model):
    result = harness.run_program(COORDINATOR, "--model", random_model("f32"), "--stages", 2, "--layers", "2,2",
                                 "--listen", "127.0.0.1:0")
    assert result[0] in (1, 2)
    assert_refused(*result, result[0], ["--layers", "4", "5"])


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.7, 0.999])
def test_a_truncated_model(random_model, tmp_path, share):
    data = random_model("f32").read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[:int(len(data) * share)])
    assert_refused(*harness.run_program(COORDINATOR, "--model", path, "--stages", 1, "--listen", "127.0.0.1:0"), 1, [path])


# ---- workers that must not join ----

def refused_worker(cluster, *args, **kwargs):
    process = cluster.start_worker(*args, **kwargs)
    cluster.killed.add(process)
    code = process.wait(20)
    return code, process.out.replace("listening on", ""), process.err


def test_a_worker_with_another_model(random_model, start_cluster):
    cluster = start_cluster(random_model("f32"))
    code, out, err = refused_worker(cluster, None, model=random_model("f32", seed=2))
    assert_refused(code, out, err, 1, ["model"])
    cluster.wait_serving()
    assert len(cluster.client.generate([5], 4, harness.GREEDY, {"ignore_eos": True}).ids) == 4
    cluster.stop()


def test_a_stage_that_is_taken(tiny_cluster):
    code, out, err = refused_worker(tiny_cluster, 1)
    assert_refused(code, out, err, 1, ["stage", "1"])
    assert tiny_cluster.client.serving()


def test_a_stage_that_does_not_exist(tiny_cluster):
    code, out, err = refused_worker(tiny_cluster, 7)
    assert_refused(code, out, err, 1, ["stage", "7"])
    assert tiny_cluster.client.serving()


def test_the_join_secret(random_model, start_cluster, tmp_path):
    secret, wrong = tmp_path / "secret", tmp_path / "wrong"
    for path in (secret, wrong):
        path.write_text(os.urandom(16).hex() + "\n")
        path.chmod(0o600)
    cluster = start_cluster(random_model("f32"), coordinator=["--join-secret-file", secret], worker=["--join-secret-file", secret])
    for args in (["--join-secret-file", wrong], ["--join-secret-file", os.devnull]):
        code, out, err = refused_worker(cluster, None, *args)
        assert code != 0, err
        assert secret.read_text().strip() not in err + cluster.coordinator.err
    command = [harness.BIN / WORKER, "--coordinator", cluster.address]
    code, out, err = harness.run_program(*map(str, command), seconds=20)
    assert code == 1 and "secret" in err
    assert len(cluster.client.generate([5], 4, harness.GREEDY, {"ignore_eos": True}).ids) == 4
    cluster.stop()


def test_a_hop_without_the_secret_is_refused(tiny_cluster):
    """Raw bytes to the ring's own service do no harm."""
    channel = grpc.insecure_channel(tiny_cluster.address)
    call = channel.stream_stream("/millrace.v1.Ring/Hop")
    for metadata in ((), (("millrace-epoch", "1"),), (("millrace-secret", "x"), ("millrace-epoch", "99999999999999999999"))):
        with harness.raises_status(*grpc.StatusCode):
            for _ in call(iter([b"\x00" * 100, b"MILLRACE" * 1000]), metadata=metadata, timeout=5):
                pass
    channel.close()
    assert len(tiny_cluster.client.generate([5], 4, harness.GREEDY, {"ignore_eos": True}).ids) == 4


def test_nobody_listens_where_the_worker_calls():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "127.0.0.1:%d" % free.getsockname()[1]
        code, out, err = harness.run_program(WORKER, "--coordinator", address, "--join-timeout", "2s")
    assert code == 1 and address in err.splitlines()[-1]


def test_help_and_version():
    for program in (COORDINATOR, WORKER, "millrace-mpi", "millrace"):
        code, out, err = harness.run_program(program, "--help")
        assert (code, err) == (0, "") and "usage" in out.lower(), program
        code, out, err = harness.run_program(program, "--version")
        assert (code, err) == (0, "") and re.search(r"\d+\.\d+\.\d+", out), program


def test_file_descriptors_run_out_and_come_back(random_model, logs):
    """With few descriptors new connections fail, but the server answers again when the others are gone."""
    process = harness.Process("coordinator", ["bash", "-c", 'ulimit -Hn 64; ulimit -Sn 64; exec "$@"', "bash",
                                              harness.BIN / COORDINATOR, "--model", random_model("f32"), "--stages", 1,
                                              "--listen", "127.0.0.1:0"], logs)
    try:
        host, port = process.address().rsplit(":", 1)
        held = []
        for _ in range(100):
            connection = socket.socket()
            connection.settimeout(1)
            connection.connect((host, int(port)))
            held.append(connection)
        for connection in held:
            connection.close()
        harness.wait_until(lambda: len(os.listdir(f"/proc/{process.pid}/fd")) < 60, "descriptors are free again")
        assert process.running()
        code = process.stop()
        assert code == 0, process.tail()
    finally:
        process.close()
