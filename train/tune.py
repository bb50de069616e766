"""Searches shortcut, learning rate, weight decay, batch size and warm-up with keras_tuner's Hyperband.

    python train/tune.py --dataset shapes --depth 8 --max-epochs 3      minutes on a laptop, no data needed
    python train/tune.py                                                ResNet-20 on CIFAR-10, trials of up to 27 epochs
    tensorboard --logdir runs/tune-cifar10-resnet-20-epochs-27-seed-0   curves of all trials and what they tried

Several processes search together if all run the same command in a shared folder, with KERASTUNER_ORACLE_IP and
KERASTUNER_ORACLE_PORT, the address of the chief, in their environment. The chief has KERASTUNER_TUNER_ID=chief, chooses
the trials and prints the result. The others, each with a GPU in CUDA_VISIBLE_DEVICES, have tuner0, tuner1 and so on.

Trials train on 45k images and are ranked by the error on the other 5k; the test images are not used. Many trials train
for a few epochs, the best third of them for three times as many, and so on. A stopped search resumes when the same
command is run again. At the end the program lists all trials and their total time, draws them in trials.png in
the folder of the search, and prints the best one as a command for fit.py.
"""

import contextlib
import json
import os
import sys
import time

import arguments

from keras_resnet import environment
from keras_resnet.data import sources
from keras_resnet.files import ResNetError, RunError, locked, make_folder, write_whole
from keras_resnet.runs import NUMBER, read_json
from keras_resnet.training.options import command
from keras_resnet.training.settings import Settings

WATCHED = sys.stdout.isatty()  # a progress bar is for a terminal
COST, PICTURE = "cost.json", "trials.png"  # in the folder of the search
EXIT_STATUS = 130  # after SIGINT, as in shells


def parse(words=None):
    parser = arguments.parser(__doc__)
    add = parser.add_argument
    add("--depth", type=int, default=20, help="6n+2 (default 20)")
    add("--dataset", default="cifar10", choices=sources.DATASETS, help="(default cifar10)")
    add("--data-dir", metavar="DIR", help="copies of data sets, as for fit.py (default: download)")
    add("--max-epochs", type=int, default=27, metavar="E", help="in a trial (default 27: 70 trials, 375 epochs in all)")
    add("--seed", type=int, default=0, help="seed of the trials and of their weights (default 0)")
    add("--output", default=Settings.output, metavar="DIR", help="folder of the search (default %(default)s)")
    bar = "0 silent, 1 a bar, 2 a line per epoch (default 1 at a terminal, otherwise 2)"
    add("--verbose", type=int, default=1 if WATCHED else 2, choices=(0, 1, 2), help=bar)
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # now: what follows takes seconds to import

import backend

backend.choose("tensorflow", "jax")  # first, before anything that imports Keras

# isort: split
import keras

from keras_resnet.training.history import clock


def search(options, name):
    """Runs or resumes the search; returns the trials, the best first, failed ones last; None if not the chief."""
    import keras_tuner  # here, so that wrong flags are reported before this slow import

    from keras_resnet.training.tuning import OBJECTIVE, ResNetHyperModel

    source = sources.load(options.dataset, options.data_dir)
    normalization = sources.per_pixel_mean(source.train.images), 1.0
    folder = os.path.join(options.output, name)
    make_folder(folder)
    helps = "KERASTUNER_ORACLE_IP" in os.environ and "chief" not in os.environ.get("KERASTUNER_TUNER_ID", "chief")
    callbacks = []
    if not environment.lacks("tensorboard", "tensorboard/"):
        callbacks.append(keras.callbacks.TensorBoard(os.path.join(folder, "tensorboard"), write_graph=False))
    with contextlib.nullcontext() if helps else locked(os.path.join(folder, "lock")):
        try:
            tuner = keras_tuner.Hyperband(
                ResNetHyperModel(options.depth, options.seed, classes=len(source.classes), normalization=normalization),
                OBJECTIVE,
                max_epochs=options.max_epochs,
                seed=options.seed,
                directory=options.output,
                project_name=name,
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # from files of an earlier search
            raise RunError(f"a file in {folder} is damaged: {error!r}. Delete the folder or change --output") from error
        except RuntimeError as error:
            if error.__cause__ is None:  # one of its environment variables is missing
                raise RunError(error) from error
            reason = repr(error.__cause__)
            raise RunError(f"a file in {folder} is damaged: {reason}. Delete the folder or change --output") from error
        path, begun = os.path.join(folder, COST), time.perf_counter()
        spent = seconds(path)
        try:
            tuner.search(*source.train, validation_data=source.validation, callbacks=callbacks, verbose=options.verbose)
        except RuntimeError as error:  # after three failures in a row
            raise RunError(error) from error
        finally:
            spent += time.perf_counter() - begun
            if not helps:
                write_whole(path, lambda file: file.write(json.dumps({"seconds": round(spent, 1)}).encode()))
        return None if helps else tuner.oracle.get_best_trials(len(tuner.oracle.trials))


def seconds(path):
    """The seconds that a search has taken so far, from its file."""
    advice = "Delete it to continue without counting its time."
    return read_json(path, {"seconds": NUMBER}, advice)["seconds"] if os.path.exists(path) else 0.0


def settings(options, values):
    """A trial's `Settings`, its numbers rounded."""
    rounded = {name: float(f"{values[name]:.3g}") for name in ("lr", "weight_decay")}
    chosen = {name: values[name] for name in ("shortcut", "batch_size", "warmup")}
    chosen["bn_batch_size"] = values["batch_size"]  # a trial is Keras' own step, which normalises the whole batch
    data = {"dataset": options.dataset, "data_dir": options.data_dir, "seed": options.seed}
    return Settings(depth=options.depth, **data, **rounded, **chosen)


def table(options, trials):
    """The trials as a table."""
    rows = [("val. error", "epochs", "shortcut", "lr", "weight decay", "batch size", "warm-up")]
    for trial in trials:
        found = settings(options, trial.hyperparameters.values)
        numbers = f"{found.lr:g}", f"{found.weight_decay:g}", str(found.batch_size)
        epochs = str(trial.hyperparameters.values["tuner/epochs"])
        rows.append((f"{trial.score:.2%}", epochs, found.shortcut, *numbers, "yes" if found.warmup else "no"))
    return "\n".join("".join(f"{cell:>13}" for cell in row) for row in rows)


def cost(trials, spent):
    """The total cost of the trials, as text. A trial that continues another one counts only its own epochs."""
    epochs = sum(
        values["tuner/epochs"] - values["tuner/initial_epoch"]
        for values in (trial.hyperparameters.values for trial in trials)
    )
    return f"{len(trials)} trials, {epochs} epochs, {clock(spent)} in all"


def draw(options, trials, note, path):
    """Draws the trials' errors against their settings."""
    from keras_resnet.experiments import figures  # here, because it needs matplotlib

    shown = []
    for trial in trials:
        found = settings(options, trial.hyperparameters.values)
        values = {"learning rate": found.lr, "weight decay": found.weight_decay, "batch size": found.batch_size}
        values |= {"shortcut": found.shortcut, "warm-up": found.warmup}
        shown.append(figures.Trial(values, trial.hyperparameters.values["tuner/epochs"], trial.score))
    figure = figures.draw_search(shown, note)
    figures.write_png(figure, path)


def main():
    options = parse()
    try:
        if options.max_epochs < 1:
            raise RunError(f"--max-epochs is positive; found {options.max_epochs}")
        network = Settings(depth=options.depth, dataset=options.dataset, seed=options.seed).network.lower()
        name = f"tune-{options.dataset}-{network}-epochs-{options.max_epochs}-seed-{options.seed}"
        if lacking := environment.needed("keras_tuner"):
            sys.exit(f"tune.py {lacking}")
        drawn = not environment.lacks("matplotlib", PICTURE)
        every = search(options, name)
        if every is None:
            print(f"{os.environ['KERASTUNER_TUNER_ID']}: the search is over; its chief prints the result")
            return
        trials = [trial for trial in every if trial.status == "COMPLETED"]
        if failed := every[len(trials) :]:
            reason = (failed[0].message or "no message").strip().splitlines()[-1]
            print(f"tune.py: {len(failed)} of {len(every)} trials failed, the first with: {reason}", file=sys.stderr)
        if not trials:
            raise RunError(f"no trial was completed; delete {os.path.join(options.output, name)} to start again")
        folder = os.path.join(options.output, name)
        taken = cost(trials, seconds(os.path.join(folder, COST)))
        if drawn:
            draw(options, trials, f"{name}: {taken}; the best is ringed", os.path.join(folder, PICTURE))
        best = settings(options, trials[0].hyperparameters.values)
        data = {"data_dir": options.data_dir} if options.data_dir else {}
        print(f"\n{table(options, trials)}\n\n{taken}; in {folder}{f', {PICTURE} shows them' * drawn}. The best:")
        print(command({**best.changes, **data}, os.environ["KERAS_BACKEND"]))
    except (ResNetError, OSError) as error:
        sys.exit(f"tune.py: {error}")
    except KeyboardInterrupt:
        print("\nstopped; run the same command again to resume from the last trial", file=sys.stderr)
        sys.exit(EXIT_STATUS)


if __name__ == "__main__":
    main()
