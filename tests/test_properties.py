"""Laws of bad input: what can be written is refused in words, or comes back from its JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pydantic import TypeAdapter
from small_runs import FOUR_UPDATES

import ih_interp as ih
from ih_interp.clamps import AbstractClamp, AbstractSchedule, dump, parse
from ih_interp.registry import kinds, read
from ih_interp.tasks.exemplars import ExemplarSource, FileSource, GaussianSource
from ih_interp.toy import ToyConfig

settings.register_profile(
    "few",
    max_examples=60,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("few")

CONFIGS = (
    *(ih.TaskConfig, ih.ModelConfig, ih.Adam, ih.Seeds, ih.Grid, ih.RunConfig),
    *(GaussianSource, FileSource, ToyConfig),
)
KINDS = {kind: c for kind, c in kinds(AbstractClamp).items() if kind != "function"}  # no JSON
SCHEDULES = kinds(AbstractSchedule)

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(0, 9),
    st.sampled_from((10**30, -1, 2**32, 2**63, "L0H0", "L9H9", "a", "", "\0", "../x", "train")),
    st.floats(),
    st.text(max_size=5),
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


def in_words(error: Exception, field: str) -> None:
    """The field is named, and what came or what was expected."""
    text = str(error)
    assert field in text or "=" in text, (field, text)
    assert len(text) > 20


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
@given(data=st.data())
def test_a_configuration_is_refused_in_words_or_comes_back(config, data):
    field = data.draw(st.sampled_from(sorted(config.model_fields)))
    given_fields = {field: data.draw(VALUES)}
    if config is FileSource:
        given_fields = {"path": "a.npz", "dataset": "x", "sha256": "0"} | given_fields
    try:
        made = config(**given_fields)
    except (ValueError, TypeError) as error:
        in_words(error, field)
    else:
        assert config.model_validate(json.loads(json.dumps(made.model_dump(mode="json")))) == made


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_a_clamp_is_refused_in_words_or_comes_back(kind, data):
    fields = sorted(set(KINDS[kind].model_fields) - {"kind"})
    good = {"heads": ["L0H0"], "head": "L0H0", "what": ["values"], "temperature": 0.5}
    good |= {"run": "runs/x", "step": 0, "layer": 0}
    field = data.draw(st.sampled_from(fields))
    value = {name: good[name] for name in fields if name in good} | {field: data.draw(VALUES)}
    try:
        clamps = parse([{"kind": kind, **value}])
    except (ValueError, TypeError) as error:
        in_words(error, field)
    else:
        assert parse(json.loads(json.dumps(dump(clamps)))) == clamps


@pytest.mark.parametrize("kind", SCHEDULES)
@given(data=st.data())
def test_a_schedule_is_refused_in_words_or_comes_back(kind, data):
    fields = sorted(SCHEDULES[kind].model_fields)
    value = {"kind": kind, "period": 4, "start": 0, "stop": 5}
    value = {name: value[name] for name in fields if name in value}
    value[data.draw(st.sampled_from(fields))] = data.draw(VALUES)
    try:
        made = read(AbstractSchedule, value)
    except (ValueError, TypeError) as error:
        in_words(error, "kind")
    else:
        assert read(AbstractSchedule, json.loads(made.model_dump_json())) == made


def test_every_source_of_exemplars_is_tried():
    kinds = TypeAdapter(ExemplarSource).json_schema()["discriminator"]["mapping"]
    assert sorted(kinds) == ["file", "gaussian"]


@pytest.mark.parametrize(
    ("runs", "options"),
    [
        (FOUR_UPDATES, {"engine": "fast"}),
        (FOUR_UPDATES, {"workers": 0}),
        (FOUR_UPDATES, {"device": "abacus"}),
        ([FOUR_UPDATES, FOUR_UPDATES], {}),
        ([FOUR_UPDATES, "run"], {}),
        (
            FOUR_UPDATES.replace(task=FOUR_UPDATES.task.model_copy(update={"n_train_classes": 50})),
            {},
        ),
        (FOUR_UPDATES.replace(clamps=[ih.clamps.match("L9H9")]), {}),
        (FOUR_UPDATES.replace(clamps=[ih.clamps.GraftIn(run="gone", step=0, layer=0)]), {}),
        (
            FOUR_UPDATES.replace(
                task=ih.TaskConfig(exemplars=FileSource(path="gone.npz", dataset="x", sha256="0"))
            ),
            {},
        ),
    ],
    ids=str,
)
def test_nothing_is_written_before_validation(runs, options, tmp_path):
    with pytest.raises((ValueError, TypeError, FileNotFoundError)):
        ih.train(runs, tmp_path / "root", progress=False, **options)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.slow
def test_bad_arguments_of_every_public_function():
    """In a process of its own, where no checks of shapes refuse before the package does."""
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).parent / "stress" / "bad_input.py"),
            "--examples",
            "16",
        ],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3_000:]
    assert "leaked 0" in done.stdout
