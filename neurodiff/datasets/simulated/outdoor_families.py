"""Vehicles and buildings: how named shape factors become parts and words.

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
    capsule,
    cone,
    cylinder,
    ellipsoid,
    prism,
    tilted,
)

# ---- vehicles ------------------------------------------------------------------------------


def _aeroplane(f: Factors) -> list[Part]:
    radius = between(f["fuselage_width"], 0.055, 0.10)
    span = between(f["wing_span"], 0.30, 0.50)  # of one wing, from the middle
    chord = between(f["wing_chord"], 0.13, 0.24)  # at the root
    sweep = between(f["wing_sweep"], 0.0, 0.26)
    tail = between(f["tail_size"], 0.13, 0.25)
    t = 0.085
    root = 0.58  # leading edge
    parts = [capsule((0.0, 0.0, radius), (0.0, 0.0, 1.0 - radius), radius)]
    for side in (-1, 1):
        tip = max(0.6 * chord, 0.10)
        wing = [(0, root), (side * span, root - sweep), (side * span, root - sweep - tip)]
        parts.append(prism([*wing, (0, root - chord)], (-0.055, -0.055 + t), axis="y"))
        fin = [(0, 0.17), (side * tail, 0.13 - sweep * 0.4), (side * tail, 0.04 - sweep * 0.4)]
        parts.append(prism([*fin, (0, 0.02)], (-0.03, -0.03 + t), axis="y"))
        if f["engine_size"] > 0.3:
            size = between((f["engine_size"] - 0.3) / 0.7, 0.046, 0.066)
            x = side * span * 0.45
            nose = root - sweep * 0.45 + 0.05
            y = -0.055 - size * 0.6
            parts.append(capsule((x, y, nose - 0.19), (x, y, nose - size), size))
    top = radius + tail
    fin = [(0.02, 0.0), (0.18, 0.0), (0.10 - sweep * 0.3, top), (-sweep * 0.3, top)]
    parts.append(prism(fin, (-t / 2, t / 2), axis="x"))
    return parts


def _describe_aeroplane(f: Factors) -> str:
    return sentence(
        "aeroplane",
        word(f["fuselage_width"], "slender", "wide-bodied"),
        having=(
            word(f["wing_span"], "short", "long", "medium")
            + word(f["wing_chord"], " narrow", " broad")
            + word(f["wing_sweep"], " straight wings", " swept wings", " wings"),
            word(f["tail_size"], "a small tail", "a large tail"),
            "engines under the wings" if f["engine_size"] > 0.3 else "no engines",
        ),
    )


def _car(f: Factors) -> list[Part]:
    w = between(f["width"], 0.18, 0.25)
    wheel = between(f["wheel_size"], 0.085, 0.135)
    body = between(f["body_height"], 0.13, 0.22)
    cabin = between(f["cabin_height"], 0.10, 0.20)
    length = between(f["cabin_length"], 0.30, 0.62)
    slope = between(f["windscreen_slope"], 0.03, 0.20)
    floor = wheel * 0.75
    deck = floor + body
    back = 0.05 + 0.10 * (1 - f["cabin_length"])
    side_view = [
        (back, deck - 0.04),
        (back + length + slope, deck - 0.04),
        (back + length, deck + cabin),
        (back + slope * 0.5, deck + cabin),
    ]
    parts = [
        box((-w, w), (floor, deck), (0.0, 1.0), 0.045),
        prism(side_view, (-w + 0.03, w - 0.03), axis="x"),
    ]
    for side in (-1, 1):
        for z in (0.19, 0.80):
            centre = (side * (w - 0.025), wheel, z)
            parts.append(cylinder(centre, wheel, 0.10, axis="x", round=0.015))
    return parts


def _describe_car(f: Factors) -> str:
    return sentence(
        "car",
        word(f["width"], "narrow", "wide"),
        having=(
            word(f["cabin_height"], "a low", "a high", "a")
            + word(f["cabin_length"], " short cabin", " long cabin", " cabin"),
            word(f["windscreen_slope"], "an upright windscreen", "a sloping windscreen"),
            word(f["body_height"], "a flat body", "a deep body"),
            word(f["wheel_size"], "small wheels", "large wheels"),
        ),
    )


def _boat(f: Factors) -> list[Part]:
    w = between(f["hull_width"], 0.13, 0.23)
    deep = between(f["hull_height"], 0.15, 0.25)
    bow = between(f["bow_length"], 0.15, 0.42)
    mast = between(f["mast_height"], 0.50, 0.86)
    sail = between(f["sail_width"], 0.26, 0.46)
    cabin = between(f["cabin_length"], 0.10, 0.30)
    length = 0.94
    parts = []
    for share in (0.0, 1.0):
        # the lower hull is shorter and narrower, and reaches up into the upper one
        half, stern, tip = w * (1 - 0.28 * share), 0.06 * share, length - 0.13 * share
        mid = max(tip - bow, stern + 0.2)
        cheek = (mid + tip) / 2 + bow * 0.12
        right = [(half * 0.85, stern), (half, mid), (half * 0.5, cheek), (0.0, tip)]
        left = [(-x, z) for x, z in reversed(right[:-1])]
        low = deep / 2 * (1 - share)
        parts.append(prism([*right, *left], (low, deep - 0.01 * share), axis="y"))
    foot = 0.56
    parts.append(cylinder((0.0, (deep + mast) / 2, foot), 0.042, mast - deep + 0.08))
    boom = deep + 0.12
    t = 0.042  # half
    main = [(foot, boom), (foot, mast), (foot - 0.05, mast), (foot - sail, boom)]
    parts.append(prism(main, (-t, t), axis="x"))
    front = min(foot + 0.34, length - 0.03)
    jib = [(foot + 0.02, deep + 0.06), (front, deep - 0.02), (foot + 0.02, mast * 0.86)]
    parts.append(prism(jib, (-t, t), axis="x"))
    parts.append(box((-w * 0.6, w * 0.6), (deep - 0.02, deep + 0.085), (0.1, 0.1 + cabin), 0.02))
    return parts


def _describe_boat(f: Factors) -> str:
    return sentence(
        "sailing boat",
        word(f["hull_width"], "slim", "broad"),
        having=(
            word(f["mast_height"], "a short mast", "a tall mast", "a mast"),
            word(f["sail_width"], "a narrow sail", "a wide sail", "a sail"),
            word(f["hull_height"], "a shallow hull", "a deep hull"),
            word(f["bow_length"], "a blunt bow", "a long pointed bow"),
            word(f["cabin_length"], "a small cabin", "a long cabin"),
        ),
    )


# ---- held out from training ----------------------------------------------------------------


def _house(f: Factors) -> list[Part]:
    width = between(f["width"], 0.26, 0.40)
    depth = between(f["depth"], 0.24, 0.44)
    wall = between(f["wall_height"], 0.24, 0.50)
    pitch = between(f["roof_pitch"], 0.12, 0.42)
    eaves = between(f["eaves"], 0.02, 0.10)
    chimney = between(f["chimney_height"], 0.02, 0.20)
    slope = pitch / (width + eaves)
    edge = width + eaves
    roof = [(-edge, wall), (edge, wall), (edge, wall + 0.07), (0, wall + 0.07 + pitch)]
    x = width * 0.5
    ridge = wall + 0.07 + pitch
    base = wall + 0.07 + pitch - slope * x
    return [
        box((-width, width), (0.0, wall + 0.02), (-depth, depth)),
        prism([*roof, (-edge, wall + 0.07)], (-depth - eaves * 0.6, depth + eaves * 0.6)),
        box((x - 0.055, x + 0.055), (wall, max(base, ridge - 0.06) + chimney), (-0.12, -0.01)),
        box((-0.09, 0.09), (0.0, min(wall * 0.75, 0.3)), (depth - 0.02, depth + 0.075)),
    ]


def _describe_house(f: Factors) -> str:
    return sentence(
        "house",
        word(f["width"], "narrow", "wide"),
        word(f["depth"], "shallow", "deep"),
        having=(
            word(f["wall_height"], "low walls", "high walls"),
            word(f["roof_pitch"], "a low", "a steep", "a") + " gable roof",
            word(f["eaves"], "", "wide eaves"),
            word(f["chimney_height"], "a short chimney", "a tall chimney", "a chimney"),
        ),
    )


def _train(f: Factors) -> list[Part]:
    boiler = between(f["boiler_width"], 0.095, 0.15)
    cab = between(f["cab_length"], 0.18, 0.34)
    roof = between(f["cab_height"], 0.06, 0.20)
    funnel = between(f["funnel_height"], 0.08, 0.24)
    wheel = between(f["wheel_size"], 0.07, 0.115)
    dome = between(f["dome_size"], 0.05, 0.13)
    frame = wheel * 1.25
    axis = frame + 0.05 + boiler
    top = axis + boiler
    parts = [
        box((-0.13, 0.13), (frame, frame + 0.09), (0.0, 0.96)),
        cylinder((0.0, axis, (cab + 0.90) / 2), boiler, 0.90 - cab + 0.1, axis="z", round=0.02),
        box((-0.17, 0.17), (frame, top + roof - 0.03), (0.0, cab)),
        box((-0.20, 0.20), (top + roof - 0.05, top + roof + 0.03), (-0.03, cab + 0.05), 0.02),
        cone((0.0, top - 0.03 + funnel / 2, 0.82), 0.045, 0.085, funnel + 0.06),
        ellipsoid((0.0, top, 0.57), (dome * 0.9, dome * 1.15, dome)),
        box((-0.17, 0.17), (frame - 0.04, frame + 0.05), (0.92, 1.0), 0.02),
    ]
    for side in (-1, 1):
        for z in (0.15, 0.42, 0.69):
            centre = (side * 0.15, wheel, z)
            parts.append(cylinder(centre, wheel, 0.08, axis="x", round=0.01))
    return parts


def _describe_train(f: Factors) -> str:
    return sentence(
        "steam train",
        having=(
            word(f["boiler_width"], "a thin boiler", "a fat boiler", "a boiler"),
            word(f["cab_height"], "a low", "a high", "a")
            + word(f["cab_length"], " short cab", " long cab", " cab"),
            word(f["funnel_height"], "a short funnel", "a tall funnel", "a funnel"),
            word(f["dome_size"], "", "a large dome"),
            word(f["wheel_size"], "small wheels", "large wheels"),
        ),
    )


def _windmill(f: Factors) -> list[Part]:
    foot = between(f["tower_width"], 0.13, 0.24)
    top = foot * between(f["tower_taper"], 0.9, 0.5)
    tower = between(f["tower_height"], 0.40, 0.60)
    blade = between(f["blade_length"], 0.26, 0.44)
    wide = between(f["blade_width"], 0.048, 0.09)  # half
    turn = between(f["blade_angle"], 0.0, math.pi / 2 * 0.9)
    hub = tower + 0.02
    front = top + 0.07
    parts = [
        cone((0.0, tower / 2, 0.0), foot, top, tower),
        cone((0.0, tower + 0.085, 0.0), top + 0.03, 0.03, 0.19),
        cylinder((0.0, hub, front / 2 + 0.03), 0.05, front + 0.06, axis="z"),
    ]
    for k in range(4):
        arm = box((-wide, wide), (hub - 0.02, hub + blade), (front, front + 0.092))
        parts.append(tilted(arm, turn + k * math.pi / 2, pivot=(0.0, hub, 0.0), axis="z"))
    return parts


def _describe_windmill(f: Factors) -> str:
    return sentence(
        "windmill",
        word(f["tower_height"], "short", "tall"),
        having=(
            word(f["tower_width"], "a slim", "a broad", "a")
            + word(f["tower_taper"], " straight tower", " pointed tower", " tapering tower"),
            word(f["blade_length"], "short", "long", "four")
            + word(f["blade_width"], " narrow blades", " wide blades", " blades"),
            word(f["blade_angle"], "", "its blades turned", "its blades half turned"),
        ),
    )


OUTDOOR = {
    "aeroplane": Family.named(
        "wing_span wing_sweep wing_chord fuselage_width tail_size engine_size",
        _aeroplane,
        _describe_aeroplane,
    ),
    "car": Family.named(
        "cabin_length cabin_height windscreen_slope body_height wheel_size width",
        _car,
        _describe_car,
    ),
    "boat": Family.named(
        "hull_width hull_height bow_length mast_height sail_width cabin_length",
        _boat,
        _describe_boat,
    ),
}

UNSEEN = {
    "house": Family.named(
        "width depth wall_height roof_pitch eaves chimney_height", _house, _describe_house
    ),
    "train": Family.named(
        "boiler_width cab_length cab_height funnel_height wheel_size dome_size",
        _train,
        _describe_train,
    ),
    "windmill": Family.named(
        "tower_width tower_taper tower_height blade_length blade_width blade_angle",
        _windmill,
        _describe_windmill,
    ),
}
