"""The command that publishes finished work: ``jasper push``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jasper_jax.cli.options import optional_path
from jasper_jax.runtime.errors import UserError
from jasper_jax.runtime.paths import user_path
from jasper_jax.runtime.shell import shell_word

if TYPE_CHECKING:
    from jasper_jax.recipe.config import Recipe

app = typer.Typer()


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="An exported folder, such as runs/quickstart/export.")],
    name: Annotated[str, typer.Argument(help="USER/NAME on the hub.")],
    private: Annotated[
        bool, typer.Option("--private", help="Seen by its owner alone; refused if it is there and public.")
    ] = False,
    results: Annotated[
        Path | None,
        typer.Option(help="A folder of `jasper mteb`, whose scores of this export the hub then shows (extra `mteb`)."),
    ] = None,
    with_vectors: Annotated[
        bool,
        typer.Option("--with-vectors", help="Also the run's texts and teacher vectors, as the data set NAME-texts."),
    ] = False,
    stores: Annotated[
        Path | None, typer.Option("--stores", help="Where these are, if the run's recipe says another folder.")
    ] = None,
) -> None:
    """Upload an export to the Hugging Face hub, complete or not at all; the same command continues after a kill.

    Example: `jasper push runs/quickstart/export alice/my-student --private`
    """
    from jasper_jax.publishing.push import push_export
    from jasper_jax.runtime.tables import OUT

    export = user_path(folder)
    if with_vectors:
        from jasper_jax.publishing.text_data import push_texts

        recipe = _recipe(export.parent, None if stores is None else user_path(stores, "--stores"))
        OUT.print(push_texts(recipe, f"{name}-texts", private=private), markup=False, highlight=False)
    OUT.print(push_export(export, name, private=private, results=optional_path(results)), markup=False, highlight=False)


def _recipe(run: Path, stores: Path | None) -> Recipe:
    """The recipe of the run in the folder ``run``, with ``stores`` if given.

    Raises:
      UserError: ``stores`` is not given and the recipe names others than the run's own. The folder may be somebody
        else's, and would choose which texts of this machine are sent.
    """
    from jasper_jax.recipe.load import load_recipe

    recipe = load_recipe(run / "recipe.yaml", {"run_dir": run, **({} if stores is None else {"stores": stores})})
    if stores is None and recipe.stores:
        raise UserError(
            f"{run / 'recipe.yaml'}: its texts and vectors are in {recipe.stores}, outside of the run's folder; if they"
            f" are to be sent, add --stores {shell_word(recipe.stores)}"
        )
    return recipe
