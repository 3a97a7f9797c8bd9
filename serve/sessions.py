"""Who asks: the session in the cookie, and the token that says that the page itself asks (CSRF)."""

from typing import Annotated

from fastapi import Cookie, Depends, Header, Request
from starlette.exceptions import HTTPException

from hive_ray.annotation.people import SignedIn, session_owner, tokens_match

COOKIE = "hive_ray_session"
CHANGES = {"POST", "PUT", "PATCH", "DELETE"}


def from_this_site(sec_fetch_site: Annotated[str | None, Header()] = None) -> None:
    """Refuse what a browser sends for another site's page."""
    if sec_fetch_site not in (None, "same-origin", "none"):
        raise HTTPException(403, f"this request comes from another site ({sec_fetch_site}); open the page itself")


def signed_in(
    request: Request,
    hive_ray_session: Annotated[str | None, Cookie()] = None,
    x_forgery_token: Annotated[str, Header()] = "",
) -> SignedIn:
    """The person whose session this is; changes need the page's token as well."""
    person = session_owner(request.app.state.database, hive_ray_session) if hive_ray_session else None
    if person is None:
        raise HTTPException(401, "you are not signed in; open your personal link")
    if request.method in CHANGES:
        from_this_site(request.headers.get("sec-fetch-site"))
        if not tokens_match(x_forgery_token, person.forgery_token):
            raise HTTPException(403, "the forgery token is missing or not this session's; load the page again")
    return person


def administrator(person: Annotated[SignedIn, Depends(signed_in)]) -> SignedIn:
    """The person, if they may watch and invite."""
    if not person.is_administrator:
        raise HTTPException(403, "only an administrator may do this")
    return person


Person = Annotated[SignedIn, Depends(signed_in)]
Administrator = Annotated[SignedIn, Depends(administrator)]
