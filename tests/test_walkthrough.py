"""The page runs as written, with its own assertions, on a short schedule."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT

PAGE = (ROOT / "docs" / "walkthrough.py").read_text()
SHORT = {"DEPTHS = (8, 20, 32)": "DEPTHS = (8, 32)", "EPOCHS, BATCH, RATE = 8,": "EPOCHS, BATCH, RATE = 4,"}


def cells():
    """(whether it is text, its lines), of jupytext's percent format."""
    first, *rest = re.split(r"^# %%(.*)\n", PAGE, flags=re.M)
    assert not first
    return [
        (kind == " [markdown]", body.strip("\n").splitlines()) for kind, body in zip(rest[::2], rest[1::2], strict=True)
    ]


@pytest.mark.slow
def test_the_page_runs_and_what_it_asserts_holds(tmp_path):
    page = PAGE
    for long, short in SHORT.items():
        assert page.count(long) == 1
        page = page.replace(long, short)
    script = tmp_path / "walkthrough.py"
    script.write_text(page)
    shutil.copy(ROOT / "docs" / "ship.png", tmp_path)
    environment = os.environ | {"MPLBACKEND": "Agg", "TMPDIR": str(tmp_path)}
    run = subprocess.run([sys.executable, script], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "test error" in run.stdout and "evidence for ship" in run.stdout and "a PNG of" in run.stdout


def test_text_and_code_take_turns():
    kinds = {text for text, _ in cells()}
    assert kinds == {True, False}
    for text, lines in cells():
        assert lines and all(line.startswith("#") for line in lines) == text
        compile("\n".join(lines), "cell", "exec")


def test_what_the_text_points_to_is_there():
    written = {"docs/walkthrough.ipynb", "docs/walkthrough.html"}  # by `make walkthrough`
    text = "\n".join(line for is_text, lines in cells() if is_text for line in lines)
    paths = set(re.findall(r"\b(?:docs|train|keras_resnet)/[\w/]+\.\w+", text)) - written
    assert len(paths) > 5 and all((ROOT / path).is_file() for path in paths)
