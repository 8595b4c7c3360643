#!/usr/bin/env python3
"""Checks the #include lines of every source against the table of folders in docs/ARCHITECTURE.md.

  layering.py            exit 1 and one line per include that breaks a rule
"""
import re
import sys

from sources import ROOT, report, strip_cpp, tracked

# Folder: which of our folders it may include (its own subtree is written out too), and whether it may see gRPC and the
# generated protobuf code. The longest folder that fits a path decides.
RULES = {
    "kernels": (["kernels"], False),
    "common": (["common"], False),
    "common/transport": (["common"], True),
    "model": (["common", "model"], False),
    "worker": (["common", "model", "kernels", "worker"], True),
    "worker/stage": (["common", "model", "kernels", "worker/stage", "worker/kv"], False),
    "worker/kv": (["common", "model", "kernels", "worker/kv"], False),
    "coordinator": (["common", "model", "coordinator"], True),
    "coordinator/scheduler": (["common", "coordinator/scheduler"], False),
    "cli": (["common", "cli"], True),
    "deploy": (["common", "deploy"], True),
    "bench": (["common", "model", "kernels", "worker", "coordinator", "cli", "bench", "tests"], True),
    "tests": (["common", "model", "kernels", "worker", "coordinator", "cli", "deploy", "bench", "tests"], True),
}
# Folders in which a gRPC or protobuf file may be one file only, for a conversion that belongs there.
RPC_EXCEPTIONS = {"common/grpc_status.h", "common/grpc_status.cc"}
# Libraries that only some folders may use; tests may use any.
THIRD_PARTY = {
    "yaml-cpp/": ["common"],
    "pcre2.h": ["model"],
    "openssl/": ["common", "model", "deploy"],
    "nlohmann/": ["cli", "deploy", "bench"],
    "mpi.h": ["deploy"],
    "gtest/": [],
    "gmock/": [],
    "benchmark/": ["bench"],
}
# What a pure state machine must not see, by include and by name.
PURE = ("coordinator/scheduler", "coordinator/placement")
PURE_INCLUDES = re.compile(r"^(thread|mutex|shared_mutex|condition_variable|future|atomic|semaphore|fstream|iostream|"
                           r"absl/synchronization/.*|absl/time/clock\.h|common/(mutex|bounded_queue|log|process)\.h|"
                           r"sys/.*|unistd\.h|time\.h|ctime)$")
PURE_NAMES = re.compile(r"\b(absl::Now|absl::GetCurrentTimeNanos|steady_clock|system_clock|high_resolution_clock|"
                        r"clock_gettime|gettimeofday|Clock::Steady|std::random_device|std::rand|getenv)\b")

KERNEL_ABSL = re.compile(r"^absl/(status|types|strings|base)/")
INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*([<"])([^>"]+)[>"]')


def folder_of(path):
    """The folder of RULES that a path belongs to, or None."""
    parts = path.split("/")[:-1]
    for length in range(len(parts), 0, -1):
        name = "/".join(parts[:length])
        if name in RULES:
            return name
    return None


def within(path, folder):
    return path == folder or path.startswith(folder + "/")


def is_rpc(target):
    return target.startswith(("grpc/", "grpc++/", "grpcpp/", "google/protobuf/", "millrace/v1/")) or \
        target.endswith((".pb.h", ".grpc.pb.h"))


def is_main(path):
    return path.endswith("_main.cc")


def check_include(path, target):
    """What is wrong with `#include "target"` in `path`, or None."""
    folder = folder_of(path)
    if is_main(target) or target.endswith(".cc"):
        return f"includes {target}: nothing includes a main or another source"
    if target.startswith("."):
        return f"includes {target}: paths start at the root of the repository"
    if within(path, "kernels") and target.startswith("absl/") and not KERNEL_ABSL.match(target):
        return f"kernels use absl status, types and strings only, not {target}"
    if path.startswith(PURE) and PURE_INCLUDES.match(target):
        return f"the scheduler is a state machine without threads, clocks or files, and includes {target}"
    if is_rpc(target):
        if not is_main(path) and not RULES[folder][1] and path not in RPC_EXCEPTIONS:
            return f"{folder} knows nothing of gRPC and protobuf, and includes {target}"
        return None
    for prefix, folders in THIRD_PARTY.items():
        if target.startswith(prefix) and not any(within(path, f) for f in folders + ["tests"]):
            return f"{target} is for {', '.join(folders + ['tests'])} only"
    ours = next((f for f in ("kernels", "common", "model", "worker", "coordinator", "cli", "deploy", "bench", "tests")
                 if within(target, f)), None)
    if ours is None or is_main(path):
        return None
    if not any(within(target, allowed) for allowed in RULES[folder][0]):
        return f"{folder} may include {', '.join(RULES[folder][0])}, not {target}"
    return None


def check_text(path, text):
    """Findings (path, line, message) for one source."""
    if folder_of(path) is None:
        return [(path, 1, "is in no folder of the architecture")]
    findings = []
    lines = strip_cpp(text, keep_strings=True).split("\n")
    for number, line in enumerate(lines, 1):
        match = INCLUDE.match(line)
        if match:
            message = check_include(path, match.group(2))
            if message:
                findings.append((path, number, message))
    if path.startswith(PURE):
        for number, line in enumerate(strip_cpp(text).split("\n"), 1):
            match = PURE_NAMES.search(line)
            if match:
                findings.append((path, number, f"the scheduler reads no clock and no environment, and uses {match.group(0)}"))
    return findings


def main():
    findings = []
    for path in tracked(".cc", ".h"):
        findings += check_text(path, (ROOT / path).read_text(encoding="utf-8"))
    return report("layering", findings)


if __name__ == "__main__":
    sys.exit(main())
