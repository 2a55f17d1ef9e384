"""A release's version stands in one place per file, and the files agree."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.version import Version

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RELEASES = re.findall(r"^## (\d\S*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_citation_names_the_newest_release():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert Version(citation["version"]) == Version(RELEASES[0])
    newest_first = sorted(RELEASES, key=Version, reverse=True)
    assert newest_first == RELEASES


def test_a_checkout_without_tags_is_newer_than_every_release():
    fallback = Version(PROJECT["tool"]["hatch"]["version"]["fallback-version"])
    assert fallback.is_devrelease
    assert fallback > Version(RELEASES[0])
    assert "version" in PROJECT["project"]["dynamic"]


@pytest.mark.parametrize("name", ["tests", "release", "docs"])
def test_workflows_call_scripts_that_exist(name):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / f"{name}.yml").read_text())
    runs = [
        step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step
    ]
    assert runs
    for script in re.findall(r"\.ci/\w+$", "\n".join(runs), re.MULTILINE):
        assert (ROOT / script).stat().st_mode & 0o100, script


def test_what_workflows_install_is_pinned():
    pinned = {
        line.split("==")[0].lower() for line in (ROOT / ".ci/constraints.txt").read_text().split()
    }
    for requirement in PROJECT["project"]["optional-dependencies"]["docs"]:
        assert re.split(r"[\[<>=]", requirement)[0] in pinned, requirement
