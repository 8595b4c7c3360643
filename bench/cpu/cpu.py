"""bench/cpu: whole clusters on CPUs beside llama.cpp. See run.sh for the flags."""
import argparse
import concurrent.futures
import datetime
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import rows as cpu_rows
from benchlib import noise
from benchlib.cluster import BenchError
from benchlib.llama_cpp import Peer
from benchlib.table import NOT_AVAILABLE, Row, print_table, write_json

TITLES = {"smollm2": "SmolLM2 Q4_1", "q8_0": "1.1 B Q8_0", "q4_0": "1.1 B Q4_0"}
# Tokens of a run: (one sequence, each of several). The large models are slow, and their steps alike.
TOKENS = {"smollm2": (128, 32), "q8_0": (24, 12), "q4_0": (32, 12)}
QUICK_TOKENS = (8, 6)
ROUNDS, QUICK_ROUNDS = 5, 1
NOISE_LIMIT = 0.03  # a row with more stolen or foreign time in a round says little


def both_cores():
    """Bytes/s that two cores read at the same time."""
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return sum(1e9 * peak["read_gbps"] for peak in pool.map(lambda _: noise.peaks(), range(2)))


def measure_model(name, path, options, streams):
    wanted = set(options.rows) or cpu_rows.default_rows(name)
    single, batch = QUICK_TOKENS if options.quick else TOKENS[name]
    bench = cpu_rows.Bench(name=name, title=TITLES[name], path=path, peer=Peer(options.peer, path) if options.peer else None,
                           rounds=QUICK_ROUNDS if options.quick else ROUNDS, single_tokens=single, batch_tokens=batch, streams=streams)
    found = []
    for ids, function in cpu_rows.GROUPS:
        ids = ids & wanted
        if not ids:
            continue
        print(f"measuring {', '.join(sorted(ids))} of {bench.title}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            found += function(bench, ids)
        except (BenchError, KeyError) as error:
            print(f"  failed: {error}", file=sys.stderr, flush=True)
            found += [Row(id=row, what=f"[{bench.title}] {str(error).splitlines()[0][:160]}", target="") for row in sorted(ids)]
        print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return sorted(found, key=lambda row: cpu_rows.ORDER.index(row.id))


def warn_of_noise(found):
    loud = sorted({row.id for row in found if row.noise and max(row.noise[key]["max"] for key in ("steal", "foreign")) > NOISE_LIMIT})
    if loud:
        print(f"the machine was not quiet: more than {100 * NOISE_LIMIT:.0f} % of its time was stolen or used by other programs during "
              f"{', '.join(loud)}; their figures say little")


def model_argument(text):
    name, _, path = text.partition("=")
    if name not in TITLES or not path:
        raise argparse.ArgumentTypeError(f"expected NAME=FILE with a name of {', '.join(TITLES)}")
    return name, pathlib.Path(path)


def parse(args):
    parser = argparse.ArgumentParser(prog="bench/cpu/run.sh", description="Measures whole clusters on CPUs beside llama.cpp.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"only these of {', '.join(cpu_rows.ORDER)}")
    parser.add_argument("--quick", action="store_true", help="shows that everything works; its figures mean little")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--model", action="append", required=True, type=model_argument, metavar="NAME=FILE", help="run.sh tells")
    parser.add_argument("--peer", metavar="FOLDER", type=pathlib.Path, help="llama.cpp's programs; without: ours alone")
    options = parser.parse_args(args)
    unknown = set(options.rows) - set(cpu_rows.ORDER)
    if unknown:
        parser.error(f"{', '.join(sorted(unknown))}: not among {', '.join(cpu_rows.ORDER)}")
    return options


def main(args):
    options = parse(args)
    began = time.monotonic()
    peaks = [noise.peaks()]
    streams = {1: 1e9 * peaks[0]["read_gbps"], 2: both_cores()}
    found = []
    for name, path in options.model:
        found += measure_model(name, path, options, streams)
    peaks.append(noise.peaks())
    print_table(found, sys.stdout)
    warn_of_noise(found)
    machine = noise.machine()
    print(f"machine: {machine['cpu']}, {machine['cores']} cores; one core reads {peaks[0]['read_gbps']:.1f} GB/s before and "
          f"{peaks[1]['read_gbps']:.1f} after, two {streams[2] / 1e9:.1f}; {time.monotonic() - began:.0f} s in all" +
          (", quick" if options.quick else "") + ("" if options.peer else ", without llama.cpp"))
    if options.json:
        write_json(options.json, found, machine=machine, peaks=peaks, streams=streams, quick=options.quick, peer=str(options.peer or ""),
                   taken=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))
    return 0 if any(row.verdict != NOT_AVAILABLE for row in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
