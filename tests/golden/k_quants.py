"""Float32 to Q4_K, Q5_K and Q6_K, to which the package `gguf` only knows the way back.

Plain rounding between the extremes of each sub-block; llama-quantize searches for better scales. The layouts are
those of kernels/weights.h.
"""
import numpy as np

BLOCK_BYTES = {"q4_k": 144, "q5_k": 176, "q6_k": 210}


def _half(x):
    """The nearest halves, as float32, and their bytes."""
    half = x.astype(np.float16)
    return half.astype(np.float32), half.view(np.uint8)


def _quants(x, scale, most):
    q = np.divide(x, scale, out=np.zeros_like(x), where=scale != 0)
    return np.clip(np.rint(q), 0, most).astype(np.uint8)


def _nibbles(low, high):
    return (low & 15) | (high & 15) << 4


def _with_minimum(x, most):
    x = x.reshape(-1, 8, 32)
    depth = np.maximum(-x.min(axis=2), 0)
    step = np.maximum(x.max(axis=2) + depth, 0) / most
    d, d_bytes = _half(step.max(axis=1, keepdims=True) / 63)
    dmin, dmin_bytes = _half(depth.max(axis=1, keepdims=True) / 63)
    scale, minimum = _quants(step, d, 63), _quants(depth, dmin, 63)
    q = _quants(x + (dmin * minimum)[..., None], (d * scale)[..., None], most)
    six = [scale[:, :4] | (scale[:, 4:] >> 4) << 6, minimum[:, :4] | (minimum[:, 4:] >> 4) << 6,
           _nibbles(scale[:, 4:], minimum[:, 4:])]
    fifth = [np.bitwise_or.reduce((q >> 4) << np.arange(8, dtype=np.uint8)[:, None], axis=1)] if most > 15 else []
    return np.hstack([d_bytes, dmin_bytes, *six, *fifth, _nibbles(q[:, 0::2], q[:, 1::2]).reshape(len(x), -1)])


def _q6_k(x):
    x = x.reshape(-1, 16, 16)
    step = np.abs(x).max(axis=2) / 31
    d, d_bytes = _half(step.max(axis=1, keepdims=True) / 127)
    scale = _quants(step, d, 127)
    value = (d * scale)[..., None]
    q = _quants(x + 32 * value, value, 63).reshape(-1, 2, 4, 32)
    high = q >> 4
    high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    return np.hstack([_nibbles(q[:, :, :2], q[:, :, 2:]).reshape(len(x), -1), high.reshape(len(x), -1), scale, d_bytes])


def quantize(x, kind):
    """[rows, columns] float32, columns a multiple of 256, to [rows, bytes]."""
    blocks = _q6_k(x) if kind == "q6_k" else _with_minimum(x, {"q4_k": 15, "q5_k": 31}[kind])
    return np.ascontiguousarray(blocks).reshape(len(x), -1)
