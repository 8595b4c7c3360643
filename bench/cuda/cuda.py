"""What cuda_bench and a worker on CUDA do, as a table: bench/cuda/run.sh tells how to call it."""
import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "cpu"))
from benchlib.cluster import BIN, BenchError, Cluster, real_model  # noqa: E402
from benchlib.table import Row, print_table, write_json  # noqa: E402
from ours import CONTEXT_TOKENS, Ours  # noqa: E402

BENCH_SECONDS = 1800
# Goals, set before anything ran on a GPU: products of one row as shares of copy bandwidth, of 512 rows as shares of the tensor cores' rate.
DECODE_GOAL, PREFILL_GOAL = 0.70, 0.60
PREFILL_ROWS = 512
# NVIDIA's datasheets: GB/s of memory, dense int8 TOP/s, dense FP16 TFLOP/s with float32 sums. The first name that fits.
DATASHEETS = (
    ("H200", 4800, 1979, 989.5),
    ("H100 PCIe", 2000, 1513, 756.5),
    ("H100", 3350, 1979, 989.5),
    ("A100-SXM4-80GB", 2039, 624, 312),
    ("A100", 1555, 624, 312),
    ("B200", 8000, 4500, 2250),
)


class CudaOurs(Ours):
    """A cluster of one worker on one device."""

    def __init__(self, model, device, coordinator=(), worker=()):
        self.cluster = Cluster(model, 1, coordinator=["--context", CONTEXT_TOKENS, *coordinator],
                               worker=["--backend", "cuda", "--devices", device, *worker])
        self.warm_sequences = 0
        self.lead = 2


def kernel_lines(device, smoke):
    """The device, then what each kernel did; of the stand-in where there is no device and no figures are asked for."""
    program = BIN / "cuda_bench"
    on_cpu = BIN.parent / "tests" / "cuda_bench_on_cpu"
    command = [str(program), *(["--smoke"] if smoke else []), str(device)]
    done = None
    if program.exists():
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=BENCH_SECONDS)
    if (done is None or done.returncode != 0) and smoke and on_cpu.exists():
        done = subprocess.run([str(on_cpu), "--smoke"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=BENCH_SECONDS)
    if done is None:
        raise BenchError(f"there is no {program}: built without CUDA")
    if done.returncode != 0:
        raise BenchError(f"{done.stderr.decode(errors='replace').strip()[-400:]} (exit code {done.returncode})")
    return [json.loads(line) for line in done.stdout.decode().splitlines()]


def name_of(line):
    if line["op"] == "matmul":
        return f"{line['type']} {line['n']} x {line['k']}"
    if line["op"] == "attention":
        return f"attention, {line['type']}, {line['n']} x {line['k']} positions"
    return f"{line['op']} {line['type']}".strip()


class Rates:
    """What the device reaches in this run, and by its datasheet."""

    def __init__(self, device, lines):
        self.copy = next(line["bytes"] / line["seconds"] for line in lines if line["op"] == "copy")
        self.mma = {line["type"]: line["flops"] / line["seconds"] for line in lines if line["op"] == "mma"}
        sheet = next((sheet for sheet in DATASHEETS if sheet[0] in device["device"]), None)
        self.sheet_bytes = 1e9 * sheet[1] if sheet else None
        self.sheet_flops = {"int8": 1e12 * sheet[2], "F16": 1e12 * sheet[3]} if sheet else {}

    def of_bytes(self, line):
        return line["bytes"] / line["seconds"]

    def of_flops(self, line):
        return line["flops"] / line["seconds"]

    @staticmethod
    def unit(line):
        return "int8" if line["op"] == "matmul" and line["type"].startswith("Q") else "F16"


def goal_rows(lines, rates):
    rows = []
    matmuls = [line for line in lines if line["op"] == "matmul"]
    for kind in dict.fromkeys(line["type"] for line in matmuls):
        for count, goal, what in ((1, DECODE_GOAL, "copy bandwidth"), (PREFILL_ROWS, PREFILL_GOAL, "mma rate")):
            chosen = [line for line in matmuls if line["type"] == kind and line["rows"] == count]
            spent = sum(line["seconds"] for line in chosen)
            if count == 1:
                reached, best, sheet = sum(line["bytes"] for line in chosen) / spent, rates.copy, rates.sheet_bytes
            else:
                unit = rates.unit(chosen[0])
                reached, best, sheet = sum(line["flops"] for line in chosen) / spent, rates.mma[unit], rates.sheet_flops.get(unit)
            of_sheet = f"; {100 * reached / sheet:.0f} % of the datasheet" if sheet else ""
            rows.append(Row(id="decode" if count == 1 else "prefill", what=f"{kind}: products of {count} rows, share of {what}",
                            target=f"goal >= {100 * goal:.0f} %", limit=goal, at_most=False, measured=reached / best,
                            reference=(f"{1e-9 * best:.0f} GB/s" if count == 1 else f"{1e-12 * best:.0f} T/s") + of_sheet))
    return rows


def print_kernels(lines, rates):
    print(f"{'kernel':44} {'rows':>5} {'us':>10} {'GB/s':>8} {'of copy':>8} {'TFLOP/s':>9} {'of mma':>8}")
    for line in lines:
        gbps = f"{1e-9 * rates.of_bytes(line):.1f}" if line["bytes"] else ""
        of_copy = f"{100 * rates.of_bytes(line) / rates.copy:.0f} %" if line["bytes"] else ""
        tflops = f"{1e-12 * rates.of_flops(line):.2f}" if line["flops"] else ""
        of_mma = f"{100 * rates.of_flops(line) / rates.mma[rates.unit(line)]:.0f} %" if line["flops"] and line["op"] != "mma" else ""
        print(f"{name_of(line):44} {line['rows']:5} {1e6 * line['seconds']:10.2f} {gbps:>8} {of_copy:>8} {tflops:>9} {of_mma:>8}")


def model_rows(model, device):
    rows = []
    with CudaOurs(model, device) as ours:
        measured = [("prefill of 512 tokens", ours.prefill(512))]
        measured += [(f"decode, {count} sequences", ours.decode(count, 64, 64)) for count in (1, 8, 32)]
    for what, rate in measured:
        rows.append(Row(id="model", what=f"{pathlib.Path(model).name}: {what}", target="-", measured=rate, unit="tokens/s"))
    return rows


def smoke_model(model, device, stand_in):
    """One request through a worker on CUDA; on the stand-in where there is no device."""
    coordinator, worker = [], []
    if stand_in:  # a full microbatch takes it minutes
        os.environ.setdefault("MILLRACE_CUDA_LIBRARY", str(BIN.parent / "cuda_on_cpu" / "libmillrace_cuda.so"))
        coordinator, worker = ["--max-rows", 4, "--max-running", 1], ["--profile", "off", "--watchdog", "10m"]
    with CudaOurs(model, device, coordinator, worker) as ours:
        ours.cluster.load(mode="one-shot", sequences=1, prompt_tokens=4, output_tokens=2, seed=1)


def run(options):
    lines = kernel_lines(options.device, options.smoke)
    device, lines = lines[0], lines[1:]
    model = None if options.no_model else options.model or real_model()
    if options.smoke:
        if model:
            smoke_model(model, options.device, device["stand_in"])
        where = "the stand-in, on a CPU" if device["stand_in"] else device["device"]
        print(f"{len(lines)} measurements{' and one request' if model else ''} ran on {where}; no figures were taken")
        return
    rates = Rates(device, lines)
    rows = goal_rows(lines, rates) + (model_rows(model, options.device) if model else [])
    print_table(rows, sys.stdout)
    print_kernels(lines, rates)
    taken = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    print(f"{device['device']}, sm_{device['capability']}, {device['multiprocessors']} multiprocessors, driver {device['driver']}: copies "
          f"{1e-9 * rates.copy:.0f} GB/s, mma int8 {1e-12 * rates.mma['int8']:.0f} TOP/s, F16 {1e-12 * rates.mma['F16']:.0f} TFLOP/s; {taken}")
    if options.json:
        write_json(options.json, rows, kernels=lines, device=device, taken=taken)


def main(args):
    parser = argparse.ArgumentParser(prog="bench/cuda/run.sh", description="Measures the CUDA backend.")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--model", metavar="FILE")
    parser.add_argument("--no-model", action="store_true", help="kernels only")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--smoke", action="store_true", help="everything once, without figures; on the stand-in where there is no GPU")
    try:
        run(parser.parse_args(args))
    except (BenchError, subprocess.TimeoutExpired) as error:
        print(f"bench/cuda: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
