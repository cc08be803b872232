"""Photos of a set side by side, a row per province."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageOps

from geopak.geo.region import Region
from geopak.render.photo_plan import round_to_total


def contact_sheet(
    out: Path, rows: pd.DataFrame, region: Region, num_photos: int, tile_px: int = 150
) -> Image.Image:
    """Photos side by side, a row per province: the first good ones of different albums.

    Args:
        out: folder of the set.
        rows: table of :func:`plan_photos`.
        region: names the rows.
        num_photos: number of photos in all.
        tile_px: width of a photo on the sheet.
    """
    good = rows[rows["defect"] == ""].drop_duplicates("album")
    quota = round_to_total(np.full(region.num_provinces, num_photos / region.num_provinces))
    height, label = round(0.75 * tile_px), 16
    size = (max(quota) * tile_px, region.num_provinces * (height + label))
    sheet = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(sheet)
    for province, count in enumerate(quota):
        top = province * (height + label)
        pen.text((4, top + 2), region.names[province], fill="black")
        paths = good.loc[good["true_province_id"] == province, "path"].head(count)
        for column, path in enumerate(paths):
            with Image.open(out / path) as image:
                tile = ImageOps.fit(image, (tile_px - 2, height - 2))
            sheet.paste(tile, (column * tile_px + 1, top + label))
    return sheet
