"""Furniture: how named shape factors become parts and words.

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
    side_range,
    word,
)
from neurodiff.datasets.simulated.shapes import (
    Part,
    box,
    capsule,
    cylinder,
    prism,
)


def _chair(f: Factors) -> list[Part]:
    width = between(f["seat_width"], 0.40, 0.72)
    seat = between(f["leg_height"], 0.28, 0.50)  # top of the seat
    back = between(f["back_height"], 0.28, 0.50)
    depth, t, w = 0.46, 0.09, width / 2
    splay = between(f["leg_splay"], 0.0, 0.13)
    parts = [box((-w, w), (seat - t, seat), (0, depth), 0.02)]
    for side in (-1, 1):
        for z, out in ((0.05, -1), (depth - 0.05, 1)):
            top = (side * (w - 0.05), seat - t, z)
            foot = (top[0] + side * splay, 0.045, z + out * splay * 0.8)
            parts.append(capsule(foot, top, 0.045))
        parts.append(box(side_range(side, w - t, w), (seat - t, seat + back), (0, t), 0.02))
    opening = between(f["back_opening"], 0.0, 0.75) * (back - t)
    parts.append(box((-w, w), (seat + opening, seat + back), (0, t), 0.02))
    if f["armrests"] > 0.4:
        reach = depth * between((f["armrests"] - 0.4) / 0.6, 0.55, 1.0)
        for side in (-1, 1):
            x = side_range(side, w - 0.02, w + 0.07)
            parts.append(box(x, (seat + 0.13, seat + 0.22), (0.0, reach), 0.03))
            parts.append(box(x, (seat - t, seat + 0.2), (reach - t, reach), 0.02))
            parts.append(box(x, (seat - t, seat), (0.0, reach), 0.02))
    return parts


def _describe_chair(f: Factors) -> str:
    return sentence(
        "chair",
        word(f["leg_height"], "low", "tall"),
        word(f["seat_width"], "narrow", "wide"),
        having=(
            "armrests" if f["armrests"] > 0.4 else "",
            word(f["back_height"], "a short", "a high", "a")
            + word(f["back_opening"], " solid back", " open back", " half-open back"),
            word(f["leg_splay"], "straight legs", "splayed legs"),
        ),
    )


def _table(f: Factors) -> list[Part]:
    height = between(f["height"], 0.32, 0.78)
    half = between(f["depth"], 0.24, 0.46)
    t = between(f["top_thickness"], 0.075, 0.15)
    leg = between(f["leg_thickness"], 0.045, 0.085)  # radius
    corner = 0.01 + f["corner_roundness"] * (half - 0.03)
    inset = leg + between(f["leg_inset"], 0.0, 0.16)
    a, b = 0.5 - corner, half - corner
    outline = [(-a, -b), (a, -b), (a, b), (-a, b)]
    parts = [prism(outline, (height - t, height), axis="y", corner=corner)]
    # legs stay under a round top: pulled in by what the corner's arc cuts off
    cut = corner * (1 - math.sqrt(0.5))
    x, z = 0.5 - max(inset, cut + leg), half - max(min(inset, half - 0.05 - leg), cut + leg)
    for sx in (-1, 1):
        for sz in (-1, 1):
            centre = (sx * x, (height - t / 2) / 2, sz * max(z, leg + 0.04))
            parts.append(cylinder(centre, leg, height - t / 2))
    return parts


def _describe_table(f: Factors) -> str:
    return sentence(
        "table",
        word(f["height"], "low", "high"),
        word(f["depth"], "narrow", "broad"),
        having=(
            word(f["top_thickness"], "a thin", "a thick", "a")
            + word(f["corner_roundness"], " square-cornered top", " oval top", " rounded top"),
            word(f["leg_thickness"], "slender", "thick", "plain")
            + word(f["leg_inset"], " legs at the corners", " legs set far in", " legs"),
        ),
    )


def _sofa(f: Factors) -> list[Part]:
    depth = between(f["depth"], 0.36, 0.54)
    seat = between(f["seat_height"], 0.20, 0.30)
    back = seat + between(f["back_height"], 0.12, 0.34)
    arm = seat + between(f["arm_height"], 0.0, 0.13)
    width = between(f["arm_width"], 0.08, 0.17)
    chaise = between(f["chaise_length"], 0.0, 0.34)
    parts = [
        box((-0.5, 0.5), (0.06, seat - 0.06), (0, depth), 0.02),
        box((-0.5, 0.5), (0.06, back), (0, 0.14), 0.045),
    ]
    inner = 0.5 - width
    for side in (-1, 1):
        parts.append(box(side_range(side, inner, 0.5), (0.06, arm), (0, depth), 0.035))
        low, high = (0.0, inner) if side > 0 else (-inner, 0.0)
        front = depth + chaise if side > 0 else depth
        parts.append(box((low, high), (seat - 0.09, seat), (0.1, front + 0.02), 0.035))
        for z in (0.08, depth - 0.08):
            parts.append(cylinder((side * 0.42, 0.05, z), 0.045, 0.1))
    if chaise > 0.02:
        parts.append(box((0.0, inner), (0.06, seat - 0.06), (depth - 0.1, depth + chaise), 0.02))
        parts.append(cylinder((inner - 0.06, 0.05, depth + chaise - 0.06), 0.045, 0.1))
        parts.append(cylinder((0.06, 0.05, depth + chaise - 0.06), 0.045, 0.1))
    return parts


def _describe_sofa(f: Factors) -> str:
    return sentence(
        "sofa",
        word(f["depth"], "shallow", "deep"),
        word(f["back_height"], "low-backed", "high-backed"),
        having=(
            word(f["arm_width"], "slim", "broad", "plain")
            + word(f["arm_height"], " low arms", " high arms", " arms"),
            word(f["seat_height"], "a low seat", "a high seat"),
            word(f["chaise_length"], "", "a long chaise", "a short chaise"),
        ),
    )


def _bed(f: Factors) -> list[Part]:
    w = between(f["width"], 0.22, 0.47)
    legs = between(f["leg_height"], 0.07, 0.20)
    top = legs + between(f["mattress_height"], 0.14, 0.26)
    head = top + between(f["headboard_height"], 0.06, 0.40)
    foot = legs + 0.08 + between(f["footboard_height"], 0.0, 0.30)
    pillow = between(f["pillow_size"], 0.10, 0.30)
    puff = between(f["pillow_size"], 0.05, 0.10)
    parts = [
        box((-w, w), (legs, legs + 0.08), (0.0, 1.0), 0.015),
        box((-w + 0.015, w - 0.015), (legs + 0.02, top), (0.04, 0.96), 0.04),
        box((-w, w), (0.0, head), (0.0, 0.085), 0.02),
        box((-w, w), (legs, foot), (0.92, 1.0), 0.02),
    ]
    for side in (-1, 1):
        parts.append(box(side_range(side, w - 0.1, w), (0.0, legs + 0.06), (0.9, 1.0), 0.01))
        x = side_range(side, 0.02, w - 0.04) if w > 0.3 else (-w + 0.06, w - 0.06)
        parts.append(box(x, (top - 0.05, top + puff), (0.09, 0.09 + pillow), 0.045))
    return parts


def _describe_bed(f: Factors) -> str:
    return sentence(
        "bed",
        word(f["width"], "narrow", "wide"),
        having=(
            word(f["headboard_height"], "a low headboard", "a high headboard", "a headboard"),
            word(f["footboard_height"], "", "a high footboard", "a footboard"),
            word(f["mattress_height"], "a thin mattress", "a thick mattress"),
            word(f["leg_height"], "short legs", "long legs"),
            word(f["pillow_size"], "", "large pillows"),
        ),
    )


def _bookshelf(f: Factors) -> list[Part]:
    width = between(f["width"], 0.42, 0.80) / 2
    depth = between(f["depth"], 0.20, 0.38)
    plinth = between(f["plinth_height"], 0.085, 0.18)
    t = between(f["board_thickness"], 0.082, 0.105)
    shelves = 1 + min(int(f["shelf_count"] * 3), 2)
    parts = [box((-width, width), (0.0, 1.0), (0.0, 0.085))]
    parts += [box(side_range(side, width - t, width), (0.0, 1.0), (0.0, depth)) for side in (-1, 1)]
    parts.append(box((-width, width), (1.0 - t, 1.0), (0.0, depth)))
    parts.append(box((-width, width), (0.0, plinth), (0.0, depth)))
    clear = (1.0 - t - plinth - shelves * t) / (shelves + 1)
    inner = width - t
    for k in range(shelves + 1):
        floor = plinth + k * (clear + t)
        if k:
            parts.append(box((-width, width), (floor - t, floor), (0.0, depth)))
        # a row of books from alternating ends, lower than the shelf's clearance
        row = 2 * inner * between(f["books"], 0.0, 0.85)
        if row > 0.08:
            x = (-inner - 0.02, -inner + row) if k % 2 == 0 else (inner - row, inner + 0.02)
            parts.append(box(x, (floor - 0.02, floor + clear * 0.65), (0.0, depth - 0.05)))
    return parts


def _describe_bookshelf(f: Factors) -> str:
    rows = 2 + min(int(f["shelf_count"] * 3), 2)
    return sentence(
        "bookshelf",
        word(f["width"], "narrow", "wide"),
        word(f["depth"], "shallow", "deep"),
        having=(
            f"{('two', 'three', 'four')[rows - 2]} compartments",
            word(f["board_thickness"], "thin boards", "thick boards"),
            word(f["books"], "few books", "many books", "some books"),
            word(f["plinth_height"], "", "a high plinth"),
        ),
    )


FURNITURE = {
    "chair": Family.named(
        "back_height leg_height seat_width armrests back_opening leg_splay", _chair, _describe_chair
    ),
    "table": Family.named(
        "height depth top_thickness leg_thickness corner_roundness leg_inset",
        _table,
        _describe_table,
    ),
    "sofa": Family.named(
        "depth seat_height back_height arm_height arm_width chaise_length", _sofa, _describe_sofa
    ),
    "bed": Family.named(
        "width leg_height mattress_height headboard_height footboard_height pillow_size",
        _bed,
        _describe_bed,
    ),
    "bookshelf": Family.named(
        "width depth shelf_count books plinth_height board_thickness",
        _bookshelf,
        _describe_bookshelf,
    ),
}
