"""People and their ways in: a personal link for each, a session for each browser.

A link's token has 256 random bits, and the database holds its SHA-256 alone: who reads the database can sign in as
nobody. (A slow hash is for passwords, which can be guessed.)
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
    """A name, a role or a person that cannot be."""


@dataclass(frozen=True)
class SignedIn:
    """Who a browser's session belongs to."""

    id: int
    name: str
    role: str
    paused: bool
    forgery_token: str
    """What the page sends with each change (CSRF): other sites can make a browser send its cookie, not read this."""

    @property
    def is_administrator(self) -> bool:
        """Whether they may watch and invite."""
        return self.role == ADMINISTRATOR


def invite(database: Database, name: str, role: str = ANNOTATOR, now: float | None = None) -> str:
    """The token of a new link of a person, who is made if there is none of this name; older links end."""
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
            raise PersonError(f"{name} is here already as {person.role}; choose another name")
        person.link_hash = _hash(token)

    database.write(make)
    return token


def sign_in(database: Database, token: str, now: float | None = None) -> str | None:
    """The cookie of a new session for the owner of a link; None if no link has this token."""
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
    """Whose session this is; None if it is nobody's or over."""
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
    """Whether two tokens are the same, in a time that does not say where they differ."""
    return hmac.compare_digest(token.encode(), expected.encode())


def sign_out(database: Database, cookie: str) -> None:
    """End one browser's session."""
    database.write(lambda session: session.execute(delete(Session).where(Session.cookie_hash == _hash(cookie))))


def set_paused(database: Database, person_id: int, paused: bool) -> None:
    """Stop a person's work, or let it go on; their leases run out by themselves."""

    def change(session: Transaction) -> None:
        person = session.get(Person, person_id)
        if person is None or person.role != ANNOTATOR:
            raise PersonError(f"there is no annotator {person_id}; only annotators can be paused")
        person.state = PAUSED if paused else ACTIVE

    database.write(change)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
