"""How fast viewer.py is, on the screen that DISPLAY names.

    python benchmarks/viewing.py RUN RUN ..
    xvfb-run python benchmarks/viewing.py RUN RUN ..        without a screen

For each run's folder: seconds from the command to the first picture; at 1x and at 16x, rounds of
the window's loop, pictures and simulated steps per second, and the time that a picture takes; the
CPU time of a paused window; the time from a drag on the timeline to the same moment, 150 steps into
the episode, of another policy; what recording costs a step and saving a film. Then the seconds that
a training takes alone and with the viewer following it, in turn.
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

ROW = "  {:7}{rounds:.1f} rounds and {pictures:.1f} pictures a second, {factor:.2f}x, "
ROW += "{ms:.1f} ms a picture, CPU {cpu:.1%}"
HANDS = "  to the same moment of another policy {morph:.0f} ms, 150 steps recorded in {film:.1f} s "
HANDS += "({plain:.1f} s without), saved in {save:.0f} ms"
FIRST_PICTURE = """if True:
    import os, sys, time
    sys.path.insert(0, sys.argv[1])
    import viewer
    flip = viewer.pygame.display.flip
    def first():
        flip()
        print(time.time() - float(os.environ['BEGAN']), flush=True)
        os._exit(0)
    viewer.pygame.display.flip = first
    viewer.main(sys.argv[2:])"""


class Measured(viewer.Window):
    def phase(self, seconds):
        """Let the loop run for a while -> a dict of what ROW shows."""
        self.alive, self.until = True, time.perf_counter() + seconds
        self.rounds, self.drawn, self.played = 0, [], 0
        began, cpu = time.perf_counter(), time.process_time()
        self.loop()
        took = time.perf_counter() - began
        row = dict(rounds=self.rounds / took, pictures=len(self.drawn) / took)
        row |= dict(factor=self.played / took / self.player.fps)
        row |= dict(ms=1e3 * statistics.mean(self.drawn) if self.drawn else 0.0)
        return row | dict(cpu=(time.process_time() - cpu) / took)

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


def timed(do, *arguments):
    """-> seconds."""
    began = time.perf_counter()
    do(*arguments)
    return time.perf_counter() - began


def hands(window):
    """What takes a while in a user's hands -> a dict of what HANDS shows."""

    def fly():
        for _ in range(150):
            window.step()
            window.draw()

    def morph(which):
        window.choose(which)
        window.settle()
        window.draw()

    window.change_speed(0)
    window.restart()
    row = dict(plain=timed(fly))
    row["morph"] = 1e3 * statistics.median(timed(morph, w) for w in ("first", "newest") * 3)
    window.restart()
    with tempfile.TemporaryDirectory() as window.options.start:
        window.record()
        row["film"] = timed(fly)
        row["save"] = 1e3 * timed(window.record)
    return row


def first_picture(run):
    """Seconds from the start of the process to the first picture in the window."""
    command, env = [sys.executable, "-c", FIRST_PICTURE, ROOT, run], dict(os.environ)
    env["BEGAN"] = str(time.time())
    result = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, timeout=60)
    return float(result.stdout.splitlines()[-1])


def training(env, steps, watched):
    """Seconds of a training, as it reports them, alone or followed."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        command = [sys.executable, ROOT / "ddpg.py", "--env", env, "--total-steps", str(steps)]
        command += ["--json", "--out", folder, "--no-stop-when-solved"]
        trainer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        if watched:
            while not (folder / "policies").exists():
                time.sleep(0.05)
            command = [sys.executable, ROOT / "viewer.py", folder, "--live"]
            follower = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        seconds = json.loads(trainer.communicate(timeout=600)[0])["seconds"]
        if watched:
            follower.kill()
            follower.wait()
        return seconds


def main():
    layout = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(description=__doc__, **layout)
    parser.add_argument("runs", nargs="*", help="folders of runs")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    viewer.import_ddpg()
    for run in options.runs:
        seconds = statistics.median(first_picture(run) for _ in range(options.rounds))
        print(f"{run}: first picture after {seconds:.2f} s")
        window = Measured(viewer.open_display(viewer.SIZE), viewer.parse([run]))
        window.open([run])
        lines = {"1x": window.phase(10)}
        window.change_speed(4)
        lines["16x"] = window.phase(10)
        window.paused = True
        lines["paused"] = window.phase(5)
        for name, row in lines.items():
            print(ROW.format(name, **row), flush=True)
        print(HANDS.format(**hands(window)), flush=True)
    for env, steps in ("Pendulum-v1", 10_000), ("LunarLanderContinuous-v3", 12_000):
        alone, followed = [], []
        for _ in range(options.rounds):
            alone.append(training(env, steps, False))
            followed.append(training(env, steps, True))
        ratio = statistics.median(b / a for a, b in zip(alone, followed))
        row = f"{env}, {steps:,} steps: {statistics.median(alone):.1f} s alone, "
        row += f"{statistics.median(followed):.1f} s followed, ratio {ratio:.3f}"
        print(row, flush=True)


if __name__ == "__main__":
    main()
