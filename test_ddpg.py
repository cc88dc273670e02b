"""Tests of ddpg.py: oracles first, then determinism, files and the command line, then learning (`-m slow`).

    python -m pytest                 the fast ones, under two minutes on two cores
    python -m pytest -m slow         learning on several seeds, minutes
"""

import csv
import itertools
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

import ddpg
from ddpg import ALGOS, PRESETS, Agent, Config, Noise, ReplayBuffer, Training, UsageError, evaluate, load, train

ROOT = Path(__file__).resolve().parent
SMALL = dict(hidden=(16, 16), batch_size=16, learning_starts=50, eval_every=0)


class Toy(gym.Env):
    """Counts its steps in the observation, records the actions, and ends as told."""

    def __init__(self, length=10, terminates=False, low=(-1.0,), high=(1.0,), obs=lambda t: [1.0, 0.1 * t]):
        self.length, self.terminates, self.received, self.count, self.obs = length, terminates, [], 0, obs
        self.action_space = gym.spaces.Box(np.float32(low), np.float32(high))
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, np.shape(obs(0)), np.float32)
        self.array = np.zeros(np.shape(obs(0)), np.float32)  # the same array each time, as some environments do

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observe(), {}

    def observe(self):
        self.array[:] = self.obs(self.t)
        return self.array

    def step(self, action):
        assert self.action_space.contains(action), action
        self.received.append(action.copy())
        self.t += 1
        self.count += 1
        over = self.t == self.length
        return self.observe(), 1.0, over and self.terminates, over and not self.terminates, {}


def run_for(config, env=None, **kw):
    run = Training(config, env, **kw)
    for _ in run:
        pass
    return run


def command(*arguments, cwd=None, timeout=60, **kw):
    """Run ddpg.py as a user would."""
    environment = {**os.environ, "PYTHONPATH": "", "PYTHONWARNINGS": "error::SyntaxWarning"}
    return subprocess.run([sys.executable, ROOT / "ddpg.py", *map(str, arguments)], cwd=cwd, timeout=timeout,
                          capture_output=True, text=True, env=environment, **kw)  # fmt: skip


# ------------------------------------------------------------------------------------- the update, against NumPy


def numpy_forward(params, x, layer_norm, keep):
    """One network of float64 arrays [(W, b), ..]; `keep` collects what the backward pass needs."""
    for i, (w, b) in enumerate(params):
        keep.append([x])
        x = x @ w + b
        if i < len(params) - 1:
            if layer_norm:
                centred = x - x.mean(1, keepdims=True)
                spread = np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5)
                x = centred / spread
                keep[-1] += [x, spread]
            keep[-1].append(x > 0)
            x = np.maximum(x, 0)
    return x


def numpy_backward(params, keep, grad, layer_norm):
    """-> gradients of the parameters [(dW, db), ..] and of the input, for an output gradient."""
    grads = []
    for i, ((w, _), kept) in reversed(list(enumerate(zip(params, keep)))):
        if i < len(params) - 1:
            grad = grad * kept[-1]
            if layer_norm:
                _, normal, spread, _ = kept
                grad = (grad - grad.mean(1, keepdims=True) - normal * (grad * normal).mean(1, keepdims=True)) / spread
        grads.insert(0, (kept[0].T @ grad, grad.sum(0)))
        grad = grad @ w.T
    return grads, grad


class NumpyAgent:
    """DDPG and TD3 once more, written differently: float64, no autograd, one list of arrays per network and critic."""

    def __init__(self, agent):
        self.c = agent.config
        stack = lambda net, i: [(w.detach().double().numpy()[i], b.detach().double().numpy()[i, 0])  # noqa: E731
                                for w, b in zip(net.net.weights, net.net.biases)]  # fmt: skip
        self.actor = stack(agent.actor, 0)
        self.critics = [stack(agent.critic, i) for i in range(self.c.n_critics)]
        self.actor_target, self.critic_targets = stack(agent.actor_target, 0), [stack(agent.critic_target, i) for i in range(self.c.n_critics)]
        self.moments, self.k = {}, 0

    def adam(self, name, params, grads, lr):
        m, v, t = self.moments.get(name, ([[0, 0]] * len(params), [[0, 0]] * len(params), 0))
        t += 1
        m = [[0.9 * a + 0.1 * g for a, g in zip(pair, gs)] for pair, gs in zip(m, grads)]
        v = [[0.999 * a + 0.001 * g**2 for a, g in zip(pair, gs)] for pair, gs in zip(v, grads)]
        self.moments[name] = m, v, t
        return [tuple(p - lr * (a / (1 - 0.9**t)) / (np.sqrt(b / (1 - 0.999**t)) + 1e-8) for p, a, b in zip(*three))
                for three in zip(params, m, v)]  # fmt: skip

    def update(self, batch, noise):
        obs, act, rew, next_obs, discount = (x.double().numpy() for x in batch)
        c, ln = self.c, self.c.layer_norm
        self.k += 1
        noise = np.clip(c.target_noise * noise.double().numpy(), -c.target_noise_clip, c.target_noise_clip)
        next_act = np.clip(np.tanh(numpy_forward(self.actor_target, next_obs, False, [])) + noise, -1, 1)
        values = [numpy_forward(q, np.hstack([next_obs, next_act]), ln, []) for q in self.critic_targets]
        target = rew + discount * np.minimum.reduce(values)
        for i, params in enumerate(self.critics):
            keep = []
            q = numpy_forward(params, np.hstack([obs, act]), ln, keep)
            grads, _ = numpy_backward(params, keep, 2 * (q - target) / len(q), ln)
            self.critics[i] = self.adam(f"critic{i}", params, grads, c.critic_lr)
        if self.k % c.policy_delay == 0:
            keep_actor, keep_critic = [], []
            mu = np.tanh(numpy_forward(self.actor, obs, False, keep_actor))
            numpy_forward(self.critics[0], np.hstack([obs, mu]), ln, keep_critic)
            _, grad = numpy_backward(self.critics[0], keep_critic, np.full((len(obs), 1), -1 / len(obs)), ln)
            grads, _ = numpy_backward(self.actor, keep_actor, grad[:, obs.shape[1]:] * (1 - mu**2), False)  # fmt: skip
            self.actor = self.adam("actor", self.actor, grads, c.actor_lr)
            follow = lambda target, net: [tuple((1 - c.tau) * t + c.tau * p for t, p in zip(*pair)) for pair in zip(target, net)]  # noqa: E731
            self.actor_target = follow(self.actor_target, self.actor)
            self.critic_targets = [follow(t, q) for t, q in zip(self.critic_targets, self.critics)]


def random_batch(agent, size=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    n, a = agent.obs_dim, len(agent.low)
    draw = lambda *shape: torch.randn(*shape, generator=g)  # noqa: E731
    return draw(size, n), draw(size, a).clamp(-1, 1), draw(size, 1), draw(size, n), torch.rand(size, 1, generator=g).round() * 0.9


@pytest.mark.parametrize("n_critics, policy_delay, target_noise, layer_norm",
                         list(itertools.product((1, 2), (1, 2), (0.0, 0.2), (False, True))))  # fmt: skip
def test_update_equals_an_independent_numpy_reference(n_critics, policy_delay, target_noise, layer_norm):
    config = Config(n_critics=n_critics, policy_delay=policy_delay, target_noise=target_noise, layer_norm=layer_norm,
                    hidden=(24, 16), actor_lr=1e-3, critic_lr=2e-3, tau=0.05)  # fmt: skip
    agent = Agent(5, [-1, -2, 0], [1, 1, 3], config)
    for network in agent.actor, agent.critic:  # start away from the tiny last layer, where gradients would vanish
        network.flat.mul_(3)
    for i, network in enumerate((agent.actor_target, agent.critic_target)):  # and with targets of their own
        network.flat.copy_(torch.randn(network.flat.shape, generator=torch.Generator().manual_seed(i)) * 0.3)
    reference = NumpyAgent(agent)
    start = agent.critic.flat.clone()
    for step in range(6):
        batch = random_batch(agent, seed=step)
        twin = torch.Generator()
        twin.set_state(agent.generator.get_state())
        agent.update(batch)
        reference.update(batch, torch.randn(batch[1].shape, generator=twin))
    assert (agent.critic.flat - start).abs().max() > 1e-3
    for ours, theirs in [(agent.actor, [reference.actor]), (agent.actor_target, [reference.actor_target]),
                         (agent.critic, reference.critics), (agent.critic_target, reference.critic_targets)]:  # fmt: skip
        for layer in range(3):
            for which, params in enumerate((ours.net.weights, ours.net.biases)):
                expected = np.stack([net[layer][which] for net in theirs]).reshape(params[layer].shape)
                error = np.abs(params[layer].detach().numpy() - expected).max() / np.abs(expected).max()
                assert error < 1e-4, (layer, which, error)


# ------------------------------------------------------------------------------------- learning traps, table 1 to 16


@pytest.mark.parametrize("terminates, expected", [(False, 5.0), (True, 1 / (1 - 0.8 * 0.9))])
@pytest.mark.parametrize("algo", ["ddpg", "td3"])
def test_q_oracle_time_limits_bootstrap_and_terminal_states_do_not(algo, terminates, expected):
    # trap 1: reward 1 for ever is worth 1 / (1 - gamma) = 5.00; with one step in 10 the last, 3.57
    config = Config(algo=algo, **SMALL | dict(learning_starts=100), gamma=0.8, total_steps=1600, tau=0.05, critic_lr=3e-3)
    run = run_for(config, Toy(terminates=terminates, obs=lambda t: [1.0]))
    obs, act = torch.ones(1, 1), torch.zeros(1, 1)
    assert run.agent.critic(obs, act).mean().item() == pytest.approx(expected, rel=0.03)


def test_terminal_state_on_the_last_allowed_step_is_terminal():  # trap 2
    run = run_for(Config(**SMALL, total_steps=40, max_episode_steps=10, gamma=0.9), Toy(10, terminates=True))
    discounts = run.buffer.rows[:40, -1]
    assert (discounts[9::10] == 0).all() and (discounts.reshape(4, 10)[:, :9] == np.float32(0.9)).all()


def test_stored_rows_are_the_real_steps():  # traps 3 and 12
    run = run_for(Config(**SMALL, total_steps=95), Toy(10))
    obs, act, rew, next_obs, discount = run.buffer.rows[: len(run.buffer)].split(run.buffer.columns, dim=1)
    assert len(run.buffer) == 95
    assert torch.allclose(obs[:, 1], torch.arange(95) % 10 * 0.1)  # distinct though the environment reuses its array
    assert torch.allclose(next_obs[:, 1], (torch.arange(95) % 10 + 1) * 0.1)
    within = torch.arange(94) % 10 != 9
    assert torch.equal(next_obs[:-1][within], obs[1:][within])
    assert (rew == 1).all() and (discount == np.float32(0.99)).all()


def test_each_action_dimension_has_its_own_bounds():  # trap 4
    low, high = np.float32([0, -3]), np.float32([1, 5])
    env = Toy(low=low, high=high)
    run = run_for(Config(**SMALL, total_steps=600, noise_sigma=2.0), env)  # Toy.step asserts that none leaves them
    received = np.array(env.received)
    for phase in received[:50], received[50:]:
        assert (phase.min(0) < low + 0.1 * (high - low)).all() and (phase.max(0) > high - 0.1 * (high - low)).all()
    extremes = run.agent.to_env(np.array([[-1, -1], [1, 1]], np.float32))
    assert (extremes == [low, high]).all()
    odd = Agent(1, [-0.1, 0.1], [0.3, 0.7], Config(**SMALL))  # bounds that float32 cannot represent
    spread = odd.to_env(np.float32(np.linspace(-1, 1, 1001))[:, None].repeat(2, 1))
    assert (spread >= odd.low).all() and (spread <= odd.high).all()


def test_the_stored_action_is_the_executed_one():  # trap 5
    env = Toy(low=[0, -3], high=[1, 5])
    run = run_for(Config(**SMALL, total_steps=200, noise_sigma=0.8), env)
    stored = run.buffer.rows[:200, 2:4].numpy()
    assert np.abs(stored).max() == 1  # some were clipped
    assert np.array_equal(run.agent.to_env(stored), np.array(env.received))


def test_target_noise_is_drawn_per_element_in_unit_scale_and_clamped():  # trap 6
    seen = {}
    agent = Agent(3, [-100] * 2, [100] * 2, Config(algo="td3", **SMALL))
    critic_target, actor_target = agent.critic_target.forward, agent.actor_target
    agent.critic_target.forward = lambda obs, act: seen.update(obs=obs, act=act) or critic_target(obs, act)
    agent.update(random_batch(agent, 4000))
    noise = seen["act"] - actor_target(seen["obs"])
    assert noise.shape == (4000, 2) and noise.std().item() == pytest.approx(0.2, rel=0.05)
    assert 0.45 < noise.abs().max() <= 0.5 + 1e-6 and len(noise.unique()) > 7000
    actor_target.net.biases[-1].data.fill_(10)  # saturated: the smoothed action must stay in [-1, 1]
    agent.update(random_batch(agent, 4000))
    assert seen["act"].max() == 1


def test_delayed_updates_count_critic_updates():  # trap 7
    agent = Agent(3, [-1], [1], Config(algo="td3", **SMALL))
    actors, targets = 0, 0
    for _ in range(1001):
        actor, target = agent.actor.flat.clone(), agent.critic_target.flat.clone()
        agent.update(random_batch(agent, 4))
        actors += not torch.equal(actor, agent.actor.flat)
        targets += not torch.equal(target, agent.critic_target.flat)
    assert (actors, targets, agent.updates) == (500, 500, 1001)


def test_noise_is_one_recurrence_and_starts_each_episode_at_zero():  # trap 8
    noise = Noise(1, 0.15, np.random.default_rng(0))
    x = np.array([noise(0.2)[0] for _ in range(100_000)])
    assert x.std() == pytest.approx(0.2 / np.sqrt(0.15 * 1.85), rel=0.03)
    assert np.corrcoef(x[1:], x[:-1])[0, 1] == pytest.approx(0.85, abs=0.02)
    white = np.array([Noise(1, 1.0, rng)(0.2)[0] for rng in [np.random.default_rng(0)] for _ in range(10_000)])
    assert white.std() == pytest.approx(0.2, rel=0.03) and abs(np.corrcoef(white[1:], white[:-1])[0, 1]) < 0.03
    resets = []
    run = Training(Config(**SMALL, total_steps=100, noise_theta=0.15), Toy(10))
    run.noise.reset = lambda reset=run.noise.reset: (resets.append(run.step), reset())
    for _ in run:
        assert run.step < 60 or (run.noise.x == 0).all() == (run.step % 10 == 0)
    assert resets == list(range(10, 101, 10))


def test_annealing_is_linear_over_the_first_part():
    run = Training(Config(**SMALL, total_steps=1000, updates_per_step=0, noise_sigma=0.4, noise_sigma_end=0.1, noise_anneal=0.3), Toy())
    sigmas = {}
    run.noise = lambda sigma: sigmas.update({run.step + 1: sigma}) or 0
    run.noise.reset = lambda: None
    for _ in run:
        pass
    assert [sigmas[s] for s in (51, 150, 300, 1000)] == pytest.approx([0.349, 0.25, 0.1, 0.1])


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_n_step_rows_equal_brute_force_in_a_wrapped_ring(n):  # trap 9
    rng, gamma = np.random.default_rng(n), 0.9
    buffer = ReplayBuffer(64, 1, 1, n, gamma)
    steps, expected = [], []
    for i in range(1000):
        end = rng.choice(["", "", "", "terminated", "truncated"])
        steps.append((i, rng.normal(), end))
        buffer.add(np.float32([i]), np.float32([-i]), steps[-1][1], np.float32([i + 0.5]), end == "terminated", end == "truncated")
    for i in range(1000):
        window = []
        for j, rew, end in steps[i : i + n]:
            window.append(rew)
            if end:
                break
        if len(window) < n and not end:
            break  # still pending
        discount = 0 if end == "terminated" else gamma ** len(window)
        expected.append([i, -i, sum(gamma**k * r for k, r in enumerate(window)), j + 0.5, discount])
    assert buffer.written == len(expected) > 64
    rows = np.roll(buffer.rows.numpy(), -(buffer.written % 64), axis=0)
    np.testing.assert_allclose(rows, np.float32(expected[-64:]), rtol=1e-5)


def test_evaluation_does_not_disturb_training():  # trap 10
    runs = [run_for(Config.preset(**SMALL | dict(eval_every=every), total_steps=300, eval_episodes=2)) for every in (0, 100)]
    assert torch.equal(runs[0].agent.actor.flat, runs[1].agent.actor.flat)
    assert torch.equal(runs[0].buffer.rows[:300], runs[1].buffer.rows[:300])


def test_nothing_is_sampled_from_the_action_space():  # trap 11
    env = Toy()
    env.action_space.sample = None
    first, second = run_for(Config(**SMALL, total_steps=60), env), run_for(Config(**SMALL, total_steps=60), Toy())
    assert torch.equal(first.buffer.rows[:60], second.buffer.rows[:60])


def test_everything_is_float32():  # trap 12
    env = Toy(obs=lambda t: np.float64([t, 1 / 3]))
    run = run_for(Config(**SMALL, total_steps=80), env)
    assert all(t.dtype == torch.float32 for t in [run.buffer.rows, *run.agent.tensors().values()])
    assert env.received[-1].dtype == np.float32


def test_first_actions_are_near_zero():  # trap 13
    agent = Agent(8, [-1] * 4, [1] * 4, Config())
    assert np.abs(agent.act(np.random.default_rng(0).normal(size=(1000, 8)))).max() < 0.05


def test_threads_and_denormals_are_set_before_training():  # traps 14 and 15
    torch.set_num_threads(2)
    Training(Config(**SMALL, total_steps=1), Toy())
    assert torch.get_num_threads() == 1
    assert (torch.tensor([1e-39]) * 1.0).item() == 0 or not torch.set_flush_denormal(True)
