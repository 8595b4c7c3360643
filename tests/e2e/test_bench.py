"""The benchmarks still run: each part once, on a tiny model and for moments, and what they write has its shape."""
import json
import re
import socket
import subprocess
import sys
import threading
import time

import pytest

from harness import BIN, ROOT, Process, run_program

sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "bench" / "cpu")]
import ours  # noqa: E402
from benchlib import gguf, llama_cpp, measure, svg, table, trace  # noqa: E402
from benchlib.cluster import BenchError  # noqa: E402


def run_bench(name, *args):
    """Runs a benchmark on the programs under test: (its standard output, its JSON)."""
    done = subprocess.run([sys.executable, "-B", ROOT / "bench" / name / f"{name}.py", *[str(a) for a in args]],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=240, env={"MILLRACE_BIN": str(BIN), "PATH": "/usr/bin:/bin"})
    assert done.returncode == 0, done.stderr.decode()
    path = args[args.index("--json") + 1]
    return done.stdout.decode(), json.loads(path.read_text())


def check_rows(out, report, ids):
    assert {row["id"] for row in report["rows"]} == set(ids), out
    assert report["machine"]["cores"] >= 1 and report["quick"] is True
    for row in report["rows"]:
        assert row["measured"] is not None, f"{row['id']} was not measured: {row['what']}"
        assert row["verdict"] in ("met", "MISSED", "-")
        assert f"| {row['id']}" in out


def test_pipeline_one_shot(random_model, tmp_path):
    out, report = run_bench("pipeline", "--quick", "--only", "P7", "--model", random_model("f32"), "--json", tmp_path / "p.json")
    check_rows(out, report, ["P7"])
    row = report["rows"][0]
    assert row["target"] == "<= 2 points" and row["spread"]["n"] >= 2 and "m = " in row["reference"]
    assert 0 <= row["noise"]["steal"]["max"] <= 1 and len(report["peaks"]) == 2


def test_textbook_weights_and_cache(random_model, tmp_path):
    out, report = run_bench("textbook", "--quick", "--only", "T3,T5", "--model", random_model("f32"), "--out", tmp_path,
                            "--json", tmp_path / "t.json")
    check_rows(out, report, ["T3", "T5"])
    for name in ("kv_cache", "weights"):
        picture = (tmp_path / f"{name}.svg").read_text()
        assert picture.startswith("<svg") and picture.rstrip().endswith("</svg>") and "prefers-color-scheme: dark" in picture


def test_cpu_without_the_peer(random_model, tmp_path):
    out, report = run_bench("cpu", "--quick", "--model", f"smollm2={random_model('q8_0')}", "G1", "G5", "G6", "P5", "L1", "--json", tmp_path / "c.json")
    check_rows(out, report, ["G1", "G5", "G6", "P5", "L1"])
    assert report["peer"] == "" and "without llama.cpp" in out and len(report["rows"]) == 6
    for row in report["rows"]:
        assert row["unit"] == ("s" if row["id"] == "L1" else "tokens/s") and row["verdict"] == "-" and row["measured"] > 0
    assert 0 < report["rows"][0]["details"]["stream_share"] < 1


@pytest.mark.parametrize("args,why", [(["G9"], "not among"), (["--model", "other=x"], "expected NAME=FILE"), (["--model", "q8_0"], "expected NAME=FILE")])
def test_cpu_refuses(args, why):
    done = subprocess.run([sys.executable, "-B", ROOT / "bench/cpu/cpu.py", "--model", "smollm2=x", *args], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=60)
    assert done.returncode == 2 and why in done.stderr.decode()


BENCH_LINE = ('{"build_commit": "unknown", "backends": "CPU", "n_threads": 1, "type_k": "f16", "n_prompt": 512, "n_gen": 0, "n_depth": 0, '
              '"avg_ns": 4717212352, "stddev_ns": 0, "avg_ts": 108.538680, "stddev_ts": 0.000000, "samples_ns": [ 4717212352 ],"samples_ts": [ 108.539 ]}')
BATCHED_LINES = """
{"n_kv_max": 4096, "n_batch": 2048, "flash_attn": -1, "n_threads": 1, "pp": 64, "tg": 32, "pl": 1, "n_kv": 96, "t_pp": 0.543849, "speed_pp": 117.679726, "t_tg": 0.627819, "speed_tg": 50.970104, "t": 1.171668, "speed": 81.934471}
{"n_kv_max": 4096, "n_batch": 2048, "flash_attn": -1, "n_threads": 1, "pp": 64, "tg": 32, "pl": 16, "n_kv": 1536, "t_pp": 9.048596, "speed_pp": 113.166725, "t_tg": 5.896944, "speed_tg": 86.824631, "t": 14.945540, "speed": 102.773132}

"""


def test_peer_results_are_read():
    assert llama_cpp.parse_bench("loading\n" + BENCH_LINE + "\n") == [(512, 0, 108.53868)]
    assert llama_cpp.parse_batched_bench(BATCHED_LINES) == {1: 50.970104, 16: 86.824631}


@pytest.mark.parametrize("parse", [llama_cpp.parse_bench, llama_cpp.parse_batched_bench])
@pytest.mark.parametrize("text,why", [("", "no result"), ("{", "not JSON"), ('{"n_prompt": 1}', "another shape"), ('{"pl": 1, "speed_tg": null}', "another shape")])
def test_peer_results_of_another_shape_are_refused(parse, text, why):
    with pytest.raises(BenchError, match=why):
        parse(text)


def test_shares_of_collectives_are_read():
    text = ("model, 22 layers, 2 shards of 1 threads, cpu/int8\nloaded in 1.20 s, weights 1138.1 MB, activations 7.4 MB\n"
            "prefill, 1 tokens in chunks of 128: 11.2 tokens/s; by CPU time of one thread 11.0\n"
            "decode, 1 sequences, context 64: 21.5 tokens/s; by CPU time of one thread 21.9\n  of it in collectives: 4.3 %\n")
    assert ours.parse_shards(text) == (21.5, pytest.approx(0.043))
    with pytest.raises(BenchError, match="does not tell"):
        ours.parse_shards(text.replace("collectives", "waiting"))


def stand_in_for_llama_cpp(folder, name, answer):
    """A program of that name that prints `answer` and then its arguments to a file; the peer's folder."""
    program = folder / name
    program.write_text(f"#!/bin/sh\nprintf '%s ' \"$@\" >{folder}/args\ncat <<'E'\n{answer}\nE\n")
    program.chmod(0o755)
    return llama_cpp.Peer(folder, "m.gguf"), folder / "args"


def test_peer_is_asked_for_the_same_work(tmp_path):
    peer, args = stand_in_for_llama_cpp(tmp_path, "llama-bench", BENCH_LINE)
    assert peer.prefill(2, 512) == 108.53868
    assert args.read_text() == "-m m.gguf -t 2 -r 1 -o jsonl -p 512 -n 0 --no-warmup "
    peer.decode(1, 64, 32, ["a:1", "b:2"])
    assert args.read_text() == "-m m.gguf -t 1 -r 1 -o jsonl --rpc a:1,b:2 -ngl 99 -p 0 -n 32 -d 64 "
    peer, args = stand_in_for_llama_cpp(tmp_path, "llama-batched-bench", BATCHED_LINES)
    assert peer.batched(1, [1, 16], 64, 32)[16] == 86.824631
    assert args.read_text() == "-m m.gguf -t 1 -c 1600 -npp 64 -ntg 32 -npl 1,16 -pps --output-format jsonl "
    with pytest.raises(BenchError, match="cannot start"):
        llama_cpp.RpcServers(tmp_path, 2, 1)


def test_bytes_of_a_step_are_those_of_matrices(random_model):
    vocabulary = 49152
    layer = 96 * (96 + 32 + 32 + 96) + 3 * 96 * 160
    assert gguf.bytes_of_a_step(random_model("q8_0")) == (6 * layer + vocabulary * 96) * 34 // 32  # the embedding is the output
    layer = 2 * 64 * (64 + 64) + 3 * 64 * 96
    assert gguf.bytes_of_a_step(random_model("f16")) == (5 * layer + vocabulary * 64) * 2          # it is not


def test_kernels_measures_every_op(tmp_path):
    out, report = run_bench("kernels", "--quick", "--json", tmp_path / "k.json")
    check_rows(out, report, ["G2", "G7"])
    assert len(report["rows"]) == 12 and report["peaks"]["stream_gbps"] > 0
    products = [op for op in report["ops"] if op["op"] == "matmul"]
    assert len(products) == 15 * 6 and all(op["seconds"] > 0 and op["share"] > 0 for op in products)
    kinds = {op["op"].split(" ")[0] for op in report["ops"]}
    assert kinds == {"matmul", "attention", "swiglu", "rms_norm", "rope", "store_kv", "quantize"}


def load(address, *args):
    code, out, err = run_program("load_generator", "--server", address, *args)
    assert code == 0, err
    return json.loads(out)


def test_load_generator_counts_every_token(tiny_cluster):
    report = load(tiny_cluster.address, "--mode", "one-shot", "--sequences", 5, "--prompt-tokens", "8-20", "--output-tokens", 7,
                  "--windows", 2)
    assert report["sent"] == 10 and len(report["windows"]) == 2
    for window in report["windows"]:
        assert (window["tokens"], window["finished"], window["failed"]) == (35, 5, 0)
        assert window["ttft_ms"]["n"] == 5 and window["inter_token_ms"]["n"] == 30 and window["seconds"] > 0
        stages = measure.window_stages(window)
        assert len(stages) == 2 and all(stage.busy > 0 and 0 <= stage.bubble <= 1 for stage in stages)
        generated = [int(window[name]["generated_tokens_total"]) for name in ("load_begin", "load_end")]
        assert generated[1] - generated[0] == 35


@pytest.mark.parametrize("mode", [["--mode", "steady", "--sequences", 3, "--warmup", "50ms"], ["--mode", "poisson", "--rate", 50]])
def test_load_generator_ends_what_it_began(tiny_cluster, mode):
    report = load(tiny_cluster.address, *mode, "--output-tokens", 400, "--window", "300ms", "--windows", 2)
    assert len(report["windows"]) == 2 and sum(window["tokens"] for window in report["windows"]) > 0
    tiny_cluster.client.wait_idle()


def test_load_generator_recomputes(tiny_cluster):
    report = load(tiny_cluster.address, "--mode", "recompute", "--prompt-tokens", 20, "--output-tokens", 3)
    assert report["sent"] == 3 and report["windows"][0]["tokens"] == 3


@pytest.mark.parametrize("args,why", [(["--mode", "fast"], "--mode: expected"), (["--prompt-tokens", "9-3"], "is not a range"),
                                      (["--text-file", "/nowhere"], "no lines could be read")])
def test_load_generator_refuses(args, why):
    code, _, err = run_program("load_generator", *args)
    assert code == 2 and why in err


def test_load_generator_reports_the_first_failure(tiny_cluster):
    code, out, err = run_program("load_generator", "--server", tiny_cluster.address, "--prompt-tokens", 5000)
    assert code == 1 and not out and "INVALID_ARGUMENT" in err


@pytest.mark.parametrize("name", ["load_generator", "delay_relay", "timed_worker"])
def test_programs_have_help(name):
    code, out, _ = run_program(name, "--help")
    assert code == 0 and "--help" in out


def echo_once(listener):
    connection, _ = listener.accept()
    with connection:
        while data := connection.recv(1 << 16):
            connection.sendall(data)


def test_relay_delays_and_does_not_serialise(tmp_path):
    """Each way takes the delay, and bytes on their way do not wait for those before them."""
    delay, messages = 0.2, 20
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=echo_once, args=(listener,), daemon=True).start()
        relay = Process("relay", [BIN / "delay_relay", "--to", f"127.0.0.1:{listener.getsockname()[1]}", "--delay", f"{delay}s"],
                        tmp_path)
        try:
            host, port = relay.address().rsplit(":", 1)
            with socket.create_connection((host, int(port)), timeout=30) as connection:
                began = time.monotonic()
                got = b""
                for number in range(messages):
                    connection.sendall(bytes([number]))
                    if number == 0:
                        got += connection.recv(1)
                        assert time.monotonic() - began >= 2 * delay
                connection.shutdown(socket.SHUT_WR)
                while data := connection.recv(1 << 16):
                    got += data
                assert got == bytes(range(messages))
                assert time.monotonic() - began < messages * delay
        finally:
            relay.close()


def test_timed_worker_serves(random_model, start_cluster, monkeypatch):
    """A ring of timed stages takes its time and gives as many tokens as asked for."""
    import harness
    real = harness.Cluster._start

    def start_timed(self, name, command, env=None):
        return real(self, name, [BIN / "timed_worker" if str(command[0]).endswith("millrace-worker") else command[0], *command[1:]], env)
    monkeypatch.setattr(harness.Cluster, "_start", start_timed)
    cluster = start_cluster(random_model("f32"), worker=["--fixed", "20ms", "--per-row", "0"])
    began = time.monotonic()
    answer = cluster.client.generate([200, 300, 400], 10, stop={"ignore_eos": True}, logprobs=0)
    assert len(answer.ids) == 10 and time.monotonic() - began >= 10 * 2 * 0.020
    busy = [measure.seconds(f"{s.busy.seconds + s.busy.nanos * 1e-9}s") / s.microbatches for s in cluster.client.load().stages]
    assert all(0.020 <= seconds < 0.2 for seconds in busy), busy


def test_rows_tell_met_from_missed():
    row = table.Row("X", "x", "<= 2 %", 0.02, measured=0.03)
    assert row.verdict == "MISSED" and row.measured_text() == "3.0 %"
    assert table.Row("X", "x", ">= 0.9", 0.9, at_most=False, measured=0.93, unit="").verdict == "met"
    assert table.Row("X", "x", "").verdict == "not available"


def test_idle_is_a_difference_without_no_work():
    def answer(busy, starved, no_work):
        return {"active": "9s", "stages": [{"stage": 0, "busy": f"{busy}s", "microbatches": str(int(busy)), "rows": "8",
                                            "idle": {"starved": f"{starved}s", "no_work": f"{no_work}s"}}]}
    stage, = measure.stages(answer(1, 0.5, 3), answer(4, 1.5, 9))
    assert (stage.busy, stage.idle, stage.bubble, stage.causes) == (3, 1, 0.25, {"starved": 1})


def test_pictures_escape_and_scale(tmp_path):
    svg.timelines(tmp_path / "t.svg", "a < b", [("one", {"stage 0": [(0, 5, "x & y", 0)]}, 10)])
    text = (tmp_path / "t.svg").read_text()
    assert "a &lt; b" in text and "x &amp; y" in text
    widths = [float(w) for w in re.findall(r'<rect [^>]*width="([\d.]+)"', text)]
    assert widths[1] == pytest.approx(widths[0] / 2, abs=1)


def test_trace_is_cut_to_the_middle(tmp_path):
    def slice_of(tid, microbatch, begin, end, category="busy"):
        return {"ph": "X", "tid": tid, "ts": begin * 1e3, "dur": (end - begin) * 1e3, "name": "n", "cat": category,
                "args": {"microbatch": microbatch}}
    names = [{"ph": "M", "tid": tid, "name": "thread_name", "args": {"name": name}}
             for tid, name in enumerate(("coordinator", "stage 0: layers 0-2, w", "stage 1: layers 3-4, w"))]
    slices = [slice_of(tid, i, 10 * i + 5 * (tid - 1), 10 * i + 5 * tid) for i in range(20) for tid in (1, 2)]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({"traceEvents": [*names, *slices, slice_of(1, 0, 5, 10, "idle"), slice_of(0, 3, 1, 2, "plan")]}))
    tracks = trace.read(path)
    assert list(tracks) == ["stage 0", "stage 1"] and len(tracks["stage 0"]) == 20
    shown, length = trace.cut(tracks, 4)
    assert length == pytest.approx(40) and [m for _, _, _, m in shown["stage 0"]] == [8, 9, 10, 11]
    assert all(0 <= begin < end <= length for slices in shown.values() for begin, end, _, _ in slices)
