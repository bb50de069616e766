import math
import re

import pytest
from conftest import ROOT
from test_report import runs, segment

from keras_resnet.experiments import EXPERIMENTS, claims, load
from keras_resnet.experiments.tables import CLAIMS

WHOLE = {"train_on_all": True, "mixed_precision": "bfloat16"}


def made(network, errors, backend="tensorflow"):
    """Records of the whole schedule, one for each seed."""
    records = runs("fig6", 0.1, [network], seeds=len(errors), **WHOLE)
    for record, error in zip(records, errors, strict=True):
        record |= {"error": error / 100, "segments": [segment(64, 64_000, backend)]}
    return records


def rows(records, title):
    return next((table.rows for table in claims.tables(records) if table.title == title), [])


@pytest.mark.parametrize(
    "better, worse, points, half",
    [
        ([8, 9], [10, 11], 2, 4.30265 * math.sqrt(1 / 2)),  # equal variances: 2 degrees of freedom; Student's tables
        ([8, 9, 10], [12, 13, 14], 4, 2.77645 * math.sqrt(2 / 3)),  # 4 degrees
        ([6, 6], [7, 9], 2, 12.7062),  # only one side varies: its 1 degree
    ],
)
def test_welch(better, worse, points, half):
    found = claims.difference(better, worse)
    assert found.over_seeds and found.points == points
    assert (found.low, found.high) == pytest.approx((points - half, points + half), abs=1e-4)


@pytest.mark.parametrize("better, worse", [([10], [12]), ([10], [11, 13]), ([10, 10], [12, 12])])
def test_without_a_spread_it_is_that_of_two_proportions(better, worse):
    found = claims.difference(better, worse)
    variance = (0.1 * 0.9 + 0.12 * 0.88) / 10_000  # further seeds see the same images
    assert not found.over_seeds
    assert found.high - found.points == pytest.approx(100 * 1.959964 * math.sqrt(variance), rel=1e-6)
    assert found.verdict == "yes, for these runs"


def test_verdicts():
    assert claims.difference([8, 8.1], [9, 9.1]).verdict == "yes"
    assert claims.difference([9, 9.1], [8, 8.1]).verdict == "no"
    assert claims.difference([8, 9], [8.6, 9.6]).verdict == "undecided"
    assert claims.difference([8], [8.1]).verdict == "undecided, for these runs"


def test_the_interval_of_a_mean():
    assert claims.half_width([8, 9]) == pytest.approx(12.7062 / 2, rel=1e-5)
    assert claims.half_width([8, 9, 10]) == pytest.approx(4.30265 / math.sqrt(3), rel=1e-5)
    assert math.isnan(claims.half_width([8]))


def test_the_papers_numbers_are_read():
    found = {row.name: claims.paper(row.paper) for row in EXPERIMENTS["fig6"].rows}
    assert found["ResNet-20"][0] == 8.75 and math.isnan(found["ResNet-20"][1])
    assert found["ResNet-110"] == (6.61, 0.16)
    assert math.isnan(found["plain-110"][0])  # "> 60 (training)"


def test_claims_name_rows_of_their_experiments():
    for claim in CLAIMS:
        assert {name for pair in claim.pairs for name in pair} <= {
            row.name for row in EXPERIMENTS[claim.experiment].rows
        }


def test_seeds_and_claims():
    records = made("ResNet-20", [8, 9]) + made("plain-20", [10, 11], "jax") + made("ResNet-110", [6.6, 6.7])
    first, second, third = rows(records, "Ours and the paper's")
    assert first[:1] + first[2:] == ("plain-20", "10.00, 11.00", "10.50 ± 0.71", "4.15 to 16.85", "–", "–")
    assert second[3:] == ("8.50 ± 0.71", "2.15 to 14.85", "8.75", "not shown")
    assert third[-1] == "not shown" and rows(made("ResNet-110", [6.2, 6.3]), "Ours and the paper's")[0][-1] == "-0.36"
    ((*pair, difference, holds, count, conditions),) = rows(records, "Residual networks are better than plain ones")
    assert pair == ["ResNet-20", "plain-20"] and difference == "+2.00 (-1.04 to +5.04)" and holds == "undecided"
    assert count == "2, 2" and conditions == "64,000 steps, --train-on-all --mixed-precision bfloat16"
    assert not rows(records, "Plain networks get worse with depth")
    assert rows(records + made("ResNet-20", [8.5], "jax"), "TensorFlow and JAX")[0][1:4] == (
        "+0.00 (-0.77 to +0.77)",
        "no",
        "2, 1",
    )


def test_runs_of_another_recipe_are_not_beside_the_papers():
    records = made("ResNet-20", [8]) + runs("fig6", 0.5, ["ResNet-20"], **WHOLE, weight_decay=0.0)
    (row,) = rows(records, "Ours and the paper's")
    assert row[2] == "8.00"


def test_runs_of_other_conditions_are_not_compared():
    records = made("ResNet-20", [8]) + runs("fig6", 0.1, ["plain-20"], steps=640)
    assert not rows(records, "Residual networks are better than plain ones")
    assert [row[0] for row in rows(records, "Ours and the paper's")] == ["ResNet-20"]


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_pages_tables_are_those_of_the_records(page):
    """Each network of the whole schedule, wherever a page's table has its name or its depth; backends stand apart."""
    found = {}
    for entry in claims.whole(load(ROOT / "docs" / "results")):
        found.setdefault(entry.row.name, []).append(f"{sum(entry.errors) / len(entry.errors):.2f}")
    text = (ROOT / page).read_text()
    for name, means in found.items():
        if page == "README.md":
            kind, depth = name.split("-")
            heads = re.search(r"^\| CIFAR-10.*$", text, re.M)[0].split("|")
            row = re.search(rf"^\| {'plain' if kind == 'plain' else 'residual'} networks, here.*$", text, re.M)[
                0
            ].split("|")
            cells = {head.split()[0]: cell.strip(" *") for head, cell in zip(heads, row, strict=True) if head.strip()}
            assert cells[depth].split(", ") == means, name
        else:
            for shown in means:
                assert re.search(rf"^\| {name}\b.*\*\*{shown}\b", text, re.M), name


def test_the_page_says_how_many_runs_are_finished():
    numbers = {6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten", 11: "eleven", 12: "twelve"}
    finished = sum(len(entry.records) for entry in claims.whole(load(ROOT / "docs" / "results")))
    text = " ".join((ROOT / "docs" / "seeds.md").read_text().split())
    started, shown = re.search(r"(\w+) runs of the whole schedule were started and (\w+) are finished", text).groups()
    assert shown == numbers[finished] and [*numbers.values()].index(started.lower()) >= [*numbers.values()].index(shown)
