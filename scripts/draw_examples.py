"""Draws the example images of the quickstart: shaded solids without ground, textured grounds.

python scripts/draw_examples.py FOLDER. The solids are signed distance fields, sphere-traced (Hart
1996, "Sphere tracing"); their soft alpha edges come from how closely a ray passes the surface. The
pixels are always the same; a file that holds them already is left alone. Knows no featprep.
"""

import functools
import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Floats = NDArray[Any]  # float32, mostly
Field = Callable[[Floats], Floats]  # points (N, 3) → distance to the surface (N,)
Colour = tuple[float, float, float]
Solid = tuple[Field, Colour]

OVERSAMPLING = 2
STEPS = 48
HIT = 1e-3  # of the distance travelled
EYE = np.array([0.0, 1.1, 4.2], np.float32)
KEY_LIGHT = np.array([-0.55, 0.75, 0.45], np.float32) / np.float32(1.033)
EDGE = 0.010  # the same: about five pixels of an image 300 high


def dots(a: Floats, b: Floats) -> Floats:
    """Row by row, without BLAS: its threads are slower than one on three columns."""
    return np.einsum("ij,ij->i" if b.ndim == 2 else "ij,j->i", a, b)


def lengths(p: Floats) -> Floats:
    return np.sqrt(dots(p, p))


def ball(radius: float) -> Field:
    return lambda p: lengths(p) - radius


def ring(radius: float, tube: float) -> Field:
    return lambda p: np.hypot(np.hypot(p[:, 0], p[:, 2]) - radius, p[:, 1]) - tube


def block(half: float, rounding: float) -> Field:
    def distance(p: Floats) -> Floats:
        q = np.abs(p) - np.float32(half - rounding)
        outside = lengths(np.maximum(q, 0))
        return outside + np.minimum(q.max(axis=1), 0) - np.float32(rounding)

    return distance


def cone(height: float, radius: float, rounding: float) -> Field:
    """Apex up, centred: the distance, in the half-plane through the axis, to a triangle."""
    apex, rim = np.array([0, height / 2]), np.array([radius, -height / 2])

    def distance(p: Floats) -> Floats:
        q = np.stack([np.hypot(p[:, 0], p[:, 2]), p[:, 1]], axis=1)
        along = np.clip(dots(q - apex, rim - apex) / np.sum((rim - apex) ** 2), 0, 1)
        slant = q - apex - along[:, None] * (rim - apex)
        base = np.hypot(np.maximum(q[:, 0] - radius, 0), q[:, 1] - rim[1])
        inside = (q[:, 1] > rim[1]) & (slant[:, 0] * height + slant[:, 1] * radius < 0)
        nearest = np.minimum(np.hypot(slant[:, 0], slant[:, 1]), base)
        return np.where(inside, -nearest, nearest) - np.float32(rounding)

    return distance


def placed(field: Field, x: float, y: float, z: float, tilt: float = 0, turn: float = 0) -> Field:
    """`field` moved, after a tilt about x and a turn about y, in degrees."""
    a, b = np.radians(tilt), np.radians(turn)
    about_x = [[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]]
    about_y = [[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]]
    turned = (np.array(about_y) @ np.array(about_x)).astype(np.float32)
    offset = np.array([x, y, z], np.float32)
    return lambda p: field(np.einsum("ij,jk->ik", p - offset, turned))


def trace(field: Field, rays: Floats) -> tuple[Floats, Floats]:
    """Points where rays from the eye meet the surface or pass it closest, and the alpha there."""
    travelled = np.full(len(rays), 2.0, np.float32)
    closest, at = np.full(len(rays), 9.0, np.float32), travelled.copy()
    for _ in range(STEPS):
        alive = np.flatnonzero((travelled < 7) & (closest > HIT))
        gap = field(EYE + rays[alive] * travelled[alive, None]) / travelled[alive]
        nearer = gap < closest[alive]
        closest[alive[nearer]], at[alive[nearer]] = gap[nearer], travelled[alive[nearer]]
        travelled[alive] += np.maximum(gap * travelled[alive], 2e-3)
    alpha = np.clip(1 - (closest - HIT) / EDGE, 0, 1)
    return EYE + rays * at[:, None], alpha * alpha * (3 - 2 * alpha)


def normals(field: Field, points: Floats) -> Floats:
    """Central differences on a tetrahedron: four evaluations and not six."""
    corners = np.array([[1, -1, -1], [-1, -1, 1], [-1, 1, -1], [1, 1, 1]], np.float32)
    total = np.zeros_like(points)
    for corner in corners:
        total += corner * field(points + corner * np.float32(1e-3))[:, None]
    return total / np.maximum(lengths(total)[:, None], 1e-9)


def shade(normal: Floats, rays: Floats, colour: Floats) -> Floats:
    """A warm key light, a cool sky, a sheen and a rim."""
    key = np.clip(dots(normal, KEY_LIGHT), 0, 1)[:, None]
    sky = (0.5 + 0.5 * normal[:, 1:2]) * np.array([0.30, 0.36, 0.48], np.float32)
    half = KEY_LIGHT - rays
    half /= lengths(half)[:, None]
    sheen = np.clip(dots(normal, half), 0, 1)[:, None] ** 60
    rim = (1 - np.clip(-dots(normal, rays), 0, 1))[:, None] ** 3
    lit = colour * (0.10 + sky + key * np.array([0.95, 0.90, 0.80], np.float32))
    return lit + 0.55 * sheen + 0.22 * rim * sky


def solids(height: int, width: int, scene: list[Solid]) -> Image.Image:
    """An RGBA picture of a scene, (height, width) pixels; hidden colour is kept under alpha 0."""
    rows, columns = height * OVERSAMPLING, width * OVERSAMPLING
    x = (np.arange(columns) + 0.5 - columns / 2) / rows
    y = (rows / 2 - np.arange(rows) - 0.5) / rows
    forward = -EYE / np.linalg.norm(EYE)
    up = np.array([0, -forward[2], forward[1]], np.float32)
    rays = forward + 0.62 * (x[None, :, None] * np.array([1, 0, 0]) + y[:, None, None] * up)
    rays = rays.reshape(-1, 3).astype(np.float32)
    rays /= lengths(rays)[:, None]

    def field(points: Floats) -> Floats:
        return functools.reduce(np.minimum, (part(points) for part, _ in scene))

    points, alpha = trace(field, rays)
    owner = np.argmin([part(points) for part, _ in scene], axis=0)
    colour = np.array([tint for _, tint in scene], np.float32)[owner]
    rgb = np.clip(shade(normals(field, points), rays, colour), 0, 1) ** np.float32(1 / 2.2)
    return _reduced(np.hstack([rgb, alpha[:, None]]), rows, columns)


def _reduced(values: Floats, rows: int, columns: int) -> Image.Image:
    """Box filter with premultiplied colour, divided out again."""
    values[:, :3] *= values[:, 3:]
    shape = (rows // OVERSAMPLING, OVERSAMPLING, columns // OVERSAMPLING, OVERSAMPLING, 4)
    mean = values.reshape(shape).mean(axis=(1, 3))
    mean[..., :3] /= np.maximum(mean[..., 3:], 1e-6)
    return Image.fromarray((mean * 255 + 0.5).astype(np.uint8), "RGBA")


def noise(height: int, width: int, cells: tuple[int, int], seed: int, octaves: int = 5) -> Floats:
    """Value noise in [0, 1]: random lattices, each twice as fine and half as strong as the last."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        lattice = random.random((cells[0] << octave, cells[1] << octave), np.float32)
        fine = Image.fromarray(lattice).resize((width, height), Image.Resampling.BICUBIC)
        total += np.asarray(fine) / 2**octave
    low, high = total.min(), total.max()
    return (total - low) / (high - low)


def blend(weight: Floats, dark: Colour, light: Colour) -> Floats:
    mixed = np.multiply.outer(1 - weight, dark) + np.multiply.outer(weight, light)
    return mixed.astype(np.float32)


def opaque(values: Floats) -> Image.Image:
    return Image.fromarray((np.clip(values, 0, 1) * 255 + 0.5).astype(np.uint8), "RGB")


def wood(height: int, width: int) -> Image.Image:
    y, x = np.mgrid[:height, :width] / np.float32(height)
    grain = noise(height, width, (3, 1), seed=1, octaves=4)
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * (7 * np.hypot(y - 0.4, 0.22 * (x - 0.3)) + 1.6 * grain))
    fibre = noise(height, width, (160, 4), seed=2, octaves=2)
    return opaque(blend(0.75 * rings + 0.25 * fibre, (0.36, 0.19, 0.09), (0.82, 0.58, 0.34)))


def tiles(height: int, width: int) -> Image.Image:
    """A chequered floor that runs to the horizon, into haze."""
    y, x = np.mgrid[:height, :width].astype(np.float32)
    depth = 0.42 / np.maximum((y + 1) / height - 0.30, 1e-3)
    across = (x / width - 0.5) * depth * width / height
    chequer = np.tanh(6 * np.sin(np.pi * 3 * across) * np.sin(np.pi * 3 * depth)) * 0.5 + 0.5
    worn = chequer * 0.85 + 0.15 * noise(height, width, (6, 8), seed=3)
    floor = blend(worn, (0.13, 0.24, 0.30), (0.93, 0.88, 0.78))
    sky = blend(y / height / 0.3, (0.36, 0.55, 0.78), (0.93, 0.90, 0.84))
    haze = np.clip((depth - 1.2) / 4, 0, 1)[..., None]
    return opaque(np.where((y / height < 0.30)[..., None], sky, floor * (1 - haze) + haze * 0.88))


def dunes(height: int, width: int) -> Image.Image:
    """A height field lit from the side."""
    warp = noise(height, width, (2, 2), seed=4, octaves=3)
    y, x = np.mgrid[:height, :width] / np.float32(height)
    ridge = 0.5 + 0.5 * np.sin(2 * np.pi * (2.2 * y + 0.5 * x + 1.1 * warp))
    surface = 0.7 * ridge**1.5 + 0.5 * warp + 0.02 * noise(height, width, (40, 40), seed=5)
    down, right = np.gradient(surface * height / 5)
    light = np.clip(0.62 - 0.42 * right - 0.30 * down, 0, 1)
    return opaque(blend(light, (0.33, 0.13, 0.16), (1.00, 0.83, 0.55)))


RED, GOLD, TEAL = (0.80, 0.13, 0.10), (0.95, 0.58, 0.10), (0.05, 0.42, 0.42)
BLUE, VIOLET, IVORY = (0.08, 0.22, 0.62), (0.38, 0.15, 0.55), (0.82, 0.76, 0.64)

GROUP: list[Solid] = [
    (placed(ring(0.50, 0.17), -0.62, -0.28, 0.15, tilt=-58, turn=24), GOLD),
    (placed(ball(0.43), 0.22, -0.14, 0.40), RED),
    (placed(cone(1.10, 0.40, 0.05), 0.84, 0.06, -0.35), TEAL),
    (placed(block(0.36, 0.08), -0.02, 0.52, -0.85, turn=38), BLUE),
]

EXAMPLES: dict[str, Callable[[], Image.Image]] = {
    "group.png": lambda: solids(300, 400, GROUP),
    "solids/ball.png": lambda: solids(256, 256, [(ball(0.95), RED)]),
    "solids/ring.png": lambda: solids(
        240, 320, [(placed(ring(0.86, 0.32), 0, 0, 0, -52, 20), GOLD)]
    ),
    "solids/cone.png": lambda: solids(
        320, 240, [(placed(cone(1.7, 0.68, 0.06), 0, 0.05, 0), TEAL)]
    ),
    "solids/block.webp": lambda: solids(
        256, 256, [(placed(block(0.68, 0.14), 0, 0, 0, -20, 35), VIOLET)]
    ),
    "grounds/dunes.jpg": lambda: dunes(288, 432),
    "grounds/tiles.png": lambda: tiles(288, 384),
    "grounds/wood.jpg": lambda: wood(384, 288),
}


def draw(folder: Path) -> int:
    """Draws what is not there yet; the number of files written."""
    written = 0
    for name, make in EXAMPLES.items():
        path, held = folder / name, io.BytesIO()
        kind = {".png": "PNG", ".jpg": "JPEG", ".webp": "WEBP"}[path.suffix]
        make().save(held, kind, **({} if kind == "PNG" else {"quality": 92}))
        if path.is_file() and path.read_bytes() == held.getvalue():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_bytes(held.getvalue())
        partial.replace(path)
        written += 1
    return written


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python scripts/draw_examples.py FOLDER")
    print(f"{draw(Path(sys.argv[1]))} of {len(EXAMPLES)} images drawn in {sys.argv[1]}")
