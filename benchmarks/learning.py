"""Learning results of the presets, every seed listed: steps until solved, quality of the best.

    python benchmarks/learning.py --env Pendulum-v1 --seeds 20 --target -160
    python benchmarks/learning.py --env LunarLanderContinuous-v3 --seeds 10 --target 200 --jobs 2

Each seed is one `python ddpg.py` process, timed from start to exit; further arguments are passed on
to it. All scores are over the 100 test episodes (environment seeds 0 to 99), which neither training
nor the choice of the best policy saw. "solved" is the first snapshot in the run's folder (one per
2 % of the total steps, then best.npz) whose mean reaches the target; a snapshot whose first 20
episodes fall far short is passed over, which can only delay it.

What happens after a task is solved, the last policy beside the best:

    python benchmarks/learning.py --env Pendulum-v1 --seeds 40 --target -160 --no-stop-when-solved
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import ddpg  # noqa: E402


def returns_of(path, episodes):
    policy = ddpg.load(path)
    make_env = ddpg.env_maker_of(policy, env=policy.meta["env"])
    return ddpg.evaluate(policy, make_env, range(episodes))[0]


def first_solved(folder, target):
    for snapshot in sorted((folder / "policies").iterdir()) + [folder / "best.npz"]:
        quick = returns_of(snapshot, 20)
        near = quick.mean() >= target - 2 * quick.std()
        if near and returns_of(snapshot, 100).mean() >= target:
            return ddpg.load(snapshot).meta["step"]
    return None


def run_seed(env, seed, target, flags):
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        command = [sys.executable, ROOT / "ddpg.py", *flags, "--env", env, "--seed", seed]
        command = [str(part) for part in [*command, "--out", folder, "--json"]]
        began = time.perf_counter()
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        seconds = time.perf_counter() - began
        returns = returns_of(folder / "best.npz", 100)
        last = (folder / "progress.csv").read_text().splitlines()[-1].split(",")[0]
        result = dict(seed=seed, solved=first_solved(folder, target))
        result |= dict(best_step=json.loads(done.stdout)["step"], steps=int(last))
        result |= dict(best_mean=returns.mean(), best_std=returns.std())
        result |= dict(reached=float((returns >= target).mean()), best_min=returns.min())
        result |= dict(last_mean=returns_of(folder / "last.npz", 100).mean(), seconds=seconds)
        print(json.dumps(result), flush=True)
        return result


def main():
    layout = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False, **layout)
    add = parser.add_argument
    add("--env", required=True)
    add("--target", type=float, required=True, help="mean return that counts as solved")
    add("--seeds", type=int, default=10, help="how many seeds")
    add("--first-seed", type=int, default=0)
    add("--jobs", type=int, default=1, help="runs at a time; timings are only meaningful with 1")
    add("--write", help="write the results to this JSON file")
    options, flags = parser.parse_known_args()
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    with ThreadPoolExecutor(options.jobs) as pool:
        seeds = range(options.first_seed, options.first_seed + options.seeds)
        jobs = [pool.submit(run_seed, options.env, s, options.target, flags) for s in seeds]
        results = [job.result() for job in jobs]
    steps = [float("inf") if r["solved"] is None else r["solved"] for r in results]
    reached = statistics.mean(r["reached"] for r in results)
    report = dict(env=options.env, commit=commit, flags=flags, target=options.target)
    report |= dict(jobs=options.jobs, versions=ddpg.VERSIONS)
    report |= dict(machine=f"{platform.machine()}, Python {platform.python_version()}")
    report |= dict(seeds_solved=sum(r["solved"] is not None for r in results))
    report |= dict(median_steps=statistics.median(steps), max_steps=max(steps))
    report |= dict(median_seconds=statistics.median(r["seconds"] for r in results))
    report |= dict(best_mean=statistics.mean(r["best_mean"] for r in results))
    report |= dict(last_mean=statistics.mean(r["last_mean"] for r in results))
    report |= dict(worst_last_mean=min(r["last_mean"] for r in results))
    report |= dict(episodes_reaching_target=reached, results=results)
    if options.write:
        Path(options.write).write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "results"}, indent=1))


if __name__ == "__main__":
    main()
