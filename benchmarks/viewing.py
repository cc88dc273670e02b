"""How fast viewer.py is, on the screen that DISPLAY names (`xvfb-run python benchmarks/viewing.py RUN RUN ..` without one).

For each run's folder: seconds from the command to the first picture; at 1x and at 16x, rounds of the window's loop,
pictures and simulated steps per second, and the time that a picture takes; the CPU time of a paused window. Then the
seconds that a training takes alone and with the viewer following it, in turn.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import viewer  # noqa: E402


class Measured(viewer.Window):
    def phase(self, seconds):
        """Let the loop run for a while -> rounds and pictures per second, speed factor, ms per picture, share of a CPU."""
        self.alive, self.until, self.rounds, self.drawn, self.played = True, time.perf_counter() + seconds, 0, [], 0
        began, cpu = time.perf_counter(), time.process_time()
        self.loop()
        took = time.perf_counter() - began
        return dict(rounds=self.rounds / took, pictures=len(self.drawn) / took, factor=self.played / took / self.player.fps,
                    ms=1e3 * statistics.mean(self.drawn) if self.drawn else 0.0, cpu=(time.process_time() - cpu) / took)

    def update(self, dt):
        self.rounds += 1
        super().update(dt)
        self.alive = self.alive and time.perf_counter() < self.until

    def step(self, *touched):
        self.played += 1
        super().step(*touched)

    def draw(self):
        began = time.perf_counter()
        super().draw()
        self.drawn.append(time.perf_counter() - began)


def first_picture(run):
    """Seconds from the start of the process to the first picture in the window."""
    code = ("import os, sys, time; sys.path.insert(0, sys.argv[1]); import viewer; flip = viewer.pygame.display.flip\n"
            "def first(): flip(); print(time.time() - float(os.environ['BEGAN']), flush=True); os._exit(0)\n"
            "viewer.pygame.display.flip = first; viewer.main(sys.argv[2:])")
    result = subprocess.run([sys.executable, "-c", code, ROOT, run], env=os.environ | {"BEGAN": str(time.time())},
                            capture_output=True, text=True, timeout=60)
    return float(result.stdout.splitlines()[-1])


def training(env, steps, watched):
    """Seconds of a training, as it reports them, alone or followed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        command = [sys.executable, ROOT / "ddpg.py", "--env", env, "--total-steps", str(steps), "--json", "--out", folder]
        trainer = subprocess.Popen([*command, "--no-stop-when-solved"], stdout=subprocess.PIPE, text=True)
        if watched:
            while not (folder / "policies").exists():
                time.sleep(0.05)
            follower = subprocess.Popen([sys.executable, ROOT / "viewer.py", folder, "--live"], stdout=subprocess.DEVNULL)
        seconds = json.loads(trainer.communicate(timeout=600)[0])["seconds"]
        if watched:
            follower.kill()
            follower.wait()
        return seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", help="folders of runs")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    viewer.import_ddpg()
    for run in options.runs:
        print(f"{run}: first picture after {statistics.median(first_picture(run) for _ in range(options.rounds)):.2f} s")
        window = Measured(viewer.open_display(), viewer.parse([run]))
        window.open(run)
        lines = {"1x": window.phase(10)}
        window.change_speed(4)
        lines["16x"] = window.phase(10)
        window.paused = True
        lines["paused"] = window.phase(5)
        for name, r in lines.items():
            print("  {:7}{rounds:.1f} rounds and {pictures:.1f} pictures a second, {factor:.2f}x, {ms:.1f} ms a picture, "
                  "CPU {cpu:.1%}".format(name, **r), flush=True)
    for env, steps in ("Pendulum-v1", 10_000), ("LunarLanderContinuous-v3", 12_000):
        alone, followed = zip(*[(training(env, steps, False), training(env, steps, True)) for _ in range(options.rounds)])
        print(f"{env}, {steps:,} steps: {statistics.median(alone):.1f} s alone, {statistics.median(followed):.1f} s followed, "
              f"ratio {statistics.median(b / a for a, b in zip(alone, followed)):.3f}", flush=True)


if __name__ == "__main__":
    main()
