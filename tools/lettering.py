"""Words of any script in a picture, by whatever fonts this machine has."""

from functools import cache

from matplotlib.font_manager import findfont, fontManager, get_font
from matplotlib.text import Text

OWN = "DejaVu Sans"  # comes with matplotlib: Latin, Greek, Cyrillic, Hebrew, Arabic and more
NOT_LETTERS = ("Last Resort", "Emoji")  # boxes, and pictures that cannot be scaled


@cache
def _characters(file: str) -> frozenset[str]:
    """Those that a font draws."""
    try:
        return frozenset(map(chr, get_font(file).get_charmap()))
    except (OSError, RuntimeError):  # FreeType cannot read it
        return frozenset()


def write(text: Text, words: str, after: str = "", instead: str = "") -> None:
    """Puts `words` and what comes `after` into a picture's text, where "$" is a dollar.

    Characters that no font here has would be boxes: `instead` stands there, and their numbers.
    """
    families, missing = [OWN], {*words} - _characters(findfont(OWN))
    for font in fontManager.ttflist if missing else []:
        plain = font.style == "normal" and not any(name in font.name for name in NOT_LETTERS)
        if plain and font.weight in (400, "normal", "regular") and missing & _characters(font.fname):
            families.append(font.name)
            missing -= _characters(font.fname)
    if missing:
        words = f"{instead} ({words.encode('ascii', 'backslashreplace').decode()})".strip()
    text.set(text=words + after, fontfamily=families, parse_math=False)
