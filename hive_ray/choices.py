"""What to say of a word that is none of those that there are."""

from collections.abc import Iterable
from difflib import get_close_matches


def choose_one_of(known: Iterable[str], word: str) -> str:
    """The words to choose from, after the nearest ones to a mistaken word: "did you mean 'dpo'? Choose one of ..."."""
    known = list(known)
    nearest = get_close_matches(word, known, n=2)
    meant = f"did you mean {' or '.join(map(repr, nearest))}? " if nearest else ""
    choose = "Choose" if meant else "choose"
    return f"{meant}{choose} one of {', '.join(known)}"
