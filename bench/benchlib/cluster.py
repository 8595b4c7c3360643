"""Clusters of real processes on free ports, and load on them."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("MILLRACE_BIN", ROOT / "build" / "bin"))
START_SECONDS = 60
STOP_SECONDS = 20


class BenchError(Exception):
    """A program did not do what the benchmark needs; the message says which and what it printed."""


def run_text(command, seconds=600):
    """Runs a program to its end and returns what it printed."""
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=seconds)
    except subprocess.TimeoutExpired as error:
        raise BenchError(f"{command[0]} did not end within {seconds} s") from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-600:]
        raise BenchError(f"{pathlib.Path(command[0]).name}: exit code {done.returncode}: {said}\n{' '.join(command)}")
    return done.stdout.decode(errors="replace")


def run_json(command, seconds=600):
    """Runs a program to its end and returns what it printed as JSON."""
    text = run_text(command, seconds)
    try:
        return json.loads(text)
    except ValueError as error:
        raise BenchError(f"{command[0]} printed no JSON: {text[:200]!r}") from error


class Process:
    """One program; its output goes to a file. `stop` asks it to end and kills it if it does not."""

    def __init__(self, command, log):
        self.command = [str(part) for part in command]
        self.log = log
        with open(log, "wb") as out:
            try:
                self.popen = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
            except OSError as error:
                raise BenchError(f"cannot start {self.command[0]}: {error}") from error

    @property
    def pid(self):
        return self.popen.pid

    def wait_for(self, pattern):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            text = self.log.read_text(errors="replace")
            match = re.search(pattern, text, re.MULTILINE)
            if match:
                return match.group(1)
            if self.popen.poll() is not None:
                raise BenchError(f"{self.command[0]} ended with {self.popen.returncode}: {text.strip()[-600:]}")
            time.sleep(0.02)
        raise BenchError(f"{self.command[0]} did not print {pattern} within {START_SECONDS} s")

    def stop(self):
        if self.popen.poll() is None:
            self.popen.terminate()
        try:
            self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


class Cluster:
    """A coordinator and one worker for each stage, until `stop`; a context manager.

    `hop_delay_ms`: every link of the ring, from the coordinator and back to it included, passes through a relay that
    holds each byte for so long. Workers then advertise another loopback address with the same port, where the relay listens.
    `threads`: of each worker. One where nothing is said, so that stages and clusters compared with each other have the same.
    """

    def __init__(self, model, stages, coordinator=(), worker=(), worker_program="millrace-worker", hop_delay_ms=0, threads=1):
        self.stages = stages
        if worker_program == "millrace-worker":
            worker = ["--threads", threads, *worker]
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="millrace-bench-"))
        self.processes, self.workers, self.relays = [], [], []
        try:
            self.coordinator = self._start("coordinator", [
                BIN / "millrace-coordinator", "--model", model, "--stages", stages, "--listen", "127.0.0.1:0",
                "--status-file", self.folder / "status.json", "--worker-timeout", "30s", *coordinator])
            self.address = self.coordinator.wait_for(r"^listening on (\S+:\d+)$")
            joins_at = self._relay("coordinator", "127.0.0.1:0", self.address, hop_delay_ms) if hop_delay_ms else self.address
            for stage in range(stages):
                self._start_worker(stage, joins_at, [worker_program, worker], hop_delay_ms)
            self.wait_serving()
        except BaseException:
            self.stop()
            raise

    def _start(self, name, command):
        process = Process(command, self.folder / f"{name}.log")
        self.processes.append(process)
        return process

    def _relay(self, name, listen, to, delay_ms):
        relay = self._start(f"relay-{name}", [BIN / "delay_relay", "--listen", listen, "--to", to, "--delay", f"{delay_ms}ms"])
        self.relays.append(relay)
        return relay.wait_for(r"^listening on (\S+:\d+)$")

    def _start_worker(self, stage, joins_at, program, hop_delay_ms):
        name, args = program
        command = [BIN / name, "--coordinator", joins_at, "--stage", stage, "--listen", "127.0.0.1:0", *args]
        if hop_delay_ms:
            command += ["--advertise", "127.0.1.1"]
        worker = self._start(f"worker{stage}", command)
        self.workers.append(worker)
        if hop_delay_ms and stage > 0:
            port = worker.wait_for(r"^listening on \S+:(\d+)$")
            self._relay(f"worker{stage}", f"127.0.1.1:{port}", f"127.0.0.1:{port}", hop_delay_ms)

    def wait_serving(self):
        try:
            self.status("--wait", f"{START_SECONDS}s")
        except BenchError as error:
            logs = "\n".join(f"--- {p.command[0]}\n{p.log.read_text(errors='replace').strip()[-400:]}" for p in self.processes)
            raise BenchError(f"the cluster does not serve: {error}\n{logs}") from error

    def status(self, *args):
        return run_json([BIN / "millrace", "status", "--server", self.address, "--json", *args], START_SECONDS + 10)

    def _load_command(self, options):
        flags = []
        for name, value in options.items():
            flags += [f"--{name.replace('_', '-')}", value]
        return [BIN / "load_generator", "--server", self.address, *flags]

    def load(self, **options):
        """Runs the load generator to its end; options are its flags, with underscores."""
        return run_json(self._load_command(options))

    @contextlib.contextmanager
    def under_load(self, **options):
        """The block runs while tokens are being generated; the load ends with it. What it measures is lost."""
        before = int(self.status()["load"]["generated_tokens_total"])
        generator = Process(self._load_command({**options, "window": "600s"}), self.folder / "load.log")
        try:
            deadline = time.monotonic() + START_SECONDS
            while int(self.status()["load"]["generated_tokens_total"]) == before:
                if time.monotonic() > deadline or generator.popen.poll() is not None:
                    raise BenchError(f"no token within {START_SECONDS} s: {generator.log.read_text(errors='replace')[-300:]}")
                time.sleep(0.1)
            yield
        finally:
            generator.stop()

    def stop(self):
        if self.processes:
            self.processes[0].stop()  # the coordinator tells its workers
        for process in self.processes[1:]:
            if process not in self.relays and self.processes[0].popen.returncode == 0:
                try:
                    process.popen.wait(STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.stop()
            else:
                process.stop()
        self.processes = []
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def real_model():
    """SmolLM2-135M-Instruct as deploy/get_model.sh leaves it."""
    path = os.environ.get("MILLRACE_TEST_MODEL")
    if path:
        return pathlib.Path(path)
    done = subprocess.run([ROOT / "deploy" / "get_model.sh"], check=True, stdout=subprocess.PIPE)
    return pathlib.Path(done.stdout.decode().strip())


def program_has_flag(name, flag):
    """Whether one of our programs knows a flag."""
    done = subprocess.run([BIN / name, "--help"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20)
    return f"--{flag}".encode() in done.stdout
