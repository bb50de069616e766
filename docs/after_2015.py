"""What newer parts of Keras give ResNet-20 on CIFAR-10, with plain `fit`: the numbers of docs/after-2015.md.

    python docs/after_2015.py steps --data-dir DIR        # the paper's schedule
    python docs/after_2015.py cosine --data-dir DIR       # cosine decay
    python docs/after_2015.py smoothing --data-dir DIR    # label smoothing

Prints the test error in the middle and at the end of the schedule: of the weights, of their moving averages (EMA), and
of each with the statistics of batch normalisation estimated anew.
"""

import argparse
import itertools

import keras

import keras_resnet
from keras_resnet import analysis
from keras_resnet.data import cifar, sources

LEARNING_RATE, BATCH = 0.1, 128
RECALIBRATION = 100  # batches


class Recalibrate(keras.callbacks.Callback):
    """Estimates the statistics of batch normalisation anew for a test, from batches of training images."""

    def __init__(self, batches):
        self.batches = batches

    def on_test_begin(self, logs=None):
        self.before = [variable.numpy() for variable in self.model.non_trainable_variables]
        analysis.recalibrate_bn(self.model, (images for images, _ in self.batches))

    def on_test_end(self, logs=None):
        for variable, value in zip(self.model.non_trainable_variables, self.before, strict=True):
            variable.assign(value)


def learning_rate(kind, steps):
    if kind == "cosine":
        return keras.optimizers.schedules.CosineDecay(LEARNING_RATE, steps)
    rates = [LEARNING_RATE, LEARNING_RATE / 10, LEARNING_RATE / 100]
    return keras.optimizers.schedules.PiecewiseConstantDecay([steps // 2, 3 * steps // 4], rates)


def main(words=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("steps", "cosine", "smoothing"))
    parser.add_argument("--data-dir", help="of CIFAR-10 (default: downloaded)")
    parser.add_argument("--dataset", default="cifar10", choices=sources.DATASETS)
    parser.add_argument("--steps", type=int, default=6400, help="(default 6400, a tenth of the paper's)")
    options = parser.parse_args(words)
    keras.utils.set_random_seed(0)
    source = sources.load(options.dataset, options.data_dir)
    mean = sources.per_pixel_mean(source.train.images)
    one_hot = lambda images, labels: (images, keras.ops.one_hot(labels, len(source.classes)))
    test = cifar.evaluation_batches(source.test).map(one_hot)

    model = keras_resnet.CifarResNet(20, classes=len(source.classes), normalization=(mean, 1.0))
    model.compile(
        keras_resnet.SGD(learning_rate(options.kind, options.steps), use_ema=True, ema_momentum=0.995),
        keras.losses.CategoricalCrossentropy(label_smoothing=0.1 if options.kind == "smoothing" else 0.0),
        metrics=["accuracy"],
    )

    def show(epoch, logs):
        for names in itertools.product(("weights", "EMA"), ("", ", statistics anew")):
            callbacks = [keras.callbacks.SwapEMAWeights()] if names[0] == "EMA" else []
            if names[1]:  # after the swap
                callbacks.append(Recalibrate(batches.take(RECALIBRATION)))
            found = model.evaluate(test, verbose=0, callbacks=callbacks, return_dict=True)
            print(
                f"step {model.optimizer.iterations.numpy()}, {''.join(names)}: {1 - found['accuracy']:.2%}", flush=True
            )

    batches = cifar.training_batches(source.train, mean, batch_size=BATCH, seed=0).map(one_hot)
    shown = keras.callbacks.LambdaCallback(on_epoch_end=show)
    model.fit(batches, steps_per_epoch=options.steps // 2, epochs=2, shuffle=False, verbose=2, callbacks=[shown])


if __name__ == "__main__":
    main()
