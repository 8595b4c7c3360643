"""What else the machine did: stolen time, foreign processes, load, and what a core can do now."""
import os
import pathlib
import statistics
import time

from benchlib.cluster import BIN, run_json

TICKS = os.sysconf("SC_CLK_TCK")


def machine():
    """What the numbers were taken on."""
    model = "unknown"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return {"cpu": model, "cores": len(os.sched_getaffinity(0)), "kernel": os.uname().release,
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)}


def cpu_ticks():
    """(busy, stolen, all) ticks of the machine so far."""
    fields = [int(x) for x in pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, idle, iowait, irq, softirq, steal = fields
    busy = user + nice + system + irq + softirq
    return busy, steal, busy + steal + idle + iowait


def process_ticks(pid):
    """Ticks of a process and of those of its children that have ended."""
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0
    return sum(int(x) for x in fields[11:15])


def thread_seconds(pid):
    """{thread name: seconds of CPU} of one process; threads of one name are added up."""
    seconds = {}
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            name = (task / "comm").read_text().strip()
            used = int((task / "schedstat").read_text().split()[0]) * 1e-9
        except OSError:
            continue  # it has just ended, or the kernel keeps no such account
        seconds[name] = seconds.get(name, 0.0) + used
    return seconds


class Noise:
    """Watches from its making to `read`: shares of the machine's CPU time that were stolen by the host, or used by
    processes that are not `pids` and not started by this one."""

    def __init__(self, pids):
        self.pids = list(pids)
        self.began = time.monotonic()
        self.ticks = cpu_ticks()
        self.ours = self._ours()

    def _ours(self):
        return sum(process_ticks(pid) for pid in self.pids) + process_ticks(os.getpid())

    def read(self):
        busy, steal, total = (now - then for now, then in zip(cpu_ticks(), self.ticks))
        foreign = max(0, busy - (self._ours() - self.ours))
        total = max(1, total)
        return {"steal": steal / total, "foreign": foreign / total, "load": os.getloadavg()[0],
                "seconds": time.monotonic() - self.began}


def peaks():
    """{isa, gflops, read_gbps} of one core: what kernels_bench measures of the machine."""
    return run_json([BIN / "kernels_bench", "--peaks"], 120)


def summary(readings):
    """The worst and the median of what was read during a run."""
    out = {}
    for key in ("steal", "foreign", "load"):
        values = [reading[key] for reading in readings]
        if values:
            out[key] = {"median": statistics.median(values), "max": max(values)}
    return out
