"""Does the recipe hold when the data are others than it was made for? A study for each variant of a data set.

python examples/robustness.py run examples/configs/study-robustness.yaml --runs runs/robustness \
  --results examples/results/robustness --dataset data/fundus --irrelevant <folder of other pictures>
python examples/robustness.py table examples/results/robustness

Few or many labels of one domain; labels of all domains, so that there is no shift; unlabeled images of one foreign
domain only; an unlabeled pool of which a fifth shows something else. Test images are the same in all of them. Run it
again after an interruption.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from dim_hf.cli.errors import user_errors

ALL_SITES = "all_sites"
IRRELEVANT = "irrelevant"
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp")
_IRRELEVANT_SHARE = 0.2

Columns = Mapping[str, Sequence[Any]]


def columns_of(rows: Any) -> dict[str, list]:
    """The columns of a manifest's rows, files by their paths."""
    from dim_hf.data.rows import column_view

    files = {}
    for name in ("image", "label"):
        values = column_view(rows, name, decode=False)[name]
        files[name] = [value and value["path"] for value in values]
    return files | {name: list(rows[name]) for name in rows.column_names if name not in files}


def check_table(rows: Any, dataset: str) -> None:
    """Refuse data that the variants cannot be made of.

    Raises:
        ValueError: naming what is missing.
    """
    if "labeled_order" not in rows.column_names:
        raise ValueError(f"{dataset} has no column labeled_order: import it with --split-file, which fixes that order")
    if "" in rows["split"] or len(set(rows["domain"])) < 2:
        raise ValueError(f"{dataset} must have two domains or more, and a split for each image")


def write_data(columns: Columns, description: Any, folder: Path) -> None:
    """A folder that `--dataset` takes."""
    from dim_hf.data.description import write_description
    from dim_hf.data.manifest import write_manifest

    folder.mkdir(parents=True, exist_ok=True)
    write_manifest(columns, folder / "manifest.csv")
    write_description(description, folder)


def pictures_in(folder: str | None) -> list[Path]:
    """Pictures in a folder and the folders in it, sorted; none without a folder."""
    return sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in _PICTURES) if folder else []


def keep(columns: Columns, wanted: Sequence[bool]) -> dict[str, list]:
    """The rows that are wanted."""
    return {
        name: [value for value, is_wanted in zip(values, wanted, strict=True) if is_wanted]
        for name, values in columns.items()
    }


def without_shift(columns: Columns) -> dict[str, list]:
    """Training images of all domains as one domain, whose labels go round the domains in their order of labeling."""
    is_train = [split == "train" for split in columns["split"]]
    domains = list(dict.fromkeys(columns["domain"]))
    places = [
        len(domains) * int(order) + domains.index(domain) if own and order is not None else None
        for own, order, domain in zip(is_train, columns["labeled_order"], columns["domain"], strict=True)
    ]

    def with_domain(column: str) -> list:
        values = zip(is_train, columns["domain"], columns[column], strict=True)
        return [f"{domain}_{value}" if own else value for own, domain, value in values]

    sites = [ALL_SITES if own else domain for own, domain in zip(is_train, columns["domain"], strict=True)]
    own = {"name": with_domain("name"), "patient": with_domain("patient"), "labeled_order": places}
    return {**columns, "domain": sites, **own}


def one_foreign(columns: Columns, labeled: str, foreign: str) -> dict[str, list]:
    """Training images of the labeled domain and of one other; test images of all."""
    pairs = zip(columns["split"], columns["domain"], strict=True)
    return keep(columns, [split != "train" or domain in (labeled, foreign) for split, domain in pairs])


def with_irrelevant(columns: Columns, pictures: Sequence[Path], num_held: int) -> dict[str, list]:
    """A fifth of the unlabeled pool becomes pictures of something else.

    Args:
        columns: of a manifest.
        pictures: to choose from, the first ones are taken.
        num_held: training images of the labeled domain that are not in the pool: labeled, or for validation.

    Raises:
        ValueError: if there are too few pictures.
    """
    pool = list(columns["split"]).count("train") - num_held
    count = round(pool * _IRRELEVANT_SHARE / (1 - _IRRELEVANT_SHARE))
    if len(pictures) < count:
        raise ValueError(f"a fifth of the pool are {count} irrelevant pictures, but only {len(pictures)} were found")
    added = {
        "image": [str(picture.absolute()) for picture in pictures[:count]],
        "domain": [IRRELEVANT] * count,
        "name": [f"{number:04d}" for number in range(count)],
        "patient": [f"{number:04d}" for number in range(count)],
        "split": ["train"] * count,
    }
    return {name: [*values, *added.get(name, [None] * count)] for name, values in columns.items()}


def paired_size(labeled: int, unlabeled: int, count: int) -> int:
    """Labeled images a step for `count` labels: the most, up to `labeled`, that can be paired with the unlabeled ones.

    >>> paired_size(8, 8, count=5)
    4
    """
    sizes = range(min(labeled, count), 0, -1)
    return next(size for size in sizes if max(size, unlabeled) % min(size, unlabeled) == 0)


def variants(
    columns: Columns, labeled: str, num_held: int, batch_sizes: tuple[int, int, int], pictures: Sequence[Path]
) -> dict[str, tuple[dict, dict]]:
    """Name → columns of the data set, fields of the job that differ.

    Args:
        columns: of the manifest.
        labeled: domain of the labels.
        num_held: its training images that are labeled or for validation.
        batch_sizes: images a step: labeled in stage 1, labeled and unlabeled in stage 2. With fewer labels than
            either, both stages take what stage 2 can do with them.
        pictures: of something else; without any, that variant is left out.
    """
    foreign = next(domain for domain in columns["domain"] if domain != labeled)
    found = {}
    for count in (5, 10, 20, 40):
        few = count < max(batch_sizes[:2])
        small = {"labeled_batch_size": paired_size(*batch_sizes[1:], count)} if few else {}
        found[f"labels-{count:02d}"] = dict(columns), {"num_labeled": count, **small}
    found["labels-of-all-domains"] = without_shift(columns), {}
    found[f"unlabeled-{foreign}-only"] = one_foreign(columns, labeled, foreign), {}
    if pictures:
        found["a-fifth-irrelevant"] = with_irrelevant(columns, pictures, num_held), {}
    return found


@click.group()
def main() -> None:
    """Run the variants, or make the table of their results."""


@main.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
@click.argument("study", type=click.Path(exists=True, dir_okay=False))
@click.option("--runs", required=True, type=click.Path(file_okay=False), help="Folder of all runs, for weights.")
@click.option("--results", required=True, type=click.Path(file_okay=False), help="Folder of the JSON files.")
@click.option("--dataset", required=True, type=click.Path(exists=True), help="Manifest, or a folder that holds one.")
@click.option("--irrelevant", type=click.Path(exists=True, file_okay=False), help="Folder of other pictures.")
@click.option("--only", multiple=True, help="Name of a variant, as its folder has it; may be given several times.")
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
def run(
    study: str,
    runs: str,
    results: str,
    dataset: str,
    irrelevant: str | None,
    only: tuple[str, ...],
    overrides: tuple[str, ...],
) -> None:
    """Run what is missing of STUDY, a YAML file as examples/configs/study-robustness.yaml, in each variant."""
    from dim_hf.data.sources import load_source
    from dim_hf.trainer.job_arguments import field_words, job_with
    from dim_hf.trainer.study import StudyRunner, load_study

    with user_errors():
        source = load_source(dataset)
        check_table(source.rows, dataset)
        plain = load_study(study, overrides)
        if len(plain.labeled_domains) != 1:
            raise ValueError(f"{study} must name one of labeled_domains, not {len(plain.labeled_domains)}")
        first, second = job_with(plain.stage1), job_with(plain.stage2)
        held = first.data.num_labeled + first.data.num_validation
        stage2 = second.training.labeled_batch_size, second.training.unlabeled_batch_size
        sizes = (first.training.labeled_batch_size, *stage2)
        found = variants(columns_of(source.rows), plain.labeled_domains[0], held, sizes, pictures_in(irrelevant))
        if "a-fifth-irrelevant" in only and not irrelevant:
            raise ValueError("the variant a-fifth-irrelevant needs --irrelevant, a folder of other pictures")
        if unknown := set(only) - set(found):
            raise ValueError(f"unknown variants {sorted(unknown)}: choose from {', '.join(found)}")
        for variant in only or found:
            rows, fields = found[variant]
            folder = Path(runs, variant)
            write_data(rows, source.description, folder / "data")
            words = [*overrides, "--dataset", str(folder / "data"), *field_words(fields)]
            own = load_study(study, words)
            domains = (ALL_SITES,) if ALL_SITES in rows["domain"] else own.labeled_domains
            own = replace(own, name=f"{own.name}: {variant}", labeled_domains=domains)
            for _, file in StudyRunner(own, folder / "runs", Path(results, variant)).run():
                click.echo(file)


@main.command()
@click.argument("results", type=click.Path(exists=True, file_okay=False))
def table(results: str) -> None:
    """Print the Markdown table of the JSON files below RESULTS."""
    from dim_hf.trainer.study_records import read_records
    from dim_hf.trainer.study_table import format_variants

    with user_errors():
        folders = sorted({file.parent for file in Path(results).glob("*/*.json")})
        click.echo(format_variants({folder.name: read_records(folder) for folder in folders}))


if __name__ == "__main__":
    main()
