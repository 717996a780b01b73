"""tools.lettering: words of any script are drawn without boxes, and no warning is printed."""

from pathlib import Path

import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.ttLib.tables._g_l_y_f import Glyph
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.text import Text

from tools.lettering import write


def drawn(words: str) -> Text:
    """Drawn into a picture. A character without a glyph would be a warning, and that an error."""
    (canvas := FigureCanvasAgg(figure := Figure())).draw()
    text = figure.text(0.5, 0.5, "")
    write(text, words, ": 1.0 ml", "label 14")
    canvas.draw()
    return text


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "words", ["große Gefäße", "печень", "ήπαρ", "כבד", "الكبد", "$x^2$ or $5", "a_b \\frac", "_hidden"]
)
def test_what_was_typed_is_what_is_drawn(words: str) -> None:
    assert drawn(words).get_text() == f"{words}: 1.0 ml"


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("words", "shown"), [("肝\ue000", "肝\\ue000"), ("\U000f0000 a", "\\U000f0000 a")])
def test_what_no_font_has_is_named_by_its_label_and_numbers(words: str, shown: str) -> None:
    text = drawn(words).get_text()
    assert text == f"label 14 ({shown.encode('ascii', 'backslashreplace').decode()}): 1.0 ml"


@pytest.mark.filterwarnings("error")
def test_a_font_of_this_machine_that_has_the_characters_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = FontBuilder(1000)
    build.setupGlyphOrder([".notdef", "liver"])
    build.setupCharacterMap({0xF0123: "liver"})
    build.setupGlyf({".notdef": Glyph(), "liver": Glyph()})
    build.setupHorizontalMetrics({".notdef": (500, 0), "liver": (500, 0)})
    build.setupHorizontalHeader(ascent=800, descent=-200)
    build.setupNameTable({"familyName": "Livers", "styleName": "Regular"})
    build.setupOS2()
    build.setupPost()
    build.save(tmp_path / "livers.ttf")
    monkeypatch.setattr(fontManager, "ttflist", [*fontManager.ttflist])
    fontManager.addfont(tmp_path / "livers.ttf")
    text = drawn("a \U000f0123")
    assert text.get_text() == "a \U000f0123: 1.0 ml" and text.get_fontfamily() == ["DejaVu Sans", "Livers"]
