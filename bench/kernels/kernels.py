"""Rounds of kernels_bench, and what they say: bench/kernels/run.sh tells how to call it."""
import argparse
import datetime
import json
import pathlib
import statistics
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
from benchlib import interleaved, measure, noise  # noqa: E402
from benchlib.cluster import BIN, BenchError  # noqa: E402
from benchlib.table import Row, print_table, write_json  # noqa: E402

# Least share of min(int8 peak, what the weights' stream allows), over a forward pass; least share of the stream with one row.
BATCH_TARGETS = {("SmolLM2", "Q4_1"): 0.50, ("1.1 B", "Q8_0"): 0.65, ("1.1 B", "Q4_0"): 0.55}
STREAM_TARGETS = {("1.1 B", "Q8_0"): 0.85, ("1.1 B", "Q4_0"): 0.70}
BATCHES = (16, 64, 256)
ROUND_SECONDS = 600


def one_round(arguments):
    """The lines of one run: the peaks, then the ops."""
    command = [str(BIN / "kernels_bench"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=ROUND_SECONDS)
    if done.returncode != 0:
        raise BenchError(f"exit code {done.returncode}: {done.stderr.decode(errors='replace').strip()[-300:]}")
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def operations(line):
    if line["op"] == "matmul":
        return 2 * line["rows"] * line["n"] * line["k"]
    return line.get("flops", 0)


def best_rate(line, peaks):
    """GOP/s that the machine allows a product: its int8 peak, or as fast as the weights come from memory."""
    streamed = peaks["stream_gbps"] * operations(line) / line["bytes"]
    peak = peaks["int8_gops"] if peaks["class"] == "cpu/int8" else peaks["gflops"]
    return min(peak, streamed) if peak else streamed


def pass_lines(lines, model, kind, rows):
    return [line for line in lines[1:] if line["op"] == "matmul" and (line["model"], line["type"], line["rows"]) == (model, kind, rows)]


def share_of_best(lines, model, kind, rows):
    """Time that a forward pass's products would take at the best rate, over the time they take."""
    chosen = pass_lines(lines, model, kind, rows)
    ideal = sum(line["per_pass"] * 1e-9 * operations(line) / best_rate(line, lines[0]) for line in chosen)
    return ideal / sum(line["per_pass"] * line["seconds"] for line in chosen)


def share_of_stream(lines, model, kind):
    """Bytes a second of a forward pass's products with one row, over the stream's."""
    chosen = pass_lines(lines, model, kind, 1)
    rate = sum(line["per_pass"] * line["bytes"] for line in chosen) / sum(line["per_pass"] * line["seconds"] for line in chosen)
    return 1e-9 * rate / lines[0]["stream_gbps"]


def row_of(identity, what, target, values, peaks, noises):
    return Row(id=identity, what=what, target="-" if target is None else f">= {100 * target:.0f} %", limit=target, at_most=False,
               measured=statistics.median(values), spread=measure.spread(values), reference=peaks, noise=noises)


def target_rows(rounds, noises):
    median = {key: statistics.median(lines[0][key] for lines in rounds) for key in ("int8_gops", "gflops", "stream_gbps", "stream2_gbps")}
    stream, peak = f"stream {median['stream_gbps']:.1f} GB/s", f"int8 peak {median['int8_gops']:.0f} GOP/s"
    rows = []
    for model, kind in BATCH_TARGETS:
        values = [share_of_stream(lines, model, kind) for lines in rounds]
        rows.append(row_of("G2", f"{model} {kind}: products of 1 row, share of the stream", STREAM_TARGETS.get((model, kind)), values,
                           stream, noises))
    for (model, kind), target in BATCH_TARGETS.items():
        for count in BATCHES:
            values = [share_of_best(lines, model, kind, count) for lines in rounds]
            rows.append(row_of("G7", f"{model} {kind}: products of {count} rows, share of the best", target, values,
                               f"{peak}, {stream}", noises))
    return rows, median


def name_of(line):
    if line["op"] == "matmul":
        return f"{line['model']} {line['type']} {line['name']} {line['n']} x {line['k']}"
    return f"attention, {line['kv']}, context {line['context']}" if line["op"] == "attention" else line["op"]


def op_lines(rounds):
    """Every op with its median time and rates."""
    out = []
    for same in zip(*(lines[1:] for lines in rounds)):
        seconds = statistics.median(line["seconds"] for line in same)
        shares = [1e-9 * operations(line) / line["seconds"] / best_rate(line, lines[0])
                  for line, lines in zip(same, rounds) if line["op"] == "matmul"]
        out.append({**same[0], "name": name_of(same[0]), "seconds": seconds, "gbps": 1e-9 * same[0]["bytes"] / seconds,
                    "gops": 1e-9 * operations(same[0]) / seconds, "share": statistics.median(shares) if shares else None,
                    "spread": measure.spread([line["seconds"] for line in same])})
    return out


def print_ops(ops):
    print(f"{'op':44} {'rows':>4} {'us':>10} {'GB/s':>8} {'GOP/s':>8} {'of best':>8}")
    for op in ops:
        share = f"{100 * op['share']:.0f} %" if op["share"] is not None else ""
        gops = f"{op['gops']:.1f}" if op["gops"] else ""
        print(f"{op['name']:44} {op['rows']:4} {1e6 * op['seconds']:10.2f} {op['gbps']:8.2f} {gops:>8} {share:>8}")


def main(args):
    parser = argparse.ArgumentParser(prog="bench/kernels/run.sh", description="Measures every op of the CPU backend.")
    parser.add_argument("--quick", action="store_true", help="shows that everything works; its figures mean little")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--isa", help="instruction set (default: the best there is)")
    parser.add_argument("--activations", choices=["int8", "f32"], default="int8")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(args)
    arguments = ["--activations", options.activations]
    if options.isa:
        arguments += ["--isa", options.isa]
    if options.quick:
        arguments.append("--quick")
    try:
        measured = interleaved.run({"ops": lambda: one_round(arguments)}, 1 if options.quick else options.rounds, [],
                                   say=not options.quick)["ops"]
    except BenchError as error:
        print(f"kernels_bench: {error}", file=sys.stderr)
        return 1
    rounds = measured.values
    rows, peaks = target_rows(rounds, measured.noise())
    print_table(rows, sys.stdout)
    ops = op_lines(rounds)
    print_ops(ops)
    machine = noise.machine()
    print(f"machine: {machine['cpu']}, {machine['cores']} cores; {rounds[0][0]['isa']}, {rounds[0][0]['class']}: fma {peaks['gflops']:.0f} GFLOP/s, "
          f"int8 {peaks['int8_gops']:.0f} GOP/s, stream {peaks['stream_gbps']:.1f} GB/s on one thread, {peaks['stream2_gbps']:.1f} on two; "
          f"{len(rounds)} rounds" + (", quick" if options.quick else ""))
    if options.json:
        write_json(options.json, rows, ops=ops, machine=machine, peaks=peaks, quick=options.quick,
                   taken=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
