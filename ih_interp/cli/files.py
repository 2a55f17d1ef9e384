"""Commands about files: `features`, `clean`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ih_interp.cli._shared import (
    Json,
    Plugins,
    echo_json,
    echo_table,
    grouped,
    load_plugins,
    size,
    told_in_words,
)

if TYPE_CHECKING:
    from ih_interp.tasks.exemplars import Exemplars


def features(
    source: Annotated[
        Path,
        typer.Argument(
            help="A file of features (.h5, .npz or .npy), or the folder of Omniglot's images, "
            "which are downloaded where they are missing."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="The file to write, .npz; needed for images.")
    ] = None,
    network: Annotated[
        Literal["resnet18", "squeezenet1_1"],
        typer.Option(help="Images: the network, resnet18 as in the paper."),
    ] = "resnet18",
    n_exemplars: Annotated[
        int, typer.Option("--exemplars", help="Images: how many per character, 1 to 20.")
    ] = 5,
    dataset: Annotated[
        str | None, typer.Option(help="Files: the name of the array, where there are several.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make features of images, or tell what a file holds.

    With --out, features of a file are checked and written as .npz.
    """
    with told_in_words():
        place = _place(source, out)
        from ih_interp.tasks.exemplars import Exemplars

        if source.expanduser().is_file():
            found = Exemplars.load(source, dataset)
        else:
            found = Exemplars.omniglot(source, n_exemplars, network=network)
        if place is not None:
            found = found.save(place)
        facts = _facts(found)
        if as_json:
            echo_json(facts)
        else:
            echo_table(("", ""), [(f"{name}:", str(value)) for name, value in facts.items()])


def _place(source: Path, out: Path | None) -> Path | None:
    """Return where features go; ValueError before anything is computed that could not be saved."""
    is_file = source.suffix in (".h5", ".npz", ".npy")
    if not is_file and source.expanduser().is_file():
        raise ValueError(f"{source}: expected features, .h5, .npz or .npy, or a folder of images.")
    if is_file and not source.expanduser().is_file():
        raise FileNotFoundError(f"There is no feature file at {source}.")
    if out is None and not is_file:
        raise ValueError(f"{source} is a folder of images: say where features go, --out x.npz.")
    if out is not None and out.suffix != ".npz":
        raise ValueError(f"--out {out}: expected a name that ends in .npz.")
    return out


def _facts(exemplars: "Exemplars") -> dict[str, Any]:
    """Return what a file of features holds."""
    n_classes, n_exemplars, n_features = exemplars.features.shape
    norms = exemplars.features.double().norm(dim=-1)
    return {
        "path": getattr(exemplars.source, "path", None),
        "dataset": getattr(exemplars.source, "dataset", None),
        "classes": n_classes,
        "exemplars": n_exemplars,
        "features": n_features,
        "mean_norm": round(float(norms.mean()), 4),
        "sha256": exemplars.sha256,
    }


def clean(
    root: Annotated[Path, typer.Argument(help="A folder of runs.")] = Path("runs"),
    yes: Annotated[bool, typer.Option("--yes", help="Delete; otherwise it is only told.")] = False,
    graphs: Annotated[
        bool, typer.Option("--graphs", help="Compiled graphs too, which all folders of runs share.")
    ] = False,
    plugins: Plugins = None,
    as_json: Json = False,
) -> None:
    """Tell, or with --yes delete, what no number needs.

    That is the saved state of finished runs, which only more sequences need, what interrupted
    writes left, and compiled graphs. Runs that are being trained are left alone, and so are states
    of runs that cannot be read, for example without the module of their clamps.
    """
    with told_in_words():
        load_plugins(plugins)
        from ih_interp.training.cleaning import clean as find_or_delete

        found = find_or_delete(root, yes=yes, graphs=graphs)
        n_bytes = sum(item.bytes for item in found.items)
        if as_json:
            items = [item._asdict() for item in found.items]
            left = {str(folder): why for folder, why in found.left.items()}
            echo_json({"deleted": yes, "bytes": n_bytes, "items": items, "left": left})
            return
        rows = [(size(item.bytes), str(item.path), item.why) for item in found.items]
        if rows:
            echo_table(("size", "path", "what it is"), rows)
        for names, why in grouped(found.left.items(), root):
            typer.echo(f"left alone: {names}: {why}")
        if yes:
            typer.echo(f"{size(n_bytes)} deleted.")
        elif rows:
            typer.echo(f"{size(n_bytes)} can be deleted: the same command with --yes does it.")
        else:
            typer.echo("Nothing can be deleted.")
