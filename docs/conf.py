"""Sphinx settings of the docs site. `make docs` builds it from this clone, without a network."""

import re
import sys
from pathlib import Path

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from docs import generate  # noqa: E402
from nanogpt_dist import __version__  # noqa: E402

project = "nanogpt-dist"
author = copyright = "the nanogpt-dist authors, MIT licence"
release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
smartquotes = False  # two hyphens are a flag
nitpicky = True
nitpick_ignore_regex = [("py:.*", ".*")]  # a type in a signature need not have a page here

myst_enable_extensions = ["attrs_inline", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # a notebook is shown as it is committed; a test executes it

html_theme = "furo"
html_title = f"nanogpt-dist {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_math_renderer = "mathml"


def setup(app: Sphinx) -> None:
    """Write the generated pages, and render formulas as MathML, which needs no script."""
    generate.write(DOCS / "reference" / "generated")
    app.connect("autodoc-process-docstring", _escape_docstring)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(_render_inline, None),
        block_renderers=(_render_block, None),
    )


def _escape_docstring(*given: object) -> None:
    """Docstrings are plain text with `code`: keep what reStructuredText would take as its own."""
    lines = given[-1]
    assert isinstance(lines, list)
    parts = re.split(r"(?m)(`[^`]+`|^\s*>>>.*$)", "\n".join(lines))
    for number, part in enumerate(parts):
        if part.startswith("`"):
            parts[number] = f"`{part}`"
        elif not part.lstrip().startswith(">>>"):
            parts[number] = re.sub(r"([\\*|_])", r"\\\1", part)
    lines[:] = "".join(parts).split("\n")


def _render_inline(writer: HTML5Translator, node: nodes.Element) -> None:
    writer.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def _render_block(writer: HTML5Translator, node: nodes.Element) -> None:
    writer.body.append(f'<div class="math">{tex2mathml(node.astext(), as_block=True)}</div>')
    raise nodes.SkipNode
