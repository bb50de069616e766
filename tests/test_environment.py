import re
import subprocess

import pytest
from conftest import ROOT

from keras_resnet import environment


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a repository of its own, whose __init__.py nobody has committed."""
    folder = tmp_path / "package"
    folder.mkdir()
    monkeypatch.setattr(environment, "__file__", str(folder / "environment.py"))
    (folder / "__init__.py").write_text("")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "commit", "--quiet", "--allow-empty", "--message", "somebody's")
    return folder


def git(folder, *arguments):
    identity = ["-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True)


def test_the_commit_is_the_packages(package):
    git(package, "add", ".")
    git(package, "commit", "--quiet", "--message", "the package")
    git(package, "tag", "v1")
    assert re.fullmatch("[0-9a-f]{7,}", environment.commit())
    (package.parent / "README.md").write_text("not the package's")
    assert re.fullmatch("[0-9a-f]{7,}", environment.commit())
    (package / "new.py").write_text("not committed")
    assert re.fullmatch("[0-9a-f]{7,}-dirty", environment.commit())
    (package / "new.py").unlink()
    (package / "__init__.py").write_text("changed")
    assert re.fullmatch("[0-9a-f]{7,}-dirty", environment.commit())


def test_somebody_elses_repository_is_not_the_packages(package):
    assert environment.commit() is None


def test_without_a_repository_or_git(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "environment.py"))
    assert environment.commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.commit() is None


def test_the_version_is_the_same_everywhere():
    version = environment.__version__
    citation, changelog = ((ROOT / name).read_text() for name in ("CITATION.cff", "CHANGELOG.md"))
    assert f"\nversion: {version}\n" in citation
    latest, date = re.search(r"^## (\S+) \((\S+)\)", changelog, re.M).groups()
    assert latest == version and f"\ndate-released: {date}\n" in citation
