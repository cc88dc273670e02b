#!/usr/bin/env python3
"""Watch agents of ddpg.py: a video player whose timeline is the training run. H or F1: all keys.

    python viewer.py                                        the newest run under runs/
    python viewer.py runs/Pendulum-v1/ddpg-seed0            a run's folder, or a policy file
    python viewer.py my_policy.npz --env my_module:MyEnv-v0 in an environment of your own
    python viewer.py --headless --episodes 20 --json        no window: JSON lines and a summary
    python viewer.py --png picture.png                      no window: an episode's last picture
    python viewer.py --gif film.gif --tour 3                no window: untrained, halfway, trained

Other runs and policy files can be dropped on the window. It only reads: it can follow a training
that is still running. An episode is decided by policy and seed alone, drawn or not and at any
speed, since each is played in an environment made afresh, and the tape of its actions is all that
stepping back needs. From top to bottom: the run, the player, drawing, the window, without a window,
command line.
"""

import os
import signal

if __name__ == "__main__":  # until main notes signals
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import functools
import io
import json
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
import numpy as np
import pygame


def import_ddpg():
    """Torch takes seconds to load: this is called once the window is on screen."""
    global ddpg, torch
    import torch

    import ddpg

    torch.set_num_threads(1)  # a training may be running beside
    ddpg.gym.logger.min_level = ddpg.gym.logger.ERROR


signals, unprinted = [], []  # what loops look at: raised, they would come out of anything


def on_signal(number, frame):
    if signals or "ddpg" not in globals():  # the second, or there is nothing to sum up yet
        os._exit(128 + number)
    signals.append(number)


def after_fork():
    """Or nobody could terminate a process of the environment's."""
    for number in signal.SIGINT, signal.SIGTERM:
        if signal.getsignal(number) is on_signal:
            signal.signal(number, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)


def output(text="", end="\n"):
    try:
        print(text, end=end, flush=True)
    except (OSError, ValueError) as error:
        unprinted.append(error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for prints of others and at Python's exit


def tidy(message):
    """A message or an exception in up to three lines that terminals and fonts can show."""
    said = "" if isinstance(message, SystemExit) else str(message)
    lines = (said or repr(message)).splitlines()
    lines[2:] = filter(None, [" ".join(lines[2:])])
    lines = [line if len(line) < 180 else f"{line[:90]} .. {line[-80:]}" for line in lines]
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def complain(message):
    with suppress(AttributeError, OSError, ValueError):  # where stderr is closed or full
        sys.stderr.write(f"viewer.py: {tidy(message)}\n")


# --------------------------------------------------- the run


class Run(NamedTuple):
    """What there is on disk of a training."""

    policies: dict  # training step -> policy file, in order
    best: int  # the step of the best policy, or of the newest one where none has been evaluated
    curve: list  # of (step, mean return of the evaluation)
    faults: list  # what is wrong with files, which were left out


def find(target):
    """The path of a run's folder or a policy file; None stands for the newest run."""
    if target is not None:
        if not os.path.exists(target):  # Path.exists raises for long names
            raise ValueError(f"{target}: no such file or folder")
        return Path(target)
    runs = [config.parent for config in Path("runs").glob("**/config.json")]
    if not runs:
        raise ValueError("no run under runs/ yet. Train one:\n  python ddpg.py --env Pendulum-v1")
    return max(runs, key=lambda folder: folder.stat().st_mtime)  # writing in it dates it


def read_run(folder):
    """The Run in a folder as it is now, or of a policy file alone."""
    policies, faults, snapshots = {}, [], sorted(folder.glob("policies/*.npz"))
    files = [folder] if folder.is_file() else [*snapshots, folder / "last.npz", folder / "best.npz"]
    for file in filter(os.path.exists, files):
        step, fault = step_of(file, file.stat().st_mtime_ns, whole=file not in snapshots)
        if not fault and file in snapshots and file.stem != f"{step:012d}":
            fault = "its name is not its step"
        if fault:  # one bad file costs that file
            faults.append(f"{file.name}: {fault}")
        else:
            policies[step] = file
    best = max([s for s in policies if policies[s].name == "best.npz"] or policies or [None])
    curve = read_curve(folder / "progress.csv", faults)
    return Run(dict(sorted(policies.items())), best, curve, faults)


@functools.lru_cache(1_000)
def step_of(path, mtime, whole):
    """The training step of a policy file, of which all is read or its meta, and what is wrong."""
    try:
        meta = ddpg.load(path).meta if whole else ddpg.read_npz(path)[1]
        step, score = meta["step"], meta["evaluation"]
        if type(step) is int and 0 <= step <= 10**12 and (score is None or abs(score) < 1e300):
            return step, ""
        return None, "its step or its evaluation is out of range"
    except Exception as error:  # returned, to be read once only
        return None, str(error) or repr(error)


def read_curve(path, faults):
    """The curve in progress.csv, for which some 2,000 rows are enough."""
    curve, rows = [], []
    source = path if path.is_file() else os.devnull  # a pipe or a device may never end
    with suppress(OSError, ValueError), open(source, "rb") as file:
        head, *rows = file.read(2**22).decode(errors="replace").split()
    rows = rows[:: -1 - len(rows) // 2_000][::-1]
    for row in rows:
        with suppress(KeyError, ValueError):
            cells = dict(zip(head.split(","), row.split(",")))
            step, mean = int(cells["step"]), float(cells["eval_mean"])
            if 0 <= step <= 10**12 and abs(mean) < 1e300:  # nor is it nan
                curve.append((step, mean))
    if os.path.exists(path) and not 0 < len(curve) == len(rows):
        faults.append(f"{path.name}: not all of it are rows of numbers")
    return curve


def under_way(folder):
    """Whether a training on this machine is writing to it. Windows has no such locks: --live."""
    with suppress(OSError, ddpg.UsageError), ddpg.lock(folder):
        return False
    return True


# ------------------------------------------------ the player

LEFT, RIGHT, UP, DOWN = ARROWS = pygame.K_LEFT, pygame.K_RIGHT, pygame.K_UP, pygame.K_DOWN


class Known(NamedTuple):
    """What is known of an environment beyond its spaces."""

    actions: list  # names
    observations: list
    # What arrow keys do: action dimension, value in [-1, 1]
    arrows: dict = {LEFT: (0, -1), RIGHT: (0, 1), DOWN: (1, -1), UP: (1, 1)}
    dead_zones: tuple = ()  # where actions do nothing


# fmt: off
KNOWN = {
    "Pendulum": Known(["torque"], ["cos", "sin", "velocity"], {LEFT: (0, 1), RIGHT: (0, -1)}),
    "MountainCarContinuous": Known(["force"], ["position", "velocity"]),
    "LunarLander": Known(["main", "side"], ["x", "y", "vx", "vy", "angle", "spin", "leg1", "leg2"],
                         {UP: (0, 1), LEFT: (1, -1), RIGHT: (1, 1)}, ((-1, 0), (-0.5, 0.5))),
}
# fmt: on


def push(env, right, up):
    """Change the velocity of the lander, walker, pendulum or car."""
    if body := getattr(env, "lander", None) or getattr(env, "hull", None):
        body.linearVelocity += (0.5 * right, 0.5 * up)
    elif hasattr(env, "max_torque"):  # the pendulum, whose rod points to (-sin, cos)
        env.state[1] -= 0.8 * (right * np.cos(env.state[0]) + up * np.sin(env.state[0]))
    elif hasattr(env, "goal_velocity"):
        env.state[1] += 0.01 * right
    else:
        raise ValueError("nobody has taught me how to push in this environment")


class Player:
    """Plays episodes of one policy and can go back in them: it keeps a tape of the actions.

    policy: from ddpg.load. env: the id to use instead of its own. results: where finished episodes
    go, but assisted ones, {(policy, step, deterministic): {seed: row}}: each counts once.
    """

    def __init__(self, policy, env=None, render=True, noisy=False, results=None):
        self.policy, self.noisy, self.results = policy, noisy, {} if results is None else results
        self.env_id, self.train_step = env or policy.meta["env"], policy.meta["step"]
        changes = {"env": env} if env else {}
        self.make_env = ddpg.env_maker_of(policy, **changes)
        self.env = self.make_env()
        if render and "rgb_array" not in (self.env.metadata.get("render_modes") or []):
            raise ValueError(f"{self.env_id} cannot draw itself (no rgb_array): --headless --json")
        if render:
            kwargs = policy.config.env_kwargs | {"render_mode": "rgb_array"}
            self.make_env = ddpg.env_maker_of(policy, env_kwargs=kwargs, **changes)
        self.fps = self.env.metadata.get("render_fps") or 30
        self.limit = self.env.spec.max_episode_steps
        dims = [len(policy.low), policy.obs_dim]
        self.known = Known([f"a{i}" for i in range(dims[0])], [f"o{i}" for i in range(dims[1])])
        for name, known in KNOWN.items():
            if self.env_id.startswith(name) and [*map(len, known[:2])] == dims:
                self.known = known

    def start(self, seed):
        """Begin the episode of a seed."""
        self.seek(0, seed)
        self.identity = self.policy.meta["path"], self.train_step, not self.noisy  # for results
        self.tape = []  # a step: (act in [-1, 1], push or None, whether the act was the user's)
        theta, rng = self.policy.config.noise_theta, np.random.default_rng(seed)
        self.noise = ddpg.Noise(len(self.policy.low), theta, rng)

    def seek(self, t, seed=None):
        """Go to step t of the tape, from the start: environments cannot go back, but repeat."""
        # In one made afresh, as reset does not undo everything everywhere
        episode = ddpg.Episode(self.make_env, self.seed if seed is None else seed)
        self.close()  # what failed before left the old one flying
        self.env, self.episode, self.seed = episode.env, episode, episode.seed
        self.t, self.over, self.assisted, self.picture = 0, False, False, None
        self.rewards, self.trail, self.values = [], [self.episode.obs], []
        while self.t < t and not self.over and not signals:
            self.step()

    def step(self, act=None, push_by=None):
        """One step: by the user's act in [-1, 1] or push, else by the tape, else by the policy."""
        helped = act is not None
        if helped or push_by is not None or self.t == len(self.tape):
            if act is None:
                act = self.policy.act_unit(self.episode.obs)
                if self.noisy:
                    act = act + self.noise(self.policy.config.noise_sigma)
            self.tape[self.t :] = [(act.clip(-1, 1), push_by, helped)]
        act, push_by, helped = self.tape[self.t]
        env = self.env.unwrapped
        if push_by:
            push(env, *push_by)
        if self.picture is None and hasattr(env, "_clean_particles"):
            for particle in env.particles:  # the lander's exhaust, which being drawn would age
                particle.ttl -= 0.15
            env._clean_particles(False)
        rew, obs, terminated, truncated = self.episode.step(self.policy.to_env(act))
        self.t, self.picture = self.t + 1, None
        self.assisted = self.assisted or helped or push_by is not None
        self.rewards.append(rew)
        self.trail.append(obs)
        self.over = terminated or truncated
        if self.over:
            self.row = dict(policy=self.policy.meta["path"], train_step=self.train_step)
            self.row |= {"seed": self.seed, "return": self.episode.ret, "length": self.t}
            self.row |= dict(terminated=terminated, truncated=truncated)
            self.row |= dict(deterministic=not self.noisy, assisted=self.assisted)
            if self.episode.success is not None:
                self.row["success"] = self.episode.success
            if not self.assisted:
                self.results.setdefault(self.identity, {})[self.seed] = self.row

    def close(self):
        self.env.unwrapped.screen = None  # or close would call pygame.quit(), with our window
        self.env.close()

    def frame(self):
        """The picture of the present step, (height, width, 3) uint8."""
        if self.picture is None:
            frame = np.asarray(self.episode.call(self.env.render))
            if frame.ndim != 3 or frame.shape[2] < 3:
                raise ValueError(f"its pictures are of {frame.shape}, not of (height, width, 3)")
            self.picture = np.ascontiguousarray(frame[:, :, :3], np.uint8)
        return self.picture

    def q(self, obs, act):
        """The smallest value of the critics, as in the target, in the environment's own rewards."""
        obs, act = self.policy.normalize(np.array(obs)), torch.from_numpy(np.float32(act))
        with torch.inference_mode():
            values = self.policy.critic(obs, act).amin(0)[:, 0]  # (n, B, 1) -> (B,)
        return (values / self.policy.reward_scale).tolist()

    def predicted(self):
        """Q(s_t, a_t) of the steps so far, evaluated only when somebody looks."""
        new = slice(len(self.values), self.t)
        if new.start < self.t:
            self.values += self.q(self.trail[new], [act for act, *_ in self.tape[new]])
        return self.values

    def realised(self):
        """The discounted return from each step on, after a time limit with the critic's value."""
        last = np.array(self.trail[-1:])
        returns = [0.0 if self.episode.terminated else self.q(last, self.policy.act_unit(last))[0]]
        for rew in reversed(self.rewards):
            returns.append(rew + self.policy.config.gamma * returns[-1])
        return returns[:0:-1]  # in order, without that value


def summary(results):
    """Statistics of the episodes, a dict for each policy."""
    for (policy, step, det), rows in results.items():
        numbers = [np.array([row[name] for row in rows.values()]) for name in ("return", "length")]
        numbers.append([row.get("success") for row in rows.values()])
        yield dict(policy=policy, train_step=step, deterministic=det) | ddpg.summary(*numbers)


def summed_up(row):
    """A line of such a dict."""
    return SUMMARY.format(**row) + ddpg.success_rate(row.get("success"))


EPISODE = "step {train_step:,}, seed {seed}: return {return:.1f}, length {length}"
SUMMARY = "{episodes} episodes: return {mean:.1f} ± {std:.1f} (min {min:.1f}, max {max:.1f}), "
SUMMARY += "length {length:.0f}, {policy} of step {train_step:,}, deterministic: {deterministic}"


# --------------------------------------------------- drawing

BACK, FIELD, LINE = (30, 32, 35), (42, 45, 49), (78, 83, 89)
TEXT, DIM = (228, 229, 231), (158, 163, 170)
# Okabe and Ito: distinct for colour-blind eyes
ORANGE, BLUE, YELLOW = (230, 159, 0), (86, 180, 233), (240, 228, 66)
ANGLES, VELOCITIES = (-np.pi, np.pi), (-8, 8)  # on the map of the pendulum's policy
font = functools.lru_cache(functools.partial(pygame.font.Font, None))  # of a height in pixels


def split(rect, sizes, across=False):
    """Cut a Rect, from top to bottom or across, into these sizes; None: a share of the rest."""
    at, total = (rect.x, rect.w) if across else (rect.y, rect.h)
    share = max(0, total - sum(filter(None, sizes))) // max(1, sizes.count(None))
    parts = []
    for size in sizes:
        size = share if size is None else int(size)
        part = (at, rect.y, size, rect.h) if across else (rect.x, at, rect.w, size)
        parts.append(pygame.Rect(part))
        at += size
    return parts


def table(rect, n):
    """The Rects of at least `n` cells in two columns, the left one first."""
    left, right = split(rect, [None, None], across=True)
    rows = [None] * -(-n // 2)
    return split(left.inflate(-10, 0), rows) + split(right.inflate(-10, 0), rows)


def text(surface, rect, string, px, color=TEXT, align=0.0):
    """Write at the top of a Rect, at its left (align 0) to right end (1), cut -> the width used."""
    full = string
    while string and font(px).size(string)[0] > rect.w:
        full = full[:-1]
        string = full and full + ".."
    image = font(px).render(string, True, color)
    surface.blit(image, (rect.x + align * (rect.w - image.get_width()), rect.y))
    return image.get_width()


def text_pair(surface, rect, left, right, px, left_color=DIM, right_color=TEXT):
    """Write at both ends of a line, of which the left one gives way."""
    used = text(surface, rect, right, px, right_color, 1)
    rest = pygame.Rect(rect.x, rect.y, rect.w - used - px // 2, rect.h)
    text(surface, rest, left, px, left_color)


def draw_plot(surface, rect, curves, length, px):
    """Curves [(values, color, dashed)] over `length` steps, with extremes where there is room."""
    surface.fill(FIELD, rect)
    everything = sum((values for values, *_ in curves), [])
    if not everything:
        return
    low, high = min(everything), max(everything)
    inner = pygame.Rect(rect.x + 2, rect.y + 4, rect.w - 4 - 4 * px, rect.h - 8)
    across, up = inner.w / max(length - 1, 1), inner.h / max(high - low, 1e-9)
    zero = inner.bottom + low * up
    if low < 0 < high:
        pygame.draw.line(surface, LINE, (inner.x, zero), (inner.right, zero))
    for values, color, dashed in curves:
        shown = list(enumerate(values))[:: max(1, len(values) // 2_000)]
        points = [(inner.x + t * across, inner.bottom - (v - low) * up) for t, v in shown]
        for a, b in zip(points, points[1:]):
            if not dashed or (a[0] - inner.x) % 12 < 7:
                pygame.draw.line(surface, color, a, b, 2)
    if rect.h > 2.6 * px:
        text(surface, rect.inflate(-8, -8), f"{high:.3g}", px - 3, DIM, 1)
        text(surface, rect.inflate(-8, 0).move(0, rect.h - px), f"{low:.3g}", px - 3, DIM, 1)


def draw_gauges(surface, rect, player, act, helped, px):
    """Actions, as room allows, as bars from the middle; in grey the zone where one does nothing."""
    rows = split(rect, [px + 4] * round(rect.h / (px + 4)))
    for i, (row, unit) in enumerate(zip(rows, act.tolist())):
        label, bar, number = split(row, [5 * px, None, 4 * px], across=True)
        text(surface, label.inflate(-4, -4), player.known.actions[i], px)
        text(surface, number.move(0, 2), f"{player.policy.to_env(act)[i]:+.2f}", px, TEXT, 1)
        bar.h -= 3
        surface.fill(FIELD, bar)
        if player.known.dead_zones:
            left, right = (bar.centerx + bar.w / 2 * end for end in player.known.dead_zones[i])
            surface.fill(LINE, (left, bar.y, right - left, bar.h))
        color = YELLOW if helped else ORANGE if unit > 0 else BLUE
        left, width = bar.centerx + min(0, unit) * bar.w / 2, max(2, abs(unit) * bar.w / 2)
        surface.fill(color, (left, bar.y + 3, width, bar.h - 6))
        pygame.draw.line(surface, TEXT, (bar.centerx, bar.y), (bar.centerx, bar.bottom - 1))


def draw_observation(surface, rect, player, px):
    cells = table(rect, 2 * round(rect.h / (px + 4)))
    for cell, name, value in zip(cells, player.known.observations, player.trail[-1]):
        text_pair(surface, cell, name, f"{value:+.2f}", px)


@functools.lru_cache(2)
def policy_image(policy):
    """The pendulum's torque over angle and velocity, orange for + and blue for -."""
    axes = np.linspace(*ANGLES, 96), np.linspace(*VELOCITIES[::-1], 64)
    angle, velocity = np.meshgrid(*axes, indexing="ij")
    obs = np.stack([np.cos(angle), np.sin(angle), velocity], -1)
    torque = policy.act(obs.reshape(-1, 3)).reshape(96, 64, 1)
    color = FIELD + (np.where(torque > 0, ORANGE, BLUE) - FIELD) * np.abs(torque) / policy.high
    return pygame.surfarray.make_surface(color.astype(np.uint8))


def draw_map(surface, rect, player):
    """The policy map with the trail of the episode on it, and a ring for the present state."""
    surface.blit(pygame.transform.smoothscale(policy_image(player.policy), rect.size), rect)
    cos, sin, velocity = np.array(player.trail).T
    x = np.interp(np.arctan2(sin, cos), ANGLES, (rect.x, rect.right - 1))
    y = np.interp(velocity, VELOCITIES, (rect.bottom - 1, rect.y))
    points = np.stack([x, y], 1).tolist()
    for a, b in zip(points, points[1:]):
        if abs(a[0] - b[0]) < rect.w / 2:  # an angle that wraps around draws no line across
            pygame.draw.line(surface, BACK, a, b, 4)
            pygame.draw.line(surface, TEXT, a, b, 2)
    pygame.draw.circle(surface, BACK, points[-1], 7)
    pygame.draw.circle(surface, YELLOW, points[-1], 5)


def draw_panel(surface, rect, player, episode, show_map, px):
    """Return, critic, reward, action, observation and policy map, as many as there is room for."""
    t, line, length = player.t, px + 4, max(player.t, min(player.limit, 200))
    act, _, helped = player.tape[t - 1] if t else (np.zeros_like(player.policy.low), None, False)
    q, rewards = player.predicted(), player.rewards
    realised = player.realised() if player.over else []
    rect, size = rect.inflate(-16, -12), len(player.trail[0])
    gauges = min(len(act), 6)
    rows = min(-(-size // 2), max(1, rect.h // line - 10 - gauges))  # 10: return, plots, titles
    # fmt: off
    sections = [  # title and text on its right with their colors, height or None, drawing
        (f"critic's Q  {q[-1]:.1f}" if t else "critic's Q", ORANGE,
         "realised, dashed" if player.over else "", BLUE, None,
         lambda rect: draw_plot(
             surface, rect, [(q, ORANGE, False), (realised, BLUE, True)], length, px)),
        ("reward", DIM, f"{rewards[-1]:+.3f}" if t else "", TEXT, None,
         lambda rect: draw_plot(surface, rect, [(rewards, BLUE, False)], length, px)),
        ("action", DIM, "yours" if helped else "", YELLOW, line * (1 + gauges),
         lambda rect: draw_gauges(surface, rect, player, act, helped, px)),
        ("observation", DIM, f"{2 * rows} of {size}" if 2 * rows < size else "", DIM,
         line * (1 + rows), lambda rect: draw_observation(surface, rect, player, px)),
        ("torque over angle, velocity", DIM, "orange is +", ORANGE, None,
         lambda rect: draw_map(surface, rect, player)),
    ]
    # fmt: on
    if not show_map or player.known is not KNOWN["Pendulum"]:
        sections.pop()
    while sections and 2 * line + sum(height or 3 * line for *_, height, _ in sections) > rect.h:
        sections.pop()
    head, *rects = split(rect, [2 * line, *(height for *_, height, _ in sections)])
    text(surface, head, f"{player.episode.ret:.1f}", 2 * px)
    text(surface, head, f"episode {episode}", px, DIM, 1)
    at = f"step {t}/{player.limit}" + "   assisted" * player.assisted
    text(surface, head.move(0, line), at, px, YELLOW if player.assisted else DIM, 1)
    for part, (title, color, value, value_color, _, draw) in zip(rects, sections):
        above, below = split(part, [line - 2, None])
        text_pair(surface, above, title, value, px, color, value_color)
        draw(below.inflate(0, -4))


def timeline_x(rect, run, step):
    """Where on the timeline a training step is, or an array of them."""
    last = max(1, *run.policies, *(step for step, _ in run.curve))
    return rect.x + 14 + step / last * (rect.w - 28)


def draw_timeline(surface, rect, run, current, px):
    """The evaluation curve of the run over its policies: a ring for the one flying, B the best."""
    surface.fill(FIELD, rect)
    x_of, base = functools.partial(timeline_x, rect, run), rect.bottom - 10
    pygame.draw.line(surface, LINE, (rect.x + 14, base), (rect.right - 14, base))
    for x in x_of(np.array(list(run.policies))):
        pygame.draw.line(surface, DIM, (x, base - 4), (x, base + 4))
    if len(run.curve) > 1:
        steps, means = np.array(run.curve).T
        heights = base - 8 - (means - means.min()) / max(np.ptp(means), 1e-9) * (rect.h - 26)
        pygame.draw.lines(surface, BLUE, False, list(zip(x_of(steps), heights)), 2)
    if run.curve:
        above = pygame.Rect(x_of(run.best) - px, base - 6 - px, 2 * px, px)
        text(surface, above, "B", px, YELLOW, 0.5)
    pygame.draw.circle(surface, ORANGE, (x_of(current), base), px // 3 + 1, 3)


def draw_help(surface, px):
    cells = table(surface.get_rect(), len(KEYS))
    px = min(px + 6, cells[0].w // 13, int(0.8 * cells[0].h))
    for cell, (keys, _, meaning) in zip(cells, KEYS):
        cell = cell.inflate(13 * px - cell.w, px - cell.h)
        left, right = split(cell, [5 * px, None], across=True)
        text(surface, left, keys, px, YELLOW)
        text(surface, right, meaning, px)


def draw_notice(surface, rect, notice, px):
    wrap = functools.partial(textwrap.wrap, width=max(1, int(rect.w / px / 0.5)))
    lines = [part for line in notice.splitlines() for part in wrap(line)][:5]
    height = len(lines) * (px + 4)
    box = pygame.Rect(rect.x + 8, rect.bottom - 14 - height, rect.w - 16, 6 + height)
    surface.fill(FIELD, box)
    pygame.draw.rect(surface, YELLOW, box, 1)
    for row, line in zip(split(box.inflate(-24, -10), [px + 4] * len(lines)), lines):
        text(surface, row, line, px)


class Gif:
    """A film in 192 colors: 50 ms a step, or of 50 steps a second every second one for 40 ms."""

    def __init__(self, path, fps):
        try:
            from PIL import Image
        except ImportError:
            raise ValueError("a GIF needs Pillow: python -m pip install pillow") from None
        self.image, self.path, self.frames, self.durations = Image, path, [], []
        self.stride, self.duration = (1, 50) if fps < 40 else (round(fps / 25), 40)

    def add(self, surface, last):
        w, h = surface.get_size()
        picture = pygame.Surface(self.frames[0].size if self.frames else (640, 640 * h // w))
        place = surface.get_rect().fit(picture.get_rect())  # the window's size may change
        picture.blit(pygame.transform.smoothscale(surface, place.size), place)
        pixels = pygame.image.tobytes(picture, "RGB")
        frame = self.image.frombytes("RGB", picture.get_size(), pixels)
        if not self.frames:
            # One palette for all, so that only what moves takes space: the first colors and others
            self.palette = frame.quantize(128)
            others = [85 * channel for color in np.ndindex(4, 4, 4) for channel in color]
            self.palette.putpalette(self.palette.getpalette()[:384] + others)
        self.frames.append(frame.quantize(palette=self.palette, dither=0))
        self.durations.append(1500 if last else self.duration)

    def save(self):
        if not self.frames:
            raise ValueError("nothing was recorded")
        first, *others = self.frames
        more = dict(append_images=others, duration=self.durations, loop=0)
        first.save(self.path, "GIF", save_all=True, **more)


# ------------------------------------------------ the window

# Single characters as they are typed or pygame's names of keys, method and argument, meaning
KEYS = [
    ("Space", ("toggle", "paused"), "pause or go on"),
    (", Left", ("step_by", -1), "one step back"),
    (". Right", ("step_by", 1), "one step forward"),
    ("Arrows", None, "fly it, unless paused"),
    ("Drag", None, "push it"),
    ("R Backspace", ("restart", 0), "same episode again"),
    ("N Return", ("restart", 1), "next seed"),
    ("L", ("toggle", "locked"), "lock the seed"),
    ("-", ("change_speed", -1), "slower, to 1/8x"),
    ("+ =", ("change_speed", 1), "faster, to 16x, max"),
    ("0", ("change_speed", 0), "speed 1x"),
    ("PageUp [", ("choose", "previous"), "previous snapshot"),
    ("PageDown ]", ("choose", "next"), "next snapshot"),
    ("Home", ("choose", "first"), "untrained agent"),
    ("End", ("choose", "newest"), "newest, and follow"),
    ("B", ("choose", "best"), "best policy"),
    ("D", ("toggle", "noisy"), "noisy or not"),
    ("C", ("pin",), "pin for comparison"),
    ("Tab", ("toggle", "show_panel"), "panel"),
    ("M", ("toggle", "show_map"), "policy map"),
    ("S", ("save_png",), "save a picture"),
    ("G", ("record_gif",), "record GIF, save it"),
    ("F", ("full_screen",), "full screen"),
    ("H ? F1", ("toggle", "show_help"), "help"),
    ("Q Escape", ("quit",), "quit"),
]
ACTION_OF = {
    key.lower() if len(key) == 1 else getattr(pygame, f"K_{key.upper()}"): action
    for keys, action, _ in KEYS
    if action
    for key in keys.split()
}
REPEATING = "step_by", "change_speed", "choose"  # while their key is held
SIZE = 1000, 640  # of a new window
SPEEDS = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 1000]  # the last is as fast as it goes


class Window:
    """The players on a surface: `handle` an event, `update` by seconds, `draw`; `loop` does all."""

    def __init__(self, surface, options):
        self.surface, self.options = surface, options
        self.seed, self.noisy = options.seed, options.noisy
        self.path = self.run = self.player = self.pinned = self.film = None
        self.alive = self.show_panel = self.show_map = True
        self.dirty = True  # the picture is no longer true
        self.paused = self.locked = self.follow = self.show_help = False
        self.results, self.episode, self.speed = {}, 0, 1
        self.steps, self.seconds = 0, 0.0  # played at this speed, which tell how fast it really is
        self.owed, self.held = 0.0, set()  # steps that are due, keys down
        self.grip, self.mouse = None, (0, 0)  # (pane, where the mouse went down), where it is
        self.notice, self.notice_for, self.poll_in = "", 0.0, 0.0

    @property
    def players(self):
        return [player for player in (self.player, self.pinned) if player]

    @property
    def over(self):
        return all(player.over for player in self.players)

    def say(self, message):
        self.notice, self.notice_for, self.dirty = tidy(message), 5.0, True

    def attempt(self, do, *arguments):
        """Whatever goes wrong is a notice, and what was flying flies on -> whether it went well."""
        try:
            do(*arguments)
            return True
        except BaseException as error:  # SystemExit of an environment, too
            self.say(error)

    def open(self, target):
        """Show a policy, the best one of a run, or of a training under way each new one."""
        typed = find(target)
        run = read_run(path := Path(self.options.start, typed))
        if run.policies:
            follow = self.options.live or not self.options.headless and under_way(path)
            self.show(run.policies[max(run.policies) if follow else run.best], follow)
        elif self.player or self.options.headless or not self.options.live:
            faults = run.faults or [f"{typed} is not the folder of a run, or has no policies yet"]
            raise ValueError("\n".join(faults))
        self.path, self.run = path, run
        self.say("\n".join(run.faults or [str(typed)]))

    def show(self, path, follow=False):
        """Replay the episode with the policy of another file, and follow the newest one or not."""
        policy = ddpg.load(path)
        policy.meta["path"] = str(path).removeprefix(self.options.hidden)
        player = Player(policy, self.options.env, self.options.drawn, self.noisy, self.results)
        player.start(self.seed)  # what fails here leaves the old one flying
        if self.player:
            self.player.close()
        self.player, self.follow = player, follow
        if self.pinned and self.pinned.env_id != player.env_id:
            self.pin()
        self.restart()

    # ---- what the key table does

    def toggle(self, name):
        setattr(self, name, not getattr(self, name))
        if name == "noisy":
            self.restart()

    def step_by(self, by):
        """Pause, and step forward or back."""
        self.paused, self.owed, last = True, 0.0, max(player.t for player in self.players)
        if by > 0:
            return self.step()
        for player in self.players:
            player.seek(min(player.t, last - 1))

    def restart(self, by=0):
        """Begin the episode of the present seed, or of another one."""
        for player in self.players:
            player.noisy = self.noisy
            player.start(self.seed + by)
        self.seed, self.episode, self.owed, self.dirty = self.seed + by, self.episode + 1, 0.0, True

    def change_speed(self, by):
        index = int(np.clip(SPEEDS.index(self.speed) + by, 0, len(SPEEDS) - 1))
        self.speed = SPEEDS[index] if by else 1
        self.owed, self.steps, self.seconds = 0.0, 0, 0.0

    def choose(self, which):
        """Another policy of the run; choosing ends following, unless it is the newest."""
        steps, now = list(self.run.policies), self.player.train_step
        found = dict(first=steps[:1], newest=steps[-1:], best=[self.run.best])
        found["previous"] = [step for step in steps if step < now][-1:]
        found["next"] = [step for step in steps if step > now][:1]
        if not found[which]:
            raise ValueError(f"there is no {which} snapshot")
        self.show(self.run.policies[found[which][0]], follow=which == "newest")

    def pin(self):
        old, self.pinned = self.pinned, None
        if old:
            old.close()
        else:
            pinned = Player(self.player.policy, self.options.env, results=self.results)
            pinned.start(self.seed)  # what fails here pins nothing
            self.pinned = pinned
            self.restart()
            self.say(f"step {self.pinned.train_step:,} is pinned: now choose another")

    def file_name(self, kind):
        name = self.options.start + self.player.env_id.split(":")[-1].replace("/", "-")
        return f"{name}-step{self.player.train_step}-seed{self.seed}.{kind}"

    def save_png(self):
        self.notice_for = 0
        self.draw()
        pygame.image.save(self.surface, self.file_name("png"))
        self.say(f"saved {os.path.basename(self.file_name('png'))}")

    def record_gif(self):
        film = self.film
        self.film = None if film else Gif(self.file_name("gif"), self.player.fps)
        if film:
            film.save()
            self.say(f"saved {os.path.basename(film.path)}, {len(film.frames)} frames")

    def full_screen(self):
        full = self.surface.get_flags() & pygame.FULLSCREEN
        size, flags = (SIZE, pygame.RESIZABLE) if full else ((0, 0), pygame.FULLSCREEN)
        self.surface = pygame.display.set_mode(size, flags)

    def quit(self):
        self.alive, self.show_help = self.show_help, False  # from the help, back to the picture

    # ---- events

    def handle(self, event):
        """What a key, the mouse or the window system asks for."""
        self.dirty = True
        if event.type == pygame.QUIT:
            self.alive = False
        elif event.type == pygame.KEYDOWN:
            action = ACTION_OF.get(event.unicode.lower()) or ACTION_OF.get(event.key)
            name, *arguments = action or [None]
            flying, repeated = event.key in ARROWS and not self.paused, event.key in self.held
            self.held.add(event.key)
            possible = self.player or name in ("quit", "full_screen")
            if name and possible and not flying and (not repeated or name in REPEATING):
                getattr(self, name)(*arguments)
        elif event.type == pygame.KEYUP:
            self.held.discard(event.key)
        elif event.type == pygame.WINDOWFOCUSLOST:
            self.held.clear()  # their release goes elsewhere
        elif event.type == pygame.DROPFILE:
            self.open(event.file)
        elif event.type == pygame.MOUSEBUTTONDOWN and event.button == 1 and self.show_help:
            self.show_help = False
            for (_, action, _), cell in zip(KEYS, table(self.surface.get_rect(), len(KEYS))):
                if action and action[-1] != "show_help" and cell.collidepoint(event.pos):
                    getattr(self, action[0])(*action[1:])
        elif event.type == pygame.MOUSEBUTTONDOWN and event.button == 1 and self.player:
            panes = self.panes().items()
            pane = next((name for name, rect in panes if rect.collidepoint(event.pos)), None)
            if pane == "bar":
                self.show_help = True
            if pane == "scene":
                push(self.player.env.unwrapped, 0, 0)  # raises where nothing is known to push
            self.grip = pane, event.pos
            self.drag(event.pos)
        elif event.type == pygame.MOUSEBUTTONUP and event.button == 1:
            self.grip = None
        elif event.type == pygame.MOUSEMOTION:
            self.drag(event.pos)

    def drag(self, pos):
        self.mouse = pos
        if self.grip and self.grip[0] == "timeline":
            x_of = functools.partial(timeline_x, self.panes()["timeline"], self.run)
            step = min(self.run.policies, key=lambda step: abs(x_of(step) - pos[0]))
            if step != self.player.train_step:
                self.show(self.run.policies[step])

    def touch(self):
        """What the user does to it at this moment -> act in [-1, 1] or None, push or None."""
        act = push_by = None
        for key, (dim, value) in self.player.known.arrows.items():
            if key in self.held and dim < len(self.player.policy.low):
                act = np.zeros_like(self.player.policy.low) if act is None else act
                act[dim] += value
        if self.grip and self.grip[0] == "scene" and self.grip[1] != self.mouse:
            (x, y), reach = self.grip[1], self.panes()["scene"].h / 2
            push_by = (self.mouse[0] - x) / reach, (y - self.mouse[1]) / reach
        return act, push_by

    # ---- time

    def update(self, dt):
        """Let `dt` seconds pass: for notices, news from the training, and in the environment."""
        self.dirty = self.dirty or 0 < self.notice_for <= dt
        self.notice_for, self.poll_in = self.notice_for - dt, self.poll_in - dt
        if self.poll_in <= 0:
            self.poll_in = 0.5
            self.poll()
        if self.player and not self.paused and not self.show_help:
            self.paused = not self.attempt(self.play, dt)  # what raised would raise again

    def poll(self):
        """See whether the training has written something new."""
        run, old = read_run(self.path), self.run
        if not run.policies or run == old:
            return
        newest = max(run.policies)
        if not self.player:
            self.show(run.policies[newest], follow=True)
        elif newest > max(old.policies):
            self.say(f"new: step {newest:,}" + ", loads at the next episode" * self.follow)
        if faults := [fault for fault in run.faults if fault not in old.faults]:
            self.say("\n".join(faults))
        self.run, self.dirty = run, True

    def play(self, dt):
        """As many steps as are due at this speed, but so few that the window keeps answering."""
        began = time.perf_counter()
        self.owed += min(dt, 0.25) * self.player.fps * self.speed
        self.seconds += dt
        while self.owed >= 1 and not self.over:
            self.step(*self.touch())
            self.owed, self.steps = self.owed - 1, self.steps + 1
            if time.perf_counter() - began > 0.02:
                self.owed = 0.0
        # The last picture stays for 1.5 s, or less if fast
        if self.owed > 1.5 * self.player.fps * min(1, self.speed):
            news = self.follow and max(self.run.policies) != self.player.train_step
            if news and self.attempt(self.choose, "newest"):
                self.episode -= 1  # it is counted below
            self.restart(not self.locked)

    def step(self, act=None, push_by=None):
        """One step of both, in lock-step; where one has ended, the other flies on."""
        if self.over:
            return
        for player in self.players:
            if not player.over:
                player.step(act, push_by)
        t = max(player.t for player in self.players)
        if self.film and (self.over or t % self.film.stride == 0):
            self.draw()
            self.film.add(self.surface, self.over)
        self.dirty = True

    # ---- picture

    @property
    def px(self):
        w, h = self.surface.get_size()
        return int(np.clip(min(h / 32, w / 46), 14, 34))

    def panes(self):
        """Where everything is -> {name: Rect}; the panel is empty where there is no room for it."""
        w, h = self.surface.get_size()
        heights = [self.px + 8, None, self.px + 10, max(36, h // 8)]
        title, body, bar, timeline = split(self.surface.get_rect(), heights)
        panel = np.clip(0.36 * w, 200, 620) if self.show_panel and w >= 440 else 0
        scene, panel = split(body, [None, panel], across=True)
        return dict(title=title, scene=scene, panel=panel, bar=bar, timeline=timeline)

    def draw(self):
        """The whole picture, from the present state and size."""
        where, px = self.panes(), self.px
        self.surface.fill(BACK)
        if not self.player:
            text(self.surface, where["scene"], "waiting for the first policy ..", px, DIM, 0.5)
        elif self.show_help:
            draw_help(self.surface, px)
        else:
            self.attempt(self.draw_status, where["title"], where["bar"])
            self.attempt(self.draw_scenes, where["scene"])
            on, panel, player = self.surface, where["panel"], self.player
            if panel.w:
                self.attempt(draw_panel, on, panel, player, self.episode, self.show_map, px)
            self.attempt(draw_timeline, on, where["timeline"], self.run, player.train_step, px)
        if self.notice_for > 0:
            draw_notice(self.surface, where["scene"], self.notice, px)
        self.dirty = False

    def draw_status(self, title, bar):
        """What is flying, and how."""
        player, policy = self.player, self.player.policy
        title, bar = title.inflate(-16, -10), bar.inflate(-16, -10)
        name = f"{player.env_id}   {policy.config.algo}   step {player.train_step:,}"
        score = policy.meta["evaluation"]
        name += "" if score is None else f"   eval {score:.1f}"
        recent, rows = "", [*self.results.get(player.identity, {}).items()][-10:]
        if rows and title.w > 40 * self.px:
            (last,) = summary({player.identity: dict(rows)})
            recent = "last {episodes}: {mean:.1f} ± {std:.1f}".format(**last)
            recent += ddpg.success_rate(last.get("success"))
        text_pair(self.surface, title, name, recent, self.px, TEXT, DIM)
        if pygame.display.get_init():
            pygame.display.set_caption(name)
        speed = "max" if self.speed == SPEEDS[-1] else f"{self.speed:g}x"
        if self.seconds > 1:
            speed += f" ({self.steps / self.seconds / player.fps:.1f}x)"
        state = ["paused" if self.paused else speed, "noisy" if self.noisy else "deterministic"]
        state += [f"seed {self.seed}" + " locked" * self.locked, "LIVE" * self.follow]
        color = YELLOW if self.paused else TEXT
        text_pair(self.surface, bar, "   ".join(state), "H or click: all keys", self.px, color, DIM)

    def draw_scenes(self, rect):
        """One scene, or two: side by side or one above the other, whichever shows them larger."""
        h, w = self.player.frame().shape[:2]
        px, across = self.px + 4, rect.w / w >= rect.h / h
        parts = split(rect, [None] * len(self.players), across)
        for player, part, color in zip(self.players, parts, (ORANGE, BLUE)):
            scene = pygame.image.frombuffer(player.frame(), player.frame().shape[1::-1], "RGB")
            place = scene.get_rect().fit(part.inflate(-4, -4))
            self.surface.blit(pygame.transform.smoothscale(scene, place.size), place)
            caption = f"{player.episode.ret:.1f}   step {player.train_step:,}"
            caption += "   pinned" * (player is self.pinned)
            if self.pinned or not self.panes()["panel"].w:
                line = pygame.Rect(place.x + 6, place.y + 4, part.right - place.x - 12, px)
                width = min(font(px).size(caption)[0], line.w)
                self.surface.fill(BACK, (*place.topleft, width + 12, px + 4))
                text(self.surface, line, caption, px, color)
        if self.grip and self.grip[0] == "scene":
            pygame.draw.line(self.surface, YELLOW, self.grip[1], self.mouse, 3)
            pygame.draw.circle(self.surface, YELLOW, self.mouse, 6)

    def loop(self):
        """Handle, update, and draw if something has changed, 60 times a second."""
        clock = pygame.time.Clock()
        pygame.key.set_repeat(350, 50)
        while self.alive and not signals:
            dt = clock.tick(60) / 1000
            repeated = set()
            for event in pygame.event.get():
                if event.type == pygame.KEYDOWN and event.key in self.held:
                    if event.key in repeated:
                        continue  # or what takes longer than until the next one would pile up
                    repeated.add(event.key)
                self.attempt(self.handle, event)
            self.attempt(self.update, dt)
            self.surface = pygame.display.get_surface()  # another one after a change of size
            if self.dirty:
                self.attempt(self.draw)
                if self.film:
                    corner = self.panes()["scene"].inflate(-20, -16)
                    text(self.surface, corner, "REC", self.px + 4, ORANGE, 1)
                pygame.display.flip()


def open_display():
    """A window on the screen. Without a screen, SDL would open one that nobody sees: refused."""
    try:
        pygame.display.init()
        pygame.font.init()
        unseen = pygame.display.get_driver() in ("offscreen", "dummy")
        if unseen and not os.environ.get("SDL_VIDEODRIVER"):
            raise pygame.error("no screen found")
        return pygame.display.set_mode(SIZE, pygame.RESIZABLE)
    except pygame.error as error:
        raise ValueError(f"no window: {error}\nwithout one: --headless, --png or --gif") from None


def watch(options):
    """The window: on the screen at once, while torch is loading."""
    path = find(options.run)
    window = Window(open_display(), options)
    loading = ThreadPoolExecutor(1).submit(import_ddpg)
    pygame.display.set_caption("viewer.py")
    output(f"viewer.py: {path}")
    text(window.surface, window.surface.get_rect(), tidy(f"opening {path} .."), window.px, DIM)
    while not loading.done():
        pygame.display.flip()
        pygame.event.pump()  # events wait in the queue; who never asks for them is called hung
        time.sleep(0.03)
    loading.result()  # raises what the import raised
    window.open(path)
    try:
        window.loop()
    finally:
        if window.film:
            window.attempt(window.record_gif)
            output(window.notice)
        lines = [summed_up(row) for row in summary(window.results)]
        output("\n".join(lines or ["no episode was flown to its end without help"]))


# ------------------------------------------ without a window


def headless(options):
    """Play episodes as fast as they go: print them, and draw them for a picture or a film."""
    os.environ["SDL_VIDEODRIVER"] = "dummy"
    path = find(options.run)
    import_ddpg()
    pygame.font.init()
    window = Window(pygame.Surface(SIZE), options)
    window.open(path)
    if window.run.faults:
        complain("\n".join(window.run.faults))
    shown = Path(options.start, window.player.policy.meta["path"])
    files = list(window.run.policies.values()) if options.tour else [shown]
    stops = np.linspace(0, len(files) - 1, min(options.tour or 1, len(files))).round()
    if options.gif:
        window.film = Gif(Path(options.start, options.gif), window.player.fps)
    window.episode, window.notice_for = 0, 0.0
    try:
        for i in stops.astype(int):
            for window.seed in range(options.seed, options.seed + options.episodes):
                if not window.attempt(window.show, files[i]):  # which flies that seed
                    complain(window.notice)
                    window.notice_for = 0.0
                    break
                while not (window.over or signals or unprinted):
                    window.step()
                if signals or unprinted:
                    return
                row = window.player.row
                said = EPISODE + ", success: {success}" * ("success" in row)
                output(json.dumps(row) if options.json else said.format(**row))
        if options.png:
            window.draw()
        if window.notice_for:  # a picture that could not be drawn
            raise ValueError(window.notice)
        if options.png:
            pygame.image.save(window.surface, picture := io.BytesIO(), "png")
            Path(options.start, options.png).write_bytes(picture.getvalue())
        if options.gif:
            window.film.save()
    finally:
        for row in summary(window.results):
            if options.json:
                output(json.dumps({"summary": True} | row))
            elif row["episodes"] > 1:
                output(summed_up(row))


# ---------------------------------------------- command line


def parse(argv):
    def refuse(message):
        raise ValueError(f"{message}; --help lists all flags")

    layout = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, **layout)
    parser.error, add = refuse, parser.add_argument
    add("run", nargs="?", help="a run's folder or a policy file (default: the newest under runs/)")
    add("--env", metavar="ID", help="fly in this environment: a gymnasium id, or module:Id")
    add("--seed", type=int, default=0, help="the first episode's seed; others follow (default 0)")
    add("--live", action="store_true", help="follow the newest policy of a training from the start")
    add("--noisy", action="store_true", help="with the exploration noise of the training")
    add("--headless", action="store_true", help="no window: play and print")
    number = dict(type=int, metavar="N")
    add("--episodes", **number, help="episodes without a window (default 20; in tours and films 1)")
    add("--json", action="store_true", help="without a window: lines of JSON")
    add("--png", metavar="FILE", help="save the picture at the end of the last episode")
    add("--gif", metavar="FILE", help="save a film of the episodes")
    add("--tour", **number, nargs="?", const=10**6, help="an episode per snapshot, or for N")
    options = parser.parse_args(argv)
    if any(n is not None and n < 1 for n in (options.episodes, options.tour)):
        refuse("--episodes and --tour must be at least 1")
    for file in options.png, options.gif:
        if file is not None and (Path(file).is_dir() or not Path(file).parent.is_dir()):
            refuse(f"cannot save a picture as {file}")
    options.start = os.path.join(os.getcwd(), "")  # an environment may leave it
    options.hidden = "" if os.path.isabs(options.run or "") else options.start
    short = options.png or options.gif or options.tour
    options.headless = options.headless or options.json or short
    options.drawn = options.png or options.gif or not options.headless
    options.episodes = options.episodes or (1 if short else 20)
    return options


def main(argv=None):
    """The command line -> its exit code: 0, 1 cannot print, 2 refused, 130 or 143 for a signal."""
    code, options = 0, None
    del signals[:], unprinted[:]
    with suppress(ValueError):  # outside of the main thread
        for number in signal.SIGINT, signal.SIGTERM:
            signal.signal(number, on_signal)
    with suppress(AttributeError, OSError):  # where stdout is closed or no file
        sys.stdout.reconfigure(errors="replace")  # a terminal of ASCII has no ±
    try:
        options = parse(argv)
        if ":" in (options.env or ""):  # else nothing may be imported from here, as Box2D would
            sys.path.append(os.getcwd())
        (headless if options.headless else watch)(options)
    except BaseException as error:
        if options or not isinstance(error, SystemExit):  # of --help
            code = 2
            complain(error)
    output(end="")
    if unprinted and not code and (not options or options.headless):
        code = 1
        if not isinstance(unprinted[0], BrokenPipeError):
            complain(f"cannot print: {unprinted[0]}")
    try:
        print(end="", file=sys.stderr, flush=True)
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # as Python's flush at exit would fail as well
    return 128 + signals[0] if signals else code


if __name__ == "__main__":
    sys.exit(main())
