"""The command as a whole: instant help, completion, and words at the end of what went wrong."""

import os
import resource
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from ih_interp.cli import app
from ih_interp.cli._shared import told_in_words
from ih_interp.training.state import TrainingFailedError

COMMANDS = ("train", "runs", "report", "reproduce", "study", "bench", "features", "clean")
RUN = "import sys; sys.argv[0] = 'ih-interp'; from ih_interp.cli import main; main()"


def cpu_seconds(*arguments):
    """What a process of Python costs, the least of three, and what it prints."""
    costs = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, check=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        costs.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(costs), done.stdout


def test_help_is_instant():
    bare, _ = cpu_seconds("-c", "pass")
    cost, told = cpu_seconds("-m", "ih_interp", "--help")
    assert all(f"  {name} " in told for name in COMMANDS)
    assert cost - bare < 0.3


def completed(line):
    """What bash is offered for the last word of a line."""
    words = line.split(" ")
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        env=os.environ | asked | {"_IH_INTERP_COMPLETE": "complete_bash"},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ih-interp stu", ["study"]),
        ("ih-interp study cri", ["critical-periods"]),
        ("ih-interp reproduce 3a table", ["table1", "table2", "table3"]),
        ("ih-interp reproduce --preset sm", ["smoke"]),
    ],
)
def test_a_shell_completes_commands_figures_and_studies(line, words):
    assert completed(line) == words


def test_the_version_is_told():
    result = CliRunner().invoke(app, ["--version"])
    assert (result.exit_code, result.output.strip()) == (0, version("ih-interp"))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("a word"), 2),
        (FileNotFoundError("a word"), 2),
        (ImportError("a word"), 2),
        (TrainingFailedError("a word"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_end_in_words_and_a_status(error, code, capsys):
    import typer

    with pytest.raises(typer.Exit) as ended, told_in_words("Go on with a word."):
        raise error
    assert ended.value.exit_code == code
    assert "a word" in capsys.readouterr().err


def test_errors_of_the_program_itself_keep_their_traceback():
    with pytest.raises(RuntimeError, match="a defect"), told_in_words():
        raise RuntimeError("a defect")
