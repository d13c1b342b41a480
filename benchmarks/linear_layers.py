#!/usr/bin/env python3
"""Microseconds of a linear layer with a ReLU, forward and backward: by torch's MKL and by oneDNN.

One line for each size of the layer's product. The ways take turns, and the fastest pass counts: in
CPU time of the process with one thread, in time of the clock with more. It is the reason for
`_ONEDNN_FROM` of `raymimic.models.base_nets`. The last line is JSON: MKL's time over oneDNN's.

usage: linear_layers.py [--threads 1] [--width 256] [--seconds 20]
"""

import argparse
import json
import math
import time
from unittest.mock import patch

import torch
from torch import Tensor

from raymimic.models import base_nets


def microseconds(layer: base_nets.Linear, x: Tensor, threshold: float, threads: int) -> float:
    """Times one pass, forward and backward, as it is with another threshold."""
    clock = time.process_time if threads == 1 else time.perf_counter
    x.grad = layer.weight.grad = layer.bias.grad = None
    with patch.object(base_nets, "_ONEDNN_FROM", threshold):
        start = clock()
        layer(x, relu=True).sum().backward()  # type: ignore[no-untyped-call]
        return (clock() - start) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=20, help="for all sizes together")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    layer = base_nets.Linear(args.width, args.width)
    sizes = [256, 128, 64, 32]
    ratios = {}
    for rows in sizes:
        x = torch.randn(rows, args.width, requires_grad=True)
        mkl = onednn = math.inf
        end = time.perf_counter() + args.seconds / len(sizes)
        while time.perf_counter() < end:
            mkl = min(mkl, microseconds(layer, x, math.inf, args.threads))
            onednn = min(onednn, microseconds(layer, x, 0, args.threads))
        size = f"2^{math.log2(rows * args.width**2):.3g}"
        ratios[size] = float(f"{mkl / onednn:.3g}")
        print(f"{size}: MKL {mkl:.0f} us, oneDNN {onednn:.0f} us: {ratios[size]}", flush=True)
    print(json.dumps({"mkl_over_onednn": ratios, "threads": args.threads}))


if __name__ == "__main__":
    main()
