"""Requests join and leave between steps, and nobody notices anybody else."""
import threading

import harness

NO_END = {"ignore_eos": True}


def test_a_short_request_overtakes_a_long_one(tiny):
    message = harness.request([11, 12, 13], 600, harness.GREEDY, NO_END, logprobs=1)
    expected = harness.collect(tiny.stream(message)).bits()
    long_call = tiny.stream(message)
    answer = harness.Answer()
    events = iter(long_call)
    seen = 0
    for event in events:
        if event.WhichOneof("event") == "started":
            answer.started = event.started
        else:
            answer.ids += event.tokens.token_ids
            answer.text += event.tokens.text
            answer.logprobs += [harness._entry(p) for p in event.tokens.logprobs]
        seen = len(answer.ids)
        if seen >= 3:
            break
    short = tiny.generate([21, 22], 5, harness.GREEDY, NO_END)
    assert len(short.ids) == 5
    # The long one is still there when the short one is done.
    assert tiny.load().running_requests == 1
    rest = harness.collect(events, answer)
    assert seen < 600
    assert rest.bits() == expected


def test_staggered_clients_each_get_what_they_would_get_alone(tiny):
    messages = [harness.request([50 + i, 60 + i] * (1 + 9 * i), 20 + 5 * i,
                                {"temperature": 0.9, "seed": i} if i % 2 else harness.GREEDY, NO_END, logprobs=1) for i in range(16)]
    expected = [harness.collect(tiny.stream(message)).bits() for message in messages]
    # Each starts when the one before it has its first token, so that they join and leave at different steps.
    answers, errors = [None] * 16, []
    may_start = [threading.Event() for _ in range(17)]
    may_start[0].set()

    def run(i):
        try:
            assert may_start[i].wait(60)

            def on_event(event):
                if event.WhichOneof("event") == "tokens":
                    may_start[i + 1].set()
            answers[i] = harness.collect(tiny.stream(messages[i]), on_event=on_event).bits()
        except Exception as error:  # reported by the main thread
            errors.append(error)
        finally:
            may_start[i + 1].set()
    threads = [threading.Thread(target=run, args=(i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert answers == expected


def test_many_requests_share_the_steps(tiny):
    """16 at once take far fewer microbatches than one after another would."""
    before = tiny.load()
    tiny.generate_all([harness.request([100 + i], 32, harness.GREEDY, NO_END) for i in range(16)])
    after = tiny.load()
    assert after.requests_finished_total - before.requests_finished_total == 16
    assert after.generated_tokens_total - before.generated_tokens_total == 16 * 32
    steps = after.stages[0].microbatches - before.stages[0].microbatches
    rows = after.stages[0].rows - before.stages[0].rows
    assert rows == 16 * 32, "each prompt token and each generated token but the last is one row"
    assert steps < rows / 2


def test_more_requests_than_may_run_wait_their_turn(random_model, start_cluster):
    cluster = start_cluster(random_model("f32"), coordinator=["--max-running", 2, "--max-queued", 64])
    message = harness.request([5, 6, 7], 40, harness.GREEDY, NO_END, logprobs=1)
    answers = cluster.client.generate_all([message] * 12)
    assert len({str(answer.bits()) for answer in answers}) == 1
    cluster.stop()


def test_a_full_queue_refuses_and_says_to_retry(random_model, start_cluster):
    cluster = start_cluster(random_model("f32"), coordinator=["--max-running", 1, "--max-queued", 1])
    client = cluster.client
    calls = []
    refused = None
    try:
        for _ in range(8):
            call = client.stream(harness.request([5], 4000, harness.GREEDY, NO_END))
            calls.append(call)
            try:
                assert next(call).WhichOneof("event") == "started"
            except harness.grpc.RpcError as error:
                refused = error
                break
        assert refused is not None, "eight requests were taken where one may run and one may wait"
        assert refused.code() == harness.grpc.StatusCode.RESOURCE_EXHAUSTED
        detail = harness.error_detail(refused)
        assert detail.retryable and detail.reason == "QUEUE_FULL"
        assert 100 <= detail.retry_after.ToMilliseconds() <= 60000
    finally:
        for call in calls:
            call.cancel()
    client.wait_idle()
    cluster.stop()


def test_kv_room_for_one_serves_many(random_model, start_cluster):
    """With KV room for little more than one request, the others wait or are put off; all end, all right."""
    cluster = start_cluster(random_model("f32", context=512), worker=["--kv-memory", "1MiB"])
    client = cluster.client
    load = client.load()
    assert load.kv_blocks_total * load.kv_block_tokens < 8 * 400, "too much room to test anything"
    messages = [harness.request([9 + i] * 150, 200, {"temperature": 0.8, "seed": i}, NO_END, logprobs=0) for i in range(8)]
    expected = [harness.collect(client.stream(message)).bits() for message in messages]
    assert [answer.bits() for answer in client.generate_all(messages)] == expected
    client.wait_idle()
    cluster.stop()
