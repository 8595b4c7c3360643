"""Workers whose shards are CUDA devices, executed on the CPU (tests/testing/cuda_on_cpu)."""
import re

import grpc
import pytest

import harness
from test_equivalence import SEEDED, assert_same

LIBRARY = harness.BIN.parent / "cuda_on_cpu" / "libmillrace_cuda.so"
NO_END = {"ignore_eos": True}
PROMPT = [(7919 * i) % 49000 + 100 for i in range(37)]
DEVICE_LOST = 3


def messages():
    make = harness.request
    return [make([17], 6, harness.GREEDY, NO_END, logprobs=4),
            make(PROMPT, 4, harness.GREEDY, NO_END, logprobs=4, prompt_logprobs=1),
            make(PROMPT[:18], 6, SEEDED, NO_END, logprobs=2)]


def devices(*ordinals):
    """Options of a worker with a shard on each of these devices."""
    return ["--backend", "cuda", "--tensor-parallel", len(ordinals), "--devices", ",".join(str(n) for n in ordinals),
            "--kv-memory", "8MiB", "--profile", "off"]


def environment(**faults):
    """`faults`: MILLRACE_CUDA_ON_CPU and MILLRACE_NCCL_ON_CPU without their beginning, as cuda and nccl."""
    return {"MILLRACE_CUDA_LIBRARY": str(LIBRARY), "MILLRACE_NCCL_ON_CPU": faults.get("nccl", ""),
            "MILLRACE_CUDA_ON_CPU": ",".join(["devices=2,memory=2G", *faults.get("cuda", [])])}


@pytest.fixture
def start_ring(random_model, start_cluster):
    """start_ring(options of each stage's worker, environment of each)"""
    def start(workers, envs=None, **kwargs):
        return start_cluster(random_model("q4_1", context=256), stages=len(workers), each_worker=workers, **kwargs,
                             coordinator=["--max-rows", 24, "--worker-timeout", "10s"],
                             each_env=envs or [environment()] * len(workers))
    return start


def test_rings_of_cuda_shards_give_the_bits_of_one_device(start_ring):
    expected = None
    for workers in ([devices(0)], [devices(0, 1), devices(0, 1)], [devices(1), devices(0, 0)]):
        cluster = start_ring(workers)
        bits = [answer.bits() for answer in cluster.client.generate_all(messages())]
        expected = expected or bits
        assert_same(bits, expected, f"{workers}")
        cluster.client.wait_idle()
        cluster.stop()


def test_a_ring_of_cuda_and_cpu_stages(start_ring):
    """Near what CPU stages give: both multiply the same integers, but keep queries and attention differently."""
    answers = []
    for workers in (["--profile", "off"], devices(0, 1)):
        cluster = start_ring([workers, ["--profile", "off"]])
        answers.append(cluster.client.generate(PROMPT, 1, harness.GREEDY, NO_END, logprobs=4))
        cluster.client.wait_idle()
        cluster.stop()
    cpu, mixed = ({token: logprob for token, logprob in answer.logprobs[0]} for answer in answers)
    for token in cpu.keys() & mixed.keys():
        assert abs(cpu[token] - mixed[token]) < 0.05
    assert cpu.keys() & mixed.keys()


# A sum that never ends, where aborting hangs too; a kernel that reads where nothing is. Both after the warm-up and the
# first request: a stage of one layer does two sums a microbatch.
@pytest.mark.parametrize("faults, says", [
    (dict(nccl="hang-work=1@40,hang-abort=0"), r"stage 1, microbatch \d+, shard \d.*not done after 10s"),
    (dict(cuda=["failkernel=Attention:80:700"]), r"stage 1, microbatch \d+, shard \d.*illegal"),
])
def test_a_worker_whose_device_is_lost_ends(start_ring, faults, says):
    workers = [[*devices(0, 1), "--watchdog", "10s"]] * 2
    cluster = start_ring(workers, [environment(), environment(**faults)], layers=[6, 1])
    expected = cluster.client.generate([17], 4, harness.GREEDY, NO_END, logprobs=2).bits()
    cluster.killed.add(cluster.workers[1])
    with harness.raises_status(grpc.StatusCode.UNAVAILABLE) as caught:
        while True:
            cluster.client.generate([5, 6], 40, harness.GREEDY, NO_END)
    assert "stage 1" in caught.error.details(), caught.error.details()
    assert cluster.workers[1].wait() == DEVICE_LOST
    lines = [line for line in cluster.workers[1].err.splitlines() if "exit code 3" in line]
    assert len(lines) == 1
    assert re.search(says, lines[0]), lines[0]
    cluster.workers[1] = cluster.start_worker(1, *workers[1], env=environment())
    cluster.wait_serving()
    assert cluster.client.generate([17], 4, harness.GREEDY, NO_END, logprobs=2).bits() == expected
    cluster.client.wait_idle()
    cluster.stop()
