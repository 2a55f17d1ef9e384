"""A notebook as Markdown, with the outputs that are saved in it; nothing is run."""

import re
from pathlib import Path

from nbconvert import MarkdownExporter

TABLE_STYLE = re.compile(r"<style scoped>.*?</style>\n?", re.DOTALL)  # the site has its own
BAR = re.compile(r"^.*\d+%\|.*$\n?", re.MULTILINE)  # progress bars that were saved


def as_markdown(path: Path) -> tuple[str, dict[str, bytes]]:
    """Return the notebook's Markdown, and its pictures by their names in it."""
    folder = f"{path.stem}_files"
    text, resources = MarkdownExporter().from_filename(
        str(path), resources={"output_files_dir": folder, "unique_key": "output"}
    )
    return BAR.sub("", TABLE_STYLE.sub("", text)), dict(resources["outputs"])
