"""Our side of each comparison: a cluster of real processes, and load on it that does what llama.cpp's programs do."""
import itertools
import subprocess
import tempfile
import time

from benchlib import measure
from benchlib.cluster import BenchError, Cluster, program_has_flag

CONTEXT_TOKENS = 2048
DECODE_SEED = 1                  # the same prompts each time: the prefix cache shortens the way to decoding
MOST_LEAD = 256
FRESH_SEEDS = itertools.count(1000)  # never the same prompt twice: nothing of it is in the prefix cache


def worker_flags(threads, tensor_parallel=1):
    """Flags of a worker with so many threads in each of so many shards. BenchError: this build cannot do that."""
    flags = []
    for name, value in (("threads", threads), ("tensor-parallel", tensor_parallel)):
        if program_has_flag("millrace-worker", name):
            flags += [f"--{name}", value]
        elif value != 1:
            raise BenchError(f"millrace-worker has no --{name}")
    return flags


class Ours:
    """A cluster of `stages` workers; a context manager."""

    def __init__(self, model, stages=1, threads=1, tensor_parallel=1):
        self.cluster = Cluster(model, stages, coordinator=["--context", CONTEXT_TOKENS], worker=worker_flags(threads, tensor_parallel))
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

    def collective_share(self, depth, tokens):
        """Share of the time of decode steps that shards spent on adding their parts up; None where stages do not say."""
        window = self.decode_window(1, depth, tokens)
        shares = []
        for begin, end in zip(window["load_begin"]["stages"], window["load_end"]["stages"]):
            if "collective" not in end:
                raise BenchError("the workers give no account of collectives")
            busy = measure.seconds(end["busy"]) - measure.seconds(begin["busy"])
            shares.append((measure.seconds(end["collective"]) - measure.seconds(begin["collective"])) / busy)
        return max(shares)

    def pids(self):
        return [process.pid for process in self.cluster.processes]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.cluster.stop()


def load_seconds(model):
    """From the start of coordinator and worker to the first token of a request that waits for them."""
    began = time.monotonic()
    with Cluster(model, 1, coordinator=["--context", CONTEXT_TOKENS], worker=worker_flags(1)) as cluster:
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
