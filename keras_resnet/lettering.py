"""How pictures show people's own names."""

import contextlib
import functools
from collections.abc import Callable, Iterator

import matplotlib
from matplotlib import font_manager


@contextlib.contextmanager
def lettering(*texts: str) -> Iterator[Callable[[str], str]]:
    """Within it, matplotlib draws these texts as they are: a `$` begins no formula, and all scripts have their fonts.

    Yields:
        A function from a text to what is to be drawn: characters that no installed font has are \\uXXXX in it.
    """
    families, missing = _fonts(frozenset("".join(texts)) - {"\n"})
    escapes = str.maketrans({character: character.encode("unicode_escape").decode() for character in missing})
    with matplotlib.rc_context({"text.parse_math": False, "font.family": families}):
        yield lambda text: text.translate(escapes)


@functools.cache
def _fonts(characters):
    """Families of fonts, the usual ones first, that together have all characters but those that are returned too."""
    families, missing = list(matplotlib.rcParams["font.family"]), set(characters)
    missing -= _characters(font_manager.findfont(font_manager.FontProperties(family=families)))
    for font in font_manager.fontManager.ttflist if missing else ():
        found = missing & _characters(font.fname)
        if found and "Last Resort" not in font.name:  # which has a box for everything
            families.append(font.name)
            missing -= found
    return families, missing


def _characters(path):
    """What a font file has; nothing where matplotlib cannot draw it, as those of pictures in place of letters."""
    try:
        font = font_manager.get_font(path)
        return set(map(chr, font.get_charmap())) if font.scalable else set()
    except (OSError, RuntimeError):
        return set()
