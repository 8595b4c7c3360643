"""deploy/mpirun.sh over several hosts, which are network namespaces on one bridge, and an rsh agent that enters them."""
import contextlib
import json
import os
import pathlib
import re
import shutil
import signal
import subprocess

import pytest

import certificates
import harness
import test_mpi

MILLRACE = harness.BIN / "millrace"
# What is left of a cluster must be gone by then. The machine may be busy with other tests.
SOON = 5


def run(*command):
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class Hosts:
    """Three namespaces, NET.1 to NET.3, joined by a bridge that lives in the first one. Nobody answers at NET.9."""

    def __init__(self, tmp):
        self.tag = f"mr{os.getpid() % 100000}"
        self.net = f"10.201.{os.getpid() % 250}"
        self.names = [f"{self.tag}n{i}" for i in (1, 2, 3)]
        self.tmp = tmp
        # Run in a host's namespaces before anything else there.
        self.prepare = {i: tmp / f"prepare{i}" for i in (1, 2, 3)}
        for path in self.prepare.values():
            path.write_text("")
        self.agent = tmp / "agent"
        # mpirun calls: agent HOST COMMAND...; the host's last number names its namespace. Hosts have a /tmp each: Open MPI's
        # daemons, which think they are on one host called the same, would meet in it.
        self.agent.write_text(f"""#!/bin/bash
host=$1; shift
n=${{host##*.}}
[ "$n" -le 3 ] || {{ echo "ssh: connect to host $host port 22: No route to host" >&2; exit 255; }}
export TMPDIR={tmp}/tmp$n; mkdir -p "$TMPDIR"
exec ip netns exec {self.tag}n$n bash -c ". {tmp}/prepare$n; $*"
""")
        self.agent.chmod(0o755)

    def up(self):
        first = self.names[0]
        for name in self.names:
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        run("ip", "-n", first, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", first, "link", "set", "br0", "up")
        run("ip", "-n", first, "addr", "add", f"{self.net}.1/24", "dev", "br0")
        for i in (1, 2):
            run("ip", "-n", first, "link", "add", f"v{i}", "type", "veth", "peer", "name", "eth0", "netns", self.names[i])
            run("ip", "-n", first, "link", "set", f"v{i}", "master", "br0", "up")
            run("ip", "-n", self.names[i], "addr", "add", f"{self.net}.{i + 1}/24", "dev", "eth0")
            run("ip", "-n", self.names[i], "link", "set", "eth0", "up")

    def down(self):
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)

    def processes(self, *numbers):
        """Of these hosts (none named: of all), zombies excluded."""
        found = []
        for number in numbers or (1, 2, 3):
            inside = subprocess.run(["ip", "netns", "pids", self.names[number - 1]], stdout=subprocess.PIPE,
                                    stderr=subprocess.DEVNULL, text=True)
            for pid in inside.stdout.split():
                with contextlib.suppress(OSError):
                    if pathlib.Path(f"/proc/{pid}/cmdline").read_bytes():
                        found.append(int(pid))
        return found

    def programs(self, ending, *numbers):
        found = []
        for pid in self.processes(*numbers):
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/exe").endswith(ending):
                    found.append(pid)
        return found

    def list(self, *numbers):
        return ",".join(f"{self.net}.{number}:1" for number in numbers)

    def wait_empty(self, *numbers, seconds=SOON):
        harness.wait_until(lambda: not self.processes(*numbers), "no process is left on the hosts", seconds)

    def execute(self, number, *command, seconds=harness.PATIENCE):
        return subprocess.run(["ip", "netns", "exec", self.names[number - 1], *[str(part) for part in command]],
                              stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=seconds, text=True)


@pytest.fixture
def hosts(tmp_path):
    hosts = Hosts(tmp_path)
    try:
        hosts.up()
        yield hosts
    finally:
        hosts.down()


class HostsCluster(test_mpi.MpiCluster):
    """mpirun.sh, run on the first host, over those numbered in `order`."""

    def __init__(self, hosts, model, folder, order=(1, 2, 3), launcher=(), program=(), client=()):
        """`client`: options of whoever calls the coordinator."""
        self.hosts, self.client_args = hosts, client
        super().__init__(model, folder, hosts.tmp, len(order), prefix=["ip", "netns", "exec", hosts.names[0]], program=program,
                         launcher=["-H", hosts.list(*order), "--interface", f"{hosts.net}.0/24", "--mca", "plm_rsh_agent",
                                   hosts.agent, *launcher])

    def call(self, command, address, *args, number=1):
        return self.hosts.execute(number, MILLRACE, command, "--server", address, *self.client_args, *args)

    def serving(self, number=1):
        """The address, once the cluster serves."""
        address = self.addresses()["listen"]
        status = self.call("status", address, "--wait", "60s", "--json", number=number)
        assert status.returncode == 0, status.stderr + self.script.tail(60)
        return address

    def ask(self, address):
        status = self.call("status", address, "--json")
        assert status.returncode == 0, status.stderr + self.script.tail(60)
        return json.loads(status.stdout)

    def wait_not_serving(self, address, seconds=20):
        harness.wait_until(lambda: self.ask(address)["server"]["state"] != "STATE_SERVING",
                           "the coordinator sees that a worker is gone", seconds, 0.2)

    def said(self, pattern):
        return [line for line in (self.script.err + self.script.out).splitlines()
                if re.search(pattern, line) and not line.startswith("+ ")]


@pytest.fixture
def start(hosts, real_model, logs):
    clusters = []

    def start(**kwargs):
        clusters.append(HostsCluster(hosts, real_model, logs, **kwargs))
        return clusters[-1]
    yield start
    for cluster in clusters:
        cluster.close()


def test_golden_tokens_by_tls_then_a_rank_is_killed_then_ctrl_c(start, hosts, real_model, golden):
    addresses = ",".join(f"IP:{address}" for address in ["127.0.0.1", *(f"{hosts.net}.{i}" for i in (1, 2, 3))])
    certificate = certificates.TestCa(hosts.tmp / "ca").issue("hosts", addresses)
    # The third host has no model: the coordinator sends it what its stage needs.
    (hosts.tmp / "empty").write_text("")
    hosts.prepare[3].write_text(f"mount --bind {hosts.tmp}/empty {real_model}")
    cluster = start(program=["--activations", "f32", "--push-model", "--model-cache", hosts.tmp / "cache", *certificate.flags()],
                    client=["--tls-ca", certificate.ca])
    address = cluster.serving()
    assert len(cluster.said(r"^preflight: 3 hosts are ready: version ")) == 1, cluster.script.err
    for rank, namespace in enumerate(hosts.names):
        inside = os.stat(f"/proc/{cluster.rank_pid(rank)}/ns/net").st_ino
        assert inside == os.stat(f"/run/netns/{namespace}").st_ino, f"rank {rank} is not on host {rank + 1}"
        tag = ["rank 0, coordinator", "rank 1, stage 0, worker [12]", "rank 2, stage 1, worker [12]"][rank]
        assert cluster.said(rf"\[{tag}\]"), f"no line says {tag}"
    stages = cluster.ask(address)["load"]["stages"]
    assert [re.search(r"[0-9.]+(?=:)", stage["worker"])[0] for stage in stages] == [f"{hosts.net}.2", f"{hosts.net}.3"]
    assert cluster.addresses()["cluster_listen"].startswith(f"{hosts.net}.1:"), "not the interface that was named"
    case = next(case for case in golden if case["name"] == "capital")
    ran = cluster.call("generate", address, "--json", "--max-tokens", len(case["greedy"]), "--temperature", 0, case["text"])
    assert ran.returncode == 0, ran.stderr
    ids = [i for line in ran.stdout.splitlines() for i in json.loads(line).get("tokens", {}).get("token_ids", [])]
    assert ids == case["greedy"][:len(ids)] and len(ids) >= len(case["greedy"]) - 1
    # A worker's rank dies: the coordinator lives, and says which.
    os.kill(cluster.rank_pid(2), signal.SIGKILL)
    cluster.wait_not_serving(address)
    assert cluster.said(r"\[rank 0, coordinator\] .*stage 1.*(lost|ended|gone)"), cluster.script.tail(20)
    ran = cluster.call("generate", address, "hello")
    assert ran.returncode == 1 and "UNAVAILABLE" in ran.stderr, ran.stderr
    assert cluster.script.running() and hosts.programs("millrace-mpi", 2), "the death of one rank ended another"
    cluster.script.send(signal.SIGINT)
    assert cluster.script.wait(30) == 0, cluster.script.tail(60)
    hosts.wait_empty()


@pytest.mark.parametrize("victim", ["mpirun", "rank 0", "the script"])
def test_nothing_is_left_when_it_is_killed(start, hosts, victim):
    cluster = start(launcher=["--no-preflight"])
    cluster.serving()
    pid = {"mpirun": lambda: hosts.programs(("orterun", "mpirun"), 1)[0], "rank 0": lambda: cluster.rank_pid(0),
           "the script": lambda: cluster.script.pid}[victim]()
    os.kill(pid, signal.SIGKILL)
    hosts.wait_empty()
    assert cluster.script.wait(5) != 0
    if victim == "rank 0":
        assert len(cluster.said("mpirun.sh: the coordinator died")) == 1


def test_a_daemon_is_killed(start, hosts):
    """Open MPI's daemon on a host: its rank ends with it. The coordinator and the other worker stay, and wait for another."""
    cluster = start(launcher=["--no-preflight"])
    address = cluster.serving()
    os.kill(hosts.programs("orted", 3)[0], signal.SIGKILL)
    hosts.wait_empty(3)
    cluster.wait_not_serving(address)
    assert cluster.said(r"\[rank 0, coordinator\] .*stage 1.*lost"), cluster.script.tail(20)
    assert cluster.script.running() and hosts.programs("millrace-mpi", 1) and hosts.programs("millrace-mpi", 2)
    cluster.script.send(signal.SIGTERM)
    assert cluster.script.wait(30) == 0, cluster.script.tail(60)
    hosts.wait_empty()


def test_a_link_is_cut(start, hosts):
    """Both sides notice by silence. mpirun notices nothing, so the coordinator and the other worker stay, and wait for another."""
    cluster = start(launcher=["--no-preflight"], program=["--worker-timeout", "2s", "--coordinator-timeout", "3s"])
    address = cluster.serving()
    run("ip", "-n", hosts.names[2], "link", "set", "eth0", "down")
    harness.wait_until(lambda: not hosts.programs("millrace-mpi", 3), "the rank that was cut off has ended", 3 + SOON, 0.1)
    cluster.wait_not_serving(address)
    status = cluster.ask(address)
    assert "stage 1" in json.dumps(status), status
    assert cluster.said(r"\[rank 0, coordinator\] .*stage 1.*silent"), cluster.script.tail(20)
    assert cluster.script.running() and hosts.programs("millrace-mpi", 1) and hosts.programs("millrace-mpi", 2)
    ran = cluster.call("generate", address, "hello")
    assert ran.returncode == 1 and "UNAVAILABLE" in ran.stderr
    run("ip", "-n", hosts.names[2], "link", "set", "eth0", "up")


def test_ctrl_c_drains_a_coordinator_on_another_host(start, hosts):
    """mpirun.sh runs on the first host, the coordinator on the second: a running request ends whole."""
    cluster = start(order=(2, 3), launcher=["--no-preflight"])
    address = cluster.serving(2)
    asked = subprocess.Popen(["ip", "netns", "exec", hosts.names[1], MILLRACE, "generate", "--server", address, "--json",
                              "--max-tokens", "100", "--ignore-eos", "--temperature", "0", "Once"], stdin=subprocess.DEVNULL,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        first = asked.stdout.readline()
        cluster.script.send(signal.SIGINT)
        out, err = asked.communicate(timeout=30)
    finally:
        asked.kill()
    assert asked.returncode == 0, err
    ids = [i for line in (first + out).splitlines() for i in json.loads(line).get("tokens", {}).get("token_ids", [])]
    assert len(ids) == 100
    assert cluster.script.wait(30) == 0, cluster.script.tail(60)
    assert f"on {hosts.net}.2" in cluster.script.err
    hosts.wait_empty()


def test_every_host_that_fails_the_preflight_is_named(start, hosts, real_model):
    """Another build, another model file, too little memory, a TLS key that is missing, a taken port and a host that is down: a line
    each, all at once, and nothing starts."""
    other = hosts.tmp / "millrace-mpi"
    shutil.copy(test_mpi.PROGRAM, other)
    with open(other, "ab") as file:
        file.write(b"another build")
    certificate = certificates.TestCa(hosts.tmp / "ca").issue("hosts", "IP:127.0.0.1")
    hosts.prepare[2].write_text(f"mount --bind {other} {test_mpi.PROGRAM}; mount --bind /dev/null {certificate.key}")
    changed = bytearray(pathlib.Path(real_model).read_bytes())
    changed[-1] ^= 1  # within the 4 KiB that are compared of the last tensor
    (hosts.tmp / "changed.gguf").write_bytes(changed)
    (hosts.tmp / "meminfo").write_text("MemTotal: 2048 kB\nMemAvailable: 1024 kB\n")
    hosts.prepare[3].write_text(f"mount --bind {hosts.tmp}/changed.gguf {real_model}; mount --bind {hosts.tmp}/meminfo /proc/meminfo")
    taken = subprocess.Popen(["ip", "netns", "exec", hosts.names[0], "python3", "-c",
                              "import socket, sys\ns = socket.create_server(('127.0.0.1', 0))\n"
                              "print(s.getsockname()[1], flush=True)\nsys.stdin.read()"],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        port = int(taken.stdout.readline())
        cluster = start(order=(1, 2, 3, 9), program=["--metrics", f"127.0.0.1:{port}", *certificate.flags()])
        assert cluster.script.wait(60) == 1, cluster.script.tail(60)
    finally:
        taken.kill()
        taken.communicate()
    lines = cluster.said("^preflight: ")
    assert len(lines) == 6, cluster.script.err
    net = hosts.net
    assert re.fullmatch(rf"preflight: {net}\.1: cannot listen on 127.0.0.1:{port}: Address already in use", lines[0])
    assert re.fullmatch(rf"preflight: {net}\.2: --tls-key {certificate.key}: holds no PEM private key.*", lines[1])
    assert re.fullmatch(rf"preflight: {net}\.2: millrace-mpi there is another build of .*, on {net}\.1 .*", lines[2])
    assert re.fullmatch(rf"preflight: {net}\.3: its stages need .* of memory, 1.0 MiB are free: .*", lines[3])
    assert re.fullmatch(rf"preflight: {net}\.3: the model file there is another .*, on {net}\.1 .*", lines[4])
    assert re.fullmatch(rf"preflight: {net}\.9: cannot be reached.*No route to host", lines[5])
    assert not cluster.status.exists() and not cluster.said("rank 0, coordinator"), "something was started"
    hosts.wait_empty()


def test_a_host_that_does_not_answer_the_preflight(start, hosts):
    """It is named after the time it had; a signal before that ends the check. No process is left of it on any host."""
    hosts.prepare[3].write_text("exec sleep 600")
    cluster = start(launcher=["--preflight-timeout", "3"])
    assert cluster.script.wait(30) == 1, cluster.script.tail(60)
    assert cluster.said("^preflight: ") == [line for line in cluster.said("^preflight: ") if f"{hosts.net}.3: no answer within " in line]
    hosts.wait_empty()
    cluster = start()
    harness.wait_until(lambda: hosts.programs("sleep", 3), "the check waits for the third host")
    cluster.script.send(signal.SIGTERM)
    assert cluster.script.wait(5) == 143, cluster.script.tail(60)
    hosts.wait_empty()
    cluster = start()
    harness.wait_until(lambda: hosts.programs("sleep", 3), "the check waits for the third host")
    cluster.script.send(signal.SIGKILL)
    cluster.script.wait(5)
    hosts.wait_empty()


@pytest.mark.parametrize("environment, args, line", [
    ({"SLURM_JOB_NODELIST": "n[01-03,7],m", "SLURM_TASKS_PER_NODE": "2(x2),1(x3)"}, [], "-np 7 -H n01:2,n02:2,n03:1,n7:1,m:1"),
    ({"SLURM_JOB_NODELIST": "r-[9-10]"}, ["-np", "4"], "-np 4 -H r-9:1,r-10:1"),
    ({"SLURM_JOB_NODELIST": "n[1-3]"}, ["-H", "a:2,b,a"], "-np 4 -H a:3,b:1"),
    ({}, ["-H", "a,b", "--interface", "eth1"], "-np 2 -H a:1,b:1 --mca oob_tcp_if_include eth1 --mca btl_tcp_if_include eth1"),
])
def test_where_hosts_come_from(environment, args, line):
    clean = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    done = subprocess.run([test_mpi.MPIRUN, "--dry-run", *args, "--", test_mpi.PROGRAM, "--model", "m"], env={**clean, **environment},
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30, text=True)
    assert done.returncode == 0, done.stdout
    assert line in done.stdout.replace("\\,", ",")


@pytest.mark.parametrize("text, line", [
    (b"# all\n\na\nb slots=2 # two\na\nc max_slots=4", "-np 5 -H a:2,b:2,c:1"),
    (b"a\r\n\r\nb slots=2\r\n", "-np 3 -H a:1,b:2"),
    (b"a slots = 2\n", "host a: '' is not a number of slots"),
])
def test_hostfiles(tmp_path, text, line):
    """Handed on as -H: mpirun itself refuses Windows' line ends, and takes cores for slots where none are said."""
    (tmp_path / "my hosts").write_bytes(text)
    done = subprocess.run([test_mpi.MPIRUN, "--dry-run", "--hostfile", tmp_path / "my hosts", "--", test_mpi.PROGRAM, "--model", "m"],
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30, text=True)
    assert line in done.stdout.replace("\\,", ","), done.stdout
    assert "--hostfile" not in done.stdout


@pytest.mark.parametrize("environment, args, said", [
    ({}, ["-H", "a;b"], "'a;b' is not a host name"),
    ({}, ["-H", "a:x"], "host a: 'x' is not a number of slots"),
    ({}, ["-H", "a", "--hostfile", "/dev/null"], "one of -H and --hostfile"),
    ({}, ["--hostfile", "/dev/null"], "no host is named"),
    ({}, ["--interface", "eth0;x"], "--interface"),
    ({"SLURM_JOB_NODELIST": "n[1-x]"}, [], "cannot read SLURM_JOB_NODELIST 'n[1-x]'"),
    ({"SLURM_JOB_NODELIST": "m,n[1-3,x]"}, [], "cannot read SLURM_JOB_NODELIST 'm,n[1-3,x]'"),
    ({"SLURM_JOB_NODELIST": "n[1-3]-ib"}, [], "cannot read SLURM_JOB_NODELIST 'n[1-3]-ib'"),
])
def test_hosts_that_cannot_be_read(environment, args, said):
    done = subprocess.run([test_mpi.MPIRUN, "--dry-run", *args, "--", test_mpi.PROGRAM, "--model", "m"],
                          env={**os.environ, **environment}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=30, text=True)
    assert done.returncode != 0 and said in done.stdout, done.stdout
