"""llama.cpp beside us: its own benchmark programs, as bench/peers/get_llama_cpp.sh builds them, and what they print."""
import json
import pathlib
import socket
import subprocess
import tempfile
import time

from benchlib.cluster import BenchError, Process

RUN_SECONDS = 300
BATCH_CONTEXT_SPARE = 64  # tokens of context beyond what a run needs


def json_lines(text):
    """The JSON objects of a program that prints one a line, among lines of other kinds."""
    found = []
    for line in text.splitlines():
        if line.startswith("{"):
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise BenchError(f"not JSON: {line[:200]!r}") from error
    return found


def parse_bench(text):
    """[(prompt tokens, generated tokens, tokens/s)] of `llama-bench -o jsonl`; tokens/s are a mean over its repetitions."""
    try:
        runs = [(run["n_prompt"], run["n_gen"], float(run["avg_ts"])) for run in json_lines(text)]
    except (KeyError, TypeError, ValueError) as error:
        raise BenchError(f"llama-bench printed another shape of result: {error}") from error
    if not runs:
        raise BenchError("llama-bench printed no result")
    return runs


def parse_batched_bench(text):
    """{sequences: tokens/s of generating together} of `llama-batched-bench --output-format jsonl`."""
    try:
        runs = {run["pl"]: float(run["speed_tg"]) for run in json_lines(text)}
    except (KeyError, TypeError, ValueError) as error:
        raise BenchError(f"llama-batched-bench printed another shape of result: {error}") from error
    if not runs:
        raise BenchError("llama-batched-bench printed no result: the context may be too short")
    return runs


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class RpcServers:
    """So many ggml-rpc-servers of `threads` threads each; a context manager. They take no port 0."""

    START_SECONDS = 20

    def __init__(self, folder, count, threads):
        self.processes, self.addresses = [], []
        self.logs = tempfile.TemporaryDirectory(prefix="millrace-bench-")
        try:
            for number in range(count):
                port = _free_port()
                log = pathlib.Path(self.logs.name) / f"{number}.log"
                self.processes.append(Process([folder / "ggml-rpc-server", "-H", "127.0.0.1", "-p", port, "-t", threads], log))
                self.addresses.append(f"127.0.0.1:{port}")
            for process, address in zip(self.processes, self.addresses):
                self._wait(process, address)
        except BaseException:
            self.stop()
            raise

    def _wait(self, process, address):
        host, port = address.rsplit(":", 1)
        deadline = time.monotonic() + self.START_SECONDS
        while time.monotonic() < deadline and process.popen.poll() is None:
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise BenchError(f"ggml-rpc-server does not listen: {process.log.read_text(errors='replace').strip()[-300:]}")

    def stop(self):
        for process in self.processes:
            process.stop()
        self.logs.cleanup()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


class Peer:
    """One model in llama.cpp's programs. Each call is a process of its own, which loads the model first; that time does not
    count. `rpc`: addresses of ggml-rpc-servers that then hold all layers."""

    def __init__(self, folder, model):
        self.folder, self.model = pathlib.Path(folder), model

    def _run(self, program, *args):
        command = [str(part) for part in (self.folder / program, "-m", self.model, *args)]
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=RUN_SECONDS)
        except (subprocess.TimeoutExpired, OSError) as error:
            raise BenchError(f"{program}: {error}") from error
        if done.returncode != 0:
            raise BenchError(f"{program}: exit code {done.returncode}: {done.stderr.decode(errors='replace').strip()[-400:]}")
        return done.stdout.decode(errors="replace")

    @staticmethod
    def _rpc_flags(rpc):
        return ["--rpc", ",".join(rpc), "-ngl", 99] if rpc else []

    def _bench(self, threads, rpc, *args):
        out = self._run("llama-bench", "-t", threads, "-r", 1, "-o", "jsonl", *self._rpc_flags(rpc), *args)
        return parse_bench(out)[-1][2]

    def prefill(self, threads, tokens, rpc=()):
        """Tokens/s of one prompt."""
        return self._bench(threads, rpc, "-p", tokens, "-n", 0, "--no-warmup")

    def decode(self, threads, depth, tokens, rpc=()):
        """Tokens/s of generating so many tokens behind a prompt of `depth` tokens, one sequence."""
        return self._bench(threads, rpc, "-p", 0, "-n", tokens, "-d", depth)

    def batched(self, threads, sequences, depth, tokens, rpc=()):
        """{sequences: tokens/s} for each number in `sequences`: generating so many tokens in each sequence, all together,
        behind prompts of `depth` tokens. The prompt is computed once and copied, which takes no part in what is measured."""
        context = max(sequences) * (depth + tokens) + BATCH_CONTEXT_SPARE
        out = self._run("llama-batched-bench", "-t", threads, "-c", context, "-npp", depth, "-ntg", tokens, "-npl",
                        ",".join(str(count) for count in sequences), "-pps", "--output-format", "jsonl", *self._rpc_flags(rpc))
        return parse_batched_bench(out)
