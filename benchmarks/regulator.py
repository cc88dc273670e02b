"""A regulator with d dimensions, as an example of an environment of your own, and how far DDPG gets in it.

    cd benchmarks
    python ../ddpg.py --env regulator:Regulator-v0 --env-kwargs '{"d": 16}' --algo ddpg
"""

import gymnasium as gym
import numpy as np


class Regulator(gym.Env):
    """State x in [-1, 1]^d, uniform at the start; x <- clip(x + a, -1, 1); the reward is -|x|.

    It ends where |x| < 0.1, and after 100 steps. Each action dimension moves about 1/d of the reward's variance.
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
