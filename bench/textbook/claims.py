"""The textbook's claims, each tried on the real model: a row and the data of a picture."""
import pathlib
import statistics
import tempfile

from benchlib import gguf, interleaved, measure, noise, trace
from benchlib.cluster import BenchError, Cluster
from benchlib.table import Row

HERE = pathlib.Path(__file__).resolve().parent
MIB = 1 << 20


def _pids(*clusters):
    return [process.pid for cluster in clusters for process in cluster.processes]


def _inter_token(report):
    return report["windows"][0]["inter_token_ms"]["p50"]


def roofline(model, settings):
    """Prefill is compute-bound, decode memory-bound: what each reaches of a core's two limits."""
    layers, output = gguf.elements_of_a_token(model)
    prompt = 512
    with Cluster(model, 1, coordinator=["--context", 2048]) as one:
        weight_bytes = int(one.status()["load"]["stages"][0]["weight_bytes"])
        seeds = iter(range(100, 1000))
        results = interleaved.run({
            "prefill": lambda: one.load(mode="one-shot", sequences=2, prompt_tokens=prompt, output_tokens=1, seed=next(seeds)),
            "decode": lambda: one.load(mode="steady", sequences=1, prompt_tokens=16, output_tokens=1000, warmup="0.5s",
                                       window=settings.window),
            "peaks": noise.peaks}, settings.rounds, _pids(one))
        max_rows = 128
    peaks = results["peaks"].values
    def shares(rate, flops, read):
        """Medians of the shares of both limits for so many steps a second."""
        return (statistics.median(r * flops / (p["gflops"] * 1e9) for r, p in zip(rate, peaks)),
                measure.spread([r * read / (p["read_gbps"] * 1e9) for r, p in zip(rate, peaks)]))
    prefill = [2 * prompt / report["windows"][0]["seconds"] for report in results["prefill"].values]
    decode = [1000 / _inter_token(report) for report in results["decode"].values]
    prefill_flops, prefill_read = shares(prefill, 2 * layers, weight_bytes / max_rows)
    decode_flops, decode_read = shares(decode, 2 * (layers + output), weight_bytes)
    data = {"prefill": [prefill_flops, prefill_read["median"]], "decode": [decode_flops, decode_read["median"]],
            "prefill_tokens_per_s": statistics.median(prefill), "decode_tokens_per_s": statistics.median(decode)}
    row = Row("T1", "prefill / decode: share of a core's FLOP/s", "prefill near 1, decode far below", measured=prefill_flops,
              noise=results["prefill"].noise(),
              reference=f"decode {100 * decode_flops:.0f} %; of read bandwidth: prefill {100 * prefill_read['median']:.1f} %, "
                        f"decode {100 * decode_read['median']:.0f} %", details=data)
    return row, data


def batching(model, settings):
    """In-flight batching against static batching, when one request in five is long."""
    shape = dict(mode="one-shot", sequences=settings.skewed_requests, prompt_tokens=32, output_tokens=settings.skewed_outputs,
                 long_share=0.2)
    common = ["--context", 2048, "--max-running", 16]
    with Cluster(model, 2, common) as inflight, Cluster(model, 2, [*common, "--batching", "static"]) as static:
        seeds = {"in-flight": iter(range(1, 100)), "static": iter(range(1, 100))}
        results = interleaved.run({
            "static": lambda: static.load(seed=next(seeds["static"]), **shape),
            "in-flight": lambda: inflight.load(seed=next(seeds["in-flight"]), **shape)}, settings.rounds, _pids(inflight, static))
    rate = {name: result.spread(lambda report: measure.throughput(report["windows"][0])) for name, result in results.items()}
    ratio = measure.spread([measure.throughput(a["windows"][0]) / measure.throughput(b["windows"][0])
                            for a, b in zip(results["in-flight"].values, results["static"].values)])
    waits = {name: result.spread(lambda report: report["windows"][0]["request_ms"]["p50"] / 1e3)["median"]
             for name, result in results.items()}
    data = {name: [spread["median"], waits[name]] for name, spread in rate.items()}
    row = Row("T2", "in-flight / static batching, throughput on skewed lengths", "> 1", 1.0, at_most=False,
              measured=ratio["median"], unit="", spread=ratio, noise=results["in-flight"].noise(),
              reference=f"static {rate['static']['median']:.0f} tokens/s, in-flight {rate['in-flight']['median']:.0f}", details=data)
    return row, data


def kv_cache(model, settings):
    """A token with the KV cache, and computed afresh from everything before it, at growing contexts."""
    data = {"with the KV cache": [], "recomputed": []}
    with Cluster(model, 1, ["--context", 2048, *settings.no_prefix_cache]) as one:
        watch = noise.Noise(_pids(one))
        for context in settings.contexts:
            cached = one.load(mode="one-shot", sequences=1, prompt_tokens=context, output_tokens=17, seed=context)
            afresh = one.load(mode="recompute", prompt_tokens=context, output_tokens=settings.recomputed_tokens, seed=context)
            data["with the KV cache"].append((context, cached["windows"][0]["inter_token_ms"]["p50"]))
            data["recomputed"].append((context, afresh["windows"][0]["ttft_ms"]["p50"]))
        seen = noise.summary([watch.read()])
    context, cached = data["with the KV cache"][-1]
    afresh = data["recomputed"][-1][1]
    row = Row("T3", f"a token at context {context}: recomputed / with the KV cache", "grows with the context", 1.0, at_most=False,
              measured=afresh / cached, unit="", noise=seen, reference=f"{afresh:.0f} ms / {cached:.1f} ms", details=data)
    return row, data


def batch_size(model, settings):
    """Throughput against sequences at a time, up to the memory limit."""
    kv_memory = 192 * MIB
    tokens = 128
    curve, seen = [], []
    with Cluster(model, 1, ["--context", 2048], ["--kv-memory", kv_memory]) as one:
        load = one.status()["load"]
        room = int(load["kv_blocks_total"]) * int(load["kv_block_tokens"]) // tokens
        for sequences in settings.batch_sizes:
            watch = noise.Noise(_pids(one))
            report = one.load(mode="steady", sequences=sequences, prompt_tokens=16, output_tokens=tokens - 16, warmup="0.5s",
                              window=settings.window, windows=settings.rounds)
            seen.append(watch.read())
            curve.append((sequences, measure.spread([measure.throughput(w) for w in report["windows"]])["median"]))
    best = max(rate for _, rate in curve)
    data = {"curve": curve, "room": room}
    row = Row("T4", "throughput with as many sequences as memory holds / with one", "> 1, then flat", 1.0, at_most=False,
              measured=best / curve[0][1], unit="", noise=noise.summary(seen),
              reference=f"one {curve[0][1]:.0f} tokens/s, best {best:.0f}; room for {room} sequences of {tokens} tokens", details=data)
    return row, data


def weights(model, settings):
    """Weights of each stage by the number of stages."""
    data = {}
    for stages in settings.stage_counts:
        with Cluster(model, stages) as cluster:
            data[stages] = [int(stage["weight_bytes"]) / MIB for stage in cluster.status()["load"]["stages"]]
    most = settings.stage_counts[-1]
    whole = data[settings.stage_counts[0]][0]
    row = Row("T5", f"weights of the largest of {most} stages / of the whole model", f"1/{most} = {1 / most:.2f} and the vocabulary",
              measured=max(data[most]) / whole, unit="", reference=f"{max(data[most]):.1f} of {whole:.1f} MiB", details=data)
    return row, data


def pipelining(model, settings):
    """One batch at a time through two stages, against microbatches that fill them."""
    sequences = 24
    with Cluster(model, 2, ["--context", 2048, "--max-in-flight", 1]) as naive, Cluster(model, 2, ["--context", 2048]) as full:
        load = dict(mode="steady", sequences=sequences, prompt_tokens=32, output_tokens=1500)
        def window(cluster):
            return cluster.load(**load, warmup="0.5s", window=settings.window)["windows"][0]
        results = interleaved.run({"naive": lambda: window(naive), "full": lambda: window(full)}, settings.rounds,
                                  _pids(naive, full))
        lines = {"naive": trace.record(naive, **load), "full": trace.record(full, **load)}
    def idle(window):
        return statistics.mean(stage.bubble for stage in measure.window_stages(window))
    bubbles = {name: result.spread(idle) for name, result in results.items()}
    ratio = measure.spread([measure.throughput(a) / measure.throughput(b)
                            for a, b in zip(results["full"].values, results["naive"].values)])
    data = {"bubbles": {name: spread["median"] for name, spread in bubbles.items()}, "lines": lines,
            "tokens_per_s": {name: result.spread(measure.throughput)["median"] for name, result in results.items()}}
    row = Row("T6", "microbatches / one batch at a time, 2 stages: throughput", "towards 2", 1.0, at_most=False,
              measured=ratio["median"], unit="", spread=ratio, noise=results["full"].noise(),
              reference=f"idle: one batch {100 * bubbles['naive']['median']:.0f} % (textbook (p-1)/p = 50 %), "
                        f"microbatches {100 * bubbles['full']['median']:.1f} %", details={k: data[k] for k in ("bubbles", "tokens_per_s")})
    return row, data


def characters(model, settings):
    """Tokens a second beside characters a second, by kind of text."""
    names = ("history", "story", "science", "code", "numbers", "German")
    prompts = (HERE / "prompts.txt").read_text().replace("\\n", " ").splitlines()
    if len(prompts) != len(names):
        raise BenchError(f"prompts.txt has {len(prompts)} lines, expected {len(names)}")
    data = {}
    with Cluster(model, 2, ["--context", 2048]) as two, tempfile.TemporaryDirectory() as folder:
        watch = noise.Noise(_pids(two))
        for name, prompt in zip(names, prompts):
            file = pathlib.Path(folder) / f"{name}.txt"
            file.write_text(prompt + "\n")
            report = two.load(mode="one-shot", sequences=1, text_file=file, output_tokens=settings.text_tokens, windows=1)
            window = report["windows"][0]
            data[name] = [measure.throughput(window), window["characters"] / window["seconds"]]
        seen = noise.summary([watch.read()])
    per_token = {name: pair[1] / pair[0] for name, pair in data.items()}
    row = Row("T7", "characters a token: most / least among six texts", "> 1: tokens/s do not compare across texts", 1.0,
              at_most=False, measured=max(per_token.values()) / min(per_token.values()), unit="", noise=seen,
              reference=", ".join(f"{name} {value:.1f}" for name, value in per_token.items()), details=data)
    return row, data
