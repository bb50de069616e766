"""The numbers of the papers' recipes and results.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).
"""

import typing

Recipe: typing.TypeAlias = dict[str, typing.Any]

# P1 4.2 and 3.4: defaults that depend on the data.
CIFAR: Recipe = {"depth": 20, "shortcut": "A", "batch_size": 128, "steps": 64_000, "schedule": "steps"}
IMAGENET: Recipe = {"depth": 18, "shortcut": "B", "batch_size": 256, "steps": 600_000, "schedule": "plateau"}

BN_BATCH_SIZE = 64  # on CIFAR: 128 images on two GPUs, each normalising its half (P1 4.2)

LEARNING_RATE = 0.1
FINE_TUNING_RATE = 0.01  # for trained networks: the paper's rate after its first division
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
BOUNDARIES = (1 / 2, 3 / 4)  # of the steps: on CIFAR the learning rate is divided by 10 at 32k and 48k
PATIENCE = 5  # epochs without a lower validation error make a plateau; the paper does not state a number
PLATEAU_STEPS = 500  # a plateau has at least as many: epochs of few images are too short to tell
DIVISIONS = 2  # of the learning rate at plateaus, as on CIFAR: .1, .01, .001; the run ends at the next plateau
WARMUP_RATE = 0.01
WARMUP_ERROR = 0.8
WARMUP_DEPTH = 110  # "we find that the initial learning rate of 0.1 is slightly too large to start converging"

# Test error on CIFAR-10 in %, ResNets with option A trained on all 50k (P1 Table 6; 110: best of five).
CIFAR10_TEST_ERROR = {20: 8.75, 32: 7.51, 44: 7.17, 56: 6.97, 110: 6.43, 1202: 7.93}
