"""Furniture and household things: how named shape factors become parts and words.

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
    cone,
    cylinder,
    ellipsoid,
    lathe,
    prism,
    tilted,
    torus,
)

# ---- seats and tables ----------------------------------------------------------------------


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


# ---- household things ----------------------------------------------------------------------


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


INDOOR = {
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
