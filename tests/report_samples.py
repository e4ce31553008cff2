"""Plausible cases for reports: scores of real label maps, made by shifting and scaling ellipses."""

import math
from functools import partial

import numpy as np

from dim_hf.evaluation.result import EvaluationResult, Overlay, Provenance
from dim_hf.metrics.calibration import Reliability
from dim_hf.metrics.cases import score_case
from dim_hf.metrics.summary import summarize

FUNDUS = {"disc": [1, 2], "cup": [2]}
FUNDUS_DOMAINS = {"Drishti-GS": 0.02, "RIM-ONE": 0.05, "REFUGE": 0.03, "ORIGA": 0.09}
PROSTATE = {"prostate": [1]}
PROSTATE_DOMAINS = {"BIDMC": 0.12, "BMC": 0.05, "HK": 0.04, "I2CVB": 0.14, "RUNMC": 0.04, "UCL": 0.06}


def ellipse(shape, center, radii):
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij", sparse=True)
    return sum(((g - c) / max(r, 1e-6)) ** 2 for g, c, r in zip(grid, center, radii, strict=True)) <= 1


def fundus(generator, error, size=128):
    """Image (H, W, 3) uint8, reference and prediction (H, W)."""
    center = size / 2 + generator.normal(0, size / 30, 2)
    radius = size * generator.uniform(0.24, 0.3)
    cup = radius * generator.uniform(0.4, 0.7)
    maps = []
    for noise in (0, error):
        shift = generator.normal(0, noise * radius, 2) if noise else 0
        scale = np.exp(generator.normal(0, noise, 2)) if noise else np.ones(2)
        outer = ellipse((size, size), center + shift, radius * scale * (1, 0.92))
        inner = ellipse((size, size), center + shift * 1.3, cup * scale * (1, np.exp(generator.normal(0, noise))))
        maps.append((outer.astype(np.uint8) + (inner & outer)).astype(np.uint8))
    reference, prediction = maps
    glow = np.array([0.62, 0.33, 0.15]) * generator.uniform(0.8, 1.2)
    picture = glow * (1 + 0.45 * (reference > 0)[..., None] + 0.3 * (reference > 1)[..., None])
    picture = picture + generator.normal(0, 0.03, picture.shape)
    return (255 * picture.clip(0, 1)).astype(np.uint8), reference, prediction


def prostate(generator, error, shape=(12, 72, 72)):
    """Image, reference and prediction (D, H, W)."""
    center = np.array(shape) / 2 + generator.normal(0, 1.5, 3)
    radii = np.array(shape) * generator.uniform(0.22, 0.34) * (1.3, 1, 1.15)
    reference = ellipse(shape, center, radii).astype(np.uint8)
    moved = center + generator.normal(0, error, 3) * radii
    prediction = ellipse(shape, moved, radii * np.exp(generator.normal(-error / 2, error, 3))).astype(np.uint8)
    body = ellipse(shape, np.array(shape) / 2, np.array(shape) * 0.48)
    picture = 40 + 60 * body + 45 * reference + generator.normal(0, 12, shape)
    return picture.clip(0, 255).astype(np.uint8), reference, prediction


def fundus_cases(cases=12, domains=FUNDUS_DOMAINS, size=128):
    """(domain, patient, name, image, reference, prediction) and the scores of all."""
    return _cases(partial(fundus, size=size), FUNDUS, domains, cases, None)


def prostate_cases(cases=8, domains=PROSTATE_DOMAINS):
    return _cases(prostate, PROSTATE, domains, cases, (3.0, 1.0, 1.0))


def _cases(draw, structures, domains, cases, spacing_mm):
    generator = np.random.default_rng(0)
    items, rows = [], []
    for domain, error in domains.items():
        for number in range(cases):
            image, reference, prediction = draw(generator, error)
            if error > 0.1 and number == 3:
                prediction = np.zeros_like(prediction)
            name, patient = f"case {number:02d}", f"patient {number // 2}"
            items.append((domain, patient, name, image, reference, prediction))
            about = {"domain": domain, "patient": patient, "name": name, "tolerance_mm": 2.0}
            rows += score_case(prediction, reference, structures, spacing_mm, **about)
    return items, rows


def ratios(items):
    """Vertical cup-to-disc ratios (prediction, reference) by domain."""
    found = {}
    for domain, _, _, _, reference, prediction in items:
        pair = []
        for labels in (prediction, reference):
            cup, disc = ((labels >= value).any(axis=1).sum() for value in (2, 1))
            pair.append(cup / disc if disc else math.nan)
        found.setdefault(domain, []).append(tuple(pair))
    return found


def probabilities(prediction, num_labels, generator, sharpness=2.0):
    """(K, *S) with the prediction as the most probable class."""
    shares = np.eye(num_labels)[prediction] * sharpness + generator.uniform(0, 1, (*prediction.shape, num_labels))
    shares = np.moveaxis(shares, -1, 0) * 2
    shares = np.exp(shares - shares.max(axis=0))
    return shares / shares.sum(axis=0)


def overlays(items, rows, shown=5):
    """Worst and best cases by domain, as `EvaluationResult` holds them."""
    dice = {}
    for row in rows:
        dice.setdefault((row.domain, row.name), []).append(row.dice)
    by_domain = {}
    for domain, _, name, image, reference, prediction in items:
        if reference.ndim == 3:
            at = int((reference > 0).sum(axis=(1, 2)).argmax())
            image, reference, prediction = image[at], reference[at], prediction[at]
        score = float(np.mean(dice[domain, name]))
        by_domain.setdefault(domain, []).append(Overlay(domain, name, score, image, reference, prediction))
    ranked = {domain: sorted(cases, key=lambda case: case.dice) for domain, cases in by_domain.items()}
    return {d: cases[:shown] for d, cases in ranked.items()}, {d: cases[::-1][:shown] for d, cases in ranked.items()}


def evaluation(items, rows, structures, id2label, protocol="image", labeled_domain=None, **provenance):
    """Everything that a report shows."""
    generator = np.random.default_rng(0)
    reliability = {}
    for domain, _, _, _, reference, prediction in items:
        reliability.setdefault(domain, Reliability()).update(
            probabilities(prediction, len(id2label), generator), reference
        )
    worst, best = overlays(items, rows)
    source = Provenance("runs/model", "data/set", protocol, labeled_domain=labeled_domain, **provenance)
    return EvaluationResult(
        cases=rows,
        summary=summarize(rows, protocol=protocol, labeled_domain=labeled_domain),
        reliability=reliability,
        worst=worst,
        best=best,
        ratios=ratios(items) if "cup" in structures else {},
        provenance=source,
        id2label=id2label,
        structures=structures,
        spatial_dims=3 if protocol == "volume-mm" else 2,
    )
