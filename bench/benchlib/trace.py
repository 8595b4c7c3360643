"""The stages in time, from `millrace trace`: when each computed, by the stages' own stamps."""
import json
import pathlib
import subprocess
import tempfile

from benchlib.cluster import BIN, BenchError

SECONDS = 3  # recorded; the picture shows a part
SHOWN_MICROBATCHES = 9


def read(path):
    """{track: [(begin ms, end ms, label, microbatch)]} of the stages in a file of `millrace trace`."""
    events = json.loads(pathlib.Path(path).read_text())["traceEvents"]
    names = {event["tid"]: event["args"]["name"].split(":")[0] for event in events
             if event["ph"] == "M" and event["name"] == "thread_name"}
    tracks = {name: [] for tid, name in sorted(names.items()) if name.startswith("stage")}
    for event in events:
        if event["ph"] == "X" and event.get("cat") == "busy":
            begin = event["ts"] / 1e3
            tracks[names[event["tid"]]].append((begin, begin + event["dur"] / 1e3, event["name"], event["args"]["microbatch"]))
    return tracks


def cut(tracks, shown=SHOWN_MICROBATCHES):
    """A part in the middle, about `shown` microbatches of the first stage long, from time 0: (tracks, length ms)."""
    first = next(iter(tracks.values()), [])
    if len(first) < 3:
        raise BenchError(f"the trace has {len(first)} microbatches")
    middle = max(0, len(first) // 2 - shown // 2)
    begin, end = first[middle][0], first[min(middle + shown, len(first) - 1)][0]
    inside = {name: [(max(b, begin) - begin, min(e, end) - begin, label, microbatch)
                     for b, e, label, microbatch in slices if e > begin and b < end] for name, slices in tracks.items()}
    return inside, end - begin


def record(cluster, **load):
    """Traces a cluster under a load of its own (flags of load_generator): as cut."""
    with tempfile.TemporaryDirectory(prefix="millrace-bench-") as folder, cluster.under_load(**load):
        path = pathlib.Path(folder) / "trace.json"
        done = subprocess.run([BIN / "millrace", "trace", "--server", cluster.address, "--seconds", str(SECONDS), "-o", path],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=SECONDS + 30)
        if done.returncode != 0:
            raise BenchError(f"millrace trace: {done.stderr.decode(errors='replace').strip()[:200]}")
        return cut(read(path))
