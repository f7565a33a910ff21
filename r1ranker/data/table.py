"""Reading parquet with its columns checked, row by row in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from r1ranker.errors import UserError, nearest


def read_table(path: str, columns: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Rows of a parquet file as plain Python values.

    `columns` gives for each wanted column its kind: 'text', 'a list of texts', 'a list of messages' or 'a record'.
    Raises UserError for a missing or damaged file, a missing column and a column of another kind.
    """
    file = _open(path)
    schema = file.schema_arrow
    for name, kind in columns.items():
        if name not in schema.names:
            raise UserError(
                f"{path}: no column {name!r}{nearest(name, schema.names)}; found {', '.join(schema.names) or 'none'}"
            )
        if not _is(schema.field(name).type, kind):
            raise UserError(f"{path}: column {name!r} holds {schema.field(name).type}; {kind} is wanted")
    if file.metadata.num_rows == 0:
        raise UserError(f"{path}: no rows; at least one is wanted")
    try:
        for batch in file.iter_batches(batch_size=1024, columns=list(columns)):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged parquet ({_line(error)})") from error


def _open(path: str) -> pq.ParquetFile:
    if Path(path).is_dir():
        raise UserError(f"{path}: found a directory; a parquet file is wanted")
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; a parquet file is wanted")
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a parquet file, or cut short ({_line(error)})") from error


def _is(found: pa.DataType, kind: str) -> bool:
    text = pa.types.is_string(found) or pa.types.is_large_string(found)
    listed = pa.types.is_list(found) or pa.types.is_large_list(found)
    return {
        "text": text,
        "a list of texts": listed and _is(found.value_type, "text") if listed else False,
        "a list of messages": listed and pa.types.is_struct(found.value_type) if listed else False,
        "a record": pa.types.is_struct(found),
    }[kind]


def _line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0][:200]
