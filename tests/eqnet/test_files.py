"""A file is replaced whole or stays as it was."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from eqnet.files import TEMPORARY, cache_folder, digest, replacing


def test_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        assert TEMPORARY.fullmatch(temporary.name)
        raise RuntimeError
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert digest(path) == hashlib.sha256(b"new").hexdigest()


def test_the_cache_folder_is_made_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    assert cache_folder("a") == tmp_path / "new" / "eqnet" / "a"
    assert (tmp_path / "new" / "eqnet" / "a").is_dir()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder("a") == tmp_path / ".cache" / "eqnet" / "a"
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cache_folder("a") is None
