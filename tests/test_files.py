"""Files are written whole or not at all."""

import os
import pathlib
import stat

import keras
import pytest
import tensorflow as tf

import keras_resnet
from keras_resnet import files
from keras_resnet.files import RunError


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    """Each publishes its own content, including the first to finish."""
    path = tmp_path / "file.txt"
    with files.whole(path) as slow:
        pathlib.Path(slow).write_text("half")
        with files.whole(path) as fast:
            pathlib.Path(fast).write_text("fast")
        assert path.read_text() == "fast"
        with open(slow, "a") as file:
            file.write(" and half")
    assert path.read_text() == "half and half" and os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_who_may_read_a_file_is_the_users_choice(umask, mode, tmp_path):
    """Not `tempfile`'s, whose files only their owner can read."""
    before = os.umask(umask)
    try:
        files.write_whole(tmp_path / "file", lambda file: file.write(b"x"))
        with files.whole_folder(tmp_path / "folder") as folder:
            pathlib.Path(folder, "file").write_text("x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == mode | (mode & 0o444) >> 2
    assert stat.S_IMODE((tmp_path / "folder" / "file").stat().st_mode) == mode


def test_a_path_in_an_error_is_the_users(tmp_path):
    with pytest.raises(files.RunError) as error, files.whole(tmp_path / "file"):
        pass  # nothing is written
    assert str(error.value) == f"{tmp_path}/file could not be written: No such file or directory"


def test_a_folder_is_flushed_to_the_last_file(tmp_path, monkeypatch):
    """And nothing else on the machine, because other disks may be slow."""
    flushed = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")))
    monkeypatch.setattr(os, "sync", None)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("x")
    (tmp_path / "other").write_text("x")
    files.sync(tmp_path / "a")
    assert sorted(flushed) == [str(tmp_path / "a"), str(tmp_path / "a" / "b"), str(tmp_path / "a" / "b" / "file")]


def test_of_tensorflows_errors_the_reason_is_told():
    for text in ("it broke", "{{function_node __wrapped__x}} it broke [Op:DecodeImage] name: ", "ValueError: it broke"):
        assert files.reason(text) == "it broke"
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        tf.io.decode_png("no image")
    assert files.reason(error.value).startswith("Unknown image file format")
    assert files.reason(MemoryError()) == "MemoryError"


def test_a_file_is_written_whole_or_not_at_all(tmp_path, full_disk):
    path = tmp_path / "file.txt"
    files.write_whole(str(path), lambda file: file.write(b"good"))
    (tmp_path / "link").symlink_to(path)
    files.write_whole(str(tmp_path / "link"), lambda file: file.write(b"better"))
    assert (tmp_path / "link").is_symlink() and path.read_bytes() == b"better"
    with full_disk(), pytest.raises(RunError, match="file.txt could not be written: .*File too large"):
        files.write_whole(str(path), lambda file: file.write(b"bad" * 1000))
    with pytest.raises(ZeroDivisionError):
        files.write_whole(str(path), lambda file: file.write(b"bad") / 0)
    assert path.read_bytes() == b"better" and set(os.listdir(tmp_path)) == {"file.txt", "link"}
    with pytest.raises(RunError, match="/dev/full could not be written: .*No space left on device"):
        files.write_whole("/dev/full", lambda file: file.write(b"bad"))
    files.write_whole(os.devnull, lambda file: file.write(b"bad"))
    assert not os.path.isfile(os.devnull)


def test_a_list_of_names_is_sorted_and_cut():
    assert files.listed(set("cab")) == "  a\n  b\n  c"
    assert files.listed(set("edcab"), 3) == "  a\n  b\n  c\n  and 2 more"


def test_a_model_on_a_full_disk_leaves_the_last_one(tmp_path, full_disk):
    path = tmp_path / "a.keras" / "model.keras"
    path.parent.mkdir()
    with files.whole(str(path)) as temporary:
        keras_resnet.CifarResNet(8, classes=3).save(temporary)
    other = keras_resnet.CifarResNet(8, classes=4)
    with full_disk(), pytest.raises(RunError, match="model.keras could not"), files.whole(str(path)) as temporary:
        other.save(temporary)
    assert keras.saving.load_model(path).output_shape == (None, 3) and os.listdir(path.parent) == ["model.keras"]
