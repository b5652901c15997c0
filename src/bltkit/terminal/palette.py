"""Backgrounds that tell neighbouring patches apart in a terminal, on light and on dark ground alike.

Each colour is of middle lightness: its contrast (WCAG 2) is at least 3 to black, to white, and 4.5 to the white text on
it, so a patch stands out from a terminal of either kind. They are colours of the 256-colour cube, so nothing is rounded
where a terminal has no more. Neighbours differ in hue, also for red-green blindness. Where there is no colour at all,
`BORDER` stands between patches, and `INSIDE` behind a character in which one begins.
"""

from rich.style import Style

BACKGROUNDS = ("#005fd7", "#af5f00", "#875fd7", "#008700")
"""In turn, for terminals of 256 colours or more."""
INK = "#ffffff"
BASIC = (("bright_white", "magenta"), ("black", "green"))
"""Ink and background for terminals of 16 colours, whose light and dark greys merge with one ground or the other."""

BORDER, ASCII_BORDER = "│", "|"
"""Between two patches."""
INSIDE = "┊"
"""After a character of several bytes, once for each patch that begins inside it."""


def patch_style(number: int, color_system: str | None = "truecolor") -> Style:
    """The style of patch `number`, counted from 0.

    color_system: what rich says of the console: None (no colour), `standard` or `windows` (16 colours), `256` or
    `truecolor`.
    """
    if color_system is None:
        return Style()
    if color_system in ("standard", "windows"):
        ink, background = BASIC[number % len(BASIC)]
        return Style(color=ink, bgcolor=background)
    return Style(color=INK, bgcolor=BACKGROUNDS[number % len(BACKGROUNDS)])
