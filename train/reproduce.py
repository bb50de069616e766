"""Runs the experiments of the papers.

    python train/reproduce.py fig6                            all networks of P1 Fig. 6, 64k steps each: days to weeks
    python train/reproduce.py fig6 --steps 8000               an eighth of the schedule
    python train/reproduce.py fig6 --only plain-20 ResNet-20  two of its networks
    python train/reproduce.py table6 --only ResNet-110 --seeds 5 --train-on-all     as the paper's 6.61 +- .16
    KERAS_BACKEND=jax python train/reproduce.py table6 --only ResNet-20 ResNet-56 --seeds 5 --at-a-time 5 --seconds 840
                                                              five at a time on one GPU, for a quarter of an hour
    python train/reproduce.py fig4 --data IMAGENET            an image folder, IMAGENET/{train,val}/CLASS/
    python train/reproduce.py table3 --data imagenet2012 --accumulate 8             TensorFlow Datasets, 32 at a time

Values of NAME:

%s

Each run writes one file, RESULTS/RUN.json, and is not repeated if this file exists. A stopped run resumes when the same
command is run again. A network that several experiments share is trained once for all of them.
`train/report.py` makes tables and figures from the files. Flags of fit.py apply to all runs.

CIFAR-10 is split into 45k images for training and 5k for the validation error of the curves; the test images are used
once, at the end. The paper's test errors are of networks trained on all 50k, as with --train-on-all, which leaves no
validation error. For ImageNet the error is the ten-crop error on the validation images.
"""

import sys

import arguments

from keras_resnet.experiments import experiments, report, several, tables
from keras_resnet.files import RunError
from keras_resnet.training.command_line import add_settings, errors_told
from keras_resnet.training.settings import names

INTERRUPTED = 130  # the status after SIGINT, as in shells


def parse(words=None):
    listed = "\n".join(
        f"    {name:<22}{experiment.title}, {experiment.source}" for name, experiment in tables.EXPERIMENTS.items()
    )
    parser = arguments.parser(__doc__ % listed, allow_abbrev=False)
    add = parser.add_argument
    add("name", metavar="NAME", choices=tables.EXPERIMENTS, help="name of the experiment")
    add("--only", nargs="+", metavar="NETWORK", help="networks, as the experiment names them (default: all)")
    add("--seeds", type=int, default=1, help="runs of each network (default 1)")
    add(
        "--data",
        metavar="DATA",
        help="for ImageNet: an image folder, or a data set of TensorFlow Datasets",
    )
    add("--at-a-time", type=int, default=1, metavar="RUNS", help="runs at the same time, each in a process (default 1)")
    add("--seconds", type=float, metavar="S", help="stop and save the runs after S seconds; the next call resumes them")
    add("--results", default=experiments.RESULTS, metavar="DIR", help="folder of the results (default %(default)s)")
    # Without the settings that an experiment decides or that have another flag here.
    add_settings(parser, (*names("network", "weights"), "dataset", "seed", "name"))
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # now: what follows takes seconds to import

import backend

backend.choose("tensorflow", "jax")  # first, before anything that imports Keras


def table(experiment, errors):
    """A table of our errors beside the paper's. `errors` is a list of a row's name and the error of a run."""
    title = f"{experiment.title}: error in %"
    rows = [("network", "here", "the paper's")]
    for name in dict.fromkeys(name for name, _ in errors):
        ours = report.ours([100 * error for row, error in errors if row == name])
        rows.append((name, ours, experiment.row(name).paper or "-"))
    return "\n".join([title, "-" * len(title), *(f"{name:<34}{ours:<16}{paper}" for name, ours, paper in rows)])


def main():
    options = vars(parse())
    name, only, seeds, data = (options.pop(key) for key in ("name", "only", "seeds", "data"))
    results, verbose, at_a_time, seconds = (options.pop(key) for key in ("results", "verbose", "at_a_time", "seconds"))
    experiment, errors, failures, left, failed = tables.EXPERIMENTS[name], [], [], [], []
    try:
        with errors_told("reproduce.py"):
            runs = experiment.settings(only, seeds, data, **options)
            if at_a_time < 1:
                raise RunError(f"--at-a-time is positive; found {at_a_time}")
            if at_a_time > 1 or seconds is not None:
                wanted = [settings for _, settings in runs if not experiments.recorded(settings, results)]
                left, failed = several.train(wanted, at_a_time, seconds)
                failures += [settings.name for settings in failed]
            for number, (row, settings) in enumerate(runs, 1):
                if settings in left:
                    continue
                print(f"[{number} of {len(runs)}] {row}, seed {settings.seed}", flush=True)
                try:
                    errors.append((row, experiments.run(settings, results, verbose)["error"]))
                except RunError as error:  # such as a network that diverged; the others may succeed
                    print(f"reproduce.py: {error}", file=sys.stderr)
                    failures.append(settings.name)
    except KeyboardInterrupt:  # outside of training, during an evaluation for example
        print("\nstopped; run the same command again to continue with this network", file=sys.stderr)
        sys.exit(INTERRUPTED)
    if unfinished := len(left) - len(failed):
        print(f"{unfinished} of {len(runs)} runs are not finished; run the same command again to resume")
    print(f"{table(experiment, errors)}\nin {results}; `python train/report.py --results {results}` draws them")
    if failures:
        sys.exit(f"reproduce.py: {len(failures)} of {len(runs)} runs failed: {', '.join(failures)}")


if __name__ == "__main__":
    main()
