"""The contents of the page for one run: sections of a figure, tables, captions and downloads."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import pandas as pd

from ih_interp.page import _captions as captions, _figures as figures
from ih_interp.page._tables import Download, Table, cell, csv_link, json_link, shown_table, unbroken
from ih_interp.page.ablation import (
    Ablations,
    costliest_of_last_layer,
    measured_ablations,
    measured_additivity,
    set_costs,
)
from ih_interp.page.facts import configuration, facts, guess, nats, references, saved_metrics
from ih_interp.page.gates import clamp_in_words, clamps_by_head, gates
from ih_interp.page.heads import heads_that_matter, roles
from ih_interp.page.patterns import measured_patterns
from ih_interp.page.scores import measured_scores, scores_of
from ih_interp.page.subject import Subject, subject_of
from ih_interp.page.wiring import measured_redundancy, measured_wiring
from ih_interp.runs import Run
from ih_interp.types import Head

Made = TypeVar("Made")


@dataclass(frozen=True)
class Attempt(Generic[Made]):
    """A part of the page, or the sentence that says why it cannot be had."""

    value: Made | None
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page about one run."""

    key: str
    title: str
    caption: str = ""
    """A sentence on the figure: what is shown, the unit, and the chance level."""
    missing: str = ""
    """Why there is nothing to show."""
    figure: figures.Json | None = None
    """A figure as plotly's JSON, with what its controls choose from."""
    tables: tuple[Table, ...] = ()
    downloads: tuple[Download, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Contents:
    """All that the page shows of one run."""

    name: str
    facts: list[tuple[str, str]]
    sections: list[Section]
    guess: tuple[float, str]
    """The loss of an even guess in nats, and in words."""
    metrics: pd.DataFrame = field(repr=False)


def contents(run: Run, name: str) -> Contents:
    """Return the sections of a run; each that cannot be computed says why."""
    metrics = attempt(lambda: saved_metrics(run))
    subject = attempt(lambda: subject_of(run))
    scores = then(subject, measured_scores)
    wiring, ablations = then(subject, measured_wiring), then(subject, measured_ablations)
    ideal = then(subject, references)
    matter = attempt(lambda: _matter(run, scores, wiring, ablations))
    named = [] if matter.value is None else list(matter.value["head"])
    found = None if metrics.value is None else metrics.value
    sections = [
        _heads(matter, wiring, subject),
        _losses(run, metrics, ideal, subject),
        _scores(subject, scores, named),
        _wiring(subject, wiring),
        _patterns(subject, named),
        _ablation(subject, ablations, matter),
        _redundancy(subject),
        _configuration(run),
    ]
    table = pd.DataFrame() if found is None else found.assign(run=name)
    return Contents(
        name=name,
        facts=facts(run, found, ideal.value or {}),
        sections=sections,
        guess=guess(run.config.task),
        metrics=table,
    )


def attempt(make: Callable[[], Made]) -> Attempt[Made]:
    """Return what a function makes, or why it refuses: ValueError and OSError are reasons."""
    try:
        return Attempt(make())
    except (ValueError, OSError) as error:
        return Attempt(None, str(error))


def then(subject: Attempt[Subject], measure: Callable[[Subject], Made]) -> Attempt[Made]:
    """Return what is measured of a subject, or why there is none."""
    if subject.value is None:
        return Attempt(None, subject.why)
    there = subject.value
    return attempt(lambda: measure(there))


def _matter(
    run: Run,
    scores: Attempt[tuple[pd.DataFrame, list[str]]],
    wiring: Attempt[pd.DataFrame],
    ablations: Attempt[Ablations],
) -> pd.DataFrame:
    if scores.value is None:
        raise ValueError(scores.why)
    table = scores.value[0]
    clamped = clamps_by_head(run, int(table["step"].max()))
    return heads_that_matter(table, wiring.value, ablations.value, clamped)


def _heads(
    matter: Attempt[pd.DataFrame], wiring: Attempt[pd.DataFrame], subject: Attempt[Subject]
) -> Section:
    title = "Heads that matter"
    table = matter.value
    if table is None or subject.value is None:
        return Section(key="heads", title=title, missing=matter.why)
    columns = dict(captions.HEADS)
    if not table["clamped"].any():
        del columns["clamped"]
    if wiring.value is None:
        del columns["fed_by"], columns["feeds"]
    caption = captions.heads(subject.value)
    none = captions.NO_HEADS if table.empty else ""
    shown = table.assign(since=table["since"].round().astype("Int64"))
    for column in ("fed_by", "feeds"):
        shown[column] = shown[column].map(unbroken)
    return Section(
        key="heads",
        title=title,
        tables=() if none else (shown_table(shown, columns, caption),),
        downloads=(csv_link("heads.csv", table),),
        notes=(none,) if none else (),
    )


def _losses(
    run: Run,
    metrics: Attempt[pd.DataFrame],
    references: Attempt[dict[str, float]],
    subject: Attempt[Subject],
) -> Section:
    title, table, ideal = "Losses", metrics.value, references.value or {}
    if table is None:
        return Section(key="losses", title=title, missing=metrics.why)
    shaded = attempt(lambda: gates(run, int(table["step"].max())))
    strip = pd.DataFrame() if shaded.value is None else shaded.value
    level, of_guess = guess(run.config.task)
    clamps = [f"Clamp {i + 1}: {clamp_in_words(clamp)}." for i, clamp in enumerate(run.clamps)]
    notes = [*clamps, *([f"Gates cannot be shown: {shaded.why}"] if shaded.why else [])]
    if references.why and subject.value is not None:  # else the sections of heads say it
        notes.append(f"Ideal predictors cannot be shown: {references.why}")
    return Section(
        key="losses",
        title=title,
        caption=captions.losses(
            level, of_guess, nats(ideal) if ideal else "", has_clamps=bool(run.clamps)
        ),
        figure=figures.losses_figure(table, strip, {"even guess": level, **ideal}),
        downloads=(
            csv_link("metrics.csv", table),
            *([csv_link("gates.csv", strip)] if len(strip) else []),
        ),
        notes=tuple(notes),
    )


def _scores(
    subject: Attempt[Subject], scores: Attempt[tuple[pd.DataFrame, list[str]]], named: list[str]
) -> Section:
    title = "Scores of heads"
    if scores.value is None or subject.value is None:
        return Section(key="scores", title=title, missing=scores.why)
    table, notes = scores.value
    words = {score.name: score.words for score in scores_of(subject.value)}
    chance = table.drop_duplicates("score").set_index("score")["chance"]
    choices = {name: captions.score(name, words[name], chance[name]) for name in chance.index}
    return Section(
        key="scores",
        title=title,
        caption=captions.scores(subject.value, len(set(table["step"]))),
        figure={**figures.scores_figure(table, named), "choices": choices},
        downloads=(csv_link("scores.csv", table),),
        notes=tuple(notes),
    )


def _wiring(subject: Attempt[Subject], wiring: Attempt[pd.DataFrame]) -> Section:
    title, table = "Wiring between layers", wiring.value
    if table is None or subject.value is None:
        return Section(key="wiring", title=title, missing=wiring.why)
    unit, _ = subject.value.patched
    return Section(
        key="wiring",
        title=title,
        caption=captions.wiring(subject.value, sorted(set(table["step"]))),
        figure=figures.wiring_figure(table, unit),
        downloads=(csv_link("wiring.csv", table),),
    )


def _patterns(subject: Attempt[Subject], named: list[str]) -> Section:
    title, patterns = "Attention patterns", then(subject, measured_patterns)
    found = patterns.value
    if found is None or subject.value is None:
        return Section(key="patterns", title=title, missing=patterns.why)
    run = subject.value.run
    n_steps, n_sequences, n_layers, n_heads, n, _ = found.weights.shape
    first = Head.parse(named[0]) if named else Head(n_layers - 1, 0)
    data = {
        "weights": figures.packed(found.weights),
        "shape": [n_steps, n_sequences, n_layers, n_heads, n],
        "steps": found.steps,
        "sequences": [step * run.sequences_per_step for step in found.steps],
        "tokens": found.tokens,
        "targets": found.targets,
        "first": list(first),
    }
    return Section(
        key="patterns",
        title=title,
        caption=captions.patterns(subject.value, found),
        figure={**figures.pattern_figure(), **data},
    )


def _ablation(
    subject: Attempt[Subject], ablations: Attempt[Ablations], matter: Attempt[pd.DataFrame]
) -> Section:
    title, found = "Ablation and additivity", ablations.value
    if found is None or subject.value is None:
        return Section(key="ablation", title=title, missing=ablations.why)
    there = subject.value
    sets = _sets(there, found, matter.value)
    costs = attempt(lambda: set_costs(there, sets))
    heads = costliest_of_last_layer(there, found)
    numbers = attempt(lambda: measured_additivity(there, heads))
    tables = [shown_table(found.heads, captions.SINGLE, captions.single(there, found))]
    downloads = [csv_link("ablation.csv", found.heads)]
    if costs.value is not None and len(costs.value):
        n_heads = there.run.config.model.n_heads
        is_layer = costs.value["set"].str.startswith("layer")
        brief = costs.value["heads"].where(~is_layer, f"all {n_heads}")
        shown = costs.value.assign(heads=brief)
        tables.append(shown_table(shown, captions.SETS, captions.sets()))
        downloads.append(csv_link("sets.csv", costs.value))
    if numbers.value is not None:
        shape, by_head = additivity_tables(numbers.value)
        tables.append(shown_table(shape, captions.ADDITIVE, captions.additive(heads)))
        tables.append(shown_table(by_head, captions.BY_HEAD, captions.by_head()))
        downloads.append(csv_link("additivity.csv", numbers.value))
    return Section(
        key="ablation",
        title=title,
        tables=tuple(tables),
        downloads=tuple(downloads),
        notes=tuple(why for why in (costs.why, numbers.why) if why),
    )


def _sets(
    subject: Subject, ablations: Ablations, matter: pd.DataFrame | None
) -> dict[str, list[str]]:
    """Return the heads of every layer that were ablated, and those of every role."""
    heads = list(ablations.heads["head"])
    layers = range(subject.run.config.model.n_layers)
    sets = {f"layer {n}": [head for head in heads if Head.parse(head).layer == n] for n in layers}
    if matter is not None:
        sets |= {f"{role} heads": members for role, members in roles(matter).items()}
    return sets


def additivity_tables(numbers: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return R squared by metric and part, and the loss's measures of single heads."""
    names = ["r_squared", "r_squared_per_sequence"]
    shape = numbers[numbers["quantity"].isin(names)].copy()
    shape["words"] = [
        f"{cell(value)} ({cell(low)} to {cell(high)})"
        for value, low, high in shape[["value", "low", "high"]].to_numpy()
    ]
    shape["metric"] = shape["metric"].str.replace("_", " ")
    index = ["metric", "part"]
    shape = shape.pivot(index=index, columns="quantity", values="words").reset_index()
    by_head = ["first_in", "last_in", "redundancy", "shapley"]
    of_loss = (numbers["metric"] == "loss") & (numbers["part"] == "total")
    rows = numbers[of_loss & numbers["quantity"].isin(by_head)]
    wide = rows.pivot_table(index="head", columns="quantity", values="value", sort=False)
    wide = wide[by_head].reset_index()
    return shape, wide


def _redundancy(subject: Attempt[Subject]) -> Section:
    title, measured = "Redundancy of the wiring", then(subject, measured_redundancy)
    table = measured.value
    if table is None or subject.value is None:
        return Section(key="redundancy", title=title, missing=measured.why)
    shown = table[table["name"].isin(["many_to_many", "fan_in", "fan_out"])].copy()
    shown["name"] = shown["name"].str.replace("_", " ")
    shown["via"] = shown["via"].map(captions.INPUTS)
    shown["interval"] = [f"{cell(a)} to {cell(b)}" for a, b in shown[["low", "high"]].to_numpy()]
    return Section(
        key="redundancy",
        title=title,
        tables=(shown_table(shown, captions.REDUNDANCY, captions.redundancy(subject.value)),),
        downloads=(csv_link("redundancy.csv", table),),
    )


def _configuration(run: Run) -> Section:
    text = configuration(run)
    return Section(
        key="configuration",
        title="Configuration",
        caption=text,
        downloads=(json_link("config.json", text),),
    )
