"""P1, P3, P4, P6, P8 and C5: steady decoding with two stages beside clusters of one stage, measured in turn."""
import statistics
import threading

from benchlib import interleaved, measure, noise
from benchlib.cluster import BenchError, Cluster
from benchlib.table import Row

OUTPUT_TOKENS = 1500  # no sequence ends within a window


def _cpu_of_hops(cluster, run):
    """(what `run` gave, CPU seconds outside of compute threads, CPU seconds of all threads of a cluster meanwhile); the
    latter are 0 where no thread is named compute."""
    def take():
        outside = every = 0.0
        named = False
        for process in [cluster.coordinator, *cluster.workers]:
            for name, seconds in noise.thread_seconds(process.pid).items():
                every += seconds
                outside += 0.0 if name == "compute" else seconds
                named = named or name == "compute"
        return (outside, every) if named else (0.0, 0.0)
    before = take()
    result = run()
    after = take()
    return result, after[0] - before[0], after[1] - before[1]


class DecodeBench:
    """Holds the clusters: `two` has two stages; `one` and `other` have one each."""

    def __init__(self, model, settings):
        self.settings = settings
        self.clusters = []
        try:
            self.two = self._open(model, 2)
            self.one = self._open(model, 1)
            self.other = self._open(model, 1)
        except BaseException:
            self.close()
            raise

    def _open(self, model, stages):
        self.clusters.append(Cluster(model, stages, coordinator=["--context", 2048, "--max-running", 512]))
        return self.clusters[-1]

    def close(self):
        for cluster in self.clusters:
            cluster.stop()
        self.clusters = []

    def pids(self):
        return [process.pid for cluster in self.clusters for process in cluster.processes]

    def window(self, cluster, sequences, seed=1):
        """One window of steady decoding. The same prompts each time, so that a prefix cache shortens the way there."""
        report = cluster.load(mode="steady", sequences=sequences, prompt_tokens=64, output_tokens=OUTPUT_TOKENS, seed=seed,
                              warmup=self.settings.warmup, window=self.settings.window)
        return report["windows"][0]

    def sequences_for(self, cluster, rows):
        """So many sequences that a microbatch has `rows` rows: the slots that the scheduler chose, seen while it is busy."""
        window = self.window(cluster, rows * (cluster.stages + 1))
        return rows * measure.slots(window["load_end"], cluster.stages)

    def pair(self, sequences):
        """The same load on both clusters of one stage at the same time; their windows."""
        windows, errors = [None, None], []

        def run(index, cluster):
            try:
                windows[index] = self.window(cluster, sequences, seed=1 + index)
            except BenchError as error:
                errors.append(error)
        threads = [threading.Thread(target=run, args=(i, c)) for i, c in enumerate((self.one, self.other))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return windows

    def measure(self, ids):
        """{name: Measurement} of what the rows in `ids` need."""
        two8 = self.sequences_for(self.two, 8) if ids & {"P1", "P8"} else 0
        two16 = one16 = 0
        if ids & {"P3", "P4", "C5"}:
            two16, one16 = self.sequences_for(self.two, 16), self.sequences_for(self.one, 16)
        wanted = {}
        if ids & {"P1", "P8"}:
            wanted["two stages, 8 rows"] = lambda: self.window(self.two, two8)
        if ids & {"P3", "P4", "C5"}:
            wanted["two stages, 16 rows"] = lambda: _cpu_of_hops(self.two, lambda: self.window(self.two, two16))
        if "P3" in ids:
            wanted["one stage, 16 rows"] = lambda: self.window(self.one, one16)
        if "P4" in ids:
            wanted["two clusters at once"] = lambda: self.pair(one16)
        if "P6" in ids:
            wanted["two stages, one sequence"] = lambda: self.window(self.two, 1)
            wanted["one stage, one sequence"] = lambda: self.window(self.one, 1)
        return interleaved.run(wanted, self.settings.rounds, self.pids(), say=True)


def _shape(window):
    stage_windows = measure.window_stages(window)
    return f"{measure.rows_per_microbatch(stage_windows):.1f} rows a microbatch, {measure.throughput(window):.0f} tokens/s"


def _steady_rows(results):
    """P1 and C5: of the clusters' own account."""
    rows = []
    if "two stages, 8 rows" in results:
        result = results["two stages, 8 rows"]
        bubbles = [measure.window_stages(window) for window in result.values]
        busiest = measure.spread([measure.bottleneck(stages).bubble for stages in bubbles])
        mean = measure.spread([statistics.mean(stage.bubble for stage in stages) for stages in bubbles])
        shape = _shape(result.values[-1])
        rows.append(Row("P1", "steady decode, 2 stages, 8 sequences a slot: idle of the bottleneck stage", "<= 2 %", 0.02,
                        measured=busiest["median"], spread=busiest, noise=result.noise(), reference=shape,
                        details={"causes": measure.causes(bubbles[-1]), "preempted": measure.preempted(bubbles[-1])}))
        rows.append(Row("P1", "the same: mean idle of the stages", "<= 4 %", 0.04, measured=mean["median"], spread=mean,
                        noise=result.noise(), reference=shape))
        rows.append(_balance_row(result, bubbles))
    return rows


def _balance_row(result, stages_by_round):
    """P8: how equal the placement made the stages, by their CPU time, which other programs do not lengthen."""
    def imbalance(stages):
        seconds = [stage.busy - (stage.preempted or 0.0) for stage in stages]
        return max(seconds) / statistics.mean(seconds)
    spread = measure.spread([imbalance(stages) for stages in stages_by_round])
    load = result.values[-1]["load_end"]
    predicted, bound = load.get("predicted_imbalance"), load.get("imbalance_bound")
    return Row("P8", "time of the slowest stage / mean, 8 sequences a slot", "<= 1.04", 1.04, measured=spread["median"], unit="",
               spread=spread, noise=result.noise(),
               reference=f"predicted {predicted:.3f}, whole layers allow {bound:.3f}" if predicted and bound else "")


def _cpu_row(results, model_name):
    result = results["two stages, 16 rows"]
    spread = measure.spread([outside / every for _, outside, every in result.values if every > 0])
    return Row("C5", f"CPU outside of compute threads / all CPU of the cluster, {model_name}", "<= 3 % on the 1.1 B model",
               0.03 if "1.1 B" in model_name else None, measured=spread["median"] if spread else None, spread=spread,
               noise=result.noise(), reference=_shape(result.values[-1][0]))


def _ratio_rows(results, model_name):
    """P3, P4 and P6: two stages against clusters of one; medians of the quotients of each round."""
    rows = []
    two = results.get("two stages, 16 rows")
    if "one stage, 16 rows" in results:
        one = results["one stage, 16 rows"]
        ratios = measure.spread([measure.throughput(a[0]) / (2 * measure.throughput(b)) for a, b in zip(two.values, one.values)])
        rows.append(Row("P3", "2-stage throughput / (2 x one cluster of one stage), 16 rows a microbatch", ">= 0.90", 0.90,
                        at_most=False, measured=ratios["median"], unit="", spread=ratios, noise=two.noise(),
                        reference=f"one stage: {_shape(one.values[-1])}",
                        details={"two": two.spread(lambda v: measure.throughput(v[0])), "one": one.spread(measure.throughput)}))
    if "two clusters at once" in results:
        pair = results["two clusters at once"]
        together = [sum(measure.throughput(window) for window in windows) for windows in pair.values]
        ratios = measure.spread([measure.throughput(a[0]) / b for a, b in zip(two.values, together)])
        rows.append(Row("P4", "2-stage throughput / two clusters of one stage running together", ">= 0.95", 0.95, at_most=False,
                        measured=ratios["median"], unit="", spread=ratios, noise=pair.noise(),
                        reference=f"both together {statistics.median(together):.0f} tokens/s"))
    if "two stages, one sequence" in results:
        two1, one1 = results["two stages, one sequence"], results["one stage, one sequence"]
        ratios = measure.spread([a["inter_token_ms"]["p50"] / b["inter_token_ms"]["p50"]
                                 for a, b in zip(two1.values, one1.values)])
        limit = 1.03 if "1.1 B" in model_name else 1.10
        rows.append(Row("P6", "one sequence, 2 stages: inter-token latency / one stage", f"<= {limit:.2f}", limit,
                        measured=ratios["median"], unit="", spread=ratios, noise=two1.noise(),
                        reference=f"one stage {one1.spread(lambda w: w['inter_token_ms']['p50'])['median']:.2f} ms a token"))
    return rows


def rows(model, model_name, settings, ids):
    """The rows among `ids` on one model."""
    bench = DecodeBench(model, settings)
    try:
        results = bench.measure(ids)
    finally:
        bench.close()
    found = _steady_rows(results) + _ratio_rows(results, model_name)
    if "C5" in ids:
        found.append(_cpu_row(results, model_name))
    for row in found:
        row.what += f" [{model_name}]" if model_name not in row.what else ""
    return [row for row in found if row.id in ids]
