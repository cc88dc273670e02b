"""Which settings learn anything at the first try? Candidates for the defaults compared.

    pip install "gymnasium[mujoco]"
    python benchmarks/defaults.py random defaults unscaled before --jobs 2 --write FILE
    python benchmarks/defaults.py unscaled --env Hopper-v5
    python benchmarks/defaults.py --table FILE

A run is `ddpg.Training` with the defaults, or a candidate's changes to them, never stopped early;
`preset` takes the environment's preset, where it has one. Its score is the mean return of three
policies, after 1/2, 3/4 and all of its steps, over 20 episodes each (environment seeds 0 to 19,
which training never sees). Scores are normalised by environment: 0 is the uniformly random policy,
1 the best run that the table knows. IQM is the mean of the middle half of all normalised scores.
"""

import argparse
import dataclasses
import itertools
import json
import platform
import statistics
import sys
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import gymnasium as gym
import numpy as np

ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT.parent), str(ROOT)]
from regulator import Regulator  # noqa: E402

import ddpg  # noqa: E402


class Millimetres(gym.Env):
    """A point mass on a table, to be brought to its middle: badly scaled on purpose.

    Observations: position (2,) in mm, up to 1,000, and velocity (2,) in mm/s. The reward of a step
    is -10 per mm of distance, so thousands; an episode has 100 steps of 0.1 s.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)
    action_space = gym.spaces.Box(-2.0, 2.0, (2,), np.float32)  # m/s^2

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = np.append(self.np_random.uniform(-1_000, 1_000, 2), [0.0, 0.0])
        return self.x.copy(), {}

    def step(self, action):
        self.x[2:] += 0.1 * 1_000 * np.asarray(action)
        self.x[:2] += 0.1 * self.x[2:]
        return self.x.copy(), -10 * float(np.hypot(*self.x[:2])), False, False, {}


class Goal(gym.Env):
    """A point in a room of 1 x 1, to be brought within 0.1 of a goal that differs by episode.

    Observations: place and goal, (4,). The reward is 1 at the goal, where the episode ends, and 0
    before: random steps find it in some of the episodes.
    """

    observation_space = gym.spaces.Box(0.0, 1.0, (4,), np.float64)
    action_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(0, 1, 4)
        return self.x.copy(), {}

    def step(self, action):
        self.x[:2] = (self.x[:2] + 0.05 * np.asarray(action)).clip(0, 1)
        there = bool(np.hypot(*(self.x[:2] - self.x[2:])) < 0.1)
        return self.x.copy(), float(there), there, False, {}


def limited(make, steps):
    return lambda: gym.wrappers.TimeLimit(make(), steps)


ENVIRONMENTS = {  # steps to train for, and who makes it, if not gymnasium
    "Pendulum-v1": (15_000, None),
    "MountainCarContinuous-v0": (15_000, None),
    "LunarLanderContinuous-v3": (30_000, None),
    "BipedalWalker-v3": (20_000, None),
    "InvertedPendulum-v5": (15_000, None),
    "InvertedDoublePendulum-v5": (15_000, None),
    "Reacher-v5": (15_000, None),
    "Hopper-v5": (20_000, None),
    "HalfCheetah-v5": (20_000, None),
    "Regulator 16": (15_000, limited(Regulator, 100)),
    "Millimetres": (15_000, limited(Millimetres, 100)),
    "Goal": (15_000, limited(Goal, 100)),
}

UNSCALED = dict(normalize=False, reward_scale=1.0)
CANDIDATES = {
    "defaults": {},
    "unscaled": UNSCALED,
    "before": UNSCALED | dict(  # the defaults until November 2026, TD3's own with layer norm
        hidden=(256, 256), batch_size=256, learning_starts=5_000, n_step=1,
        actor_lr=3e-4, critic_lr=3e-4, noise_sigma=0.1, noise_theta=1.0),
}  # fmt: skip


class Random:
    """Uniformly random actions, for `ddpg.evaluate`."""

    def __init__(self, space):
        self.space, self.rng = space, np.random.default_rng(0)

    def act(self, obs):
        return self.rng.uniform(self.space.low, self.space.high, (len(obs), *self.space.shape))


def cpu():
    """The processor's name, with its family, where it is told."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    said = dict(map(str.strip, line.split(":", 1)) for line in text.splitlines() if ":" in line)
    return f"{said.get('model name', platform.processor())}, family {said.get('cpu family', '')}"


def run(name, env, seed):
    """-> a dict: the score of one run."""
    steps, make = ENVIRONMENTS[env]
    changes = dict(seed=seed, total_steps=steps, eval_every=0) | CANDIDATES.get(name, {})
    changes |= {} if make else {"env": env}
    config = ddpg.Config.preset(**changes) if name == "preset" else ddpg.Config(**changes)
    ddpg.tune(config)
    training, scores = ddpg.Training(config, make), []
    make_env = training.make_eval_env
    if name == "random":
        agent = Random(make_env().action_space)
        scores = [ddpg.evaluate(agent, make_env, range(20))[0].mean()]
    else:
        for _ in training:
            if training.step in (steps // 2, steps * 3 // 4, steps):
                scores.append(ddpg.evaluate(training.agent, make_env, range(20))[0].mean())
    score = dict(candidate=name, env=env, seed=seed, score=np.mean(scores), scores=scores)
    return score | dict(config=dataclasses.asdict(config), cpu=cpu(), torch=ddpg.VERSIONS["torch"])


def table(results):
    """Markdown: a row per environment, a column per candidate."""
    scores = defaultdict(lambda: defaultdict(list))
    for r in results:
        scores[r["candidate"]][r["env"]].append(r["score"])
    random = {env: values[0] for env, values in scores.pop("random").items()}
    best = {e: max(max(s[e]) for s in scores.values() if s[e]) for e in random}
    lines = ["| environment, steps | random | best | " + " | ".join(scores) + " |"]
    lines += ["|---" * (3 + len(scores)) + "|"]
    pooled = {name: [] for name in scores}
    for env in random:
        cells = [f"{env}, {ENVIRONMENTS[env][0]:,}", f"{random[env]:.5g}", f"{best[env]:.5g}"]
        for name, by_env in scores.items():
            values = [(s - random[env]) / (best[env] - random[env]) for s in by_env[env]]
            pooled[name] += values
            cells.append(" ".join(f"{v:.2f}" for v in values))
        lines.append("| " + " | ".join(cells) + " |")
    cells = []
    for values in map(sorted, pooled.values()):
        cut = len(values) // 4
        cells.append(f"{statistics.mean(values[cut : len(values) - cut]):.3f}")
    lines.append("| **IQM** | | | " + " | ".join(cells) + " |")
    cells = [f"{np.mean(np.clip(v, -1, 1)):.3f}" for v in pooled.values()]
    return "\n".join([*lines, "| mean, from -1 to 1 | | | " + " | ".join(cells) + " |"])


def main():
    layout = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(description=__doc__, **layout)
    add = parser.add_argument
    add("candidates", nargs="*", help=f"random, preset, {', '.join(CANDIDATES)}")
    add("--env", action="append", choices=ENVIRONMENTS, help="only this one; may be repeated")
    add("--seeds", type=int, default=3)
    add("--first-seed", type=int, default=0)
    add("--jobs", type=int, default=1, help="runs at a time")
    add("--write", help="append each result to this file, as a line of JSON")
    add("--table", nargs="+", help="print the table of these files")
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = []
    for seed, name in itertools.product(seeds, options.candidates):
        known = ddpg.PRESETS if name == "preset" else ENVIRONMENTS
        if name != "random" or seed == seeds[0]:
            jobs += [(name, env, seed) for env in options.env or ENVIRONMENTS if env in known]
    with ProcessPoolExecutor(options.jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        for future in [pool.submit(run, *job) for job in jobs]:
            line = json.dumps(future.result())
            print(line, flush=True)
            if options.write:
                with open(options.write, "a") as file:
                    file.write(line + "\n")
    if options.table:
        lines = [line for name in options.table for line in Path(name).read_text().splitlines()]
        print(table([json.loads(line) for line in lines]))


if __name__ == "__main__":
    main()
