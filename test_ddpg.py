"""Tests of ddpg.py and viewer.py.

    python -m pytest                 the fast ones, less than two minutes on two cores
    python -m pytest -k replay       one chapter, by the beginning of its tests' names
    python -m pytest -m slow         learning on several seeds, minutes

Chapters, in this order; before them, toy environments, small settings and helpers for all:

    test_config_      what can be set, and what is refused
    test_replay_      rows of n steps in a ring
    test_network_     the file's own networks, networks of one's own, matrix products
    test_noise_       exploration
    test_agent_       the update against NumPy, gradients by hand, edited losses, optimizers, copies
    test_train_       the loop, seen from what is stored and learnt
    test_graphs_      what CUDA replays is what the code does
    test_env_         what environments may be, and how their faults are named
    test_evaluate_    evaluations, selection, solved
    test_folder_      what is in a run's folder
    test_resume_      runs that were stopped or killed go on, byte for byte
    test_load_        policy files, also those of strangers
    test_command_     the command line
    test_readme_      the README's changes, each applied to a copy of the file
    test_viewer_      the viewer
    test_learn_       learning, most of it slow
"""

import copy
import dataclasses
import io
import itertools
import json
import os
import pickle
import random
import re
import runpy
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path

os.environ["SDL_VIDEODRIVER"] = "dummy"  # no window, but where a test asks for one

import gymnasium as gym
import numpy as np
import pygame
import pytest
import torch
from gymnasium.envs.classic_control import PendulumEnv
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import ddpg
import viewer
from ddpg import (
    PRESETS,
    Agent,
    Config,
    EnvError,
    ReplayBuffer,
    Training,
    UsageError,
    evaluate,
    load,
    train,
)

try:  # Windows has none of them
    import fcntl
    import pty
    import resource
    import termios
except ImportError:
    fcntl = pty = resource = termios = None
needs_unix = pytest.mark.skipif(os.name != "posix", reason="it needs fork, locks or terminals")

ROOT = Path(__file__).resolve().parent

# ---- toy environments, small settings, helpers ----

NETWORKS = "actor", "critic", "actor_target", "critic_target"
SMALL = dict(hidden=(16, 16), batch_size=16, learning_starts=50, eval_every=0)
SMALL |= dict(n_step=1, noise_theta=1.0, actor_lr=3e-4, critic_lr=3e-4)


def small(**changes):
    return Config(**SMALL | changes)


ddpg.tune(small())  # one thread, as two wait for each other on a busy machine


def clock(t):
    return [1.0, 0.1 * t]


class Toy(gym.Env):
    """Counts its steps in the observation, records what it is given, and ends as told.

    length: of an episode, or a function of its seed. From its step `at` on, of all episodes, it is
    broken: {"first" observation, "next_obs", "reward", all of "reset" or "step": function of it}
    """

    def __init__(self, length=10, terminates=0, low=(-1,), high=(1,), obs=clock, at=0, **broken):
        self.length, self.terminates, self.obs = length, terminates, obs
        self.at, self.broken = at, broken
        self.received, self.seeds, self.count, self.closed = [], [], 0, 0
        self.action_space = gym.spaces.Box(np.float32(low), np.float32(high))
        self.array = np.zeros(np.shape(obs(0)), np.float32)  # one for all, as some do
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, self.array.shape)

    def __len__(self):  # so it counts as False, as some do
        return 0

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.t, self.end = 0, self.length(seed) if callable(self.length) else self.length
        return self.returned("reset", (self.returned("first", self.observe()), {}))

    def observe(self):
        self.array[:] = self.obs(self.t)
        return self.array

    def step(self, action):
        assert self.action_space.contains(action), action
        self.received.append(action.copy())
        self.t += 1
        self.count += 1
        obs, reward = self.returned("next_obs", self.observe()), self.returned("reward", 1.0)
        over = self.t == self.end
        ends = bool(over and self.terminates), over and not self.terminates
        return self.returned("step", (obs, reward, *ends, {}))

    def returned(self, what, value):
        broken = self.count >= self.at and self.broken.get(what)
        return broken(value) if broken else value

    def close(self):
        self.closed += 1


class Toys:
    """A function that makes Toys of these arguments, and keeps them to be looked at."""

    def __init__(self, *args, **kwargs):
        self.args, self.kwargs, self.made, self.most_open = args, kwargs, [], 0

    def __call__(self):
        self.made.append(Toy(*self.args, **self.kwargs))
        self.most_open = max(self.most_open, len(self.open()))
        return self.made[-1]

    def open(self):
        return [toy for toy in self.made if not toy.closed]

    def seeds(self):
        return [seed for toy in self.made for seed in toy.seeds]


@pytest.fixture(autouse=True)
def nothing_is_left_behind():
    """By ddpg.main or by tests, in this process."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    path, registry = list(sys.path), dict(gym.registry)
    saving, threads = (ddpg.SAVE_EVERY, ddpg.SAVE_SHARE), torch.get_num_threads()
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    sys.path[:], (ddpg.SAVE_EVERY, ddpg.SAVE_SHARE) = path, saving
    gym.registry.clear()
    gym.registry.update(registry)
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.set_flush_denormal(True)  # as tune did, and what it was cannot be asked


def run_for(config, env=None, **kw):
    run = Training(config, env, **kw)
    for _ in run:
        pass
    return run


def in_a_child(work, output=os.devnull, errors=None, timeout=120):
    """Run `work()` in a forked process -> its id; it exits with what that returns, 1 if it raises.

    No child outlives a test that failed for longer than `timeout`.
    """
    pid = os.fork()
    if pid:
        return pid
    code = 1
    signal.alarm(timeout)
    try:
        for stream, path in (1, output), (2, errors or output):
            os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND), stream)
        sys.stdout, sys.stderr = (open(stream, "w", closefd=False) for stream in (1, 2))
        code = work() or 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            for stream in sys.stdout, sys.stderr:
                if stream:
                    stream.flush()
        except OSError:
            code = 120  # as Python has it
        finally:
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


ALONE = {"PYTHONPATH": "", "PYTHONWARNINGS": "error::SyntaxWarning"}


def python(*arguments, cwd=None, **more):
    """Run a fresh interpreter, which takes seconds to import torch."""
    more = dict(env=os.environ | ALONE, stdout=-1, stderr=-1) | more
    line = [sys.executable, *map(str, arguments)]
    return subprocess.run(line, cwd=cwd, timeout=60, text=True, **more)


PRELOADED = """
import gc, json, os, signal, sys
import gymnasium, torch
gc.freeze()  # as the end of an interpreter takes half a second otherwise
for request in sys.stdin:
    child = os.fork()
    if not child:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
else:
    sys.exit()
sys.argv, folder, *files = json.loads(request)
signal.alarm(60)
os.chdir(folder)
for fd, file in zip((0, 1, 2), (os.devnull, *files)):
    os.dup2(os.open(file, os.O_RDWR if fd else os.O_RDONLY), fd)
__file__, sys.path[0] = os.path.abspath(sys.argv[0]), os.path.dirname(os.path.abspath(sys.argv[0]))
with open(__file__) as file:
    source = file.read()
exec(compile(source, __file__, "exec"), globals())
"""


@pytest.fixture(scope="module")
def interpreter():
    """Like python(file, ..), in forks of an interpreter that has imported torch and nothing else
    of note: each runs its file as __main__ and ends as an interpreter ends."""
    if os.name != "posix":
        yield python
        return
    more = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | ALONE)
    with subprocess.Popen([sys.executable, "-c", PRELOADED], **more) as server:

        def run(*arguments, cwd, **streams):
            with tempfile.TemporaryDirectory() as folder:
                paths = {name: Path(folder, name) for name in ("stdout", "stderr")}
                for path in paths.values():
                    path.touch()
                files = [str(streams.get(name) or path) for name, path in paths.items()]
                line = json.dumps([[*map(str, arguments)], str(cwd), *files])
                print(line, file=server.stdin, flush=True)
                code = int(server.stdout.readline())
                texts = (path.read_text() for path in paths.values())
                return subprocess.CompletedProcess(arguments, code, *texts)

        yield run
        server.stdin.close()


def command(*arguments, cwd=None, timeout=60):
    """Run ddpg.py as a user would: in a fork of this process, which has torch already.

    Windows, which cannot fork, takes a fresh interpreter.
    """
    arguments = list(map(str, arguments))
    if os.name != "posix":
        return python(ROOT / "ddpg.py", *arguments, cwd=cwd)

    def work():
        os.chdir(cwd or os.getcwd())
        return ddpg.main(arguments)

    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        code = exit_code(in_a_child(work, out, err), timeout)
        return subprocess.CompletedProcess(arguments, code, out.read_text(), err.read_text())


def readme(containing):
    """The Python block of the README with this text in it."""
    blocks = (ROOT / "README.md").read_text(encoding="utf-8").split("```python\n")[1:]
    return next(block for block in blocks if containing in block).split("```")[0]


def an_agent(obs_dim=3, low=(-1,), high=(1,), kind=Agent, by_hand=True, **changes):
    """A small agent; not by_hand: one that learns by autograd."""
    agent = kind(obs_dim, low, high, small(**changes))
    if not by_hand:
        agent.by_hand = {}
    return agent


def random_batch(agent, size=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    obs_dim, act_dim = agent.obs_dim, len(agent.low)

    def draw(columns):
        return torch.randn(size, columns, generator=generator)

    obs, act = draw(obs_dim), draw(act_dim).clamp(-1, 1)
    R, next_obs = draw(1), draw(obs_dim)
    return obs, act, R, next_obs, torch.rand(size, 1, generator=generator).round() * 0.9


def learn(agent, updates, size=32, first=0):
    for step in range(updates):
        agent.update(random_batch(agent, size, seed=first + step))


def stir(agent):
    """Four networks as if long trained: fresh ones are almost 0, and so are their gradients."""
    generator = torch.Generator().manual_seed(0)
    for flat in agent.flat.values():
        flat.data.copy_(0.3 * torch.randn(flat.data.shape, generator=generator))
    return agent


def numbers(agent, *names):
    """What the four networks consist of, or those named: a copy."""
    states = {name: getattr(agent, name).state_dict() for name in names or NETWORKS}
    return {f"{n}.{key}": t.clone() for n, state in states.items() for key, t in state.items()}


def unlike(a, b):
    """The names of tensors that differ, if only in a bit."""
    assert a.keys() == b.keys() and a
    return [name for name in a if not torch.equal(a[name], b[name])]


def stored(run, rows):
    """obs, act, R, next_obs, discount of the first rows."""
    return run.buffer.rows[:rows].split(run.buffer.columns, dim=1)


SWITCHES = "n_critics", "policy_delay", "target_noise", "layer_norm"
EVERY_SWITCH = pytest.mark.parametrize(
    "changes",
    [
        dict(zip(SWITCHES, on))
        for on in itertools.product((1, 2), (1, 2), (0.0, 0.2), (False, True))
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
BOTH_PATHS = pytest.mark.parametrize("by_hand", [True, False], ids=["by hand", "by autograd"])

# ---- configuration ----


@pytest.mark.parametrize("config, algo, switches", [
    (Config(), "td3", (2, 2, 0.2)),
    (Config(algo="ddpg"), "ddpg", (1, 1, 0)),
    (Config(algo="ddpg", n_critics=2), "ddpg", (2, 1, 0)),
    (Config(n_critics=1), "td3", (1, 2, 0.2)),
    (Config(n_critics=1, policy_delay=1, target_noise=0), "ddpg", (1, 1, 0)),
    (Config().replace(algo="ddpg"), "ddpg", (1, 1, 0)),
    (Config(algo="ddpg").replace(algo="td3"), "td3", (2, 2, 0.2)),
    (Config().replace(algo="ddpg", policy_delay=2), "ddpg", (1, 2, 0)),
    (Config(policy_delay=3).replace(seed=1), "td3", (2, 3, 0.2)),
    (Config.preset("Pendulum-v1"), "ddpg", (1, 1, 0)),
    (Config.preset("Pendulum-v1", algo="td3"), "td3", (2, 2, 0.2)),
    (Config.preset("Pendulum-v1", algo="ddpg", n_critics=2), "ddpg", (2, 1, 0)),
])  # fmt: skip
def test_config_algo_is_only_a_name_for_three_switches(config, algo, switches):
    found = config.n_critics, config.policy_delay, config.target_noise
    assert (config.algo, found) == (algo, switches)


def test_config_refuses_an_algo_with_the_switches_of_the_other():
    with pytest.raises(UsageError, match="algo"):
        dataclasses.replace(Config(), algo="ddpg")  # which keeps the switches of td3
    for algo, other in ("ddpg", "td3"), ("td3", "ddpg"):
        with pytest.raises(UsageError, match="algo"):
            Config(algo=algo, **ddpg.ALGOS[other])


def test_config_presets_give_way_to_what_is_explicit():
    assert Config.preset("Pendulum-v1", tau=0.5).tau == 0.5 != ddpg.PRESETS["Pendulum-v1"]["tau"]
    assert Config.preset("Unknown-v0") == Config(env="Unknown-v0")
    for env in ddpg.PRESETS:
        Config.preset(env)


@pytest.mark.parametrize("bad", [
    dict(gamma=1.1), dict(actor_lr=float("nan")), dict(critic_lr=0), dict(batch_size=0),
    dict(hidden=(64, 0)), dict(algo="ppo"), dict(tau=-0.1), dict(total_steps=0), dict(n_step=0),
    dict(noise_sigma=float("inf")), dict(learning_starts=2, n_step=3), dict(batch_size=1.5),
    dict(batch_size=None), dict(tau=None), dict(hidden=None), dict(env=None), dict(seed=-1),
    dict(hidden=("64",)), dict(reward_scale=0), dict(buffer_size="many"),
], ids=str)  # fmt: skip
def test_config_refuses_impossible_values_by_name(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        Config(**bad)


def test_config_takes_numbers_of_numpy():
    mixed = Config(seed=np.int64(3), gamma=np.float64(0.9), hidden=[np.int64(8), np.int32(9)])
    assert mixed == Config(seed=3, gamma=0.9, hidden=(8, 9))
    assert json.loads(json.dumps(dataclasses.asdict(mixed)))["hidden"] == [8, 9]


def test_config_can_be_a_key():
    a, b = (Config(env_kwargs={"a": value}, hidden=[8]) for value in (1, 1))
    assert hash(a) == hash(b) and len({a, b, Config(env_kwargs={"a": 2}, hidden=[8])}) == 2


def deep(levels):
    return {"a": deep(levels - 1)} if levels else {}


def of_itself():
    kwargs = {}
    kwargs["a"] = kwargs
    return kwargs


BAD_KWARGS = {
    "a number as key": {1: 2},
    "True as key": {True: 1},
    "a number as key within": {"a": {"b": [{2: 3}]}},
    "a tuple": {"a": (1, 2)},
    "a tuple within": {"a": [{"b": (1,)}]},
    "a set": {"a": {1}},
    "a function": {"a": print},
    "an object": {"a": object()},
    "a module": {"a": json},
    "bytes": {"a": b"x"},
    "nan": {"a": float("nan")},
    "nan within": {"a": [{"b": float("nan")}]},
    "an array": {"a": np.zeros(2)},
    "arrays within": {"a": [np.zeros(0), np.float32(1)]},
    "too long a number": {"a": 10**5000},
    "900 levels": deep(900),
    "itself": of_itself(),
    "a list": [1],
    "a text": "a",
}


@pytest.mark.parametrize("kwargs", BAD_KWARGS.values(), ids=BAD_KWARGS)
def test_config_refuses_env_kwargs_that_a_file_would_change(kwargs):
    with pytest.raises(UsageError, match="env_kwargs"):
        Config(env_kwargs=kwargs)


def test_config_takes_env_kwargs_as_they_are_at_first():
    kwargs = {"a": [1, -0.5, None, True, {"b": {"c": []}}], "d": "é\n", "e": {}}
    config, before = Config(env_kwargs=kwargs), copy.deepcopy(kwargs)
    assert config.env_kwargs == kwargs
    kwargs["a"][4]["b"]["c"].append(2)
    kwargs["d"] = 3
    assert config.env_kwargs == config.replace(seed=1).env_kwargs == before


# ---- replay ----


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_replay_rows_of_n_steps_equal_brute_force_in_a_wrapped_ring(n):
    rng, gamma = np.random.default_rng(n), 0.9
    buffer = ReplayBuffer(64, 1, 1, n, gamma)
    steps, expected = [], []
    for i in range(1000):
        end = rng.choice(["", "", "", "terminated", "truncated"])
        steps.append((i, rng.normal(), end))
        obs, next_obs = np.float32([i]), np.float32([i + 0.5])
        buffer.add(obs, -obs, steps[-1][1], next_obs, end == "terminated", end == "truncated")
    for i in range(1000):
        window = []
        for j, reward, end in steps[i : i + n]:  # noqa: B007
            window.append(reward)
            if end:
                break
        if len(window) < n and not end:
            break  # still pending
        discount = 0 if end == "terminated" else gamma ** len(window)
        R = sum(gamma**k * reward for k, reward in enumerate(window))
        expected.append([i, -i, R, j + 0.5, discount])
    assert buffer.written == len(expected) > 64
    rows = np.roll(buffer.rows.numpy(), -(buffer.written % 64), axis=0)
    np.testing.assert_allclose(rows, np.float32(expected[-64:]), rtol=1e-5)


def test_replay_rows_hold_what_they_must_and_nothing_else():
    buffer = ReplayBuffer(10, 3, 2)
    assert buffer.rows.shape == (10, 3 + 2 + 1 + 3 + 1) and buffer.rows.dtype == torch.float32
    for i in range(25):
        buffer.add(np.full(3, i), np.zeros(2), i, np.full(3, i + 1), False, False)
    assert len(buffer) == 10
    obs, act, R, next_obs, discount = buffer.sample(1000, torch.Generator().manual_seed(0))
    assert [x.shape[1] for x in (obs, act, R, next_obs, discount)] == [3, 2, 1, 3, 1]
    assert R.unique().tolist() == list(range(15, 25)) and torch.equal(next_obs, obs + 1)


def test_replay_keeps_copies():
    buffer, obs = ReplayBuffer(10, 1, 1, n_step=2), np.zeros(1, np.float32)
    for t in range(3):
        obs[0] = t
        buffer.add(obs, obs, 1.0, obs + 1, False, t == 2)
    assert buffer.rows[:3, 0].tolist() == [0, 1, 2] == buffer.rows[:3, 1].tolist()


# ---- scales ----


def buffer_of(obs, rew=0.0, n_step=1):
    """A buffer of steps that had these observations (N, obs) and rewards."""
    obs = np.float32(obs)
    buffer = ReplayBuffer(len(obs) + 10, obs.shape[1], 1, n_step, gamma=1.0)
    for i, x in enumerate(obs):
        buffer.add(x, [0.0], np.broadcast_to(rew, len(obs))[i], x + 1, False, i == len(obs) - 1)
    return buffer


def test_scales_bring_observations_into_a_range():
    waves = np.sin(np.arange(1000) * 0.37)[:, None]  # an sd of 0.707
    raw = np.zeros((1000, 6)) + [0, 500, 0, 7, 300, 0]
    raw += np.float32([1, 1e3, 1e-3, 1e-2, 0, 1e-7]) * waves
    agent, buffer = an_agent(6), buffer_of(raw)
    ddpg.find_scales(agent, buffer)
    seen = buffer.rows[:1000, :6]
    assert torch.allclose(agent.obs_mean, torch.tensor(raw.mean(0)).float(), atol=1e-3)
    assert torch.allclose(seen.mean(0), torch.zeros(6), atol=1e-3)
    assert seen.std(0)[:5].tolist() == pytest.approx([0.707, 2, 0.2, 0.2, 0], rel=0.01)
    moved = agent.normalize(raw[0] + [0, 0, 0, 0, 300, 1e-3])
    assert moved[4] == pytest.approx(2, rel=0.01)  # what had not moved: by its size
    assert moved[5] == pytest.approx(1e-3, rel=0.01)  # noise is not blown up
    assert torch.equal(agent.normalize(np.float32(raw)), seen)  # acting sees the replay's numbers


@pytest.mark.parametrize("rew, scale", [
    (0.0, 1), (1.0, 1), (-5.0, 1), (-5_000.0, 0.002), (1e-3, 30), (1e-9, 1),
    ([0.0] * 999 + [1.0], 1), ([0.0] * 999 + [1e4], 0.0316),
])  # fmt: skip
@pytest.mark.parametrize("n_step", [1, 3])
def test_scales_of_rewards_leave_usual_and_sparse_ones_alone(rew, scale, n_step):
    agent, buffer = an_agent(1), buffer_of(np.zeros((1000, 1)), rew, n_step)
    R = buffer.rows[:1000, 2].clone()
    ddpg.find_scales(agent, buffer)
    assert agent.reward_scale.item() == pytest.approx(scale, rel=0.02 if np.ndim(rew) == 0 else 1)
    assert torch.allclose(buffer.rows[:1000, 2], R * agent.reward_scale)


def test_scales_are_not_guessed_from_few_steps_nor_where_they_are_given():
    raw = 1e4 * np.arange(300.0)[:, None]
    for steps, changes in (99, {}), (300, dict(normalize=False, reward_scale=0.5)):
        agent = an_agent(1, **changes)
        ddpg.find_scales(agent, buffer_of(raw[:steps], rew=1e6))
        assert agent.obs_mean == 0 and agent.obs_scale == 1
        assert agent.reward_scale == changes.get("reward_scale", 1)


@pytest.mark.parametrize("n_step", [1, 3])
def test_scales_are_of_all_rows_also_of_steps_that_were_pending(n_step):
    rng = np.random.default_rng(0)
    steps = [(rng.normal(50, 9, 2), rng.normal(3, 99), i % 23 == 22) for i in range(300)]
    plain, scaled = (ReplayBuffer(400, 2, 1, n_step) for _ in range(2))
    agent = an_agent(2)
    for i, (obs, rew, over) in enumerate(steps):
        for buffer in plain, scaled:
            buffer.add(obs, obs[:1] / 99, rew, obs + 1, False, over)
        if i == 150:
            ddpg.find_scales(agent, scaled)
    obs, act, R, next_obs, discount = plain.rows[: len(plain)].split(plain.columns, dim=1)
    R = R * agent.reward_scale
    wanted = torch.cat([agent.normalize(obs), act, R, agent.normalize(next_obs), discount], dim=1)
    assert agent.obs_mean.min() > 40 and agent.reward_scale < 0.2
    assert torch.allclose(scaled.rows[: len(plain)], wanted, rtol=1e-4, atol=1e-5)
    rows = scaled.rows.clone()
    ddpg.rescale(scaled, agent)  # again: nothing changes
    assert torch.allclose(scaled.rows[: len(plain)], rows[: len(plain)], rtol=1e-4, atol=1e-5)


def far(t):
    return [5_000.0 + 300 * t, 0.001 * t]


SCALED_RUN = small(total_steps=195, learning_starts=120, eval_every=60, eval_episodes=1)


def test_scales_are_fixed_once_and_part_of_state_and_policy(tmp_path):
    def env():
        return Toy(obs=far, reward=lambda _: 1e4)

    ddpg.SAVE_EVERY = 0.0
    train(SCALED_RUN, env, out=tmp_path / "whole")
    policies = [load(tmp_path / "whole" / name) for name in ("best.npz", "last.npz")]
    seen = policies[1].normalize([far(t) for t in range(11)])
    assert seen.std() < 10 and policies[1].reward_scale == pytest.approx(1e-3, rel=0.1)
    first = load(snapshot(tmp_path / "whole", 0))
    assert first.obs_mean.abs().max() == 0 and first.reward_scale == 1
    for stop in 60, 150:  # before and after they are found
        folder = tmp_path / f"stopped{stop}"
        run = Training(SCALED_RUN, env)
        run.buffer.rows.zero_()
        for _ in ddpg.record(run, ddpg.new_folder(folder)):
            run.stop = run.step >= stop
        run = ddpg.resume(folder, env)
        assert (run.agent.reward_scale < 1) == (stop > 120)
        for _ in ddpg.record(run, folder):
            pass
        assert same_run(tmp_path / "whole", folder) and same_state(tmp_path / "whole", folder)


def test_scales_of_a_file_of_format_1_are_its_configs(tmp_path):
    arrays, meta = ddpg.read_npz(policy_file(tmp_path / "new.npz", reward_scale=0.25))
    arrays = {name: arrays[name] for name in arrays.files if "." in name}
    meta = meta | {"format": 1}
    del meta["config"]["normalize"]
    meta["config"]["obs_scale"] = [1.0, 2.0, 3.0]  # in its weights
    ddpg.write_npz(tmp_path / "old.npz", arrays, **meta)
    new, old = load(tmp_path / "new.npz"), load(tmp_path / "old.npz")
    assert old.reward_scale == 0.25 and np.array_equal(old.act(np.ones(3)), new.act(np.ones(3)))


def test_scales_need_a_buffer_that_applies_them(capsys):
    class Mine(ReplayBuffer):
        def add(self, *step):
            self.rows[0] = 1e6  # not scaled
            self.written = 200

    agent, buffer = an_agent(1), Mine(200, 1, 1)
    buffer.add()
    for other in buffer, []:
        ddpg.find_scales(agent, other)
        assert "an `add` of its own" in capsys.readouterr().err
    assert agent.obs_scale == 1 and agent.reward_scale == 1


# ---- networks ----


class Own(nn.Module):
    """A network of torch's own layers."""

    def __init__(self, inputs, outputs, middle, end):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(inputs, 16), middle(), nn.Linear(16, outputs))
        self.end = end

    def forward(self, *inputs):
        return self.end(self.body(torch.cat(inputs, dim=-1)))


def one_q(x):
    return x[None]


def own(kind, middle):
    """A maker of an Actor, or of a Critic of one value."""
    if kind == "Actor":
        return lambda obs_dim, act_dim, config: Own(obs_dim, act_dim, middle, torch.tanh)
    return lambda obs_dim, act_dim, config: Own(obs_dim + act_dim, 1, middle, one_q)


@pytest.fixture(params=["", "own networks"])
def networks(request, monkeypatch):
    """A test with this argument runs with the networks of the file, and with other ones."""
    for kind in ("Actor", "Critic") if request.param else ():
        monkeypatch.setattr(ddpg, kind, own(kind, nn.SiLU))


def edited(kind, forward=None, init=None):
    """Actor or Critic as one who edits the file would have it: forward(network, old, *inputs)."""

    class Edited(kind):
        def __init__(self, *args):
            super().__init__(*args)
            if init:
                init(self)

        def forward(self, *inputs):
            old = super().forward
            return forward(self, old, *inputs) if forward else old(*inputs)

    return Edited


class OwnMLP(ddpg.MLP):
    """With something else than ReLU between its layers."""

    def forward(self, x):
        x = x.expand(self.n, *x.shape)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases)):
            x = torch.baddbmm(bias, self.between(x) if i else x, weight)
        return x


def add_one(network):
    network.extra = nn.Parameter(torch.zeros(1))


def add_branches(network):
    network.of_obs, network.of_act = nn.Linear(3, 1), nn.Linear(1, 1)


def freeze_first(network):
    network.net.weights[0].requires_grad_(False)


def in_double(network, old, *inputs):
    return old(*(x.double() for x in inputs)).float()


def frozen(kind):
    return edited(kind, init=freeze_first)


def in_float64(kind):
    return edited(kind, in_double, nn.Module.double)


def mlp(between):
    return type("MLP", (OwnMLP,), {"between": between})


MIDDLES = {
    "linear": nn.SiLU,
    "dropout": partial(nn.Dropout, 0.5),
    "batch norm": partial(nn.BatchNorm1d, 16),
    "lazy": partial(nn.LazyLinear, 16),
}
OWN_NETWORKS = {
    (kind, name): own(kind, middle)
    for kind in ("Actor", "Critic")
    for name, middle in MIDDLES.items()
} | {
    ("Actor", "frozen"): frozen(ddpg.Actor),
    ("Critic", "frozen"): frozen(ddpg.Critic),
    ("Actor", "double"): in_float64(ddpg.Actor),
    ("Critic", "double"): in_float64(ddpg.Critic),
    ("Actor", "sigmoid"): edited(ddpg.Actor, lambda self, old, obs: self.net(obs)[0].sigmoid()),
    ("Critic", "exp"): edited(ddpg.Critic, lambda self, q, *x: q(*x).exp()),
    ("Critic", "swapped"): edited(
        ddpg.Critic, lambda self, q, *x: self.net(torch.cat(x[::-1], -1))
    ),
    ("Critic", "branches"): edited(
        ddpg.Critic,
        lambda self, q, *x: q(*x) + self.of_obs(x[0]) * self.of_act(x[1]),
        add_branches,
    ),
    ("Critic", "extra"): edited(ddpg.Critic, lambda self, q, *x: q(*x) + self.extra, add_one),
    # it changes no value and no other gradient, only its own is not 0
    ("Critic", "unseen"): edited(
        ddpg.Critic,
        lambda self, q, *x: q(*x) + (self.extra - self.extra.detach()),
        add_one,
    ),
    ("MLP", "tanh"): mlp(lambda self, x: x.tanh()),
    ("MLP", "dropout"): mlp(lambda self, x: F.dropout(x.relu(), 0.2, self.training)),
}


def moves_as_autograd_says(agent, size=1024):
    """An update equals that of PyTorch's tutorials on a copy: to the bit, but for what is by hand.

    With SGD, as its steps are the gradients. For agents without target noise.
    """
    batch = obs, act, R, next_obs, discount = random_batch(agent, size)
    R[::2] *= 1000  # errors of all sizes
    agent.update(batch)  # which finds out what is by hand
    for name in "actor", "critic":
        optimizer = torch.optim.SGD(getattr(agent, name).parameters(), lr=1e-3)
        setattr(agent, f"{name}_optimizer", optimizer)
    twin, before = copy.deepcopy(agent), numbers(agent)
    torch.manual_seed(0)  # for dropout
    agent.update(batch)
    torch.manual_seed(0)
    with torch.no_grad():
        q = twin.critic_target(next_obs, twin.actor_target(next_obs))
        target_q = R + discount * q.amin(dim=0)
    for name, *inputs in ("critic", obs, act, target_q), ("actor", obs, act):
        optimizer, loss = getattr(twin, f"{name}_optimizer"), getattr(twin, f"{name}_loss")
        optimizer.zero_grad()
        loss(*inputs).backward()
        optimizer.step()
    after, theirs = numbers(agent), numbers(twin, "actor", "critic")
    for name in theirs:
        moved, error = ((after[name] - x[name]).double() for x in (before, theirs))
        exact = all(loss_is_by_autograd(agent, loss) for loss in ("critic", name.split(".")[0]))
        assert not error.any() if exact else error.norm() < 1e-3 * moved.norm() + 1e-7, name
    return len(unlike(before, after)) > 4


def loss_is_by_autograd(agent, name):
    return getattr(getattr(agent, f"{name}_loss"), "__func__", None) not in agent.by_hand


@pytest.mark.parametrize("kind, name", OWN_NETWORKS)
def test_network_of_ones_own_learns_by_autograd(kind, name, monkeypatch, capsys):
    monkeypatch.setattr(ddpg, kind, OWN_NETWORKS[kind, name])
    agent = stir(an_agent(algo="ddpg"))
    before = numbers(agent)
    learn(agent, 5)
    lines = capsys.readouterr().err
    for loss in "critic", "actor":
        assert (f"{loss}_loss by autograd" in lines) == loss_is_by_autograd(agent, loss)
    assert lines or name == "frozen"  # for which those by hand are right
    moved = unlike(before, numbers(agent))
    for whose in "actor", "critic":
        for key, parameter in getattr(agent, whose).named_parameters():
            assert (f"{whose}.{key}" in moved) == parameter.requires_grad, key
    assert moves_as_autograd_says(agent)
    act = agent.act(np.ones((4, 3)))
    assert np.isfinite(act).all() and np.array_equal(act, agent.act(np.ones((4, 3))))


def test_network_with_statistics_gives_them_to_its_target(monkeypatch):
    for kind in "Actor", "Critic":
        monkeypatch.setattr(ddpg, kind, OWN_NETWORKS[kind, "batch norm"])
    agent = an_agent(algo="ddpg")
    before = numbers(agent)
    learn(agent, 5)
    after = numbers(agent)
    for name in "actor", "critic":
        for key in "body.1.running_mean", "body.1.running_var":
            assert not torch.equal(before[f"{name}.{key}"], after[f"{name}.{key}"])
            assert torch.equal(after[f"{name}_target.{key}"], after[f"{name}.{key}"])
    agent.act(np.ones((4, 3)))
    assert not unlike(after, numbers(agent))  # acting is no statistics


def test_network_begins_as_the_seed_says(networks):
    agents = []
    for of_torch, seed in (1, 0), (2, 0), (3, 1):
        torch.manual_seed(of_torch)
        agents.append(numbers(an_agent(n_critics=1, seed=seed)))
    assert not unlike(agents[0], agents[1]) and unlike(agents[0], agents[2])


class Of(nn.Module):
    """A network that returns any function of its input."""

    def __init__(self, function):
        super().__init__()
        self.function, self.weight = function, nn.Parameter(torch.ones(1))

    def forward(self, *inputs):
        return self.function(*inputs) * self.weight


def add_double(network):
    network.extra = nn.Parameter(torch.zeros(1).double())


@pytest.mark.parametrize("name, network, error, words", [
    ("Critic", Of(lambda obs, act: obs[:, :1]), ValueError, "batch of 8"),
    ("Critic", Of(lambda obs, act: obs[:, None, :1]), ValueError, "batch of 8"),
    ("Actor", Of(lambda obs: obs[0, :1]), ValueError, "batch of 8"),
    ("Actor", Of(lambda obs: obs[:, :1]), ValueError, r"actions beyond \[-1, 1\]"),
    ("Critic", edited(ddpg.Critic, init=add_double), ValueError, "one dtype"),
    ("Actor", edited(ddpg.Actor, init=nn.Module.double), RuntimeError, "dtype"),
])  # fmt: skip
def test_network_that_cannot_serve_is_refused(name, network, error, words, monkeypatch):
    make = (lambda *args: network) if isinstance(network, Of) else network
    monkeypatch.setattr(ddpg, name, make)
    with pytest.raises(error, match=words):
        an_agent()


def test_network_layers_and_their_flat_vector_are_the_same_memory():
    agent = an_agent()
    assert list(agent.flat) == list(NETWORKS)
    for name, flat in agent.flat.items():
        parameters = list(getattr(agent, name).parameters())
        assert flat.data.numel() == sum(p.numel() for p in parameters)
        flat.data.fill_(0.5)
        assert all((p == 0.5).all() for p in parameters)
    agent.flat["actor"].data.zero_()
    assert (agent.flat["actor_target"].data == 0.5).all()  # the target has memory of its own


@pytest.mark.parametrize("changes", [
    dict(hidden=(1024, 1024), seed=20),
    dict(hidden=(1024, 1024), layer_norm=False),
    dict(hidden=()),
    dict(hidden=(1,)),
    dict(hidden=(32,) * 6, n_critics=5),
])  # fmt: skip
def test_network_of_any_size_passes_the_check_of_its_gradients_by_hand(changes, capsys):
    agent = an_agent(8, **changes)
    learn(agent, 1)
    assert len(agent.by_hand) == 2 and capsys.readouterr().err == ""


@pytest.mark.parametrize("text, faster", [
    ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\nmodel\t\t: 2\n", True),
    ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\n", False),
    ("vendor_id\t: GenuineIntel\ncpu family\t: 6\nmodel\t\t: 143\n", False),
    ("vendor_id\t: GenuineIntel\ncpu family\t: 26\n", False),
    ("AMD64 Family 26 Model 68 Stepping 0, AuthenticAMD", True),  # Windows
    ("AMD64 Family 25 Model 33 Stepping 2, AuthenticAMD", False),
    ("Intel64 Family 6 Model 183 Stepping 1, GenuineIntel", False),
    ("processor\t: 0\nCPU implementer\t: 0x41\n", False),  # ARM
    ("arm", False),  # macOS
    ("", False),
])  # fmt: skip
def test_network_products_are_chosen_by_the_processor(text, faster, monkeypatch):
    def read(path):
        assert str(path) == "/proc/cpuinfo"
        if "\t" not in text:
            raise FileNotFoundError
        return text

    monkeypatch.setattr(ddpg.platform, "processor", lambda: text)
    monkeypatch.setattr(Path, "read_text", read)
    assert ddpg.onednn_is_faster.__wrapped__() is faster


@pytest.mark.skipif(not ddpg.onednn(), reason="this torch has no oneDNN products")
@pytest.mark.parametrize("layer_norm", [False, True])
def test_network_large_products_are_the_same_products(layer_norm, monkeypatch):
    changes = dict(hidden=(256, 256), actor_lr=1e-3, critic_lr=1e-3, layer_norm=layer_norm)
    agents, acts = [an_agent(5, [-1, -2], [1, 1], **changes) for _ in range(2)], []
    product, used = ddpg.onednn(), []
    monkeypatch.setattr(ddpg, "onednn_is_faster", lambda: True)
    for agent, kernel in zip(agents, (lambda *args: used.append(1) or product(*args), None)):
        monkeypatch.setattr(ddpg, "onednn", lambda kernel=kernel: kernel)
        learn(agent, 10, size=256)
        acts.append(agent.act_unit(np.linspace(-1, 1, 500).reshape(100, 5)))
        assert bool(used) == bool(kernel)
        used.clear()
    for name in "actor", "critic":
        ours, theirs = (agent.flat[name].data for agent in agents)
        way = (ours - agents[0].flat[f"{name}_target"].data).abs().max()
        assert (ours - theirs).abs().max() < 1e-4 < way
    assert np.abs(acts[0] - acts[1]).max() < 1e-3


@pytest.mark.parametrize("large", [1, 2**22])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_network_products_of_any_shape_are_right(n, large, monkeypatch):
    monkeypatch.setattr(ddpg, "LARGE_PRODUCT", large)
    monkeypatch.setattr(ddpg, "onednn_is_faster", lambda: True)
    for i, k, j in itertools.product((1, 2, 40), repeat=3):
        a, b, bias, out = (torch.randn(n, *shape) for shape in ((k, i), (k, j), (1, j), (i, j)))
        a, exact = a.mT, a.mT.double() @ b.double()
        with torch.inference_mode():
            into = ddpg.bmm(a, b.mT.contiguous().mT, out=out)
            products = ddpg.bmm(a, b), ddpg.bmm(a, b, bias) - bias, into, out
        for product in products:
            assert product.shape == exact.shape and (product - exact).abs().max() < 1e-4


# ---- noise ----


def test_noise_is_one_recurrence():
    noise = ddpg.Noise(1, 0.15, np.random.default_rng(0))
    x = np.array([noise(0.2)[0] for _ in range(100_000)])
    assert x.std() == pytest.approx(0.2 / np.sqrt(0.15 * 1.85), rel=0.03)
    assert np.corrcoef(x[1:], x[:-1])[0, 1] == pytest.approx(0.85, abs=0.02)
    noise = ddpg.Noise(1, 1.0, np.random.default_rng(0))
    white = np.array([noise(0.2)[0] for _ in range(10_000)])
    assert white.std() == pytest.approx(0.2, rel=0.03)
    assert abs(np.corrcoef(white[1:], white[:-1])[0, 1]) < 0.03


def test_noise_can_be_kept_and_changed():
    ours, theirs = (ddpg.Noise(2, 0.15, np.random.default_rng(0)) for _ in range(2))
    kept = []
    for _ in range(4):
        kept.append(ours(0.2))
        copied = kept[-1].copy()
        assert np.array_equal(copied, theirs(0.2))
        kept[-1] += 1
    assert len(np.unique(kept)) == 8 and np.array_equal(kept[-1], copied + 1)


def test_noise_starts_each_episode_at_zero():
    run, resets = Training(small(total_steps=100, noise_theta=0.15), Toy()), []
    reset = run.noise.reset
    run.noise.reset = lambda: (reset(), resets.append((run.step, run.noise.x.tolist())))
    loud = 0
    for _ in run:
        loud += run.step > 60 and run.noise.x[0] != 0
    assert resets == [(step, [0]) for step in range(0, 100, 10)] and loud == 40


# ---- agent ----
# First the update, against NumPy and against itself by autograd


def numpy_forward(params, x, layer_norm, keep):
    """One network of arrays [(W, b), ..]; `keep` collects what the way back needs."""
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
                along = normal * (grad * normal).mean(1, keepdims=True)
                grad = (grad - grad.mean(1, keepdims=True) - along) / spread
        grads.insert(0, (kept[0].T @ grad, grad.sum(0)))
        grad = grad @ w.T
    return grads, grad


class NumpyAgent:
    """DDPG and TD3 once more, written differently: float64, no autograd, a list per network."""

    def __init__(self, agent):
        self.c, self.moments, self.k = agent.config, {}, 0
        (self.actor,), (self.actor_target,) = map(self.stacks, (agent.actor, agent.actor_target))
        self.critics, self.critic_targets = map(self.stacks, (agent.critic, agent.critic_target))

    @staticmethod
    def stacks(network):
        """[[(W, b) of each layer] of each of its n networks side by side]"""
        layers = [
            (w.detach().double().numpy(), b.detach().double().numpy()[:, 0])
            for w, b in zip(network.net.weights, network.net.biases)
        ]
        return [[(w[i], b[i]) for w, b in layers] for i in range(len(layers[0][0]))]

    def adam(self, name, params, grads, lr):
        m, v, t = self.moments.get(name, ([[0, 0]] * len(params), [[0, 0]] * len(params), 0))
        t += 1
        m = [[0.9 * a + 0.1 * g for a, g in zip(*two)] for two in zip(m, grads)]
        v = [[0.999 * a + 0.001 * g**2 for a, g in zip(*two)] for two in zip(v, grads)]
        self.moments[name] = m, v, t

        def step(p, m, v):
            return p - lr * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)

        return [tuple(map(step, *three)) for three in zip(params, m, v)]

    def follow(self, target, net):
        tau = self.c.tau
        return [tuple((1 - tau) * t + tau * p for t, p in zip(*two)) for two in zip(target, net)]

    def update(self, batch, noise):
        obs, act, R, next_obs, discount = (x.double().numpy() for x in batch)
        c, ln, size = self.c, self.c.layer_norm, len(obs)
        self.k += 1
        noise = c.target_noise * noise.double().numpy()
        noise = np.clip(noise, -c.target_noise_clip, c.target_noise_clip)
        next_act = np.tanh(numpy_forward(self.actor_target, next_obs, False, []))
        x = np.hstack([next_obs, np.clip(next_act + noise, -1, 1)])
        values = [numpy_forward(q, x, ln, []) for q in self.critic_targets]
        target = R + discount * np.minimum.reduce(values)
        for i, params in enumerate(self.critics):
            q = numpy_forward(params, np.hstack([obs, act]), ln, keep := [])
            grads, _ = numpy_backward(params, keep, 2 * (q - target) / size, ln)
            self.critics[i] = self.adam(f"critic{i}", params, grads, c.critic_lr)
        if self.k % c.policy_delay == 0:
            mu = np.tanh(numpy_forward(self.actor, obs, False, keep_actor := []))
            numpy_forward(self.critics[0], np.hstack([obs, mu]), ln, keep := [])
            slope = np.full((size, 1), -1 / size)
            _, grad = numpy_backward(self.critics[0], keep, slope, ln)
            grad = grad[:, obs.shape[1] :] * (1 - mu**2)
            grads, _ = numpy_backward(self.actor, keep_actor, grad, False)
            self.actor = self.adam("actor", self.actor, grads, c.actor_lr)
            self.actor_target = self.follow(self.actor_target, self.actor)
            self.critic_targets = list(map(self.follow, self.critic_targets, self.critics))


@BOTH_PATHS
@EVERY_SWITCH
def test_agent_update_equals_an_independent_numpy_reference(changes, by_hand):
    changes = changes | dict(hidden=(24, 16), actor_lr=1e-3, critic_lr=2e-3, tau=0.05)
    agent = stir(an_agent(5, [-1, -2, 0], [1, 1, 3], by_hand=by_hand, **changes))
    reference, start = NumpyAgent(agent), numbers(agent)
    for step in range(6):
        batch, twin = random_batch(agent, seed=step), torch.Generator()
        twin.set_state(agent.generator.get_state())
        agent.update(batch)
        reference.update(batch, torch.randn(batch[1].shape, generator=twin))
    assert len(agent.by_hand) == 2 * by_hand and len(unlike(start, numbers(agent))) == len(start)
    for network, theirs in (
        (agent.actor, [reference.actor]),
        (agent.actor_target, [reference.actor_target]),
        (agent.critic, reference.critics),
        (agent.critic_target, reference.critic_targets),
    ):
        for ours, expected in zip(NumpyAgent.stacks(network), theirs, strict=True):
            for a, b in zip(sum(ours, ()), sum(expected, ()), strict=True):
                assert np.abs(a - b).max() < 1e-4 * np.abs(b).max()


@EVERY_SWITCH
@pytest.mark.parametrize("size", [32, 27])
def test_agent_by_hand_is_the_same_as_by_autograd(changes, size):
    """To the bit where the batch is a power of two, as then the mean loses no bits."""
    by_hand, plain = (
        stir(an_agent(5, [-1, -2], [1, 1], by_hand=by_hand, hidden=(24, 16), **changes))
        for by_hand in (True, False)
    )
    before = numbers(plain)
    for agent in by_hand, plain:
        learn(agent, 6, size)
    ours, theirs = numbers(by_hand), numbers(plain)
    assert len(by_hand.by_hand) == 2 and len(unlike(before, ours)) == len(ours)
    if size == 32:
        assert not unlike(ours, theirs)
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6), name


def huber(self, obs, act, target_q):
    error = (self.critic(obs, act) - target_q).abs()
    return torch.where(error < 1, error.square(), 2 * error - 1).mean(dim=(1, 2)).sum()


def clipped_target(self, obs, act, target_q):
    error = self.critic(obs, act) - target_q.clamp(-100, 100)
    return error.square().mean(dim=(1, 2)).sum()


def small_errors_ignored(self, obs, act, target_q):
    error = self.critic(obs, act) - target_q
    return (error.square() * (error.abs() > 0.01)).mean(dim=(1, 2)).sum()


def penalty_near_the_bounds(self, obs, act):
    pi = self.actor(obs)
    return -self.critic(obs, pi)[0].mean() + 10 * F.relu(pi.abs() - 0.9).square().mean()


def gentle_penalty(self, obs, act):
    pi = self.actor(obs)
    return -self.critic(obs, pi)[0].mean() + 0.1 * F.relu(pi.abs() - 0.95).square().mean()


def later_penalty(self, obs, act):
    pi = self.actor(obs)
    return -self.critic(obs, pi)[0].mean() + (self.updates > 1000) * pi.square().mean()


def cloning(self, obs, act):  # TD3+BC, arXiv:2106.06860
    pi = self.actor(obs)
    return -self.critic(obs, pi)[0].mean() + (pi - act).square().mean()


OWN_LOSSES = [
    ("critic_loss", huber), ("critic_loss", clipped_target), ("critic_loss", small_errors_ignored),
    ("actor_loss", cloning), ("actor_loss", penalty_near_the_bounds),
]  # fmt: skip


@pytest.mark.parametrize("way", ["subclass", "method", "function", "later", "edited file"])
@pytest.mark.parametrize("name, loss", OWN_LOSSES)
def test_agent_with_a_loss_of_ones_own_learns_by_autograd(name, loss, way, monkeypatch, capsys):
    if way == "edited file":
        monkeypatch.setattr(Agent, name, loss)
    kind = type("Mine", (Agent,), {name: loss}) if way == "subclass" else Agent
    agent = stir(an_agent(kind=kind, algo="ddpg", n_critics=2))
    if way == "later":
        learn(agent, 1)
    if way in ("method", "function", "later"):  # of the instance
        bind = partial if way == "function" else types.MethodType
        setattr(agent, name, bind(loss, agent))
    assert moves_as_autograd_says(agent)
    learn(agent, 3)
    lines = capsys.readouterr().err.splitlines()
    assert [f"{name} by autograd" in line for line in lines] == [True] * (way != "later")


@pytest.mark.parametrize("name, loss", [
    *OWN_LOSSES, ("actor_loss", gentle_penalty), ("actor_loss", later_penalty),
])  # fmt: skip
def test_agent_notices_an_edited_loss_with_networks_of_any_size(name, loss, monkeypatch):
    monkeypatch.setattr(Agent, name, loss)
    for hidden, layer_norm in itertools.product([(16, 16), (64, 64), (256, 256)], [False, True]):
        for obs_dim, bounds in (3, [1]), (24, [1] * 4):
            low = np.negative(bounds)
            agent = an_agent(obs_dim, low, bounds, hidden=hidden, layer_norm=layer_norm)
            agent.updates = 1  # as at the first update
            assert loss not in agent.by_hand and len(agent.by_hand) == 1, hidden


class Clips(Agent):
    def descend(self, optimizer, loss, *batch):
        self.actor.zero_grad()
        self.critic.zero_grad()
        loss(*batch).backward()
        for network in self.actor, self.critic:
            nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        optimizer.step()


def test_agent_with_clipped_gradients_learns_as_with_torchs_adam():
    ours, theirs = (stir(an_agent(kind=Clips, algo="ddpg")) for _ in range(2))
    for name in "actor", "critic":
        parameters = getattr(theirs, name).parameters()
        setattr(theirs, f"{name}_optimizer", torch.optim.Adam(parameters, 3e-4))
    before = numbers(ours)
    for agent in ours, theirs:
        learn(agent, 6)
    plain = stir(an_agent(algo="ddpg"))
    learn(plain, 6)
    ours, theirs, plain = (numbers(agent) for agent in (ours, theirs, plain))
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-5, atol=1e-6), name
    assert len(unlike(before, ours)) == len(ours) and unlike(ours, plain)


def test_agent_whose_gradients_are_cleared_before_the_step_stays_as_it_is():
    class Clears(Agent):
        def descend(self, optimizer, loss, *batch):
            optimizer.zero_grad()
            loss(*batch).backward()
            self.actor.zero_grad()
            self.critic.zero_grad()
            optimizer.step()

    agent = stir(an_agent(kind=Clears, algo="ddpg"))
    before = numbers(agent, "actor", "critic")
    learn(agent, 3)
    assert not unlike(before, numbers(agent, "actor", "critic"))


# What PyTorch allows between two updates


HARMLESS = {
    "zero_grad": lambda network: network.zero_grad(),
    "zero_grad in place": lambda network: network.zero_grad(set_to_none=False),
    "to": lambda network: network.to("cpu"),
    "float": lambda network: network.float(),
    "load_state_dict": lambda network: network.load_state_dict(copy.copy(network.state_dict())),
}


@BOTH_PATHS
@pytest.mark.parametrize("what", HARMLESS)
def test_agent_is_not_disturbed_by(what, by_hand):
    plain, disturbed = (stir(an_agent(by_hand=by_hand)) for _ in range(2))
    for step in range(5):
        for name in NETWORKS:
            HARMLESS[what](getattr(disturbed, name))
        for agent in plain, disturbed:
            learn(agent, 1, first=step)
    assert not unlike(numbers(plain), numbers(disturbed))


def move(network):
    for parameter in network.parameters():
        parameter.data = parameter.data.clone()


def assign(network):
    network.load_state_dict({k: v.clone() for k, v in network.state_dict().items()}, assign=True)


def replace_one(network):
    network.net.biases[1] = nn.Parameter(network.net.biases[1].detach().clone())


HARMFUL = {
    "double": lambda network: network.double(),
    "load_state_dict(assign=True)": assign,
    "data": move,
    "requires_grad_": lambda network: network.requires_grad_(False),
    "requires_grad_ of one": lambda network: network.net.weights[1].requires_grad_(False),
    "a parameter": replace_one,
}


@BOTH_PATHS
@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("what", [*HARMFUL, "the network"])
def test_agent_trains_no_vector_that_nobody_uses(what, name, by_hand):
    agent = an_agent(by_hand=by_hand, hidden=(4, 4))
    learn(agent, 1)
    if what == "the network":
        setattr(agent, name, copy.deepcopy(getattr(agent, name)))
    else:
        HARMFUL[what](getattr(agent, name))
    agent.updates = 98  # each hundredth checks it
    with pytest.raises(RuntimeError):
        learn(agent, 3)


def loss_of(agent, name):
    obs, act, R, *_ = random_batch(agent)
    return agent.critic_loss(obs, act, R) if name == "critic" else agent.actor_loss(obs, act)


@pytest.mark.parametrize("name", ["actor", "critic"])
def test_agent_acting_between_a_loss_and_its_gradient_changes_nothing(name):
    grads = []
    for acts in False, True:
        agent = stir(an_agent())
        loss = loss_of(agent, name)
        if acts:
            agent.act_unit(np.ones((4, 3)))
        loss.backward()
        grads.append({key: p.grad for key, p in getattr(agent, name).named_parameters()})
    assert not unlike(*grads) and all(grad.any() for grad in grads[0].values())


@BOTH_PATHS
@pytest.mark.parametrize("name", ["actor", "critic"])
def test_agent_refuses_the_gradient_of_a_loss_of_old_values(name, by_hand):
    agent = an_agent(by_hand=by_hand)
    loss = loss_of(agent, name)
    learn(agent, 2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


OPTIMIZERS = {
    "its own Adam": None,
    "Adam": lambda parameters: torch.optim.Adam(parameters, 1e-3, amsgrad=True),
    "AdamW": lambda parameters: torch.optim.AdamW(parameters, 1e-3),
    "SGD": lambda parameters: torch.optim.SGD(parameters, 0.01, momentum=0.9),
    "plain SGD": lambda parameters: torch.optim.SGD(parameters, 0.01),
    "RMSprop": lambda parameters: torch.optim.RMSprop(parameters, 1e-3),
}


@BOTH_PATHS
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_agent_with_any_optimizer_learns_and_goes_on_to_the_bit(make, by_hand):
    def fresh():
        agent = an_agent(by_hand=by_hand, critic_lr=1e-3)
        if make:
            agent.actor_optimizer = make(agent.actor.parameters())
            agent.critic_optimizer = make(agent.critic.parameters())
        return stir(agent)

    agent = fresh()
    before, start = loss_of(agent, "critic").item(), numbers(agent)
    for _ in range(100):
        obs, act, R, next_obs, _ = random_batch(agent)
        agent.update((obs, act, R, next_obs, torch.zeros_like(R)))
    assert loss_of(agent, "critic").item() < 0.8 * before
    assert len(unlike(start, numbers(agent))) == len(start)
    saved = agent.critic_optimizer.state_dict()
    saved["param_groups"][0]["lr"] = 2e-4  # as a schedule would
    agent.critic_optimizer.load_state_dict(saved)
    other, state = fresh(), copy.deepcopy(agent.state_dict())
    other.load_state_dict(state)
    assert other.critic_optimizer.state_dict()["param_groups"][0]["lr"] == 2e-4
    assert not unlike(numbers(agent), numbers(other))
    for either in agent, other:
        learn(either, 5)
    assert not unlike(numbers(agent), numbers(other)) and agent.updates == other.updates == 105
    assert torch.equal(agent.metrics, other.metrics)


MOMENTS = {
    "made": lambda agent: None,
    "acted": lambda agent: agent.act(np.ones(3)),
    "called": lambda agent: agent.critic(torch.ones(4, 3), agent.actor(torch.ones(4, 3))),
    "has gradients": lambda agent: loss_of(agent, "actor").backward(),
    "learnt": lambda agent: learn(agent, 3),
    "learnt and acted": lambda agent: (learn(agent, 3), agent.act(np.ones(3))),
}


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_agent_copied_goes_on_like_the_original(way, moment, networks):
    agent = an_agent(n_critics=1)
    kept = MOMENTS[moment](agent)  # a graph, say  # noqa: F841
    copied = copy.deepcopy(agent) if way == "deepcopy" else pickle.loads(pickle.dumps(agent))
    before = numbers(agent)
    learn(agent, 4, first=5)
    assert not unlike(before, numbers(copied))  # they share nothing
    learn(copied, 4, first=5)
    assert not unlike(numbers(agent), numbers(copied))
    assert len(unlike(before, numbers(agent))) == len(before)
    assert np.array_equal(agent.act(np.ones(3)), copied.act(np.ones(3)))


def denormals_are_flushed():
    return (torch.tensor([1e-39]) * 1.0).item() == 0


@pytest.mark.parametrize("make", [an_agent, lambda **more: Training(small(**more), Toy())])
def test_agent_is_made_without_touching_anything_global(make, networks):
    torch.set_num_threads(2)
    torch.set_flush_denormal(False)
    of_torch, of_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    make(n_critics=1)
    assert torch.equal(of_torch, torch.get_rng_state())
    assert np.array_equal(of_numpy, np.random.get_state()[1])
    assert torch.get_num_threads() == 2 and not denormals_are_flushed()


def test_agent_made_in_one_of_many_threads_is_as_made_alone(networks):
    def make(seed):
        return numbers(an_agent(seed=seed, algo="ddpg"))

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(make, range(40)))
    for seed in range(40):
        assert not unlike(together[seed], make(seed))


@pytest.mark.parametrize("low, high", [
    ([-np.inf, 0], [1, 1]), ([0, 0], [1, np.inf]), ([np.nan, 0], [1, 1]), ([0, 0], [1, np.nan]),
    ([0, 2], [1, 1]),
], ids=str)  # fmt: skip
def test_agent_refuses_impossible_bounds(low, high):
    with pytest.raises(ValueError, match="bounds"):
        an_agent(3, low, high)


def test_agent_first_actions_are_near_zero():
    obs = np.random.default_rng(0).normal(size=(1000, 8))
    assert np.abs(Agent(8, [-1] * 4, [1] * 4, Config()).act(obs)).max() < 0.05


def test_agent_actions_span_the_bounds_of_each_dimension_and_never_leave_them():
    agent = an_agent(3, [0, -3], [1, 5])
    assert (agent.to_env(np.float32([[-1, -1], [1, 1]])) == [agent.low, agent.high]).all()
    odd = an_agent(1, [-0.1, 0.1], [0.3, 0.7])  # bounds that float32 cannot represent
    spread = odd.to_env(np.float32(np.linspace(-1, 1, 1001))[:, None].repeat(2, 1))
    assert (spread >= odd.low).all() and (spread <= odd.high).all()


def test_agent_acts_on_one_observation_or_a_batch():
    agent = stir(an_agent(3, [-2, 0], [2, 1]))
    obs = np.random.default_rng(0).normal(size=(7, 3))
    act = agent.act(obs)
    assert agent.act(obs[0]).shape == (2,) and act.shape == (7, 2) and act.dtype == np.float32
    np.testing.assert_allclose(act[3], agent.act(obs[3]), rtol=1e-5)
    np.testing.assert_array_equal(act, agent.to_env(agent.act_unit(obs)))
    for bad in np.zeros(6), np.zeros((2, 2)), 1.0, np.zeros((3, 1)):
        with pytest.raises(ValueError, match=r"is not \(.*3"):
            agent.act(bad)


def test_agent_refuses_a_batch_of_other_shapes(networks):
    agent = an_agent(algo="ddpg")
    obs, act, R, next_obs, discount = random_batch(agent)
    for bad in (R[:, 0], discount), (R, discount[:, 0]), (R[:, 0], discount[:, 0]):
        with pytest.raises(ValueError, match=r"must be \(32, 1\)"):  # not broadcast to (32, 32)
            agent.update((obs, act, bad[0], next_obs, bad[1]))


def test_agent_target_noise_is_drawn_per_element_in_unit_scale_and_clamped():
    seen = {}
    agent = an_agent(3, [-100] * 2, [100] * 2)
    critic_target, actor_target = agent.critic_target.forward, agent.actor_target

    def spy(obs, act):
        seen.update(obs=obs, act=act)
        return critic_target(obs, act)

    agent.critic_target.forward = spy
    learn(agent, 1, 4000)
    noise = seen["act"] - actor_target(seen["obs"])
    assert noise.shape == (4000, 2) and noise.std().item() == pytest.approx(0.2, rel=0.05)
    assert 0.45 < noise.abs().max() <= 0.5 + 1e-6 and len(noise.unique()) > 7000
    actor_target.net.biases[-1].data.fill_(10)  # saturated: the noise must not lead beyond
    learn(agent, 1, 4000)
    assert seen["act"].max() == 1


def test_agent_delays_count_critic_updates():
    agent, actors, targets = an_agent(), 0, 0
    for _ in range(301):
        actor, target = (agent.flat[name].data.clone() for name in ("actor", "critic_target"))
        learn(agent, 1, 4)
        actors += not torch.equal(actor, agent.flat["actor"].data)
        targets += not torch.equal(target, agent.flat["critic_target"].data)
    assert (actors, targets, agent.updates) == (150, 150, 301)


@BOTH_PATHS
@pytest.mark.parametrize("frozen, other", [("critic", "actor"), ("actor", "critic")])
def test_agent_losses_move_their_own_network_only(frozen, other, by_hand):
    agent = an_agent(algo="ddpg", by_hand=by_hand)
    before = numbers(agent, frozen), numbers(agent, other)
    getattr(agent, f"{frozen}_optimizer").step = lambda: None
    learn(agent, 2)
    assert not unlike(before[0], numbers(agent, frozen))
    assert unlike(before[1], numbers(agent, other))


def test_agent_loaded_from_a_file_begins_with_its_own_values_as_targets(tmp_path):
    agent = stir(an_agent())
    agent.save(tmp_path / "policy.npz", env="Pendulum-v1", step=1)
    agent, loaded = agent.flat, load(tmp_path / "policy.npz").flat
    for name in "actor", "critic":
        for found in loaded[name], loaded[f"{name}_target"]:
            assert torch.equal(agent[name].data, found.data)


def test_agent_learns_in_the_readmes_loop_of_ones_own():
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

    names = dict(obs_dim=2, low=[-0.5] * 2, high=[0.5] * 2, steps=1_300)
    names |= dict(system=system, restart=restart, obs=restart())
    loop = readme("for _ in range(steps)")
    exec(loop.replace("hidden=", "actor_lr=1e-3, critic_lr=1e-3, hidden="), names)
    fresh = Agent(2, names["low"], names["high"], names["config"])
    assert distance(names["agent"]) < 0.3 * distance(fresh)


# What a second reader found


def clip_norm(agent, optimizer):
    network = agent.critic if optimizer is agent.critic_optimizer else agent.actor
    nn.utils.clip_grad_norm_(network.parameters(), 0.1)


def halve(agent, optimizer):
    for network in agent.actor, agent.critic:
        for p in network.parameters():
            p.grad is not None and p.grad.mul_(0.5)


@pytest.mark.parametrize("touch", [clip_norm, halve])
@pytest.mark.parametrize("optimizer", [None, torch.optim.Adam, torch.optim.SGD])
def test_agent_lets_gradients_by_hand_be_changed_before_the_step(touch, optimizer):
    """As one line in `descend` does it; the gradients must not belong to inference mode."""
    agents = [stir(an_agent(algo="ddpg", by_hand=by_hand)) for by_hand in (True, False)]
    for agent in agents:
        for name in ("actor", "critic") if optimizer else ():
            parameters = getattr(agent, name).parameters()
            setattr(agent, f"{name}_optimizer", optimizer(parameters, 1e-3))
        for name in "actor", "critic":
            own = getattr(agent, f"{name}_optimizer")
            step = own.step
            own.step = lambda agent=agent, own=own, step=step: (touch(agent, own), step())
        learn(agent, 4)
    ours, theirs = (numbers(agent) for agent in agents)
    for name in ours:
        assert torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6), name


def test_agent_with_one_optimizer_for_both_networks_learns_by_autograd():
    agents = [stir(an_agent(algo="ddpg", by_hand=by_hand)) for by_hand in (True, False)]
    for agent in agents:
        groups = [{"params": network.parameters()} for network in (agent.actor, agent.critic)]
        agent.actor_optimizer = agent.critic_optimizer = torch.optim.Adam(groups, 1e-3)
        learn(agent, 10)
    assert not unlike(*(numbers(agent) for agent in agents))


def hook_on_a_parameter(agent):
    agent.critic.net.weights[0].register_hook(torch.zeros_like)


def hook_on_a_module(agent):
    agent.critic.register_forward_hook(lambda module, inputs, output: output * 0.5)


@pytest.mark.parametrize("change", [hook_on_a_parameter, hook_on_a_module])
@pytest.mark.parametrize("late", [False, True])
def test_agent_by_hand_is_compared_with_autograd_on_real_batches_too(change, late):
    agent = stir(an_agent(algo="ddpg"))
    if late:
        learn(agent, 2)
        agent.updates = 990
        change(agent)
    else:
        change(agent)
        if change is hook_on_a_module:  # which the copies of the first comparison have, too
            learn(agent, 1)
            assert len(agent.by_hand) == 0
            return
    with pytest.raises(RuntimeError, match="is not autograd's"):
        learn(agent, 20)


class Averages(ddpg.Actor):
    """Keeps a mean of its observations in a buffer that it replaces."""

    def __init__(self, *args):
        super().__init__(*args)
        self.register_buffer("mean", torch.zeros(3))

    def forward(self, obs):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * obs.detach().mean(0)
        return super().forward(obs - self.mean)


class PlainDescend(Agent):
    def descend(self, optimizer, loss, *batch):
        optimizer.zero_grad()
        loss(*batch).backward()
        optimizer.step()


@pytest.mark.parametrize("kind", [Agent, PlainDescend])
def test_agent_targets_get_buffers_that_are_replaced(monkeypatch, kind):
    monkeypatch.setattr(ddpg, "Actor", Averages)
    agent = an_agent(kind=kind, algo="ddpg")
    learn(agent, 5)
    assert agent.actor.mean.abs().sum() > 0
    assert torch.equal(agent.actor.mean, agent.actor_target.mean)


def test_agent_whose_actor_leaves_its_bounds_says_so(monkeypatch):
    class Unbounded(ddpg.Actor):
        def forward(self, obs):
            return self.net(obs)[0]

    monkeypatch.setattr(ddpg, "Actor", Unbounded)
    with monkeypatch.context() as patch:
        patch.setattr(ddpg, "check_networks", lambda *_: None)  # as if it had been small
        agent = stir(an_agent(algo="ddpg"))
    agent.flat["actor"].data.mul_(10)
    with pytest.raises(ValueError, match="beyond"):
        learn(agent, 1)


@pytest.mark.parametrize("draw", ["randn_like", "rand_like", "normal", "exponential"])
def test_agent_begins_as_its_seed_says_whatever_draws(monkeypatch, draw):
    draws = {
        "randn_like": torch.randn_like, "rand_like": torch.rand_like,
        "normal": lambda x: torch.normal(x, x + 1), "exponential": lambda x: x.exponential_(),
    }  # fmt: skip

    class Drawn(ddpg.Actor):
        def __init__(self, *args):
            super().__init__(*args)
            self.net.biases[0].data = draws[draw](torch.zeros_like(self.net.biases[0].data))

    monkeypatch.setattr(ddpg, "Actor", Drawn)
    state = torch.get_rng_state()
    first = numbers(an_agent())
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(7)
    assert not unlike(first, numbers(an_agent()))


def parameters_of(name):
    return lambda agent: agent.flat[name].data


def moments_of(agent):
    """Tensors that an optimizer has beside the parameters."""
    for name in "actor_optimizer", "critic_optimizer":
        for tensors in getattr(agent, name).state_dict()["state"].values():
            yield from ((name, key, x) for key, x in tensors.items() if torch.is_tensor(x))


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_agent_says_where_it_has_diverged(make):
    agent = stir(an_agent())
    if make:
        agent.actor_optimizer = make(agent.actor.parameters())
        agent.critic_optimizer = make(agent.critic.parameters())
    ddpg.check_finite(agent)
    learn(agent, 4)
    ddpg.check_finite(agent)
    held = [(name, "parameters", flat.data) for name, flat in agent.flat.items()]
    held += moments_of(agent)
    assert len(held) > 4 or make is OPTIMIZERS["plain SGD"]
    for (name, key, tensor), value in zip(held, itertools.cycle([np.inf, -np.inf, np.nan])):
        last, rest = tensor.view(-1)[-1:], tensor.clone()
        last.fill_(value)
        with pytest.raises(FloatingPointError, match=f"{key} of the {name} has become {value}"):
            ddpg.check_finite(agent)
        tensor.copy_(rest)
    ddpg.check_finite(agent)


# ---- train ----


@pytest.mark.parametrize("terminates, expected", [(False, 5.0), (True, 1 / (1 - 0.8 * 0.9))])
@pytest.mark.parametrize("algo", ["ddpg", "td3"])
def test_train_bootstraps_at_time_limits_and_not_in_terminal_states(algo, terminates, expected):
    """Reward 1 for ever is worth 1 / (1 - gamma) = 5; with one step in 10 the last, 3.57."""
    changes = dict(learning_starts=100, gamma=0.8, total_steps=600, tau=0.2, critic_lr=0.01)
    toy = Toy(terminates=terminates, obs=lambda t: [1.0])
    run = run_for(small(algo=algo, **changes), toy)
    q = run.agent.critic(run.agent.normalize(torch.ones(1, 1)), torch.zeros(1, 1))
    assert q.mean().item() == pytest.approx(expected, rel=0.03)


def test_train_takes_a_terminal_state_on_the_last_allowed_step_as_terminal():
    config = small(total_steps=40, max_episode_steps=10, gamma=0.9)
    discounts = run_for(config, Toy(10, terminates=True)).buffer.rows[:40, -1].reshape(4, 10)
    assert (discounts[:, 9] == 0).all() and (discounts[:, :9] == np.float32(0.9)).all()


def test_train_stores_the_real_steps():
    run = run_for(small(total_steps=95), Toy(10))
    assert len(run.buffer) == 95
    obs, act, reward, next_obs, discount = stored(run, 95)
    t = torch.arange(95) % 10
    assert torch.allclose(obs[:, 1], t * 0.1)  # though the environment reuses its array
    assert torch.allclose(next_obs[:, 1], (t + 1) * 0.1)
    assert torch.equal(next_obs[:-1][t[:-1] != 9], obs[1:][t[:-1] != 9])
    assert (reward == 1).all() and (discount == np.float32(0.99)).all()


def test_train_explores_all_of_each_action_dimension():
    low, high = np.float32([0, -3]), np.float32([1, 5])
    toy = Toy(low=low, high=high)  # which asserts that no action leaves them
    run_for(small(total_steps=600, noise_sigma=2.0), toy)
    received, margin = np.array(toy.received), 0.1 * (high - low)
    for phase in received[:50], received[50:]:
        assert (phase.min(0) < low + margin).all() and (phase.max(0) > high - margin).all()


def test_train_stores_the_action_that_was_executed():
    toy = Toy(low=[0, -3], high=[1, 5])
    run = run_for(small(total_steps=200, noise_sigma=0.8), toy)
    act = stored(run, 200)[1].numpy()
    assert np.abs(act).max() == 1  # some were clipped
    assert np.array_equal(run.agent.to_env(act), np.array(toy.received))


def test_train_explores_independently_in_each_action_dimension():
    changes = dict(learning_starts=2000, updates_per_step=0, noise_sigma=0.3, total_steps=4000)
    act = stored(run_for(small(**changes), Toy(low=[0, -3], high=[1, 5])), 4000)[1].numpy()
    for phase, std in (act[:2000], 3**-0.5), (act[2000:], 0.3):
        assert abs(np.corrcoef(phase.T)[0, 1]) < 0.1
        assert phase.std(0) == pytest.approx([std, std], rel=0.1)


def test_train_anneals_noise_linearly_over_the_first_part():
    changes = dict(noise_sigma=0.4, noise_sigma_end=0.1, noise_anneal=0.3)
    run = Training(small(total_steps=1000, updates_per_step=0, **changes), Toy())
    sigmas = {}
    run.noise = lambda sigma: sigmas.update({run.step + 1: sigma}) or 0
    run.noise.reset = lambda: None
    for _ in run:
        pass
    assert [sigmas[s] for s in (51, 150, 300, 1000)] == pytest.approx([0.349, 0.25, 0.1, 0.1])


def test_train_begins_with_exactly_as_many_random_steps_as_told():
    act = stored(run_for(small(noise_sigma=0.0, total_steps=51), Toy()), 51)[1][:, 0].numpy()
    expected = np.random.default_rng(0).uniform(-1, 1, 50).astype(np.float32)
    assert np.array_equal(act[:50], expected) and 0 < abs(act[50]) < 0.01


def test_train_samples_nothing_from_the_action_space():
    toy = Toy()
    toy.action_space.sample = None
    first, second = (run_for(small(total_steps=60), env) for env in (toy, Toy()))
    assert torch.equal(first.buffer.rows[:60], second.buffer.rows[:60])


def test_train_computes_in_float32():
    toy = Toy()
    toy.observe = lambda: np.float64([toy.t, 1 / 3])
    run = run_for(small(total_steps=85), toy)
    tensors = [run.buffer.rows, *numbers(run.agent).values()]
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
    assert run.episode.obs.dtype == np.float32 == toy.received[-1].dtype


def test_train_heeds_its_flags():
    changes = dict(batch_size=7, updates_per_step=3, buffer_size=40, total_steps=60)
    run, sizes = Training(small(noise_theta=0.3, reward_scale=0.5, **changes), Toy()), []
    update = run.agent.update
    run.agent.update = lambda batch: (sizes.append(len(batch[0])), update(batch))
    for _ in run:
        pass
    assert sizes == [7] * 30 and run.noise.theta == 0.3
    assert run.buffer.rows.shape[0] == 40 and (run.buffer.rows[:, 3] == 0.5).all()


def test_train_is_between_two_episodes_where_it_can_be_saved():
    between = [run.step for run in Training(small(total_steps=45), Toy()) if run.episode is None]
    assert between == [0, 10, 20, 30, 40]


def test_train_tunes_threads_denormals_and_the_global_seed_first():
    flushes = torch.set_flush_denormal(False)  # not on every processor
    torch.set_num_threads(2)
    train(small(total_steps=1, seed=5), Toy())
    assert torch.get_num_threads() == 1 and torch.initial_seed() == 5
    assert denormals_are_flushed() or not flushes
    torch.set_num_threads(2)
    ddpg.tune(Config(hidden=(1024, 1024)))  # one for all sizes
    assert torch.get_num_threads() == 1
    train(small(total_steps=1), Toy(), threads=2)
    assert torch.get_num_threads() == 2


def test_train_takes_an_object_a_maker_an_id_or_another_agent():
    toy, config = Toy(), small(eval_every=60, total_steps=120, eval_episodes=2)
    first = numbers(train(config, toy))
    assert toy.count == 120  # the object itself was trained on, and evaluated in copies
    assert not unlike(first, numbers(train(config, Toy)))
    assert train(config.replace(total_steps=60), "Pendulum-v1").obs_dim == 3
    assert type(train(config, Toy, agent=Clips)) is Clips
    assert Training(config, toy).config.env == "Toy"
    # or evaluation would step the environment of the training; a new wrapper is no better
    for same in (lambda: toy), (lambda: gym.wrappers.TransformReward(toy, abs)):
        with pytest.raises(UsageError, match="new one each time"):
            Training(config, same)


def test_train_by_an_id_takes_its_preset_and_fields_and_prints_only_when_told(monkeypatch, capsys):
    configs = []
    init = Training.__init__

    def seen(run, config, *args):
        configs.append(config)
        init(run, config, *args)

    monkeypatch.setattr(Training, "__init__", seen)
    short = SHORT | dict(total_steps=60)
    train("Pendulum-v1", seed=3, **short)
    train(small(total_steps=60), Toy, seed=3, algo="ddpg")
    assert configs[0] == Config.preset("Pendulum-v1", seed=3, **short)
    assert configs[1] == small(total_steps=60, seed=3, algo="ddpg")
    assert capsys.readouterr().out == ""
    train("Pendulum-v1", verbose=True, **SHORT)
    first, *rows = capsys.readouterr().out.splitlines()
    assert first.split()[:2] == ["step", "episodes"]
    rows = [row.split()[0] for row in rows if " over 3 episodes" in row]
    assert rows == ["0", "88", "176"]
    with pytest.raises(TypeError, match="sed"):
        train("Pendulum-v1", sed=3)


def a_policy(path, step=7, low=(-1,), high=(1,), **changes):
    """The file of an agent for Toy as if long trained, with scales that were found."""
    agent = stir(an_agent(2, low, high, **changes))
    agent.obs_mean.copy_(torch.tensor([1.0, 0.5]))
    agent.obs_scale.copy_(torch.tensor([1.0, 0.25]))
    agent.reward_scale.fill_(0.5)
    agent.save(path, "Toy", step)
    return path


def test_train_begins_from_a_policy(tmp_path):
    path, toy = a_policy(tmp_path / "p.npz"), Toy()
    run, policy = Training(small(total_steps=60, noise_sigma=0.0), toy, init=path), load(path)
    assert not unlike(numbers(run.agent), numbers(policy)) and len(run.buffer) == 0
    assert torch.equal(run.agent.flat["critic"].data, run.agent.flat["critic_target"].data)
    assert not run.agent.critic_optimizer.state["exp_avg"].any() and run.agent.updates == 0
    for _ in run:
        pass
    obs = np.array([clock(t % 10) for t in range(50)], np.float32)
    assert np.allclose(np.array(toy.received[:50]), policy.act(obs), atol=1e-6)
    assert run.agent.updates == 10 and unlike(numbers(run.agent), numbers(policy))
    assert run.agent.obs_mean.tolist() == [1, 0.5] and run.agent.reward_scale == 0.5
    stored_obs, _, R, next_obs, _ = stored(run, 50)
    assert np.allclose(stored_obs, (obs - [1, 0.5]) * [1, 0.25], atol=1e-6) and (R == 0.5).all()
    far_away = Toy(obs=lambda t: [5e4, 1e3 * t])  # whose scales are not found, after 120 steps
    run = run_for(small(learning_starts=120, total_steps=130), far_away, init=path)
    assert run.agent.obs_mean.tolist() == [1, 0.5] and run.agent.reward_scale == 0.5
    # A file of format 1 has no scales
    arrays, meta = arrays_and_meta(path)
    old = {name: array for name, array in arrays.items() if not name.startswith("obs_")}
    meta["config"] |= {"obs_scale": [1.0], "reward_scale": 0.1}
    ddpg.write_npz(tmp_path / "old.npz", old, **meta | {"format": 1})
    run = run_for(small(total_steps=60), Toy(), init=tmp_path / "old.npz")
    assert run.agent.obs_scale.tolist() == [1, 1] and run.agent.reward_scale == 0.1
    assert (run.buffer.rows[:60, 3] == 0.1).all()


def test_train_from_a_policy_is_resumed_exactly_and_without_its_file(tmp_path):
    path, config = a_policy(tmp_path / "p.npz"), TOY_RUN.replace(noise_sigma=0.3)
    train(config, Toy, out=tmp_path / "whole", init=path)
    run = Training(config, Toy, init=path)
    path.unlink()
    save_each_episode()
    follow(run, ddpg.new_folder(tmp_path / "parts"), until=15)  # before it learns
    for until in 60, None:
        assert go_on(tmp_path / "parts", Toy, until).init == str(path)
    assert_same(tmp_path / "whole", tmp_path / "parts")
    said = json.loads((tmp_path / "parts" / "config.json").read_text())
    assert said["init"] == str(path)


def test_train_from_a_policy_that_does_not_fit_is_refused(tmp_path, capsys):
    path = a_policy(tmp_path / "p.npz")
    others = dict(hidden=(16, 8), layer_norm=False, n_critics=1, normalize=False, reward_scale=0.1)
    for name, value in others.items():
        with pytest.raises(UsageError, match=f"does not fit: {name} .* -> {re.escape(str(value))}"):
            Training(small(**{name: value}), Toy(), init=path)
    with pytest.raises(UsageError, match="observations 2 -> 3, actions 1 -> 2"):
        Training(small(), Toy(obs=lambda t: [t] * 3, low=[-1, -1], high=[1, 1]), init=path)
    assert capsys.readouterr().err == ""
    Training(small(reward_scale=0.5), Toy(high=[2]), init=a_policy(tmp_path / "p.npz", step=0))
    bounds, step = capsys.readouterr().err.splitlines()
    assert "other bounds" in bounds and "of step 0" in step
    arrays, meta = arrays_and_meta(path)
    for scale in 0.0, -1.0, float("nan"), float("inf"):
        ddpg.write_npz(path, arrays | {"reward_scale": np.float32(scale)}, **meta)
        with pytest.raises(UsageError, match="reward_scale"):
            Training(small(), Toy(), init=path)


def changed(name, change, **kwargs):
    env = gym.make(name, **kwargs)
    change(env)
    return env


def make_reward_negative(env):
    step = env.unwrapped.step

    def other(action):
        obs, rew, *more = step(action)
        return obs, -rew, *more

    env.unwrapped.step = other


CHANGED_SINCE = {
    "enable_wind": lambda env: setattr(env.unwrapped, "enable_wind", True),
    "gravity": lambda env: setattr(env.unwrapped, "gravity", -3.0),
    "step": make_reward_negative,
    "wind_power": lambda env: setattr(env.unwrapped, "wind_power", Strength()),
}


class Strength:
    def __init__(self):
        self.wind = 3.0


@pytest.mark.parametrize("name", CHANGED_SINCE)
def test_train_evaluates_in_no_copy_that_is_unlike_the_object(name):
    env = changed(LANDER, CHANGED_SINCE[name])
    with pytest.raises(UsageError, match=f"has another {name}: pass a function"):
        Training(small(eval_every=50), env)
    assert Training(small(), env).config.env == "LunarLander"
    run = Training(small(eval_every=50), lambda: changed(LANDER, CHANGED_SINCE[name]))
    assert run.make_eval_env().unwrapped is not run.make_env().unwrapped


@pytest.mark.parametrize("change", [
    lambda model: model.opt.gravity.put(2, -1.0), lambda model: model.body_mass.put(1, 9.0)
], ids=["gravity", "mass"])  # fmt: skip
def test_train_evaluates_in_no_copy_of_another_mujoco_model(change):
    pytest.importorskip("mujoco")
    assert Training(small(eval_every=50), gym.make("Hopper-v5")).config.env == "Hopper-v5"
    env = changed("Hopper-v5", lambda env: change(env.unwrapped.model))
    with pytest.raises(UsageError, match="has another model"):
        Training(small(eval_every=50), env)


class Remade(Toy, gym.utils.EzPickle):
    """Copies of it are made from the constructor's arguments."""

    def __init__(self):
        Toy.__init__(self)
        gym.utils.EzPickle.__init__(self)
        self.walls, self.resets = set(), 0
        for cell in (3, 9), (8, 2), (5, 9), (7, 9), (1, 9), (0, 7), (4, 8), (3, 3), (7, 8):
            self.walls.add(cell)  # in an order that copies lack

    def reset(self, **kwargs):
        self.resets += 1
        return super().reset(**kwargs)


def test_train_compares_sets_and_counters_by_what_they_are():
    used = Remade()
    for _ in range(3):
        used.reset()
    for env in Remade(), used:
        assert not ddpg.differences(env, Remade)
    used.walls.add((9, 9))
    assert ddpg.differences(used, Remade) == ["walls"]


def test_train_sees_a_method_replaced_by_a_function_of_the_script():
    env = Remade()
    env.step = clock
    assert ddpg.differences(env, Remade) == ["step"]


def test_train_takes_an_object_that_was_used_before_as_it_was_made():
    env = gym.make(LANDER, render_mode="rgb_array")
    for used in env, gym.make(LANDER):
        for _ in range(2):
            used.reset()
            while not any(used.step(used.action_space.sample())[2:4]):
                pass
        used.observation_space.sample()
        str(used.unwrapped.action_space)
        if used is env:
            env.render()
        name = "LunarLander" if used is env else LANDER
        assert Training(small(eval_every=50), used).config.env == name


def test_train_goes_on_in_an_object_that_never_repeats_itself(tmp_path):
    class Dice(Toy, gym.utils.EzPickle):  # drawing where no seed is heeded
        def __init__(self):
            Toy.__init__(self)
            gym.utils.EzPickle.__init__(self)

        def reset(self, seed=None, options=None):
            self.coin, self.speed = random.randrange(2), random.random()
            self.seeds, self.received = [], []  # which copies would lack
            return super().reset(seed=seed)

        def step(self, action):
            obs, rew, *more = super().step(action)
            return obs + np.float32(self.speed), rew + self.coin, *more

    for _ in range(20):
        dice = Dice()
        for _ in range(12):
            dice.reset()
            dice.step(dice.action_space.sample())
        ddpg.env_makers(small(eval_every=50), dice)
    config = small(eval_every=50, eval_episodes=3, total_steps=100)
    save_each_episode()
    folder = begin(config, tmp_path / "run", Dice(), until=75)
    run = go_on(folder, Dice())
    assert run.step == 100 and 9 <= run.evaluation["eval_mean"] <= 21


def test_train_files_no_object_under_an_id_that_it_is_unlike(tmp_path, capsys):
    config = small(eval_every=60, eval_episodes=1, total_steps=60)
    for name, env in {
        "arguments": gym.make("Pendulum-v1", g=1.0),
        "wrapped": gym.wrappers.TransformReward(gym.make("Pendulum-v1"), lambda reward: -reward),
        "limit": gym.make("Pendulum-v1", max_episode_steps=50),
        "changed since": changed("Pendulum-v1", lambda env: setattr(env.unwrapped, "g", 1.6)),
        "limited since": changed("Pendulum-v1", lambda env: setattr(env, "_max_episode_steps", 9)),
    }.items():
        folder = tmp_path / name
        train(config, env, out=folder)
        assert load(folder).meta["env"] == "PendulumEnv"
        assert ddpg.main(["--eval", str(folder)]) == 2
        assert ddpg.main(["--resume", str(folder), "--total-steps", "90"]) == 2
        assert "PendulumEnv" in capsys.readouterr().err
    train(config, gym.make("Pendulum-v1"), out=tmp_path / "plain")
    assert ddpg.main(["--eval", str(tmp_path / "plain"), "--episodes", "1"]) == 0


def test_train_closes_the_environment_of_each_episode_but_never_yours(tmp_path):
    toys, config = Toys(), small(total_steps=95)
    run_for(config, toys)
    assert [toy.closed for toy in toys.made] == [1] * len(toys.made)  # also the one under way
    for run in (steps := ddpg.record(Training(config, Toy), ddpg.new_folder(tmp_path / "run"))):
        if run.step == 40:
            break
    steps.close()
    toys = Toys()
    ddpg.resume(tmp_path / "run", toys)
    assert toys.made and all(toy.closed == 1 for toy in toys.made)
    mine = Toy()
    run_for(config, mine)
    assert not mine.closed


def test_train_closes_all_environments_when_one_fails():
    fails = Toys(at=5, step=lambda result: 1 / 0)
    with pytest.raises(EnvError):
        run_for(small(total_steps=95), fails)
    assert not fails.open()
    for at, evaluation in (0, Toys(at=5, reward=lambda reward: np.nan)), (1, Toys()):
        with pytest.raises(EnvError if not at else ddpg.Stopped):
            ddpg.SIGNALS[:] = [2] * at
            evaluate(an_agent(2), evaluation, range(3))
        ddpg.SIGNALS.clear()
        assert not evaluation.open()


def test_train_files_no_policy_under_the_evaluation_of_an_earlier_step(tmp_path):
    def fail(result):
        raise RuntimeError("broken")

    config = small(eval_every=29, eval_episodes=2, total_steps=95)
    run = Training(config, Toy(at=30, reset=fail))
    with pytest.raises(EnvError, match="broken"):
        for _ in ddpg.record(run, ddpg.new_folder(tmp_path / "run")):
            pass
    assert load(tmp_path / "run/best.npz").meta["evaluation"] == 10
    last = ddpg.read_npz(tmp_path / "run/last.npz")[1]
    assert last["step"] == 30 and last["evaluation"] is None


@pytest.mark.parametrize("kind", [np.float32, torch.tensor, float])
def test_train_tables_and_files_take_numbers_that_are_not_pythons(kind, tmp_path):
    number = kind(0.123456789)
    run = Training(small(total_steps=2), Toy())
    run.add_row("progress.csv", {"step": np.int64(2), "mean": number, "done": np.bool_(True)})
    assert run.tables["progress.csv"] == ["step,mean,done\n", "2,0.123457,1\n"]
    ddpg.write_npz(tmp_path / "file.npz", {}, evaluation={"mean": number}, step=np.int64(2))
    meta = ddpg.read_npz(tmp_path / "file.npz")[1]
    assert meta["step"] == 2 and meta["evaluation"]["mean"] == pytest.approx(0.123456789)


def test_train_says_if_threads_from_before_keep_denormals(tmp_path, interpreter):
    """Those do that were made before it was tuned, as two of the four here."""
    script = f"""
import sys; sys.path.append({str(ROOT)!r})
import torch, ddpg
numbers = torch.rand(2**22)
for threads in 2, 2, 1:
    ddpg.tune(ddpg.Config(), threads)
    (numbers * numbers).sum()
print("tuned first", file=sys.stderr)
torch.set_flush_denormal(False)
torch.set_num_threads(4)
(numbers * numbers).sum()
ddpg.tune(ddpg.Config(), 4)
"""
    (tmp_path / "script.py").write_text(script)
    result = interpreter("script.py", cwd=tmp_path)
    lines = [line for line in result.stderr.splitlines() if "cores are free" not in line]
    first, second = lines
    assert first == "tuned first" and second.startswith("ddpg.py: torch had threads before")


@pytest.mark.parametrize("threads, cores, ours, load, told", [
    (None, 2, 2, 9.0, None),
    (1, 1, 1, 9.0, None),
    (2, 2, 2, 0.4, None),
    (2, 2, 2, 0.6, "2 threads, but 1 of 2 cores are free: they wait for each other, which may"),
    (8, 4, 4, 0.0, "8 threads, but 4 of 4 cores are free"),
    (2, 8, 1, 0.0, "2 threads, but 1 of 8 cores are free"),  # taskset
    (2, 2, 2, OSError(), None),  # where nobody counts
])  # fmt: skip
def test_train_says_if_there_are_fewer_free_cores_than_threads(
    threads, cores, ours, load, told, monkeypatch, capsys
):
    def loads():
        if isinstance(load, OSError):
            raise load
        return load, 0.0, 0.0

    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(os, "getloadavg", loads, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(ours), raising=False)
    ddpg.tune(small(), threads)
    lines = capsys.readouterr().err.splitlines()  # one may be on threads of tests before
    lines = [line for line in lines if "keep denormals" not in line]
    assert len(lines) == bool(told) and (told or "") in "".join(lines)


def test_train_at_a_precision_of_ones_own(monkeypatch, capsys):
    """As gradients are compared exactly; the tuned precision is what is set, none is what was."""
    products = []
    try:
        for precision in "medium", "high", None, "highest":
            ddpg.tune(small(), None, precision)
            agent = an_agent(hidden=(256, 256), batch_size=256)
            learn(agent, 2, size=256)
            assert len(agent.by_hand) == 2 and capsys.readouterr().err == ""
            products.append(torch.get_float32_matmul_precision())
        assert products == ["medium", "high", "high", "highest"]
        torch.set_float32_matmul_precision("medium")
        monkeypatch.setattr(ddpg, "critic_gradient", None)  # raises
        assert len(an_agent().by_hand) == 1  # the actor's
        assert torch.get_float32_matmul_precision() == "medium"
        with pytest.raises(UsageError, match="precision: 16 is not highest, high, medium"):
            ddpg.tune(small(), None, 16)
    finally:
        torch.set_float32_matmul_precision("highest")


# ---- graphs ----


class Recording(TorchDispatchMode):
    """Stands for torch.cuda.CUDAGraph on a CPU: the operations on tensors within `graph`, which
    have no effect then, and are done again, on the same memory, by `replay`."""

    made, open = [], None

    def __init__(self):
        super().__init__()
        self.calls, self.before, self.replays = [], {}, 0
        self.made.append(self)

    def register_generator_state(self, generator):
        self.drawn = generator, generator.get_state(), torch.get_rng_state()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "_local_scalar_dense" in str(function):  # .item() and the like
            raise RuntimeError("operation not permitted when stream is capturing")
        if function._schema.is_mutable or "batch_norm" in str(function):
            for tensor in filter(torch.is_tensor, pytree.tree_leaves((args, kwargs))):
                self.before.setdefault(id(tensor), (tensor, tensor.detach().clone()))
        self.calls.append((function, args, kwargs or {}, function(*args, **kwargs or {})))
        return self.calls[-1][-1]

    @classmethod
    @contextmanager
    def graph(cls, recording, stream):
        cls.open = recording
        try:
            with recording:
                yield
        finally:
            cls.open = None
            with torch.inference_mode():
                for tensor, before in reversed(recording.before.values()):
                    tensor.copy_(before)
            generator, state, global_state = recording.drawn
            generator.set_state(state)
            torch.set_rng_state(global_state)

    @torch.inference_mode()
    def replay(self):
        self.replays += 1
        for function, args, kwargs, result in self.calls:
            again = function(*args, **kwargs)
            if not any(returned.alias_info for returned in function._schema.returns):
                for old, new in zip(pytree.tree_leaves(result), pytree.tree_leaves(again)):
                    _ = torch.is_tensor(old) and old.copy_(new)


class OnCard:
    """A replay as `draw_rows` sees it where its rows are on a card."""

    def __init__(self, buffer):
        self.buffer, self.filled = buffer, buffer.filled
        self.rows = types.SimpleNamespace(is_cuda=True, device="cpu")

    def __len__(self):
        return len(self.buffer)


@pytest.fixture
def card(monkeypatch):
    """Makes the CPU a card, as far as Graphs see -> a function: a Training there, with or without.

    As on a card, .item() raises while synchronising is an error.
    """
    stream = types.SimpleNamespace(wait_stream=lambda other: None, synchronize=lambda: None)
    item, modes = torch.Tensor.item, [0]

    def refuse(tensor):
        raise RuntimeError("called a synchronizing CUDA operation")

    def set_mode(mode):
        modes.append(mode)
        monkeypatch.setattr(torch.Tensor, "item", refuse if mode == "error" else item)

    fakes = dict(CUDAGraph=Recording, graph=Recording.graph, stream=lambda s: nullcontext())
    fakes |= dict.fromkeys(("Stream", "current_stream"), lambda: stream)
    fakes["is_current_stream_capturing"] = lambda: Recording.open is not None
    fakes |= dict(set_stream=lambda s: None, set_sync_debug_mode=set_mode)
    fakes |= dict(get_rng_state=lambda device: torch.get_rng_state())
    fakes |= dict(set_rng_state=lambda state, device: torch.set_rng_state(state))
    fakes["get_sync_debug_mode"] = lambda: modes[-1]
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: self)
    draw, Graphs = ddpg.draw_rows, ddpg.Graphs
    monkeypatch.setattr(ddpg, "draw_rows", lambda buffer, *args: draw(OnCard(buffer), *args))
    for name, calls in dict(WARM_UP=2, COMPARED=4, COMPARE_EVERY=23).items():
        monkeypatch.setattr(Graphs, name, calls)

    def begin(graphs=True, agent=Agent, **changes):
        Recording.made.clear()
        config = small(**dict(total_steps=150, algo="td3") | changes)
        run = Training(config, Toys(), agent=agent)
        run.agent.by_hand = {}  # as on a card
        run.graphs = Graphs(run) if graphs else None
        run.agent.MEASURE_EVERY = 35
        return run

    yield begin
    assert modes[-1] == 0


def trained(run, change=lambda run: None):
    """All that came of it."""
    torch.manual_seed(0)
    for _ in run:
        change(run)
    state = run.agent.state_dict()
    names = *NETWORKS, "critic_optimizer", "generator", "updates", "metrics"
    state = {name: state[name] for name in names}
    return pytree.tree_map(lambda x: x.tolist() if torch.is_tensor(x) else x, state), run.tables


@pytest.mark.parametrize("changes", [
    dict(total_steps=300),
    dict(algo="ddpg", n_step=3, updates_per_step=2, learning_starts=20),
    dict(policy_delay=3, layer_norm=False, buffer_size=70, total_steps=200),
])  # fmt: skip
def test_graphs_replay_what_the_code_does_to_the_bit(card, changes, capsys):
    plain, replayed = card(graphs=False, **changes), card(**changes)
    assert trained(plain) == trained(replayed)
    assert replayed.graphs and capsys.readouterr().err == ""
    kinds = 2 if replayed.config.policy_delay == 1 else 3  # an action, updates
    replays = sum(recording.replays for recording in Recording.made)
    updates = replayed.agent.updates
    assert len(Recording.made) == kinds and replays > 1.2 * updates > 140


def test_graphs_go_on_from_a_state_to_the_bit(card):
    def stopped(run, step):
        for _ in run:
            if run.step == step:
                return run.state()

    whole = trained(card(total_steps=200))
    arrays, meta = stopped(card(total_steps=200), 100)
    arrays, meta = pickle.loads(pickle.dumps((arrays, json.loads(json.dumps(meta, default=float)))))
    again = card(total_steps=200)
    again.restore(arrays, meta)
    assert trained(again) == whole and again.graphs


class Drops(Agent):
    """Draws from torch's own generator."""

    def critic_loss(self, obs, act, target_q):
        return super().critic_loss(F.dropout(obs, 0.1), act, target_q)


class Centres(Agent):
    """Has a tensor that belongs to no network."""

    def __init__(self, *args):
        super().__init__(*args)
        self.mean = torch.zeros(self.obs_dim)

    def critic_loss(self, obs, act, target_q):
        with torch.no_grad():
            self.mean.lerp_(obs.mean(0), 1e-3)
        return super().critic_loss(obs - self.mean, act, target_q)


class ClipsCritic(Agent):
    def descend(self, optimizer, loss, *batch):
        optimizer.zero_grad()
        loss(*batch).backward()
        nn.utils.clip_grad_norm_(self.flat["critic"].params, 0.1)
        optimizer.step()


class Logs(Agent):
    def critic_loss(self, obs, act, target_q):
        loss = super().critic_loss(obs, act, target_q)
        self.last, self.least = loss.detach(), loss
        return loss


@pytest.mark.parametrize("kind", [Drops, Centres, ClipsCritic, Logs])
def test_graphs_hold_what_one_may_add(card, kind, capsys):
    replayed = card(agent=kind)
    assert trained(replayed) == trained(card(graphs=False, agent=kind)) and replayed.graphs
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("layer", [nn.Dropout(0.2), nn.BatchNorm1d(16)])
def test_graphs_act_without_dropout_and_with_the_norm_of_all_batches(card, layer, monkeypatch):
    class OwnActor(nn.Module):
        def __init__(self, obs_dim, act_dim, config):
            super().__init__()
            layers = nn.Linear(obs_dim, 16), copy.deepcopy(layer), nn.ReLU()
            self.net = nn.Sequential(*layers, nn.Linear(16, act_dim), nn.Tanh())

        def forward(self, obs):
            return self.net(obs)

    monkeypatch.setattr(ddpg, "Actor", OwnActor)
    replayed = card()
    assert trained(replayed) == trained(card(graphs=False)) and replayed.graphs


def set_rates(run, rate=1e-2):
    run.agent.critic_optimizer.lr = run.agent.actor_optimizer.lr = rate


def set_targets(run):
    run.agent.config = run.agent.config.replace(tau=0.5, target_noise=0.0)


def set_batch(run):
    run.config = run.config.replace(batch_size=8, updates_per_step=2)


def new_buffer(run):
    old = run.buffer
    run.buffer = ReplayBuffer(500, *old.columns[:2], 1, run.config.gamma)
    run.buffer.rows[:50] = old.rows[:50]
    run.buffer.written = 50


def new_rows(run):
    rows = run.buffer.rows
    run.buffer.rows = torch.cat([rows, torch.zeros(500, rows.shape[1])])


def new_agent(run):
    by_hand, run.agent = run.agent.by_hand, copy.deepcopy(run.agent)
    run.agent.by_hand = by_hand
    for flat in run.agent.flat.values():
        flat.data.mul_(0.5)


def new_optimizer(run):
    run.agent.critic_optimizer = ddpg.Adam(run.agent.flat["critic"], 1e-3)


def load_parameters(run):
    start = an_agent(len(run.agent.obs_dim * [0]), hidden=(16, 16), algo="td3", seed=1)
    run.agent.load_state_dict(start.state_dict())
    run.agent.updates = 100


def set_weight(run):
    run.agent.weight = -1.0


def new_alpha(run):
    run.agent.alpha = torch.full((), -1.0)


class Weighs(Agent):
    weight = 1.0

    def __init__(self, *args):
        super().__init__(*args)
        self.weight, self.alpha = 1.0, torch.ones(())

    def critic_loss(self, obs, act, target_q):
        return super().critic_loss(obs, act, target_q) * self.weight * self.alpha


CHANGES = [set_rates, set_targets, set_batch, set_weight, new_buffer, new_rows, new_agent]
CHANGES += [new_optimizer, load_parameters, new_alpha]


@pytest.mark.parametrize(
    "change, step", [*((c, 95) for c in CHANGES), (set_rates, 56), (new_agent, 56)]
)
def test_graphs_are_made_anew_for_what_is_changed(card, change, step, capsys):
    """While they are compared, and later."""
    plain, replayed = card(False, Weighs, total_steps=130), card(True, Weighs, total_steps=130)
    results = [
        trained(run, lambda run: run.step == step and change(run)) for run in (plain, replayed)
    ]
    assert results[0] == results[1] and replayed.graphs and capsys.readouterr().err == ""


class Asks(Agent):
    def critic_loss(self, obs, act, target_q):
        loss = super().critic_loss(obs, act, target_q)
        return loss if loss.item() < 1e9 else 0 * loss


class Warms(Agent):
    def critic_loss(self, obs, act, target_q):
        return super().critic_loss(obs, act, target_q) * min(1, self.updates / 100)


class Alternates(Agent):
    def actor_loss(self, obs, act):
        return super().actor_loss(obs, act) * (1 if self.updates % 4 else 2)


class Copies(Agent):
    def update(self, batch):
        super().update(batch)
        if self.updates == 80:
            self.flat["critic_target"].follow(self.flat["critic"], 1)


class Counts(Agent):
    calls = 0

    def critic_loss(self, obs, act, target_q):
        self.calls += 1
        return super().critic_loss(obs, act, target_q) * (1 if self.calls % 3 else 2)


class Guesses(Agent):
    def act_unit(self, obs):
        return super().act_unit(obs) / 2


class Torchs(Agent):
    def __init__(self, *args):
        super().__init__(*args)
        self.critic_optimizer = torch.optim.SGD(self.critic.parameters(), 1e-3, momentum=0.9)


@pytest.mark.parametrize("kind, reason", [
    (Asks, "RuntimeError: called a synchronizing CUDA operation"),
    (Warms, "TypeError: unsupported operand type(s) for /: 'Unread' and 'int'"),
    (Alternates, "TypeError: a graph cannot hold updates % 4"),
    (Copies, "TypeError: 'NoneType' object is not callable"),
    (Counts, "numbers of the agent change all the time"),
    (Guesses, "replaying the action is not the same: it depends on more than tensors"),
    (Torchs, "TypeError: other optimizers replace their tensors"),
])  # fmt: skip
def test_graphs_are_left_for_what_no_graph_can_do(card, kind, reason, capsys):
    plain, replayed = card(graphs=False, agent=kind), card(agent=kind)
    assert trained(plain) == trained(replayed) and replayed.graphs is None
    assert capsys.readouterr().err == f"ddpg.py: slower, without CUDA graphs: {reason}\n"


def test_graphs_are_left_where_a_learning_rate_always_changes(card, capsys):
    def anneal(run):
        set_rates(run, 1e-3 / (1 + run.step))

    replayed = card()
    assert trained(replayed, anneal) == trained(card(graphs=False), anneal)
    assert replayed.graphs is None
    assert capsys.readouterr().err.count("numbers of the agent change all the time") == 1


@pytest.mark.parametrize("what", ["loss", "targets"])
def test_graphs_that_come_to_differ_are_an_error(card, what):
    class Hidden(Agent):
        weights = [1.0]

        def critic_loss(self, obs, act, target_q):
            weight = self.weights[0] if what == "loss" else 1
            return super().critic_loss(obs, act, target_q) * weight

        def update(self, batch):
            super().update(batch)
            if what == "targets":
                self.flat["critic_target"].data.mul_(self.weights[0])

    def change(run):
        if run.step == 95:
            Hidden.weights[0] = -1.0

    with pytest.raises(RuntimeError, match="replaying the .*update .* pass --no-graphs"):
        trained(card(agent=Hidden), change)


@pytest.mark.parametrize("step", [56, 95])
def test_graphs_say_what_has_diverged(card, step):
    def diverge(run):
        if run.step == step:
            run.agent.flat["critic"].data.fill_(np.nan)

    with pytest.raises(EnvError, match="has become nan|action .nan. is not finite"):
        trained(card(), diverge)


def test_graphs_of_a_buffer_of_ones_own(card):
    class Own:
        """With a size of its own, not on the card."""

        columns = [2, 1, 1, 2, 1]

        def __init__(self, n_step=1):
            self.list, self.rows, self.filled = [], torch.zeros(400, 7), 0

        def __len__(self):
            return len(self.list)

        def add(self, obs, act, rew, next_obs, terminated, truncated):
            self.list.append([*obs, *act, rew, *next_obs, 0.9 * (not terminated)])
            self.rows[len(self.list) - 1] = torch.tensor(self.list[-1])

        def sample(self, batch_size, generator):
            rows = torch.randint(40, (batch_size,), generator=generator)
            return self.rows.index_select(0, rows).split(self.columns, dim=1)

    results = []
    for graphs in False, True:
        run = card(graphs=graphs)
        run.buffer = Own()
        results.append(trained(run))
        assert bool(run.graphs) == graphs
    assert results[0] == results[1]


def test_graphs_draw_from_all_rows_and_no_others():
    buffer = ReplayBuffer(1_000, 1, 1)
    buffer.written = 7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
        rows = ddpg.draw_rows(OnCard(buffer), 70_000, torch.Generator().manual_seed(0))
    assert rows.bincount().sub(10_000).abs().max() < 500 and len(rows.bincount()) == 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA here")
def test_graphs_on_a_card_check_all_of_this(interpreter):
    result = interpreter(ROOT / "benchmarks" / "gpu.py", "--check", timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


# ---- environments ----


def test_env_observations_and_actions_of_any_shape_are_flattened():
    toy = Toy(
        low=-np.ones((2, 2)),
        high=np.ones((2, 2)),
        obs=lambda t: np.full((2, 3), 0.1 * t),
    )
    agent = run_for(small(total_steps=60), toy).agent
    assert (agent.obs_dim, len(agent.low)) == (6, 4) and toy.received[0].shape == (2, 2)


SPACES_SEEN = {  # what a Toy shows at each step: its space, and a function of the step
    "nested": (
        gym.spaces.Dict(
            z=gym.spaces.Box(-9, 9, (2, 1)),
            goal=gym.spaces.Dict(b=gym.spaces.MultiBinary(3), a=gym.spaces.Box(-9, 9, (), float)),
            pair=gym.spaces.Tuple([gym.spaces.Discrete(12, start=-1), gym.spaces.Box(-9, 9, (0,))]),
            grid=gym.spaces.MultiDiscrete([[11, 2]]),
        ),
        lambda t: {
            "grid": [[t, t % 2]],
            "z": np.float64([[0.1 * t], [0.2]]),
            "pair": (np.int64(t - 1), []),
            "goal": {"a": 0.3 * t, "b": [t > 2, 0, 1]},
        },
    ),
    "Discrete": (gym.spaces.Discrete(11), int),
    "MultiBinary": (gym.spaces.MultiBinary((2, 2)), lambda t: np.full((2, 2), t % 2, np.int8)),
    "MultiDiscrete": (gym.spaces.MultiDiscrete([11, 3]), lambda t: np.array([t, t % 3])),
}


def showing(space, shown):
    """A Toy that shows shown(step) instead of its own observations."""
    toy = Toy()
    return gym.wrappers.TransformObservation(toy, lambda obs: shown(toy.t), space)


@pytest.mark.parametrize("space, shown", SPACES_SEEN.values(), ids=SPACES_SEEN)
def test_env_observations_of_any_space_are_seen_as_gymnasium_flattens_them(tmp_path, space, shown):
    def flat():
        return gym.wrappers.FlattenObservation(showing(space, shown))

    config = small(total_steps=65, eval_every=65, eval_episodes=1)
    run, same = run_for(config, lambda: showing(space, shown)), run_for(config, flat)
    assert torch.equal(run.buffer.rows[:65], same.buffer.rows[:65])
    assert not unlike(numbers(run.agent), numbers(same.agent))
    assert run.agent.obs_dim == gym.spaces.flatdim(space) and run.evaluation["eval_mean"] == 10


def test_env_observations_of_a_dict_are_evaluated_resumed_and_viewed(tmp_path, capsys, monkeypatch):
    space, shown = SPACES_SEEN["nested"]
    monkeypatch.setitem(sys.modules, "nested", types.ModuleType("nested"))
    gym.register("Nested-v0", lambda: showing(space, shown), max_episode_steps=20)
    env, run = ["--env", "nested:Nested-v0"], str(tmp_path / "run")
    flags = "--learning-starts 20 --hidden 8 --eval-every 30 --eval-episodes 1 --json --episodes 2"
    assert ddpg.main([*env, *flags.split(), "--total-steps", "30", "--out", run]) == 0
    for line in ["--resume", run, "--total-steps", "40"], ["--eval", run]:
        assert ddpg.main([*line, *env, "--json", "--episodes", "2"]) == 0
    tests = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [test["mean"] for test in tests] == [10] * 3
    assert [row["return"] for row in rows_of(capsys, run, *env, "--episodes", 1)[:1]] == [10]
    seen = gym.spaces.flatten(space, shown(3))
    assert load(run).act(seen).shape == (1,)


GOAL = gym.spaces.Dict(
    seen=gym.spaces.Box(-9, 9, (2,)), goal=gym.spaces.Tuple([gym.spaces.Discrete(3)])
)


@pytest.mark.parametrize("obs, words", [
    ({"seen": [0, 0]}, "KeyError: 'goal'"),
    ({"seen": [0, 0], "goal": ()}, "ValueError"),
    ([0, 0, 1], "TypeError"),
    ({"seen": [0], "goal": (1,)}, "is not finite and of size 5"),
    ({"seen": [0, np.nan], "goal": (1,)}, "is not finite"),
    ({"seen": ["a", "b"], "goal": (1,)}, "ValueError"),
    ({"seen": [0, 0], "goal": (3,)}, "IndexError"),
    ({"seen": [0, 0], "goal": (0.5,)}, "IndexError"),
])  # fmt: skip
def test_env_observation_with_a_wrong_part_is_an_error(obs, words):
    def shown(t):
        return obs if t == 7 else {"seen": [t, 0], "goal": (t % 3,)}

    run = Training(small(total_steps=100), lambda: showing(GOAL, shown))
    with pytest.raises(EnvError, match=re.escape(words) + ".* at step 7"):
        list(run)
    assert run.step == 6


def test_env_may_count_as_false_and_a_policy_may_have_no_hidden_layers():
    run = run_for(small(total_steps=65, hidden=()), toy := Toy())
    assert not toy and run.episode.env is toy
    assert run.agent.updates == 15 and len(run.agent.actor.net.weights) == 1


def test_env_bounds_of_float64_are_kept():
    toy = Toy()
    toy.action_space = gym.spaces.Box(-0.1, 0.1, (1,), np.float64)  # float32(0.1) > 0.1
    run_for(small(total_steps=80, noise_sigma=2.0), toy)  # Toy asserts that none is beyond
    assert toy.received[0].dtype == np.float64 and np.max(toy.received) == 0.1


@pytest.mark.parametrize("space, words", [
    (gym.spaces.Box(0, 3, (1,), np.int64), "int64.: DDPG needs continuous ones, a Box"),
    (gym.spaces.Discrete(3), "its actions are Discrete.3.: DDPG needs continuous ones, a Box"),
    (gym.spaces.MultiDiscrete([2, 3]), "DDPG needs continuous ones, a Box"),
    (gym.spaces.MultiBinary(2), "DDPG needs continuous ones, a Box"),
    (gym.spaces.Dict(x=gym.spaces.Box(-1, 1)), "DDPG needs continuous ones, a Box"),
    (gym.spaces.Box(-3e38, 3e38, (1,)), "unbounded"),
])  # fmt: skip
def test_env_actions_that_tanh_cannot_serve_are_refused(space, words):
    toy = Toy()
    toy.action_space = space
    with pytest.raises(UsageError, match=words):
        Training(small(), toy)


@pytest.mark.parametrize("limit", [0, 5])
@pytest.mark.parametrize("as_object", [True, False])
def test_env_that_is_a_vector_is_refused(limit, as_object):
    def make():
        return gym.vector.SyncVectorEnv([Toy, Toy])

    with pytest.raises(UsageError, match="is a vector of environments: pass one of them"):
        Training(small(max_episode_steps=limit), make() if as_object else make)


def test_env_episode_without_end_is_named(monkeypatch):
    monkeypatch.setattr(ddpg.Episode, "LONGEST", 100)
    with pytest.raises(EnvError, match="max_episode_steps"):
        run_for(small(total_steps=200), Toy(10**6))
    assert run_for(small(total_steps=200, max_episode_steps=50), Toy(10**6)).episodes == 4


def test_env_time_limit_that_is_long_but_declared_is_respected(monkeypatch):
    """In its spec, by a wrapper or by our own setting; one that it does not keep is named."""
    monkeypatch.setattr(ddpg.Episode, "LONGEST", 20)
    gym.register("Long-v0", lambda: Toy(10**6), max_episode_steps=30)
    spec, toy = gym.spec("Long-v0"), Toy(30)
    toy.spec, broken = spec, Toy(10**6)
    broken.spec = spec
    config = small(total_steps=60)
    for env in lambda: gym.make("Long-v0"), gym.wrappers.TimeLimit(Toy(10**6), 30), toy:
        assert run_for(config, env).episodes == 2
    for id, limit, episodes in ("Long-v0", 0, 2), ("Long-v0", 60, 1), ("Long-v0", 6, 10):
        assert run_for(config.replace(env=id, max_episode_steps=limit)).episodes == episodes
    assert run_for(config.replace(max_episode_steps=30), lambda: Toy(10**6)).episodes == 2
    with pytest.raises(EnvError, match="no end in sight, set max_episode_steps, at step 31"):
        run_for(config, broken)


@pytest.mark.parametrize("limit", [50, 300])
def test_env_time_limit_can_be_shorter_or_longer_than_its_own(limit):
    changes = dict(learning_starts=300, total_steps=300, max_episode_steps=limit)
    assert run_for(small(env="Pendulum-v1", **changes)).episodes == 300 // limit


def test_env_receives_nothing_but_numbers():
    toy = Toy()
    run = Training(small(total_steps=200), toy)
    with pytest.raises(EnvError, match="action"):
        for _ in run:
            if run.step == 100:
                run.agent.flat["actor"].data.fill_(np.nan)
    assert toy.count == 100


@pytest.mark.parametrize("broken, words", [
    (dict(next_obs=lambda obs: obs * np.nan), "observation .* at step 3"),
    (dict(next_obs=lambda obs: obs * np.inf), "observation .* at step 3"),
    (dict(next_obs=lambda obs: obs[:1]), "observation .* at step 3"),
    (dict(next_obs=lambda obs: {"x": obs}), "observation .* at step 3"),
    (dict(reward=lambda reward: np.nan), "reward .* at step 3"),
    (dict(reward=lambda reward: None), "reward .* at step 3"),
    (dict(reward=lambda reward: np.ones(2)), "reward .* at step 3"),
    (dict(reward=lambda reward: "bad"), "reward .* at step 3"),
    (dict(reward=lambda reward: 10**400), "reward .* at step 3"),
    (dict(step=lambda result: result[1:]), "returned 4 things.* 5.* at step 3"),
    (dict(step=lambda result: None), "no len.* at step 3"),
    (dict(first=lambda obs: obs * np.nan), "observation .* at step 0"),
    (dict(reset=lambda result: [0.0, 0.0, 0.0]), "returned 3 things.* 2.* at step 0"),
])  # fmt: skip
def test_env_whose_results_cannot_be_learnt_from_is_named_and_they_are_not_stored(broken, words):
    run = Training(small(total_steps=100), Toy(at=33, **broken))
    with pytest.raises(EnvError, match=rf"(?s){words} of the episode with seed \d+"):
        for _ in run:
            pass
    good = 40 if "step 0" in words else 32
    assert run.step == len(run.buffer) == good and run.buffer.rows[:good].isfinite().all()


def test_env_object_that_cannot_be_copied_is_told_what_to_do():
    toy = Toy()
    toy.clock = (i for i in ())
    with pytest.raises(UsageError, match="pass a function that makes it"):
        Training(small(eval_every=10), toy)


class Port(Toy):
    """Of which `most` can be open at a time."""

    most = 1
    used = []

    def __init__(self):
        if len(Port.used) >= self.most:
            raise OSError("port busy")
        Port.used.append(self)
        super().__init__(length=lambda seed: 3 + seed % 5)

    def step(self, action):
        assert self in Port.used
        return super().step(action)

    def close(self):
        Port.used.remove(self)

    def __deepcopy__(self, memo):
        return Port()


@pytest.fixture
def port(monkeypatch):
    monkeypatch.setattr(Port, "used", [])
    return Port


def test_env_that_exists_only_once_trains_without_evaluations(port, tmp_path):
    config = small(total_steps=60, eval_every=20)
    gym.register("Port-v0", port, max_episode_steps=10)
    for kind, error in {
        None: "Port-v0 cannot be made again, beside the first, .*eval_every=0.*OSError: port busy",
        port: "Port cannot be made again, beside the first, .*eval_every=0.*OSError: port busy",
        port(): "Port cannot be copied for evaluation .*eval_every=0.*OSError: port busy",
    }.items():
        if not isinstance(kind, Port):
            port.used.clear()
        with pytest.raises(UsageError, match=error):
            Training(config.replace(env="Port-v0"), kind)
    run = run_for(config.replace(eval_every=0), only := port.used[0])
    assert run.step == 60 and port.used == [only]
    port.used.clear()
    for kind in None, port:
        run = run_for(config.replace(env="Port-v0", eval_every=0), kind)
        assert run.step == 60 and not port.used
        assert evaluate(run.agent, run.make_eval_env, range(5))[1].tolist() == [3, 4, 5, 6, 7]


def test_env_that_cannot_be_closed_is_named_so(monkeypatch):
    monkeypatch.setattr(Toy, "close", lambda toy: 1 / 0)
    for every in 0, 50:
        with pytest.raises(UsageError, match="Toy cannot be closed: .*division by zero"):
            Training(small(eval_every=every), Toy)


@pytest.mark.parametrize("wrapper", ["NormalizeObservation", "NormalizeReward"])
def test_env_with_statistics_of_its_own_is_refused_by_name(wrapper):
    def make():
        return gym.wrappers.RescaleAction(getattr(gym.wrappers, wrapper)(Toy()), -1, 1)

    gym.register("Normalised-v0", make, max_episode_steps=10)
    for env in make, make(), "Normalised-v0":
        with pytest.raises(UsageError, match=f"{wrapper} .*leave it out"):
            Training(small(), env)


def test_env_that_draws_each_step_is_refused_before_it_opens_a_window(tmp_path, capsys):
    made = []

    class Draws(Toy):
        metadata = {"render_modes": ["human"]}

        def __init__(self, render_mode=None):
            super().__init__()
            self.render_mode = render_mode
            made.append(render_mode)

    gym.register("Draws-v0", Draws, max_episode_steps=10)
    for env in (
        Draws("human"),
        partial(Draws, "human"),
        partial(gym.make, "Draws-v0", None, render_mode="human"),
    ):
        with pytest.raises(UsageError, match="--watch"):
            Training(small(), env)
    made.clear()
    human = ["--env-kwargs", '{"render_mode": "human"}']
    train(small(env=PENDULUM, total_steps=60), out=tmp_path / "run")
    for flags in ["--env", "Draws-v0", *human], ["--eval", str(tmp_path / "run"), *human]:
        assert ddpg.main(flags) == 2 and "--watch" in capsys.readouterr().err
    assert made == []


@pytest.mark.parametrize("line, words", {
    "assert d": "AssertionError at bad.py:4: assert d",
    "raise ValueError": "ValueError at bad.py:4: raise ValueError",
    "d['x'] if d else {}['x']": "KeyError: 'x' at bad.py:4: d['x'] if d else {}['x']",
    "gym.make('Pendlum-v1')": "Did you mean: `Pendulum`? at bad.py:4: gym.make('Pendlum-v1')",
    "len(3)": "at bad.py:4: len(3)",
}.items())  # fmt: skip
def test_env_that_cannot_be_made_is_told_the_line(tmp_path, monkeypatch, capsys, line, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "bad", raising=False)
    code = (
        f"import gymnasium as gym\nclass Bad(gym.Env):\n  def __init__(self, d=None):\n    {line}\n"
    )
    (tmp_path / "bad.py").write_text(code + "gym.register('Bad-v0', Bad, max_episode_steps=10)\n")
    assert ddpg.main(["--env", "bad:Bad-v0"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("ddpg.py: bad:Bad-v0 cannot be made: ") and words in err
    assert err.count("\n") == 1


def test_env_made_to_look_at_is_closed():
    toys = Toys()
    ddpg.env_makers(Config(), toys)
    assert toys.made and not toys.open()


def test_env_that_changes_its_arguments_changes_neither_the_next_nor_the_configuration():
    got = []

    def greedy(options, names=None):
        got.append(copy.deepcopy((options, names)))
        options["n"].append(len(got))
        options["more"] = names
        return Toy()

    gym.register("Greedy-v0", greedy, max_episode_steps=10)
    kwargs = {"options": {"n": [1]}, "names": [None]}
    config = small(env="Greedy-v0", env_kwargs=kwargs, total_steps=40, **dict(eval_every=20))
    run = run_for(config)
    assert len(got) > 8 and all(each == ({"n": [1]}, [None]) for each in got)
    assert config.env_kwargs == run.config.env_kwargs == {"options": {"n": [1]}, "names": [None]}


ENDED = {  # what `terminated` may be: the truth of it, or None where it cannot be told
    "np.bool_": (np.bool_(True), True),
    "np.bool_ of False": (np.bool_(False), False),
    "1": (1, True),
    "0": (0, False),
    "an int of NumPy": (np.int64(1), True),
    "a bool array of no dimension": (np.array(True), True),
    "two": (np.array([True, False]), None),
    "two of one kind": (np.array([False, False]), None),
    "none of them": (np.array([], bool), None),
    "a list": ([True, True], None),
    "None": (None, None),
    "a text": ("False", None),
    "an empty text": ("", None),
    "nan": (np.nan, None),
    "2": (2, None),
    "-1": (-1, None),
    "an object": (type("Odd", (), {"__repr__": lambda self: "an odd thing"})(), None),
    "a dict": ({}, None),
}


@pytest.mark.parametrize("name", ["terminated", "truncated"])
@pytest.mark.parametrize("value, truth", ENDED.values(), ids=ENDED)
def test_env_ends_an_episode_with_true_or_false_only(value, truth, name):
    def said(result):
        return *result[:2], *((value, False) if name == "terminated" else (False, value)), {}

    run = Training(small(total_steps=45), Toy(20, at=33, step=said))
    if truth is None:
        words = rf"{name} {re.escape(ddpg.one_line(repr(value)))} is neither .* at step 13"
        with pytest.raises(EnvError, match=words):
            list(run)
        assert run.step == 32
    else:
        list(run)
        assert run.episodes == (14 if truth else 1)
        discount = stored(run, 33)[4][32].item()
        assert discount == (0 if truth and name == "terminated" else pytest.approx(0.99))


BEYOND = {  # what is wrong with a step: what is said of it
    "complex reward": (dict(reward=lambda reward: 1j), "reward 1j"),
    "complex reward of no imaginary part": (dict(reward=lambda r: np.complex64(1)), "reward"),
    "text as reward": (dict(reward=lambda reward: "1.0"), "reward 1.0"),
    "bytes as reward": (dict(reward=lambda reward: b"1"), "reward"),
    "texts as observation": (dict(next_obs=lambda obs: ["0.1", "0.2"]), "observation"),
    "array of texts": (dict(next_obs=lambda obs: obs.astype(str)), "observation"),
    "complex observation": (dict(next_obs=lambda obs: obs + 0j), "observation"),
    "complex first observation": (dict(first=lambda obs: obs + 0j), "observation"),
    "times": (dict(next_obs=lambda obs: np.zeros(2, "M8[s]")), "observation"),
    "observation beyond float32": (dict(next_obs=lambda obs: np.float64([1e39, 0])), "observation"),
    "first beyond float32": (dict(first=lambda obs: [0, -1e300]), "observation"),
    "reward beyond float32": (dict(reward=lambda reward: 1e39), r"R = 1e\+39"),
    "reward far beyond it": (dict(reward=lambda reward: -1e308), r"return of -1e\+308"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("broken, words", BEYOND.values(), ids=BEYOND)
def test_env_gives_real_numbers_of_float32_only(tmp_path, broken, words):
    at = 0 if "first" in broken else 3
    run = Training(small(total_steps=100), lambda: Toy(at=at, **broken))
    with pytest.raises(EnvError, match=words) as error:
        follow(run, ddpg.new_folder(tmp_path / "run"))
    assert re.search("step .* episode", str(error.value))
    assert run.buffer.rows[: len(run.buffer)].isfinite().all()
    assert load(tmp_path / "run").meta["step"] == run.step


def sound(path):
    """Whether all numbers of a policy or a state are finite."""
    arrays, _ = ddpg.read_npz(path)
    return all(np.isfinite(arrays[name]).all() for name in arrays if name != "meta")


@pytest.mark.parametrize("total, every", [(60, 0), (60, 20), (400, 0), (400, 100)])
def test_env_rewards_that_make_learning_diverge_are_named(tmp_path, total, every):
    config = Config(**SMALL | dict(eval_every=every), total_steps=total, eval_episodes=2)
    save_each_episode()
    with pytest.raises(EnvError, match=r"has become (inf|nan|-inf) after step \d+ in episode \d+"):
        begin(config, tmp_path / "run", lambda: Toy(reward=lambda reward: 1e30), until=None)
    assert all(map(sound, (tmp_path / "run").rglob("*.npz")))
    assert ddpg.resume(tmp_path / "run", Toy).step <= 50


def test_env_learning_rates_that_diverge_are_named_on_the_command_line(tmp_path, capsys):
    rates = "--actor-lr 1 --critic-lr 1 --tau 1 --gamma 1 --n-critics 2".split()
    flags = "--total-steps 500 --learning-starts 50 --batch-size 8 --eval-every 0".split()
    layers = ["--hidden", *["16"] * 12, "--quiet", "--out", str(tmp_path / "run")]
    assert ddpg.main([*flags, *rates, *layers]) == 1
    error = capsys.readouterr().err
    assert re.search(r"(become|action) \[?-?(inf|nan).*step \d+.*episode", error), error
    assert "--actor-lr" in error and error.count("\n") == 2
    policies = [*(tmp_path / "run").rglob("*.npz")]
    assert policies and all(map(sound, policies))


class Odd(BaseException):
    """Neither an Exception nor one that Python knows."""


class Leaves(Toy):
    """It calls hit(place) wherever ddpg.py calls or asks it."""

    def __init__(self, hit):
        self.hit = hit
        hit("make")
        super().__init__(10)

    def reset(self, seed=None, options=None):
        self.hit("reset")
        return super().reset(seed=seed)

    def step(self, action):
        self.hit("step")
        return super().step(action)

    def close(self):
        self.hit("close")

    def __getattribute__(self, name):
        if name.endswith("_space"):
            super().__getattribute__("hit")(name)
        return super().__getattribute__(name)


def raising(error, place, number):
    """A function of a place that raises from the number-th time on."""
    times = itertools.count(1)

    def hit(where):
        if where == place and next(times) >= number:
            raise error

    return hit


LEAVING = [  # place, time, exit code: 2 before the training, 1 in it
    ("make", 1, 2),
    ("make", 2, 1),
    ("make", 4, 1),
    ("reset", 1, 1),
    ("reset", 3, 1),
    ("step", 1, 1),
    ("step", 27, 1),
    ("close", 1, 2),
    ("close", 2, 1),
    ("observation_space", 1, 2),
    ("observation_space", 2, None),
    ("observation_space", 3, 1),
    ("action_space", 2, None),
    ("action_space", 3, 1),
]
LEAVING_ERRORS = {
    "sys.exit(0)": SystemExit(0),
    "its own": Odd("bye"),
    "OSError": PermissionError("bye"),
}


@pytest.mark.parametrize("error", LEAVING_ERRORS.values(), ids=LEAVING_ERRORS)
@pytest.mark.parametrize("place, number, code", LEAVING)
def test_env_may_raise_anything_anywhere(tmp_path, capsys, place, number, code, error):
    hit = raising(error, place, number)
    gym.register("Leaves-v0", lambda: Leaves(hit), max_episode_steps=10)
    config = small(env="Leaves-v0", total_steps=60)
    wanted = {1: EnvError, 2: UsageError, None: (EnvError, UsageError)}[code]
    with pytest.raises(wanted, match=type(error).__name__) as found:
        run = Training(config)
        follow(run, ddpg.new_folder(tmp_path / "run"))
    assert "cannot save" not in str(found.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [SystemExit(0), Odd("bye"), RuntimeError("x\n" * 2500)], ids=["exit", "odd", "long"]
)
@pytest.mark.parametrize(
    "place, number, code", [("make", 1, 2), ("make", 2, 1), ("step", 27, 1), ("close", 2, 1)]
)
def test_env_that_raises_anything_ends_a_command_as_it_should(
    tmp_path, monkeypatch, capsys, place, number, code, error
):
    hit = raising(error, place, number)
    gym.register("Leaves-v0", lambda: Leaves(hit), max_episode_steps=10)
    monkeypatch.setitem(sys.modules, "leaves", type(sys)("leaves"))
    flags = "--env leaves:Leaves-v0 --total-steps 60 --learning-starts 50 --eval-every 0 --hidden 8"
    assert ddpg.main([*flags.split(), "--quiet", "--out", str(tmp_path / "run")]) == code
    lines = capsys.readouterr().err.splitlines()
    told = lines[[line.startswith("ddpg.py: ") for line in lines].index(True) :]
    assert len(told) <= 3 and max(map(len, told)) <= 200 and type(error).__name__ in told[0]


@pytest.mark.parametrize("place", ["make", "reset", "step", "close"])
def test_env_may_raise_keyboard_interrupt_which_passes(place):
    hit = raising(KeyboardInterrupt(), place, 3)
    with pytest.raises(KeyboardInterrupt):
        run_for(small(total_steps=100), lambda: Leaves(hit))


# ---- evaluations ----


def test_evaluate_is_deterministic_and_each_seed_another_episode():
    agent, seeds = Agent(3, [-2], [2], Config.preset(**SMALL)), range(5)
    returns, lengths = evaluate(agent, lambda: gym.make("Pendulum-v1"), seeds)
    again, _ = evaluate(agent, lambda: gym.make("Pendulum-v1"), np.arange(5))
    assert np.array_equal(returns, again) and len(set(returns)) == 5 and (lengths == 200).all()


def test_evaluate_keeps_the_order_of_different_lengths_and_opens_few_environments():
    toys, seeds = Toys(length=lambda seed: 3 + seed % 5), [4, 0, 2, *range(250)]
    returns, lengths = evaluate(an_agent(2), toys, seeds)
    assert lengths.tolist() == [3 + seed % 5 for seed in seeds] == returns.tolist()
    assert [toy.closed for toy in toys.made] == [1] * 253 and toys.most_open <= 20


@pytest.mark.parametrize("wrap", [lambda toy: toy, lambda toy: gym.wrappers.TimeLimit(toy, 99)])
def test_evaluate_plays_in_turn_in_the_only_environment_and_leaves_it_open(wrap):
    toy, seeds = Toy(length=lambda seed: 3 + seed % 5, obs=lambda t: [1.0, t]), range(7)
    agent = stir(an_agent(2))
    for given in toy, lambda: wrap(toy):
        toy.seeds, toy.received = [], []
        returns, lengths = evaluate(agent, given, seeds)
        assert returns.tolist() == lengths.tolist() == [3, 4, 5, 6, 7, 3, 4]
        assert toy.seeds == [*seeds] and not toy.closed
        actions = np.concatenate([agent.act([1.0, t]) for n in lengths for t in range(int(n))])
        assert np.allclose(np.concatenate(toy.received), actions, atol=1e-6)


@pytest.mark.parametrize("most", [1, 3])
def test_evaluate_opens_no_more_than_there_can_be(port, monkeypatch, most):
    monkeypatch.setattr(Port, "most", most)
    lengths = evaluate(an_agent(2), port, range(8))[1]
    assert lengths.tolist() == [3, 4, 5, 6, 7, 3, 4, 5] and not port.used
    port.used.extend("abc")  # by others
    with pytest.raises(EnvError, match="port busy"):
        evaluate(an_agent(2), port, range(8))


def test_evaluate_does_not_disturb_training():
    changes = dict(env="Pendulum-v1", total_steps=300, eval_episodes=2)
    runs = [run_for(small(eval_every=eval_every, **changes)) for eval_every in (0, 100)]
    assert not unlike(*(numbers(run.agent) for run in runs))
    assert torch.equal(*(run.buffer.rows[:300] for run in runs))


def test_evaluate_serves_no_episode_to_two_of_training_selection_and_test(tmp_path, monkeypatch):
    toys = Toys(2)
    monkeypatch.setitem(sys.modules, "toys", types.ModuleType("toys"))
    monkeypatch.chdir(tmp_path)
    gym.register("Seeded-v0", lambda: toys(), max_episode_steps=10)
    flags = "--total-steps 100 --eval-every 50 --learning-starts 20 --hidden 8 --solved-at 1.5"
    flags += " --no-stop-when-solved --quiet --env toys:Seeded-v0"
    assert ddpg.main(flags.split()) == 0
    seeds = set(toys.seeds())
    training = {seed for seed in seeds if 2**30 <= np.int32(seed)}  # which 2^31 overflows
    assert len(training) >= 50
    tests, selection = range(100), range(10**6, 10**6 + 100)
    assert seeds - training == {*tests, *selection}


def test_evaluate_begins_with_the_object_as_it_was_at_first():
    ageing = Toy(at=11, reward=lambda reward: 0.0)
    run = Training(small(eval_every=50, eval_episodes=3, total_steps=100), ageing)
    assert [r.evaluation["eval_mean"] for r in run if r.evaluation] == [10, 10, 10]


def test_evaluate_comes_after_the_last_step_too():
    run = Training(small(eval_every=40, eval_episodes=1, total_steps=100), Toy)
    assert [r.step for r in run if r.evaluation] == [0, 40, 80, 100]


def test_evaluate_confirms_what_looks_solved_by_more_episodes():
    config = small(eval_every=20, eval_episodes=5, total_steps=100, solved_at=9.5)
    lucky = Toys(length=lambda seed: 10 if seed < ddpg.SELECTION_SEEDS + 5 else 4)
    run = run_for(config, lucky)
    assert run.solved is None and run.step == 100 and run.evaluation["eval_episodes"] == 100
    run = run_for(config, Toy)
    assert run.solved == run.step == 0
    run = run_for(config.replace(stop_when_solved=False), Toy)
    assert run.step == 100 and run.solved == 0


def test_evaluate_takes_a_hundred_episodes_as_their_own_confirmation():
    toys = Toys()
    changes = dict(eval_every=20, eval_episodes=120, total_steps=100, solved_at=9.5)
    run = run_for(small(**changes), toys)
    evaluated = [seed for seed in toys.seeds() if seed < ddpg.TRAINING_SEEDS]
    assert run.solved == 0 and len(evaluated) == len(set(evaluated)) == 120


def succeeding(said):
    """A Toy whose last info is said(seed), those before {"success": True}."""
    toy = Toy(3)
    toy.broken["step"] = lambda r: (*r[:4], said(toy.seeds[-1]) if toy.t == 3 else YES)
    return toy


YES, NO = {"success": True}, {"success": False}
SAID = {  # in the last info, of an even seed and of an odd one: the success rate of three episodes
    "bool": (YES, NO, 2 / 3),
    "robotics": ({"is_success": np.float32(1)}, {"is_success": np.False_, "success": True}, 2 / 3),
    "metaworld": ({"success": 1.0}, {"success": np.zeros(1)}, 2 / 3),
    "never": (NO, NO, 0.0),
    "only if so": (YES, {}, 2 / 3),
    "nothing": ({}, {}, None),
    "something else": ({"success": "high"}, {"success": [1, 2]}, None),
    "no info": (None, None, None),
}


@pytest.mark.parametrize("even, odd, rate", SAID.values(), ids=SAID)
def test_evaluate_success_is_what_the_last_info_says(even, odd, rate):
    def make():
        return succeeding(lambda seed: odd if seed % 2 else even)

    found = ddpg.summary(*ddpg.play(an_agent(2), make, range(3)))
    assert found.get("success") == rate
    assert len(evaluate(an_agent(2), make, range(3))) == 2


def test_evaluate_success_is_told_everywhere(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wins", types.ModuleType("wins"))
    make = partial(succeeding, lambda seed: YES if seed % 4 else NO)
    gym.register("Wins-v0", make, max_episode_steps=20)
    env, run = ["--env", "wins:Wins-v0"], str(tmp_path / "run")
    flags = "--learning-starts 20 --hidden 8 --total-steps 30 --eval-every 15 --eval-episodes 4"
    assert ddpg.main([*env, *flags.split(), "--episodes", "8", "--out", run]) == 0
    out = capsys.readouterr().out
    assert out.count(" over 4 episodes, success rate 75.0%") == 3
    assert "mean length 3), success rate 75.0%" in out
    head, *rows = (tmp_path / "run" / "progress.csv").read_text().splitlines()
    column = head.split(",").index("eval_success")
    assert [row.split(",")[column] for row in rows] == ["0.75"] * 3
    for line in ["--resume", run, "--total-steps", "40"], ["--eval", run]:
        assert ddpg.main([*line, *env, "--json", "--episodes", "8"]) == 0
        assert json.loads(capsys.readouterr().out)["success"] == 0.75
    *episodes, total = rows_of(capsys, run, *env, "--episodes", 4)
    assert [row["success"] for row in episodes] == [False, True, True, True]
    assert total["success"] == 0.75
    assert viewer.main([run, *env, "--headless", "--episodes", "4"]) == 0
    out = capsys.readouterr().out
    assert "length 3, success: True" in out and "False, success rate 75.0%" not in out
    assert "deterministic: True, success rate 75.0%" in out


def test_evaluate_success_that_is_said_late_gets_its_column(tmp_path):
    """Or not any more: then it is nan, as in the rows before."""
    told = {}
    config = small(eval_every=20, eval_episodes=1, total_steps=100)
    run = Training(config, lambda: succeeding(lambda seed: told))
    folder = ddpg.new_folder(tmp_path / "run")
    for _ in ddpg.record(run, folder):
        told.update({50: YES}.get(run.step, {}))
        if run.step == 70:
            told.clear()
    head, *rows = (folder / "progress.csv").read_text().splitlines()
    assert head.endswith(",mean_q,eval_success") and {row.count(",") for row in rows} == {14}
    assert [row.split(",")[-1] for row in rows] == ["nan", "nan", "nan", "1", "nan", "nan"]


# ---- runs: the same again, whatever happens ----

# A run of Pendulum for three and a half episodes of 50 steps: as keywords, as a Config, as flags
SHORT = dict(
    total_steps=176,
    max_episode_steps=50,
    learning_starts=50,
    eval_every=88,
    eval_episodes=3,
    hidden=(32, 32),
    batch_size=32,
)
PENDULUM_RUN = Config.preset(**SHORT)
QUICK = (
    "--total-steps 176 --max-episode-steps 50 --learning-starts 50 --eval-every 88 "
    "--eval-episodes 3 --hidden 32 32 --batch-size 32"
).split()

PLACES = {  # in that run: a call of a function, the step of the latest state, and of the next
    "warm-up": (Training, "advance", 25, 0, 50),
    "an episode": (PendulumEnv, "step", 2 * 3 * 50 + 113, 100, 150),  # after two evaluations
    "an update": (Agent, "descend", 88, 50, 100),  # of the actor, when the critic has changed
    "an evaluation": (Agent, "act", 75, 50, 50),  # inside an episode: it is computed again
    "a save": (os, "fsync", 21, 0, 50),
    "a replacement": (os, "replace", 22, 0, 50),  # when the old state is away already
}


def save_each_episode():
    """Save the state whenever possible; undone after the test."""
    ddpg.SAVE_EVERY, ddpg.SAVE_SHARE = 0.0, 1e9


def before_call(act, owner, name, number, setattr=setattr):
    """Call act() just before the number-th call of a function from now on."""
    function, calls = getattr(owner, name), itertools.count(1)

    def counted(*args, **kwargs):
        if next(calls) == number:
            act()
        return function(*args, **kwargs)

    setattr(owner, name, counted)


def follow(run, folder, until=None):
    """Record a run to its end, or break off after a step -> the run."""
    with closing(ddpg.record(run, folder)) as steps:
        for _ in steps:
            if run.step == until:
                break
    return run


def begin(config, folder, env=None, until=0, agent=Agent):
    """The folder of a run that was stopped before its first step, after another, or at its end."""
    ddpg.tune(config)
    follow(Training(config, env, agent=agent), ddpg.new_folder(folder), until)
    return folder


def go_on(folder, env=None, until=None, **changes):
    """Resume the run in a folder, to its end or a step -> the run."""
    return follow(ddpg.resume(folder, env, **changes), folder, until)


def arrays_and_meta(path):
    arrays, meta = ddpg.read_npz(path)
    return {name: arrays[name] for name in arrays if name != "meta"}, meta


def state_of(folder):
    return arrays_and_meta(folder / "state.npz")


def rows_of_table(path):
    """Of episodes.csv or progress.csv, without what is different each time."""
    rows = [line.split(",") for line in path.read_text().splitlines()]
    drop = [i for i, name in enumerate(rows[0]) if name in ("seconds", "steps_per_s")]
    return [[cell for i, cell in enumerate(row) if i not in drop] for row in rows]


def policies_in(folder):
    names = [path.relative_to(folder) for path in folder.rglob("*.npz")]
    return sorted(name for name in names if "state" not in name.name)


def same_tables(a, b):
    names = "episodes.csv", "progress.csv"
    return all(rows_of_table(a / name) == rows_of_table(b / name) for name in names)


def same_run(a, b):
    """Two folders hold the same policies, to the byte, and the same tables but for times."""
    assert len(policies_in(a)) > 10 and policies_in(a) == policies_in(b)
    for name in policies_in(a):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    return same_tables(a, b)


def same_state(a, b):
    """All that decides how the runs in two folders would go on is equal, to the bit."""
    (a, meta_a), (b, meta_b) = state_of(a), state_of(b)
    assert len(a) >= 15 and a.keys() == b.keys()
    for name in a.keys() - {"progress.csv"}:
        assert a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]), name
    for meta in meta_a, meta_b:
        for name in "seconds", "evaluation":  # same_run compares progress.csv, without times
            del meta[name]
    return meta_a == meta_b


def clean(folder):
    """Nothing half-written is left."""
    return not list(folder.rglob(f"*{ddpg.TEMPORARY}"))


def assert_same(a, b):
    assert same_run(a, b) and same_state(a, b) and clean(b)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a short run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    train(PENDULUM_RUN, out=folder)
    return folder


TOY_RUN = small(total_steps=95, learning_starts=25, eval_every=40, eval_episodes=2)


@pytest.fixture(scope="module")
def whole_toy(tmp_path_factory):
    """The folder of a run of nine and a half episodes of Toy that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole_toy") / "run"
    train(TOY_RUN, Toy, out=folder)
    return folder


def test_train_twice_with_a_seed_is_byte_identical_and_with_another_is_not(
    tmp_path, whole, interpreter
):
    again, other = tmp_path / "again", tmp_path / "other"
    result = interpreter(ROOT / "ddpg.py", *QUICK, "--episodes", 1, "--out", again, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert_same(whole, again)
    train(PENDULUM_RUN.replace(seed=1), out=other)
    assert (whole / "last.npz").read_bytes() != (other / "last.npz").read_bytes()


def test_train_with_another_seed_differs_in_everything_random():
    a, b = runs = [Training(Config(**SMALL, seed=seed), Toy) for seed in (5, 6)]
    for run in runs:
        run.start_episode()
    assert a.episode.seed != b.episode.seed
    assert a.rng.bit_generator.state != b.rng.bit_generator.state
    assert not torch.equal(a.agent.generator.get_state(), b.agent.generator.get_state())
    assert not torch.equal(a.agent.flat["actor"].data, b.agent.flat["actor"].data)
    states = []
    for run in runs:
        ddpg.tune(run.config)
        states.append(torch.get_rng_state())
    assert not torch.equal(*states)


def test_train_measures_losses_and_q_at_each_hundredth_update():
    config = Config(algo="td3", **SMALL, target_noise=0.0)
    agent = Agent(3, [-1], [1], config)
    expected = np.zeros(3)
    for update in range(1, 103):
        obs, act, R, next_obs, discount = batch = random_batch(agent, seed=update)
        if update in (1, 101):
            with torch.no_grad():
                q, pi = agent.critic(obs, act), agent.actor(obs)
                next_q = agent.critic_target(next_obs, agent.actor_target(next_obs)).amin(0)
                errors = q - (R + discount * next_q)
                losses = errors.square().mean((1, 2)).sum(), -agent.critic(obs, pi)[0].mean()
            expected += np.array([*losses, q.mean()]) / (1 if update == 1 else 2)
        agent.update(batch)
        if update == 1:
            assert agent.metrics.tolist() == pytest.approx(expected, rel=1e-5)
            expected /= 2  # the mean of both
    assert agent.metrics.tolist() == pytest.approx(expected, rel=1e-5)


# ---- a run's folder ----


def test_folder_has_what_viewer_and_benchmarks_rely_on(tmp_path):
    result = command(*QUICK, "--seed", 1, cwd=tmp_path)
    folder = tmp_path / "runs" / "Pendulum-v1" / "ddpg-seed1"
    assert result.returncode == 0
    assert "ddpg.py --eval runs/Pendulum-v1/ddpg-seed1" in result.stdout
    names = "best.npz config.json episodes.csv last.npz policies progress.csv state.npz"
    assert sorted(p.name for p in folder.iterdir()) == [*names.split(), "state.previous.npz"]
    progress = [line.split(",") for line in (folder / "progress.csv").read_text().splitlines()]
    columns = "step episodes seconds steps_per_s train_return eval_episodes eval_mean"
    assert progress[0][:7] == columns.split()
    assert [row[0] for row in progress[1:]] == ["0", "88", "176"]
    episodes = (folder / "episodes.csv").read_text().splitlines()
    assert episodes[0] == "step,episode,seed,return,length,terminated" and len(episodes) == 4
    steps = [load(path).meta["step"] for path in sorted((folder / "policies").iterdir())]
    assert steps == list(range(0, 177, 4))  # 50 of them, at most, after the untrained agent
    config = json.loads((folder / "config.json").read_text())["config"]
    assert Config(**config) == Config.preset(**SHORT, seed=1)
    viewer.import_ddpg()
    seen = viewer.read_run(folder)
    at, means = seen.log.curve("eval_mean")
    assert list(at) == [0, 88, 176] and list(seen.policies) == steps
    columns = zip(*(row[:4] for row in progress[1:]))  # step, episodes, seconds, steps_per_s
    *_, speeds = ([float(cell or "nan") for cell in column] for column in columns)
    assert np.array_equal(seen.log.table["steps_per_s"], speeds, equal_nan=True)
    assert all(name in progress[0] for name in viewer.COLUMNS)
    assert seen.log.config == config and seen.log.env == PENDULUM
    best = load(folder / "best.npz").meta
    assert seen.best == best["step"] and not seen.faults
    assert best["evaluation"] == pytest.approx(max(means), rel=1e-5)


def test_folder_has_at_most_50_snapshots_evenly_spread(tmp_path):
    train(Config(**SMALL, total_steps=120), Toy, out=tmp_path / "run")
    steps = [int(path.stem) for path in sorted((tmp_path / "run" / "policies").iterdir())]
    assert steps == list(range(0, 121, 3))


@pytest.mark.parametrize("terminates", [False, True])
def test_folder_table_of_episodes_tells_what_happened(tmp_path, terminates):
    train(Config(**SMALL, total_steps=40), lambda: Toy(10, terminates), out=tmp_path / "run")
    lines = (tmp_path / "run" / "episodes.csv").read_text().splitlines()[1:]
    rows = [line.split(",") for line in lines]
    expected = [[str(10 * i + 10), str(i), "10", "10", str(terminates)] for i in range(4)]
    assert [row[:2] + row[3:] for row in rows] == expected
    assert len({row[2] for row in rows}) == 4  # seeds


def test_folder_table_of_progress_tells_what_happened():
    found = ddpg.summary(np.array([0.0, 0, 3]), np.array([1, 2, 6]))
    assert found == dict(episodes=3, mean=1, std=pytest.approx(2**0.5), min=0, max=3, length=3)
    small = SMALL | dict(eval_every=100, eval_episodes=1, reward_scale=0.1, total_steps=100)
    run = Training(Config(**small), Toy)
    first, last = [r.evaluation for r in run if r.evaluation]
    unknown = "train_return", "critic_loss", "actor_loss", "mean_q"
    assert np.isnan([first[name] for name in unknown]).all()
    assert last["mean_q"] == pytest.approx(run.agent.metrics[2].item() / 0.1) != 0
    assert last["train_return"] == last["eval_mean"] == last["eval_length"] == 10
    seconds = last["seconds"] - first["seconds"]  # those since the evaluation before
    assert last["steps_per_s"] * seconds == pytest.approx(100) and first["steps_per_s"] == 0


def test_folder_keeps_the_best_policy_also_after_a_resume(tmp_path, monkeypatch):
    means = iter([3.0, 7.0, 5.0, 6.0, 7.0, 4.0])  # at 0, 20, .. 100

    def play(agent, make_env, seeds):
        return np.full(len(seeds), next(means)), np.ones(len(seeds)), ()

    monkeypatch.setattr(ddpg, "play", play)
    config = Config(**SMALL | dict(eval_every=20), total_steps=100)
    save_each_episode()
    folder = begin(config, tmp_path / "run", Toy, until=50)
    run = ddpg.resume(folder, Toy)
    assert (run.step, run.best) == (50, 7)
    assert not any([r.is_best for r in ddpg.record(run, folder) if r.evaluation])
    best = load(folder).meta
    assert (best["step"], best["evaluation"]) == (20, 7.0)
    assert load(folder / "last.npz").meta["step"] == 100


def test_folder_files_are_synced_when_they_are_whole(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def noting(file):
        synced.append(os.fstat(file).st_size)
        fsync(file)

    monkeypatch.setattr(os, "fsync", noting)
    ddpg.write(tmp_path / "a", lambda file: file.write(b"x" * 1000))
    ddpg.write_npz(tmp_path / "b", {"x": np.zeros(1001, np.float32)}, step=1)
    assert synced == [1000, (tmp_path / "b").stat().st_size]


RHYTHMS = {  # seconds that a save takes: the steps it is done at, a second each, ten an episode
    # When the run is twice as old as at the last save, then once a minute
    0.0: [0, 10, 20, 40, 80, *range(140, 600, 60)],
    # Of 5 s of each 255
    5.0: [0, 250, 500],
}


def a_clock(monkeypatch):
    """[the time], which ddpg.py takes for that of a clock."""
    now = [1000.0]
    clock = type("clock", (), {"perf_counter": staticmethod(lambda: now[0])})
    monkeypatch.setattr(ddpg, "time", clock)
    return now


@pytest.mark.parametrize("cost", RHYTHMS)
def test_folder_state_is_saved_more_seldom_as_the_run_grows(tmp_path, monkeypatch, cost):
    now, saved = a_clock(monkeypatch), []
    small = SMALL | dict(learning_starts=1000, total_steps=600)
    run = Training(Config(**small), Toy)
    state = run.state

    def slow_state():
        saved.append(run.step)
        now[0] += cost
        return state()

    run.state = slow_state
    for _ in ddpg.record(run, ddpg.new_folder(tmp_path / "run")):
        now[0] += 1
    assert saved == [*RHYTHMS[cost], 590, 600, 600]  # near the end always


@needs_unix
def test_folder_state_is_written_without_a_copy_of_the_replay(tmp_path):
    def child():
        config = Config(**SMALL, total_steps=100, buffer_size=2**20)
        run = Training(config, lambda: Toy(obs=lambda t: [0.0] * 15))
        run.buffer.rows.fill_(1)
        run.buffer.written = len(run.buffer.rows)
        before, nbytes = peak(), run.buffer.rows.nbytes
        follow(run, ddpg.new_folder(folder), until=0)
        assert (folder / "state.npz").stat().st_size > nbytes > 130e6
        assert peak() - before < nbytes / 4, (before, peak())
        return 0

    folder, log = tmp_path / "run", tmp_path / "log"
    assert exit_code(in_a_child(child, log)) == 0, log.read_text()


@pytest.mark.parametrize("what", ["in a training", "on the command line"])
def test_folder_keeps_the_sound_agent_when_it_diverges(tmp_path, monkeypatch, capsys, what):
    update, folder = Agent.update, tmp_path / "run"

    def diverging(agent, batch):
        update(agent, batch)
        if agent.updates == 45:
            agent.flat["actor"].data.fill_(np.nan)

    monkeypatch.setattr(Agent, "update", diverging)
    save_each_episode()
    if what == "in a training":
        with pytest.raises(ddpg.EnvError, match=r"action \[nan\]"):
            begin(PENDULUM_RUN, folder, until=None)
    else:
        assert ddpg.main([*QUICK, "--quiet", "--out", str(folder)]) == 1
        error, told = capsys.readouterr().err.splitlines()
        assert "action [nan]" in error and "diverged" in told and "--actor-lr" in told
    for name in "best.npz", "last.npz":
        assert load(folder / name).meta["step"] in (0, 88)
    assert all(np.isfinite(array).all() for array in state_of(folder)[0].values())
    assert ddpg.resume(folder).step == 50


def test_folder_gets_the_agent_but_no_state_of_a_step_that_fails(tmp_path):
    def make(length=7):
        env = Toy()
        step = env.step
        env.step = lambda action: step(action) if env.count < length else 1 / 0
        return env

    folder = tmp_path / "run"
    words = "ZeroDivisionError: division by zero, at step 8 of the episode with seed"
    with pytest.raises(ddpg.EnvError, match=words):
        begin(Config(**SMALL, total_steps=200), folder, make, until=None)
    assert load(folder).meta["step"] == 7 and ddpg.resume(folder, Toy).step == 0


def policy_file(path, obs_dim=3, low=(-2.0,), high=(2.0,), env="Pendulum-v1", **config):
    Agent(obs_dim, low, high, Config(**SMALL | config)).save(path, env=env, step=1)
    return path


@needs_unix
@pytest.mark.parametrize("recovers", [True, False])
def test_folder_on_a_full_disk_gets_its_files_later(tmp_path, whole, recovers):
    """Full for 100 steps or for good: limited sizes of files make real writes fail half-way."""
    folder, log = begin(PENDULUM_RUN, tmp_path / "run"), tmp_path / "log"
    state, unlimited = folder / "state.npz", resource.RLIM_INFINITY

    def limit(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited))

    def child():
        advance, at_first = Training.advance, []

        def advance_on_a_full_disk(run):
            if run.step == 1:
                at_first.append(state.read_bytes())
                limit(400)
            if run.step == 100:
                assert [state.read_bytes()] == at_first and clean(folder)
                for name in "best.npz", "last.npz":
                    assert load(folder / name).meta["step"] == 0
                if recovers:
                    limit(unlimited)
            advance(run)

        Training.advance = advance_on_a_full_disk
        save_each_episode()
        try:
            return ddpg.main(["--resume", str(folder), "--quiet", "--episodes", "1"])
        finally:
            limit(unlimited)

    code, text = exit_code(in_a_child(child, log)), log.read_text()
    assert text.count("cannot save to") == 1 and "training goes on" in text, text
    assert "Traceback" not in text and clean(folder) and code == (0 if recovers else 1)
    if not recovers:
        assert "ddpg.py: cannot write" in text
        go_on(folder)  # from the last state that the disk took
    assert_same(whole, folder)


@needs_unix
def test_folder_is_of_one_training_at_a_time(tmp_path, capsys):
    folder = begin(PENDULUM_RUN, tmp_path / "run")
    before = contents(folder)
    with ddpg.lock(folder):
        assert ddpg.main(["--resume", str(folder), "--quiet"]) == 2
    assert "in use" in capsys.readouterr().err and contents(folder) == before
    assert ddpg.main(["--resume", str(folder), "--quiet", "--episodes", "1"]) == 0


def leave(folder):
    """Nothing in its place."""


MOVED = {  # what comes in the place of a folder
    "nothing": leave,
    "a copy": lambda folder: shutil.copytree(folder.with_name("old"), folder),
    "another run": lambda folder: begin(TOY_RUN, folder, Toy, until=20),
}


@needs_unix
@pytest.mark.parametrize("come", MOVED.values(), ids=MOVED)
def test_folder_that_is_moved_can_be_resumed_and_nothing_is_written_in_its_place(
    tmp_path, whole_toy, come
):
    folder, old = tmp_path / "run", tmp_path / "old"
    save_each_episode()
    with pytest.raises(ddpg.TrainingError, match=f"{folder} has been moved"):
        for run in ddpg.record(Training(TOY_RUN, Toy), ddpg.new_folder(folder)):
            if run.step == 65:
                folder.rename(old)
                come(folder)
                before = contents(tmp_path)
    assert contents(tmp_path) == before and run.step == 70
    assert ddpg.resume(old, Toy).step == 60
    go_on(old, Toy)
    assert_same(whole_toy, old)


@needs_unix
def test_folder_that_is_moved_ends_a_training_on_the_command_line(tmp_path):
    folder, old, log = (tmp_path / name for name in ("run", "old", "log"))

    def child():
        save_each_episode()
        at = PLACES["an episode"][:3]
        before_call(lambda: (folder.rename(old), folder.mkdir()), *at)
        return ddpg.main([*QUICK, "--quiet", "--out", str(folder)])

    assert exit_code(in_a_child(child, log)) == 1
    assert "has been moved" in log.read_text() and log.read_text().count("\n") == 1
    assert not list(folder.iterdir())
    assert ddpg.resume(old).step == 100


@needs_unix
def test_folder_that_is_moved_may_be_linked_to(tmp_path, whole_toy):
    folder, old = tmp_path / "run", tmp_path / "old"
    save_each_episode()
    with closing(ddpg.record(Training(TOY_RUN, Toy), ddpg.new_folder(folder))) as steps:
        for run in steps:
            if run.step == 25:
                folder.rename(old)
                folder.symlink_to(old)
    assert_same(whole_toy, old)


def test_folder_takes_no_run_but_the_one_that_it_is_of(tmp_path):
    save_each_episode()
    folder = begin(TOY_RUN, tmp_path / "run", Toy, until=20)
    stale, fresh = ddpg.resume(folder, Toy), Training(TOY_RUN, Toy)
    go_on(folder, Toy, until=40)
    before = contents(folder)
    for run in stale, fresh:
        with pytest.raises(UsageError, match="not this run's"):
            next(ddpg.record(run, folder))
        assert contents(folder) == before
    assert go_on(folder, Toy).step == 95


def test_folder_takes_a_run_twice_if_none_came_between(tmp_path, whole_toy):
    save_each_episode()
    run = Training(TOY_RUN, Toy)
    ddpg.new_folder(tmp_path / "run")
    for _ in range(2):
        for _ in ddpg.record(run, tmp_path / "run"):
            if run.step == 25:
                run.stop = True
        run.stop = False
    assert_same(whole_toy, tmp_path / "run")


def test_folder_keeps_the_users_own_files(tmp_path, whole_toy):
    save_each_episode()
    folder = begin(TOY_RUN, tmp_path / "run", Toy, until=20)
    names = "notes.tmp", "state.npz.tmp", "tmp", "policies/a.tmp", "b.tmp/c", "a.unfinished"
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    (folder / "best.npz.tmp").mkdir()
    go_on(folder, Toy)
    assert [(folder / name).read_text() for name in names] == [*names]
    assert (folder / "best.npz.tmp").is_dir()
    assert same_run(whole_toy, folder) and same_state(whole_toy, folder)


@pytest.mark.parametrize("lost", ["policies", "last.npz", "progress.csv"])
def test_folder_without_a_place_for_one_file_gets_the_others(tmp_path, capsys, lost):
    """Snapshots may be deleted; a folder may be in the way."""
    save_each_episode()
    folder = begin(TOY_RUN, tmp_path / "run", Toy, until=20)
    if lost == "policies":
        shutil.rmtree(folder / lost)
        go_on(folder, Toy)
        assert policies_in(folder) and capsys.readouterr().err == ""
    else:
        (folder / lost).unlink(missing_ok=True)
        (folder / lost).mkdir()
        with pytest.raises(OSError):
            go_on(folder, Toy)
        assert capsys.readouterr().err.count("training goes on") == 1
    assert state_of(folder)[1]["step"] == TOY_RUN.total_steps // 10 * 10


@pytest.mark.parametrize("first", [True, False])
def test_folder_that_is_read_only_is_refused_at_once(tmp_path, monkeypatch, first):
    """As root may write everywhere, opening fails by hand."""
    save_each_episode()
    folder = tmp_path / "run"
    if first:
        run = Training(TOY_RUN, Toy)
        ddpg.new_folder(folder)
    else:
        run = ddpg.resume(begin(TOY_RUN, folder, Toy, until=20), Toy)
    before, opened = contents(folder), open

    def refusing(path, mode="r", *args, **kwargs):
        if "r" not in mode and folder in Path(path).parents:
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refusing)
    with pytest.raises(UsageError, match="cannot be written.*Permission denied"):
        next(ddpg.record(run, folder))
    assert contents(folder) == before


def test_folder_gets_no_more_bytes_the_more_episodes_there_were(tmp_path, monkeypatch):
    """Episodes of one step, of a millisecond each; four evaluations come and no state is due."""

    def written(earlier):
        now, sizes = a_clock(monkeypatch), []
        run = Training(small(total_steps=10_000, learning_starts=10_000, eval_every=100), Toy)
        now[0] += 1
        run.tables["episodes.csv"] = ["a header\n", *["1,2,3,4,5,6\n"] * earlier]
        run.make_env, run.make_eval_env = (partial(Toy, 1),) * 2
        folder = ddpg.new_folder(tmp_path / str(earlier))
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", lambda file: sizes.append(os.fstat(file).st_size))
            for _ in ddpg.record(run, folder):
                now[0] += 0.001
                if run.step == 599:
                    sizes.clear()
                if run.step == 1000:
                    assert run.episodes == 1000 and len(sizes) >= 4
                    return sum(sizes)

    few, many = written(0), written(100_000)
    assert few == many


class Wanders(Toy):
    """It changes the working folder, as it is made and in each step."""

    elsewhere = None

    def __init__(self):
        super().__init__()
        os.chdir(self.elsewhere)

    def step(self, action):
        os.chdir(self.elsewhere)
        return super().step(action)


@needs_unix
@pytest.mark.parametrize("by", ["train", "command"])
def test_folder_is_where_it_was_named_whatever_the_working_folder_becomes(
    tmp_path, monkeypatch, by
):
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    here.mkdir(), elsewhere.mkdir()
    monkeypatch.setattr(Wanders, "elsewhere", elsewhere)
    monkeypatch.chdir(here)
    if by == "train":
        train(small(total_steps=60, eval_every=30), Wanders, out="a/run")
    else:
        gym.register("Wanders-v0", Wanders, max_episode_steps=10)
        monkeypatch.setitem(sys.modules, "wanders", type(sys)("wanders"))
        flags = "--learning-starts 50 --hidden 16 --eval-every 30 --episodes 1".split()
        flags += ["--env", "wanders:Wanders-v0"]
        result = command(*flags, "--total-steps", 60, "--out", "a/run", cwd=here)
        assert result.returncode == 0, result.stderr
        assert "--eval a/run" in result.stdout
        more = "--total-steps", 90, "--env", "wanders:Wanders-v0", "--episodes", 1
        assert command("--resume", "a/run", *more, cwd=here).returncode == 0
    assert list(elsewhere.iterdir()) == [] and [path.name for path in here.iterdir()] == ["a"]
    run = ddpg.resume(here / "a" / "run", Wanders if by == "train" else "wanders:Wanders-v0")
    assert run.step == (60 if by == "train" else 90) and policies_in(here / "a" / "run")


@needs_unix
def test_folder_is_not_kept_by_a_process_that_the_environment_forked(tmp_path, whole_toy):
    """It sleeps on when the training has been killed."""
    folder, pids = tmp_path / "run", tmp_path / "pids"
    save_each_episode()

    def child():
        def fork():
            worker = os.fork()
            if not worker:
                signal.alarm(60)
                signal.pause()
                os._exit(0)
            pids.write_text(str(worker))

        before_call(fork, Toy, "__init__", 7)
        before_call(lambda: os.kill(os.getpid(), signal.SIGKILL), Toy, "step", 75)
        begin(TOY_RUN, folder, Toy, until=None)

    assert exit_code(in_a_child(child)) == -signal.SIGKILL
    worker = int(pids.read_text())
    try:
        go_on(folder, Toy)
    finally:
        os.kill(worker, signal.SIGKILL)
    assert_same(whole_toy, folder)


# ---- resuming ----


@pytest.mark.parametrize("n_step, often", [(3, True), (1, False)])
def test_resume_after_a_stop_at_any_step_is_byte_identical(tmp_path, n_step, often):
    """Stopped many times, in all ten steps of an episode; the state is of the end of one."""
    config = small(
        learning_starts=25,
        eval_every=40,
        eval_episodes=2,
        total_steps=155,
        buffer_size=64,  # it wraps
        n_step=n_step,
        noise_theta=0.15,
        noise_sigma_end=0.01,
    )
    train(config, Toy, out=tmp_path / "whole")
    if often:
        save_each_episode()
    folder = begin(config, tmp_path / "parts", Toy)
    for stop in range(1, 155, 13 if often else 37):
        run = go_on(folder, Toy, until=stop)
        assert run.step == stop
        step = state_of(folder)[1]["step"]
        assert step == stop // 10 * 10 if often else step % 10 == 0 and step <= stop
    run = go_on(folder, Toy)
    assert run.step == 155 and len(run.buffer) == 64 < run.buffer.written
    assert_same(tmp_path / "whole", folder)


class OwnOptimizer(Agent):
    def __init__(self, *args):
        super().__init__(*args)
        self.critic_optimizer = torch.optim.AdamW(self.critic.parameters(), 1e-3)


class DropoutCritic(ddpg.Critic):
    def forward(self, obs, act):
        inputs = torch.cat([obs, act], dim=-1)
        return self.net(F.dropout(inputs, 0.1, self.training))


@pytest.mark.parametrize("own", ["optimizer", "critic"])
def test_resume_with_an_agent_of_ones_own_is_byte_identical(tmp_path, monkeypatch, own):
    agent = OwnOptimizer if own == "optimizer" else Agent
    if own == "critic":
        monkeypatch.setattr(ddpg, "Critic", DropoutCritic)
    save_each_episode()
    train(PENDULUM_RUN, out=tmp_path / "whole", agent=agent)
    folder = begin(PENDULUM_RUN, tmp_path / "parts", until=30, agent=agent)
    for until in 88, 120, None:
        torch.manual_seed(99)  # as another process would have it
        go_on(folder, until=until, agent=agent)
    assert_same(tmp_path / "whole", folder)


class Tempered(Agent):
    """With a part of its own, numbered as ParameterLists are."""

    PARTS = *Agent.PARTS, "temperatures"

    def __init__(self, *args):
        super().__init__(*args)
        self.temperatures = torch.nn.ParameterList([torch.ones(1), torch.zeros(2)])

    def update(self, batch):
        super().update(batch)
        self.temperatures[0].data += 0.01


def test_resume_brings_back_parts_of_an_agent_of_ones_own(tmp_path):
    save_each_episode()
    folder = begin(PENDULUM_RUN, tmp_path / "run", until=150, agent=Tempered)
    run = ddpg.resume(folder, agent=Tempered)
    assert np.isclose(run.agent.temperatures[0].item(), 1 + 0.01 * run.agent.updates)
    assert run.agent.updates == 100


def test_resume_without_the_agent_or_environment_of_ones_own_is_refused(tmp_path):
    save_each_episode()
    begin(PENDULUM_RUN, tmp_path / "agent", until=50, agent=Tempered)
    with pytest.raises(UsageError, match="agent=Tempered"):
        ddpg.resume(tmp_path / "agent")
    begin(PENDULUM_RUN, tmp_path / "env", gym.make("Pendulum-v1"), until=50)
    with pytest.raises(UsageError, match="env="):
        ddpg.resume(tmp_path / "env")
    assert ddpg.resume(tmp_path / "env", gym.make("Pendulum-v1")).step == 50


PLACES_AND_WAYS = [(place, "train") for place in PLACES] + [("an episode", "record")]


@pytest.mark.parametrize("place, by", PLACES_AND_WAYS)
def test_resume_after_ctrl_c_anywhere_is_byte_identical(tmp_path, monkeypatch, whole, place, by):
    """KeyboardInterrupt in train(..) and in a loop over record(..): nothing half done is saved."""
    folder, (*call, saved, _) = tmp_path / "run", PLACES[place]

    def interrupt():
        raise KeyboardInterrupt

    save_each_episode()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        before_call(interrupt, *call, patch.setattr)
        if by == "train":
            train(PENDULUM_RUN, out=folder)
        else:
            begin(PENDULUM_RUN, folder, until=None)
    assert (folder / "state.npz").exists() == (place != "a replacement") and clean(folder)
    last = folder / "last.npz"
    snapshot = whole / "policies" / f"{load(last).meta['step']:012d}.npz"
    assert last.read_bytes() == snapshot.read_bytes()
    run = ddpg.resume(folder)
    assert run.step == saved
    follow(run, folder)  # the lock has been released
    assert_same(whole, folder)


def killed_at_random(tmp_path, config, kills, longest, often=True):
    """A run killed so often, any time until `longest` seconds after it began or went on, is
    byte-identical to one never killed -> how often it came to its end."""

    def child():
        if often:
            save_each_episode()
        go_on(folder)

    def check():
        assert same_run(whole, folder) and clean(folder)
        if state_of(whole)[1]["step"] == state_of(folder)[1]["step"]:
            assert same_state(whole, folder)

    whole, folder = tmp_path / "whole", tmp_path / "killed"
    if often:
        save_each_episode()
    train(config, out=whole)
    begin(config, folder)
    rng, killed, ends = np.random.default_rng(0), 0, 0
    while killed < kills:
        pid = in_a_child(child)
        time.sleep(rng.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        code = exit_code(pid)
        assert code in (0, -signal.SIGKILL)
        killed += code != 0
        if code == 0:  # it came to its end: once more from the beginning
            check()
            ends += 1
            shutil.rmtree(folder)
            begin(config, folder)
    assert exit_code(in_a_child(child, timeout=600), 600) == 0
    check()
    return ends + 1


@needs_unix
@pytest.mark.parametrize("algo, often", [("ddpg", True), ("td3", False)])
def test_resume_after_a_kill_at_any_instant_is_byte_identical(tmp_path, algo, often):
    config = Config.preset(**SHORT, algo=algo, n_step=3, noise_theta=0.15)
    killed_at_random(tmp_path, config, kills=3, longest=0.25, often=often)


FIFTY = [  # environment, seconds until a kill, and whether the state is saved each episode
    ("Pendulum-v1", 1.5, True),
    ("LunarLanderContinuous-v3", 4.0, True),
    ("LunarLanderContinuous-v3", 4.0, False),
    ("BipedalWalker-v3", 6.0, True),
]


@pytest.mark.slow
@needs_unix
@pytest.mark.parametrize("env, longest, often", FIFTY)
def test_resume_after_fifty_kills_is_byte_identical(tmp_path, env, longest, often):
    longer = dict(total_steps=3_000, learning_starts=500, eval_every=1_500, n_step=3)
    longer = SHORT | longer | dict(max_episode_steps=0)
    ends = killed_at_random(tmp_path, Config.preset(env, **longer), 50, longest, often)
    print(f"{env}, the state saved {'each' if often else 'some'} episode: {ends} ends reached")


@pytest.mark.slow
@needs_unix
def test_resume_after_a_thousand_kills_is_byte_identical(tmp_path):
    print("ends reached:", killed_at_random(tmp_path, PENDULUM_RUN, kills=1_000, longest=0.25))


def test_resume_from_a_copy_of_the_folder_made_at_any_step(tmp_path, whole):
    save_each_episode()
    steps = [0, 1, 99, 150, 175]
    ddpg.tune(PENDULUM_RUN)
    for run in ddpg.record(Training(PENDULUM_RUN), ddpg.new_folder(tmp_path / "run")):
        if run.step in steps:
            shutil.copytree(tmp_path / "run", tmp_path / str(run.step))
    for step in steps:
        folder = tmp_path / str(step)
        assert ddpg.resume(folder).step == step // 50 * 50
        go_on(folder)
        assert_same(whole, folder)


DEATHS = [  # the n-th call of a function after the writing of a state has begun
    (np.lib.format, "write_array", 5),
    (os, "replace", 1),  # when it is whole, and synced
    (os, "replace", 2),
    (os, "replace", 3),
    (os, "replace", 4),
]


def die_in_a_save(owner, name, call, before=0):
    """End this process at the `call`-th call of a function from the writing of a state on, after
    `before` states that it wrote whole."""
    write, saves = ddpg.write, itertools.count()

    def deadly_write(path, *args, **kwargs):
        if path.name == "state.npz" and next(saves) == before:
            before_call(lambda: os._exit(9), owner, name, call)
        write(path, *args, **kwargs)

    ddpg.write = deadly_write


@needs_unix
@pytest.mark.parametrize("first", [True, False], ids=["first save", "overwriting"])
@pytest.mark.parametrize("owner, name, call", DEATHS, ids=[f"{d[1]} {d[2]}" for d in DEATHS])
def test_resume_after_a_death_at_any_moment_of_a_save(tmp_path, whole, owner, name, call, first):
    folder = tmp_path / "run"

    def child():
        die_in_a_save(owner, name, call, before=0 if first else 2)
        save_each_episode()
        begin(PENDULUM_RUN, folder, until=None)

    assert exit_code(in_a_child(child)) == 9
    if first and (owner, name, call) in [d for d in DEATHS if d[2] in (1, 5)]:
        with pytest.raises(UsageError, match="killed before it was first saved"):
            ddpg.resume(folder)  # there was nothing to lose yet
        return
    go_on(folder)
    assert_same(whole, folder)


@pytest.mark.parametrize("damaged", [False, True])
def test_resume_from_the_state_before_when_the_last_is_lost(tmp_path, whole, damaged):
    """Killed between the two steps of its replacement, or the disk has spoilt it."""
    save_each_episode()
    folder = begin(PENDULUM_RUN, tmp_path / "run", until=50)
    state = (folder / "state.npz").read_bytes()
    go_on(folder)  # which writes rows and files of later steps
    (folder / "state.npz").unlink()
    (folder / "state.previous.npz").write_bytes(state)
    if damaged:
        (folder / "state.npz").write_bytes(state[:-1000])
    (folder / "policies" / f"000000000001.npz{ddpg.TEMPORARY}").touch()
    run = ddpg.resume(folder)
    assert run.step == 50
    follow(run, folder)
    assert_same(whole, folder)


def test_resume_where_the_environment_does_not_repeat_itself(tmp_path):
    count = itertools.count()

    class Odd(Toy):
        def step(self, action):
            obs, _, *more = super().step(action)
            return obs, float(next(count)), *more

    save_each_episode()
    folder = begin(small(total_steps=95, n_step=3), tmp_path / "run", Odd, until=35)
    for until in 62, 78, None:
        run = go_on(folder, Odd, until=until)
    assert run.step == 95 and load(folder / "last.npz").meta["step"] == 95
    assert len(rows_of_table(folder / "episodes.csv")) == 1 + 9


def test_resume_without_the_replay_fills_a_new_one_first(tmp_path, capsys):
    save_each_episode()
    lean = Config.preset(**SHORT, save_replay=False)
    folder = begin(lean, tmp_path / "run", until=120)
    arrays, _ = state_of(folder)
    full = begin(PENDULUM_RUN, tmp_path / "full", until=120)
    rows = state_of(full)[0]["rows"]
    assert len(rows) == 100 and "rows" not in arrays
    saved = (full / "state.npz").stat().st_size - (folder / "state.npz").stat().st_size
    assert saved >= rows.nbytes
    capsys.readouterr()
    run = ddpg.resume(folder, total_steps=240)
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "without the replay" in told and "50 steps" in told
    updates = [run.agent.updates for _ in ddpg.record(run, folder)]
    assert updates == [50] * 51 + list(range(51, 141))
    assert len(run.buffer) == 140


def test_resume_may_save_the_replay_no_more_or_again_and_is_exact_from_then_on(tmp_path, capsys):
    save_each_episode()
    folder = begin(PENDULUM_RUN, tmp_path / "a", until=30)
    go_on(folder, until=50, save_replay=False)
    assert "rows" not in state_of(folder)[0] and capsys.readouterr().err == ""
    copied = shutil.copytree(folder, tmp_path / "b")
    go_on(folder, save_replay=True)
    for until in 60, 120, None:
        run = go_on(copied, until=until, save_replay=True)
    assert run.filled_from == 50 and len(run.buffer) == 126
    assert capsys.readouterr().err.count("without the replay") == 2
    assert_same(folder, copied)


@needs_unix
def test_resume_without_the_replay_on_the_command_line(tmp_path):
    flags = *QUICK, "--no-save-replay", "--out", tmp_path / "run", "--episodes", 1, "--quiet"
    assert command(*flags).returncode == 0
    assert "rows" not in state_of(tmp_path / "run")[0]
    result = command("--resume", tmp_path / "run", "--total-steps", 250, "--episodes", 1)
    assert result.returncode == 0 and result.stderr.count("\n") == 1
    assert "without the replay" in result.stderr and "Done after 250 steps" in result.stdout


@pytest.mark.parametrize("total", [176, 200], ids=["in an episode", "between two"])
def test_resume_of_a_run_at_its_end_changes_nothing(tmp_path, total):
    config = Config.preset(**SHORT | dict(total_steps=total))
    train(config, out=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    run = ddpg.resume(tmp_path / "run")
    assert run.step == total // 50 * 50
    follow(run, tmp_path / "run")
    assert_same(tmp_path / "whole", tmp_path / "run")


def test_resume_with_more_steps_equals_a_run_of_as_many(tmp_path):
    train(PENDULUM_RUN, out=tmp_path / "parts")
    train(Config.preset(**SHORT | dict(total_steps=270)), out=tmp_path / "whole")
    run = go_on(tmp_path / "parts", total_steps=270)
    assert run.step == 270 and ddpg.resume(tmp_path / "parts").config.total_steps == 270
    a, b = tmp_path / "whole", tmp_path / "parts"  # whose older policies have the older config
    assert (a / "last.npz").read_bytes() == (b / "last.npz").read_bytes()
    assert same_tables(a, b) and same_state(a, b)


def test_resume_of_a_solved_run_goes_on_only_when_told(tmp_path):
    config = Config(**SMALL | dict(eval_every=20), total_steps=100, solved_at=10.0)
    train(config, Toy, out=tmp_path / "run")
    run = go_on(tmp_path / "run", Toy)
    assert run.solved == run.step == 0
    run = go_on(tmp_path / "run", Toy, stop_when_solved=False)
    assert (run.step, run.solved) == (100, 0)


def test_resume_keeps_counting_the_time(tmp_path):
    folder = begin(Config(**SMALL, total_steps=30), tmp_path / "run", Toy)
    arrays, meta = state_of(folder)
    ddpg.write_npz(folder / "state.npz", arrays, **meta | {"seconds": 1000.0})
    run = ddpg.resume(folder, Toy)
    assert 1000 <= time.perf_counter() - run.started < 1060


def test_resume_refuses_another_configuration_or_environment(tmp_path, capsys):
    folder = begin(PENDULUM_RUN, tmp_path / "run")
    before = contents(folder)
    flags = "--gamma 0.5 --seed 0 --hidden 8".split()
    assert ddpg.main(["--resume", str(folder), *flags]) == 2
    error = capsys.readouterr().err
    assert "gamma 0.98 -> 0.5" in error and "hidden (32, 32) -> (8,)" in error
    assert "seed" not in error and contents(folder) == before
    two = begin(Config(**SMALL), tmp_path / "two", lambda: Toy(low=[0, -3], high=[1, 5]))
    for low in [0], [0, 0, 0]:
        with pytest.raises(UsageError, match="cannot be resumed"):
            ddpg.resume(two, lambda low=low: Toy(low=low, high=np.add(low, 1)))


def test_resume_refuses_what_is_not_a_state(tmp_path):
    folder = begin(Config(**SMALL, total_steps=30), tmp_path / "run", Toy)
    (arrays, meta), path = state_of(folder), folder / "state.npz"
    for name in "rng", "agent", "config", "written":
        ddpg.write_npz(path, arrays, **{k: v for k, v in meta.items() if k != name})
        with pytest.raises(UsageError, match="cannot be resumed"):
            ddpg.resume(folder, Toy)
    older = meta | {"config": meta["config"] | {"obs_scale": []}}
    ddpg.write_npz(path, arrays, **older)
    with pytest.raises(UsageError, match="of an older ddpg.py"):
        ddpg.resume(folder, Toy)
    path.write_bytes(b"junk")
    (folder / "state.previous.npz").unlink(missing_ok=True)
    with pytest.raises(UsageError, match="cannot be read"):
        ddpg.resume(folder, Toy)
    path.unlink()
    with pytest.raises(UsageError, match="killed before it was first saved"):
        ddpg.resume(folder, Toy)
    with pytest.raises(UsageError, match="not the folder of a run"):
        ddpg.resume(tmp_path, Toy)


def test_resume_on_another_machine_warns_in_one_line(tmp_path, monkeypatch, capsys):
    folder = begin(PENDULUM_RUN, tmp_path / "run")
    ddpg.resume(folder)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(ddpg, "MACHINE", {"cpu": "another"})
    ddpg.resume(folder)
    assert capsys.readouterr().err.count("\n") == 1


def test_resume_and_eval_heed_threads_and_device(tmp_path, monkeypatch, interpreter):
    folder = begin(Config.preset(**SMALL, total_steps=60), tmp_path / "run")
    tuned, precisions = [], []

    def change_state(**changed):
        arrays, meta = state_of(folder)
        ddpg.write_npz(folder / "state.npz", arrays, **meta | changed)

    assert state_of(folder)[1]["threads"] == 1
    flags = "--quiet --episodes 1 --threads 2 --device cpu".split()
    result = interpreter(ROOT / "ddpg.py", "--resume", folder, *flags, cwd=tmp_path)
    assert result.returncode == 0 and state_of(folder)[1]["threads"] == 2, result.stderr

    def tune(config, threads=None, precision=None):
        tuned.append(threads)
        precisions.append(precision)

    monkeypatch.setattr(ddpg, "tune", tune)
    for flags in [], ["--threads", "2"]:
        assert ddpg.main(["--eval", str(folder), "--episodes", "1", *flags]) == 0
    change_state(threads=3)
    ddpg.resume(folder)
    ddpg.resume(folder, threads=4)
    assert tuned == [None, 2, 3, 4]
    change_state(precision="medium")
    ddpg.resume(folder)
    ddpg.resume(folder, precision="high")
    assert precisions[-2:] == ["medium", "high"]
    change_state(device="cuda")
    (folder / "state.previous.npz").unlink()
    assert ddpg.resume(folder, device="cpu").agent.device.type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="cannot be resumed.*CUDA"):
            ddpg.resume(folder)


@needs_unix
@pytest.mark.parametrize("call, left", [(1, 0), (2, 5000)])
def test_resume_from_the_state_before_outlives_a_death_in_its_first_save(
    tmp_path, whole_toy, call, left
):
    save_each_episode()
    folder = begin(TOY_RUN, tmp_path / "run", Toy, until=40)
    state, previous = folder / "state.npz", folder / "state.previous.npz"
    os.truncate(state, left)
    before = previous.read_bytes()

    def child():
        die_in_a_save(os, "replace", call)
        go_on(folder, Toy)

    assert exit_code(in_a_child(child)) == 9
    assert previous.read_bytes() == before
    go_on(folder, Toy)
    assert_same(whole_toy, folder)


def test_resume_after_run_stop_is_byte_identical(tmp_path, whole_toy):
    folder, steps = ddpg.new_folder(tmp_path / "run"), []
    for run in ddpg.record(Training(TOY_RUN, Toy), folder):
        steps.append(run.step)
        run.stop |= run.step in (33, 35)
    assert steps == [*range(41)] and run.episode is None and run.evaluation
    assert load(folder / "last.npz").meta["step"] == state_of(folder)[1]["step"] == 40
    for run in ddpg.record(ddpg.resume(folder, Toy), folder):
        run.stop |= run.step == 50  # between two episodes: at once
    assert run.step == 50
    go_on(folder, Toy)
    assert_same(whole_toy, folder)


def test_resume_after_a_loop_that_a_script_left(tmp_path, whole, interpreter):
    """At the level of a module, where nothing closes what it iterated over."""
    script = f"""
import sys; sys.path.append({str(ROOT)!r})
import ddpg
ddpg.SAVE_EVERY, ddpg.SAVE_SHARE = 0.0, 1e9
config = ddpg.Config.preset(**{SHORT})
ddpg.tune(config)
steps = ddpg.record(ddpg.Training(config), ddpg.new_folder("run"))
for run in steps:
    if run.step == 120:
        break
print(run.step)
"""
    (tmp_path / "script.py").write_text(script)
    result = interpreter("script.py", cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "120\n", "")
    assert ddpg.resume(tmp_path / "run").step == 100
    go_on(tmp_path / "run")
    assert_same(whole, tmp_path / "run")


@pytest.mark.parametrize("place", ["step", "make", "update"])
def test_resume_is_the_only_way_on_after_an_interrupt_within_a_step(tmp_path, monkeypatch, place):
    hit = raising(KeyboardInterrupt(), place, 30)
    monkeypatch.setattr(Agent, "measure", lambda *_: hit("update"))
    monkeypatch.setattr(Agent, "MEASURE_EVERY", 2)
    run = Training(small(total_steps=400), lambda: Leaves(hit))
    folder = ddpg.new_folder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        for _ in ddpg.record(run, folder):
            pass
    before, step = contents(folder), run.step
    for steps in iter(run), ddpg.record(run, folder):
        with pytest.raises(RuntimeError, match="resume"):
            next(steps)
    assert run.step == step and policies_in(folder)
    assert {**contents(folder), **before} == contents(folder)


def test_resume_imports_nothing_that_a_state_names(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("open('executed', 'w')")
    shutil.copy(ROOT / "benchmarks" / "regulator.py", tmp_path)
    folder = begin(PENDULUM_RUN, tmp_path / "run")
    arrays, meta = state_of(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in "evil:Pendulum-v1", "evil:evil:Pendulum-v1", "evil:", ":evil", "evil/a:b-v0":
        config = meta["config"] | {"env": name}
        ddpg.write_npz(folder / "state.npz", arrays, **meta | {"config": config})
        result = command("--resume", "run", cwd=tmp_path)
        assert result.returncode == 2 and "--env" in result.stderr, result.stderr
        for more in {}, {"total_steps": 800}:
            with pytest.raises(UsageError):
                ddpg.resume(folder, **more)
    assert not (tmp_path / "executed").exists()


def test_resume_with_the_module_that_the_user_names_goes_on(tmp_path):
    shutil.copy(ROOT / "benchmarks" / "regulator.py", tmp_path)
    own, short = ("--env", "regulator:Regulator-v0"), ("--eval-every", 0, "--hidden", 8)
    flags = *own, *short, "--total-steps", 200, "--learning-starts", 150, "--quiet", "--out", "run"
    assert command(*flags, "--episodes", 1, cwd=tmp_path).returncode == 0
    more = "--resume", "run", "--total-steps", 250, "--episodes", 1
    result = command(*more, cwd=tmp_path)
    assert result.returncode == 2 and "regulator:Regulator-v0 by --env" in result.stderr
    result = command(*more, *own, cwd=tmp_path)
    assert result.returncode == 0 and "Done after 250 steps" in result.stdout


def paths_in(tree, path=()):
    """Those of all values in a tree of dicts and lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        yield (*path, key)
        if isinstance(value, dict | list):
            yield from paths_in(value, (*path, key))


JUNK = [None, True, -1, 0, 1, 3, 10**5, 2**63, 10**400, 1e308, -0.5, 1e-9, np.nan, np.inf, ""]
JUNK += ["x", "x" * 3000, "a\nb\nc\nd\ne", "\x1b[2J", "cuda:0", "evil:Env-v0", "__tensor__", [], {}]
JUNK += [[[]], [None], [1e9] * 3, {"x": []}, {"0": {}}, {"__tensor__": "rows"}, {"__tensor__": []}]


def states(meta, count):
    """Those with something wrong in each part, or by chance nothing: dropped, replaced, copied."""
    rng = np.random.default_rng(0)
    paths = [path for path in paths_in(meta) if path[-1] != "__tensor__"]

    def any_of(items):
        return items[rng.integers(len(items))]

    yield "a million environments", meta | {"env_given": 10**6}
    for i in range(count):
        (*way, last), changed = paths[i % len(paths)], copy.deepcopy(meta)
        part, other = changed, meta
        for key in way:
            part = part[key]
        for key in any_of(paths):
            other = other[key]
        if i < len(paths) and isinstance(part, dict):
            value = part.pop(last)
        elif i < 2 * len(paths) and isinstance(part[last], int | float | None):
            value = part[last] = "x"
        else:
            value = part[last] = any_of(JUNK) if rng.random() < 0.9 else copy.deepcopy(other)
        yield f"{way} {last}: {value!r:.50}", changed


def resume_tampered_states(folder, count):
    """To be run in a process of its own, as threads stay."""
    (arrays, meta), wrong, went_on = state_of(folder), [], 0
    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_CPU, (100, 100))
    for what, changed in states(meta, count):
        with open(folder / "state.npz", "wb") as file:
            ddpg.write_npz(file, arrays, **changed)
        sys.stderr = said = io.StringIO()
        try:
            for _ in itertools.islice(ddpg.resume(folder), 4):
                pass
            went_on += 1
        except (UsageError, EnvError) as error:
            ddpg.warn(error)
            if len(str(error)) > 10_000:
                wrong.append((what, "a text without end"))
        except BaseException as error:
            wrong.append((what, error))
        finally:
            sys.stderr = sys.__stderr__
        lines = said.getvalue().splitlines()
        if len(lines) > 4 or not all(line.isprintable() and len(line) <= 200 for line in lines):
            wrong.append((what, lines))
    assert not wrong, "\n".join(map(repr, wrong))
    print(f"{went_on} of {count} went on all the same")


CODE = "\x1b[2J\x07"  # which clears a terminal, and rings
CODED = [{name: CODE} for name in ("machine", "made_by", "threads", "env")]
CODED += [{"config": {name: CODE}} for name in ("env", "algo", CODE)]
CODED += [{"config": {"env": f"{CODE}:Pendulum-v1"}}]


@pytest.mark.parametrize("changed", CODED, ids=repr)
def test_resume_and_eval_print_no_control_characters_of_a_file(tmp_path, capsys, changed):
    folder = begin(Config.preset(**SMALL, total_steps=60), tmp_path / "run")
    policy = policy_file(tmp_path / "policy.npz")
    for path, flags in (
        (folder / "state.npz", ["--resume", str(folder), "--total-steps", "61"]),
        (policy, ["--eval", str(policy)]),
    ):
        arrays, meta = arrays_and_meta(path)
        config = meta["config"] | changed.get("config", {})
        ddpg.write_npz(path, arrays, **meta | changed | {"config": config})
        ddpg.main([*flags, "--episodes", "1", "--quiet"])
    said = "".join(capsys.readouterr())
    assert said.replace("\n", "").isprintable()


@needs_unix
def test_resume_of_a_state_that_was_tampered_with_is_refused_or_goes_on(tmp_path, count=150):
    config = Config.preset(
        **SHORT | dict(total_steps=90, learning_starts=25, eval_every=40, eval_episodes=1)
    )
    config = config.replace(hidden=(8,), batch_size=4, max_episode_steps=20, solved_at=9.0)
    save_each_episode()
    folder = begin(config.replace(noise_sigma_end=0.1), tmp_path / "run", until=40)
    (folder / "state.previous.npz").unlink()
    assert state_of(folder)[1]["evaluation"]["step"] == 40
    child = in_a_child(lambda: resume_tampered_states(folder, count), tmp_path / "log")
    code, text = exit_code(child, 120), (tmp_path / "log").read_text()
    assert code == 0, text
    print(text)


def test_resume_of_a_small_file_takes_no_large_memory(tmp_path):
    save_each_episode()
    folder = begin(TOY_RUN, tmp_path / "run", Toy, until=20)
    arrays, meta = state_of(folder)
    (folder / "state.previous.npz").unlink()
    wide = meta["config"] | {"hidden": [8_000, 8_000]}
    lines = {"episodes.csv": np.frombuffer(b"\n" * 10**6, np.uint8)}
    critic = dict.fromkeys(meta["agent"]["critic"], {"__tensor__": "tensor0"})
    again = meta["agent"] | {"critic": critic}
    for changed, words in (
        ((arrays, meta | {"config": wide}), "networks are larger"),
        ((arrays | lines, meta), "episodes.csv is too long"),
        ((arrays, meta | {"agent": again}), "tensor0"),
    ):
        ddpg.write_npz(folder / "state.npz", changed[0], **changed[1])
        with pytest.raises(UsageError, match=words):
            ddpg.resume(folder, Toy)


class ActorOfParts(ddpg.Actor):
    """Which exists for some sizes and on some devices only."""

    def __init__(self, obs_dim, act_dim, config):
        super().__init__(obs_dim, act_dim, config)
        self.first = nn.Linear(obs_dim - 1, 4)
        assert self.first.bias.detach().numpy().shape == (4,)


def test_resume_takes_networks_that_exist_for_their_sizes_only(tmp_path, monkeypatch):
    monkeypatch.setattr(ddpg, "Actor", ActorOfParts)
    save_each_episode()
    folder = begin(TOY_RUN, tmp_path / "run", Toy, until=20)
    assert ddpg.resume(folder, Toy).step == 20


def test_resume_keeps_the_latest_state_where_the_environment_is_at_fault(tmp_path):
    save_each_episode()
    folder = begin(TOY_RUN, tmp_path / "run", Toy, until=20)
    calls = itertools.count()

    def busy():
        if next(calls) == 0:
            raise OSError("the port is busy")
        return Toy()

    with pytest.raises(UsageError, match="port is busy"):
        ddpg.resume(folder, busy)
    run = ddpg.resume(folder, busy)
    assert run.step == 20 and not run.spoilt


def resume_hostile_states(folder, named):
    """To be run in a process of its own, whose memory is measured."""
    before, at_first, wrong = contents(folder), peak(), []
    for path, word in named:
        os.replace(path, folder / "state.npz")
        try:
            with an_instant(path, at_first):
                ddpg.resume(folder)
            if word is not None:
                wrong.append((path, "was accepted"))
        except UsageError as error:
            if (word or "") not in str(error):
                wrong.append((path, error))
        except Exception as error:
            wrong.append((path, error))
    os.unlink(folder / "state.npz")
    for path, data in before.items():
        path.write_bytes(data)
    assert not wrong, "\n".join(map(repr, wrong))


@needs_unix
def test_resume_refuses_hostile_states_in_an_instant(tmp_path):
    folder, more = begin(TOY_RUN.replace(env="Pendulum-v1"), tmp_path / "run"), tmp_path / "more"
    more.mkdir()
    (folder / "state.previous.npz").unlink(missing_ok=True)
    arrays, meta = state_of(folder)
    named = list(hostile(more, arrays, meta))
    headers = {
        "void": npy_header((6,) * 20, "|V0"),
        "huge": npy_header((10**5, 10**6)),
        "object": npy_header((3,), "|O"),
        "text": np.array(["x"] * 3),
        "time": np.zeros(3, "M8[s]"),
        "header": b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 1000,
        "none": b"",
    }
    a_tensor = next(key for key in arrays if key.startswith("tensor"))
    for key in "torch_rng", "episodes.csv", "rows", a_tensor:
        for kind, header in headers.items():
            path = archive_of(more / f"{key} {kind}.npz", arrays | {key: header}, json.dumps(meta))
            named.append((path, None if ".csv" in key else ""))  # of which any bytes are a text
    child = in_a_child(lambda: resume_hostile_states(folder, named), tmp_path / "log")
    assert exit_code(child) == 0, (tmp_path / "log").read_text()


# ---- policy files ----


def test_load_gives_the_same_agent_from_plain_arrays(tmp_path):
    agent = Agent(3, [-2], [2], Config(**SMALL, algo="td3"))
    agent.update(random_batch(agent))
    agent.save(tmp_path / "p.npz", env="Pendulum-v1", step=1, evaluation=None)
    with np.load(tmp_path / "p.npz", allow_pickle=False) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    assert all(array.dtype == np.float32 for array in arrays.values())
    assert (meta["env"], meta["step"]) == ("Pendulum-v1", 1)
    loaded, obs = load(tmp_path / "p.npz"), np.random.default_rng(0).normal(size=(9, 3))
    assert np.array_equal(agent.act(obs), loaded.act(obs))
    assert torch.equal(agent.flat["critic"].data, loaded.flat["critic"].data)


@pytest.mark.parametrize("dims", [(3, [-2.0], [2.0]), (8, [-1.0, 0.0], [1.0, 5.0])])
def test_load_is_not_needed_with_the_readmes_lines_of_numpy(tmp_path, dims):
    block, names, path = readme("def policy(path)"), {}, tmp_path / "best.npz"
    assert len(block[block.index("def ") :].splitlines()) == 11
    assert "torch" not in block and "ddpg" not in block
    exec(block, names)
    agent = Agent(*dims, Config(hidden=(32, 16), seed=3))
    agent.flat["actor"].data.normal_(0, 0.3)
    agent.save(path, env="Pendulum-v1", step=1)
    act, obs = names["policy"](path), np.random.default_rng(0).normal(size=(50, dims[0]))
    expected = load(path).act(obs)
    found = np.array([act(o) for o in obs])
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max() + 1e-6


def npy_header(shape, kind="<f4"):
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


class Evil:
    """Unpickling it writes a file."""

    def __reduce__(self):
        return open, ("executed", "w")


def archive_of(path, arrays, meta, compression=zipfile.ZIP_STORED):
    """A file of arrays, or what stands for them, in bytes, and of a text or another array."""
    with zipfile.ZipFile(path, "w", compression) as file:
        for key, array in {"meta": np.array(meta), **arrays}.items():
            with file.open(f"{key}.npy", "w") as member:
                if isinstance(array, bytes):
                    member.write(array)
                else:
                    np.lib.format.write_array(member, np.asarray(array))
    return path


def with_members(path, *members, sparse=0):
    """More members, as (name, bytes), in an archive; the last is `sparse` bytes longer, of 0."""
    with zipfile.ZipFile(path, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there already
        for name, data in members:
            with file.open(name, "w", force_zip64=True) as member:
                member.write(data)
                if sparse and (name, data) == members[-1]:
                    file.fp.seek(sparse - 1, os.SEEK_CUR)
                    file.fp.write(b"\0")
                    member._file_size += sparse
    return path


def with_directory(path, zip64="", names=150_000):
    """An archive with very many empty members, in a directory as of zip64, if asked for.

    The record of old has the size of a sound one then. "apart": the new one is not just before
    its locator, where Pythons of 2025 on look for it.
    """
    data = path.read_bytes()
    count, size, offset = struct.unpack("<HLL", data[-12:-2])
    fields = struct.pack("<6H3L5H2L", 20, 20, 0, 0, 0, 33, 0, 0, 0, 11, 0, 0, 0, 0, 0, 0)
    more = [b"PK\1\2" + fields + b"%07d.npy" % i for i in range(names)]
    directory, total = data[offset : offset + size] + b"".join(more), count + names
    end = offset + len(directory)
    sizes = struct.pack("<4Q", total, total, len(directory), offset)
    record = b"PK\6\6" + struct.pack("<QHHLL", 44, 45, 45, 0, 0) + sizes
    locator = b"PK\6\7" + struct.pack("<LQL", 0, end, 1)
    apart = b"apart" * (zip64 == "apart")
    if apart:
        record = record[:4] + struct.pack("<Q", 44 + len(apart)) + record[12:]
    old = (min(total, 2**16 - 1),) * 2 + (size if zip64 else len(directory), offset)
    tail = b"PK\5\6\0\0\0\0" + struct.pack("<HHLLH", *old, 0)
    zip64 = record + apart + locator if zip64 else b""
    path.write_bytes(data[:offset] + directory + zip64 + tail)
    return path


def hostile(folder, arrays, meta):
    """Archives of these arrays that take long to read: paths, and a word of what is said."""
    text, cut = json.dumps(meta), json.dumps(meta)[:100]
    metas = {
        "void": npy_header((6,) * 20, "|V0"),
        "voids": npy_header((6,) * 20, "|V1"),
        "structured": np.zeros((), [("a", "U9"), ("b", "i4", (1000, 1000))]),
        "texts": np.array([text]),
        "many texts": np.array([cut] * 10_000),
        "no texts": np.zeros((0,), "U9"),
        "bytes": np.array(text.encode()),
        "number": np.array(1.0),
        "endless text": npy_header((), "<U1000000000"),
        "long text": npy_header((), f"<U{2**22}") + bytes(2**24),
        "long junk": text + " " * 2**22,
        "infinite text": npy_header((), "<U0"),
        "list": np.array("[]"),
        "scalar": np.array("1"),
        "wide": np.array("[" + "{}," * 10**6 + "{}]"),
    }
    words = {
        "long text": "too long",
        "long junk": "too long",
        "texts": "not a text",
        "void": "not a text",
    }
    for name, value in metas.items():
        yield archive_of(folder / f"meta {name}.npz", arrays, value), words.get(name, "")

    def whole(name):
        return archive_of(folder / f"{name}.npz", arrays, text)

    yield with_directory(whole("crowd")), "too long"
    for kind in "zip64", "apart":
        yield with_directory(whole(kind), kind), "cannot be read"
    key = next(iter(arrays))
    for name in key, "meta":
        yield with_members(whole(f"twice {name}"), (f"{name}.npy", b"")), "one name"
    for name in "x.npy", "x":
        path = whole(f"sparse {name}")
        yield with_members(path, (name, npy_header((6 << 28,))), sparse=6 << 30), "arrays"
    some = {name: array for name, array in arrays.items() if name != key}
    path = archive_of(folder / "sparse array.npz", some, text)
    header = npy_header((6 << 28,))
    yield with_members(path, (f"{key}.npy", header), sparse=6 << 30), "arrays"
    with zipfile.ZipFile(folder / "sparse meta.npz", "w"):
        pass
    header = npy_header((), f"<U{6 << 28}")
    path = with_members(folder / "sparse meta.npz", ("meta.npy", header), sparse=6 << 30)
    yield path, "cannot be read"


def junk(folder, good):
    """Files that are no policies: paths, and a word of what is said of each ("" if it is sound)."""
    data = good.read_bytes()
    with np.load(good) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    key = "actor.net.weights.0"

    def archive(name, members=None, compression=zipfile.ZIP_STORED, config=None, **changed):
        """A file with some arrays, values of config or of meta changed."""
        text = json.dumps(meta | {"config": meta["config"] | (config or {})} | changed)
        return archive_of(folder / name, {**arrays, **(members or {})}, text, compression)

    # No archive at all
    texts = dict(empty=b"", hello=b"hello", short=data[:500], half=data[: len(data) // 2])
    for name, text in (texts | {"pickle": pickle.dumps(Evil())}).items():
        (folder / f"{name}.npz").write_bytes(text)
        yield folder / f"{name}.npz", "cannot be read"
    yield folder / "none.npz", "no such file"
    (folder / "folder.npz").mkdir()
    yield folder / "folder.npz", "not the folder of a run"
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.npz")
        yield folder / "pipe.npz", "no such file"
        yield Path("/dev/zero"), "no such file"
    # Arrays that cannot be read, or not in an instant
    np.savez(folder / "evil.npz", meta=np.array([Evil()], dtype=object))
    yield folder / "evil.npz", "pickle"
    yield archive("object.npz", {key: npy_header((3,), "|O")}), "pickle"
    bomb = {key: np.zeros((10_000, 10_000), np.int8)}
    yield archive("bomb.npz", bomb, zipfile.ZIP_DEFLATED), "compressed"
    yield archive("huge.npz", {key: npy_header((10**5, 10**6))}), "not a policy file"
    yield archive("negative.npz", {key: npy_header((-1, 5))}), "not a policy file"
    long = b"\x93NUMPY\x02\x00\xff\xff\xff\x7f" + b" " * 1000
    yield archive("header.npz", {key: long}), "not a policy file"
    yield archive("deep.npz", {"meta": np.array("[" * 100_000)}), "cannot be read"
    again = archive("again.npz")  # the same bytes in the file are read again and again
    with zipfile.ZipFile(again, "a") as file:
        file.filelist += [file.getinfo(f"{key}.npy")] * 2_000
        file._didModify = True
    yield again, "compressed"
    (folder / "hostile").mkdir()
    yield from hostile(folder / "hostile", arrays, meta)
    # Arrays and values that do not make a policy
    with zipfile.ZipFile(folder / "bare.npz", "w") as file, file.open("meta.npy", "w") as member:
        np.lib.format.write_array(member, np.array("{}"))
    yield folder / "bare.npz", "KeyError: 'config'"
    yield archive("nan.npz", {key: arrays[key] * np.nan}), "has become nan"
    yield archive("wide.npz", config={"hidden": [4_096] * 5}), "arrays"
    yield archive("many.npz", config={"hidden": [1] * 100_000}), "hidden"
    yield archive("critics.npz", config={"n_critics": 100}), "arrays"
    yield archive("scaled.npz", {"obs_scale": arrays["obs_scale"] * np.inf}), "obs_scale"
    changes = [
        (dict(config={"x": 1}), "'x'"),
        (dict(format=99), "format"),
        (dict(step="x"), "format"),
        (dict(env=["x"]), "policy"),
        (dict(env="\x1b[2Jyour disk is gone"), "format"),
        (dict(low=None), "policy"),
        (dict(high=[float("inf")]), "policy"),
        (dict(obs_dim=-1), "policy"),
        (dict(obs_dim=4), "size mismatch"),
        (dict(obs_dim=10**9), "policy"),
    ]
    for i, (changed, word) in enumerate(changes):
        yield archive(f"changed{i}.npz", **changed), word


def mutations(good, count):
    """Policy files with something wrong, or by chance nothing: bytes flipped, cut out, put in;
    values and arrays replaced."""
    rng, data = np.random.default_rng(0), good.read_bytes()
    with np.load(good) as file:
        arrays = dict(file)
    meta = json.loads(str(arrays.pop("meta")))
    values = [None, True, -1, 0, 1, 10**6, 10**12, 10**400, 1e308, -0.5, np.nan, np.inf]
    values += ["", "x" * 1000, "\x1b[2J", "evil:Env-v0", {}, {"x": []}]
    values += [[], [[]], [1e9] * 3, [10**5] * 50, [1] * 50_000]
    shapes = [(), (0,), (1,), (3, 3), (10**3, 10**3), (1, 4, 10**5)]
    types = [np.float32, np.float64, np.int8, "U7", "S3", bool, complex, "M8[s]"]

    def any_of(items):
        return items[rng.integers(len(items))]

    for i in range(count):
        raw, some, changed = bytearray(data), dict(arrays), copy.deepcopy(meta)
        a, b = sorted(rng.integers(0, len(raw), 2))
        if i % 4 == 0:
            for _ in range(rng.integers(1, 9)):
                raw[rng.integers(len(raw))] ^= 1 << rng.integers(8)
        elif i % 4 == 1:
            raw[a:b] = any_of([b"", rng.bytes(50), bytes(raw[a:b]) * 3])
        else:
            if i % 4 == 2:
                part = changed["config"] if rng.random() < 0.7 else changed
                part[any_of(list(part))] = any_of(values)
            else:
                some[any_of(list(some))] = np.zeros(any_of(shapes), any_of(types))
            out = io.BytesIO()
            np.savez(out, meta=np.array(json.dumps(changed)), **some)
            raw = out.getvalue()
        yield bytes(raw)


# What reading data never does; and no file is opened for writing
FORBIDDEN = set(
    "import exec os.system subprocess.Popen os.posix_spawn socket.connect ctypes.dlopen "
    "pickle.find_class os.remove os.rename os.exec os.fork".split()
)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def an_instant(what, at_first):
    """In which little time is taken, and no more than a little memory since it was `at_first`."""
    began = time.process_time()
    yield
    took = time.process_time() - began, (peak() - at_first) / 1e6
    assert took[0] < 1 and took[1] < 256, (what, took)


def load_hostile_files(good, named, count):
    """To be run in a process of its own, as an audit hook stays."""
    events, loaded = [], 0

    def hook(event, args):
        writing = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)
        if event in FORBIDDEN or writing:
            events.append((event, args[0]))

    def attempt(path, word=""):
        nonlocal loaded
        with an_instant(path, at_first):
            try:
                policy = load(path)
                assert not word, path
                loaded += 1
                ddpg.env_maker_of(policy)
            except UsageError as error:
                text = str(error)
                assert word in text and text.count("\n") < 3 and len(text) < 600, (path, text)

    at_first = peak()
    attempt(good)
    for path, word in named:  # unhooked, as the libraries import some parts when first needed
        attempt(path, word)
    bad, changed = good.with_name("bad.npz"), mutations(good, count)
    bad.write_bytes(next(changed))  # it has read the good one before the hook comes
    sys.addaudithook(hook)
    attempt(bad)
    for path, word in named:
        attempt(path, word)
    assert not events, events[:5]
    for data in changed:
        bad.write_bytes(data)
        assert {*events} <= {("open", str(bad))}, events[:5]  # which was this very line
        events.clear()
        attempt(bad)
        assert not events, events[:5]
    print(f"{loaded} of {count} loaded all the same")
    return 0


@needs_unix
def test_load_refuses_hostile_files_and_runs_nothing_in_them(tmp_path, monkeypatch, count=150):
    monkeypatch.chdir(tmp_path)
    log, good = tmp_path / "log", policy_file(tmp_path / "good.npz", algo="td3")
    named = list(junk(tmp_path, good))
    child = in_a_child(lambda: load_hostile_files(good, named, count), log, timeout=600)
    assert exit_code(child, 600) == 0, log.read_text()
    print(log.read_text())
    assert not Path("executed").exists()
    for name in "bomb", "pipe", "wide", "pickle":
        for main, flags in (ddpg.main, ["--eval"]), (viewer.main, ["--headless"]):
            began = time.process_time()
            assert main([*flags, f"{name}.npz"]) == 2 and time.process_time() - began < 1


@pytest.mark.slow
@needs_unix
def test_load_refuses_ten_thousand_hostile_files(tmp_path, monkeypatch):
    test_load_refuses_hostile_files_and_runs_nothing_in_them(tmp_path, monkeypatch, 10_000)


# ---- command line ----


def toys():
    """A module of environments that cannot be learnt, or not without a flag."""
    box, uint8 = gym.spaces.Box, np.uint8
    small, images = box(-1.0, 1.0, (2,)), box(0, 255, (8, 8, 3), uint8)
    graph = gym.spaces.Graph(small, None)

    def fail():
        raise RuntimeError("out of order")

    def toy(observations, actions):
        env = Toy()
        env.observation_space, env.action_space = observations, actions
        return env

    makers = {
        "Raises": fail,
        "Leaves": lambda: sys.exit(3),
        "Endless": lambda: toy(small, small),
        "Unbounded": lambda: toy(small, box(-np.inf, np.inf, (1,))),
        "Nothing": lambda: toy(small, box(-1.0, 1.0, (0,))),
        "Pixels": lambda: toy(images, small),
        "Camera": lambda: toy(gym.spaces.Dict(x=small, y=gym.spaces.Tuple([images])), small),
        "Empty": lambda: toy(gym.spaces.Tuple([box(-1.0, 1.0, (2, 0))]), small),
        "Sequence": lambda: toy(gym.spaces.Dict(x=gym.spaces.Sequence(small)), small),
        "Graph": lambda: toy(graph, small),
        "Text": lambda: toy(gym.spaces.Tuple([small, gym.spaces.Text(5)]), small),
        "OneOf": lambda: toy(gym.spaces.OneOf([small, small]), small),
    }
    for name, make in makers.items():
        gym.register(f"{name}-v0", make)
    return type(sys)("toys")


# Arguments, and words of what is said
REFUSED = """
    --env Pendlum-v1 | Pendulum
    --env Pendulum | Pendulum-v1
    --env Pendulum-v0 | Pendulum-v1
    --env LunarLanderContinuous-v2 | LunarLanderContinuous-v3
    --env CartPole-v1 | Discrete
    --env no_such_module:Env-v0 | no_such_module
    --env Nope/Env-v0 | Nope
    --env toys:Unbounded-v0 | unbounded
    --env toys:Pixels-v0 | images
    --env toys:Endless-v0 | --max-episode-steps
    --env toys:Endless | Endless-v0
    --env toys:Camera-v0 | observation['y'][0] is Box(0, 255, (8, 8, 3), uint8), images: wrap it
    --env toys:Empty-v0 | empty
    --env toys:Sequence-v0 | of no fixed size: wrap it
    --env toys:Graph-v0 | of no fixed size: wrap it
    --env toys:Text-v0 | its observation[1] is Text(
    --env toys:OneOf-v0 | of no fixed size
    --env toys:Nothing-v0 | its actions are
    --env toys:Raises-v0 | out of order
    --env toys:Leaves-v0 | SystemExit: 3
    --env-kwargs { | --env-kwargs
    --env-kwargs [1] | env_kwargs
    --env-kwargs {"nokey":1} | nokey
    --gama 0.9 | --gama 0.9; --help lists all flags
    --se 3 | --se
    --seed x | --seed
    --seed -1 | 2,147,483,647
    --actor-lr nan | actor_lr
    --gamma 2 | gamma
    --batch-size 0 | batch_size
    --hidden 0 | hidden
    --algo ppo | ppo
    --algo td3 --n-critics 1 --policy-delay 1 --target-noise 0 | ddpg
    --threads 0 | threads: 0 is not 1 to 256
    --episodes 0 | --episodes
    --device cuda | cuda
    --device tpu | tpu
    --precision low | --precision
    --eval a --resume b | --eval
    --eval a --gamma 0.5 | gamma
    --eval nowhere | nowhere
    --eval . | not the folder of a run
    --eval= | need a name
    --resume nowhere | nowhere
    --resume . | not the folder of a run
    --resume= | need a name
    --out= | need a name
    --init= | need a name
    --init nowhere | nowhere
    --init a --resume b | --init
    --init a --eval b | --init
    --hidden 16384 16384 16384 16384 | gigabytes
"""


@pytest.mark.parametrize("line", REFUSED.strip().splitlines())
def test_command_refuses_bad_input_with_a_word_on_what_to_do(tmp_path, monkeypatch, capsys, line):
    arguments, words = line.strip().split(" | ")
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "toys", toys())
    started = time.process_time()
    assert ddpg.main(arguments.split(" ")) == 2
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") <= 3 and "Traceback" not in err and out == ""
    assert list(tmp_path.iterdir()) == [] and time.process_time() - started < 3


@needs_unix
def test_command_refuses_a_replay_that_does_not_fit(tmp_path):
    def child():
        mapped = resource.getpagesize() * int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (mapped + (16 << 30), resource.RLIM_INFINITY))
        return ddpg.main(["--buffer-size", "1000000000", "--out", str(tmp_path / "run")])

    assert exit_code(in_a_child(child, tmp_path / "log")) == 2
    log = (tmp_path / "log").read_text()
    assert "1,000,000,000 rows (buffer_size) do not fit" in log and log.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_command_imports_from_the_working_folder_only_for_a_module_that_is_named(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    for flags in ["--eval", "nowhere"], ["--resume", "nowhere"], ["--env", "Nowhere-v0"]:
        assert ddpg.main(flags) == 2 and sys.path == before
    assert ddpg.main(["--env", "nowhere:Env-v0"]) == 2
    assert sys.path == [*before, str(tmp_path)]  # the last: it shadows no library


@pytest.mark.parametrize(
    "name, found, least",
    [
        ("Python", "3.9.18", "3.10"),
        ("torch", "2.3.1+cu121", "2.4"),
        ("torch", "1.13.1", "2.4"),
        ("gymnasium", "0.29.1", "1.0"),
        ("numpy", "1.20.3", "1.21"),
        ("torch", "2.4.0+cpu", None),
        ("torch", "2.13.0a0+git7", None),
        ("torch", "10.0", None),
        ("gymnasium", "1.0.0a2", None),
    ],
)
def test_command_says_at_once_what_is_too_old(monkeypatch, capsys, name, found, least):
    for function in "signal.signal", "os.register_at_fork":  # of this process
        monkeypatch.setattr(function, lambda *_, **__: None)
    if name == "Python":
        monkeypatch.setattr("platform.python_version", lambda: found)
    else:
        monkeypatch.setattr(f"{name}.__version__", found)
    text = f"ddpg.py needs {name} {least} or newer, not {found}"
    if least is None:
        runpy.run_path(ddpg.__file__, run_name="ddpg")
        return
    with pytest.raises(ImportError, match=f"^{re.escape(text)}$"):
        runpy.run_path(ddpg.__file__, run_name="ddpg")
    monkeypatch.setattr(sys, "argv", ["ddpg.py", "--env", "Pendulum-v1"])
    with pytest.raises(SystemExit) as exit:
        runpy.run_path(ddpg.__file__, run_name="__main__")
    assert exit.value.code == 2 and capsys.readouterr() == ("", text + "\n")


def test_command_explains_a_missing_box2d(tmp_path, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.box2d")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "Box2D", None)
    monkeypatch.chdir(tmp_path)
    assert ddpg.main(["--env", LANDER]) == 2
    assert "gymnasium[box2d]" in " ".join(lines_of(capsys)) and not list(tmp_path.iterdir())


def test_command_leaves_a_used_folder_alone(tmp_path):
    folder = begin(Config.preset(**SMALL, total_steps=60), tmp_path / "run")
    before = contents(folder)
    result = command(*QUICK, "--out", folder)
    assert result.returncode == 2 and "--resume" in result.stderr
    assert contents(folder) == before
    (tmp_path / "file").write_text("")
    result = command(*QUICK, "--out", tmp_path / "file" / "run")
    assert result.returncode == 2 and "cannot be the folder of a new run" in result.stderr
    assert result.stderr.count("\n") <= 3


def test_command_says_what_it_begins_and_numbers_folders_of_its_own(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quick = *IN_AN_INSTANT[2:], "--episodes", "1"
    for flags in [], ["--gamma", "0.9"], ["--algo", "ddpg", "--batch-size", "8"]:
        assert ddpg.main([*quick, *flags]) == 0
    assert ddpg.main(["--resume", "runs/Pendulum-v1/ddpg-seed0-2", "--episodes", "1"]) == 0
    assert ddpg.main([*quick, "--env", "Blind-v0", "--out", "own"]) == 0
    begun = re.findall(".* steps, in .*", capsys.readouterr().out)
    told = "ddpg on Pendulum-v1 (its preset), seed 0, cpu, 60 steps, in runs/Pendulum-v1/ddpg-seed0"
    assert begun[:2] == [told, f"{told}-2, as ddpg-seed0 exists: --resume goes on with it"]
    assert begun[2].startswith(f"{told}-3, as ddpg-seed0 exists")
    assert begun[3] == told.replace("its preset", "from step 0") + "-2"
    told = "td3 on Blind-v0 (no preset: defaults), seed 0, cpu, 60 steps, in own"
    assert begun[4:] == [told]
    runs = tmp_path / "runs" / "Pendulum-v1"
    assert {path.name for path in runs.iterdir()} == {f"ddpg-seed0{i}" for i in ("", "-2", "-3")}
    assert load(runs / "ddpg-seed0-2").config.gamma == 0.9


def test_command_begins_from_a_policy_with_its_flags(tmp_path, capsys, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    quick = "--init", str(whole), "--total-steps", "60", "--episodes", "1", "--out"
    assert ddpg.main([*quick, "a", "--env-kwargs", '{"g": 9.0}', "--gamma", "0.9"]) == 0
    expected = PENDULUM_RUN.replace(total_steps=60, gamma=0.9, env_kwargs={"g": 9.0})
    assert load("a").config == expected and f"(from {whole})" in capsys.readouterr().out
    gym.register("Heavy-v0", PendulumEnv, max_episode_steps=20)
    assert ddpg.main([*quick, "b", "--env", "Heavy-v0"]) == 0
    changed = dict(env="Heavy-v0", total_steps=60, max_episode_steps=0, solved_at=None)
    assert load("b").config == PENDULUM_RUN.replace(**changed)
    assert json.loads(Path("b", "config.json").read_text())["init"] == str(whole / "best.npz")
    capsys.readouterr()
    for flags, words in {
        ("c",): "which gymnasium does not bring: name it by --env",
        ("c", "--env", "MountainCarContinuous-v0"): "does not fit: observations 3 -> 2",
        ("c", "--env", "Heavy-v0", "--hidden", "8", "--algo", "td3"): "hidden (32, 32) -> (8,), ",
    }.items():
        start = Path("b") if "--env" not in flags else whole
        assert ddpg.main(["--init", str(start), "--out", *flags]) == 2
        assert words in lines_of(capsys)[0] and not Path("c").exists()


def test_command_begins_from_a_policy_without_running_what_it_names(tmp_path):
    (tmp_path / "evil.py").write_text("open('executed', 'w')")
    for where in "file", "config":
        policy_file(tmp_path / "p.npz", env="evil:X-v0" if where == "file" else "Pendulum-v1")
        arrays, meta = arrays_and_meta(tmp_path / "p.npz")
        meta["config"] |= dict(env="evil:X-v0", total_steps=60, env_kwargs={"g": 9.0})
        ddpg.write_npz(tmp_path / "p.npz", arrays, **meta)
        result = command("--init", "p.npz", "--quiet", "--episodes", 1, cwd=tmp_path)
        assert result.returncode == (2 if where == "file" else 0), result.stderr
        assert not (tmp_path / "executed").exists()
    assert load(tmp_path / "runs" / "Pendulum-v1" / "td3-seed0").config.env == "Pendulum-v1"


def table_of(*means):
    return ["step,eval_mean,length\n", *(f"{i},{mean},9\n" for i, mean in enumerate(means))]


def test_command_draws_the_evaluations_in_a_line(tmp_path, monkeypatch):
    assert ddpg.text_curve(table_of(-5, -4, 2, -1.5)) == "-5.0 ▁▂█▅ -1.5"
    for table in [], table_of(), table_of(1), table_of(1, "x"), ["step"]:
        assert ddpg.text_curve(table) == ""
    assert ddpg.text_curve(table_of(3, 3)) == "3.0 ▁▁ 3.0"
    assert ddpg.text_curve(table_of(*range(1000))).count("█") == 4
    assert len(ddpg.text_curve(table_of(*range(1000)))) == 50 + len("0.0  999.0")
    plain = command(*QUICK, "--episodes", 1, "--out", tmp_path / "a").stdout
    assert re.search("^Evaluations: -[0-9.]+ .{3} -[0-9.]+$", plain, re.MULTILINE), plain
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii", errors="replace"))
    assert ddpg.text_curve(table_of(-5, -4, 2)) == ""
    for stream in None, io.StringIO():
        monkeypatch.setattr(sys, "stdout", stream)
        assert ddpg.text_curve(table_of(1, 2)) == ""


def test_command_needs_the_single_file_alone(tmp_path, interpreter):
    shutil.copy(ROOT / "ddpg.py", tmp_path)
    assert interpreter("ddpg.py", *QUICK, "--quiet", cwd=tmp_path).returncode == 0
    evaluation = "--eval runs/Pendulum-v1/ddpg-seed0 --episodes 5 --json".split()
    script = "import ddpg, sys; ddpg.main(sys.argv[1:]); "
    script += "print({'pygame', 'sympy'} & {*sys.modules})"  # either takes half a second
    evaluated, imported = python("-c", script, *evaluation, cwd=tmp_path).stdout.splitlines()
    assert json.loads(evaluated)["episodes"] == 5 and imported == "set()"


def test_command_opens_the_viewer_beside_the_training(tmp_path, interpreter):
    shutil.copy(ROOT / "ddpg.py", tmp_path)
    train_flags = *IN_AN_INSTANT, "--episodes", "1"
    resume_flags = "--resume", "run", "--total-steps", "70", "--episodes", "1"
    result = interpreter("ddpg.py", *train_flags, "--watch", cwd=tmp_path)
    assert result.returncode == 2 and "viewer.py" in result.stderr
    assert not (tmp_path / "run").exists()
    script = "import os, sys; open('begun', 'w').write(' '.join(sys.argv[1:]))"
    (tmp_path / "viewer.py").write_text(script + "; os.replace('begun', 'opened')")
    for flags in train_flags, resume_flags:
        result = interpreter("ddpg.py", *flags, "--quiet", "--watch", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        wait_for((tmp_path / "opened").exists)
        assert (tmp_path / "opened").read_text() == f"{tmp_path / 'run'} --live"
        (tmp_path / "opened").unlink()


def test_command_evaluates_only_in_environments_that_gymnasium_brings(tmp_path):
    (tmp_path / "evil.py").write_text("open('executed', 'w')")
    policy_file(tmp_path / "p.npz", env="evil:Pendulum-v1")
    result = command("--eval", "p.npz", cwd=tmp_path)
    assert result.returncode == 2 and "--env" in result.stderr
    assert not (tmp_path / "executed").exists()
    result = command("--eval", "p.npz", "--env", "Pendulum-v1", "--episodes", 2, cwd=tmp_path)
    assert result.returncode == 0 and "over 2 test episodes" in result.stdout
    result = command("--eval", "p.npz", "--env", "MountainCarContinuous-v0", cwd=tmp_path)
    assert result.returncode == 2 and "p.npz is for" in result.stderr


def test_command_trains_in_an_environment_of_ones_own_by_module_and_id(tmp_path):
    shutil.copy(ROOT / "benchmarks" / "regulator.py", tmp_path)
    own = "--env", "regulator:Regulator-v0"
    flags = *own, "--env-kwargs", '{"d": 3}', *QUICK, "--algo", "td3", "--episodes", 1
    result = command(*flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    folder = Path("runs", "regulator-Regulator-v0", "td3-seed0")
    assert load(tmp_path / folder).obs_dim == 3
    lines = [line for line in result.stdout.splitlines() if line.startswith("  python ")]
    evaluation, view = (line.split()[2:] for line in lines)
    assert evaluation == ["--eval", str(folder), *own] and view == evaluation[1:]
    assert command(*evaluation, "--episodes", 1, cwd=tmp_path).returncode == 0
    result = command("--resume", folder, *own, "--episodes", 1, cwd=tmp_path)
    assert result.returncode == 0 and "Done after 176 steps" in result.stdout
    result = command("--resume", folder, "--env", "Pendulum-v1", cwd=tmp_path)
    assert result.returncode == 2
    assert "env regulator:Regulator-v0 -> Pendulum-v1" in result.stderr


class Faulty(Toy):
    """At its seventh step something is wrong with it; `wrong` says what."""

    def step(self, action):
        obs, rew, *more = super().step(action)
        if self.t == 7 and self.wrong == "raises":
            raise RuntimeError("out of fuel")
        if self.t == 7:
            obs = {"nan observation": obs * np.nan, "wide observation": [0.0] * 3}.get(
                self.wrong, obs
            )
            rew = {"inf reward": np.inf, "None reward": None}.get(self.wrong, rew)
        return obs, rew, *more


FAULTS = {  # and a word of what is said
    "nan observation": "observation",
    "wide observation": "observation",
    "inf reward": "reward",
    "None reward": "reward",
    "raises": "out of fuel",
}


@pytest.mark.parametrize("wrong", FAULTS)
def test_command_saves_the_agent_when_the_environment_misbehaves(
    tmp_path, monkeypatch, capsys, wrong
):
    def make():
        env = Faulty(20, obs=lambda t: np.linspace(0, 1, 40))  # which NumPy prints in many lines
        env.wrong = wrong
        return env

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "faulty", type(sys)("faulty"))
    gym.register("Faulty-v0", make, max_episode_steps=20)
    flags = "--env faulty:Faulty-v0 --out run --quiet --learning-starts 3 --hidden 8"
    assert ddpg.main([*flags.split(), "--eval-every", "0"]) == 1
    error = capsys.readouterr().err
    *trace, first, second = error.splitlines()
    assert FAULTS[wrong] in first and "at step 7 of the episode with seed" in first
    assert ("Traceback" in error) == bool(trace) == (wrong == "raises")
    assert second.startswith("the agent of step 6 is in run")
    assert load("run/last.npz").meta["step"] == 6


SIGNALS = [(place, signal.SIGINT, 130) for place in PLACES]


@needs_unix
@pytest.mark.parametrize("place, number, code", [*SIGNALS, ("an episode", signal.SIGTERM, 143)])
def test_command_finishes_the_episode_after_a_signal(tmp_path, whole, place, number, code):
    out, err, folder = (tmp_path / name for name in ("out", "err", "a run"))
    *call, _, saved = PLACES[place]
    told = []

    def child():
        def interrupt():
            os.kill(os.getpid(), number)
            told.append(err.read_text())  # at once, not when the episode has ended

        save_each_episode()
        before_call(interrupt, *call)
        code = ddpg.main([*QUICK, "--out", str(folder)])
        assert (
            told[0] == err.read_text()
            and told[0].count("Stopping; a training ends its episode") == 1
        )
        return code

    assert exit_code(in_a_child(child, out, err)) == code, err.read_text()
    last = out.read_text().splitlines()[-1]
    assert last == f"  python ddpg.py --resume '{folder}'"
    assert clean(folder) and state_of(folder)[1]["step"] == saved
    stopped = 88 if place == "an evaluation" else saved
    assert load(folder / "last.npz").meta["step"] == stopped
    result = command("--resume", folder, "--episodes", 1)
    assert result.returncode == 0 and "Done after 176 steps" in result.stdout
    assert_same(whole, folder)


SECOND = {"the episode": (Agent, "descend", 20), "the save": (os, "replace", 16)}


@needs_unix
@pytest.mark.parametrize("place", SECOND)
def test_command_leaves_at_once_at_a_second_signal(tmp_path, whole, place):
    """In the middle of the episode, or of the save after it: when the old state is away already."""
    out, err, folder = (tmp_path / name for name in ("out", "err", "run"))

    def child():
        def first():
            before_call(second, *SECOND[place])
            os.kill(os.getpid(), signal.SIGINT)

        def second():
            os.kill(os.getpid(), signal.SIGTERM)

        save_each_episode()
        before_call(first, *PLACES["an episode"][:3])
        return ddpg.main([*QUICK, "--out", str(folder)])

    assert exit_code(in_a_child(child, out, err)) == 143
    assert "Stopped" not in out.read_text() and "Traceback" not in err.read_text()
    assert (folder / "state.npz").exists() == (place == "the episode")
    run = ddpg.resume(folder)
    assert run.step == 100
    follow(run, folder)
    assert_same(whole, folder)


@needs_unix
@pytest.mark.parametrize("module", [ddpg, viewer])
def test_command_leaves_no_handler_of_signals_to_forked_processes(module):
    """multiprocessing ends its workers by SIGTERM."""
    signal.signal(signal.SIGTERM, module.on_signal)
    ready, tell = os.pipe()
    worker = os.fork()
    if not worker:
        signal.alarm(20)
        os.write(tell, b"!")
        signal.pause()
        os._exit(0)
    assert os.read(ready, 1)
    os.kill(worker, signal.SIGTERM)
    assert exit_code(worker) == -signal.SIGTERM


def test_command_gives_back_what_it_took(tmp_path, monkeypatch):
    """For a notebook, whose trainings would end at once."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Agent, "act", lambda *_: os.kill(os.getpid(), signal.SIGINT) or [[0.0]])
    assert ddpg.main([*QUICK, "--out", "run"]) == 130
    assert before == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert not ddpg.SIGNALS


@needs_unix
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_command_ends_the_final_test_at_a_signal(tmp_path, number, code):
    out, err = tmp_path / "out", tmp_path / "err"

    def child():
        in_the_test = 3 * 50 + 10  # after three evaluations
        before_call(lambda: os.kill(os.getpid(), number), Agent, "act", in_the_test)
        return ddpg.main([*QUICK, "--out", str(tmp_path / "run")])

    assert exit_code(in_a_child(child, out, err)) == code
    assert out.read_text().splitlines()[-1].endswith("Testing the best policy ..")


def test_command_is_not_stopped_by_where_it_prints(tmp_path, monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii"))
    policy = policy_file(tmp_path / "policy.npz")
    assert ddpg.main(["--eval", str(policy), "--episodes", "1"]) == 0
    sys.stdout.flush()
    assert b" ? 0.0 over 1 test episodes" in printed.getvalue()
    monkeypatch.setattr(sys, "stdout", None)  # as in a process without a terminal
    assert ddpg.main([*QUICK, "--episodes", "1", "--out", str(tmp_path / "a")]) == 0


def test_command_prints_commands_to_copy_that_are_quoted(tmp_path):
    folder = tmp_path / "a b"
    printed = command(*QUICK, "--out", folder).stdout
    assert f"--eval '{folder}'" in printed and f"viewer.py '{folder}'" in printed


def test_command_prints_plain_lines_to_a_pipe(tmp_path):
    plain = command(*QUICK, "--episodes", 1, "--out", tmp_path / "a").stdout
    assert "\r" not in plain and "\x1b" not in plain
    rows = [line.split() for line in plain.splitlines() if " over 3 episodes" in line]
    assert [row[0] for row in rows] == ["0", "88", "176"] and "the best yet" in plain
    printed = command("--resume", tmp_path / "a", "--episodes", 1, "--quiet").stdout
    assert printed.count("\n") == 2 and "1 test episodes" in printed
    result = json.loads(command("--resume", tmp_path / "a", "--json").stdout)
    assert result["step"] in (0, 88, 176) and 0 < result["seconds"] < 60


@needs_unix
def test_command_prints_one_live_line_to_a_terminal(tmp_path):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    flags = [*QUICK, "--out", str(tmp_path / "run")]
    child = in_a_child(lambda: ddpg.main(flags), os.ttyname(slave))
    os.close(slave)
    text = b""
    try:
        while part := os.read(master, 4096):
            text += part
    except OSError:  # the other end is closed
        pass
    assert exit_code(child) == 0
    os.close(master)
    lines = text.decode().split("\r\x1b[K")
    live = [line for line in lines if re.match(" +[0-9]", line) and " over " not in line]
    assert len(live) >= 2 and max(map(len, live)) < 80 and "\n" not in "".join(live), live
    rows = [
        line.split(",") for line in (tmp_path / "run" / "progress.csv").read_text().splitlines()
    ]
    mean, std = (rows[0].index(f"eval_{name}") for name in ("mean", "std"))
    found = [(float(row[mean]), float(row[std])) for row in rows[1:]]
    scores = [f"{score:.1f} ± {spread:.1f} over 3 episodes" for score, spread in found]
    printed = [line for line in lines if "over 3 episodes" in line]
    assert all(score in line for score, line in zip(scores, printed, strict=True)), printed


def watched(monkeypatch, capsys, live, seconds_of, **changes):
    """What `watch` prints of a run, by a clock that goes on by seconds_of(step) at each step."""
    now, run = [0.0], types.SimpleNamespace(episodes=0, returns=[], filled_from=0, is_best=False)
    run.config = small(**dict(learning_starts=1000, total_steps=101_000) | changes)
    score = dict(eval_mean=1.0, eval_std=0.0, eval_episodes=1, steps_per_s=7.0)

    def steps():
        for run.step in range(2001):
            evaluates = run.config.eval_every and run.step % run.config.eval_every == 0
            run.evaluation = score if evaluates else None
            now[0] += seconds_of(run.step) + 50 * bool(evaluates)
            yield run

    monkeypatch.setattr(ddpg, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(sys.stdout, "isatty", lambda: live, raising=False)
    for _ in ddpg.watch(steps()):
        pass
    return re.split("[\r\n]+", capsys.readouterr().out)


def test_command_tells_the_speed_and_the_time_left_of_the_latest_seconds(monkeypatch, capsys):
    lines = watched(monkeypatch, capsys, True, lambda step: 0.001 if step <= 1000 else 0.05)
    early, late = [line for line in lines if "starts" in line], [x for x in lines if "left" in x]
    assert " 1,000  " in early[-1] and "learning starts at 1,000" in early[-1]
    assert "     20 " in late[0] and "about 83 min left" in late[0]
    assert int(late[0].split()[1].replace(",", "")) <= 1025  # in the second second of learning
    slower = watched(monkeypatch, capsys, True, lambda step: 0.001 if step <= 1500 else 5.0)
    assert "        0 " in slower[-2] and "about 137.5 h left" in slower[-2]
    lines = watched(monkeypatch, capsys, True, lambda step: 0.05, eval_every=500, solved_at=9.0)
    assert "at most 4.1 h left" in lines[-2]  # 99,000 steps, 198 evaluations of 50 s
    assert "      7 " in [line for line in lines if "over 1 episodes" in line][-1]


def test_command_tells_the_time_left_once_where_there_is_no_terminal(monkeypatch, capsys):
    lines = watched(monkeypatch, capsys, False, lambda step: 0.001 if step <= 1000 else 0.05)
    assert len(lines) == 3 and "about 83 min left" in lines[1]


def test_command_help_shows_each_flag_and_the_presets():
    text = command("--help").stdout
    for f in fields(Config):
        assert f"--{f.name.replace('_', '-')}" in text
        assert f.metadata["help"].split()[0] in text
    for env in PRESETS:
        assert env in text


def lines_of(capsys):
    """What was said of bad input: exit code 2 is for a person, who reads at most three lines."""
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert 0 < len(lines) <= 3 and max(map(len, lines)) <= 200, lines
    assert out == "" and "Traceback" not in err
    return lines


LONG = {
    "300": "x" * 300,
    "5000": "x" * 5000,
    "long path": "/".join(["x" * 99] * 60),
    "lines": "x\n" * 2500,
    "returns": "x\r\n" * 300,
    "format": "{x} %s %(prog)s {" * 30,
    "module": "x:" + "y" * 5000,
}
LONG_FLAGS = (
    "--eval --resume --out --init --env --env-kwargs --seed --hidden --algo --device --nope".split()
)


@pytest.mark.parametrize("flag", [*LONG_FLAGS, ""])
@pytest.mark.parametrize("text", LONG.values(), ids=LONG)
def test_command_refuses_long_names_in_three_short_lines(tmp_path, monkeypatch, capsys, flag, text):
    monkeypatch.chdir(tmp_path)
    assert ddpg.main([*QUICK, *([flag] if flag else []), text]) == 2
    lines_of(capsys)
    assert list(tmp_path.iterdir()) == []


KWARGS = '{"a":NaN}', '{"a":%s}' % ("9" * 5000), "[" * 900 + "]" * 900, "[" * 10**5, "{" * 10**5
KWARGS += '{"a":' + KWARGS[2] + "}", '{"a":[{"b":NaN}]}'


@pytest.mark.parametrize("text", KWARGS, ids=lambda text: f"{text[:9]} of {len(text)}")
def test_command_refuses_env_kwargs_that_are_no_json_of_a_file(tmp_path, monkeypatch, capsys, text):
    monkeypatch.chdir(tmp_path)
    assert ddpg.main(["--env-kwargs", text]) == 2
    assert re.search("env.kwargs", lines_of(capsys)[0]) and not list(tmp_path.iterdir())


def test_command_evaluates_without_running_files_of_the_working_folder(tmp_path):
    policy_file(tmp_path / "lander.npz", 8, (-1, -1), (1, 1), "LunarLanderContinuous-v3")
    for name in "swig_runtime_data4", "jax", "mujoco", "pygame", "Box2D", "numpy", "sitecustomize":
        (tmp_path / f"{name}.py").write_text(f"open({name!r} + '.executed', 'w')")
    line = ROOT / "ddpg.py", "--eval", "lander.npz", "--episodes", 1, "--json"
    result = python(*line, cwd=tmp_path)
    assert result.returncode == 0 and json.loads(result.stdout)["episodes"] == 1, result.stderr
    assert not list(tmp_path.glob("*executed"))


@needs_unix
@pytest.mark.parametrize("name", ["-x", "--help"])
def test_command_prints_commands_that_work_when_copied(tmp_path, name):
    """Also those of a run that was stopped, in an environment of one's own."""
    shutil.copy(ROOT / "benchmarks" / "regulator.py", tmp_path)
    flags = "--env regulator:Regulator-v0 --total-steps 200 --learning-starts 150 --hidden 8"
    flags, out = [*flags.split(), "--eval-every", "0", f"--out={name}"], tmp_path / "out"

    def child():
        os.chdir(tmp_path)
        before_call(lambda: os.kill(os.getpid(), signal.SIGTERM), Training, "advance", 50)
        return ddpg.main(flags)

    def last_words(text, i=-1):
        _, file, *words = shlex.split(text.splitlines()[i])
        assert file == ("ddpg.py" if words[0].startswith("--") else "viewer.py")
        return words

    assert exit_code(in_a_child(child, out)) == 143
    result = command(*last_words(out.read_text()), "--episodes", 1, cwd=tmp_path)
    assert result.returncode == 0 and "Done after 200 steps" in result.stdout, result.stderr
    path, *_ = last_words(result.stdout)
    result = command(*last_words(result.stdout, -2), "--episodes", 1, cwd=tmp_path)
    assert result.returncode == 0 and "over 1 test episodes" in result.stdout, result.stderr
    assert (tmp_path / path).samefile(tmp_path / name) and (tmp_path / name / "last.npz").exists()


STOPS = {  # steps of all environments until a signal comes, and after it, and whether it resumes
    "a later evaluation": (300, 0, True),
    "the training": (175, 25, True),
    "the final test": (676, 0, False),
    "--eval": (50, 0, False),
}
TERMINATED = "a later evaluation", "--eval"
DEAF = [(p, *((signal.SIGTERM, 143) if p in TERMINATED else (signal.SIGINT, 130))) for p in STOPS]


@needs_unix
@pytest.mark.parametrize("place, number, code", DEAF)
def test_command_lets_no_signal_be_an_exception_in_the_environment(
    tmp_path, whole, place, number, code
):
    """One that swallows whatever is raised in its step, or makes another error of it."""
    log, folder = tmp_path / "log", tmp_path / "run"
    at, more, resumes = STOPS[place]
    step, steps, raised = PendulumEnv.step, itertools.count(1), []

    def deaf(env, action):
        try:
            if next(steps) == at:
                os.kill(os.getpid(), number)
                for _ in range(1000):
                    pass
        except BaseException as error:
            raised.append(error)
            if number == signal.SIGINT:
                raise TypeError("another") from None
        return step(env, action)

    def child():
        save_each_episode()
        PendulumEnv.step = deaf
        flags = ["--eval", str(whole)] if place == "--eval" else [*QUICK, "--out", str(folder)]
        code = ddpg.main([*flags, "--episodes", "5"])
        assert not raised and at + more <= next(steps) - 1 <= at + more + 1
        return code

    assert exit_code(in_a_child(child, log)) == code, log.read_text()
    assert "Traceback" not in log.read_text() and " test " not in log.read_text()
    if resumes:
        go_on(folder)
        assert_same(whole, folder)


@needs_unix
def test_command_a_signal_says_nothing_into_a_file_that_has_the_number_of_stderr(tmp_path):
    other, folder = tmp_path / "other", tmp_path / "run"

    def child():
        os.close(2)
        sys.stderr = None  # as Python has it then
        assert os.open(other, os.O_CREAT | os.O_WRONLY) == 2
        save_each_episode()
        before_call(lambda: os.kill(os.getpid(), signal.SIGINT), Training, "advance", 113)
        code = ddpg.main([*QUICK, "--out", str(folder)])
        ddpg.warn("lost")
        return code

    assert exit_code(in_a_child(child)) == 130
    assert other.read_bytes() == b""
    assert state_of(folder)[1]["step"] == 150


IMPORTS = "argparse", "dataclasses", "gymnasium", "torch"


@needs_unix
@pytest.mark.parametrize("module", IMPORTS)
def test_command_leaves_without_a_word_at_ctrl_c_while_it_imports(tmp_path, module):
    """A module in place of one that it imports says so and waits."""
    script = "import signal\nprint('imported', flush=True)\nsignal.pause()\n"
    (tmp_path / f"{module}.py").write_text(script)
    line, more = [sys.executable, ROOT / "ddpg.py"], dict(cwd=tmp_path, text=True)
    more |= dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process = subprocess.Popen(line, env={**os.environ, "PYTHONPATH": str(tmp_path)}, **more)
    try:
        assert process.stdout.readline() == "imported\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=30) == ("", "") and process.returncode == 130
    finally:
        process.kill()


def a_closed_pipe():
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def a_full_disk():
    return os.open("/dev/full", os.O_WRONLY)


def a_file():
    return os.open("printed", os.O_CREAT | os.O_WRONLY | os.O_APPEND)


# What is run, where stdout and stderr lead, and the exit code: 0 unless what was asked for is lost
LOST = [
    ("train", a_full_disk, a_full_disk, 0),
    ("train", a_closed_pipe, a_closed_pipe, 0),
    ("warn", a_file, a_closed_pipe, 0),
    ("quiet", a_full_disk, a_file, 1),
    ("json", a_closed_pipe, a_full_disk, 1),
    ("eval", a_full_disk, a_full_disk, 1),
    ("eval", a_closed_pipe, a_file, 1),
    ("eval", a_file, a_full_disk, 0),
    ("refuse", a_full_disk, a_closed_pipe, 2),
    ("fail", a_closed_pipe, a_full_disk, 1),
]
needs_dev_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="it needs /dev/full")
IN_AN_INSTANT = (
    "--out run --total-steps 60 --learning-starts 50 --hidden 8 --eval-every 60 --eval-episodes 1"
).split()


@needs_dev_full
@pytest.mark.parametrize("what, out, err, code", LOST)
def test_command_trains_on_when_its_output_is_lost_but_not_what_was_asked_for(
    tmp_path, monkeypatch, whole, what, out, err, code
):
    monkeypatch.chdir(tmp_path)
    asked = {"eval": ["--eval", str(whole)], "refuse": ["--gamma", "2"]}
    asked |= {what: [*IN_AN_INSTANT, f"--{what}"] for what in ("quiet", "json")}
    flags = asked.get(what, IN_AN_INSTANT)

    def fail(*_):
        raise RuntimeError("out of fuel")

    def child():
        os.dup2(out(), 1)
        os.dup2(err(), 2)
        sys.stdout, sys.stderr = (open(i, "w", closefd=False) for i in (1, 2))
        if what == "fail":
            before_call(fail, PendulumEnv, "step", 230)
        if what == "warn":
            before_call(lambda: ddpg.warn("a warning " * 99), PendulumEnv, "step", 230)
        return ddpg.main([*flags, "--episodes", "1"])

    assert exit_code(in_a_child(child)) == code
    printed = Path("printed").read_text() if os.path.exists("printed") else ""
    assert not printed or out is not a_closed_pipe  # as who reads no more needs no word
    assert "Traceback" not in printed and "Exception ignored" not in printed
    assert printed.count("\n") <= 1 or what in ("warn", "eval") and code == 0
    if "run" in flags and what != "fail":
        assert load(Path("run", "last.npz")).meta["step"] == 60 and ddpg.resume("run").step == 0


@needs_dev_full
def test_command_ends_as_it_should_when_the_interpreter_cannot_print(tmp_path, interpreter):
    """In one of its own, which flushes once more when it ends."""
    line = ROOT / "ddpg.py", *IN_AN_INSTANT, "--episodes", 1, "--json"
    result = interpreter(*line, cwd=tmp_path, stdout="/dev/full")
    assert result.returncode == 1 and result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("ddpg.py: cannot write")
    assert load(tmp_path / "run" / "last.npz").meta["step"] == 60


def test_command_takes_a_card_where_it_pays(monkeypatch):
    devices = []

    def seen(config, env, device, init):
        devices.append(device)
        raise UsageError("seen")

    monkeypatch.setattr(ddpg, "Training", seen)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for env in "Pendulum-v1", "LunarLanderContinuous-v3", "my:Env-v0":
        for flags in [], ["--device", "cpu"], ["--device", "cuda", "--no-graphs"]:
            assert ddpg.main(["--env", env, *flags]) == 2
    assert devices == ["cpu", "cpu", "cuda", *2 * ["cuda", "cpu", "cuda"]]


# ---- the README's changes ----


def change_of(text, diff):
    """The text after a diff whose hunks, between lines of @@, each apply in exactly one place."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines()
        before = "\n".join(line[1:] for line in lines if line[0] in " -") + "\n"
        after = "\n".join(line[1:] for line in lines if line[0] in " +") + "\n"
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


README_DIFFS = re.findall(r"```diff\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
README_CHANGES = "huber td3bc branches layer_norm adamw exploration".split()


@pytest.mark.parametrize("change", README_CHANGES)
def test_readme_change_applies_to_a_copy_of_the_file_and_trains(
    change, tmp_path, monkeypatch, capsys
):
    assert len(README_DIFFS) == len(README_CHANGES)
    diff = README_DIFFS[README_CHANGES.index(change)]
    assert sum(not line.startswith("@@") for line in diff.splitlines()) <= 6
    monkeypatch.chdir(tmp_path)
    source = (ROOT / "ddpg.py").read_text()
    copied = types.ModuleType("copied")
    monkeypatch.setitem(sys.modules, "copied", copied)  # where dataclasses look for it
    exec(compile(change_of(source, diff), "copied", "exec"), copied.__dict__)
    config = copied.Config.preset(**SHORT, stop_when_solved=False)
    run = copied.Training(config)
    before = copy.deepcopy(run.agent)
    for _ in run:
        pass
    changed = "by autograd" in capsys.readouterr().err
    assert changed == (change in ("huber", "td3bc", "branches"))
    for name in "actor", "critic":
        moved = (run.agent.flat[name].data - before.flat[name].data).abs().max()
        assert 1e-3 < moved < 10
    if change == "adamw":
        assert isinstance(run.agent.critic_optimizer, torch.optim.AdamW)
        assert len(run.agent.critic_optimizer.state_dict()["state"]) == 6


def test_readme_answers_run_as_they_stand(tmp_path, monkeypatch, capsys):
    """With shorter trainings, and stand-ins for what requirements.txt does not bring."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, PENDULUM, PRESETS[PENDULUM] | SHORT)
    train(PENDULUM, out=f"runs/{PENDULUM}/ddpg-seed0")
    exec(readme("csv.DictReader"), {})
    best = load(f"runs/{PENDULUM}/ddpg-seed0").meta
    words = capsys.readouterr().out.split()
    assert words[:2] == [f"runs/{PENDULUM}/ddpg-seed0", "best"] and words[5] == str(best["step"])
    scalars, values = [], []
    board = types.SimpleNamespace(add_scalar=lambda *scalar: scalars.append(scalar))
    module = types.SimpleNamespace(SummaryWriter=lambda: board)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    exec(readme("SummaryWriter").replace("2_000", "176"), {})
    assert [step for _, _, step in scalars] == [0, 88, 176]

    def optimize(objective, n_trials):
        trial = types.SimpleNamespace(suggest_float=lambda name, low, high, log: high)
        values.append(objective(trial))

    study = types.SimpleNamespace(optimize=optimize, best_params={})
    optuna = types.SimpleNamespace(create_study=lambda direction: study)
    monkeypatch.setitem(sys.modules, "optuna", optuna)
    exec(readme("import optuna").replace("2_000", "60"), {})
    assert -2000 < values[0] < 0


# ---- the viewer ----

PENDULUM, CAR = "Pendulum-v1", "MountainCarContinuous-v0"
LANDER, WALKER = "LunarLanderContinuous-v3", "BipedalWalker-v3"
SPACES = {  # observations, lowest and highest actions
    PENDULUM: (3, [-2.0], [2.0]),
    CAR: (2, [-1.0], [1.0]),
    LANDER: (8, [-1.0] * 2, [1.0] * 2),
    WALKER: (24, [-1.0] * 4, [1.0] * 4),
    "Blind-v0": (4, [-1.0] * 3, [1.0] * 3),
}


class Blind(Toy):
    """An environment of the user's own that cannot draw, and has numbers for names."""

    def __init__(self):
        super().__init__(9, low=[-1.0] * 3, high=[1.0] * 3, obs=lambda t: [[1, t], [0, 0]])


class Seeing(Blind):
    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode=None):
        super().__init__()
        self.render_mode = render_mode

    def render(self):
        return np.full((40, 60, 3), 99, np.uint8)


gym.register("Blind-v0", Blind, max_episode_steps=9)
gym.register("Seeing-v0", Seeing, max_episode_steps=9)


def make_policy(path, env=PENDULUM, seed=5, step=0, scale=300.0, spaces=None, **config):
    """A policy file of an untrained agent, with actions large enough to matter by `scale`; this
    seed brings both engines of the lander out of their dead zones."""
    agent = Agent(*SPACES[spaces or env], Config(env=env, seed=seed, hidden=(16, 16), **config))
    with torch.no_grad():
        for last_layer in agent.actor.net.weights[-1], agent.actor.net.biases[-1]:
            last_layer.mul_(scale)
    agent.save(path, env=env, step=step, evaluation=None)
    return path


def snapshot(folder, step):
    return folder / "policies" / f"{step:012d}.npz"


@pytest.fixture(scope="module", autouse=True)
def screen():
    viewer.import_ddpg()
    pygame.display.init()
    pygame.font.init()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of finished runs, of episodes of 200 steps and of 20."""
    folders = {}
    for length in 200, 20:
        folder = folders[length] = tmp_path_factory.mktemp("runs") / "run"
        (folder / "policies").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        rows = "step,eval_mean\n"
        for i in range(4):
            config = dict(seed=i, step=1000 * i, max_episode_steps=length)
            make_policy(snapshot(folder, 1000 * i), **config)
            rows += f"{1000 * i},{-1000 + 100 * i}\n"
        shutil.copy(snapshot(folder, 2000), folder / "best.npz")
        shutil.copy(snapshot(folder, 3000), folder / "last.npz")
        (folder / "progress.csv").write_text(rows)
    return folders


@pytest.fixture
def run(request, tmp_path, monkeypatch, runs):
    """The folder of a finished run: policies of the steps 0, 1000, 2000, the best, and 3000."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / PENDULUM / "ddpg-seed0"
    return shutil.copytree(runs[getattr(request, "param", 200)], folder)


SHORT_EPISODES = pytest.mark.parametrize("run", [20], indirect=True, ids=["20 steps"])


def open_window(targets, *flags, size=(1000, 640)):
    """The window of one or several runs or policy files."""
    targets = [str(target) for target in (targets if isinstance(targets, list) else [targets])]
    surface = pygame.display.set_mode(size, pygame.RESIZABLE)
    window = viewer.Window(surface, viewer.parse([*targets, *flags]))
    window.open(targets)
    window.notice_for = 0
    return window


@pytest.fixture
def w(run, monkeypatch):
    """A window in which the best policy of that run flies, and in which steps take no time, so that
    none is left out on a busy machine."""
    monkeypatch.setattr(viewer.time, "perf_counter", lambda: 0.0)
    return open_window(run)


pressed = set()  # every key and character that a test has sent


def post(window, *events):
    """Events the way they really come, through the queue, before a picture."""
    pygame.event.clear()
    for event in events:
        pygame.event.post(event)
        if event.type == pygame.KEYDOWN:
            pressed.update({event.key, event.unicode.lower()})
    for event in pygame.event.get():
        window.attempt(window.handle, event)
    window.attempt(window.settle)


def key(name, typed=None, mod=0):
    """A key goes down: a character or pygame's name, and what it types if that is another one."""
    code = ord(name) if len(name) == 1 else getattr(pygame, f"K_{name.upper()}")
    typed = typed or (chr(code) if code < 128 else "")
    return pygame.event.Event(pygame.KEYDOWN, key=code, unicode=typed, mod=mod)


def press(window, keys, mod=0):
    """`keys`: as `key` takes them, with a space between."""
    down = key(*keys.split(), mod=mod)
    post(window, down, pygame.event.Event(pygame.KEYUP, key=down.key, mod=mod))


def mouse(window, pos, *actions):
    """It meets what is in the picture that is there at the time, as in `loop`."""
    kinds = dict(down=pygame.MOUSEBUTTONDOWN, move=pygame.MOUSEMOTION, up=pygame.MOUSEBUTTONUP)
    pos = tuple(map(int, pos))
    for action in actions:
        window.attempt(window.draw)
        post(window, pygame.event.Event(kinds[action], button=1, pos=pos))


def hot(window, name, n=0):
    """Draw it -> the Rect of what answers to the mouse under this name, or of the n-th."""
    window.draw()
    return [hot for hot in window.hot if hot.name == name][n].rect


def drop(window, path):
    post(window, pygame.event.Event(pygame.DROPFILE, file=str(path)))


def pixels(window):
    window.draw()
    return pygame.surfarray.array3d(window.surface)


def written_on(window):
    """Draw it -> what is written: (string, where, height of the font)."""
    written, text = [], viewer.text

    def recording(surface, rect, string, px, color=viewer.TEXT, align=0.0):
        used = text(surface, rect, string, px, color, align)
        where = pygame.Rect(rect.x + align * (rect.w - used), rect.y, used, px * 0.7)
        if used:
            written.append((string, where, px))
        return used

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(viewer, "text", recording)
        window.kept = None, None, None  # or the learning curves would be a picture
        window.draw()
    return written


def words_on(window):
    return [string for string, _, _ in written_on(window)]


def recorded(monkeypatch, owner, name):
    """Let a function of `owner` write down its arguments -> their list, which grows."""
    function, calls = getattr(owner, name), []

    def recording(*args):
        calls.append(args)
        return function(*args)

    monkeypatch.setattr(owner, name, recording)
    return calls


def broken(*args):
    raise RuntimeError("out of fuel")


def step_shown(window):
    return window.player.policy.meta["step"]


def seeds_flown(window):
    """The seeds of the episodes that count, a list for each policy."""
    return [list(rows) for rows in window.results.values()]


def repeat(times, do, *arguments):
    for _ in range(times):
        do(*arguments)


def finish(window, dt=0.02, drawn=False):
    """Let time pass until the episode has ended -> its return."""
    for i in range(100_000):
        if window.player.over:
            return window.player.episode.ret
        window.update(dt)
        if drawn and i % 10 == 0:
            window.draw()
    raise AssertionError("the episode does not end")


def fly(player, seed=0):
    """Play the episode of a seed to its end -> its return."""
    player.start(seed)
    while not player.over:
        player.step()
    return player.episode.ret


# ---- the player ----


@pytest.mark.parametrize("env, kw", [(PENDULUM, {}), (LANDER, {}), (LANDER, {"enable_wind": True})])
def test_viewer_the_same_return_however_it_is_shown(env, kw, tmp_path):
    """To the bit: headless, drawn, at 1x, at 16x, after steps back; and as ddpg.py evaluates it."""
    path = make_policy(tmp_path / "policy.npz", env, env_kwargs=kw)
    policy = load(path)
    bare = viewer.Player(policy, render=False)
    for seed in 4, 3:  # one observation at a time, as a batch of two may round differently
        evaluated = evaluate(policy, partial(gym.make, env, **kw), [seed])
        assert fly(bare, seed) == evaluated[0][0]
    for speed in 1, 16:
        w = open_window(path, "--seed", "3")
        w.speed = speed
        assert finish(w, 1 / 60, drawn=True) == bare.episode.ret
    for times in 1, 30:  # of which those are joined that come between two pictures
        repeat(times, w.step_by, -1)
        w.settle()
        assert not w.player.over and w.player.t == bare.t - times
        w.draw()
        repeat(times, w.step_by, 1)
        w.settle()
        assert w.player.over and w.player.episode.ret == bare.episode.ret
    assert seeds_flown(w) == [[3]]  # one episode, however often it ended


@pytest.mark.parametrize("env", [PENDULUM, LANDER])
def test_viewer_the_tape_repeats_noise_flying_and_pushing(env, tmp_path):
    player = viewer.Player(load(make_policy(tmp_path / "policy.npz", env)), noisy=True)
    player.start(5)
    act = np.zeros(len(player.policy.low))
    act[0] = 1
    for i in range(60):
        player.step(act if 10 < i < 20 else None, (0.2, 0.1) if 20 < i < 25 else None)
    rewards, trail, frame = [*player.rewards], [*player.trail], player.frame()
    ret, q = player.episode.ret, [*player.predicted()]
    player.seek(12)
    player.frame()
    # What lies ahead is known, and nothing of it is flown
    assert player.t == 12 and player.episode.ret == pytest.approx(sum(rewards[:12]))
    assert (player.rewards, player.predicted(), len(player.tape)) == (rewards, q, 60)
    player.rewards[12:], player.trail[13:] = [0.0] * 48, [0 * player.trail[0]] * 48
    while player.t < 60:
        player.step()
    assert player.rewards == rewards and np.array_equal(player.trail, trail) and player.assisted
    assert np.array_equal(player.frame(), frame) and player.episode.ret == ret
    player.seek(5)
    assert not player.assisted
    player.step(act)  # from here on it is another episode
    assert [len(it) for it in (player.tape, player.rewards, player.trail)] == [6, 6, 7]
    assert len(player.predicted()) == 6 and player.assisted


@pytest.mark.parametrize("env, terminated", [(LANDER, True), (PENDULUM, False)])
def test_viewer_realised_return_and_critic(tmp_path, env, terminated):
    policy = load(make_policy(tmp_path / "policy.npz", env, reward_scale=0.1, gamma=0.9))
    player, critic = viewer.Player(policy, render=False), policy.critic
    generator = torch.Generator().manual_seed(0)
    for params in critic.parameters():  # two critics that differ
        torch.nn.init.normal_(params, generator=generator)
    player.start(0)
    player.step()
    assert player.realised() == []  # as long as its end is not known
    fly(player)

    def q(obs, act):
        with torch.inference_mode():
            values = critic(torch.from_numpy(obs[None]), torch.from_numpy(np.float32(act)[None]))
        return values[:, 0, 0].min().item() / 0.1

    last = player.trail[-1]
    expected = [0.0 if terminated else q(last, policy.act_unit(last))]
    for rew in reversed(player.rewards):
        expected.insert(0, rew + 0.9 * expected[0])
    assert player.episode.terminated == terminated
    assert np.allclose(player.realised(), expected[:-1], rtol=1e-4)
    assert len(player.predicted()) == player.t
    assert np.isclose(player.predicted()[7], q(player.trail[7], player.tape[7][0]), rtol=1e-4)
    player.seek(player.t - 20)
    assert np.allclose(player.realised(), expected[:-1], rtol=1e-4)  # nor is it forgotten
    player.step(np.zeros(len(policy.low)))
    assert player.realised() == []


def test_viewer_exhaust_does_not_pile_up(tmp_path):
    player = viewer.Player(load(make_policy(tmp_path / "policy.npz", LANDER)))
    player.start(0)
    repeat(60, player.step, np.array([1.0, 1.0]))
    assert 0 < len(player.env.unwrapped.particles) < 30


def test_viewer_the_summary_is_of_each_policy():
    rows = [{"return": float(i), "length": 9} for i in range(3)]
    results = {("p", 1, True): dict(enumerate(rows[:2])), ("p", 2, True): {0: rows[2]}}
    first, second = viewer.summary(results)
    assert (first["episodes"], first["mean"], first["max"], second["mean"]) == (2, 0.5, 1, 2)


def test_viewer_an_episode_seen_again_is_still_one(w):
    w.pin()  # the same policy twice
    for _ in range(3):
        finish(w)
        w.restart()
    ((row,),) = (rows.values() for rows in w.results.values())
    last = f"last return: {row['return']:.1f}"
    assert row["seed"] == 0 and last in words_on(w)
    row["success"] = True
    assert last + ", success rate 100.0%" in words_on(w)
    finish(w)
    w.player.seek(190)
    w.player.step(np.ones(1))
    assert len(w.player.tape) == 191
    finish(w)
    assert w.player.row["assisted"]
    assert [list(rows.values()) for rows in w.results.values()] == [[w.pinned.row]]


def test_viewer_a_seed_that_the_environment_refuses_leaves_the_episode_flying(w, monkeypatch):
    class Picky(ddpg.Episode):
        def __init__(self, env, seed):
            if seed == 1:
                raise ddpg.EnvError("seed 1 is refused")
            super().__init__(env, seed)

    monkeypatch.setattr(ddpg, "Episode", Picky)
    repeat(20, w.step)
    press(w, "n")
    assert "refused" in w.notice and w.seed == 0 == w.player.seed and w.player.t == 20
    finish(w)
    assert seeds_flown(w) == [[0]]
    w.notice_for = 0
    repeat(100, w.update, 0.25)
    assert w.paused and "refused" in w.notice and w.seed == 0
    press(w, "r")
    assert w.player.t == 0


def test_viewer_an_episode_that_does_not_repeat_itself_ends_where_it_ends(w):
    finish(w)
    w.player.make_env = lambda: gym.make(PENDULUM, max_episode_steps=10)
    w.player.seek(50)
    assert w.player.t == 10 and w.player.over


def test_viewer_environments_are_closed_and_the_window_stays_open(run, monkeypatch):
    alive, make = set(), gym.make

    def counted(*args, **kwargs):
        env = make(*args, **kwargs)
        close = env.close

        def closed():
            close()
            alive.discard(env)

        alive.add(env)
        env.close = closed
        return env

    monkeypatch.setattr(gym, "make", counted)
    w = open_window(run)
    most = len(alive)
    for _ in range(3):
        pixels(w)  # an environment that has drawn would close all windows with itself
        press(w, "Home")
        press(w, "End")
        assert step_shown(w) == 3000
        w.pin()
        w.restart()
        w.pin()
    assert len(alive) == most < 3
    assert pygame.display.get_init() and pygame.font.get_init()


def test_viewer_frames_of_any_shape(run):
    w = open_window(run, size=(320, 240))
    w.pin()

    def show(player, frame):
        player.episode.call = lambda method: frame
        player.picture = player.broken = None

    for shapes in itertools.product([(900, 90, 3), (90, 900, 4)], repeat=2):
        for player, shape in zip(w.players, shapes, strict=True):
            show(player, np.zeros(shape, np.uint8))
        w.notice_for = 0
        assert f"{w.player.episode.ret:.1f}" in " ".join(words_on(w))
        assert w.notice_for == 0, w.notice
    for frame in np.zeros((90, 90)), None:
        show(w.player, frame)
        w.draw()
        assert "not (height, width, 3)" in w.notice


@pytest.mark.parametrize("size, least", [((1000, 640), 0), ((1920, 1080), 10), ((1000, 1600), 24)])
def test_viewer_as_much_of_an_observation_as_there_is_room_for(size, least, tmp_path):
    words = words_on(open_window(make_policy(tmp_path / "policy.npz", WALKER), size=size))
    names = ["hip1", "knee1", "hip2", "knee2", *viewer.KNOWN["BipedalWalker"].observations]
    shown = [word for word in words if word in names]
    n = len(shown) - 4
    assert shown == names[: len(shown)] and n >= least
    said = "observation" + f", {n} of 24" * (n < 24)
    assert [word for word in words if word.startswith("obs")] == [said] * (n > 0)
    assert {"return so far", "critic's Q", "reward", "action"} <= set(words)


def test_viewer_a_long_episode_is_drawn_as_fast_as_a_short_one(w, monkeypatch):
    drawn, n = recorded(monkeypatch, pygame.draw, "aalines"), 100_000
    player, rect = w.player, pygame.Rect(0, 0, 300, 100)
    player.rewards, player.t = np.sin(np.arange(n)).tolist(), n
    player.tape = [None] * n
    began = time.process_time()
    viewer.draw_rewards(w, rect)
    assert time.process_time() - began < 0.5  # 0.03 s
    curve = [points for *_, points in drawn if len(points) > 2]
    assert 1 <= len(curve) <= 4 and all(1_000 < len(points) <= 4_000 for points in curve)
    plot = viewer.Plot(w.surface, rect, (0, n - 1), (-1, 1), w.px)
    assert curve[0][0][0] == plot.inner.x and curve[0][-1][0] > plot.inner.right - 3


def test_viewer_a_film_keeps_its_shape_and_adds_nothing_after_the_end(w):
    """Whatever the window's size, where the mouse is and what it has to say."""
    films = []
    finish(w)
    for size in (1000, 640), (400, 640):
        w.player.seek(198)
        press(w, "g")
        films.append(w.film.path)
        press(w, ".")
        if len(films) > 1:
            w.surface = pygame.display.set_mode(size, pygame.RESIZABLE)
            mouse(w, (320, 390), "move")  # which is on the timeline of the film
            w.say("of no interest to those who see the film")
            w.grip, w.gripped = next(hot for hot in w.hot if hot.name == "scene"), (9, 9)
        repeat(12, w.step)
        press(w, "g")
        assert w.player.over and not w.film and "2 pictures" in w.notice
    with Image.open(films[0]) as film, Image.open(films[1]) as other:
        assert (film.size, film.n_frames) == ((640, 400), 2)
        for frame, duration in enumerate([30, 1500]):  # ms
            film.seek(frame)
            other.seek(frame)
            assert film.info["duration"] == other.info["duration"] == duration
            assert film.convert("RGB").tobytes() == other.convert("RGB").tobytes()


# ---- the window ----


def test_viewer_every_key(w):
    def changes(keys, mod=0):
        """Press -> whether that changes the picture, but for a notice."""
        before = pixels(w)
        press(w, keys, mod)
        w.notice_for = 0
        return not np.array_equal(before, pixels(w))

    pressed.clear()
    assert step_shown(w) == 2000 and not w.follow  # the best of a finished run
    w.update(0.3)
    assert w.player.t == 7  # 0.25 s at most, 30 a second
    assert changes("Space") and w.paused
    w.update(0.3)
    assert w.player.t == 7
    for keys, by in (".", 1), ("Right", 1), (",", -1), ("Left", -1):
        t, ret = w.player.t, w.player.episode.ret
        assert changes(keys) and w.player.t == t + by and w.player.episode.ret != ret
    shift = pygame.KMOD_LSHIFT  # with which layouts type other characters
    for keys, t in (". >", 17), ("Right", 27), (", ;", 17), ("Left", 7), (", <", 0), (". :", 10):
        assert changes(keys, shift) and w.player.t == t
    press(w, "Space", shift)
    assert not w.paused
    for keys in "r", "Backspace":
        w.update(0.2)
        assert w.player.t and changes(keys) and w.player.t == 0 and w.seed == 0
    for keys, seed in ("n", 1), ("Return", 2), ("n", 3), ("p", 2):
        assert changes(keys) and w.seed == w.player.seed == seed
    press(w, "l L")
    assert w.locked
    assert changes("e") and w.hold
    finish(w)
    for _ in range(20):
        w.update(0.25)
        assert w.player.over
    assert changes("e")
    w.update(0.25)
    assert not w.player.over  # now it goes on
    finish(w)
    repeat(5, w.update, 0.25)
    assert w.player.over  # its last picture stays for 1.5 s
    repeat(2, w.update, 0.25)
    assert w.seed == 2 and w.player.t < 10 and seeds_flown(w) == [[2]]
    speeds = [("+", 2), ("=", 4), ("KP_Plus +", 8), ("-", 4), ("0", 1), ("KP_Minus -", 0.5)]
    for keys, speed in [*speeds, ("KP0 0", 1), ("7 +", 2)]:
        assert changes(keys) and w.speed == speed
    repeat(9, press, w, "+")
    assert w.speed == viewer.SPEEDS[-1]
    press(w, "0")
    t = w.player.t
    snapshots = {"PageUp": 1000, "PageDown": 2000, "8 [": 1000, "9 ]": 2000, "Home": 0, "End": 3000}
    for keys, step in [*snapshots.items(), ("b", 2000)]:
        assert changes(keys) and step_shown(w) == step and w.player.seed == w.seed
        assert w.follow == (step == 3000) and w.player.t == t > 0
    press(w, "Home")
    press(w, "PageUp")
    assert step_shown(w) == 0
    assert changes("c") and w.pinned and w.pinned.t == t
    press(w, "End")
    w.update(0.2)
    assert w.pinned.t == w.player.t > t and step_shown(w) == 3000
    assert w.pinned.policy.meta["step"] == 0 and w.pinned.episode.ret != w.player.episode.ret
    assert np.array_equal(w.pinned.trail[0], w.player.trail[0])
    press(w, "c")
    assert not w.pinned
    for keys, name in ("l", "locked"), ("d", "noisy"), ("Tab", "show_panel"), ("m", "show_map"):
        before = getattr(w, name)
        assert changes(keys) and getattr(w, name) != before and w.player.noisy == w.noisy
        press(w, keys)
        assert getattr(w, name) == before
    for curve in 1, 2, 3, 0:
        assert changes("t") and viewer.CURVES[w.curve] == viewer.CURVES[curve]
    press(w, "o")
    assert "only one run is open" in w.notice and step_shown(w) == 3000
    w.update(0.2)
    file = f"{PENDULUM}-step3000-seed2-t{w.player.t}"
    press(w, "s")
    assert w.notice == f"saved {file}.png in {os.getcwd()}"
    assert pygame.image.load(file + ".png").get_size() == (1000, 640)
    press(w, "g")
    t = w.player.t
    repeat(5, w.update, 0.04)
    press(w, "g")
    assert w.notice == f"saved {file}.gif, {w.player.t - t} pictures, in {os.getcwd()}"
    with Image.open(file + ".gif") as film:
        assert 5 <= w.player.t - t == film.n_frames  # every step, drawn or not
    for full_screen in True, False:
        press(w, "f")
        assert bool(w.surface.get_flags() & pygame.FULLSCREEN) == full_screen
    for keys in "h", "F1", "6 ?", "/ ?":
        assert changes(keys) and w.show_help
        press(w, "Escape")
        assert w.alive and not w.show_help
    w.notice_for = 0
    press(w, "q")
    assert not w.alive
    assert w.notice_for <= 0
    assert set(viewer.ACTION_OF) <= pressed


def test_viewer_escape_leaves_full_screen_first(w):
    for size in (640, 400), (1000, 640):
        w.surface = pygame.display.set_mode(size, pygame.RESIZABLE)
        press(w, "f")
        press(w, "h")
        for keys in "Escape", "Escape":
            assert w.surface.get_flags() & pygame.FULLSCREEN
            press(w, keys)
        assert w.alive and not w.show_help and not w.surface.get_flags() & pygame.FULLSCREEN
        assert w.surface.get_size() == size == pygame.display.get_surface().get_size()
    press(w, "Escape")
    assert not w.alive


def test_viewer_everything_works_by_mouse_too(w, monkeypatch):
    """A click on the words below the scene opens the key table, one on a row does what its key
    does, and the buttons do what they show."""
    rows = {meaning: i for i, (_, _, meaning) in enumerate(viewer.KEYS)}
    words = [word for keys, _, meaning in viewer.KEYS for word in (keys, meaning)]

    def choose(meaning):
        w.show_help = False
        mouse(w, hot(w, "help").center, "down", "up")
        assert w.show_help and words_on(w) == words
        mouse(w, viewer.table(w.surface.get_rect(), len(rows))[rows[meaning]].center, "down", "up")
        assert not w.show_help and w.notice_for <= 0, w.notice

    for meaning in "untrained agent", "pause or go on", "one step on, Shift: ten", "quit":
        choose(meaning)
    assert step_shown(w) == 0 and w.paused and w.player.t == 1 and not w.alive
    for n, attribute, value in (1, "paused", False), (1, "paused", True), (4, "speed", 2):
        mouse(w, hot(w, "button", n).center, "down", "up")
        assert getattr(w, attribute) == value
    for n, seed in (2, 1), (2, 2), (0, 1):
        mouse(w, hot(w, "button", n).center, "down", "up")
        assert w.seed == w.player.seed == seed
    mouse(w, hot(w, "button", 3).center, "down", "up")
    assert w.speed == 1
    hints = "previous seed (P)", "play (Space)", "next seed (N)", "slower (-)", "faster (+)"
    for n, hint in enumerate(hints):
        mouse(w, hot(w, "button", n).center, "move")
        assert hint in words_on(w)
    assert len([hot for hot in w.hot if hot.name == "button"]) == len(hints)
    called, opening = [], ("toggle", "show_help")

    def recording(name, method):
        def call(*args):
            called.append((name, *args))
            if called[-1] == opening:
                method(*args)

        return call

    for name in {action[0] for _, action, _ in viewer.KEYS if action}:
        monkeypatch.setattr(w, name, recording(name, getattr(w, name)))
    for _, action, meaning in viewer.KEYS:
        called.clear()
        choose(meaning)
        assert called == [opening, action or opening], meaning


def test_viewer_a_key_held_repeats_and_does_not_pile_up(w, monkeypatch):
    post(w, *[key(".")] * 3)
    assert w.player.t == 3
    post(w, *[key("n")] * 3)
    assert w.seed == 1
    repeat(50, w.step)
    went, loaded = recorded(monkeypatch, viewer.Player, "seek"), recorded(monkeypatch, ddpg, "load")

    def while_it_is_busy(event, times):
        pygame.event.clear()
        repeat(times, pygame.event.post, event)
        w.update, w.alive = lambda dt: w.quit(), True
        w.loop()

    while_it_is_busy(key(","), 9)  # while one step back took as long as nine of them
    assert w.player.t == 41 and len(went) == 1  # in one go
    went.clear()
    while_it_is_busy(key("PageUp"), 2)
    assert step_shown(w) == 0 and len(loaded) == len(went) == 1 and w.player.t == 41


def test_viewer_flying(w):
    post(w, key("Left"))
    w.update(0.2)
    assert [act for act, *_ in w.player.tape] == [1.0] * 6
    assert w.player.t == 6 and w.player.assisted and "yours" in words_on(w)
    press(w, "Left")
    w.update(0.2)
    act, _, helped = w.player.tape[-1]
    assert not helped and act == w.player.policy.act_unit(w.player.trail[-2])
    post(w, key("Left"))
    assert w.touch()[0] == 1
    post(w, pygame.event.Event(pygame.WINDOWFOCUSLOST))  # the key is let go of elsewhere
    assert w.touch()[0] is None
    w.restart()
    assert not w.player.assisted
    w.pin()
    post(w, key("Left"))
    w.update(0.2)
    assert w.player.tape[-1][2] and not w.pinned.tape[-1][2]  # only the left one is flown
    you, agent = (f"{player.episode.ret:.1f}" for player in w.players)
    captions = {f"you {you}", f"pinned agent {agent}", "trained 2,000 steps"}
    assert captions <= set(words_on(w))


def test_viewer_pushing(w):
    x, y = w.panes()["scene"].center
    mouse(w, (x, y), "down")
    assert w.touch() == (None, None)  # a click alone is no push
    mouse(w, (x + 30, y - 60), "move")
    right, up = w.touch()[1]
    assert 0 < right and np.isclose(up, 2 * right)
    mouse(w, (x + 100, y), "move")
    w.update(0.04)
    plain = viewer.Player(w.player.policy, render=False)
    plain.start(0)
    plain.step()
    assert w.player.trail[1][2] < plain.trail[1][2] - 0.1
    assert w.player.assisted and "yours" not in words_on(w)
    mouse(w, (x, y), "up")
    w.update(0.04)
    assert not w.player.tape[-1][2]
    finish(w)
    assert w.player.row["assisted"] and not list(viewer.summary(w.results))


def test_viewer_a_push_goes_where_the_mouse_goes():
    """By the velocity of what is pushed; of the pendulum that is its tip."""
    for name, velocity in {
        LANDER: lambda env: env.lander.linearVelocity,
        WALKER: lambda env: env.hull.linearVelocity,
        PENDULUM: lambda env: [-env.state[1] * f(env.state[0]) for f in (np.cos, np.sin)],
        CAR: lambda env: (env.state[1], 0),
    }.items():
        env = gym.make(name).unwrapped
        env.reset(seed=0)
        known = viewer.what_is_known(env, name, [len(SPACES[name][1]), SPACES[name][0]])
        for by in [(1, 0)] if name == CAR else [(1, 0), (0, 1)]:
            before = np.array(velocity(env))
            known.push(env, *by)
            assert np.dot(np.array(velocity(env)) - before, by) > 0, (name, by)


def test_viewer_where_the_arrows_go(tmp_path):
    for env, acts in {
        PENDULUM: {"Left": [1], "Right": [-1], "Left Right": [0], "Up": None},
        LANDER: {"Up Left": [1, -1], "Right": [0, 1], "Down": None},
        CAR: {"Left": [-1], "Right": [1], "Up": None},
        WALKER: {"Left Up": [-1, 1, 0, 0], "Right Down": [1, -1, 0, 0]},
    }.items():
        w = open_window(make_policy(tmp_path / "policy.npz", env))
        for keys, act in acts.items():
            w.held = {key(name).key for name in keys.split()}
            assert np.array_equal(w.touch()[0], act), (env, keys)


def test_viewer_speeds(w, monkeypatch):
    for by, due, words in (-3, 4, "0.125x"), (0, 37, "1x"), (2, 150, "4x"):
        w.change_speed(by)
        w.restart()
        repeat(10, w.update, 1 / 8)
        assert w.player.t == due and words + "   deterministic   seed 0" in words_on(w)
    w.change_speed(0)
    finish(w)
    repeat(5, w.update, 1 / 4)  # the pause after the end counts for nothing
    assert w.player.over and "1x   deterministic   seed 0" in words_on(w)
    clock = itertools.count()
    monkeypatch.setattr(viewer.time, "perf_counter", lambda: 0.009 * next(clock))
    w.change_speed(2)
    w.restart()
    repeat(6, w.update, 0.2)
    assert w.player.t == 18  # 0.02 s of steps, then the window answers again
    assert "4x (really 0.5x)   deterministic   seed 0" in words_on(w)
    repeat(9, w.change_speed, 1)
    t = w.player.t
    w.update(0.2)
    assert w.player.t == t + 3 and "max   deterministic   seed 0" in words_on(w)


def test_viewer_going_on_after_a_step_back_keeps_the_pace(w):
    finish(w)
    repeat(5, w.update, 0.25)  # its last picture stays
    repeat(10, w.step_by, -1)
    press(w, "Space")
    w.update(0.02)
    assert 190 <= w.player.t <= 191


def test_viewer_notices_go_by_themselves_and_a_paused_window_rests(w, monkeypatch):
    w.paused = True
    notice = "there is no previous snapshot"
    for goes in partial(w.update, 0.2), partial(press, w, "t"):  # by itself, or with a key
        press(w, "Home")
        press(w, "PageUp")
        assert notice in words_on(w)
        w.update(4.9)
        assert notice in words_on(w) and not w.dirty
        goes()
        assert w.dirty and notice not in words_on(w)
    drawn, rounds = recorded(monkeypatch, w, "draw"), itertools.count(1)

    def update(dt):
        viewer.Window.update(w, dt)
        if next(rounds) == 12:
            w.quit()

    w.update, w.dirty = update, True
    pygame.event.clear()
    w.loop()
    assert 1 <= len(drawn) < 4


def test_viewer_the_critic_is_drawn_with_what_came(w, monkeypatch):
    drawn, orange, blue = recorded(monkeypatch, viewer, "draw_series"), viewer.ORANGE, viewer.BLUE
    for go in w.step, partial(finish, w), w.pin:
        go()
        drawn.clear()
        w.draw()
        p, pinned = w.player, w.pinned
        critic = [(p, "critic's Q", p.predicted(), orange, False)]
        critic += [(p, "realised", p.realised(), viewer.YELLOW, False)] * p.over
        reward = [(p, "reward", p.rewards, orange, False)]
        if pinned:
            critic.append((pinned, "pinned", pinned.predicted(), blue, True))
            reward.append((pinned, "pinned", pinned.rewards, blue, True))
        assert [curves for *_, curves in drawn] == [critic, reward]
        assert {what for _, what, *_ in critic + reward} <= set(words_on(w))
    surface = pygame.Surface((300, 100))
    for dashed in False, True:
        plot = viewer.Plot(surface, surface.get_rect(), (0, 99), (0, 99), 14)
        plot.line(np.arange(100), np.arange(100), blue, dashed)
        far = np.abs(pygame.surfarray.array3d(surface).astype(int) - blue).max(2)
        line = np.argwhere(far < 60)  # its edges are soft
        columns, (left, right) = set(line[:, 0]), (plot.inner.x, plot.inner.right)
        assert line[0, 1] > line[-1, 1] + 50  # it rises
        assert columns <= set(range(left, right + 1)) and left in columns
        share = len(columns) / (right - left)
        assert 0.5 < share < 0.8 if dashed else share >= 1


def test_viewer_what_lies_ahead_is_dimmed_and_the_cursor_is_at_the_moment(w):
    repeat(40, w.step)
    w.player.seek(20)

    cursors = []
    for name in "critic", "rewards":
        x, y, width, height = hot(w, name)
        part = pygame.surfarray.array3d(w.surface)[x : x + width // 2, y : y + height].astype(int)
        (cursor,) = np.flatnonzero((part == viewer.TEXT).all(2).all(1))
        orange = (part[..., 0] - part[..., 2]).max(1)  # 230, or 112 where dimmed
        flown, dim = np.flatnonzero(orange > 170), np.flatnonzero((90 < orange) & (orange < 130))
        assert cursor - 3 < max(flown) <= cursor + 1
        assert len(flown) > 0.8 * (cursor - min(flown)) and sum(dim > cursor) > 0.6 * cursor
        assert np.isclose(max(dim) - min(flown), 2 * (cursor - min(flown)), rtol=0.1)
        cursors.append(cursor)
    assert cursors[0] == cursors[1]


def test_viewer_what_the_panel_says(tmp_path):
    w = open_window(make_policy(tmp_path / "policy.npz", LANDER), size=(1000, 1000))
    for t in range(1, 10):
        w.step(np.array([t / 10, -t / 100]))
    player = w.player
    names = {"main", "side", "x", "y", "vx", "vy", "angle", "spin", "leg1", "leg2"}
    for t in 9, 5:  # as it was at that moment
        player.seek(t)
        said = {"return so far", f"{sum(player.rewards[:t]):.1f}", f"t = {t}/1,000", "assisted"}
        said |= {f"{value:+.2f}" for value in player.trail[t]} - {"-0.00"}
        said |= {f"{values[t - 1]:.3g}" for values in (player.rewards, player.predicted())}
        said |= {"yours", f"+{t / 10:.2f}", f"-{t / 100:.2f}"}
        assert said | names <= set(words_on(w))
    finish(w)
    assert player.row["terminated"] and {"flew out", "assisted"} & set(words_on(w)) == {"flew out"}


def test_viewer_bars_of_actions_and_their_dead_zones(tmp_path):
    w = open_window(make_policy(tmp_path / "policy.npz", LANDER))
    w.step(np.array([0.5, -0.75]))
    w.pin()
    w.pinned.tape[0] = np.array([-0.5, 0.25]), None, False
    surface = w.surface = pygame.Surface((400, 120))
    px = w.px
    for helped, color in (False, viewer.ORANGE), (True, viewer.YELLOW):
        w.player.tape[0] = np.array([0.5, -0.75]), None, helped
        surface.fill(viewer.BACK)
        viewer.draw_actions(w, surface.get_rect())
        seen = pygame.surfarray.array3d(surface)
        tops = [(i + 1) * (px + 4) for i in range(2)]
        field = np.flatnonzero((seen[:, tops[0] + 1] != viewer.BACK).any(1))
        x = partial(np.interp, xp=(-1, 1), fp=(field.min(), field.max()))
        dead_zones = [(tops[0] + 1, viewer.LINE, (-1, 0)), (tops[1] + 1, viewer.LINE, (-0.5, 0.5))]
        bars = [(tops[0] + px // 2, color, (0, 0.5)), (tops[1] + px // 2, color, (-0.75, 0))]
        for y, shown, ends in dead_zones + bars:
            columns = np.flatnonzero((seen[:, y] == shown).all(1))
            assert np.allclose((columns.min(), columns.max()), x(ends), atol=2.5), (y, ends)
        for top, pinned in zip(tops, (-0.5, 0.25), strict=True):
            columns = np.flatnonzero((seen[:, top + 1] == viewer.BLUE).all(1))
            assert abs(columns.mean() - x(pinned)) < 2


def test_viewer_the_policy_map(w):
    repeat(9, w.step)
    policy = w.player.policy
    image = pygame.surfarray.array3d(viewer.policy_image(policy))
    for x, y in (10, 5), (48, 30), (80, 60):
        angle, velocity = np.interp(x, (0, 95), viewer.ANGLES), np.interp(y, (0, 63), (8, -8))
        unit = policy.act(np.float32([np.cos(angle), np.sin(angle), velocity]))[0] / 2
        strongest = viewer.ORANGE if unit > 0 else viewer.BLUE
        color = viewer.FIELD + np.subtract(strongest, viewer.FIELD) * abs(unit)
        assert np.abs(image[x, y] - color).max() < 2
    for t in 9, 4:  # at the moment, not at the end of what is known
        w.player.seek(t)
        w.surface = pygame.Surface((200, 144))
        viewer.draw_map(w, w.surface.get_rect())
        drawn = pygame.surfarray.array3d(w.surface)[:, w.px + 4 :]  # below the title
        assert (drawn.sum(2) > 0).mean() > 0.95  # of a surface that was black
        ring = np.argwhere((drawn == viewer.YELLOW).all(2)).mean(0)
        cos, sin, velocity = np.array(w.player.trail[: t + 1]).T
        x = np.interp(np.arctan2(sin, cos), viewer.ANGLES, (0, 199))
        y = np.interp(velocity, (-8, 8), (drawn.shape[1] - 1, 0))
        assert np.allclose(ring, (x[-1], y[-1]), atol=1.5)
        trail = np.argwhere((drawn == viewer.TEXT).all(2))
        (_, highest), (_, lowest) = trail.min(0), trail.max(0)
        assert len(trail) > 3 and y.min() - 2 < highest and lowest < y.max() + 3


def test_viewer_the_timeline_shows_the_curve_and_goes_to_a_policy(w):
    area = hot(w, "timeline")

    def where(color):
        part = pixels(w)[area.x : area.right, area.y : area.bottom]
        return np.argwhere((part == color).all(2)) + area.topleft

    (x0, y0), (x1, y1) = where(viewer.BLUE)[[0, -1]]
    axis = {word: place for word, place, _ in written_on(w) if area.contains(place)}
    assert {"0", "1,000", "2,000", "-1000", "-800", "B"} <= set(axis)
    assert "test score over training steps" in axis
    # It rises from the height of -1000 at step 0 to -700 at step 3000
    thousand = axis["2,000"].centerx - axis["1,000"].centerx
    x_of = {step: axis["1,000"].centerx + (step / 1000 - 1) * thousand for step in w.run.policies}
    assert abs(x0 - x_of[0]) < 2 and abs(y0 - axis["-1000"].centery) < 4
    higher = (axis["-1000"].centery - axis["-800"].centery) * 1.5
    assert abs(x1 - x_of[3000]) < 3 and abs(y0 - y1 - higher) < 5 and higher > 30
    assert 0 < axis["B"].x - x_of[2000] < 20
    rings = {}
    for keys, step in ("b", 2000), ("PageUp", 1000), ("Home", 0):
        press(w, keys)
        ring = where(viewer.ORANGE).mean(0)
        assert abs(ring[0] - x_of[step]) < 2 and ring[1] > axis["0"].bottom
        rings[step] = ring
    assert w.player.t == 0
    w.pin()
    repeat(5, w.step)
    pinned = [x for x, y in where(viewer.BLUE) if y > axis["0"].bottom]
    assert abs(np.mean(pinned) - rings[0][0]) < 2
    for step in 2000, 1000, 0:
        for x, y in rings[step], (rings[step][0], area.y + 30):  # in the row or in the plot
            mouse(w, (x + 3, y), "down", "up")
            assert step_shown(w) == step and w.player.t == 5
    mouse(w, area.midright, "move")
    assert step_shown(w) == 0
    mouse(w, area.midleft, "down")
    mouse(w, area.midright, "move")
    assert step_shown(w) == 3000 and w.seed == 0 and w.player.t == 5
    mouse(w, (0, 0), "move")  # it holds on to it
    assert step_shown(w) == 0
    mouse(w, area.midright, "up")
    mouse(w, area.midright, "move")
    assert step_shown(w) == 0


def test_viewer_a_policy_that_ends_early_does_not_lose_the_moment(w, run):
    make_policy(snapshot(run, 1000), seed=1, step=1000, max_episode_steps=20)
    repeat(60, w.step)
    for keys, t in ("PageUp", 20), ("Home", 60), ("PageDown", 20), ("b", 60), ("PageUp", 20):
        press(w, keys)
        assert w.player.t == t and w.player.over == (t == 20)
    for keys, t in (",", 19), ("Home", 19), ("r", 0), ("PageDown", 0):  # until it is another one
        press(w, keys)
        assert w.player.t == t


def several_runs(folder, run, n=3):
    """Copies of a run as a training of `n` seeds would have left them -> their folder."""
    for seed in range(n):
        path = folder / f"td3-seed{seed}"
        shutil.copytree(run, path)
        config = dict(env=PENDULUM, algo="td3", seed=seed, solved_at=-150.0, total_steps=3000)
        (path / "config.json").write_text(json.dumps({"config": config}))
        rows = ["step,steps_per_s,train_return,eval_mean,eval_std,critic_loss,mean_q"]
        for i in range(4):
            rows.append(f"{1000 * i},500,{-1200 + 300 * i},{-1000 + 100 * i * seed},9.5,0.{i},{-i}")
        (path / "progress.csv").write_text("\n".join(rows))
    return folder


def writing_is_in_order(w):
    """Nothing is written outside the window, over something else, or too small to read."""
    window, written = w.surface.get_rect(), written_on(w)
    assert w.notice_for <= 0, w.notice
    assert len(written) > 4
    for i, (string, box, px) in enumerate(written):
        assert window.contains(box) and px >= 11, (window.size, box, string, px)
        for other, place, _ in written[:i]:
            assert not box.colliderect(place), (window.size, string, box, other, place)


SIZES = [(320, 240), (480, 320), (640, 400), (1000, 640), (1280, 1024), (1920, 1080), (2560, 1440)]


@pytest.mark.parametrize("size", [*SIZES, (500, 1200)], ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("what", [PENDULUM, LANDER, "runs"])
def test_viewer_every_size(what, size, run, tmp_path):
    if what == "runs":
        target = several_runs(tmp_path / "several", run)
    else:
        target = make_policy(tmp_path / "policy.npz", what, max_episode_steps=50)
    w = open_window(target, size=size)
    assert w.surface.get_size() == size
    assert all(w.surface.get_rect().contains(pane) for pane in w.panes().values() if pane.w)
    fly_it = partial(w.step, np.ones_like(w.player.policy.low))
    writing_is_in_order(w)
    acts = [fly_it, partial(finish, w), w.pin, partial(w.toggle, "show_help")]
    if what == "runs":
        acts[3:3] = [w.next_curve] * 3
    for act in acts:
        act()
        w.notice_for = 0
        writing_is_in_order(w)
        assert pygame.transform.average_color(w.surface)[:3] != viewer.BACK


@pytest.mark.parametrize("size", [(320, 240), (1000, 640)])
def test_viewer_hints_stay_within_the_window_wherever_the_mouse_is(run, tmp_path, size):
    """They are what may lie over other words."""
    w = open_window(several_runs(tmp_path / "several", run), size=size)
    repeat(60, w.step)
    plain, hints = written_on(w), []
    for rect in [hot.rect for hot in w.hot]:
        for right, down in itertools.product((0, 0.3, 0.6, 1), (0, 0.5, 1)):
            w.mouse = rect.x + int(right * (rect.w - 1)), rect.y + int(down * (rect.h - 1))
            shown = written_on(w)
            assert w.notice_for <= 0 and shown[: len(plain)] == plain
            assert len(shown) <= len(plain) + 1
            for hint, box, _ in shown[len(plain) :]:
                hints.append(hint)
                assert w.surface.get_rect().contains(box), (hint, box)
    hints = " ".join(hints)
    assert ("next seed (N)" in hints) == (size[0] > 320)
    assert ("t = 1: critic's Q -" in hints) == bool(w.panes()["panel"].w)
    assert re.search(r"step \d,000: -\d+\.\d ± 9\.5, td3-seed\d", hints)


@pytest.mark.parametrize("size", [(800, 100), (100, 800), (460, 40), (100, 100)])
def test_viewer_a_window_too_small_for_anything_but_nothing_fails(size, run, tmp_path):
    for target in run, several_runs(tmp_path / "several", run):
        w = open_window(target, size=size)
        for act in w.step, w.pin, partial(w.toggle, "show_help"):
            act()
            w.notice_for = 0
            w.draw()
            assert w.notice_for == 0, w.notice


def test_viewer_live_follow(run, monkeypatch):
    monkeypatch.setattr(viewer, "under_way", lambda folder: True)
    w = open_window(run, "--live")
    assert w.follow and step_shown(w) == 3000
    make_policy(run / "last.npz", seed=9, step=3500)
    w.update(1)
    assert step_shown(w) == 3000 and "next: step" not in " ".join(words_on(w))  # at the end only
    finish(w)
    assert "LIVE   next: step 3,500" in " ".join(words_on(w))
    repeat(8, w.update, 0.25)
    assert step_shown(w) == 3500 and w.follow and w.seed == 1
    assert "next: step" not in " ".join(words_on(w))
    press(w, "PageUp")
    assert not w.follow and step_shown(w) == 3000
    words = " ".join(words_on(w))
    assert "training under way" in words and "next: step" not in words
    press(w, "End")
    assert w.follow and step_shown(w) == 3500
    for step, value in (3000, -1.0), (3500, -2.0):  # of one file, which held another policy before
        w.results[str(run / "last.npz"), step, True] = {0: {"return": value, "length": 1}}
    words = words_on(w)
    assert "last return: -2.0" in words and any("LIVE" in line for line in words)


@needs_unix
def test_viewer_a_training_under_way_is_followed_in_a_window_but_not_in_a_film(run):
    assert not open_window(run).follow
    with ddpg.lock(run):
        assert open_window(run).follow and not open_window(run, "--headless").follow


def test_viewer_waits_for_a_training_that_has_just_begun(tmp_path):
    (tmp_path / "policies").mkdir()
    (tmp_path / "config.json").write_text("{}")
    w = open_window(tmp_path, "--live")
    assert not w.player
    pixels(w)
    press(w, "n")
    for leave in key("q"), pygame.event.Event(pygame.QUIT):
        post(w, leave)
        assert not w.alive
        w.alive = True
    make_policy(snapshot(tmp_path, 0), spaces=CAR)
    w.attempt(w.update, 1)
    assert "[2, 1] observations" in w.notice and not w.player
    make_policy(snapshot(tmp_path, 0))
    w.attempt(w.update, 1)
    assert step_shown(w) == 0 and w.follow
    (tmp_path / "empty").mkdir()
    drop(w, tmp_path / "empty")
    assert "has no policies yet" in w.notice and step_shown(w) == 0
    w.update(0.5)
    pixels(w)


def progress(text):
    return lambda path: path.write_bytes(b"step,eval_mean\n" + text)


def sparse(path):
    with open(path, "wb") as file:
        file.truncate(6 << 30)


def with_meta(**changes):
    """A function that writes a policy file that is sound but for these in its meta."""

    def write(path):
        arrays, meta = arrays_and_meta(make_policy(path))
        ddpg.write_npz(path, arrays, **meta | changes)

    return write


ONE_BAD_FILE = {  # a file of a run's folder, and what puts a bad one there
    "a pipe": ("progress.csv", lambda path: os.mkfifo(path)),
    "a folder": ("progress.csv", Path.mkdir),
    "6 GiB": ("progress.csv", sparse),
    "a long field": ("progress.csv", progress(b"0,5\n1," + b"1" * 200_000)),
    "not finite": ("progress.csv", progress(b"0,1\n5,nan\n6,-inf\n7,1e400\n8,2")),
    "other columns": ("progress.csv", lambda path: path.write_text("a,b\n1,2\n")),
    "short rows": ("progress.csv", progress(b"1\n2,5")),
    "far steps": ("progress.csv", progress(b"1" + b"0" * 13 + b",1\n-1,1\n2,5")),
    "other bytes": ("progress.csv", progress(b"\xff,\xfe\n0,5")),
    "no number": ("policies/\u00b2.npz", make_policy),
    "a long number": (f"policies/{'1' * 240}.npz", make_policy),
    "beyond": (f"policies/{10**12 + 1}.npz", with_meta(step=10**12 + 1)),
    "junk": ("best.npz", lambda path: path.write_bytes(b"junk")),
    "a folder of its own": ("last.npz", Path.mkdir),
    "a pipe as policy": ("best.npz", lambda path: os.mkfifo(path)),
    "sparse": ("last.npz", sparse),
    "true": ("best.npz", with_meta(step=True)),
    "negative": ("best.npz", with_meta(step=-1)),
    "a huge step": ("last.npz", with_meta(step=10**400)),
    "a huge evaluation": ("best.npz", with_meta(evaluation=10**400, step=2500)),
    "no evaluation": ("best.npz", with_meta(evaluation=float("nan"), step=2500)),
}


@needs_unix
@SHORT_EPISODES
@pytest.mark.parametrize("name, spoil", ONE_BAD_FILE.values(), ids=ONE_BAD_FILE)
def test_viewer_one_bad_file_costs_that_file(run, name, spoil):
    """It is named once, in the window as on stderr, and the others are played."""
    bad = run / name
    bad.unlink(missing_ok=True)
    spoil(bad)

    def work():
        w = open_window(run)
        assert bad.name[:60] in w.notice and step_shown(w) in (2000, 3000)
        w.say("")
        repeat(3, w.update, 0.6)
        pixels(w)
        press(w, "Home")
        assert w.notice == "''" and step_shown(w) == 0 and bad not in w.run.policies.values()
        return viewer.main([str(run), "--tour", "--json"])

    out, err = run / "out", run / "err"
    assert exit_code(in_a_child(work, out, err)) == 0, err.read_text()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    steps = [row["train_step"] for row in rows if "seed" in row]
    assert steps in ([0, 1000, 2000, 3000], [0, 1000, 3000])
    (line,) = err.read_text().splitlines()
    assert bad.name[:60] in line and len(line) <= 200


def test_viewer_the_curve_without_the_rows_that_are_no_numbers(run):
    progress(b"0,1\n5,nan\n6,-inf\n7,1e400\n1e3,2\n\xff,3\n\n8,2\n9")(run / "progress.csv")
    assert np.array_equal(viewer.read_run(run).log.curve("eval_mean"), [(0, 8), (1, 2)])
    progress(b"".join(b"%d,%d\n" % (i, -i) for i in range(100_001)))(run / "progress.csv")
    seen = viewer.read_run(run)
    steps, means = seen.log.curve("eval_mean")
    assert not seen.faults and (steps[-1], means[-1]) == (100_000, -100_000)
    assert 1_900 < len(steps) < 2_100 and np.array_equal(steps, -means)


def test_viewer_what_cannot_be_drawn_leaves_the_rest(w):
    w.player.policy.meta["evaluation"] = 10**400
    assert "critic's Q" in " ".join(words_on(w)) and w.notice in words_on(w)
    assert "too large" in w.notice and not w.dirty
    w.player.policy.meta["evaluation"] = None
    w.notice_for = 0
    pixels(w)
    assert w.notice_for == 0


@pytest.mark.parametrize("what", ["\0", "\ud800", "\x1b[2J", "a\nb\nc\nd", "long " * 1_000])
def test_viewer_messages_are_short_and_can_be_drawn(w, capsys, monkeypatch, what):
    w.say(what)
    w.draw()

    def fails(targets):
        raise ValueError(what)

    monkeypatch.setattr(viewer, "find", fails)
    for said in w.notice, refused(capsys, "--headless"):
        assert len(said.splitlines()) <= 3 and said.replace("\n", "").isprintable()
        assert all(len(line) <= 200 for line in said.splitlines())


def test_viewer_a_file_dropped_on_the_window(w, run, tmp_path):
    w.pin()
    drop(w, make_policy(tmp_path / "other.npz", LANDER, step=77))
    assert step_shown(w) == 77 and w.player.env_id == LANDER and not w.pinned
    pixels(w)
    drop(w, run)
    assert step_shown(w) == 2000 and w.player.env_id == PENDULUM


NO_POLICY = {  # what may lie in place of a policy, and words of what is said then
    "nothing": (Path.unlink, "no such file"),
    "other bytes": (lambda path: path.write_bytes(b"junk"), "cannot be read"),
    "half a file": (lambda path: path.write_bytes(path.read_bytes()[:2000]), "cannot be read"),
    "other arrays": (lambda path: np.savez(path, a=1), "cannot be read"),
    "another policy": (partial(make_policy, spaces=CAR), "[2, 1] observations"),
}


@pytest.mark.parametrize("spoil, words", NO_POLICY.values(), ids=NO_POLICY)
def test_viewer_what_cannot_fly_is_refused_or_a_notice(w, run, capsys, spoil, words):
    path, policy = snapshot(run, 1000), w.player.policy
    spoil(path)
    for ask in lambda: press(w, "PageUp"), lambda: drop(w, path):
        w.notice = ""
        ask()
        assert words in w.notice and w.player.policy is policy
    w.update(0.2)
    assert w.player.t
    for flags in [], ["--headless"]:
        assert words in refused(capsys, path, *flags)


def test_viewer_what_goes_wrong_is_a_notice(w, run, monkeypatch):
    shutil.rmtree(run)
    w.update(1)
    pixels(w)
    finish(w)
    env = type(w.player.env.unwrapped)
    with monkeypatch.context() as patch:
        patch.setattr(env, "render", broken)
        w.restart()
        pixels(w)
    assert "RuntimeError: out of fuel, at step 0" in w.notice
    assert not w.dirty  # nor is it drawn again and again
    with monkeypatch.context() as patch:
        asked = recorded(patch, env, "render")
        for go in w.draw, w.step, w.draw:
            go()
            assert "out of fuel" in w.notice and not asked  # which may end the process
        w.notice = ""
        for go in w.restart, w.draw:
            go()
        assert len(asked) == 1 and not w.notice
    w.notice = ""
    with monkeypatch.context() as patch:
        patch.setattr(env, "step", broken)
        w.attempt(w.update, 0.2)
    assert "out of fuel" in w.notice and w.paused
    w.notice = ""
    with monkeypatch.context() as patch:
        patch.setattr(viewer.Player, "start", broken)
        press(w, "c")
    assert "out of fuel" in w.notice and not w.pinned
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "PIL", None)
        press(w, "g")
    assert "pip install pillow" in w.notice and not w.film
    press(w, "r")
    press(w, "Space")
    w.update(0.2)
    assert w.player.t


def test_viewer_leaving_prints_the_summary(run, monkeypatch, capsys):
    returns = []

    def loop(window):
        returns.append(finish(window))
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(viewer.Window, "loop", loop)
    assert viewer.main([str(run), "--noisy"]) == 130
    first, *_, last = capsys.readouterr().out.splitlines()
    r, policy = f"{returns[0]:.1f}", f"{run / 'best.npz'} of step 2,000, deterministic: False"
    assert first == f"viewer.py: {run}"
    assert last == f"1 episode: return {r}, length 200, {policy}"


def test_viewer_leaving_saves_the_film(run, monkeypatch, capsys):
    def loop(window):
        window.record()
        window.step()

    monkeypatch.setattr(viewer.Window, "loop", loop)
    assert viewer.main([str(run)]) == 0
    film = f"{PENDULUM}-step2000-seed0-t0.gif"
    said = f"saved {film}, 1 pictures, in {os.getcwd()}\n"
    assert said in capsys.readouterr().out and Path(film).exists()


def test_viewer_a_film_of_two_ends_with_the_longer_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    w = open_window(make_policy(tmp_path / "a.npz", LANDER))
    w.pin()
    w.show(make_policy(tmp_path / "b.npz", LANDER, step=5, scale=0.0))
    w.record()
    while not w.over:
        w.step()
        assert w.dirty  # what is recorded is shown, too
    lengths = [player.t for player in w.players]
    longest = max(lengths)
    assert lengths[0] != lengths[1] and w.film.n == -(-longest // 2)
    path = w.film.path
    w.record()
    with Image.open(path) as film:
        assert film.n_frames == -(-longest // 2)
        for frame in range(film.n_frames):
            film.seek(frame)
            assert film.info["duration"] == (40 if frame < film.n_frames - 1 else 1500)
    rows = [row for rows in w.results.values() for row in rows.values()]
    assert [row["length"] for row in rows] == sorted(lengths)
    shown = " ".join(words_on(w))
    for player, who in zip(w.players, ("agent", "pinned agent"), strict=True):
        said = f"{who} {player.episode.ret:.1f}, {player.ending}"
        assert f"{said} trained {player.train_step:,} steps" in shown and player.ending
    press(w, ",")  # together: only the longer one goes back
    assert [player.t for player in w.players] == [min(t, longest - 1) for t in lengths]


# ---- without a window ----


def refused(capsys, *arguments):
    """Run the command, which is to exit with 2 and a few words -> those."""
    assert viewer.main([str(argument) for argument in arguments]) == 2
    out, error = capsys.readouterr()
    assert 1 <= len(error.splitlines()) <= 3 and error.startswith("viewer.py: ")
    assert max(map(len, error.splitlines())) <= 200
    assert "Traceback" not in error and "episode" not in out
    return error


def rows_of(capsys, *arguments):
    """Run the command -> what it prints as JSON."""
    assert viewer.main(["--json", *map(str, arguments)]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_viewer_headless_json(run, capsys):
    rows = rows_of(capsys, "--headless", "--episodes", 2, "--seed", 5)
    keys = "policy train_step seed return length terminated truncated deterministic assisted"
    assert len(rows) == 3 and all(list(row) == keys.split() for row in rows[:2])
    assert [row["seed"] for row in rows[:2]] == [5, 6]
    assert rows[0]["truncated"] and rows[0]["train_step"] == 2000
    mean = (rows[0]["return"] + rows[1]["return"]) / 2
    assert rows[2]["summary"] and np.isclose(rows[2]["mean"], mean)
    tours = {"--tour": [0, 1000, 2000, 3000], "--tour 2": [0, 3000], "--live --episodes 1": [3000]}
    for flags, flown in tours.items():
        rows = rows_of(capsys, run, *flags.split())
        assert [row["train_step"] for row in rows if "seed" in row] == flown
    assert viewer.parse(["--headless"]).episodes == 20


def test_viewer_noise_is_decided_by_the_seed(run, capsys):
    flags = [], ["--noisy"], ["--noisy"]
    plain, noisy, again = (rows_of(capsys, run, "--episodes", 1, *more)[0] for more in flags)
    assert noisy == again and noisy["return"] != plain["return"]
    assert plain["deterministic"] and not noisy["deterministic"]


def test_viewer_printing_in_ascii_never_fails(run, monkeypatch):
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, "ascii"))
    assert viewer.main([str(run), "--headless", "--episodes", "2"]) == 0
    sys.stdout.flush()
    assert b"2 episodes: return" in printed.getvalue()


@needs_unix
def test_viewer_printing_to_nobody_ends_it_quietly(run):
    def nobody_reads():
        os.dup2(a_closed_pipe(), 1)
        sys.stdout = open(1, "w", closefd=False)
        return viewer.main([str(run), "--headless"])

    errors = run / "errors"
    assert exit_code(in_a_child(nobody_reads, errors=errors)) == 1 and not errors.read_text()


@needs_unix
@SHORT_EPISODES
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("flags", [["--headless"], []], ids=["headless", "window"])
def test_viewer_a_signal_is_heeded_after_the_step_and_the_summary_printed(run, number, flags):
    def interrupted():
        step, count = viewer.Window.step, itertools.count()

        def swallowing(window, *touched):
            assert (n := next(count)) <= 45  # nor is another step begun
            if n == 45:
                try:
                    signal.raise_signal(number)
                except BaseException:  # as Box2D may do in its callbacks
                    pass
            step(window, *touched)

        viewer.Window.step = swallowing
        viewer.Window.play = lambda window, dt: window.restart(1) if window.over else window.step()
        return viewer.main([str(run), *flags])

    out, err = run / "out", run / "err"
    assert exit_code(in_a_child(interrupted, out, err)) == 128 + number
    assert "2 episodes: return" in out.read_text() and not err.read_text()


@needs_unix
def test_viewer_a_second_signal_leaves_at_once(run):
    def hangs(window):
        for _ in range(2):
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException:
                pass
        time.sleep(60)

    def work():
        viewer.Window.step = hangs
        return viewer.main([str(run), "--headless"])

    assert exit_code(in_a_child(work), 20) == 130


def test_viewer_a_signal_before_torch_is_loaded(run):
    """In the window, and within the imports at the top, here of a NumPy that takes a minute."""
    command = [sys.executable, ROOT / "viewer.py", run]
    more = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with subprocess.Popen(command, **more) as window:
        assert window.stdout.readline() == f"viewer.py: {run}\n"
        window.terminate()
        assert window.wait(20) == 143 and not window.stderr.read()
    slow = run / "slow"
    slow.mkdir()
    (slow / "numpy.py").write_text("import time\nprint('begun', flush=True)\ntime.sleep(60)")
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(slow)}, **more
    ) as importing:
        assert importing.stdout.readline() == "begun\n"
        importing.send_signal(signal.SIGINT)
        assert importing.wait(20) == 130 and not importing.stderr.read()


OPENED_AND_CLOSED = f"""
import sys; sys.path.append({str(ROOT)!r})
import viewer
def loop(window):
    while not window.over:
        window.step()
    print("printed by an environment")
viewer.Window.loop = loop
sys.exit(viewer.main(sys.argv[1:]))
"""


@needs_dev_full
def test_viewer_output_that_fails_ends_no_window_and_is_said_without_one(run, interpreter):
    def ends(*line, **streams):
        """-> its exit code and the lines on stderr."""
        result = interpreter(*line, cwd=ROOT, **streams)
        return result.returncode, len(result.stderr.splitlines())

    full, script = "/dev/full", run / "script.py"
    script.write_text(OPENED_AND_CLOSED)
    assert ends("viewer.py", run, "--headless", "--episodes", 2, stdout=full) == (1, 1)
    assert ends("viewer.py", "--help", stdout=full) == (1, 1)
    assert ends(script, run, stdout=full) == (0, 0)
    assert ends("viewer.py", run / "none", stderr=full) == (2, 0)


@needs_dev_full
def test_viewer_a_picture_on_a_full_disk_is_an_error_in_a_line(run, capsys):
    assert "No space" in refused(capsys, run, "--png", "/dev/full")


def test_viewer_without_a_target_the_newest_run_opens(run):
    mine = Path("runs/mine")
    (mine / "policies").mkdir(parents=True)
    (mine / "config.json").touch()
    for newest, other in (run, mine), (mine, run):
        os.utime(newest, (2, 2))
        os.utime(other, (1, 1))
        (path,) = viewer.find([])
        assert path.samefile(newest)


def test_viewer_png_and_gif(tmp_path, capsys, monkeypatch):
    path = make_policy(tmp_path / "policy.npz", LANDER)
    png, gif, bad = tmp_path / "picture", tmp_path / "film", tmp_path / "bad"
    headless = rows_of(capsys, path, "--headless", "--episodes", 1)
    assert rows_of(capsys, path, "--png", png, "--gif", gif) == headless
    with Image.open(png) as picture, Image.open(gif) as film:
        assert (picture.format, film.format) == ("PNG", "GIF")  # whatever they are called
        assert picture.size == (1000, 640) and film.size[0] == 640 and film.info["duration"] == 40
        assert abs(film.n_frames - headless[0]["length"] / 2) <= 2
    monkeypatch.setattr(viewer.Player, "frame", broken)
    for flag in "--png", "--gif":
        assert "out of fuel" in refused(capsys, path, flag, bad)
    assert not bad.exists()


def test_viewer_bad_arguments_are_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = make_policy(tmp_path / "good.npz")
    assert "python ddpg.py --env" in refused(capsys)
    assert "not the folder of a run" in refused(capsys, tmp_path, "--headless")
    assert "--help" in refused(capsys, "--sped", "3")
    assert "at least 1" in refused(capsys, path, "--headless", "--tour", 0)
    flags = "--png", "--gif", "--film", "--curves"
    for flag, file in itertools.product(flags, ("no/a.png", tmp_path, "")):
        assert "cannot save" in refused(capsys, path, flag, file)
    for size in ("99", "640"), ("640", "8193"), ("a", "b"), ("640",):
        assert "--size" in refused(capsys, path, "--headless", "--size", *size)
    for targets in ["nowhere"], [path, "nowhere"]:
        assert "nowhere: no such file or folder" in refused(capsys, *targets, "--headless")


@needs_unix
def test_viewer_a_named_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    assert exit_code(in_a_child(lambda: viewer.main([str(tmp_path / "pipe.npz")]))) == 2


def test_viewer_an_environment_of_your_own(tmp_path, capsys):
    png = tmp_path / "a.png"
    for env in "Blind-v0", "os:Blind-v0", "Missing-v0":  # a file does not choose whose code runs
        path = make_policy(tmp_path / "own.npz", env, spaces="Blind-v0")
        for flags in ["--headless"], ["--png", png]:
            assert "--env" in refused(capsys, path, *flags)
    assert "no rgb_array" in refused(capsys, path, "--png", png, "--env", "Blind-v0")
    assert viewer.main([str(path), "--headless", "--episodes", "1", "--env", "Blind-v0"]) == 0
    assert "step 0, seed 0: return 9.0, length 9" in capsys.readouterr().out
    w = open_window(path, "--env", "Seeing-v0")
    w.update(0.2)
    assert (pixels(w) == 99).all(2).mean() > 0.2
    mouse(w, w.panes()["scene"].center, "down")
    assert "push" in w.notice and not w.grip
    finish(w)


class Leaving(Seeing):
    """Ends the process where it is told to, or fails in many words."""

    where, how = None, SystemExit(0)

    def __init__(self, render_mode=None):
        super().__init__(render_mode)
        self.leave("init")

    def leave(self, here):
        if here == Leaving.where:
            raise Leaving.how

    def reset(self, **kwargs):
        self.leave("reset")
        return super().reset(**kwargs)

    def step(self, action):
        self.leave("step")
        return super().step(action)

    def render(self):
        self.leave("render")
        return super().render()

    def close(self):
        self.leave("close")


@pytest.mark.parametrize("where", ["init", "reset", "step", "render", "close"])
def test_viewer_an_environment_that_exits_is_an_error(tmp_path, capsys, monkeypatch, where):
    gym.register("Leaving-v0", Leaving, max_episode_steps=9)
    path = make_policy(tmp_path / "own.npz", "Blind-v0")
    w = open_window(path, "--env", "Leaving-v0")
    monkeypatch.setattr(Leaving, "where", where)
    w.attempt(w.restart)
    w.attempt(w.update, 0.25)
    w.dirty = True
    w.attempt(w.draw)
    assert "SystemExit" in w.notice
    flags = path, "--env", "Leaving-v0", "--png", tmp_path / "a.png"
    assert "SystemExit" in refused(capsys, *flags)
    words = " many\nwords"
    monkeypatch.setattr(Leaving, "how", ValueError("the end" + words * 1_000))
    assert "the end" in refused(capsys, *flags)


def test_viewer_names_that_are_too_long_are_refused(tmp_path, capsys):
    path = make_policy(tmp_path / "good.npz")
    assert "no such file" in refused(capsys, "a" * 300)
    assert "no such file" in refused(capsys, tmp_path / ("a\n" * 2_500))
    refused(capsys, path, "--png", "a" * 300)
    refused(capsys, path, "--headless", "--env", "a" * 5_000)
    refused(capsys, path, "--seed", "1" * 5_000)


class Moving(Seeing):
    def reset(self, **kwargs):
        os.chdir("/")
        return super().reset(**kwargs)


def test_viewer_an_environment_may_change_the_working_folder(run, capsys, monkeypatch):
    gym.register("Moving-v0", Moving, max_episode_steps=9)
    for file in run.glob("**/*.npz"):
        make_policy(file, "Blind-v0", step=load(file).meta["step"])
    typed = run.relative_to(Path.cwd())
    flags = typed, "--env", "Moving-v0"
    start = Path.cwd()
    for target in flags, flags[1:]:
        monkeypatch.chdir(start)
        rows = rows_of(capsys, *target, "--episodes", 2, "--png", "a.png", "--gif", "a.gif")
        assert {row["policy"] for row in rows} == {str(typed / "best.npz")}
    assert (start / "a.png").exists() and (start / "a.gif").exists()
    monkeypatch.chdir(start)
    w = open_window(*flags)
    make_policy(run / "last.npz", "Blind-v0", step=3500)
    w.update(1)
    assert step_shown(w) == 2000 and max(w.run.policies) == 3500
    t = w.player.t
    for keys in "End", "s", "g", "Period .", "g":
        press(w, keys)
    name = f"Moving-v0-step3500-seed0-t{t}"
    assert step_shown(w) == 3500 and w.notice == f"saved {name}.gif, 1 pictures, in {start}"
    assert all((start / f"{name}.{kind}").exists() for kind in ("png", "gif"))


def test_viewer_a_strangers_folder_runs_nothing(tmp_path, interpreter):
    """What packages try to import is not taken from where the viewer was started."""
    path = make_policy(tmp_path / "lander.npz", LANDER, max_episode_steps=40)
    for name in "swig_runtime_data4", "jax", "mujoco", "PIL":
        (tmp_path / f"{name}.py").write_text("open('executed', 'w')")
    line = ROOT / "viewer.py", path.name
    assert "seed 0: return" in python(*line, "--gif", "film.gif", cwd=tmp_path).stdout
    assert not (tmp_path / "executed").exists() and (tmp_path / "film.gif").exists()
    (tmp_path / "mine.py").write_text(
        "import gymnasium\nopen('executed', 'w')\n"
        "gymnasium.register('Mine-v0', 'gymnasium.envs.box2d:LunarLander',"
        " max_episode_steps=99, kwargs={'continuous': True})"
    )
    flags = "--headless", "--episodes", 1, "--env", "mine:Mine-v0"
    assert "seed 0: return" in interpreter(*line, *flags, cwd=tmp_path).stdout
    assert (tmp_path / "executed").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="a window opens elsewhere without a DISPLAY")
def test_viewer_no_display_is_refused(run):
    gone = {name: "" for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")}
    result = python(ROOT / "viewer.py", run, env=os.environ | gone)
    assert result.returncode == 2 and "--headless" in result.stderr
    assert len(result.stderr.splitlines()) <= 3


@pytest.mark.skipif(not shutil.which("Xvfb") or not shutil.which("xdotool"), reason="needs both")
def test_viewer_real_window(run):
    """A real window on a virtual screen, keys from outside, the summary on leaving."""
    pipe = subprocess.PIPE
    # Without -noreset it begins anew, and refuses a window, whenever a lone xdotool has left
    command = "Xvfb -noreset -displayfd 1 -screen 0 1280x800x24".split()
    processes = [subprocess.Popen(command, stdout=pipe, stderr=subprocess.DEVNULL, text=True)]
    try:
        number = processes[0].stdout
        assert select.select([number], [], [], 30)[0], "no virtual screen"
        env = {**os.environ, "DISPLAY": ":" + number.readline().strip()}
        env.pop("SDL_VIDEODRIVER")

        def xdotool(*arguments):
            command = ["xdotool", *arguments]
            return subprocess.run(command, env=env, timeout=20, stdout=pipe, text=True).stdout

        command = [sys.executable, ROOT / "viewer.py", run]
        show = subprocess.Popen(command, env=env, text=True, stdout=pipe, stderr=pipe)
        processes.append(show)
        found = []

        def settled():  # it comes and goes once while it opens, and would lose the focus
            assert show.poll() is None, show.communicate()
            found.append(xdotool("search", "--onlyvisible", "--class", "viewer.py").split())
            return found[-1] and found[-10:] == [found[-1]] * 10

        wait_for(settled)
        window = found[-1][0]
        xdotool("windowfocus", "--sync", window)
        xdotool("key", "space")  # before the first picture, for which it waits
        wait_for(lambda: "trained 2,000 steps" in xdotool("getwindowname", window))
        xdotool("key", "--delay", "60", "Home", "s", "g", "period", "period", "g")
        name = f"{PENDULUM}-step0-seed0-t0"
        wait_for(Path(f"{name}.gif").exists)
        seen = pygame.surfarray.array3d(pygame.image.load(f"{name}.png"))
        size = (937, 600)  # three quarters of the screen's height
        assert seen.shape[:2] == size and (seen > 240).all(2).mean() > 0.2  # white scene
        xdotool("key", "q")
        out, error = show.communicate(timeout=15)
        assert show.returncode == 0 and not error and str(run) in out and "no episode" in out
    finally:
        for process in processes:
            process.kill()
            process.communicate(timeout=10)


# ---- the story ----


def flown(policy_file, seed, steps):
    """A Player of that policy at this step of the episode."""
    player = viewer.Player(load(policy_file), render=False)
    player.start(seed, steps)
    return player


def like(seen, color):
    """Where a picture has this color, or an edge of it."""
    return np.abs(seen.astype(int) - color).max(2) < 60


def test_viewer_another_policy_is_shown_at_the_same_moment(w, run):
    """Of the same episode, by itself: dragging the timeline morphs it through the training."""
    repeat(50, w.step)
    w.paused = True
    timeline = hot(w, "timeline")
    mouse(w, timeline.midleft, "down")
    for step, pos in (0, timeline.midleft), (3000, timeline.midright), (1000, None):
        mouse(w, pos, "move") if pos else press(w, "Home")
        press(w, "PageDown") if pos is None else None
        other = flown(snapshot(run, step), w.seed, 50)
        assert step_shown(w) == step and w.player.t == 50 and w.paused
        assert np.array_equal(w.player.trail, other.trail) and not w.player.assisted
        assert len(w.player.predicted()) == 50
    mouse(w, timeline.midright, "up")
    w.pin()
    press(w, "Home")
    assert [player.t for player in w.players] == [50, 50]
    press(w, "Space")
    w.update(0.1)
    assert [player.t for player in w.players] == [53, 53]


def test_viewer_a_policy_whose_episode_is_shorter_is_shown_at_its_end(tmp_path):
    w = open_window(make_policy(tmp_path / "a.npz", LANDER))
    finish(w)
    length = w.player.t
    for scale in 0.0, 300.0:  # one falls, the other flies
        w.show(make_policy(tmp_path / "b.npz", LANDER, scale=scale, step=1), t=1_000)
        assert w.player.over and w.player.ending in ("crashed", "flew out", "landed")
    assert w.player.t == length


def test_viewer_the_moment_outlives_a_policy_whose_episode_ends_before(tmp_path):
    (tmp_path / "policies").mkdir()
    for step, scale in (0, 300.0), (1, 0.0), (2, 300.0):
        make_policy(snapshot(tmp_path, step), LANDER, scale=scale, step=step)
    w = open_window(tmp_path)
    press(w, "Home")
    longer = flown(snapshot(tmp_path, 0), 0, 1_000).t
    press(w, "PageDown")
    finish(w)
    shorter = w.player.t
    assert shorter < longer - 5
    press(w, "Home")
    w.paused = True
    repeat(longer - 2 - w.player.t, w.step)
    for t in shorter, longer - 2:
        press(w, "PageDown")
        assert w.player.t == t
    press(w, "PageUp")
    press(w, "Left")  # a step of one's own makes another moment
    press(w, "PageUp")
    assert w.player.t == shorter - 1


def test_viewer_steps_and_choices_that_wait_are_one(w, monkeypatch):
    """Of keys that repeat faster than long episodes can be flown."""
    finish(w)
    made, shown = recorded(monkeypatch, ddpg, "load"), []
    player = w.player
    monkeypatch.setattr(player, "seek", lambda *args: shown.append(args))
    post(w, *[key("Left")] * 7)
    assert shown == [] and w.player is player  # the agent is flown, as it is not paused
    w.paused = True
    w.held.clear()
    post(w, *[key("Left")] * 7)
    assert shown == [(193,)]
    monkeypatch.undo()
    w.held.clear()
    post(w, *[key("PageUp")] * 2)
    assert step_shown(w) == 0 and not made[1:]
    assert w.player.t == 200


def test_viewer_shift_goes_ten_steps_on_any_keyboard(w):
    w.paused = True
    for name, typed, t in (".", ">", 10), ("Right", None, 20), (",", ";", 10), (".", ":", 20):
        post(w, key(name, typed, pygame.KMOD_LSHIFT))
        w.held.clear()
        assert w.player.t == t


def test_viewer_nothing_is_overwritten_and_the_folder_is_said(w, tmp_path):
    repeat(3, w.step)
    for name in "t3", "t3-2", "t3-3":
        press(w, "s")
        file = f"{PENDULUM}-step2000-seed0-{name}.png"
        assert w.notice == f"saved {file} in {tmp_path}" and Path(file).exists()
    for name in "t3.gif", "t3-2.gif":
        press(w, "g")
        w.film.add()
        press(w, "g")
        assert name in w.notice and str(tmp_path) in w.notice
    assert len([*tmp_path.glob("*.gif")]) == 2


def test_viewer_a_film_has_the_colors_and_the_pace_of_the_window(tmp_path):
    """At 30 pictures a second, in hundredths, and with the colors of the theme."""
    film = viewer.Film(tmp_path / "a.gif", (320, 200), 30)
    pictures = []
    for i in range(30):
        film.surface.fill(viewer.FIELD)
        for j, color in enumerate(viewer.COLORS):
            film.surface.fill(color, (50 * j, i, 30, 30))
        film.surface.fill((i * 8, 255 - i * 8, 128), (0, 100, 320, 50))  # others than the first
        pictures.append(pygame.surfarray.array3d(film.surface).swapaxes(0, 1))
        film.add(last=i == 29)
    film.save()
    total = 0
    with Image.open(tmp_path / "a.gif") as gif:
        assert gif.n_frames == 30 and gif.size == (320, 200)
        for i, picture in enumerate(pictures):
            gif.seek(i)
            total += gif.info["duration"]
            seen = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(seen - picture).max() <= 8
    assert abs(total - (29 * 1000 / 30 + 1500)) <= 10
    held = sum(map(len, film.encoder.parts)) + film.encoder.before.nbytes
    assert held < 2 * 320 * 200 * 3  # one picture and what is encoded, of thirty
    strides = {fps: viewer.Film(Path("b.gif"), (9, 9), fps) for fps in (30, 50, 60, 125)}
    assert {fps: film.stride for fps, film in strides.items()} == {30: 1, 50: 2, 60: 2, 125: 4}


def test_viewer_a_film_of_a_window_has_its_colors(w, tmp_path):
    film = viewer.Film(tmp_path / "a.gif", (640, 400), 30)
    repeat(50, w.step)
    w.surface = film.surface
    w.draw()
    film.add()
    film.save()
    with Image.open(tmp_path / "a.gif") as gif:
        seen = np.asarray(gif.convert("RGB")).astype(int)
    wrong = np.abs(seen - pygame.surfarray.array3d(film.surface).swapaxes(0, 1)).max(2)
    assert (
        wrong.max() <= 16 and wrong.mean() < 1 and len(np.unique(seen.reshape(-1, 3), axis=0)) > 100
    )


def test_viewer_a_film_is_encoded_as_it_grows_and_its_length_has_an_end(w, monkeypatch):
    monkeypatch.setattr(viewer, "LONGEST", 5)
    press(w, "g")
    repeat(4, w.step)
    sizes = [len(b"".join(w.film.encoder.parts))]
    w.step()
    assert w.film is None and ", 5 pictures, in " in w.notice
    (film,) = Path.cwd().glob("*.gif")
    assert sizes[0] > 0.7 * film.stat().st_size  # nothing is left to do at the end
    with Image.open(film) as gif:
        assert gif.n_frames == 5


def test_viewer_what_goes_wrong_in_a_film_ends_it(w, monkeypatch):
    for name in "add", "end":
        with monkeypatch.context() as patch:
            patch.setattr(viewer.Gif, name, broken)
            press(w, "g")
            w.step()
            press(w, "g") if name == "end" else None
        assert w.film is None and "out of fuel" in w.notice
        assert not [*Path.cwd().glob("*.gif")]
        w.notice = ""


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="needs ffmpeg")
@pytest.mark.parametrize("kind", ["mp4", "webm"])
def test_viewer_videos_by_ffmpeg(tmp_path, capsys, monkeypatch, kind):
    path, text = tmp_path / f"film.{kind}", "stream=width,height,codec_name"
    flags = "--scene-only", "--size", 120, 100, "--film", path
    rows_of(capsys, make_policy(tmp_path / "p.npz", max_episode_steps=12), *flags)
    command = ["ffprobe", "-v", "error", "-show_entries", text, "-of", "csv=p=0", path]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    assert "120,100" in said
    ffmpeg = tmp_path / "a folder" / "ffmpeg"
    ffmpeg.parent.mkdir()
    ffmpeg.symlink_to(shutil.which("ffmpeg"))
    monkeypatch.setattr(shutil, "which", lambda name: str(ffmpeg))
    video = viewer.Video(tmp_path / f"b.{kind}", (64, 64), 40)
    repeat(20, video.add, bytes(64 * 64 * 3), 40)
    assert video.end()
    video = viewer.Video(tmp_path / f"b.{kind}", (64, 64), 40)
    video.process.kill()
    repeat(20, video.add, bytes(64 * 64 * 3), 40)
    with pytest.raises(ValueError, match="ffmpeg"):
        video.end()
    assert not Path(video.folder.name).exists()


def test_viewer_videos_without_ffmpeg_are_refused(run, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    said = refused(capsys, run, "--film", "a.mp4")
    assert "ffmpeg" in said and ".gif" in said and not Path("a.mp4").exists()


def test_viewer_a_picture_that_failed_is_not_tried_again(w, run, capsys, monkeypatch):
    """As MuJoCo ends the process then, where there is no display."""
    drawn = []

    def render(env):
        drawn.append(env)
        raise RuntimeError("no display")

    monkeypatch.setattr(type(w.player.env.unwrapped), "render", render)
    w.restart()
    for _ in range(3):
        w.dirty = True
        w.draw()
    assert len(drawn) == 1 and "no display" in w.notice
    drawn.clear()
    assert "no display" in refused(capsys, run, "--film", "a.gif")
    assert len(drawn) == 1 and not Path("a.gif").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="EGL is Linux's")
def test_viewer_without_a_display_mujoco_draws_by_egl(run, capsys, monkeypatch):
    for name in "DISPLAY", "WAYLAND_DISPLAY", "MUJOCO_GL":
        monkeypatch.delenv(name, raising=False)
    rows_of(capsys, run, "--episodes", 1)
    assert os.environ["MUJOCO_GL"] == "egl"
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    rows_of(capsys, run, "--episodes", 1)
    assert os.environ["MUJOCO_GL"] == "osmesa"
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.setenv("DISPLAY", ":0")
    rows_of(capsys, run, "--episodes", 1)
    assert "MUJOCO_GL" not in os.environ


def test_viewer_the_speed_is_said_only_where_it_is_another_one(w):
    """The pause after an episode is not part of it."""
    finish(w)
    repeat(5, w.update, 0.25)
    assert w.state()[0][0] == "1x"
    w.steps = 8 * w.steps // 10
    assert w.state()[0][0] == "1x (really 0.8x)"


def test_viewer_live_is_only_what_is_under_way(w, run):
    press(w, "End")
    assert w.follow and "LIVE" not in " ".join(words_on(w))
    if os.name != "nt":
        with ddpg.lock(run):
            make_policy(run / "last.npz", step=3500)
            w.poll()
            assert "LIVE" in w.state()[0]
            w.poll()
            assert w.live
        w.poll()
        assert not w.live


def test_viewer_progress_of_a_training(w, run):
    (run / "config.json").write_text('{"config": {"total_steps": 10000}}')
    table = "step,eval_mean,steps_per_s\n0,-1000,0\n4000,-300,250\n"
    (run / "progress.csv").write_text(table)
    with ddpg.lock(run) if os.name != "nt" else nullcontext():
        w.poll()
        w.live = True
        state = " ".join(w.state()[0])
        assert "40% of 10,000 steps" in state and "250 steps/s, about 24 s left" in state


@needs_unix
def test_viewer_of_a_training_closes_after_its_end_unless_touched(run):
    """So that those of many trainings do not pile up."""
    w = open_window(run, "--live")
    with ddpg.lock(run):
        press(w, "Space")  # touched during the training: that is not to stay
        repeat(300, w.update, 0.5)
        assert w.alive
    w.update(0.5)
    assert "closes in 60 s" in " ".join(w.state()[0])
    repeat(100, w.update, 0.5)
    assert w.alive
    press(w, "Space")
    repeat(300, w.update, 0.5)
    assert w.alive
    untouched = open_window(run, "--live")
    repeat(125, untouched.update, 0.5)
    assert not untouched.alive
    another = open_window(run)
    repeat(300, another.update, 0.5)
    assert another.alive  # it was not opened for a training


def test_viewer_notices_do_not_outlive_what_they_speak_of(w):
    press(w, "c")
    assert "is pinned" in w.notice and w.notice_for > 0
    press(w, "Home")
    assert w.notice_for <= 0
    press(w, "PageUp")
    assert "no previous" in w.notice
    press(w, "PageDown")
    assert w.notice_for <= 0


def test_viewer_of_a_best_policy_that_cannot_be_read_there_is_no_mark(w, run):
    assert "B" in words_on(w)
    (run / "best.npz").write_bytes(b"junk")
    w.update(0.6)
    assert "best.npz" in w.notice and "B" not in words_on(w) and step_shown(w) == 2000
    press(w, "b")
    assert "no best snapshot" in w.notice and "best.npz" in w.notice and step_shown(w) == 2000
    again = open_window(run)
    assert again.run.best is None and step_shown(again) == 3000


def test_viewer_numbers():
    forms = {"+.2f": "+0.00", ".1f": "0.0", ".3g": "0", ",.0f": "0"}
    for form, zero in forms.items():
        assert viewer.number(-1e-9 if "f" in form else -0.0, form) == zero
    assert viewer.number(-0.126, "+.2f") == "-0.13" and viewer.number(12345.6, ",.0f") == "12,346"
    for number in "-277.1", "0.7.":  # the font writes the point below the seven
        image = viewer.written(number, 14, viewer.TEXT, 300)
        assert image.get_width() > viewer.font(14).size(number)[0]
    one = viewer.summed_up(
        dict(
            episodes=1,
            mean=-5.0,
            std=0.0,
            min=-5.0,
            max=-5.0,
            length=200.0,
            policy="p",
            train_step=7,
            deterministic=True,
        )
    )
    assert one.startswith("1 episode: return -5.0, length 200") and "±" not in one


def test_viewer_the_scrubber_goes_to_a_moment_and_keeps_what_lies_ahead(w):
    finish(w)
    returns, q = list(w.player.rewards), list(w.player.predicted())
    w.draw()
    critic, rewards = hot(w, "critic"), hot(w, "rewards")
    plots = recorded_plots(w)
    assert len({plot.at(99, 0)[0] for plot in plots}) == 1  # one line across both
    x, later = (round(plots[0].at(i, 0)[0]) for i in (99, 149))
    for part in critic, rewards:
        mouse(w, (x, part.centery), "down", "up")
        assert w.player.t == 100 and w.paused and not w.player.over
        assert w.player.rewards == returns and w.player.predicted() == q
        assert len(w.player.realised()) == 200  # the end is known still
    mouse(w, (x, critic.centery), "down")
    mouse(w, (later, critic.centery), "move")
    assert w.player.t == 150
    mouse(w, critic.topright, "move", "up")
    assert w.player.over and w.player.rewards == returns
    w.player.seek(20)
    w.player.step(np.ones(1))  # another way from here
    assert len(w.player.rewards) == 21 and not w.player.realised()


def recorded_plots(w):
    with pytest.MonkeyPatch.context() as patch:
        plots, init = [], viewer.Plot.__init__

        def recording(plot, *args, **kwargs):
            init(plot, *args, **kwargs)
            plots.append(plot)

        patch.setattr(viewer.Plot, "__init__", recording)
        w.draw()
    return plots[1:3]  # after the learning curve's


def test_viewer_values_under_the_mouse(w):
    repeat(120, w.step)
    critic, plot = hot(w, "critic"), recorded_plots(w)[0]
    w.mouse = tuple(map(int, (plot.at(40, 0)[0], critic.centery)))
    i = round(plot.x_at(w.mouse))
    assert f"t = {i + 1}: critic's Q {viewer.number(w.player.predicted()[i])}" in words_on(w)
    w.mouse = critic.topright
    assert not any(word.startswith("t = 200:") for word in words_on(w))  # not flown yet


def test_viewer_one_spike_does_not_flatten_a_plot():
    values = np.sin(np.arange(200.0))
    low, high = viewer.limits([*values, -100.0])
    assert -3 < low < -0.9 and 0.9 < high < 3
    assert viewer.limits([*values, -100.0], whole=True)[0] == -100
    for value in -1e299, 1e16, 0.0:  # as of a critic that has diverged
        low, high = viewer.limits([value] * 99)
        assert low < value < high and len(viewer.ticks(low, high, 5)) > 0
    assert viewer.limits([1.0, 5.0]) == (1, 5) and viewer.limits([2.0, 2.0]) == (1.5, 2.5)


@pytest.mark.parametrize("low, high", [(0, 1), (-1213.3, -138), (0, 2e5), (-1e-3, 1e-3), (3, 4e12)])
def test_viewer_ticks_are_round(low, high):
    for most in 0.5, 2, 5, 9:
        marks = viewer.ticks(low, high, most)
        assert 1 <= len(marks) <= max(2, most) and min(marks) >= low - 1e-9 * high
        assert max(marks) <= high
    size = 10.0 ** np.floor(np.log10(np.diff(marks)[0] * 1.001))
    assert len(marks) > 2 and round(np.diff(marks)[0] / size) in (1, 2, 5)


def several(tmp_path, **changes):
    """Folders of four runs: two seeds of one kind, one of another, one in another environment."""
    kinds = dict(a=dict(algo="ddpg", seed=0), b=dict(algo="ddpg", seed=1), c=dict(algo="td3"))
    for i, (name, config) in enumerate({**kinds, "d": dict(algo="td3", env=CAR)}.items()):
        folder, config = tmp_path / "some" / name, {"env": PENDULUM, "solved_at": -156} | config
        (folder / "policies").mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"config": config}))
        rows = "".join(f"{1000 * k},{20 * i + k},0.5\n" for k in range(5 - i))
        (folder / "progress.csv").write_text("step,eval_mean,eval_std\n" + rows)
        for step in 0, 2000:
            make_policy(snapshot(folder, step), config["env"], seed=i, step=step)
    return tmp_path / "some"


def test_viewer_several_runs(tmp_path):
    folder = several(tmp_path)
    assert [path.name for path in viewer.find([folder])] == ["a", "b", "c", "d"]
    w = open_window(folder)
    words = " ".join(words_on(w))
    assert "ddpg, 2 runs" in words and "td3" in words and "dashed: solved at -156" in words
    assert (
        "± sd over runs, of a lone run over episodes" in words
        and w.run.log.path.name == "a"
        and "   a   td3   " in words
    )
    repeat(30, w.step)
    for name in "b", "c", "d", "a":
        press(w, "o")
        assert w.run.log.path == folder / name and w.player.t == 30
        assert w.player.env_id == (CAR if name == "d" else PENDULUM)
    w.draw()
    plot = w.kept[1]
    mouse(w, plot.at(1600, 21.6), "down", "up")  # between two rows of the second run
    assert w.run.log.path == folder / "b" and step_shown(w) == 2000
    w.mouse = tuple(map(int, plot.at(1000, 41)))  # the third run's second row
    assert "step 1,000: 41.0 ± 0.5, c" in words_on(w) and "b, playing" in words_on(w)


def test_viewer_a_bad_run_among_several_costs_that_run(tmp_path, capsys):
    folder = several(tmp_path)
    shutil.rmtree(folder / "a" / "policies")
    for bad in "[1, 2]", '{"config": [1]}', "[" * 10_000, '{"config": {"env": "a\\u0000"}}':
        (folder / "a" / "config.json").write_text(bad)
        w = open_window(folder)
        assert w.run.log.path == folder / "b"
        pixels(w)
        assert w.notice_for <= 0, w.notice
        assert viewer.main([str(folder), "--curves", str(tmp_path / "a.png")]) == 0
    while w.run.log.path != folder / "d":
        press(w, "o")
    press(w, "o")
    assert "no policies" in w.notice and w.run.log.path == folder / "d"
    assert viewer.main([str(folder), "--headless", "--episodes", "1"]) == 0
    out, error = capsys.readouterr()
    assert error.count("no policies") == 1
    assert [f"{name}{os.sep}policies" in out for name in "bcd"] == [True] * 3


def test_viewer_another_environment_ends_a_comparison_and_a_measure(tmp_path):
    w = open_window(several(tmp_path))
    w.pin()
    w.steps, w.seconds = 999, 9.0
    while w.player.env_id != CAR:
        press(w, "o")
    assert not w.pinned and "nothing is pinned any more" in w.notice and w.state()[0][0] == "1x"


def test_viewer_what_a_learning_curve_is_drawn_of(tmp_path, monkeypatch):
    """Of several runs a band and a mean, each run thin; the line where it is solved, dashed."""
    a, b, c, _ = (viewer.read_log(path)[0] for path in viewer.find([several(tmp_path)]))
    lines, bands = [], []

    def line(plot, x, y, color, dashed=False, thin=False):
        lines.append((list(y), color))

    monkeypatch.setattr(viewer.Plot, "line", line)
    monkeypatch.setattr(viewer.Plot, "band", lambda plot, *args: bands.append(args))
    surface = pygame.Surface((600, 300))
    plot = viewer.draw_curves(surface, surface.get_rect(), [a, b, c], 0, 20, b)
    (x, low, high, color), (_, lower, upper, other) = bands
    assert (low + high).tolist() == [20, 22, 24, 26] and color != other
    assert np.allclose(high - low, 2 * np.std([0, 20], ddof=1)) and (upper - lower == 1).all()
    goal, *curves = lines
    assert goal[0] == [-156, -156] and plot.ys[0] <= -156
    dim = viewer.dimmed(color)
    assert curves == [
        ([0, 1, 2, 3, 4], dim),
        ([20, 21, 22, 23], viewer.TEXT),
        ([10, 11, 12, 13], color),
        ([40, 41, 42], other),
    ]
    monkeypatch.undo()
    plain = pygame.surfarray.array3d(surface)
    plot.band((0, 4000), (-100, -100), (-50, -50), viewer.BLUE)
    seen = pygame.surfarray.array3d(surface)
    x, y = map(int, plot.at(3500, -75))
    assert (seen[x, y] != plain[x, y]).any() and (seen[x, y] != viewer.BLUE).any()  # shines through
    surface.fill(viewer.FIELD)
    plot.line((0, 4000), (-100, -100), viewer.TEXT, dashed=True)
    drawn = (pygame.surfarray.array3d(surface)[:, :, 0] > 150).any(1).mean()
    assert 0.45 < drawn < 0.75


def test_viewer_learning_curves_are_drawn_again_only_if_they_have_changed(w, run, monkeypatch):
    w.draw()
    calls = recorded(monkeypatch, viewer, "draw_curves")
    w.draw()
    plain = pixels(w)
    assert not calls
    w.kept = None, None, None
    assert np.array_equal(plain, pixels(w)) and len(calls) == 1
    for change in w.next_curve, lambda: (run / "progress.csv").write_text("step,eval_mean\n5,6\n"):
        change()
        w.poll()
        w.draw()
    assert len(calls) == 3


def test_viewer_the_help_is_not_cut(w):
    for size in (640, 400), (1000, 640), (1265, 810):
        w.surface = pygame.display.set_mode(size, pygame.RESIZABLE)
        w.show_help = True
        for string, where, px in written_on(w):
            assert where.w >= viewer.font(px).size(string)[0], (size, string)


def test_viewer_mujoco_without_a_display_is_told_what_helps(w, monkeypatch):
    monkeypatch.setitem(sys.modules, "mujoco", types.ModuleType("mujoco"))
    monkeypatch.setattr(type(w.player.env.unwrapped), "render", broken)
    w.restart()
    w.draw()
    assert "out of fuel" in w.notice and "MUJOCO_GL=egl" in w.notice


def test_viewer_folders_of_other_programs_are_no_runs(tmp_path, run):
    other = run.parent / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    assert viewer.find([run.parent]) == [run]


def test_viewer_the_mean_goes_as_far_as_all_runs_do(tmp_path):
    a, b, c, _ = (viewer.read_log(path)[0] for path in viewer.find([several(tmp_path)]))
    assert [(name, [log.path.name for log in logs]) for name, logs in viewer.kinds([a, b, c])] == [
        ("ddpg", ["a", "b"]),
        ("td3", ["c"]),
    ]
    steps, mean, sd = viewer.spread_of((a, b), "eval_mean")
    assert steps.tolist() == [0, 1000, 2000, 3000] and mean.tolist() == [10, 11, 12, 13]
    assert np.allclose(sd, np.std([0, 20], ddof=1))
    steps, mean, sd = viewer.spread_of((c,), "eval_mean")
    assert mean.tolist() == [40, 41, 42] and sd.tolist() == [0.5] * 3
    assert viewer.spread_of((a, b), "mean_q")[0].size == 0
    other = viewer.Log(c.path, c.config | {"n_step": 5, "algo": "ddpg"}, c.table)
    assert [name for name, _ in viewer.kinds([a, other])] == ["ddpg n_step None", "ddpg n_step 5"]


def test_viewer_learning_curves_without_a_window_or_torch(tmp_path, interpreter):
    folder, png = several(tmp_path), tmp_path / "curves.png"
    script = tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path.append({str(ROOT)!r}); import viewer\n"
        "code = viewer.main(sys.argv[1:]); assert 'torch' not in sys.modules\n"
        "sys.exit(code)"
    )
    interpreter(script, folder, "--curves", png, "--size", 640, 400, cwd=tmp_path)
    seen = pygame.surfarray.array3d(pygame.image.load(png))
    assert seen.shape[:2] == (640, 400)
    for half in seen[:320], seen[320:]:  # an environment each
        assert like(half, viewer.BLUE).sum() > 100


def test_viewer_learning_curves_of_nothing_are_refused(tmp_path, capsys, run):
    (run / "progress.csv").write_text("")
    png = tmp_path / "curves.png"
    assert "with evaluations" in refused(capsys, run, "--curves", png) and not png.exists()


def test_viewer_a_curve_of_one_point_and_of_other_numbers(w, run):
    table = "step,eval_mean,eval_std,train_return,critic_loss,mean_q\n0,-1000,5,nan,nan,nan\n"
    (run / "progress.csv").write_text(table)
    w.poll()
    area = hot(w, "timeline")
    part = pixels(w)[area.x : area.right, area.y : area.bottom]
    assert (part == viewer.BLUE).all(2).sum() > 10
    (run / "progress.csv").write_text(table + "1000,-500,7,-600,0.25,-33\n")
    w.poll()
    for name, value in [("training return", "-600"), ("critic loss", "0.25"), ("mean Q", "-33")]:
        press(w, "t")
        words = words_on(w)
        assert f"{name} over training steps" in words and "dashed: solved at" not in " ".join(words)
        w.mouse = tuple(map(int, w.kept[1].at(1000, float(value))))
        assert f"step 1,000: {value}" in " ".join(words_on(w))
    press(w, "t")
    assert "test score over training steps" in words_on(w)


def test_viewer_a_comparison_names_both_and_the_arrows_fly_the_left_one(tmp_path):
    for name in "one", "two":
        (tmp_path / name).mkdir()
    w = open_window(make_policy(tmp_path / "one" / "best.npz", LANDER))
    w.pin()
    w.show(make_policy(tmp_path / "two" / "best.npz", LANDER, step=5, scale=0.0))
    w.held = {key("Up").key}
    w.update(0.1)
    assert w.player.assisted and not w.pinned.assisted
    w.held.clear()
    while not w.over:
        w.step()
    you, agent = (f"{player.episode.ret:.1f}, {player.ending}" for player in w.players)
    words = words_on(w)
    assert f"you {you}" in words and "two, trained 5 steps" in words
    assert f"pinned agent {agent}" in words and "one, trained 0 steps" in words
    assert "pinned" in words and w.player.ending in ("crashed", "flew out")
    row = [part for part in (w.panes()["timeline"],)][0]
    seen = pixels(w)[:, row.bottom - w.px : row.bottom]
    for color in viewer.ORANGE, viewer.BLUE:  # their marks on the timeline
        assert (seen == color).all(2).any()


def test_viewer_the_ends_of_episodes_have_names(tmp_path):
    for env, ends in {
        PENDULUM: {"time limit"},
        LANDER: {"crashed", "flew out", "landed"},
        WALKER: {"fell", "time limit"},
    }.items():
        steps = 120 if env == WALKER else 0
        w = open_window(make_policy(tmp_path / "policy.npz", env, max_episode_steps=steps))
        finish(w, 0.2)
        assert w.player.ending in ends and w.player.ending in words_on(w)
        w.player.seek(3)
        assert w.player.ending not in words_on(w)
    lander = gym.make(LANDER).unwrapped
    lander.reset(seed=0)
    end = viewer.KNOWN["LunarLander"].ending
    lander.lander.awake = False
    assert end(lander) == "landed"
    lander.lander.awake = lander.game_over = True
    assert end(lander) == "crashed"


def test_viewer_holds_the_end_until_a_key(w):
    press(w, "e")
    finish(w)
    repeat(40, w.update, 0.25)
    assert w.player.over and w.seed == 0 and "ended: Space goes on" in w.state()[0]
    press(w, "n")
    assert w.seed == 1 and w.player.t == 0
    press(w, "p")
    assert w.seed == 0
    press(w, "p")
    assert w.seed == 0 and "no seed before 0" in w.notice
    finish(w)
    press(w, "Space")
    assert w.seed == 1 and not w.paused


def test_viewer_buttons(w):
    """For people who read no key tables; in pictures and films there are none."""

    def buttons():
        w.draw()
        return [part for part in w.hot if part.name == "button"]

    previous, pause, following, slower, faster = buttons()
    mouse(w, following.rect.center, "down", "up")
    assert w.seed == 1
    mouse(w, previous.rect.center, "down", "up")
    assert w.seed == 0
    mouse(w, pause.rect.center, "down", "move", "up")  # moving repeats nothing
    assert w.paused and "play (Space)" in words_on(w)
    mouse(w, faster.rect.center, "down", "up")
    assert w.speed == 2
    mouse(w, slower.rect.center, "down", "up")
    assert w.speed == 1
    w.surface = pygame.Surface((1000, 640))
    assert not buttons()


class Named(Seeing):
    metadata = Seeing.metadata | {
        "action_names": ["roll", "pitch", "yaw"],
        "observation_names": ["height", "speed", "left", "right"],
    }
    pushed = ()

    def push(self, right, up):
        Named.pushed = right, up


def test_viewer_an_environment_of_your_own_names_its_numbers_and_is_pushed(tmp_path):
    gym.register("Named-v0", Named, max_episode_steps=9)
    path = make_policy(tmp_path / "own.npz", "Blind-v0")
    w = open_window(path, "--env", "Named-v0", size=(1280, 1024))
    words = words_on(w)
    assert {"roll", "pitch", "yaw", "height", "speed"} <= set(words)
    x, y = w.panes()["scene"].center
    mouse(w, (x, y), "down")
    mouse(w, (x + 40, y), "move")
    w.step(*w.touch())
    assert Named.pushed[0] > 0 and w.player.assisted
    Named.metadata = Named.metadata | {"action_names": ["one"]}
    try:
        assert "a0" in words_on(open_window(path, "--env", "Named-v0"))
    finally:
        del Named.metadata


def test_viewer_what_is_known_of_environments_fits_them():
    for name, known in viewer.KNOWN.items():
        env_id = next(e for e in (PENDULUM, CAR, LANDER, WALKER) if e.startswith(name))
        obs, low, _ = SPACES[env_id]
        assert len(known.observations) == obs and len(known.actions) == len(low)
        assert all(
            dim < len(low)
            for key, (dim, _) in known.arrows.items()
            if key in (viewer.LEFT, viewer.RIGHT)
        )


def test_viewer_a_section_of_ones_own(w, monkeypatch):
    drawn = []

    def draw_mine(window, rect):
        drawn.append(rect)
        viewer.text(window.surface, rect, f"speed {window.player.trail[-1][2]:.2f}", window.px)

    mine = viewer.Section(lambda window: 1, draw_mine)
    monkeypatch.setattr(viewer, "SECTIONS", [mine, *viewer.SECTIONS])
    assert any(word.startswith("speed ") for word in words_on(w))
    monkeypatch.setattr(viewer, "SECTIONS", [viewer.Section(lambda w: 1, broken), *viewer.SECTIONS])
    assert "critic's Q" in words_on(w) and "out of fuel" in w.notice


def test_viewer_pictures_of_any_size_and_of_the_scene_alone(run, capsys, tmp_path):
    png = tmp_path / "a.png"
    for flags, size in {("--size", 320, 240): (320, 240), ("--scene-only",): (500, 500)}.items():
        rows_of(capsys, run, "--png", png, *flags)
        seen = pygame.image.load(png)
        assert seen.get_size() == size
    assert (pygame.surfarray.array3d(seen)[[0, -1]] == 255).mean() > 0.9  # nothing beside it
    w = open_window(run, "--size", "320", "240")
    press(w, "g")
    assert w.film.surface.get_size() == (320, 240)
    for size in (0, 5), (9, 100_000):
        assert "--size" in refused(capsys, run, "--png", png, "--size", *size)


def test_viewer_files_are_what_their_names_say(run, capsys):
    for flag, file in ("--film", "a.avi"), ("--png", "a.jpg"), ("--curves", "a.gif"):
        said = refused(capsys, run, flag, file)
        assert Path(file).suffix in said and not Path(file).exists()


def test_viewer_a_plot_without_values_has_no_numbers(tmp_path):
    w = open_window(make_policy(tmp_path / "alone.npz"))
    words = words_on(w)
    assert "no test score yet" in words and not {"0.5", "0.2"} & set(words)


def test_viewer_the_window_fits_the_screen(monkeypatch):
    monkeypatch.delenv("SDL_FRAMEBUFFER_ACCELERATION", raising=False)
    for screen in (1024, 600), (1920, 1080), (3840, 2160), (480, 1000):
        monkeypatch.setattr(pygame.display, "get_desktop_sizes", lambda screen=screen: [screen])
        width, height = viewer.open_display(None).get_size()
        assert 0.3 < width / screen[0] <= 0.95 and height <= 0.75 * screen[1]
        assert np.isclose(width / height, 1000 / 640, rtol=0.02)
    assert viewer.open_display([640, 400]).get_size() == (640, 400)
    # Or MuJoCo, whose pictures are made with OpenGL, would take the window's context away
    assert os.environ["SDL_FRAMEBUFFER_ACCELERATION"] == "0"


def test_viewer_loading_shows_the_learning_curve(run, monkeypatch):
    slow, seen = threading.Event(), []

    def flip():
        seen.append(pygame.surfarray.array3d(pygame.display.get_surface()))
        slow.set()

    monkeypatch.setattr(viewer, "import_ddpg", lambda: slow.wait(10))
    monkeypatch.setattr(pygame.display, "flip", flip)
    monkeypatch.setattr(viewer.Window, "loop", lambda window: None)
    assert viewer.main([str(run)]) == 0
    assert like(seen[0], viewer.BLUE).sum() > 100


def test_viewer_without_a_window_no_screen_is_asked_for(run, capsys, monkeypatch):
    monkeypatch.delenv("SDL_VIDEODRIVER")
    rows_of(capsys, run, "--png", "a.png")
    assert os.environ["SDL_VIDEODRIVER"] == "dummy"  # for environments that draw with pygame


def test_viewer_what_is_opened_begins_at_its_start(w, run, tmp_path, capsys):
    repeat(100, w.step)
    drop(w, make_policy(tmp_path / "car.npz", CAR))
    assert w.player.t == 0
    rows = rows_of(capsys, run, several(tmp_path) / "b", "--episodes", 1)
    assert sum("summary" in row for row in rows) == 2  # of no policy that nobody asked for


def test_viewer_keys_with_control_are_not_its_own(w):
    control = key("c", "\x03", pygame.KMOD_LCTRL)
    post(w, control)
    assert not w.pinned


def test_viewer_the_next_run_and_a_snapshot_of_it_in_one_round(tmp_path):
    w = open_window(several(tmp_path))
    post(w, key("o"), key("PageUp"))
    assert w.run.log.path.name == "b" and step_shown(w) == 0


# ---- learning ----


def test_learn_pendulum_is_solved():
    run = run_for(Config.preset(seed=3, total_steps=5000))
    assert run.solved and evaluate(run.agent, run.make_eval_env, range(100))[0].mean() >= -160


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_learn_from_a_policy_goes_on_in_another_world(tmp_path, seed):
    """With another mass, 500 steps are as good as 1,500 from nothing, and 500 of those are none."""

    def heavier():
        env = gym.make("Pendulum-v1")
        env.unwrapped.m = 1.3
        return env

    def scores(init):
        run = Training(config, heavier, init=init)
        return [run.evaluation["eval_mean"] for run in run if run.evaluation]

    train("Pendulum-v1", out=tmp_path / "run", seed=seed, total_steps=3000)
    changes = dict(total_steps=1500, eval_every=500, solved_at=None)
    config = load(tmp_path / "run").config.replace(**changes)
    warm, fresh = scores(tmp_path / "run"), scores(None)
    assert warm[1] > -200 and warm[1] > fresh[3] - 20 and fresh[1] < -800, (warm, fresh)


@pytest.mark.slow
@pytest.mark.parametrize("env, algo, target, seeds", [
    ("Pendulum-v1", "ddpg", -160, 5), ("Pendulum-v1", "td3", -160, 5),
    ("MountainCarContinuous-v0", "td3", 90, 3), ("LunarLanderContinuous-v3", "td3", 200, 1),
])  # fmt: skip
def test_learn_best_policies_on_episodes_they_never_saw(tmp_path, env, algo, target, seeds):
    for seed in range(seeds):
        train(Config.preset(env, algo=algo, seed=seed), out=tmp_path / str(seed))
        returns, _ = evaluate(load(tmp_path / str(seed)), lambda: gym.make(env), range(100))
        assert returns.mean() >= target, seed
