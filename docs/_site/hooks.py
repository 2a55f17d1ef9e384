"""Build the site from the repository's own files, at their own places.

The site has the same tree as the repository: README.md is its first page, and what a page links is
in it. So a link that works in the repository works on the site, and the strict build finds those
that do not. Notebooks become pages without running, and the API pages are made from docstrings.
"""

import html
import re
from pathlib import Path, PurePosixPath
from posixpath import normpath

import api_pages as api
import colab
import latex2mathml.converter
import notebook_pages as notebook
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
ASSETS = ("docs/_site/site.css", "docs/_site/iframe-worker.js", "docs/_site/iframe-worker.LICENSE")
LINK = re.compile(r"\]\(([^()#\s]+)(?:#[^()\s]*)?\)")
CODE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


class MarkdownPage(File):
    """A page whose Markdown is made here, and whose name may end otherwise, as a notebook's."""

    def is_documentation_page(self) -> bool:
        return True


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Write out the patterns of the navigation, such as `notebooks/*.ipynb`."""
    config.nav = [_written_out(entry) for entry in config.nav or []]
    return config


def _written_out(entry: object) -> object:
    if isinstance(entry, dict):
        return {title: _written_out(below) for title, below in entry.items()}
    if isinstance(entry, list):
        return [one for below in entry for one in _matching(below)]
    return entry


def _matching(entry: object) -> list[object]:
    if entry == "docs/api/*.md":
        return [{title: path} for title, path in api.navigation()]
    if isinstance(entry, str) and "*" in entry:
        return [path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob(entry))]
    return [_written_out(entry)]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replace the files of `docs/` by the repository's: pages, and all that they link."""
    site = Files([file for file in files if file.src_dir != config.docs_dir])
    for path, text in api.pages().items():
        site.append(_page(config, path, text))
    waiting = ["README.md", *_nav_paths(config.nav), *ASSETS]
    while waiting:
        path = waiting.pop()
        if site.get_file_from_path(path) is None and (ROOT / path).is_file():
            waiting += _add(site, config, path)
    return site


def _nav_paths(nav: object) -> list[str]:
    if isinstance(nav, dict):
        nav = list(nav.values())
    return [nav] if isinstance(nav, str) else [p for entry in nav or [] for p in _nav_paths(entry)]


def _add(site: Files, config: MkDocsConfig, path: str) -> list[str]:
    """Add a file, and return the paths that it links."""
    if path.endswith(".md"):
        text = (ROOT / path).read_text()
    elif path.endswith(".ipynb"):
        text, pictures = notebook.as_markdown(ROOT / path)
        for name, content in pictures.items():
            place = str(PurePosixPath(path).parent / name)
            site.append(File.generated(config, place, content=content))
        text = _with_colab(text, PurePosixPath(path).name, config)
    else:
        site.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        return []
    site.append(_page(config, path, text))
    links = LINK.findall(CODE.sub("", text))
    return [normpath(str(PurePosixPath(path).parent / link)) for link in links if ":" not in link]


def _with_colab(text: str, name: str, config: MkDocsConfig) -> str:
    """Return a notebook's text with a button for Colab below its title, if it lies on GitHub."""
    address = colab.address(config.repo_url or "", name)
    if address is None:
        return text
    title, rest = text.lstrip().split("\n", maxsplit=1)
    return f"{title}\n\n[Open in Colab]({address}){{ .md-button }}\n{rest}"


def _page(config: MkDocsConfig, path: str, text: str) -> MarkdownPage:
    return MarkdownPage.generated(config, path, content=text)


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Link names such as `ih.trace` to their entries in the API."""
    return markdown if page.file.src_uri.startswith("docs/api/") else api.with_links(markdown)


def on_page_content(content: str, **_: object) -> str:
    """Turn formulas into MathML, which browsers show without a script."""
    return re.sub(
        r'<span class="arithmatex">\\\((.*?)\\\)</span>',
        lambda formula: latex2mathml.converter.convert(html.unescape(formula[1])),
        content,
    )
