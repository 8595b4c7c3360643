"""bench/pipeline: how full the pipeline is kept. See run.sh for the flags."""
import argparse
import dataclasses
import datetime
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import decode_rows
import load_rows
import plan_rows
import program_rows
import timed_rows
import timeline
from benchlib import noise
from benchlib.cluster import ROOT, BenchError, real_model
from benchlib.table import Row, print_table, write_json

SMALL = "SmolLM2-135M"
LARGE = "random 1.1 B"
ORDER = ["P1", "P2", "P3", "P4", "P6", "P7", "P8", "P9", "C1", "C3", "C5", "S1", "plan", "timeline"]

STEADY = {"P1", "P3", "P4", "P6", "P8", "C5"}  # measured in turn on the same clusters


@dataclasses.dataclass
class Settings:
    """How long everything is measured. Times as flags of load_generator."""
    rounds: int
    warmup: str
    window: str
    capacity_window: str
    poisson_requests: int
    poisson_windows: int
    timed_stages: tuple
    timed_warmup: str
    timed_window: str
    transport_flags: tuple


FULL = Settings(rounds=5, warmup="1s", window="4s", capacity_window="10s", poisson_requests=110, poisson_windows=5,
                timed_stages=(4, 8, 16), timed_warmup="3s", timed_window="3s", transport_flags=())
QUICK = Settings(rounds=2, warmup="0.3s", window="1s", capacity_window="2s", poisson_requests=6, poisson_windows=3,
                 timed_stages=(4, 16), timed_warmup="1s", timed_window="1s",
                 transport_flags=("--rounds", 3, "--echoes", 300, "--megabytes", 32))


def not_available(ids, why):
    return [Row(id=name, what=why, target="") for name in sorted(ids)]


def attempt(ids, function):
    """The rows of one part; a part that fails gives rows that say so, and the others go on."""
    ids = set(ids)
    if not ids:
        return []
    print(f"measuring {', '.join(sorted(ids))}", file=sys.stderr, flush=True)
    began = time.monotonic()
    try:
        rows = function(ids)
    except (BenchError, KeyError) as error:
        print(f"  failed: {error}", file=sys.stderr, flush=True)
        rows = not_available(ids, str(error).split("\n", 1)[0][:160])
    print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return rows


def draw_timeline(model, path):
    """Not a row: a picture. What fails is said, and the table stands."""
    print("drawing the timeline", file=sys.stderr, flush=True)
    try:
        timeline.draw(model, path)
        print(f"picture of the stages in time: {path}")
    except BenchError as error:
        print(f"no picture of the stages in time: {str(error).splitlines()[0][:200]}")


def measure_all(options, settings):
    ids = set(options.only)
    model = options.model or real_model()
    rows = attempt(ids & STEADY, lambda wanted: decode_rows.rows(model, SMALL, settings, wanted))
    rows += attempt(ids & {"P2"}, lambda _: load_rows.poisson_rows(model, settings))
    rows += attempt(ids & {"P7"}, lambda _: load_rows.one_shot_rows(model, settings))
    rows += attempt(ids & {"P9"}, lambda _: timed_rows.rows(model, settings))
    rows += attempt(ids & {"C1", "C3"}, lambda wanted: [row for row in program_rows.transport_rows(settings) if row.id in wanted])
    rows += attempt(ids & {"S1"}, lambda _: program_rows.scheduler_rows())
    rows += attempt(ids & {"plan"}, lambda _: plan_rows.rows(model, settings))
    if options.large:
        rows += attempt(ids & STEADY,
                        lambda wanted: decode_rows.rows(options.large, LARGE, settings, wanted))
    return rows


def parse(args):
    parser = argparse.ArgumentParser(prog="bench/pipeline/run.sh", description="Measures how full the pipeline is kept.")
    parser.add_argument("--quick", action="store_true", help="shows that everything works; its figures mean little")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--only", default=ORDER, type=lambda text: text.split(","), metavar="P1,P3",
                        help=f"only these of {', '.join(ORDER)}")
    parser.add_argument("--svg", metavar="FILE", default=ROOT / "build" / "pipeline.svg", help="the picture (default build/pipeline.svg)")
    parser.add_argument("--model", metavar="FILE", help="instead of SmolLM2-135M")
    parser.add_argument("--large", metavar="FILE", help="also measure the steady rows on this model (run.sh makes it)")
    options = parser.parse_args(args)
    unknown = set(options.only) - set(ORDER)
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))}: not among {', '.join(ORDER)}")
    return options


def main(args):
    options = parse(args)
    began = time.monotonic()
    peaks = [noise.peaks()]
    rows = measure_all(options, QUICK if options.quick else FULL)
    peaks.append(noise.peaks())
    rows.sort(key=lambda row: ORDER.index(row.id))
    print_table(rows, sys.stdout)
    if "timeline" in options.only:
        draw_timeline(options.model or real_model(), options.svg)
    machine = noise.machine()
    print(f"machine: {machine['cpu']}, {machine['cores']} cores; one core reads {peaks[0]['read_gbps']:.1f} GB/s before and "
          f"{peaks[1]['read_gbps']:.1f} after; {time.monotonic() - began:.0f} s in all" + (", quick" if options.quick else ""))
    if options.json:
        write_json(options.json, rows, machine=machine, peaks=peaks, quick=options.quick,
                   taken=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
