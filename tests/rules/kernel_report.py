#!/usr/bin/env python3
"""Registers, shared memory and spills of every CUDA kernel, from what ptxas said when it was compiled (-Xptxas -v).

  kernel_report.py FOLDER      reads FOLDER/*.ptxas; exit 1 if a kernel spills registers, or keeps anything in local memory
"""
import pathlib
import re
import subprocess
import sys

ENTRY = re.compile(r"Compiling entry function '(?P<name>[^']+)' for '(?P<target>sm_\d+)a?'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")
SHARED = re.compile(r"(\d+) bytes smem")


def parse(text):
    """One dict a kernel and target: name, target, stack, spills, registers, shared (static)."""
    kernels, frame = [], None
    for line in text.splitlines():
        entry = ENTRY.search(line)
        if entry:
            kernels.append(dict(entry.groupdict(), stack=0, spills=0, registers=0, shared=0))
            frame = kernels[-1]
        elif "Function properties for" in line:
            # Functions that are called, and so not inlined, have frames of their own; they count for the kernel before.
            continue
        elif frame is not None and STACK.search(line):
            stack, stores, loads = map(int, STACK.search(line).groups())
            frame["stack"] = max(frame["stack"], stack)
            frame["spills"] += stores + loads
        elif frame is not None and USED.search(line):
            frame["registers"] = int(USED.search(line).group(1))
            shared = SHARED.search(line)
            frame["shared"] = int(shared.group(1)) if shared else 0
    return kernels


def without_parameters(name):
    depth = 0
    for i, char in enumerate(name):
        depth += (char == "<") - (char == ">")
        if char == "(" and depth == 0:
            return name[:i]
    return name


def readable(names):
    """Mangled names without parameters and namespaces."""
    if not names:
        return []
    try:
        out = subprocess.run(["c++filt"], input="\n".join(names), stdout=subprocess.PIPE, text=True, check=True).stdout
    except OSError:
        return names
    short = []
    for name in out.splitlines():
        name = re.sub(r"\(anonymous namespace\)::|millrace::|kernels::|cuda::|^void ", "", name)
        short.append(without_parameters(name))
    return short


def wrong(kernel):
    return kernel["spills"] > 0 or kernel["stack"] > 0


def main():
    files = sorted(pathlib.Path(sys.argv[1]).glob("*.ptxas"))
    kernels = [kernel for path in files for kernel in parse(path.read_text())]
    if not files:
        print("no device code was built (see docs/CUDA.md, Build): nothing to check")
        return 0
    if not kernels:
        print("ptxas named no kernel: is it called with -v?")
        return 1
    print(f"{'registers':>9} {'spills':>7} {'local':>6} {'shared':>7}  target  kernel (bytes; shared: static only)")
    for kernel, name in zip(kernels, readable([kernel["name"] for kernel in kernels])):
        print(f"{kernel['registers']:9} {kernel['spills']:7} {kernel['stack']:6} {kernel['shared']:7}  {kernel['target']:6}  {name}"
              + ("   <-- spills" if wrong(kernel) else ""))
    bad = sum(map(wrong, kernels))
    print(f"{len(kernels)} kernels, {bad} that spill or use local memory")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
