"""Verdicts of judges, kept in SQLite: each is paid for once, whatever becomes of the run that asked for it."""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from data.command.errors import UserError, first_line

FILE = "verdicts.sqlite"
VERSION = 2
PATIENCE = 60.0  # seconds to wait for another process's write
AT_ONCE = 500  # keys in one query


@dataclass(frozen=True)
class Verdict:
    """One answer of a judge; a row.

    Attributes:
        key: SHA-256 of what decides the answer: the judge model's name, its sampling settings, the messages. A server's
            address decides nothing: a model may move.
        model: the judge's name.
        template_sha256: of the template's text.
        prompt_sha256: of the prompt that was answered, not of the whole question.
        shown: "AB" if the answer came first, "BA" if the other one did, when the question was first asked.
        raw: the judge's words.
        verdict: "A", "B", or "?" for what cannot be read, as parsed when it came.
        finish_reason: the API's. "refused" if the API refused the question: raw says why, and it is not kept.
        input_tokens: as the API counts; None if it does not say.
        output_tokens: likewise.
        base_url: address of the server that gave it.
        time: of the answer, seconds since 1970.
    """

    key: str
    model: str
    template_sha256: str
    prompt_sha256: str
    shown: str
    raw: str
    verdict: str
    finish_reason: str
    input_tokens: int | None
    output_tokens: int | None
    base_url: str
    time: float


COLUMNS = [field.name for field in fields(Verdict)]
# SQLite stores anything in any column; of these the others are text.
KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("input_tokens", "output_tokens"), (int, type(None))),
    "time": (float, int),
}
CREATE = f"""CREATE TABLE IF NOT EXISTS verdicts (
    key TEXT PRIMARY KEY, {", ".join(name for name in COLUMNS if name != "key")}
)"""
# Another process may have asked the same in the meantime; the first answer stays.
INSERT = f"INSERT OR IGNORE INTO verdicts ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))})"


class Verdicts:
    """The verdicts under a store's folder; several processes may use it at once, a process's threads
    in turn.

    Each write is a transaction with SQLite's rollback journal: whatever dies, what was added before is there. Its
    write-ahead log would be a little faster, but needs memory that all processes share, which network file systems do
    not have.

    Args:
        store: a local folder; made with the first verdict.

    Raises:
        UserError: (from each method) the file is damaged, is something else, or cannot be written.
    """

    def __init__(self, store: str):
        if "://" in store:
            raise UserError(
                f"the judge's verdicts cannot be kept in '{store}': a database needs a file system. Give a "
                "local folder."
            )
        self.path = Path(store).expanduser() / FILE
        self._connection: sqlite3.Connection | None = None
        if self.path.exists():
            with self._using():  # a file that cannot be used is refused before anything is paid for
                pass

    def find(self, keys: Iterable[str]) -> dict[str, Verdict]:
        """Key -> verdict, of those keys that the store holds."""
        if self._connection is None and not self.path.exists():
            return {}
        keys, found = list(keys), {}
        with self._using() as connection:
            for start in range(0, len(keys), AT_ONCE):
                some = keys[start : start + AT_ONCE]
                query = f"SELECT {', '.join(COLUMNS)} FROM verdicts WHERE key IN ({', '.join('?' * len(some))})"
                found |= {row[0]: _verdict(row) for row in connection.execute(query, some)}
        return found

    def add(self, verdicts: Iterable[Verdict]) -> None:
        """Keep verdicts; they are on the disk when this returns. A key that is there keeps what it has."""
        with self._using() as connection, connection:
            connection.executemany(INSERT, [astuple(verdict) for verdict in verdicts])

    def close(self) -> None:
        """Close the store's file; the next use opens it again."""
        if self._connection:
            self._connection.close()
        self._connection = None

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._explaining():
            self._connection = self._connection or self._opened()
            yield self._connection

    def _opened(self) -> sqlite3.Connection:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=PATIENCE, check_same_thread=False)
        connection.text_factory = bytes.decode  # sqlite3's own says of bad UTF-8 what it says of a locked file
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            columns = {column[1] for column in connection.execute("PRAGMA table_info(verdicts)")}
            is_other = tables not in (set(), {"verdicts"}) or columns not in (set(), set(COLUMNS))
            if version not in (0, VERSION) or is_other:
                raise UserError(
                    f"'{self.path}' holds no verdicts of this version (it has {version}, this program writes "
                    f"{VERSION}). Choose another --store, or move the file away: its verdicts are asked for, and paid "
                    "for, again."
                )
            connection.execute(CREATE)
            if version == 0:
                connection.execute(f"PRAGMA user_version = {VERSION}")
            (health,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if health != "ok":
                raise sqlite3.DatabaseError(health)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:  # locked, read-only, no room
            raise UserError(
                f"cannot use '{self.path}' ({first_line(error)}). Check its permissions and free space, and that no "
                "other program holds it; then run the same command again, it goes on where it stopped."
            ) from error
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise UserError(
                f"'{self.path}' is damaged ({first_line(error)}). Restore it from a copy, or move it away: its "
                "verdicts are asked for, and paid for, again."
            ) from error
        except OSError as error:
            raise UserError(f"cannot write '{self.path}': {error.strerror}. Check the path.") from error


def _verdict(row: tuple) -> Verdict:
    """A row as a verdict. Raises sqlite3.DatabaseError if a column holds what was never written into it."""
    for name, value in zip(COLUMNS, row, strict=True):
        if not isinstance(value, KINDS.get(name, (str,))):
            raise sqlite3.DatabaseError(f"{name} of a verdict is {type(value).__name__}")
    return Verdict(*row)
