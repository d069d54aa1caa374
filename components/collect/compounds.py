"""English compounds that name another thing than the words in them: there a name alone flags nothing, and the score decides.

Only compounds that nobody could read otherwise: "cat walk" is none, since a cat walks.
"""

from __future__ import annotations

COMPOUNDS = (
    "bell pepper", "bird of paradise", "bow tie", "butterfly stroke", "cable car", "corn dog", "dog tag",
    "dragon fruit", "fire truck", "fish eye lens", "guinea pig", "honey bee", "hot dog", "hot rod", "jelly fish", "lady bug",
    "mouse pad", "neon tetra", "palm tree", "piggy bank", "pony tail", "prairie dog", "rocket salad", "rose water", "sea horse",
    "sea lion", "shoe tree", "star fish", "tiger lily", "turtle neck", "water buffalo", "wolf spider", "zebra crossing",
)  # fmt: skip
