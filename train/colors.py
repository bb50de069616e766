"""Measures the mean and the colour statistics of images, for `fit.py --colors FILE`.

    python train/colors.py IMAGENET imagenet.npz                    an image folder, IMAGENET/{train,val}/CLASS/
    python train/colors.py imagenet2012 imagenet.npz                from TensorFlow Datasets
    python train/colors.py IMAGENET small.npz --image-size 112      for `fit.py --image-size 112`

The file holds the mean of the training images' center crops, which the network subtracts (P1 3.4), and the principal
components of their colours for AlexNet's colour noise. fit.py measures both itself, once per run; use this program
to share them between runs, or to measure more images.
"""

import sys

import arguments

from keras_resnet.architecture import IMAGE_SIZE
from keras_resnet.choices import COLOR_SAMPLE
from keras_resnet.files import ResNetError, listed, write_whole


def parse(words=None):
    parser = arguments.parser(__doc__)
    add = parser.add_argument
    add("dataset", help="an image folder, or a data set of TensorFlow Datasets")
    add("file", metavar="FILE.npz", help="the output file")
    add("--data-dir", metavar="DIR", help="copies of data sets, as for fit.py (default: download)")
    add("--image-size", type=int, default=IMAGE_SIZE, help="size of the crops (default %(default)s)")
    add("--images", type=int, default=COLOR_SAMPLE, help="at most this many at random (default %(default)s)")
    add("--seed", type=int, default=0, help="seed of the random sample (default 0)")
    add("--skip-damaged", action="store_true", help="skip files that cannot be decoded, and list them")
    return parser.parse_args(words)


if __name__ == "__main__":
    parse()  # now: what follows takes seconds to import

import backend

backend.choose("tensorflow")  # first, before anything that imports Keras

# isort: split
from keras_resnet.data import imagenet, records


def main():
    options = parse()
    if not options.file.endswith(".npz"):
        sys.exit(f"colors.py: FILE ends in .npz; found {options.file}")
    for flag in ("image_size", "images"):
        if getattr(options, flag) < 1:
            sys.exit(f"colors.py: --{flag.replace('_', '-')} is positive; found {getattr(options, flag)}")
    try:
        data = records.splits(options.dataset, options.data_dir, options.seed)
        skipped = set() if options.skip_damaged else None
        with imagenet.errors_named():
            found = imagenet.statistics(
                data.train,
                image_size=options.image_size,
                images=options.images,
                seed=options.seed,
                skipped=skipped,
                verbose=int(sys.stdout.isatty()),
            )
        write_whole(options.file, found.save)
    except ResNetError as error:
        sys.exit(f"colors.py: {error}")
    print("mean of red, green, blue    " + "".join(f"{value:>9.3f}" for value in found.channel_means))
    for value, vector in zip(found.components.values, found.components.vectors.T, strict=True):
        print(f"eigenvalue {value:<8.4f} along   " + "".join(f"{length:>9.4f}" for length in vector))
    if skipped:
        print(f"{len(skipped)} damaged files were skipped:\n{listed(skipped)}")


if __name__ == "__main__":
    main()
