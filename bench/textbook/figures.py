"""The pictures of docs/textbook, from the data of claims.py."""
from benchlib import svg


def roofline(data, path):
    svg.bars(path, "What one core reaches of its two limits", {"prefill": [100 * x for x in data["prefill"]],
                                                              "decode, 1 sequence": [100 * x for x in data["decode"]]},
             ("of FLOP/s", "of read bandwidth"), "% of the peak measured in the same run")


def batching(data, path):
    svg.bars(path, "Skewed lengths, two stages", {"static": [data["static"][0]], "in-flight": [data["in-flight"][0]]},
             ("tokens/s",), "tokens/s")


def kv_cache(data, path):
    svg.lines(path, "The next token, with and without the KV cache", data, ("tokens before it", "ms"))


def batch_size(data, path):
    svg.lines(path, f"Throughput against sequences at a time (memory holds {data['room']})", {"tokens/s": data["curve"]},
              ("sequences", "tokens/s"), log_x=True)


def weights(data, path):
    widest = max(len(stages) for stages in data.values())
    groups = {f"{count} stage{'s' if int(count) > 1 else ''}": list(stages) + [None] * (widest - len(stages))
              for count, stages in data.items()}
    svg.bars(path, "Weights of each stage", groups, tuple(f"stage {i}" for i in range(widest)), "MiB")


def pipelining(data, path):
    panels = []
    for heading, key in (("one batch at a time", "naive"), ("microbatches in flight", "full")):
        tracks, length = data["lines"][key]
        note = f"{heading}: idle {100 * data['bubbles'][key]:.1f} %, {data['tokens_per_s'][key]:.0f} tokens/s"
        panels.append((note, tracks, length))
    svg.timelines(path, "Two stages, measured stamps; a colour is a microbatch, grey is idle", panels)


def characters(data, path):
    svg.bars(path, "Tokens and characters a second", data, ("tokens/s", "characters/s"), "a second")
