"""Files that are whole or not there, and the room they need."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from pathlib import Path

import pytest

from ftcli.errors import MachineError
from ftcli.runs.atomic import (
    append_json,
    atomic_directory,
    delete_folder,
    delete_temporary,
    folder_bytes,
    free_bytes,
    is_full,
    read_json_lines,
    require_space,
    sha256_file,
    write_json,
    write_text,
)


def test_a_text_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    file = tmp_path / "new" / "plan.json"
    write_text(file, "first")
    with pytest.raises(UnicodeEncodeError):
        write_text(file, "second \ud800")
    assert file.read_text() == "first"
    write_text(file, "third\n")
    assert file.read_bytes() == b"third\n"
    assert [path.name for path in file.parent.iterdir()] == ["plan.json"]


def test_json_keeps_its_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"name": "Größe", "steps": 3})
    assert (tmp_path / "a.json").read_text("utf-8") == '{\n  "name": "Größe",\n  "steps": 3\n}\n'
    append_json(tmp_path / "a.jsonl", {"loss": 1.5})
    append_json(tmp_path / "a.jsonl", {"text": "一"})
    assert (tmp_path / "a.jsonl").read_text("utf-8") == '{"loss": 1.5}\n{"text": "一"}\n'


def test_json_lines_are_read_without_what_a_kill_has_cut(tmp_path: Path) -> None:
    file = tmp_path / "lines.jsonl"
    assert list(read_json_lines(file)) == []
    append_json(file, {"text": "a\u2028b"})
    with file.open("ab") as cut:
        cut.write('{"text": "é'.encode()[:-1] + b"\n[1]\n\n")
    append_json(file, {"text": "c"})
    assert list(read_json_lines(file)) == [{"text": "a\u2028b"}, {"text": "c"}]


def test_a_folder_appears_only_when_it_is_whole(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with pytest.raises(RuntimeError, match="disk full"), atomic_directory(target) as temporary:
        (temporary / "half.txt").write_text("half")
        raise RuntimeError("disk full")
    assert not target.exists()
    with atomic_directory(target) as temporary:
        assert not (temporary / "half.txt").exists()
        (temporary / "weights.txt").write_text("1")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    with atomic_directory(target) as temporary:
        (temporary / "other.txt").write_text("2")
    assert [path.name for path in target.iterdir()] == ["other.txt"]


@pytest.mark.fault(34)
def test_files_get_the_rights_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with atomic_directory(tmp_path / "adapter") as temporary:
            secret = temporary / "below" / "adapter.safetensors"
            secret.parent.mkdir()
            secret.touch(mode=0o600)
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)
    found = (tmp_path / "adapter" / "below" / "adapter.safetensors").stat()
    assert found.st_mode & 0o777 == 0o644


def test_sizes_and_digests_of_files(tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "a").write_bytes(b"abc")
    (tmp_path / "below" / "b").write_bytes(b"12345")
    assert folder_bytes(tmp_path) == 8
    assert sha256_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest()


def test_files_are_synced_before_they_are_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of every file, then the folder, then its new name, then the folder above."""
    synced: list[str] = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_directory(tmp_path / "adapter") as temporary:
        (temporary / "weights").write_bytes(b"1")
    assert synced == ["weights", ".tmp-adapter", tmp_path.name]
    synced.clear()
    write_text(tmp_path / "run.json", "{}")
    assert synced == [".tmp-run.json", tmp_path.name]


def test_leftovers_of_a_kill_are_deleted(tmp_path: Path) -> None:
    (tmp_path / ".tmp-step-4").mkdir()
    (tmp_path / ".tmp-step-4" / "weights").write_bytes(b"1")
    (tmp_path / ".tmp-run.json").write_text("{")
    (tmp_path / "step-3").mkdir()
    delete_temporary(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]
    delete_folder(tmp_path / "step-3")
    delete_folder(tmp_path / "step-3")
    assert not list(tmp_path.iterdir())


def test_room_is_that_of_the_nearest_folder_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=int(path.exists())))
    assert free_bytes(tmp_path / "not" / "yet") == 1
    require_space(tmp_path / "runs", 1, "a run")
    with pytest.raises(MachineError, match=r"a run needs 1\.1 GiB on the disk of .*, and 0 KiB"):
        require_space(tmp_path / "runs", 1_200_000_000, "a run")


def test_a_full_disk_is_known_by_whoever_names_it() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    assert is_full(full) and is_full(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert is_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    later = RuntimeError("unexpected pos 704 vs 598")
    assert not is_full(later)
    later.__context__ = full
    assert is_full(later) and not is_full(OSError(errno.EACCES, "Permission denied"))


def test_old_or_new_is_complete_while_a_folder_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill before each rename, and before the old folder is deleted."""
    original = Path.replace
    for kills_at in (1, 2, 3):
        place = tmp_path / str(kills_at)
        place.mkdir()
        with atomic_directory(place / "step-2") as temporary:
            (temporary / "weights").write_text("old")
        done: list[Path] = []

        def replace(self: Path, target: Path, done: list[Path] = done, at: int = kills_at) -> Path:
            if len(done) + 1 == at:
                raise KeyboardInterrupt
            done.append(self)
            return original(self, target)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", replace)
            try:
                with atomic_directory(place / "step-2") as temporary:
                    (temporary / "weights").write_text("new")
            except KeyboardInterrupt:
                pass
        delete_temporary(place)
        assert [path.name for path in place.iterdir()] == ["step-2"]
        found = (place / "step-2" / "weights").read_text()
        assert found == ("new" if kills_at == 3 else "old")


def test_what_is_added_after_a_cut_line_is_whole(tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    append_json(file, {"first": "é"})
    whole = file.read_bytes()
    for length in range(len(whole)):
        file.write_bytes(whole + whole[:length])
        append_json(file, {"next": 1})
        found = [line for line in read_json_lines(file) if line != {"first": "é"}]
        assert found == [{"next": 1}]
        assert file.read_bytes().startswith(whole)
