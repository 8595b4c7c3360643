"""C1, C3 and S1: what other benchmark programs measure, as rows."""
import json
import pathlib
import subprocess
import tempfile

from benchlib import measure, noise
from benchlib.cluster import BIN, BenchError
from benchlib.table import Row

# Row, key in the report of transport_bench, what it is, target.
TRANSPORT = (
    ("C1", "echo_16k_tcp", "hop round trip, 16 KiB, blocking, TCP, echoed in the gRPC thread / plain TCP", 1.6),
    ("C1", "echo_16k_by_queue_tcp", "the same, handed over to another thread and back", None),
    ("C1", "echo_16k_unix", "the same as the first over Unix sockets", None),
    ("C3", "one_way_1m_tcp", "1 MiB one way, TCP / plain TCP", 0.75),
    ("C3", "one_way_4m_tcp", "4 MiB one way, TCP / plain TCP", 0.75),
)


def run_to_file(name, *flags):
    """Runs a program that writes its figures to --json FILE, and returns them."""
    if not (BIN / name).exists():
        raise BenchError(f"{name} is not built")
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder:
        path = pathlib.Path(folder) / "out.json"
        done = subprocess.run([BIN / name, *[str(flag) for flag in flags], "--json", path], stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=600)
        if done.returncode != 0:
            raise BenchError(f"{name}: exit code {done.returncode}: {done.stderr.decode(errors='replace').strip()[-300:]}")
        return json.loads(path.read_text())


def transport_rows(settings):
    """C1: round trips of 16 KiB; C3: 1 and 4 MiB one way; each beside a plain socket in the same round."""
    watch = noise.Noise([])
    report = run_to_file("transport_bench", *settings.transport_flags)["rows"]
    seen = noise.summary([watch.read()])
    found = []

    for name, key, what, limit in TRANSPORT:
        row = report[key]
        spread = measure.spread([hop / plain for hop, plain in zip(row["hop_rounds"], row["plain_rounds"])])
        at_most = row["lower_is_better"]
        target = "-" if limit is None else f"{'<=' if at_most else '>='} {limit}"
        found.append(Row(name, what, target, limit, at_most=at_most, measured=spread["median"], unit="", spread=spread, noise=seen,
                         reference=f"{row['hop']:.2f} / {row['plain']:.2f} {row['unit']}", details=row))
    return found


def scheduler_rows():
    """S1: what a step of the scheduler costs, and that it grows no faster than the sequences that run."""
    watch = noise.Noise([])
    report = run_to_file("scheduler_bench")["rows"]
    seen = noise.summary([watch.read()])
    steps = {(row["running"], row["queued"]): row["median_us"] / 1000 for row in report}
    growth = steps[256, 2000] / steps[128, 2000]
    waiting = steps[256, 2000] / steps[256, 500]
    reference = f"{growth:.1f} x that of 128 running, {waiting:.1f} x that of 500 queued"
    return [Row("S1", "a step of the scheduler with 256 sequences running and 2,000 queued", "<= 0.2 ms", 0.2,
                measured=steps[256, 2000], unit="ms", noise=seen, reference=reference, details={"rows": report}),
            Row("S1", "linear: what doubling 128 running sequences multiplies a step by, over 2", "<= 1.1", 1.1, measured=growth / 2,
                unit="", noise=seen)]
