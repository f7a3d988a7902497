"""A report as an evaluation of the shapes world might write it, with hostile prompts and titles."""

from __future__ import annotations

import io
import math
import random

from PIL import Image, ImageDraw, ImageFilter

from schemas.manifest import Environment, Expected
from schemas.report import (
    Curve,
    GateResult,
    Interval,
    LineageStep,
    Report,
    ScoreCard,
    SystemResult,
    WallPicture,
    WinRate,
)

SCRIPT = "a red circle <script>alert(1)</script> & a \"blue\" ring, 'left' of </script><b>it</b>"
BUCKETS = {"64x64": 0.0, "80x48": 0.01, "48x80": -0.012, "96x40": -0.035, "40x96": -0.041}
CATEGORIES = {"one object": 0.05, "two objects": -0.03, "two objects, <i>placed</i>": -0.06}
# name, title, kind, steps, guidance, attributes, layout, fid, diversity, seconds
SYSTEMS = [
    ("teacher", "teacher, 28 steps", "teacher", 28, 4.0, 0.926, 0.861, 0.0, 4.12, 0.512),
    ("teacher_4", "teacher, 4 steps", "teacher", 4, 4.0, 0.447, 0.702, 1.152, 3.87, 0.0771),
    ("teacher_2", "teacher, 2 steps", "teacher", 2, 4.0, 0.123, 0.514, 1.538, 3.02, 0.0409),
    ("teacher_1", "teacher, 1 step", "teacher", 1, 4.0, 0.121, 0.509, 1.544, 2.98, 0.0226),
    ("student_4", "student, 4 steps", "student", 4, None, 0.904, 0.847, 0.271, 3.71, 0.0415),
    ("student_2", "student, 2 steps", "student", 2, None, 0.861, 0.831, 0.343, 3.66, 0.0231),
    ("student_1", "student, 1 step", "student", 1, None, 0.838, 0.822, 0.391, 3.58, 0.0139),
    ("tuned_4", "tuned student, 4 steps", "tuned", 4, None, 0.911, 0.884, 0.303, 3.62, 0.0418),
]
PROMPTS = [
    "a red circle above a blue ring on a pale yellow background",
    "small green triangle, bottom left",
    SCRIPT,
    "a large purple star to the right of an orange square, both near the top of the picture",
    "one cyan cross",
    "two objects: a black diamond and a white heart below it",
]


def interval(mean: float, half: float) -> Interval:
    return Interval(mean=mean, low=max(0.0, mean - half), high=min(1.0, mean + half))


def example_report(**changes) -> Report:
    """Eight systems on five buckets; one of three gates fails."""
    systems = [_system(*row) for row in SYSTEMS]
    content = {
        "name": "shapes",
        "created": "2025-11-23T13:35:12+00:00",
        "headline": "The 4-step student gets 90.4 % of prompts right, 2.2 points below its 28-step "
        "teacher, in a twelfth of the time.",
        "passed": False,
        "teacher": "shapes",
        "prompts": 1000,
        "cards": {
            "attributes": ScoreCard(
                title="all attributes right",
                explanation="Share of pictures in which the judge finds every stated attribute.",
                low=0,
                high=1,
                licence="Apache-2.0",
                weights="embedded: the judge of the shapes world",
            ),
            "layout": ScoreCard(
                title="colour and layout",
                explanation="How near the picture's colours come to those that the prompt puts "
                "where it puts them.",
                low=None,
                high=1,
                licence="Apache-2.0",
                weights="none",
            ),
        },
        "feature_space": ScoreCard(
            title="judge features",
            explanation="The last hidden layer of the shapes judge, pooled over the picture.",
            low=None,
            high=None,
            licence="Apache-2.0",
            weights="embedded: the judge of the shapes world",
        ),
        "more_spaces": {},
        "floor": {
            "fid": _spread(0.094, 0.011),
            "patch_fid": _spread(0.12, 0.01),
            "kid": Interval(mean=0.0004, low=-0.0009, high=0.0017),
            "cmmd": _spread(0.031, 0.006),
            "precision": _spread(0.93, 0.02),
            "recall": _spread(0.94, 0.02),
        },
        "too_few": {},
        "systems": systems,
        "win_rates": [
            _win("student_4", "teacher_4", "attributes", 0.728, 0.019),
            _win("student_4", "teacher", "attributes", 0.487, 0.014),
            _win("tuned_4", "student_4", "attributes", 0.506, 0.012),
            _win("student_4", "teacher_4", "layout", 0.811, 0.024),
            _win("student_4", "teacher", "layout", 0.462, 0.03),
            _win("tuned_4", "student_4", "layout", 0.624, 0.03),
        ],
        "gates": [
            _gate("student_4.attributes", ">= 0.85", 0.904, 0.0),
            _gate("student_1.attributes", ">= 0.82", 0.838, 0.0),
            _gate("student_4.fid", "<= 0.25", 0.271, 0.021),
        ],
        "curves": [*_distill_curves(), *_dpo_curves()],
        "data": {
            "prompts": {"kept": 3384, "dropped: near duplicate": 9, "dropped: <too> long": 7},
            "pictures by bucket": {
                "64x64": 683,
                "80x48": 671,
                "48x80": 690,
                "96x40": 672,
                "40x96": 668,
            },
            "preference pairs": {"ok": 872, "near tie": 126, "failed": 2},
        },
        "tuning": {
            "teacher tuned, adapters on the student": [
                {"scale": scale, "attributes": 0.904 + 0.01 * math.sin(3 * scale), "layout": layout}
                for scale, layout in ((0.25, 0.861), (0.5, 0.874), (0.75, 0.884), (1.0, 0.881))
            ]
        },
        "wall": [
            WallPicture(
                key=f"sample{i}",
                prompt=prompt,
                bucket=list(BUCKETS)[i % len(BUCKETS)],
                category=list(CATEGORIES)[i % len(CATEGORIES)],
            )
            for i, prompt in enumerate(PROMPTS)
        ],
        "lineage": _lineage(),
        "environment": Environment(
            python="3.11.7",
            packages={
                "torch": "2.13.0+cpu",
                "diffusers": "0.42.1",
                "ray": "2.60.0",
                "numpy": "2.4.6",
            },
            git_commit="0e7d85c722d251eacb2862e4ac089228346b5fd6",
            platform="Linux-6.18-x86_64-with-glibc2.36",
        ),
    }
    return Report.model_validate({**content, **changes})


def example_pictures(report: Report) -> dict[tuple[str, str], bytes]:
    """A small PNG for every row of the wall and every system; fewer steps, more blur."""
    return {
        (row.key, system.name): png(row.bucket, seed=i, blur=1.5 / system.steps)
        for i, row in enumerate(report.wall)
        for system in report.systems
    }


def png(bucket: str, *, seed: int = 0, blur: float = 0) -> bytes:
    """A scene of two objects."""
    size = tuple(int(side) for side in bucket.split("x"))
    drawn = random.Random(seed)
    tone = [(drawn.randrange(256), drawn.randrange(256), drawn.randrange(256)) for _ in range(3)]
    picture = Image.new("RGB", size, tone[0])
    pen, unit = ImageDraw.Draw(picture), min(size) // 3
    at = [(drawn.randrange(size[0] - unit), drawn.randrange(size[1] - unit)) for _ in range(2)]
    pen.ellipse((*at[0], at[0][0] + unit, at[0][1] + unit), fill=tone[1])
    pen.rectangle((*at[1], at[1][0] + unit, at[1][1] + unit), fill=tone[2])
    buffer = io.BytesIO()
    picture.filter(ImageFilter.GaussianBlur(blur)).save(buffer, "PNG")
    return buffer.getvalue()


def _spread(mean: float, half: float) -> Interval:
    return Interval(mean=mean, low=max(0.0, mean - half), high=mean + half)


def _system(name, title, kind, steps, guidance, attributes, layout, fid, diversity, seconds):
    distances = {
        "fid": fid,
        "patch_fid": 1.7 * fid,
        "kid": 0.11 * fid,
        "cmmd": 0.42 * fid,
        "precision": 1 - 0.3 * fid,
        "recall": 1 - 0.4 * fid,
    }
    spread = {measure: _spread(value, 0.08 * fid) for measure, value in distances.items()}
    at = {"attributes": attributes, "layout": layout}
    return SystemResult(
        name=name,
        title=title,
        kind=kind,
        steps=steps,
        guidance_scale=guidance,
        scores={"attributes": interval(attributes, 0.02), "layout": interval(layout, 0.009)},
        by_bucket={
            bucket: {**{k: v + shift for k, v in at.items()}, "fid": fid * (1.4 - 8 * shift)}
            for bucket, shift in BUCKETS.items()
        },
        by_category={
            category: {k: min(1.0, v + shift) for k, v in at.items()}
            for category, shift in CATEGORIES.items()
        },
        distances=distances,
        intervals=spread | {"diversity": _spread(diversity, 0.11)},
        diversity=diversity,
        seconds_per_picture=seconds,
    )


def _win(system: str, against: str, score: str, rate: float, half: float) -> WinRate:
    return WinRate(system=system, against=against, score=score, rate=interval(rate, half))


def _gate(name: str, demand: str, value: float, misses_by: float) -> GateResult:
    return GateResult(
        name=name, demand=demand, value=value, passed=misses_by == 0, misses_by=misses_by
    )


def _distill_curves() -> list[Curve]:
    drawn, steps = random.Random(0), list(range(1, 1001))
    shapes = {
        "student_loss": lambda t: -0.2 + 0.6 * math.exp(-4 * t),
        "discriminator_loss": lambda t: 1.7 + 0.3 * math.exp(-6 * t),
        "real_logit": lambda t: 0.35 * (1 - math.exp(-5 * t)),
        "fake_logit": lambda t: -0.3 * (1 - math.exp(-5 * t)),
        "student_grad_norm": lambda t: 0.7 + 0.5 * math.exp(-3 * t),
        "heads_grad_norm": lambda t: 1.1 + 0.2 * t,
    }
    return [
        Curve(
            stage="distill",
            name=name,
            steps=steps,
            values=[shape(s / 1000) + drawn.gauss(0, 0.12) for s in steps],
        )
        for name, shape in shapes.items()
    ]


def _dpo_curves() -> list[Curve]:
    drawn, steps, looks = random.Random(1), list(range(1, 301)), list(range(0, 301, 25))
    shapes = {
        "loss": lambda t: 0.693 - 0.12 * t,
        "margin": lambda t: 0.9 * t,
        "accuracy": lambda t: 0.5 + 0.22 * t,
    }
    curves = []
    for name, shape in shapes.items():
        for prefix, at, noise in (("", steps, 0.05), ("held_out_", looks, 0.004)):
            values = [shape(s / 300) + drawn.gauss(0, noise) for s in at]
            curves.append(Curve(stage="dpo", name=prefix + name, steps=at, values=values))
    return curves


def _lineage() -> list[LineageStep]:
    prompts, pictures, latents = "7c1f0a4be2d95836", "dada1cadb8a8b531", "2a0af26bfa1eb67d"
    student, pairs, tuned, judged = (
        "bd6195d6d3191698",
        "51e0c66f2a7b9d04",
        "c9b2e7715f3a8d60",
        "f04a9d3c6e81b275",
    )
    rows = [
        ("prompts", prompts, [], 4.1, 0.0, {"train": 3384, "held_out": 2256}),
        ("synthesize", pictures, [prompts], 368.0, 0.2044, {"ok": 3384, "failed": 0}),
        ("encode", latents, [pictures, prompts], 41.0, 0.0228, {"rows": 3384}),
        ("distill", student, [latents, prompts], 612.0, 0.34, {"updates": 1000, "samples": 64000}),
        ("pairs", pairs, [prompts], 402.5, 0.2236, {"ok": 872, "near_tie": 126, "failed": 2}),
        ("dpo", tuned, [pairs, student, prompts], 288.0, 0.16, {"updates": 300}),
        ("eval", judged, [student, tuned, prompts], 533.0, 0.2961, {"pictures": 8000}),
    ]  # fmt: skip
    return [
        LineageStep(
            stage=stage,
            key=key,
            inputs=inputs,
            started="2025-11-23T12:41:00+00:00",
            seconds=seconds,
            device_hours=hours,
            counts=counts,
            devices="2 x cpu-amd-epyc",
            expected=None
            if stage == "eval"
            else Expected(
                device_hours=round(1.25 * hours, 4),
                seconds=round(1.25 * seconds, 1),
                store_bytes=1e6,
                source="distill/0a1b2c3d4e5f6071" if stage == "distill" else "model",
            ),
        )
        for stage, key, inputs, seconds, hours, counts in rows
    ]
