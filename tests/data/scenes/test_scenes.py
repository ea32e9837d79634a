"""The scenes are the same everywhere, their captions are true and telling, and the novel pairs are novel.

The checker below reads captions as a person would, from the words alone, and holds them against the ground truth.
"""

import hashlib
import itertools
import os
import pickle
import subprocess
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest

from maskvlm_jax.data.scenes.drawing import BACKGROUND_RGB, RGB, draw, noise_words
from maskvlm_jax.data.scenes.source import SPLIT_LENGTHS, Scenes
from maskvlm_jax.data.scenes.world import BACKGROUNDS, COLOURS, NOVEL_KINDS, PLACES, RELATIONS, SHAPES, SIZES, TEXTURES
from maskvlm_jax.runtime.errors import UserError
from tests.conftest import ROOT

# Of the pictures and captions of the first 20 test scenes; a change of the generator must change `_VERSION` too.
GOLDEN = "37187730825f8dce7eb5919fe9d4e89889b898c05eb85bdeb3fb6f51ddb69ae6"
PLURALS = {("crosses" if shape == "cross" else shape + "s"): shape for shape in SHAPES}
COUNTS = {"two": 2, "three": 3}
GLUE = ("there", "is", "a", "an", "and", "with")
FUNCTION_WORDS = {*GLUE, *COUNTS, "on", "of"}


@dataclass
class Facts:
    """What a caption states: attributes and number of each mention, relations between neighbours, the background."""

    mentions: list[dict] = field(default_factory=list)
    relations: list[tuple[int, str, int]] = field(default_factory=list)
    background: str | None = None


def read_place(words: list[str]) -> str | None:
    """Takes the place that the words start with."""
    return words.pop(0) if words and words[0] in PLACES else None


def read_relation(words: list[str]) -> str | None:
    """Takes the relation that the words start with."""
    relation = next((name for name in RELATIONS if words[: len(name.split())] == name.split()), None)
    if relation:
        del words[: len(relation.split())]
    return relation


def read_attributes(words: list[str]) -> dict:
    """Takes `[count] [size] [texture] colour shape` from the front of the words."""
    mention = {"count": COUNTS.get(words[0], 1)}
    if words[0] in COUNTS:
        words.pop(0)
    for name, values in (("size", SIZES), ("texture", TEXTURES)):
        if words[0] in values:
            mention[name] = words.pop(0)
    mention["colour"] = words.pop(0)
    shape = words.pop(0)
    mention["shape"] = PLURALS[shape] if mention["count"] > 1 else shape
    assert mention["colour"] in COLOURS and mention["shape"] in SHAPES
    return mention


def read(caption: str) -> Facts:
    """What a caption states; fails where it is not of the language."""
    words, facts = caption.split(), Facts()
    if "on" in words:
        at = words.index("on")
        assert at in (0, len(words) - 2)
        _, facts.background = words[at : at + 2]
        del words[at : at + 2]
        assert facts.background in BACKGROUNDS
    words = [word for word in words if word not in GLUE]
    while words:
        if relation := read_relation(words):
            facts.relations.append((len(facts.mentions) - 1, relation, len(facts.mentions)))
        mention = read_attributes(words)
        place = read_place(words)
        facts.mentions.append(mention | ({"place": place} if place else {}))
    return facts


def stands(a: dict, relation: str, b: dict) -> bool:
    """Whether the boxes of `a` and `b` at 64 pixels are that way round, by more than the jitter can account for."""
    axis, sign = {"left of": (0, 1), "right of": (0, -1), "above": (1, 1), "below": (1, -1)}[relation]
    centres = [(thing["box"][axis] + thing["box"][axis + 2]) / 2 for thing in (a, b)]
    return sign * (centres[1] - centres[0]) > 10


def fits(mention: dict, thing: dict) -> bool:
    return all(thing[name] == value for name, value in mention.items() if name != "count")


def holds(facts: Facts, objects: list[dict], background: str) -> bool:
    """Whether the mentions can be matched to different objects of a scene such that everything stated is so."""
    if facts.background not in (None, background):
        return False
    for mention in facts.mentions:
        kind = [o for o in objects if (o["colour"], o["shape"]) == (mention["colour"], mention["shape"])]
        if mention["count"] > 1 and (len(kind) != mention["count"] or not all(fits(mention, o) for o in kind)):
            return False
    single = [mention for mention in facts.mentions if mention["count"] == 1]
    return any(
        all(map(fits, single, chosen)) and all(stands(chosen[i], name, chosen[j]) for i, name, j in facts.relations)
        for chosen in itertools.permutations(objects, len(single))
    )


def truth(source: Scenes, index: int) -> tuple[list[dict], str]:
    """A scene's objects and background as `holds` takes them, without drawing."""
    scene = source.scene(index)
    return [o._asdict() | {"place": PLACES[o.place], "box": o.box(64)} for o in scene.objects], scene.background


def digest(source: Scenes, indices) -> str:
    """One hash over the pictures and captions at the indices, whatever order they are read in."""
    parts = {i: source[i]["image"].tobytes() + "\n".join(source[i]["captions"]).encode() for i in indices}
    return hashlib.sha256(b"".join(parts[i] for i in sorted(parts))).hexdigest()


@pytest.fixture(scope="module", params=["train", "test", "novel"])
def captions(request) -> list[tuple[Facts, str, list[dict], str]]:
    source = Scenes(split=request.param)
    return [(read(text), text, *truth(source, i)) for i in range(1000) for text in source.captions(i)]


def test_same_bytes_in_any_order_and_in_a_fresh_process():
    source = Scenes(split="test")
    assert digest(source, range(20)) == digest(source, reversed(range(20))) == GOLDEN
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests.data.scenes.digest_of_pickle"]
    fresh = subprocess.run(
        command, cwd=ROOT, input=pickle.dumps(source), capture_output=True, env=environment, check=True
    )
    assert fresh.stdout.decode().strip() == GOLDEN


def test_an_example_follows_the_source_contract():
    source = Scenes(split="val")
    example = source[7]
    assert len(source) == 1000 and source.report == {} and source.id(7) == example["id"] == "val-000007"
    assert example["image"].shape == (64, 64, 3) and example["image"].dtype == np.uint8
    assert source.captions(7) == example["captions"] and len(example["captions"]) == 5
    scene = source.scene(7)
    assert example["background"] == scene.background and example["relations"] == scene.relations()
    assert [o["place"] for o in example["objects"]] == [PLACES[thing.place] for thing in scene.objects]
    with pytest.raises(IndexError):
        source[1000]


def test_the_fingerprint_tells_sources_apart():
    settings = [{}, {"seed": 1}, {"length": 10}, {"image_size": 96}, {"split": "val"}]
    prints = [Scenes(**{"split": "test"} | change).fingerprint for change in settings]
    assert len(set(prints)) == len(prints)
    assert pickle.loads(pickle.dumps(Scenes(split="test"))).fingerprint == prints[0]


def test_splits_and_seeds_differ():
    sources = [Scenes(split=split) for split in SPLIT_LENGTHS] + [Scenes(split="train", seed=1)]
    scenes = [source.scene(i) for source in sources for i in range(1000)]
    assert len(set(scenes)) == len(scenes)


def test_novel_kinds_occur_only_in_novel_and_all_their_parts_elsewhere():
    kinds = {
        split: {(o.colour, o.shape) for i in range(1000) for o in Scenes(split=split).scene(i).objects}
        for split in SPLIT_LENGTHS
    }
    assert kinds.pop("novel") == set(NOVEL_KINDS) and len(NOVEL_KINDS) == 8
    assert all(found == set(itertools.product(COLOURS, SHAPES)) - set(NOVEL_KINDS) for found in kinds.values())
    assert [len(set(part)) for part in zip(*NOVEL_KINDS, strict=True)] == [8, 8]


def test_every_caption_is_true(captions):
    assert [text for facts, text, *scene in captions if not holds(facts, *scene)] == []


def test_the_checker_refuses_captions_of_other_scenes(captions):
    others = captions[5:] + captions[:5]
    refused = [not holds(facts, *scene) for (facts, *_), (_, _, *scene) in zip(captions, others, strict=True)]
    assert np.mean(refused) > 0.98


def test_relations_are_all_the_true_ones():
    source = Scenes(split="train")
    for example in map(source.__getitem__, range(200)):
        objects = example["objects"]
        pairs = itertools.permutations(range(len(objects)), 2)
        expected = {(i, name, j) for i, j in pairs for name in RELATIONS if stands(objects[i], name, objects[j])}
        assert set(example["relations"]) == expected and len(example["relations"]) == len(expected)


def test_captions_are_short_and_mostly_content(captions):
    texts = [text.split() for _, text, *_ in captions]
    words = list(itertools.chain.from_iterable(texts))
    assert max(map(len, texts)) <= 24 and 9 <= np.mean([len(text) for text in texts]) <= 13
    assert np.mean([word not in FUNCTION_WORDS for word in words]) > 0.8
    assert 45 <= len(set(words)) <= 70


def test_captions_mention_all_objects_and_more_than_colour_and_shape(captions):
    complete = [sum(m["count"] for m in facts.mentions) == len(objects) for facts, _, objects, _ in captions]
    detailed = [facts.relations or any(len(m) > 3 for m in facts.mentions) for facts, *_ in captions]
    assert np.mean(complete) > 0.9 and np.mean([bool(detail) for detail in detailed]) > 0.98


def test_a_caption_picks_out_its_picture_among_the_test_split():
    source = Scenes(split="test")
    scenes = [truth(source, i) for i in range(1000)]
    kinds = [{(o["colour"], o["shape"]) for o in objects} for objects, _ in scenes]
    alone = []
    for i in range(1000):
        facts = read(source.captions(i)[0])
        stated = {(m["colour"], m["shape"]) for m in facts.mentions}
        alone.append(not any(stated <= kinds[j] and holds(facts, *scenes[j]) for j in range(1000) if j != i))
    assert np.mean(alone) >= 0.95


def test_an_object_changes_only_and_nearly_all_of_its_box():
    source, noise = Scenes(split="val"), np.zeros(noise_words(64), np.uint64)
    for scene in map(source.scene, range(100)):
        whole = draw(scene, noise, image_size=64)
        for k, thing in enumerate(scene.objects):
            without = draw(scene._replace(objects=scene.objects[:k] + scene.objects[k + 1 :]), noise, image_size=64)
            y, x = np.nonzero((whole != without).any(axis=-1))
            x0, y0, x1, y1 = thing.box(64)
            assert x0 <= x.min() <= x0 + 3 and y0 <= y.min() <= y0 + 3
            assert x1 > x.max() >= x1 - 5 and y1 > y.max() >= y1 - 5


def test_every_colour_is_brighter_than_every_background():
    luma = np.array([0.299, 0.587, 0.114])
    assert min(luma @ rgb for rgb in RGB.values()) > 1.3 * max(luma @ rgb for rgb in BACKGROUND_RGB.values())
    assert set(RGB) == set(COLOURS) and set(BACKGROUND_RGB) == set(BACKGROUNDS)


@pytest.mark.parametrize("image_size", [32, 45, 64, 100, 224, 333])
def test_boxes_lie_in_the_picture_and_never_overlap(image_size):
    source = Scenes(split="train", image_size=image_size)
    for scene in map(source.scene, range(1000)):
        boxes = [thing.box(image_size) for thing in scene.objects]
        assert all(0 <= x0 < x1 <= image_size and 0 <= y0 < y1 <= image_size for x0, y0, x1, y1 in boxes)
        for a, b in itertools.combinations(boxes, 2):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    assert source[0]["image"].shape == (image_size, image_size, 3)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"split": "trian"}, "train, val, test, novel"),
        ({"split": "val", "length": 0}, "length is 0"),
        ({"split": "val", "image_size": 8}, "at least 32"),
        ({"split": "val", "seed": -1}, "seed is -1"),
    ],
)
def test_bad_settings_are_told(settings, named):
    with pytest.raises(UserError, match=named):
        Scenes(**settings)
