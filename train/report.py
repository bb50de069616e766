"""Writes a page, and a PNG of each figure, from the results of train/reproduce.py.

    python train/report.py                                 docs/results/*.json to docs/results/report.html
    python train/report.py --results DIR --output PAGES

report.html needs no other file. It shows our numbers beside the paper's, and commands for the missing runs.
"""

import sys

import arguments

from keras_resnet import environment
from keras_resnet.experiments import experiments, report
from keras_resnet.files import ResNetError, make_folder


def parse(words=None):
    parser = arguments.parser(__doc__)
    add = parser.add_argument
    add("--results", default=experiments.RESULTS, metavar="DIR", help="folder of the results (default %(default)s)")
    add("--output", metavar="DIR", help="folder of the page (default: that of the results)")
    return parser.parse_args(words)


def main():
    options = parse()
    if lacking := environment.needed("matplotlib"):
        sys.exit(f"report.py {lacking}")
    output = options.output or options.results
    try:
        records = experiments.load(options.results)
        make_folder(output)
        print("\n".join(report.write(records, output)))
    except (ResNetError, OSError) as error:
        sys.exit(f"report.py: {error}")


if __name__ == "__main__":
    main()
