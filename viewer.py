#!/usr/bin/env python3
"""Watch agents of ddpg.py: a video player whose timeline is the training run. H or F1 shows all keys.

    python viewer.py                                        the newest run under runs/
    python viewer.py runs/Pendulum-v1/ddpg-seed0            a run's folder, or a policy file; or drop one on the window
    python viewer.py my_policy.npz --env my_module:MyEnv-v0 in an environment of your own
    python viewer.py --headless --episodes 20 --json        no window: a line of JSON per episode, then a summary
    python viewer.py --png picture.png                      no window: the picture at the end of an episode
    python viewer.py --gif film.gif --tour 3                no window: an episode at the start, halfway and at the end

It only reads: it can follow a training that is still running. An episode is decided by policy and seed alone, drawn or
not and at any speed, since each is played in an environment made afresh, and the tape of its actions is all that
stepping back needs. From top to bottom: the run, the player, drawing, the window, without a window, command line.
"""

import argparse
import csv
import functools
import json
import os
import sys
import textwrap
import threading
import time
from collections import namedtuple
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import numpy as np
import pygame

ddpg = None  # imported by `import_ddpg` once the window is on screen: torch takes seconds to load


class Problem(Exception):
    """Something to tell the user: a notice in the window, or exit code 2."""


def import_ddpg():
    global ddpg
    import ddpg

    ddpg.torch.set_num_threads(1)  # a training may be running beside
    ddpg.gym.logger.min_level = ddpg.gym.logger.ERROR


@contextmanager
def blame(name):
    """Turn whatever an environment may raise into a Problem that names it."""
    try:
        yield
    except Exception as error:
        known = isinstance(error, (Problem, ddpg.UsageError))
        raise Problem(str(error) if known else f"{name} raised {type(error).__name__}: {error}") from error


# ---------------------------------------------------------------------------------------------------- the run


# What is on disk: policies as (step, path), by step; the best of them, or None; the evaluation curve as (step, mean)
Run = namedtuple("Run", "folder policies best curve")


def find(target):
    """A run's folder, a policy file, or None for the newest run -> the folder or None, the file or None."""
    if target is None:
        runs = [path.parent for path in Path("runs").glob("**/config.json")]
        if not runs:
            raise Problem("there is no run under runs/ yet. Train one first:\n  python ddpg.py --env Pendulum-v1")
        return max(runs, key=lambda run: run.stat().st_mtime), None  # writing a file in it also dates the folder
    path = Path(target)
    if path.is_dir():
        if not (path / "config.json").exists() and not list(path.glob("*.npz")):
            raise Problem(f"{path} is not the folder of a run")
        return path, None
    if not path.is_file():
        raise Problem(f"{path}: no such file or folder")
    homes = [folder for folder in path.resolve().parents[:2] if (folder / "config.json").exists()]
    return (homes or [None])[0], path


def step_of(path):
    """The training step of a policy file, or None if it cannot be read, as when it is being replaced."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return int(json.loads(str(file["meta"]))["step"])
    except Exception:
        return None


def read_run(folder, file=None):
    """The Run in a folder as it is now; `file` stands on its own where there is no folder."""
    if folder is None:
        return Run(None, [(step_of(file) or 0, file)], None, [])
    policies = sorted((int(path.stem), path) for path in folder.glob("policies/*.npz") if path.stem.isdigit())
    best, last = [(step_of(path), path) for path in (folder / "best.npz", folder / "last.npz")]
    for entry in last, best:
        if entry[0] is not None and (not policies or entry[0] > policies[-1][0]):
            policies.append(entry)
    curve = []
    try:
        with open(folder / "progress.csv", newline="") as table:
            curve = [(int(row["step"]), float(row["eval_mean"])) for row in csv.DictReader(table)]
    except (OSError, KeyError, TypeError, ValueError):
        pass  # none yet, or its last line is being written
    return Run(folder, policies, None if best[0] is None else best, curve)


# ---------------------------------------------------------------------------------------------------- the player


class Known:
    """What is known of an environment beyond its spaces: names, arrow keys, dead zones, a plane for the policy map."""

    def __init__(self, acts=(), obs=(), arrows=None, dead=(), plane=None):
        self.acts, self.obs, self.dead, self.plane = acts.split(), obs.split(), dead, plane
        self.arrows = arrows  # direction -> (action dimension, value in [-1, 1])


KNOWN = {
    "Pendulum": Known(
        "torque", "cos sin velocity", dict(left=(0, 1), right=(0, -1)),
        plane=("angle, velocity", (-np.pi, np.pi), (-8, 8),
               lambda x, y: [np.cos(x), np.sin(x), y], lambda obs: (np.arctan2(obs[:, 1], obs[:, 0]), obs[:, 2]))),
    "LunarLander": Known(
        "main side", "x y vx vy angle spin leg1 leg2", dict(up=(0, 1), left=(1, -1), right=(1, 1)),
        dead=((-1, 0), (-0.5, 0.5))),
    "MountainCarContinuous": Known(
        "force", "position velocity", dict(left=(0, -1), right=(0, 1)),
        plane=("position, velocity", (-1.2, 0.6), (-0.07, 0.07),
               lambda x, y: [x, y], lambda obs: (obs[:, 0], obs[:, 1]))),
    "BipedalWalker": Known(
        "hip1 knee1 hip2 knee2", "angle spin vx vy hip1 dhip1 knee1 dknee1 foot1 hip2 dhip2 knee2 dknee2 foot2 "
        + " ".join(f"lidar{i}" for i in range(10)), dict(left=(0, -1), right=(0, 1), down=(2, -1), up=(2, 1))),
}


def known(env_id, obs_dim, act_dim):
    """The Known of an environment, with plain numbered names where there is none."""
    default = Known(" ".join(f"a{i}" for i in range(act_dim)), " ".join(f"o{i}" for i in range(obs_dim)),
                    dict(left=(0, -1), right=(0, 1)) | (dict(down=(1, -1), up=(1, 1)) if act_dim > 1 else {}))
    found = next((value for name, value in KNOWN.items() if env_id.startswith(name)), default)
    return found if (len(found.acts), len(found.obs)) == (act_dim, obs_dim) else default


def push_body(env, x, y):
    """Change the velocity of the pendulum, car, lander or walker by a push to the right and upwards."""
    env = env.unwrapped
    body = getattr(env, "lander", None) or getattr(env, "hull", None)
    if body:
        body.linearVelocity += (0.5 * x, 0.5 * y)
    elif hasattr(env, "max_torque"):  # the pendulum, whose rod points to (-sin, cos)
        angle, velocity = env.state
        env.state[1] = np.clip(velocity - 0.8 * (x * np.cos(angle) + y * np.sin(angle)), -env.max_speed, env.max_speed)
    else:  # the car
        env.state[1] += 0.01 * x


class Player:
    """Plays episodes of one policy and can go back in them: environment, seed, tape of the actions, statistics.

    policy: from ddpg.load. env: the id to use instead of the policy's own. results: a list to add finished episodes to.
    """

    def __init__(self, policy, env=None, render=True, noisy=False, results=None):
        self.policy, self.noisy, self.results = policy, noisy, [] if results is None else results
        self.env_id = env or policy.meta["env"]
        spec = ddpg.gym.registry.get(self.env_id)
        if not env and not (spec and str(spec.entry_point).startswith("gymnasium.")):  # files must not run code
            raise Problem(f"{policy.meta['path']} is for {self.env_id}, which gymnasium does not bring:\n"
                          "name the environment yourself with --env")
        kwargs = {name: value for name, value in policy.config.env_kwargs.items() if name != "render_mode"}
        config = replace(policy.config, env=self.env_id, env_kwargs=kwargs)
        self.make_env, self.row = ddpg.env_makers(config)[1], None
        self.env = self.make_env()
        dims = [int(np.prod(space.shape)) for space in (self.env.observation_space, self.env.action_space)]
        if dims != [policy.obs_dim, len(policy.low)]:
            raise Problem(f"{policy.meta['path']} is for {policy.obs_dim} observations and {len(policy.low)} actions, "
                          f"but {self.env_id} has {dims[0]} and {dims[1]}")
        if render:
            if "rgb_array" not in (self.env.metadata.get("render_modes") or []):
                raise Problem(f"{self.env_id} cannot draw itself (no rgb_array): use --headless --json")
            self.make_env = ddpg.env_makers(replace(config, env_kwargs=kwargs | dict(render_mode="rgb_array")))[1]
        self.fps = self.env.metadata.get("render_fps") or 30
        self.limit = policy.config.max_episode_steps or (self.env.spec and self.env.spec.max_episode_steps) or 0
        self.known = known(self.env_id, *dims)
        self.can_push = self.known in KNOWN.values()

    def start(self, seed):
        """Begin the episode of a seed."""
        self.seed, self.tape, self.row = seed, [], None  # tape: (act in [-1, 1], push or None, assisted) per step
        theta, rng = self.policy.config.noise_theta, np.random.default_rng(seed)
        self.noise = ddpg.Noise(len(self.policy.low), theta, rng)
        self.seek(0)

    def seek(self, t):
        """Go to step t of the tape, from the start: an environment cannot be set back, but it can be repeated."""
        if self.row:
            self.results.remove(self.row)  # it will end again
        self.row, self.rewards, self.trail, self.values, self.picture = None, [], [], [], None
        with blame(self.env_id):
            if hasattr(self.env.unwrapped, "screen"):
                self.env.unwrapped.screen = None  # or closing it would close our window: it calls pygame.quit()
            self.env.close()
            self.env = self.make_env()  # made afresh, as reset does not undo everything everywhere
            self.episode = ddpg.Episode(self.env, self.seed)
        self.trail.append(self.episode.obs)
        while self.t < t:
            self.step()

    @property
    def t(self):
        return self.episode.length

    @property
    def over(self):
        return self.episode.over

    def step(self, act=None, push=None):
        """One step: by `act`, in [-1, 1], and where that is None or nan as on the tape, or as the policy says."""
        if act is not None or push is not None:
            del self.tape[self.t :]
        if self.t == len(self.tape):
            own = self.policy.policy(self.episode.obs)
            if self.noisy:
                own = np.clip(own + self.noise(self.policy.config.noise_sigma), -1, 1).astype(np.float32)
            mixed = own if act is None else np.where(np.isnan(act), own, act).astype(np.float32)
            self.tape.append((mixed, push, act is not None or push is not None))
        act, push, _ = self.tape[self.t]
        with blame(self.env_id):
            if push is not None:
                push_body(self.env, *push)
            rew, obs, terminated, truncated = self.episode.step(self.policy.to_env(act))
            self.age_particles(0.15)
        self.rewards.append(rew)
        self.trail.append(obs)
        if self.over:
            self.row = dict(
                policy=self.policy.meta["path"], train_step=self.policy.meta["step"], seed=self.seed,
                **{"return": self.episode.ret}, length=self.t, terminated=terminated, truncated=truncated,
                deterministic=not self.noisy, assisted=self.assisted)
            self.results.append(self.row)

    def age_particles(self, by):
        """The lander's exhaust ages by 0.15 when drawn, and would pile up in steps that are not: age it per step."""
        env = self.env.unwrapped
        if hasattr(env, "_clean_particles"):
            for particle in env.particles:
                particle.ttl -= by
            if by > 0:
                env._clean_particles(False)

    def frame(self):
        """The picture of the present step, (height, width, 3) uint8."""
        if self.picture is None or self.picture[0] != self.t:
            with blame(self.env_id):
                self.age_particles(-0.15)
                image = self.env.render()
                if not isinstance(image, np.ndarray) or image.ndim != 3:
                    raise Problem("it draws no picture")
                self.picture = self.t, np.ascontiguousarray(image[:, :, :3], np.uint8)
        return self.picture[1]

    @property
    def assisted(self):
        return any(helped for _, _, helped in self.tape[: self.t])

    def q(self, obs, act):
        """What the critic promises, in the environment's own rewards: the smallest of its values, as in the target."""
        with ddpg.torch.inference_mode():
            obs, act = (ddpg.torch.as_tensor(np.array(x), dtype=ddpg.torch.float32) for x in (obs, act))
            return (self.policy.critic(obs, act).amin(0)[:, 0] / self.policy.config.reward_scale).tolist()

    def predicted(self):
        """Q(s_t, a_t) of the steps so far, evaluated only when somebody looks."""
        if (known := len(self.values)) < self.t:
            self.values += self.q(self.trail[known : self.t], [act for act, *_ in self.tape[known : self.t]])
        return self.values

    def realised(self):
        """The discounted return from each step on, once the episode is over.

        A time limit ends the episode but not the world: the critic's value of the last state stands for the rest.
        """
        last = self.trail[-1:]
        tail = 0.0 if self.episode.terminated else self.q(last, self.policy.policy(np.array(last)))[0]
        returns = []
        for rew in reversed(self.rewards):
            tail = rew + self.policy.config.gamma * tail
            returns.append(tail)
        return returns[::-1]


def summary(results):
    """Statistics of the unassisted episodes, one dict for each policy."""
    groups = {}
    for row in results:
        if not row["assisted"]:
            key = tuple(row[name] for name in ("policy", "train_step", "deterministic"))
            groups.setdefault(key, []).append((row["return"], row["length"]))
    for (policy, step, deterministic), rows in groups.items():
        returns, lengths = np.array(rows).T
        yield dict(policy=policy, train_step=step, deterministic=deterministic, episodes=len(rows), mean=returns.mean(),
                   std=returns.std(), min=returns.min(), max=returns.max(), length=lengths.mean())


def summary_line(row):
    return ("{episodes} episodes: return {mean:.1f} ± {std:.1f} (min {min:.1f}, max {max:.1f}), length {length:.0f}, "
            "{policy} of step {train_step:,}, {}").format("deterministic" if row["deterministic"] else "noisy", **row)


# ---------------------------------------------------------------------------------------------------- drawing

BACK, FIELD, LINE = (30, 32, 35), (42, 45, 49), (78, 83, 89)
TEXT, DIM = (228, 229, 231), (158, 163, 170)
ORANGE, BLUE, YELLOW = (230, 159, 0), (86, 180, 233), (240, 228, 66)  # Okabe and Ito: distinct for colour-blind eyes


@functools.lru_cache(64)
def font(px):
    return pygame.font.Font(None, px)


@functools.lru_cache(1024)
def written(string, px, color, width):
    image = font(px).render(string, True, color)
    while width and image.get_width() > width and string:
        string = string[:-1]
        image = font(px).render(string.rstrip() + "..", True, color)
    return image


def text(surface, string, pos, px, color=TEXT, align=0.0, width=0):
    """Write a line; align 0, 0.5 or 1: pos is its left end, middle or right end. width: cut it to that -> its Rect."""
    image = written(string, px, color, max(0, int(width)))
    return surface.blit(image, (pos[0] - align * image.get_width(), pos[1]))


def panes(size, panel, px):
    """Where everything is in a window of this size -> dict of Rects; `panel` has no width where there is no room."""
    w, h = size
    title, bar, line = px + 8, px + 14, max(36, h // 8)
    side = int(np.clip(0.36 * w, 200, 620)) if panel and w >= 440 else 0
    body = h - title - bar - line
    return dict(
        title=pygame.Rect(0, 0, w, title), scene=pygame.Rect(0, title, w - side, body),
        panel=pygame.Rect(w - side, title, side, body), bar=pygame.Rect(0, title + body, w, bar),
        timeline=pygame.Rect(0, h - line, w, line))


def draw_scene(surface, rect, frame, caption, px, color=TEXT):
    """The environment's picture, as large as it fits, with a caption over it."""
    h, w = frame.shape[:2]
    scale = min(rect.w / w, rect.h / h)
    image = pygame.image.frombuffer(frame, (w, h), "RGB")
    place = pygame.Rect(0, 0, max(1, int(w * scale)), max(1, int(h * scale)))
    place.center = rect.center
    surface.blit(pygame.transform.smoothscale(image, place.size, canvas(place.size)), place)
    if caption:
        label = written(caption, px, color, place.w - 12)
        surface.fill(BACK, (*place.topleft, label.get_width() + 12, label.get_height() + 8))
        surface.blit(label, (place.x + 6, place.y + 4))


@functools.lru_cache(4)
def canvas(size):
    return pygame.Surface(size, 0, pygame.image.frombuffer(bytes(3), (1, 1), "RGB"))  # reused, in the same pixel format


def plot(surface, rect, curves, length, px):
    """Curves [(values, color, dashed)] over `length` steps, with their extremes written in where there is room."""
    surface.fill(FIELD, rect)
    everything = np.concatenate([values for values, *_ in curves])
    if not everything.size:
        return
    low, high = everything.min(), everything.max()
    room = rect.h > 2.6 * px
    inner = pygame.Rect(rect.x + 2, rect.y + 4, rect.w - 4 - 4 * px, rect.h - 8)
    y_of = lambda values: inner.bottom - (np.asarray(values) - low) / max(high - low, 1e-9) * inner.h
    if low < 0 < high:
        pygame.draw.line(surface, LINE, (inner.x, y_of(0)), (inner.right, y_of(0)))
    for values, color, dashed in curves:
        index = np.unique(np.linspace(0, len(values) - 1, min(len(values), inner.w)).astype(int))
        points = np.stack([inner.x + index / max(length - 1, 1) * inner.w, y_of(values)[index]], 1)
        for a, b in zip(points, points[1:]):
            if not dashed or (a[0] - inner.x) % 12 < 7:
                pygame.draw.line(surface, color, a, b, 2)
    if room:
        text(surface, f"{high:.3g}", (rect.right - 4, rect.y + 4), px - 3, DIM, 1)
        text(surface, f"{low:.3g}", (rect.right - 4, rect.bottom - px + 1), px - 3, DIM, 1)


def draw_gauge(surface, rect, value, dead, color):
    """An action in [-1, 1] as a bar from the middle, with the zone hatched in which it does nothing."""
    surface.fill(FIELD, rect)
    if dead:
        left, right = (rect.centerx + rect.w / 2 * edge for edge in dead)
        for x in range(int(left), int(right), 5):
            pygame.draw.line(surface, LINE, (x, rect.bottom - 1), (min(x + 4, right), rect.y))
    x = rect.centerx + rect.w / 2 * float(np.clip(value, -1, 1))
    surface.fill(color, (min(rect.centerx, x), rect.y + 3, max(2, abs(x - rect.centerx)), rect.h - 6))
    pygame.draw.line(surface, TEXT, (rect.centerx, rect.y), (rect.centerx, rect.bottom - 1))


@functools.lru_cache(8)
def policy_image(policy, plane):
    """The first action over a plane of states, orange for +1 and blue for -1, from one batched forward."""
    _, xs, ys, to_obs, _ = plane
    x, y = np.meshgrid(np.linspace(*xs, 96), np.linspace(*ys[::-1], 64), indexing="ij")
    act = policy.policy(np.stack(to_obs(x.ravel(), y.ravel()), 1))[:, 0].reshape(x.shape)[..., None]  # (96, 64, 1)
    field, ends = np.array(FIELD), np.where(act > 0, ORANGE, BLUE)
    return pygame.surfarray.make_surface((field + (ends - field) * np.abs(act)).astype(np.uint8))


def draw_map(surface, rect, player, px):
    """The policy map with the trail of the episode on it, and a ring for the present state."""
    _, xs, ys, _, to_plane = plane = player.known.plane
    surface.blit(pygame.transform.smoothscale(policy_image(player.policy, plane), rect.size), rect)
    x, y = to_plane(np.array(player.trail))
    x = rect.x + (x - xs[0]) / (xs[1] - xs[0]) * (rect.w - 1)
    y = rect.bottom - 1 - (y - ys[0]) / (ys[1] - ys[0]) * (rect.h - 1)
    points = np.stack([x, y], 1).tolist()
    for a, b in zip(points, points[1:]):
        if abs(a[0] - b[0]) < rect.w / 2:  # an angle that wraps around draws no line across
            pygame.draw.line(surface, BACK, a, b, 4)
            pygame.draw.line(surface, TEXT, a, b, 2)
    pygame.draw.circle(surface, BACK, points[-1], 7)
    pygame.draw.circle(surface, YELLOW, points[-1], 5)


def panel_parts(rect, known, px, with_map):
    """The panel's sections from top to bottom -> dict of Rects. The least wanted go where there is no room for all."""
    line, columns = px + 4, 2 if len(known.obs) < 9 else 3
    need = dict(head=2 * line, reward=2.5 * line, q=3.5 * line, act=line * (1 + len(known.acts)),
                obs=line * (1 - -len(known.obs) // columns), map=5 * line * bool(with_map and known.plane))
    for name in "map", "obs", "reward", "q", "act":
        if sum(need.values()) > rect.h - 12 or not need[name]:
            del need[name]
    stretch = {name: share for name, share in dict(reward=1, q=2, map=3).items() if name in need}
    spare, parts, y = max(0, rect.h - 12 - sum(need.values())), {}, rect.y + 6
    for name, height in need.items():
        height += spare * stretch.get(name, 0) // max(1, sum(stretch.values()))
        parts[name] = pygame.Rect(rect.x + 8, y, rect.w - 16, height - 6)
        y += height
    return parts


def draw_panel(surface, rect, player, number, px, with_map):
    """Return, reward, critic, action, observation and policy map of a player -> the Rects of the action gauges."""
    parts, line, t, acts = panel_parts(rect, player.known, px, with_map), px + 4, player.t, len(player.known.acts)
    length = player.limit if 0 < player.limit <= 400 else max(100, t)  # steps that the plots have room for
    act, _, helped = player.tape[t - 1] if t else (np.zeros(acts), None, False)
    gauges = []

    def head(part, *pieces):
        """A section's first line, [(text, color)] from left to right -> the rest of its Rect."""
        for (string, color), align in zip(pieces, (0, 0.6, 1) if len(pieces) > 2 else (0, 1)):
            text(surface, string, (part.x + align * part.w, part.y), px, color, align, part.w)
        return pygame.Rect(part.x, part.y + line - 2, part.w, part.h - line + 2)

    for name, part in parts.items():
        if name == "head":
            text(surface, f"{player.episode.ret:.1f}", part.topleft, 2 * px)
            text(surface, f"episode {number}", part.topright, px, DIM, 1)
            place = f"step {t}" + f"/{player.limit}" * bool(player.limit)
            text(surface, "assisted   " * player.assisted + place, (part.right, part.y + line), px,
                 YELLOW if player.assisted else DIM, 1)
        elif name == "reward":
            rest = head(part, ("reward", DIM), (f"{player.rewards[-1]:+.3f}" if t else "", TEXT))
            plot(surface, rest, [(player.rewards, BLUE, False)], length, px)
        elif name == "q":
            curves = [(player.predicted(), ORANGE, False)] + [(player.realised(), BLUE, True)] * player.over
            rest = head(part, ("critic's Q", ORANGE), ("realised, dashed" if player.over else "", BLUE),
                        (f"{curves[0][0][-1]:.1f}" if t else "", ORANGE))
            plot(surface, rest, curves, length, px)
        elif name == "act":
            rest = head(part, ("action", DIM), ("yours" if helped else "", YELLOW))
            units = player.policy.to_env(act)
            for i, title in enumerate(player.known.acts):
                y = rest.y + i * line
                text(surface, title, (rest.x, y + 2), px, TEXT, 0, 5 * px - 4)
                text(surface, f"{units[i]:+.2f}", (rest.right, y + 2), px, TEXT, 1)
                gauges.append(pygame.Rect(rest.x + 5 * px, y, rest.w - 9 * px, px + 1))
                draw_gauge(surface, gauges[-1], act[i], player.known.dead[i] if player.known.dead else None,
                           YELLOW if helped else ORANGE if act[i] > 0 else BLUE)
        elif name == "obs":
            rest = head(part, ("observation", DIM))
            rows = rest.h // line + 1
            width = rest.w / -(-len(player.known.obs) // rows)
            for i, title in enumerate(player.known.obs):
                x, y = rest.x + i // rows * width, rest.y + i % rows * line
                value = text(surface, f"{player.trail[-1][i]:+.2f}", (x + width - 14, y), px, TEXT, 1)
                text(surface, title, (x, y), px, DIM, 0, width - 20 - value.w)
        else:
            rest = head(part, (f"policy over {player.known.plane[0]}", DIM), ("+", ORANGE), ("-", BLUE))
            draw_map(surface, rest, player, px)
    return gauges


def timeline_x(rect, run, step):
    return rect.x + 14 + step / max(1, run.policies[-1][0], *(s for s, _ in run.curve)) * (rect.w - 28)


def draw_timeline(surface, rect, run, current, follow, px):
    """The evaluation curve of the run over its policies: the one flying as a ring, the best one as B."""
    surface.fill(FIELD, rect)
    base = rect.bottom - 10
    pygame.draw.line(surface, LINE, (rect.x + 14, base), (rect.right - 14, base))
    for step, _ in run.policies:
        x = timeline_x(rect, run, step)
        pygame.draw.line(surface, DIM, (x, base - 4), (x, base + 4))
    if len(run.curve) > 1:
        steps, means = np.array(run.curve).T
        y = base - 8 - (means - means.min()) / max(np.ptp(means), 1e-9) * (rect.h - 26)
        pygame.draw.lines(surface, BLUE, False, [(timeline_x(rect, run, s), v) for s, v in zip(steps, y)], 2)
    if run.best:
        text(surface, "B", (timeline_x(rect, run, run.best[0]), base - 6 - px), px, YELLOW, 0.5)
    pygame.draw.circle(surface, ORANGE, (timeline_x(rect, run, current), base), px // 3 + 1, 3)
    if follow:
        text(surface, "LIVE", (rect.right - 14, rect.y + 4), px, ORANGE, 1)


def draw_help(surface, px):
    """The key table in as large a type as fits, over the dimmed picture -> [(Rect, action)]: its rows are buttons."""
    w, h = surface.get_size()
    surface.blit(shade((w, h)), (0, 0))
    rows, hits = [(label, meaning, action) for label, _, _, action, _, meaning in KEYS], []
    for size, columns in ((size, columns) for size in range(px + 8, 8, -1) for columns in (1, 2, 3)):
        per = -(-len(rows) // columns)
        key_w = max(font(size).size(label)[0] for label, *_ in rows) + size // 2
        col_w = key_w + max(font(size).size(meaning)[0] for _, meaning, _ in rows) + 2 * size
        if col_w * columns <= w and (per + 1) * (size + 3) <= h:
            break
    x0, y0 = (w - col_w * columns) // 2 + size, max(2, (h - per * (size + 3)) // 2)
    for i, (label, meaning, action) in enumerate(rows):
        x, y = x0 + i // per * col_w, y0 + i % per * (size + 3)
        text(surface, label, (x, y), size, YELLOW)
        text(surface, meaning, (x + key_w, y), size)
        if action:
            hits.append((pygame.Rect(x, y, col_w - size, size + 3), action))
    return hits


@functools.lru_cache(2)
def shade(size):
    image = pygame.Surface(size)
    image.fill((16, 17, 19))
    image.set_alpha(235)
    return image


class Gif:
    """Frames of a GIF, reduced to few colours: 50 ms a step, or 40 ms for every second one of 50 steps a second."""

    def __init__(self, path, fps):
        try:
            from PIL import Image
        except ImportError:
            raise Problem("a GIF needs Pillow: python -m pip install pillow") from None
        self.image, self.path, self.frames, self.durations, self.last = Image, Path(path), [], [], None
        self.stride, self.duration = (1, 50) if fps < 40 else (round(fps / 25), 40)

    def add(self, surface, player):
        """Add the picture of the player's present step, unless it has been or is to be skipped; the last one stays."""
        now = id(player.tape), player.t
        if now != self.last and (player.t % self.stride == 0 or player.over):
            size = 640, 640 * surface.get_height() // surface.get_width()
            data = pygame.image.tobytes(pygame.transform.smoothscale(surface, size), "RGB")
            frame = self.image.frombytes("RGB", size, data)
            if not self.frames:  # one palette for all, so that little changes: the first picture's colours and others
                self.palette = self.image.new("P", (1, 1))
                cube = [85 * i for rgb in np.ndindex(4, 4, 4) for i in rgb]
                self.palette.putpalette(frame.quantize(128).getpalette()[:384] + cube)
            self.frames.append(frame.quantize(palette=self.palette, dither=0))
            self.durations.append(1500 if player.over else self.duration)
            self.last = now

    def save(self):
        if not self.frames:
            raise Problem("nothing was recorded")
        self.frames[0].save(self.path, save_all=True, append_images=self.frames[1:], duration=self.durations, loop=0)


def draw_notice(surface, rect, notice, px):
    lines = [part for line in notice.splitlines() for part in textwrap.wrap(line, int(rect.w / px / 0.6))][:5]
    images = [written(line, px, TEXT, rect.w - 24) for line in lines]
    box = pygame.Rect(0, 0, max(image.get_width() for image in images) + 24, len(lines) * (px + 4) + 14)
    box.midbottom = rect.centerx, rect.bottom - 8
    pygame.draw.rect(surface, BACK, box, 0, 6)
    pygame.draw.rect(surface, YELLOW, box, 1, 6)
    for i, image in enumerate(images):
        surface.blit(image, (box.x + 12, box.y + 8 + i * (px + 4)))


# ---------------------------------------------------------------------------------------------------- the window

KEYS = [  # as shown, key codes, typed characters (which no keyboard layout hides), action, button, meaning
    ("Space", [pygame.K_SPACE], "", ("toggle", "paused"), "Pause", "pause or go on"),
    (", or Left", [pygame.K_COMMA], ",", ("back",), "<", "one step back"),
    (". or Right", [pygame.K_PERIOD], ".", ("forward",), ">", "one step forward"),
    ("arrows held", [], "", None, "", "fly it (or drag a gauge)"),
    ("drag", [], "", None, "", "push it"),
    ("R Backspace", [pygame.K_BACKSPACE], "rR", ("again",), "Again", "same episode again"),
    ("N Enter", [pygame.K_RETURN, pygame.K_KP_ENTER], "nN", ("new_seed",), "New", "next seed"),
    ("L", [], "lL", ("toggle", "locked"), "Lock", "lock the seed"),
    ("-", [pygame.K_KP_MINUS], "-", ("change_speed", -1), "-", "slower (to 1/8x)"),
    ("+", [pygame.K_KP_PLUS], "+=", ("change_speed", 1), "+", "faster (to 16x, max)"),
    ("0", [pygame.K_KP0], "0", ("change_speed", 0), "", "speed 1x"),
    ("PgUp [", [pygame.K_PAGEUP], "[", ("choose", "previous"), "", "previous snapshot"),
    ("PgDn ]", [pygame.K_PAGEDOWN], "]", ("choose", "next"), "", "next snapshot"),
    ("Home", [pygame.K_HOME], "", ("choose", "first"), "First", "untrained agent"),
    ("End", [pygame.K_END], "", ("choose", "newest"), "Live", "newest, and follow it"),
    ("B", [], "bB", ("choose", "best"), "Best", "best policy"),
    ("D", [], "dD", ("noise",), "Noise", "deterministic or noisy"),
    ("C", [], "cC", ("pin",), "Compare", "pin for comparison"),
    ("Tab", [pygame.K_TAB], "", ("toggle", "show_panel"), "", "panel"),
    ("M", [], "mM", ("toggle", "show_map"), "", "policy map"),
    ("S", [], "sS", ("png",), "", "save a picture"),
    ("G", [], "gG", ("gif",), "", "record GIF, save it"),
    ("F", [], "fF", ("full_screen",), "", "full screen"),
    ("H ? F1", [pygame.K_F1], "hH?", ("toggle", "show_help"), "Help", "help"),
    ("Q Esc", [pygame.K_ESCAPE], "qQ", ("quit",), "", "quit"),
]
ACTION_OF = {key: action for _, codes, typed, action, *_ in KEYS for key in [*codes, *typed]}
ARROWS = {pygame.K_LEFT: "left", pygame.K_RIGHT: "right", pygame.K_UP: "up", pygame.K_DOWN: "down"}
SPEEDS = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, np.inf]


class Window:
    """The players on a surface: `handle` an event, `update` by the seconds passed, `draw`; `loop` does all that."""

    def __init__(self, surface, options):
        self.surface, self.options = surface, options
        self.run = self.player = self.pinned = self.film = None
        self.results, self.seed, self.number, self.noisy = [], options.seed, 0, options.noisy
        self.paused = self.locked = self.follow = self.show_help = False
        self.show_panel = self.show_map = self.alive = self.dirty = True  # dirty: the picture is no longer true
        self.speed, self.owed, self.hold, self.poll_in = 1, 0.0, 0.0, 0.0  # steps due; seconds
        self.measured, self.count, self.seconds = None, 0, 0.0  # the real factor of speed, over the last second
        self.held, self.mouse, self.anchor, self.grip = set(), (0, 0), None, None  # keys down, and what the mouse holds
        self.notice, self.notice_for, self.buttons, self.gauges = "", 0.0, [], []
        self.stamps = []  # of the run's files when they were last read

    @property
    def players(self):
        return [player for player in (self.player, self.pinned) if player]

    def say(self, message, seconds=5.0):
        self.notice, self.notice_for, self.dirty = str(message), seconds, True

    def attempt(self, act, *arguments):
        """Whatever goes wrong is a notice, and what was flying flies on."""
        try:
            act(*arguments)
        except Exception as error:
            self.say(error if isinstance(error, (Problem, ddpg.UsageError)) else f"{type(error).__name__}: {error}")

    def open(self, target):
        """Show a run or a policy. A run that was written to within the last minute is followed, else its best shown."""
        folder, file = find(target)
        run = read_run(folder, file)
        if not run.policies and not self.options.live:
            raise Problem(f"{folder} has no policies yet")
        newest = run.policies[-1] if run.policies else None
        live = not file and (self.options.live or time.time() - newest[1].stat().st_mtime < 60)
        if newest:
            self.show((0, file) if file else newest if live else run.best or newest)
        self.run, self.follow = run, live
        self.say(f"{file or folder}" if newest else f"{folder}: waiting for the first policy")

    def show(self, entry):
        """Replay the same episode with another policy, (step, path)."""
        player = Player(ddpg.load(entry[1]), self.options.env, True, self.noisy, self.results)
        player.start(self.seed)
        self.player = player
        if self.pinned and self.pinned.env_id != player.env_id:
            self.pinned = None
        if self.pinned:
            self.pinned.start(self.seed)
        self.begin()

    def begin(self):
        self.number, self.hold, self.owed, self.dirty = self.number + 1, 0.0, 0.0, True

    # ---- what the key table does

    def toggle(self, name):
        setattr(self, name, not getattr(self, name))

    def forward(self):
        self.paused = True
        self.step()

    def back(self):
        self.paused = True
        t = max(0, max(player.t for player in self.players) - 1)
        for player in self.players:
            player.seek(min(player.t, t))

    def again(self):
        for player in self.players:
            player.start(self.seed)
        self.begin()

    def new_seed(self):
        self.seed += 1
        self.again()

    def change_speed(self, by):
        self.speed = SPEEDS[int(np.clip(SPEEDS.index(self.speed) + by, 0, len(SPEEDS) - 1))] if by else 1
        self.measured, self.count, self.seconds, self.owed = None, 0, 0.0, 0.0

    def choose(self, which):
        """A policy by the user's choice, which ends following, unless it is the newest."""
        now, policies = self.player.policy.meta["step"], self.run.policies
        entry = dict(first=policies[0], newest=policies[-1], best=self.run.best,
                     previous=max((e for e in policies if e[0] < now), default=None),
                     next=min((e for e in policies if e[0] > now), default=None))[which]
        if entry:
            self.show(entry)
            self.follow = which == "newest"
        elif which == "best":
            raise Problem("no best policy: this run has not been evaluated")

    def noise(self):
        self.noisy = not self.noisy
        for player in self.players:
            player.noisy = self.noisy
        self.again()

    def pin(self):
        if self.pinned:
            self.pinned = None
        else:
            self.pinned = Player(self.player.policy, self.options.env, True, self.noisy, self.results)
            self.again()
            self.say(f"step {self.player.policy.meta['step']:,} is pinned: now choose another")

    def file_name(self, kind):
        name = self.player.env_id.split(":")[-1].replace("/", "-")
        return f"{name}-step{self.player.policy.meta['step']}-seed{self.seed}.{kind}"

    def png(self):
        self.notice_for = 0
        self.draw()
        pygame.image.save(self.surface, self.file_name("png"))
        self.say(f"saved {self.file_name('png')}")

    def gif(self):
        if self.film:
            film, self.film = self.film, None
            film.save()
            self.say(f"saved {film.path}, {len(film.frames)} frames")
        else:
            self.film = Gif(self.file_name("gif"), self.player.fps)

    def full_screen(self):
        if self.surface is pygame.display.get_surface():
            full = self.surface.get_flags() & pygame.FULLSCREEN
            size, flags = (self.options.size, pygame.RESIZABLE) if full else ((0, 0), pygame.FULLSCREEN)
            self.surface = pygame.display.set_mode(size, flags)

    def quit(self):
        self.alive, self.show_help = self.show_help, False  # from the help, back to the picture

    # ---- events

    def handle(self, event):
        """What a key, the mouse or the window system asks for."""
        self.dirty = self.dirty or event.type != pygame.MOUSEMOTION
        if event.type == pygame.QUIT:
            self.alive = False
        elif event.type == pygame.KEYDOWN:
            repeated = event.key in self.held
            self.held.add(event.key)
            action = ACTION_OF.get(event.unicode) or ACTION_OF.get(event.key)
            if self.paused and event.key in (pygame.K_LEFT, pygame.K_RIGHT):
                action = ("back",) if event.key == pygame.K_LEFT else ("forward",)
            if action and (not repeated or action[0] in ("back", "forward", "change_speed", "choose")):
                self.do(*action)
        elif event.type == pygame.KEYUP:
            self.held.discard(event.key)
        elif event.type == pygame.WINDOWFOCUSLOST:
            self.held.clear()  # their release goes elsewhere
        elif event.type == pygame.DROPFILE:
            self.open(event.file)
        elif event.type == pygame.MOUSEBUTTONDOWN and event.button == 1:
            self.press(event.pos)
        elif event.type == pygame.MOUSEBUTTONUP and event.button == 1:
            self.anchor = self.grip = None
        elif event.type == pygame.MOUSEMOTION:
            self.drag(event.pos)

    def do(self, name, *arguments):
        if self.player or name in ("quit", "full_screen"):
            getattr(self, name)(*arguments)

    def press(self, pos):
        where, self.mouse = self.panes(), pos
        if action := next((action for box, action in self.buttons if box.collidepoint(pos)), None):
            self.do(*action)
        elif self.show_help or not self.player:
            self.show_help = False
        elif where["timeline"].collidepoint(pos):
            self.grip = "timeline"
            self.drag(pos)
        elif where["scene"].collidepoint(pos):
            if not self.player.can_push:
                raise Problem("nobody has taught me how to push in this environment")
            self.anchor = pos
        else:
            self.grip = next((i for i, gauge in enumerate(self.gauges) if gauge.collidepoint(pos)), None)

    def drag(self, pos):
        self.mouse, self.dirty = pos, self.dirty or bool(self.anchor)
        if self.grip == "timeline":
            x = functools.partial(timeline_x, self.panes()["timeline"], self.run)
            entry = min(self.run.policies, key=lambda entry: abs(x(entry[0]) - pos[0]))
            if entry[0] != self.player.policy.meta["step"]:
                self.follow = False
                self.show(entry)

    def touch(self):
        """What the user does to it now -> act in [-1, 1], nan where the policy decides, or None; push, or None."""
        act, push, arrows = np.full(len(self.player.known.acts), np.nan), None, self.player.known.arrows
        if held := {ARROWS[key] for key in self.held if key in ARROWS} & set(arrows):
            act[[dim for dim, _ in arrows.values()]] = 0
            for dim, value in (arrows[direction] for direction in held):
                act[dim] = value
        if isinstance(self.grip, int) and self.grip < len(self.gauges):
            gauge = self.gauges[self.grip]
            act[self.grip] = np.clip((self.mouse[0] - gauge.centerx) / gauge.w * 2, -1, 1)
        if self.anchor and self.mouse != self.anchor:
            half = self.panes()["scene"].h / 2
            push = (self.mouse[0] - self.anchor[0]) / half, (self.anchor[1] - self.mouse[1]) / half
        return None if np.isnan(act).all() else act, push

    # ---- time

    def step(self):
        """One step of both, in lock-step; where one has ended, the other flies on."""
        touch = (None, None) if self.paused else self.touch()
        for player in self.players:
            if not player.over:
                player.step(*touch)
        self.dirty = True

    def update(self, dt):
        """Let `dt` seconds pass: for notices, for news from the training, and in the environment."""
        self.dirty = self.dirty or 0 < self.notice_for <= dt
        self.notice_for, self.poll_in = self.notice_for - dt, self.poll_in - dt
        if self.poll_in <= 0:
            self.poll_in = 0.5
            self.poll()
        if self.paused or self.show_help or not self.player:
            return
        try:
            if not all(player.over for player in self.players):
                self.play(dt)
            elif self.hold < 1.5 / max(1, min(self.speed, 100)):
                self.hold += dt
            else:
                self.next_episode()
        except Exception:
            self.paused = True  # what raised would raise again
            raise

    def play(self, dt):
        """As many steps as are due at this speed, but never so many that the window stops answering."""
        began = time.perf_counter()
        self.owed += min(dt, 0.25) * self.player.fps * self.speed
        while self.owed >= 1 and not all(player.over for player in self.players):
            self.step()
            self.owed, self.count = self.owed - 1, self.count + 1
            if time.perf_counter() - began > (0.012 if self.speed == np.inf else 0.03):
                self.owed = 0.0
        self.seconds += dt
        if self.seconds >= 1:
            self.measured, self.count, self.seconds = self.count / self.seconds / self.player.fps, 0, 0.0

    def next_episode(self):
        self.seed += not self.locked
        newest = self.run.policies[-1]
        if self.follow and newest[0] != self.player.policy.meta["step"]:
            self.attempt(self.show, newest)
        if all(player.over for player in self.players):  # there was no newer one, or it could not be loaded
            self.again()

    def poll(self):
        """See whether the training has written something new."""
        folder = self.run and self.run.folder
        watched = (folder, folder / "policies", folder / "progress.csv") if folder else ()
        stamps = [path.stat().st_mtime_ns for path in watched if path.exists()]
        if stamps == self.stamps:
            return
        self.stamps, run = stamps, read_run(folder)
        if run == self.run or not run.policies:  # none: not yet, or the folder is gone
            return
        before, self.run, self.dirty = self.run, run, True
        if not self.player:
            self.show(run.policies[-1])
        elif run.policies[-1][0] > before.policies[-1][0]:
            self.say(f"new: step {run.policies[-1][0]:,}" + ", loads at the next episode" * self.follow, 3.0)

    # ---- picture

    @property
    def px(self):
        w, h = self.surface.get_size()
        return int(np.clip(min(h / 32, w / 46), 14, 34))

    def panes(self):
        return panes(self.surface.get_size(), self.show_panel, self.px)

    def draw(self):
        """The whole picture, from the present state and size."""
        where, self.buttons, self.gauges, self.dirty = self.panes(), [], [], False
        self.surface.fill(BACK)
        if self.player:
            self.draw_title(where["title"])
            self.attempt(self.draw_scenes, where["scene"])
            if where["panel"].w:
                self.gauges = draw_panel(self.surface, where["panel"], self.player, self.number, self.px, self.show_map)
            step = self.player.policy.meta["step"]
            draw_timeline(self.surface, where["timeline"], self.run, step, self.follow, self.px)
            self.draw_bar(where["bar"])
        if self.show_help:
            self.buttons = draw_help(self.surface, self.px)
        if self.notice_for > 0:
            draw_notice(self.surface, where["scene"], self.notice, self.px)
        if self.film:
            self.film.add(self.surface, self.player)
            text(self.surface, "REC", (where["scene"].right - 10, where["scene"].y + 8), self.px + 4, ORANGE, 1)

    def draw_title(self, rect):
        meta, px = self.player.policy.meta, self.px
        title = f"{self.player.env_id}   {self.player.policy.config.algo}   step {meta['step']:,}"
        title += "" if meta.get("evaluation") is None else f"   eval {meta['evaluation']:.1f}"
        same = dict(policy=meta["path"], train_step=meta["step"], deterministic=not self.noisy, assisted=False)
        recent = [row["return"] for row in self.results[-100:] if same.items() <= row.items()][-10:]
        wide = recent and rect.w > 40 * px
        right = f"last {len(recent)}: {np.mean(recent):.1f} ± {np.std(recent):.1f}" if wide else ""
        used = text(self.surface, right, (rect.right - 8, rect.y + 5), px, DIM, 1).w
        text(self.surface, title, (8, rect.y + 5), px, TEXT, 0, rect.w - used - 24)
        if self.surface is pygame.display.get_surface() and pygame.display.get_caption()[0] != title:
            pygame.display.set_caption(title)

    def draw_scenes(self, rect):
        """One scene, or two: side by side or one above the other, whichever shows them larger."""
        players = self.players
        h, w = self.player.frame().shape[:2]
        beside = min(rect.w / 2 / w, rect.h / h) >= min(rect.w / w, rect.h / 2 / h)
        n = len(players)
        part = pygame.Rect(rect.topleft, (rect.w // n, rect.h) if beside else (rect.w, rect.h // n))
        for i, player in enumerate(players):
            caption = f"{player.episode.ret:.1f}" if self.pinned or not self.panes()["panel"].w else ""
            caption += f"   step {player.policy.meta['step']:,}" * bool(self.pinned) + "   pinned" * i
            color = (ORANGE, BLUE)[i] if self.pinned else TEXT
            draw_scene(self.surface, part.inflate(-4, -4), player.frame(), caption, self.px + 4, color)
            part = part.move(part.w * beside, part.h * (not beside))
        if self.anchor:
            pygame.draw.line(self.surface, YELLOW, self.anchor, self.mouse, 3)
            pygame.draw.circle(self.surface, YELLOW, self.mouse, 6)

    def draw_bar(self, rect):
        """The state of playing, and on its right as many buttons as there is room for."""
        px, y = self.px, rect.y + 7
        speed = "max" if self.speed == np.inf else f"{self.speed}x" if self.speed >= 1 else f"1/{1 / self.speed:.0f}x"
        speed += "" if self.measured is None or self.paused else f" ({self.measured:.1f}x)"
        state = ["paused"] * self.paused + [speed, "noisy" if self.noisy else "deterministic"]
        state = "   ".join([*state, f"seed {self.seed}" + " locked" * self.locked])
        left = text(self.surface, state, (8, y), px, YELLOW if self.paused else TEXT, 0, rect.w * 0.6).right
        named = [(name, action, font(px).size(name)[0] + px) for *_, action, name, _ in KEYS if name]
        while sum(width for *_, width in named) > rect.right - left - px - 4:
            named.pop(-2)  # Help stays
        right = rect.right - sum(width for *_, width in named)
        active = {("noise",): self.noisy, ("pin",): self.pinned, ("choose", "newest"): self.follow}
        for name, action, width in named:
            box = pygame.Rect(right, rect.y + 3, width - 4, rect.h - 6)
            on = active.get(action) or action[0] == "toggle" and getattr(self, action[1])
            pygame.draw.rect(self.surface, FIELD, box, 0, 4)
            text(self.surface, name, (box.centerx, y), px, YELLOW if on else TEXT, 0.5)
            self.buttons.append((box, action))
            right += width

    def loop(self):
        """Handle, update, draw, 60 times a second; when nothing moves, 25 times without drawing."""
        clock, last = pygame.time.Clock(), time.perf_counter()
        pygame.key.set_repeat(350, 50)
        while self.alive:
            idle = (self.paused or self.show_help or not self.player) and not self.dirty
            for event in pygame.event.get():
                self.attempt(self.handle, event)
            now = time.perf_counter()
            self.attempt(self.update, now - last)
            last, self.surface = now, pygame.display.get_surface()
            if self.dirty:
                self.attempt(self.draw)
                pygame.display.flip()
            if idle:
                time.sleep(0.04)  # event.wait would look a thousand times a second
            else:
                clock.tick(60)


def open_display(size):
    """A window on the screen. Without a screen SDL would open one that nobody sees: that is refused."""
    try:
        pygame.display.init()
        pygame.font.init()
        if pygame.display.get_driver() in ("offscreen", "dummy") and not os.environ.get("SDL_VIDEODRIVER"):
            raise pygame.error("no screen found")
        surface = pygame.display.set_mode(size, pygame.RESIZABLE)
    except pygame.error as error:
        raise Problem(f"cannot open a window: {error}\nwithout one: --headless, --png FILE or --gif FILE") from None
    pygame.display.set_caption("viewer.py")
    return surface


def watch(options):
    """The window: on the screen at once, loading torch behind it."""
    folder, file = find(options.run)
    surface, failed = open_display(options.size), []

    def load():
        try:
            import_ddpg()
        except Exception as error:
            failed.append(error)

    loader, window = threading.Thread(target=load, daemon=True), Window(surface, options)
    print(f"viewer.py: {file or folder}", flush=True)
    loader.start()
    while loader.is_alive() and window.alive:
        window.alive = all(event.type != pygame.QUIT for event in pygame.event.get())
        surface = window.surface = pygame.display.get_surface()
        surface.fill(BACK)
        text(surface, f"opening {file or folder} ..", surface.get_rect().center, window.px, DIM, 0.5)
        pygame.display.flip()
        loader.join(0.03)
    if not window.alive:
        pygame.display.quit()
    loader.join()  # an import must not be torn off
    if failed:
        raise Problem(f"cannot import ddpg.py: {failed[0]}")
    try:
        if window.alive:
            window.open(file or folder)
            window.loop()
    finally:
        if window.film:
            window.attempt(window.gif)
        lines = [summary_line(row) for row in summary(window.results)]
        print("\n".join(lines or ["no episode was flown to its end without help"]))


# ---------------------------------------------------------------------------------------------------- without a window


def headless(options):
    """Play episodes as fast as they go: print them, and draw them where a picture or a film is asked for."""
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    folder, file = find(options.run)
    import_ddpg()
    run, drawn, film, results = read_run(folder, file), options.png or options.gif, None, []
    if not run.policies:
        raise Problem(f"{folder} has no policies yet")
    entries = [(step_of(file), file) if file else run.best or run.policies[-1]]
    if options.tour is not None:
        index = np.linspace(0, len(run.policies) - 1, options.tour or len(run.policies)).round().astype(int)
        entries = [run.policies[i] for i in sorted(set(index))]
    if drawn:
        pygame.font.init()
        window = Window(pygame.Surface(options.size), options)
        window.run, window.results, window.noisy = run, results, options.noisy
    for _, path in entries:
        player = Player(ddpg.load(path), options.env, bool(drawn), options.noisy, results)
        for number in range(options.episodes):
            player.start(options.seed + number)
            if drawn:
                window.player, window.seed, window.number = player, player.seed, number + 1
            if options.gif:
                film = window.film = film or Gif(options.gif, player.fps)
                window.draw()
            while not player.over:
                player.step()
                if options.gif and (player.t % film.stride == 0 or player.over):
                    window.draw()
            line = "step {train_step:,}, seed {seed}: return {return:.1f}, length {length}".format(**player.row)
            print(json.dumps(player.row) if options.json else line)
    try:
        if options.png:
            window.film = None
            window.draw()
            pygame.image.save(window.surface, options.png)
        if film:
            film.save()
    except (OSError, pygame.error) as error:
        raise Problem(f"cannot save: {error}") from None
    for row in summary(results):
        print(json.dumps({"summary": True} | row) if options.json else summary_line(row))


# ---------------------------------------------------------------------------------------------------- command line


def parse(argv):
    def size(string):
        w, h = map(int, string.split("x"))
        return min(max(w, 160), 7680), min(max(h, 120), 4320)

    def refuse(message):
        raise Problem(f"{message}; --help lists all flags")

    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error, add = refuse, parser.add_argument
    add("run", nargs="?", help="a run's folder or a policy file (default: the newest run under runs/)")
    add("--env", metavar="ID", help="fly in this environment: a gymnasium id, or module:Id")
    add("--seed", type=int, default=0, help="the first episode's seed; the next ones follow (default 0)")
    add("--live", action="store_true", help="follow the newest policy of a training from the start")
    add("--noisy", action="store_true", help="with the exploration noise of the training")
    add("--size", type=size, default=(1000, 640), metavar="WxH", help="of the window or picture (default 1000x640)")
    add("--headless", action="store_true", help="no window: play and print")
    add("--episodes", type=int, metavar="N", help="episodes without a window (default 20; in tours and films 1)")
    add("--json", action="store_true", help="without a window: lines of JSON")
    add("--png", metavar="FILE", help="save the picture at the end of the last episode")
    add("--gif", metavar="FILE", help="save a film of the episodes")
    add("--tour", type=int, nargs="?", const=0, metavar="N", help="an episode per snapshot, or for N of them")
    options = parser.parse_args(argv)
    pictures = options.png or options.gif or options.tour is not None
    options.headless = options.headless or bool(pictures or options.json)
    options.episodes = options.episodes or (1 if pictures else 20)
    if options.seed < 0 or options.episodes < 1 or (options.tour or 0) < 0:
        refuse("--seed and --tour must not be negative, --episodes must be at least 1")
    return options


def main(argv=None):
    """The command line -> its exit code: 0, 2 for what was refused, 130 for Ctrl-C."""
    try:
        options = parse(argv)
        if ":" in (options.env or ""):
            sys.path.append(os.getcwd())  # where the user's module is
        (headless if options.headless else watch)(options)
        return 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not isinstance(error, (Problem, *([ddpg.UsageError] if ddpg else []))):
            raise
        print("\n".join(f"viewer.py: {error}".splitlines()[:3]), file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
