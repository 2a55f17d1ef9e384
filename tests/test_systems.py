"""On other systems than Linux and macOS importing says so."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys
sys.modules[{missing!r}] = None
try:
    import {module}
except ImportError as error:
    print(error)
"""


@pytest.mark.parametrize("missing", ["fcntl", "resource"])
@pytest.mark.parametrize(
    "module", ["ih_interp", "ih_interp.storage.lock", "ih_interp.tasks.exemplars"]
)
def test_without_what_posix_has_importing_names_the_systems(missing, module):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT.format(missing=missing, module=module)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"runs on Linux and macOS, and this system ({sys.platform}) has no module {missing}" in (
        done.stdout
    )
    assert "Windows" in done.stdout
