"""manifest.json beside a data set: rows, size and checksum of each file, so that a changed or truncated one is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from r1ranker.errors import UserError

MANIFEST = "manifest.json"


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def manifest_entry(path: Path, rows: int) -> dict[str, Any]:
    """The manifest's entry of a file."""
    return {"rows": rows, "bytes": path.stat().st_size, "sha256": sha256(path)}


def write_manifest(files: dict[str, dict[str, Any]], path: Path, source: str = "") -> None:
    """Write the entries of files by name, and the name of the source where it has one."""
    content: dict[str, Any] = {"files": files} | ({"source": source} if source else {})
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def source_of(directory: Path) -> str:
    """The source that a data set's manifest names; empty where it names none, or cannot be read."""
    source = _part(directory, "source")
    return source if isinstance(source, str) else ""


def verify_checksum(path: Path) -> None:
    """Raise UserError where a manifest beside `path`, or in the directory above, describes another file of its name.

    A file that no manifest describes is taken as it is.
    """
    for place in dict.fromkeys((path.absolute(), path.resolve())):
        for base in (place.parent, place.parent.parent):
            entry = _entry(base / MANIFEST, place.relative_to(base).as_posix())
            if entry is not None:
                _compare(path, entry, base)


def list_manifest_files(directory: Path) -> list[str]:
    """Names of the parquet files in `directory` that its manifest describes; none where there is none that can be read."""
    files = _part(directory, "files")
    names = files if isinstance(files, dict | list) else ()
    return [name for name in names if name.endswith(".parquet") and ".." not in name and not name.startswith("/")]


def _part(directory: Path, key: str) -> Any:
    """What the manifest in `directory` has under `key`; None where it has nothing there, or cannot be read."""
    try:
        return json.loads((directory / MANIFEST).read_text(encoding="utf-8"))[key]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _compare(path: Path, entry: Mapping[str, Any], base: Path) -> None:
    status = path.stat()
    if status.st_size != entry["bytes"]:
        raise UserError(f"{path}: {status.st_size:,} bytes, but {base / MANIFEST} says {entry['bytes']:,}: {_ADVICE}")
    if checksum(path) != entry["sha256"]:
        raise UserError(f"{path}: its checksum is not the one in {base / MANIFEST}: {_ADVICE}")


_ADVICE = f"changed since it was prepared; prepare it again, or delete {MANIFEST} to use it as it is"


def checksum(path: Path) -> str:
    """SHA-256 of a file, computed again only when its size or time has changed."""
    status = path.stat()
    return _checksum(path, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _checksum(path: Path, size: int, changed: int) -> str:
    return sha256(path)


def _entry(file: Path, name: str) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))["files"].get(name)
        return None if entry is None else {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])}
    except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError) as error:
        raise UserError(f"{file}: not the manifest of a data set ({type(error).__name__}: {error})") from error


def digest(parts: Iterable[str]) -> int:
    """64 bits of the parts, in their order."""
    text = "\x1f".join(parts).encode("utf-8", "surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "little")
