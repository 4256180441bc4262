"""Drawings as SVG: one path a stroke, in order, over the initial canvas; still, or drawing itself."""

from __future__ import annotations

import base64
import io

from torch import Tensor

from goalgen.families.strokes.environment import START, StrokesEnvironment
from goalgen.pictures import to_pil

SECONDS = 0.4
"""Time that a drawing which draws itself takes over each stroke."""

SHOWN = 280
"""Height of the picture where nobody says otherwise, in pixels of the screen."""


def number(value: float) -> str:
    """As short as it can be to a hundredth of a pixel."""
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def colour(values: Tensor) -> str:
    """A colour (C,) in [-1, 1] as SVG names it."""
    levels = ((values + 1) * 127.5).round().clamp(0, 255).int().tolist()
    red, green, blue = levels * 3 if len(levels) == 1 else levels
    return f"#{red:02x}{green:02x}{blue:02x}"


def background(canvas: Tensor) -> str:
    """The initial canvas (C, height, width) in [-1, 1]: a rectangle where it has one colour, else a picture."""
    height, width = canvas.shape[1:]
    if bool((canvas == canvas[:, :1, :1]).all()):
        return f'<rect width="{width}" height="{height}" fill="{colour(canvas[:, 0, 0])}"/>'
    file = io.BytesIO()
    to_pil(((canvas + 1) * 127.5).round().clamp(0, 255).byte().cpu()).save(file, format="PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<image width="{width}" height="{height}" image-rendering="pixelated" href="data:image/png;base64,{data}"/>'


def paths(environment: StrokesEnvironment, actions: Tensor) -> list[dict[str, str]]:
    """Attributes of the path of every stroke of one drawing, from its actions (H, 5), up to the stop."""
    stops = (actions[:, START] == environment.positions).nonzero()
    strokes = environment.strokes(actions[: int(stops[0]) if len(stops) else None])
    found = []
    for i in range(len(strokes)):
        (x0, y0), (x1, y1), (x2, y2) = ([number(v) for v in point] for point in strokes.points[i].tolist())
        # A curve that goes nowhere is drawn as a line of no length, whose round ends are the dot.
        way = f"L{x2} {y2}" if (x0, y0) == (x1, y1) == (x2, y2) else f"Q{x1} {y1} {x2} {y2}"
        path = {
            "d": f"M{x0} {y0}{way}",
            "stroke": colour(strokes.colour[i]),
            "stroke-width": number(float(strokes.width[i])),
        }
        if strokes.opacity[i] < 1:
            path["stroke-opacity"] = number(float(strokes.opacity[i]))
        found.append(path)
    return found


def to_svg(environment: StrokesEnvironment, canvas: Tensor, actions: Tensor, *, draws_itself: bool = False) -> str:
    """One drawing as an SVG file.

    Args:
        environment: that the actions are of.
        canvas: the initial one, (C, height, width) in [-1, 1].
        actions: (H, 5).
        draws_itself: each stroke appears along its way, one after the other, by an animation in CSS. Who asks for less motion sees
            it whole.
    """
    height, width = canvas.shape[1:]
    size = f'width="{SHOWN * width / height:.0f}" height="{SHOWN}" viewBox="0 0 {width} {height}"'
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" {size}>']
    if draws_itself:
        lines.append(
            "<style>@media not (prefers-reduced-motion:reduce){path{stroke-dasharray:1 2;stroke-dashoffset:1;visibility:hidden;"
            f"animation:d {SECONDS:g}s ease-in-out forwards}}@keyframes d{{from{{visibility:visible}}"
            "to{visibility:visible;stroke-dashoffset:0}}}</style>"
        )
    lines += [background(canvas), '<g fill="none" stroke-linecap="round">']
    for i, path in enumerate(paths(environment, actions)):
        if draws_itself:
            dash = ";stroke-dasharray:none" if "L" in path["d"] else ""  # of no length, no part can be shown
            path |= {"pathLength": "1", "style": f"animation-delay:{number(SECONDS * i)}s{dash}"}
        lines.append("<path " + " ".join(f'{name}="{value}"' for name, value in path.items()) + "/>")
    return "\n".join([*lines, "</g>", "</svg>", ""])
