"""How fast ddpg.py is, beside Stable-Baselines3, SBX and CleanRL, and where the time goes.

    python benchmarks/speed.py steps PEERS      training steps per second
    python benchmarks/speed.py solve PEERS      seconds from process start to solved
    python benchmarks/speed.py busy             one training alone, and two at once
    python benchmarks/speed.py parts            update, act, sample, add, memory
    python benchmarks/speed.py plain            an update by hand and by autograd
    python benchmarks/speed.py growth           cost of a step by size of things
    python benchmarks/speed.py state            saving and resuming a million lander rows

It prints Markdown tables; `--write FILE` keeps all rounds as JSON. PEERS are the flags `--python
PEERS_PYTHON --cleanrl CLEANRL`: an interpreter with stable-baselines3 and sbx-rl (and, for CleanRL,
tyro and tensorboard), and a checkout, whose two files run from copies, nothing but widths changed.

Each program runs in a process of its own, one at a time, in turn. In `steps` the clock runs between
the same two steps of each, after learning began and SBX has compiled: of the others as their
environment sees them, of ours as `Training` yields them. SBX gets as many cores as the others get
threads. Logging is what each does by default, and none of them evaluates. CleanRL's DDPG moves its
actor at every second step, so ours does so beside it. In `solve` all are evaluated alike and
equally often, and have a new seed in each round; ours also ends its process, with the final test of
100 episodes, while the others are stopped at once.
"""

import argparse
import importlib
import json
import os
import platform
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import ddpg  # noqa: E402

WARM_UP, TIMED_FROM = 1_000, 1_700  # random steps; the first one timed, SBX having compiled
# Target, steps between evaluations
SOLVE = {"Pendulum-v1": (-160, 500), "LunarLanderContinuous-v3": (200, 5_000)}
# rl-zoo's settings of DDPG and TD3 for both
ZOO = dict(learning_rate=1e-3, policy_kwargs=dict(net_arch=[400, 300]), batch_size=256, gamma=0.98)
ZOO |= dict(buffer_size=200_000, learning_starts=10_000, train_freq=1, gradient_steps=1)


class Watched(gym.Wrapper):
    """Calls `on_step(number of steps taken)` before each step."""

    def __init__(self, env, on_step):
        super().__init__(env)
        self.on_step, self.count = on_step, 0

    def step(self, action):
        self.on_step(self.count)
        self.count += 1
        return self.env.step(action)


class OldVector(gym.vector.SyncVectorEnv):
    """Vector environments as CleanRL knows them: the last observation comes with the reset."""

    def __init__(self, functions):
        super().__init__(functions, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)

    def step(self, actions):
        *result, infos = super().step(actions)
        return *result, {"final_observation": infos.get("final_obs")}


def run_program(program, env, algo, threads, on_step, width=None, batch=None, cleanrl=None, seed=0):
    """Train with one program, in this process, until `on_step` ends it."""
    torch.set_num_threads(threads)
    make = gym.make
    if program.startswith("ours"):
        long = dict(learning_starts=WARM_UP, eval_every=0, total_steps=10**9)
        config = plain_config(algo, width, batch, env=env, **long)
        if program == "ours, delay 2":
            config = config.replace(policy_delay=2)
        ddpg.tune(config, threads)
        # It makes a new environment for each episode
        for count, _ in enumerate(ddpg.Training(config)):
            on_step(count)
    gym.make = lambda *args, **kwargs: Watched(make(*args, **kwargs), on_step)
    if program in ("sb3", "sbx"):
        if program == "sbx":  # XLA makes as many threads as there are cores for it
            os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
        import stable_baselines3

        env, own = gym.make(env), ZOO
        if width is None:
            zeros = np.zeros(env.action_space.shape)
            noise = stable_baselines3.common.noise.NormalActionNoise(zeros, zeros + 0.1)
            own = own | dict(action_noise=noise)
        else:
            own = dict(policy_kwargs=dict(net_arch=[width, width]), batch_size=batch)
            own |= dict(learning_starts=WARM_UP, train_freq=1, gradient_steps=1)
        package = importlib.import_module(dict(sb3="stable_baselines3", sbx="sbx")[program])
        kind = getattr(package, algo.upper())
        run_program.model = model = kind("MlpPolicy", env, seed=seed, device="cpu", **own)
        model.learn(10**9)
    gym.vector.SyncVectorEnv = OldVector
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        text = Path(cleanrl, "cleanrl", f"{algo}_continuous_action.py").read_text()
        if width is not None:
            assert text.count("256") == 9, "other than the file that this was written for"
            text = text.replace("256", str(width))
        Path("program.py").write_text(text)
        sys.path.insert(0, cleanrl)
        flags = ["--env-id", env, "--total-timesteps", "1000000", "--no-cuda", "--seed", str(seed)]
        if width is not None:
            flags += ["--learning-starts", str(WARM_UP), "--batch-size", str(batch)]
        sys.argv = ["program.py", *flags]
        runpy.run_path("program.py", run_name="__main__")


def child_steps(last, **program):
    """Prints training steps per second between step TIMED_FROM and `last`."""

    def on_step(count):
        if count == TIMED_FROM:
            on_step.began = time.perf_counter()
        if count == last:
            seconds = time.perf_counter() - on_step.began
            print(json.dumps((last - TIMED_FROM) / seconds), flush=True)
            os._exit(0)

    run_program(on_step=on_step, **program)


def child_solve(program, env, algo, max_seconds, **more):
    """Prints when 20, then 100 evaluation episodes reach the target, as `ddpg.py` counts."""
    (target, every), make = SOLVE[env], gym.make
    seeds = range(ddpg.SELECTION_SEEDS, ddpg.SELECTION_SEEDS + 100)

    class Policy:
        def act(self, obs):
            if program in ("sb3", "sbx"):
                return run_program.model.predict(obs, deterministic=True)[0]
            with torch.no_grad():
                return sys.modules["__main__"].actor(torch.Tensor(obs)).numpy()

    def reaches_target(n):
        returns, _ = ddpg.evaluate(Policy(), lambda: make(env), seeds[:n])
        return returns.mean() >= target

    def on_step(count):
        seconds = time.time() - float(os.environ["BEGAN"])
        solved = bool(count) and count % every == 0 and all(map(reaches_target, (20, 100)))
        if solved or seconds > max_seconds:
            print(json.dumps(dict(seconds=seconds, step=count, solved=solved)), flush=True)
            os._exit(0)

    run_program(program, env, algo, on_step=on_step, **more)


def in_a_process(python, child, timeout, **settings):
    """Run a `child_` function of this file in a new process -> what it prints."""
    threads = str(settings["threads"])
    env = os.environ | {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    env["BEGAN"] = str(time.time())
    command = [python, __file__, "child", child, json.dumps(settings)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=env)
    if result.returncode:
        raise RuntimeError(f"{settings}: {result.stderr[-2000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def steps(options):
    """Training steps per second, in turn; the medians, and those of the ratios of each round."""
    report = {}
    pairs = [("td3", "ours", "sb3"), ("td3", "ours", "cleanrl"), ("ddpg", "ours", "sb3")]
    pairs += [("ddpg", "ours, delay 2", "cleanrl")]
    pairs += [("td3", "ours", "sbx"), ("ddpg", "ours", "sbx")]
    for width, batch, last in (64, 64, 3_700), (256, 256, 2_100):
        print(f"\nwidths {width}-{width}, batch {batch}, Pendulum-v1: ", end="")
        print("training steps per second with 1 / 2 threads\n")
        print("| | ours | the other | ratio, each with its better number of threads |")
        print("|---|---|---|---|")
        sizes = dict(width=width, batch=batch, last=last, cleanrl=options.cleanrl)
        for algo, ours, other in pairs:
            if not (options.cleanrl if other == "cleanrl" else options.python):
                continue
            task = dict(env="Pendulum-v1", algo=algo) | sizes
            rounds = {(p, t): [] for p in (ours, other) for t in (1, 2)}
            for _ in range(options.rounds):
                for (program, threads), values in rounds.items():
                    python = sys.executable if program == ours else options.python
                    who = dict(program=program, threads=threads)
                    values.append(in_a_process(python, "steps", 600, **who, **task))
            median = {key: statistics.median(values) for key, values in rounds.items()}
            a, b = (max(((p, 1), (p, 2)), key=median.get) for p in (ours, other))
            ratio = statistics.median(x / y for x, y in zip(rounds[a], rounds[b]))
            row = f"| {algo}, {other} | {median[ours, 1]:.0f} / {median[ours, 2]:.0f} "
            row += f"| {median[other, 1]:.0f} / {median[other, 2]:.0f} | {ratio:.2f} |"
            print(row, flush=True)
            numbers = {f"{p} {t}": values for (p, t), values in rounds.items()}
            report[f"{algo} {width} {other}"] = numbers | {"ratio": ratio}
    return report


def busy(options):
    """Training steps per second of one training alone, and of two that begin together."""
    report = {}
    print("\n| TD3, Pendulum-v1 | threads | alone | two at once, each | of alone |")
    print("|---|---|---|---|---|")
    for width, last in (64, 6_000), (256, 2_700):
        task = dict(program="ours", env="Pendulum-v1", algo="td3", width=width, batch=width)
        for threads in 1, 2:
            run = partial(in_a_process, sys.executable, "steps", 600, threads=threads, last=last)
            rounds = {"alone": [], "together": []}
            for _ in range(options.rounds):
                rounds["alone"].append(run(**task))
                with ThreadPoolExecutor() as pool:
                    pair = [pool.submit(run, **task) for _ in range(2)]
                    rounds["together"] += [future.result() for future in pair]
            alone, *each = (statistics.median(rounds["alone"]), *rounds["together"])
            shares = [slow / alone for slow in each]
            row = (
                f"| {width}-{width}, batch {width} | {threads} | {alone:.0f} | {min(each):.0f} to "
            )
            row += (
                f"{max(each):.0f} | {statistics.median(shares):.0%}, at least {min(shares):.0%} |"
            )
            print(row, flush=True)
            report[f"{width} {threads}"] = rounds
    return report


def solve(options):
    """Seconds from process start to a confirmed target."""
    report, (target, _) = [], SOLVE[options.env]
    limits = dict(threads=2, max_seconds=options.max_seconds, cleanrl=options.cleanrl)
    for seed in range(options.rounds):
        row = {}
        with tempfile.TemporaryDirectory() as folder:
            began = time.perf_counter()
            flags = ["--env", options.env, "--seed", seed, "--solved-at", target, "--json"]
            flags = [str(flag) for flag in [*flags, "--out", Path(folder) / "run"]]
            command = [sys.executable, ROOT / "ddpg.py", *flags]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            row["ours"] = json.loads(done.stdout) | {"seconds": time.perf_counter() - began}
        for name, algo in [(n, a) for n in ("sb3", "sbx", "cleanrl") for a in ddpg.ALGOS]:
            there = options.cleanrl if name == "cleanrl" else options.python
            if there and seed < options.peer_rounds:
                task = dict(program=name, env=options.env, algo=algo, seed=seed) | limits
                timeout = 2 * options.max_seconds
                row[f"{name} {algo}"] = in_a_process(options.python, "solve", timeout, **task)
        items = [(key, "" if v["solved"] else "> ", v["seconds"]) for key, v in row.items()]
        seconds = ", ".join(f"{key} {more}{s:.1f} s" for key, more, s in items)
        print(f"seed {seed}: {seconds}", flush=True)
        report.append(row)
    return report


def timed(function, seconds=0.4):
    """Seconds that a call takes: the smallest median of five series."""
    function()
    began = time.perf_counter()
    function()
    n = max(3, int(seconds / 5 / (time.perf_counter() - began + 1e-7)))
    series = []
    for _ in range(5):
        times = []
        for _ in range(n):
            began = time.perf_counter()
            function()
            times.append(time.perf_counter() - began)
        series.append(statistics.median(times))
    return min(series)


@torch.no_grad()
def products(algo, width, batch, obs_dim, act_dim):
    """The matrix products that an update cannot do without: [(how often, function)]."""
    n, both, wide = (2 if algo == "td3" else 1), obs_dim + act_dim, width

    def product(copies, a, b, c):
        x, y, out = torch.randn(copies, a, b), torch.randn(copies, b, c), torch.empty(copies, a, c)
        kernels = [lambda: torch.bmm(x, y, out=out), lambda: ddpg.bmm(x, y)]
        if min(a, b, c) >= 16 and ddpg.onednn():
            kernels.append(
                lambda: [ddpg.onednn()(u, v.T, None, "none", [], "") for u, v in zip(x, y)]
            )
        return min(kernels, key=partial(timed, seconds=0.05))

    def network(copies, first, last, forward=0, parameters=0, inputs=0):
        shapes = [(first, wide), (wide, wide), (wide, last)]
        work = [(forward, product(copies, batch, i, o)) for i, o in shapes]
        work += [(parameters, product(copies, i, batch, o)) for i, o in shapes]
        work += [(inputs, product(copies, batch, o, i)) for i, o in shapes[1:]]
        return work

    every = 1 / ddpg.ALGOS[algo]["policy_delay"]
    # Target actor and actor; target critics and critics; what the actor climbs
    work = network(1, obs_dim, act_dim, forward=1 + every, parameters=every, inputs=every)
    work += network(n, both, 1, forward=2, parameters=1, inputs=1)
    work += network(1, both, 1, forward=every, inputs=every)
    work += [(every, product(1, batch, wide, act_dim))]
    return [(count, function) for count, function in work if count]


def plain_config(algo, width, batch, **more):
    """What is timed, as others have it: two layers without layer norm, one-step targets."""
    sizes = dict(hidden=(width, width), batch_size=batch, layer_norm=False, n_step=1)
    return ddpg.Config(algo=algo, **sizes, **more)


def agent_of(config, obs_dim=3, act_dim=1, rows=10_000):
    agent = ddpg.Agent(obs_dim, [-1.0] * act_dim, [1.0] * act_dim, config)
    buffer = ddpg.ReplayBuffer(max(rows, 1_000), obs_dim, act_dim, config.n_step, config.gamma)
    buffer.rows.normal_()
    buffer.written = len(buffer.rows)
    return agent, buffer


def seconds_of_update(agent, buffer):
    """An update and its batch; two of TD3's, as its actor moves at every second one."""

    def two_updates():
        for _ in range(2):
            agent.update(buffer.sample(agent.config.batch_size, agent.generator))

    return timed(two_updates) / 2


def parts(options):
    """Where the time of a step goes."""
    report = {}
    print("\n| | threads | update | its bare matrix products | ratio |\n|---|---|---|---|---|")
    cases = [(a, *s) for a in ("td3", "ddpg") for s in ((256, 256, 1), (256, 256, 2), (64, 64, 1))]
    for algo, width, batch, threads in cases:
        config = plain_config(algo, width, batch)
        ddpg.tune(config, threads)
        agent, buffer = agent_of(config)
        work, updates, bare = products(algo, width, batch, 3, 1), [], []
        for _ in range(options.rounds):
            updates.append(seconds_of_update(agent, buffer))
            with torch.no_grad():
                bare.append(sum(count * timed(function, 0.05) for count, function in work))
        ratio = statistics.median(u / b for u, b in zip(updates, bare))
        update, bare = statistics.median(updates), statistics.median(bare)
        row = f"| {algo} {width}-{width}, batch {batch} | {threads} | {update * 1e6:.0f} us "
        print(row + f"| {bare * 1e6:.0f} us | {ratio:.2f} |", flush=True)
        report[f"{algo} {width} {threads}"] = dict(update=update, products=bare, ratio=ratio)
    torch.set_num_threads(1)
    square, kernels = torch.randn(1, 256, 256), {}
    with torch.no_grad():
        kernels["torch.bmm (MKL)"] = timed(lambda: torch.bmm(square, square))
        if one := ddpg.onednn():
            kernels["oneDNN"] = timed(lambda: one(square[0], square[0].T, None, "none", [], ""))
    used = "oneDNN's" if ddpg.onednn_is_faster() else "torch.bmm's"
    print(f"\na product of 256 x 256 matrices, one thread; {used} are used here: ", end="")
    print(", ".join(f"{name} {seconds * 1e6:.0f} us" for name, seconds in kernels.items()))
    agent, buffer = agent_of(plain_config("td3", 64, 64))
    obs, act = np.zeros(3, np.float32), np.zeros(1, np.float32)
    times = {"act": timed(lambda: agent.act_unit(obs))}
    for rows in 1_000, 10_000, 100_000, 1_000_000:
        _, buffer = agent_of(agent.config, rows=rows)
        sample, add = buffer.sample, buffer.add
        times[f"sample, {rows:,} rows"] = timed(lambda: sample(64, agent.generator))
        times[f"add, {rows:,} rows"] = timed(lambda: add(obs, act, 1.0, obs, False, False))
    config, began = agent.config.replace(learning_starts=200, eval_every=0, total_steps=3_200), 0
    ddpg.tune(config, 1)
    for run in ddpg.Training(config):
        began = time.perf_counter() if run.step == 1_200 else began
    step = (time.perf_counter() - began) / 2_000
    print(f"\na training step, TD3, 64-64, batch 64: {step * 1e6:.0f} us; of it\n")
    print("| | us | share |\n|---|---|---|")
    for name, value in times.items():
        print(f"| {name} | {value * 1e6:.1f} | {value / step:.1%} |")
    command = [sys.executable, "-c", MEMORY, ROOT]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=300)
    before, after, buffer, columns = map(float, done.stdout.split())
    print(f"\nmemory with 1,000,000 lander rows of {columns:.0f} x 4 bytes: ", end="")
    print(f"{after - before:.0f} MB over the bare imports, {buffer:.0f} MB of them the buffer")
    memory = dict(imports=before, training=after, buffer=buffer)
    return report | dict(kernels=kernels, step=step, times=times, memory=memory)


MEMORY = """if True:
    import sys, torch, numpy, gymnasium
    rss = lambda: int(open('/proc/self/statm').read().split()[1]) * 4096 / 1e6
    before = rss()
    sys.path.insert(0, sys.argv[1])
    import ddpg
    config = ddpg.Config.preset('LunarLanderContinuous-v3', eval_every=0)
    ddpg.tune(config)
    run = ddpg.Training(config)
    run.buffer.rows.zero_()
    run.buffer.written = len(run.buffer.rows)
    for _ in run:
        if run.step == 4_000: break
    print(before, rss(), run.buffer.rows.nbytes / 1e6, run.buffer.rows.shape[1])"""


def plain(options):
    """One update and its batch, by hand and by autograd, in turn."""
    report = {}
    print("\n| one update | threads | by hand | by autograd | ratio |\n|---|---|---|---|---|")
    for algo in "td3", "ddpg":
        for width, threads in [(w, t) for w in (64, 128, 256) for t in (1, 2)]:
            config = plain_config(algo, width, batch=width)
            ddpg.tune(config, threads)
            by_hand, buffer = agent_of(config)
            by_autograd, _ = agent_of(config)
            by_autograd.by_hand = {}
            assert len(by_hand.by_hand) == 2, "this would time autograd twice"
            rounds = dict(hand=[], autograd=[])
            for _ in range(options.rounds):
                rounds["hand"].append(seconds_of_update(by_hand, buffer))
                rounds["autograd"].append(seconds_of_update(by_autograd, buffer))
            hand, autograd = map(statistics.median, rounds.values())
            ratio = statistics.median(b / a for a, b in zip(*rounds.values()))
            row = f"| {algo} {width}-{width}, batch {width} | {threads} | {hand * 1e6:.0f} us "
            print(row + f"| {autograd * 1e6:.0f} us | {ratio:.2f} |", flush=True)
            report[f"{algo} {width} {threads}"] = rounds | {"ratio": ratio}
    return report


def growth(options):
    """The cost of a step as one thing grows."""
    base, report = dict(batch_size=128, width=128, n_step=1, rows=10_000), {}
    sizes = dict(batch_size=(32, 128, 512, 2048, 4096), width=(32, 64, 128, 256, 512, 1024))
    sizes |= dict(n_step=(1, 3, 5, 10), rows=(1_000, 10_000, 100_000, 1_000_000))
    print("\nTD3 128-128, batch 128, 10,000 rows, but for:\n")
    print("| | us per update, sample and add |\n|---|---|")
    obs, act = np.zeros(3, np.float32), np.zeros(1, np.float32)
    for name, value in [(name, value) for name, values in sizes.items() for value in values]:
        s = base | {name: value}
        config = plain_config("td3", s["width"], s["batch_size"], n_step=s["n_step"])
        ddpg.tune(config, 1)
        agent, buffer = agent_of(config, rows=s["rows"])

        def two_steps():
            for _ in range(2):
                buffer.add(obs, act, 1.0, obs, False, False)
                agent.update(buffer.sample(agent.config.batch_size, agent.generator))

        report[f"{name} {value}"] = seconds = timed(two_steps, 1.5) / 2
        print(f"| {name} {value:,} | {seconds * 1e6:,.0f} |", flush=True)
    return report


def state(options):
    """Seconds to save and to resume a lander training with a full buffer of 1,000,000 rows."""
    changes = dict(eval_every=0, total_steps=2_000_000)
    config = ddpg.Config.preset("LunarLanderContinuous-v3", **changes)
    ddpg.tune(config)
    run, report = ddpg.Training(config), {"save": [], "resume": []}
    run.buffer.rows.normal_()
    run.buffer.written = len(run.buffer.rows) - 2_000
    for _ in run:
        if run.step >= 2_000 and run.episode is None:  # where a state can be saved
            break
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "state.npz"
        for _ in range(options.rounds):
            began = time.perf_counter()
            arrays, meta = run.state()
            ddpg.write_npz(path, arrays, **meta)
            saved = time.perf_counter()
            ddpg.resume(temporary)
            report["save"].append(saved - began)
            report["resume"].append(time.perf_counter() - saved)
        print(f"{len(run.buffer):,} rows, {path.stat().st_size / 1e6:.0f} MB: ", end="")
        spans = [f"{name} {min(times):.2f} to {max(times):.2f} s" for name, times in report.items()]
        print(", ".join(spans))
        report["bytes"] = path.stat().st_size
    return report


def machine():
    """What the numbers depend on."""
    cpu, info = platform.processor(), Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    cpu = next((line.split(":")[1].strip() for line in lines if "model name" in line), cpu)
    instructions = torch.backends.cpu.get_cpu_capability()
    row = dict(cpu=cpu, cores=os.cpu_count(), instructions=instructions, versions=ddpg.VERSIONS)
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    git = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return row | dict(commit=git.stdout.strip())


def main():
    if sys.argv[1:2] == ["child"]:
        return globals()[f"child_{sys.argv[2]}"](**json.loads(sys.argv[3]))
    layout = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(description=__doc__, **layout)
    add = parser.add_argument
    add("what", choices=("steps", "solve", "busy", "parts", "plain", "growth", "state"))
    add("--python", help="interpreter with stable-baselines3")
    add("--cleanrl", type=os.path.abspath, help="checkout of CleanRL; needs --python")
    add("--env", default="Pendulum-v1", choices=SOLVE, help="of solve")
    add("--rounds", type=int, default=5)
    add("--peer-rounds", type=int, default=10**6, help="of solve: peers only in the first rounds")
    add("--max-seconds", type=float, default=600, help="of solve: when to give a program up")
    add("--write", help="write everything to this JSON file")
    options, head = parser.parse_args(), machine()
    if options.what == "steps" and not options.python:
        parser.error("steps compares with others: it needs --python")
    print("{cpu}, {cores} cores, {instructions}, torch {versions[torch]}".format(**head))
    report = globals()[options.what](options)
    if options.write:
        head |= {"rounds": options.rounds, options.what: report}
        Path(options.write).write_text(json.dumps(head, indent=1) + "\n")


if __name__ == "__main__":
    main()
