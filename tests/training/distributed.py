"""Small runs in their own process, with DEVICES logical CPUs; `test_distribution.py` starts it.

    python tests/training/distributed.py DEVICES FOLDER SETTINGS...

For each SETTINGS, FOLDER/NAME.json has the result, and FOLDER/NAME.npz each variable on each replica. After one that is
refused the next follows.
"""

import json
import os
import sys

import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.data import sources
from keras_resnet.files import RunError
from keras_resnet.training import Settings, loop, tensorflow
from keras_resnet.training.signals import Stopped

TRAIN, VALIDATION, TEST = 9 * 16 + 5, 37, 41  # none of them even


def small_shapes(patch):
    patch.setattr(sources, "SHAPES_EXAMPLES", {"train": TRAIN + VALIDATION, "test": TEST})
    patch.setattr(sources, "VALIDATION_EXAMPLES", {"shapes": VALIDATION})


def main(devices, folder, *many_settings):
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * int(devices))
    small_shapes(pytest.MonkeyPatch())
    write_result, trained = loop.write_result, []

    class Kept(tensorflow.Engine):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            trained[:] = [self.network]

    def save_and_write(settings, *rest):
        local = tf.distribute.get_strategy().experimental_local_results
        replicas = [[value.numpy() for value in local(variable.value)] for variable in trained[0].weights]
        np.savez(os.path.join(folder, settings.name), *map(np.stack, replicas))
        return write_result(settings, *rest)

    tensorflow.Engine, loop.write_result = Kept, save_and_write
    refused = None
    for settings in map(json.loads, many_settings):
        try:
            result = loop.train(Settings(**settings), verbose=0)
        except RunError as error:
            refused = error
            print(f"RunError: {error}", flush=True)
            continue
        with open(os.path.join(folder, f"{settings['name']}.json"), "w") as file:
            json.dump(result, file)
    sys.exit(refused and 1)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except Stopped as error:
        sys.exit(f"Stopped: {error}")
