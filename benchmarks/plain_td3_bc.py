"""TD3-BC in plain torch with nothing around it: the yardstick of `train_step.py`.

The sizes are those of the template `td3_bc` on Walker2d: observations 17, actions 6, batches of
256, two hidden layers of 256, two critics. No seeds, no metrics, no clipping, no checkpoints.
"""

import copy
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

OBS, ACTIONS, BATCH, HIDDEN = 17, 6, 256, 256
ALPHA, DISCOUNT, TAU, NOISE_STD, NOISE_CLIP, LEARNING_RATE = 2.5, 0.99, 0.005, 0.2, 0.5, 3e-4


def _mlp(inputs: int, outputs: int, *last: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, outputs),
        *last,
    )


class PlainTD3BC:
    """Networks, optimizers and random transitions.

    Args:
        transitions: rows of data.
        device: where all of it lies.
    """

    def __init__(self, transitions: int, device: torch.device) -> None:
        def rand(width: int) -> Tensor:
            return torch.rand(transitions, width, device=device) * 2 - 1

        dones = torch.zeros(transitions, 1, device=device)
        self.data = rand(OBS), rand(ACTIONS), rand(1), rand(OBS), dones
        self.actor = _mlp(OBS, ACTIONS, nn.Tanh()).to(device)
        self.critics = nn.ModuleList(_mlp(OBS + ACTIONS, 1) for _ in range(2)).to(device)
        self.actor_target = copy.deepcopy(self.actor)
        self.critic_targets = copy.deepcopy(self.critics)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), LEARNING_RATE)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), LEARNING_RATE)
        self.device = device
        self.steps = 0

    def step(self) -> None:
        """Takes one gradient step; every second one moves the actor and the targets."""
        index = torch.randint(len(self.data[0]), (BATCH,), device=self.device)
        obs, action, reward, next_obs, done = (x[index] for x in self.data)
        with torch.no_grad():
            proposed = self.actor_target(next_obs)
            noise = (torch.randn_like(proposed) * NOISE_STD).clamp(-NOISE_CLIP, NOISE_CLIP)
            pair = torch.cat([next_obs, (proposed + noise).clamp(-1, 1)], dim=-1)
            value = torch.min(*(critic(pair) for critic in self.critic_targets))
            target = reward + DISCOUNT * (1 - done) * value
        pair = torch.cat([obs, action], dim=-1)
        self._descend(
            sum(F.mse_loss(critic(pair), target) for critic in self.critics), self.critic_optimizer
        )
        self.steps += 1
        if self.steps % 2 == 0:
            chosen = self.actor(obs)
            value = self.critics[0](torch.cat([obs, chosen], dim=-1))
            weight = ALPHA / value.abs().mean().detach()
            self._descend(F.mse_loss(chosen, action) - weight * value.mean(), self.actor_optimizer)
            _follow(self.critics, self.critic_targets)
            _follow(self.actor, self.actor_target)

    @staticmethod
    def _descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@torch.no_grad()
def _follow(source: nn.Module, target: nn.Module) -> None:
    lists: Sequence[list[Tensor]] = [list(net.parameters()) for net in (target, source)]
    torch._foreach_lerp_(*lists, TAU)


class TakingTurns:
    """Runs the plain loop between the steps of another loop, as many.

    The speed of a machine with neighbours drifts by a fifth within seconds. Two loops that take
    turns at this pace see the same machine: their ratio varies by a hundredth or two.

    Args:
        plain: goes on from where it stands.
        every: steps of the other loop, and then of this one.
    """

    def __init__(self, plain: PlainTD3BC, every: int = 50) -> None:
        self.plain = plain
        self.every = every
        self.steps = 0
        self.seconds = 0.0

    def __call__(self, step: int) -> None:
        """Takes a turn if it is time; called after each step of the other loop."""
        if step % self.every:
            return
        self._wait()
        start = time.perf_counter()
        for _ in range(self.every):
            self.plain.step()
        self._wait()
        self.seconds += time.perf_counter() - start
        self.steps += self.every

    def _wait(self) -> None:
        if self.plain.device.type == "cuda":
            torch.cuda.synchronize()
