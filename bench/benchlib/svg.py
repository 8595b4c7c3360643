"""Pictures of figures, as SVG that is readable on white and on dark pages. No libraries."""
import html
import math
import pathlib

COLOURS = ("#3d7dca", "#e07b39", "#3a9d5d", "#9a6bc4", "#c94f57", "#8a8a3c")
STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #3b434b; }
.small { font-size: 11px; }
.title { font-size: 15px; font-weight: 600; }
.line { stroke: #8a939c; stroke-width: 1; fill: none; }
.grid { stroke: #8a939c; stroke-opacity: 0.25; stroke-width: 1; }
.gap { fill: #8a939c; fill-opacity: 0.22; }
@media (prefers-color-scheme: dark) { text { fill: #c9d1d9; } }
</style>"""


class Picture:
    def __init__(self, width, height, title):
        self.width, self.height = width, height
        self.parts = [STYLE]
        self.text(16, 24, title, "title")

    def text(self, x, y, text, kind="", anchor="start"):
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{html.escape(str(text))}</text>')

    def rect(self, x, y, width, height, colour=None, kind="", tip=""):
        fill = f'fill="{colour}"' if colour else f'class="{kind}"'
        inside = f"<title>{html.escape(tip)}</title>" if tip else ""
        self.parts.append(f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" height="{max(height, 0):.2f}" {fill}>{inside}</rect>')

    def line(self, x1, y1, x2, y2, kind="line"):
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>')

    def path(self, points, colour):
        joined = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for x, y in points:
            self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')

    def legend(self, x, y, names):
        for index, name in enumerate(names):
            self.rect(x, y - 10, 11, 11, COLOURS[index % len(COLOURS)])
            self.text(x + 16, y, name, "small")
            x += 30 + 6.6 * len(name)

    def write(self, path):
        path = pathlib.Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        body = "\n".join(self.parts)
        path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" '
                        f'width="{self.width}" height="{self.height}" role="img">\n{body}\n</svg>\n')


def _ticks(high):
    """Round numbers from 0 to about `high`."""
    if high <= 0:
        return [0, 1]
    step = 10 ** math.floor(math.log10(high))
    step = next(s for s in (step / 5, step / 2, step, 2 * step) if high / s <= 6)
    return [i * step for i in range(int(math.ceil(high / step)) + 1)]


def _number(value):
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def bars(path, title, groups, series, unit):
    """`groups`: {label: [value of each of `series`]}; None is drawn as a missing bar."""
    left, top, height, bottom = 64, 64, 220, 36
    width_of = max(26, 46 - 8 * len(series))
    gap = 30
    width = max(420, left + 20 + len(groups) * (len(series) * width_of + gap))
    picture = Picture(width, top + height + bottom, title)
    ticks = _ticks(max([v for values in groups.values() for v in values if v is not None] + [0]))
    scale = height / ticks[-1]
    for tick in ticks:
        y = top + height - tick * scale
        picture.line(left, y, width - 10, y, "grid")
        picture.text(left - 6, y + 4, _number(tick), "small", "end")
    picture.text(16, 44, unit, "small")
    if len(series) > 1:
        picture.legend(left + 80, 44, series)
    x = left + gap / 2
    for label, values in groups.items():
        for index, value in enumerate(values):
            if value is not None:
                tall = value * scale
                picture.rect(x + index * width_of, top + height - tall, width_of - 3, tall, COLOURS[index % len(COLOURS)])
                picture.text(x + index * width_of + width_of / 2 - 1, top + height - tall - 4, _number(value), "small", "middle")
        picture.text(x + len(series) * width_of / 2, top + height + 18, label, "small", "middle")
        x += len(series) * width_of + gap
    picture.line(left, top + height, width - 10, top + height)
    picture.write(path)


def lines(path, title, series, axes, log_x=False):
    """`series`: {name: [(x, y)]}; `axes`: (name of x, name of y). Both axes begin at 0, or x is logarithmic (base 2)."""
    left, top, width, height = 64, 64, 560, 230
    picture = Picture(left + width + 30, top + height + 50, title)
    points = [p for line in series.values() for p in line]
    ticks = _ticks(max(y for _, y in points))
    xs = sorted({x for x, _ in points})
    at = (lambda x: math.log2(x)) if log_x else (lambda x: x)
    low, high = (at(xs[0]), at(xs[-1])) if log_x else (0, xs[-1])
    place_x = lambda x: left + (at(x) - low) / ((high - low) or 1) * width
    place_y = lambda y: top + height - y / ticks[-1] * height
    for tick in ticks:
        picture.line(left, place_y(tick), left + width, place_y(tick), "grid")
        picture.text(left - 6, place_y(tick) + 4, _number(tick), "small", "end")
    for x in xs:
        picture.text(place_x(x), top + height + 17, _number(x), "small", "middle")
    picture.text(left + width / 2, top + height + 38, axes[0], "small", "middle")
    picture.text(16, 44, axes[1], "small")
    picture.legend(left + 120, 44, list(series))
    for index, line in enumerate(series.values()):
        picture.path([(place_x(x), place_y(y)) for x, y in line], COLOURS[index % len(COLOURS)])
    picture.line(left, top + height, left + width, top + height)
    picture.write(path)


def timelines(path, title, panels):
    """`panels`: [(heading, {track: [(begin ms, end ms, label, colour index)]}, length ms)]; what is not covered is idle."""
    left, width, bar, space = 110, 760, 26, 10
    heights = [34 + len(tracks) * (bar + space) + 24 for _, tracks, _ in panels]
    picture = Picture(left + width + 20, 40 + sum(heights), title)
    y = 40
    longest = max(length for _, _, length in panels)
    for (heading, tracks, length), height in zip(panels, heights):
        scale = width / longest
        picture.text(16, y + 16, heading)
        row = y + 30
        for name, slices in tracks.items():
            picture.text(left - 8, row + bar - 8, name, "small", "end")
            picture.rect(left, row, length * scale, bar, kind="gap")
            for begin, end, label, colour in slices:
                picture.rect(left + begin * scale, row, (end - begin) * scale - 0.4, bar, COLOURS[colour % len(COLOURS)], tip=label)
            row += bar + space
        for tick in _ticks(length):
            if tick <= length:
                picture.text(left + tick * scale, row + 8, f"{_number(tick)} ms", "small", "middle")
        y += height
    picture.write(path)
