#!/usr/bin/env python3
"""sdpa.py - decode attention of PyTorch on the shapes of kvbench gpu, to compare with

Only for gpu-check.sh, where python3 has torch: nothing of kvd needs it. One query of 64 heads for
each sequence, 8 kv heads, head size 128, bf16, contiguous K and V. Printed is the rate at which
K and V are read, GB/s: by scaled_dot_product_attention with enable_gqa, the fastest backend
that takes it, and (packed) by the same with the 8 queries of a kv head as rows.
"""
import sys

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

HEADS, KV_HEADS, DIM = 64, 8, 128
SHAPES = [(16, 4096), (64, 4096), (16, 32768), (64, 32768), (16, 131072),
          (64, 131072)]
BACKENDS = [("flash", SDPBackend.FLASH_ATTENTION),
            ("cudnn", SDPBackend.CUDNN_ATTENTION),
            ("efficient", SDPBackend.EFFICIENT_ATTENTION)]
ROUNDS = 7
LEAST_MS = 5.0


def milliseconds(call):
    """Of one call: the median of rounds of so many that a round takes LEAST_MS."""
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    n = 1
    call()
    torch.cuda.synchronize()
    got = []
    while len(got) < ROUNDS:
        begin.record()
        for _ in range(n):
            call()
        end.record()
        end.synchronize()
        ms = begin.elapsed_time(end)
        if ms < LEAST_MS and n < 4096:
            n *= 2
            continue
        got.append(ms / n)
    return sorted(got)[ROUNDS // 2]


def fastest(name, n_bytes, q, k, v, **how):
    best, by = None, ""
    for label, backend in BACKENDS:
        try:
            with sdpa_kernel(backend):
                ms = milliseconds(
                    lambda: F.scaled_dot_product_attention(q, k, v, **how))
        except (RuntimeError, TypeError) as e:
            print(f"# {name}: {label}: {str(e).splitlines()[0]}", flush=True)
            torch.cuda.empty_cache()
            continue
        if best is None or ms < best:
            best, by = ms, label
    if best:
        print(f"{name}.gb_s {n_bytes / best * 1e-6:.6g} GB/s by {by}",
              flush=True)


def main():
    if not torch.cuda.is_available():
        print("skipped: torch has no device")
        return 77
    torch.manual_seed(1)
    print(f"# torch {torch.__version__}, {torch.cuda.get_device_name()}")
    for batch, tokens in SHAPES:
        n_bytes = 2 * batch * KV_HEADS * tokens * DIM * 2
        if n_bytes > torch.cuda.mem_get_info()[0] // 2:
            continue
        k, v = (torch.randn(batch, KV_HEADS, tokens, DIM, device="cuda",
                            dtype=torch.bfloat16) for _ in range(2))
        q = torch.randn(batch, HEADS, 1, DIM, device="cuda",
                        dtype=torch.bfloat16)
        fastest(f"gpu.sdpa.b{batch}.t{tokens}", n_bytes, q, k, v,
                enable_gqa=True)
        fastest(f"gpu.sdpa_packed.b{batch}.t{tokens}", n_bytes,
                q.view(batch, KV_HEADS, HEADS // KV_HEADS, DIM), k, v)
        del q, k, v
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main())
