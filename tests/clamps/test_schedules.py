"""When a clamp is on: gates over steps, as data."""

import pytest
from pydantic import TypeAdapter

from ih_interp import clamps
from ih_interp.clamps import Always, always, during, from_level, pulses, ramp
from ih_interp.clamps.schedules import FromLevel, Schedule

ROWS = [
    {"step": step, "split": split, "loss": loss, "accuracy": 1 - loss}
    for step, split, loss in [
        (0, "train", 0.9),
        (0, "test_relabel", 0.1),
        (10, "train", 0.5),
        (20, "train", 0.3),
        (30, "train", 0.6),
    ]
]
EVERY_SCHEDULE = [
    always(),
    during(3),
    during(stop=4),
    during(2, 5),
    pulses(4),
    pulses(10, duty=0.3),
    ramp(2, 6),
    ramp(0, 4, low=1.0, high=0.25),
    from_level(below=0.5),
    from_level("accuracy", split="test_relabel", above=0.99),
]


def gates(schedule: Schedule, steps: int) -> list[float]:
    return [schedule.gate(step) for step in range(steps)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Always(), [1, 1, 1, 1]),
        (during(2), [0, 0, 1, 1]),
        (during(stop=2), [1, 1, 0, 0]),
        (during(1, 3), [0, 1, 1, 0]),
        (pulses(4), [1, 1, 0, 0, 1, 1, 0, 0]),
        (pulses(5, duty=0.3), [1, 1, 0, 0, 0, 1]),  # 1.5 updates, rounded
        (pulses(3, duty=1.0), [1, 1, 1, 1]),
        (pulses(3, duty=0.01), [1, 0, 0, 1, 0, 0]),  # one at least
        (pulses(10, duty=0.3), [1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 1]),
        (ramp(1, 5), [0, 0, 0.25, 0.5, 0.75, 1, 1]),
        (ramp(0, 2, low=1.0, high=0.5), [1, 0.75, 0.5, 0.5]),
    ],
    ids=str,
)
def test_gates_over_steps(schedule, expected):
    assert gates(schedule, len(expected)) == expected


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE, ids=str)
def test_every_gate_lies_between_free_and_clamped(schedule):
    assert all(0 <= schedule.gate(step, ROWS) <= 1 for step in range(40))


@pytest.mark.parametrize("schedule", EVERY_SCHEDULE, ids=str)
def test_a_schedule_is_json(schedule):
    value = schedule.model_dump(mode="json")
    assert TypeAdapter(Schedule).validate_python(value) == schedule
    clamp = clamps.AblateHeads(heads=["L1H0"], schedule=schedule)
    assert clamps.parse(clamps.dump([clamp])) == (clamp,)


@pytest.mark.parametrize(
    ("schedule", "first"),
    [
        (from_level(below=0.5), 21),  # 0.5 itself is not below
        (from_level(below=0.95), 1),
        (from_level("accuracy", above=0.45), 11),
        (from_level(split="test_relabel", below=0.5), 1),
        (from_level(below=0.2), None),  # only the other split was ever there
    ],
    ids=str,
)
def test_from_level_is_on_from_the_crossing_and_ever_after(schedule, first):
    on = [step for step in range(50) if schedule.gate(step, ROWS)]
    assert on == ([] if first is None else list(range(first, 50)))


def test_from_level_waits_for_the_first_evaluation():
    assert from_level(below=1e9).gate(100, []) == 0


def test_an_evaluation_and_the_update_after_it_have_one_gate():
    """The evaluation at a step cannot see its own rows yet; the update can, and does not look."""
    schedule = from_level(below=0.5)
    for step in range(35):
        before = [row for row in ROWS if row["step"] < step]
        assert schedule.gate(step, before) == schedule.gate(step, ROWS)


def test_from_level_needs_the_metrics():
    with pytest.raises(ValueError, match="loss on train"):
        from_level(below=0.5).gate(10)


def test_from_level_refuses_a_split_that_its_run_does_not_measure():
    schedule = from_level(split="other_exemplars", below=0.5)
    with pytest.raises(ValueError, match="other_exemplars"):
        schedule.gate(10, ROWS)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: during(5, 5), "stop=5"),
        (lambda: during(-1), "at least 0"),
        (lambda: pulses(0), "at least 1"),
        (lambda: pulses(4, duty=0.0), "above 0"),
        (lambda: pulses(4, duty=1.5), "at most 1"),
        (lambda: ramp(6, 2), "stop=2"),
        (lambda: ramp(0, 2, high=1.1), "at most 1"),
        (lambda: ramp(0, 2, low=float("nan")), "finite"),
        (lambda: FromLevel(metric="los", below=0.5), "metric=.*'loss', 'accuracy'"),
        (lambda: FromLevel(split="tests", below=0.5), "split=.*'train', 'test_exemplars'"),
        (lambda: from_level(), "below"),
        (lambda: from_level(below=1.0, above=2.0), "below"),
    ],
)
def test_bad_schedules_are_refused(build, words):
    with pytest.raises(ValueError, match=words):
        build()


def test_an_unknown_schedule_is_refused():
    value = {"kind": "ablate_heads", "heads": ["L0H0"], "schedule": {"kind": "sometimes"}}
    with pytest.raises(ValueError, match="'sometimes'"):
        clamps.parse([value])


@pytest.mark.parametrize(
    "build",
    [
        lambda **given: [clamps.match("L1H3", **given)],
        lambda **given: [clamps.copy("L1H3", **given)],
        lambda **given: [clamps.layer_one(**given)],
        clamps.a_alone,
        lambda **given: clamps.b_alone("L1H3", **given),
        lambda **given: clamps.c_alone("L1H3", **given),
    ],
)
def test_the_papers_clamps_take_a_schedule(build):
    assert build() == build(schedule=always())
    assert {clamp.schedule for clamp in build(schedule=during(0, 100))} == {during(0, 100)}


@pytest.mark.parametrize(
    ("metric", "level"),
    [
        ("accuracy", {"above": 90.0}),
        ("accuracy", {"above": 1.0}),
        ("accuracy", {"below": 0.0}),
        ("probability", {"below": 1.5}),
        ("loss", {"below": -1.0}),
    ],
)
def test_a_level_that_no_metric_crosses_is_refused(metric, level):
    with pytest.raises(ValueError, match=metric):
        from_level(metric, **level)
