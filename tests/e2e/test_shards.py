"""Tensor-parallel shards: a ring of stages that are cut gives the bits of one that is not."""
import re
import signal

import grpc
import pytest

import harness
from test_equivalence import SEEDED, assert_same

LONG = [(7919 * i) % 49000 + 100 for i in range(150)]
NO_END = {"ignore_eos": True}


def messages():
    make = harness.request
    return [make([17], 16, harness.GREEDY, NO_END, logprobs=4),
            make(LONG, 12, harness.GREEDY, NO_END, logprobs=8, prompt_logprobs=2),
            make(LONG[:33], 16, SEEDED, NO_END, logprobs=2)]


def sharded(number):
    return ["--tensor-parallel", number]


@pytest.mark.parametrize("shape", ["f32", "q4_1"])
def test_stages_of_shards_give_the_bits_of_one_stage(shape, random_model, start_cluster):
    model = random_model(shape)
    expected = None
    for stages, shards in ((1, 1), (2, 2), (1, 2)):
        cluster = start_cluster(model, stages=stages, worker=sharded(shards), coordinator=["--max-rows", 64])
        bits = [answer.bits() for answer in cluster.client.generate_all(messages())]
        expected = expected or bits
        assert_same(bits, expected, f"{stages} stages of {shards} shards")
        cluster.client.wait_idle()
        cluster.stop()


def test_the_real_model_in_uneven_shards(real_model, start_cluster):
    """SmolLM2 has 3 KV heads: two shards have one and two of them."""
    expected = None
    for stages, shards in ((1, 1), (1, 2), (2, 3)):
        cluster = start_cluster(real_model, stages=stages, worker=sharded(shards))
        answers = cluster.client.generate_all([harness.request("Once upon a time", 12, harness.GREEDY, NO_END, logprobs=4)])
        bits = [answer.bits() for answer in answers]
        expected = expected or bits
        assert_same(bits, expected, f"{stages} stages of {shards} shards")
        for stage in cluster.client.load().stages:
            assert len(stage.shards) == shards
            assert sum(shard.kv_bytes for shard in stage.shards) == stage.kv_bytes
            assert sum(shard.weight_bytes for shard in stage.shards) == stage.weight_bytes
        if shards == 2:
            low, high = sorted(shard.kv_bytes for shard in cluster.client.load().stages[0].shards)
            assert high == 2 * low
            _, text, _ = harness.run_program("millrace", "status", "--server", cluster.address)
            assert re.search(r"^ +shard 1 ", text, re.MULTILINE), text
        cluster.client.wait_idle()
        cluster.stop()


def test_a_worker_of_shards_that_is_killed_is_lost_and_replaced(random_model, start_cluster):
    cluster = start_cluster(random_model("q4_1"), stages=2, worker=sharded(2), coordinator=["--worker-timeout", "2s"])
    call = cluster.client.stream(harness.request([5, 6], None, harness.GREEDY, NO_END))
    next(call)
    cluster.kill_worker(1, signal.SIGKILL)
    with harness.raises_status(grpc.StatusCode.UNAVAILABLE):
        for _ in call:
            pass
    cluster.workers[1] = cluster.start_worker(1)
    cluster.wait_serving()
    assert cluster.client.generate([5, 6], 4, harness.GREEDY, NO_END).ids
    cluster.client.wait_idle()
    cluster.stop()


def test_more_shards_than_the_model_has_parts(real_model, start_cluster):
    """Three KV heads cannot be cut into four."""
    cluster = start_cluster(real_model, stages=1, worker=sharded(4), wait=False)
    assert cluster.workers[0].wait() == 1
    lines = [line for line in cluster.workers[0].err.splitlines() if "shards" in line]
    assert len(lines) == 1 and "1 to 3 shards" in lines[0], cluster.workers[0].err
    cluster.kill()
