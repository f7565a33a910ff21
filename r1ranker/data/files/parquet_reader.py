"""Reading parquet with its columns checked, row by row in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from r1ranker.data.files.manifest import verify_checksum
from r1ranker.errors import UserError, first_line, suggest


def read_table(
    path: str, columns: Mapping[str, str], optional: Mapping[str, str] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file as plain Python values, read in batches.

    `columns` gives for each wanted column its kind: 'text', 'a list of texts', 'a list of numbers', 'a list of
    messages', 'a record' or 'anything'; those of `optional` may be missing. Raises UserError for a missing or damaged file, a missing
    column, a column of another kind, and a file that is not the one its manifest describes.
    """
    file = open_parquet(path)
    verify_checksum(Path(path))
    schema = _schema(path, file)
    wanted = dict(columns) | {name: kind for name, kind in (optional or {}).items() if name in schema.names}
    for name, kind in wanted.items():
        if name not in schema.names:
            raise UserError(
                f"{path}: no column {name!r}{suggest(name, schema.names)}; found {', '.join(schema.names) or 'none'}"
            )
        if schema.names.count(name) > 1:
            raise UserError(f"{path}: column {name!r} stands there twice")
        if not _is(schema.field(name).type, kind):
            raise UserError(f"{path}: column {name!r} holds {schema.field(name).type}; {kind} is wanted")
    if file.metadata.num_rows == 0:
        raise UserError(f"{path}: no rows; at least one is wanted")
    try:
        for batch in file.iter_batches(batch_size=1024, columns=list(wanted)):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise UserError(f"{path}: damaged parquet ({first_line(error, 200)})") from error


def column_names(path: str) -> list[str]:
    """The names of a parquet file's columns, as often as they stand there; raises UserError where it is none."""
    return list(_schema(path, open_parquet(path)).names)


def _schema(path: str, file: pq.ParquetFile) -> pa.Schema:
    try:
        schema = file.schema_arrow
        schema.names  # noqa: B018  decodes them
        return schema
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{path}: damaged parquet ({first_line(error, 200)})") from error


def open_parquet(path: str) -> pq.ParquetFile:
    """The parquet file; raises UserError where there is none."""
    if Path(path).is_dir():
        raise UserError(f"{path}: found a directory; a parquet file is wanted")
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; a parquet file is wanted")
    try:
        return pq.ParquetFile(Path(path).absolute())  # run:1/x would be a URI
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path}: not a parquet file, or cut short ({first_line(error, 200)})") from error


def _is(found: pa.DataType, kind: str) -> bool:
    if pa.types.is_dictionary(found):  # a category of pandas; its values are what rows hold
        found = found.value_type
    text = pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found)
    listed = pa.types.is_list(found) or pa.types.is_large_list(found) or pa.types.is_fixed_size_list(found)
    return {
        "text": text,
        "a list of texts": listed and _is(found.value_type, "text") if listed else False,
        "a list of numbers": listed and _is_number(found.value_type) if listed else False,
        "anything": True,
        "a list of messages": listed and pa.types.is_struct(found.value_type) if listed else False,
        "a record": pa.types.is_struct(found),
    }[kind]


def _is_number(found: pa.DataType) -> bool:
    return bool(pa.types.is_floating(found) or pa.types.is_integer(found))
