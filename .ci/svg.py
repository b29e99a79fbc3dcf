"""SVG pictures: boxes, lines of text and arrows in the documentation's few styles."""

from __future__ import annotations

from html import escape

STYLE = """
  text { font: 14px system-ui, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #1b2733 }
  .title { font-weight: 600 } .small { font-size: 12px; fill: #52606d } .middle { text-anchor: middle }
  .mono { font: 12.5px ui-monospace, Menlo, Consolas, monospace } .end { text-anchor: end }
  .library { fill: #eaf1fa; stroke: #2a6fb0 } .job { fill: #fdf1e3; stroke: #c77d2a }
  .file { fill: #eef6ee; stroke: #3a7d44 } .plain { fill: #f5f6f8; stroke: #9aa5b1 }
  .frame { fill: none; stroke: #9aa5b1; stroke-dasharray: 5 4 }
  .way { fill: none; stroke: #3e4c59; stroke-width: 1.6 }
  .soft { fill: none; stroke: #9aa5b1; stroke-width: 1.4; stroke-dasharray: 4 3 }
"""
ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
    'orient="auto-start-reverse"><path d="M0 0L10 5L0 10z" fill="#3e4c59"/></marker></defs>'
)


class Picture:
    """An SVG picture on white; positions are pixels from the top left corner."""

    def __init__(self, width: int, height: int, title: str, description: str) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<desc>{escape(description)}</desc>",
            f"<style>{STYLE}</style>",
            ARROW,
            f'<rect width="{width}" height="{height}" rx="8" fill="#ffffff"/>',
        ]

    def __str__(self) -> str:
        return "\n".join([*self.parts, "</svg>\n"])

    def text(self, x: float, y: float, text: str, kind: str = "") -> None:
        """Write one line of text."""
        self.parts.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>')

    def rect(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """Draw an empty box."""
        self.parts.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="6" class="{kind}"/>')

    def box(
        self,
        x: float,
        y: float,
        width: float,
        height: float,
        kind: str,
        *lines: str,
        titles: int = 1,
        first: str = "title",
    ) -> None:
        """Draw a box with lines of text in its middle, the first ones as titles."""
        self.rect(x, y, width, height, kind)
        top = y + height / 2 - (len(lines) - 1) * 8.25 + 5
        for i, line in enumerate(lines):
            self.text(x + width / 2, top + 16.5 * i, line, f"{first if i < titles else 'small'} middle")

    def way(self, *points: tuple[float, float], kind: str = "way", arrow: bool = True) -> None:
        """Draw a line through points, by default with an arrow at its end."""
        path = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        end = ' marker-end="url(#arrow)"' if arrow else ""
        self.parts.append(f'<path d="{path}" class="{kind}"{end}/>')
