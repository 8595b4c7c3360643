#!/usr/bin/env python3
"""Checks the #include lines of every source against the table of folders in docs/ARCHITECTURE.md.

  layering.py            exit 1 and one line per include that breaks a rule
"""
import re
import sys

from sources import ROOT, report, strip_cpp, tracked

# What of gRPC and the protobuf code a folder may see.
NOTHING, MESSAGES, GRPC = range(3)
# Folder: which of our folders it may include (its own subtree is written out too), and what of RPC it may see. The
# longest folder that fits a path decides.
ALL = ["common", "model", "kernels", "worker", "coordinator", "cli", "deploy", "bench", "tests"]
RULES = {
    "kernels": (["kernels"], NOTHING),
    "common": (["common"], NOTHING),
    "common/transport": (["common"], GRPC),
    "model": (["common", "model"], NOTHING),
    "worker": (["common", "model", "kernels", "worker"], GRPC),
    "worker/stage": (["common", "model", "kernels", "worker/stage", "worker/kv", "worker/device"], NOTHING),
    "worker/device": (["common", "kernels", "worker/device"], NOTHING),
    "worker/kv": (["common", "model", "kernels", "worker/kv", "worker/device"], NOTHING),
    "coordinator": (["common", "model", "coordinator"], GRPC),
    "coordinator/scheduler": (["common", "coordinator/scheduler"], NOTHING),
    "coordinator/planner": (["common", "model", "coordinator/scheduler", "coordinator/planner", "coordinator/pipeline/bubble_meter.h"], NOTHING),
    "coordinator/pipeline": (["common", "coordinator/scheduler", "coordinator/pipeline"], MESSAGES),
    "coordinator/cluster": (["common", "model", "coordinator/scheduler", "coordinator/planner", "coordinator/pipeline", "coordinator/cluster"], GRPC),
    "coordinator/metrics": (["common", "coordinator/scheduler", "coordinator/pipeline", "coordinator/frontend", "coordinator/metrics"], NOTHING),
    "coordinator/frontend": (["common", "model", "coordinator/scheduler", "coordinator/pipeline", "coordinator/frontend"], GRPC),
    "cli": (["common", "model", "coordinator/scheduler", "coordinator/planner", "coordinator/pipeline/bubble_meter.h", "cli"], GRPC),
    "deploy": (ALL, GRPC),
    "bench": (ALL, GRPC),
    "tests": (ALL, GRPC),
}
# Libraries that only some folders may use; tests may use any.
THIRD_PARTY = {
    "yaml-cpp/": ["common", "cli"],
    "pcre2.h": ["model"],
    "openssl/": ["common", "model", "deploy"],
    "nlohmann/": ["cli", "deploy", "bench"],
    "mpi.h": ["deploy"],
    "prometheus/": ["coordinator/metrics"],
    "gtest/": [],
    "gmock/": [],
    "benchmark/": ["bench"],
}
# NVIDIA's headers, and the folders that may see its types; tests may, too.
CUDA_INCLUDES = re.compile(r"^(cuda\w*|cublas\w*|nccl\w*|nvml|nvrtc|mma|vector_types|driver_types)\.(h|hpp)$|^(cub|thrust|cooperative_groups)(/|\.h$)")
CUDA_FOLDERS = ("kernels/cuda", "worker/device/cuda", "bench/cuda", "tests")

# What a pure state machine must not see, by include and by name.
PURE = ("coordinator/scheduler", "coordinator/planner")
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


def rpc_level(target):
    """What of RPC an include shows."""
    if target.startswith(("grpc/", "grpc++/", "grpcpp/")) or target.endswith(".grpc.pb.h"):
        return GRPC
    if target.startswith(("google/protobuf/", "millrace/v1/")) or target.endswith(".pb.h"):
        return MESSAGES
    return NOTHING


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
    if CUDA_INCLUDES.match(target) and not any(within(path, f) for f in CUDA_FOLDERS):
        return f"CUDA's types are for {', '.join(CUDA_FOLDERS)} only, not {target}"
    if target.startswith("kernels/cuda/") and not any(within(path, f) for f in CUDA_FOLDERS):
        return f"kernels/cuda is reached through libmillrace_cuda.so, not by {target}"
    if rpc_level(target) != NOTHING:
        if not is_main(path) and RULES[folder][1] < rpc_level(target):
            return f"{folder} knows nothing of {'gRPC' if rpc_level(target) == GRPC else 'gRPC and protobuf'}, and includes {target}"
        return None
    for prefix, folders in THIRD_PARTY.items():
        if target.startswith(prefix) and not any(within(path, f) for f in folders + ["tests"]):
            return f"{target} is for {', '.join(folders + ['tests'])} only"
    ours = next((f for f in ALL if within(target, f)), None)
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
    for path in tracked(".cc", ".h", ".cu", ".cuh"):
        findings += check_text(path, (ROOT / path).read_text(encoding="utf-8"))
    return report("layering", findings)


if __name__ == "__main__":
    sys.exit(main())
