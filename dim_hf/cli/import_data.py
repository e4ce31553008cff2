"""`dim-hf import`: a layout of the field becomes one manifest."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dim_hf.cli.completion import complete_layout
from dim_hf.cli.errors import user_errors
from dim_hf.cli.json_text import echo_json
from dim_hf.data.texts import printable

if TYPE_CHECKING:
    from dim_hf.data.description import DatasetDescription
    from dim_hf.data.importers.importing import ImportJob


class _LayoutHelp(click.Command):
    """Lists the layouts below the options."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the layouts, then the examples."""
        from dim_hf.data.importers.registry import LAYOUTS

        with formatter.section("Layouts"):
            formatter.write_dl([(layout.name, layout.tree) for layout in LAYOUTS.values()])
        formatter.write_paragraph()
        formatter.write_text(
            "Exit codes: 0 imported (and pushed), 1 the source cannot be read, and no manifest is written, or the "
            "push failed, 2 wrong options."
        )
        with formatter.section("Examples"):
            for line in (
                "dim-hf import drishti-gs1 downloads/Drishti-GS1 data/fundus",
                "dim-hf import rimone-dl downloads/RIM-ONE_DL data/fundus --append",
                "dim-hf import saml downloads/prostate.zip data/prostate --slices axial --test-fraction 0.2",
            ):
                formatter.write_text(line)


def _json_object(ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[str, Any] | None:
    if value is None:
        return None
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"{value!r} is no JSON ({error})") from error
    if not isinstance(parsed, dict):
        example = '{"0": 0, "255": 1}' if parameter.name == "label_map" else '{"disc": [1, 2], "cup": [2]}'
        raise click.BadParameter(f"{value!r} is no JSON object like {example}")
    return parsed


def _whole_numbers(ctx: click.Context, parameter: click.Parameter, value: str | None) -> dict[int, int] | None:
    parsed = _json_object(ctx, parameter, value)
    try:
        if parsed and not all(type(number) is int for number in parsed.values()):
            raise ValueError(value)
        return parsed and {int(key): number for key, number in parsed.items()}
    except (TypeError, ValueError) as error:
        raise click.BadParameter(f"{value!r} must map whole numbers to whole numbers") from error


@click.command(cls=_LayoutHelp)
@click.argument("layout", shell_complete=complete_layout)
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option("--append", is_flag=True, help="Add the domains to the manifest that is in OUT.")
@click.option("--domain", help="Name of the domain, for layouts that hold one.")
@click.option("--patient-pattern", help=r"Regular expression with one group that finds the patient in a file's stem.")
@click.option("--class-names", help="Names of the classes 0..K-1, with commas, where the layout states none.")
@click.option("--structures", callback=_json_object, help='Nested structures, e.g. {"disc": [1, 2], "cup": [2]}.')
@click.option("--label-map", callback=_whole_numbers, help='Value in the masks to class, e.g. {"0": 0, "255": 1}.')
@click.option("--partition", help="Which published partition counts, e.g. randomly or by_hospital of RIM-ONE DL.")
@click.option("--modality", type=click.IntRange(min=0), help="Which channel of images that have several.")
@click.option(
    "--disc-crop",
    type=click.FloatRange(min=0),
    default=1.42,
    show_default=True,
    help="drishti-gs1: side of the square about the disc, in extents of the disc; 0 keeps whole images.",
)
@click.option(
    "--slices",
    "plane",
    type=click.Choice(["auto", "axial", "coronal", "sagittal"]),
    help="Cut volumes into slices for 2D training; auto cuts across the coarsest axis.",
)
@click.option(
    "--spacing-mm",
    type=click.FloatRange(min=0, min_open=True),
    nargs=3,
    default=None,
    help="Resample volumes to this spacing (x, y, z).",
)
@click.option("--trust-image-geometry", is_flag=True, help="Label volumes take the geometry of their image.")
@click.option("--in-place", is_flag=True, help="Leave images that need no change where they are.")
@click.option(
    "--split-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="CSV with domain, source_file (or name), split and perhaps train_order: a fixed split.",
)
@click.option(
    "--test-fraction",
    type=click.FloatRange(0, 1, max_open=True),
    help="Draw this share of the patients for test in domains without a published split.",
)
@click.option("--split-seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed of that draw.")
@click.option("--skip-broken", is_flag=True, help="Leave out what cannot be read, and say so in the description.")
@click.option(
    "--format",
    "manifest_format",
    type=click.Choice(["csv", "parquet"]),
    default="csv",
    show_default=True,
    help="Format of the manifest.",
)
@click.option("--licence", help="Licence of the data, where the layout states none or another.")
@click.option("--origin", help="Where the data come from: names, addresses, citations.")
@click.option("--push-to-hub", metavar="ORG/NAME", help="Publish the data set there afterwards.")
@click.option("--private", is_flag=True, help="Publish it for yourself only.")
@click.option("--json", "as_json", is_flag=True, help="Print what was imported as one JSON object.")
@click.option("--no-progress", is_flag=True, help="Show no progress bar.")
def command(
    layout: str,
    source: Path,
    target: Path,
    push_to_hub: str | None,
    private: bool,
    as_json: bool,
    no_progress: bool,
    **options: Any,
) -> None:
    """Import SOURCE, a folder or archive in LAYOUT, into the new folder OUT.

    OUT gets a manifest (image, label, domain, patient, name, split), the images, and label maps with the classes
    0..K-1. SOURCE is only read.
    """  # fmt: skip
    from dim_hf.data.importers.importing import import_dataset
    from dim_hf.data.sources import load_source

    with user_errors():
        check = _push_check(push_to_hub) if push_to_hub else None
        manifest = import_dataset(_job(layout, source, target, options), progress=not no_progress, check=check)
        loaded = load_source(str(manifest))
        counts = _counts(loaded.rows)
        if not as_json:
            click.echo("\n".join(_sentence(domain, parts) for domain, parts in counts.items()))
            click.echo(printable(f"\n{manifest}\nNext: dim-hf doctor {target}", keep="\n"))
        address = None
        if push_to_hub:
            from dim_hf.data.hub.push import publish

            address = publish(loaded.rows, loaded.description, push_to_hub, private=private)
            if not as_json:
                click.echo(address)
        if as_json:
            echo_json({"manifest": manifest, "domains": counts, "address": address})


def _push_check(repo_id: str) -> Callable[["DatasetDescription"], None]:
    from dim_hf.data.hub.errors import check_repo_id
    from dim_hf.data.hub.push import check_description

    check_repo_id(repo_id)
    return partial(check_description, repo_id=repo_id)


def _job(layout: str, source: Path, target: Path, options: dict[str, Any]) -> "ImportJob":
    from dim_hf.data.importers.cases import ImportOptions
    from dim_hf.data.importers.importing import ImportJob
    from dim_hf.data.importers.writer import WriteOptions

    names = options.pop("class_names")
    options["class_names"] = [name.strip() for name in names.split(",")] if names else None
    options["spacing_mm"] = options["spacing_mm"] or None
    parts = {
        part: {name: options.pop(name) for name in list(options) if name in part.__dataclass_fields__}
        for part in (ImportOptions, WriteOptions)
    }
    return ImportJob(
        layout,
        source,
        target,
        find=ImportOptions(**parts[ImportOptions]),
        write=WriteOptions(**parts[WriteOptions]),
        **options,
    )


def _counts(rows: Any) -> dict[str, dict[str, int]]:
    """Images of each domain by split, and how many have a label map."""
    from collections import Counter

    from dim_hf.data.rows import is_present

    labeled = is_present(rows, "label")
    domains, splits = rows["domain"], rows["split"]
    counts = Counter(zip(domains, splits, strict=True))
    present = Counter(domain for domain, has_label in zip(domains, labeled, strict=True) if has_label)
    names = {"train": "train", "validation": "validation", "test": "test", "": "undecided"}
    return {
        domain: {names[split]: counts[domain, split] for split in names} | {"labeled": present[domain]}
        for domain in dict.fromkeys(domains)
    }


def _sentence(domain: str, counts: dict[str, int]) -> str:
    shown = ", ".join(f"{count} {part}" for part, count in counts.items() if count and part != "labeled")
    return f"{printable(domain)}: {shown}; {counts['labeled']} with a label map"
