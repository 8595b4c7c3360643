"""A request gives the same tokens and log probabilities, bit for bit, however many stages, neighbours and rows a step has."""
import pytest

import harness

# For a model of N layers: (stages, layers of each, rows of a microbatch). The first is what the others are compared with.
LAYOUTS = {
    5: [(1, None, 128), (2, (4, 1), 64), (3, (1, 3, 1), 16), (5, None, 128)],
    6: [(1, None, 64), (2, (1, 5), 128), (3, None, 16), (5, (1, 1, 2, 1, 1), 64)],
    7: [(1, None, 16), (2, (3, 4), 128), (3, (5, 1, 1), 64), (5, (1, 2, 1, 2, 1), 16)],
}
LAYERS = {"f32": 5, "f16": 5, "q8_0": 6, "q4_1": 7}

LONG = [(7919 * i) % 49000 + 100 for i in range(301)]
MIDDLE = [(104729 * i) % 49000 + 100 for i in range(77)]
SEEDED = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 1234}


def requests():
    """The requests under test: greedy and seeded, shorter and longer than a microbatch and than a block."""
    make = harness.request
    no_end = {"ignore_eos": True}
    return [
        make([17], 24, harness.GREEDY, no_end, logprobs=8),
        make(MIDDLE, 24, harness.GREEDY, no_end, logprobs=4, prompt_logprobs=3),
        make(LONG, 12, harness.GREEDY, no_end, logprobs=32, prompt_logprobs=0),
        make(MIDDLE[:33], 32, SEEDED, no_end, logprobs=2),
        make(LONG[:255], 16, {"temperature": 1.3, "min_p": 0.01, "seed": 2**64 - 1}, no_end, logprobs=0),
        make("Once upon a time,", 24, {"temperature": 0.7, "seed": 5, "repetition_penalty": 1.3, "presence_penalty": 0.5,
                                       "frequency_penalty": 0.25, "logit_bias": {300: 2.5, 301: -100.0}}, no_end, logprobs=5),
    ]


def neighbours():
    """16 others of all sorts, none of which is under test."""
    return [harness.request([(31 * i + 7 * j) % 49000 + 50 for j in range(1 + 23 * i % 190)], 8 + 3 * i % 40,
                            {"temperature": 0.8 if i % 2 else 0.0, "seed": i}, {"ignore_eos": True}) for i in range(16)]


@pytest.mark.parametrize("shape", sorted(LAYERS))
def test_same_bits_in_every_layout_alone_and_among_others(shape, random_model, start_cluster):
    model = random_model(shape)
    expected = None
    for stages, layers, rows in LAYOUTS[LAYERS[shape]]:
        cluster = start_cluster(model, stages=stages, layers=layers, coordinator=["--max-rows", rows])
        if layers:
            assert [stage.num_layers for stage in cluster.client.load().stages] == list(layers)
        where = f"{shape}, {stages} stages {layers or ''}, {rows} rows"
        alone = [harness.collect(cluster.client.stream(message)).bits() for message in requests()]
        if expected is None:
            expected = alone
            assert all(len(set(map(str, bits[2]))) > 1 for bits in expected), "the answers are trivial"
        assert_same(alone, expected, where + ", alone")
        crowd = neighbours()
        mixed = [message for group in zip(requests(), crowd) for message in group] + crowd[len(requests()):]
        answers = cluster.client.generate_all(mixed)
        assert_same([answer.bits() for answer in answers[:2 * len(requests()):2]], expected, where + ", among 16 others")
        cluster.client.wait_idle()
        cluster.stop()


def assert_same(actual, expected, where):
    for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        for what, a, b in zip(("ids", "text", "logprobs", "prompt logprobs", "reason"), ours, theirs):
            assert a == b, f"{where}: request {index} has other {what}"


def instruction_sets():
    """What --isa of a worker takes on this machine, the slowest first."""
    with open("/proc/cpuinfo", encoding="ascii") as info:
        flags = set(next((line for line in info if line.startswith("flags")), "").split())
    avx2 = {"avx2", "fma", "f16c"}
    avx512 = avx2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}
    needs = {"portable": set(), "avx2": avx2, "avx512": avx512, "avx512vnni": avx512 | {"avx512_vnni"}}
    return [isa for isa, needed in needs.items() if needed <= flags]


def test_same_bits_whatever_machines_a_ring_is_made_of(random_model, start_cluster):
    """On the default path: workers of all instruction sets, with threads and shards of their own, in one ring."""
    model = random_model("q4_1")
    sets = instruction_sets()
    shares = [(), ("--threads", 2), ("--tensor-parallel", 2), ("--threads", 2, "--tensor-parallel", 2)]
    mixed = [("--isa", sets[i % len(sets)], *shares[i]) for i in range(4)]
    expected = None
    for each in ([("--isa", "portable", "--threads", 1)], mixed, [mixed[2], mixed[1]]):
        cluster = start_cluster(model, stages=len(each), each_worker=each)
        bits = [answer.bits() for answer in cluster.client.generate_all(requests())]
        expected = expected or bits
        assert_same(bits, expected, f"workers with {each}")
        cluster.client.wait_idle()
        cluster.stop()


def test_the_real_model_too(real_model, golden, start_cluster):
    cases = [case for case in golden if case["name"] in ("story", "german", "chat_system")]
    messages = [harness.request(case["ids"], 16, sampling, logprobs=4)
                for case in cases for sampling in (harness.GREEDY, SEEDED)]
    expected = None
    for stages, layers, rows in ((1, None, 128), (3, (11, 10, 9), 16), (5, (2, 9, 1, 10, 8), 64)):
        cluster = start_cluster(real_model, stages=stages, layers=layers, coordinator=["--max-rows", rows])
        bits = [answer.bits() for answer in cluster.client.generate_all(messages)]
        expected = expected or bits
        assert_same(bits, expected, f"{stages} stages, {rows} rows")
        cluster.stop()


def test_other_seeds_and_other_prompts_give_other_tokens(tiny):
    """The comparison above would be worth nothing if everything gave the same tokens."""
    answers = {tuple(tiny.generate(MIDDLE[:9], 16, {"temperature": 1.0, "seed": seed}, {"ignore_eos": True}).ids)
               for seed in range(4)}
    answers |= {tuple(tiny.generate([token], 16, harness.GREEDY, {"ignore_eos": True}).ids) for token in (5, 600)}
    assert len(answers) == 6


def test_the_seed_that_the_server_drew_gives_the_same_again(tiny):
    first = tiny.generate(MIDDLE, 16, {"temperature": 1.0}, {"ignore_eos": True})
    again = tiny.generate(MIDDLE, 16, {"temperature": 1.0, "seed": first.started.seed}, {"ignore_eos": True})
    assert again.ids == first.ids
    other = tiny.generate(MIDDLE, 16, {"temperature": 1.0}, {"ignore_eos": True})
    assert other.started.seed != first.started.seed
