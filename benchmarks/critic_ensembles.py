#!/usr/bin/env python3
"""Milliseconds of a Q-ensemble's pass: member by member, by torch.func's vmap, or stacked.

The ways that `ActionValueEnsemble` chooses from. Each figure includes stacking the weights and,
with gradients, the backward pass into each member's own parameters; the ways take turns, and the
fastest counts. The sizes: the templates' hidden layers with 256 samples and 10 candidate actions
for each, and small networks. The last line is JSON.

usage: critic_ensembles.py [--threads 1 2] [--repeats 15] [--device cpu] [--out FILE]
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.func import functional_call

from raymimic.models import base_nets
from raymimic.models.ensembles import forward_batched
from raymimic.models.value_nets import ActionValueNetwork

OBS, ACTIONS = 17, 6
Pass = Callable[[nn.ModuleList, Tensor, Tensor], Tensor]


def loop(nets: nn.ModuleList, obs: Tensor, actions: Tensor) -> Tensor:
    return torch.stack([net({"flat": obs}, actions) for net in nets])


def vmap(nets: nn.ModuleList, obs: Tensor, actions: Tensor) -> Tensor:
    # stack_module_state detaches; a stack of the parameters themselves carries gradients to them.
    params = {
        name: torch.stack([net.get_parameter(name) for net in nets])
        for name, _ in nets[0].named_parameters()
    }

    def one(own: dict[str, Tensor]) -> Tensor:
        values: Tensor = functional_call(nets[0], own, ({"flat": obs}, actions))
        return values

    with patch.object(base_nets, "_ONEDNN_FROM", math.inf):  # its product knows no vmap
        values: Tensor = torch.vmap(one)(params)
    return values


def batched(nets: nn.ModuleList, obs: Tensor, actions: Tensor) -> Tensor:
    members = cast("list[ActionValueNetwork]", list(nets))
    return forward_batched(members, obs={"flat": obs, "action": actions})["value"]


def seconds(way: Pass, nets: nn.ModuleList, obs: Tensor, actions: Tensor, learn: bool) -> float:
    start = time.perf_counter()
    with torch.set_grad_enabled(learn):
        values = way(nets, obs, actions)
        if learn:
            for p in nets.parameters():
                p.grad = None
            values.square().mean().backward()  # type: ignore[no-untyped-call]
    if values.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ways = {"loop": loop, "vmap": vmap, "batched": batched}
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for layers in ((16, 16), (64, 64), (256, 256), (300, 400)):
            for n in (2, 10):
                nets = nn.ModuleList(
                    ActionValueNetwork({"flat": (OBS,)}, ACTIONS, layers) for _ in range(n)
                ).to(args.device)
                for batch, learn in ((16, True), (256, True), (256, False), (2560, False)):
                    obs = torch.randn(batch, OBS, device=args.device)
                    actions = torch.rand(batch, ACTIONS, device=args.device)
                    times: dict[str, list[float]] = {name: [] for name in ways}
                    for _ in range(args.repeats + 2):
                        for name, way in ways.items():
                            times[name].append(seconds(way, nets, obs, actions, learn))
                    ms = {k: round(1e3 * min(t[2:]), 3) for k, t in times.items()}
                    row = {"threads": threads, "layers": layers, "n": n, "batch": batch}
                    rows.append({**row, "backward": learn, "ms": ms})
                    print(*row.values(), "forward+backward" if learn else "forward", ms, flush=True)
    device = torch.cuda.get_device_name(args.device) if "cuda" in args.device else "cpu"
    result = {
        "command": "python benchmarks/critic_ensembles.py",
        "device": device,
        "torch": torch.__version__,
        "rows": rows,
    }
    if args.out:
        args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
