#!/usr/bin/env python3
"""Writes dequantize.txt: blocks of every weight type and the float32 values that the Python package `gguf` gives them.

Needs: pip install gguf numpy. Run: make_dequantize_golden.py > dequantize.txt
One line a case: type, columns, bytes of the row in hex, the values' float32 bits in hex (big-endian digits).
"""
import numpy as np
from gguf import GGMLQuantizationType as Q
from gguf.quants import dequantize

rng = np.random.default_rng(7)
# Where halves stand in a block, and its bytes; the rest of a block is random.
BLOCK = {"Q8_0": ([0], 34), "Q4_0": ([0], 18), "Q4_1": ([0, 2], 20)}
# Drawn after the others, which so stay what they were.
LATER = {"Q5_0": ([0], 22), "Q4_K": ([0, 2], 144), "Q5_K": ([0, 2], 176), "Q6_K": ([208], 210)}
# Scales worth having: ordinary, zero, minus zero, negative, subnormal, the largest.
HALVES = [0x2E66, 0x0000, 0x8000, 0xB155, 0x0001, 0x83FF, 0x7BFF, 0x3C00]


def emit(name, row):
    row = np.frombuffer(row, dtype=np.uint8)
    if name == "F32":
        values = row.view(np.float32)
    elif name == "F16":
        values = row.view(np.float16).astype(np.float32)
    else:
        values = dequantize(row.reshape(1, -1), Q[name]).reshape(-1)
    bits = values.astype(np.float32).view(np.uint32)
    print(name, len(bits), row.tobytes().hex(), "".join(f"{b:08x}" for b in bits))


def emit_blocks(kinds):
    for name, (offsets, size) in kinds.items():
        for i in range(len(HALVES)):
            row = bytearray(rng.integers(0, 256, 2 * size, dtype=np.uint8).tobytes())
            for block in range(2):
                for half, offset in enumerate(offsets):
                    value = HALVES[(i + block + 3 * half) % len(HALVES)]
                    row[block * size + offset:block * size + offset + 2] = value.to_bytes(2, "little")
            emit(name, bytes(row))


emit_blocks(BLOCK)
emit("F16", np.array(HALVES + [0x7C00, 0xFC00, 0x0400, 0x03FF, 0x4248], np.uint16).tobytes())
emit("F16", (rng.integers(0, 0x7C00, 45) | rng.integers(0, 2, 45) << 15).astype(np.uint16).tobytes())
emit("BF16", (rng.integers(0, 0x7F80, 45) | rng.integers(0, 2, 45) << 15).astype(np.uint16).tobytes())
emit("F32", rng.standard_normal(19).astype(np.float32).tobytes())
emit_blocks(LATER)
