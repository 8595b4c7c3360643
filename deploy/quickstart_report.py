#!/usr/bin/env python3
"""The two things deploy/quickstart.sh shows of an answer: its text as it comes, and a table of figures afterwards.

  millrace chat --json ... | quickstart_report.py stream FINISHED.json
  millrace status --json | quickstart_report.py table FINISHED.json
"""
import json
import sys
import time


def seconds(duration):
    """Seconds of a protobuf duration in JSON: "0.123s"."""
    return float((duration or "0s").rstrip("s"))


def stream(finished_path):
    """Writes text as it arrives, and the Finished event, with the client's own clock beside it, to a file."""
    began = time.monotonic()
    first = None
    for line in sys.stdin:
        if not line.strip():
            continue
        event = json.loads(line)
        if "tokens" in event:
            first = first or time.monotonic()
            sys.stdout.write(event["tokens"].get("text", ""))
            sys.stdout.flush()
        if "finished" in event:
            now = time.monotonic()
            with open(finished_path, "w", encoding="utf-8") as file:
                json.dump({"finished": event["finished"], "first": (first or now) - began, "last": now - began}, file)
    print(flush=True)


def size(count):
    return f"{int(count) / 2**20:.0f} MiB"


def table(finished_path):
    status = json.load(sys.stdin)
    with open(finished_path, encoding="utf-8") as file:
        answer = json.load(file)
    finished, usage = answer["finished"], answer["finished"]["usage"]
    timings = finished.get("timings", {})
    decode, prefill = seconds(timings.get("decode")), seconds(timings.get("prefill"))
    prompt, completion = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    rows = [("stage", "layers", "weights", "KV cache", "other memory", "busy", "computes with", "worker")]
    for stage in status["load"].get("stages", []):
        first, count = int(stage["first_layer"]), int(stage["num_layers"])
        rows.append((str(stage["stage"]), f"{first}-{first + count - 1} ({count})", size(stage["weight_bytes"]),
                     size(stage["kv_bytes"]), size(stage["activation_bytes"]), f"{float(stage['busy_share']) * 100:.0f} %",
                     stage["numeric_class"], stage["worker"]))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    rate = f"{(completion - 1) / decode:.1f} tokens/s" if decode > 0 and completion > 1 else "-"
    prefill_rate = f"{prompt / prefill:.0f} tokens/s" if prefill > 0 else "-"
    print(f"\n  prompt   {prompt} tokens in {prefill:.2f} s ({prefill_rate})")
    print(f"  answer   {completion} tokens, first after {answer['first']:.2f} s as the client saw it, then {rate}")
    print(f"  model    {status['model']['name']}: {status['model']['layers']} layers, "
          f"context {status['model']['context_tokens']}, {size(status['model']['weight_bytes'])} of weights")


if __name__ == "__main__":
    try:
        {"stream": stream, "table": table}[sys.argv[1]](sys.argv[2])
    except KeyboardInterrupt:
        sys.exit(130)
