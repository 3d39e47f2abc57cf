"""`featurewatch export`."""

import json
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer
from safetensors.numpy import load_file

from featurewatch.service.cli import base, complete
from featurewatch.service.cli.arguments import Family, Name, checkpoint_option
from featurewatch.service.cli.command import command, fields
from featurewatch.service.client import Client
from featurewatch.service.dictionaries import layouts
from featurewatch.service.dictionaries.folding import fold
from featurewatch.service.kit import extras

_TABLES = ("verdicts", "sources", "features")
app = typer.Typer(name="export", help="Export data for other tools.", no_args_is_help=True)


@command(app, "codes", fields())
def export_codes(
    client: Client,
    family: Family,
    checkpoint: Annotated[str | None, checkpoint_option("Up to this checkpoint; default: the newest.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write, .npz.")] = Path("codes.npz"),
) -> dict[str, Any]:
    """Save the sparse code (positions x features) for scipy.sparse.load_npz, with a text file of the column ids."""
    names = output.with_suffix(".ids.txt")
    with base.writing(output):
        ids = client.code_ids(family, checkpoint=checkpoint)
        client.download_codes(family, output, checkpoint=checkpoint)
        names.write_text("\n".join(ids) + "\n", encoding="utf-8")
    return {"codes": str(output), "ids": str(names), "features": len(ids), "bytes": output.stat().st_size}


def _show_sizes(sizes: dict[str, int]) -> None:
    base.show_fields((path, f"{size:,} bytes") for path, size in sizes.items())


@command(app, "parquet", _show_sizes)
def export_parquet(
    client: Client,
    family: Family,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write to.")],
) -> dict[str, int]:
    """Save the family's tables: verdicts.parquet (the trajectory of every feature), sources.parquet (the same at each
    hook point) and features.parquet (labels, tags, tokens). The metadata of a column gives its unit."""
    with base.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        paths = [client.download_table(family, name, folder / f"{name}.parquet") for name in _TABLES]
    return {str(path): path.stat().st_size for path in paths}


@command(app, "neuronpedia", fields())
def export_neuronpedia(
    client: Client,
    family: Family,
    checkpoint: Annotated[
        str | None, checkpoint_option("Features in this checkpoint; default: the newest judged.")
    ] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("neuronpedia"),
    passages: Annotated[int, typer.Option(help="Number of passages per feature.", min=0, max=16)] = 10,
) -> dict[str, Any]:
    """Save each feature as a JSON file, `42.json` for F42, in the format of Neuronpedia's feature API."""
    count = 0
    with base.writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for feature in client.neuronpedia(family, checkpoint=checkpoint, passages=passages):
            text = json.dumps(feature, ensure_ascii=False)
            (out / f"{int(feature['index'])}.json").write_text(text + "\n", encoding="utf-8")
            count += 1
    return {"folder": str(out), "features": count}


@command(app, "dictionary", fields())
def export_dictionary(
    client: Client,
    family: Family,
    name: Name,
    hook_point: Annotated[str | None, typer.Option(help="Hook point; default: the only one.")] = None,
    layout: Annotated[
        str,
        typer.Option(
            help="saelens, or dictionary-learning (needs torch).", autocompletion=complete.words(*layouts.LAYOUTS)
        ),
    ] = "saelens",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write to; default: named after its contents.")
    ] = None,
) -> dict[str, Any]:
    """Save what a checkpoint reads and writes for each feature at one hook point as a sparse autoencoder on its raw
    activations, in a folder that SAELens or dictionary_learning can load. Feature ids are in feature_ids.txt."""
    if layout not in layouts.LAYOUTS:
        raise base.UsageError(f"unknown layout {layout!r}; choose {' or '.join(layouts.LAYOUTS)}")
    with tempfile.TemporaryDirectory() as temporary:
        checkpoint = client.checkpoint(family, name)
        file = client.download_dictionary(family, name, Path(temporary) / "source.safetensors", hook_point=hook_point)
        folded = fold(load_file(file))
        ids = client.code_ids(family, checkpoint=name)
    hook = hook_point or checkpoint["hook_points"][0]
    about = {"model": checkpoint["uri"], "family": family, "checkpoint": name, "hook_point": hook}
    folder = out or Path(f"{family}-{name}-{hook}-{layout}")
    try:
        with base.writing(folder):
            files = [path.name for path in layouts.write(folder, layout, folded, ids, about)]
    except layouts.NeedsTorchError as error:
        raise base.UsageError(f"{layout} needs torch: {extras.install('worker')}") from error
    return {"folder": str(folder), "features": len(ids), "d_model": len(folded.b_dec), "files": files}
