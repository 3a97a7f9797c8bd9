"""Sign-in: a personal link for each person, and a session for each browser.

The token of a link has 256 random bits, and the database holds only its SHA-256, so that nobody can sign in with what
the database holds. Random tokens cannot be guessed, so they need no slow password hash.
"""

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session as Transaction

from hive_ray.annotation.database import Database
from hive_ray.annotation.models import ACTIVE, ADMINISTRATOR, ANNOTATOR, PAUSED, Person, Session

SESSION_S = 30 * 24 * 3600.0
NAME_PATTERN = re.compile(r"[\w][\w .@+-]{0,63}")


class PersonError(ValueError):
    """An invalid name or role, or a person that does not exist."""


@dataclass(frozen=True)
class SignedIn:
    """The person of a browser session."""

    id: int
    name: str
    role: str
    paused: bool
    forgery_token: str
    """The CSRF token that the page sends with each change. Other sites can make a browser send its cookie, but they
    cannot read this token."""

    @property
    def is_administrator(self) -> bool:
        """Whether they may see the overview and invite people."""
        return self.role == ADMINISTRATOR


def invite(database: Database, name: str, role: str = ANNOTATOR, now: float | None = None) -> str:
    """Create a personal link and return its token. Adds the person if the name is new; older links stop working."""
    if not NAME_PATTERN.fullmatch(name):
        raise PersonError(f"name is {name[:80]!r}; give 1 to 64 letters, digits, spaces or _ . @ + -")
    if role not in (ANNOTATOR, ADMINISTRATOR):
        raise PersonError(f"role is {role!r}; give {ANNOTATOR} or {ADMINISTRATOR}")
    token = secrets.token_urlsafe(32)

    def make(session: Transaction) -> None:
        person = session.scalars(select(Person).where(Person.name == name).with_for_update()).first()
        if person is None:
            person = Person(name=name, role=role, state=ACTIVE, handed=0, last_position=-1, created=now or time.time())
            session.add(person)
        elif person.role != role:
            raise PersonError(f"{name} exists already as {person.role}; choose another name")
        person.link_hash = _hash(token)

    database.write(make)
    return token


def sign_in(database: Database, token: str, now: float | None = None) -> str | None:
    """Start a session for the owner of a link and return its cookie; None if no link has this token."""
    cookie, at = secrets.token_urlsafe(32), now or time.time()

    def begin(session: Transaction) -> str | None:
        person = session.scalars(select(Person).where(Person.link_hash == _hash(token))).first()
        if person is None:
            return None
        session.execute(delete(Session).where(Session.expires < at))
        session.add(Session(cookie_hash=_hash(cookie), person_id=person.id, expires=at + SESSION_S))
        return cookie

    return database.write(begin)


def session_owner(database: Database, cookie: str, now: float | None = None) -> SignedIn | None:
    """The person of a session; None if there is no such session or it has expired."""
    at = now or time.time()

    def find(session: Transaction) -> SignedIn | None:
        person = session.execute(
            select(Person.id, Person.name, Person.role, Person.state)
            .join(Session, Session.person_id == Person.id)
            .where(Session.cookie_hash == _hash(cookie), Session.expires > at)
        ).first()
        if person is None:
            return None
        return SignedIn(person.id, person.name, person.role, person.state == PAUSED, _hash(f"forgery {cookie}"))

    return database.read(find)


def tokens_match(token: str, expected: str) -> bool:
    """Compare two tokens in constant time."""
    return hmac.compare_digest(token.encode(), expected.encode())


def sign_out(database: Database, cookie: str) -> None:
    """End one browser's session."""
    database.write(lambda session: session.execute(delete(Session).where(Session.cookie_hash == _hash(cookie))))


def set_paused(database: Database, person_id: int, paused: bool) -> None:
    """Pause an annotator, or end the pause. Their leases are not ended; they expire."""

    def change(session: Transaction) -> None:
        person = session.get(Person, person_id)
        if person is None or person.role != ANNOTATOR:
            raise PersonError(f"there is no annotator {person_id}; only annotators can be paused")
        person.state = PAUSED if paused else ACTIVE

    database.write(change)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
