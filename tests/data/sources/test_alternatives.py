"""Readers of SugarCrepe, Winoground and ARO: what they make of the released files, and what each bad input says."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import pretrain
from maskvlm_jax.data.sources.opening import open_source
from maskvlm_jax.runtime.errors import UserError


def png(number: int, size: tuple[int, int] = (8, 6)) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", size, (number, 0, 0)).save(content, "PNG")
    return content.getvalue()


def put(path: Path, content: bytes | str | dict | list) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = content if isinstance(content, bytes | str) else json.dumps(content)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def opened(source: str, root: Path, **values):
    data = pretrain.get_config("data=files").data.to_dict()
    data |= {"source": source, "root": str(root), "images": "", "captions": "", "splits": {}} | values
    return open_source(data, "test", 32)


def entry(name: str, caption: str, negative: str) -> dict:
    return {"filename": name, "caption": caption, "negative_caption": negative}


@pytest.fixture
def sugarcrepe(tmp_path):
    put(tmp_path / "add_att.json", {"0": entry("a.jpg", "a cat ", "a  red cat"), "1": entry("b.jpg", "é", "ö")})
    put(tmp_path / "swap_obj.json", {"0": entry("a.jpg", "a cat on a mat", "a mat on a cat")})
    for number, name in enumerate("ab"):
        put(tmp_path / "val2017" / f"{name}.jpg", png(number))
    return tmp_path


def test_all_kinds_of_sugarcrepe_are_read_at_once(sugarcrepe):
    source = opened("sugarcrepe", sugarcrepe)
    assert [source.id(i) for i in range(len(source))] == ["add_att/0", "add_att/1", "swap_obj/0"]
    assert source.captions(0) == ["a cat", "a red cat"] and source.captions(1) == ["é", "ö"]
    assert source[2] == {
        "id": "swap_obj/0",
        "image": png(0),
        "captions": ["a cat on a mat", "a mat on a cat"],
        "kind": "swap_obj",
        "family": "swap",
        "group": "",
        "tag": "",
    }
    assert source.report == {} and len(source.fingerprint) == 64


def test_files_of_a_release_may_lie_elsewhere(sugarcrepe):
    (sugarcrepe / "data").mkdir()
    (sugarcrepe / "add_att.json").rename(sugarcrepe / "data" / "add_att.json")
    (sugarcrepe / "swap_obj.json").unlink()
    (sugarcrepe / "val2017").rename(sugarcrepe / "pictures")
    assert len(opened("sugarcrepe", sugarcrepe, images="pictures")) == 2
    assert len(opened("sugarcrepe", sugarcrepe, images="pictures", captions="data/add_*.json")) == 2
    assert len(opened("sugarcrepe", sugarcrepe, images="pictures", splits={"test": "data/add_att.json"})) == 2


def test_missing_pictures_are_counted_up_to_a_share(sugarcrepe):
    (sugarcrepe / "val2017" / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"1 of 2 pictures of the split are not in .*first: b\.jpg"):
        opened("sugarcrepe", sugarcrepe)
    source = opened("sugarcrepe", sugarcrepe, max_missing=0.5)
    assert [source.id(i) for i in range(2)] == ["add_att/0", "swap_obj/0"] and len(source) == 2
    assert source.report == {"missing_pictures": 1}


BAD = {
    '{"0": {"filename": "a.jpg", "caption": "x"}}': r"bad\.json '0': the key 'negative_caption' is missing",
    '{"0": {"filename": "a.jpg", "caption": 3, "negative_caption": "y"}}': r"'0': 'caption' has the wrong type",
    '{"0": {"filename": "a.jpg", "caption": " ", "negative_caption": "y"}}': r"bad\.json '0': a caption is empty",
    '{"0": {"filename": "a.jpg", "caption": "\\ud800", "negative_caption": "y"}}': r"a caption is empty or no text",
    '{"0": {"filename": "../a.jpg", "caption": "x", "negative_caption": "y"}}': r"not a path inside the picture folder",
    '{"0": 7}': r"bad\.json '0': a JSON object is expected, not int",
    "[]": r"bad\.json: no file of SugarCrepe",
    "{": r"bad\.json: invalid JSON",
    "{}": r"there is no picture with captions to tell apart",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_file_of_sugarcrepe_is_told_in_a_line(sugarcrepe, text):
    put(sugarcrepe / "bad.json", text)
    with pytest.raises(UserError, match=BAD[text]) as raised:
        opened("sugarcrepe", sugarcrepe, captions="bad.json")
    assert "\n" not in str(raised.value)


def test_a_number_that_stands_twice_is_told(sugarcrepe):
    one = json.dumps(entry("a.jpg", "x", "y"))
    put(sugarcrepe / "bad.json", f'{{"5": {one}, "5": {one}}}')
    with pytest.raises(UserError, match=r"bad\.json '5': 'bad/5' is there already"):
        opened("sugarcrepe", sugarcrepe, captions="bad.json")


@pytest.mark.parametrize("source", ["sugarcrepe", "winoground", "aro"])
def test_where_nothing_is_the_file_to_set_is_told(source, tmp_path):
    with pytest.raises(UserError, match=rf"there is no .*json.*; set --config\.data\.captions to the file of {source}"):
        opened(source, tmp_path)
    with pytest.raises(UserError, match="data root '/nowhere' is not a folder"):
        opened(source, Path("/nowhere"))
    put(tmp_path / "some.json", "{}")
    with pytest.raises(UserError, match=r"no such picture folder; set --config\.data\.images"):
        opened(source, tmp_path, captions="some.json")


def item(number: int, **changes) -> dict:
    named = {f"image_{side}": f"ex_{number}_img_{side}" for side in (0, 1)}
    captions = {"caption_0": "an old person kisses a young person", "caption_1": "a young person kisses an old person"}
    return {"id": number, **named, **captions, "tag": "Adjective", "collapsed_tag": "Object"} | changes


@pytest.fixture
def winoground(tmp_path):
    lines = [item(0), item(1, caption_0="a\u2028b", tag="Noun", collapsed_tag="Both")]
    put(tmp_path / "examples.jsonl", "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n")
    for number in (0, 1):
        for side in (0, 1):
            put(tmp_path / "images" / f"ex_{number}_img_{side}.png", png(10 * number + side))
    return tmp_path


def test_an_item_of_winoground_is_two_examples_of_a_group(winoground):
    source = opened("winoground", winoground)
    assert [source.id(i) for i in range(len(source))] == ["0/0", "0/1", "1/0", "1/1"]
    first, second = source[0], source[1]
    assert first["captions"] == second["captions"][::-1] and first["captions"][0].startswith("an old")
    assert (first["image"], second["image"]) == (png(0), png(1))
    assert (first["group"], second["group"], first["tag"], source[2]["tag"]) == ("0", "0", "Object", "Both")
    assert source.captions(2)[0] == "a b"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"id": 0}, r"examples\.jsonl row 2: '0/0' is there already \(examples\.jsonl row 1\)"),
        ({"caption_1": ["x"]}, r"row 2: 'caption_1' has the wrong type: list"),
        ({"image_0": 4}, r"row 2: 'image_0' has the wrong type: int"),
        ({"caption_0": ""}, r"row 2: a caption is empty"),
    ],
)
def test_a_bad_row_of_winoground_is_named(winoground, changes, told):
    put(winoground / "examples.jsonl", f"{json.dumps(item(0))}\n{json.dumps(item(1, **changes))}\n")
    with pytest.raises(UserError, match=told):
        opened("winoground", winoground)


def relation(**changes) -> dict:
    box = {"bbox_x": 2, "bbox_y": 1, "bbox_w": 4, "bbox_h": 3}
    captions = {"true_caption": "the cat is on the mat", "false_caption": "the mat is on the cat"}
    return {"image_path": "a.png", **box, **captions, "relation_name": "on"} | changes


@pytest.fixture
def aro(tmp_path):
    pixels = np.arange(8 * 6 * 3, dtype=np.uint8).reshape(6, 8, 3)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    put(tmp_path / "images" / "a.png", content.getvalue())
    attribution = relation(attributes=["white", "round"])
    del attribution["relation_name"]
    put(tmp_path / "visual_genome_relation.json", [relation(), relation(bbox_w=100, relation_name="behind")])
    put(tmp_path / "visual_genome_attribution.json", [attribution])
    return tmp_path, pixels


def test_of_aro_the_box_alone_is_read(aro):
    root, pixels = aro
    source = opened("aro", root)
    assert [source.id(i) for i in range(len(source))] == ["vg_attribution/0", "vg_relation/0", "vg_relation/1"]
    assert [source[i]["tag"] for i in range(3)] == ["white_round", "on", "behind"]
    np.testing.assert_array_equal(source[1]["image"], pixels[1:4, 2:6])
    np.testing.assert_array_equal(source[2]["image"], pixels[1:4, 2:])  # as far as the picture goes
    assert source.captions(1) == ["the cat is on the mat", "the mat is on the cat"]


def test_permuted_captions_are_read_as_the_program_of_aro_made_them(aro):
    root, _ = aro
    options = ["a dog runs", "runs dog a", "dog a runs"]
    put(root / "coco_order.json", [{"image": "a.png", "caption_options": options}])
    source = opened("aro", root, captions="coco_order.json")
    assert source.captions(0) == options and source[0]["kind"] == "coco_order" and isinstance(source[0]["image"], bytes)


def test_what_cannot_be_cropped_is_a_broken_picture(aro):
    root, _ = aro
    put(root / "visual_genome_relation.json", [relation(bbox_x=50), relation(image_path="b.png")])
    put(root / "images" / "b.png", b"no picture")
    source = opened("aro", root, captions="visual_genome_relation.json")
    assert source[0]["image"] == source[1]["image"] == b""


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"bbox_w": 0}, r"relation\.json row 1: the box .* has no area"),
        ({"bbox_h": float("nan")}, r"row 1: the box .* has no area"),
        ({"bbox_x": "2"}, r"row 1: 'bbox_x' has the wrong type: str"),
        ({"bbox_w": True}, r"row 1: the box .* has no area"),
        ({"attributes": "white", "relation_name": "on"}, None),
        ({"relation_name": 3}, r"row 1: 'relation_name' has the wrong type"),
        ({"caption_options": ["one"]}, r"'caption_options' holds 1 captions"),
        ({"caption_options": ["one", 2], "image": "a.png"}, r"row 1: a caption is empty or no text"),
    ],
)
def test_a_bad_row_of_aro_is_named(aro, changes, told):
    root, _ = aro
    put(root / "visual_genome_relation.json", [relation(**changes)])
    if told is None:
        assert opened("aro", root)[1]["tag"] == "on"
        return
    with pytest.raises(UserError, match=told):
        opened("aro", root, captions="visual_genome_relation.json")
