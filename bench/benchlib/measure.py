"""From the load generator's windows to the figures of a row."""
import statistics


def seconds(value):
    """A protobuf Duration in JSON ("1.5s"), or a number of seconds."""
    if value is None:
        return 0.0
    if isinstance(value, str) and value.endswith("s"):
        return float(value[:-1])
    return float(value)


def spread(values):
    """{median, low, high, n}: the quartiles of what was measured."""
    values = sorted(values)
    if not values:
        return None
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": statistics.median(values), "low": quartiles[0], "high": quartiles[2], "n": len(values)}


def throughput(window):
    return window["tokens"] / window["seconds"]


class StageWindow:
    """What one stage did between two answers of GetLoad: differences of totals, in seconds."""

    def __init__(self, begin, end, active):
        def difference(name):
            return seconds(end.get(name)) - seconds(begin.get(name))
        self.stage = end["stage"]
        self.busy = difference("busy")
        self.microbatches = int(end["microbatches"]) - int(begin["microbatches"])
        self.rows = int(end["rows"]) - int(begin["rows"])
        self.preempted = difference("preempted") if "preempted" in end else None
        first, last = begin.get("idle") or {}, end.get("idle") or {}
        self.causes = {name: seconds(last[name]) - seconds(first.get(name)) for name in last if name != "no_work"}
        # Where the server gives no account of causes: all of the time with something in flight that it did not compute.
        self.idle = sum(self.causes.values()) if self.causes else max(0.0, active - self.busy)

    @property
    def bubble(self):
        """Idle while work existed, as a share of that and of the time spent computing."""
        return self.idle / (self.idle + self.busy) if self.idle + self.busy > 0 else 0.0


def stages(begin, end):
    """The StageWindows between two answers of GetLoad (of load_generator), by stage."""
    active = seconds(end["active"]) - seconds(begin["active"])
    first = {stage["stage"]: stage for stage in begin["stages"]}
    return [StageWindow(first[stage["stage"]], stage, active) for stage in sorted(end["stages"], key=lambda s: s["stage"])]


def window_stages(window):
    return stages(window["load_begin"], window["load_end"])


def bottleneck(stage_windows):
    return max(stage_windows, key=lambda stage: stage.busy)


def rows_per_microbatch(stage_windows):
    microbatches = sum(stage.microbatches for stage in stage_windows)
    return sum(stage.rows for stage in stage_windows) / microbatches if microbatches else 0.0


def causes(stage_windows):
    """Share of each cause in idle + busy time, over all stages."""
    total = sum(stage.idle + stage.busy for stage in stage_windows)
    out = {}
    for stage in stage_windows:
        for name, value in stage.causes.items():
            out[name] = out.get(name, 0.0) + (value / total if total > 0 else 0.0)
    return out


def preempted(stage_windows):
    """Share of the time spent computing during which the compute threads had no core; None where the server does not say."""
    if any(stage.preempted is None for stage in stage_windows):
        return None
    busy = sum(stage.busy for stage in stage_windows)
    return sum(stage.preempted for stage in stage_windows) / busy if busy > 0 else 0.0


def slots(load, stages_count):
    """Microbatch slots that the scheduler uses; stages + 1 where it does not say."""
    return int(load.get("slots") or 0) or stages_count + 1
