"""Texts that people write for tags -> class names: separators, spellings, and tags that look alike.

METHOD.md 0: a photograph comes with tags alone. What is certain is done (Unicode form, invisible and doubled spaces,
letters' case, which CLIP does not see); what is found is said; what could mean two things is asked about.
"""

from __future__ import annotations

import itertools
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from vpl.classes import SPELLINGS, ClassSet
from vpl.edges.names import CONTROL, shown
from vpl.errors import ConfigError

_INVISIBLE = dict.fromkeys(
    map(ord, "\u00ad\u061c\u200b\u200e\u200f\u2060\ufeff\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
)
"""Letters that are not seen, those that turn the direction of a text among them."""
_SPACES = re.compile("[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
_EMPTY = frozenset({"nan", "none", "null", "n/a", "na", "<na>", "#n/a", "-", "--", "\u2013", "\u2014", "?", "."})
_BRACKETS = {"[": "]", "(": ")", "{": "}"}
_ITEM = re.compile(r"""\s*(?:'([^']*)'|"([^"]*)")\s*,?""")
_CALL = re.compile(r"[\w.]+\(([\[({].*[\])}])(?:,[^\[\]]*)?\)")
_HASHES = re.compile(r"(?:#[^\s#,;|]+[\s,]*)+")
_NEVER_IN_A_NAME = re.compile("[;|\n\t\uff1b\uff5c\uff0c\u3001]")
_WEAK = (",", "/", "+", "&", "\\", ":", ">", "#", "~", "\u00b7", "\u2022", " - ", " and ", "-", "_", " ")
_ANY_WEAK = re.compile("[-,/+&\\\\:>#~\u00b7\u2022_ (=]")
_JOINING = (" - ", " and ", "-", "_", " ")
"""Signs that join the words of one name, too."""
_SCORED = re.compile(r"\S\s*(?:[:=]\s*\d*\.?\d+%?|\(\s*\d*\.\d+\s*\))$")
_CODES = re.compile(r"-?\d+(?:\.\d+)?|/m/\w+|n\d{8}|Q\d+")
_MOST_HINTS = 200
_LONGEST_HINTED = 60
_LONGEST_CALL = 10_000
_LONGEST_ALIKE = 40
_MOST_ALIKE = 2000
_SHORTEST_NEAR = 5


def clean(tag: str) -> str:
    """A tag in Unicode's composed form, without invisible letters, doubled spaces and spaces around it."""
    if tag.isascii() and "  " not in tag and "\t" not in tag:
        return tag.strip()
    return _SPACES.sub(" ", unicodedata.normalize("NFC", tag).translate(_INVISIBLE)).strip(" \u200c\u200d\r\n")


def each_once(given: Iterable[str]) -> tuple[str, ...]:
    """Tags that are cleaned, not empty, each once, in order."""
    return tuple(dict.fromkeys(tag for one in given if (tag := clean(one))))


@dataclass(frozen=True)
class Fields:
    """A column of tag fields, read: the tags of each field, or the question that it leaves; and what was found."""

    tags: tuple[tuple[str, ...] | str, ...]
    notes: tuple[str, ...]


def split_fields(fields: Sequence[str | Sequence[str]], separator: str, speller: Speller) -> Fields:
    """Cut the fields of one column into tags.

    A field in brackets is a list. `separator` cuts; where none is given, ';', '|' and the like, which no name holds,
    and a comma where the tags around it occur alone too, or are classes that are known. What stays open is a question.

    Args:
        fields: the column's texts, or lists of texts.
        separator: what stands between tags; empty: it is found.
        speller: knows the classes, if any are known.
    """

    def cut(field: str | Sequence[str]) -> tuple[str, ...] | str:
        listed = _listed(field.strip()) if isinstance(field, str) else field
        if isinstance(listed, str):
            return listed
        items = listed if listed is not None else [field] if isinstance(field, str) else field
        parts = (one.split(separator) if separator else _NEVER_IN_A_NAME.split(one) for one in items)
        own = each_once(map(_unquoted, itertools.chain.from_iterable(parts)))
        return tuple(tag for tag in own if tag.lower() not in _EMPTY or speller.knows(tag))

    pieces = [cut(field) for field in fields]
    alone = Counter(itertools.chain.from_iterable(own for own in pieces if not isinstance(own, str)))
    texts = [own for field, own in zip(fields, pieces, strict=True) if isinstance(field, str) and not _is_list(field)]
    strong = not texts or any(len(own) > 1 for own in texts)
    weak = _Weak(alone, strong, speller) if not separator else None
    found = tuple(own if weak is None or isinstance(own, str) else weak.cut(own) for own in pieces)
    return Fields(found, tuple(weak.notes) if weak else ())


def _is_list(field: str) -> bool:
    return _listed(field.strip()) is not None


def _unquoted(text: str) -> str:
    text = text.strip()
    return text[1:-1] if len(text) > 2 and text[0] == text[-1] and text[0] in "\"'" else text


class _Weak:
    """Separators that names may hold too: what they mean is decided by the tags that occur alone, or are known."""

    def __init__(self, alone: Mapping[str, int], strong: bool, speller: Speller):
        self._alone, self._speller, self.notes = alone, speller, []
        self._cache: dict[str, tuple[str, ...] | str] = {}
        self._likely = {sign: not speller.known and self._is_likely(sign) for sign in _WEAK}
        self._commas_cut = self._likely[","] and not strong
        self._commas_asked = not strong
        if self._commas_cut and not speller.known:
            self.notes.append("commas stand between tags here; if they belong to names, say --separator ';'.")

    def _is_likely(self, sign: str) -> bool:
        """Whether what stands around a sign occurs elsewhere, too, in at least half of the tags that hold it."""
        held = [each_once(one.split(sign)) for one in self._alone if sign in one]
        if sign in _JOINING:
            shared = [one for one in held if all(part in self._alone for part in one)]
        else:
            parts = Counter(part for one in held for part in one)
            shared = [one for one in held if any(part in self._alone or parts[part] > 1 for part in one)]
        return len(held) > (sign not in (",", *_JOINING)) and 2 * len(shared) >= len(held)

    def cut(self, pieces: tuple[str, ...]) -> tuple[str, ...] | str:
        made: list[str] = []
        for piece in pieces:
            if piece not in self._cache:
                self._cache[piece] = self._one(piece)
            if isinstance(self._cache[piece], str):
                return self._cache[piece]
            made += self._cache[piece]
        return tuple(dict.fromkeys(made))

    def _one(self, piece: str) -> tuple[str, ...] | str:
        if not _ANY_WEAK.search(piece) or _CODES.fullmatch(piece) or self._speller.knows(piece):
            return (piece,)
        if not self._speller.known and _SCORED.search(piece):
            return f"the tag {shown(piece)} ends with a number; write the tag alone, and leave out what is unsure."
        for sign in _WEAK:
            parts = each_once(piece.split(sign)) if sign in piece else ()
            if len(parts) < 2:
                continue
            if self._speller.known:
                if all(map(self._speller.knows, parts)):
                    return parts
            elif sign == "," and self._commas_cut:
                return parts
            elif self._asks(sign, parts):
                return (
                    f"does {shown(piece)} hold one tag or {len(parts)}? Say --separator '{sign}' for {len(parts)}, "
                    "or --separator ';' for one."
                )
        return (piece,)

    def _asks(self, sign: str, parts: Sequence[str]) -> bool:
        alone = all(part in self._alone for part in parts)
        if sign in _JOINING:
            return alone and self._likely[sign]
        return alone or self._likely[sign] or (sign == "," and self._commas_asked)


def _listed(field: str) -> tuple[str, ...] | str | None:
    """The items of a field in brackets, as JSON, Python, numpy and databases write lists; None where it is none."""
    if _HASHES.fullmatch(field):
        return tuple(re.findall(r"#([^\s#,;|]+)", field))
    call = _CALL.fullmatch(field) if len(field) < _LONGEST_CALL else None
    field = call[1] if call else field
    quoted = field[:1] in ("'", '"') and field[0] == field[-1]
    if len(field) < 2 or not (quoted or _BRACKETS.get(field[0]) == field[-1]):
        return None
    within = field if quoted else field[1:-1].strip()
    if field[0] == "[" and '"' in within:
        try:
            items = json.loads(field)
            if all(isinstance(item, str) for item in items):
                return tuple(items)
        except (ValueError, RecursionError, TypeError):
            pass
    if "'" not in within and '"' not in within:
        return tuple(within.split(","))
    items, at = [], 0
    while at < len(within) and (found := _ITEM.match(within, at)):
        items.append(found[1] if found[1] is not None else found[2])
        at = found.end()
    if quoted and at < len(within):
        return None
    if at < len(within):
        return f"the list {shown(field)} can't be read; write tags as dog;cat."
    return tuple(items)


class Speller:
    """Knows class names and how people write them; keeps count of what was read as what, and of what is unknown.

    Args:
        known: the classes; None: every tag names one.
        aliases: what is written -> the class that is meant.

    Raises:
        ConfigError: an alias leads to no class.
    """

    def __init__(self, known: ClassSet | None, aliases: Mapping[str, str]):
        self.known = known
        self._aliases = {clean(given): clean(meant) for given, meant in aliases.items()}
        self._names = frozenset(known.names) if known else frozenset()
        self._loose: dict[str, str | None] = {}
        for name in known.names if known else ():
            key = _loose(name)
            self._loose[key] = None if key in self._loose else name
        if known:
            wrong = next((meant for meant in self._aliases.values() if self._find(meant) is None), None)
            if wrong is not None:
                raise ConfigError(
                    f"an alias leads to {shown(wrong)}, which is no class; the closest is {known.closest(wrong)!r}."
                )
        self._read_as: Counter[tuple[str, str]] = Counter()
        self._unknown: dict[str, list] = {}
        self._shared: dict[tuple[str, ...], tuple[str, ...]] = {}

    def knows(self, tag: str) -> bool:
        """Whether a tag names a known class, by whichever spelling."""
        return self.known is not None and self._find(self._aliases.get(tag, tag)) is not None

    def read(self, tags: Iterable[str], where: str) -> tuple[str, ...]:
        """The classes that a photograph's tags name, each once; unknown ones are remembered for `problems`."""
        found: dict[str, None] = {}
        for tag in tags:
            meant = self._find(self._aliases.get(tag, tag))
            if meant is None:
                self._unknown.setdefault(tag, [where, 0])[1] += 1
                continue
            if meant != tag:
                self._read_as[tag, meant] += 1
            found[meant] = None
        return self.shared(tuple(found))

    def shared(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        """`tags`, as one object for all photographs that carry the same."""
        return self._shared.setdefault(tags, tags)

    def problems(self) -> list[str]:
        """A line for each tag that names no class: where first, on how many photographs, and what is closest."""
        told = [self._problem(tag, *said) for tag, said in itertools.islice(self._unknown.items(), _MOST_HINTS)]
        more = len(self._unknown) - len(told)
        return [*told, f"and {more} more unknown tags."] if more else told

    def notes(self) -> list[str]:
        """A line for each tag that was read as a class of another spelling."""
        return [
            f"the tag {shown(tag)} is read as {meant!r} ({photographs(count)})."
            for (tag, meant), count in self._read_as.items()
        ]

    def _find(self, tag: str) -> str | None:
        if self.known is None:
            return None if tag.lower().strip("_") == "background" or CONTROL.search(tag) else tag
        if tag in self._names:
            return tag
        if len(tag) > _LONGEST_HINTED:
            return None
        return self._loose.get(_loose(tag)) or next(
            (name for one in SPELLINGS if tag.lower() in one for name in self.known.names if name.lower() in one), None
        )

    def _problem(self, tag: str, where: str, count: int) -> str:
        often = f" ({photographs(count)})" if count > 1 else ""
        if self.known is None:
            return (
                f"{where}: the tag {shown(tag)}{often} can't name a class; leave out 'background' and control "
                "characters."
            )
        if len(tag) > _LONGEST_HINTED:
            return f"{where}: unknown tag {shown(tag)}{often}."
        return f"{where}: unknown tag {shown(tag)}{often}; the closest class is {self.known.closest(tag)!r}."


def told_same(classes: ClassSet) -> list[str]:
    """A line for each group of classes whose words are the same to CLIP."""
    return [
        f"CLIP reads the classes {' and '.join(map(shown, group))} alike, so their objects can't be told apart; give "
        "each words of its own in the classes file, or leave one out."
        for group in classes.alike()
    ]


def codes(tags: Iterable[str]) -> str:
    """What tags are that are no words: "numbers", or "codes" (ImageNet's, Open Images', Wikidata's); else empty."""
    own = tuple(tags)
    if not own or not all(map(_CODES.fullmatch, own)):
        return ""
    return "codes" if any(tag[0].isalpha() or tag[0] == "/" for tag in own) else "numbers"


def photographs(count: int) -> str:
    """ "1 photograph", "2 photographs"."""
    return f"{count} photograph{'' if count == 1 else 's'}"


def one_case(counts: Mapping[str, int]) -> dict[str, str]:
    """Tags that differ in capitals alone -> the most frequent spelling, as CLIP reads small letters alone.

    Args:
        counts: photographs by tag, in the order of the file.
    """
    groups: dict[str, list[str]] = {}
    for tag in counts:
        groups.setdefault(tag.lower(), []).append(tag)
    best = {key: max(group, key=lambda tag: counts[tag]) for key, group in groups.items()}
    return {tag: best[tag.lower()] for tag in counts if best[tag.lower()] != tag}


def alike(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Groups of class names that may be one: the same but for case and punctuation, a plural, or one letter apart.

    Longer lists than `_MOST_ALIKE` are compared by letters and plural alone.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(_loose(name), []).append(name)
    for key in list(groups):
        for plural in _plurals(key):
            if key in groups and plural in groups:
                groups[key] += groups.pop(plural)
    heads = [key for key in groups if _SHORTEST_NEAR <= len(key) <= _LONGEST_ALIKE]
    for first, second in itertools.combinations(heads if len(heads) <= _MOST_ALIKE else [], 2):
        if first in groups and second in groups and _one_edit(first, second):
            groups[first] += groups.pop(second)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _loose(name: str) -> str:
    """Letters and digits alone, small: what is left when spaces, "_", "-" and capitals are no difference."""
    kept = "".join(letter for letter in unicodedata.normalize("NFC", name).lower() if letter.isalnum())
    return kept or name


def _plurals(word: str) -> tuple[str, ...]:
    return (f"{word}s", f"{word}es", *([f"{word[:-1]}ies"] if word.endswith("y") else []))


def _one_edit(first: str, second: str) -> bool:
    """Whether one letter more, less, other, or two that changed places make the difference."""
    if abs(len(first) - len(second)) > 1:
        return False
    if len(first) > len(second):
        first, second = second, first
    same = next((n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(first))
    a, b = first[same:], second[same:]
    if len(first) < len(second):
        return a == b[1:]
    return a[1:] == b[1:] or (a[2:] == b[2:] and a[:2] == b[1::-1])
