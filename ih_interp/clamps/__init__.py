"""Clamps, named interventions as data: what they set, when, and with which gradient.

    ablate = ih.clamps.AblateHeads(heads=["L1H0"])
    with ih.clamped(model, [ablate], batch):
        logits = model(batch.tokens)

Activations
    AblateHeads: The heads' values are 0, so they write nothing; their patterns stay.
    AblateEmbedding: The token embedding is 0.
    Preserve: Patterns, values, queries or keys stay what they are without clamps.
    GraftIn, GraftOut: Lower or upper layers are those of another, frozen run.
    Freeze: Parameters stay as they are in training.
    Function: A hook function of TransformerLens, in `ih.clamped` alone.
Where heads attend
    PreviousTokenAttention: To the token before, with a strength.
    ForbidPreviousToken: Anywhere but to the token before.
    InductionAttention: The query to the correct labels with a strength, else to the others.
    SimilarityAttention: The query to labels by how alike their exemplar and the query are.
    AttendLabelsOnly: The query to labels only.
    AttentionTemperature: The heads' scores are divided by a temperature.
Subcircuits
    layer_one, match, copy: Make subcircuit A, A and B, or C perfect.
    a_alone, b_alone, c_alone: Leave one subcircuit alone to be learned; they return lists.
    PerfectLayerOne, PerfectMatchAndCopy, CopyFromAttention: The clamps that these use.
    keep_only: Return the other heads of the given heads' layers, to be ablated.
Schedules
    during, pulses, ramp, from_level, always: When a clamp is on, `AblateHeads(..., schedule=...)`.
    Level, FromLevel: A metric's crossing, which begins or ends a schedule.
Files
    parse, dump: Read clamps from JSON values, and write them.
Clamps of your own
    AbstractClamp, HeadClamp: The classes to begin from, with a `kind`, sites and hooks.
    Setting, Shape, Site: What their methods get and give; `check` and `in_order` serve them.
    AbstractSchedule: The class of schedules, with a `gate(step, metrics)`.
"""

# pyright: reportUnusedImport=false

from collections.abc import Iterable, Mapping
from typing import Any

from ih_interp import registry
from ih_interp._expect import expect
from ih_interp.clamps.activations import AblateEmbedding, AblateHeads, Function, Preserve
from ih_interp.clamps.attention import (
    AttendLabelsOnly,
    AttentionTemperature,
    ForbidPreviousToken,
    InductionAttention,
    PreviousTokenAttention,
    SimilarityAttention,
)
from ih_interp.clamps.base import AbstractClamp, HeadClamp, Setting, Shape, Site, keep_only
from ih_interp.clamps.context import ClampUnchangedWarning, check, clamped, in_order
from ih_interp.clamps.freeze import Freeze
from ih_interp.clamps.grafts import GraftIn, GraftOut
from ih_interp.clamps.schedules import (
    AbstractSchedule,
    Always,
    FromLevel,
    Level,
    always,
    during,
    from_level,
    pulses,
    ramp,
)
from ih_interp.clamps.subcircuits import (
    CopyFromAttention,
    PerfectLayerOne,
    PerfectMatchAndCopy,
    a_alone,
    b_alone,
    c_alone,
    copy,
    layer_one,
    match,
)


def parse(values: Iterable[Mapping[str, Any] | AbstractClamp]) -> tuple[AbstractClamp, ...]:
    """Read clamps from JSON values such as `{"kind": "ablate_heads", "heads": ["L1H0"]}`.

    Raises ValueError that names the clamp, the field, the value and what was expected.
    """
    expect(values, Iterable, "values", "write a list of JSON objects")
    if isinstance(values, Mapping | AbstractClamp):
        raise ValueError(f"parse reads a list of clamps and one came alone; write [{values!r}].")
    clamps: list[AbstractClamp] = []
    for number, value in enumerate(values):
        try:
            given = isinstance(value, AbstractClamp)
            clamps.append(value if given else registry.read(AbstractClamp, dict(value)))
        except (ValueError, TypeError) as error:
            why = (
                str(error)
                if isinstance(value, Mapping)
                else f"expected a JSON object, got {value!r}"
            )
            raise ValueError(f"Clamp number {number} cannot be read: {why.rstrip('.')}.") from error
    return tuple(clamps)


def dump(clamps: Iterable[AbstractClamp]) -> list[dict[str, Any]]:
    """Return JSON values that `parse` reads back; ValueError for a `Function`."""
    clamps = list(clamps)
    Function.refuse(clamps)
    return [clamp.model_dump(mode="json") for clamp in clamps]


def __dir__() -> list[str]:
    modules = {name: str(getattr(value, "__module__", "")) for name, value in globals().items()}
    ours = (name for name, module in modules.items() if module.startswith("ih_interp.clamps"))
    return sorted(name for name in ours if not name.startswith("_"))
