"""TLS on the clients' port and between the processes: who gets in, what those who do not are told, and files that change."""
import concurrent.futures
import re
import shutil
import threading

import grpc
import pytest

import certificates
import harness

MESSAGE = dict(prompt=[11, 12, 13], max_tokens=24, sampling=harness.GREEDY, stop={"ignore_eos": True})


@pytest.fixture(scope="module")
def ca(tmp_path_factory):
    return certificates.TestCa(tmp_path_factory.mktemp("pki") / "one")


@pytest.fixture(scope="module")
def other_ca(tmp_path_factory):
    return certificates.TestCa(tmp_path_factory.mktemp("pki") / "other", "other CA")


@pytest.fixture(scope="module")
def node(ca):
    return ca.issue("node")


@pytest.fixture(scope="module")
def cluster(random_model, logs, node):
    # Hops by TCP; without a join secret they would be in any case.
    with harness.Cluster(random_model("f32"), logs, stages=2, tls=node) as it:
        yield it


def run_all(commands):
    """Runs (program, arguments...) at the same time: a list of (exit code, stdout, stderr)."""
    with concurrent.futures.ThreadPoolExecutor(len(commands)) as pool:
        return list(pool.map(lambda command: harness.run_program(*command), commands))


def last_line(text):
    return text.strip().splitlines()[-1] if text.strip() else ""


def test_golden_tokens_by_two_workers(real_model, golden, logs, node):
    case = min(golden, key=lambda case: len(case["ids"]))
    with harness.Cluster(real_model, logs, stages=2, tls=node, coordinator=["--activations", "f32"]) as cluster:
        answer = cluster.client.generate(case["ids"], 12, sampling=harness.GREEDY)
        assert answer.ids == case["greedy"][:12]
        assert [stage.hop for stage in cluster.client.load().stages] == ["tcp", "tcp"]


def test_who_gets_in_at_the_port_of_clients(cluster, ca, other_ca, node):
    address = cluster.address
    cases = [
        (["--tls-ca", ca.cert], None),
        (["--tls-ca", ca.cert, "--tls-name", "localhost"], None),
        (node.flags(), None),
        ([], f"millrace: UNAVAILABLE: {address} speaks TLS: give --tls-ca"),
        (["--tls-ca", other_ca.cert], f"millrace: UNAVAILABLE: the certificate of {address} was not signed by --tls-ca"),
        (["--tls-ca", ca.cert, "--tls-name", "elsewhere"],
         f"the certificate of {address} is for 127.0.0.1, localhost, not for --tls-name elsewhere"),
    ]
    results = run_all([("millrace", "health", "--server", address, *flags) for flags, _ in cases])
    for (flags, message), (code, out, err) in zip(cases, results):
        if message is None:
            assert (code, out, err) == (0, "SERVING\n", ""), flags
        else:
            assert code == 1 and message in err and err.count("\n") == 1, (flags, err)


def test_clients_may_have_to_show_a_certificate(random_model, logs, ca, other_ca, node):
    process = harness.Process("strict", [harness.BIN / "millrace-coordinator", "--model", random_model("f32"), "--listen",
                                         "127.0.0.1:0", "--cluster-listen", "127.0.0.1:0", "--tls-clients", "require",
                                         *node.flags()], logs)
    try:
        address = process.address()
        stranger = other_ca.issue("stranger")
        cases = [
            (node.flags(), "NOT_SERVING"),  # it has no workers, which it says to who may ask
            (["--tls-ca", ca.cert], f"{address} asks for a certificate: give --tls-cert and --tls-key"),
            (stranger.flags(ca=ca.cert), f"{address} does not accept --tls-cert {stranger.cert}"),
            ([], f"{address} speaks TLS: give --tls-ca"),
        ]
        results = run_all([("millrace", "health", "--server", address, *flags) for flags, _ in cases])
        for (flags, message), (code, out, err) in zip(cases, results):
            assert code == 1 and message in out + err and (out + err).count("\n") == 1, (flags, out, err)
        for line in ("a peer without a certificate was refused", "a peer's certificate was refused",
                     "a peer without TLS came to a port that speaks TLS"):
            assert line in process.err, process.tail()
        assert process.stop() == 0
    finally:
        process.close()


def test_who_gets_in_at_the_port_of_the_cluster(cluster, ca, other_ca):
    address = cluster.join_address
    stranger = other_ca.issue("worker")
    cases = [
        ([], f"{address} speaks TLS: give --tls-ca (and --tls-cert and --tls-key"),
        (stranger.flags(ca=ca.cert), f"{address} does not accept --tls-cert"),
        (stranger.flags(), f"the certificate of {address} was not signed by --tls-ca"),
        (ca.issue("named").flags("--tls-name", "millrace"), "not for --tls-name millrace"),
    ]
    commands = [("millrace-worker", "--coordinator", address, "--join-timeout", "1s", *flags) for flags, _ in cases]
    # A client's credentials do not do for a worker's port.
    commands.append(("millrace", "health", "--server", address, "--tls-ca", ca.cert))
    results = run_all(commands)
    for (flags, message), (code, _, err) in zip(cases, results):
        assert code == 1 and message in last_line(err), (flags, err)
        assert f"cannot join yet: {last_line(err).split('error: ')[1]}" in err, "it is said at once, too"
    assert "asks for a certificate" in results[-1][2]
    assert cluster.client.serving()


def test_a_worker_with_tls_at_a_coordinator_without(tiny_cluster, node):
    address = tiny_cluster.address
    code, _, err = harness.run_program("millrace-worker", "--coordinator", address, "--join-timeout", "1s", *node.flags())
    assert code == 1 and f"{address} does not speak TLS: leave out the --tls flags here" in last_line(err), err
    code, _, err = harness.run_program("millrace", "health", "--server", address, "--tls-ca", node.ca)
    assert code == 1 and f"{address} does not speak TLS" in err


def test_wrong_files_and_flags_end_the_start(ca, node, random_model, tmp_path):
    expired, other = ca.expired(), ca.issue("another")
    none = tmp_path / "none.pem"
    base = ["millrace-coordinator", "--model", random_model("f32"), "--listen", "127.0.0.1:0", "--cluster-listen", "127.0.0.1:0"]
    worker = ["millrace-worker", "--coordinator", "127.0.0.1:1"]
    mismatch = certificates.Certificate(node.cert, other.key, node.ca)
    cases = [
        (base + node.flags(ca=none), f"--tls-ca {none}: cannot be read: No such file or directory"),
        (base + mismatch.flags(), f"--tls-key {other.key}: does not match the certificate in --tls-cert {node.cert}"),
        (base + expired.flags(), f"--tls-cert {expired.cert}: the certificate expired on 2020-01-02 00:00:00 UTC"),
        (worker + expired.flags(), "the certificate expired on 2020-01-02"),
        (base + ["--tls-cert", node.cert, "--tls-key", node.key], "--tls-cert and --tls-key without --tls-ca"),
        (worker + ["--tls-ca", ca.cert], "--tls-ca without --tls-cert and --tls-key: TLS takes all three files"),
        (base[:5] + node.flags(), "--tls-cert needs --cluster-listen HOST:PORT"),
        (base[:3] + ["--listen", "127.0.0.1:7", "--cluster-listen", "127.0.0.1:7"] + node.flags(),
         "--cluster-listen: 127.0.0.1:7 is --listen too"),
        (["millrace", "status", "--tls-cert", node.cert, "--tls-key", node.key], "--tls-cert and --tls-key without --tls-ca"),
        (["millrace", "status", "--tls-ca", none], f"--tls-ca {none}: cannot be read"),
    ]
    for (command, message), (code, _, err) in zip(cases, run_all([command for command, _ in cases])):
        assert code == 2 and message in err and err.count("\n") == 1, (command, code, err)


class Load:
    """Requests one after another, each on a connection of its own, from several threads."""

    def __init__(self, address, roots, threads=3):
        self.address, self.roots = address, roots
        self.done, self.errors, self.stop = 0, [], False
        self.threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def _run(self):
        while not self.stop:
            client = harness.Client(self.address, self.roots)
            try:
                client.generate(**MESSAGE)
                self.done += 1
            except (grpc.RpcError, AssertionError) as error:
                self.errors.append(error)
            finally:
                client.close()

    def wait_for_more(self, count=6):
        before = self.done
        harness.wait_until(lambda: self.errors or self.done >= before + count, f"{count} more requests are done")
        assert not self.errors, self.errors[:3]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, kind, error, trace):
        self.stop = True
        for thread in self.threads:
            thread.join()


def test_certificates_and_ca_change_under_load(random_model, logs, tmp_path, ca, other_ca):
    """From one CA to another, as it is done: trust both, replace the certificates, trust the new one alone."""
    folder = tmp_path / "live"
    folder.mkdir()
    first, second = ca.issue("first"), other_ca.issue("second")
    both = tmp_path / "both.pem"
    both.write_bytes(ca.cert.read_bytes() + other_ca.cert.read_bytes())
    live = certificates.Certificate(folder / "node.pem", folder / "node.key", folder / "ca.pem")
    for source, target in ((first.cert, live.cert), (first.key, live.key), (ca.cert, live.ca)):
        shutil.copy(source, target)
    with harness.Cluster(random_model("f32"), logs, stages=2, tls=live) as cluster:
        processes = [cluster.coordinator, *cluster.workers]

        def taken(times):
            def check():
                return all(p.err.count("files have changed; new connections use them") >= times for p in processes)
            harness.wait_until(check, f"every process has taken {times} changes")

        with Load(cluster.address, both) as load:
            load.wait_for_more()
            certificates.replace_file(both, live.ca)
            taken(1)
            load.wait_for_more()
            certificates.replace(live, second)
            taken(2)
            load.wait_for_more()
            certificates.replace_file(other_ca.cert, live.ca)
            taken(3)
            load.wait_for_more()
        assert not load.errors, load.errors[:3]
        # The new ones are really in use: for clients, and for a worker that joins anew.
        def shows_the_new_one():
            return harness.run_program("millrace", "health", "--server", cluster.address, "--tls-ca", other_ca.cert)[0] == 0
        harness.wait_until(shows_the_new_one, "the port of clients shows the new certificate")
        code, _, err = harness.run_program("millrace", "health", "--server", cluster.address, "--tls-ca", ca.cert)
        assert code == 1 and "was not signed by --tls-ca" in err
        cluster.kill_worker(0).wait()
        cluster.workers[0] = cluster.start_worker(0)
        cluster.client.close()
        cluster.client = harness.Client(cluster.address, other_ca.cert)
        cluster.wait_serving()
        assert len(cluster.client.generate(**MESSAGE).ids) == MESSAGE["max_tokens"]
        # What is wrong is not taken.
        live.key.write_text("not a key")
        harness.wait_until(lambda: re.search(r"stays in use: --tls-key \S+: holds no PEM private key", cluster.coordinator.err),
                           "the coordinator says what is wrong with the new file")
        assert len(harness.Client(cluster.address, other_ca.cert).generate(**MESSAGE).ids) == MESSAGE["max_tokens"]
