"""`featurewatch export`."""

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer
from safetensors.numpy import load_file

from featurewatch.service.cli import base, complete
from featurewatch.service.cli.base import AsJson
from featurewatch.service.cli.checkpoints import Family, Name
from featurewatch.service.dictionaries import layouts
from featurewatch.service.dictionaries.folding import fold
from featurewatch.service.kit import extras

_TABLES = ("verdicts", "sources", "features")
export_app = typer.Typer(help="Export data for other tools.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    """Add these commands to the main one."""
    app.add_typer(export_app, name="export")


@export_app.command("codes")
def export_codes(
    family: Family,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Up to this checkpoint; default: the newest.", autocompletion=complete.checkpoints),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .npz.")] = Path("codes.npz"),
    as_json: AsJson = False,
) -> None:
    """Save the sparse code (positions x features) for scipy.sparse.load_npz, and the column ids beside it."""
    names = output.with_suffix(".ids.txt")
    with base.connect() as client, base.writing(output):
        ids = client.code_ids(family, checkpoint=checkpoint)
        client.download_codes(family, output, checkpoint=checkpoint)
        names.write_text("\n".join(ids) + "\n", encoding="utf-8")
    made = {"codes": str(output), "ids": str(names), "features": len(ids), "bytes": output.stat().st_size}
    base.show_json(made) if as_json else base.show_fields(made.items())


@export_app.command("parquet")
def export_parquet(
    family: Family,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")],
    as_json: AsJson = False,
) -> None:
    """Save the family's tables: verdicts.parquet (every feature's trajectory), sources.parquet (the same at each hook
    point) and features.parquet (labels, tags, tokens). Columns have their units in their metadata."""
    with base.connect() as client, base.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        made = {name: client.download_table(family, name, folder / f"{name}.parquet") for name in _TABLES}
    sizes = {str(path): path.stat().st_size for path in made.values()}
    base.show_json(sizes) if as_json else base.show_fields((path, f"{size:,} bytes") for path, size in sizes.items())


@export_app.command("neuronpedia")
def export_neuronpedia(
    family: Family,
    checkpoint: Annotated[
        str | None,
        typer.Option(help="Its features; default: the newest that is judged.", autocompletion=complete.checkpoints),
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("neuronpedia"),
    passages: Annotated[int, typer.Option(help="Passages of each feature.", min=0, max=16)] = 10,
    as_json: AsJson = False,
) -> None:
    """Save each feature as a JSON file, `42.json` for F42, in the shape of Neuronpedia's feature API."""
    count = 0
    with base.connect() as client, base.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for feature in client.neuronpedia(family, checkpoint=checkpoint, passages=passages):
            text = json.dumps(feature, ensure_ascii=False)
            (out / f"{int(feature['index'])}.json").write_text(text + "\n", encoding="utf-8")
            count += 1
    made = {"folder": str(out), "features": count}
    base.show_json(made) if as_json else base.show_fields(made.items())


@export_app.command("dictionary")
def export_dictionary(
    family: Family,
    name: Name,
    hook_point: Annotated[str | None, typer.Option(help="Of which hook point; default: the only one.")] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="saelens, or dictionary-learning (needs torch).", autocompletion=complete.words(*layouts.LAYOUTS)
        ),
    ] = "saelens",
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder to write to; default: named by it.")] = None,
    as_json: AsJson = False,
) -> None:
    """Save what a checkpoint reads and writes for each feature at one hook point as a sparse autoencoder on its raw
    activations, in a folder that SAELens or dictionary_learning loads. Feature ids are in feature_ids.txt."""
    if layout not in layouts.LAYOUTS:
        raise base.UsageError(f"there is no layout {layout!r}; choose {' or '.join(layouts.LAYOUTS)}")
    with tempfile.TemporaryDirectory() as place, base.connect() as client:
        checkpoint = client.checkpoint(family, name)
        file = client.download_dictionary(family, name, Path(place) / "source.safetensors", hook_point=hook_point)
        folded = fold(load_file(file))
        ids = client.code_ids(family, checkpoint=name)
    hook = hook_point or checkpoint["hook_points"][0]
    about = {"model": checkpoint["uri"], "family": family, "checkpoint": name, "hook_point": hook}
    folder = out or Path(f"{family}-{name}-{hook}-{layout}")
    try:
        with base.writing(folder):
            files = layouts.write(folder, layout, folded, ids, about)
    except layouts.NeedsTorchError as error:
        raise base.UsageError(f"{layout} needs torch: {extras.install('worker')}") from error
    made = {"folder": str(folder), "features": len(ids), "d_model": len(folded.b_dec),
            "files": [path.name for path in files]}  # fmt: skip
    base.show_json(made) if as_json else base.show_fields(made.items())
