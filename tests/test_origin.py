import re
import subprocess

import pytest

from keras_resnet import origin


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a repository of its own, whose __init__.py nobody has committed."""
    folder = tmp_path / "package"
    folder.mkdir()
    monkeypatch.setattr(origin, "__file__", str(folder / "origin.py"))
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
    assert re.fullmatch("[0-9a-f]{7,}", origin.commit())
    (package.parent / "README.md").write_text("not the package's")
    assert re.fullmatch("[0-9a-f]{7,}", origin.commit())
    (package / "new.py").write_text("not committed")
    assert re.fullmatch("[0-9a-f]{7,}-dirty", origin.commit())
    (package / "new.py").unlink()
    (package / "__init__.py").write_text("changed")
    assert re.fullmatch("[0-9a-f]{7,}-dirty", origin.commit())


def test_somebody_elses_repository_is_not_the_packages(package):
    assert origin.commit() is None


def test_without_a_repository_or_git(tmp_path, monkeypatch):
    monkeypatch.setattr(origin, "__file__", str(tmp_path / "origin.py"))
    assert origin.commit() is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert origin.commit() is None
