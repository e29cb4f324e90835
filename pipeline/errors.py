"""Everything that can go wrong, and whether trying again may help.

    ConservatorError
    ├── RecipeError              the configuration is wrong                        exit code 2
    ├── SourceError              the source as a whole cannot be used              exit code 2
    ├── OutputError              the output place cannot be used                   exit code 2
    │                            (75, of either: not now; another run writes, or the store does not answer)
    ├── ModelError               weights are missing, altered or of another version exit code 2
    ├── RunError                 the run broke its own promise (row counts)        exit code 1
    ├── Interrupted              it was told to end early                          exit code 130
    │   └── Stopped                  it came to its deadline or budget                 exit code 4
    └── RowError                 one row cannot be restored: it becomes a `failed` row
        ├── PermanentRowError    trying again cannot help
        │   ├── MissingImage         null or empty
        │   ├── UnsupportedColumn    the column's type holds no image
        │   ├── UnreadableImage      not an image, truncated, damaged beyond reading
        │   │   └── UnsupportedImage     an image, likely, but of a sort that is not read here
        │   ├── ImageTooLarge        over the recipe's limits, or a decompression bomb
        │   └── ForbiddenURI         a place that the recipe does not allow
        └── TransientRowError    trying again may help: throttling, time-outs, resets
            ├── StoreUnavailable
            └── WorkerDied           of too little memory, a crash in a library, or it took too long

Errors keep their facts as attributes and survive pickling between workers.
"""

from __future__ import annotations

TRY_LATER = 75
"""Exit code of what may work later: another run is writing, or a store does not answer. EX_TEMPFAIL of sysexits.h."""


class ConservatorError(Exception):
    """Base of every error that this project raises on purpose; its message is meant for the user."""

    exit_code = 1

    def __init__(self, message: str, later: bool = False) -> None:
        """`later`: the same may work later, with nothing changed; schedulers are told by the exit code."""
        super().__init__(message)
        self.message = message
        if later:
            self.exit_code = TRY_LATER


class RecipeError(ConservatorError):
    """The configuration is wrong; the message names the key and the remedy."""

    exit_code = 2


class SourceError(ConservatorError):
    """The source as a whole cannot be used: nothing there, a column missing everywhere, no access."""

    exit_code = 2


class OutputError(ConservatorError):
    """The output place cannot be used: not writable, or it holds another run's table."""

    exit_code = 2


class ModelError(ConservatorError):
    """Weights or the text encoder are missing, altered, or of another version."""

    exit_code = 2


class RunError(ConservatorError):
    """The run broke its own promise: as many rows out as in."""


class Interrupted(ConservatorError):
    """The run was told to end early; what was done is in the table, and the next run goes on."""

    exit_code = 130


class Stopped(Interrupted):
    """The run came to its deadline, or has done as much as it was to; the next run goes on."""

    exit_code = 4


class RowError(ConservatorError):
    """One row cannot be restored; the row says so, and the run goes on."""

    transient = False

    def __init__(self, message: str, attempts: int = 1) -> None:
        super().__init__(message)
        self.attempts = attempts
        """How often the step was tried."""

    def __reduce__(self) -> tuple[type[RowError], tuple[str, int]]:
        return type(self), (self.message, self.attempts)


class PermanentRowError(RowError):
    """Trying again cannot help."""


class MissingImage(PermanentRowError):
    """The row has no image: null, or no bytes at all."""


class UnsupportedColumn(PermanentRowError):
    """The column's type cannot hold what is wanted of it."""


class UnreadableImage(PermanentRowError):
    """The bytes are not an image, or one that is broken."""


class UnsupportedImage(UnreadableImage):
    """The image is likely whole, but of a sort that is not read here."""


class ImageTooLarge(PermanentRowError):
    """The image is over the recipe's limits, or claims a size that its bytes cannot hold."""


class ForbiddenURI(PermanentRowError):
    """The URI lies outside the prefixes that the recipe allows."""


class TransientRowError(RowError):
    """Trying again may help."""

    transient = True


class StoreUnavailable(TransientRowError):
    """The object store did not answer in the attempts allowed."""


class WorkerDied(TransientRowError):
    """The process that worked on the row died, each time that it was tried alone; with more memory it may not."""


def transient_errors() -> frozenset[str]:
    """Names of the errors of rows that may pass when they are tried again."""
    kinds, names = [TransientRowError], set()
    while kinds:
        kind = kinds.pop()
        names.add(kind.__name__)
        kinds += kind.__subclasses__()
    return frozenset(names)
