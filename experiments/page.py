"""A text in Markdown as a page that holds its figures and needs no network."""

import base64
import re
from pathlib import Path

from markdown_it import MarkdownIt

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem;
  color: #1b1b1b; background: #fff; }
table { border-collapse: collapse; font-size: 0.85rem; margin: 1rem 0; display: block;
  overflow-x: auto; }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid #ddd; text-align: left;
  vertical-align: top; }
th { border-bottom: 2px solid #888; }
img { max-width: 100%; }
code { font-size: 0.85em; background: #f4f4f4; padding: 0 0.2em; }
.supported { color: #00704f; } .contradicted { color: #b34700; } .undecided { color: #666; }
"""


def page_of(text: str, folder: Path) -> str:
    """The report's text as a page that holds its figures and needs no network."""
    body = MarkdownIt("commonmark").enable("table").render(text)
    body = re.sub(
        r"<h2>([\w ]+)</h2>",
        lambda m: f'<h2 id="{m[1].lower().replace(" ", "-")}">{m[1]}</h2>',
        body,
    )
    body = re.sub(
        r"<strong>(supported|contradicted|undecided)</strong>",
        r'<strong class="\1">\1</strong>',
        body,
    )
    body = re.sub(r'src="([\w.]+)"', lambda m: f'src="{_embedded(folder / m[1])}"', body)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width">\n<title>icl_align: claims</title>\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )


def _embedded(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
