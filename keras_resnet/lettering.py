"""Names chosen by the user, such as class names, in figures."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import matplotlib
from matplotlib import font_manager


@contextlib.contextmanager
def lettering(*texts: str) -> Iterator[Callable[[str], str]]:
    """Inside this context, matplotlib draws these texts as they are: no formulas in `$`, and a font for every script.

    Yields:
        A function from a text to the text to draw, in which characters that no installed font has are \\uXXXX.
    """
    families, missing = _fonts(frozenset("".join(texts)) - {"\n"})
    escapes = str.maketrans({character: character.encode("unicode_escape").decode() for character in missing})
    with matplotlib.rc_context({"text.parse_math": False, "font.family": families}):
        yield lambda text: text.translate(escapes)


@functools.cache
def _fonts(characters):
    """Font families, the usual ones first, that together have all characters, and the characters that no font has."""
    families, missing = list(matplotlib.rcParams["font.family"]), set(characters)
    missing -= _characters(font_manager.findfont(font_manager.FontProperties(family=families)))
    for font in font_manager.fontManager.ttflist if missing else ():
        found = missing & _characters(font.fname)
        if found and "Last Resort" not in font.name:  # it has a box for every character
            families.append(font.name)
            missing -= found
    return families, missing


def _characters(path):
    """The characters of a font file; none if matplotlib cannot draw it, such as fonts made of bitmaps."""
    try:
        font = font_manager.get_font(path)
        return set(map(chr, font.get_charmap())) if font.scalable else set()
    except (OSError, RuntimeError):
        return set()
