#!/usr/bin/env python3
# /// script
# requires-python = ">=3.10"
# dependencies = [
#     "torch",
#     "numpy",
#     "gymnasium[classic-control]>=1.3",
#     "gymnasium[box2d]>=1.3; python_version < '3.14'",
# ]
# ///
"""DDPG and TD3, deep deterministic policy gradients, in one file to read, run and copy.

    python ddpg.py --env Pendulum-v1                            solved in seconds
    python ddpg.py --env LunarLanderContinuous-v3 --seed 3      landed in minutes
    python ddpg.py --env my_module:MyEnv-v0 --algo td3          your own environment
    python ddpg.py --eval runs/Pendulum-v1/ddpg-seed0           100 test episodes of the best policy
    python ddpg.py --resume runs/Pendulum-v1/ddpg-seed0         go on with an interrupted run
    python ddpg.py --env Pendulum-v1 --watch                    train with the viewer open beside it

DDPG (arXiv:1509.02971) learns a critic Q(s, a) by temporal differences and an actor mu(s) that climbs it. TD3
(arXiv:1802.09477) is DDPG with three independent switches: the smaller of two critics (`n_critics`), delayed actor and
target updates (`policy_delay`) and noise on the target action (`target_noise`). One agent does both: at the values
1, 1, 0 each switch is an identity. From top to bottom: configuration, replay, networks, noise, agent, policy files,
environments, training, a run's folder, command line.
"""

import argparse
import copy
import ctypes
import difflib
import functools
import io
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections import deque
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import get_args

import gymnasium as gym
import numpy as np
import torch
from torch import nn

# ---------------------------------------------------------------------------------------------------- configuration


class UsageError(ValueError):
    """Something the user can mend: a bad flag, environment or file. The command line prints it and exits with 2."""


def one_line(value):
    """How errors show a value: an array may take many lines."""
    return " ".join(str(value).split())[:200]


def flag(default, meaning, low=None, high=None):
    """A field of Config: what --help says of it, and the least and the greatest number that it may be."""
    return field(default=default, metadata={"help": meaning, "low": low, "high": high})


ALGOS = {  # TD3 is DDPG with three switches on; each can be set alone, and every ablation is one flag
    "ddpg": dict(n_critics=1, policy_delay=1, target_noise=0.0),
    "td3": dict(n_critics=2, policy_delay=2, target_noise=0.2),
}


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's result; each field is a flag. Raises UsageError for impossible values.

    A switch that is None gets its value from `algo` when the Config is made: for another algorithm, make another one.
    """

    env: str = flag("Pendulum-v1", "gymnasium id, or module:Id for an environment of your own")
    env_kwargs: dict = flag(None, "keyword arguments of the environment, as JSON")
    max_episode_steps: int = flag(0, "time limit of an episode; 0: the environment's own", 0, 10**9)
    algo: str = flag("td3", "ddpg or td3: sets the three switches n_critics, policy_delay, target_noise")
    seed: int = flag(0, "seed of everything random", 0, 2**31 - 1)
    total_steps: int = flag(1_000_000, "environment steps to train for", 1, 10**12)
    learning_starts: int = flag(5_000, "uniformly random steps before learning starts", 1, 10**12)
    updates_per_step: int = flag(1, "gradient updates per environment step", 0, 1_000)
    batch_size: int = flag(256, "transitions in an update", 1, 10**6)
    buffer_size: int = flag(1_000_000, "transitions remembered", 1, 10**9)
    gamma: float = flag(0.99, "discount of the future, per step", 0, 1)
    n_step: int = flag(1, "rewards summed before the target bootstraps", 1, 1_000)
    reward_scale: float = flag(1.0, "factor on rewards as the critic sees them", 1e-9, 1e9)
    hidden: tuple[int, ...] = flag((256, 256), "widths of the hidden layers, of actor and critic alike", 1, 16_384)
    obs_scale: tuple[float, ...] = flag((), "typical size of each observation, where far from 1", 1e-9, 1e9)
    layer_norm: bool = flag(True, "normalise the critic's hidden layers")
    actor_lr: float = flag(3e-4, "Adam's learning rate for the actor", 1e-9, 1)
    critic_lr: float = flag(3e-4, "Adam's learning rate for the critic", 1e-9, 1)
    tau: float = flag(0.005, "share of the target networks replaced at an update", 0, 1)
    n_critics: int = flag(None, "critics whose smallest value is the target (TD3: 2)", 1, 100)
    policy_delay: int = flag(None, "critic updates per actor and target update (TD3: 2)", 1, 1_000)
    target_noise: float = flag(None, "sd of the noise on target actions, which span [-1, 1] (TD3: 0.2)", 0, 10)
    target_noise_clip: float = flag(0.5, "bound of that noise", 0, 10)
    noise_sigma: float = flag(0.1, "scale of the exploration noise; actions span [-1, 1]", 0, 10)
    noise_theta: float = flag(1.0, "1: white noise; below: Ornstein-Uhlenbeck (0.15: 1.9 times louder)", 1e-6, 1)
    noise_sigma_end: float = flag(None, "scale after annealing; default: no annealing", 0, 10)
    noise_anneal: float = flag(0.5, "part of total_steps over which the scale is annealed", 1e-9, 1)
    eval_every: int = flag(5_000, "environment steps between evaluations; 0: never", 0, 10**12)
    eval_episodes: int = flag(10, "episodes of an evaluation", 1, 10_000)
    solved_at: float = flag(None, "mean evaluation return that counts as solved", -1e12, 1e12)
    stop_when_solved: bool = flag(True, "stop once 100 evaluation episodes confirm solved_at")

    def __post_init__(self):
        if self.algo not in ALGOS:
            raise UsageError(f"algo: {self.algo!r} is not one of {', '.join(ALGOS)}")
        for f in fields(self):
            value, low, high = getattr(self, f.name), f.metadata["low"], f.metadata["high"]
            item, *more = get_args(f.type) or [f.type]  # of tuple[int, ...]: int, and there may be more
            kind = tuple if more else item
            if value is None:
                value = {} if kind is dict else ALGOS[self.algo].get(f.name)
            value = tuple(value) if isinstance(value, list) else value  # as JSON has it
            value = value.item() if isinstance(value, np.generic) else value
            object.__setattr__(self, f.name, value)
            if kind in (str, bool, dict, tuple) and not isinstance(value, kind):
                raise UsageError(f"{f.name}: {value!r} is not a {kind.__name__}")
            if low is None or value is None and f.default is None:  # no number, or unset, as noise_sigma_end may stay
                continue
            for v in value if kind is tuple else [value]:
                if not isinstance(v, (int, float) if item is float else int) or not low <= v <= high:  # nor nan
                    raise UsageError(f"{f.name}: {v!r} is not {'a' if item is float else 'a whole'} number "
                                     f"between {low:,} and {high:,}")
        if len(self.hidden) > 100:
            raise UsageError(f"hidden: {len(self.hidden):,} layers are more than 100")
        if self.learning_starts < self.n_step:
            raise UsageError(f"learning_starts: {self.learning_starts} must be at least n_step, {self.n_step}")

    @classmethod
    def preset(cls, env="Pendulum-v1", **explicit):
        """The tuned configuration of an environment: default < environment preset < algorithm preset < `explicit`."""
        tuned = PRESETS.get(env, {}) | ALGOS.get(explicit.get("algo"), {})
        return cls(**{"env": env, **tuned, **explicit})


PRESETS = {
    "Pendulum-v1": dict(
        algo="ddpg", total_steps=10_000, learning_starts=300, batch_size=128, hidden=(64, 64), layer_norm=False,
        gamma=0.98, reward_scale=0.1, actor_lr=2e-3, critic_lr=2e-3, tau=0.03, noise_sigma=0.5, noise_theta=0.15,
        eval_every=500, eval_episodes=20, solved_at=-156.0),
    "LunarLanderContinuous-v3": dict(
        algo="td3", total_steps=200_000, learning_starts=3_000, batch_size=128, hidden=(128, 128), n_step=5,
        reward_scale=0.1, actor_lr=1e-3, critic_lr=1e-3, noise_sigma=0.2, noise_theta=0.15,
        eval_episodes=20, solved_at=250.0),
    "MountainCarContinuous-v0": dict(
        algo="td3", total_steps=20_000, learning_starts=1_000, batch_size=128, hidden=(64, 64), layer_norm=False,
        obs_scale=(0.5, 0.03), n_step=3, reward_scale=0.1, actor_lr=1e-3, critic_lr=1e-3, tau=0.01,
        noise_sigma=0.5, noise_theta=0.15, eval_every=1_000, solved_at=90.0),
    "BipedalWalker-v3": dict(
        algo="td3", learning_starts=10_000, batch_size=128, hidden=(128, 128), n_step=3,
        reward_scale=0.1, actor_lr=1e-3, critic_lr=1e-3, noise_sigma=0.2, noise_sigma_end=0.05, noise_anneal=0.3,
        eval_every=20_000, solved_at=304.0),
}

# ---------------------------------------------------------------------------------------------------- replay


class ReplayBuffer:
    """A ring of transitions, each one float32 row `[obs, act, R, next_obs, discount]` of one tensor.

    R is the sum of the next n rewards, each discounted, and `discount` multiplies the value bootstrapped after them:
    gamma^n, gamma^k where the episode was cut after k < n steps, and 0 where it ended in a terminal state. So
    y = R + discount * Q(next_obs, .) is the target everywhere, and the loss has no special case.
    """

    def __init__(self, capacity, obs_dim, act_dim, n_step=1, gamma=0.99, device="cpu"):
        self.columns = [obs_dim, act_dim, 1, obs_dim, 1]
        self.rows = torch.empty(capacity, sum(self.columns), device=device)  # memory is touched only as it fills
        self.n_step, self.gamma = n_step, gamma
        self.pending = deque()  # the last steps, still short of n rewards
        self.written = 0

    def __len__(self):
        return min(self.written, len(self.rows))

    def add(self, obs, act, rew, next_obs, terminated, truncated):
        """Store a step: obs, next_obs (obs,), act (act,) in [-1, 1]; next_obs is the final one where an episode ends.

        Steps come in order, from one environment. A time limit (`truncated`) ends the rewards but not the world: only
        `terminated` stops the bootstrapping.
        """
        self.pending.append((np.concatenate([obs, act]), rew))  # a copy, as the caller may use the arrays again
        while self.pending and (len(self.pending) == self.n_step or terminated or truncated):
            n_step_return = 0.0
            for _, r in reversed(self.pending):
                n_step_return = r + self.gamma * n_step_return
            discount = 0.0 if terminated else self.gamma ** len(self.pending)
            first, _ = self.pending.popleft()
            row = np.concatenate([first, [n_step_return], next_obs, [discount]], dtype=np.float32)
            self.rows[self.written % len(self.rows)] = torch.from_numpy(row)
            self.written += 1

    def sample(self, batch_size, generator=None):
        """Draw rows uniformly -> obs (B, obs), act (B, act), R (B, 1), next_obs (B, obs), discount (B, 1)."""
        index = torch.randint(len(self), (batch_size,), generator=generator, device=self.rows.device)
        return self.rows.index_select(0, index).split(self.columns, dim=1)


# ---------------------------------------------------------------------------------------------------- networks


LARGE = 2**22  # multiplications of a batch by a square matrix from which on another kernel and a second thread pay


@functools.cache
def onednn():
    """torch's operator for oneDNN's products, which is not a documented one, or None."""
    with suppress(AttributeError, RuntimeError):
        linear, ones = torch.ops.mkldnn._linear_pointwise, torch.ones(16, 16)
        return linear if linear(ones, ones, None, "none", [], "").sum() == 16**3 else None


def bmm(a, b, bias=None, out=None):
    """Matrix products side by side: a (n, i, k) @ b (n, k, j) + bias (n, 1, j) -> (n, i, j)."""
    n, i, k = a.shape
    if n > 1 and k == 1 and bias is None:  # outer products, which torch.bmm is slow at
        return torch.mul(a, b, out=out)
    if i * k * k >= LARGE and a.is_cpu and not torch.is_grad_enabled():  # autograd does not know what follows
        j = b.shape[-1]
        if n > 1 and i > 1 and j == 1:  # columns: they take MKL up to ten times as long as the same numbers as rows
            return bmm(b.view(n, 1, k), a.mT, bias, out if out is None else out.view(n, 1, i)).mT
        if min(i, k, j) >= 16 and onednn():  # takes half of MKL's time on an AMD processor
            products = [onednn()(a[m], b[m].mT, None if bias is None else bias[m, 0], "none", [], "") for m in range(n)]
            return torch.stack(products, out=out) if n > 1 or out is not None else products[0][None]
    return torch.bmm(a, b, out=out) if bias is None else torch.baddbmm(bias, a, b, out=out)


class MLP(nn.Module):
    """`n` multilayer perceptrons side by side, (B, in) -> (n, B, out): one batched product per layer.

    Weights start uniform in +-1/sqrt(inputs), and in +-0.003 in the last layer: first actions near 0, where tanh is
    not flat, and first values near 0 (arXiv:1509.02971, section 7). `scale` gives typical sizes of the first inputs,
    by which their weights are divided: a velocity of 0.07 would go unnoticed for most of a training.
    """

    def __init__(self, n, sizes, scale=(), layer_norm=False):
        super().__init__()
        self.layer_norm = layer_norm
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for i, (fan_in, fan_out) in enumerate(zip(sizes, sizes[1:])):
            bound = 0.003 if i == len(sizes) - 2 else fan_in**-0.5
            for params, rows in (self.weights, fan_in), (self.biases, 1):
                params.append(torch.empty(n, rows, fan_out).uniform_(-bound, bound))
        if scale:
            self.weights[0].data[:, : len(scale)] /= torch.tensor(scale)[:, None]
        self.layers = list(zip(self.weights, self.biases))  # quicker to walk through than the lists of parameters
        self.tape = []  # what backward needs of the latest forward: (input, weight, bias, norm) of each layer

    def forward(self, x, layers=None):
        """x (B, in) -> (n, B, out). layers: pairs (weight, bias) to use instead of those of all the networks."""
        layers, norm = layers or self.layers, None
        x = x.expand(layers[0][0].shape[0], *x.shape)  # (n, B, in)
        self.tape.clear()
        for w, b in layers:
            if self.tape:  # between two layers
                if self.layer_norm:
                    z = x
                    x, mean, rstd = torch.native_layer_norm(z, z.shape[-1:], None, None, 1e-5)
                    norm = z, mean, rstd
                x = x.relu_()
            self.tape.append((x, w, b, norm))
            x = bmm(x, w, bias=b)
        return x

    def backward(self, grad, of_input=False):
        """The chain rule by hand, as autograd takes longer: grad = dloss/doutput of the latest forward, (n, B, out).

        Leaves dloss/dparameter in each `parameter.grad`, which `flatten` made; or, `of_input`, only returns dloss/dx
        (n, B, in). Once per forward, in inference mode; raises RuntimeError where there is none to go back through.
        """
        if not self.tape:
            raise RuntimeError("backward needs a forward of its own before it: add up the gradients of several losses")
        while self.tape:
            x, w, b, norm = self.tape.pop()
            if not of_input:
                bmm(x.mT, grad, out=w.grad)
                torch.sum(grad, 1, keepdim=True, out=b.grad)
            if self.tape or of_input:
                grad = bmm(grad, w.mT)
            if self.tape:
                grad = torch.ops.aten.threshold_backward(grad, x, 0)  # of relu: 0 where x is
            if norm:
                z, mean, rstd = norm
                grad = torch.ops.aten.native_layer_norm_backward(
                    grad, z, z.shape[-1:], mean, rstd, None, None, (True, False, False))[0]
        return grad


class Actor(nn.Module):
    """mu(s): obs (B, obs) -> act (B, act) in [-1, 1].

    Change this class and Critic, or put any nn.Module of these shapes here: without `backward`, it learns by autograd.
    Parameters only: no running statistics, and no difference between training and evaluation.
    """

    def __init__(self, obs_dim, act_dim, config):
        super().__init__()
        self.net = MLP(1, [obs_dim, *config.hidden, act_dim], config.obs_scale)

    def forward(self, obs):
        self.output = self.net(obs)[0].tanh()
        return self.output

    def backward(self, grad):
        """grad = dloss/dact of the latest forward, (B, act) -> dloss/dparameter in `parameter.grad`."""
        self.net.backward(torch.ops.aten.tanh_backward(grad, self.output)[None])


class Critic(nn.Module):
    """Q_1(s, a) .. Q_n(s, a): obs (B, obs), act (B, act) in [-1, 1] -> (n, B, 1)."""

    def __init__(self, obs_dim, act_dim, config):
        super().__init__()
        # Layer norm replaces the DDPG paper's batch norm: it tames Q for unseen actions and has no train and test mode
        sizes = [obs_dim + act_dim, *config.hidden, 1]
        self.net = MLP(config.n_critics, sizes, config.obs_scale, config.layer_norm)

    def forward(self, obs, act):
        return self.net(torch.cat([obs, act], dim=-1))

    def backward(self, grad):
        """grad = dloss/dQ of the latest forward, (n, B, 1) -> dloss/dparameter in `parameter.grad`."""
        self.net.backward(grad)

    def slope(self, obs, act):
        """What the actor climbs: Q_1(s, a) (B, 1) and its slope dQ_1/da (B, act)."""
        q1 = self.net(torch.cat([obs, act], dim=-1), [(w[:1], b[:1]) for w, b in self.net.layers])
        grad = self.net.backward(torch.ones_like(q1), of_input=True)  # (1, B, obs + act)
        return q1[0], grad[0, :, obs.shape[-1]:]


class Autograd(nn.Module):
    """Lends the `backward` and `slope` of Actor and Critic to a network of your own, any nn.Module of their shapes."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    @torch.inference_mode(False)  # update is in it, and autograd takes no tensors made there: hence the copies
    def forward(self, *inputs):
        self.output = self.network(*[x.clone() for x in inputs])
        return self.output.detach()

    @torch.inference_mode(False)
    def backward(self, grad):
        self.zero_grad(set_to_none=False)
        (grad.clone() * self.output).sum().backward()  # output.backward(grad) would import sympy

    @torch.inference_mode(False)
    def slope(self, obs, act):
        act = act.clone().requires_grad_()
        q1 = self.network(obs.clone(), act)[0]
        return q1.detach(), torch.autograd.grad(q1.sum(), act)[0]

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "output"}  # whose graph cannot be copied


def flatten(network):
    """Move a network's parameters into one vector, `network.flat`, and their gradients into `network.flat.grad`.

    Polyak averaging is then one `lerp_`, Adam sees one tensor, and a checkpoint is a few vectors. Gradients are cleared
    by `network.flat.grad.zero_()`: `zero_grad()` would part them from the vector.
    """
    params = list(network.parameters())
    network.flat = torch.cat([p.detach().flatten() for p in params])
    network.flat.grad = torch.zeros_like(network.flat)
    sizes = [p.numel() for p in params]
    for p, data, grad in zip(params, network.flat.split(sizes), network.flat.grad.split(sizes)):
        p.data, p.grad = data.view_as(p), grad.view_as(p)
    return network


class Noise:
    """Exploration noise, one recurrence: x <- (1 - theta) x + sigma eps, with eps ~ N(0, 1) in each action dimension.

    theta = 1 is Gaussian white noise; less is an Ornstein-Uhlenbeck process, which pushes the same way for about
    1/theta steps, and whose standard deviation settles at sigma / sqrt(theta (2 - theta)).
    """

    def __init__(self, act_dim, theta, rng):
        self.x, self.theta, self.rng = np.zeros(act_dim), theta, rng

    def reset(self):
        self.x[:] = 0  # at the start of each episode

    def __call__(self, sigma):
        """The next x (act,), for a scale that may change: a view of the state."""
        self.x += sigma * self.rng.standard_normal(len(self.x)) - self.theta * self.x
        return self.x


# ---------------------------------------------------------------------------------------------------- agent


class Adam:
    """Adam (arXiv:1412.6980) on a network's one vector, by torch's own kernel.

    What torch.optim wraps around it takes most of a second to import, and longer than a small network's Adam to run.
    Another optimizer needs the same `step` and `state`, of tensors alone; `lr` may change at any time.
    """

    def __init__(self, network, lr):
        zeros = torch.zeros_like(network.flat)
        self.network, self.lr = network, lr
        self.state = {"step": zeros.new_zeros(()), "exp_avg": zeros, "exp_avg_sq": zeros.clone()}

    def step(self):
        k, m, v = self.state.values()
        k += 1
        torch._fused_adam_([self.network.flat], [self.network.flat.grad], [m], [v], [], [k], lr=self.lr, beta1=0.9,
                           beta2=0.999, eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False)


class Agent:
    """DDPG and TD3 for `obs_dim` observations and actions between `low` and `high`, (act,) in the environment's units.

    The networks speak [-1, 1]; `to_env` is the one place where actions take on those units. Of the Config it takes what
    concerns networks and updates; replay, noise and rewards are the caller's. Raises UsageError for an obs_scale of
    another length, ValueError for impossible bounds or networks.
    """

    def __init__(self, obs_dim, low, high, config, device="cpu"):
        self.obs_dim, self.config, self.device = obs_dim, config, torch.device(device)
        self.low, self.high = np.asarray(low, np.float32).ravel(), np.asarray(high, np.float32).ravel()
        if len(config.obs_scale) not in (0, obs_dim):
            raise UsageError(f"obs_scale: {len(config.obs_scale)} sizes for {obs_dim} observations")
        if not (self.low <= self.high).all():
            raise ValueError(f"low {low} is not below high {high}")
        with torch.random.fork_rng(devices=[]):  # leaves the caller's random state alone
            torch.default_generator.manual_seed(config.seed)
            networks = [network(obs_dim, len(self.low), config).to(self.device) for network in (Actor, Critic)]
        self.actor, self.critic = [flatten(n if hasattr(n, "backward") else Autograd(n)) for n in networks]
        self.networks = nn.ModuleDict({"actor": self.actor, "critic": self.critic})  # what policy files hold
        self.actor_target = flatten(copy.deepcopy(self.actor))
        self.critic_target = flatten(copy.deepcopy(self.critic))
        self.actor_optimizer = Adam(self.actor, config.actor_lr)
        self.critic_optimizer = Adam(self.critic, config.critic_lr)
        self.generator = torch.Generator(self.device).manual_seed(config.seed)  # batches and target noise
        self.updates = 0  # critic updates so far, which time the delayed ones
        self.metrics = torch.zeros(3, device=self.device)  # running means of critic loss, actor loss and Q
        self.measure_every = 10 * config.policy_delay  # updates: measuring takes longer than Adam
        self.check_networks()

    @torch.inference_mode()
    def policy(self, obs):
        """mu(obs) as arrays: obs (obs,) or (B, obs) -> (act,) or (B, act) in [-1, 1]. Raises ValueError for others."""
        obs = torch.as_tensor(obs, dtype=torch.float32, device=self.device)
        if obs.shape[-1:] != (self.obs_dim,):
            raise ValueError(f"obs {tuple(obs.shape)} is not ({self.obs_dim},) or (B, {self.obs_dim})")
        return self.actor(obs.reshape(-1, self.obs_dim)).view(*obs.shape[:-1], -1).cpu().numpy()

    def to_env(self, act):
        """Actions (.., act) in [-1, 1] -> the environment's units, each dimension by its own bounds."""
        return (self.low + (act + 1) / 2 * (self.high - self.low)).clip(self.low, self.high)

    def act(self, obs):
        """The deterministic action for obs (obs,) or (B, obs), in the environment's units."""
        return self.to_env(self.policy(obs))

    @torch.inference_mode()  # quicker than no_grad
    def update(self, batch):
        """One update of DDPG (arXiv:1509.02971, Algorithm 1) and of TD3 (arXiv:1802.09477, Algorithm 1).

        batch: obs s (B, obs), act a (B, act), R (B, 1), next_obs s' (B, obs), discount (B, 1), of ReplayBuffer.sample.

            critic loss   sum_i mean (Q_i(s, a) - y)^2,  where  y = R + discount * min_i Q'_i(s', a')
                                                         and    a' = clip(mu'(s') + clip(target_noise * eps))
            actor loss    -mean Q_1(s, mu(s))
        """
        obs, act, R, next_obs, discount = batch
        self.updates += 1
        # Target policy smoothing: clipped noise on the target action
        noise = self.config.target_noise * torch.randn(act.shape, generator=self.generator, device=self.device)
        noise = noise.clamp(-self.config.target_noise_clip, self.config.target_noise_clip)
        next_act = (self.actor_target(next_obs) + noise).clamp(-1, 1)
        # Clipped double-Q: bootstrap from the smallest target critic
        target = R + discount * self.critic_target(next_obs, next_act).amin(dim=0)  # (n, B, 1) -> (B, 1)
        # Each critic descends on its mean squared error, whose gradient dloss/dQ is 2 (Q - y) / B
        q = self.critic(obs, act)
        error = q - target.view(len(obs), 1)
        self.critic.backward(2 / len(obs) * error)
        self.critic_optimizer.step()
        # Delayed updates: the actor ascends on the first critic, dloss/da = -dQ_1/da / B, and the targets follow
        if self.updates % self.config.policy_delay == 0:
            q1, slope = self.critic.slope(obs, self.actor(obs))
            self.actor.backward(-slope / len(obs))
            self.actor_optimizer.step()
            self.actor_target.flat.lerp_(self.actor.flat, self.config.tau)
            self.critic_target.flat.lerp_(self.critic.flat, self.config.tau)
            if self.updates % self.measure_every == 0:
                latest = torch.stack([error.square().mean(dim=(1, 2)).sum(), -q1.mean(), q.mean()])
                self.metrics.lerp_(latest, max(0.1, self.measure_every / self.updates))

    def is_finite(self):
        """Whether all numbers of actor and critic are finite."""
        return all(bool(network.flat.isfinite().all()) for network in (self.actor, self.critic))

    def save(self, path, env, step, evaluation=None):
        """Write a policy file, actor and critic, as plain arrays that numpy alone can read and a text of JSON."""
        arrays = {name: tensor.cpu().numpy() for name, tensor in self.networks.state_dict().items()}
        write_npz(path, arrays, format=FORMAT, env=env, step=step, evaluation=evaluation, obs_dim=self.obs_dim,
                  low=self.low.tolist(), high=self.high.tolist(), config=asdict(self.config), versions=VERSIONS)

    def tensors(self):
        """Everything that `update` changes, by name, for exact resumption; `updates` and the generator come on top."""
        vectors = {name: getattr(self, name).flat for name in ("actor", "critic", "actor_target", "critic_target")}
        moments = {f"{name}.{key}": tensor for name in ("actor", "critic")
                   for key, tensor in getattr(self, f"{name}_optimizer").state.items()}
        return {"metrics": self.metrics} | vectors | moments

    def __setstate__(self, state):
        """Join again what copy.deepcopy and pickle separate: a network's vector and its layers."""
        vars(self).update(state)
        for network in self.actor, self.critic, self.actor_target, self.critic_target:
            flatten(network)

    @torch.inference_mode()
    def check_networks(self):
        """Raise ValueError for other shapes, or a `backward` or `slope` that is not that of `forward`."""
        spread = lambda n: torch.linspace(-300, 300, 8 * n, device=self.device).view(8, n)  # where tanh and relu bend
        obs, act = spread(self.obs_dim), spread(len(self.low)) / 300
        q_shape = (self.config.n_critics, 8, 1)
        for network, shape, *inputs in (self.actor, tuple(act.shape), obs), (self.critic, q_shape, obs, act):
            by_autograd = isinstance(network, Autograd)
            name, output = type(network.network if by_autograd else network).__name__, network(*inputs)
            if output.shape != shape:
                raise ValueError(f"{name} makes {tuple(output.shape)} of a batch of 8, not {shape}")
            if not torch.equal(output, network(*inputs)):
                raise ValueError(f"{name} makes something else of the same batch the next time: no dropout")
            if network is self.actor and output.abs().max() > 1:
                raise ValueError(f"{name} makes actions beyond [-1, 1]: let it end in a tanh")
            if by_autograd:
                continue
            found = []
            for n in Autograd(network), network:
                n.backward(torch.ones_like(n(*inputs)))
                found.append([network.flat.grad.clone(), *(n.slope(*inputs)[1:] if network is self.critic else ())])
            if any(not (a - b).norm() <= 1e-4 * a.norm() for a, b in zip(*found)):
                raise ValueError(f"{name}.backward does not go with its forward: "
                                 "mend it, or delete it, and autograd does its work")


# ---------------------------------------------------------------------------------------------------- files

FORMAT = 1  # of policy files
VERSIONS = {package.__name__: str(package.__version__) for package in (torch, gym, np)}
MACHINE = VERSIONS | {"cpu": torch.backends.cpu.get_cpu_capability()}  # which decide the last bits of a result


def write(path, save, previous=None):
    """Replace a file by what `save(file)` writes, whole or not at all: a kill leaves the old file or the new one.

    previous: the path under which the old one is kept.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            save(file)
            file.flush()
            os.fsync(file.fileno())
        if previous and path.exists():
            os.replace(path, previous)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_npz(path, arrays, **meta):
    """Write arrays and a text of JSON, uncompressed, which numpy alone can read; path: a path or an open file."""
    text = json.dumps(meta, default=lambda number: number.item())  # of numpy's or torch's
    save = lambda file: np.savez(file, meta=np.array(text), **arrays)
    save(path) if hasattr(path, "write") else write(Path(path), save)


def read_npz(path):
    """Read what write_npz wrote -> (arrays, meta). A stranger's file is data, never code: nothing is unpickled."""
    try:
        if not Path(path).is_file():
            raise ValueError("no such file")  # nor a folder, a pipe or a device
        with np.lib.npyio.NpzFile(path, allow_pickle=False) as file:
            members, size = file.zip.infolist(), Path(path).stat().st_size
            if any(m.compress_type for m in members) or sum(m.file_size for m in members) > size:
                raise ValueError("it is compressed")  # and may unpack to anything
            arrays = dict(file)
        return arrays, json.loads(str(arrays.pop("meta")))
    except Exception as error:  # zipfile, numpy and json each raise their own
        raise UsageError(f"{path} cannot be read: {one_line(error) or type(error).__name__}") from None


def load(path, device="cpu"):
    """A policy file, or the best policy of a run's folder -> an Agent, whose `meta` tells where it comes from.

    Raises UsageError if there is none, or if the file is not a sound policy.
    """
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in ("best.npz", "last.npz") if (path / name).exists()]
        if not found:
            raise UsageError(f"{path} is not the folder of a run: it has no best.npz or last.npz")
        path = found[0]
    arrays, meta = read_npz(path)
    try:
        config, bounds = Config(**meta["config"]), np.float32([meta["low"], meta["high"]])
        sound = meta["format"] == FORMAT and isinstance(meta["step"], int) and meta["env"].isprintable()
        if not sound or not isinstance(meta["evaluation"], int | float | None) or not np.isfinite(bounds).all():
            raise ValueError("of another format")
        unscaled = replace(config, obs_scale=())  # as torch imports sympy to divide without memory
        with torch.device("meta"):  # before any memory is taken
            networks = [network(meta["obs_dim"], bounds.shape[1], unscaled) for network in (Actor, Critic)]
        if sum(t.nbytes for n in networks for t in n.state_dict().values()) != sum(a.nbytes for a in arrays.values()):
            raise ValueError("its arrays are not those of its networks")
        agent = Agent(meta["obs_dim"], *bounds, config, device)
        agent.networks.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
        for network, target in (agent.actor, agent.actor_target), (agent.critic, agent.critic_target):
            target.flat.copy_(network.flat)
        if not agent.is_finite():
            raise ValueError("its numbers are not finite")
    except Exception as error:  # whatever a file made for mischief provokes
        lacks = "it lacks " * isinstance(error, KeyError)
        raise UsageError(f"{path} is not a policy file: {lacks}{one_line(error)}") from None
    agent.meta = meta | {"path": str(path)}
    return agent


# ---------------------------------------------------------------------------------------------------- environments


class EnvError(Exception):
    """An environment, or the agent in it, failed or gave a value that nothing can be learnt from."""


def env_makers(config, env=None):
    """Two functions that make an environment, one for training and one for evaluation.

    env: None for the one that config.env names, a function that makes one, or a gymnasium.Env object: training uses
    the object itself and evaluation copies of it. Raises UsageError for what does not exist or DDPG cannot control.
    """
    limit, hint = config.max_episode_steps or None, ""
    by_name = lambda: gym.make(config.env, limit, disable_env_checker=True, **config.env_kwargs)
    makers = [by_name if env is None else env] * 2
    try:
        if isinstance(env, gym.Env):
            pristine = copy.deepcopy(env) if config.eval_every else None
            makers = [lambda: env, lambda: copy.deepcopy(pristine)]
        if env is not None and limit:
            makers = [lambda make=make: gym.wrappers.TimeLimit(make(), limit) for make in makers]
        probe = makers[0]()
    except (Exception, SystemExit) as error:  # whatever importing and making it may raise
        if "ox2" in str(error) and sys.version_info >= (3, 14):
            hint = "\nBox2D has no wheel for Python 3.14 yet: use Python 3.13"
        if isinstance(env, gym.Env):
            hint = "\nevaluation needs a copy of it: pass a function that makes it instead"
        raise UsageError(f"cannot make {config.env}: {type(error).__name__}: {one_line(error)}{hint}") from error

    def problems():
        actions = probe.action_space
        for name, space in ("observations", probe.observation_space), ("actions", actions):
            if not isinstance(space, gym.spaces.Box) or 0 in space.shape:
                yield f"its {name} are {one_line(space)}, but DDPG is for continuous control: both must be a Box"
            if len(space.shape) > 1 and space.dtype == np.uint8:
                yield f"its {name} are images, which these networks cannot read: wrap it to return features"
        if not np.issubdtype(actions.dtype, np.floating):
            yield f"its actions are whole numbers, {one_line(actions)}: DDPG is for continuous control"
        if not (np.float64(actions.high) - actions.low < np.finfo(np.float32).max).all():
            yield f"its actions are unbounded, {one_line(actions)}: give them a finite low and high"
        if env is None and not f":{config.env}".endswith(f":{probe.spec.id}"):
            yield f"name its version: --env {''.join(config.env.rpartition(':')[:2])}{probe.spec.id}"
        if env is None and not probe.spec.max_episode_steps:
            yield "it has no time limit, so an episode might never end: pass --max-episode-steps"
        if env is not None and not isinstance(env, gym.Env):
            other = env()
            if other.unwrapped is probe.unwrapped:  # or a new wrapper around the same one
                yield "the function that makes it must make a new one each time"
            other.close()

    if problem := next(problems(), None):  # the first one, as the later checks rely on the earlier ones
        raise UsageError(f"{config.env}: {problem}")
    if not isinstance(env, gym.Env):
        probe.close()
    return makers


def env_maker_of(policy, **changes):
    """A function that makes the environment of a loaded policy, or the one that `changes` to its Config name.

    Raises UsageError if it does not fit, or is of a policy file but not gymnasium's own: files must not run code.
    """
    path, spec = policy.meta["path"], gym.registry.get(policy.meta["env"])
    if "env" not in changes and not (spec and str(spec.entry_point).startswith("gymnasium.")):
        raise UsageError(f"{path} is for {one_line(policy.meta['env'])}, which gymnasium does not bring:\n"
                         "name the environment yourself with --env")
    make_env = env_makers(replace(policy.config, **{"env": policy.meta["env"]} | changes))[1]
    env = make_env()
    shapes = [int(np.prod(space.shape)) for space in (env.observation_space, env.action_space)]
    env.close()
    if shapes != [policy.obs_dim, len(policy.low)]:
        raise UsageError(f"{path} is for {policy.obs_dim} observations and {len(policy.low)} actions, "
                         f"this environment has {shapes[0]} and {shapes[1]}")
    return make_env


class Episode:
    """One episode of an environment, from `seed`: flattens and checks what goes in and out. Raises EnvError."""

    LONGEST = 100_000  # steps, for environments that declare no limit of their own

    def __init__(self, env, seed):
        self.env, self.seed, self.space = env, int(seed), env.action_space
        self.size = int(np.prod(env.observation_space.shape))
        self.length, self.ret, self.terminated, self.over = 0, 0.0, False, False
        obs, _ = self.call(env.reset, seed=self.seed, returns=2)
        self.obs = self.checked("observation", obs, np.float32, self.size)

    def step(self, action):
        """action (act,) in the environment's units -> rew, next_obs (obs,), terminated, truncated."""
        action = self.checked("action", action, self.space.dtype, action.size).reshape(self.space.shape)
        self.length += 1
        action.clip(self.space.low, self.space.high, out=action)
        obs, rew, terminated, truncated, _ = self.call(self.env.step, action, returns=5)
        self.obs = self.checked("observation", obs, np.float32, self.size)
        rew = self.checked("reward", rew, np.float64, 1).item()
        self.ret += rew
        self.terminated, self.over = bool(terminated), bool(terminated or truncated)
        if self.length == self.LONGEST and not self.over:
            raise self.error("no end in sight, set max_episode_steps")
        return rew, self.obs, self.terminated, bool(truncated)

    def call(self, method, *args, returns=None, **kwargs):
        try:
            result = method(*args, **kwargs)
            if returns and len(result) != returns:
                raise TypeError(f"{method.__name__} returned {len(result)} things instead of {returns}")
            return result
        except Exception as error:  # the traceback will show what is the matter with the user's own environment
            raise self.error(f"{type(error).__name__}: {error}") from error

    def checked(self, name, value, dtype, size):
        try:
            array = np.array(value, dtype).reshape(size)  # a copy, as some environments return the same one each time
            if all(map(math.isfinite, array.tolist())):  # for few numbers faster than NumPy
                return array
        except (TypeError, ValueError, OverflowError):
            pass
        raise self.error(f"{name} {one_line(value)} is not {size} finite number{'s' * (size != 1)}")

    def error(self, what):
        return EnvError(f"{one_line(what)}, at step {self.length} of the episode with seed {self.seed}")


def evaluate(agent, make_env, seeds):
    """Run one deterministic episode per seed -> returns (N,), lengths (N,), in the order of `seeds`.

    make_env makes a new environment each time. Raises EnvError for one that misbehaves. Nothing random of the agent's
    is used, so that training is the same with evaluation and without. Last bits depend on how many are side by side.
    """
    returns, lengths = [], []
    for i in range(0, len(seeds), 100):  # side by side, as many as memory surely has room for
        episodes = [Episode(make_env(), seed) for seed in seeds[i : i + 100]]
        while running := [e for e in episodes if not e.over]:
            for episode, action in zip(running, agent.act(np.stack([e.obs for e in running]))):
                episode.step(action)
        for episode in episodes:
            episode.env.close()
        returns += [e.ret for e in episodes]
        lengths += [e.length for e in episodes]
    return np.array(returns), np.array(lengths)


def summary(returns, lengths):
    return dict(episodes=len(returns), mean=returns.mean(), std=returns.std(), min=returns.min(), max=returns.max(),
                length=lengths.mean())


# ---------------------------------------------------------------------------------------------------- training

# No policy is tested on episodes that it was trained on or chosen by. The seeds of final tests start at 0,
SELECTION_SEEDS = 1_000_000  # those of the evaluations that choose the best policy here,
TRAINING_SEEDS = 2**31  # and those of training here
CONFIRM_EPISODES = TEST_EPISODES = 100


def tune(threads):
    """Make training fast, by settings of the whole process."""
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # numbers too small to matter would make every layer many times slower
    # glibc would give back to the system, page by page, what large layers free, and ask for it again at every update
    with suppress(AttributeError, OSError, TypeError):  # another libc has no mallopt
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**30)  # M_TRIM_THRESHOLD


class Training:
    """A training run: iterate over it to train. It yields itself, once before the first step and after each step.

    env: None for the environment that config.env names, an id, a function that makes one, or a gymnasium.Env object.
    Raises UsageError for an environment that DDPG cannot control, EnvError for one that misbehaves.
    """

    def __init__(self, config, env=None, device="cpu", threads=None):
        large = config.batch_size * max(config.hidden, default=0) ** 2 >= LARGE
        tune(threads or (min(2, os.cpu_count() or 1) if large else 1))
        if isinstance(env, str):
            config, env = replace(config, env=env), None
        if env is not None:  # what its files will say
            spec, bare = getattr(env, "spec", None), getattr(env, "unwrapped", env)
            plain = spec and spec == gym.registry.get(spec.id)  # else with arguments, wrappers or a limit of its own
            config = replace(config, env=spec.id if plain else getattr(env, "__name__", type(bare).__name__))
        self.config, self.own_env = config, isinstance(env, gym.Env)
        self.make_env, self.make_eval_env = env_makers(config, env)
        self.rng = np.random.default_rng(config.seed)
        self.step, self.episodes, self.episode, self.started = 0, 0, None, time.perf_counter()
        self.start_episode()
        self.agent = Agent(self.episode.size, self.episode.space.low, self.episode.space.high, config, device)
        dims = self.agent.obs_dim, len(self.agent.low)
        try:
            self.buffer = ReplayBuffer(config.buffer_size, *dims, config.n_step, config.gamma, device)
        except RuntimeError as error:  # out of memory
            raise UsageError(f"buffer_size: {config.buffer_size:,} rows do not fit: {error}") from None
        self.noise = Noise(dims[1], config.noise_theta, self.rng)
        self.returns = []  # of the latest 10 episodes
        self.best, self.solved = -np.inf, None  # the highest evaluation mean; the step at which solved_at was confirmed
        self.evaluation, self.is_best = None, False  # of this step: a row of progress.csv
        self.tables = {"episodes.csv": [], "progress.csv": []}  # lines
        # stepping: a step is half done, from which the run cannot go on; stepped; evaluating, which a signal may
        # interrupt; ready: the step has been evaluated and yielded
        self.phase = "stepped"

    def __iter__(self):
        c = self.config
        while True:
            if self.phase != "ready":
                if c.eval_every and (self.step % c.eval_every == 0 or self.step == c.total_steps):
                    self.evaluation = self.evaluate()
                self.phase = "ready"
                yield self
            if self.step >= c.total_steps or (self.solved is not None and c.stop_when_solved):
                return
            self.phase = "stepping"
            self.advance()
            self.phase = "stepped"

    def advance(self):
        """One environment step and the updates that go with it."""
        c, agent, step = self.config, self.agent, self.step + 1
        # Act and remember: at random to begin with, then as the actor says plus noise, annealed linearly
        if step <= c.learning_starts:
            act = self.rng.uniform(-1, 1, len(agent.low))
        else:
            sigma = c.noise_sigma
            if c.noise_sigma_end is not None:
                sigma = np.interp(step, [0, c.noise_anneal * c.total_steps], [c.noise_sigma, c.noise_sigma_end])
            act = (agent.policy(self.episode.obs) + self.noise(sigma)).clip(-1, 1)
        self.interact(act.astype(np.float32))
        self.step, self.evaluation = step, None
        # Learn
        for _ in range(c.updates_per_step if step > c.learning_starts else 0):
            agent.update(self.buffer.sample(c.batch_size, agent.generator))
        # At the end of an episode, note how it went, and start the next one
        e = self.episode
        if e.over:
            self.add_row("episodes.csv", {"step": step, "episode": self.episodes, "seed": e.seed, "return": e.ret,
                                          "length": e.length, "terminated": e.terminated})
            self.returns = [*self.returns, e.ret][-10:]
            self.episodes += 1
            self.start_episode()
            self.noise.reset()

    def interact(self, act):
        """Take a step, and remember the action, (act,) in [-1, 1], just as it was executed."""
        obs = self.episode.obs
        rew, next_obs, terminated, truncated = self.episode.step(self.agent.to_env(act))
        self.actions.append(act)
        self.buffer.add(obs, act, self.config.reward_scale * rew, next_obs, terminated, truncated)

    def start_episode(self):
        """In an environment made afresh, as reset does not undo everything everywhere, from a seed of its own."""
        if self.episode and not self.own_env:
            self.episode.env.close()
        seed = np.random.SeedSequence([self.config.seed, self.episodes]).generate_state(1)[0]
        self.episode = Episode(self.make_env(), TRAINING_SEEDS + int(seed) // 2)  # below 2^32
        self.actions = []  # of the episode, to repeat it when the run is resumed

    def add_row(self, table, row):
        cells = [str(v) if isinstance(v, (int, str)) else f"{v:.6g}" for v in row.values()]
        lines = [cells] if self.tables[table] else [row.keys(), cells]
        self.tables[table] += [",".join(line) + "\n" for line in lines]

    def evaluate(self):
        """Evaluate the policy -> a row of progress.csv. What looks solved must be confirmed by more episodes."""
        c = self.config
        seeds = range(SELECTION_SEEDS, SELECTION_SEEDS + max(CONFIRM_EPISODES, c.eval_episodes))
        self.phase = "evaluating"  # may be interrupted here, to be done again when the run is resumed
        try:
            returns, lengths = evaluate(self.agent, self.make_eval_env, seeds[: c.eval_episodes])
            looks_solved = c.solved_at is not None and returns.mean() >= c.solved_at
            if looks_solved and len(returns) < len(seeds):
                returns, lengths = evaluate(self.agent, self.make_eval_env, seeds)
        finally:
            self.phase = "stepped"
        if looks_solved and returns.mean() >= c.solved_at and self.solved is None:
            self.solved = self.step
        self.is_best, self.best = bool(returns.mean() > self.best), max(self.best, returns.mean())
        measured = self.agent.updates >= self.agent.measure_every
        critic_loss, actor_loss, mean_q = self.agent.metrics.tolist() if measured else [np.nan] * 3
        seconds = time.perf_counter() - self.started
        row = dict(
            step=self.step, episodes=self.episodes, seconds=seconds, steps_per_s=self.step / seconds,
            train_return=np.mean(self.returns) if self.returns else np.nan,
            **{f"eval_{k}": v for k, v in summary(returns, lengths).items()},
            critic_loss=critic_loss, actor_loss=actor_loss, mean_q=mean_q / c.reward_scale)
        self.add_row("progress.csv", row)
        return row

    KEPT = "step", "episodes", "returns", "best", "solved", "evaluation", "phase", "tables"  # as they are

    def state(self):
        """All that the rest of the run depends on -> arrays, meta; `restore` goes on from there exactly.

        What you add to a training goes in here and there, or into KEPT; to an agent, into `tensors`.
        """
        arrays = {f"agent.{name}": tensor.cpu().numpy() for name, tensor in self.agent.tensors().items()} | {
            "generator": self.agent.generator.get_state().numpy(), "noise": self.noise.x,
            "rows": self.buffer.rows[: len(self.buffer)].cpu().numpy(),
            "actions": np.array(self.actions), "obs": self.episode.obs}
        return arrays, {name: getattr(self, name) for name in self.KEPT} | dict(
            config=asdict(self.config), device=str(self.agent.device), threads=torch.get_num_threads(),
            machine=MACHINE, seconds=time.perf_counter() - self.started,
            rng=self.rng.bit_generator.state, updates=self.agent.updates, written=self.buffer.written)

    def restore(self, arrays, meta):
        """Go on from what `state` returned; the episode then under way is replayed from its seed and actions."""
        vars(self).update({name: meta[name] for name in self.KEPT})
        self.started = time.perf_counter() - meta["seconds"]
        self.rng.bit_generator.state = meta["rng"]
        self.agent.updates, self.buffer.written = meta["updates"], meta["written"]
        self.agent.generator.set_state(torch.from_numpy(arrays["generator"]))
        for name, tensor in self.agent.tensors().items():
            tensor.copy_(torch.from_numpy(arrays[f"agent.{name}"]))
        self.noise.x[:] = arrays["noise"]
        rows = self.buffer.rows[: len(self.buffer)]
        rows.copy_(torch.from_numpy(arrays["rows"]))
        # The episode under way writes its rows once more, to the same places, and must make the same ones. Its last
        # n_step - 1 steps are not rows yet
        self.buffer.written -= max(0, len(arrays["actions"]) - self.config.n_step + 1)
        self.start_episode()
        for act in arrays["actions"]:
            self.interact(act)
        if not (np.array_equal(rows.cpu().numpy(), arrays["rows"]) and np.array_equal(self.episode.obs, arrays["obs"])):
            raise UsageError("the environment did not repeat an episode from its seed and actions, so it cannot go on")


def train(config, env=None, out=None, device="cpu", threads=None):
    """Train to the end -> the Agent of the last step. env: as in Training; for tuned values, pass Config.preset(id).

    out: a new folder for tables, policies and state; load(out) is the best policy.
    """
    run = Training(config, env, device, threads)
    for _ in record(run, new_folder(out)) if out else run:
        pass
    return run.agent


# ---------------------------------------------------------------------------------------------------- a run's folder

SAVE_EVERY, SAVE_SHARE = 60.0, 0.02  # the state is saved after so many seconds, and takes at most this share of them


def new_folder(folder):
    """Make the folder of a new run. Raises UsageError rather than mix it with what is there."""
    folder = Path(folder)
    try:
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} is not empty: if it is a run, go on with --resume {shlex.quote(str(folder))},\n"
                             "or choose another --seed or --out")
        (folder / "policies").mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"cannot write to {folder}: {error}") from None
    return folder


def lock(folder):
    """Keep the folder for this process until the handle returned is closed. Raises UsageError if another one has it."""
    try:
        import fcntl
    except ImportError:  # Windows, which has no such locks
        return os.open(os.devnull, os.O_RDONLY)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise UsageError(f"{folder} is in use: another training is writing to it") from None
    return handle


def record(run, folder):
    """Iterate over a Training and keep its folder, one of `new_folder` or of the run that `resume` brought back.

    When the iteration ends between two steps, the state is saved. A full disk delays files, with one warning, and does
    not stop the training. Raises OSError if the last save fails. An agent that has diverged is not saved: the files of
    the last sound one stay.
    """
    folder = Path(folder)
    info = dict(config=asdict(run.config), versions=VERSIONS, device=str(run.agent.device),
                threads=torch.get_num_threads())
    waiting = {"config.json": json.dumps(info, indent=1).encode()}  # files to write
    snapshot_every = math.ceil(run.config.total_steps / 50)
    save_at, warned = 0.0, False
    handle = lock(folder)

    def add_policy(name):
        if run.agent.is_finite():
            score = run.evaluation and run.evaluation["eval_mean"]
            run.agent.save(file := io.BytesIO(), run.config.env, run.step, score)
            waiting[name] = file.getbuffer()

    def save(state):
        """Write the files that wait and, if asked to, the state: the one before it stays until it is whole."""
        waiting.update({name: "".join(lines).encode() for name, lines in run.tables.items() if lines})
        for name, data in list(waiting.items()):
            write(folder / name, lambda file: file.write(data))
            del waiting[name]
        if state and run.agent.is_finite():
            arrays, meta = run.state()
            as_npz = lambda file: write_npz(file, arrays, **meta)
            write(folder / "state.npz", as_npz, previous=folder / "state.previous.npz")

    for path in folder.rglob("*.tmp"):
        path.unlink(missing_ok=True)  # a killed run was writing it
    try:
        for _ in run:
            if run.step % snapshot_every == 0:
                add_policy(f"policies/{run.step:012d}.npz")
            if run.evaluation:
                add_policy("last.npz")
                if run.is_best:
                    add_policy("best.npz")
            began = time.perf_counter()
            due = began >= save_at
            if run.evaluation or due:
                try:
                    save(state=due)
                    if due:
                        save_at = (now := time.perf_counter()) + max(SAVE_EVERY, (now - began) / SAVE_SHARE)
                except OSError as error:
                    if not warned:
                        print(f"ddpg.py: cannot save to {folder}: {error}; training goes on", file=sys.stderr)
                    warned, save_at = True, began + 1
            yield run
    finally:
        try:
            add_policy("last.npz")
            save(state=run.phase != "stepping")
        finally:
            os.close(handle)


def resume(folder, env=None, device=None, threads=None, **changes):
    """The Training whose folder this is, as it was when last saved. Raises UsageError if that is impossible.

    env: as in Training. changes: to its Config; only total_steps and stop_when_solved may differ from what they were.
    """
    folder = Path(folder)
    states = [path for path in (folder / "state.npz", folder / "state.previous.npz") if path.exists()]
    if not states:
        raise UsageError(f"{folder} cannot be resumed, it has no state.npz: " + (
            "it was killed before it was first saved. Delete it, and start again"
            if (folder / "policies").exists() else "it is not the folder of a run"))
    if isinstance(env, str):
        changes, env = changes | {"env": env}, None
    try:
        arrays, meta = read_npz(states[0])
    except UsageError:  # the disk has spoilt it
        arrays, meta = read_npz(states[-1])
    try:
        old = Config(**meta["config"])
        config = replace(old, **changes)
        fixed = [f"{k} {v} -> {getattr(config, k)}" for k, v in asdict(old).items()
                 if getattr(config, k) != v and k not in ("total_steps", "stop_when_solved")]
        if fixed:
            raise UsageError(f"a run goes on with its own configuration, without {', '.join(fixed)}")
        run = Training(config, env, device or meta["device"], threads or meta["threads"])
        run.restore(arrays, meta)
    except (KeyError, TypeError, RuntimeError, AssertionError) as error:  # the last one is of a torch without CUDA
        raise UsageError(f"{folder} cannot be resumed: {one_line(repr(error))}") from error
    if meta["machine"] != MACHINE:
        print(f"ddpg.py: {folder} was saved on {meta['machine']}: last bits may differ", file=sys.stderr)
    return run


# ---------------------------------------------------------------------------------------------------- command line


def parse(argv):
    """The command line -> options, and the fields of Config that it sets. Raises UsageError."""

    def refuse(message):
        raise UsageError(f"{message}; --help lists all flags")

    def JSON(text):  # argparse calls it by this name
        return json.loads(text)

    presets = (f"  {env}: {', '.join(f'{k} {v}' for k, v in preset.items())}" for env, preset in PRESETS.items())
    epilog = "\n".join(["presets, which any flag overrides:", *presets])
    parser = argparse.ArgumentParser(description=__doc__, epilog=epilog, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error, add = refuse, parser.add_argument
    mode = parser.add_mutually_exclusive_group().add_argument
    mode("--eval", metavar="RUN", help="test the best policy of a run's folder, or a policy file")
    mode("--resume", metavar="RUN", help="go on with the run in this folder")
    mode("--out", metavar="DIR", help="the run's folder (default runs/ENV/ALGO-seedSEED)")
    add("--episodes", type=int, default=TEST_EPISODES, help="how many test episodes to run (default 100)")
    devices = ["cpu", *["cuda"] * torch.cuda.is_available(), *["mps"] * torch.backends.mps.is_available()]
    add("--device", default="auto", choices=["auto", *devices], help="auto: cuda for large networks, if there is one")
    add("--threads", type=int, metavar="N", help="CPU threads (default 1, 2 for large networks)")
    add("--watch", action="store_true", help="open the viewer beside the training")
    add("--quiet", action="store_true", help="print the final test only")
    add("--json", action="store_true", help="print the final test only, as a line of JSON")
    special = {bool: dict(action=argparse.BooleanOptionalAction), dict: dict(type=JSON, metavar="JSON")}
    for f in fields(Config):
        item, *more = get_args(f.type) or [f.type]  # of tuple[int, ...]: int, and there may be more
        kind = special.get(item) or dict(type=item, metavar=item.__name__, nargs="+" if more else None)
        default = "" if f.default is None else f" (default {f.default})"
        add("--" + f.name.replace("_", "-"), default=argparse.SUPPRESS, help=f.metadata["help"] + default, **kind)
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        near = difflib.get_close_matches(unknown[0].split("=")[0], parser._option_string_actions, 1)
        refuse(f"unknown argument {unknown[0]}" + "".join(f", did you mean {name}?" for name in near))
    if "" in (options.eval, options.resume, options.out):
        refuse("--eval, --resume and --out need a name")
    explicit = {f.name: getattr(options, f.name) for f in fields(Config) if hasattr(options, f.name)}
    if options.eval and (fixed := explicit.keys() - {"env", "env_kwargs", "max_episode_steps"}):
        refuse(f"--eval goes with the policy's own configuration, without {', '.join(sorted(fixed))}")
    if options.episodes < 1 or options.threads is not None and not 1 <= options.threads <= 256:
        refuse("--episodes must be at least 1, --threads 1 to 256")
    return options, explicit


def print_test(policy, make_env, options, **more):
    """Test a loaded policy on episodes that neither its training nor its choice saw, and print the result."""
    result = {k: policy.meta[k] for k in ("path", "env", "step")} | more
    result |= summary(*evaluate(policy, make_env, range(options.episodes)))
    print(json.dumps(result) if options.json else
          "{path}, the policy of step {step:,}:\n{mean:.1f} ± {std:.1f} over {episodes} test episodes "
          "(min {min:.1f}, max {max:.1f}, mean length {length:.0f})".format(**result), flush=True)


def train_command(options, explicit):
    """Train, or --resume, with a live view, until done or stopped by a signal; then test the best policy."""
    device = None if options.device == "auto" else options.device
    viewer = Path(__file__).with_name("viewer.py")
    if options.watch and not viewer.exists():
        raise UsageError(f"--watch needs viewer.py beside ddpg.py, in {viewer.parent}")
    if options.resume:
        folder = Path(options.resume)
        run = resume(folder, device=device, threads=options.threads, **explicit)
    else:
        c = Config.preset(**explicit)
        large = torch.cuda.is_available() and c.batch_size * max(c.hidden) >= 2**18  # a guess, not measured
        run = Training(c, None, device or ("cuda" if large else "cpu"), options.threads)
        name = Path("runs", c.env.replace(":", "-").replace("/", "-"), f"{c.algo}-seed{c.seed}")
        folder = new_folder(options.out or name)
    c, quiet, signals, first = run.config, options.quiet or options.json, [], run.step
    named = shlex.quote(str(folder))

    def on_signal(number, frame):
        if signals:
            os._exit(128 + number)  # asked twice: leave at once, what is on disk stays as it is
        signals.append(number)
        if run.phase == "evaluating":  # which may take long; a step is finished first
            raise KeyboardInterrupt

    for number in signal.SIGINT, signal.SIGTERM:
        signal.signal(number, on_signal)
    say = (lambda text: None) if quiet else (lambda text: print(text, flush=True))
    say(f"{c.algo} on {c.env}, seed {c.seed}, {run.agent.device}, in {folder}\n"
        "      step  episodes  steps/s  last returns  evaluation")
    if c.total_steps <= c.learning_starts:
        say(f"nothing is learnt in the first {c.learning_starts:,} steps: set --learning-starts, or more --total-steps")
    steps = record(run, folder)
    try:
        for _ in steps if quiet else watch(steps):
            if options.watch:
                subprocess.Popen([sys.executable, viewer, folder, "--live"])
                options.watch = False
            if signals:
                break
    except KeyboardInterrupt:
        pass
    except EnvError as error:
        saved = (f"the agent of step {run.step:,} is saved in {folder}" if run.agent.is_finite() else
                 f"the agent has diverged, {folder} keeps what was saved before: try lower --actor-lr and --critic-lr")
        raise EnvError(f"{error}\n{saved}") from error.__cause__
    finally:
        steps.close()  # which saves
        for number in signal.SIGINT, signal.SIGTERM:
            signal.signal(number, lambda number, frame: sys.exit(128 + number))
    if signals:
        say(f"\nStopped at step {run.step:,} and saved. To go on:\n  python ddpg.py --resume {named}")
        return 128 + signals[0]
    seconds = time.perf_counter() - run.started
    how = "Done" if run.solved is None else "Solved"
    if options.resume and first == run.step:
        say("It had come to its end before: more --total-steps go on, and --no-stop-when-solved if it was solved.")
    say(f"{how} after {run.step:,} steps and {seconds:.1f} s. Testing the best policy ..")
    print_test(load(folder), run.make_eval_env, options, solved=run.solved, seconds=seconds)
    named += f" --env {c.env}" * (":" in c.env)
    say(f"Next:\n  python ddpg.py --eval {named}" + f"\n  python viewer.py {named}" * viewer.exists())


def watch(steps):
    """Pass the steps of a training on, with a line per evaluation and, on a terminal, a live status line under them."""
    live, due, score = "\r\x1b[K" if sys.stdout and sys.stdout.isatty() else "", 0.0, "-"
    for run in steps:
        now, total, row = time.perf_counter(), run.config.total_steps, run.evaluation
        if row or (live and now >= due):
            last = f"{np.mean(run.returns):.1f}" if run.returns else "-"
        if row:
            score = f"{row['eval_mean']:.1f} ± {row['eval_std']:.1f}"
            print(f"{live}{run.step:10,}{run.episodes:10,}{row['steps_per_s']:9,.0f}{last:>14}  {score}"
                  f" over {row['eval_episodes']} episodes{', the best yet' if run.is_best else ''}", flush=True)
        if live and now >= due:
            due, speed = now + 0.1, run.step / (now - run.started)
            text = (f"{run.step / total:4.0%}  {speed:,.0f} steps/s  < {(total - run.step) / (speed or 1):,.0f} s left"
                    f"  last returns {last}  evaluation {score}")
            print(live + text[: shutil.get_terminal_size().columns - 1], end="", flush=True)  # must not wrap
        yield run
    print(live, end="")


def main(argv=None):
    """The command line -> its exit code: 0 finished, 1 failed, 2 refused to start, 130 or 143 stopped by a signal."""
    gym.logger.min_level = gym.logger.ERROR  # its advice on old versions comes as an error too
    with suppress(AttributeError, OSError):  # where stdout is closed or no file
        sys.stdout.reconfigure(errors="replace")  # a terminal of ASCII has no ±
    try:
        options, explicit = parse(argv)
        sys.path.append(os.getcwd())  # where the module of --env module:Id may be
        if not options.eval:
            return train_command(options, explicit) or 0
        tune(options.threads or 1)
        policy = load(options.eval, "cpu" if options.device == "auto" else options.device)
        print_test(policy, env_maker_of(policy, **explicit), options)
        return 0
    except (UsageError, EnvError) as error:
        if isinstance(error, EnvError) and error.__cause__:
            traceback.print_exception(error.__cause__)
        print(f"ddpg.py: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:  # nobody reads any more what it prints
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 1
    except OSError as error:
        print(f"ddpg.py: cannot save: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
