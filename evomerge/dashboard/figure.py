"""One figure as ECharts' options: plain data that a page draws, and the table behind it.

What JSON cannot say, a drawing page adds by name (`app.js`): tooltips, and links of points.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson
import pandas as pd

# Okabe and Ito's colours, which colour-blind people tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#8c8c8c"),
)
CATEGORIES = (BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY)
SEQUENTIAL = ("#fff7bc", "#fec44f", "#d95f0e", "#7f0000")
DIVERGING = ("#2166ac", "#92c5de", "#f7f7f7", "#f4a582", "#b2182b")
ROW = 22  # pixels of a heatmap's row


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One figure."""

    name: str
    """Part of its address and of file names."""
    title: str
    summary: str
    """What it shows, for those who do not see it."""
    option: Mapping[str, Any]
    table: pd.DataFrame
    """What is drawn."""
    height: int = 360
    """Pixels."""

    def to_json(self, file: str) -> bytes:
        """What a page draws it from. file: the name of saved pictures begins with it."""
        content = {
            "title": self.title,
            "summary": self.summary,
            "height": self.height,
            "option": self.option,
            "file": f"{file}-{self.name}",
        }
        return orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY)


def base_option(*, tooltip: str) -> dict[str, Any]:
    """What all figures share. tooltip: its name in app.js."""
    return {
        "animation": False,
        "backgroundColor": "transparent",
        "tooltip": {"named": tooltip, "confine": True},
    }


MIDDLE: Mapping[str, Any] = {"nameLocation": "middle", "nameGap": 26}
"""Where the name of an axis stands."""
