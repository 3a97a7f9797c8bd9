"""Invert instructions by rules, for cycle-consistency twins (HIVE): "add a dog" <-> "remove the dog".

instruction -> inverse instruction, or the reason why there is none

HIVE published inverted instructions, but not the method. These rules invert plain English requests that contain all
that the inverse needs, and refuse the others: "change the background to a beach" does not say what the background was
before. A language model that knows the captions can invert those.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Inversion:
    """An inverse instruction, or the reason why there is none: exactly one of them is not empty."""

    instruction: str = ""
    refused: str = ""


SEVERAL = Inversion(refused="several_edits")
ELABORATE = Inversion(refused="more_than_an_edit")
WHOLE = Inversion(refused="changes_everything")
UNKNOWN = Inversion(refused="state_before_not_said")
NO_RULE = Inversion(refused="no_rule")


def _any(words: str) -> str:
    return "(?:" + "|".join(words.split()) + ")"


_COLOUR = _any(
    "red orange yellow green blue purple violet pink brown black white gray grey golden gold silver beige cyan teal"
    " magenta turquoise maroon navy crimson scarlet tan ivory cream bronze"
)
_SHADE = (
    rf"(?:{_any('light dark deep bright pale vibrant vivid soft rich royal sky forest solid plain')}[ -])*{_COLOUR}"
)
_PICTURE = _any("image picture photo photograph scene painting drawing composition artwork illustration")
_TAIL = rf"(?P<tail> (?:in|on|of|from|within) (?:the|this) (?:whole |entire )?{_PICTURE})?"
_QUOTED = r"(?:\"[^\"]+\"|“[^”]+”|'[^']+(?:'\w+)*')"
_VERBS = (
    "add remove replace substitute exchange switch swap change turn transform convert alter modify make erase eliminate"
    " delete insert include incorporate introduce put place position move shift adjust apply increase reduce decrease"
    " enlarge soften brighten darken lower raise recolor extend give keep render enhance set create cover ensure"
    " maintain show use draw paint fill"
)
_SECOND_EDIT = re.compile(
    rf"(?:,|;|\.|\b(?:and|then|while|by))\s+(?:(?:and|then|also|by|while) )*{_any(_VERBS)}\b"
    rf"|\b(?:and|by|while) (?:also )?{_any(' '.join(verb.rstrip('e') for verb in _VERBS.split()))}t?ing\b",
    re.IGNORECASE,
)
_PURPOSES = (
    "create emphasi[sz]e make give evoke reflect enhance match appear look display show reveal add have achieve amplify"
    " harmoni[sz]e align resemble fit suit blend complement simulate represent form cover face float sit stand hang"
)
_CLAUSES = "ensuring preserving maintaining keeping emphasi[sz]ing enhancing creating giving while where"
_ELABORATION = re.compile(
    r",\s+(?:\w+ly )?(?!including|featuring|wearing|holding)\w+ing\b|,\s+\w+ly \w+ed\b"
    r"|,\s+(?:with|complete|so|as if|in order|its|their|his|her)\b|\bfor an? (?:more|less|better)\b|\bso that\b"
    rf"|\b{_any(_CLAUSES)}\b|\bto {_any(_PURPOSES)}\b",
    re.IGNORECASE,
)
_DOING = _any(
    "resembling holding wearing sitting standing featuring leading lying flying floating hanging containing showing"
    " walking running growing extending emerging coming rising reading"
)
_AFTER_A_NAME = _any(
    "in on of at with from to behind above below beneath under near beside between around against for next inside that"
    f" which who displayed filled made inspired covered surrounded located reminiscent {_DOING}"
)
_ATTRIBUTE = re.compile(
    rf"\b(?:{_PICTURE}|"
    + _any(
        "styles? colou?rs? lighting light mood atmosphere weather season time tones? font size position expression"
        " texture material setting pose angle perspective numbers? text words? phrase letters? look appearance version"
        " sketch rendering masterpiece finish ones? hues? shades? skin hair gesture"
    )
    + ")$",
    re.IGNORECASE,
)
_SURROUNDINGS = re.compile(
    rf"\b{_any('current existing original')}\b"
    rf"|\b{_any('background backdrop foreground surroundings environment scenery')}$"
    r"|^(?:the )?(?:sky|ground|floor|landscape|view|time of day)$",
    re.IGNORECASE,
)
_EVERYTHING = re.compile(
    rf"(?:(?:the|this) )?(?:whole |entire |overall )?(?:it|everything|this|{_PICTURE})(?:'s)?\b(?! background)",
    re.IGNORECASE,
)
_OPPOSITES = {
    "bigger": "smaller", "larger": "smaller", "brighter": "darker", "taller": "shorter", "wider": "narrower",
    "longer": "shorter", "thicker": "thinner", "lighter": "darker", "warmer": "cooler", "sharper": "blurrier",
    "happier": "sadder", "older": "younger", "increase": "decrease", "raise": "lower", "open": "close",
    "zoom in": "zoom out", "turn on": "turn off", "left": "right", "up": "down", "clockwise": "counterclockwise",
    "closer": "farther", "forward": "backward",
}  # fmt: skip
_OPPOSITE = {after: before for before, after in _OPPOSITES.items()} | _OPPOSITES


def invert(instruction: str) -> Inversion:
    """Invert an instruction by rule, from its words only; the inverse has the same final punctuation.

    Reasons of refusal: "several_edits"; "more_than_an_edit" (also a manner or a purpose); "changes_everything" (the
    style or scene); "state_before_not_said"; "no_rule" for other texts.
    """
    text = " ".join(instruction.split())
    if re.fullmatch(r'["“][^"“”]+["”]', text):
        text = text[1:-1]
    text = re.sub(r"^(?:please|kindly|can you|could you),? ", "", text, flags=re.IGNORECASE)
    words = text.rstrip(".!")
    text, stop = words, text[len(words) :]
    if written := re.search(r'[.,](?=["”]$)', text):  # "Surprise Inn." -> "Surprise Inn".
        text, stop = text[: written.start()] + text[written.end() :], "."
    bare = re.sub(_QUOTED, "'x'", text)
    if re.search(r"[.;!?]\s", bare) or _SECOND_EDIT.search(bare):
        return SEVERAL
    if _ELABORATION.search(bare):
        return ELABORATE
    for pattern, rule in RULES:
        if match := pattern.fullmatch(text):
            inversion = rule(match)
            words = inversion.instruction
            if words and instruction.lstrip('"“ ')[0].isupper():
                words = words[0].upper() + words[1:]
            return Inversion(words + stop) if words else inversion
    return NO_RULE


def _remove_again(match: re.Match[str]) -> Inversion:
    """Add a X to Y -> remove the X from Y."""
    what, where = match["what"], match["where"] or ""
    what = re.sub(rf" {_any('seamlessly naturally realistically carefully')}\b", "", what)
    if re.match(rf"{_any('more some additional extra another effects? depth detail')} (?!\"|'|words?\b)", what):
        return UNKNOWN
    joint = "to" if re.search(rf"\b(?:{_DOING}|next|close|adjacent|similar|due|near|leads)\b", what) else "from"
    return Inversion(f"remove {_definite(what)}{f' {joint} {where}' if where else ''}")


def _add_again(match: re.Match[str]) -> Inversion:
    """Remove the X from Y -> add the X to Y."""
    what, where = match["what"], match["where"] or ""
    if _EVERYTHING.match(what) or re.match(r"(?:all|any|one of)\b", what, re.IGNORECASE):
        return UNKNOWN
    if re.fullmatch(r"(?:the )?(?:\w+ )?(?:background|colou?r|blur|shadows?)", what):
        return UNKNOWN
    if re.match(_any("around behind under between below above beneath inside near"), where):
        return Inversion(f"add {what} {where}")
    joint = "from" if re.search(rf"\b{_DOING}$", what) else "to"  # "the rope hanging from the mast"
    return Inversion(f"add {what}{f' {joint} {where}' if where else ''}")


def _take_away(match: re.Match[str]) -> Inversion:
    """Place a X on Y -> remove the X on Y; "place the X" does not say where X was before."""
    written = rf"the (?:words?|phrase|text|letters?|numbers?) {_QUOTED}"
    if re.match(rf"(?:an?|some|two|three|several|many|\d+)\b|{written}", match["what"], re.IGNORECASE):
        return Inversion(f"remove {_definite(match['what'])}")
    return UNKNOWN


def _exchange(match: re.Match[str]) -> Inversion:
    """Replace X with Y -> replace Y with X, where both say what they are."""
    before = match["before"]
    after = match["after"].removesuffix(" instead")
    tail = match["tail"] or ""
    if not tail and (end := re.search(rf"{_TAIL}$", before, re.IGNORECASE)):
        before, tail = before[: end.start()], end[0]
    if _EVERYTHING.match(before):
        return WHOLE
    changed = _recoloured(before, after) or _background(before) or _rewritten(before, after)
    if not changed:
        things = (_head(before), _head(after))
        if _SURROUNDINGS.search(things[0]) or any(map(_ATTRIBUTE.search, things)) or not _is_thing(after):
            return UNKNOWN
        changed = (_definite(after), before)
    return Inversion(f"{match['verb'].lower()} {changed[0]} {match['to'].lower()} {changed[1]}{tail}")


def _recoloured(before: str, after: str) -> tuple[str, str] | None:
    """The red car, blue (or: a blue one) -> the blue car, red (or: a red one)."""
    old = re.fullmatch(rf"(the|his|her) ({_SHADE}) (.+)", before, re.IGNORECASE)
    new = re.fullmatch(rf"(?:an? )?({_SHADE})( ones?)?", after, re.IGNORECASE)
    if not (old and new):
        return None
    thing = f"{old[2]}{new[2] or ''}"
    return f"{old[1]} {new[1]} {old[3]}", f"{_article(thing)} {thing}" if thing.endswith(" one") else thing


def _background(before: str) -> tuple[str, str] | None:
    """The forest background, anything -> the background, a forest background."""
    old = re.fullmatch(r"the (?!(?:current|existing|original|entire|whole)\b)(.+ background)", before)
    return ("the background", f"{_article(old[1])} {old[1]}") if old and _head(before) == before else None


def _rewritten(before: str, after: str) -> tuple[str, str] | None:
    """The word 'A', 'B' -> the word 'B', 'A'."""
    old, new = re.search(_QUOTED, before), re.search(_QUOTED, after)
    return (before.replace(old[0], new[0]), after.replace(new[0], old[0])) if old and new else None


def _from_to(match: re.Match[str]) -> Inversion:
    """Change X from A to B -> change X from B to A."""
    comma = "," if "," in match["after"] else ""
    way = f"from {match['after']}{comma} to {match['before']}"
    return Inversion(f"{match['verb'].lower()} {match['what']} {way}{match['tail'] or ''}")


def _opposite(match: re.Match[str]) -> Inversion:
    """The same words, with one word replaced by its opposite."""
    start, end = match.span("word")
    return Inversion(match.string[:start].lower() + _OPPOSITE[match["word"].lower()] + match.string[end:])


def _same(match: re.Match[str]) -> Inversion:
    """Edits that undo themselves: swapping two things, mirroring a picture."""
    return Inversion(match.string[0].lower() + match.string[1:])


def _head(what: str) -> str:
    """A noun phrase without what follows the noun: "the tall tree by the lake" -> "the tall tree"."""
    return re.split(rf",? {_AFTER_A_NAME}\b", what, maxsplit=1)[0]


def _is_thing(what: str) -> bool:
    """Whether words name a thing ("a dog", "tree branches"), not how one looks ("transparent", "a light blue")."""
    if re.fullmatch(rf"(?:an? )?{_SHADE}", what, re.IGNORECASE):
        return False
    return bool(re.match(r"(?:an?|the|some|two|three|several)\b", what) or re.search(r"[^s]s$", _head(what)))


def _definite(what: str) -> str:
    """A noun phrase with the definite article: "a dog" -> "the dog"."""
    rest = re.sub(r"^(?:an?|some|the) ", "", what, flags=re.IGNORECASE)
    return rest if re.match(r"(?:his|her|its|their|my)\b", rest) else f"the {rest}"


def _article(noun: str) -> str:
    return "an" if noun[:1].lower() in "aeiou" else "a"


Rule = tuple[re.Pattern[str], Callable[[re.Match[str]], Inversion]]


def _rule(pattern: str, rule: Callable[[re.Match[str]], Inversion]) -> Rule:
    return re.compile(pattern, re.IGNORECASE), rule


_CHANGE = r"(?P<verb>change|turn|transform|convert|alter|modify)"
_REPLACE = r"(?P<verb>replace|swap(?: out)?|exchange|substitute)"
_SWITCH = "increase|decrease|raise|lower|open|close|zoom in|zoom out|turn on|turn off"
_WORD = "|".join(sorted(_OPPOSITE, key=len, reverse=True))
RULES: tuple[Rule, ...] = (
    _rule(rf"{_CHANGE} (?P<what>.+?) from (?P<before>.+?) (?:in)?to (?P<after>.+?){_TAIL}", _from_to),
    _rule(r"(?:swap|exchange|switch) (?:(?!(?:out|with|for)\b)\S+ ?)+", _same),
    _rule(r"(?:flip|mirror) .+", _same),
    _rule(rf"{_REPLACE} (?P<before>.+?) (?P<to>with|by|for) (?P<after>.+?){_TAIL}", _exchange),
    _rule(rf"{_CHANGE} (?P<before>.+?) (?P<to>to|into) (?P<after>.+?){_TAIL}", _exchange),
    _rule(r"take off (?!all\b)(?P<what>.+)", lambda match: Inversion(f"put on {match['what']}")),
    _rule(r"(?:remove|erase|delete|eliminate|get rid of|take out) (?P<what>.+?)(?: from (?P<where>.+))?", _add_again),
    _rule(
        r"(?:add|include|insert|incorporate|introduce|draw|paint) (?P<what>.+?)(?: (?:in)?to (?P<where>.+))?",
        _remove_again,
    ),
    _rule(r"(?:place|put|position) (?P<what>.+)", _take_away),
    _rule(rf"(?P<word>{_SWITCH})(?: (?!to\b|up\b)(?:(?! to ).)+)?", _opposite),
    _rule(rf"(?:make|move|rotate|turn|shift|bring) (?:(?! and ).)+?\b(?P<word>{_WORD})(?:wards?| side)?", _opposite),
)
"""Tried in order; a rule gets the match of the whole instruction."""
