"""Whether ddpg.py is right on a CUDA card, and how fast it is there: in about three minutes.

    python benchmarks/gpu.py                   checks, then tables
    python benchmarks/gpu.py --check           checks only; exit code 1 if one fails

It needs torch, numpy and gymnasium. Checks: the same seed twice, graphs and plain code, and a run
gone on from its state end in the same bits; losses that cannot be captured, or depend on more than
tensors, are noticed; each precision trains. Tables: updates, actions and whole training steps with
and without graphs, beside the CPU; Adam in one piece and in pieces; large networks in each
precision, and the kernels that their time goes to.

Its name is not cuda.py, as NVIDIA's Python package has that one, and torch would import this file.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import ddpg  # noqa: E402
from ddpg import Agent, Config, Training  # noqa: E402

SHORT = dict(total_steps=900, learning_starts=300, eval_every=0, batch_size=64, hidden=(64, 64))
SHORT |= dict(n_step=1)


def training(device, graphs=True, agent=Agent, env="Pendulum-v1", **changes):
    config = Config(**SHORT | dict(env=env) | changes)
    ddpg.tune(config)
    run = Training(config, None, device, agent)
    if not graphs:
        run.graphs = None
    return run


def outcome(run):
    """All that training changes, as bytes."""
    for _ in run:
        pass
    arrays = {}
    meta = ddpg.pack(run.agent.state_dict(), arrays)
    parts = {name: array.tobytes() for name, array in arrays.items()}
    return json.dumps(meta), parts, run.tables["episodes.csv"]


# ---- checks ----


class Asks(Agent):
    def critic_loss(self, obs, act, target_q):
        loss = super().critic_loss(obs, act, target_q)
        return loss if loss.item() < 1e9 else 0 * loss


class Alternates(Agent):
    def critic_loss(self, obs, act, target_q):
        return super().critic_loss(obs, act, target_q) * (1 + self.updates % 3)


class Counts(Agent):
    calls = [0]

    def critic_loss(self, obs, act, target_q):
        self.calls[0] += 1
        return super().critic_loss(obs, act, target_q) * (1 + self.calls[0] % 3)


class Dropout(Agent):
    """Draws from torch's own generator, which belongs to the state, too."""

    def __init__(self, *args):
        self.drop = torch.nn.Dropout(0.1)
        super().__init__(*args)

    def critic_loss(self, obs, act, target_q):
        return super().critic_loss(self.drop(obs), act, target_q)


def checks(device):
    """(name, whether it holds) of each."""
    kinds = dict(td3={}, ddpg=dict(algo="ddpg", n_step=3, updates_per_step=2, layer_norm=False))
    kinds["dropout"] = dict(agent=Dropout)
    for name, changes in kinds.items():
        first = outcome(training(device, **changes))
        yield f"{name}: the same seed twice", outcome(training(device, **changes)) == first
        plain = training(device, graphs=False, **changes)
        yield f"{name}: graphs and plain code", outcome(plain) == first
        run = training(device, **changes)
        for _ in run:
            if run.step == 600:  # after three episodes of 200 steps
                state = copy.deepcopy(run.state())
                break
        torch.manual_seed(1)
        again = training(device, **changes)
        again.restore(state[0], json.loads(json.dumps(state[1], default=float)))
        yield f"{name}: gone on from its state", outcome(again) == first
    run = training(device)
    for _ in run:
        pass
    yield "graphs were replayed", bool(run.graphs) and len(run.graphs.graphs) == 3
    for precision in ddpg.PRECISIONS:
        torch.set_float32_matmul_precision(precision)
        result = outcome(training(device, graphs=True))
        yield f"{precision}: trains", result == outcome(training(device, graphs=False))
    torch.set_float32_matmul_precision("highest")
    for kind in Alternates, Counts, Asks:  # the last one may end a capture in CUDA's error
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            run = training(device, agent=kind)
            result = outcome(run)
        plain = None if kind is Counts else outcome(training(device, graphs=False, agent=kind))
        noticed = "without CUDA graphs" in said.getvalue() and run.graphs is None
        yield (
            f"{kind.__name__}: goes on without graphs, and says so",
            noticed and plain in (None, result),
        )
        print(said.getvalue(), end="")


# ---- tables ----


def seconds(device, work, at_least=1.0):
    """What a call takes, the card's part included: the median of five series."""
    sync = torch.cuda.synchronize if device == "cuda" else lambda: None
    work()
    sync()
    began = time.perf_counter()
    work()
    sync()
    n = max(1, int(at_least / 5 / (time.perf_counter() - began + 1e-6)))
    series = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(n):
            work()
        sync()
        series.append((time.perf_counter() - began) / n)
    return statistics.median(series)


def filled(device, graphs, width, batch, rows=100_000, **changes):
    """A TD3 run with a full replay, its graphs captured and compared."""
    sizes = dict(hidden=(width, width), batch_size=batch, buffer_size=rows, layer_norm=False)
    run = training(device, graphs, **sizes, **changes)
    run.buffer.rows.normal_()
    run.buffer.written = rows
    for _ in range(300 if device == "cuda" and graphs else 3):
        (run.graphs or run).learn()
    return run


def small(device):
    yield "| TD3, one thread | updates/s plain | graphs | CPU | action, us: plain | graphs | CPU |"
    yield "|---|---|---|---|---|---|---|"
    for width in 64, 128, 256:
        cells = []
        for where, graphs in (device, False), (device, True), ("cpu", False):
            run = filled(where, graphs, width, width)
            fast, obs = run.graphs or run, torch.zeros(3).numpy()
            act = (run.graphs or run.agent).act_unit
            for _ in range(200):
                act(obs)
            cells.append([1 / seconds(where, fast.learn), 1e6 * seconds(where, lambda: act(obs))])
        updates, acts = zip(*cells)
        row = [f"{width}-{width}, batch {width}", *(f"{n:,.0f}" for n in (*updates, *acts))]
        yield f"| {' | '.join(row)} |"


def steps(device):
    try:
        import mujoco  # noqa: F401

        env = "HalfCheetah-v5"
    except ImportError:
        env = "Pendulum-v1"
    yield f"| {env}, TD3, training steps/s | plain | graphs | CPU |\n|---|---|---|---|"
    for width in 64, 256:
        cells = []
        for where, graphs in (device, False), (device, True), ("cpu", False):
            sizes = dict(hidden=(width, width), batch_size=width, total_steps=10**6)
            run = training(where, graphs, env=env, layer_norm=False, **sizes)
            began = 0.0
            for _ in run:
                if run.step == 800:
                    began = time.perf_counter()
                if run.step > 800 and time.perf_counter() - began > 4:
                    break
            cells.append((run.step - 800) / (time.perf_counter() - began))
        yield f"| {width}-{width}, batch {width} | {' | '.join(f'{n:,.0f}' for n in cells)} |"


def adam(device):
    yield "| Adam on the two critics of 256-256 | us |\n|---|---|"
    tensors = [torch.randn(134_658, device=device).abs() for _ in range(4)]
    k = torch.ones((), device=device)
    rates = dict(lr=1e-9, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.0)
    for size in 134_658, 65_536, 16_384, 4_096, 1_024:
        parts = [x.split(size) for x in tensors]

        def step(parts=parts):
            more = dict(amsgrad=False, maximize=False)
            torch._fused_adam_(*parts, [], len(parts[0]) * [k], **rates, **more)

        yield f"| pieces of {size:,} | {1e6 * kernel_seconds(step)[0]:.0f} of the card |"


def kernel_seconds(work, n=20):
    """Seconds of the card that a call takes, and its kernels by that, longest first."""
    work()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        for _ in range(n):
            work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    of_card = torch.autograd.DeviceType.CUDA
    kernels = [e for e in profile.key_averages() if e.device_type == of_card]
    rows = [(e.self_device_time_total / n / 1e6, e.count / n, e.key) for e in kernels]
    rows = sorted((row for row in rows if row[0] > 0), reverse=True)
    return sum(row[0] for row in rows), rows


def large(device):
    width, batch = (1_024, 32_768) if device == "cuda" else (256, 256)
    products = 11.5 * 2 * batch * width**2  # floating point operations of an update's large ones
    yield f"TD3 {width}-{width}, batch {batch:,}:"
    for precision in ddpg.PRECISIONS:
        torch.set_float32_matmul_precision(precision)
        run = filled(device, device == "cuda", width, batch)
        took = seconds(device, (run.graphs or run).learn)
        a, b = (torch.randn(8_192 if device == "cuda" else 512, 8_192 if device == "cuda" else 512,
                            device=device) for _ in range(2))  # fmt: skip
        best = 2 * len(a) ** 3 / seconds(device, lambda a=a, b=b: a @ b)
        share = products / took / best
        yield f"\n{precision}: {took * 1e3:.1f} ms an update, its large products at {share:.0%} of"
        yield f"what one of {len(a):,} reaches, {best / 1e12:.1f} TFLOP/s. Of the card's time:"
        run.graphs = None
        total, kernels = kernel_seconds(lambda run=run: [run.learn() for _ in range(2)], 5)
        for spent, count, name in kernels[:10]:
            share = f"{spent / 2 * 1e3:7.3f} ms {spent / total:4.0%} {count / 2:5.1f} x"
            yield f"  {share} {name[:90]}"
    torch.set_float32_matmul_precision("highest")


def start():
    """What a process pays for its first second on the card."""
    code = "import ddpg; run = ddpg.Training(ddpg.Config(total_steps=300, learning_starts=200, "
    code += "eval_every=0), None, {!r}); began = time.perf_counter(); [None for _ in run]"
    for device in "cuda", "cpu":
        began = time.perf_counter()
        text = "import time; " + code.format(device)
        subprocess.run([sys.executable, "-c", text], check=True, cwd=ROOT, timeout=120)
        took = time.perf_counter() - began
        yield f"imports, start, 100 updates of 256-256 on {device}: {took:.1f} s"


def main():
    layout = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(description=__doc__, **layout)
    parser.add_argument("--check", action="store_true", help="no tables")
    parser.add_argument("--device", default="cuda", help="cpu: only to try this script itself")
    options = parser.parse_args()
    device, failed, began = options.device, 0, time.perf_counter()
    if device == "cuda":
        print(torch.cuda.get_device_name(), end=", ")
    print(f"{os.cpu_count()} CPU cores, torch {torch.__version__}", flush=True)
    for name, holds in checks(device):
        failed += not holds
        print("ok  " if holds else "FAIL", name, flush=True)
    for table in (small, steps, adam, large) if not options.check else ():
        print()
        for line in table(device):
            print(line, flush=True)
    if not options.check and device == "cuda":
        print(*start(), sep="\n")
    print(f"\n{failed} checks failed; {time.perf_counter() - began:.0f} s")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
