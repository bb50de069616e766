"""What the runs say of the papers' claims: differences between networks, with 95 % intervals over seeds.

P1 is "Deep Residual Learning for Image Recognition" (arXiv 1512.03385).
"""

import itertools
import math
import re
import statistics
import typing
from collections.abc import Callable, Iterator, Sequence

from scipy import stats

from keras_resnet.experiments import report
from keras_resnet.experiments.tables import CLAIMS, EXPERIMENTS

if typing.TYPE_CHECKING:
    from keras_resnet.experiments import figures

LEVEL = 0.95
TEST_IMAGES = 10_000  # of CIFAR-10
PAPERS_RUNS = 5  # of ResNet-110 (P1 Table 6)
BACKENDS = tuple(report.BACKENDS.values())


class Difference(typing.NamedTuple):
    """How much larger the second of two errors is, in points, with its interval: over seeds, or of the test images."""

    points: float
    low: float
    high: float
    over_seeds: bool

    def __str__(self):
        return f"{self.points:+.2f} ({self.low:+.2f} to {self.high:+.2f})"

    @property
    def verdict(self) -> str:
        """Of the claim that the first error is smaller."""
        found = "yes" if self.low > 0 else "no" if self.high < 0 else "undecided"
        return found if self.over_seeds else f"{found}, for these runs"


def difference(better: Sequence[float], worse: Sequence[float]) -> Difference:
    """The difference of two networks' mean errors.

    With two runs or more of each the interval is Welch's, over seeds. Otherwise, or if no error differs from another,
    it is that of two proportions of the test images, taken as independent, and says nothing about other seeds.

    Args:
        better, worse: test errors in %, one for each run.
    """
    points = statistics.mean(worse) - statistics.mean(better)
    several = min(len(better), len(worse)) > 1
    half = _welch(*((statistics.stdev(errors), len(errors)) for errors in (better, worse))) if several else 0.0
    over_seeds = half > 0
    if not over_seeds:
        variances = [(p := statistics.mean(errors)) * (100 - p) / TEST_IMAGES for errors in (better, worse)]
        half = float(stats.norm.ppf((1 + LEVEL) / 2)) * math.sqrt(sum(variances))
    return Difference(points, points - half, points + half, over_seeds)


def _welch(*samples):
    """Half of Welch's interval of a difference of means, from the standard deviations and sizes of two samples."""
    shares = [deviation**2 / n for deviation, n in samples]
    if not any(shares):
        return 0.0
    freedom = sum(shares) ** 2 / sum(share**2 / (n - 1) for share, (_, n) in zip(shares, samples, strict=True))
    return _quantile(freedom) * math.sqrt(sum(shares))


def _quantile(freedom):
    """Student's t for the interval."""
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def half_width(errors: Sequence[float]) -> float:
    """Half the interval of a mean over seeds (Student's t); nan for a single run."""
    if len(errors) < 2:
        return math.nan
    return _quantile(len(errors) - 1) * statistics.stdev(errors) / math.sqrt(len(errors))


COLUMNS = ("lower error", "higher error", "difference", "holds", "runs", "conditions")
CLAIMED = (
    "By how many points the second network's test error is higher, with the same settings (backends and machines may "
    "differ: see the first table), and the 95 % interval: over seeds (Welch) with two runs or more of each network; "
    "otherwise of the 10,000 test images alone, which says nothing about other seeds. Both networks are tested on the "
    "same images, which the interval ignores; that usually makes it too wide. The paper's claims are about the whole "
    "schedule, shorter ones are shown for comparison. Of twenty such intervals one is expected to miss."
)


class Table(typing.NamedTuple):
    """A table of the report and the site; `draw` makes its figure, if it has one."""

    title: str
    caption: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    draw: "Callable[[], figures.Figure] | None" = None


def tables(records: Sequence[dict]) -> list[Table]:
    """What the report and the site show; a table without rows is left out."""
    found = [
        Table(
            "Ours and the paper's",
            "The whole schedule, all training images. Test errors in %: each seed, their mean and standard deviation, "
            "and the 95 % interval of the mean. A mean differs from the paper's if the difference lies outside its 95 "
            "% interval; the paper's single runs are taken to vary as ours do.",
            ("network", "trained on", "each seed", "mean", "95 % interval", "the paper", "differs"),
            list(_networks(records)),
            lambda: draw(records),
        ),
        *_claimed(records),
        Table(
            "TensorFlow and JAX",
            "The same recipe with other random numbers, so no difference is expected: by how many points JAX's error "
            "is higher.",
            ("network", "difference", "over seeds", "runs", "conditions"),
            list(_backends(records)),
        ),
    ]
    return [table for table in found if table.rows]


def _claimed(records):
    found = [Table(claim.text, "", COLUMNS, [*_pairs(claim, records)]) for claim in CLAIMS]
    found = [table for table in found if table.rows]
    return [table._replace(caption=CLAIMED * (table is found[0])) for table in found]


def whole(records: Sequence[dict]) -> list[report.Entry]:
    """The entries of P1's CIFAR networks that were trained as for the paper's results."""
    found = report.entries(EXPERIMENTS["fig6"], records)
    same = {"train_on_all", "mixed_precision", "deterministic"}  # what leaves the paper's recipe as it is
    return [entry for entry in found if "train_on_all" in entry.conditions and same.issuperset(entry.conditions)]


def draw(records: Sequence[dict]) -> "figures.Figure":
    """The test error of each seed as a point, with the means, their intervals and the paper's numbers."""
    from keras_resnet.experiments import figures  # here, because it needs matplotlib, which tables do not

    found = []
    for entry in whole(records):
        name = f"{entry.row.name}, {' and '.join(sorted(_on(entry)))}"
        shown = entry.row.network.get("plain", False), half_width(entry.errors), paper(entry.row.paper)[0]
        found.append(figures.Seeds(name, entry.errors, *shown))
    note = "Test error on CIFAR-10, whole schedule, a point for each seed"
    note += " (hollow: plain)" + ", means with 95 % intervals" * any(len(network.errors) > 1 for network in found)
    return figures.draw_seeds(found, f"{note}; |: the paper's")


def _networks(records):
    for entry in whole(records):
        half, mean = half_width(entry.errors), statistics.mean(entry.errors)
        yield (
            entry.row.name,
            "; ".join(dict.fromkeys(map(report.trained_on, entry.records))),
            ", ".join(f"{error:.2f}" for error in entry.errors),
            report.ours(entry.errors),
            "one run" if math.isnan(half) else f"{mean - half:.2f} to {mean + half:.2f}",
            entry.row.paper or "–",
            _against(entry),
        )


def _against(entry):
    """By how much a mean differs from the paper's, if that lies outside the interval of the difference."""
    error, spread = paper(entry.row.paper)
    if math.isnan(error):
        return "–"
    if len(entry.errors) < 2:
        return "one run"
    n, own, by = len(entry.errors), statistics.stdev(entry.errors), statistics.mean(entry.errors) - error
    if math.isnan(spread):  # the paper has one run, which is taken to vary as ours do
        half = half_width(entry.errors) * math.sqrt(n + 1)
    else:
        half = _welch((own, n), (spread, PAPERS_RUNS))
    return "not shown" if abs(by) <= half else f"{by:+.2f}"


def paper(text: str | None) -> tuple[float, float]:
    """Mean and standard deviation of a result as the paper prints it, "6.43 (6.61 ± 0.16)"; nan for what it lacks."""
    found = re.search(r"([\d.]+)(?: ± ([\d.]+)\))?$", text or "")
    return (float(found[1]), float(found[2] or "nan")) if found else (math.nan, math.nan)


def _alike(experiment, records) -> Iterator[tuple[str, dict[str, list[report.Entry]]]]:
    """Conditions as text with their entries by network; those of several backends stand side by side."""
    found = [entry for entry in report.entries(EXPERIMENTS[experiment], records) if entry.records]
    alike = lambda entry: (-entry.steps, report.schedule(EXPERIMENTS[experiment], entry))
    for (_, conditions), group in itertools.groupby(sorted(found, key=alike), alike):
        networks: dict[str, list[report.Entry]] = {}
        for entry in group:
            networks.setdefault(entry.row.name, []).append(entry)
        yield conditions, networks


def _pairs(claim, records):
    for conditions, networks in _alike(claim.experiment, records):
        for better, worse in claim.pairs:
            if better in networks and worse in networks:
                errors = [[e for entry in networks[name] for e in entry.errors] for name in (better, worse)]
                found = difference(*errors)
                yield better, worse, str(found), found.verdict, _counts(errors), conditions


def _backends(records):
    for conditions, networks in _alike("fig6", records):
        for network, entries in networks.items():
            errors = [[e for entry in entries if _on(entry) == {name} for e in entry.errors] for name in BACKENDS]
            if all(errors):
                found = difference(*errors)
                yield network, str(found), "yes" if found.over_seeds else "no", _counts(errors), conditions


def _counts(errors):
    """The numbers of runs as text: "2, 1"."""
    return ", ".join(str(len(each)) for each in errors)


def _on(entry):
    """The backends that trained the runs of an entry."""
    return {report.BACKENDS[one["backend"]] for record in entry.records for one in record["segments"]}
