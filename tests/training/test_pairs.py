"""Every setting together with every other one, with a stop and a resume in another process."""

import itertools
import json
import os
import subprocess
import sys

import pairs
import pytest


@pytest.mark.parametrize("space", pairs.SPACES.values(), ids=pairs.SPACES)
def test_every_possible_pair_of_values_is_covered(space, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir(pairs.DATA)  # `Settings` looks whether it is there
    rows = pairs.covering_array(space)
    for one, other in itertools.combinations(space, 2):
        found = {(str(row[one]), str(row[other])) for row in rows}
        for a, b in itertools.product(space[one], space[other]):
            defaults = {name: values[0] for name, values in space.items()}
            if pairs.possible({**defaults, one: a, other: b}):
                assert (str(a), str(b)) in found, (one, a, other, b)
    assert len(rows) < 25


@pytest.mark.parametrize(
    "space, count",
    [("small_images", 1)] + [pytest.param(space, None, marks=pytest.mark.slow) for space in pairs.SPACES],
)
def test_runs_with_every_pair_of_settings_resume_in_another_process(tmp_path, space, count):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    for what in ("stop", "resume"):
        done = subprocess.run(
            [sys.executable, pairs.__file__, str(tmp_path), what, space, *([str(count)] if count else [])],
            capture_output=True,
            text=True,
            env=environment,
            timeout=3000,
        )
        assert done.returncode == 0, done.stderr[-5000:]
        runs = json.loads(done.stdout.splitlines()[-1])["runs"]
        assert runs == count or (count is None and runs > 10)
