"""The commands on stores: ``jasper vectors`` and ``jasper texts``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from jasper_jax.cli.options import Overrides, RecipeFile, load
from jasper_jax.runtime.paths import user_path

vectors_app = typer.Typer(help="Teacher vector stores: verify them, import vectors from another system.")
texts_app = typer.Typer(help="The text store: export the texts that an imported teacher needs vectors of.")


@vectors_app.command("verify")
def vectors_verify(
    recipe: RecipeFile,
    overrides: Overrides = None,
    sample: Annotated[
        int, typer.Option(help="Texts to embed again, to measure the error of the stored dtype; 0: none.")
    ] = 256,
) -> None:
    """Verify sha256 and fingerprint of all shards of texts and vectors; print the dtype's similarity error.

    Example: `jasper vectors verify configs/quickstart.yaml`
    """
    from jasper_jax.commands.vectors import verify_vectors

    verify_vectors(load(recipe, overrides), sample)


@vectors_app.command("import")
def vectors_import(
    recipe: RecipeFile,
    teacher: Annotated[str, typer.Argument(help="The recipe's teacher that these vectors belong to.")],
    files: Annotated[
        list[str],
        typer.Argument(
            help="Parquet with text and embedding, or .npy followed by its texts (.txt, .jsonl); and changes to the"
            " recipe as key=value.",
            metavar="FILES... [OVERRIDES]...",
        ),
    ],
) -> None:
    """Import vectors that another system computed; every text of the store must have one.

    Example: `jasper vectors import configs/mine.yaml openai vectors.npy texts.jsonl run_dir=runs/mine`
    """
    from jasper_jax.commands.vectors import import_teacher

    overrides = [file for file in files if "=" in file and not Path(file).exists()]
    paths = [user_path(file) for file in files if file not in overrides]
    import_teacher(load(recipe, overrides), teacher, paths)


@texts_app.command("export")
def texts_export(
    recipe: RecipeFile,
    output: Annotated[Path, typer.Argument(help="The file to write, JSONL with text and kind.")],
    overrides: Overrides = None,
) -> None:
    """Write every text that an imported teacher needs a vector of: those of the text store and of the tests.

    Example: `jasper texts export configs/mine.yaml texts.jsonl`
    """
    from jasper_jax.commands.texts import export_texts

    export_texts(load(recipe, overrides), user_path(output, new=True), user_path(recipe, "the recipe"))
