"""A diagnosis as tables, each with a caption that says what was measured on what."""

import textwrap
from collections.abc import Sequence

from dim_hf.diagnostics.records import Diagnosis, ModelDiagnosis
from dim_hf.metrics.text_table import TEXT_WIDTH, render

_RISES = (
    ("Loss", lambda s: f"{s.loss:.4f}"),
    ("SAM step", lambda s: f"{s.sam_rise:+.3g}"),
    ("Worst found", lambda s: f"{s.worst_rise:+.3g}"),
    ("Random", lambda s: f"{s.random_mean:+.2g} ± {s.random_sd:.2g}"),
)


def format_diagnosis(diagnosis: Diagnosis, style: str = "markdown") -> str:
    """The numbers for reading.

    Args:
        diagnosis: what was measured.
        style: "markdown" or "text".

    Returns:
        Tables with captions.

    Raises:
        ValueError: for an unknown style.
    """
    parts = [_sharpness(diagnosis), _curvature(diagnosis), _divergence(diagnosis), _agreement(diagnosis)]
    blocks = [_names(diagnosis)]
    for title, header, lines, left, caption in filter(None, parts):
        heading = f"### {title}" if style == "markdown" else title
        if style == "text":
            caption = textwrap.fill(caption, TEXT_WIDTH)
        blocks.append(f"{heading}\n\n{render(header, lines, style, left)}\n\n{caption}")
    return "\n\n".join(blocks)


_Part = tuple[str, Sequence[str], list[list[str]], int, str]


def _names(diagnosis: Diagnosis) -> str:
    split = diagnosis.options.split
    drawn = f"the split {split!r}" if split else "all splits, images that were trained on among them"
    lines = [f"{role}: {model.name}" for role, model in diagnosis.models.items()]
    return "\n".join([*lines, f"images: drawn from {drawn}" + (f", of {diagnosis.dataset}" * bool(diagnosis.dataset))])


def _sharpness(diagnosis: Diagnosis) -> _Part:
    lines = [
        [role, domain, str(diagnosis.labeled_images[domain]), *(show(sharpness) for _, show in _RISES)]
        for role, model in diagnosis.models.items()
        for domain, sharpness in model.sharpness.items()
    ]
    options = diagnosis.options
    effort = options.effort
    ball = "adaptive (ASAM) ball" if options.adaptive else "ball"
    caption = (
        f"Rise of the supervised loss (cross-entropy + soft Dice) in the {ball} of radius {options.rho:g} around the "
        f"weights, model in evaluation mode. Worst found: a lower bound of the worst, from SAM's step, "
        f"{effort.ascent_steps} steps of projected gradient ascent after it and all random directions. Random: mean "
        f"± sd over {effort.random_directions} directions."
    )
    return "Sharpness", ["Model", "Domain", "Images", *(name for name, _ in _RISES)], lines, 2, caption


def _curvature(diagnosis: Diagnosis) -> _Part:
    header = ["Model", "Largest eigenvalue", "Residual", "Products", "Trace", "Weights"]
    lines = [[role, *_curvature_cells(model)] for role, model in diagnosis.models.items()]
    caption = (
        f"Hessian of the same loss on {diagnosis.pooled_images} images of all domains: power iteration (an eigenvalue "
        'lies within the residual of the value; "≥": not at rest after the products taken, a lower bound) and '
        "Hutchinson's estimate of the trace ± its standard error."
    )
    missing = [f"{role}: {m.eigenvalue_missing}." for role, m in diagnosis.models.items() if m.eigenvalue_missing]
    return "Curvature", header, lines, 1, " ".join([caption, *missing])


def _curvature_cells(model: ModelDiagnosis) -> list[str]:
    found = model.eigenvalue
    trace = "–" if model.trace is None else f"{model.trace[0]:.4g} ± {model.trace[1]:.2g}"
    if found is None:
        return ["–", "–", "–", trace, str(model.num_weights)]
    sign = "" if found.converged else "≥ "
    cells = [f"{sign}{found.value:.4g}", f"{found.residual:.2g}", str(found.iterations)]
    return [*cells, trace, str(model.num_weights)]


def _divergence(diagnosis: Diagnosis) -> _Part | None:
    lines = [
        [row.f_divergence, row.estimator, role, _short(row.mean), _short(_largest(row.matrix)), _within(row.within)]
        for rows in zip(*(model.divergences for model in diagnosis.models.values()), strict=True)
        for role, row in zip(diagnosis.models, rows, strict=True)
    ]
    if len(diagnosis.unlabeled_images) < 2 or not lines:
        return None
    images = ", ".join(f"{domain} {count}" for domain, count in diagnosis.unlabeled_images.items())
    caption = (
        f"Divergence of the predictions' mean class shares between domains, mean and largest over ordered pairs "
        f"(images: {images}; regional: mean over a grid of {diagnosis.options.grid_size} cells along each axis). "
        "Within: mean over domains of that between two halves of one domain's patients, which sampling alone makes."
    )
    header = ["f-divergence", "Estimator", "Model", "Mean", "Largest", "Within"]
    return "Divergence between domains", header, lines, 3, caption


def _largest(matrix: Sequence[Sequence[float]]) -> float:
    return max(max(row) for row in matrix)


def _within(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _short(sum(known) / len(known) if known else None)


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _agreement(diagnosis: Diagnosis) -> _Part | None:
    lines = [
        [
            "–" if row.step is None else str(row.step),
            row.domain,
            f"{row.agreement.pixels:.4f}",
            _dice(row.agreement.dice),
        ]
        for row in diagnosis.agreements
    ]
    if not lines:
        return None
    caption = (
        "Teacher and student of each checkpoint, both in evaluation mode, on images without masks: share of pixels "
        "with the same class, and Dice of the two label maps (mean over the classes but background)."
    )
    return "Teacher and student", ["Step", "Domain", "Pixels", "Dice"], lines, 2, caption


def _dice(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
