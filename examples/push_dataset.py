"""Push a data set to the Hub: parquet with the images inside, a description and a card, in one commit.

python examples/push_dataset.py data/fundus my-lab/fundus-sites --licence cc-by-4.0 --private

DATASET is what `dim-hf train --dataset` takes: a manifest, a folder, or a phantom. The doctor looks at every file
first; what it calls an error stops the push, the rest goes into the card. Log in before, with `hf auth login`.
"""

import click

from dim_hf.cli.errors import user_errors


@click.command()
@click.argument("dataset")
@click.argument("repo_id", metavar="ORG/NAME")
@click.option("--licence", help="Licence of the data, e.g. cc-by-4.0; by default the description's.")
@click.option(
    "--source", multiple=True, help="Where the data come from (may be repeated); default as for the licence."
)
@click.option("--private", is_flag=True, help="Create a private repository.")
def main(dataset: str, repo_id: str, licence: str | None, source: tuple[str, ...], private: bool) -> None:
    """Examine DATASET and push it to ORG/NAME."""
    from dim_hf.data.hub.push import publish
    from dim_hf.data.sources import load_source

    with user_errors():
        loaded = load_source(dataset)
        url = publish(loaded.rows, loaded.description, repo_id, private=private, licence=licence, source=source)
    commit = url.rsplit("/", 1)[1]
    click.echo(f"{url}\nTrain on exactly this: dim-hf train --dataset {repo_id}@{commit}")


if __name__ == "__main__":
    main()
