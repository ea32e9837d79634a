"""Pairs of products, drawn and told: the same one twice, or two that differ in one attribute of one object.

The task of MLIM (arXiv 2109.12178), made by code. A product is one or two objects. Each time that it is shown its
background, its light, the noise and where exactly its objects lie are others, and it has another text. A second product
differs from the first in the colour or shape, the texture or the size of one object. One pair in eight lacks a picture
or a text of one of the two.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

from maskvlm_jax.data.scenes.captions import caption, pick
from maskvlm_jax.data.scenes.generated import Generated, near, repainted
from maskvlm_jax.data.scenes.source import existing_splits as existing_splits
from maskvlm_jax.data.scenes.world import BACKGROUNDS, SIZES, SLOPE, TEXTURES, Dice, Scene, SceneObject, sample_scene
from maskvlm_jax.data.sources.base import Source

PARTS = ("image", "captions", "image2", "text2")
_LACKING = 8  # one pair in so many


def open_split(data: Mapping[str, Any], split: str, *, image_size: int) -> Source:
    """The pairs of a split, drawn from the seed `data.scenes_seed`."""
    return Products(split=split, image_size=image_size, seed=data["scenes_seed"])


class Pair(NamedTuple):
    """How the two products are seen, what is written of each, whether they are the same, and what is absent."""

    scenes: tuple[Scene, Scene]
    texts: tuple[str, str]
    same: bool
    absent: tuple[str, ...]


class Products(Generated):
    """Pairs of products; keys as those of the source `product_pairs`."""

    name: ClassVar[str] = "products"
    version: ClassVar[int] = 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        pair = self.pair(index)
        pictures = [self.drawn(scene, index, part) for part, scene in enumerate(pair.scenes)]
        return {
            "id": self.id(index),
            "image": pictures[0],
            "captions": [pair.texts[0]],
            "image2": pictures[1],
            "text2": pair.texts[1],
            "label": int(pair.same),
            "absent": list(pair.absent),
        }

    def captions(self, index: int) -> list[str]:
        """The first product's text alone, without drawing."""
        return [self.pair(index).texts[0]]

    def pair(self, index: int) -> Pair:
        """What is drawn and written."""
        dice = self.dice(index)
        product = sample_scene(dice, kinds=tuple(self.kinds))
        while len(product.objects) > 2:
            product = sample_scene(dice, kinds=tuple(self.kinds))
        same = bool(dice.roll(2))
        products = [product, product if same else self._other(product, dice)]
        if dice.roll(2):
            products.reverse()
        first, second = (_seen(one, dice) for one in products)
        texts = caption(first, self.dice(index, 1)), caption(second, self.dice(index, 2))
        absent = (pick(PARTS, dice),) if dice.roll(_LACKING) == 0 else ()
        return Pair((first, second), texts, same, absent)

    def _other(self, product: Scene, dice: Dice) -> Scene:
        """Another product, which differs in one attribute."""
        place = dice.roll(len(product.objects))
        thing, attribute = product.objects[place], pick(("kind", "kind", "texture", "size"), dice)
        crowded = len(product.objects) > 1  # two large objects may be too many for neighbouring places
        if attribute == "size" and not (crowded and thing.size == "small"):
            thing = thing._replace(size=SIZES[1 - SIZES.index(thing.size)])
        elif attribute == "kind":
            thing = repainted(thing, pick(near((thing.colour, thing.shape), self.kinds), dice))
        else:
            thing = thing._replace(texture=pick([one for one in TEXTURES if one != thing.texture], dice))
        things = (*product.objects[:place], thing, *product.objects[place + 1 :])
        return product._replace(objects=things)


def _seen(product: Scene, dice: Dice) -> Scene:
    """The product once more: other surroundings, its objects shifted a little."""

    def shifted(thing: SceneObject) -> SceneObject:
        return thing._replace(jitter=(dice.roll(3) - 1, dice.roll(3) - 1))

    slope = (dice.roll(2 * SLOPE + 1) - SLOPE, dice.roll(2 * SLOPE + 1) - SLOPE)
    return Scene(tuple(map(shifted, product.objects)), pick(BACKGROUNDS, dice), slope)
