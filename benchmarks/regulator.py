"""A regulator with d dimensions: an environment of your own, and how far DDPG gets in it.

    cd benchmarks
    python ../ddpg.py --env regulator:Regulator-v0 --env-kwargs '{"d": 16}' --algo ddpg \\
        --total-steps 20000
    python regulator.py --d 16 --total-steps 5000
    python regulator.py --d 64 --total-steps 30000
    python regulator.py --d 256 --total-steps 200000 --learning-starts 100000 --hidden 1024 \\
        --gamma 0 --reward-scale 1 --actor-lr 3e-5 --critic-lr 3e-4 --noise-sigma 0.3

It trains 3 seeds; the last row of each is over 100 test episodes.

Why so for 256: the score of a state hardly depends on one of 256 actions, so the critic learns its
slopes only where actions are loud and many (100,000 uniformly random steps first), undisturbed by
its own guesses of the future (gamma 0). One wide layer was chosen by how well these slopes agree
with the true ones after updates on random steps, without any training. The actor must not saturate
before the slopes are right, so it is slow.
"""

import argparse
import sys
from pathlib import Path

import gymnasium as gym
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


class Regulator(gym.Env):
    """State x in [-1, 1]^d, uniform at the start; x <- clip(x + a, -1, 1); the reward is -|x|.

    It ends where |x| < 0.1, and after 100 steps. Each action dimension moves about 1/d of the
    reward's variance.
    """

    def __init__(self, d=16):
        self.observation_space = self.action_space = gym.spaces.Box(-1.0, 1.0, (d,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.x = self.np_random.uniform(-1, 1, self.observation_space.shape).astype(np.float32)
        return self.x, {}

    def step(self, action):
        self.x = np.clip(self.x + action, -1, 1)
        norm = float(np.linalg.norm(self.x))
        return self.x, -norm, norm < 0.1, False, {}


gym.register("Regulator-v0", Regulator, max_episode_steps=100)


def main():
    from ddpg import Config, Training, evaluate, tune

    settings = dict(algo="ddpg", hidden=(128, 128), batch_size=128, layer_norm=False, gamma=0.9)
    settings |= dict(reward_scale=0.1, tau=0.01, actor_lr=3e-4, critic_lr=1e-3, noise_sigma=0.1)
    settings |= dict(learning_starts=500, eval_every=0, n_step=1, noise_theta=1.0, normalize=False)
    layout = dict(formatter_class=argparse.RawDescriptionHelpFormatter)
    parser = argparse.ArgumentParser(description=__doc__, **layout)
    parser.add_argument("--d", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--total-steps", type=int, default=5_000)
    for name, value in settings.items():
        kind = dict(nargs="+", type=int) if name == "hidden" else dict(type=type(value))
        kind = dict(action=argparse.BooleanOptionalAction) if value is False else kind
        parser.add_argument(f"--{name.replace('_', '-')}", default=value, **kind)
    options = vars(parser.parse_args())
    d, seeds, total = options.pop("d"), options.pop("seeds"), options["total_steps"]

    def make():
        return gym.wrappers.TimeLimit(Regulator(d), 100)

    for seed in range(seeds):
        config = Config(**options, env="Regulator-v0", env_kwargs={"d": d}, seed=seed)
        tune(config)
        for run in Training(config, make):
            if run.step % max(1, total // 10) == 0 or run.step == total:
                returns, lengths = evaluate(run.agent, make, range(100 if run.step == total else 3))
                row = f"d {d} seed {seed} step {run.step} return {returns.mean():.1f} "
                row += f"+- {returns.std():.1f} length {lengths.mean():.0f}"
                print(row, flush=True)


if __name__ == "__main__":
    main()
