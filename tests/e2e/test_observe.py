"""What monitoring sees of a running cluster: Prometheus metrics and traces."""
import collections
import concurrent.futures
import json
import math
import re
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

import harness

CAUSES = {"no_work", "back_pressured", "communication", "too_few_microbatches", "imbalance", "starved"}
SAMPLE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(?:\{((?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*",?)*)\})? (\S+)$')
LABEL = re.compile(r'([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"')


@pytest.fixture(scope="module")
def cluster(random_model, logs):
    with harness.Cluster(random_model("f32"), logs, stages=2, coordinator=["--metrics", "127.0.0.1:0"]) as it:
        it.metrics = it.coordinator.wait_for_line(r"^metrics at (http://\S+/metrics)$").group(1)
        yield it


def scrape(url):
    """Strictly parsed: {(name, labels): value}, {family: type}. Every sample belongs to the family announced before it."""
    with urllib.request.urlopen(url, timeout=harness.PATIENCE) as response:
        assert response.headers["Content-Type"].startswith("text/plain")
        text = response.read().decode()
    assert text.endswith("\n")
    samples, types, helps, family = {}, {}, set(), None
    for line in text.splitlines():
        if re.match(r"(# (HELP|TYPE) )?exposer_", line):
            continue  # the library's own
        if line.startswith("# HELP "):
            family = line.split(" ", 3)[2]
            assert family not in helps, f"{family} twice"
            helps.add(family)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == family and kind in ("counter", "gauge", "histogram")
            types[name] = kind
        else:
            match = SAMPLE.match(line)
            assert match, line
            name, labels, value = match.group(1), tuple(sorted(LABEL.findall(match.group(2) or ""))), float(match.group(3))
            allowed = [family] if types[family] != "histogram" else [family + s for s in ("_bucket", "_sum", "_count")]
            assert name in allowed and (name, labels) not in samples, line
            samples[name, labels] = value
            assert math.isfinite(value) and value >= 0, line
    for name, kind in types.items():
        assert (kind == "counter") == name.endswith("_total"), name
        if kind == "histogram":
            buckets = [(float(dict(labels)["le"]), v) for (n, labels), v in samples.items() if n == name + "_bucket"]
            assert buckets == sorted(buckets) and [v for _, v in buckets] == sorted(v for _, v in buckets)
            assert buckets[-1] == (math.inf, samples[name + "_count", ()])
    return samples, types, text


def run_load(cluster, requests=6, tokens=40):
    with concurrent.futures.ThreadPoolExecutor(requests) as pool:
        jobs = [pool.submit(cluster.client.generate, f"Story {i}: once upon a time", max_tokens=tokens,
                            sampling=harness.GREEDY, stop={"ignore_eos": True}) for i in range(requests)]
        for job in jobs:
            job.result()


def test_metrics(cluster):
    before, _, _ = scrape(cluster.metrics)
    began = time.monotonic()
    run_load(cluster)
    cluster.client.wait_idle()
    took = time.monotonic() - began
    after, types, text = scrape(cluster.metrics)

    def grown(name, **labels):
        key = (name, tuple(sorted(labels.items())))
        return after[key] - before[key]
    assert grown("vllm:generation_tokens_total") == 6 * 40
    assert grown("vllm:prompt_tokens_total") > 6 * 3
    assert grown("vllm:request_success_total", finished_reason="length") == 6
    assert grown("vllm:time_to_first_token_seconds_count") == 6
    assert grown("vllm:inter_token_latency_seconds_count") == 6 * 39
    assert grown("vllm:e2e_request_latency_seconds_count") == 6
    assert 0 < grown("vllm:e2e_request_latency_seconds_sum") < 6 * took
    assert grown("activation_bytes_total", stage="0") >= 6 * 40 * 64 * 4
    assert grown("hop_seconds_count") == grown("stage_microbatches_total", stage="0") > 40
    for stage in "01":
        assert 0 < grown("stage_busy_seconds_total", stage=stage) < took
        idle = {cause: grown("stage_idle_seconds_total", stage=stage, cause=cause) for cause in CAUSES}
        assert 0 < sum(idle.values()) - idle["no_work"] < took, idle
    assert after["vllm:num_requests_running", ()] == after["microbatches_in_flight", ()] == 0
    assert 0 < after["pipeline_bubble_ratio", ()] < 1
    load = cluster.client.load()
    for stage in load.stages:
        busy = stage.busy.seconds + stage.busy.nanos * 1e-9
        assert abs(after["stage_busy_seconds_total", (("stage", str(stage.stage)),)] - busy) < 1e-6
    # vLLM's names have colons, which promtool advises against; everything else it says would be a fault.
    tools = subprocess.run([harness.ROOT / "tests" / "k8s" / "get_tools.sh"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    done = subprocess.run([f"{tools}/promtool", "check", "metrics"], input=text.encode(), stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=harness.PATIENCE)
    said = [line for line in done.stdout.decode().splitlines() if "should not contain ':'" not in line and line.strip()
            and not line.startswith("exposer_")]
    assert not said and done.returncode in (0, 3), said


def test_metrics_that_cannot_listen_are_one_line(random_model, logs):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = "127.0.0.1:%d" % taken.getsockname()[1]
        code, out, err = harness.run_program("millrace-coordinator", "--model", random_model("f32"), "--listen", "127.0.0.1:0",
                                             "--metrics", address)
    assert code == 1 and "listening" not in out
    assert len(err.splitlines()) == 1 and f"--metrics {address}" in err
    code, _, err = harness.run_program("millrace-coordinator", "--model", random_model("f32"), "--metrics", "nowhere")
    assert code == 2 and len(err.splitlines()) == 1 and "--metrics" in err


def check_trace(trace, stages):
    """The rules of the Trace Event Format that a viewer relies on; gives the events by category."""
    tracks, free_from, flows, last = {}, collections.defaultdict(float), collections.defaultdict(list), 0.0
    by_category = collections.defaultdict(list)
    for event in trace["traceEvents"]:
        assert {"ph", "pid", "tid", "ts", "name"} <= event.keys()
        if event["ph"] == "M":
            if event["name"] == "thread_name":
                tracks[event["tid"]] = event["args"]["name"]
            continue
        assert event["ts"] >= last
        last = event["ts"]
        if event["ph"] == "X":
            assert event["tid"] in tracks and event["dur"] >= 0
            assert event["ts"] >= free_from[event["tid"]] - 0.002, f"overlaps: {event}"
            free_from[event["tid"]] = event["ts"] + event["dur"]
            by_category[event["cat"]].append(event)
        elif event["ph"] in "stf":
            flows[event["id"]].append((event["ph"], event["tid"]))
        else:
            assert event["ph"] == "C"
    assert len(tracks) == 1 + stages and tracks[0] == "coordinator"
    whole = [("s", 0)] + [("t", stage + 1) for stage in range(stages)] + [("f", 0)]
    for steps in flows.values():
        # A stage whose clock seems to be ahead or behind by more than the way took is left out of the arrow.
        assert steps[0] == whole[0] and steps[-1] == whole[-1] and set(steps) <= set(whole)
        assert sorted(steps[1:-1]) == steps[1:-1]
    assert sum(steps == whole for steps in flows.values()) >= 0.9 * len(flows)
    assert {event["name"] for event in by_category["idle"]} <= CAUSES
    assert len(flows) == len(by_category["return"]) == len(by_category["plan"])
    assert len(by_category["busy"]) == stages * len(flows)
    return by_category


def trace(cluster, *args, **popen):
    return subprocess.Popen([harness.BIN / "millrace", "trace", "--server", cluster.address, *map(str, args)],
                            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **popen)


def test_trace(cluster, tmp_path):
    output = tmp_path / "t.json"
    process = trace(cluster, "--seconds", 2, "-o", output)
    harness.wait_until(output.exists, "the file is there")
    while process.poll() is None:
        run_load(cluster)
    out, err = process.communicate(timeout=harness.PATIENCE)
    assert (process.returncode, err) == (0, b""), err
    events = check_trace(json.loads(output.read_text()), stages=2)
    assert len(events["busy"]) > 80 and events["idle"]
    assert str(len(events["return"])) in out.decode().split()
    assert all(event["args"]["rows"] == event["args"]["decode_rows"] + event["args"]["prefill_rows"] for event in events["busy"])
    assert max(event["ts"] for event in events["return"]) < 2.5e6


def test_trace_until_ctrl_c(cluster, tmp_path):
    output = tmp_path / "t.json"
    process = trace(cluster, "--seconds", 60, "--output", output)
    harness.wait_until(output.exists, "the file is there")
    run_load(cluster)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, err) == (0, b""), err
    assert b"until Ctrl-C" in out
    check_trace(json.loads(output.read_text()), stages=2)


@pytest.mark.parametrize("args, code, said", [
    (["--seconds", 0], 2, "--seconds"),
    (["--seconds", 61], 2, "--seconds"),
    (["-o", "/no-such-folder/t.json"], 1, "/no-such-folder/t.json"),
])
def test_a_trace_that_cannot_be_fails_at_once(cluster, args, code, said):
    began = time.monotonic()
    process = trace(cluster, *args)
    out, err = process.communicate(timeout=10)
    assert process.returncode == code and out == b""
    assert len(err.splitlines()) == 1 and said in err.decode()
    assert time.monotonic() - began < 2


def test_a_trace_without_a_server_leaves_no_file(tmp_path):
    output = tmp_path / "t.json"
    code, _, err = harness.run_program("millrace", "trace", "--server", "127.0.0.1:1", "-o", output, seconds=30)
    assert code == 1 and "127.0.0.1:1" in err and not output.exists()
