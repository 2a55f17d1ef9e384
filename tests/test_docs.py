"""The documentation site: everything stands in it, and it needs nothing from elsewhere."""

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

import ih_interp as ih

pytest.importorskip("mkdocs", reason="the extra `docs` is not installed")
import griffe
from mkdocs.config import load_config

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs").glob("*.md"))
GLOSSARY = (ROOT / "docs" / "glossary.md").read_text()


@pytest.fixture(scope="module")
def hooks():
    sys.path.insert(0, str(ROOT / "docs" / "_site"))
    yield importlib.import_module("hooks")
    sys.path.remove(str(ROOT / "docs" / "_site"))


@pytest.fixture(scope="module")
def api(hooks):
    return hooks.api


def paths(nav):
    if isinstance(nav, str):
        return [nav]
    below = nav.values() if isinstance(nav, dict) else nav
    return [path for entry in below for path in paths(entry)]


def test_every_guide_and_notebook_is_in_the_navigation(api):
    config = load_config(str(ROOT / "mkdocs.yml"))
    listed = paths(config.plugins.on_config(config).nav)
    notebooks = (ROOT / "notebooks").glob("*.ipynb")
    wanted = {path.relative_to(ROOT).as_posix() for path in [*GUIDES, *notebooks]}
    wanted |= {path for _, path in api.navigation()}
    assert len(wanted) > 30
    assert wanted <= set(listed)
    assert len(listed) == len(set(listed))


def test_every_public_name_has_an_entry(api):
    """What the stubs say, read as text, against the names that the package shows when it runs."""
    modules = {"ih": ih, **{f"ih.{name}": getattr(ih, name) for name in dir(ih)}}
    modules = {title: value for title, value in modules.items() if title in api.modules()}
    shown = {f"{t}.{n}" for t, m in modules.items() for n in dir(m) if t not in PLAIN}
    assert {"ih.trace", "ih.heads.induction_score", "ih.clamps.match"} <= shown
    assert shown - set(api.modules()) - set(api.addresses()) == set()
    written = "\n".join(api.pages().values())
    missing = [path for path in api.addresses().values() if f"\n::: {path}\n" not in written]
    assert not missing


PLAIN = {"ih.hooks", "ih.optimisers", "ih.start"}
"""Modules of one file, whose `dir` shows what they import, too."""


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_every_function_and_class_of_a_plain_module_has_an_entry(api, name):
    module = getattr(ih, name.removeprefix("ih."))
    own = {n for n, v in vars(module).items() if getattr(v, "__module__", "") == module.__name__}
    own = {n for n in own if not n.startswith("_") and hasattr(getattr(module, n), "__qualname__")}
    assert own
    assert {f"{name}.{n}" for n in own} <= set(api.addresses())


def test_names_and_modules_in_code_lead_to_the_api(api):
    written = (
        "`ih.trace`, `ih.clamps`, `ih_interp.hooks` and `ih_interp.runs`\n```\n`ih.heads`\n```"
    )
    assert api.with_links(written) == (
        f"[`ih.trace`][{api.addresses()['ih.trace']}], [`ih.clamps`][ih_interp.clamps], "
        "[`ih_interp.hooks`][ih_interp.hooks] and `ih_interp.runs`\n```\n`ih.heads`\n```"
    )
    pages = api.pages()
    for title, module in api.modules().items():
        assert f"{{#{module}}}" in pages[dict(api.navigation())[title]].splitlines()[0]


def test_the_api_shows_axes_of_plots_as_optional(hooks):
    """With the extensions that `mkdocs.yml` names, as the site reads the package."""
    python = load_config(str(ROOT / "mkdocs.yml")).plugins["mkdocstrings"].config["handlers"]
    extensions = griffe.load_extensions(
        *(ROOT / p for p in python["python"]["options"]["extensions"])
    )
    curves = griffe.load("ih_interp", search_paths=[ROOT], extensions=extensions)["plots.curves"]
    own = [value for value in curves.members.values() if not value.is_alias and value.is_function]
    plots = [function for function in own if function.name.startswith("plot_")]
    assert len(plots) > 4
    for plot in plots:
        axes = plot.parameters[1]
        assert (str(axes.annotation), axes.default) == ("Axes | None", "None"), plot.name
    assert str(curves["guess_line"].parameters[0].annotation) == "Axes"


@pytest.mark.parametrize("page", [*GUIDES, ROOT / "README.md"], ids=lambda page: page.stem)
def test_installing_from_a_clone_keeps_to_the_pinned_versions(page):
    for command in re.findall(r"pip install[^`\n]*", page.read_text()):
        assert "-c .ci/constraints.txt" in command, command


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_names_in_code_exist(page):
    for name in re.findall(r"`ih\.([\w.]*\w)", page.read_text()):
        value = ih
        for part in name.split("."):
            value = getattr(value, part, None)
            assert value is not None, name


def test_terms_have_two_sentences_and_a_source():
    terms = GLOSSARY.split("\n### ")[1:]
    names = {term.splitlines()[0] for term in terms}
    assert {"Induction head", "Path patching", "Plateau", "Subcircuit B", "Self-repair"} <= names
    assert len(names) == len(terms)
    for term in terms:
        words, source = term.split("\nSource: ")
        assert len(re.findall(r"[.;:)`] |\.\n", words)) >= 2, words
        assert re.search(r"arxiv\.org/abs/\d{4}\.\d{5}|transformer-circuits\.pub/", source), term


def test_arxiv_numbers_are_those_of_their_links():
    links = re.findall(r"\[arXiv:([\d.]+)\]\(https://arxiv\.org/abs/([\d.]+)\)", GLOSSARY)
    assert len(links) == GLOSSARY.count("arxiv.org")
    assert all(said == linked for said, linked in links)


def test_notebooks_for_colab_begin_by_installing_the_repository(tmp_path):
    here = f"file://{ROOT}"
    script = ROOT / "docs" / "_site" / "colab.py"
    subprocess.run([sys.executable, script, here, tmp_path / "colab"], check=True, timeout=60)
    names = {path.name for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert {path.name for path in (tmp_path / "colab").iterdir()} == names
    for name in names:
        first, *rest = nbformat.read(tmp_path / "colab" / name, as_version=4).cells
        assert rest == nbformat.read(ROOT / "notebooks" / name, as_version=4).cells
        assert first.source.startswith(f"!git clone -q {here} ")
        assert "%pip install -q .." in first.source


def test_pages_of_notebooks_open_in_colab_where_the_site_is_on_github(hooks):
    config = load_config(str(ROOT / "mkdocs.yml"), repo_url="https://github.com/someone/circuits")
    text = hooks._with_colab("\n# A title\nwords", "01_a.ipynb", config)
    place = "https://colab.research.google.com/github/someone/circuits/blob/colab/01_a.ipynb"
    assert text == f"# A title\n\n[Open in Colab]({place}){{ .md-button }}\nwords"
    config.repo_url = "https://elsewhere.org/someone/circuits"
    assert hooks._with_colab("# A title\nwords", "01_a.ipynb", config) == "# A title\nwords"


class Loaded(HTMLParser):
    """The addresses that a page loads when it opens: not those which a reader may follow."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids |= {given["id"]} if given.get("id") else set()
        if tag == "link" and given.get("rel") != "canonical":
            self.addresses.append(given["href"])
        if given.get("src"):
            self.addresses.append(given["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
def test_the_site_loads_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 35
    for page in pages:
        addresses = Loaded(page).addresses
        assert len(addresses) > 3
        for address in addresses:
            assert not re.match(r"(\w+:)?//", address), f"{page}: {address}"
            place = (site if page.name == "404.html" else page.parent) / address.lstrip("/")
            assert Path(re.sub(r"[?#].*", "", str(place))).is_file(), f"{page}: {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(\s*['\"]?(https?:)?//|@import", style.read_text()), style


@pytest.mark.slow
def test_entries_pictures_and_the_index_are_in_the_site(site, api):
    for title, names in api.entries().items():
        page = site / dict(api.navigation())[title].replace(".md", ".html")
        assert {name.path for name in names} <= Loaded(page).ids, title
    assert (site / "figures" / "omniglot" / "fig5b.png").is_file()
    assert "<img" in (site / "notebooks" / "01_train_and_clamp.html").read_text()
    assert "<math" in (site / "notebooks" / "04_three_subcircuits.html").read_text()
    assert "Open in Colab" not in (site / "notebooks" / "01_train_and_clamp.html").read_text()
    index = (site / "search" / "search_index.js").read_text()
    assert index.count("clamp") > 100
