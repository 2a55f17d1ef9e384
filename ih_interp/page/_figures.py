"""Figures of the page in plotly: tables in, the JSON of a figure out.

Templates and colour scales are left to the page, which takes them by the reader's dark or light
mode; `meta` names the scale.
"""

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ih_interp.page.wiring import INPUTS
from ih_interp.types import Head

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#B8A800", "#3f7fd0", "#D55E00", "#CC79A7")
"""Okabe and Ito's palette without black, its blue lighter, to be seen on white and on black."""

GREY = "#8a8a8a"
"""The colour of heads that do not matter, and of known levels."""

DASHES = ("solid", "dash", "dot", "dashdot", "longdash")

LEVELS = ("dot", "dashdot", "longdash", "dash")
"""Dashes of known levels, in their order."""

LIGHT, DARK = "plotly_white", "plotly_dark"

SCALES = {
    "light": {"diverging": ["#5e3c99", "#f7f7f7", "#c75b00"], "sequential": ["#f7fbff", "#08519c"]},
    "dark": {"diverging": ["#8f7ad1", "#22262b", "#c2661b"], "sequential": ["#1b1f24", "#3a7fae"]},
}
"""Colour scales by mode; the middle of the diverging one is 0."""

Json = dict[str, Any]


def losses_figure(metrics: pd.DataFrame, gates: pd.DataFrame, levels: Mapping[str, float]) -> Json:
    """Return the loss of each split over sequences, and the gates of the clamps in a strip below.

    `levels` are known losses by name, drawn as grey lines, the first dotted.
    """
    figure = _figure()
    colours = dict(zip(dict.fromkeys(metrics["split"]), cycle(COLOURS), strict=False))
    for split, under, rows in _curves(metrics):
        name = split if under == "clamped" else f"{split}, clamps off"
        line = {"color": colours[split], "dash": _dash(under)}
        _add_line(figure, rows["sequences"], rows["loss"], name, line=line)
    end = float(metrics["sequences"].max())
    for (name, level), dash in zip(levels.items(), LEVELS, strict=False):
        _add_line(figure, [0, end], [level, level], name, line={**_level(), "dash": dash})
    figure.update_layout(xaxis_title="sequences", yaxis_title="loss (nats)", height=380)
    figure.update_yaxes(rangemode="tozero")
    if len(gates):
        _add_gates(figure, gates)
    return _json(figure)


def _add_gates(figure: Any, gates: pd.DataFrame) -> None:
    wide = gates.pivot_table(index="number", columns="sequences", values="gate").sort_index()
    names = gates.drop_duplicates("number").set_index("number")["clamp"].loc[wide.index]
    short = [f"clamp {number + 1}" for number in wide.index]
    times = wide.columns.to_numpy(dtype=float)
    width = times[1] - times[0] if len(times) > 1 else 1.0
    text = [[name] * len(times) for name in names]
    figure.add_heatmap(
        z=_rounded(wide.to_numpy()),
        x=(times + width / 2).tolist(),
        y=short,
        text=text,
        coloraxis="coloraxis",
        xaxis="x",
        yaxis="y2",
        hovertemplate="%{text}<br>%{x:,.0f} sequences: gate %{z:.2f}<extra></extra>",
    )
    share = min(0.35, 0.06 + 0.05 * len(short))
    figure.update_layout(
        height=400 + 26 * len(short),
        coloraxis={"cmin": 0, "cmax": 1, "showscale": False},
        meta={"colours": "sequential"},
        yaxis={"domain": [share + 0.1, 1]},
        yaxis2={"domain": [0, share], "autorange": "reversed", "title": {"text": ""}},
        xaxis={"anchor": "y2"},
    )


def compared_losses_figure(metrics: pd.DataFrame, guesses: Iterable[float]) -> Json:
    """Return the losses of several runs, a colour per run; `meta` says each curve's split.

    `guesses` are losses of even guesses, drawn as dotted lines, which are of no split.
    """
    figure, splits = _figure(), list(dict.fromkeys(metrics["split"]))
    colours = dict(zip(dict.fromkeys(metrics["run"]), cycle(COLOURS), strict=False))
    for run, of_run in metrics.groupby("run", sort=False):
        for split, under, rows in _curves(of_run):
            name = str(run) if under == "clamped" else f"{run}, clamps off"
            look = {"line": {"color": colours[run], "dash": _dash(under)}, "meta": split}
            look["visible"] = split == splits[0]
            _add_line(figure, rows["sequences"], rows["loss"], name, **look)
    end = float(metrics["sequences"].max())
    for level in guesses:
        _add_line(figure, [0, end], [level, level], "even guess", line=_level())
    figure.update_layout(xaxis_title="sequences", yaxis_title="loss (nats)", height=460)
    figure.update_yaxes(rangemode="tozero")
    return _json(figure)


def scores_figure(scores: pd.DataFrame, matter: Sequence[str]) -> Json:
    """Return every head's scores over sequences, a dash per layer.

    Heads that matter are thick and coloured, others grey; where none matters, all have colours. The
    curves of one score are shown at a time; `meta` says which each belongs to.
    """
    figure, names = _figure(), list(dict.fromkeys(scores["score"]))
    heads = sorted(set(scores["name"]), key=Head.parse)
    colours = dict(zip(matter or heads, cycle(COLOURS), strict=False))
    for score, rows in scores.groupby("score", sort=False):
        shown = score == names[0]
        for name in heads:
            dash, curve = DASHES[Head.parse(name).layer % 5], rows[rows["name"] == name]
            line = {"color": colours.get(name, GREY), "dash": dash}
            look: Json = {"line": {**line, "width": 2.6 if name in matter else 1.2}}
            look |= {"meta": score, "visible": shown, "opacity": 1 if name in matter else 0.45}
            _add_line(figure, curve["sequences"], curve["value"], name, **look)
        ends = [float(rows["sequences"].min()), float(rows["sequences"].max())]
        level, look = [float(rows["chance"].iloc[0])] * 2, {"meta": score, "visible": shown}
        _add_line(figure, ends, level, "chance", line=_level(), **look)
    figure.update_layout(xaxis_title="sequences", yaxis_title=names[0], height=500)
    return _json(figure)


def wiring_figure(wiring: pd.DataFrame, unit: str) -> Json:
    """Return the map of edges at the last checkpoint, and `frames`, those of all checkpoints.

    `frames` holds, by pair of layers and by input, a map of receivers by senders per checkpoint.
    """
    frames: Json = {}
    layers = wiring[["sender", "receiver"]].map(lambda name: Head.parse(name).layer)
    steps = sorted(set(wiring["step"]))
    for (low, high), rows in wiring.groupby([layers["sender"], layers["receiver"]]):
        reach = float(rows["use"].abs().max()) or 1.0
        pair: Json = {"name": f"layer {low} to layer {high}", "reach": reach, "via": {}}
        for via, of_input in rows.groupby("via", sort=False):
            maps = [_map(of_input[of_input["step"] == step]) for step in steps]
            pair["via"][via] = [_rounded(each.to_numpy()) for each in maps]
            pair |= {"senders": list(maps[0].columns), "receivers": list(maps[0].index)}
        frames[f"{low}-{high}"] = pair
    first = next(iter(frames.values()))
    via = "k" if "k" in first["via"] else next(iter(first["via"]))
    figure = _figure()
    figure.add_heatmap(
        z=first["via"][via][-1],
        x=first["senders"],
        y=first["receivers"],
        coloraxis="coloraxis",
        texttemplate="%{text}",
        hovertemplate="%{x} to %{y}: %{z:.3r}<extra></extra>",
    )
    reach = first["reach"]
    bar = {"title": {"text": unit, "side": "right"}, "thickness": 14}
    figure.update_layout(
        coloraxis={"cmin": -reach, "cmax": reach, "colorbar": bar},
        meta={"colours": "diverging"},
        height=120 + 34 * len(first["receivers"]),
    )
    figure.update_xaxes(title="sender", type="category")
    figure.update_yaxes(title="receiver", type="category", autorange="reversed")
    sequences = [int(wiring.loc[wiring["step"] == step, "sequences"].iloc[0]) for step in steps]
    inputs = {via: INPUTS[via] for via in first["via"]}
    given = {"frames": frames, "steps": steps, "sequences": sequences}
    return {**_json(figure), **given, "inputs": inputs, "input": via}


def pattern_figure() -> Json:
    """Return an empty map of queries by keys, which the page fills."""
    figure = _figure()
    figure.add_heatmap(
        z=[[None]],
        coloraxis="coloraxis",
        hovertemplate="query %{y}<br>attends to key %{x}<br>weight %{z:.4f}<extra></extra>",
    )
    bar = {"title": {"text": "attention weight", "side": "right"}, "thickness": 14}
    figure.update_layout(
        coloraxis={"cmin": 0, "cmax": 1, "colorbar": bar},
        meta={"colours": "sequential"},
        height=480,
    )
    figure.update_xaxes(title="key", type="category", showgrid=False)
    figure.update_yaxes(title="query", type="category", autorange="reversed", showgrid=False)
    return _json(figure)


def packed(weights: Float[Tensor, "*axes query key"]) -> str:
    """Return attention weights up to each query, as 16 bits each, low byte first, in base64.

    A weight w is written as round(w * 65,535); keys after the query are left out.
    """
    array = weights.double().clamp(0, 1).numpy()
    rows, columns = np.tril_indices(array.shape[-1])
    numbers = np.rint(array[..., rows, columns] * 65_535).astype("<u2")
    return base64.b64encode(numbers.tobytes()).decode()


def templates() -> Json:
    """Return plotly's templates of both modes, on the page's own ground."""
    import plotly.io as pio

    found: Json = {}
    for mode, name in (("light", LIGHT), ("dark", DARK)):
        template = json.loads(json.dumps(pio.templates[name].to_plotly_json()))
        clear = "rgba(0,0,0,0)"
        grey = {"bgcolor": clear, "color": "#8a8a8a", "activecolor": "#3f7fd0"}
        template["layout"] |= {"paper_bgcolor": clear, "plot_bgcolor": clear, "modebar": grey}
        found[mode] = template
    return found


def _figure() -> Any:
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        template=go.layout.Template(),
        margin={"l": 60, "r": 20, "t": 36, "b": 50},
        legend={"orientation": "h", "y": -0.2, "yanchor": "top", "x": 0},
    )
    return figure


def _json(figure: Any) -> Json:
    found = json.loads(figure.to_json())
    return {"data": found["data"], "layout": found["layout"]}


def _add_line(figure: Any, x: Any, y: Any, name: str, **look: Any) -> None:
    hover = "%{x:,.0f} sequences: %{y:.4f}"
    points = {"x": [int(value) for value in x], "y": _rounded(np.asarray(y, dtype=float))}
    figure.add_scatter(**points, mode="lines", name=name, hovertemplate=hover, **look)


def _level() -> Json:
    return {"color": GREY, "dash": "dot", "width": 1.2}


def _dash(under: str) -> str:
    return "solid" if under == "clamped" else "dot"


def _curves(metrics: pd.DataFrame) -> list[tuple[str, str, pd.DataFrame]]:
    """Return the rows of every split, as clamped and free, in order of appearance."""
    if "under" not in metrics:
        metrics = metrics.assign(under="clamped")
    groups = metrics.groupby(["split", "under"], sort=False)
    return [(str(split), str(under), rows) for (split, under), rows in groups]


def _map(rows: pd.DataFrame) -> pd.DataFrame:
    wide = rows.pivot_table(index="receiver", columns="sender", values="use")
    return wide.loc[sorted(wide.index, key=Head.parse), sorted(wide.columns, key=Head.parse)]


def _rounded(values: Float[np.ndarray, "*shape"]) -> list[Any]:
    """Return numbers with five digits after the point, None where they are not finite."""
    rounded = np.round(np.asarray(values, dtype=float), 5).astype(object)
    rounded[~np.isfinite(np.asarray(values, dtype=float))] = None
    return rounded.tolist()
