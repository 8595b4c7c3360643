"""bench/textbook: the textbook's claims on the real model. See run.sh for the flags."""
import argparse
import dataclasses
import datetime
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import claims
import figures
from benchlib import noise
from benchlib.cluster import ROOT, BenchError, program_has_flag, real_model
from benchlib.table import Row, print_table, write_json

CLAIMS = {"T1": "roofline", "T2": "batching", "T3": "kv_cache", "T4": "batch_size", "T5": "weights", "T6": "pipelining",
          "T7": "characters"}
BEGIN, END = "<!-- figures: begin -->", "<!-- figures: end -->"


@dataclasses.dataclass
class Settings:
    rounds: int
    window: str
    skewed_requests: int
    skewed_outputs: str
    contexts: tuple
    recomputed_tokens: int
    batch_sizes: tuple
    stage_counts: tuple
    text_tokens: int
    no_prefix_cache: tuple = ()


FULL = Settings(rounds=5, window="3s", skewed_requests=64, skewed_outputs="8-128", contexts=(64, 128, 256, 512, 1024),
                recomputed_tokens=3, batch_sizes=(1, 2, 4, 8, 16, 32, 64), stage_counts=(1, 2, 3, 5), text_tokens=128)
QUICK = Settings(rounds=2, window="1s", skewed_requests=20, skewed_outputs="4-32", contexts=(64, 256), recomputed_tokens=1,
                 batch_sizes=(1, 8, 64), stage_counts=(1, 2), text_tokens=16)


def run_claims(options, settings):
    model = options.model or real_model()
    rows = []
    for name in options.only:
        claim = CLAIMS[name]
        print(f"measuring {name}, {claim}", file=sys.stderr, flush=True)
        began = time.monotonic()
        try:
            row, data = getattr(claims, claim)(model, settings)
            getattr(figures, claim)(data, options.out / f"{claim}.svg")
        except BenchError as error:
            print(f"  failed: {error}", file=sys.stderr, flush=True)
            row = Row(name, str(error).split("\n", 1)[0][:160], "")
        rows.append(row)
        print(f"  {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return rows


def about(run):
    """One line on what a run was taken on."""
    machine, noise_now = run["machine"], run["noise"]
    return (f"Taken {run['taken'][:10]} on {machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; one compute "
            f"thread a stage; SmolLM2-135M-Instruct, Q4_1; medians of {run['rounds']}"
            f"{', quick' if run['quick'] else ''}. Meanwhile at most {100 * noise_now['steal']:.0f} % of the machine's time was "
            f"stolen and {100 * noise_now['foreign']:.0f} % used by other programs; one core read {run['peaks']['read_gbps']:.1f} GB/s "
            f"and did {run['peaks']['gflops']:.0f} GFLOP/s.")


def write_docs(path, run):
    """Puts the figures of a run between the two marks of docs/TEXTBOOK.md."""
    text = path.read_text()
    if BEGIN not in text or END not in text:
        raise BenchError(f"{path}: no place for the figures ({BEGIN})")
    lines = [about(run), "", "| | claim | measured (quartiles) | expected | beside it |", "|---|---|---|---|---|"]
    for row in run["rows"]:
        lines.append(f"| {row['id']} | {row['what']} | {row['text']} | {row['target']} | {row['reference']} |")
    head, rest = text.split(BEGIN, 1)
    path.write_text(head + BEGIN + "\n" + "\n".join(lines) + "\n" + END + rest.split(END, 1)[1])


def parse(args):
    parser = argparse.ArgumentParser(prog="bench/textbook/run.sh", description="Tries the textbook's claims on the real model.")
    parser.add_argument("--quick", action="store_true", help="shows that everything works; its figures mean little")
    parser.add_argument("--json", metavar="FILE", help="write all figures there")
    parser.add_argument("--only", default=list(CLAIMS), type=lambda text: text.split(","), metavar="T1,T2",
                        help=f"only these of {', '.join(f'{name} {claim}' for name, claim in CLAIMS.items())}")
    parser.add_argument("--model", metavar="FILE", help="instead of SmolLM2-135M")
    parser.add_argument("--out", metavar="FOLDER", type=pathlib.Path,
                        help="for the pictures; default: docs/textbook, and docs/TEXTBOOK.md gets the figures; with --quick or "
                             "--only: build/textbook, and no document is changed")
    options = parser.parse_args(args)
    unknown = set(options.only) - set(CLAIMS)
    if unknown:
        parser.error(f"--only: {', '.join(sorted(unknown))}: not among {', '.join(CLAIMS)}")
    options.docs = options.out is None and not options.quick and len(options.only) == len(CLAIMS)
    if options.out is None:
        options.out = ROOT / ("docs" if options.docs else "build") / "textbook"
    return options


def main(args):
    options = parse(args)
    settings = QUICK if options.quick else FULL
    if program_has_flag("millrace-coordinator", "prefix-cache"):
        settings.no_prefix_cache = ("--prefix-cache=false",)
    rows = run_claims(options, settings)
    worst = {key: max((row.noise[key]["max"] for row in rows if row.noise), default=0.0) for key in ("steal", "foreign")}
    run = {"machine": noise.machine(), "peaks": noise.peaks(), "noise": worst, "quick": options.quick, "rounds": settings.rounds,
           "taken": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")}
    print_table(rows, sys.stdout)
    print(about(run))
    print(f"pictures: {options.out}")
    if options.json:
        write_json(options.json, rows, **run)
    if options.docs:
        write_docs(ROOT / "docs" / "TEXTBOOK.md", {**run, "rows": [{**row.to_json(), "text": row.measured_text()} for row in rows]})
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
