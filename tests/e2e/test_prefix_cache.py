"""Prompts that begin the same are computed once, and nothing but the time and the usage shows it."""
import pytest

import harness

BASE = [(7919 * i) % 49000 + 100 for i in range(200)]
NO_END = {"ignore_eos": True}
SEEDED = {"temperature": 0.9, "top_k": 50, "seed": 77}


def requests():
    make = harness.request
    return [
        make(BASE, 24, harness.GREEDY, NO_END, logprobs=4),
        make(BASE, 24, harness.GREEDY, NO_END, logprobs=4),
        make(BASE[:192], 24, SEEDED, NO_END, logprobs=2),
        make(BASE[:100] + BASE[:50], 24, harness.GREEDY, NO_END, logprobs=4),
        make(BASE, 24, harness.GREEDY, NO_END, logprobs=4, cache_salt="mine"),
        make(BASE, 24, harness.GREEDY, NO_END, logprobs=4, prompt_logprobs=1),
    ]


def cached(answer):
    return answer.finished.usage.cached_prompt_tokens


@pytest.mark.parametrize("block", [16, 48])
def test_hits_change_no_token(block, random_model, start_cluster):
    model = random_model("f32")
    off = start_cluster(model, coordinator=["--prefix-cache=false"])
    expected = [harness.collect(off.client.stream(message)) for message in requests()]
    assert [cached(answer) for answer in expected] == [0] * 6
    off.stop()

    cluster = start_cluster(model, coordinator=["--kv-block-tokens", block, "--max-rows", 64])
    client = cluster.client
    answers = [harness.collect(client.stream(message)) for message in requests()]
    assert [answer.bits() for answer in answers] == [answer.bits() for answer in expected]
    full = lambda tokens: tokens // block * block
    assert [cached(answer) for answer in answers] == [0, full(199), full(191), full(100), 0, 0]
    load = client.load()
    assert load.prefix_cache_queries_total == 200 + 200 + 192 + 150 + 200
    assert load.prefix_cache_hits_total == sum(cached(answer) for answer in answers)
    assert load.kv_blocks_used == 0 and load.kv_blocks_cached > 200 // block

    together = client.generate_all(requests() * 3)
    assert [answer.bits() for answer in together] == [answer.bits() for answer in expected] * 3
    assert cached(together[0]) == full(199)

    turn = BASE + list(answers[0].ids) + [9, 10, 11]
    again = client.generate(turn, 8, harness.GREEDY, NO_END)
    assert cached(again) == full(len(turn) - 4), "the answer is in the cache, too, but for its last token"
    client.wait_idle()
    cluster.stop()


def test_a_new_epoch_begins_with_an_empty_cache(random_model, start_cluster):
    cluster = start_cluster(random_model("f32"))
    client = cluster.client
    expected = client.generate(BASE, 8, harness.GREEDY, NO_END)
    cluster.kill_worker(1)
    harness.wait_until(lambda: not client.serving(), "the coordinator notices the loss")
    cluster.workers[1] = cluster.start_worker(1)
    cluster.wait_serving()
    again = client.generate(BASE, 8, harness.GREEDY, NO_END)
    assert again.bits() == expected.bits() and cached(again) == 0
    assert cached(client.generate(BASE, 8, harness.GREEDY, NO_END)) == 192
    cluster.stop()


def test_the_client_tells_cached_tokens(tiny_cluster):
    prompt = "once upon a time " * 20
    args = ["generate", "--server", tiny_cluster.address, "--max-tokens", 4, "--temperature", 0]
    for salt, hit in (("a", False), ("a", True), ("b", False)):
        code, out, err = harness.run_program("millrace", *args, "--cache-salt", salt, "--priority", -5, prompt)
        assert code == 0, err
        assert ("(0 cached)" not in err) == hit, err


@pytest.mark.parametrize("block", ["0", "17", "24", "2048"])
def test_odd_block_sizes_are_refused(block, random_model):
    code, _, err = harness.run_program("millrace-coordinator", "--model", random_model("f32"), "--kv-block-tokens", block)
    assert code == 2
    assert "--kv-block-tokens" in err and len(err.strip().splitlines()) == 1
