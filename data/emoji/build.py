"""Draw the emoji of objects.toml from the font Noto Color Emoji: one sheet of sprites, and a list of what is where.

apt-get install fonts-noto-color-emoji
python -m data.emoji.build --font /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf
"""

import argparse
import colorsys
import json
import tomllib
from collections import Counter
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
SIDE = 64  # of a sprite on the sheet
COLUMNS = 16
STRIKE = 109  # the one size in pixels that the font's bitmaps have
CANVAS = 160
PLAIN = 0.6  # share of a drawing's pixels that one colour must hold for the drawing to be called by it
HUES = {"red": 0, "orange": 30, "yellow": 55, "green": 120, "blue": 215, "purple": 280, "pink": 330}


def draw(emoji: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    """One emoji, cropped to what is drawn, in the middle of a square."""
    canvas = Image.new("RGBA", (CANVAS, CANVAS))
    ImageDraw.Draw(canvas).text((12, 12), emoji, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None:
        raise SystemExit(f"The font has no drawing of {emoji}.")
    found = canvas.crop(box)
    side = max(found.size)
    square = Image.new("RGBA", (side, side))
    square.paste(found, ((side - found.width) // 2, (side - found.height) // 2))
    # Colours of clear pixels must not leak in at the edges: resize them weighed by their opacity.
    return square.convert("RGBa").resize((SIDE, SIDE), Image.Resampling.LANCZOS).convert("RGBA")


def colour(drawing: Image.Image) -> str | None:
    """The colour that most of a drawing has, where one does."""
    pixels = [pixel for pixel in zip(*[iter(drawing.tobytes())] * 4, strict=True) if pixel[3] > 128]
    named = Counter(colour_name(*pixel[:3]) for pixel in pixels)
    name, count = named.most_common(1)[0]
    return name if count >= PLAIN * len(pixels) else None


def colour_name(red: int, green: int, blue: int) -> str:
    hue, saturation, value = colorsys.rgb_to_hsv(red / 255, green / 255, blue / 255)
    if value < 0.25:
        return "black"
    if saturation < 0.15:
        return "white" if value > 0.85 else "gray"
    degrees = hue * 360
    name = min(HUES, key=lambda each: min(abs(degrees - HUES[each]), 360 - abs(degrees - HUES[each])))
    return "brown" if name in ("red", "orange") and value < 0.7 else name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--font", type=Path, required=True)
    font = ImageFont.truetype(parser.parse_args().font, STRIKE)
    objects = tomllib.loads((HERE / "objects.toml").read_text())["drawings"]
    rows, sprites = [], []
    for name, emoji in objects.items():
        for place, sign in enumerate(emoji):
            sprite = draw(sign, font)
            held_out = 0 < place == len(emoji) - 1
            rows.append({"object": name, "emoji": sign, "held_out": held_out, "colour": colour(sprite)})
            sprites.append(sprite)
    sheet = Image.new("RGBA", (COLUMNS * SIDE, -(-len(sprites) // COLUMNS) * SIDE))
    for place, sprite in enumerate(sprites):
        sheet.paste(sprite, (place % COLUMNS * SIDE, place // COLUMNS * SIDE))
    sheet.save(HERE / "sprites.png", optimize=True)
    lines = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in rows)
    (HERE / "sprites.json").write_text(f'{{"side": {SIDE}, "columns": {COLUMNS}, "sprites": [\n{lines}\n]}}\n')
    print(f"{len(objects)} objects, {len(sprites)} drawings, {sum(row['held_out'] for row in rows)} held out")


if __name__ == "__main__":
    main()
