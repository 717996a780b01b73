"""Sphinx's settings for `make site`: README and its like, notebooks as committed, tables and figures.

Nothing is loaded from another host: equations become MathML, and pictures from elsewhere become their words.
"""

import os
import re
import shutil
import sys
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from PIL import Image
from sphinx.util import logging

from lib.config import data_note
from lib.files import figures_root, results_root

HERE = Path(__file__).resolve().parent
PROFILE = os.environ.get("PROFILE") or "demo"
NAMES = (PROFILE, "bench")  # whose tables are shown
REPORT = results_root(PROFILE) / "report.pdf"
SHOWN = {
    "tools/site/tables": [path for name in NAMES for path in sorted(results_root(name).glob("tables/*.md"))],
    "tools/site/figures": sorted(figures_root(PROFILE).glob("*.png")),
}
SIDEBAR = {"Notebooks": "notebooks/*", "Results": "tools/site/*", "Project": "data/*\nweights/*\n[!R]*"}
TOCTREE = "\n```{{toctree}}\n:hidden:\n:glob:\n:caption: {}\n{}\n```\n"
project = html_title = "Text-prompted abdominal organ segmentation, reproduced"
extensions = ["myst_nb"]
root_doc = "README"
include_patterns = ["*.md", "data/*.md", "weights/*.md", "notebooks/*.ipynb", "tools/site/*.md"]
exclude_patterns = [".*", "build", "data/*[!d]", "results", "figures"]  # not worth the walk
html_theme = "furo"
html_static_path = html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_math_renderer = "mathml"
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # by default two scripts from other hosts
nb_merge_streams = True


def complete(app, page, source):
    """Appends sidebar, tables and figures to their pages; links to a table or figure lead there."""
    text = source[0]
    if page == "README":
        text += "".join(TOCTREE.format(*part) for part in SIDEBAR.items())
    if page in SHOWN:
        text += f"\n**{data_note(PROFILE)}.**\n"
        if REPORT.is_file():
            text += f"\n[Everything as one PDF](<{os.path.relpath(REPORT.resolve(), HERE)}>)\n"
    for shown, paths in SHOWN.items():
        for path in paths:
            if page == shown:
                name = path.stem.replace("_", " ")
                text += f"\n({path.name})=\n\n## {name}\n\n"
                if path.suffix == ".md":
                    text += path.read_text("utf-8")
                else:  # figures.save has put the caption into the file
                    caption = Image.open(path).info.get("Description", "")
                    text += f"![{name}](<{os.path.relpath(path.resolve(), HERE)}>)\n\n{caption}\n"
            place = rf"(?:results/(?:{PROFILE}|bench)/tables|figures/{PROFILE})/{re.escape(path.name)}"
            text = re.sub(rf"(?<!!)(\[[^][]*\])\((?:\.\./)*{place}\)", rf"\1(/{shown}.md#{path.name})", text)
    source[0] = text


def describe_images(app, tree):
    """A picture from another host becomes its words; one that a cell draws is described by its caption."""
    for image in list(tree.findall(nodes.image)):
        if "://" in image["uri"]:
            image.replace_self(nodes.Text(image.get("alt", "")))
        elif not image.get("alt"):
            output = image.parent
            while output.parent and "cell_output" not in output["classes"]:
                output = output.parent
            words = [paragraph.astext() for paragraph in output.findall(nodes.paragraph)]
            image["alt"] = " ".join(words) if output.parent and words else "output of the cell above"


def write_math(writer, node):
    """Writes an equation as MathML, or as its source where that cannot be read."""
    display = "block" if isinstance(node, nodes.math_block) else "inline"
    try:
        braced = re.sub(r"\\(math\w+) (\w)", r"\\\1{\2}", node.astext())  # its letters lack a style otherwise
        mathml = convert(braced, display=display)
    except Exception as error:  # latex2mathml's errors have no common class
        logging.getLogger(__name__).warning("an equation stays as it is (%r)", error, location=node)
        mathml = f"<code>{writer.encode(node.astext())}</code>"
    writer.body.append(f'<div class="equation">{mathml}</div>' if display == "block" else mathml)
    raise nodes.SkipNode


def copy_landing_page(app, error):
    """README.html is what index.html shows, too."""
    if not error:
        shutil.copyfile(app.outdir / "README.html", app.outdir / "index.html")


def setup(app):
    """Registers the functions above."""
    if not list(results_root(PROFILE).glob("tables/*.md")):
        sys.exit(
            f"{results_root(PROFILE) / 'tables'} holds no table: run `make figures PROFILE={PROFILE}` first."
        )
    app.add_html_math_renderer("mathml", (write_math, None), (write_math, None))
    app.connect("source-read", complete)
    app.connect("doctree-read", describe_images, priority=100)  # before Sphinx collects them
    app.connect("build-finished", copy_landing_page)
