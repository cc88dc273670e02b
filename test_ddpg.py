"""Tests of ddpg.py and viewer.py: oracles, determinism, files, the command line, the viewer, learning (`-m slow`).

    python -m pytest                 the fast ones, under two minutes on two cores
    python -m pytest -m slow         learning on several seeds, minutes
"""

import copy
import fcntl
import io
import itertools
import json
import os
import pickle
import pty
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
import traceback
import zipfile
from dataclasses import fields, replace
from pathlib import Path

os.environ["SDL_VIDEODRIVER"] = "dummy"  # no window, but where a test asks for one

import gymnasium as gym
import numpy as np
import pygame
import pytest
import torch

import ddpg
import viewer
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


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """By ddpg.main or by tests, in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    path, saving, threads = list(sys.path), (ddpg.SAVE_EVERY, ddpg.SAVE_SHARE), torch.get_num_threads()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    sys.path[:], (ddpg.SAVE_EVERY, ddpg.SAVE_SHARE) = path, saving
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def run_for(config, env=None, **kw):
    run = Training(config, env, **kw)
    for _ in run:
        pass
    return run


def in_a_child(work, output=os.devnull, errors=None, timeout=120):
    """Run `work()` in a forked process -> its id; it exits with what `work` returns, 1 if that raises."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    signal.alarm(timeout)  # no child outlives a test that failed for long
    try:
        for stream, path in (1, output), (2, errors or output):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
        sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)
        code = work() or 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def exit_code(pid, timeout=60):
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("it hangs")


def wait_for(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def command(*arguments, cwd=None, timeout=60, fresh=False):
    """Run ddpg.py as a user would: in a fork of this process, which has torch already, or in a fresh interpreter."""
    arguments = list(map(str, arguments))
    if fresh:
        environment = {**os.environ, "PYTHONPATH": "", "PYTHONWARNINGS": "error::SyntaxWarning"}
        return subprocess.run([sys.executable, ROOT / "ddpg.py", *arguments], cwd=cwd, timeout=timeout,
                              capture_output=True, text=True, env=environment)

    def work():
        os.chdir(cwd or os.getcwd())
        return ddpg.main(arguments)

    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = exit_code(in_a_child(work, out, err), timeout)
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


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
        stack = lambda net, i: [(w.detach().double().numpy()[i], b.detach().double().numpy()[i, 0])
                                for w, b in zip(net.net.weights, net.net.biases)]
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
                for three in zip(params, m, v)]

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
            grads, _ = numpy_backward(self.actor, keep_actor, grad[:, obs.shape[1]:] * (1 - mu**2), False)
            self.actor = self.adam("actor", self.actor, grads, c.actor_lr)
            follow = lambda target, net: [tuple((1 - c.tau) * t + c.tau * p for t, p in zip(*pair)) for pair in zip(target, net)]
            self.actor_target = follow(self.actor_target, self.actor)
            self.critic_targets = [follow(t, q) for t, q in zip(self.critic_targets, self.critics)]


def random_batch(agent, size=32, seed=0):
    g = torch.Generator().manual_seed(seed)
    n, a = agent.obs_dim, len(agent.low)
    draw = lambda *shape: torch.randn(*shape, generator=g)
    return draw(size, n), draw(size, a).clamp(-1, 1), draw(size, 1), draw(size, n), torch.rand(size, 1, generator=g).round() * 0.9


@pytest.mark.parametrize("n_critics, policy_delay, target_noise, layer_norm",
                         list(itertools.product((1, 2), (1, 2), (0.0, 0.2), (False, True))))
def test_update_equals_an_independent_numpy_reference(n_critics, policy_delay, target_noise, layer_norm):
    config = Config(n_critics=n_critics, policy_delay=policy_delay, target_noise=target_noise, layer_norm=layer_norm,
                    hidden=(24, 16), actor_lr=1e-3, critic_lr=2e-3, tau=0.05)
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
                         (agent.critic, reference.critics), (agent.critic_target, reference.critic_targets)]:
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


def test_exploration_is_independent_in_each_action_dimension():
    config = Config(**SMALL | dict(learning_starts=2000), updates_per_step=0, noise_sigma=0.3, total_steps=4000)
    acts = run_for(config, Toy(low=[0, -3], high=[1, 5])).buffer.rows[:4000, 2:4].numpy()
    for phase, std in (acts[:2000], 3**-0.5), (acts[2000:], 0.3):
        assert abs(np.corrcoef(phase.T)[0, 1]) < 0.1 and phase.std(0) == pytest.approx([std, std], rel=0.1)


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
    env = Toy()
    env.observe = lambda: np.float64([env.t, 1 / 3])
    run = run_for(Config(**SMALL, total_steps=80), env)
    assert run.episode.obs.dtype == np.float32
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
    Training(Config(total_steps=1), Toy())  # 256-256, batch 256: large enough for a second thread
    assert torch.get_num_threads() == min(2, os.cpu_count())
    Training(Config(total_steps=1), Toy(), threads=1)
    assert torch.get_num_threads() == 1


# ------------------------------------------------------------------------------------- the agent as others use it


def test_small_observations_count_as_much_as_others_from_the_start():
    plain, scaled = (Agent(2, [-1], [1], Config(**SMALL, obs_scale=scale)) for scale in ((), (1.0, 0.07)))
    for name in "actor", "critic", "actor_target", "critic_target":
        before, after = (getattr(agent, name).net.weights[0].detach() for agent in (plain, scaled))
        assert torch.equal(before[:, [0, *range(2, before.shape[1])]], after[:, [0, *range(2, after.shape[1])]])
        assert torch.allclose(before[:, 1], after[:, 1] * 0.07)
    with pytest.raises(UsageError, match="obs_scale"):
        Agent(3, [-1], [1], Config(**SMALL, obs_scale=(1.0, 0.07)))


def test_three_switches_are_independent_and_algo_is_only_a_preset_of_them():
    assert Config(algo="ddpg").n_critics == 1 and Config(algo="td3").n_critics == 2
    config = Config.preset("Pendulum-v1", algo="ddpg", n_critics=2)
    assert (config.n_critics, config.policy_delay, config.target_noise) == (2, 1, 0)
    values = {name: Config.preset("Pendulum-v1", algo="td3").__getattribute__(name) for name in ALGOS["td3"]}
    assert values == ALGOS["td3"]
    assert Config.preset("Pendulum-v1", tau=0.5).tau == 0.5 != PRESETS["Pendulum-v1"]["tau"]  # explicit > preset
    assert Config.preset("Unknown-v0") == Config(env="Unknown-v0")
    for env in PRESETS:
        Config.preset(env)


@pytest.mark.parametrize("bad", [
    dict(gamma=1.1), dict(actor_lr=float("nan")), dict(critic_lr=0), dict(batch_size=0), dict(hidden=(64, 0)), dict(algo="ppo"),
    dict(tau=-0.1), dict(total_steps=0), dict(n_step=0), dict(noise_sigma=float("inf")), dict(learning_starts=2, n_step=3),
    dict(batch_size=1.5), dict(batch_size=None), dict(tau=None), dict(hidden=None), dict(env=None), dict(hidden=("64",)), dict(seed=-1), dict(reward_scale=0), dict(buffer_size="many"),
])
def test_impossible_values_are_refused_by_name(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        Config(**bad)


def test_each_loss_moves_only_its_own_network():
    agent = Agent(3, [-1], [1], Config(algo="ddpg", **SMALL))
    agent.update(random_batch(agent))
    grad, obs = agent.critic.flat.grad.clone(), torch.ones(5, 3)
    with torch.inference_mode():
        agent.critic.slope(obs, agent.actor(obs))
    assert grad.any() and torch.equal(grad, agent.critic.flat.grad)
    for frozen, other in ("critic", "actor"), ("actor", "critic"):
        agent = Agent(3, [-1], [1], Config(algo="ddpg", **SMALL))
        before = {name: getattr(agent, name).flat.clone() for name in (frozen, other)}
        getattr(agent, f"{frozen}_optimizer").step = lambda: None
        agent.update(random_batch(agent))
        assert torch.equal(before[frozen], getattr(agent, frozen).flat)
        assert not torch.equal(before[other], getattr(agent, other).flat)


def test_the_loop_heeds_its_flags():
    config = Config(**SMALL | dict(batch_size=7), updates_per_step=3, noise_theta=0.3, reward_scale=0.5, buffer_size=40, total_steps=60)
    run, sizes = Training(config, Toy()), []
    update = run.agent.update
    run.agent.update = lambda batch: (sizes.append(len(batch[0])), update(batch))
    for _ in run:
        pass
    assert sizes == [7] * 30 and run.noise.theta == 0.3
    assert run.buffer.rows.shape[0] == 40 and (run.buffer.rows[:, 3] == 0.5).all()


def test_exactly_the_first_steps_are_random():
    config = Config(**SMALL, noise_sigma=0.0, total_steps=51)
    acts = run_for(config, Toy()).buffer.rows[:51, 2].numpy()
    assert np.array_equal(acts[:50], np.float32([np.random.default_rng(0).uniform(-1, 1, 50)])[0]) and 0 < abs(acts[50]) < 0.01


def test_making_an_agent_leaves_the_callers_random_state_alone():
    state = torch.get_rng_state()
    Agent(3, [-1], [1], Config(**SMALL, seed=5))
    assert torch.equal(state, torch.get_rng_state())


def test_flat_vector_and_layers_are_the_same_memory():
    agent = Agent(3, [-1], [1], Config(**SMALL))
    for network in agent.actor, agent.critic, agent.actor_target, agent.critic_target:
        assert network.flat.numel() == sum(p.numel() for p in network.parameters())
        network.flat.fill_(0.5)
        assert all((p == 0.5).all() for p in network.parameters())
    agent.actor.flat.zero_()
    assert (agent.actor_target.flat == 0.5).all()  # the target has memory of its own


def test_a_replay_row_holds_what_it_must_and_nothing_else():
    buffer = ReplayBuffer(10, 3, 2)
    assert buffer.rows.shape == (10, 3 + 2 + 1 + 3 + 1) and buffer.rows.dtype == torch.float32
    for i in range(25):
        buffer.add(np.full(3, i), np.zeros(2), i, np.full(3, i + 1), False, False)
    assert len(buffer) == 10
    obs, act, rew, next_obs, discount = buffer.sample(1000, torch.Generator().manual_seed(0))
    assert [x.shape[1] for x in (obs, act, rew, next_obs, discount)] == [3, 2, 1, 3, 1]
    assert sorted(rew.unique().tolist()) == list(range(15, 25)) and torch.equal(next_obs, obs + 1)


def test_act_takes_one_observation_or_a_batch():
    agent = Agent(3, [-2, 0], [2, 1], Config(**SMALL))
    obs = np.random.default_rng(0).normal(size=(7, 3))
    assert agent.act(obs[0]).shape == (2,) and agent.act(obs).shape == (7, 2) and agent.act(obs).dtype == np.float32
    np.testing.assert_allclose(agent.act(obs)[3], agent.act(obs[3]), rtol=1e-5)


def test_observations_and_actions_of_any_shape_are_flattened():
    env = Toy(low=-np.ones((2, 2)), high=np.ones((2, 2)), obs=lambda t: np.full((2, 3), 0.1 * t))
    run = run_for(Config(**SMALL, total_steps=60), env)
    assert (run.agent.obs_dim, len(run.agent.low)) == (6, 4) and env.received[0].shape == (2, 2)


def test_train_takes_an_object_a_maker_or_an_id():
    env = Toy()
    config = Config(**SMALL | dict(eval_every=60), total_steps=120, eval_episodes=2)
    first = train(config, env)
    assert env.count == 120  # the object itself was trained on, and evaluated in copies
    assert torch.equal(first.actor.flat, train(config, Toy).actor.flat)
    assert train(replace(config, total_steps=60), "Pendulum-v1").obs_dim == 3
    assert Training(config, env).config.env == "Toy"
    with pytest.raises(UsageError, match="new one each time"):  # or evaluation would step the environment of the training
        Training(config, lambda: env)
    with pytest.raises(UsageError, match="new one each time"):  # a new wrapper around the same one is no better
        Training(config, lambda: gym.wrappers.TransformReward(env, abs))


def test_spaces_that_float32_or_tanh_cannot_serve():
    env = Toy()
    env.action_space = gym.spaces.Box(-0.1, 0.1, (1,), np.float64)  # float32(0.1) > 0.1
    env.step = lambda action, step=env.step: (step(action), env.action_space.contains(action) or pytest.fail("outside"))[0]
    run_for(Config(**SMALL, total_steps=80, noise_sigma=2.0), env)
    for low, high, dtype, word in (0, 3, np.int64, "whole"), (-3e38, 3e38, np.float32, "unbounded"):
        env.action_space = gym.spaces.Box(low, high, (1,), dtype)
        with pytest.raises(UsageError, match=word):
            Training(Config(**SMALL), env)


def test_an_environment_with_a_length_of_zero_and_a_policy_without_hidden_layers():
    class Empty(Toy):
        __len__ = lambda self: 0

    run = run_for(Config(**SMALL | dict(total_steps=60, hidden=())), env := Empty())
    assert run.episode.env is env and run.agent.updates == 10 and len(run.agent.actor.net.weights) == 1


def test_an_episode_without_end_is_reported(monkeypatch):
    monkeypatch.setattr(ddpg.Episode, "LONGEST", 100)
    with pytest.raises(ddpg.EnvError, match="max_episode_steps"):
        run_for(Config(**SMALL, total_steps=200), Toy(10**6))
    assert run_for(Config(**SMALL, total_steps=200, max_episode_steps=50), Toy(10**6)).episodes == 4


def test_a_time_limit_can_be_shorter_or_longer_than_the_environments_own():
    for limit in 50, 300:
        run = run_for(Config(**SMALL | dict(learning_starts=300), total_steps=300, max_episode_steps=limit, env="Pendulum-v1"))
        assert run.episodes == 300 // limit


def test_nothing_but_numbers_reaches_the_environment():
    env = Toy()
    run = Training(Config(**SMALL, total_steps=200), env)
    with pytest.raises(ddpg.EnvError, match="action"):
        for _ in run:
            if run.step == 100:
                run.agent.actor.flat.fill_(np.nan)
    assert env.count == 100


def test_a_custom_network_needs_nothing_but_its_shapes(monkeypatch):
    class MyActor(torch.nn.Module):
        def __init__(self, obs_dim, act_dim, config):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Linear(obs_dim, 20), torch.nn.SiLU(), torch.nn.Linear(20, act_dim))

        def forward(self, obs):
            return self.body(obs).tanh()

    monkeypatch.setattr(ddpg, "Actor", MyActor)
    agent = Agent(3, [-1], [1], Config(**SMALL))
    torch.manual_seed(1)
    assert torch.equal(agent.actor.flat, Agent(3, [-1], [1], Config(**SMALL)).actor.flat)  # seeded all the same
    before = agent.actor.network.body[0].weight.clone()
    for _ in range(3):
        agent.update(random_batch(agent))
    assert not torch.equal(before, agent.actor.network.body[0].weight) and agent.act(np.zeros(3)).shape == (1,)


@pytest.mark.parametrize("algo, layer_norm", list(itertools.product(ddpg.ALGOS, (False, True))))
def test_networks_without_backward_learn_the_same_by_autograd(algo, layer_norm, monkeypatch):
    config = Config(algo=algo, layer_norm=layer_norm, hidden=(24, 16), actor_lr=1e-3, critic_lr=1e-3)
    by_hand = Agent(5, [-1, -2], [1, 1], config)

    class Only(torch.nn.Module):  # the forward of Actor or Critic, and nothing else
        def __init__(self, *args):
            super().__init__()
            self.inner = self.kind(*args)

        def forward(self, *inputs):
            return self.inner(*inputs)

    for kind in ddpg.Actor, ddpg.Critic:
        monkeypatch.setattr(ddpg, kind.__name__, type("My" + kind.__name__, (Only,), {"kind": kind}))
    by_autograd = Agent(5, [-1, -2], [1, 1], config)
    for step in range(20):
        for agent in by_hand, by_autograd:
            agent.update(random_batch(agent, seed=step))
    for name in "actor", "critic":
        ours, theirs = getattr(by_hand, name).flat, getattr(by_autograd, name).flat
        assert (ours - theirs).abs().max() < 1e-5 < (ours - getattr(by_hand, name + "_target").flat).abs().max()


@pytest.mark.skipif(not ddpg.onednn(), reason="this torch has no oneDNN products")
@pytest.mark.parametrize("layer_norm", [False, True])
def test_large_products_are_the_same_products(layer_norm, monkeypatch):
    config = Config(layer_norm=layer_norm, batch_size=256, actor_lr=1e-3, critic_lr=1e-3)  # 256-256
    agents, linear, used, acts = [Agent(5, [-1, -2], [1, 1], config) for _ in range(2)], ddpg.onednn(), [], []
    for agent, kernel in zip(agents, (lambda *args: used.append(1) or linear(*args), None)):
        monkeypatch.setattr(ddpg, "onednn", lambda: kernel)
        for step in range(10):
            agent.update(random_batch(agent, size=256, seed=step))
        acts.append(agent.policy(np.linspace(-1, 1, 500, dtype=np.float32).reshape(100, 5)))
        assert bool(used) == bool(kernel)
        used.clear()
    for name in "actor", "critic":
        ours, theirs = (getattr(agent, name).flat for agent in agents)
        assert (ours - theirs).abs().max() < 1e-4 < (ours - getattr(agents[0], name + "_target").flat).abs().max()
    assert np.abs(acts[0] - acts[1]).max() < 1e-3


@pytest.mark.parametrize("large", [1, 2**22])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_products_of_any_shape(n, large, monkeypatch):
    monkeypatch.setattr(ddpg, "LARGE", large)
    for i, k, j in itertools.product((1, 2, 40), repeat=3):
        a, b, bias, out = (torch.randn(n, *shape) for shape in ((k, i), (k, j), (1, j), (i, j)))
        a, exact = a.mT, a.mT.double() @ b.double()
        with torch.inference_mode():
            products = (ddpg.bmm(a, b), ddpg.bmm(a, b, bias) - bias, ddpg.bmm(a, b.mT.contiguous().mT, out=out), out)
        for product in products:
            assert product.shape == exact.shape and (product - exact).abs().max() < 1e-4


def test_wide_networks_with_scaled_observations_pass_their_own_check():
    Agent(8, [-1, -1], [1, 1], Config(hidden=(1024, 1024), obs_scale=(0.003,) * 8, seed=20, algo="td3"))


@pytest.mark.parametrize("own_network", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))], ids=["deepcopy", "pickle"])
def test_a_copied_agent_learns_like_the_original(copied, own_network, monkeypatch):
    if own_network:  # which learns by autograd
        monkeypatch.setattr(ddpg, "Actor", BoundedLinear)
    agent = Agent(3, [-2], [2], Config(hidden=(16, 16), algo="td3"))
    agent.update(random_batch(agent))
    copied_agent, before = copied(agent), agent.actor.flat.clone()
    for step in range(4):
        for learner in agent, copied_agent:
            learner.update(random_batch(agent, seed=step))
    for name, tensor in agent.tensors().items():
        assert torch.equal(tensor, copied_agent.tensors()[name]), name
    assert np.array_equal(agent.act(np.ones(3)), copied_agent.act(np.ones(3))) and not torch.equal(before, agent.actor.flat)


def test_a_loaded_agent_begins_with_its_own_values_as_targets(tmp_path):
    agent = Agent(3, [-2], [2], Config(hidden=(16, 16)))
    for network in agent.actor, agent.critic:
        network.flat.normal_()
    agent.save(tmp_path / "policy.npz", env="Pendulum-v1", step=1)
    loaded = load(tmp_path / "policy.npz")
    for name in "actor", "critic":
        assert torch.equal(getattr(agent, name).flat, getattr(loaded, name).flat)
        assert torch.equal(getattr(agent, name).flat, getattr(loaded, name + "_target").flat)


@pytest.mark.parametrize("name, kind", [
    ("Critic", lambda obs_dim, act_dim, config: Of(lambda obs, act: obs[:, :1])),
    ("Critic", lambda obs_dim, act_dim, config: Of(lambda obs, act: obs[:, None, :1])),
    ("Actor", lambda obs_dim, act_dim, config: Of(lambda obs: obs[0, :1])),
])
def test_networks_of_another_shape_are_refused(name, kind, monkeypatch):
    monkeypatch.setattr(ddpg, name, kind)
    with pytest.raises(ValueError, match="Of makes .* of a batch of 8"):
        Agent(3, [-1], [1], Config(**SMALL))


def readme(containing):
    """The Python block of the README with this text in it."""
    return next(b for b in (ROOT / "README.md").read_text().split("```python\n")[1:] if containing in b).split("```")[0]


def test_the_readmes_loop_of_ones_own_learns():
    rng, count, x = np.random.default_rng(1), 0, None

    def restart():
        nonlocal x
        x = rng.uniform(-1, 1, 2)
        return x

    def system(action):
        nonlocal x, count
        x, count = x + action, count + 1
        return -np.abs(x).sum(), x, False, count % 10 == 0

    def distance(agent):
        obs = np.random.default_rng(2).uniform(-1, 1, (100, 2))
        for _ in range(5):
            obs = obs + agent.act(obs)
        return np.abs(obs).sum(1).mean()

    names = dict(obs_dim=2, low=[-0.5] * 2, high=[0.5] * 2, steps=2_000, system=system, restart=restart, obs=restart())
    exec(readme("for _ in range(steps)").replace("hidden=", "actor_lr=1e-3, critic_lr=1e-3, hidden="), names)
    assert distance(names["agent"]) < 0.3 * distance(Agent(2, [-0.5] * 2, [0.5] * 2, names["config"]))


def test_the_readmes_loss_of_ones_own_is_what_autograd_makes_of_it():
    agent = Agent(3, [-1], [1], Config(**SMALL, algo="td3"))
    agent.actor.flat.normal_()
    obs, act, *_ = random_batch(agent)
    with torch.inference_mode():
        exec(readme("cloning"), vars(ddpg) | dict(self=agent, obs=obs, act=act))
    found = agent.actor.flat.grad.clone()
    pi = agent.actor(obs)
    loss = -agent.critic(obs, pi)[0].mean() + (pi - act).square().mean()
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(agent.actor.parameters()))])
    assert expected.norm() > 0 and torch.allclose(found, expected, rtol=1e-4, atol=1e-6)


class BoundedLinear(torch.nn.Module):
    def __init__(self, obs_dim, act_dim, config):
        super().__init__()
        self.body = torch.nn.Linear(obs_dim, act_dim)

    def forward(self, obs):
        return self.body(obs).tanh()


def test_an_actor_whose_actions_are_not_bounded_is_refused(monkeypatch):
    monkeypatch.setattr(BoundedLinear, "forward", lambda self, obs: self.body(obs))
    monkeypatch.setattr(ddpg, "Actor", BoundedLinear)
    with pytest.raises(ValueError, match=r"BoundedLinear makes actions beyond \[-1, 1\]"):
        Agent(3, [-1], [1], Config(**SMALL))


def test_a_network_with_dropout_is_refused(monkeypatch):
    noisy = lambda obs_dim, act_dim, config: Of(lambda obs, act: torch.dropout((obs + act)[None, :, :1], 0.5, True))
    monkeypatch.setattr(ddpg, "Critic", noisy)
    with pytest.raises(ValueError, match="Of makes something else of the same batch"):
        Agent(1, [-1], [1], Config(**SMALL, algo="ddpg"))


def test_a_batch_of_other_shapes_is_refused_by_networks_of_ones_own_too(monkeypatch):
    for own in False, True:
        if own:
            monkeypatch.setattr(ddpg, "Critic", lambda obs_dim, act_dim, config: Of(lambda obs, act: (obs + act)[None, :, :1]))
        agent = Agent(1, [-1], [1], Config(**SMALL, algo="ddpg"))
        obs, act, R, next_obs, discount = random_batch(agent)
        with pytest.raises(RuntimeError, match=r"shape '\[32, 1\]' is invalid"):  # not broadcast to (32, 32)
            agent.update((obs, act, R[:, 0], next_obs, discount))


def test_a_second_backward_is_refused_as_its_gradient_would_be_lost():
    agent, obs, act = Agent(3, [-1], [1], Config(**SMALL)), torch.ones(4, 3), torch.ones(4, 1)
    with torch.inference_mode():
        agent.actor(obs)
        agent.actor.backward(act)
        with pytest.raises(RuntimeError, match="backward needs a forward"):
            agent.actor.backward(act)
        agent.critic(obs, act)
        agent.critic.slope(obs, act)
        with pytest.raises(RuntimeError, match="backward needs a forward"):
            agent.critic.backward(torch.ones(agent.config.n_critics, 4, 1))


@pytest.mark.parametrize("number", [np.float32(0.123456789), torch.tensor(0.123456789), 0.123456789])
def test_numbers_that_a_copier_adds_to_the_tables_need_not_be_pythons(number, tmp_path):
    run = Training(Config(**SMALL, total_steps=2))
    run.add_row("progress.csv", {"step": np.int64(2), "mean": number, "done": np.bool_(True)})
    assert run.tables["progress.csv"] == ["step,mean,done\n", "2,0.123457,1\n"]
    ddpg.write_npz(tmp_path / "file.npz", {}, evaluation={"mean": number}, step=np.int64(2))
    meta = ddpg.read_npz(tmp_path / "file.npz")[1]
    assert meta["step"] == 2 and meta["evaluation"]["mean"] == pytest.approx(0.123456789)


class Of(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, torch.nn.Parameter(torch.ones(1))

    def forward(self, *inputs):
        return self.function(*inputs) * self.weight


def test_observations_of_another_shape_are_refused():
    agent = Agent(4, [-1], [1], Config(**SMALL))
    for obs in np.zeros(8), np.zeros((2, 3)), 1.0, np.zeros((4, 1)):
        with pytest.raises(ValueError, match=r"is not \(4,\) or \(B, 4\)"):
            agent.act(obs)


@pytest.mark.parametrize("kind, forward", [
    (ddpg.Actor, lambda self, obs: super(ddpg.Actor, self).__getattr__("net")(obs)[0].sigmoid()),
    (ddpg.Actor, lambda self, obs: setattr(self, "output", self.net(obs)[0].sin()) or self.output),
    (ddpg.Critic, lambda self, obs, act: self.net(torch.cat([obs, act], dim=-1)).exp()),
    (ddpg.Critic, lambda self, obs, act: self.net(torch.cat([act, obs], dim=-1)[..., : obs.shape[-1] + 1])),
])
def test_a_forward_changed_without_its_backward_is_noticed(kind, forward, monkeypatch):
    monkeypatch.setattr(kind, "forward", forward)
    with pytest.raises((ValueError, AttributeError), match=kind.__name__):
        Agent(3, [-1], [1], Config(**SMALL))


def test_evaluation_is_deterministic_and_each_seed_another_episode():
    agent = Agent(3, [-2], [2], Config.preset(**SMALL))
    make = lambda: gym.make("Pendulum-v1")
    returns, lengths = evaluate(agent, make, range(5))
    assert np.array_equal(returns, evaluate(agent, make, range(5))[0]) and (lengths == 200).all()
    assert len(set(returns)) == 5


def test_no_episode_serves_two_of_training_selection_and_test(tmp_path, monkeypatch):
    seeds, toy = [], type(sys)("toys")
    monkeypatch.setitem(sys.modules, "toys", toy)
    monkeypatch.chdir(tmp_path)

    class Seeded(Toy):
        def reset(self, seed=None, options=None):
            seeds.append(seed)
            return super().reset(seed=seed)

    gym.register("Seeded-v0", lambda: Seeded(2), max_episode_steps=10)
    flags = "--total-steps 100 --eval-every 50 --learning-starts 20 --hidden 8 --solved-at 1.5 --no-stop-when-solved --quiet"
    assert ddpg.main(["--env", "toys:Seeded-v0", *flags.split()]) == 0
    count = lambda low, high: len({s for s in seeds if low <= s < high})
    assert count(0, 100) == 100 and count(10**6, 10**6 + 100) == 100 and count(2**31, 2**32) >= 50
    assert len(set(seeds)) == 200 + count(2**31, 2**32)  # and none besides


def test_numbers_of_numpy_are_numbers():
    assert Config(seed=np.int64(3), gamma=np.float64(0.9)) == Config(seed=3, gamma=0.9)
    agent = Agent(2, [-1], [1], Config(**SMALL))
    assert evaluate(agent, Toy, np.arange(2))[0].tolist() == [10, 10]


def test_the_replay_keeps_copies():
    buffer, obs = ReplayBuffer(10, 1, 1, n_step=2), np.zeros(1, np.float32)
    for t in range(3):
        obs[0] = t
        buffer.add(obs, obs, 1.0, obs + 1, False, t == 2)
    assert buffer.rows[:3, 0].tolist() == [0, 1, 2] == buffer.rows[:3, 1].tolist()


def test_an_object_unlike_its_id_is_not_filed_under_it(tmp_path, capsys):
    config = Config(**SMALL | dict(eval_every=60), eval_episodes=1, total_steps=60)
    for name, env in {
        "arguments": gym.make("Pendulum-v1", g=1.0), "wrapped": gym.wrappers.TransformReward(gym.make("Pendulum-v1"), lambda r: -r),
        "limit": gym.make("Pendulum-v1", max_episode_steps=50),
    }.items():
        train(config, env, out=tmp_path / name)
        assert load(tmp_path / name).meta["env"] == "PendulumEnv"
        assert ddpg.main(["--eval", str(tmp_path / name)]) == 2 == ddpg.main(["--resume", str(tmp_path / name), "--total-steps", "90"])
        assert "PendulumEnv" in capsys.readouterr().err
    train(config, gym.make("Pendulum-v1"), out=tmp_path / "plain")
    assert ddpg.main(["--eval", str(tmp_path / "plain"), "--episodes", "1"]) == 0


@pytest.mark.parametrize("returned, words", [
    (dict(reset=lambda **kw: [0.0, 0.0, 0.0]), "returned 3 things instead of 2"),
    (dict(step=lambda action: ([0.0, 0.0], 1.0, False, {})), "returned 4 things instead of 5"),
    (dict(step=lambda action: None), "no len"),
])
def test_an_environment_of_the_old_kind_is_named(returned, words):
    env = Toy()
    vars(env).update(returned)
    with pytest.raises(ddpg.EnvError, match=f"(?s){words}.*with seed"):
        run_for(Config(**SMALL, total_steps=20), env)


def test_an_object_that_cannot_be_copied_is_told_what_to_do():
    env = Toy()
    env.clock = (i for i in ())
    with pytest.raises(UsageError, match="pass a function that makes it"):
        Training(Config(**SMALL | dict(eval_every=10)), env)


def test_environments_made_to_look_at_are_closed():
    class Counted(Toy):
        def __init__(self):
            super().__init__()
            alive.append(self)

        def close(self):
            alive.remove(self)

    alive = []
    makers = ddpg.env_makers(Config(), Counted)
    assert not alive


def test_evaluations_of_different_lengths_keep_their_order_and_open_few_environments():
    class Countdown(Toy):
        def __init__(self):
            super().__init__()
            alive.append(self)

        def reset(self, seed=None, options=None):
            self.length = 3 + seed % 5
            return super().reset(seed=seed)

        def close(self):
            alive.remove(self)
            closed.append(len(alive))

    alive, closed, seeds = [], [], [4, 0, 2, *range(250)]
    returns, lengths = evaluate(Agent(2, [-1], [1], Config(**SMALL)), Countdown, seeds)
    assert lengths.tolist() == [3 + seed % 5 for seed in seeds] == returns.tolist()
    assert not alive and len(closed) == 253 and max(closed) < 100


def test_evaluation_begins_with_the_object_as_it_was_at_first():
    class Ageing(Toy):
        def step(self, action):
            obs, _, *rest = super().step(action)
            return obs, float(self.count <= 10), *rest

    run = Training(Config(**SMALL | dict(eval_every=50), eval_episodes=3, total_steps=100), Ageing())
    assert [r.evaluation["eval_mean"] for r in run if r.evaluation] == [10, 10, 10]


def test_the_last_step_is_evaluated_too():
    run = Training(Config(**SMALL | dict(eval_every=40), eval_episodes=1, total_steps=100), Toy)
    assert [r.step for r in run if r.evaluation] == [0, 40, 80, 100]


def test_training_closes_the_environment_of_each_episode_but_never_yours(tmp_path):
    class Counted(Toy):
        def __init__(self):
            super().__init__()
            made.append(self)

        def close(self):
            closed.append(self)

    made, closed = [], []
    run_for(Config(**SMALL, total_steps=95), Counted)
    assert len(closed) == len(set(closed)) == len(made) - 1  # one is under way
    folder = begin(Config(**SMALL, total_steps=95), tmp_path / "run", Counted, until=45)
    made.clear(), closed.clear()
    ddpg.resume(folder, Counted)
    assert len(closed) == len(set(closed)) == len(made) - 1
    closed.clear()
    run_for(Config(**SMALL, total_steps=95), Counted())
    assert not closed


def test_a_policy_is_not_filed_under_the_evaluation_of_an_earlier_step(tmp_path):
    class Breaks(Toy):
        def reset(self, seed=None, options=None):
            if run and run.step == 30:
                raise RuntimeError("broken")
            return super().reset(seed=seed)

    run = None
    run = Training(Config(**SMALL | dict(eval_every=29), eval_episodes=2, total_steps=95), Breaks)
    with pytest.raises(ddpg.EnvError, match="broken"):
        for _ in ddpg.record(run, ddpg.new_folder(tmp_path / "run")):
            pass
    assert load(tmp_path / "run/best.npz").meta["evaluation"] == 10
    last = ddpg.read_npz(tmp_path / "run/last.npz")[1]
    assert last["step"] == 30 and last["evaluation"] is None


def test_solved_needs_confirmation_by_more_episodes():
    config = Config(**SMALL | dict(eval_every=20), eval_episodes=5, total_steps=100, solved_at=9.5)
    lucky = lambda seed: 10 if seed < ddpg.SELECTION_SEEDS + 5 else 4

    class Lucky(Toy):
        def reset(self, seed=None, options=None):
            self.length = lucky(seed)
            return super().reset(seed=seed)

    run = run_for(config, Lucky)
    assert run.solved is None and run.step == 100 and run.evaluation["eval_episodes"] == 100
    lucky = lambda seed: 10
    run = run_for(config, Lucky)
    assert run.solved == run.step == 0
    assert run_for(replace(config, stop_when_solved=False), Lucky).step == 100


def test_a_hundred_evaluation_episodes_are_their_own_confirmation():
    class Counted(Toy):
        def reset(self, seed=None, options=None):
            seeds.append(seed)
            return super().reset(seed=seed)

    seeds = []
    run = run_for(Config(**SMALL | dict(eval_every=20), eval_episodes=120, total_steps=100, solved_at=9.5), Counted)
    evaluated = [seed for seed in seeds if seed < ddpg.TRAINING_SEEDS]
    assert run.solved == 0 and len(evaluated) == len(set(evaluated)) == 120


@pytest.mark.parametrize("name, value", [("obs", np.nan), ("obs", np.inf), ("reward", np.nan), ("reward", None),
                                         ("reward", np.ones(2)), ("reward", "bad"), ("reward", 10**400), ("shape", None),
                                         ("dict", None)])
def test_what_cannot_be_learnt_from_is_named_and_not_stored(name, value):
    class Broken(Toy):
        def step(self, action):
            obs, rew, *rest = super().step(action)
            if self.count < 33:
                return obs, rew, *rest
            if name == "reward":
                return obs, value, *rest
            return {"obs": lambda: obs * value, "shape": lambda: obs[:1], "dict": lambda: {"x": obs}}[name](), rew, *rest

    run = Training(Config(**SMALL, total_steps=100), Broken())
    with pytest.raises(ddpg.EnvError, match=r"step 3 of the episode with seed \d+"):
        for _ in run:
            pass
    assert run.step == len(run.buffer) == 32


def test_a_bad_first_observation_is_named_and_not_stored():
    class Broken(Toy):
        def reset(self, seed=None, options=None):
            obs, info = super().reset(seed=seed)
            return (obs * np.nan if self.count >= 20 else obs), info

    run = Training(Config(**SMALL, total_steps=100), Broken())
    with pytest.raises(ddpg.EnvError, match="observation .* at step 0 of the episode"):
        for _ in run:
            pass
    assert len(run.buffer) == 20 and run.buffer.rows[:20].isfinite().all()


# ------------------------------------------------------------------------------------- determinism and files

QUICK = "--total-steps 700 --learning-starts 200 --eval-every 350 --eval-episodes 3 --hidden 32 32 --batch-size 32".split()


def without_times(path):
    rows = [line.split(",") for line in path.read_text().splitlines()]
    drop = [i for i, name in enumerate(rows[0]) if name in ("seconds", "steps_per_s")]
    return [[cell for i, cell in enumerate(row) if i not in drop] for row in rows]


def same_run(a, b):
    policies = sorted(p.relative_to(a) for p in a.rglob("*.npz") if "state" not in p.name)
    assert len(policies) > 10 and policies == sorted(p.relative_to(b) for p in b.rglob("*.npz") if "state" not in p.name)
    for name in policies:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    for name in ("episodes.csv", "progress.csv"):
        assert without_times(a / name) == without_times(b / name)
    return True


def test_same_seed_twice_is_byte_identical_and_another_seed_is_not(tmp_path):
    for name, seed in ("a", 5), ("b", 5), ("c", 6):
        result = command(*QUICK, "--seed", seed, "--out", tmp_path / name, fresh=name == "b")
        assert result.returncode == 0, result.stderr
    assert same_run(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "last.npz").read_bytes() != (tmp_path / "c" / "last.npz").read_bytes()


def test_another_seed_is_another_run_in_everything_random():
    a, b = (Training(Config(**SMALL, seed=seed), Toy) for seed in (5, 6))
    assert a.episode.seed != b.episode.seed
    assert a.rng.bit_generator.state != b.rng.bit_generator.state
    assert not torch.equal(a.agent.generator.get_state(), b.agent.generator.get_state())
    assert not torch.equal(a.agent.actor.flat, b.agent.actor.flat)


@pytest.mark.parametrize("algo, n_step", [("ddpg", 1), ("td3", 3)])
def test_interrupted_and_resumed_is_byte_identical_to_never_interrupted(tmp_path, algo, n_step):
    config = Config.preset(algo=algo, n_step=n_step, total_steps=700, learning_starts=200, eval_every=350, eval_episodes=3,
                           hidden=(32, 32), batch_size=32)
    for name, stops in ("whole", ()), ("parts", (90, 333, 334, 555)):  # in warm-up, mid-episode, twice at once
        run, folder = Training(config), tmp_path / name
        ddpg.new_folder(folder)
        for stop in [*stops, None]:
            steps = ddpg.record(run, folder)
            for _ in steps:
                if run.step == stop:
                    break
            steps.close()
            if stop:
                run = ddpg.resume(folder)
                assert run.step == stop
    assert same_run(tmp_path / "whole", tmp_path / "parts")
    whole, parts = (dict(np.load(tmp_path / name / "state.npz")) for name in ("whole", "parts"))
    assert all(np.array_equal(whole[k], parts[k]) for k in whole if k != "meta") and len(whole) > 15


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_run_whose_replay_has_wrapped_goes_on_exactly(n_step):
    config, make = Config(**SMALL, total_steps=200, buffer_size=64, n_step=n_step), lambda: Toy(7)
    whole, first, second = run_for(config, make), Training(config, make), Training(config, make)
    next(run for run in first if run.step == 145)  # in the middle of an episode
    arrays, meta = first.state()
    second.restore(arrays, json.loads(json.dumps(meta)))
    assert time.perf_counter() - second.started >= meta["seconds"]
    for _ in second:
        pass
    assert whole.returns == second.returns == [7.0] * 10 and whole.buffer.written == second.buffer.written > 128 and torch.equal(whole.buffer.rows, second.buffer.rows)
    assert torch.equal(whole.agent.actor.flat, second.agent.actor.flat)


@pytest.mark.parametrize("damaged", [False, True])
def test_killed_long_after_the_last_save_it_goes_on_from_there(tmp_path, damaged):
    config = Config.preset(total_steps=700, learning_starts=200, eval_every=350, eval_episodes=3, hidden=(32, 32), batch_size=32)
    train(config, out=tmp_path / "whole")
    run, folder = Training(config), ddpg.new_folder(tmp_path / "killed")
    for _ in (steps := ddpg.record(run, folder)):
        if run.step == 300:
            break
    steps.close()
    state = (folder / "state.npz").read_bytes()
    for _ in (steps := ddpg.record(ddpg.resume(folder), folder)):  # gets to write rows and files, and to its end
        pass
    (folder / "state.npz").unlink()  # as if killed between the two steps of its replacement, long after the save at 300
    (folder / "state.previous.npz").write_bytes(state)
    if damaged:  # or as if the disk had spoilt it
        (folder / "state.npz").write_bytes(state[:-1000])
    run = ddpg.resume(folder)
    assert run.step == 300
    for _ in ddpg.record(run, folder):
        pass
    assert same_run(tmp_path / "whole", folder)


def test_a_step_that_fails_half_way_is_not_saved_as_a_state(tmp_path):
    def make(length=10**6):
        env = Toy()
        env.step = lambda action, step=env.step: step(action) if env.count < length else 1 / 0
        return env

    run, folder = Training(Config(**SMALL, total_steps=200), lambda: make(7)), ddpg.new_folder(tmp_path / "run")
    with pytest.raises(ddpg.EnvError, match="ZeroDivisionError: division by zero, at step 8 of the episode with seed"):
        for _ in ddpg.record(run, folder):
            pass
    assert load(folder).meta["step"] == 7 and ddpg.resume(folder, make).step == 0


def test_a_finished_run_can_be_extended(tmp_path):
    train(Config.preset(**SMALL, total_steps=100), out=tmp_path / "run")
    run = ddpg.resume(tmp_path / "run", total_steps=150)
    for _ in ddpg.record(run, tmp_path / "run"):
        pass
    assert run.step == 150 and ddpg.resume(tmp_path / "run").config.total_steps == 150 and load(tmp_path / "run" / "last.npz").meta["step"] == 150


def test_snapshots_are_evenly_spread_and_at_most_50(tmp_path):
    train(Config(**SMALL, total_steps=120), Toy, out=tmp_path / "run")
    steps = [int(p.stem) for p in sorted((tmp_path / "run" / "policies").iterdir())]
    assert steps == list(range(0, 121, 3))


def test_best_is_the_highest_evaluation_also_after_a_resume(tmp_path, monkeypatch):
    means = iter([3.0, 7.0, 5.0, 6.0, 7.0, 4.0])  # at 0, 20, .. 100
    monkeypatch.setattr(ddpg, "evaluate", lambda agent, make, seeds: (
        np.float64([next(means)] * len(seeds)) + [-1, 1] * (len(seeds) // 2), np.ones(len(seeds))))
    folder = begin(Config(**SMALL | dict(eval_every=20), total_steps=100), tmp_path / "run", Toy, until=50)
    run = ddpg.resume(folder, Toy)
    assert run.best == 7
    assert not any([r.is_best for r in ddpg.record(run, folder) if r.evaluation])
    assert (load(folder).meta["step"], load(folder).meta["evaluation"]) == (20, 7.0)
    assert load(folder / "last.npz").meta["step"] == 100


def test_a_solved_run_stays_solved_and_goes_on_only_when_told(tmp_path):
    config = Config(**SMALL | dict(eval_every=20), eval_episodes=5, total_steps=100, solved_at=10.0)
    train(config, Toy, out=tmp_path / "run")
    run = ddpg.resume(tmp_path / "run", Toy)
    for _ in run:
        pass
    assert run.solved == run.step == 0
    run = ddpg.resume(tmp_path / "run", Toy, stop_when_solved=False)
    for _ in run:
        pass
    assert (run.step, run.solved) == (100, 0)


def test_the_tables_tell_what_happened(tmp_path):
    for terminates in False, True:
        folder = tmp_path / str(terminates)
        train(Config(**SMALL, total_steps=40), lambda: Toy(10, terminates), out=folder)
        rows = [line.split(",") for line in (folder / "episodes.csv").read_text().splitlines()[1:]]
        assert [row[:2] + row[3:] for row in rows] == [[str(10 * i + 10), str(i), "10", "10", str(terminates)] for i in range(4)]
    found = ddpg.summary(np.array([0.0, 0, 3]), np.array([1, 2, 6]))
    assert found == dict(episodes=3, mean=1, std=pytest.approx(2**0.5), min=0, max=3, length=3)
    run = Training(Config(**SMALL | dict(eval_every=100), eval_episodes=1, reward_scale=0.1, total_steps=100), Toy)
    first, *_ = [r.evaluation for r in run if r.evaluation]
    assert np.isnan([first[name] for name in ("train_return", "critic_loss", "actor_loss", "mean_q")]).all()  # not known yet
    assert run.evaluation["mean_q"] == pytest.approx(run.agent.metrics[2].item() / 0.1) != 0


def test_metrics_are_those_of_the_update():
    agent = Agent(3, [-1], [1], Config(algo="td3", **SMALL, target_noise=0.0))
    for seed in range(19):
        agent.update(random_batch(agent, seed=seed))
    before, (obs, act, R, next_obs, discount) = copy.deepcopy(agent), random_batch(agent, seed=19)
    agent.update((obs, act, R, next_obs, discount))  # the 20th is measured, and is all there is so far
    with torch.inference_mode():
        q = before.critic(obs, act).clone()
        target = R + discount * before.critic_target(next_obs, before.actor_target(next_obs)).amin(0)
        q1 = agent.critic(obs, before.actor(obs))[0]
        expected = (q - target).square().mean((1, 2)).sum(), -q1.mean(), q.mean()
    assert agent.metrics.tolist() == pytest.approx([x.item() for x in expected], rel=1e-4, abs=1e-6)


def test_run_folder_has_what_the_viewer_and_benchmarks_rely_on(tmp_path):
    result = command(*QUICK, "--seed", 1, cwd=tmp_path)
    folder = tmp_path / "runs" / "Pendulum-v1" / "ddpg-seed1"
    assert result.returncode == 0 and "ddpg.py --eval runs/Pendulum-v1/ddpg-seed1" in result.stdout
    names = sorted(p.name for p in folder.iterdir())
    assert names == ["best.npz", "config.json", "episodes.csv", "last.npz", "policies", "progress.csv",
                     "state.npz", "state.previous.npz"]
    progress = [line.split(",") for line in (folder / "progress.csv").read_text().splitlines()]
    assert progress[0][:7] == "step episodes seconds steps_per_s train_return eval_episodes eval_mean".split()
    assert [row[0] for row in progress[1:]] == ["0", "350", "700"]
    episodes = (folder / "episodes.csv").read_text().splitlines()
    assert episodes[0] == "step,episode,seed,return,length,terminated" and len(episodes) == 4
    steps = [load(p).meta["step"] for p in sorted((folder / "policies").iterdir())]
    assert steps == list(range(0, 701, 14))  # 50 of them after the untrained agent
    config = json.loads((folder / "config.json").read_text())
    assert Config(**config["config"]) == Config.preset(
        seed=1, total_steps=700, learning_starts=200, eval_every=350, eval_episodes=3, hidden=(32, 32), batch_size=32)
    w = open_window(folder)
    assert [step for step, _ in w.run.curve] == [0, 350, 700] and list(w.run.policies) == steps
    assert any(f"eval {w.player.policy.meta['evaluation']:.1f}" in words for words in words_on(w))


def test_a_policy_file_is_plain_arrays_and_loads_to_the_same_agent(tmp_path):
    agent = Agent(3, [-2], [2], Config(**SMALL, algo="td3"))
    agent.update(random_batch(agent))
    agent.save(tmp_path / "p.npz", env="Pendulum-v1", step=1, evaluation=None)
    with np.load(tmp_path / "p.npz", allow_pickle=False) as file:
        arrays, meta = {k: file[k] for k in file.files if k != "meta"}, json.loads(str(file["meta"]))
    assert all(a.dtype == np.float32 for a in arrays.values()) and (meta["env"], meta["step"]) == ("Pendulum-v1", 1)
    loaded, obs = load(tmp_path / "p.npz"), np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    assert np.array_equal(agent.act(obs), loaded.act(obs)) and torch.equal(agent.critic.flat, loaded.critic.flat)
    x = obs  # and numpy alone can run it
    for i in range(3):
        x = x @ arrays[f"actor.net.weights.{i}"][0] + arrays[f"actor.net.biases.{i}"][0]
        x = np.maximum(x, 0) if i < 2 else np.tanh(x)
    low, high = np.array(meta["low"]), np.array(meta["high"])
    np.testing.assert_allclose(low + (x + 1) / 2 * (high - low), loaded.act(obs), rtol=1e-5, atol=1e-6)


def test_what_is_not_a_policy_is_refused(tmp_path):
    agent = Agent(3, [-2], [2], Config(**SMALL))
    good = tmp_path / "good.npz"
    agent.save(good, env="Pendulum-v1", step=1)
    bad = tmp_path / "bad.npz"
    data = good.read_bytes()
    for content in b"", b"hello", data[:500], data[: len(data) // 2]:
        bad.write_bytes(content)
        with pytest.raises(UsageError):
            load(bad)
    agent.actor.flat[0] = np.nan
    agent.save(bad, env="Pendulum-v1", step=1)
    with pytest.raises(UsageError, match="finite"):
        load(bad)

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    np.savez(bad, meta=np.array([Evil()], dtype=object))
    with pytest.raises(UsageError):
        load(bad)
    assert not (tmp_path / "executed").exists()
    arrays = dict(np.load(good))
    for change in dict(format=99), dict(env=["x"]), dict(step="x"), dict(obs_dim=-1), dict(obs_dim=4), dict(config={"x": 1}), dict(low=None):
        np.savez(bad, **arrays | {"meta": np.array(json.dumps(json.loads(str(arrays["meta"])) | change))})
        with pytest.raises(UsageError):
            load(bad)
    for missing, words in (tmp_path / "none.npz", "no such file"), (tmp_path, "not the folder of a run"):
        with pytest.raises(UsageError, match=words):
            load(missing)


# ------------------------------------------------------------------------------------- never lose a run


def go_on(folder, save_every=0.0):
    """Resume the run in a folder and bring it to its end."""
    ddpg.SAVE_EVERY = save_every
    for _ in ddpg.record(ddpg.resume(folder), folder):
        pass
    return 0


def begin(config, folder, env=None, until=0):
    """The folder of a run that was interrupted before its first step, or after some."""
    for _ in (steps := ddpg.record(run := Training(config, env), str(ddpg.new_folder(folder)))):
        if run.step == until:
            break
    steps.close()
    return folder


def same_state(a, b):
    """All that decides how the runs in two folders would go on is equal, to the bit."""
    (a, meta_a), (b, meta_b) = (ddpg.read_npz(folder / "state.npz") for folder in (a, b))
    assert all(a[k].dtype == b[k].dtype and np.array_equal(a[k], b[k]) for k in a | b) and len(a) >= 15
    for meta in meta_a, meta_b:
        for name in "seconds", "tables", "evaluation":  # the files are compared, but for their columns of times
            del meta[name]
    assert meta_a == meta_b
    return True


def clean(folder):
    names = [p.name for p in folder.rglob("*")]
    assert not [name for name in names if "tmp" in name or "next" in name], names
    return True


def killed_at_random(tmp_path, config, kills, longest):
    """A run killed so often, any time until `longest` seconds after it began or went on, and one never killed."""
    whole = tmp_path / "whole"
    train(config, out=whole)
    rng, folder, killed, ends = np.random.default_rng(0), begin(config, tmp_path / "killed"), 0, 0
    while killed < kills:
        pid = in_a_child(lambda: go_on(folder))
        time.sleep(rng.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        code = exit_code(pid)
        killed += code == -signal.SIGKILL
        if code == 0:  # it came to its end: once more from the beginning
            ends += same_run(whole, folder) and same_state(whole, folder)
            shutil.rmtree(folder)
            begin(config, folder)
        assert code in (0, -signal.SIGKILL)
    assert exit_code(in_a_child(lambda: go_on(folder), timeout=600), 600) == 0
    assert same_run(whole, folder) and same_state(whole, folder) and clean(folder)
    return ends + 1


SHORT = dict(total_steps=700, learning_starts=200, eval_every=350, eval_episodes=3, hidden=(32, 32), batch_size=32)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a short run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(Config.preset(**SHORT), out=folder)
    return folder


@pytest.mark.parametrize("algo", ALGOS)
def test_killed_at_any_instant_and_resumed_is_byte_identical_to_never_killed(tmp_path, algo):
    killed_at_random(tmp_path, Config.preset(**SHORT, algo=algo, n_step=3, noise_theta=0.15), kills=5, longest=0.6)


@pytest.mark.slow
@pytest.mark.parametrize("env", ["Pendulum-v1", "LunarLanderContinuous-v3", "BipedalWalker-v3"])
def test_killed_fifty_times(tmp_path, env):
    longer = dict(SHORT, total_steps=3_000, learning_starts=500, eval_every=1_500)
    print(env, "ends reached:", killed_at_random(tmp_path, Config.preset(env, **longer, n_step=3), kills=50, longest=3.0))


@pytest.mark.slow
def test_killed_a_thousand_times(tmp_path):
    print("ends reached:", killed_at_random(tmp_path, Config.preset(**SHORT), kills=1_000, longest=0.4))


@pytest.mark.parametrize("first", [True, False], ids=["first save", "overwriting"])
@pytest.mark.parametrize("function, call", [("savez", 1), ("fsync", 1), ("fsync", 2), ("replace", 1), ("replace", 2), ("replace", 3), ("replace", 4)])
def test_a_writer_that_dies_anywhere_loses_nothing(tmp_path, whole, function, call, first):
    """It dies instead of the n-th such call after the writing of a state has begun."""
    folder, config = tmp_path / "run", Config.preset(**SHORT)

    def dies():
        module = np if function == "savez" else os
        real, real_write, calls, saves = getattr(module, function), ddpg.write_npz, [], []

        def deadly(*args, **kwargs):
            calls.append(1)
            if len(calls) == call:
                if function == "savez":
                    args[0].write(b"half of a file")
                    args[0].flush()
                os._exit(9)
            return real(*args, **kwargs)

        def write_npz(path, *args, **kwargs):
            if "state" in str(path):
                if len(saves) == (0 if first else 2):
                    setattr(module, function, deadly)
                saves.append(path)
            return real_write(path, *args, **kwargs)

        ddpg.write_npz, ddpg.SAVE_EVERY, ddpg.SAVE_SHARE = write_npz, 0.0, 1e9  # after each step
        run = Training(config) if first else ddpg.resume(folder)
        for _ in ddpg.record(run, ddpg.new_folder(folder) if first else folder):
            pass
        return 0

    if not first:
        begin(config, folder)
    assert exit_code(in_a_child(dies)) == 9
    if first and (function, call) in [("savez", 1), ("fsync", 1), ("replace", 1)]:
        with pytest.raises(UsageError, match="before it was first saved"):  # there was nothing to lose yet
            ddpg.resume(folder)
        return
    assert go_on(folder, 60.0) == 0
    assert same_run(whole, folder) and same_state(whole, folder) and clean(folder)


def test_what_is_synced_is_the_whole_file(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (synced.append(os.fstat(fd).st_size), fsync(fd)))
    ddpg.write(tmp_path / "a", lambda file: file.write(b"x" * 1000))
    ddpg.write_npz(tmp_path / "b", {"x": np.zeros(1001, np.float32)}, step=1)
    assert synced == [(tmp_path / name).stat().st_size for name in "ab"] and synced[0] == 1000


@pytest.mark.parametrize("cost, gap", [(0.5, 60), (5.0, 250)])  # seconds that a save takes, steps from one to the next
def test_the_state_is_saved_each_minute_but_for_at_most_a_fiftieth_of_the_time(tmp_path, monkeypatch, cost, gap):
    now, saved = [1000.0], []
    monkeypatch.setattr(ddpg, "time", type("clock", (), {"perf_counter": staticmethod(lambda: now[0])}))
    run = Training(Config(**SMALL | dict(learning_starts=1000), total_steps=600), Toy)

    def state(state=run.state):
        saved.append(run.step)
        now[0] += cost
        return state()

    run.state = state
    for _ in ddpg.record(run, ddpg.new_folder(tmp_path / "run")):
        now[0] += 1  # a second a step
    assert saved[:-1] == list(range(0, 601, gap)) and saved[-1] == 600


def test_an_agent_that_has_diverged_does_not_replace_a_sound_one(tmp_path):
    config = Config(**SMALL | dict(eval_every=50), eval_episodes=1, total_steps=200)
    run, folder = Training(config, Toy), ddpg.new_folder(tmp_path / "run")
    advance = run.advance
    run.advance = lambda: (advance(), run.step == 100 and run.agent.actor.flat.fill_(np.nan))
    with pytest.raises(ddpg.EnvError, match="action"):
        for _ in ddpg.record(run, folder):
            pass
    assert not run.agent.is_finite() and load(folder / "last.npz").meta["step"] == 50 and load(folder).act(np.ones(2)).shape == (1,)
    assert np.isfinite(ddpg.read_npz(folder / "state.npz")[0]["agent.actor"]).all() and ddpg.resume(folder, Toy).step == 0


def test_who_trains_an_agent_that_diverges_is_told(tmp_path, monkeypatch, capsys):
    update = Agent.update
    monkeypatch.setattr(Agent, "update", lambda agent, batch: (update(agent, batch), agent.updates == 9 and agent.actor.flat.fill_(np.nan)))
    assert ddpg.main([*QUICK, "--quiet", "--out", str(tmp_path / "run")]) == 1
    error, told = capsys.readouterr().err.splitlines()
    assert "action [nan]" in error and "diverged" in told and "--actor-lr" in told and load(tmp_path / "run").meta["step"] == 0


@pytest.mark.parametrize("n_step, until", [(1, 5), (3, 5), (3, 2)])
def test_an_environment_that_does_not_repeat_itself_is_not_gone_on_with(tmp_path, n_step, until):
    count = itertools.count()
    make = lambda: Toy(obs=lambda t: [float(next(count)), 0.0])
    folder = begin(Config(**SMALL, total_steps=30, n_step=n_step), tmp_path / "run", make, until=until)
    with pytest.raises(UsageError, match="did not repeat"):
        ddpg.resume(folder, make)


def test_an_environment_that_has_changed_is_not_gone_on_with(tmp_path):
    folder = begin(Config(**SMALL, total_steps=30), tmp_path / "run", lambda: Toy(low=[0, -3], high=[1, 5]), until=5)
    for low in [0], [0, 0, 0]:
        with pytest.raises(UsageError, match="cannot be resumed"):
            ddpg.resume(folder, lambda: Toy(low=low, high=np.add(low, 1)))


def test_a_kill_right_after_a_save_changes_nothing_at_any_kind_of_step(tmp_path, whole, monkeypatch):
    monkeypatch.setattr(ddpg, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(ddpg, "SAVE_SHARE", 1e9)
    steps = [0, 1, 200, 350, 351, 400, 699, 700]  # untrained, end of warm-up and of episodes, evaluation, the last
    for run in ddpg.record(Training(Config.preset(**SHORT)), ddpg.new_folder(tmp_path / "run")):
        if run.step in steps:
            shutil.copytree(tmp_path / "run", tmp_path / str(run.step))
    for step in steps:
        assert go_on(tmp_path / str(step), 60.0) == 0
        assert same_run(whole, tmp_path / str(step)) and same_state(whole, tmp_path / str(step)), step


def test_an_interrupted_evaluation_is_done_again(tmp_path, monkeypatch):
    config = Config.preset(**SHORT | dict(total_steps=400, eval_every=200))  # where an episode ends too
    train(config, out=tmp_path / "whole")
    run, step, count = Training(config), ddpg.Episode.step, []

    def interrupted(episode, action):
        count.append(run.phase == "evaluating")
        if run.phase == "evaluating" and run.step == 200 and sum(count) > 700:
            raise KeyboardInterrupt
        return step(episode, action)

    monkeypatch.setattr(ddpg.Episode, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        for _ in ddpg.record(run, ddpg.new_folder(tmp_path / "parts")):
            pass
    monkeypatch.undo()
    run = ddpg.resume(tmp_path / "parts")
    assert run.step == 200 and run.phase == "stepped" and len(run.tables["episodes.csv"]) == 2
    for _ in ddpg.record(run, tmp_path / "parts"):
        pass
    assert same_run(tmp_path / "whole", tmp_path / "parts") and same_state(tmp_path / "whole", tmp_path / "parts")


BUSY = {  # flags that keep a training busy with one thing, and when to signal it
    "warm-up": "--learning-starts 1000000 --total-steps 1000000 --eval-every 0",
    "updates": "--updates-per-step 20 --total-steps 1000000 --eval-every 0",
    "evaluation": "--eval-episodes 10000", "saving": "--total-steps 1000000",
}


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("busy", BUSY)
def test_a_signal_at_any_time_saves_and_exits_within_two_seconds(tmp_path, monkeypatch, busy, number, code):
    monkeypatch.chdir(tmp_path)

    def main():
        step, fsync = ddpg.Episode.step, os.fsync
        ddpg.Episode.step = lambda *args: (Path("begun").touch(), setattr(ddpg.Episode, "step", step), step(*args))[-1]
        if busy == "saving":
            ddpg.SAVE_EVERY = 0.0
            os.fsync = lambda file: (time.sleep(0.2), fsync(file))
        return ddpg.main(["--out", "run", *BUSY[busy].split(), "--quiet", "--no-stop-when-solved"])

    pid = in_a_child(main, "log")
    wait_for(Path("begun").exists)
    time.sleep(0.3)
    began = time.monotonic()
    os.kill(pid, number)
    assert exit_code(pid) == code, (tmp_path / "log").read_text()
    assert time.monotonic() - began < 2 + (2 if busy == "saving" else 0) and (tmp_path / "log").read_text() == ""
    assert clean(tmp_path / "run") and ddpg.resume("run").step == load("run/last.npz").meta["step"]


def test_a_second_signal_exits_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def slow(file, fsync=os.fsync):
        if os.path.exists("slow"):
            Path("saving").touch()
            time.sleep(30)
        fsync(file)

    def main():
        os.fsync = slow
        return ddpg.main(["--out", "run", "--total-steps", "1000000", "--learning-starts", "1000000", "--eval-every", "0", "--quiet"])

    pid, path = in_a_child(main), tmp_path / "run" / "state.npz"
    wait_for(path.exists)
    Path("slow").touch()
    state = path.read_bytes()
    os.kill(pid, signal.SIGINT)
    wait_for(Path("saving").exists)
    began = time.monotonic()
    os.kill(pid, signal.SIGINT)
    assert exit_code(pid) == 130 and time.monotonic() - began < 2
    assert (tmp_path / "run" / "state.npz").read_bytes() == state and ddpg.resume("run").step == 0


@pytest.mark.parametrize("recovers", [True, False])
def test_a_full_disk_delays_files_and_does_not_stop_the_training(tmp_path, whole, recovers):
    """Full for 400 steps or for good: a limit on the size of files, which makes real writes fail half-way."""
    config, folder = Config.preset(**SHORT), tmp_path / "run"
    begin(config, folder)

    def main():
        ddpg.SAVE_EVERY = 0.0
        run, full = ddpg.resume(folder), lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        ddpg.resume = lambda *args, **kwargs: run
        advance = run.advance

        def advance_and_fill():
            if run.step == 1:
                shutil.copy(folder / "state.npz", tmp_path / "state")
                full(400)
            if run.step == 400:
                full(resource.RLIM_INFINITY)
                assert (folder / "state.npz").read_bytes() == (tmp_path / "state").read_bytes()
                assert clean(folder) and load(folder / "best.npz").meta["step"] == load(folder / "last.npz").meta["step"] == 0
                full(resource.RLIM_INFINITY if recovers else 400)
            if run.step == 200:
                time.sleep(1.1)  # it tries again once a second
            advance()

        run.advance = advance_and_fill
        return ddpg.main(["--resume", str(folder), "--quiet"])

    log = tmp_path / "log"
    code = exit_code(in_a_child(main, log))
    text = log.read_text()
    assert text.count("cannot save to") == 1 and "training goes on" in text and "Traceback" not in text, text
    assert code == (0 if recovers else 1) and clean(folder)
    if not recovers:
        assert "ddpg.py: cannot save" in text
        assert go_on(folder) == 0  # from the last state that the disk took
    assert same_run(whole, folder) and same_state(whole, folder)


def test_two_trainings_do_not_share_a_folder(tmp_path, capsys):
    folder = begin(Config.preset(**SHORT), tmp_path / "run")
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    handle = ddpg.lock(folder)
    assert ddpg.main(["--resume", str(folder), "--quiet"]) == 2
    assert "in use" in capsys.readouterr().err and before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    os.close(handle)
    assert ddpg.main(["--resume", str(folder), "--gamma", "0.5", "--seed", "0", "--hidden", "8"]) == 2
    error = capsys.readouterr().err
    assert "gamma 0.98 -> 0.5" in error and "hidden (32, 32) -> (8,)" in error and "seed" not in error
    assert before == {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert ddpg.main(["--resume", str(folder), "--quiet"]) == 0


def test_threads_and_device_are_heeded_when_a_run_is_resumed_or_tested(tmp_path, monkeypatch):
    folder, tuned = begin(Config.preset(**SHORT), tmp_path / "run"), []
    threads = lambda: ddpg.read_npz(folder / "state.npz")[1]["threads"]
    assert threads() == 1
    result = command("--resume", folder, "--quiet", "--episodes", 1, "--threads", 2, "--device", "cpu", fresh=True)
    assert result.returncode == 0 and threads() == 2, result.stderr
    monkeypatch.setattr(ddpg, "tune", tuned.append)
    for flags in [], ["--threads", "2"]:
        assert ddpg.main(["--eval", str(folder), "--episodes", "1", *flags]) == 0
    assert tuned == [1, 2]
    arrays, meta = ddpg.read_npz(folder / "state.npz")
    ddpg.write_npz(folder / "state.npz", arrays, **meta | {"threads": 3})
    ddpg.resume(folder)
    assert tuned == [1, 2, 3]
    arrays, meta = ddpg.read_npz(folder / "state.npz")
    ddpg.write_npz(folder / "state.npz", arrays, **meta | {"device": "cuda"})
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="cannot be resumed.*CUDA"):
            ddpg.resume(folder)


def test_an_environment_that_fails_when_it_is_resumed_is_named(tmp_path):
    class Dying(Toy):
        def step(self, action):
            assert not dead, "out of fuel"
            return super().step(action)

    dead = False
    folder = begin(Config(**SMALL | dict(total_steps=30)), tmp_path / "run", Dying, until=5)
    dead = True
    with pytest.raises(ddpg.EnvError, match="out of fuel.* at step 1 of the episode"):
        ddpg.resume(folder, Dying)


def test_resuming_on_another_machine_warns_in_one_line(tmp_path, monkeypatch, capsys):
    folder = begin(Config.preset(**SHORT), tmp_path / "run")
    ddpg.resume(folder)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(ddpg, "MACHINE", {"cpu": "another"})
    ddpg.resume(folder)
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("what", ["nan observation", "inf reward", "None reward", "wide observation", "raises"])
def test_an_environment_that_misbehaves_ends_the_training_with_the_agent_saved(tmp_path, monkeypatch, capsys, what):
    class Faulty(Toy):
        def __init__(self, length):
            super().__init__(length, obs=lambda t: np.linspace(0, 1, 40))  # which NumPy prints in many lines

        def step(self, action):
            obs, rew, *more = super().step(action)
            if self.t == 7:
                if what == "raises":
                    raise RuntimeError("out of fuel")
                obs = {"nan observation": obs * np.nan, "wide observation": np.zeros(3)}.get(what, obs)
                rew = {"inf reward": np.inf, "None reward": None}.get(what, rew)
            return obs, rew, *more

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "faulty", type(sys)("faulty"))
    gym.register("Faulty-v0", lambda: Faulty(20), max_episode_steps=20)
    try:
        assert ddpg.main(["--env", "faulty:Faulty-v0", "--out", "run", "--quiet", "--learning-starts", "3", "--hidden", "8",
                          "--eval-every", "0"]) == 1
    finally:
        gym.registry.pop("Faulty-v0")
    error = capsys.readouterr().err
    lines = error.splitlines()[-2:]
    field = "out of fuel" if what == "raises" else what.split()[1]
    assert field in lines[0] and "at step 7 of the episode with seed" in lines[0] and ("Traceback" in error) == (what == "raises")
    assert what == "raises" or error.count("\n") == 2
    assert lines[1] == "the agent of step 6 is saved in run" and load("run/last.npz").meta["step"] == 6


# ------------------------------------------------------------------------------------- never run a stranger's code


def mutations(good, count):
    """Policy files with something wrong, or by chance nothing: bytes flipped, cut out, put in; values and arrays replaced."""
    rng, data = np.random.default_rng(0), good.read_bytes()
    with np.load(good) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    values = [None, -1, 0, 1, 10**6, 10**12, 10**400, 1e308, -0.5, float("nan"), float("inf"), "", "x" * 1000, "\x1b[2J", [], [[]], [1e9] * 3,
              [10**5] * 50, [1] * 50_000, {}, {"x": []}, True, "evil:Env-v0"]
    shapes = [(), (0,), (1,), (3, 3), (10**3, 10**3), (1, 4, 10**5)]
    types = [np.float32, np.float64, np.int8, "U7", "S3", bool, complex, "M8[s]"]
    for i in range(count):
        kind, raw, out = i % 4, bytearray(data), io.BytesIO()
        if kind == 0:
            for _ in range(rng.integers(1, 9)):
                raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        elif kind == 1:
            a, b = sorted(rng.integers(0, len(raw), 2))
            raw[a:b] = [b"", bytes(rng.integers(0, 256, 50).astype(np.uint8)), bytes(raw[a:b]) * 3][rng.integers(3)]
        else:
            changed, some = json.loads(json.dumps(meta)), dict(arrays)
            if kind == 2:
                part = changed["config"] if rng.random() < 0.7 else changed
                part[list(part)[rng.integers(len(part))]] = values[rng.integers(len(values))]
            else:
                name = list(some)[rng.integers(len(some))]
                some[name] = np.zeros(shapes[rng.integers(len(shapes))], types[rng.integers(len(types))])
            np.savez(out, meta=np.array(json.dumps(changed)), **some)
            raw = out.getvalue()
        yield bytes(raw)


def header(shape, kind="<f4"):
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def hostile(folder, good):
    """Named cases: path -> a word of the message."""
    with np.load(good) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))

    def archive(name, members={}, compression=zipfile.ZIP_STORED, config={}, **changed):
        changed = meta | {"config": meta["config"] | config} | changed
        with zipfile.ZipFile(folder / name, "w", compression) as file:
            for key, array in {**arrays, "meta": np.array(json.dumps(changed)), **members}.items():
                with file.open(f"{key}.npy", "w") as member:
                    member.write(array) if isinstance(array, bytes) else np.lib.format.write_array(member, np.asarray(array))
        return folder / name

    key = "actor.net.weights.0"
    yield archive("bomb.npz", {key: np.zeros((10_000, 10_000), np.int8)}, zipfile.ZIP_DEFLATED), "compressed"
    yield archive("huge.npz", {key: header((10**5, 10**6))}), "cannot be read"
    yield archive("negative.npz", {key: header((-1, 5))}), "cannot be read"
    yield archive("object.npz", {key: header((3,), "|O")}), "pickle"
    yield archive("header.npz", {key: b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 1000}), "cannot be read"
    yield archive("deep.npz", {"meta": np.array("[" * 100_000)}), "cannot be read"
    yield archive("wide.npz", config={"hidden": [16_384] * 90}), "arrays"
    yield archive("many.npz", config={"hidden": [1] * 100_000}), "hidden"
    yield archive("critics.npz", config={"n_critics": 100}), "arrays"
    yield archive("inputs.npz", obs_dim=10**9), "policy"
    again = archive("again.npz")  # the same bytes in the file are read again and again
    with zipfile.ZipFile(again, "a") as file:
        file.filelist += [file.getinfo(f"{key}.npy")] * 2_000
        file._didModify = True
    yield again, "compressed"
    yield archive("bounds.npz", high=[float("inf")]), "format"
    with zipfile.ZipFile(folder / "empty.npz", "w") as file, file.open("meta.npy", "w") as member:
        np.lib.format.write_array(member, np.array("{}"))
    yield folder / "empty.npz", "it lacks 'config'"
    yield archive("scaled.npz", config={"obs_scale": [1e9, 1e-9, 1.0]}), ""  # which is sound
    yield archive("text.npz", env="\x1b[2Jyour disk is gone"), "format"
    (folder / "folder.npz").mkdir()
    yield folder / "folder.npz", "not the folder of a run"
    os.mkfifo(folder / "pipe.npz")
    yield folder / "pipe.npz", "no such file"
    yield Path("/dev/zero"), "no such file"
    (folder / "pickle.npz").write_bytes(pickle.dumps(print))
    yield folder / "pickle.npz", "cannot be read"


def memory():
    """Peak resident memory of this process, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def load_hostile_files(good, named, count):
    """To be run in a process of its own, as an audit hook stays: nothing but data may come of these files."""
    events, loaded, at_first = [], 0, memory()

    def hook(event, args):
        wrong = event in ("import", "exec", "os.system", "subprocess.Popen", "os.posix_spawn", "socket.connect", "ctypes.dlopen",
                          "pickle.find_class", "os.remove", "os.rename", "os.exec", "os.fork")
        if wrong or (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)):
            events.append((event, args[0]))

    def attempt(path, word=""):
        nonlocal loaded
        began = time.process_time()
        try:
            policy = load(path)
            assert not word, path
            loaded += 1
            ddpg.env_maker_of(policy)
        except UsageError as error:
            assert word in str(error) and str(error).count("\n") < 3 and len(str(error)) < 600, error
        assert time.process_time() - began < 1 and memory() - at_first < 256e6, path

    attempt(good)
    for path, word in named:  # unhooked at first, as the libraries import parts of themselves when first needed
        attempt(path, word)
    assert "sympy" not in sys.modules  # or loading would take torch half a second more
    bad, changed = good.with_name("bad.npz"), mutations(good, count)
    changed = itertools.chain([next(changed)], changed)  # which has read the good one before the hook comes
    sys.addaudithook(hook)
    for path, word in named:
        attempt(path, word)
    for data in changed:
        bad.write_bytes(data)
        events.clear() if {e for e, _ in events} <= {"open"} and all(p == str(bad) for _, p in events) else None
        attempt(bad)
    print(f"{loaded} of {count} loaded all the same")
    assert not events, events[:5]
    return 0


def test_a_hostile_policy_file_is_refused_and_nothing_in_it_runs(tmp_path, count=500):
    log, good = tmp_path / "log", tmp_path / "good.npz"
    Agent(3, [-2], [2], Config(**SMALL, algo="td3")).save(good, env="Pendulum-v1", step=1)
    named = list(hostile(tmp_path, good))
    assert exit_code(in_a_child(lambda: load_hostile_files(good, named, count), log, timeout=600), 600) == 0, log.read_text()
    print(log.read_text())
    for path in sorted(tmp_path.glob("*.npz")):
        if path.stem in ("bomb", "pipe", "wide", "pickle"):
            began = time.process_time()
            assert ddpg.main(["--eval", str(path)]) == 2 and time.process_time() - began < 1
            began = time.process_time()
            assert viewer.main([str(path), "--headless"]) == 2 and time.process_time() - began < 1


@pytest.mark.slow
def test_ten_thousand_hostile_policy_files(tmp_path):
    test_a_hostile_policy_file_is_refused_and_nothing_in_it_runs(tmp_path, 10_000)


def test_the_readme_runs_a_policy_with_numpy_alone(tmp_path, monkeypatch):
    block = readme("def policy(path)")
    assert len(block[block.index('def ') :].splitlines()) == 10 and "torch" not in block and "ddpg" not in block
    names = {}
    exec(block, names)
    for dims in (3, [-2.0], [2.0]), (8, [-1.0, 0.0], [1.0, 5.0]):
        agent = Agent(*dims, Config(hidden=(32, 16), seed=3))
        agent.actor.flat.normal_(0, 0.3)
        agent.save(tmp_path / "best.npz", env="Pendulum-v1", step=1)
        act, obs = names["policy"](tmp_path / "best.npz"), np.random.default_rng(0).normal(size=(50, dims[0]))
        expected = load(tmp_path / "best.npz").act(obs)
        assert np.abs(np.array([act(o) for o in obs]) - expected).max() < 1e-6 * np.abs(expected).max() + 1e-6


# ------------------------------------------------------------------------------------- the command line


@pytest.mark.parametrize("arguments, words", [
    ("--env Pendlum-v1", "Pendulum"), ("--env Pendulum-v0", "Pendulum-v1"), ("--env LunarLanderContinuous-v2", "LunarLanderContinuous-v3"),
    ("--env CartPole-v1", "Discrete"), ("--env no_such_module:Env-v0", "no_such_module"), ("--env Nope/Env-v0", "Nope"),
    ("--gama 0.9", "did you mean --gamma"), ("--se 3", "--se"), ("--seed x", "--seed"), ("--actor-lr nan", "actor_lr"),
    ("--gamma 2", "gamma"), ("--batch-size 0", "batch_size"), ("--hidden 0", "hidden"), ("--threads 0", "--threads"),
    ("--env-kwargs {", "--env-kwargs"), ("--env-kwargs {\"nokey\":1}", "nokey"), ("--env-kwargs [1]", "env_kwargs"),
    ("--env Pendulum", "Pendulum-v1"), ("--eval a --resume b", "--eval"), ("--eval a --gamma 0.5", "gamma"), ("--episodes 0", "--episodes"),
    ("--device cuda", "cuda"), ("--algo ppo", "ppo"),
    ("--eval nowhere", "nowhere"), ("--resume nowhere", "nowhere"), ("--device tpu", "tpu"),
    ("--env toys:Unbounded-v0", "unbounded"), ("--env toys:Pixels-v0", "images"), ("--env toys:Endless-v0", "--max-episode-steps"),
    ("--env toys:Dict-v0", "Box"), ("--env toys:Nothing-v0", "its actions are"), ("--env toys:Raises-v0", "out of order"), ("--env toys:Leaves-v0", "SystemExit: 3"), ("--env toys:Endless", "--env toys:Endless-v0"),
    ("--threads 0", "1 to 256"), ("--env-kwargs {", "JSON"), ("--seed -1", "2,147,483,647"), ("--resume .", "not the folder of a run"),
    ("--eval .", "not the folder of a run"), ("--eval=", "need a name"), ("--resume=", "need a name"), ("--out=", "need a name"),
])
def test_bad_input_exits_2_with_a_word_on_what_to_do_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, words):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(sys.modules, "toys", toys := type(sys)("toys"))

    def box(*shape, bound=1.0, dtype=np.float32):
        return gym.spaces.Box(0 if dtype == np.uint8 else -bound, bound, shape, dtype)

    def toy(obs, act, problem=None):
        env = Toy()
        env.observation_space, env.action_space = obs, act
        if problem:
            raise RuntimeError(problem)
        return env

    toys.envs = dict(
        Unbounded=lambda: toy(box(2), box(1, bound=np.inf)), Pixels=lambda: toy(box(8, 8, 3, bound=255, dtype=np.uint8), box(1)),
        Endless=lambda: toy(box(2), box(1)), Nothing=lambda: toy(box(2), box(0)), Dict=lambda: toy(gym.spaces.Dict(x=box(1)), box(1)), Raises=lambda: toy(None, None, "out of order"), Leaves=lambda: sys.exit(3),
    )
    for name, make in toys.envs.items():
        if f"{name}-v0" not in gym.registry:
            gym.register(f"{name}-v0", make)
    started = time.process_time()
    assert ddpg.main(arguments.split(" ")) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") <= 3 and "Traceback" not in err and out == ""
    assert list(tmp_path.iterdir()) == [] and time.process_time() - started < 3


def test_a_replay_that_does_not_fit_is_refused(tmp_path):
    def main():
        mapped = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (mapped + (16 << 30), resource.RLIM_INFINITY))
        return ddpg.main(["--buffer-size", "1000000000", "--out", str(tmp_path / "run")])

    assert exit_code(in_a_child(main, tmp_path / "log")) == 2
    assert "buffer_size: 1,000,000,000 rows do not fit" in (tmp_path / "log").read_text() and not (tmp_path / "run").exists()


def test_the_working_folder_cannot_shadow_a_library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    assert ddpg.main(["--eval", "nowhere"]) == 2 and sys.path == [*before, str(tmp_path)]


def test_missing_box2d_is_explained(tmp_path):
    script = "import sys; sys.modules['Box2D'] = None; import ddpg; sys.exit(ddpg.main(['--env', 'LunarLanderContinuous-v3']))"
    result = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)},
                            capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and "gymnasium[box2d]" in result.stderr and result.stderr.count("\n") <= 3
    assert list(tmp_path.iterdir()) == []


def test_a_used_folder_is_refused_and_left_alone(tmp_path):
    train(Config.preset(**SMALL, total_steps=60), out=tmp_path / "run")
    before = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    result = command(*QUICK, "--out", tmp_path / "run")
    assert result.returncode == 2 and "--resume" in result.stderr
    assert before == {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
    result = command("--resume", tmp_path / "run", "--gamma", "0.5")
    assert result.returncode == 2 and "gamma" in result.stderr
    (tmp_path / "file").write_text("")
    result = command(*QUICK, "--out", tmp_path / "file" / "run")
    assert result.returncode == 2 and "cannot write" in result.stderr and result.stderr.count("\n") <= 3


def test_the_single_file_trains_evaluates_and_imports_alone(tmp_path):
    shutil.copy(ROOT / "ddpg.py", tmp_path)
    run = lambda *arguments: subprocess.run([sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert run("ddpg.py", *QUICK, "--quiet").returncode == 0
    result = run("ddpg.py", "--eval", "runs/Pendulum-v1/ddpg-seed0", "--episodes", "5", "--json")
    assert json.loads(result.stdout)["episodes"] == 5
    assert run("-c", "from ddpg import Agent, Config; import sys; assert 'pygame' not in sys.modules").stdout == ""


def test_watch_opens_the_viewer_beside_the_training(tmp_path):
    shutil.copy(ROOT / "ddpg.py", tmp_path)
    arguments = [sys.executable, tmp_path / "ddpg.py", *QUICK, "--quiet", "--watch", "--out", "run"]
    result = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert result.returncode == 2 and "viewer.py" in result.stderr and not (tmp_path / "run").exists()
    (tmp_path / "viewer.py").write_text("import sys; open('opened', 'w').write(' '.join(sys.argv[1:]))")
    assert subprocess.run(arguments, cwd=tmp_path, timeout=60, capture_output=True).returncode == 0
    assert (tmp_path / "opened").read_text().split() == ["run", "--live"]
    (tmp_path / "opened").unlink()
    resume = [sys.executable, "ddpg.py", "--resume", "run", "--total-steps", "800", "--quiet", "--watch"]
    assert subprocess.run(resume, cwd=tmp_path, timeout=60, capture_output=True).returncode == 0
    assert (tmp_path / "opened").read_text().split() == ["run", "--live"]


def test_eval_uses_only_environments_that_gymnasium_brings(tmp_path):
    (tmp_path / "evil.py").write_text("open('executed', 'w')")
    agent = Agent(3, [-2], [2], Config(**SMALL))
    agent.save(tmp_path / "p.npz", env="evil:Pendulum-v1", step=1)
    result = command("--eval", "p.npz", cwd=tmp_path)
    assert result.returncode == 2 and "--env" in result.stderr and not (tmp_path / "executed").exists()
    result = command("--eval", "p.npz", "--env", "Pendulum-v1", "--episodes", 2, cwd=tmp_path)
    assert result.returncode == 0 and "over 2 test episodes" in result.stdout
    result = command("--eval", "p.npz", "--env", "MountainCarContinuous-v0", cwd=tmp_path)
    assert result.returncode == 2 and "3 observations" in result.stderr


def test_your_own_environment_by_module_and_id(tmp_path):
    shutil.copy(ROOT / "benchmarks" / "regulator.py", tmp_path)
    result = command("--env", "regulator:Regulator-v0", "--env-kwargs", '{"d": 3}', *QUICK, "--algo", "td3", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = Path("runs", "regulator-Regulator-v0", "td3-seed0")
    assert load(tmp_path / folder).obs_dim == 3
    following = [line.split()[2:] for line in result.stdout.splitlines() if line.startswith("  python ")]
    assert following[0] == ["--eval", str(folder), "--env", "regulator:Regulator-v0"] and following[1] == following[0][1:]
    assert command(*following[0], "--episodes", 1, cwd=tmp_path).returncode == 0
    result = command("--resume", folder, "--env", "regulator:Regulator-v0", cwd=tmp_path)
    assert result.returncode == 0 and "come to its end before" in result.stdout
    result = command("--resume", folder, "--env", "Pendulum-v1", cwd=tmp_path)
    assert result.returncode == 2 and "env regulator:Regulator-v0 -> Pendulum-v1" in result.stderr


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, number, code):
    flags = ["--total-steps", 1500, *QUICK[2:], "--solved-at", 0, "--seed", 2]

    def main():
        advance = Training.advance
        Training.advance = lambda run: (advance(run), run.step == 400 and os.kill(os.getpid(), number))
        os.chdir(tmp_path)
        return ddpg.main([*map(str, flags), "--out", "run"])

    out, err = tmp_path / "out", tmp_path / "err"
    assert exit_code(in_a_child(main, out, err)) == code and not err.read_text()
    assert "python ddpg.py --resume run" in out.read_text() and load(tmp_path / "run" / "last.npz").meta["step"] == 400
    result = command("--resume", "run", cwd=tmp_path)
    assert result.returncode == 0 and "Done after 1,500 steps" in result.stdout
    assert command(*flags, "--out", "whole", cwd=tmp_path).returncode == 0
    assert same_run(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_final_test_too(tmp_path, number, code):
    (tmp_path / "log").touch()
    flags = [*QUICK, "--episodes", "100000", "--out", str(tmp_path / "run")]
    pid = in_a_child(lambda: ddpg.main(flags), tmp_path / "log")
    wait_for(lambda: "Testing the best policy" in (tmp_path / "log").read_text())
    time.sleep(0.2)
    os.kill(pid, number)
    assert exit_code(pid) == code and "Traceback" not in (tmp_path / "log").read_text()


def test_printing_never_fails_a_run(tmp_path, monkeypatch):
    path = make_policy(tmp_path / "policy.npz")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed := io.BytesIO(), "ascii"))
    assert ddpg.main(["--eval", str(path), "--episodes", "1"]) == 0
    sys.stdout.flush()
    assert b" ? 0.0 over 1 test episodes" in printed.getvalue()
    monkeypatch.setattr(sys, "stdout", None)  # as in a process without a terminal
    assert ddpg.main([*QUICK, "--out", str(tmp_path / "a b")]) == 0
    reader, writer = os.pipe()
    os.close(reader)

    def nobody_reads():
        os.dup2(writer, 1)
        sys.stdout = open(1, "w", closefd=False)
        return ddpg.main([*QUICK, "--quiet", "--out", str(tmp_path / "c")])

    assert exit_code(in_a_child(nobody_reads, errors=tmp_path / "errors")) == 1
    assert not (tmp_path / "errors").read_text() and (tmp_path / "c" / "state.npz").exists()


def test_commands_to_copy_are_quoted(tmp_path):
    folder = tmp_path / "a b"
    printed = command(*QUICK, "--out", folder).stdout
    assert f"--eval '{folder}'" in printed and f"viewer.py '{folder}'" in printed
    assert f"--resume '{folder}'" in command(*QUICK, "--out", folder).stderr


def test_a_terminal_gets_one_live_line_and_a_pipe_plain_ones(tmp_path):
    plain = command(*QUICK, "--out", tmp_path / "a").stdout
    assert "\r" not in plain and "\x1b" not in plain and "nothing is learnt" not in plain
    assert "nothing is learnt in the first 300 steps" in command(*QUICK, "--total-steps", 300, "--learning-starts", 300, "--out", tmp_path / "e").stdout
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen([sys.executable, ROOT / "ddpg.py", *QUICK, "--out", tmp_path / "b"], stdout=slave, stderr=slave)
    os.close(slave)
    text = b""
    try:
        while part := os.read(master, 4096):
            text += part
    except OSError:  # the other end is closed
        pass
    assert process.wait(timeout=60) == 0
    live = [line for line in text.decode().split("\r\x1b[K") if "steps/s" in line and "% " in line]
    assert len(live) >= 2 and all(len(line.splitlines()[0]) < 80 for line in live), live
    for word in "step", "steps/s", "s left", "returns", "evaluation":
        assert word in live[-1]
    assert command(*QUICK, "--out", tmp_path / "c", "--quiet").stdout.count("\n") == 2
    result = json.loads(command(*QUICK, "--out", tmp_path / "d", "--json").stdout)
    assert result["step"] in (0, 350, 700) and 0 < result["seconds"] < 60


def test_help_shows_each_flag_and_the_presets():
    text = command("--help", fresh=True).stdout
    for f in fields(Config):
        assert f"--{f.name.replace('_', '-')}" in text and f.metadata["help"].split()[0] in text
    for env in PRESETS:
        assert env in text


# ------------------------------------------------------------------------------------- the viewer

PENDULUM, LANDER = "Pendulum-v1", "LunarLanderContinuous-v3"
DIMS = {PENDULUM: (3, [-2.0], [2.0]), LANDER: (8, [-1.0, -1.0], [1.0, 1.0])}


def make_policy(path, env=PENDULUM, seed=0, step=0, dims=None, scale=100.0, **config):
    """A policy file of an untrained agent; `scale` makes its actions large enough to matter."""
    obs_dim, low, high = dims or DIMS[env]
    agent = Agent(obs_dim, low, high, Config(env=env, seed=seed, hidden=(16, 16), **config))
    agent.actor.flat[-17 * len(low) :] *= scale
    agent.save(path, env=env, step=step, evaluation=None)
    return path


def make_run(folder, env=PENDULUM, snapshots=4):
    (folder / "policies").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    rows = ["step,eval_mean"]
    for i in range(snapshots):
        make_policy(folder / "policies" / f"{1000 * i:012d}.npz", env, i, 1000 * i)
        rows.append(f"{1000 * i},{-1000 + 100 * i}")
    shutil.copy(folder / "policies" / "000000002000.npz", folder / "best.npz")
    shutil.copy(folder / "policies" / f"{1000 * (snapshots - 1):012d}.npz", folder / "last.npz")
    (folder / "progress.csv").write_text("\n".join(rows) + "\n")
    return folder


@pytest.fixture(scope="module", autouse=True)
def screen():
    viewer.import_ddpg()
    pygame.display.init()
    pygame.font.init()


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return make_run(tmp_path / "runs" / PENDULUM / "ddpg-seed0")


@pytest.fixture
def still(monkeypatch):
    """Steps take no time, so that none is left out on a busy machine."""
    monkeypatch.setattr(viewer.time, "perf_counter", lambda: 0.0)


def open_window(target, *flags, size=(1000, 640)):
    window = viewer.Window(pygame.display.set_mode(size, pygame.RESIZABLE), viewer.parse([str(target), *flags]))
    window.open(target)
    window.notice_for = 0
    return window


pressed = set()  # every key and character that a test has sent


def post(window, *events):
    """Events the way they really come, through the queue."""
    pygame.event.clear()
    for event in events:
        pygame.event.post(event)
        pressed.update({event.key, event.unicode.lower()} if event.type == pygame.KEYDOWN else ())
    for event in pygame.event.get():
        window.attempt(window.handle, event)


def press(window, key, typed=""):
    post(window, pygame.event.Event(pygame.KEYDOWN, key=key, unicode=typed, mod=0),
         pygame.event.Event(pygame.KEYUP, key=key, mod=0))


def click(window, pos, release=True):
    pos = tuple(map(int, pos))
    post(window, pygame.event.Event(pygame.MOUSEBUTTONDOWN, button=1, pos=pos))
    if release:
        post(window, pygame.event.Event(pygame.MOUSEBUTTONUP, button=1, pos=pos))


def pixels(window):
    window.draw()
    return pygame.surfarray.array3d(window.surface)


def step_shown(window):
    return window.player.policy.meta["step"]


def finish(window):
    """Let time pass until the episode has ended."""
    for _ in range(100_000):
        if window.player.over:
            return window.player.episode.ret
        window.update(0.02)
    raise AssertionError("the episode does not end")


# ------------------------------------------------------------------------------------- the player


@pytest.mark.parametrize("env, kwargs", [(PENDULUM, {}), (LANDER, {}), (LANDER, {"enable_wind": True})])
def test_the_same_return_however_it_is_shown(env, kwargs, tmp_path):
    """To the bit: headless, drawn, at 1x, at 16x, after stepping back and forward; and as ddpg.py evaluates it."""
    path = make_policy(tmp_path / "policy.npz", env, env_kwargs=kwargs)
    policy = load(path)
    bare = viewer.Player(policy, render=False)
    returns = []
    for seed in 3, 4:
        bare.start(seed)
        while not bare.over:
            bare.step()
        returns.append(bare.episode.ret)
    # One observation at a time, as the player does: a batch of two may round differently
    make_env = lambda: gym.make(env, **kwargs)
    assert returns == [evaluate(policy, make_env, [seed])[0][0] for seed in (3, 4)]

    for speed in 1, 16:
        window = open_window(path, "--seed", "3")
        window.speed = speed
        for i in range(100_000):
            window.update(1 / 60)
            if i % 10 == 0:
                window.draw()
            if window.player.over:
                break
        assert window.player.episode.ret == returns[0]
    for _ in range(30):
        window.step_by(-1)
    assert not window.player.over and window.player.t == bare_length(bare, 3) - 30
    window.draw()
    for _ in range(30):
        window.step_by(1)
    assert window.player.over and window.player.episode.ret == returns[0]
    assert [list(rows) for rows in window.results.values()] == [[3]]  # one episode, however often it ended


def bare_length(player, seed):
    player.start(seed)
    while not player.over:
        player.step()
    return player.t


def test_the_tape_repeats_noise_flying_and_pushing(tmp_path):
    for env in PENDULUM, LANDER:
        player = viewer.Player(load(make_policy(tmp_path / "policy.npz", env)), noisy=True)
        player.start(5)
        act = np.zeros(len(player.policy.low))
        act[0] = 1
        for i in range(60):
            player.step(act if 10 < i < 20 else None, (0.2, 0.1) if 20 < i < 25 else None)
        rewards, trail, frame = player.rewards, player.trail, player.frame()
        player.seek(12)
        player.frame()
        while player.t < 60:
            player.step()
        assert player.rewards == rewards and np.array_equal(player.trail, trail) and player.assisted
        assert np.array_equal(player.frame(), frame)
        player.seek(5)
        assert not player.assisted


@pytest.mark.parametrize("env, terminated", [(LANDER, True), (PENDULUM, False)])
def test_realised_return_and_critic(tmp_path, env, terminated):
    player = viewer.Player(load(make_policy(tmp_path / "policy.npz", env, reward_scale=0.1, gamma=0.9)), render=False)
    player.policy.critic.flat.normal_(generator=torch.Generator().manual_seed(0))  # two critics that differ
    player.start(0)
    while not player.over:
        player.step()

    def q(obs, act):
        with torch.inference_mode():
            values = player.policy.critic(torch.from_numpy(obs[None]), torch.from_numpy(np.float32(act)[None]))
        return values[:, 0, 0].min().item() / 0.1

    last = player.trail[-1]
    after = 0.0 if terminated else q(last, player.policy.policy(last))
    expected = [sum(0.9**k * r for k, r in enumerate(player.rewards[t:])) + 0.9 ** (player.t - t) * after for t in range(player.t)]
    assert player.episode.terminated == terminated and np.allclose(player.realised(), expected, rtol=1e-4)
    assert len(player.predicted()) == player.t
    assert np.isclose(player.predicted()[7], q(player.trail[7], player.tape[7][0]), rtol=1e-4)


def test_exhaust_does_not_pile_up(tmp_path):
    player = viewer.Player(load(make_policy(tmp_path / "policy.npz", LANDER)))
    player.start(0)
    for _ in range(60):
        player.step(np.array([1.0, 1.0]))
    assert 0 < len(player.env.unwrapped.particles) < 30


def test_the_summary_is_of_each_policy():
    rows = [{"return": float(i), "length": 9} for i in range(3)]
    results = {("p", 1, True): dict(enumerate(rows[:2])), ("p", 2, True): {0: rows[2]}}
    first, second = viewer.summary(results)
    assert first["episodes"] == 2 and first["mean"] == 0.5 and first["max"] == 1 and second["mean"] == 2


def test_an_episode_seen_again_is_still_one(run):
    w = open_window(run)
    w.pin()  # the same policy twice
    for _ in range(3):
        finish(w)
        w.restart()
    assert [list(rows) for rows in w.results.values()] == [[0]] and "last 1: " in " ".join(words_on(w))
    finish(w)
    w.player.seek(190)
    w.player.step(np.ones(1))
    assert len(w.player.tape) == 191
    finish(w)
    assert w.player.row["assisted"] and [list(rows.values()) for rows in w.results.values()] == [[w.pinned.row]]


def words_on(window):
    """What a window shows, in words."""
    written, real = [], viewer.text
    try:
        viewer.text = lambda surface, rect, string, *args: (written.append(string), real(surface, rect, string, *args))[1]
        window.draw()
    finally:
        viewer.text = real
    return written


def test_a_seed_that_the_environment_refuses_leaves_the_episode_flying(run, monkeypatch):
    class Picky(ddpg.Episode):
        def __init__(self, env, seed):
            if seed == 1:
                raise ddpg.EnvError("seed 1 is refused")
            super().__init__(env, seed)

    monkeypatch.setattr(ddpg, "Episode", Picky)
    w = open_window(run)
    for _ in range(20):
        w.step()
    press(w, pygame.K_n, "n")
    assert "refused" in w.notice and w.seed == 0 == w.player.seed and w.player.t == 20
    finish(w)
    assert [list(rows) for rows in w.results.values()] == [[0]]
    w.notice_for = 0
    for _ in range(100):
        w.update(0.25)
    assert w.paused and "refused" in w.notice and w.seed == 0
    press(w, pygame.K_r, "r")
    assert w.player.t == 0


def test_an_episode_that_does_not_repeat_itself_ends_where_it_ends(run):
    w = open_window(run)
    finish(w)
    w.player.make_env = lambda: gym.make(PENDULUM, max_episode_steps=10)
    w.player.seek(50)
    assert w.player.t == 10 and w.player.over


def test_what_cannot_be_pinned_is_not(run, monkeypatch):
    w = open_window(run)

    def start(player, seed):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(viewer.Player, "start", start)
    press(w, pygame.K_c, "c")
    assert "out of memory" in w.notice and not w.pinned


def test_environments_are_closed(run, monkeypatch):
    alive, make = [], gym.make

    def counted(*args, **kwargs):
        env = make(*args, **kwargs)
        close = env.close
        alive.append(env)
        env.close = lambda: (close(), env in alive and alive.remove(env))
        return env

    monkeypatch.setattr(gym, "make", counted)
    w = open_window(run)
    most = len(alive)
    for _ in range(3):
        w.choose("first")
        w.choose("newest")
        w.pin()
        w.restart()
        w.pin()
    assert len(alive) == most < 3


def test_a_key_held_does_not_pile_up(run):
    w = open_window(run)
    for _ in range(50):
        w.step()
    pygame.event.clear()
    for _ in range(9):  # while one step back took as long as nine repetitions
        pygame.event.post(pygame.event.Event(pygame.KEYDOWN, key=pygame.K_COMMA, unicode=",", mod=0))
    w.update = lambda dt: w.quit()
    w.loop()
    assert w.player.t == 48  # the press itself, and one repetition


def test_pushing_is_not_flying(run):
    w = open_window(run)
    w.step(None, (0.3, 0.0))
    assert w.player.assisted and "yours" not in words_on(w)
    w.step(np.ones(1))
    assert "yours" in words_on(w)


def test_a_picture_that_fails_is_not_drawn_again_and_again(run, monkeypatch):
    w = open_window(run)
    monkeypatch.setattr(viewer.Player, "frame", lambda player: 1 / 0)
    w.paused = True
    w.draw()
    assert "division" in w.notice and not w.dirty


def test_frames_of_any_shape(run, monkeypatch):
    w, frames = open_window(run, size=(320, 240)), {}
    w.pin()
    render = lambda player: frames[player is w.pinned]
    for frames[False], frames[True] in itertools.product([np.zeros(shape, np.uint8) for shape in ((900, 90, 3), (90, 900, 4))], repeat=2):
        monkeypatch.setattr(viewer.ddpg.Episode, "call", lambda episode, method: render(next(p for p in w.players if p.episode is episode)))
        for player in w.players:
            player.picture = None
        w.notice_for = 0
        assert f"{w.player.episode.ret:.1f}" in " ".join(words_on(w)) and w.notice_for == 0, w.notice
    for frames[False] in np.zeros((90, 90)), None:
        w.player.picture = None
        w.draw()
        assert "not of (height, width, 3)" in w.notice


def test_as_much_of_an_observation_as_there_is_room_for(tmp_path):
    for size in (1000, 640), (2560, 1440):
        w = open_window(make_policy(tmp_path / "walker.npz", "BipedalWalker-v3", dims=(24, [-1.0] * 4, [1.0] * 4)), size=size)
        words = words_on(w)
        assert {"o0", "o5", "a0", "a3", "observation", "critic's Q"} <= set(words) and ("o23" in words or "12 of 24" in words)


def test_a_long_episode_is_drawn_as_fast_as_a_short_one(monkeypatch):
    lines, surface = [], pygame.Surface((300, 100))
    monkeypatch.setattr(pygame.draw, "line", lambda *args: lines.append(args))
    viewer.draw_plot(surface, surface.get_rect(), [(np.sin(np.arange(100_000)).tolist(), viewer.BLUE, False)], 100_000, 14)
    assert 100 < len(lines) < 3_000 and max(max(b) for *_, b, _ in lines[1:]) > 200


def test_a_film_keeps_its_shape_and_adds_nothing_after_the_end(run):
    w = open_window(run)
    finish(w)
    w.player.seek(198)
    w.record_gif()
    for _ in range(12):
        w.step_by(1)
    assert w.film.durations == [50, 1500]
    before = w.film.frames[0].size
    w.surface = pygame.display.set_mode((400, 640), pygame.RESIZABLE)
    w.draw()
    w.film.add(w.surface, False)
    last = np.asarray(w.film.frames[-1].convert("RGB"))
    assert w.film.frames[-1].size == before and not last[:, :150].any() and not last[:, -150:].any() and last[:, 250:390].any()


# ------------------------------------------------------------------------------------- the window


def test_every_key(run, tmp_path, still):
    w = open_window(run)
    pressed.clear()
    assert step_shown(w) == 2000 and not w.follow  # the best of a finished run

    def differs(act):
        before = pixels(w)
        act()
        w.notice_for = 0
        return not np.array_equal(before, pixels(w))

    w.update(0.3)
    assert w.player.t == 7  # 0.25 s at most, 30 a second
    assert differs(lambda: press(w, pygame.K_SPACE, " ")) and w.paused
    w.update(0.3)
    assert w.player.t == 7
    for keys, by in [((pygame.K_PERIOD, "."), 1), ((pygame.K_RIGHT, ""), 1), ((pygame.K_COMMA, ","), -1), ((pygame.K_LEFT, ""), -1)]:
        t, ret = w.player.t, w.player.episode.ret
        assert differs(lambda: press(w, *keys)) and w.player.t == t + by and w.player.episode.ret != ret
    press(w, pygame.K_SPACE, " ")
    assert not w.paused
    for key, typed in [(pygame.K_r, "r"), (pygame.K_BACKSPACE, "\b")]:
        w.update(0.2)
        assert w.player.t and differs(lambda: press(w, key, typed)) and w.player.t == 0 and w.seed == 0
    for key, typed in [(pygame.K_n, "n"), (pygame.K_RETURN, "\r")]:
        seed = w.seed
        assert differs(lambda: press(w, key, typed)) and w.seed == w.player.seed == seed + 1
    assert differs(lambda: press(w, pygame.K_l, "l")) and w.locked
    finish(w)
    for _ in range(5):
        w.update(0.25)
    assert w.player.over  # its last picture stays for 1.5 s
    for _ in range(2):
        w.update(0.25)
    assert w.seed == 2 and w.player.t < 10 and [list(rows) for rows in w.results.values()] == [[2]]
    press(w, pygame.K_l, "L")
    assert not w.locked
    for keys, speed in [((pygame.K_PLUS, "+"), 2), ((pygame.K_EQUALS, "="), 4), ((pygame.K_KP_PLUS, "+"), 8), ((pygame.K_MINUS, "-"), 4),
                        ((pygame.K_0, "0"), 1), ((pygame.K_KP_MINUS, "-"), 0.5), ((pygame.K_KP0, "0"), 1), ((pygame.K_7, "+"), 2)]:
        assert differs(lambda: press(w, *keys)) and w.speed == speed
    for _ in range(9):
        press(w, pygame.K_PLUS, "+")
    assert w.speed == viewer.SPEEDS[-1]
    press(w, pygame.K_0, "0")
    for keys, step in [((pygame.K_PAGEUP, ""), 1000), ((pygame.K_PAGEDOWN, ""), 2000), ((pygame.K_8, "["), 1000), ((pygame.K_9, "]"), 2000),
                       ((pygame.K_HOME, ""), 0), ((pygame.K_END, ""), 3000), ((pygame.K_b, "b"), 2000)]:
        assert differs(lambda: press(w, *keys)) and step_shown(w) == step and w.player.seed == w.seed
        assert w.follow == (step == 3000)
    press(w, pygame.K_HOME)
    press(w, pygame.K_PAGEUP)
    assert step_shown(w) == 0
    assert differs(lambda: press(w, pygame.K_d, "d")) and w.noisy and w.player.noisy
    press(w, pygame.K_d, "d")
    assert differs(lambda: press(w, pygame.K_c, "c")) and w.pinned
    press(w, pygame.K_END)
    w.update(0.2)
    assert w.pinned.t == w.player.t > 0 and w.pinned.policy.meta["step"] == 0 and step_shown(w) == 3000
    assert w.pinned.episode.ret != w.player.episode.ret and np.array_equal(w.pinned.trail[0], w.player.trail[0])
    press(w, pygame.K_c, "c")
    assert not w.pinned
    assert differs(lambda: press(w, pygame.K_TAB, "\t")) and not w.show_panel
    press(w, pygame.K_TAB, "\t")
    assert differs(lambda: press(w, pygame.K_m, "m")) and not w.show_map
    press(w, pygame.K_s, "s")
    assert pygame.image.load(f"{PENDULUM}-step3000-seed2.png").get_size() == (1000, 640)
    press(w, pygame.K_g, "g")
    t = w.player.t
    for _ in range(5):
        w.update(0.04)
    press(w, pygame.K_g, "g")
    from PIL import Image

    assert 5 <= w.player.t - t == Image.open(f"{PENDULUM}-step3000-seed2.gif").n_frames  # every step, drawn or not
    press(w, pygame.K_f, "f")
    assert w.surface.get_flags() & pygame.FULLSCREEN
    press(w, pygame.K_f, "f")
    assert not w.surface.get_flags() & pygame.FULLSCREEN
    for key, typed in [(pygame.K_h, "h"), (pygame.K_F1, ""), (pygame.K_6, "?")]:
        assert differs(lambda: press(w, key, typed)) and w.show_help
        press(w, pygame.K_ESCAPE, "\x1b")
        assert w.alive and not w.show_help
    press(w, pygame.K_q, "q")
    assert not w.alive
    assert w.notice_for <= 0 or w.notice.startswith("saved")
    assert set(viewer.ACTION_OF) <= pressed


def test_everything_works_by_mouse_too(run, monkeypatch):
    """A click below the scene opens the key table, and a click on a row does what its key does."""
    rows = {meaning: i for i, (_, _, meaning) in enumerate(viewer.KEYS)}

    def choose(meaning):
        w.show_help = False
        click(w, w.panes()["bar"].center)
        assert w.show_help and words_on(w) == [word for keys, _, meaning in viewer.KEYS for word in (keys, meaning)]
        click(w, viewer.table(w.surface.get_rect(), len(rows))[rows[meaning]].center)
        assert not w.show_help and w.notice_for <= 0, w.notice

    w = open_window(run)
    w.update(0.2)
    for meaning, state in [
        ("pause or go on", lambda: w.paused), ("one step back", lambda: w.player.t), ("one step forward", lambda: w.player.t),
        ("next seed", lambda: w.seed), ("lock the seed", lambda: w.locked), ("slower, to 1/8x", lambda: w.speed), ("speed 1x", lambda: w.speed),
        ("untrained agent", lambda: step_shown(w)), ("next snapshot", lambda: step_shown(w)), ("best policy", lambda: step_shown(w)),
        ("noisy or not", lambda: w.noisy), ("panel", lambda: w.show_panel), ("policy map", lambda: w.show_map), ("quit", lambda: w.alive),
    ]:
        before = state()
        choose(meaning)
        assert state() != before, meaning
        if meaning == "panel":
            choose(meaning)  # it has the map
    for _, action, meaning in viewer.KEYS:
        called = []
        if action:
            monkeypatch.setattr(w, action[0], lambda *arguments: called.append((action[0], *arguments)))
        choose(meaning)
        assert called == ([action] if action and action[-1] != "show_help" else []), meaning


def test_keys_that_repeat(run):
    w = open_window(run)
    down = pygame.event.Event(pygame.KEYDOWN, key=pygame.K_PERIOD, unicode=".", mod=0)
    post(w, down, down, down)
    assert w.player.t == 3
    down = pygame.event.Event(pygame.KEYDOWN, key=pygame.K_n, unicode="n", mod=0)
    post(w, down, down, down)
    assert w.seed == 1


def test_flying_and_pushing(run, still):
    w = open_window(run)
    post(w, pygame.event.Event(pygame.KEYDOWN, key=pygame.K_LEFT, unicode="", mod=0))
    w.update(0.2)
    assert [act for act, *_ in w.player.tape] == [1.0] * w.player.t and w.player.t == 6 and w.player.assisted
    post(w, pygame.event.Event(pygame.KEYUP, key=pygame.K_LEFT, mod=0))
    w.update(0.2)
    assert not w.player.tape[-1][2] and w.player.policy.policy(w.player.trail[-2]) == w.player.tape[-1][0]
    post(w, pygame.event.Event(pygame.KEYDOWN, key=pygame.K_LEFT, unicode="", mod=0))
    assert w.touch()[0] == 1
    post(w, pygame.event.Event(pygame.WINDOWFOCUSLOST))  # the key is let go of elsewhere
    assert w.touch()[0] is None
    w.restart()
    assert not w.player.assisted
    scene = w.panes()["scene"]
    click(w, scene.center, release=False)
    post(w, pygame.event.Event(pygame.MOUSEMOTION, pos=(scene.centerx + 100, scene.centery), rel=(0, 0), buttons=(1, 0, 0)))
    w.update(0.04)
    plain = viewer.Player(w.player.policy, render=False)
    plain.start(0)
    plain.step()
    assert w.player.trail[1][2] < plain.trail[1][2] - 0.1 and w.player.assisted
    post(w, pygame.event.Event(pygame.MOUSEBUTTONUP, button=1, pos=scene.center))
    w.update(0.04)
    assert not w.player.tape[-1][2]
    finish(w)
    assert w.player.row["assisted"] and not list(viewer.summary(w.results))


def test_a_push_goes_where_the_mouse_goes(run):
    w = open_window(run)
    x, y = w.panes()["scene"].center
    click(w, (x, y), release=False)
    assert w.touch() == (None, None)  # a click alone is no push
    post(w, pygame.event.Event(pygame.MOUSEMOTION, pos=(x + 30, y - 60), rel=(0, 0), buttons=(1, 0, 0)))
    right, up = w.touch()[1]
    assert 0 < right and np.isclose(up, 2 * right)
    xy = lambda v: (v.x, v.y)
    for name, velocity in {
        LANDER: lambda e: xy(e.lander.linearVelocity), "BipedalWalker-v3": lambda e: xy(e.hull.linearVelocity),
        PENDULUM: lambda e: -e.state[1] * np.array([np.cos(e.state[0]), np.sin(e.state[0])]),  # of its tip
        "MountainCarContinuous-v0": lambda e: (e.state[1], 0),
    }.items():
        env = gym.make(name).unwrapped
        env.reset(seed=0)
        for by in [(1, 0), (0, 1)][: 1 if "Car" in name else 2]:
            before = np.array(velocity(env))
            viewer.push(env, *by)
            assert np.dot(velocity(env) - before, by) > 0, (name, by)


def test_where_the_arrows_go(tmp_path):
    LEFT, RIGHT, UP, DOWN = viewer.ARROWS
    for env, dims, acts in [
        (PENDULUM, None, {(LEFT,): [1], (RIGHT,): [-1], (LEFT, RIGHT): [0], (UP,): None}),
        (LANDER, None, {(UP, LEFT): [1, -1], (RIGHT,): [0, 1], (DOWN,): None}),
        ("MountainCarContinuous-v0", (2, [-1.0], [1.0]), {(LEFT,): [-1], (RIGHT,): [1], (UP,): None}),
        ("BipedalWalker-v3", (24, [-1.0] * 4, [1.0] * 4), {(LEFT, UP): [-1, 1, 0, 0], (RIGHT, DOWN): [1, -1, 0, 0]}),
    ]:
        w = open_window(make_policy(tmp_path / "policy.npz", env, dims=dims))
        for w.held, act in acts.items():
            assert np.array_equal(w.touch()[0], act), (env, act)


def test_speeds(run, still, monkeypatch):
    w = open_window(run)
    for by, steps, words in (-3, 4, "0.125x (0.1x)"), (0, 37, "1x (1.0x)"), (2, 150, "4x (4.0x)"):
        w.change_speed(by)
        w.restart()
        for _ in range(10):
            w.update(1 / 8)
        assert w.player.t == steps and any(line.startswith(words) for line in words_on(w))
    clock = itertools.count()
    monkeypatch.setattr(viewer.time, "perf_counter", lambda: 0.009 * next(clock))
    w.speed = viewer.SPEEDS[-1]
    w.restart()
    w.update(0.2)
    assert 0 < w.player.t < 5  # 0.02 s of steps, then the window answers again


def test_going_on_after_a_step_back_keeps_the_pace(run):
    w = open_window(run)
    finish(w)
    for _ in range(5):
        w.update(0.25)  # its last picture stays
    for _ in range(10):
        w.step_by(-1)
    press(w, pygame.K_SPACE, " ")
    w.update(0.02)
    assert 190 <= w.player.t <= 191


def test_notices_go_by_themselves_and_a_paused_window_rests(run):
    w, drawn, rounds = open_window(run), [], []
    w.paused = True
    press(w, pygame.K_HOME)
    press(w, pygame.K_PAGEUP)
    shown = lambda: "there is no previous snapshot" in words_on(w)
    assert shown()
    w.update(4.9)
    assert shown() and not w.dirty
    w.update(0.2)
    assert w.dirty and not shown()
    update, draw = w.update, w.draw
    w.update = lambda dt: (update(dt), rounds.append(dt), len(rounds) == 12 and w.quit())
    w.draw = lambda: (drawn.append(1), draw())
    w.dirty = True
    pygame.event.clear()
    w.loop()
    assert 1 <= len(drawn) < 4


def test_the_critic_is_drawn_with_what_came(run, monkeypatch):
    w, drawn, real = open_window(run), [], viewer.draw_plot
    monkeypatch.setattr(viewer, "draw_plot", lambda surface, rect, curves, *rest: (drawn.append(curves), real(surface, rect, curves, *rest)))
    for go in w.step, lambda: finish(w):
        go()
        drawn.clear()
        w.draw()
        p = w.player
        assert drawn == [[(p.predicted(), viewer.ORANGE, False), (p.realised() if p.over else [], viewer.BLUE, True)],
                         [(p.rewards, viewer.BLUE, False)]]
    surface = pygame.Surface((300, 100))
    real(surface, surface.get_rect(), [(list(range(100)), viewer.BLUE, True)], 100, 14)
    line = np.argwhere((pygame.surfarray.array3d(surface) == viewer.BLUE).all(2))
    assert line[0, 1] > line[-1, 1] + 50 and 100 < len(set(line[:, 0])) < 200  # it rises, in dashes


def test_what_the_panel_says(tmp_path):
    w = open_window(make_policy(tmp_path / "policy.npz", LANDER))
    for _ in range(9):
        w.step(np.array([0.25, -1.0]))
    assert {f"{value:+.2f}" for value in w.player.trail[-1]} | {"+0.25", "-1.00", "step 9/1000   assisted"} <= set(words_on(w))
    surface = pygame.Surface((300, 60))  # bars from x = 80 to 236, at y = 0 and 20
    viewer.draw_gauges(surface, surface.get_rect(), w.player, np.array([0.5, -0.75]), False, 16)
    seen = pygame.surfarray.array3d(surface)
    for y, color, ends in (1, viewer.LINE, (80, 157)), (21, viewer.LINE, (119, 196)), (8, viewer.ORANGE, (158, 196)), (28, viewer.BLUE, (99, 157)):
        columns = np.flatnonzero((seen[:, y] == color).all(1))
        assert np.allclose((columns.min(), columns.max()), ends, atol=2)


def test_the_policy_map(run):
    w = open_window(run)
    for _ in range(9):
        w.step()
    image, policy = pygame.surfarray.array3d(viewer.policy_image(w.player.policy)), w.player.policy
    for x, y in (10, 5), (48, 30), (80, 60):
        angle, velocity = np.interp(x, (0, 95), viewer.ANGLES), np.interp(y, (0, 63), (8, -8))
        unit = policy.act(np.float32([np.cos(angle), np.sin(angle), velocity]))[0] / 2
        color = viewer.FIELD + np.subtract(viewer.ORANGE if unit > 0 else viewer.BLUE, viewer.FIELD) * abs(unit)
        assert np.abs(image[x, y] - color).max() < 2
    surface = pygame.Surface((200, 120))
    viewer.draw_map(surface, surface.get_rect(), w.player)
    ring = np.argwhere((pygame.surfarray.array3d(surface) == viewer.YELLOW).all(2)).mean(0)
    cos, sin, velocity = w.player.trail[-1]
    assert np.allclose(ring, (np.interp(np.arctan2(sin, cos), viewer.ANGLES, (0, 199)), np.interp(velocity, (-8, 8), (119, 0))), atol=1.5)


def test_the_timeline_shows_the_curve_and_who_flies(run):
    w = open_window(run)
    area = w.panes()["timeline"]
    where = lambda color: np.argwhere((pixels(w)[area.x : area.right, area.y : area.bottom] == color).all(2))
    (x0, y0), (x1, y1) = where(viewer.BLUE)[[0, -1]]
    assert x0 < 20 and x1 > area.w - 20 and y0 > y1 + 40 and "B" in words_on(w)  # from -1000 up to -700
    for step in 2000, 0:
        assert abs(where(viewer.ORANGE)[:, 0].mean() + area.x - viewer.timeline_x(area, w.run, step)) < 2
        press(w, pygame.K_HOME)


def test_timeline(run):
    w = open_window(run)
    timeline = w.panes()["timeline"]
    w.draw()
    for step in 0, 3000, 1000:
        click(w, (viewer.timeline_x(timeline, w.run, step), timeline.centery))
        assert step_shown(w) == step
    click(w, (viewer.timeline_x(timeline, w.run, 0), timeline.centery), release=False)
    post(w, pygame.event.Event(pygame.MOUSEMOTION, pos=timeline.midright, rel=(1, 0), buttons=(1, 0, 0)))
    assert step_shown(w) == 3000 and w.seed == 0
    post(w, pygame.event.Event(pygame.MOUSEBUTTONUP, button=1, pos=timeline.midright))
    post(w, pygame.event.Event(pygame.MOUSEMOTION, pos=timeline.midleft, rel=(1, 0), buttons=(0, 0, 0)))
    assert step_shown(w) == 3000


@pytest.mark.parametrize("env", [PENDULUM, LANDER])
def test_every_size(env, tmp_path, monkeypatch):
    """Nothing is written outside the window, over something else, or too small to read."""
    path, written, text = make_policy(tmp_path / "policy.npz", env), [], viewer.text

    def recorded(surface, rect, string, px, color=viewer.TEXT, align=0.0):
        used = text(surface, rect, string, px, color, align)
        written.append((pygame.Rect(rect.x + align * (rect.w - used), rect.y, used, px * 0.7), string, px))
        return used

    monkeypatch.setattr(viewer, "text", recorded)
    for size in (320, 240), (480, 320), (640, 400), (1000, 640), (1280, 1024), (2560, 1440), (500, 1200):
        w = open_window(path, size=size)
        assert all(w.surface.get_rect().contains(pane) for pane in w.panes().values() if pane.w)
        for act in (lambda: w.step(np.ones_like(w.player.policy.low)), lambda: finish(w), w.pin, lambda: w.toggle("show_help")):
            act()
            w.notice_for = 0
            written.clear()
            assert (pixels(w) != viewer.BACK).any() and len(written) > 4
            for i, (box, string, px) in enumerate(written):
                assert w.surface.get_rect().contains(box) and px >= 11, (size, box, string, px)
                for other, words, _ in written[:i]:
                    assert not (string and words and box.colliderect(other)), (size, string, words)
    assert {w.surface.get_size()} == {(500, 1200)}
    for size in (800, 100), (100, 800), (460, 40):  # too small for anything, but nothing fails
        w = open_window(path, size=size)
        w.notice_for = 0
        w.draw()
        assert w.notice_for == 0, w.notice


def test_live_follow(run):
    w = open_window(run, "--live")
    assert w.follow and step_shown(w) == 3000
    make_policy(run / "last.npz", seed=9, step=3500)
    w.update(1)
    assert "3,500" in w.notice and step_shown(w) == 3000
    finish(w)
    for _ in range(8):
        w.update(0.25)
    assert step_shown(w) == 3500 and w.follow and w.episode == 2
    press(w, pygame.K_PAGEUP)
    assert not w.follow and step_shown(w) == 3000
    press(w, pygame.K_END)
    assert w.follow and step_shown(w) == 3500
    w.noisy = False
    w.results = {(str(run / "last.npz"), step, True): {0: {"return": value}} for step, value in ((3000, -1.0), (3500, -2.0))}
    written = words_on(w)
    assert any("LIVE" in words for words in written)
    assert "last 1: -2.0 ± 0.0" in written  # of the policy that flies, not of the file that held another one before
    assert not open_window(run).follow
    training = ddpg.lock(run)  # one that is under way: a window follows it, a film of it does not
    assert open_window(run).follow and not open_window(run, "--headless").follow
    os.close(training)


def test_waits_for_a_training_that_has_just_begun(tmp_path):
    (tmp_path / "policies").mkdir()
    (tmp_path / "config.json").write_text("{}")
    w = open_window(tmp_path, "--live")
    assert not w.player
    pixels(w)
    press(w, pygame.K_n, "n")
    for leave in (lambda: press(w, pygame.K_q, "q")), (lambda: post(w, pygame.event.Event(pygame.QUIT))):
        leave()
        assert not w.alive
        w.alive = True
    make_policy(tmp_path / "policies" / "000000000000.npz", dims=(5, [-1.0], [1.0]))
    w.attempt(w.update, 1)
    assert "5 observations" in w.notice and not w.player
    make_policy(tmp_path / "policies" / "000000000000.npz")
    w.attempt(w.update, 1)
    assert step_shown(w) == 0 and w.follow
    (tmp_path / "empty").mkdir()
    post(w, pygame.event.Event(pygame.DROPFILE, file=str(tmp_path / "empty")))
    assert "has no policies yet" in w.notice and step_shown(w) == 0
    w.update(0.5)
    pixels(w)


def test_a_file_dropped_on_the_window(run, tmp_path):
    w = open_window(run)
    make_policy(tmp_path / "other.npz", LANDER, step=77)
    post(w, pygame.event.Event(pygame.DROPFILE, file=str(tmp_path / "other.npz")))
    assert step_shown(w) == 77 and w.player.env_id == LANDER
    pixels(w)
    (tmp_path / "junk.npz").write_bytes(b"junk")
    post(w, pygame.event.Event(pygame.DROPFILE, file=str(tmp_path / "junk.npz")))
    assert "cannot be read" in w.notice and step_shown(w) == 77
    post(w, pygame.event.Event(pygame.DROPFILE, file=str(run)))
    assert step_shown(w) == 2000 and w.player.env_id == PENDULUM


def test_what_goes_wrong_is_a_notice(run, monkeypatch):
    w = open_window(run)
    policy = w.player.policy
    (run / "policies" / "000000001000.npz").unlink()
    press(w, pygame.K_PAGEUP)
    assert "cannot be read" in w.notice and w.player.policy is policy
    (run / "policies" / "000000000000.npz").write_bytes((run / "best.npz").read_bytes()[:500])
    press(w, pygame.K_HOME)
    assert "cannot be read" in w.notice and w.player.policy is policy
    make_policy(run / "best.npz", dims=(5, [-1.0], [1.0]))
    press(w, pygame.K_b, "b")
    assert "5 observations" in w.notice and w.player.policy is policy
    w.update(0.2)
    assert w.player.t
    shutil.rmtree(run)
    w.update(1)
    pixels(w)
    finish(w)

    def breaks(self):
        raise RuntimeError("out of fuel")

    monkeypatch.setattr(type(w.player.env.unwrapped), "render", breaks)
    w.restart()
    pixels(w)
    assert "RuntimeError: out of fuel, at step 0" in w.notice
    monkeypatch.undo()
    monkeypatch.setattr(type(w.player.env.unwrapped), "step", lambda self, action: breaks(self))
    w.attempt(w.update, 0.2)
    assert "out of fuel" in w.notice and w.paused
    monkeypatch.undo()
    press(w, pygame.K_r, "r")
    press(w, pygame.K_SPACE, " ")
    w.update(0.2)
    assert w.player.t


def test_leaving_prints_the_summary(run, monkeypatch, capsys):
    returns = []

    def loop(window):
        returns.append(finish(window))
        raise KeyboardInterrupt

    monkeypatch.setattr(viewer.Window, "loop", loop)
    assert viewer.main([str(run), "--noisy"]) == 130
    out, r = capsys.readouterr().out, f"{returns[0]:.1f}"
    assert out.startswith(f"viewer.py: {run}\n") and out.endswith(
        f"1 episodes: return {r} ± 0.0 (min {r}, max {r}), length 200, {run / 'best.npz'} of step 2,000, deterministic: False\n")


def test_leaving_saves_the_film(run, monkeypatch, capsys):
    monkeypatch.setattr(viewer.Window, "loop", lambda window: (window.record_gif(), window.step()))
    assert viewer.main([str(run)]) == 0
    assert f"saved {PENDULUM}-step2000-seed0.gif" in capsys.readouterr().out and Path(f"{PENDULUM}-step2000-seed0.gif").exists()


def test_pillow_missing_is_a_notice(run, monkeypatch):
    w = open_window(run)
    monkeypatch.setitem(sys.modules, "PIL", None)
    press(w, pygame.K_g, "g")
    assert "pip install pillow" in w.notice and not w.film


def test_a_film_of_two_ends_with_the_longer_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    w = open_window(make_policy(tmp_path / "a.npz", LANDER, seed=1))
    w.pin()
    w.show(make_policy(tmp_path / "b.npz", LANDER, step=5, scale=0.0))
    w.record_gif()
    while not w.over:
        w.step()
        assert w.dirty  # what is recorded is shown, too
    lengths = [player.t for player in w.players]
    assert lengths[0] != lengths[1] and len(w.film.frames) == -(-max(lengths) // 2)
    assert w.film.durations == [40] * (len(w.film.frames) - 1) + [1500]
    assert [row["length"] for rows in w.results.values() for row in rows.values()] == sorted(lengths)
    shown = " ".join(words_on(w))
    assert all(f"{p.episode.ret:.1f}   step {p.train_step:,}" in shown for p in w.players) and "pinned" in shown
    w.step_by(-1)
    assert [p.t for p in w.players] == [min(t, max(lengths) - 1) for t in lengths]  # together: only the longer one goes back


def test_closing_an_environment_leaves_the_window_open(run):
    w = open_window(run)
    pixels(w)
    w.restart()
    assert pygame.display.get_init() and pygame.font.get_init()


# ------------------------------------------------------------------------------------- the command line


def run_viewer(*arguments, cwd, timeout=60, **environment):
    return subprocess.run([sys.executable, ROOT / "viewer.py", *map(str, arguments)], cwd=cwd, timeout=timeout,
                          capture_output=True, text=True, env={**os.environ, **environment})


def refused(capsys, *arguments):
    assert viewer.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert 1 <= len(error.splitlines()) <= 3 and error.startswith("viewer.py: ") and "Traceback" not in error
    return error


def test_headless_json(run, capsys):
    assert viewer.main(["--headless", "--episodes", "2", "--seed", "5", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    keys = "policy train_step seed return length terminated truncated deterministic assisted"
    assert len(rows) == 3 and all(list(row) == keys.split() for row in rows[:2])
    assert [row["seed"] for row in rows[:2]] == [5, 6] and rows[0]["truncated"] and rows[0]["train_step"] == 2000
    assert rows[2]["summary"] and np.isclose(rows[2]["mean"], (rows[0]["return"] + rows[1]["return"]) / 2)
    assert viewer.main([str(run), "--tour", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["train_step"] for row in rows if "seed" in row] == [0, 1000, 2000, 3000]
    for flags, steps in (["--tour", "2"], [0, 3000]), (["--live", "--episodes", "1"], [3000]):
        assert viewer.main([str(run), "--json", *flags]) == 0
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [row["train_step"] for row in rows if "seed" in row] == steps
    assert viewer.parse(["--headless"]).episodes == 20


def test_noise_is_decided_by_the_seed(run, capsys):
    def episode(*flags):
        assert viewer.main([str(run), "--headless", "--episodes", "1", "--json", *flags]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[0])

    noisy, plain = episode("--noisy"), episode()
    assert noisy == episode("--noisy") and noisy["return"] != plain["return"]
    assert plain["deterministic"] and not noisy["deterministic"]


def test_printing_never_fails_without_a_window(run, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed := io.BytesIO(), "ascii"))
    assert viewer.main([str(run), "--headless", "--episodes", "2"]) == 0
    sys.stdout.flush()
    assert b"2 episodes: return" in printed.getvalue()
    reader, writer = os.pipe()
    os.close(reader)

    def nobody_reads():
        os.dup2(writer, 1)
        sys.stdout = open(1, "w", closefd=False)
        return viewer.main([str(run), "--headless"])

    assert exit_code(in_a_child(nobody_reads, errors=run / "errors")) == 1 and not (run / "errors").read_text()


def test_ctrl_c_without_a_window_prints_the_summary(run, monkeypatch, capsys):
    step, steps = viewer.Window.step, itertools.count()

    def interrupted(window):
        if next(steps) == 500:
            raise KeyboardInterrupt
        step(window)

    monkeypatch.setattr(viewer.Window, "step", interrupted)
    assert viewer.main([str(run), "--headless"]) == 130 and "2 episodes: return" in capsys.readouterr().out


def test_without_a_target_the_newest_run_opens(run):
    mine = Path("runs/mine")
    mine.mkdir()
    (mine / "config.json").touch()
    for newest, other in (run, mine), (mine, run):
        os.utime(newest, (2, 2))
        os.utime(other, (1, 1))
        assert viewer.find(None).samefile(newest)


def test_png_and_gif(tmp_path, capsys, monkeypatch):
    from PIL import Image

    path = make_policy(tmp_path / "policy.npz", LANDER)
    assert viewer.main([str(path), "--headless", "--episodes", "1", "--json"]) == 0
    headless = capsys.readouterr().out
    assert viewer.main([str(path), "--png", str(tmp_path / "a.png"), "--gif", str(tmp_path / "a.gif"), "--json"]) == 0
    assert capsys.readouterr().out == headless
    assert Image.open(tmp_path / "a.png").size == (1000, 640)
    film = Image.open(tmp_path / "a.gif")
    assert film.size[0] == 640 and abs(film.n_frames - json.loads(headless.splitlines()[0])["length"] / 2) <= 2
    assert film.info["duration"] == 40
    for flag, bad in itertools.product(("--png", "--gif"), (tmp_path / "no" / "a.png", tmp_path, "")):
        assert "cannot save" in refused(capsys, path, flag, bad)
    assert "at least 1" in refused(capsys, path, "--tour", 0)
    assert viewer.main([str(path), "--episodes", "1", "--png", str(tmp_path / "picture"), "--gif", str(tmp_path / "film")]) == 0
    assert Image.open(tmp_path / "picture").format == "PNG" and Image.open(tmp_path / "film").format == "GIF"
    monkeypatch.setattr(viewer.Player, "frame", lambda player: 1 / 0)
    for flag in "--png", "--gif":
        assert "division by zero" in refused(capsys, path, flag, tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_bad_input(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "python ddpg.py --env" in refused(capsys)
    assert "no such file" in refused(capsys, "nothing.npz", "--headless")
    assert "not the folder of a run" in refused(capsys, tmp_path, "--headless")
    assert "--help" in refused(capsys, "--sped", "3")
    (tmp_path / "junk.npz").write_text("junk")
    np.savez(tmp_path / "foreign.npz", a=1)
    good = make_policy(tmp_path / "good.npz")
    (tmp_path / "cut.npz").write_bytes(good.read_bytes()[:2000])
    for name in "junk", "foreign", "cut":
        assert "cannot be read" in refused(capsys, f"{name}.npz", "--headless")
    os.mkfifo("pipe.npz")
    assert exit_code(in_a_child(lambda: viewer.main(["pipe.npz"]))) == 2
    assert viewer.main(["junk.npz"]) == 2
    out, err = capsys.readouterr()
    assert "cannot be read" in err and "episode" not in out
    mismatched = make_policy(tmp_path / "mismatched.npz", dims=(5, [-1.0], [1.0]))
    assert "5 observations" in refused(capsys, mismatched, "--headless")
    gym.register("Foreign-v0", "gymnasium.envs.classic_control.pendulum:PendulumEnv", max_episode_steps=9)
    gym.register("Theirs-v0", lambda render_mode=None: gym.make(PENDULUM, render_mode=render_mode), max_episode_steps=9)
    for env in "Theirs-v0", "os:Theirs-v0", "Missing-v0":
        path = make_policy(tmp_path / "theirs.npz", env, dims=DIMS[PENDULUM])
        assert "--env" in refused(capsys, path, "--headless")
    assert viewer.main([str(path), "--env", "Theirs-v0", "--headless", "--episodes", "1"]) == 0


class Blind(gym.Env):
    """An environment of the user's own that cannot draw, and has numbers for names."""

    observation_space = gym.spaces.Box(-1, 1, (2, 2), np.float32)
    action_space = gym.spaces.Box(-1, 1, (3,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.observation_space.sample() * 0, {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32), 1.0, False, False, {}


class Seeing(Blind):
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def render(self):
        return np.full((40, 60, 3), 99, np.uint8)


def test_an_environment_of_your_own(tmp_path, capsys):
    gym.register("Blind-v0", Blind, max_episode_steps=9)
    gym.register("Seeing-v0", Seeing, max_episode_steps=9)
    path = make_policy(tmp_path / "own.npz", "Blind-v0", dims=(4, [-1.0] * 3, [1.0] * 3))
    assert "--env" in refused(capsys, path, "--png", tmp_path / "a.png")
    assert "no rgb_array" in refused(capsys, path, "--png", tmp_path / "a.png", "--env", "Blind-v0")
    assert viewer.main([str(path), "--headless", "--episodes", "1", "--env", "Blind-v0"]) == 0
    assert "return 9.0" in capsys.readouterr().out
    w = open_window(path, "--env", "Seeing-v0")
    w.update(0.2)
    assert (pixels(w) == 99).all(2).mean() > 0.2
    click(w, w.panes()["scene"].center)
    assert "push" in w.notice and not w.grip
    finish(w)


def test_no_display(run):
    gone = {name: "" for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")}
    result = run_viewer(run, cwd=run, **gone)
    assert result.returncode == 2 and "--headless" in result.stderr and len(result.stderr.splitlines()) <= 3


@pytest.mark.skipif(not (shutil.which("Xvfb") and shutil.which("xdotool")), reason="needs Xvfb and xdotool")
def test_real_window(run):
    """A real window on a virtual screen, keys from outside, the summary on leaving."""
    read, write = os.pipe()
    xvfb = subprocess.Popen(["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x800x24"], pass_fds=[write], stderr=subprocess.DEVNULL)
    os.close(write)
    show = None
    try:
        environment = {**os.environ, "DISPLAY": ":" + os.read(read, 16).decode().strip()}
        environment.pop("SDL_VIDEODRIVER")
        show = subprocess.Popen([sys.executable, ROOT / "viewer.py", run], cwd=run, env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)

        def xdotool(*arguments):
            return subprocess.run(["xdotool", *arguments], env=environment, timeout=20, capture_output=True, text=True).stdout

        deadline = time.time() + 20  # the caption names the policy once it flies
        window = []
        while time.time() < deadline:
            before, window = window, xdotool("search", "--class", "viewer.py").split()
            if window and not before:  # a key before the first picture waits, and then stops the episode
                xdotool("windowfocus", "--sync", window[0])
                xdotool("key", "space")
            if window and "step 2,000" in xdotool("getwindowname", window[0]):
                break
            time.sleep(0.1)
        assert window
        xdotool("key", "--delay", "60", "Home", "s", "g", "period", "period", "g")
        wait_for((run / f"{PENDULUM}-step0-seed0.gif").exists)
        picture = pygame.surfarray.array3d(pygame.image.load(run / f"{PENDULUM}-step0-seed0.png"))
        assert picture.shape[:2] == (1000, 640) and (picture > 240).all(2).mean() > 0.2  # the pendulum's white scene
        xdotool("key", "q")
        out, error = show.communicate(timeout=15)
        assert show.returncode == 0 and not error and str(run) in out and "no episode" in out
    finally:
        for process in filter(None, (show, xvfb)):
            process.kill()
            process.wait(timeout=10)
        os.close(read)


# ------------------------------------------------------------------------------------- learning


def test_pendulum_is_solved():
    run = run_for(Config.preset(seed=3, total_steps=5000))
    assert run.solved and evaluate(run.agent, run.make_eval_env, range(100))[0].mean() >= -160


@pytest.mark.slow
@pytest.mark.parametrize("env, algo, target, seeds", [
    ("Pendulum-v1", "ddpg", -160, 5), ("Pendulum-v1", "td3", -160, 5), ("MountainCarContinuous-v0", "td3", 90, 3),
    ("LunarLanderContinuous-v3", "td3", 200, 1)])
def test_the_best_policy_of_every_seed_reaches_the_target_on_episodes_it_never_saw(tmp_path, env, algo, target, seeds):
    for seed in range(seeds):
        train(Config.preset(env, algo=algo, seed=seed), out=tmp_path / str(seed))
        assert evaluate(load(tmp_path / str(seed)), lambda: gym.make(env), range(100))[0].mean() >= target, seed
