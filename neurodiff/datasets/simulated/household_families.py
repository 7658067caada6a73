"""Household things: how named shape factors become parts and words.

The conventions are those of :mod:`~.family`: loose units, y up, front towards +z, and no part
thinner than 0.07 of the finished unit cube.
"""

from __future__ import annotations

import math

from neurodiff.datasets.simulated.family import (
    Factors,
    Family,
    between,
    sentence,
    word,
)
from neurodiff.datasets.simulated.shapes import (
    Part,
    box,
    cone,
    cylinder,
    ellipsoid,
    lathe,
    prism,
    tilted,
    torus,
)


def _lamp(f: Factors) -> list[Part]:
    base = between(f["base_width"], 0.13, 0.27)
    stem = between(f["stem_height"], 0.22, 0.60)
    body = between(f["body_width"], 0.045, 0.16)
    shade = between(f["shade_width"], 0.20, 0.36)
    height = between(f["shade_height"], 0.20, 0.38)
    top = shade * between(f["shade_taper"], 1.0, 0.35)
    return [
        cylinder((0.0, 0.045, 0.0), base, 0.09, round=0.015),
        cylinder((0.0, (stem + 0.2) / 2, 0.0), 0.042, stem + 0.1),
        ellipsoid((0.0, 0.07 + stem * 0.4, 0.0), (body, stem * 0.42, body)),
        cone((0.0, 0.08 + stem + height / 2, 0.0), shade, top, height),
    ]


def _describe_lamp(f: Factors) -> str:
    return sentence(
        "lamp",
        word(f["stem_height"], "short", "tall"),
        having=(
            " ".join(
                part
                for part in (
                    "a",
                    word(f["shade_width"], "narrow", "wide"),
                    word(f["shade_height"], "shallow", "deep"),
                    word(f["shade_taper"], "straight shade", "pointed shade", "tapered shade"),
                )
                if part
            ),
            word(f["body_width"], "a thin stem", "a round body", "a slender body"),
            word(f["base_width"], "a small foot", "a broad foot"),
        ),
    )


def _mug(f: Factors) -> list[Part]:
    height = between(f["height"], 0.48, 0.98)
    wall = between(f["wall_thickness"], 0.08, 0.13)
    lean = between(f["taper"], -0.075, 0.075)  # rim minus foot radius, halved
    low, high = 0.30 - lean, 0.30 + lean
    tube = between(f["handle_thickness"], 0.042, 0.065)
    # the handle's opening stays visible and its ends stay on the wall
    ring = min(between(f["handle_size"], 0.13, 0.24), height / 2 - tube - 0.03)
    middle = height / 2 + (f["handle_height"] - 0.5) * 1.8 * (height / 2 - ring - tube)
    floor = 0.10
    inner = low + (high - low) * floor / height - wall
    profile = [(0, 0), (low, 0), (high, height), (high - wall, height), (inner, floor), (0, floor)]
    at = low + (high - low) * middle / height
    handle = torus((at - 0.03, middle, 0.0), ring, tube, angle=math.radians(97))
    handle = tilted(handle, -math.atan2(high - low, height), pivot=(at, middle, 0.0))
    return [lathe(profile, thickness=wall), handle]


def _describe_mug(f: Factors) -> str:
    return sentence(
        "mug",
        word(f["height"], "short", "tall"),
        word(f["taper"], "narrow-rimmed", "flaring", "straight"),
        word(f["wall_thickness"], "thin-walled", "thick-walled"),
        having=(
            word(f["handle_thickness"], "a slim", "a stout", "a")
            + word(f["handle_size"], " small handle", " large handle", " handle")
            + word(f["handle_height"], " low on its side", " near the rim"),
        ),
    )


def _bottle(f: Factors) -> list[Part]:
    body = between(f["body_width"], 0.13, 0.25)
    shoulder = between(f["shoulder_height"], 0.05, 0.24)
    neck = between(f["neck_length"], 0.10, 0.30)
    narrow = body * between(f["neck_width"], 0.36, 0.68)
    narrow = max(narrow, 0.05)
    waist = body * between(f["waist"], 1.0, 0.68)
    cap = narrow + between(f["cap_width"], 0.0, 0.06)
    tall = 0.44
    top = tall + shoulder + neck
    profile = [
        (0, 0),
        (body - 0.025, 0),
        (body, 0.03),
        (body, tall * 0.22),
        (waist, tall * 0.52),
        (waist, tall * 0.60),
        (body, tall * 0.90),
        (body, tall),
        (between(0.35, body, narrow), tall + shoulder * 0.6),
        (narrow, tall + shoulder),
        (narrow, top),
        (0, top),
    ]
    return [
        lathe(profile, thickness=2 * narrow),
        cylinder((0.0, top + 0.035, 0.0), cap, 0.13, round=0.01),
    ]


def _describe_bottle(f: Factors) -> str:
    return sentence(
        "bottle",
        word(f["body_width"], "slim", "stout"),
        having=(
            word(f["neck_length"], "a short", "a long", "a")
            + word(f["neck_width"], " narrow neck", " wide neck", " neck"),
            word(f["shoulder_height"], "square shoulders", "sloping shoulders"),
            word(f["waist"], "", "a pinched waist", "a slight waist"),
            word(f["cap_width"], "a flush cap", "a wide cap"),
        ),
    )


def _guitar(f: Factors) -> list[Part]:
    lower = between(f["body_width"], 0.19, 0.27)
    upper = lower * between(f["upper_bout"], 0.58, 0.92)
    waist = between(f["waist_length"], 0.85, 1.30) * 0.22
    half = between(f["body_depth"], 0.055, 0.11)
    neck = between(f["neck_length"], 0.24, 0.42)
    head = between(f["head_size"], 0.06, 0.12)
    tip = between(f["head_size"], 0.13, 0.20)
    chest = lower + waist
    shoulder = chest + upper * 0.93
    end = shoulder + neck
    fill = min(lower, upper) * 0.72
    return [
        cylinder((0.0, lower, 0.0), lower, 2 * half, axis="z", round=0.015),
        cylinder((0.0, chest, 0.0), upper, 2 * half, axis="z", round=0.015),
        box((-fill, fill), (lower, chest), (-half, half)),
        box((-0.08, 0.08), (lower * 0.55, lower * 0.55 + 0.10), (-0.02, half + 0.045)),
        box((-0.055, 0.055), (chest - 0.04, end), (half - 0.065, half + 0.045), 0.01),
        prism(
            [(-0.055, end - 0.03), (0.055, end - 0.03), (head, end + tip), (-head, end + tip)],
            (half - 0.065, half + 0.045),
        ),
    ]


def _describe_guitar(f: Factors) -> str:
    return sentence(
        "guitar",
        word(f["body_depth"], "thin-bodied", "deep-bodied"),
        having=(
            word(f["body_width"], "a narrow", "a broad", "a")
            + word(f["waist_length"], " compact body", " stretched body", " body"),
            word(f["upper_bout"], "small shoulders", "full shoulders"),
            word(f["neck_length"], "a short neck", "a long neck"),
            word(f["head_size"], "a narrow head", "a wide head"),
        ),
    )


HOUSEHOLD = {
    "lamp": Family.named(
        "base_width stem_height body_width shade_width shade_height shade_taper",
        _lamp,
        _describe_lamp,
    ),
    "mug": Family.named(
        "height taper wall_thickness handle_size handle_thickness handle_height",
        _mug,
        _describe_mug,
    ),
    "bottle": Family.named(
        "body_width shoulder_height neck_length neck_width waist cap_width",
        _bottle,
        _describe_bottle,
    ),
    "guitar": Family.named(
        "body_width upper_bout waist_length body_depth neck_length head_size",
        _guitar,
        _describe_guitar,
    ),
}
