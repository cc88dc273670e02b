#!/usr/bin/env python3
"""DDPG and TD3, deep deterministic policy gradients, in one file to read, run and copy.

    python ddpg.py --env Pendulum-v1                            solved in seconds
    python ddpg.py --env LunarLanderContinuous-v3 --seed 3      landed in minutes
    python ddpg.py --env my_module:MyEnv-v0                     your own environment
    python ddpg.py --env my_module:MyEnv-v0 --init RUN          begin from a trained policy
    python ddpg.py --eval runs/Pendulum-v1/ddpg-seed0           test the best policy
    python ddpg.py --resume runs/Pendulum-v1/ddpg-seed0         go on with an interrupted run
    python ddpg.py --env Pendulum-v1 --watch                    train with the viewer beside it

DDPG (arXiv:1509.02971) learns a critic Q(s, a) by temporal differences and an actor mu(s) that
climbs it. TD3 (arXiv:1802.09477) is DDPG with three independent switches: the smaller of two
critics (`n_critics`), delayed actor and target updates (`policy_delay`) and noise on the target
action (`target_noise`). At 1, 1, 0 each is an identity, so one agent does both.
"""

import os
import signal

if __name__ == "__main__":  # Ctrl-C during the second that the other imports take
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import copy
import ctypes
import functools
import io
import json
import math
import pickle
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
import traceback
from collections import deque
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import get_args

import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

# ---- configuration ----


class UsageError(ValueError):
    """Something the user can mend: a flag, an environment or a file."""


def flag(default, meaning, low=None, high=None, **more):
    """A field of Config: its default, meaning for --help, and range of numbers."""
    return field(default=default, metadata={"help": meaning, "low": low, "high": high}, **more)


ALGOS = {  # presets of TD3's switches, each of which can be set alone
    "ddpg": dict(n_critics=1, policy_delay=1, target_noise=0.0),
    "td3": dict(n_critics=2, policy_delay=2, target_noise=0.2),
}

# fmt: off
PRESETS = {
    "Pendulum-v1": dict(
        algo="ddpg", total_steps=10_000, learning_starts=300, hidden=(64, 64), layer_norm=False,
        gamma=0.98, normalize=False, reward_scale=0.1, n_step=1, actor_lr=2e-3, critic_lr=2e-3,
        tau=0.03, noise_sigma=0.5, eval_every=500, eval_episodes=20, solved_at=-156.0),
    "LunarLanderContinuous-v3": dict(
        total_steps=200_000, learning_starts=3_000, normalize=False, reward_scale=0.1, n_step=5,
        eval_episodes=20, solved_at=250.0),
    "MountainCarContinuous-v0": dict(
        total_steps=20_000, hidden=(64, 64), layer_norm=False, reward_scale=0.1, tau=0.01,
        noise_sigma=0.5, eval_every=1_000, solved_at=90.0),
    "BipedalWalker-v3": dict(
        learning_starts=10_000, normalize=False, reward_scale=0.1, noise_theta=1.0,
        noise_sigma_end=0.05, noise_anneal=0.3, eval_every=20_000, solved_at=304.0),
}


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's result; each field is a flag. Raises UsageError."""

    env: str = flag("Pendulum-v1", "gymnasium id, or module:Id for an environment of your own")
    env_kwargs: dict = flag(None, "arguments of the environment, as JSON", hash=False)
    max_episode_steps: int = flag(0, "limit of an episode; 0: the environment's own", 0, 10**9)
    algo: str = flag(None, "ddpg or td3, the default: sets n_critics, policy_delay, target_noise")
    seed: int = flag(0, "seed of everything random", 0, 2**31 - 1)
    total_steps: int = flag(1_000_000, "environment steps to train for", 1, 10**12)
    learning_starts: int = flag(1_000, "uniformly random steps before learning starts", 1, 10**12)
    updates_per_step: int = flag(1, "updates per environment step", 0, 1_000)
    batch_size: int = flag(128, "transitions in an update", 1, 10**6)
    buffer_size: int = flag(1_000_000, "transitions remembered", 1, 10**9)
    save_replay: bool = flag(True, "keep them in the state, without which resuming is not exact")
    gamma: float = flag(0.99, "discount of the future, per step", 0, 1)
    n_step: int = flag(3, "rewards summed before the target bootstraps", 1, 1_000)
    normalize: bool = flag(True, "shift and scale observations, as the random steps suggest")
    reward_scale: float = flag(None, "factor on rewards; default: found, too", 1e-9, 1e9)
    hidden: tuple[int, ...] = flag((128, 128), "widths of the hidden layers", 1, 16_384)
    layer_norm: bool = flag(True, "normalise the critic's hidden layers")
    actor_lr: float = flag(1e-3, "Adam's learning rate for the actor", 1e-9, 1)
    critic_lr: float = flag(1e-3, "Adam's learning rate for the critic", 1e-9, 1)
    tau: float = flag(0.005, "share of the target networks replaced at an update", 0, 1)
    n_critics: int = flag(None, "critics whose smallest value is the target (TD3: 2)", 1, 100)
    policy_delay: int = flag(None, "critic updates per actor and target update (TD3: 2)", 1, 1_000)
    target_noise: float = flag(None, "sd of the noise on target actions (TD3: 0.2)", 0, 10)
    target_noise_clip: float = flag(0.5, "bound of that noise", 0, 10)
    noise_sigma: float = flag(0.2, "scale of exploration noise; actions span [-1, 1]", 0, 10)
    noise_theta: float = flag(0.15, "1: white noise; below: Ornstein-Uhlenbeck, louder", 1e-6, 1)
    noise_sigma_end: float = flag(None, "scale after annealing; default: no annealing", 0, 10)
    noise_anneal: float = flag(0.5, "part of total_steps in which it is annealed", 1e-9, 1)
    eval_every: int = flag(5_000, "environment steps between evaluations; 0: never", 0, 10**12)
    eval_episodes: int = flag(10, "episodes of an evaluation", 1, 10_000)
    solved_at: float = flag(None, "mean evaluation return that is a solution", -1e12, 1e12)
    stop_when_solved: bool = flag(True, "stop once 100 episodes confirm solved_at")

    def __post_init__(self):
        if self.algo not in (None, *ALGOS):
            raise UsageError(f"algo: {self.algo!r} is not one of {', '.join(ALGOS)}")
        unset = {"env_kwargs": {}} | ALGOS[self.algo or "td3"]
        for f in fields(self):
            value = getattr(self, f.name)
            value = unset.get(f.name) if value is None else value
            object.__setattr__(self, f.name, checked(f, value))
        named = (name for name in ALGOS if ALGOS[name].items() <= vars(self).items())
        algo = next(named, self.algo or "td3")
        if self.algo not in (None, algo):  # the name would lie
            raise UsageError(f"algo: these switches are {algo}: use config.replace(algo=..)")
        object.__setattr__(self, "algo", algo)
        if len(self.hidden) > 100 or self.learning_starts < self.n_step:
            raise UsageError("hidden: at most 100 layers; learning_starts: at least n_step")
        weights = sum(a * b for a, b in zip(self.hidden, self.hidden[1:]))
        if (1 + self.n_critics) * (weights + self.batch_size * sum(self.hidden)) > 2**29:
            raise UsageError("hidden, batch_size, n_critics: an update would take gigabytes")

    def replace(self, **changes):
        """A changed copy; another `algo` brings its switches along, but for those in `changes`."""
        return replace(self, **ALGOS.get(changes.get("algo"), {}) | changes)

    @classmethod
    def preset(cls, env="Pendulum-v1", **explicit):
        """The tuned values: default < preset of the environment < algo < `explicit`."""
        tuned = PRESETS.get(env, {}) | ALGOS.get(explicit.get("algo"), {})
        return cls(**{"env": env, **tuned, **explicit})


# fmt: on

# ---- replay ----


class ReplayBuffer:
    """A ring of transitions, each one float32 row `[obs, act, R, next_obs, discount]` of a tensor.

    R is the sum of the next n rewards, each discounted, and `discount` multiplies the value
    bootstrapped after them: gamma^n, gamma^k where the episode was cut after k < n steps, and 0
    where it ended in a terminal state. So y = R + discount * Q(next_obs, .) is the target
    everywhere, and the loss has no special case.
    """

    def __init__(self, capacity, obs_dim, act_dim, n_step=1, gamma=0.99, device="cpu"):
        self.columns = [obs_dim, act_dim, 1, obs_dim, 1]
        self.rows = torch.empty(capacity, sum(self.columns), device=device)  # untouched memory
        self.units = 0.0, 1.0  # shift and scale of rows, see Scales
        self.n_step, self.gamma = n_step, gamma
        self.pending, self.written = deque(), 0  # pending: the last steps, short of n rewards
        self.filled = torch.zeros((), dtype=torch.int64, device=device)  # len(self), for graphs

    def __len__(self):
        return min(self.written, len(self.rows))

    def add(self, obs, act, rew, next_obs, terminated, truncated):
        """Store a step: obs, next_obs (obs,), act (act,) in [-1, 1], in order.

        Where an episode ends, next_obs is its final one. A time limit (`truncated`) ends the
        rewards but not the world: only `terminated` stops the bootstrapping. Or FloatingPointError.
        """
        self.pending.append((np.concatenate([obs, act]), rew))  # a copy
        while self.pending and (len(self.pending) == self.n_step or terminated or truncated):
            n_step_return = 0.0
            for _, r in reversed(self.pending):
                n_step_return = r + self.gamma * n_step_return
            discount = 0.0 if terminated else self.gamma ** len(self.pending)
            first, _ = self.pending.popleft()
            R = n_step_return if abs(n_step_return) < 3.4e38 else np.nan  # or NumPy warns
            row = np.concatenate([first, [R], next_obs, [discount]])
            row = ((row - self.units[0]) * self.units[1]).astype(np.float32)
            if not all(map(math.isfinite, row.tolist())):
                raise FloatingPointError(f"R = {n_step_return:g}, or obs or act, is beyond float32")
            self.rows[self.written % len(self.rows)] = torch.from_numpy(row)
            self.written += 1

    def sample(self, batch_size, generator=None):
        """Draw obs (B, obs), act (B, act), R (B, 1), next_obs (B, obs), discount (B, 1)."""
        index = draw_rows(self, batch_size, generator)  # uniformly
        return self.rows.index_select(0, index).split(self.columns, dim=1)


# ---- networks ----


class MLP(nn.Module):
    """`n` multilayer perceptrons side by side, (B, in) -> (n, B, out): a product per layer.

    Weights start uniform in +-1/sqrt(inputs), and in +-0.003 in the last layer: first actions
    near 0, where tanh is not flat, and first values near 0 (arXiv:1509.02971, section 7).
    """

    def __init__(self, n, sizes, layer_norm=False):
        super().__init__()
        self.n, self.layer_norm = n, layer_norm
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:])):
            bound = 0.003 if i == len(sizes) - 2 else fan_in**-0.5
            self.weights.append(torch.empty(n, fan_in, fan_out).uniform_(-bound, bound))
            self.biases.append(torch.empty(n, 1, fan_out).uniform_(-bound, bound))

    def layers(self):
        """Pairs (weight, bias), twenty times as fast as by iterating over ParameterLists."""
        weights, biases = self._modules["weights"], self._modules["biases"]
        return zip(weights._parameters.values(), biases._parameters.values())

    def forward(self, x):
        x = x.expand(self.n, *x.shape)  # (B, in) -> (n, B, in)
        for i, (weight, bias) in enumerate(self.layers()):
            if i > 0 and self.layer_norm:
                x = F.layer_norm(x, x.shape[-1:])
            if i > 0:
                x = x.relu_()
            x = bmm(x, weight, bias)
        return x


class Actor(nn.Module):
    """mu(s): obs (B, obs) -> act (B, act) in [-1, 1]. Any nn.Module of these shapes will do."""

    def __init__(self, obs_dim, act_dim, config):
        super().__init__()
        self.net = MLP(1, [obs_dim, *config.hidden, act_dim])

    def forward(self, obs):
        return self.net(obs)[0].tanh()  # (1, B, act) -> (B, act)


class Critic(nn.Module):
    """Q_1(s, a) .. Q_n(s, a): obs (B, obs), act (B, act) -> (n, B, 1). Any nn.Module will do.

    Layer norm, here for the DDPG paper's batch norm, tames Q for unseen actions.
    """

    def __init__(self, obs_dim, act_dim, config):
        super().__init__()
        sizes = [obs_dim + act_dim, *config.hidden, 1]
        self.net = MLP(config.n_critics, sizes, config.layer_norm)

    def forward(self, obs, act):
        return self.net(torch.cat([obs, act], dim=-1))


class Flat:
    """A network's trainable parameters as one vector, `data`, of which they become views.

    Polyak averaging is then one lerp, and Adam sees one tensor; `grad` has their gradients. What
    would part them from it, as `.double()`, is a RuntimeError at one of the next updates.
    """

    def __init__(self, network):
        self.network = network
        self.params = [p for p in network.parameters() if p.requires_grad]
        if len({(p.dtype, p.device) for p in self.params}) != 1:
            raise ValueError(f"{type(network).__name__} needs parameters of one dtype and device")
        sizes = [p.numel() for p in self.params]
        self.data = torch.cat([p.detach().flatten() for p in self.params])
        self.grad = torch.zeros_like(self.data)
        self.grads = [grad.view_as(p) for p, grad in zip(self.params, self.grad.split(sizes))]
        for p, data in zip(self.params, self.data.split(sizes)):
            p.data = data.view_as(p)
        self.places = [p.data_ptr() for p in self.params]
        self.has_rest = bool(self.rest())

    def rest(self):
        """What does not learn, but belongs to the network: running statistics, frozen layers."""
        frozen = [p for p in self.network.parameters() if not p.requires_grad]
        return frozen + list(self.network.buffers())

    def gather(self):
        """Bring gradients into the vector, of which zero_grad() takes them out."""
        for p, grad, place in zip(self.params, self.grads, self.places):
            if p.data_ptr() != place or not p.requires_grad:
                self.check(self.network)
            if p.grad is not grad:
                grad.copy_(torch.zeros_like(grad) if p.grad is None else p.grad.detach())
                p.grad = grad

    def follow(self, other, tau):
        """Polyak averaging: go the part `tau` of the way to another network of this kind."""
        self.data.lerp_(other.data, tau)
        if self.has_rest:
            for mine, theirs in zip(self.rest(), other.rest()):
                mine.copy_(theirs)

    def check(self, network):
        """Raise RuntimeError if these are not the parameters of `network`."""
        params = [p for p in network.parameters() if p.requires_grad]
        same = [*map(id, params)] == [*map(id, self.params)]
        if not same or [p.data_ptr() for p in params] != self.places:
            text = "parameters were moved, converted, frozen or replaced after the agent was made"
            raise RuntimeError(f"{type(network).__name__}: {text}: do it in its __init__")

    def __reduce__(self):  # copies and pickles part views from their vector: join them again
        return Flat, (self.network,)


# ---- noise ----


class Noise:
    """Exploration noise, one recurrence: x <- (1 - theta) x + sigma eps, eps ~ N(0, 1) per action.

    theta = 1 is Gaussian white noise; less is an Ornstein-Uhlenbeck process, which pushes the same
    way for about 1/theta steps, and whose sd is sigma / sqrt(theta (2 - theta)).
    """

    def __init__(self, act_dim, theta, rng):
        self.theta, self.rng, self.x = theta, rng, np.zeros(act_dim)

    def reset(self):
        """At the start of each episode."""
        self.x[:] = 0

    def __call__(self, sigma):
        """The next x (act,), for a scale that may change."""
        self.x += sigma * self.rng.standard_normal(len(self.x)) - self.theta * self.x
        return self.x.copy()


# ---- agent ----


class Adam:
    """Adam (arXiv:1412.6980) on a network's one vector, by torch's own kernel. Any torch.optim
    optimizer can take its place, but importing them takes most of a second."""

    def __init__(self, flat, lr):
        self.flat, self.lr = flat, lr  # which may change at any time
        zeros = torch.zeros_like(flat.data)
        self.state = {"step": zeros.new_zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}

    def zero_grad(self):
        self.flat.gather()
        self.flat.grad.zero_()

    def step(self):
        self.flat.gather()
        k, m, v = self.state.values()
        k += 1
        whole = [self.flat.data], [self.flat.grad], [m], [v]
        parts = [x.split(4096) for (x,) in whole] if k.is_cuda else whole  # to fill the card
        torch._fused_adam_(
            *parts, [], len(parts[0]) * [k], lr=self.lr, beta1=0.9, beta2=0.999, eps=1e-8,
            weight_decay=0.0, amsgrad=False, maximize=False,
        )  # fmt: skip
        # Or autograd would go back through a graph of the old values without a word
        for p in self.flat.params:
            torch.autograd.graph.increment_version(p)

    def state_dict(self):
        return {"state": {0: self.state}, "param_groups": [{"lr": self.lr}]}

    def load_state_dict(self, saved):
        self.lr = float(saved["param_groups"][0]["lr"])
        for name, tensor in self.state.items():
            tensor.copy_(saved["state"][0][name])


class Agent:
    """DDPG and TD3 for observations of `obs_dim` numbers and actions from `low` to `high`, (act,).

    The networks speak [-1, 1]; `to_env` and `normalize` translate, each in one place. Replay and
    noise are the caller's. Raises ValueError for impossible bounds, sizes or networks.
    """

    NETWORKS = "actor", "critic", "actor_target", "critic_target"
    PARTS = *NETWORKS, "actor_optimizer", "critic_optimizer"
    SCALES = "obs_mean", "obs_scale", "reward_scale"  # fixed when learning starts
    MEASURE_EVERY = 100  # updates, as it takes as long as one

    def __init__(self, obs_dim, low, high, config, device="cpu"):
        self.obs_dim, self.config, self.device = obs_dim, config, torch.device(device)
        self.low, self.high = (np.asarray(bound, np.float32).ravel() for bound in (low, high))
        if not (np.isfinite([self.low, self.high]).all() and (self.low <= self.high).all()):
            raise ValueError(f"actions need finite bounds, not from {low} to {high}")
        self.obs_mean = torch.zeros(obs_dim, device=self.device)
        self.obs_scale = torch.ones_like(self.obs_mean)
        self.reward_scale = torch.tensor(config.reward_scale or 1.0, device=self.device)
        with FromSeed(config.seed):
            self.actor = Actor(obs_dim, len(self.low), config).to(self.device).eval()
            self.critic = Critic(obs_dim, len(self.low), config).to(self.device).eval()
            check_networks(self)
        self.actor_target, self.critic_target = copy.deepcopy((self.actor, self.critic))
        self.flat = {name: Flat(getattr(self, name)) for name in self.NETWORKS}
        self.actor_optimizer = Adam(self.flat["actor"], config.actor_lr)
        self.critic_optimizer = Adam(self.flat["critic"], config.critic_lr)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)  # of `update`
        self.updates = 0  # of the critic so far, which time the delayed ones
        self.metrics = torch.zeros(3, device=self.device)  # means of critic loss, actor loss, Q

    def act(self, obs):
        """The deterministic action for obs (obs,) or (B, obs), in the environment's units."""
        return self.to_env(self.act_unit(obs))

    @torch.inference_mode()
    def act_unit(self, obs):
        """mu(obs) in [-1, 1] as an array: obs (obs,) or (B, obs) -> (act,) or (B, act)."""
        obs = self.normalize(obs)
        if self.actor.training:  # where dropout would be noise
            self.actor.eval()
        return self.actor(obs.reshape(-1, self.obs_dim)).view(*obs.shape[:-1], -1).cpu().numpy()

    def normalize(self, obs):
        """Observations (.., obs) as the networks see them."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.device)
        if obs.shape[-1:] != (self.obs_dim,):
            raise ValueError(f"obs {tuple(obs.shape)} is not (.., {self.obs_dim})")
        return (obs - self.obs_mean) * self.obs_scale

    def to_env(self, act):
        """Actions (.., act) in [-1, 1] -> the environment's units, each by its own bounds."""
        return (self.low + (act + 1) / 2 * (self.high - self.low)).clip(self.low, self.high)

    def critic_loss(self, obs, act, target_q):
        """sum_i mean (Q_i(s, a) - y)^2, for obs s (B, obs), act a (B, act), target_q y (B, 1)."""
        q = self.critic(obs, act)  # (n, B, 1)
        return (q - target_q).square().mean(dim=(1, 2)).sum()

    def actor_loss(self, obs, act):
        """-mean Q_1(s, mu(s)), for obs s (B, obs); act (B, act) is what was done there."""
        return -self.critic(obs, self.actor(obs))[0].mean()

    def update(self, batch):
        """One update of DDPG (arXiv:1509.02971) and TD3 (arXiv:1802.09477), Algorithm 1 in both.

        batch: obs s (B, obs), act a (B, act), R (B, 1), next_obs s' (B, obs), discount (B, 1).

            y = R + discount * min_i Q'_i(s', a'),  a' = clip(mu'(s') + clip(target_noise * eps))
        """
        obs, act, R, next_obs, discount = batch
        config, clip = self.config, self.config.target_noise_clip
        self.updates += 1
        with torch.inference_mode():  # quicker than no_grad
            # Target policy smoothing: clipped noise on the target action
            eps = torch.randn(act.shape, generator=self.generator, device=self.device)
            noise = (config.target_noise * eps).clamp(-clip, clip)
            next_act = (self.actor_target(next_obs) + noise).clamp(-1, 1)
            # Clipped double-Q: bootstrap from the smallest target critic, (n, B, 1) -> (B, 1)
            target_q = R + discount * self.critic_target(next_obs, next_act).amin(dim=0)
        target_q = target_q.clone()  # for autograd
        if target_q.shape != (len(obs), 1):
            raise ValueError(f"R and discount must be ({len(obs)}, 1), for obs {tuple(obs.shape)}")
        if self.updates % self.MEASURE_EVERY == 1:
            self.measure(obs, act, target_q)
        if len(self.by_hand) < 2:  # networks of your own may differ as they learn
            self.actor.train()
            self.critic.train()
        self.descend(self.critic_optimizer, self.critic_loss, obs, act, target_q)
        # Delayed updates: the actor climbs the first critic, and the targets follow
        if self.updates % config.policy_delay == 0:
            self.descend(self.actor_optimizer, self.actor_loss, obs, act)
            self.flat["actor_target"].follow(self.flat["actor"], config.tau)
            self.flat["critic_target"].follow(self.flat["critic"], config.tau)

    def descend(self, optimizer, loss, *batch):
        """One step of the optimizer down the gradient of loss(*batch), a scalar."""
        name, gradient = self.by_hand.get(getattr(loss, "__func__", None), (None, None))
        if name and loss.__self__ is self and only_of(self.flat[name], optimizer):
            gradient(self, *batch)  # the same in half of the time, see Speed
        else:
            optimizer.zero_grad()
            loss(*batch).backward()
        optimizer.step()

    @functools.cached_property
    def by_hand(self):
        """{loss: (network, gradient by hand)}, while these are the file's own."""
        return gradients_that_agree(self)

    def measure(self, obs, act, target_q):
        """Running means of the losses and of Q, for progress.csv; also checks the networks."""
        check_gradients(self, obs, act, target_q)
        for name, flat in self.flat.items():
            flat.check(getattr(self, name).eval())  # where dropout draws nothing
        check_finite(self)
        q = check_networks(self, obs, act)
        losses = self.critic_loss(obs, act, target_q), self.actor_loss(obs, act)
        latest = torch.stack([*losses, q.mean()]).detach().float()
        self.metrics.lerp_(latest, max(0.1, 1 / (1 + self.updates // self.MEASURE_EVERY)))

    def state_dict(self):
        """All that `update` changes, for exact resumption."""
        state = {name: getattr(self, name).state_dict() for name in self.PARTS}
        state |= {name: getattr(self, name) for name in ("updates", "metrics", *self.SCALES)}
        return state | {"generator": self.generator.get_state()}

    def load_state_dict(self, state):
        """Go on from what `state_dict` returned."""
        for name in self.PARTS:
            getattr(self, name).load_state_dict(state[name])
        self.updates = int(state["updates"])
        for name in "metrics", *self.SCALES:
            getattr(self, name).copy_(state[name])
        self.generator.set_state(state["generator"])

    def save(self, path, env, step, evaluation=None):
        """Write a policy file, actor and critic: arrays that numpy can read, and a text of JSON."""
        arrays = {name: getattr(self, name).cpu().numpy() for name in self.SCALES}
        for name in "actor", "critic":
            for key, tensor in getattr(self, name).state_dict().items():
                arrays[f"{name}.{key}"] = tensor.cpu().numpy()
        meta = dict(format=FORMAT, env=env, step=step, evaluation=evaluation, versions=VERSIONS)
        meta |= dict(obs_dim=self.obs_dim, low=self.low.tolist(), high=self.high.tolist())
        write_npz(path, arrays, **meta, config=asdict(self.config))


# ======== Here the algorithm ends. The rest runs it fast and safely. ========

# ---- scales ----


def find_scales(agent, buffer):
    """Fix, once, from 100 random steps or more, how observations and rewards are scaled.

    Observations get mean 0 and an sd of 0.2 to 2, rewards a root mean square of 0.03 to 10. What
    is in between keeps its scale, as random steps say little of how far a trained agent gets.
    """
    if getattr(type(buffer), "add", None) is not ReplayBuffer.add:  # which scales what follows
        return warn("a buffer with an `add` of its own: observations and rewards are not scaled")
    obs, _, R, *_ = buffer.rows[: len(buffer)].split(buffer.columns, dim=1)
    obs, R, enough = obs.cpu().double(), R.cpu().double(), len(obs) >= 100
    if agent.config.normalize and enough:
        sd, mean = torch.std_mean(obs, dim=0)
        size = torch.where(sd > 1e-5, sd, mean.abs().clamp(min=1))  # what has not moved yet may
        agent.obs_mean.copy_(mean)
        agent.obs_scale.copy_(size.clamp(0.2, 2) / size)
    if agent.config.reward_scale is None and enough:
        size = R.square().mean().sqrt() / buffer.n_step
        agent.reward_scale.copy_(torch.where(size > 1e-5, size.clamp(0.03, 10) / size, 1))
    rescale(buffer, agent)


def rescale(buffer, agent):
    """Let rows, those written too, hold what the networks see."""
    mean, scale, zero = agent.obs_mean, agent.obs_scale, agent.reward_scale.new_zeros(1)
    act = zero.expand(buffer.columns[1])
    new_shift = torch.cat([mean, act, zero, mean, zero])
    new_scale = torch.cat([scale, act + 1, zero + agent.reward_scale, scale, zero + 1])
    rows, (old_shift, old_scale) = buffer.rows[: len(buffer)], map(zero.new_tensor, buffer.units)
    rows.div_(old_scale).add_(old_shift).sub_(new_shift).mul_(new_scale)
    buffer.units = new_shift.cpu().numpy(), new_scale.cpu().numpy()


# ---- speed ----

LARGE_PRODUCT = 2**22  # multiplications, from which other kernels pay


@functools.cache
def onednn_is_faster():
    """Whether the processor is AMD's Zen 5 or later, which MKL, torch's own, keeps to half of its
    width. Elsewhere MKL is as fast, or faster. Asked, not timed, as it decides the last bits."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except (OSError, ValueError):  # there is none: Windows names it here
        text = platform.processor()
    family = re.search(r"family\D+(\d+)", text, re.IGNORECASE)
    return "AuthenticAMD" in text and family is not None and int(family[1]) >= 26


@functools.cache
def onednn():
    """torch's undocumented operator for oneDNN's products, or None."""
    with suppress(AttributeError, RuntimeError):
        product, ones = torch.ops.mkldnn._linear_pointwise, torch.ones(16, 16)
        return product if product(ones, ones, None, "none", [], "").sum() == 16**3 else None


def bmm(a, b, bias=None, out=None):
    """a (n, i, k) @ b (n, k, j) + bias (n, 1, j) -> (n, i, j)."""
    n, i, k = a.shape
    if n > 1 and k == 1 and bias is None:  # outer products, which torch.bmm is slow at
        return torch.mul(a, b, out=out)
    # Autograd does not know what follows
    if i * k * k >= LARGE_PRODUCT and a.is_cpu and not torch.is_grad_enabled():
        j = b.shape[-1]
        if n > 1 and i > 1 and j == 1:  # columns: MKL is ten times as fast with rows
            out = None if out is None else out.view(n, 1, i)
            return bmm(b.view(n, 1, k), a.mT, bias, out).mT
        if min(i, k, j) >= 16 and onednn_is_faster() and onednn():
            terms = zip(a, b.mT, [None] * n if bias is None else bias[:, 0])
            products = [onednn()(x, y, z, "none", [], "") for x, y, z in terms]
            return products[0][None] if n == 1 and out is None else torch.stack(products, out=out)
    return torch.bmm(a, b, out=out) if bias is None else torch.baddbmm(bias, a, b, out=out)


def forward_by_hand(net, x, n):
    """The first n networks of an MLP -> their output (n, B, out), and a tape for the way back."""
    x, tape, norm = x.expand(n, *x.shape), [], None
    for weight, bias in net.layers():
        w, b = (weight, bias) if n == net.n else (weight[:n], bias[:n])
        if tape and net.layer_norm:
            z = x
            x, *moments = torch.native_layer_norm(z, z.shape[-1:], None, None, 1e-5)
            norm = z, z.shape[-1:], *moments
        if tape:
            x = x.relu_()
        tape.append((x, w, norm, weight, bias))
        x = bmm(x, w, b)
    return x, tape


def backward_by_hand(tape, grad, of_input=False):
    """The chain rule: dloss/doutput (n, B, out) -> `grad` of the parameters, or dloss/dinput."""
    while tape:
        x, w, norm, weight, bias = tape.pop()
        if not of_input:
            if weight.grad is None or bias.grad is None:  # after zero_grad()
                with torch.inference_mode(False):  # as others may change them
                    weight.grad, bias.grad = torch.zeros_like(weight), torch.zeros_like(bias)
            bmm(x.mT, grad, out=weight.grad)
            torch.sum(grad, 1, keepdim=True, out=bias.grad)
        if tape or of_input:
            grad = bmm(grad, w.mT)
        if tape:
            grad = torch.ops.aten.threshold_backward(grad, x, 0)  # of relu: 0 where x is
        if norm:
            inputs = grad, *norm, None, None, (True, False, False)
            grad = torch.ops.aten.native_layer_norm_backward(*inputs)[0]
    return grad


@torch.inference_mode()
def critic_gradient(agent, obs, act, target_q):
    net = agent.critic.net
    q, tape = forward_by_hand(net, torch.cat([obs, act], dim=-1), net.n)
    backward_by_hand(tape, 2 / len(obs) * (q - target_q))


@torch.inference_mode()
def actor_gradient(agent, obs, act):
    output, actor_tape = forward_by_hand(agent.actor.net, obs, 1)
    pi = output[0].tanh()
    q1, tape = forward_by_hand(agent.critic.net, torch.cat([obs, pi], dim=-1), 1)
    grad = backward_by_hand(tape, torch.full_like(q1, -1 / len(obs)), of_input=True)
    grad = torch.ops.aten.tanh_backward(grad[0, :, obs.shape[-1] :], pi)
    backward_by_hand(actor_tape, grad[None])


class Original:
    """The losses whose gradients these are: other code in Agent is another loss."""

    def critic_loss(self, s, a, y):
        """sum_i mean (Q_i(s, a) - y)^2"""
        q = self.critic(s, a)
        return (q - y).square().mean(dim=(1, 2)).sum()

    def actor_loss(self, s, a):
        """-mean Q_1(s, mu(s))"""
        return -self.critic(s, self.actor(s))[0].mean()


def gradients_that_agree(agent):
    """{loss: gradient by hand} where it is autograd's: losses original, networks doing the same."""
    agree = {}
    if agent.device.type == "cuda":  # where graphs do it better
        return agree
    for name, gradient in ("critic", critic_gradient), ("actor", actor_gradient):
        loss = getattr(getattr(agent, f"{name}_loss"), "__func__", None)
        with suppress(Exception), torch.random.fork_rng(devices=[]):  # autograd will say the same
            codes = loss.__code__, getattr(Original, f"{name}_loss").__code__
            ours, original = ((c.co_code, c.co_names, c.co_consts[1:]) for c in codes)
            frozen = agent.flat[name].has_rest
            if ours == original and not frozen and same_gradient(agent, name, loss, gradient):
                agree[loss] = name, gradient
        if loss not in agree:
            warn(f"{name}_loss by autograd, as changed here")
    return agree


def same_gradient(agent, name, loss, gradient):
    """Whether they agree, also on tiny and huge errors, saturated actions and dead units."""
    trial = copy.copy(agent)
    trial.actor, trial.critic = copy.deepcopy((agent.actor, agent.critic))
    trial.flat = {"actor": Flat(trial.actor), "critic": Flat(trial.critic)}
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(0))
    for of_params, of_obs, of_target in (0.1, 1, 1), (0.1, 1, 1e3), (1, 0.01, 1), (1, 10, 1e6):
        for flat in trial.flat.values():
            flat.data.copy_(of_params * draw(len(flat.data)))
        obs, act = of_obs * draw(32, agent.obs_dim), draw(32, len(agent.low)).clamp(-1, 1)
        batch = [x.to(agent.device) for x in (obs, act, of_target * draw(32, 1))]
        if not difference(trial, name, loss, gradient, batch) <= 1e-4:  # nor nan
            return False
    return True


def difference(agent, name, loss, gradient, batch):
    """How far a gradient by hand is from autograd's, as a part of it."""
    flat, grads, precision = agent.flat[name], [], precision_of_products()
    for network in agent.actor, agent.critic:
        network.train()
    try:
        if precision:
            torch.set_float32_matmul_precision("highest")
        for side in lambda *batch: loss(*batch).backward(), gradient:
            flat.gather()
            flat.grad.zero_()  # what the other side left
            side(agent, *(batch if name == "critic" else batch[:2]))
            flat.gather()
            grads.append(flat.grad.clone())
    finally:
        if precision:
            torch.set_float32_matmul_precision(precision)
    return (grads[0] - grads[1]).norm() / grads[0].norm().clamp(min=1e-30)


def check_gradients(agent, *batch):
    """Raise RuntimeError if, on a real batch, a gradient by hand is no longer autograd's."""
    if agent.updates % (10 * agent.MEASURE_EVERY) != 1:
        return
    for loss, (name, gradient) in agent.by_hand.items():
        if difference(agent, name, loss, gradient, batch) > 1e-3:
            text = "its network has changed, or has hooks: set agent.by_hand = {} beforehand"
            raise RuntimeError(f"the gradient of {name}_loss by hand is not autograd's: {text}")


def only_of(flat, optimizer):
    """Whether an optimizer moves nothing but parameters of this vector."""
    if isinstance(optimizer, Adam):
        return optimizer.flat is flat
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    return held <= {id(p) for p in flat.params}


def draw_rows(buffer, n, generator):
    """Indices (n,) of random rows; on CUDA in a way that a graph can repeat as the replay grows."""
    if not buffer.rows.is_cuda:
        return torch.randint(len(buffer), (n,), generator=generator, device=buffer.rows.device)
    if not torch.cuda.is_current_stream_capturing():
        buffer.filled.fill_(len(buffer))
    uniform = torch.rand(n, dtype=torch.float64, generator=generator, device=buffer.rows.device)
    return (uniform * buffer.filled).long()


class Unread:
    """`updates` of an agent that is captured: a graph may depend on its divisors, no more."""

    def __init__(self, updates, *divisors):
        self.updates, self.divisors = updates, divisors

    def __add__(self, more):
        return Unread(self.updates + more, *self.divisors)

    def __mod__(self, divisor):
        if divisor not in self.divisors:
            raise TypeError(f"a graph cannot hold updates % {divisor}")
        return self.updates % divisor

    __eq__ = __bool__ = None


class Graphs:
    """`learn` of a Training and `act_unit` of its agent on CUDA, captured and then replayed.

    These are the same kernels in the same order, so the same bits, without the time it takes to
    launch them. The first replays, and some later on, are compared with the code that they stand
    for. What cannot be captured, or does what no graph can, goes on without, and a line says so.
    """

    # Calls of each kind: cuBLAS must have seen all there is; a prime meets every phase
    WARM_UP, COMPARED, COMPARE_EVERY = 60, 50, 997

    def __init__(self, run):
        self.run, self.stream, self.changes = run, torch.cuda.Stream(), -1
        self.held, self.tensors, self.values = [], [], None
        sizes = run.agent.obs_dim, len(run.agent.low)
        self.input, self.output = (torch.zeros(1, size).pin_memory() for size in sizes)
        self.obs = self.input.to(run.agent.device)
        run.agent.MEASURE_EVERY = 10 * Agent.MEASURE_EVERY  # as long as ten replays

    def learn(self):
        run, agent = self.run, self.run.agent
        number = agent.updates + 1
        if number % agent.MEASURE_EVERY == 1:
            return self.aside(run.learn)
        if torch.is_tensor(filled := getattr(run.buffer, "filled", None)):  # not in one's own
            filled.fill_(len(run.buffer))
        kind = "update" if number % agent.config.policy_delay else "delayed update"
        self.do(kind, run.learn, run.learn, [flat.data for flat in agent.flat.values()])
        agent.updates = number

    def act_unit(self, obs):
        def plain():
            self.output.copy_(torch.from_numpy(self.run.agent.act_unit(obs[None])))

        self.input.copy_(torch.from_numpy(obs))
        self.do("action", self.act, plain, [self.output])
        torch.cuda.current_stream().synchronize()
        return self.output.numpy()[0].copy()

    @torch.inference_mode()
    def act(self):
        self.obs.copy_(self.input, non_blocking=True)
        agent = self.run.agent
        self.output.copy_(agent.actor.eval()(agent.normalize(self.obs)), non_blocking=True)

    def do(self, kind, work, plain, results):
        """work(), replayed, or plain(), which must make the same results."""
        self.begin_anew_if_changed()
        count = self.counts[kind] = self.counts.get(kind, 0) + 1
        early = count <= self.WARM_UP + self.COMPARED
        if self.changes > 20:
            self.give_up("numbers of the agent change all the time")
        if count <= self.WARM_UP or self.run.graphs is None:
            return self.aside(plain)
        if kind not in self.graphs and not self.capture(kind, work):
            return self.aside(plain)
        if not early and count % self.COMPARE_EVERY:
            return self.graphs[kind].replay()
        put_back, before = self.snapshot(), [x.clone() for x in results]
        self.graphs[kind].replay()
        torch.cuda.current_stream().synchronize()
        replayed = [x.clone() for x in results]
        put_back()
        self.aside(plain)
        for old, new, now in zip(before, replayed, results):
            if not (now - new).norm() <= 1e-3 * (now - old).norm():
                check_finite(self.run.agent)
                text = f"replaying the {kind} is not the same: it depends on more than tensors"
                if not early:  # then other replays were wrong, too
                    raise RuntimeError(f"{text}: pass --no-graphs, or set run.graphs = None")
                return self.give_up(text)

    def begin_anew_if_changed(self):
        """Graphs hold memory and numbers: they are for these objects and values only."""
        run, agent = self.run, self.run.agent
        held = [agent, agent.config, run.config, run.buffer, getattr(run.buffer, "rows", None)]
        held += [getattr(agent, name) for name in agent.PARTS]
        items = [item for x in (agent, *self.optimizers()) for item in vars(x).items()]
        values = [(k, v) for k, v in items if type(v) in (int, float) and k != "updates"]
        before = self.held + self.tensors
        if [*map(id, held + self.own_tensors())] != [*map(id, before)] or values != self.values:
            self.held, self.values, self.graphs, self.counts = held, values, {}, {}
            self.tensors = self.own_tensors()
            self.changes += 1

    def own_tensors(self):
        return [x for x in vars(self.run.agent).values() if torch.is_tensor(x)]

    def optimizers(self):
        return self.run.agent.actor_optimizer, self.run.agent.critic_optimizer

    def aside(self, work):
        """On the stream of the captures, as what will be captured must have run."""
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            work()
        torch.cuda.current_stream().wait_stream(self.stream)
        self.tensors = self.own_tensors()  # those that it made itself, too

    def snapshot(self):
        """-> a function that puts back what a call may change."""
        agent = self.run.agent
        state, drawn = copy.deepcopy(agent.state_dict()), torch.cuda.get_rng_state(agent.device)
        own = [x.detach() for x in self.own_tensors()]
        copies = [x.clone() for x in own]

        def put_back():
            agent.load_state_dict(state)
            torch.cuda.set_rng_state(drawn, agent.device)
            for tensor, value in zip(own, copies):
                tensor.copy_(value)

        return put_back

    def capture(self, kind, work):
        """Whether there is now a graph of work(), none of which has run."""
        agent, stream, graph = self.run.agent, torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        updates, mode = agent.updates, torch.cuda.get_sync_debug_mode()
        try:
            if not all(isinstance(optimizer, Adam) for optimizer in self.optimizers()):
                raise TypeError("other optimizers replace their tensors")
            graph.register_generator_state(agent.generator)
            with torch.cuda.graph(graph, stream=self.stream):
                agent.updates = Unread(updates, agent.MEASURE_EVERY, agent.config.policy_delay)
                torch.cuda.set_sync_debug_mode("error")  # .item() raises before it spoils all
                work()
            self.graphs[kind] = graph
        except Exception as error:
            torch.cuda.set_stream(stream)
            self.give_up(f"{type(error).__name__}: {error}")
        finally:
            torch.cuda.set_sync_debug_mode(mode)
            agent.updates = updates
            self.tensors = self.own_tensors()
        return kind in self.graphs

    def give_up(self, why):
        self.run.graphs = None
        warn(f"slower, without CUDA graphs: {why}")


PRECISIONS = "highest", "high", "medium"  # torch's: float32; TF32 on CUDA; bfloat16 with AMX, too


def precision_of_products():
    """One of PRECISIONS, or None where it was set by torch's newer, finer settings."""
    with suppress(RuntimeError):
        return torch.get_float32_matmul_precision()


def tune(config, threads=None, precision=None):
    """Settings of the whole process: threads (1), denormals, seed, memory. Or UsageError.

    Call it first, in the thread that trains: denormals are flushed only in threads made later.
    """
    if threads not in (None, *range(1, 257)):
        raise UsageError(f"threads: {one_line(threads)} is not 1 to 256")
    if precision not in (None, *PRECISIONS):
        raise UsageError(f"precision: {one_line(precision)} is not {', '.join(PRECISIONS)}")
    cores = free = os.cpu_count() or 1
    with suppress(AttributeError, OSError):  # not everywhere is it known
        free = max(0, cores - round(os.getloadavg()[0]))  # of the last minute
        free = min(free, len(os.sched_getaffinity(0)))
    if (threads or 1) > max(1, free):
        text = "they wait for each other, which may take 10 times as long"
        warn(f"{threads} threads, but {free} of {cores} cores are free: {text}")
    torch.set_num_threads(threads or 1)
    if precision:
        torch.set_float32_matmul_precision(precision)
    for kind in np.float32, np.float64:
        np.finfo(kind)  # NumPy before 2.4 measures denormals, and warns if flushed
    if torch.set_flush_denormal(True):  # they make layers many times slower
        denormals = torch.ones(2**20, dtype=torch.int32).view(torch.float32)  # for each thread
        if (1 * denormals).view(torch.int32).any():
            warn("torch had threads before, which keep denormals: last bits may differ")
    torch.manual_seed(config.seed)  # for dropout
    # Or glibc returns what large layers free, and asks for it at the next update
    with suppress(AttributeError, OSError, TypeError):  # another libc has no mallopt
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


# ---- checks ----


def one_line(value, most=120):
    """A value as errors show it."""
    try:
        text = " ".join(str(value).split())
    except Exception:  # of its own
        text = f"(a {type(value).__name__})"
    text = "".join(c if c.isprintable() else "?" for c in text)  # a terminal may obey others
    return text if len(text) <= most else text[: most - 2] + ".."


def say(text, end="\n", file=None):
    """Print what may be lost: no full disk and no closed pipe ends a training."""
    with suppress(OSError, ValueError):
        print(text, end=end, file=file, flush=True)


def warn(text):
    """At most three lines, of at most 200 characters."""
    lines = f"ddpg.py: {text}".splitlines()[:3]
    say("\n".join(one_line(line, 200) for line in lines), file=sys.stderr)


@contextmanager
def refusing(name, what, *passing):
    """What is raised within, sys.exit() too, is a UsageError, but for `passing`."""
    try:
        yield
    except (KeyboardInterrupt, *passing):
        raise
    except BaseException as error:
        said = message = one_line(error)
        if not message or not isinstance(error, ValueError | ArithmeticError):  # unclear by itself
            said = type(error).__name__ + f": {message}" * bool(message)
        raise UsageError(f"{one_line(name)} {what}: {said}{place(error, not message)}") from error


def place(error, needed):
    """Where in the user's own files an error arose; if needed, in any."""
    frames = traceback.extract_tb((error.__cause__ or error).__traceback__)
    installed = __file__, os.path.dirname(os.__file__), str(Path(gym.__file__).parents[1]), "<"
    own = [frame for frame in frames if not frame.filename.startswith(installed)]
    for frame in (own or frames * needed)[-1:]:
        return f" at {os.path.basename(frame.filename)}:{frame.lineno}: {one_line(frame.line)}"
    return ""


def in_json(value):
    """A copy of a dict as files will hold it, or UsageError if that is another one."""
    with suppress(TypeError, ValueError, RecursionError):
        text = json.dumps(value, indent=1, allow_nan=False)  # by a space for each level
        if "\n" + " " * 50 not in text and len(text) < 10**5 and json.loads(text) == value:
            return json.loads(text)
    text = "JSON must hold it: texts as keys; no tuples, functions or nan; 50 deep, 100,000 long"
    raise UsageError(f"env_kwargs: {text}, at most")


def checked(f, value):
    """The value of a field of Config, or UsageError."""
    item, *several = get_args(f.type) or [f.type]  # several of them in a tuple
    low, high = f.metadata["low"], f.metadata["high"]
    values = list(value) if several and isinstance(value, list | tuple) else [value]
    values = [v.item() if isinstance(v, np.generic) else v for v in values]
    if values == [None] and f.default is None:
        return None
    for v in values:
        fits = type(v) is item or (type(v) is int and item is float)
        if not fits or (low is not None and not low <= v <= high):  # nor is nan
            span = "" if low is None else f" between {low:,} and {high:,}"
            raise UsageError(f"{f.name}: {one_line(repr(v))} is not {item.__name__}{span}")
    if item is dict:
        return in_json(*values)
    return tuple(values) if several else values[0]


class FromSeed(TorchFunctionMode):
    """Lets torch draw, within it and in this thread, from a generator of its own."""

    DRAWS = (
        "uniform_ normal_ kaiming_uniform_ bernoulli_ exponential_ log_normal_ cauchy_ geometric_ "
        "random_ rand randn randint randperm normal multinomial bernoulli poisson "
        "rand_like randn_like randint_like"
    ).split()

    def __init__(self, seed):
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(self, function, types, args=(), kwargs=None):
        drawn = {"generator": self.generator} if function.__name__ in self.DRAWS else {}
        return function(*args, **(kwargs or {}) | drawn)


def check_networks(agent, obs=None, act=None):
    """Q(obs, act) (n, B, 1), or ValueError for other shapes or an actor that is not bounded."""
    if obs is None:
        spread = torch.linspace(-300, 300, 8, device=agent.device)[:, None]
        obs, act = spread.expand(8, agent.obs_dim), spread.expand(8, len(agent.low)) / 300
    actions, q = agent.actor(obs), agent.critic(obs, act)
    shapes = [tuple(output.shape) for output in (actions, q)]
    wanted = [tuple(act.shape), (agent.config.n_critics, len(obs), 1)]
    if shapes != wanted:
        raise ValueError(f"of a batch of {len(obs)}, networks make {shapes}, not {wanted}")
    if actions.abs().max() > 1:
        raise ValueError("the actor makes actions beyond [-1, 1]: let it end in a tanh")
    return q


def check_finite(agent):
    """Raise FloatingPointError if it has diverged: learning would stop without a word."""
    held = [(f"parameters of the {name}", flat.data) for name, flat in agent.flat.items()]
    held += [(name, getattr(agent, name)) for name in agent.SCALES]
    for name in "critic_optimizer", "actor_optimizer":
        for state in getattr(agent, name).state_dict().get("state", {}).values():
            held += [(f"{key} of the {name}", value) for key, value in state.items()]
    for what, value in held:
        if torch.is_tensor(value) and not value.isfinite().all():
            raise FloatingPointError(f"{what} has become {value[~value.isfinite()][0].item()}")


# ---- files ----

FORMAT = 2  # of policy files; 1 had no scales
TEMPORARY = ".unfinished"  # at the end of a name
VERSIONS = {package.__name__: str(package.__version__) for package in (torch, gym, np)}
NEEDED = {"Python": (3, 10), "torch": (2, 4), "gymnasium": (1, 0), "numpy": (1, 21)}
for (name, least), found in zip(NEEDED.items(), [platform.python_version(), *VERSIONS.values()]):
    if (*map(int, re.findall(r"\d+", found)[:2]),) < least:
        text = f"ddpg.py needs {name} {least[0]}.{least[1]} or newer, not {found}"
        if __name__ == "__main__":
            say(text, file=sys.stderr)
            sys.exit(2)
        raise ImportError(text)
MACHINE = {"cpu": torch.backends.cpu.get_cpu_capability(), "onednn": onednn_is_faster()}
MACHINE |= VERSIONS  # what decides the last bits


def write(path, save, previous=None, check=lambda: None):
    """Replace a file by what save(file) writes, whole or not at all; the old becomes `previous`.

    check() may raise before that.
    """
    temporary = path.with_name(path.name + TEMPORARY)
    try:
        with open(temporary, "wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        check()
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_npz(path, arrays, **meta):
    """Write arrays and a text of JSON, uncompressed, to a path or an open file."""
    if not hasattr(path, "write"):
        return write(Path(path), lambda file: write_npz(file, arrays, **meta))
    text = json.dumps(meta, default=lambda number: number.item())
    np.savez(path, meta=np.array(text), **arrays)


class InParts(io.FileIO):
    """A file that is read in parts, as large arrays are, or not at all."""

    def read(self, size=-1):
        if size > 2**22:
            raise ValueError("its list of arrays, or its meta, is too long")
        return super().read(size)


def read_npz(path):
    """What write_npz wrote -> (arrays, each read when it is looked up, meta): data, never code.

    Raises UsageError, and in an instant, whatever is in the file.
    """
    with refusing(path, "cannot be read"):
        if not Path(path).is_file():
            raise ValueError("no such file")  # nor a folder, a pipe or a device
        arrays = np.lib.npyio.NpzFile(InParts(path), own_fid=True, allow_pickle=False)
        members, size = arrays.zip.infolist(), Path(path).stat().st_size
        packed = any(m.compress_type for m in members) or sum(m.file_size for m in members) > size
        if packed or len({m.filename for m in members}) < len(members):  # it may be anything
            raise ValueError("it is compressed, or two of its arrays have one name")
        meta = arrays["meta"]
        if meta.shape or meta.dtype.kind != "U":  # it may make a text without end
            raise ValueError("its meta is not a text")
        return arrays, json.loads(meta.item())


def pack(tree, arrays):
    """Dicts and lists as JSON has them, with their tensors in `arrays`."""

    def put(value):
        if not torch.is_tensor(value):
            return value.item()  # a number of NumPy's
        name = f"tensor{len(arrays)}"
        arrays[name] = value.detach().cpu().numpy()
        return {"__tensor__": name}

    return json.loads(json.dumps(tree, default=put))


def unpack(tree, arrays):
    """What `pack` was given; torch's optimizers number their parameters' dicts."""
    unread = set(arrays)

    def get(found):
        if "__tensor__" in found:
            unread.remove(found["__tensor__"])  # or a small file may ask for much
            return torch.from_numpy(arrays[found["__tensor__"]])
        numbered = all(key.isdigit() and isinstance(v, dict) for key, v in found.items())
        return {int(key): v for key, v in found.items()} if numbered else found

    return json.loads(json.dumps(tree), object_hook=get)


def existing(folder, *names):
    """Those of these files that a run's folder has, or UsageError."""
    paths = [folder / name for name in names if os.path.exists(folder / name)]
    if not paths:
        text = "it is not the folder of a run, or one killed before it was first saved"
        raise UsageError(f"{one_line(folder)} has no {names[0]}: {text}")
    return paths


def bytes_of_networks(obs_dim, act_dim, config):
    """What a file of an Actor and a Critic has at least."""
    with torch.device("meta"):  # which takes no memory
        states = [network(obs_dim, act_dim, config).state_dict() for network in (Actor, Critic)]
    return sum(tensor.nbytes for state in states for tensor in state.values())


def load(path, device="cpu"):
    """A policy file, or the best one of a run's folder -> an Agent with `meta`, or UsageError."""
    path = Path(path)
    if os.path.isdir(path):
        path = existing(path, "best.npz", "last.npz")[0]
    arrays, meta = read_npz(path)
    with refusing(path, "is not a policy file"):
        if meta.get("format") == 1:
            meta["config"].pop("obs_scale", None)  # its weights are divided by it
        config, bounds = Config(**meta["config"]), np.float32([meta["low"], meta["high"]])
        step, score = meta["step"], meta["evaluation"]
        sound = meta["format"] in (1, FORMAT) and type(step) is int and 0 <= step <= 10**12
        sound = sound and (score is None or math.isfinite(score)) and meta["env"].isprintable()
        if not sound:
            raise ValueError("of another format")
        sizes = meta["obs_dim"], bounds.shape[1]
        nbytes = bytes_of_networks(*sizes, config)
        if not nbytes <= path.stat().st_size <= 2 * nbytes + 2**25:
            raise ValueError("its arrays are not those of its networks")
        agent = Agent(sizes[0], *bounds, config, device)
        for name, network in ("actor", agent.actor), ("critic", agent.critic):
            own = {key: torch.from_numpy(arrays[f"{name}.{key}"]) for key in network.state_dict()}
            network.load_state_dict(own)
            agent.flat[f"{name}_target"].follow(agent.flat[name], tau=1)
        for name in agent.SCALES if meta["format"] > 1 else ():
            scale = getattr(agent, name).copy_(torch.from_numpy(arrays[name]))
            if name != "obs_mean" and not (scale > 0).all():
                raise ValueError(f"its {name} is not positive")
        check_finite(agent)
    agent.meta = meta | {"path": str(path)}
    return agent


# ---- environments ----


class TrainingError(Exception):
    """A training cannot go on."""


class EnvError(TrainingError):
    """An environment, or the agent in it, failed or gave what is not finite."""


SIGNALS = []  # that have come: loops look here, as foreign code might swallow an exception


class Stopped(Exception):
    """An evaluation was left because of a signal."""


ONLY_ONE = "where only one can exist at a time: the object, with eval_every=0"


def env_makers(config, env=None):
    """env, as in Training -> functions that make it to train and to evaluate, obs_dim, its actions.

    Raises UsageError for what does not exist or DDPG cannot control.
    """
    name, limit, own = one_line(config.env), config.max_episode_steps, isinstance(env, gym.Env)
    beside = bool(config.eval_every)  # evaluations begin within episodes
    if env is None and config.env_kwargs.get("render_mode") == "human":  # before a window opens
        raise UsageError(f"{name}: {HUMAN}")

    def make(env=env):
        if env is None:
            kwargs = {"disable_env_checker": True} | copy.deepcopy(config.env_kwargs)
            return gym.make(config.env, limit or None, **kwargs)
        made = env if isinstance(env, gym.Env | gym.vector.VectorEnv) else env()
        if isinstance(made, gym.vector.VectorEnv):
            raise UsageError(f"{name} is a vector of environments: pass one of them")
        return gym.wrappers.TimeLimit(made, limit) if limit else made

    def close(made):
        with refusing(name, "cannot be closed"):
            made.close()

    with refusing(name, "cannot be made", UsageError):
        probe = make()
        for problem in problems(probe, config, env):  # the first
            raise UsageError(f"{name}: {problem}")
        spaces = gym.spaces.flatdim(probe.observation_space), probe.action_space
    if own and beside:
        hint = f"pass a function that makes it; {ONLY_ONE}"
        with refusing(name, f"cannot be copied for evaluation ({hint})"):
            pristine = copy.deepcopy(env)
            changed = differences(env, lambda: copy.deepcopy(pristine))
        if changed:
            text = f"its copy for evaluation has another {', '.join(changed[:3])}"
            raise UsageError(f"{name}: {text}: pass a function that makes it as it is now")
        return make, lambda: make(copy.deepcopy(pristine)), *spaces
    if not own:
        if not beside:
            close(probe)
        if beside or env is not None:
            text = f", beside the first, for evaluation ({ONLY_ONE})" * beside
            with refusing(name, f"cannot be made again{text}", UsageError):
                other = make()
                if other.unwrapped is probe.unwrapped:  # or wrapped anew
                    raise UsageError(f"{name}: it must make a new one each time; {ONLY_ONE}")
            close(other)
        if beside:
            close(probe)
    return make, make, *spaces


def differences(env, make):
    """Names of the attributes that an environment has otherwise than what make() makes.

    Copies may be made from a constructor's arguments, which know of no changes since. What use or
    chance changes is left out: it is alike after a reset, or differs among those made, too.
    """
    made = make()
    found = unlike(values_in(env), values_in(made))
    made.close()
    for _ in range(5 if found else 0):
        looks = []
        for steps in 0, 20:
            made = make()
            made.reset(seed=1)
            for _ in range(steps):
                if any(made.step(made.action_space.sample())[2:4]):
                    made.reset()
            if steps:
                made.reset()
                with suppress(Exception):
                    made.render()
            made.reset(seed=0)
            looks.append(values_in(made))
            made.close()
        env.reset(seed=0)
        found &= unlike(values_in(env), looks[0]) - unlike(looks[1], looks[0])
    return sorted(found)


def unlike(these, those):
    """Names of other values; what only `these` have may come with use, but for a function."""
    these = {k: v for k, v in these.items() if k in those or callable(v[0])}
    return {k for k, v in these.items() if not alike(v, those.get(k, (None, None)))}


def alike(these, those):
    """Whether two (value, pickled) are: sets are pickled in any order, arrays compared by item."""
    with suppress(Exception):
        return (these[1] and these[1] == those[1]) or bool(these[0] == those[0])
    return False


def values_in(env):
    """{attribute: (value, pickled)} of an environment and its wrappers."""
    found = {}
    for name, value in vars(env).items():
        if isinstance(value, gym.Env):
            found |= values_in(value)
        elif isinstance(value, gym.Space):  # which remembers what was drawn
            found[name] = value, None
        elif not isinstance(value, gym.envs.registration.EnvSpec):  # kept where asked for
            try:
                found[name] = value, pickle.dumps(value)
            except Exception:
                found[name] = value, type(value).__name__
    return found


HUMAN = 'render_mode "human" would draw each step: use --watch or viewer.py'


def parts_of(space, name="observation"):
    """Names and spaces of what a Dict or a Tuple holds, at the lowest level."""
    if isinstance(space, gym.spaces.Dict):
        parts = space.items()
    elif isinstance(space, gym.spaces.Tuple):
        parts = enumerate(space)
    else:
        return [(name, space)]
    return [inner for key, part in parts for inner in parts_of(part, f"{name}[{key!r}]")]


def problems(probe, config, env):
    """What makes an environment impossible: each relies on the absence of those before."""
    observations, actions = probe.observation_space, probe.action_space
    for name, space in parts_of(observations):
        said = f"its {name} is {one_line(space)}"
        if not space.is_np_flattenable or isinstance(space, gym.spaces.Text | gym.spaces.OneOf):
            yield f"{said}, of no fixed size: wrap it to make a Box of it"
        if len(space.shape) > 1 and space.dtype == np.uint8:
            yield f"{said}, images: wrap it to features"
    if gym.spaces.flatdim(observations) == 0:
        yield "its observations are empty"
    said = f"its actions are {one_line(actions)}"
    continuous = isinstance(actions, gym.spaces.Box) and actions.dtype.kind == "f"
    if not continuous or 0 in actions.shape:
        yield f"{said}: DDPG needs continuous ones, a Box of floats"
    if not (actions.high.astype(float) - actions.low < 3.4e38).all():
        yield f"{said}, unbounded"
    if getattr(probe, "render_mode", None) == "human":
        yield HUMAN
    if env is None:
        if not f":{config.env}".endswith(f":{probe.spec.id}"):
            yield f"name its version, as in {probe.spec.id}"
        if not probe.spec.max_episode_steps:
            yield "it has no time limit: pass --max-episode-steps"
    while isinstance(probe, gym.Wrapper):
        if isinstance(probe, gym.wrappers.NormalizeObservation | gym.wrappers.NormalizeReward):
            text = "has statistics that are in no policy: leave it out, as scales are found anyway"
            yield f"{type(probe).__name__} {text}"
        probe = probe.env


def name_of(env):
    """The id of an object that is as gymnasium makes it, else the name of a class or function."""
    spec = getattr(env, "spec", None)
    with suppress(Exception):
        if gymnasiums_own(spec) and spec == gym.registry[spec.id]:  # no arguments, no wrappers
            if not differences(env, lambda: gym.make(spec.id)):
                return spec.id
    return getattr(env, "__name__", type(getattr(env, "unwrapped", env)).__name__)


def gymnasiums_own(spec):
    return spec is not None and str(spec.entry_point).startswith("gymnasium.")


def env_maker_of(policy, **changes):
    """A function that makes the environment of a loaded policy, or the one that `changes` name.

    Raises UsageError if it does not fit, or if a file names one that is not gymnasium's own: files
    must not run code.
    """
    path, name = policy.meta["path"], policy.meta["env"]
    if "env" not in changes and not gymnasiums_own(gym.registry.get(name)):
        text = f"{path} is for {one_line(name)}, which gymnasium does not bring: name it by --env"
        raise UsageError(text)
    changes = {"env": name, "eval_every": 0} | changes  # which needs no second one
    _, make_env, obs_dim, space = env_makers(replace(policy.config, **changes))
    sizes, wanted = [obs_dim, space.low.size], [policy.obs_dim, len(policy.low)]
    if sizes != wanted:
        raise UsageError(f"{path} is for {wanted} observations and actions, not {sizes}")
    return make_env


class Episode:
    """One episode, from `seed`, in an environment made for it: checks what goes in and out, and
    flattens observations as gymnasium.spaces.flatten does: Dicts in the order of their space,
    Discrete parts one-hot. Raises EnvError."""

    LONGEST = 100_000  # steps, where there is no limit

    def __init__(self, make_env, seed):
        self.seed, self.length, self.ret = int(seed), 0, 0.0
        self.terminated = self.over = False
        self.success = None  # True or False at the end, if the environment says so
        self.env = env = self.call(make_env)
        self.space, self.observations = self.call(lambda: (env.action_space, env.observation_space))
        self.size = self.call(gym.spaces.flatdim, self.observations)
        obs, _ = self.call(env.reset, seed=self.seed, returns=2)
        self.obs = self.flat(obs)

    def step(self, action):
        """action (act,) in the environment's units -> rew, obs (obs,), terminated, truncated."""
        action = self.checked("action", action, self.space.dtype, action.size)
        action = action.reshape(self.space.shape).clip(self.space.low, self.space.high)
        self.length += 1
        obs, rew, terminated, truncated, info = self.call(self.env.step, action, returns=5)
        self.obs = self.flat(obs)
        rew = self.checked("reward", rew, np.float64, 1).item()
        self.ret += rew
        if not abs(self.ret) < 1e150:  # its square is part of a standard deviation
            raise self.error(f"a return of {self.ret:g} is too large")
        self.terminated = self.truth("terminated", terminated)
        truncated = self.truth("truncated", truncated)
        self.over = self.terminated or truncated
        if self.over:
            with suppress(Exception):  # it may say anything
                said = info["is_success" if "is_success" in info else "success"]
                self.success = {0: False, 1: True}[np.asarray(said).item()]
        elif self.length >= self.LONGEST and self.length > self.limit():
            raise self.error("no end in sight, set max_episode_steps")
        return rew, self.obs, self.terminated, truncated

    def close(self):
        self.call(self.env.close)

    def limit(self):
        """The time limit that the environment, or a wrapper of it, declares, or 0."""
        with suppress(Exception):
            return int(self.env.spec.max_episode_steps)
        with suppress(Exception):  # TimeLimit around an object without a spec
            return int(self.env.get_wrapper_attr("_max_episode_steps"))
        return 0

    def call(self, method, *args, returns=None, **kwargs):
        """What the environment returns; whatever it raises, sys.exit() too, is an EnvError."""
        try:
            result = method(*args, **kwargs)
            if returns and len(result) != returns:
                raise TypeError(f"{method.__name__} returned {len(result)} things, not {returns}")
            return result
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # whose traceback is shown
            raise self.error(f"{type(error).__name__}: {one_line(error)}") from error

    def flat(self, obs):
        """An observation as a vector (obs,)."""
        if type(self.observations) is not gym.spaces.Box:
            obs = self.call(gym.spaces.flatten, self.observations, obs)
        return self.checked("observation", obs, np.float32, self.size)

    def checked(self, name, value, dtype, size):
        with suppress(Exception):  # which values of others may raise
            array = np.array(value)  # a copy
            if array.dtype.kind in "biufO":  # neither complex numbers nor texts
                if array.dtype != dtype:
                    with np.errstate(over="ignore"):  # it is an error below
                        array = array.astype(dtype)
                array = array.reshape(size)
                if all(map(math.isfinite, array.tolist())):
                    return array
        raise self.error(f"{name} {one_line(value)} is not finite and of size {size}")

    def truth(self, name, value):
        if isinstance(value, bool):
            return value
        with suppress(Exception):
            array = np.asarray(value)
            if array.dtype.kind in "biu":
                return {0: False, 1: True}[array.item()]
        raise self.error(f"{name} {one_line([value])[1:-1]} is neither True nor False")

    def error(self, what):
        where = f"at step {self.length} of the episode with seed {self.seed}"
        return EnvError(f"{one_line(what)}, {where}")


AT_ONCE = 20  # episodes of an evaluation, as actions for all of them are quicker


def evaluate(agent, env, seeds):
    """One deterministic episode per seed -> returns (N,), lengths (N,), in the order of `seeds`.

    env: a function that makes one for each episode, some of which are open side by side where
    that can be; or a gymnasium.Env, for one after another, as is what a function returns again.
    Raises EnvError or, within a step of a signal, Stopped.
    """
    return play(agent, env, seeds)[:2]


def play(agent, env, seeds):
    """What `evaluate` returns, and (N,) whether the last step was a success; None: not said."""
    finished, episodes = [], []

    def make():
        nonlocal env
        made = env if isinstance(env, gym.Env) else env()
        if any(made.unwrapped is e.env.unwrapped for e in episodes):
            env = made  # which is not ours to close
            raise ValueError("it is in use")
        return made

    while len(finished) < len(seeds):
        try:
            for seed in seeds[len(finished) :][:AT_ONCE]:
                if SIGNALS:
                    raise Stopped
                try:
                    episodes.append(Episode(make, seed))
                except EnvError:
                    if not episodes:
                        raise
                    break  # perhaps there can be no more: these first
            while running := [e for e in episodes if not e.over]:
                actions = agent.act(np.stack([e.obs for e in running]))
                for episode, action in zip(running, actions):
                    if SIGNALS:
                        raise Stopped
                    episode.step(action)
        finally:
            for episode in episodes:
                if not isinstance(env, gym.Env):
                    episode.close()
        finished += [(e.ret, e.length, e.success) for e in episodes]
        episodes.clear()
    returns, lengths, successes = zip(*finished)
    return np.array(returns), np.array(lengths), successes


def summary(returns, lengths, successes=()):
    """Statistics of episodes: number, mean, sd and range of returns, mean length, and the share
    of successes, where any episode says whether it was one."""
    stats = {name: getattr(returns, name)() for name in ("mean", "std", "min", "max")}
    stats = dict(episodes=len(returns), **stats, length=lengths.mean())
    if {*successes} - {None}:
        stats["success"] = successes.count(True) / len(successes)
    return stats


def success_rate(share):
    """As it is said after a score."""
    return "" if share is None else f", success rate {share:.1%}"


# ---- training ----

# Seeds of final tests start at 0, those of evaluations, which choose the best policy, and of
# training here: no policy is tested on what it has seen. Many environments take 31 bits at most
SELECTION_SEEDS, TRAINING_SEEDS = 1_000_000, 2**30
CONFIRM_EPISODES = TEST_EPISODES = 100


class Training:
    """A training run: iterate over it to train. Yields itself before each step and at the end.

    `run.stop = True` ends it where the episode under way ends, and it can be saved.

    env: None for config.env, an id, a function that makes one, or a gymnasium.Env, of which
    evaluation uses copies. agent: Agent, or a class of your own. init: a policy file, or a run's
    folder, to begin from: its networks and scales, and its noisy actions instead of random ones.
    Raises UsageError for what DDPG cannot control, EnvError for what misbehaves. Call `tune` first.
    """

    def __init__(self, config, env=None, device="cpu", agent=Agent, init=None):
        policy = load(init, device) if init else None  # first: environments may change the folder
        if isinstance(env, str):
            config, env = replace(config, env=env), None
        self.env_given = env is not None
        if env is not None:
            config = replace(config, env=name_of(env))
        self.config, self.own_env = config, isinstance(env, gym.Env)
        self.make_env, self.make_eval_env, obs_dim, space = env_makers(config, env)
        sizes = config.buffer_size, obs_dim, space.low.size, config.n_step
        try:
            self.agent = agent(obs_dim, space.low, space.high, config, device)
            if policy:
                begin_from(policy, self.agent)
            self.buffer = ReplayBuffer(*sizes, config.gamma, device)
            rescale(self.buffer, self.agent)
        except RuntimeError as error:
            if "memory" not in str(error):
                raise
            text = f"networks and {sizes[0]:,} rows (buffer_size) do not fit: {one_line(error)}"
            raise UsageError(text) from None
        self.init = policy and policy.meta["path"]
        self.rng = np.random.default_rng(config.seed)
        self.noise = Noise(space.low.size, config.noise_theta, self.rng)
        device = self.agent.device  # of several cards, it must be the one that torch has chosen
        here = device.type == "cuda" and device.index in (None, torch.cuda.current_device())
        self.graphs = Graphs(self) if here else None
        self.started, self.stop, self.busy = time.perf_counter(), False, False
        self.step, self.episodes, self.episode = 0, 0, None  # None: between two episodes
        self.filled_from = 0  # the step since which there is a replay
        self.returns, self.lengths = [], []  # of the latest 10 episodes
        self.best, self.solved = -np.inf, None  # mean of evaluation; step
        self.evaluation, self.is_best = None, False  # of this step: a row of progress.csv
        self.measured = 0, 0.0  # the step and second since which the next one tells the speed
        self.tables = {"episodes.csv": [], "progress.csv": []}  # lines
        self.saved, self.spoilt = None, False  # the state file that is the latest, see `record`

    def __iter__(self):
        c = self.config
        if self.busy:
            raise RuntimeError("interrupted within a step, it can only go on by resume(folder)")
        try:
            while True:
                due = c.eval_every and (self.step % c.eval_every == 0 or self.step == c.total_steps)
                if due and not self.evaluation:
                    self.evaluation = self.evaluate()
                yield self
                stopped = self.episode is None and (self.stop or SIGNALS)
                solved = c.stop_when_solved and self.solved is not None
                if stopped or solved or self.step >= c.total_steps:
                    check_finite(self.agent)
                    break
                self.advance()
        except Stopped:  # when resumed, it evaluates again
            pass
        except FloatingPointError as error:
            self.leave_episode()
            raise EnvError(f"{error} after step {self.step:,} in episode {self.episodes}") from None
        except EnvError:
            self.leave_episode()
            raise
        self.leave_episode()

    def leave_episode(self):
        if self.episode and not self.own_env:
            with suppress(EnvError):
                self.episode.close()

    def advance(self):
        """One environment step, and the updates that go with it."""
        self.busy = True
        c, agent, step = self.config, self.agent, self.step + 1
        if self.episode is None:
            self.start_episode()
        # Act: at random at first, then as the actor says plus noise, annealed linearly
        obs = self.episode.obs
        if step <= c.learning_starts and not self.init:
            act = self.rng.uniform(-1, 1, len(agent.low))
        else:
            sigma = c.noise_sigma
            if c.noise_sigma_end is not None:
                annealing = [0, c.noise_anneal * c.total_steps]
                sigma = np.interp(step, annealing, [c.noise_sigma, c.noise_sigma_end])
            act = ((self.graphs or agent).act_unit(obs) + self.noise(sigma)).clip(-1, 1)
        # Remember the action as it is executed
        act = act.astype(np.float32)
        rew, next_obs, terminated, truncated = self.episode.step(agent.to_env(act))
        self.buffer.add(obs, act, rew, next_obs, terminated, truncated)
        self.step, self.evaluation = step, None
        if step == self.filled_from + c.learning_starts and not (self.init or agent.updates):
            find_scales(agent, self.buffer)
        # Learn
        if step > self.filled_from + c.learning_starts:
            for _ in range(c.updates_per_step):
                (self.graphs or self).learn()
        if self.episode.over:
            self.end_episode()
        self.busy = False

    def learn(self):
        """One update, from the replay. On CUDA `graphs` does the same, faster."""
        self.agent.update(self.buffer.sample(self.config.batch_size, self.agent.generator))

    def start_episode(self):
        """From its own seed, in a new environment, as reset does not undo everything."""
        seed = np.random.SeedSequence([self.config.seed, self.episodes]).generate_state(1)[0]
        self.noise.reset()
        self.episode = Episode(self.make_env, TRAINING_SEEDS + int(seed) // 4)  # below 2^31

    def end_episode(self):
        """Note how it went. Now the run can be saved and resumed."""
        e = self.episode
        row = {"step": self.step, "episode": self.episodes, "seed": e.seed, "return": e.ret}
        self.add_row("episodes.csv", row | {"length": e.length, "terminated": e.terminated})
        self.returns, self.lengths = [*self.returns, e.ret][-10:], [*self.lengths, e.length][-10:]
        self.episodes += 1
        if not self.own_env:
            e.close()
        self.episode = None

    def add_row(self, table, row):
        """Cells of columns that the row lacks, or that rows before it lacked, are nan."""
        lines = self.tables[table] or [",".join(row) + "\n"]
        columns = lines[0].strip().split(",")
        for name in sorted(row.keys() - columns):
            columns.append(name)
            lines = [f"{line.strip()},nan\n" for line in lines]
            lines[0] = ",".join(columns) + "\n"
        row = dict.fromkeys(columns, np.nan) | row
        cells = [str(v) if isinstance(v, (int, str)) else f"{v:.6g}" for v in row.values()]
        lines.append(",".join(cells) + "\n")
        self.tables[table] = lines

    def evaluate(self):
        """-> a row of progress.csv. More episodes confirm what looks solved."""
        c, agent = self.config, self.agent
        goal = np.inf if c.solved_at is None else c.solved_at
        for n in sorted({c.eval_episodes, max(CONFIRM_EPISODES, c.eval_episodes)}):
            seeds = range(SELECTION_SEEDS, SELECTION_SEEDS + n)
            returns, *more = play(agent, self.make_eval_env, seeds)
            mean = returns.mean()
            if mean < goal:
                break
        if mean >= goal and self.solved is None:
            self.solved = self.step
        self.is_best, self.best = bool(mean > self.best), max(self.best, mean)
        seconds = time.perf_counter() - self.started
        speed = (self.step - self.measured[0]) / max(seconds - self.measured[1], 1e-9)
        self.measured = self.step, seconds
        critic_loss, actor_loss, q = agent.metrics.tolist() if agent.updates else [np.nan] * 3
        q /= agent.reward_scale.item()  # in the environment's units
        row = dict(step=self.step, episodes=self.episodes, seconds=seconds)
        row |= dict(steps_per_s=speed, train_return=np.mean(self.returns or np.nan))
        row |= {f"eval_{key}": value for key, value in summary(returns, *more).items()}
        row |= dict(critic_loss=critic_loss, actor_loss=actor_loss, mean_q=q)
        self.add_row("progress.csv", row)
        return row

    FIELDS = "init step episodes filled_from returns lengths best solved evaluation".split()

    def state(self):
        """All that the rest of the run depends on, between two episodes -> arrays, meta.

        What you add goes in here and into `restore`, or into FIELDS, or an agent's `state_dict`.
        """
        arrays = {"torch_rng": torch.get_rng_state().numpy()}
        if self.agent.device.type == "cuda":
            arrays["cuda_rng"] = torch.cuda.get_rng_state(self.agent.device).numpy()
        for name, lines in self.tables.items():
            arrays[name] = np.frombuffer("".join(lines).encode(), np.uint8)
        meta = {name: getattr(self, name) for name in self.FIELDS}
        meta |= dict(agent=pack(self.agent.state_dict(), arrays), rng=self.rng.bit_generator.state)
        meta |= dict(made_by=type(self.agent).__name__, env_given=self.env_given)
        meta |= dict(obs_dim=self.agent.obs_dim, act_dim=len(self.agent.low))
        meta |= dict(seconds=time.perf_counter() - self.started, written=self.buffer.written)
        if self.config.save_replay:
            arrays["rows"] = self.buffer.rows[: len(self.buffer)].cpu().numpy()
        return arrays, meta | self.circumstances() | {"machine": MACHINE}

    def circumstances(self):
        """What config.json says."""
        said = dict(device=str(self.agent.device), threads=torch.get_num_threads())
        said |= dict(precision=precision_of_products(), init=self.init)
        return dict(config=asdict(self.config), versions=VERSIONS) | said

    def restore(self, arrays, meta):
        """Go on from what `state` returned: exactly, but for a replay that is not in it."""
        vars(self).update({name: meta[name] for name in self.FIELDS})
        counts = [self.step, self.episodes, self.filled_from, self.solved or 0, *self.lengths]
        shown = "eval_mean", "eval_std", "eval_episodes", "steps_per_s", "eval_success"
        row = {"eval_success": 0} | (self.evaluation or dict.fromkeys(shown, 0))
        scores = self.best, meta["seconds"], *self.returns, *map(row.get, shown)
        if not all(type(n) is int and n >= 0 for n in counts) or any(map(math.isnan, scores)):
            raise ValueError("its counts or scores are none")
        for name in self.tables:
            table = bytes(arrays[name]).decode()
            if table.count("\n") > self.step + 2:
                raise ValueError(f"its {name} is too long")
            self.tables[name] = table.splitlines(keepends=True)
        self.agent.load_state_dict(unpack(meta["agent"], arrays))
        rescale(self.buffer, self.agent)
        torch.set_rng_state(torch.from_numpy(arrays["torch_rng"]))
        if self.agent.device.type == "cuda" and "cuda_rng" in arrays:  # not if it was on a CPU
            torch.cuda.set_rng_state(torch.from_numpy(arrays["cuda_rng"]), self.agent.device)
        self.rng.bit_generator.state = meta["rng"]
        self.started = time.perf_counter() - meta["seconds"]
        self.measured = self.step, meta["seconds"]
        if "rows" in arrays:
            self.buffer.written = meta["written"]
            self.buffer.rows[: len(self.buffer)] = torch.from_numpy(arrays["rows"])
        else:
            self.filled_from = self.step


def begin_from(policy, agent):
    """Give an agent a loaded policy's networks and scales, or UsageError if they do not fit."""
    path, given = one_line(policy.meta["path"]), agent.config.reward_scale
    pairs = dict(
        observations=(policy.obs_dim, agent.obs_dim),
        actions=(len(policy.low), len(agent.low)),
        reward_scale=(scale := f"{policy.reward_scale:.6g}", f"{given:.6g}" if given else scale),
    )
    for name in "hidden", "layer_norm", "n_critics", "normalize":
        pairs[name] = getattr(policy.config, name), getattr(agent.config, name)
    differ = [f"{name} {old} -> {new}" for name, (old, new) in pairs.items() if old != new]
    if differ:
        raise UsageError(f"{path} does not fit: {', '.join(differ)}")
    with refusing(path, "does not fit"):  # networks of your own
        state, names = policy.state_dict(), (*policy.NETWORKS, *policy.SCALES)
        agent.load_state_dict(agent.state_dict() | {name: state[name] for name in names})
    if not np.array_equal([policy.low, policy.high], [agent.low, agent.high]):
        warn(f"{path} knows other bounds of actions: what it does is scaled to these")
    if not policy.meta["step"]:
        warn(f"{path} is of step 0: its run had learnt nothing yet")


def configure(init=None, **explicit):
    """The preset of an environment or, to begin from a policy, its Config, but for what is of
    another environment. explicit: fields that override it. Raises UsageError."""
    if not init:
        return Config.preset(**explicit)
    policy = load(init)
    own = {"env": policy.meta["env"]}
    if "env" not in explicit:
        env_maker_of(policy)  # or UsageError, as a file may name only what gymnasium brings
    elif explicit["env"] != own["env"]:
        solved_at = Config.preset(explicit["env"]).solved_at
        own = dict(env_kwargs={}, max_episode_steps=0, solved_at=solved_at)
    return policy.config.replace(**own | explicit)


def train(
    config, env=None, out=None, device="cpu", threads=None, agent=Agent,
    init=None, verbose=False, **changes
):  # fmt: skip
    """Train to the end -> the agent of the last step. env, agent, init: as in Training.

    config: a Config, or the id of an environment, for its preset. changes: to its fields. out: a
    new folder for tables, policies and state; load(out) is the best policy. verbose: print progress
    as the command line does, which iterates over watch(record(run, new_folder(out))), too:

        run = Training(Config.preset("Pendulum-v1"))
        for run in watch(record(run, new_folder("runs/mine"))):
            ...  # before each step, and at the end
    """
    if isinstance(config, str):
        config = configure(init, **{"env": config} | changes)
    else:
        config = config.replace(**changes)
    tune(config, threads)
    folder = out and Path(out).absolute()  # an environment may change the working folder
    run = Training(config, env, device, agent, init)
    steps = record(run, new_folder(folder)) if out else iter(run)
    with closing(steps):
        for _ in watch(steps) if verbose else steps:
            pass
    return run.agent


# ---- a run's folder ----

# The state is saved when the run is twice as old, after at most so many seconds, and for at most
# this share of the time
SAVE_EVERY, SAVE_SHARE = 60.0, 0.02


def new_folder(folder):
    """Make the folder of a new run, or UsageError."""
    folder = Path(folder)
    with refusing(folder, "cannot be the folder of a new run"):
        if folder.exists() and any(folder.iterdir()):
            raise ValueError("it is not empty: --resume it, or take another --out")
        (folder / "policies").mkdir(parents=True)
    return folder


LOCKS = set()  # handles; a process that an environment forks must not hold them longer than we do


def let_go(handles=LOCKS):
    for handle in LOCKS & handles:
        LOCKS.remove(handle)
        os.close(handle)


def after_fork():
    let_go()
    for number in signal.SIGINT, signal.SIGTERM:  # or nobody could terminate that process
        if signal.getsignal(number) is on_signal:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)


@contextmanager
def lock(folder):
    """Keep the folder for this process -> its handle, None on Windows. Or UsageError."""
    if os.name == "nt":  # it has no such locks
        yield None
        return
    import fcntl

    with refusing(folder, "cannot be locked"):
        handle = os.open(folder, os.O_RDONLY)
    LOCKS.add(handle)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder} is in use by another training or loop") from None
        yield handle
    finally:
        let_go({handle})


def generation(path):
    """What tells one file at this path from the next, or None where there is none."""
    with suppress(FileNotFoundError):
        stat = os.stat(path)
        return stat.st_ino, stat.st_mtime_ns


def record(run, folder):
    """Iterate over a Training and keep its folder: a new one, or that of the run resumed.

    The state is saved between two episodes; what a kill or a `break` loses after that, resuming
    computes again; `run.stop = True` loses nothing. A full disk delays files; an agent that has
    diverged is not saved. Raises UsageError, later TrainingError, for a folder that is not this
    run's, and OSError if the last save fails.
    """
    folder, agent, c = Path(folder).absolute(), run.agent, run.config
    state_file, waiting = folder / "state.npz", {}
    began, save_at, warned = time.perf_counter(), 0.0, False

    def still_ours():
        with suppress(FileNotFoundError, NotADirectoryError):
            if handle is None or os.path.samestat(os.fstat(handle), os.stat(folder)):
                return
        raise TrainingError(f"{folder} has been moved or replaced: nothing more is written")

    def put(name, save, previous=None):
        still_ours()
        (folder / name).parent.mkdir(exist_ok=True)
        write(folder / name, save, previous, still_ours)

    def sound():
        with suppress(FloatingPointError):
            check_finite(agent)
            return True

    def add_policy(names):
        if names and sound():
            score = run.evaluation and run.evaluation["eval_mean"]
            agent.save(file := io.BytesIO(), c.env, run.step, score)
            waiting.update(dict.fromkeys(names, file.getvalue()))

    def save(state, tables):
        """Write what waits, these tables and, if asked to, the state: as many as can be."""
        waiting.update({name: "".join(run.tables[name]).encode() for name in tables})
        errors = []
        for name, data in list(waiting.items()):
            try:
                if data:
                    put(name, lambda file: file.write(data))
                del waiting[name]
            except OSError as error:
                errors.append(error)
        if state and sound():
            arrays, meta = run.state()
            previous = None if run.spoilt else folder / "state.previous.npz"
            put(state_file.name, lambda file: write_npz(file, arrays, **meta), previous)
            run.saved, run.spoilt = generation(state_file), False
        if errors:
            raise errors[0]

    def finish():
        add_policy(["last.npz"])
        save(run.episode is None, run.tables)

    with lock(folder) as handle:
        if generation(state_file) not in (None, run.saved):
            raise UsageError(f"{folder} has a state that is not this run's: resume it again")
        with refusing(folder, "cannot be written", TrainingError):
            snapshots = folder.glob("policies/" + 12 * "[0-9]" + ".npz" + TEMPORARY)
            files = "config.json", *run.tables, "last.npz", "best.npz", state_file.name
            for path in [*snapshots, *(folder / f"{name}{TEMPORARY}" for name in files)]:
                path.unlink(missing_ok=True)  # of a killed run
            text = json.dumps(run.circumstances(), indent=1).encode()
            put("config.json", lambda file: file.write(text))
        try:
            for _ in run:
                names = ["last.npz", "best.npz"][: 1 + run.is_best] if run.evaluation else []
                if run.step % math.ceil(c.total_steps / 50) == 0:
                    names.append(f"policies/{run.step:012d}.npz")
                add_policy(names)
                now = time.perf_counter()
                near_end = run.step + max(run.lengths, default=0) >= c.total_steps
                due = run.episode is None and (now >= save_at or near_end)
                try:
                    if run.evaluation or due:
                        save(due, run.tables if due else ["progress.csv"])  # the other is long
                    if due:
                        done = time.perf_counter()
                        pause = max(min(SAVE_EVERY, now - began), (done - now) / SAVE_SHARE)
                        save_at = done + pause
                except OSError as error:
                    if not warned:
                        warn(f"training goes on, but cannot save to {folder}: {error}")
                    warned, save_at = True, now + 1
                yield run
            finish()
        except EnvError:  # others may come within an update
            try:
                finish()
            except OSError as error:
                warn(f"cannot save to {folder}: {error}")
            raise


def resume(folder, env=None, device=None, threads=None, agent=Agent, precision=None, **changes):
    """The Training whose folder this is, as it was last saved, with its `tune`, or UsageError.

    env, agent: as in Training. changes: to its Config, of which few are possible.
    """
    folder = Path(folder).absolute()
    if isinstance(env, str):
        changes, env = changes | {"env": env}, None
    given = env, device, threads, agent, precision, changes
    latest, *before = existing(folder, "state.npz", "state.previous.npz")
    saved = generation(folder / "state.npz")  # before it is read, as a training may go on
    try:
        run = begin_again(latest, *given)
    except UsageError as error:
        if not str(error).startswith(one_line(latest)):  # it is not of the file
            raise
        try:
            run = begin_again(before.pop(), *given)
        except (IndexError, UsageError):
            raise error from None
        run.spoilt = True
        warn(f"{error}; going on from the state before")
    run.saved = saved
    return run


def begin_again(path, env, device, threads, agent, precision, changes):
    """The Training that a state file is of, or UsageError."""
    arrays, meta = read_npz(path)
    with refusing(path, "cannot be resumed", UsageError):
        if "obs_scale" in meta["config"]:
            raise ValueError("it is of an older ddpg.py: finish it by that, or --init its policy")
        old, free = Config(**meta["config"]), ("total_steps", "stop_when_solved", "save_replay")
        config = replace(old, **changes)
        pairs = zip(vars(old).items(), vars(config).values())
        fixed = [f"{k} {a} -> {b}" for (k, a), b in pairs if a != b and k not in free]
        if fixed:
            raise UsageError(f"a run keeps its configuration, without {', '.join(fixed)}")
        if ":" in config.env and env is None and "env" not in changes:
            raise UsageError(f"{path} may import nothing: name {one_line(config.env)} by --env")
        size, least, sizes = path.stat().st_size, 0, (meta["obs_dim"], meta["act_dim"])
        if meta["made_by"] == Agent.__name__:
            with suppress(Exception):  # networks of your own may need a real device
                least = bytes_of_networks(*sizes, config)
        if least > size:
            raise ValueError("its networks are larger than the file")
        tune(config, threads or meta["threads"], precision or meta.get("precision"))
        run = Training(config, env, device or meta["device"], agent)
        if meta["made_by"] != type(run.agent).__name__ or meta["env_given"] != run.env_given:
            own = f"agent={meta['made_by']}" + " and env=.. of your own" * bool(meta["env_given"])
            raise UsageError(f"{path} was trained with {own}: pass them to resume again")
        most = 2**24 + 200 * meta["step"] + run.buffer.rows[: meta["written"]].nbytes
        most += 4 * sum(array.nbytes for array in run.state()[0].values())
        if size > most:
            raise ValueError("its arrays are larger than those of its training")
        with arrays:
            run.restore(arrays, meta)
        if meta["machine"] != MACHINE:
            warn(f"saved on {meta['machine']}: last bits may differ")
        if "rows" not in arrays:
            warn(f"no updates for {config.learning_starts:,} steps, without the replay")
        return run


# ---- command line ----


def parse(argv):
    """argv -> options, and the fields of Config that it sets, or UsageError."""

    def refuse(message):
        raise UsageError(f"{one_line(message)}; --help lists all flags")

    def JSON(text):  # argparse calls it by this name
        with suppress(RecursionError):
            return json.loads(text)
        raise ValueError

    kind = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=kind, allow_abbrev=False)
    parser.epilog = "presets, which any flag overrides:"
    for env, preset in PRESETS.items():
        parser.epilog += f"\n  {env}: " + ", ".join(f"{k} {v}" for k, v in preset.items())
    parser.error, add = refuse, parser.add_argument
    mode = parser.add_mutually_exclusive_group().add_argument
    mode("--eval", metavar="RUN", help="test the best policy of a run's folder, or a policy file")
    mode("--resume", metavar="RUN", help="go on with the run in this folder")
    mode("--out", metavar="DIR", help="the run's folder (default runs/ENV/ALGO-seedSEED[-2 ..])")
    add("--init", metavar="RUN", help="begin from this run's best policy, or a policy file")
    add("--episodes", type=int, default=TEST_EPISODES, help="test episodes to run (default 100)")
    devices = ["auto", "cpu", *["cuda"] * torch.cuda.is_available()]
    devices += ["mps"] * torch.backends.mps.is_available()
    add("--device", default="auto", choices=devices, help="auto: cuda for 128-128 and larger")
    add("--threads", type=int, metavar="N", help="CPU threads (default 1)")
    add("--precision", choices=PRECISIONS, help="of products, as torch has it (default highest)")
    add("--no-graphs", action="store_true", help="on CUDA: replay nothing, to debug")
    add("--watch", action="store_true", help="open the viewer beside the training")
    add("--quiet", action="store_true", help="print the final test only")
    add("--json", action="store_true", help="print the final test only, as a line of JSON")
    for f in fields(Config):
        item, *several = get_args(f.type) or [JSON if f.type is dict else f.type]
        kind = dict(type=item, metavar=item.__name__)
        if item is bool:
            kind = dict(action=argparse.BooleanOptionalAction)
        if several:
            kind["nargs"] = "+"
        text = f.metadata["help"] + f" (default {f.default})" * (f.default is not None)
        add("--" + f.name.replace("_", "-"), default=argparse.SUPPRESS, help=text, **kind)
    options = parser.parse_args(argv)
    options.quiet |= options.json
    if "" in (options.eval, options.resume, options.out, options.init):
        refuse("--eval, --resume, --out and --init need a name")
    if options.init and (options.eval or options.resume):
        refuse("--init begins a new training: it goes with neither --eval nor --resume")
    explicit = {f.name: getattr(options, f.name) for f in fields(Config) if f.name in options}
    fixed = explicit.keys() - {"env", "env_kwargs", "max_episode_steps"}
    if options.eval and fixed:
        refuse(f"--eval keeps the policy's configuration, without {', '.join(sorted(fixed))}")
    if not 1 <= options.episodes <= 10**6:
        refuse("--episodes must be 1 to 1,000,000")
    return options, explicit


def print_test(policy, make_env, options, **more):
    """Test a policy on episodes that neither its training nor its choice saw."""
    result = {key: policy.meta[key] for key in ("path", "env", "step")} | more
    result |= summary(*play(policy, make_env, range(options.episodes)))
    text = "{path}, the policy of step {step:,}:\n{mean:.1f} ± {std:.1f} over {episodes} test "
    text += "episodes (min {min:.1f}, max {max:.1f}, mean length {length:.0f})"
    text += success_rate(result.get("success"))
    text = json.dumps(result) if options.json else text.format(**result)
    if options.eval or options.quiet:  # all that was asked for: it must not get lost
        print(text, flush=True)
    else:
        say(text)


def train_command(options, explicit):
    """Train or resume, until done or stopped by a signal; test the best policy -> exit code."""
    device, viewer, here = options.device, Path(__file__).with_name("viewer.py"), Path.cwd()
    if options.watch and not viewer.exists():
        raise UsageError(f"--watch needs {viewer}")
    if options.resume:
        shown, device = Path(options.resume), None if device == "auto" else device
        machine = dict(device=device, threads=options.threads, precision=options.precision)
        run = resume(shown, **machine, **explicit)
        basis = f"from step {run.step:,}"
    else:
        c = configure(options.init, **explicit)
        tune(c, options.threads, options.precision)
        if device == "auto":  # from where an update takes about 1 ms on a CPU
            large = c.batch_size * max(c.hidden, default=0) ** 2 >= 2**21
            device = "cuda" if large and torch.cuda.is_available() else "cpu"
        name = Path("runs", re.sub("[:/]", "-", c.env), f"{c.algo}-seed{c.seed}")
        shown, number = Path(options.out or name), 1
        run = Training(c, None, device, init=options.init)
        while not options.out and os.path.lexists(here / shown):
            number += 1
            shown = Path(f"{name}-{number}")
        new_folder(here / shown)
        defaults = "its preset" if c.env in PRESETS else "no preset: defaults"
        basis = f"from {options.init}" if options.init else defaults
    if options.no_graphs:
        run.graphs = None
    folder = here / shown  # an environment may have changed the working folder
    c, steps = run.config, record(run, folder)
    own = ["--env", c.env] * (":" in c.env)
    named = shlex.join(["./" * str(shown).startswith("-") + str(shown), *own])

    def tell(text):
        if not options.quiet:
            say(text)

    text = f"{c.algo} on {c.env} ({basis}), seed {c.seed}, {run.agent.device}, "
    text += f"{c.total_steps:,} steps, in {shown}"
    if not (options.resume or options.out or shown == name):
        text += f", as {name.name} exists: --resume goes on with it"
    tell(text)
    if c.total_steps <= c.learning_starts:
        tell(f"nothing is learnt in {c.learning_starts:,} steps: --learning-starts")
    try:
        for _ in steps if options.quiet else watch(steps):
            if options.watch:
                subprocess.Popen([sys.executable, viewer, folder, "--live", *own])
                options.watch = False
    except EnvError as error:
        if not SIGNALS:  # which workers of the environment may have died of
            text = f"{error}\nthe agent of step {run.step:,} is in {shown}"
            text += ", or one before it diverged: try lower --actor-lr" * (not error.__cause__)
            raise EnvError(text) from error.__cause__
    if SIGNALS:
        tell(f"Stopped at step {run.step:,}. To go on:\n  python ddpg.py --resume {named}")
        return 128 + SIGNALS[0]
    seconds = time.perf_counter() - run.started
    if curve := text_curve(run.tables["progress.csv"]):
        tell(f"Evaluations: {curve}")
    how = "Done" if run.solved is None else "Solved"
    tell(f"{how} after {run.step:,} steps and {seconds:.1f} s. Testing the best policy ..")
    policy = load(folder)
    path = str(shown / Path(policy.meta["path"]).name)
    print_test(policy, run.make_eval_env, options, path=path, solved=run.solved, seconds=seconds)
    text = f"Next:\n  python ddpg.py --eval {named}"
    tell(text + f"\n  python viewer.py {named}" * viewer.exists())
    return 0


def watch(steps):
    """Pass steps on, with a line per evaluation, the time left and, on terminals, a live line."""
    live = "\r\x1b[K" if sys.stdout and sys.stdout.isatty() else ""
    say("      step  episodes  steps/s  last returns  evaluation")
    marks, told = [], live  # (second, step) of the latest 5 s, evaluations left out
    stepping = evaluating = 0.0  # seconds of all steps, and of the latest evaluation
    before = time.perf_counter()
    for run in steps:
        c, row, now = run.config, run.evaluation, time.perf_counter()
        if row:
            evaluating = now - before
        else:
            stepping += now - before
        before = now
        if row or not marks or stepping >= marks[-1][0] + 0.1:
            starts = run.filled_from + c.learning_starts
            least = starts if run.step >= starts else 0
            marks = [m for m in marks if m[0] >= stepping - 5 and m[1] >= least] or marks[-1:]
            marks.append((stepping, run.step))
            seconds, n = stepping - marks[0][0], run.step - marks[0][1]
            speed = row["steps_per_s"] if row else n / (seconds or 1)
            last = f"{np.mean(run.returns):.1f}" if run.returns else "-"
            text = f"{live}{run.step:10,}{run.episodes:10,}{speed:9,.0f}{last:>14}  "
            if row:
                score = "{eval_mean:.1f} ± {eval_std:.1f} over {eval_episodes} episodes"
                score = score.format(**row) + success_rate(row.get("eval_success"))
                say(text + score + ", the best yet" * run.is_best)
            if run.step < starts:
                text += f"learning starts at {starts:,}"
            elif seconds >= 1 and marks[0][1] >= starts:
                each = seconds / n + evaluating / (c.eval_every or 1)
                text += time_left(c, (c.total_steps - run.step) * each)
                if not told:  # once, where there is no live line
                    say(text)
                told = True
            if live:
                width = shutil.get_terminal_size().columns - 1  # it must not wrap
                say(text[: len(live) + width], end="")
        yield run
    say(live, end="")


def text_curve(table):
    """The evaluations of a progress.csv as a line of text, or "" where there are not two."""
    with suppress(ValueError, IndexError, TypeError, AttributeError):  # or in ASCII only
        head, *rows = (line.split(",") for line in table)
        first, *_, last = means = [float(row[head.index("eval_mean")]) for row in rows]
        bars = np.array([part.mean() for part in np.array_split(means, min(50, len(means)))])
        heights = 7 * (bars - bars.min()) / (np.ptp(bars) or 1)
        curve = "".join("▁▂▃▄▅▆▇█"[round(height)] for height in heights)
        curve.encode(sys.stdout.encoding)
        return f"{first:.1f} {curve} {last:.1f}"
    return ""


def time_left(config, seconds):
    """As a person says it."""
    text = f"{seconds / 3600:.1f} h" if seconds >= 7200 else f"{seconds / 60:.0f} min"
    text = f"{seconds:.0f} s" if seconds < 120 else text
    may_end = config.stop_when_solved and config.solved_at is not None
    return f"{'at most' if may_end else 'about'} {text} left"


def on_signal(number, frame):
    """The first one ends the training at the end of its episode, or any evaluation at once."""
    if SIGNALS:
        os._exit(128 + number)
    SIGNALS.append(number)
    told = b"\nStopping; a training ends its episode, to save. Once more: at once.\n"
    with suppress(OSError, ValueError, AttributeError):  # a print may be under way
        os.write(sys.stderr.fileno(), told)


def main(argv=None):
    """Run the command line -> its exit code: 0, 1 failed, 2 refused, 130 or 143 for a signal."""
    gym.logger.min_level = gym.logger.ERROR  # its advice on versions comes as an error too
    before = {}
    with suppress(ValueError):  # in another thread than the main one
        for number in signal.SIGINT, signal.SIGTERM:
            before[number] = signal.signal(number, on_signal)
    with suppress(AttributeError, OSError):  # where it is closed or no file
        sys.stdout.reconfigure(errors="replace")  # a terminal of ASCII has no ±
    try:
        options, explicit = parse(argv)
        if ":" in explicit.get("env", ""):
            sys.path.append(os.getcwd())  # for module:Id; no file may bring others along
        if not options.eval:
            return train_command(options, explicit)
        tune(Config(), options.threads, options.precision)
        policy = load(options.eval, "cpu" if options.device == "auto" else options.device)
        print_test(policy, env_maker_of(policy, **explicit), options)
        return 0
    except UsageError as error:
        warn(error)
        return 2
    except Stopped:
        return 128 + SIGNALS[0]
    except BrokenPipeError:  # nobody reads what it prints
        return 1
    except (TrainingError, OSError, KeyboardInterrupt) as error:
        if error.__cause__:
            say("".join(traceback.format_exception(error.__cause__)), "", sys.stderr)
        what = "cannot write: " * isinstance(error, OSError) + str(error)
        warn(what or "KeyboardInterrupt in the environment")
        return 1
    finally:
        SIGNALS.clear()
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)
        for stream in sys.stdout, sys.stderr:
            try:
                stream.flush()
            except (AttributeError, ValueError):  # it is closed
                pass
            except OSError:  # Python would try, and fail, again
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
