"""P9: rings of many stages, each a process that waits its time instead of computing, with and without long links."""
from benchlib import measure, noise
from benchlib.cluster import Cluster
from benchlib.table import Row

ROWS = 4  # of a microbatch
RELAY_DELAY_MS = 10
# Time of a microbatch by number of stages: as many as this machine's cores can hand on in time.
STAGE_MS = {4: 5, 8: 10, 16: 20}


def _measure(model, stages, delay_ms, settings):
    """(bubble ratios of the ring by window, slots, noise)."""
    fixed = STAGE_MS[stages]
    coordinator = ["--max-running", 512, "--max-in-flight", 8 * stages]
    worker = ["--fixed", f"{fixed}ms", "--per-row", "0", "--kv-memory", "32MiB", "--unix-sockets", "off"]
    with Cluster(model, stages, coordinator, worker, "timed_worker", delay_ms) as cluster:
        slots = -(-stages * (fixed + delay_ms + 1) // fixed)
        sequences = ROWS * (slots + 1)
        watch = noise.Noise([process.pid for process in cluster.processes])
        report = cluster.load(mode="steady", sequences=sequences, prompt_tokens=16, output_tokens=2000, warmup=settings.timed_warmup,
                              window=settings.timed_window, windows=settings.rounds)
        seen = noise.summary([watch.read()])
    bubbles = []
    for window in report["windows"]:
        per_stage = measure.window_stages(window)
        idle, busy = sum(s.idle for s in per_stage), sum(s.busy for s in per_stage)
        bubbles.append(idle / (idle + busy) if idle + busy > 0 else 1.0)
    return bubbles, measure.slots(report["windows"][-1]["load_end"], stages), seen, measure.causes(per_stage)


def rows(model, settings):
    found = []
    for stages in settings.timed_stages:
        for delay_ms, limit in ((0, 0.03), (RELAY_DELAY_MS, 0.05)):
            bubbles, slots, seen, causes = _measure(model, stages, delay_ms, settings)
            spread = measure.spread(bubbles)
            what = f"{stages} stages that wait {STAGE_MS[stages]} ms, own processes, TCP: steady bubble"
            if delay_ms:
                what += f", {delay_ms} ms added to every hop"
            found.append(Row("P9", what, f"<= {100 * limit:.0f} %", limit, measured=spread["median"], spread=spread, noise=seen,
                             reference=f"{slots} slots", details={"causes": causes}))
    return found
