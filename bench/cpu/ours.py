"""Our side of each comparison: a cluster of real processes, and load on it that does what llama.cpp's programs do."""
import itertools
import re
import subprocess
import tempfile
import time

from benchlib.cluster import BIN, BenchError, Cluster, program_has_flag, run_text

CONTEXT_TOKENS = 2048
DECODE_SEED = 1                  # the same prompts each time: the prefix cache shortens the way to decoding
MOST_LEAD = 256
FRESH_SEEDS = itertools.count(1000)  # never the same prompt twice: nothing of it is in the prefix cache


class Ours:
    """A cluster of `stages` workers; a context manager."""

    def __init__(self, model, stages=1, threads=1):
        self.cluster = Cluster(model, stages, coordinator=["--context", CONTEXT_TOKENS], threads=threads)
        self.warm_sequences = 0
        # The first of several sequences go on while the others' prompts are computed: tokens for that time.
        self.lead = 2

    def prefill(self, tokens):
        """Tokens/s of one prompt that nothing is known of, to its first generated token, as a client sees it."""
        report = self.cluster.load(mode="one-shot", sequences=1, prompt_tokens=tokens, output_tokens=1, seed=next(FRESH_SEEDS))
        return tokens / (report["windows"][0]["ttft_ms"]["mean"] * 1e-3)

    def decode(self, sequences, depth, tokens):
        """Tokens/s of generating in so many sequences together, behind prompts of `depth` tokens."""
        while True:
            together = self.decode_window(sequences, depth, tokens + self.lead)["together"]
            if together["tokens"] >= sequences * tokens / 2:
                return together["tokens"] / together["seconds"]
            if self.lead >= MOST_LEAD:
                raise BenchError(f"{sequences} sequences of {tokens + self.lead} tokens did not decode together: one ended too soon")
            self.lead *= 2

    def decode_window(self, sequences, depth, tokens):
        """The load generator's account of one round. The first of so many sequences fills the prefix cache and is not counted."""
        flags = {"mode": "one-shot", "sequences": sequences, "prompt_tokens": depth, "seed": DECODE_SEED}
        if sequences > self.warm_sequences:
            self.cluster.load(output_tokens=2, **flags)
            self.warm_sequences = sequences
        return self.cluster.load(output_tokens=tokens, **flags)["windows"][0]

    def pids(self):
        return [process.pid for process in self.cluster.processes]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.cluster.stop()


def parse_shards(text):
    """(tokens/s, share of the time spent in collectives) of one measurement of decoding, as stage_bench prints it."""
    rate = re.search(r"^decode, .*: ([0-9.]+) tokens/s", text, re.MULTILINE)
    share = re.search(r"^ *of it in collectives: ([0-9.]+) %$", text, re.MULTILINE)
    if not rate or not share:
        raise BenchError(f"stage_bench does not tell of collectives: {text.strip()[-200:]!r}")
    return float(rate.group(1)), float(share.group(1)) / 100


def shard_decode(model, shards, depth, tokens):
    """As parse_shards: one sequence in one process without RPC, each shard with one thread. Loading does not count."""
    for flag in ("tensor-parallel", "activations"):
        if not program_has_flag("stage_bench", flag):
            raise BenchError(f"stage_bench has no --{flag}")
    return parse_shards(run_text([BIN / "stage_bench", model, "--tensor-parallel", shards, "--activations", "int8", "--sequences", 1,
                                  "--prefill-tokens", 1, "--context", depth, "--steps", tokens, "--runs", 1]))


def load_seconds(model):
    """From the start of coordinator and worker to the first token of a request that waits for them."""
    began = time.monotonic()
    with Cluster(model, 1, coordinator=["--context", CONTEXT_TOKENS], threads=0) as cluster:  # as many as it finds
        report = cluster.load(mode="one-shot", sequences=1, prompt_tokens=8, output_tokens=1, seed=DECODE_SEED)
        ended = time.monotonic()
        window = report["windows"][0]
        after_first = window["seconds"] - window["ttft_ms"]["mean"] * 1e-3
        return ended - began - after_first


class Hog:
    """A process of another session that wants all of one core; a context manager."""

    def __enter__(self):
        self.log = tempfile.TemporaryFile()
        self.popen = subprocess.Popen(["sh", "-c", "while :; do :; done"], stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log,
                                      start_new_session=True)
        return self

    def __exit__(self, *_):
        self.popen.kill()
        self.popen.wait()
        self.log.close()
