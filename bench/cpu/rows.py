"""The rows of bench/cpu: one function for each cluster that rows share, so that what is compared is measured in turn."""
import dataclasses

import ours
from benchlib import gguf, interleaved, measure, noise
from benchlib.llama_cpp import RpcServers
from benchlib.table import Row

PREFILL_TOKENS = 512
DEPTH = 64  # tokens of prompt before what is decoded
BATCH = 16
SWEEP = (1, 2, 4, 8, 16, 32)

# Ours / theirs, at least; by row and model. What is missing has no target.
TARGETS = {
    "G1": {"smollm2": 1.8, "q8_0": 1.25, "q4_0": 1.1},
    "G3": {"smollm2": 1.5, "q8_0": 1.0, "q4_0": 1.0},
    "G5": {"smollm2": 6, "q8_0": 2.5, "q4_0": 2},
    "G6": {"smollm2": 4, "q8_0": 2, "q4_0": 1.6},
    "P5 prefill": {"smollm2": 6, "q8_0": 3},
    "P5 decode": {"smollm2": 8, "q8_0": 4},
}
COLLECTIVE_SHARE = {"q8_0": 0.08}     # at most
LOAD_SECONDS = {"q8_0": 1.5, "q4_0": 1.5}  # at most
HOG_SHARE = 0.5                       # at least


@dataclasses.dataclass
class Bench:
    """One model, and how long it is measured."""
    name: str        # smollm2, q8_0, q4_0
    title: str
    path: str
    peer: object     # llama_cpp.Peer, or None
    rounds: int
    single_tokens: int  # that one sequence generates
    batch_tokens: int   # that each of several sequences generates
    streams: dict       # {threads: bytes/s that so many cores read}

    def interleave(self, measurements, pids, rounds=None):
        """{name: Measurement}; those named "theirs ..." are left out without a peer."""
        chosen = {name: function for name, function in measurements.items() if self.peer or not name.startswith("theirs")}
        return interleaved.run(chosen, rounds or self.rounds, pids, say=True)


def _rate_row(bench, row_id, what, results, stream_threads=None):
    """Ours / theirs, quotients of each round. stream_threads: also tell the share of the stream bandwidth of so many cores."""
    mine, theirs = results[f"ours {what}"], results.get(f"theirs {what}")
    limit = TARGETS.get(row_id, {}).get(bench.name)
    reference = f"ours {mine.spread()['median']:.4g}"
    ratios = None
    if theirs:
        ratios = measure.spread([a / b for a, b in zip(mine.values, theirs.values)])
        reference += f", theirs {theirs.spread()['median']:.4g}"
    reference += " tokens/s"
    details = {"ours": mine.spread(), "theirs": theirs.spread() if theirs else None}
    if stream_threads:
        share = gguf.bytes_of_a_step(bench.path) * mine.spread()["median"] / bench.streams[stream_threads]
        details["stream_share"] = share
        reference += f"; {100 * share:.0f} % of the stream of {stream_threads} core{'s' if stream_threads > 1 else ''}"
    readings = noise.summary(mine.noises + (theirs.noises if theirs else []))
    row = Row(row_id.split()[0], f"{what}: ours / theirs [{bench.title}]", f">= {limit}" if limit else "-", limit, at_most=False,
              measured=ratios["median"] if ratios else mine.spread()["median"], unit="" if ratios else "tokens/s",
              spread=ratios or mine.spread(), reference=reference, noise=readings, details=details)
    if not theirs:
        row.what, row.limit = f"{what} [{bench.title}]", None
    return row


def one_thread_rows(bench, ids):
    """G1, G5, G6 and the sweep: one worker with one thread."""
    decode, batch, prefill = "decode, 1 sequence, 1 thread", f"decode, {BATCH} sequences, 1 thread", f"prefill {PREFILL_TOKENS}, 1 thread"
    peer, rows = bench.peer, []
    with ours.Ours(bench.path) as mine:
        wanted = {}
        if "G1" in ids:
            wanted[f"ours {decode}"] = lambda: mine.decode(1, DEPTH, bench.single_tokens)
            wanted[f"theirs {decode}"] = lambda: peer.decode(1, DEPTH, bench.single_tokens)
        if "G5" in ids:
            wanted[f"ours {batch}"] = lambda: mine.decode(BATCH, DEPTH, bench.batch_tokens)
            wanted[f"theirs {batch}"] = lambda: peer.batched(1, [BATCH], DEPTH, bench.batch_tokens)[BATCH]
        if "G6" in ids:
            wanted[f"ours {prefill}"] = lambda: mine.prefill(PREFILL_TOKENS)
            wanted[f"theirs {prefill}"] = lambda: peer.prefill(1, PREFILL_TOKENS)
        results = bench.interleave(wanted, mine.pids())
        if "G1" in ids:
            rows.append(_rate_row(bench, "G1", decode, results, stream_threads=1))
        if "G5" in ids:
            rows.append(_rate_row(bench, "G5", batch, results))
        if "G6" in ids:
            rows.append(_rate_row(bench, "G6", prefill, results))
        if "sweep" in ids:
            rows += _sweep_rows(bench, mine)
    return rows


def _sweep_rows(bench, mine):
    """Decoding together in more and more sequences, one thread."""
    wanted = {"theirs": lambda: bench.peer.batched(1, SWEEP, DEPTH, bench.batch_tokens),
              "ours": lambda: {count: mine.decode(count, DEPTH, bench.batch_tokens) for count in SWEEP}}
    results = bench.interleave(wanted, mine.pids(), rounds=max(1, bench.rounds // 2))
    rows = []
    for count in SWEEP:
        what = f"decode, {count} sequence{'s' if count > 1 else ''}, 1 thread"
        of_count = {}
        for side, measurement in results.items():
            of_count[f"{side} {what}"] = part = interleaved.Measurement()
            part.values, part.noises = [value[count] for value in measurement.values], measurement.noises
        rows.append(_rate_row(bench, "sweep", what, of_count))
    return rows


def two_thread_rows(bench, ids):
    """G3 and R1: one worker with two threads."""
    decode, rows = "decode, 1 sequence, 2 threads", []
    with ours.Ours(bench.path, threads=2) as mine:
        if "G3" in ids:
            results = bench.interleave({f"ours {decode}": lambda: mine.decode(1, DEPTH, bench.single_tokens),
                                        f"theirs {decode}": lambda: bench.peer.decode(2, DEPTH, bench.single_tokens)}, mine.pids())
            rows.append(_rate_row(bench, "G3", decode, results, stream_threads=2))
        if "R1" in ids:
            rows.append(_hog_row(bench, mine))
    return rows


def _hog_row(bench, mine):
    def beside_hog():
        with ours.Hog():
            return mine.decode(BATCH, DEPTH, bench.batch_tokens)
    results = bench.interleave({"alone": lambda: mine.decode(BATCH, DEPTH, bench.batch_tokens), "beside a hog": beside_hog}, mine.pids())
    alone, beside = results["alone"], results["beside a hog"]
    kept = measure.spread([b / a for a, b in zip(alone.values, beside.values)])
    return Row("R1", f"decode, {BATCH} sequences, 2 threads: throughput kept beside a process that wants one core [{bench.title}]",
               f">= {100 * HOG_SHARE:.0f} %", HOG_SHARE, at_most=False, measured=kept["median"], spread=kept, noise=alone.noise(),
               reference=f"alone {alone.spread()['median']:.4g}, beside it {beside.spread()['median']:.4g} tokens/s")


def two_worker_rows(bench, _):
    """P5: two workers of one thread each, beside llama.cpp with two ggml-rpc-servers."""
    prefill, decode = f"prefill {PREFILL_TOKENS}, 2 workers of 1 thread", f"decode, {BATCH} sequences, 2 workers of 1 thread"
    with ours.Ours(bench.path, stages=2) as mine:
        if not bench.peer:
            results = bench.interleave({f"ours {prefill}": lambda: mine.prefill(PREFILL_TOKENS),
                                        f"ours {decode}": lambda: mine.decode(BATCH, DEPTH, bench.batch_tokens)}, mine.pids())
        else:
            with RpcServers(bench.peer.folder, 2, 1) as servers:
                rpc = servers.addresses
                results = bench.interleave({
                    f"ours {prefill}": lambda: mine.prefill(PREFILL_TOKENS),
                    f"theirs {prefill}": lambda: bench.peer.prefill(1, PREFILL_TOKENS, rpc),
                    f"ours {decode}": lambda: mine.decode(BATCH, DEPTH, bench.batch_tokens),
                    f"theirs {decode}": lambda: bench.peer.batched(1, [BATCH], DEPTH, bench.batch_tokens, rpc)[BATCH]},
                    mine.pids() + [process.pid for process in servers.processes])
    return [_rate_row(bench, "P5 prefill", prefill, results), _rate_row(bench, "P5 decode", decode, results)]


def shard_rows(bench, _):
    """C6: what a decode step of two shards spends on adding their parts up."""
    limit = COLLECTIVE_SHARE.get(bench.name)
    result = bench.interleave({"two shards": lambda: ours.shard_decode(bench.path, 2, DEPTH, bench.single_tokens)}, [])["two shards"]
    spread = result.spread(lambda value: value[1])
    return [Row("C6", f"decode, 1 sequence, 2 shards of 1 thread: share of collectives [{bench.title}]",
                f"<= {100 * limit:.0f} %" if limit else "-", limit, measured=spread["median"], spread=spread, noise=result.noise(),
                reference=f"{result.spread(lambda value: value[0])['median']:.4g} tokens/s, without RPC")]


def load_rows(bench, _):
    """L1: the file is in the page cache, as everything before has read it."""
    with open(bench.path, "rb") as file:
        while file.read(1 << 24):
            pass
    limit = LOAD_SECONDS.get(bench.name)
    result = bench.interleave({"load": lambda: ours.load_seconds(bench.path)}, [])["load"]
    size = bench.path.stat().st_size
    return [Row("L1", f"start of coordinator and worker to the first token, warm page cache [{bench.title}]",
                f"<= {limit} s" if limit else "-", limit, measured=result.spread()["median"], unit="s", spread=result.spread(),
                noise=result.noise(), reference=f"{size / 1e6:.0f} MB: {size / result.spread()['median'] / 1e9:.2f} GB/s")]


# Rows that are measured together, and how.
GROUPS = (({"G1", "G5", "G6", "sweep"}, one_thread_rows), ({"G3", "R1"}, two_thread_rows), ({"P5"}, two_worker_rows),
          ({"C6"}, shard_rows), ({"L1"}, load_rows))
ORDER = ["G1", "G3", "G5", "G6", "P5", "C6", "L1", "R1", "sweep"]


def default_rows(name):
    """What is measured of a model when nothing is asked for."""
    wanted = {row.split()[0] for row, limits in TARGETS.items() if name in limits}
    wanted |= {"C6"} if name in COLLECTIVE_SHARE else set()
    wanted |= {"L1"} if name in LOAD_SECONDS else set()
    return wanted | ({"R1", "C6", "L1", "sweep"} if name == "smollm2" else set())
