"""Real processes for the tests: start them on free ports, talk to them, stop them, and look at what they left."""
import contextlib
import dataclasses
import itertools
import os
import pathlib
import re
import signal
import subprocess
import threading
import time

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from millrace.v1 import control_pb2, control_pb2_grpc, inference_pb2, inference_pb2_grpc, rpc_status_pb2

ROOT = pathlib.Path(__file__).resolve().parents[2]
BIN = pathlib.Path(os.environ.get("MILLRACE_BIN", ROOT / "build" / "bin"))
# How long anything may take that has no limit of its own. Machines that run these tests are small and shared.
PATIENCE = 60.0

FinishReason = inference_pb2.FinishReason
GREEDY = {"temperature": 0.0}


def wait_until(condition, what, seconds=PATIENCE, interval=0.01):
    """Calls `condition` until it returns something true, and returns that."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds} s still not: {what}")
        time.sleep(interval)


class Process:
    """One program with its output in files. Always ended by `close`."""

    live = []
    _numbers = itertools.count()

    def __init__(self, name, command, folder, **popen):
        self.name = name
        self.asked_to_stop = False
        self.command = [str(part) for part in command]
        number = next(Process._numbers)
        self.out_path = pathlib.Path(folder) / f"{number:03}-{name}.out"
        self.err_path = pathlib.Path(folder) / f"{number:03}-{name}.err"
        with open(self.out_path, "wb") as out, open(self.err_path, "wb") as err:
            self.popen = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, **popen)
        Process.live.append(self)

    @property
    def out(self):
        return self.out_path.read_text(errors="replace")

    @property
    def err(self):
        return self.err_path.read_text(errors="replace")

    @property
    def pid(self):
        return self.popen.pid

    def running(self):
        return self.popen.poll() is None

    def wait_for_line(self, pattern, seconds=PATIENCE):
        """The match of `pattern` in what the program has printed; fails at once if it ends without."""
        def look():
            match = re.search(pattern, self.out, re.MULTILINE)
            if not match and not self.running():
                match = re.search(pattern, self.out, re.MULTILINE)
                assert match, f"{self.name} ended with {self.popen.returncode} before it printed {pattern}\n{self.tail()}"
            return match
        return wait_until(look, f"{self.name} prints {pattern}", seconds)

    def address(self):
        return self.wait_for_line(r"^listening on (\S+:\d+)$").group(1)

    def send(self, number):
        self.asked_to_stop = self.asked_to_stop or number == signal.SIGTERM
        self.popen.send_signal(number)

    def wait(self, seconds=PATIENCE):
        return self.popen.wait(timeout=seconds)

    def stop(self, seconds=20):
        """Asks the program to end, unless that was done, and returns its exit code. (Asked twice, a program ends at once.)"""
        if self.running() and not self.asked_to_stop:
            self.send(signal.SIGTERM)
        return self.wait(seconds)

    def close(self):
        if self.running():
            self.popen.kill()
            self.popen.wait()
        if self in Process.live:
            Process.live.remove(self)

    def tail(self, lines=25):
        def last(text):
            return "\n".join("    " + line for line in text.splitlines()[-lines:])
        return f"--- {self.name} ({' '.join(self.command)}), exit code {self.popen.poll()}\n{last(self.out)}\n{last(self.err)}"


@dataclasses.dataclass
class Answer:
    """All that a Generate stream brought."""
    started: object = None
    ids: list = dataclasses.field(default_factory=list)
    text: str = ""
    texts: list = dataclasses.field(default_factory=list)
    logprobs: list = dataclasses.field(default_factory=list)
    prompt_logprobs: dict = dataclasses.field(default_factory=dict)
    finished: object = None

    @property
    def reason(self):
        return self.finished.reason

    def bits(self):
        """What must be the same, bit for bit, whenever the same request is made."""
        return (self.ids, self.text, self.logprobs, self.prompt_logprobs, self.finished.reason)


def _entry(position):
    entries = [position.chosen, *position.top]
    for entry in entries:
        assert entry.logprob == entry.logprob and entry.logprob <= 1e-6, f"not a log probability: {entry}"
    return [(entry.token_id, entry.logprob) for entry in entries]


def collect(events, answer=None, on_event=None):
    """Reads a stream to its end, and checks the order that the proto promises."""
    answer = answer or Answer()
    for event in events:
        kind = event.WhichOneof("event")
        assert answer.finished is None, f"{kind} after finished"
        assert (kind == "started") == (answer.started is None), f"{kind} out of order"
        if kind == "started":
            answer.started = event.started
        elif kind == "prompt_logprobs":
            assert not answer.ids, "prompt_logprobs after tokens"
            for offset, position in enumerate(event.prompt_logprobs.positions):
                where = event.prompt_logprobs.first_position + offset
                assert where not in answer.prompt_logprobs
                answer.prompt_logprobs[where] = _entry(position)
        elif kind == "tokens":
            answer.ids += event.tokens.token_ids
            answer.text += event.tokens.text
            answer.texts.append(event.tokens.text)
            answer.logprobs += [_entry(position) for position in event.tokens.logprobs]
        elif kind == "finished":
            answer.finished = event.finished
        if on_event:
            on_event(event)
    assert answer.finished is not None, "a stream that ended with OK has no finished"
    return answer


def request(prompt, max_tokens=None, sampling=None, stop=None, **fields):
    """A GenerateRequest. `prompt`: a text, a list of ids, or a list of (role, content)."""
    message = inference_pb2.GenerateRequest(**fields)
    if isinstance(prompt, str):
        message.text = prompt
    elif prompt and isinstance(prompt[0], tuple):
        for role, content in prompt:
            message.chat.messages.add(role=role, content=content)
    elif prompt is not None:
        message.token_ids.ids.extend(prompt)
    if sampling is not None:
        biases = dict(sampling).pop("logit_bias", {})
        message.sampling.CopyFrom(inference_pb2.Sampling(**{k: v for k, v in sampling.items() if k != "logit_bias"}))
        for token, bias in biases.items():
            message.sampling.logit_bias[token] = bias
    if stop is not None or max_tokens is not None:
        message.stop.CopyFrom(inference_pb2.Stop(**(stop or {})))
    if max_tokens is not None:
        message.stop.max_tokens = max_tokens
    return message


def error_detail(error):
    """The ErrorDetail that every error status carries."""
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = rpc_status_pb2.RpcStatus.FromString(value)
            assert status.code == error.code().value[0], "the details name another code"
            assert status.message == error.details(), "the details have another message"
            detail = inference_pb2.ErrorDetail()
            assert status.details[0].Unpack(detail), status.details[0].type_url
            others = [other.type_url for other in status.details[1:]]
            assert others == ["type.googleapis.com/google.rpc.RetryInfo"] * detail.HasField("retry_after")
            assert re.fullmatch(r"[A-Z][A-Z0-9_]*", detail.reason), detail.reason
            return detail
    raise AssertionError(f"no grpc-status-details-bin in {error}")


class Client:
    """What a program of somebody else would do with the protos."""

    def __init__(self, address, tls_ca=None):
        """`tls_ca`: a PEM file; speaks TLS."""
        self.address = address
        options = [("grpc.max_send_message_length", 64 << 20), ("grpc.use_local_subchannel_pool", 1)]
        if tls_ca is None:
            self.channel = grpc.insecure_channel(address, options=options)
        else:
            credentials = grpc.ssl_channel_credentials(pathlib.Path(tls_ca).read_bytes())
            self.channel = grpc.secure_channel(address, credentials, options=options)
        self.inference = inference_pb2_grpc.InferenceStub(self.channel)
        self.control = control_pb2_grpc.ControlStub(self.channel)
        self.health = health_pb2_grpc.HealthStub(self.channel)

    def generate(self, prompt, *args, timeout=PATIENCE * 3, on_event=None, **kwargs):
        return collect(self.inference.Generate(request(prompt, *args, **kwargs), timeout=timeout), on_event=on_event)

    def generate_all(self, requests, timeout=PATIENCE * 3):
        """Runs requests at the same time; their answers in order. An error of one is raised."""
        answers, errors = [None] * len(requests), []

        def run(index):
            try:
                answers[index] = collect(self.inference.Generate(requests[index], timeout=timeout))
            except (grpc.RpcError, AssertionError) as error:
                errors.append(error)
        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(requests))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return answers

    def stream(self, message, timeout=PATIENCE):
        return self.inference.Generate(message, timeout=timeout)

    def load(self):
        return self.control.GetLoad(control_pb2.GetLoadRequest(), timeout=10)

    def server_info(self):
        return self.control.GetServerInfo(control_pb2.GetServerInfoRequest(), timeout=10)

    def model_info(self):
        return self.control.GetModelInfo(control_pb2.GetModelInfoRequest(), timeout=10)

    def serving(self, service=""):
        answer = self.health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        return answer.status == health_pb2.HealthCheckResponse.SERVING

    def wait_serving(self, seconds=PATIENCE):
        wait_until(self.serving, "health is SERVING", seconds)

    def wait_idle(self, seconds=10):
        """Waits until nothing is held for any request."""
        def idle():
            load = self.load()
            return (load.running_requests, load.queued_requests, load.kv_blocks_used, load.microbatches_in_flight) == \
                (0, 0, 0, 0)
        wait_until(idle, "no request, microbatch or KV block in use", seconds)

    def close(self):
        self.channel.close()


class Cluster:
    """A coordinator and its workers. As a context manager it is stopped in order, and every exit code must be 0."""

    def __init__(self, model, folder, stages=2, layers=None, coordinator=(), worker=(), each_worker=None, each_env=None,
                 wait=True, tls=None):
        """`worker`: options of all workers; `each_worker`: further ones, a list for each stage; `each_env`: what is added to
        the environment of each stage's worker; `tls`: a certificates.Certificate that all processes use."""
        self.model, self.folder, self.stages = str(model), folder, stages
        self.worker_args = [*worker, *(tls.flags() if tls else [])]
        self.processes, self.workers, self.client = [], [], None
        self.killed = set()
        command = [BIN / "millrace-coordinator", "--model", model, "--stages", stages, "--listen", "127.0.0.1:0", *coordinator]
        if tls:
            command += ["--cluster-listen", "127.0.0.1:0", *tls.flags()]
        if layers:
            command += ["--layers", ",".join(str(n) for n in layers)]
        try:
            self.coordinator = self._start("coordinator", command)
            self.address = self.join_address = self.coordinator.address()
            if tls:
                self.join_address = self.coordinator.wait_for_line(r"^workers join at (\S+)$").group(1)
            each = each_worker or [()] * stages
            envs = each_env or [None] * stages
            self.workers = [self.start_worker(stage, *each[stage], env=envs[stage]) for stage in range(stages)]
            self.client = Client(self.address, tls.ca if tls else None)
            if wait:
                self.wait_serving()
        except BaseException:
            self.kill()
            raise

    def _start(self, name, command, env=None):
        process = Process(name, command, self.folder, env={**os.environ, **(env or {})})
        self.processes.append(process)
        return process

    def start_worker(self, stage=None, *extra, model=None, env=None):
        """Starts a worker for a stage (None: any). Not waited for, and not put in `workers`."""
        command = [BIN / "millrace-worker", "--coordinator", self.join_address, *self.worker_args, *extra]
        if stage is not None:
            command += ["--stage", stage]
        if model is not None:
            command += ["--model", model]
        return self._start(f"worker{'' if stage is None else stage}", command, env)

    def wait_serving(self, seconds=PATIENCE):
        def check():
            dead = [p for p in self.processes if not p.running() and p not in self.killed]
            assert not dead, "ended early:\n" + "\n".join(p.tail() for p in dead)
            return self.client.serving()
        wait_until(check, "the cluster serves", seconds)

    def kill_worker(self, stage, number=signal.SIGKILL):
        process = self.workers[stage]
        self.killed.add(process)
        process.send(number)
        return process

    def stop(self):
        """SIGTERM to the coordinator ends everything in order."""
        codes = {self.coordinator.name: self.coordinator.stop()}
        for process in self.processes:
            if process not in self.killed:
                codes[process.name] = process.wait(20)
        assert set(codes.values()) == {0}, f"exit codes {codes}\n" + "\n".join(p.tail() for p in self.processes)

    def kill(self):
        if self.client:
            self.client.close()
        for process in self.processes:
            process.close()

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            if kind is None:
                self.stop()
        finally:
            self.kill()


def run_program(name, *args, seconds=PATIENCE, **popen):
    """Runs one of our programs to its end: (exit code, stdout, stderr)."""
    done = subprocess.run([str(BIN / name), *[str(a) for a in args]], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=seconds, **popen)
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


@contextlib.contextmanager
def raises_status(*codes):
    """The call in the block must end with one of these gRPC codes; gives the error as `.error`."""
    class Caught:
        error = None
    caught = Caught()
    try:
        yield caught
    except grpc.RpcError as error:
        assert error.code() in codes, f"{error.code()}: {error.details()}"
        caught.error = error
        return
    raise AssertionError(f"no error; expected {codes}")
