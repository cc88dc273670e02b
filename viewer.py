#!/usr/bin/env python3
"""Watch agents of ddpg.py: a video player whose timeline is the training run. H or F1: all keys.

    python viewer.py                                        the newest run under runs/
    python viewer.py runs/Pendulum-v1/ddpg-seed0            a run's folder, or a policy file
    python viewer.py runs/Pendulum-v1                       all runs below a folder, and their mean
    python viewer.py my_policy.npz --env my_module:MyEnv-v0 in an environment of your own
    python viewer.py runs --curves curves.png               no window: learning curves of all runs
    python viewer.py --headless --episodes 20 --json        no window: JSON lines and a summary
    python viewer.py --png picture.png                      no window: an episode's last picture
    python viewer.py --film film.gif --tour 3               no window: untrained, halfway, trained

Other runs and policy files can be dropped on the window. It only reads: it can follow a training
that is still running. An episode is decided by policy and seed alone, drawn or not and at any
speed, since each is played in an environment made afresh, and the tape of its actions is all that
stepping back needs. From top to bottom: the run, the player, drawing, what is drawn, films, the
window, without a window, command line.
"""

import os
import signal

if __name__ == "__main__":  # until main notes signals
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

import argparse
import functools
import io
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

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
    best: int  # the step of the best policy, or None where its file cannot be read
    log: Any
    faults: list  # what is wrong with files, which were left out


class Log:
    """What a training has written of itself: config {field: value}, table {column: (rows,)}, with
    nan where there is no number. Equal only to itself: `read_log` makes a new one of new files."""

    def __init__(self, path, config, table):
        self.path, self.config, self.table = path, config, table
        self.env = str(config.get("env", "?"))

    def curve(self, column):
        """-> steps (n,), values (n,), those that are numbers."""
        there = np.isfinite(self.table[column])
        return self.table["step"][there], self.table[column][there]

    def number(self, name):
        value = self.config.get(name)
        return value if type(value) in (int, float) and abs(value) < 1e300 else None


def find(targets):
    """The paths of runs' folders and policy files, and of all runs below other folders; without
    any, the newest run."""
    paths = []
    for target in targets or ["runs"]:
        if targets and not os.path.exists(target):  # Path.exists raises for long names
            raise ValueError(f"{target}: no such file or folder")
        path = Path(target)
        below = [config.parent for config in sorted(path.glob("**/config.json"))]
        below = [f for f in below if (f / "policies").exists() or (f / "progress.csv").exists()]
        paths += [path] if (path / "policies").exists() else below or [path]
    if not targets:
        if paths == [path]:
            raise ValueError("no run under runs/. Train one:\n  python ddpg.py --env Pendulum-v1")
        return [max(paths, key=lambda folder: folder.stat().st_mtime)]  # writing in it dates it
    return list(dict.fromkeys(paths))


def read_run(folder):
    """The Run in a folder as it is now, or of a policy file alone."""
    policies, faults, snapshots = {}, [], set(folder.glob("policies/*.npz"))
    best = folder / "best.npz"
    files = [folder] if folder.is_file() else [*sorted(snapshots), folder / "last.npz", best]
    for file in filter(os.path.exists, files):
        step, fault = step_of(file, file.stat().st_mtime_ns, whole=file not in snapshots)
        if not fault and file in snapshots and file.stem != f"{step:012d}":
            fault = "its name is not its step"
        if fault:  # one bad file costs that file
            faults.append(f"{file.name}: {fault}")
        else:
            policies[step] = file
    chosen = [step for step in policies if policies[step] == best]
    if not os.path.exists(best):  # none has been evaluated
        chosen = [max(policies, default=None)]
    log, wrong = read_log(folder)
    return Run(dict(sorted(policies.items())), *(chosen or [None]), log, faults + wrong)


@functools.lru_cache(10_000)
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


def read_log(folder):
    """The Log of a folder as it is now, the same one while its files are, and what is wrong."""
    stamps = []
    for name in "config.json", "progress.csv":
        stat = (folder / name).stat() if (folder / name).is_file() else None  # no pipe, no device
        stamps.append(stat and (stat.st_mtime_ns, stat.st_size))
    return log_of(folder, *stamps)


@functools.lru_cache(1_000)
def log_of(folder, config_stamp, table_stamp):
    """What `read_log` says; of a long progress.csv some 2,000 rows are enough."""
    config, table, path = {}, folder / "progress.csv", folder / "config.json"
    with suppress(OSError, ValueError, AttributeError, RecursionError):
        if config_stamp:
            config = json.loads(path.read_bytes()[: 2**20]).get("config")
            config = config if isinstance(config, dict) else {}
    rows, names = [], []
    with suppress(OSError, ValueError):
        with open(table if table_stamp else os.devnull, "rb") as file:
            head, *rows = file.read(2**22).decode(errors="replace").split()
        names = head.split(",")
    rows = rows[:: -1 - len(rows) // 2_000][::-1]
    cells = [dict(zip(names, row.split(","))) for row in rows]
    cells = [row for row in cells if row.get("step", "").isdigit()]
    columns = np.array([[number_in(row.get(name)) for row in cells] for name in COLUMNS])
    step, score = columns[:2]
    good = (step <= 10**12) & np.isfinite(score)
    fault = f"{table.name}: not all of it are rows of numbers"
    faults = [fault] * (os.path.exists(table) and not 0 < good.sum() == len(rows))
    return Log(folder, config, dict(zip(COLUMNS, columns[:, good]))), faults


COLUMNS = "step eval_mean eval_std train_return critic_loss mean_q steps_per_s".split()


def number_in(cell):
    with suppress(TypeError, ValueError):
        if abs(value := float(cell)) < 1e300:
            return value
    return np.nan


def run_name(path):
    """What tells a policy's run from others."""
    folders = [part for part in Path(path).parts[:-1] if part not in ("policies", "/", "runs")]
    return folders[-1] if folders else Path(path).stem


def kinds(logs):
    """Runs that differ in nothing but their seed -> [(what tells them from others, (log, ..))]."""
    groups = {}
    for log in logs:
        rest = {name: value for name, value in log.config.items() if name != "seed"}
        groups.setdefault(json.dumps(rest, sort_keys=True), []).append(log)
    configs, names = [members[0].config for members in groups.values()], []
    for config in configs:
        alike = [other for other in configs if other.get("algo") == config.get("algo")]
        fields = sorted({*itertools.chain(*alike)} - {"seed"})
        differ = [f for f in fields if any(other.get(f) != config.get(f) for other in alike)]
        settings = [f"{field} {config.get(field)}" for field in differ[:3]]
        names.append(" ".join([str(config.get("algo", "?")), *settings]))
    return list(zip(names, map(tuple, groups.values())))


@functools.lru_cache(100)
def spread_of(logs, column):
    """A curve and its sd: of several runs their mean and sd, as far as all of them go; of one run
    the sd of its evaluations' episodes, or zeros -> steps, means, sds, (n,) each."""
    curves = [log.curve(column) for log in logs]
    if len(logs) == 1:
        (steps, values), (at, sds) = *curves, logs[0].curve("eval_std")
        known = column == "eval_mean" and np.array_equal(at, steps)
        return steps, values, sds if known else np.zeros(len(values))
    steps = np.unique(np.concatenate([steps for steps, _ in curves]))
    for at, _ in curves:
        steps = steps[(steps >= at[0]) & (steps <= at[-1])] if len(at) else at
    values = [np.interp(steps, *curve) if len(steps) else steps for curve in curves]
    return steps, np.mean(values, 0), np.std(values, 0, ddof=1)


def under_way(folder):
    """Whether a training on this machine is writing to it. Windows has no such locks: --live."""
    with suppress(ImportError, OSError):
        import fcntl

        handle = os.open(folder, os.O_RDONLY | os.O_NONBLOCK)  # it may be a pipe
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # let go of by closing
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
    return False


# ------------------------------------------------ the player

LEFT, RIGHT, UP, DOWN = ARROWS = pygame.K_LEFT, pygame.K_RIGHT, pygame.K_UP, pygame.K_DOWN


def push_body(env, right, up):
    body = env.lander if hasattr(env, "lander") else env.hull
    body.linearVelocity += (0.5 * right, 0.5 * up)


def push_pendulum(env, right, up):
    """Its rod points to (-sin, cos)."""
    env.state[1] -= 0.8 * (right * np.cos(env.state[0]) + up * np.sin(env.state[0]))


def push_car(env, right, up):
    env.state[1] += 0.01 * right


class Known(NamedTuple):
    """What is known of an environment beyond its spaces. One of your own can say the first two in
    its metadata, as "action_names" and "observation_names", and have a method `push(right, up)`."""

    actions: list  # names
    observations: list
    # What arrow keys do: action dimension, value in [-1, 1]
    arrows: dict = {LEFT: (0, -1), RIGHT: (0, 1), DOWN: (1, -1), UP: (1, 1)}
    dead_zones: tuple = ()  # where actions do nothing
    push: Any = None  # of the environment, right and up in [-1, 1]: changes its velocity
    ending: Any = None  # of the environment when it has terminated -> a word or two


# fmt: off
KNOWN = {
    "Pendulum": Known(["torque"], ["cos", "sin", "velocity"], {LEFT: (0, 1), RIGHT: (0, -1)},
                      push=push_pendulum),
    "MountainCarContinuous": Known(["force"], ["position", "velocity"], push=push_car,
                                   ending=lambda env: "reached the flag"),
    "LunarLander": Known(
        ["main", "side"], ["x", "y", "vx", "vy", "angle", "spin", "leg1", "leg2"],
        {UP: (0, 1), LEFT: (1, -1), RIGHT: (1, 1)}, ((-1, 0), (-0.5, 0.5)), push_body,
        lambda env: ("crashed" if env.game_over else "flew out") if env.lander.awake else "landed"),
    "BipedalWalker": Known(
        ["hip1", "knee1", "hip2", "knee2"],
        ["angle", "spin", "vx", "vy", "hip1", "hip1 speed", "knee1", "knee1 speed", "leg1 down",
         "hip2", "hip2 speed", "knee2", "knee2 speed", "leg2 down",
         *(f"lidar{i}" for i in range(1, 11))],
        push=push_body, ending=lambda env: "fell" if env.game_over else "reached the end"),
}
# fmt: on


def what_is_known(env, env_id, dims):
    """The Known of an environment with `dims` numbers in an action and an observation."""
    for name, known in KNOWN.items():
        if env_id.split(":")[-1].startswith(name) and [*map(len, known[:2])] == dims:
            return known
    names = []
    for kind, size in zip(("action", "observation"), dims):
        given = env.metadata.get(f"{kind}_names") or ()
        numbered = [f"{kind[0]}{i}" for i in range(size)]
        names.append([str(name) for name in given] if len(given) == size else numbered)
    own = getattr(env.unwrapped, "push", None)
    return Known(*names, push=own and (lambda env, right, up: env.push(right, up)))


class Player:
    """Plays episodes of one policy and can go to any step of them: it keeps a tape of the actions,
    of which the first `t` have been flown, and what lies ahead is known from the last time.

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
        self.known = what_is_known(self.env, self.env_id, dims)

    def start(self, seed, t=0):
        """Begin the episode of a seed, and fly it to step t."""
        self.seek(0, seed)
        self.identity = self.policy.meta["path"], self.train_step, not self.noisy  # for results
        self.trail = [self.episode.obs]
        self.tape, self.rewards, self.values = [], [], []
        self.row, self.ending = None, ""  # once the tape is of a whole episode
        theta, rng = self.policy.config.noise_theta, np.random.default_rng(seed)
        self.noise = ddpg.Noise(len(self.policy.low), theta, rng)
        self.fly_to(t)

    def seek(self, t, seed=None):
        """Go to step t of the tape, from the start: environments cannot go back, but repeat."""
        # In one made afresh, as reset does not undo everything everywhere
        episode = ddpg.Episode(self.make_env, self.seed if seed is None else seed)
        self.close()  # what failed before left the old one flying
        self.env, self.episode, self.seed = episode.env, episode, episode.seed
        self.t, self.over, self.assisted = 0, False, False
        self.picture = self.broken = None
        self.fly_to(t)

    def fly_to(self, t):
        while self.t < t and not self.over and not signals:
            self.step()

    def cut(self):
        """Forget what lies ahead."""
        t, self.row, self.ending = self.t, None, ""
        del self.tape[t:], self.rewards[t:], self.trail[t + 1 :], self.values[t:]

    def step(self, act=None, push_by=None):
        """One step: by the user's act in [-1, 1] or push, else by the tape, else by the policy."""
        helped, t, env = act is not None, self.t, self.env.unwrapped
        if helped or push_by is not None or t == len(self.tape):
            if act is None:
                act = self.policy.act_unit(self.episode.obs)
                if self.noisy:
                    act = act + self.noise(self.policy.config.noise_sigma)
            self.cut()
            # A step: (act in [-1, 1], push or None, whether the act was the user's)
            self.tape.append((act.clip(-1, 1), push_by, helped))
        act, push_by, helped = self.tape[t]
        if push_by:
            self.known.push(env, *push_by)
        if self.picture is None and hasattr(env, "_clean_particles"):
            for particle in env.particles:  # the lander's exhaust, which being drawn would age
                particle.ttl -= 0.15
            env._clean_particles(False)
        rew, obs, terminated, truncated = self.episode.step(self.policy.to_env(act))
        self.t, self.picture = t + 1, None
        self.assisted = self.assisted or helped or push_by is not None
        self.rewards[t : t + 1], self.trail[t + 1 : t + 2] = [rew], [obs]
        self.over = terminated or truncated
        if self.over:
            self.finish(terminated, truncated)

    def finish(self, terminated, truncated):
        self.cut()  # an episode that does not repeat itself ends where it ends
        self.row = dict(policy=self.policy.meta["path"], train_step=self.train_step)
        self.row |= {"seed": self.seed, "return": self.episode.ret, "length": self.t}
        self.row |= dict(terminated=terminated, truncated=truncated)
        self.row |= dict(deterministic=not self.noisy, assisted=self.assisted)
        self.ending = "terminated" if terminated else "time limit"
        if terminated and self.known.ending:
            self.ending = self.known.ending(self.env.unwrapped)
        if (success := self.episode.success) is not None:
            self.row["success"] = success
            self.ending += ", success" if success else ", no success"
        if not self.assisted:
            self.results.setdefault(self.identity, {})[self.seed] = self.row

    def close(self):
        self.env.unwrapped.screen = None  # or close would call pygame.quit(), with our window
        self.env.close()

    def frame(self):
        """The picture of the present step, (height, width, 3) uint8."""
        if self.broken:  # drawing again would end the process in some, without a display
            raise self.broken
        if self.picture is None:
            try:
                frame = np.asarray(self.episode.call(self.env.render))
                if frame.ndim != 3 or frame.shape[2] < 3:
                    raise ValueError(f"its pictures are of {frame.shape}, not (height, width, 3)")
            except BaseException as error:
                said = "\nMUJOCO_GL=egl may draw it without a display" * ("mujoco" in sys.modules)
                self.broken = ValueError(tidy(error) + said)
                raise self.broken from None
            self.picture = np.ascontiguousarray(frame[:, :, :3], np.uint8)
        return self.picture

    def q(self, obs, act):
        """The smallest value of the critics, as in the target, in the environment's own rewards."""
        obs, act = self.policy.normalize(np.array(obs)), torch.from_numpy(np.float32(act))
        with torch.inference_mode():
            values = self.policy.critic(obs, act).amin(0)[:, 0]  # (n, B, 1) -> (B,)
        return (values / self.policy.reward_scale).tolist()

    def predicted(self):
        """Q(s_t, a_t) of the steps on the tape, evaluated only when somebody looks."""
        new = slice(len(self.values), len(self.tape))
        if new.start < new.stop:
            self.values += self.q(self.trail[new], [act for act, *_ in self.tape[new]])
        return self.values

    def realised(self):
        """The discounted return from each step on, after a time limit with the critic's value, or
        nothing as long as the end is not known."""
        if not self.row:
            return []
        last = np.array(self.trail[-1:])
        returns = [0.0 if self.row["terminated"] else self.q(last, self.policy.act_unit(last))[0]]
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
    said = SPREAD if row["episodes"] > 1 else "1 episode: return {mean:.1f}, "
    return (said + SUMMARY).format(**row) + ddpg.success_rate(row.get("success"))


EPISODE = "step {train_step:,}, seed {seed}: return {return:.1f}, length {length}"
SPREAD = "{episodes} episodes: return {mean:.1f} ± {std:.1f} (min {min:.1f}, max {max:.1f}), "
SUMMARY = "length {length:.0f}, {policy} of step {train_step:,}, deterministic: {deterministic}"


# --------------------------------------------------- drawing

BACK, FIELD, LINE = (30, 32, 35), (42, 45, 49), (78, 83, 89)
TEXT, DIM = (228, 229, 231), (158, 163, 170)
# Okabe and Ito: distinct for colour-blind eyes. What flies is orange, what is pinned is blue
ORANGE, BLUE, YELLOW = (230, 159, 0), (86, 180, 233), (240, 228, 66)
COLORS = BLUE, ORANGE, (0, 178, 125), (204, 121, 167), YELLOW, (213, 94, 0)  # of kinds of runs
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


def number(value, form=".3g"):
    """As a string, of which none is a minus before zeros."""
    return format(float(format(value, form.replace("+", "").replace(",", ""))) + 0.0, form)


@functools.lru_cache(1_000)
def written(string, px, color, width):
    """A Surface of this text, cut to a width."""
    string = "".join(c if c.isprintable() else "?" for c in string[: max(0, width)])
    full = string = string.replace("7.", "7\u200a.")  # or the point would hide below
    while string and font(px).size(string)[0] > width:
        full = full[:-1]
        string = full and full + ".."
    return font(px).render(string, True, color)


def text(surface, rect, string, px, color=TEXT, align=0.0):
    """Write at the top of a Rect, at its left (align 0) to right end (1), cut -> the width used."""
    image = written(string, px, color, rect.w)
    surface.blit(image, (rect.x + align * (rect.w - image.get_width()), rect.y))
    return image.get_width()


def text_pair(surface, rect, left, right, px, left_color=DIM, right_color=TEXT):
    """Write at both ends of a line, of which the left one gives way."""
    used = text(surface, rect, right, px, right_color, 1)
    rest = pygame.Rect(rect.x, rect.y, rect.w - used - px // 2, rect.h)
    text(surface, rest, left, px, left_color)


def text_row(surface, rect, parts, px):
    """Write strings in their colors [(string, color)] beside each other."""
    rect = rect.copy()
    for string, color in parts:
        used = text(surface, rect, string, px, color) + px
        rect.x, rect.w = rect.x + used, max(0, rect.w - used)


def text_box(surface, rect, string, px, color=TEXT, edge=None):
    """Write on a box of its own, which begins at the top left of the Rect, on the surface."""
    size = min(rect.w, font(px).size(string)[0] + px), px + 2
    box = pygame.Rect(rect.topleft, size).clamp(surface.get_rect())
    surface.fill(BACK, box)
    if edge:
        pygame.draw.rect(surface, edge, box, 1)
    text(surface, box.inflate(-px, -px // 3), string, px, color)


def limits(values, whole=False):
    """The range that a plot shows: of many values not what a few spikes need, unless `whole`."""
    values = np.asarray(values, float)
    low, high = values.min(), values.max()
    if len(values) > 50 and not whole:
        a, b = np.percentile(values, (2, 98))
        low, high = max(low, a - (b - a) / 2), min(high, b + (b - a) / 2)
    pad = max(0.5, abs(low) / 1e3) if low == high else 0.0
    return low - pad, high + pad


def ticks(low, high, most):
    """Round numbers from `low` to `high`, as many as fit, which is `most` or two."""
    size = 10.0 ** np.floor(np.log10(high - low))
    for step in size / 20, size / 10, size / 5, size / 2, size, 2 * size, 5 * size:
        marks = np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step
        if len(marks) <= max(2, most):
            break
    return marks


class Plot:
    """A Rect that shows x and y in these ranges, with the numbers of y, if any, at the right;
    `whole` plots have them at the left, and those of x below."""

    def __init__(self, surface, rect, xs, ys, px, whole=False):
        self.surface, self.rect, self.px = surface, rect, max(12, px - 3)
        self.xs, self.ys = xs, ys or (0, 1)
        self.inner = inner = rect.inflate(-12, -12)
        surface.fill(FIELD, rect)
        if rect.w < 12 * px or rect.h < 2 * px:
            return  # no room for numbers
        inner.h -= whole and self.px
        inner.w -= whole and px // 2
        marks = ticks(*self.ys, min(8, inner.h / self.px / 1.2)) if ys else ()
        marks = {y: number(y, ".6g") for y in marks}
        # In the panel all plots leave the same room, so that their cursors are one line
        widest = max(marks.values(), key=len) if whole and marks else "-0.005"
        width = font(self.px).size(widest)[0] + 6
        inner.w -= width
        inner.x += whole and width
        for y, mark in marks.items():
            at = self.at(xs[0], y)[1]
            pygame.draw.line(surface, LINE, (inner.x, at), (inner.right, at))
            beside = pygame.Rect(rect.x + 2 if whole else inner.right, 0, width, self.px)
            text(surface, beside.move(0, at - self.px / 3), mark, self.px, DIM, 1)
        for x in ticks(*xs, min(10, inner.w / self.px / 5)) if whole else ():
            if x % 1:
                continue  # there are no halves of steps
            mark = number(x, ",.0f")
            below = pygame.Rect(0, inner.bottom + 4, font(self.px).size(mark)[0], self.px)
            below.centerx = self.at(x, 0)[0]
            within = pygame.Rect(inner.x, rect.y, rect.right - inner.x, rect.h)
            text(surface, below.clamp(within), mark, self.px, DIM)

    def at(self, x, y):
        """Where on the surface values are, or arrays of them, (.., 2)."""
        (x0, x1), (y0, y1), inner = self.xs, self.ys, self.inner
        right = inner.x + (np.asarray(x, float) - x0) / (x1 - x0) * (inner.w - 1)
        up = inner.bottom - 1 - (np.clip(y, y0, y1) - y0) / (y1 - y0) * (inner.h - 1)
        return np.stack([right, up + 0 * right], -1)

    def x_at(self, pos):
        """The x under the mouse, within the range."""
        share = (pos[0] - self.inner.x) / max(1, self.inner.w - 1)
        return self.xs[0] + float(np.clip(share, 0, 1)) * (self.xs[1] - self.xs[0])

    def line(self, x, y, color, dashed=False, thin=False):
        if len(x) == 1:
            pygame.draw.circle(self.surface, color, self.at(x[0], y[0]).tolist(), 3)
        if len(x) < 2:
            return
        every = max(1, len(x) // 2_000)
        points = self.at(x[::every], y[::every])
        pieces = [points]
        if dashed:  # seven pixels of every twelve
            columns = np.arange(points[0, 0], points[-1, 0] + 1)
            points = np.stack([columns, np.interp(columns, *points.T)], -1)
            pieces = [points[i : i + 8] for i in range(0, len(points) - 1, 12)]
        for piece in pieces:
            for shift in [(0, 0)] if thin else [(0, 0), (1, 0), (0, 1), (1, 1)]:
                pygame.draw.aalines(self.surface, color, False, (piece + shift).tolist())

    def band(self, x, low, high, color):
        if len(x) > 1:
            edge = np.concatenate([self.at(x, low), self.at(x, high)[::-1]])
            shade = pygame.Surface(self.rect.size, pygame.SRCALPHA)
            pygame.draw.polygon(shade, (*color, 60), (edge - self.rect.topleft).tolist())
            self.surface.blit(shade, self.rect)


def dimmed(color):
    return ((np.array(color) + FIELD) // 2).tolist()


# ------------------------------------------- what is drawn

CURVES = [  # what they are called, their column in progress.csv
    ("test score", "eval_mean"),
    ("training return", "train_return"),
    ("critic loss", "critic_loss"),
    ("mean Q", "mean_q"),
]


def draw_curves(surface, rect, logs, which, px, playing=None, last=1):
    """Learning curves of runs in one environment with a band of ± one sd: of one run over its
    episodes, of several of a kind around their mean, with each of them thin -> the Plot."""
    name, column = CURVES[which]
    groups = [(*kind, spread_of(kind[1], column)) for kind in kinds(logs)]
    goals = {log.number("solved_at") for log in logs} - {None} if column == "eval_mean" else ()
    values = [[*goals], *(log.curve(column)[1] for log in logs)]
    for *_, (_, mean, sd) in groups:
        usual = np.minimum(sd, 3 * np.median(sd) if len(sd) else 0)  # one wide place is cut
        values += [mean - usual, mean + usual]
    values = np.concatenate(values)
    ys = limits(values, whole=column == "eval_mean") if len(values) else None
    last = max([last, *(log.table["step"].max(initial=0) for log in logs)])
    title, below = split(rect, [px + 4, None])
    plot = Plot(surface, below, (0, last), ys, px, whole=True)
    surface.fill(FIELD, title)
    for (*_, (x, mean, sd)), color in zip(groups, itertools.cycle(COLORS)):
        plot.band(x, mean - sd, mean + sd, color)
    for goal in goals:
        plot.line((0, last), (goal, goal), TEXT, dashed=True, thin=True)
    legend = [(f"{name} over training steps", DIM)]
    if playing and len(logs) > 1:
        legend.append((f"{playing.path.name}, playing", TEXT))
    legend += [(f"dashed: solved at {number(goal, '.6g')}", DIM) for goal in sorted(goals)]
    for (label, members, (x, mean, _)), color in zip(groups, itertools.cycle(COLORS)):
        for log in members if len(members) > 1 else ():
            plot.line(*log.curve(column), TEXT if log is playing else dimmed(color), thin=True)
        plot.line(x, mean, color)
        if len(logs) > 1:
            legend.append((label + f", {len(members)} runs" * (len(members) > 1), color))
    banded = {len(members) > 1 for _, members, (_, _, sd) in groups if sd.any()}
    if banded:
        over_runs = "± sd over runs" + ", of a lone run over episodes" * (False in banded)
        legend.append((over_runs if True in banded else "± sd of episodes", DIM))
    if not len(values):
        legend = [(f"no {name} yet", DIM)]
    text_row(surface, title.inflate(-16, 0).move(0, 4), legend, px)
    return plot


class Section(NamedTuple):
    """A part of the panel. Write a function that draws on a Rect what it takes from the window
    (its `player`, `pinned`, `px`, `surface`), and add it below."""

    lines: Any  # of the window -> its height in lines of text, 0 to leave it out, None for a share
    draw: Any  # of the window and a Rect


def draw_return(window, rect):
    player, px = window.player, window.px
    rect = rect.inflate(-12, 0)
    text_pair(window.surface, rect, "return so far", f"t = {player.t:,}/{player.limit:,}", px)
    rect = rect.move(0, px)
    ending = player.ending if player.over else "assisted" if player.assisted else ""
    used = text(window.surface, rect, number(player.episode.ret, ".1f"), 2 * px)
    rect.x, rect.w = rect.x + used + px, rect.w - used - px
    text(window.surface, rect.move(0, px // 2), ending, px, YELLOW, 1)


def draw_series(window, rect, name, curves):
    """A plot over the steps of the episode, where a click or drag goes to a moment. Dimmed is what
    lies ahead on the tape. curves: [(player, what, values, color, dashed)]."""
    surface, px, longest = window.surface, window.px, max(len(p.tape) for p in window.players)
    head, below = split(rect, [px + 2, None])
    everything = np.concatenate([values for _, _, values, *_ in curves])
    xs = 0, max(longest, min(window.player.limit, 200), 2) - 1
    plot = Plot(surface, below, xs, limits(everything) if len(everything) else None, px)
    surface.fill(FIELD, head)
    place = head.inflate(-12, 0).move(0, 4)
    for player, _, values, color, dashed in reversed(curves):
        x, t = np.arange(len(values)), player.t
        if t < len(values):
            plot.line(x[max(0, t - 1) :], values[max(0, t - 1) :], dimmed(color), dashed)
        plot.line(x[:t], values[:t], color, dashed)
        if 0 < t <= len(values):
            place.w -= text(surface, place, number(values[t - 1]), px, color, 1) + px // 2
    text_row(surface, place, [(what, color) for _, what, _, color, _ in curves], px)
    if window.t:
        x = plot.at(window.t - 1, 0)[0]
        pygame.draw.line(surface, TEXT, (x, below.y), (x, below.bottom - 1))

    def go(pos):
        window.paused, window.goal = True, round(plot.x_at(pos)) + 1

    def hint(pos):
        i = round(plot.x_at(pos))
        said = [f"{what} {number(v[i])}" for _, what, v, *_ in curves if i < len(v)]
        return f"t = {i + 1:,}: {', '.join(said)}" if said else ""

    window.hot.append(Hot(name, below, go, hint, True))


def draw_critic(window, rect):
    player, pinned = window.player, window.pinned
    curves = [(player, "critic's Q", player.predicted(), ORANGE, False)]
    if realised := player.realised():
        curves.append((player, "realised", realised, YELLOW, False))
    if pinned:
        curves.append((pinned, "pinned", pinned.predicted(), BLUE, True))
    draw_series(window, rect, "critic", curves)


def draw_rewards(window, rect):
    curves = [(window.player, "reward", window.player.rewards, ORANGE, False)]
    if window.pinned:
        curves.append((window.pinned, "pinned", window.pinned.rewards, BLUE, True))
    draw_series(window, rect, "rewards", curves)


def last_act(player):
    """-> act in [-1, 1], whether it was the user's."""
    act, _, helped = player.tape[player.t - 1] if player.t else (0 * player.policy.low, None, False)
    return act, helped


def draw_actions(window, rect):
    """Actions, as room allows, as bars from the middle; in grey the zone where one does nothing,
    and a line where the pinned policy is."""
    surface, px, player = window.surface, window.px, window.player
    head, *rows = split(rect, [px + 4] * max(1, rect.h // (px + 4)))
    act, helped = last_act(player)
    name = "action" + f", {len(rows)} of {len(act)}" * (len(rows) < len(act))
    text_pair(surface, head.inflate(-12, 0), name, "yours" * helped, px, DIM, YELLOW)
    widest = max(font(px).size(name)[0] for name in player.known.actions)
    for i, (row, unit) in enumerate(zip(rows, act.tolist())):
        sizes = [min(widest + 8, rect.w // 3), None, 4 * px]
        label, bar, value = split(row.inflate(-12, 0), sizes, across=True)
        text(surface, label.inflate(-4, -4), player.known.actions[i], px)
        text(surface, value.move(0, 2), number(player.policy.to_env(act)[i], "+.2f"), px, TEXT, 1)
        bar.h -= 3
        surface.fill(FIELD, bar)
        if player.known.dead_zones:
            left, right = (bar.centerx + bar.w / 2 * end for end in player.known.dead_zones[i])
            surface.fill(LINE, (left, bar.y, right - left, bar.h))
        left, width = bar.centerx + min(0, unit) * bar.w / 2, max(2, abs(unit) * bar.w / 2)
        surface.fill(YELLOW if helped else ORANGE, (left, bar.y + 3, width, bar.h - 6))
        pygame.draw.line(surface, TEXT, (bar.centerx, bar.y), (bar.centerx, bar.bottom - 1))
        if window.pinned:
            x = bar.centerx + float(last_act(window.pinned)[0][i]) * bar.w / 2
            pygame.draw.line(surface, BLUE, (x, bar.y), (x, bar.bottom - 1), 3)


def draw_observation(window, rect):
    player, px = window.player, window.px
    head, below = split(rect.inflate(-12, 0), [px + 4, None])
    cells = table(below.inflate(10, 0), 2 * max(1, round(below.h / (px + 4))))
    size, obs = len(player.trail[0]), player.trail[player.t]
    name = "observation" + f", {len(cells)} of {size}" * (len(cells) < size)
    text(window.surface, head, name, px, DIM)
    for cell, name, value in zip(cells, player.known.observations, obs):
        text_pair(window.surface, cell, name, number(value, "+.2f"), px)


ANGLES, VELOCITIES = (-np.pi, np.pi), (-8, 8)  # on the map of the pendulum's policy


@functools.lru_cache(2)
def policy_image(policy):
    """The pendulum's torque over angle and velocity, orange for + and blue for -."""
    axes = np.linspace(*ANGLES, 96), np.linspace(*VELOCITIES[::-1], 64)
    angle, velocity = np.meshgrid(*axes, indexing="ij")
    obs = np.stack([np.cos(angle), np.sin(angle), velocity], -1)
    torque = policy.act(obs.reshape(-1, 3)).reshape(96, 64, 1)
    color = FIELD + (np.where(torque > 0, ORANGE, BLUE) - FIELD) * np.abs(torque) / policy.high
    return pygame.surfarray.make_surface(color.astype(np.uint8))


def draw_map(window, rect):
    """The policy map with the trail of the episode on it, and a ring for the present state."""
    surface, player, px = window.surface, window.player, window.px
    head, rect = split(rect, [px + 4, None])
    said = "torque over angle and velocity"
    text_pair(surface, head.inflate(-12, 0), said, "orange is +", px, DIM, ORANGE)
    surface.blit(pygame.transform.smoothscale(policy_image(player.policy), rect.size), rect)
    cos, sin, velocity = np.array(player.trail[: player.t + 1]).T
    x = np.interp(np.arctan2(sin, cos), ANGLES, (rect.x, rect.right - 1))
    y = np.interp(velocity, VELOCITIES, (rect.bottom - 1, rect.y))
    points = np.stack([x, y], 1)
    wraps = np.flatnonzero(np.abs(np.diff(x)) > rect.w / 2) + 1  # which draws no line across
    for piece in np.split(points, wraps):
        if len(piece) > 1:
            pygame.draw.lines(surface, BACK, False, piece.tolist(), 4)
            pygame.draw.lines(surface, TEXT, False, piece.tolist(), 2)
    pygame.draw.circle(surface, BACK, points[-1].tolist(), 7)
    pygame.draw.circle(surface, YELLOW, points[-1].tolist(), 5)


SECTIONS = [  # from top to bottom, as many as there is room for
    Section(lambda window: 2.7, draw_return),
    Section(lambda window: None, draw_critic),
    Section(lambda window: None, draw_rewards),
    Section(lambda window: 1 + min(6, len(window.player.policy.low)), draw_actions),
    Section(lambda w: None if w.show_map and w.player.known is KNOWN["Pendulum"] else 0, draw_map),
    Section(lambda window: 1 + -(-len(window.player.trail[0]) // 2), draw_observation),
]


def draw_panel(window, rect):
    """What the sections show of what flies; of the last one as much as there is room for."""
    line, rect = window.px + 4, rect.inflate(-12, -6)
    room, heights = rect.h, []
    for section in SECTIONS:
        lines = section.lines(window)
        size = line * min(room // line, 4 if lines is None else lines)
        if size < line * (4 if lines is None else min(lines, 3)):
            size = 0
        room -= size
        heights.append(None if size and lines is None else size)
    for section, height, part in zip(SECTIONS, heights, split(rect, heights)):
        if height is None:
            part.h -= 8
        if height != 0:
            window.attempt(section.draw, window, part)


def draw_timeline(window, rect):
    """Learning curves over the policies of the run: a ring for the one flying, and for the pinned
    one, B for the best. A click on another run's curve plays that run."""
    surface, run, px = window.surface, window.run, window.px
    above, row = split(rect, [None, px])
    logs = [log for log in window.logs if log.env == run.log.env]
    last = max(1, *run.policies, *(player.train_step for player in window.players))
    what = [above, logs, window.curve, px, run.log, last]
    if window.kept[0] != what:  # many runs take longer than there is between two pictures
        window.kept = what, draw_curves(surface, *what), pygame.Surface(above.size)
        window.kept[-1].blit(surface, (0, 0), above)
    _, plot, picture = window.kept
    surface.blit(picture, above)
    surface.fill(FIELD, row)
    y = row.centery
    for x in plot.at([*run.policies], 0)[:, 0].tolist():
        pygame.draw.line(surface, DIM, (x, y - 4), (x, y + 4))
    if run.best is not None and len(run.policies) > 1:
        place = pygame.Rect(plot.at(run.best, 0)[0] + px // 2, row.y + 2, px, px)
        if place.right > row.right:
            place.right -= 2 * px
        text(surface, place, "B", px, YELLOW)
    for player, color in zip(window.players, (ORANGE, BLUE)):
        pygame.draw.circle(surface, color, (plot.at(player.train_step, 0)[0], y), px // 3 + 1, 3)
    column = CURVES[window.curve][1]

    def nearest(pos):
        """-> (distance, log, step, value): the curve that is nearest, and its row that is."""
        found, x = [], plot.x_at(pos)
        for log in logs:
            steps, values = log.curve(column)
            if len(steps):
                i = np.abs(steps - x).argmin()
                at = plot.at(np.clip(x, steps[0], steps[-1]), np.interp(x, steps, values))
                found.append((np.hypot(*(at - pos)), log, steps[i], values[i]))
        return min(found, key=lambda row: row[0], default=(np.inf, None, 0, 0))

    def go(pos):
        distance, log, *_ = nearest(pos)
        there = distance < px and window.grip is None
        window.wanted = (log if there else run.log).path, plot.x_at(pos), False

    def hint(pos):
        distance, log, step, value = nearest(pos)
        if distance > 2 * px and (len(logs) > 1 or not log):
            return ""
        sd = dict(zip(*log.curve("eval_std"))).get(step) if column == "eval_mean" else None
        said = f"step {step:,.0f}: {number(value, '.1f' if abs(value) >= 10 else '.3g')}"
        said += "" if sd is None else f" ± {sd:.0f}" if sd >= 10 else f" ± {sd:.2g}"
        return said + f", {log.path.name}" * (len(logs) > 1)

    window.hot.append(Hot("timeline", rect, go, hint, True))


# ----------------------------------------------------- films

LONGEST = 3_000  # pictures of a film that is recorded in the window


class Film:
    """A film that is encoded while it is recorded, so that nothing is left to be done at its end: a
    GIF by Pillow, MP4 or WebM by ffmpeg, as the name ends. It plays at the environment's speed.

    path: a Path. size: in pixels. fps: of the environment. Raises ValueError without the program.
    """

    def __init__(self, path, size, fps):
        self.path, self.surface, self.n = path, pygame.Surface(size), 0
        self.stride = int(np.ceil(fps / 34))  # more pictures a second are too many for browsers
        self.ms = 1000 * self.stride / fps
        video = path.suffix.lower() in (".mp4", ".webm")
        self.encoder = (Video if video else Gif)(path, size, self.ms)

    def add(self, last=False):
        """The picture that is on `surface` now; the last one of an episode stays for 1.5 s."""
        self.encoder.add(pygame.image.tobytes(self.surface, "RGB"), 1500 if last else self.ms)
        self.n += 1

    def save(self):
        if not self.n:
            raise ValueError("nothing was recorded")
        self.path.write_bytes(self.encoder.end())


class Gif:
    """Pictures of what differs from the one before, with a palette each."""

    def __init__(self, path, size, ms):
        try:
            from PIL import GifImagePlugin, Image
        except ImportError:
            raise ValueError("a GIF needs Pillow: python -m pip install pillow") from None
        self.image, self.encode = Image, GifImagePlugin.getdata
        self.before, self.elapsed = np.full((size[1], size[0], 3), -1, np.int16), 0.0
        width, height = (side.to_bytes(2, "little") for side in size)
        repeated = b"!\xff\x0bNETSCAPE2.0\x03\x01\0\0\0"
        self.parts = [b"GIF89a", width, height, b"\0\0\0", repeated]

    def add(self, pixels, ms):
        picture = np.frombuffer(pixels, np.uint8).reshape(self.before.shape)
        differ = (picture != self.before).any(2)
        rows, columns = (np.flatnonzero(differ.any(axis)) for axis in (1, 0))
        top, bottom = (rows[0], rows[-1] + 1) if len(rows) else (0, 1)  # one pixel at least
        left, right = (columns[0], columns[-1] + 1) if len(columns) else (0, 1)
        part = self.image.fromarray(picture[top:bottom, left:right])
        part = part.quantize(255, self.image.Quantize.FASTOCTREE, dither=0)
        # The last color is none: the pixel stays as it is
        part.paste(255, mask=self.image.fromarray(~differ[top:bottom, left:right]))
        part.putpalette((part.getpalette() + [0] * 768)[:768])
        shown = round((self.elapsed + ms) / 10) - round(self.elapsed / 10)  # in hundredths
        self.elapsed, self.before = self.elapsed + ms, picture
        options = dict(include_color_table=True, transparency=255, disposal=1)
        self.parts += self.encode(part, (int(left), int(top)), duration=10 * shown, **options)

    def end(self):
        return b"".join([*self.parts, b";"])


class Video:
    """What ffmpeg makes of them, in a folder of its own until all is well."""

    def __init__(self, path, size, ms):
        if not (ffmpeg := shutil.which("ffmpeg")):
            raise ValueError(f"{path.name} needs ffmpeg, which is not installed; a .gif does not")
        self.folder, self.ms = tempfile.TemporaryDirectory(), ms
        self.made = Path(self.folder.name, f"film{path.suffix}")
        flags = f"-loglevel error -f rawvideo -pix_fmt rgb24 -s {size[0]}x{size[1]}"
        flags += f" -r {1000 / ms:.6g} -i - -pix_fmt yuv420p -vf pad=ceil(iw/2)*2:ceil(ih/2)*2"
        pipes = dict(stdin=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
        self.process = subprocess.Popen([ffmpeg, *flags.split(), self.made], **pipes)

    def add(self, pixels, ms):
        with suppress(BrokenPipeError):  # `end` says why
            self.process.stdin.write(pixels * max(1, round(ms / self.ms)))

    def end(self):
        with self.folder:
            _, error = self.process.communicate()
            if self.process.returncode:
                raise ValueError("ffmpeg: " + error.decode(errors="replace").strip())
            return self.made.read_bytes()


# ------------------------------------------------ the window

# Single characters as they are typed or pygame's names of keys, method and argument, meaning
KEYS = [
    ("Space", ("toggle", "paused"), "pause or go on"),
    (", Left", ("step_by", -1), "one step back, Shift: ten"),
    (". Right", ("step_by", 1), "one step on, Shift: ten"),
    ("Arrows", None, "fly it, unless paused"),
    ("Drag", None, "push it; in plots: go there"),
    ("R Backspace", ("restart", 0), "same episode again"),
    ("N Return", ("restart", 1), "next seed"),
    ("P", ("restart", -1), "previous seed"),
    ("L", ("toggle", "locked"), "lock the seed"),
    ("E", ("toggle", "hold"), "stop where episodes end"),
    ("-", ("change_speed", -1), "slower, to 1/8x"),
    ("+ =", ("change_speed", 1), "faster, to 16x, max"),
    ("0", ("change_speed", 0), "speed 1x"),
    ("PageUp [", ("choose", "previous"), "previous snapshot"),
    ("PageDown ]", ("choose", "next"), "next snapshot"),
    ("Home", ("choose", "first"), "untrained agent"),
    ("End", ("choose", "newest"), "newest, and follow"),
    ("B", ("choose", "best"), "best policy"),
    ("O", ("next_run",), "next run"),
    ("T", ("next_curve",), "another learning curve"),
    ("D", ("toggle", "noisy"), "noisy or not"),
    ("C", ("pin",), "pin for comparison"),
    ("Tab", ("toggle", "show_panel"), "panel"),
    ("M", ("toggle", "show_map"), "policy map"),
    ("S", ("save_png",), "save a picture"),
    ("G", ("record",), "record a GIF, save it"),
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
SIZE, FILM_SIZE = (1000, 640), (640, 400)  # of pictures, where nothing else is asked for
NEWEST = 10**13  # a training step beyond all
SPEEDS = [1 / 8, 1 / 4, 1 / 2, 1, 2, 4, 8, 16, 1000]  # the last is as fast as it goes
LEAVE_IN = 60  # seconds after the end of a training, of a window that was opened for it


class Hot(NamedTuple):
    """A part of the picture that answers to the mouse."""

    name: str
    rect: pygame.Rect
    go: Any  # of the position of the mouse when it is pressed, and while it is dragged if `drags`
    hint: Any = ""  # what is written beside the mouse, or a function of its position
    drags: bool = False


def bar(left, right, top=-1, bottom=1):
    return (left, top), (right, top), (right, bottom), (left, bottom)


CONTROLS = [  # what can be clicked: its polygons from (-1, -1) to (1, 1), action, hint
    ([bar(-1, -0.6), [(1, -1), (-0.5, 0), (1, 1)]], ("restart", -1), "previous seed (P)"),
    ([bar(-0.8, -0.2), bar(0.2, 0.8)], ("toggle", "paused"), "pause (Space)"),
    ([bar(0.6, 1), [(-1, -1), (0.5, 0), (-1, 1)]], ("restart", 1), "next seed (N)"),
    ([bar(-0.8, 0.8, -0.2, 0.2)], ("change_speed", -1), "slower (-)"),
    ([bar(-0.8, 0.8, -0.2, 0.2), bar(-0.2, 0.2, -0.8, 0.8)], ("change_speed", 1), "faster (+)"),
]
PLAY = [[(-0.8, -1), (1, 0), (-0.8, 1)]]  # in place of the second one


class Window:
    """The players on a surface: `handle` an event, `update` by seconds, `draw`; `loop` does all."""

    def __init__(self, surface, options):
        self.surface, self.options = surface, options
        self.seed, self.noisy = options.seed, options.noisy
        self.run = self.player = self.pinned = self.film = None
        self.logs, self.hot = [], []
        self.kept = None, None, None  # what the learning curves show, their Plot and picture
        self.alive = self.show_panel = self.show_map = True
        self.dirty = True  # the picture is no longer true
        self.paused = self.locked = self.hold = self.follow = self.show_help = self.live = False
        self.results, self.speed, self.curve = {}, 1, 0
        self.steps, self.seconds = 0, 0.0  # played at this speed, which tell how fast it really is
        self.owed, self.held = 0.0, set()  # steps that are due, keys down
        self.goal = self.wanted = None  # a step, and (run, training step, follow), to go to next
        self.moment = None  # the step at which policies are looked at, some of which end before
        self.grip, self.gripped, self.mouse = None, (0, 0), (-1, -1)  # the Hot, where, mouse
        self.notice, self.notice_for, self.poll_in, self.leave_in = "", 0.0, 0.0, LEAVE_IN
        self.size = surface.get_size()  # before full screen

    @property
    def players(self):
        return [player for player in (self.player, self.pinned) if player]

    @property
    def over(self):
        return all(player.over for player in self.players)

    @property
    def on_screen(self):
        """Or it is a picture or a film that is drawn."""
        return self.surface is pygame.display.get_surface()

    @property
    def t(self):
        return max(player.t for player in self.players)

    def say(self, message):
        self.notice, self.notice_for, self.dirty = tidy(message), 5.0, True

    def attempt(self, do, *arguments):
        """Whatever goes wrong is a notice, and what was flying flies on -> whether it went well."""
        try:
            do(*arguments)
            return True
        except BaseException as error:  # SystemExit of an environment, too
            self.say(error)

    def open(self, targets):
        """Show runs or policies: of the first the best policy, or of a training each new one."""
        paths = [Path(self.options.start, path) for path in find(targets)]
        first = next((path for path in paths if read_run(path).policies), paths[0])
        live = self.options.live or not self.options.headless and under_way(first)
        self.moment = 0
        self.play_run(first, NEWEST if live else None, live)
        self.live, self.logs = live, [read_log(path)[0] for path in paths]
        more = f"; O plays the next of {len(paths)} runs" if paths[1:] else ""
        self.say("\n".join(self.run.faults or [f"opened {self.named(first)}{more}"]))

    def play_run(self, path, step, follow=False):
        """The policy of a run that is nearest to a training step, or the best one."""
        mine = self.run and path == self.run.log.path
        run = self.run if mine else read_run(path)
        if run.policies:
            steps = sorted(run.policies)
            best = steps[-1] if run.best is None else run.best
            step = best if step is None else min(steps, key=lambda other: abs(other - step))
            shown = self.player and (self.player.policy.meta["path"], self.player.train_step)
            if shown != (self.named(run.policies[step]), step):
                if self.moment is None:
                    self.moment = self.t if self.player else 0
                self.show(run.policies[step], self.moment)
        elif self.player or self.options.headless or not self.options.live:
            said = f"{self.named(path)} is not the folder of a run, or has no policies yet"
            raise ValueError("\n".join(run.faults or [said]))
        self.run, self.follow = run, follow

    def named(self, path):
        """As it was typed."""
        return str(path).removeprefix(self.options.hidden)

    def show(self, path, t=0):
        """Fly the episode with the policy of another file, from step t on."""
        policy = ddpg.load(path)
        policy.meta["path"] = self.named(path)
        player = Player(policy, self.options.env, self.options.drawn, self.noisy, self.results)
        player.start(self.seed, t)  # what fails here leaves the old one flying
        if self.player:
            self.player.close()
        self.player, self.owed, self.dirty = player, 0.0, True
        self.steps, self.seconds = 0, 0.0
        if self.pinned and self.pinned.env_id != player.env_id:
            self.pin()
            self.say("nothing is pinned any more, as this is another environment")
        if self.pinned and t == 0:
            self.pinned.start(self.seed)

    # ---- what the key table does

    def toggle(self, name):
        setattr(self, name, not getattr(self, name))
        if name == "paused" and self.hold and self.over:
            self.paused = False
            self.restart(not self.locked)
        if name == "noisy":
            self.restart()

    def step_by(self, by):
        """Pause, and step forward or back, once the keys that are waiting are known."""
        self.paused, self.owed = True, 0.0
        self.goal = max(0, (self.t if self.goal is None else self.goal) + by)

    def restart(self, by=0):
        """Begin the episode of the present seed, or of another one."""
        if self.seed + by < 0:
            raise ValueError("there is no seed before 0")
        for player in self.players:
            player.noisy = self.noisy and player is self.player
            player.start(self.seed + by)
        self.seed, self.owed, self.dirty, self.moment = self.seed + by, 0.0, True, None

    def change_speed(self, by):
        index = int(np.clip(SPEEDS.index(self.speed) + by, 0, len(SPEEDS) - 1))
        self.speed = SPEEDS[index] if by else 1
        self.owed, self.steps, self.seconds = 0.0, 0, 0.0

    def choose(self, which):
        """Another policy of the run at the same moment; but for the newest it ends following."""
        if self.wanted and self.wanted[1] is None:  # another run comes first
            self.settle()
        steps, now = list(self.run.policies), self.player.train_step
        if self.wanted:
            now = self.wanted[1]
        found = dict(first=steps[:1], newest=steps[-1:])
        found["best"] = [] if self.run.best is None else [self.run.best]
        found["previous"] = [step for step in steps if step < now][-1:]
        found["next"] = [step for step in steps if step > now][:1]
        if not found[which]:
            raise ValueError("\n".join([f"there is no {which} snapshot", *self.run.faults]))
        self.wanted = self.run.log.path, found[which][0], which == "newest"

    def next_run(self):
        paths = [log.path for log in self.logs]
        if len(paths) < 2:
            raise ValueError("only one run is open: viewer.py RUN RUN .., or a folder of runs")
        self.wanted = paths[(paths.index(self.run.log.path) + 1) % len(paths)], None, False

    def next_curve(self):
        self.curve = (self.curve + 1) % len(CURVES)

    def pin(self):
        old, self.pinned = self.pinned, None
        if old:
            return old.close()
        pinned = Player(self.player.policy, self.options.env, results=self.results)
        pinned.start(self.seed, self.player.t)  # what fails here pins nothing
        self.pinned = pinned
        self.say(f"step {pinned.train_step:,} is pinned: now choose another")

    def free_name(self, kind):
        """The Path of a new file in the folder where this was started."""
        name = f"{self.player.env_id.split(':')[-1].replace('/', '-')}-step{self.player.train_step}"
        for i in itertools.count(1):
            end = f"-seed{self.seed}-t{self.player.t}" + f"-{i}" * (i > 1)
            if not (path := Path(self.options.start, f"{name}{end}.{kind}")).exists():
                return path

    def save_png(self):
        self.draw()
        pygame.image.save(self.surface, path := self.free_name("png"))
        self.say(f"saved {path.name} in {path.parent}")

    def record(self):
        film, self.film = self.film, None
        if film:
            film.save()
            self.say(f"saved {film.path.name}, {film.n} pictures, in {film.path.parent}")
        else:
            size = self.options.size or FILM_SIZE
            self.film = Film(self.free_name("gif"), size, self.player.fps)

    def full_screen(self):
        if self.surface.get_flags() & pygame.FULLSCREEN:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for _ in range(2):  # as the first may only leave full screen, and warn of that
                    self.surface = pygame.display.set_mode(self.size, pygame.RESIZABLE)
                    pygame.event.pump()
        else:
            self.size = self.surface.get_size()
            self.surface = pygame.display.set_mode((0, 0), pygame.FULLSCREEN)

    def quit(self):
        """From the help back to the picture, from full screen to the window, and out of it."""
        if self.show_help:
            self.show_help = False
        elif self.surface.get_flags() & pygame.FULLSCREEN:
            self.full_screen()
        else:
            self.alive = False

    # ---- events

    def handle(self, event):
        """What a key, the mouse or the window system asks for."""
        self.dirty = True
        if event.type in (pygame.KEYDOWN, pygame.MOUSEBUTTONDOWN, pygame.DROPFILE):
            self.notice_for = 0.0  # it has been seen
            if not self.live:
                self.leave_in = np.inf
        if event.type == pygame.QUIT:
            self.alive = False
        elif event.type == pygame.KEYDOWN:
            typed, code = event.unicode.lower(), event.key
            action = ACTION_OF.get(typed) or ACTION_OF.get(code)
            if event.mod & pygame.KMOD_SHIFT and code < 128:  # with which layouts type another
                action = action or ACTION_OF.get(chr(code))
            name, *arguments = action or [None]
            flying, repeated = code in ARROWS and not self.paused, code in self.held
            self.held.add(code)
            possible = self.player or name in ("quit", "full_screen")
            if name == "step_by" and event.mod & pygame.KMOD_SHIFT:
                arguments = [10 * arguments[0]]
            if name and possible and not flying and (not repeated or name in REPEATING):
                getattr(self, name)(*arguments)
        elif event.type == pygame.KEYUP:
            self.held.discard(event.key)
        elif event.type == pygame.WINDOWFOCUSLOST:
            self.held.clear()  # their release goes elsewhere
        elif event.type == pygame.DROPFILE:
            self.open([event.file])
        elif event.type == pygame.MOUSEBUTTONDOWN and event.button == 1:
            self.mouse = self.gripped = event.pos
            for hot in reversed(self.hot):
                if hot.rect.collidepoint(event.pos):
                    hot.go(event.pos)  # what raises is not gripped
                    self.grip = hot
                    break
        elif event.type == pygame.MOUSEBUTTONUP and event.button == 1:
            self.grip = None
        elif event.type == pygame.MOUSEMOTION:
            self.mouse = event.pos
            if self.grip and self.grip.drags:
                self.grip.go(event.pos)

    def settle(self):
        """Go where the events since the last picture want to be, which may take a while."""
        wanted, goal, self.wanted, self.goal = self.wanted, self.goal, None, None
        if wanted:
            self.play_run(*wanted)
        if goal is not None:
            self.dirty, self.moment = True, None
            if goal < self.t:
                for player in self.players:
                    player.seek(min(player.t, goal))
            while self.t < goal and not self.over and not signals:
                self.step()

    def touch(self):
        """What the user does to it at this moment -> act in [-1, 1] or None, push or None."""
        act = push_by = None
        for key, (dim, value) in self.player.known.arrows.items():
            if key in self.held and dim < len(self.player.policy.low):
                act = np.zeros_like(self.player.policy.low) if act is None else act
                act[dim] += value
        if self.grip and self.grip.name == "scene" and self.gripped != self.mouse:
            (x, y), reach = self.gripped, self.grip.rect.h / 2
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
        """See whether the training has written something new, or has ended."""
        path, old, run = self.run.log.path, self.run, read_run(self.run.log.path)
        # Looking takes the lock where nobody has it, which might keep a training from going on
        live = (self.live or run != old) and under_way(path)
        if os.name == "nt":
            live = self.options.live
        logs = [read_log(log.path)[0] for log in self.logs]
        self.dirty = self.dirty or (live, logs) != (self.live, self.logs)
        self.live, self.logs = live, logs
        if self.options.live and self.player and not live:
            self.leave_in, self.dirty = self.leave_in - 0.5, True
            self.alive = self.alive and self.leave_in > 0
        if not run.policies or self.player and run == old:
            return
        self.run, self.dirty = run, True
        if faults := [fault for fault in run.faults if fault not in old.faults]:
            self.say("\n".join(faults))
        if not self.player:
            self.play_run(path, NEWEST, True)

    @property
    def news(self):
        """The newest step, if it is another one and followed."""
        newest = max(self.run.policies)
        return newest if self.follow and newest != self.player.train_step else None

    def play(self, dt):
        """As many steps as are due at this speed, but so few that the window keeps answering."""
        began = time.perf_counter()
        self.owed += min(dt, 0.25) * self.player.fps * self.speed
        self.seconds += 0 if self.over else dt
        while self.owed >= 1 and not self.over:
            self.step(*self.touch())
            self.owed, self.steps = self.owed - 1, self.steps + 1
            if time.perf_counter() - began > 0.02:
                self.owed = 0.0
        # The last picture stays for 1.5 s, or less if fast
        if self.owed > 1.5 * self.player.fps * min(1, self.speed) and not self.hold:
            if self.news:
                self.attempt(self.show, self.run.policies[self.news])
            self.restart(not self.locked)

    def step(self, act=None, push_by=None):
        """One step of both, in lock-step; where one has ended, the other flies on. The user's acts
        are of the left one alone."""
        if self.over:
            return
        self.moment = None
        for player in self.players:
            if not player.over:
                player.step(act if player is self.player else None, push_by)
        if self.film and (self.over or self.t % self.film.stride == 0):
            shown, self.surface = self.surface, self.film.surface
            self.draw()
            self.surface = shown
            if not self.attempt(self.film.add, self.over):
                self.film = None
            elif self.film.n >= LONGEST and not self.options.headless:
                self.record()
        self.dirty = True

    # ---- picture

    @property
    def px(self):
        w, h = self.surface.get_size()
        fits = min(h / 32, w / 46)
        return int(max(14, min(fits, 20 + (fits - 20) / 2)))  # large windows show more, too

    def panes(self):
        """Where everything is -> {name: Rect}; the panel is empty where there is no room for it."""
        (w, h), window, px = self.surface.get_size(), self.surface.get_rect(), self.px
        names = "title", "scene", "bar", "timeline"
        if self.options.scene_only:
            return dict.fromkeys((*names, "panel"), pygame.Rect(0, 0, 0, 0)) | {"scene": window}
        heights = [px + 8, None, px + 12, h // (3 if len(self.logs) > 1 else 4)]
        where = dict(zip(names, split(window, heights)))
        panel = np.clip(0.36 * w, 200, 36 * px) if self.show_panel and w >= 440 else 0
        where["scene"], where["panel"] = split(where["scene"], [None, panel], across=True)
        return where

    def draw(self):
        where, px = self.panes(), self.px
        self.hot = []
        self.surface.fill(BACK)
        if not self.player:
            text(self.surface, where["scene"], "waiting for the first policy ..", px, DIM, 0.5)
        elif self.show_help:
            self.draw_help()
        else:
            self.attempt(self.draw_scenes, where["scene"])
            if not self.options.scene_only:
                self.attempt(self.draw_title, where["title"])
                self.attempt(self.draw_bar, where["bar"])
                self.attempt(draw_timeline, self, where["timeline"])
            if where["panel"].w:
                self.attempt(draw_panel, self, where["panel"])
            if self.on_screen:
                self.attempt(self.draw_hint)
        if self.notice_for > 0 and self.on_screen:
            draw_notice(self.surface, where["scene"], self.notice, px)
        self.dirty = False

    def draw_title(self, rect):
        """What is flying."""
        player, policy = self.player, self.player.policy
        said = [player.env_id, *[run_name(policy.meta["path"])] * (len(self.logs) > 1)]
        said += [policy.config.algo, f"trained {player.train_step:,} steps"]
        if (score := policy.meta["evaluation"]) is not None:
            said.append(f"test score {number(score, '.1f')}")
        recent, rows = "", [*self.results.get(player.identity, {}).items()][-10:]
        if rows and rect.w > 40 * self.px:
            (last,) = summary({player.identity: dict(rows)})
            form = "last {episodes} returns: {mean:.1f} ± {std:.1f}"
            recent = (form if len(rows) > 1 else "last return: {mean:.1f}").format(**last)
            recent += ddpg.success_rate(last.get("success"))
        name = "   ".join(said)
        text_pair(self.surface, rect.inflate(-16, -10), name, recent, self.px, TEXT, DIM)
        if self.on_screen:
            pygame.display.set_caption(name)

    def draw_bar(self, rect):
        """How it is flying, and what can be clicked."""
        size, px = rect.h, self.px
        state, color = self.state()
        if not self.on_screen:
            return text(self.surface, rect.inflate(-16, -10), "   ".join(state), px, color)
        if rect.w > 30 * px:
            cells = split(rect.move(6, 0), [size] * len(CONTROLS), across=True)
            for (shapes, action, hint), cell in zip(CONTROLS, cells):
                if self.paused and "paused" in action:
                    shapes, hint = PLAY, "play (Space)"
                under = cell.collidepoint(self.mouse)
                self.hot.append(Hot("button", cell, functools.partial(self.click, action), hint))
                self.surface.fill(LINE if under else FIELD, cell.inflate(-4, -4))
                for shape in shapes:
                    points = np.array(cell.center) + np.array(shape) * size * 0.24
                    pygame.draw.polygon(self.surface, TEXT, points.tolist())
            rect = pygame.Rect(cells[-1].right, rect.y, rect.right - cells[-1].right, rect.h)
        keys = "H: all keys"
        rest = rect.inflate(-16, 0).move(0, size // 2 - px // 3)
        width = font(px).size(keys)[0]
        area = pygame.Rect(rest.right - width, rect.y, width, rect.h)
        self.hot.append(Hot("help", area, lambda pos: self.toggle("show_help")))
        text_pair(self.surface, rest, "   ".join(state), keys, px, color, DIM)

    def state(self):
        speed = "max" if self.speed == SPEEDS[-1] else f"{self.speed:g}x"
        if self.seconds > 1:
            real = (self.steps + min(1, self.owed)) / self.seconds / self.player.fps
            if abs(real / self.speed - 1) > 0.1:
                speed += f" (really {real:.2g}x)"
        state = ["paused" if self.paused else speed, "noisy" if self.noisy else "deterministic"]
        state += [f"seed {self.seed}" + ", locked" * self.locked]
        if self.hold:
            state.append("ended: Space goes on" if self.over else "stops at the end")
        if self.live:
            state.append("LIVE" if self.follow else "training under way")
            log = self.run.log
            steps, speeds = log.table["step"], log.table["steps_per_s"]
            total = log.number("total_steps")
            if total and len(steps):
                state.append(f"{steps[-1] / total:.0%} of {total:,} steps")
                if speeds[-1] > 0:
                    left = (total - steps[-1]) / speeds[-1]
                    said = ddpg.time_left(self.player.policy.config, left)
                    state.append(f"{speeds[-1]:,.0f} steps/s, {said}")
        if self.news and self.over:
            state.append(f"next: step {self.news:,}")
        if self.options.live and not self.live and self.leave_in < LEAVE_IN:
            state = [f"training has ended: closes in {self.leave_in:.0f} s, any key keeps it open"]
        return state, YELLOW if self.paused or self.leave_in < LEAVE_IN else TEXT

    def draw_scenes(self, rect):
        """One scene, or two: side by side or one above the other, whichever shows them larger."""
        h, w = self.player.frame().shape[:2]
        px, across = self.px + 2, rect.w / w >= rect.h / h
        parts = split(rect, [None] * len(self.players), across)
        names = [run_name(player.policy.meta["path"]) for player in self.players]
        for player, part, color, name in zip(self.players, parts, (ORANGE, BLUE), names):
            scene = pygame.image.frombuffer(player.frame(), player.frame().shape[1::-1], "RGB")
            edge = 0 if self.options.scene_only else 4
            place = scene.get_rect().fit(part.inflate(-edge, -edge))
            self.surface.blit(pygame.transform.smoothscale(scene, place.size), place)
            if self.pinned or not (self.panes()["panel"].w or self.options.scene_only):
                who = "pinned " * (player is self.pinned) + ("you" if player.assisted else "agent")
                ending = f", {player.ending}" if player.over else ""
                run = f"{name}, " * (len({*names}) > 1)
                lines = [f"{who} {number(player.episode.ret, '.1f')}{ending}"]
                lines += [f"{run}trained {player.train_step:,} steps"]
                corner = pygame.Rect(place.x, 0, part.right - place.x, px)
                corner.bottom = max(place.y - px - 4, part.y + px)
                for said in lines:
                    text_box(self.surface, corner, said, px, color)
                    corner.y += px + 2

        def grip(pos):
            if not self.player.known.push:
                raise ValueError("nobody has taught me how to push in this environment")

        self.hot.append(Hot("scene", rect, grip))
        if self.grip and self.grip.name == "scene" and self.on_screen:
            pygame.draw.line(self.surface, YELLOW, self.gripped, self.mouse, 3)
            pygame.draw.circle(self.surface, YELLOW, self.mouse, 6)

    def draw_hint(self):
        """What the thing under the mouse says."""
        for hot in reversed(self.hot):
            if hot.rect.collidepoint(self.mouse):
                if said := hot.hint(self.mouse) if callable(hot.hint) else hot.hint:
                    top = hot.rect.y if hot.name == "button" else self.mouse[1]
                    place = pygame.Rect(self.mouse[0] + 12, top - self.px - 8, *hot.rect.size)
                    place.w = self.surface.get_width()
                    text_box(self.surface, place, said, self.px, TEXT, LINE)
                return

    def draw_help(self):
        surface, px = self.surface, self.px
        cells = table(surface.get_rect(), len(KEYS))
        px = min(px + 6, max(11, cells[0].w // 16), int(0.8 * cells[0].h))
        for cell, (keys, action, meaning) in zip(cells, KEYS):
            go = functools.partial(self.click, action or ("toggle", "show_help"))
            self.hot.append(Hot("help", cell, go))
            cell = cell.inflate(min(0, 16 * px - cell.w), px - cell.h)
            left, right = split(cell, [5 * px, None], across=True)
            text(surface, left, keys, px, YELLOW)
            text(surface, right, meaning, px)

    def click(self, action, pos):
        """Do what a button or a line of the help says, which then closes."""
        self.show_help = self.show_help and action[-1] == "show_help"
        getattr(self, action[0])(*action[1:])

    def loop(self):
        """Handle, update, and draw if something has changed, 60 times a second."""
        clock = pygame.time.Clock()
        pygame.key.set_repeat(350, 50)
        while self.alive and not signals:
            dt = clock.tick(60) / 1000
            for event in pygame.event.get():
                self.attempt(self.handle, event)
            self.attempt(self.settle)
            self.attempt(self.update, dt)
            self.surface = pygame.display.get_surface()  # another one after a change of size
            if self.dirty:
                self.attempt(self.draw)
                if self.film:
                    corner = self.panes()["scene"].inflate(-20, -16)
                    text(self.surface, corner, "REC", self.px + 4, ORANGE, 1)
                pygame.display.flip()


def draw_notice(surface, rect, notice, px):
    wrap = functools.partial(textwrap.wrap, width=max(1, int(rect.w / px / 0.5)))
    lines = [part for line in notice.splitlines() for part in wrap(line)][:5]
    height = len(lines) * (px + 4)
    box = pygame.Rect(rect.x + 8, rect.bottom - 14 - height, rect.w - 16, 6 + height)
    surface.fill(FIELD, box)
    pygame.draw.rect(surface, YELLOW, box, 1)
    for row, line in zip(split(box.inflate(-24, -10), [px + 4] * len(lines)), lines):
        text(surface, row, line, px)


def open_display(size):
    """A window on the screen, of a size that fits there. Without a screen, SDL would open one that
    nobody sees: ValueError."""
    # Without OpenGL, whose context MuJoCo would take away from the window while it draws
    os.environ.setdefault("SDL_FRAMEBUFFER_ACCELERATION", "0")
    try:
        pygame.display.init()
        pygame.font.init()
        unseen = pygame.display.get_driver() in ("offscreen", "dummy")
        if unseen and not os.environ.get("SDL_VIDEODRIVER"):
            raise pygame.error("no screen found")
        w, h = pygame.display.get_desktop_sizes()[0]
        h = int(min(0.75 * h, 0.95 * w * SIZE[1] / SIZE[0]))
        return pygame.display.set_mode(size or (h * SIZE[0] // SIZE[1], h), pygame.RESIZABLE)
    except pygame.error as error:
        raise ValueError(f"no window: {error}\nwithout one: --headless, --png or --film") from None


def watch(options):
    """The window: on the screen at once, with what is known of the run while torch is loading."""
    paths = find(options.run)
    window = Window(open_display(options.size), options)
    loading = ThreadPoolExecutor(1).submit(import_ddpg)
    pygame.display.set_caption("viewer.py")
    output(f"viewer.py: {paths[0]}" + f" and {len(paths) - 1} more" * (len(paths) > 1))
    logs = [read_log(path)[0] for path in paths]
    while not loading.done():
        window.surface = pygame.display.get_surface()
        window.surface.fill(BACK)
        title, below = split(window.surface.get_rect(), [2 * window.px, None])
        text(window.surface, title.inflate(-16, -10), tidy(f"opening {paths[0]} .."), window.px)
        same = [log for log in logs if log.env == logs[0].env]
        draw_curves(window.surface, below.inflate(-16, -16), same, 0, window.px)
        pygame.display.flip()
        pygame.event.pump()  # events wait in the queue; who never asks for them is called hung
        time.sleep(0.03)
    loading.result()  # raises what the import raised
    window.open(options.run)
    try:
        window.loop()
    finally:
        if window.film:
            window.attempt(window.record)
            output(window.notice)
        lines = [summed_up(row) for row in summary(window.results)]
        output("\n".join(lines or ["no episode was flown to its end without help"]))


# ------------------------------------------ without a window


def curves(options):
    """Learning curves of all runs as a picture, a plot for each environment."""
    logs, faults = zip(*map(read_log, find(options.run)))
    for log, fault in zip(logs, faults):
        for line in fault:
            complain(f"{log.path}: {line}")
    logs = [log for log in logs if len(log.table["step"])]
    if not logs:
        raise ValueError("none of it has a progress.csv with evaluations")
    pygame.font.init()
    surface = pygame.Surface(options.size or SIZE)
    surface.fill(BACK)
    envs = list(dict.fromkeys(log.env for log in logs))
    columns = int(np.ceil(np.sqrt(len(envs))))
    rows = split(surface.get_rect(), [None] * -(-len(envs) // columns))
    cells = [cell for row in rows for cell in split(row, [None] * columns, across=True)]
    for env, cell in zip(envs, cells):
        px = int(np.clip(min(cell.h / 24, cell.w / 40), 14, 64))
        title, below = split(cell.inflate(-16, -12), [px + 4, None])
        same = [log for log in logs if log.env == env]
        text(surface, title.move(8, 0), env + f"   {same[0].path}" * (len(same) == 1), px, TEXT)
        draw_curves(surface, below, same, 0, px)
    save(surface, options, options.curves)


def save(surface, options, name):
    pygame.image.save(surface, picture := io.BytesIO(), "png")
    Path(options.start, name).write_bytes(picture.getvalue())


def headless(options):
    """Play episodes as fast as they go: print them, and draw them for a picture or a film."""
    os.environ["SDL_VIDEODRIVER"] = "dummy"  # of environments that draw with pygame
    if sys.platform == "linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & set(os.environ):
        os.environ.setdefault("MUJOCO_GL", "egl")  # which MuJoCo reads when it is imported
    paths = find(options.run)
    import_ddpg()
    pygame.font.init()
    window = Window(pygame.Surface(options.size or SIZE), options)
    try:
        for path in paths:
            if not window.attempt(window.open, [path]):
                if not window.player and path == paths[-1]:
                    raise ValueError(window.notice)
                complain(window.notice)  # one bad run costs that run
                window.notice_for = 0.0
            elif not play_all(window, options, "{policy}, " * (len(paths) > 1)):
                return complain("stopped: no picture was saved") if options.drawn else None
        if options.png:
            window.draw()
            if window.notice_for:  # it could not be drawn
                raise ValueError(window.notice)
            save(window.surface, options, options.png)
        if options.film:
            window.film.save()
    finally:
        for row in summary(window.results):
            if options.json:
                output(json.dumps({"summary": True} | row))
            elif row["episodes"] > 1:
                output(summed_up(row))


def play_all(window, options, prefix):
    """The episodes that are asked for, of the run that is open -> whether to go on."""
    if window.run.faults:
        complain("\n".join(window.run.faults))
    shown = Path(options.start, window.player.policy.meta["path"])
    files = list(window.run.policies.values()) if options.tour else [shown]
    stops = np.linspace(0, len(files) - 1, min(options.tour or 1, len(files))).round()
    if options.scene_only and not options.size:
        window.surface = pygame.Surface(window.player.frame().shape[1::-1])
    if options.film and not window.film:
        size = window.surface.get_size() if options.size or options.scene_only else FILM_SIZE
        window.film = Film(Path(options.start, options.film), size, window.player.fps)
    window.notice_for = 0.0
    for i in stops.astype(int):
        for window.seed in range(options.seed, options.seed + options.episodes):
            if not window.attempt(window.show, files[i]):  # which flies that seed
                complain(window.notice)
                window.notice_for = 0.0
                break
            while not (window.over or signals or unprinted):
                window.step()
                if window.notice_for:  # a picture that could not be drawn
                    raise ValueError(window.notice)
            if signals or unprinted:
                return False
            row = window.player.row
            said = prefix + EPISODE + ", success: {success}" * ("success" in row)
            output(json.dumps(row) if options.json else said.format(**row))
    return True


# ---------------------------------------------- command line


def parse(argv):
    def refuse(message):
        raise ValueError(f"{message}; --help lists all flags")

    layout = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, **layout)
    parser.error, add = refuse, parser.add_argument
    text = "runs' folders, folders of runs, policy files (default: the newest run under runs/)"
    add("run", nargs="*", help=text)
    add("--env", metavar="ID", help="fly in this environment: a gymnasium id, or module:Id")
    add("--seed", type=int, default=0, help="the first episode's seed; others follow (default 0)")
    text = "follow the newest policy of a training from the start; closes a minute after its end"
    add("--live", action="store_true", help=text)
    add("--noisy", action="store_true", help="with the exploration noise of the training")
    add("--headless", action="store_true", help="no window: play and print")
    n = dict(type=int, metavar="N")
    add("--episodes", **n, help="episodes without a window (default 20; in tours and films 1)")
    add("--json", action="store_true", help="without a window: lines of JSON")
    add("--png", metavar="FILE", help="save the picture at the end of the last episode")
    text = "save a film of the episodes: a .gif, or with ffmpeg an .mp4 or .webm"
    add("--film", "--gif", metavar="FILE", help=text)
    add("--tour", **n, nargs="?", const=10**6, help="an episode per snapshot, or for N")
    add("--curves", metavar="FILE", help="save learning curves as a picture")
    text = "of the window, pictures and films, in pixels"
    add("--size", type=int, nargs=2, metavar=("W", "H"), help=text)
    add("--scene-only", action="store_true", help="the environment's picture without anything else")
    options = parser.parse_args(argv)
    if any(n is not None and n < 1 for n in (options.episodes, options.tour)):
        refuse("--episodes and --tour must be at least 1")
    if options.size and not all(100 <= side <= 8192 for side in options.size):
        refuse("--size must be from 100 to 8192")
    kinds = {"png": [".png"], "curves": [".png"], "film": [".gif", ".mp4", ".webm"]}
    for name, suffixes in kinds.items():
        if (file := getattr(options, name)) is not None:
            if Path(file).is_dir() or not Path(file).parent.is_dir():
                refuse(f"cannot save a picture as {file}")
            if Path(file).suffix.lower() not in ("", *suffixes):
                refuse(f"--{name} makes {', '.join(suffixes)}, not {Path(file).suffix}")
    options.start = os.path.join(os.getcwd(), "")  # an environment may leave it
    options.hidden = "" if any(map(os.path.isabs, options.run)) else options.start
    short = options.png or options.film or options.tour
    options.headless = options.headless or options.json or short
    options.drawn = options.png or options.film or not options.headless
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
        (curves if options.curves else headless if options.headless else watch)(options)
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
