"""Settings are right alone; here each is beside each other one, with a stop and a resume in another process."""

import itertools
import json
import os
import subprocess
import sys

import pairs
from conftest import ROOT


def test_every_possible_pair_of_values_is_covered():
    rows = pairs.covering_array()
    for one, other in itertools.combinations(pairs.VALUES, 2):
        found = {(str(row[one]), str(row[other])) for row in rows}
        for a, b in itertools.product(pairs.VALUES[one], pairs.VALUES[other]):
            defaults = {name: values[0] for name, values in pairs.VALUES.items()}
            if pairs.possible({**defaults, one: a, other: b}):
                assert (str(a), str(b)) in found, (one, a, other, b)
    assert len(rows) < 25


def test_runs_with_every_pair_of_settings_resume_in_another_process(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    for what in ("stop", "resume"):
        done = subprocess.run(
            [sys.executable, str(ROOT / "tests" / "pairs.py"), str(tmp_path), what],
            capture_output=True,
            text=True,
            env=environment,
            timeout=3000,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        assert json.loads(done.stdout.splitlines()[-1])["runs"] > 10
