"""A small run in a process of its own, with as many logical CPUs as it is told: `test_distribution.py` starts it.

    python tests/distributed.py DEVICES FILE.npz SETTINGS

Prints the result as JSON in the last line, and leaves in FILE.npz each variable of each of this process' replicas.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import sources
from keras_resnet.training import run
from keras_resnet.training.checkpoint import RunError, Stopped

TRAIN, VALIDATION, TEST = 9 * 16 + 5, 37, 41  # none of them even


def main():
    devices, path, settings = int(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * devices)
    sources.SHAPES_EXAMPLES = {"train": TRAIN + VALIDATION, "test": TEST}
    sources.VALIDATION_EXAMPLES = {"shapes": VALIDATION}
    finish = run.finish

    def finish_and_save(settings, trained, *rest):
        local = tf.distribute.get_strategy().experimental_local_results
        replicas = [[value.numpy() for value in local(variable.value)] for variable in trained.weights]
        np.savez(path, *map(np.stack, replicas))
        return finish(settings, trained, *rest)

    run.finish = finish_and_save
    keras.utils.set_random_seed(0)
    print(json.dumps(run.train(run.Settings(**settings), verbose=0)))


if __name__ == "__main__":
    try:
        main()
    except (RunError, Stopped) as error:
        sys.exit(f"{type(error).__name__}: {error}")
