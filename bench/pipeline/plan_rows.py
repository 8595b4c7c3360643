"""What `millrace plan` predicts of a real cluster, from what its workers measured when they joined, beside what it then does."""
from benchlib import measure, noise
from benchlib.cluster import BIN, Cluster, run_json
from benchlib.table import Row

SEQUENCES = 24
PROMPT_TOKENS = 64
CONTEXT_TOKENS = 512
OUTPUT_TOKENS = 250  # about as many as are watched


def _overall_bubble(window):
    stages = measure.window_stages(window)
    idle, busy = sum(stage.idle for stage in stages), sum(stage.busy for stage in stages)
    return idle / (idle + busy) if idle + busy > 0 else 0.0


def rows(model, settings):
    """The prediction comes first: nothing of the run it is compared with can be in it."""
    with Cluster(model, 2, coordinator=["--context", CONTEXT_TOKENS]) as cluster:
        plan = run_json([BIN / "millrace", "plan", "--server", cluster.address, "--model", model, "--batch", SEQUENCES, "--prompt",
                         PROMPT_TOKENS, "--context", CONTEXT_TOKENS, "--output", OUTPUT_TOKENS, "--json"], 60)
        predicted = plan["choices"][0]
        watch = noise.Noise([process.pid for process in cluster.processes])
        report = cluster.load(mode="steady", sequences=SEQUENCES, prompt_tokens=PROMPT_TOKENS,
                              output_tokens=CONTEXT_TOKENS - PROMPT_TOKENS - 1, warmup=settings.warmup, window=settings.window,
                              windows=settings.rounds)
        seen = noise.summary([watch.read()])
    rate = measure.spread([measure.throughput(window) for window in report["windows"]])
    bubble = measure.spread([_overall_bubble(window) for window in report["windows"]])
    promised = predicted["decode_tokens_per_second"]
    details = {"predicted": predicted, "measured_tokens_per_s": rate, "measured_bubble": bubble}
    return [Row("plan", f"predicted throughput of {SEQUENCES} sequences: off by", "<= 10 %", 0.10,
                measured=abs(promised / rate["median"] - 1), noise=seen, details=details,
                reference=f"predicted {promised:.0f}, measured {rate['median']:.0f} ({rate['low']:.0f} to {rate['high']:.0f}) tokens/s"),
            Row("plan", "predicted bubble: off by", "<= 2 points", 0.02, measured=abs(predicted["bubble"] - bubble["median"]),
                noise=seen, reference=f"predicted {100 * predicted['bubble']:.1f} %, measured {100 * bubble['median']:.1f} %")]
