"""Which input files take the place of which."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection

from pipeline.lake.commits import Exchange
from pipeline.lake.ledger import InputFile
from pipeline.lake.source import Source


def find_exchanges(source: Source, known: Collection[InputFile]) -> tuple[Exchange, ...]:
    """What goes when the files of a source come in.

    A file that was written anew takes the place of its former states. The data files of a Delta or Iceberg table are
    never written anew; if some are not in the table any more, its new ones have taken their place, all together.
    Files of other sources that are not there any more keep their rows: an archive forgets nothing.

    Args:
        source: with its new files.
        known: those whose rows are in the table, or may be in part.
    """
    if source.table is not None:
        present = source.finished | {file.input for file in source.files}
        gone = frozenset(file for file in known if file.table == source.table and file not in present)
        return (Exchange(frozenset(file.key for file in source.files), gone),) if gone else ()
    new = {file.path: file for file in source.files}
    old: dict[str, set[InputFile]] = defaultdict(set)
    for file in known:
        if not file.table and file.path in new and file != new[file.path].input:
            old[file.path].add(file)
    return tuple(Exchange(frozenset([new[path].key]), frozenset(files)) for path, files in old.items())
