"""A sealed archive: a zip file with a fixed list of stored members and their SHA-256 digests.

Nothing is ever extracted or unpacked: members are read by exact name, only the expected ones, and
only when stored plainly, so that none can be larger than the file itself.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from eqnet.errors import InputError, reason
from eqnet.files import replacing

MANIFEST = "manifest.json"
MANIFEST_CAP = 2**20


def write(path: Path, members: Mapping[str, bytes]) -> None:
    """Write the members and their manifest; `path` holds the old file or the whole new one.

    The same members give the same bytes.
    """
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in members.items()}
    manifest = json.dumps({"sha256": digests}, indent=1).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for name, data in {**members, MANIFEST: manifest}.items():
                archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), data)


def read(
    path: Path,
    caps: Mapping[str, int],
    first: tuple[str, Callable[[bytes], None]],
    optional: Collection[str] = (),
    *,
    kind: str = "model file",
    cure: str = "copy or train it again",
) -> dict[str, bytes]:
    """The members by name, their digests checked.

    Args:
        path: the archive.
        caps: expected members and the largest size of each in bytes.
        first: a member and a check of it that comes before all others, such as that of the format
            number: an archive of another version may have other members.
        optional: members that may be absent.
        kind: what errors call the archive.
        cure: what they say is to be done about a damaged one.

    Raises:
        InputError: no such file; missing, foreign, doubled, compressed, oversized or damaged
            members.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such {kind}")
    caps = {**caps, MANIFEST: MANIFEST_CAP}
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
            name, check = first
            for info in infos:
                if info.filename == name:
                    _check_member(path, info, caps)
                    check(archive.read(info))
                    break
            _check_members(path, infos, caps, optional, kind)
            there = {info.filename for info in infos}
            members = {name: archive.read(name) for name in caps if name in there}
    except InputError:
        raise
    except zipfile.BadZipFile as error:
        raise InputError(
            f"{path}: not an eqnet {kind}, or a damaged one ({reason(error)}); {cure}"
        ) from None
    except (OSError, EOFError, NotImplementedError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); {cure}") from None
    _check_digests(path, members, kind, cure)
    return {name: data for name, data in members.items() if name != MANIFEST}


def from_json(path: Path, name: str, data: bytes) -> Any:
    """A member's JSON; NaN and infinity, which JSON does not know, are refused."""

    def refuse(constant: str) -> float:
        raise ValueError(f"{constant} is not a number")

    try:
        return json.loads(data.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: {name} is damaged ({reason(error)})") from None


def _check_members(
    path: Path,
    infos: list[zipfile.ZipInfo],
    caps: Mapping[str, int],
    optional: Collection[str],
    kind: str,
) -> None:
    names = [info.filename for info in infos]
    for name in caps:
        if name not in names and name not in optional:
            raise InputError(f"{path}: not a complete eqnet {kind}, {name} is missing")
    for info in infos:
        if info.filename not in caps or names.count(info.filename) > 1:
            raise InputError(f"{path}: refused, it has an unexpected member {info.filename!r}")
        _check_member(path, info, caps)


def _check_member(path: Path, info: zipfile.ZipInfo, caps: Mapping[str, int]) -> None:
    if info.file_size > caps[info.filename]:
        raise InputError(f"{path}: refused, {info.filename} claims {info.file_size} bytes")
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise InputError(
            f"{path}: refused, {info.filename} is compressed, but eqnet stores it plainly"
        )


def _check_digests(path: Path, members: Mapping[str, bytes], kind: str, cure: str) -> None:
    manifest = from_json(path, MANIFEST, members[MANIFEST])
    digests = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(digests, dict):
        raise InputError(f"{path}: {MANIFEST} is damaged, it lists no digests")
    for name in digests:
        if name not in members:
            raise InputError(f"{path}: not a complete eqnet {kind}, {name!r} is missing")
    for name, data in members.items():
        if name != MANIFEST and hashlib.sha256(data).hexdigest() != digests.get(name):
            raise InputError(
                f"{path}: {name} does not match its SHA-256 digest, the file is damaged; {cure}"
            )
