"""The card of a published data set: what it holds, how to load it, under which licence, with which faults."""

import gzip
import io
import re
import shlex
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from datasets.info import DatasetInfosDict
from huggingface_hub import DatasetCardData

from dim_hf.data.description import DatasetDescription
from dim_hf.data.hub.files import DATA_FOLDER, UNDECIDED, Part, config_names
from dim_hf.data.images import FORMATS
from dim_hf.data.rows import column_view, is_present

TEMPLATE = Path(__file__).with_name("dataset_card.md.jinja")
TAGS = ("dim-hf", "medical", "semi-supervised", "domain-generalization")
# Identifiers that the Hub knows; any other licence is "other" with a name.
LICENCES = (
    *(
        f"cc-by{kind}-{version}"
        for kind in ("", "-sa", "-nc", "-nd", "-nc-sa", "-nc-nd")
        for version in ("3.0", "4.0")
    ),
    *("cc0-1.0", "mit", "apache-2.0", "bsd-3-clause", "bsd-2-clause", "gpl-3.0", "lgpl-3.0", "pddl", "odbl", "odc-by"),
    *("cdla-permissive-2.0", "cdla-permissive-1.0", "cdla-sharing-1.0", "gfdl", "unlicense"),
)
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_URL = re.compile(r"https?://[^\s<>|\"'`\\]+[^\s<>|\"'`\\.,;:)\]]")
_SHOWN_SIZES = 5


@dataclass(frozen=True)
class Count:
    """Images, images with a label map, and patients ("unknown" where one has no name) of one configuration's split."""

    domain: str
    config: str
    split: str
    images: int
    labeled: int
    patients: int | str


def markdown(value: object) -> str:
    r"""Text as one line of Markdown that shows it as it is, fit for a table; addresses become links.

    >>> markdown("a|b\n<b>*c*</b>")
    'a\\|b &lt;b&gt;\\*c\\*&lt;/b&gt;'
    >>> markdown("see https://example.org/a_b.")
    'see <https://example.org/a_b>.'
    """
    text = " ".join(str(value).split())
    pieces, end = [], 0
    for match in _URL.finditer(text):
        pieces += [_escape(text[end : match.start()]), f"<{match[0]}>"]
        end = match.end()
    return "".join([*pieces, _escape(text[end:])])


def _escape(text: str) -> str:
    text = re.sub(r"([\\`*_{}\[\]#|~$!])", r"\\\1", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def render_card(
    rows: datasets.Dataset,
    description: DatasetDescription,
    repo_id: str,
    parts: Sequence[Part],
    faults: Sequence[str] = (),
    *,
    download_bytes: Mapping[str, int] | None = None,
) -> str:
    """README.md of a data set: front matter and text.

    Args:
        rows: Rows without obstacles (see `files.find_obstacles`); of the images, headers are read.
        description: Classes, licence, source and the like; every text of it is escaped.
        repo_id: `org/name`.
        parts: The written files, as `files.write_parts` gives them.
        faults: What is known to be wrong with the data.
        download_bytes: Size of each configuration's files in bytes.
    """
    import jinja2

    counts = count_rows(rows)
    domains = config_names(rows["domain"])
    first = next(iter(domains))
    plain = re.fullmatch(r"[\w .()+-]+", first) is not None
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=False, keep_trailing_newline=True)
    environment.filters["md"] = markdown
    body = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        description=description,
        counts=counts,
        total=_total(counts),
        domains=domains,
        columns=rows.column_names,
        sizes=describe_sizes(rows),
        spacings=describe_spacings(rows),
        undecided=sum(not split for split in rows["split"]),
        undecided_split=UNDECIDED,
        labeled_domain=f" --labeled_domain {shlex.quote(first)}" if plain else "",
        faults=list(faults),
    )
    return f"---\n{_front_matter(rows, description, repo_id, parts, download_bytes or {})}\n---\n\n{body}"


def count_rows(rows: datasets.Dataset) -> list[Count]:
    """Counts by configuration and split, sorted as the files are; rows of no split count where their files are."""
    configs = config_names(rows["domain"])
    table = rows.select_columns(["domain", "split", "patient"]).with_format(None)[:]
    groups: dict[tuple[str, str], list[tuple[str, bool]]] = defaultdict(list)
    labels = is_present(rows, "label")
    for domain, split, patient, label in zip(*table.values(), labels, strict=True):
        groups[domain, split or UNDECIDED].append((patient, bool(label)))
    counts = []
    for domain, config in configs.items():
        for split in ("train", "validation", "test"):
            cases = groups.get((domain, split))
            if cases:
                patients = {patient for patient, _ in cases}
                number = "unknown" if "" in patients else len(patients)
                counts.append(Count(domain, config, split, len(cases), sum(label for _, label in cases), number))
    return counts


def _total(counts: Sequence[Count]) -> Count:
    # A patient may be in two splits of a domain where a published split goes by image: no sum is given.
    return Count("", "", "", sum(count.images for count in counts), sum(count.labeled for count in counts), "")


def describe_sizes(rows: datasets.Dataset) -> list[str]:
    """Sizes of the images in pixels (columns × rows) or voxels (x × y × z), the most frequent first; no pixel is read.

    A file without a readable header is counted as such.
    """
    feature = rows.features["image"]
    shape = getattr(feature, "shape", None)
    if shape is not None:
        return [f"arrays of shape {tuple(shape)}: {len(rows)}"]
    reader = _HEADERS.get(type(feature).__name__)
    if reader is None:
        return []
    found = Counter(_shape(reader, value["image"]) for value in column_view(rows, "image", decode=False))
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"{' × '.join(map(str, size)) or 'unreadable'}: {count}" for size, count in ordered]
    if len(lines) <= _SHOWN_SIZES:
        return lines
    by_axis = list(zip(*(size for size in found if size), strict=False))
    span = " × ".join(f"{min(axis)}–{max(axis)}" for axis in by_axis)
    return [*lines[:_SHOWN_SIZES], f"{len(lines) - _SHOWN_SIZES} further sizes; all within {span}"]


def _shape(reader: Callable[[io.BufferedIOBase], tuple[int, ...]], value: dict) -> tuple[int, ...]:
    try:
        with io.BytesIO(value["bytes"]) if value["bytes"] is not None else open(value["path"], "rb") as file:
            return reader(file)
    except Exception:  # headers fail in as many ways as there are formats, and the doctor has named the file
        return ()


def _picture_size(file: io.BufferedIOBase) -> tuple[int, ...]:
    import PIL.Image

    with PIL.Image.open(file, formats=FORMATS) as image:
        return image.size


def _volume_size(file: io.BufferedIOBase) -> tuple[int, ...]:
    from nibabel import Nifti1Header, Nifti2Header

    compressed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    with gzip.GzipFile(fileobj=file) if compressed else file as content:
        start = content.read(Nifti2Header.sizeof_hdr)
    kind = Nifti2Header if 540 in (int.from_bytes(start[:4], order) for order in ("little", "big")) else Nifti1Header
    # Unchecked: the doctor has the word on unusual headers.
    return tuple(map(int, kind(start[: kind.sizeof_hdr], check=False).get_data_shape()))


_HEADERS: dict[str, Callable[[io.BufferedIOBase], tuple[int, ...]]] = {"Image": _picture_size, "Nifti": _volume_size}


def describe_spacings(rows: datasets.Dataset) -> list[str]:
    """Least and largest spacing of each axis in millimetres, in one line, where the rows state it."""
    if "spacing_mm" not in rows.column_names:
        return []
    stated = [tuple(spacing) for spacing in rows.with_format(None)["spacing_mm"] if spacing]
    lines = []
    for dims in sorted({len(spacing) for spacing in stated}):
        axes = zip(*(spacing for spacing in stated if len(spacing) == dims), strict=True)
        span = " × ".join(f"{min(a):.4g}" if min(a) == max(a) else f"{min(a):.4g}–{max(a):.4g}" for a in axes)
        lines.append(f"spacing along the {dims} axes in mm: {span}")
    without = len(rows) - len(stated)
    return lines + ([f"spacing is unknown for {without} of {len(rows)}"] if without else [])


def _front_matter(
    rows: datasets.Dataset,
    description: DatasetDescription,
    repo_id: str,
    parts: Sequence[Part],
    download_bytes: Mapping[str, int],
) -> str:
    data = DatasetCardData(
        **licence_fields(description.licence),
        pretty_name=repo_id.split("/")[-1],
        task_categories=["image-segmentation"],
        tags=[*TAGS, *(["3d"] if description.spatial_dims == 3 else [])],
        size_categories=next((name for limit, name in _SIZES if len(rows) < limit), "n>1M"),
    )
    by_config: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        by_config[part.config].append(part)
    infos = {
        config: _info(rows.features, own, download_bytes.get(config, 0)) for config, own in sorted(by_config.items())
    }
    DatasetInfosDict(infos).to_dataset_card_data(data)
    data["configs"] = [{"config_name": config, "data_files": _data_files(own)} for config, own in by_config.items()]
    return data.to_yaml()


def _data_files(parts: Iterable[Part]) -> list[dict[str, str]]:
    return [{"split": part.split, "path": f"{DATA_FOLDER}/{part.config}/{part.split}-*.parquet"} for part in parts]


def _info(features: datasets.Features, parts: Sequence[Part], download_bytes: int) -> datasets.DatasetInfo:
    splits = {part.split: datasets.SplitInfo(part.split, part.num_bytes, part.num_rows) for part in parts}
    return datasets.DatasetInfo(
        features=features,
        splits=datasets.SplitDict(splits),
        download_size=download_bytes,
        dataset_size=sum(part.num_bytes for part in parts),
    )


def licence_fields(licence: str) -> dict[str, Any]:
    """The front matter's fields for a licence: the Hub's identifier, or "other" with a name and perhaps a link.

    >>> licence_fields("CC BY-NC-SA 4.0")
    {'license': 'cc-by-nc-sa-4.0'}
    >>> licence_fields("Research use only, see https://example.org/terms")
    {'license': 'other', 'license_name': 'research-use-only-see', 'license_link': 'https://example.org/terms'}
    """
    identifier = "-".join(re.findall(r"[a-z0-9.]+", licence.lower()))
    if identifier in LICENCES:
        return {"license": identifier}
    link = _URL.search(licence)
    words = "-".join(re.findall(r"[a-z0-9.]+", _URL.sub("", licence).lower()))
    fields = {"license": "other", "license_name": words[:60].strip("-.") or "other"}
    return fields | ({"license_link": link[0]} if link else {})
