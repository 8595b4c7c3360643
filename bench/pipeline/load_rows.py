"""P2 and P7: requests that arrive by chance, and one shot of equal requests, on two stages."""
import statistics

from benchlib import gguf, measure, noise
from benchlib.cluster import Cluster
from benchlib.table import Row

PROMPTS, OUTPUTS = "32-1024", "16-256"
WORKLOAD = "528:136"  # the means, for the placement
MEAN_ROWS = (32 + 1024) / 2 + (16 + 256) / 2
ONE_SHOT_MICROBATCHES = 8
ONE_SHOT_ROWS = 16


def _overall_bubble(stages):
    idle, busy = sum(stage.idle for stage in stages), sum(stage.busy for stage in stages)
    return idle / (idle + busy) if idle + busy > 0 else 0.0


def _capacity(cluster, settings):
    """Requests a second that the cluster can do of this mix: rows a second while far more arrive, over rows a request."""
    report = cluster.load(mode="poisson", rate=20, prompt_tokens=PROMPTS, output_tokens=OUTPUTS, seed=7, warmup="2s",
                          window=settings.capacity_window)
    return _done(report["windows"])


def _done(windows):
    """Requests a second that rows done in these windows amount to."""
    rows = sum(measure.window_stages(window)[0].rows for window in windows)
    return rows / sum(window["seconds"] for window in windows) / MEAN_ROWS


def poisson_rows(model, settings):
    """P2: the medians are over windows of one run, as it takes a hundred requests."""
    with Cluster(model, 2, coordinator=["--context", 2048, "--max-queued", 4096, "--workload", WORKLOAD]) as cluster:
        capacity = _capacity(cluster, settings)
        rate = 1.5 * capacity
        seconds = max(settings.poisson_requests / rate, settings.poisson_windows * 2)
        watch = noise.Noise([process.pid for process in cluster.processes])
        report = cluster.load(mode="poisson", rate=f"{rate:.4f}", prompt_tokens=PROMPTS, output_tokens=OUTPUTS, seed=8,
                              warmup="2s", window=f"{seconds / settings.poisson_windows:.2f}s", windows=settings.poisson_windows)
        seen = noise.summary([watch.read()])
    per_window = [measure.window_stages(window) for window in report["windows"]]
    spread = measure.spread([_overall_bubble(stages) for stages in per_window])
    waits = [window["ttft_ms"]["p50"] for window in report["windows"] if window["ttft_ms"]["n"]]
    return [Row("P2", "Poisson arrivals at 1.5 x capacity, prompts 32-1024, outputs 16-256, placed for that (--workload): bubble", "<= 8 %", 0.08,
                measured=spread["median"], spread=spread, noise=seen,
                reference=f"{report['sent']} requests, {rate / _done(report['windows']):.1f} x what was done, "
                          f"{statistics.median(measure.throughput(w) for w in report['windows']):.0f} tokens/s",
                details={"causes": measure.causes(per_window[-1]), "preempted": measure.preempted(per_window[-1]), "sent": report["sent"], "refused": report["refused"],
                         "ttft_ms_p50": waits})]


def one_shot_rows(model, settings):
    """P7: each request is one microbatch, because a chunk is never cut below 16 rows. A round's fill and the drain of the
    one before lie in one window: how long a stage idled is known when it begins again. The layers are halved, which makes the
    stages equal for this load: the placement's own choice is for decoding, where the output matrix takes many rows."""
    rounds = settings.rounds + 1
    layers = gguf.num_layers(model)
    with Cluster(model, 2, coordinator=["--max-rows", ONE_SHOT_ROWS, "--layers", f"{layers - layers // 2},{layers // 2}"]) as cluster:
        watch = noise.Noise([process.pid for process in cluster.processes])
        report = cluster.load(mode="one-shot", sequences=ONE_SHOT_MICROBATCHES, prompt_tokens=ONE_SHOT_ROWS, output_tokens=1, seed=9,
                              windows=rounds + 1)
        seen = noise.summary([watch.read()])
    excess, counts = [], []
    for window in report["windows"][1:]:
        stages = measure.window_stages(window)
        microbatches = stages[0].microbatches
        counts.append(microbatches)
        excess.append(_overall_bubble(stages) - (len(stages) - 1) / (microbatches + len(stages) - 1))
    spread = measure.spread(excess)
    ideal = 1 / (statistics.median(counts) + 1)
    return [Row("P7", "one shot of equal microbatches: bubble minus (p-1)/(m+p-1)", "<= 2 points", 0.02,
                measured=spread["median"], spread=spread, noise=seen,
                reference=f"m = {statistics.median(counts):.0f}: {100 * ideal:.1f} %",
                details={"causes": measure.causes(stages), "preempted": measure.preempted(stages)})]
