"""What people's own files and habits broke, a test a kind: each with the value that is right."""

import io
import json
import re
import shlex
import signal
import struct
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageOps

from configs import common, pretrain
from maskvlm_jax import best, checkpoint
from maskvlm_jax import workdir as workdirs
from maskvlm_jax.config import expand_paths
from maskvlm_jax.data import batch, caption_files, sources, transforms
from maskvlm_jax.data import tokenizer as tokenizers
from maskvlm_jax.data.files import Files
from maskvlm_jax.data.parquet import Parquet
from maskvlm_jax.errors import UserError
from maskvlm_jax.watch import StepWatch
from tests.conftest import ROOT, toy_config, toy_flags
from tests.data import hostile
from tests.data.test_webdataset import WebDataset, jpeg, write_tar


def pictures(folder, names, splits=None, captions="a red square {}"):
    """A folder of pictures, `captions.csv` and the lists of `splits`."""
    (folder / "images").mkdir(parents=True)
    for number, name in enumerate(names):
        hostile.picture(number).save(folder / "images" / name)
    rows = [f'{name},"{captions.format(number)}"' for number, name in enumerate(names)]
    (folder / "captions.csv").write_text("\n".join(["image,caption", *rows]) + "\n", encoding="utf-8")
    for split, chosen in (splits or {"train": names, "val": names[:2]}).items():
        (folder / f"{split}.txt").write_text("\n".join(chosen) + "\n", encoding="utf-8")
    return folder


NAMES = [f"p{i:02d}.png" for i in range(10)]
TRAIN = "--config=configs/pretrain.py:size=tiny,data=files"


# --- paths that a library takes for a pattern -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["run [1]", "a]b", "back\\slash"])
def test_a_workdir_whose_checkpoints_could_not_be_found_is_refused_before_anything_is_made(name, tmp_path, cli):
    with pytest.raises(UserError, match="no checkpoint can be found in a folder with"):
        workdirs.check_path(tmp_path / name / "inner")
    process = cli("--config=configs/pretrain.py", *toy_flags(), f"--workdir={tmp_path / name}")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert not (tmp_path / name).exists()


@pytest.mark.parametrize("name", ["what?", "star*", "a {b,c}", "ünï", "with space"])
def test_in_any_other_folder_what_was_saved_is_found(name, tmp_path):
    workdirs.check_path(tmp_path / name)
    saved = checkpoint.Checkpoints(tmp_path / name)
    saved._checkpointer.save_checkpointables(3, {"progress": {"a": 1}})
    assert saved.steps == [3] and checkpoint.Checkpoints(tmp_path / name, writable=False).steps == [3]


def test_all_splits_of_a_root_in_brackets_are_prepared(tmp_path, cli):
    root = pictures(tmp_path / "trip [2019]", NAMES, {"train": NAMES[:8], "val": NAMES[8:]})
    flags = [f"--config.data.root={root}", f"--config.out={tmp_path / 'out'}", "--config.workers=1"]
    process = cli("--config=configs/prepare.py:data=files", *flags)
    assert process.returncode == 0, process.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train", "val"]


# --- two runs in one workdir ------------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from maskvlm_jax import workdir as workdirs
from maskvlm_jax.config import expand_paths

with workdirs.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_in_one_line_and_the_lock_dies_with_its_process(tmp_path, cli):
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], cwd=ROOT, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "locked\n"
        before = sorted(path.name for path in tmp_path.iterdir())
        process = cli("--config=configs/pretrain.py", *toy_flags(), f"--workdir={tmp_path}")
        assert process.returncode == 2 and process.stderr.count("\n") == 1
        assert f"process {first.pid}" in process.stderr and "--workdir" in process.stderr
        assert sorted(path.name for path in tmp_path.iterdir()) == before
        first.send_signal(signal.SIGKILL)
    with workdirs.locked(tmp_path):
        pass


# --- scored on what it trained on -------------------------------------------------------------------------------------


def test_examples_that_are_trained_on_and_scored_are_counted(tmp_path):
    root = pictures(tmp_path / "data", NAMES, {"train": NAMES[:8], "val": NAMES[6:], "test": NAMES[8:]})
    lists = {split: f"{split}.txt" for split in ("train", "val", "test")}
    train, val, test = (
        Files(root=str(root), images="images", captions="captions.csv", split=split, splits=lists) for split in lists
    )
    scored = {"train": (train, 0), "val": (val, 0), "first": (val, 1), "test": (test, 0)}
    assert sources.count_trained_on(train, scored) == {"train": 8, "val": 2, "first": 1, "test": 0}
    assert sources.count_trained_on(train, {"train": (train, 3), "val": (val, 0)}, limit=7) == {"train": 3, "val": 1}


def test_of_a_mixture_the_scored_set_is_looked_at(tmp_path):
    lists = {"train": NAMES[:8], "val": NAMES[6:]}
    roots = {name: pictures(tmp_path / name, NAMES, lists) for name in ("files", "flickr8k")}
    data = common.data_block("files+flickr8k").to_dict()
    for name, root in roots.items():
        data["mixture"][name] |= {"root": str(root), "images": "images", "captions": "captions.csv"}
        data["mixture"][name]["splits"] = {split: f"{split}.txt" for split in lists}
    trained, scored = sources.open_training_source(data, 32), sources.open_source(data, "val", 32)
    for part in roots:
        assert sources.count_trained_on(trained, {"val": (scored, 0)}, part=part) == {"val": 2}
    data["mixture"]["files"]["limit"] = 7
    limited = sources.open_training_source(data, 32)
    assert sources.count_trained_on(limited, {"val": (scored, 0)}, part="files") == {"val": 1}


def test_a_set_without_splits_says_that_it_scores_what_it_trained_on(tmp_path, cli):
    root = pictures(tmp_path / "data", NAMES)
    flags = toy_flags(data__root=str(root), data__splits="{}", data__captions="captions.csv")
    process = cli(TRAIN, *flags, f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 0, process.stderr
    assert "10 of the examples of split val are trained on too" in process.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["protocol"]["examples_trained_on"] == 10
    flags = [f"--config.checkpoint={tmp_path / 'run'}", "--config.evaluation.also=('test',)"]
    process = cli("--config=configs/evaluate.py", *flags, f"--workdir={tmp_path / 'scored'}")
    assert process.returncode == 0, process.stderr
    assert "10 of the examples of split test are trained on too" in process.stdout
    protocol = json.loads((tmp_path / "scored" / "result.json").read_text())["protocol"]
    assert protocol["examples_trained_on"] == protocol["also"]["test"]["examples_trained_on"] == 10


# --- words in data that become control tokens -------------------------------------------------------------------------

WORDS = "[MASK] [SEP] [PAD] [CLS] [UNK] </s> <pad> <mask> dog"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Tokenizer folders: our own, and one that pads with its end token."""
    own, shared = tmp_path_factory.mktemp("own") / "t", tmp_path_factory.mktemp("shared") / "t"
    backend = tokenizers.train_wordpiece(["a dog", "[MASK] </s> <pad>"], 60)
    for folder in (own, shared):
        tokenizers.save(backend, folder)
    told = json.loads((shared / "tokenizer_config.json").read_text()) | {"pad_token": "[SEP]"}
    (shared / "tokenizer_config.json").write_text(json.dumps(told))
    return {"own": own, "pad is end": shared}


@pytest.mark.parametrize("which", ["own", "pad is end"])
def test_text_is_text_and_valid_is_a_length(folders, which):
    tokenizer = tokenizers.load(folders[which])
    tokens, _, valid = tokenizer.encode(WORDS, 64)
    length = int(valid.sum())
    assert valid[:length].all() and not valid[length:].any() and length > 20
    special = {tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id, tokenizer.mask_id}
    assert not special & set(tokens[1 : length - 1].tolist())
    assert (tokens[0], tokens[length - 1]) == (tokenizer.start_id, tokenizer.end_id)
    options = {"text_ratio": 0.5, "whole_word": False, "text_corruption": "mask"}
    for seed in range(20):
        drawn = batch.text_fields(WORDS, tokenizer, np.random.default_rng(seed), max_length=64, options=options)
        assert not (drawn["text_masked"] & ~drawn["token_valid"]).any()
        assert not drawn["text_masked"][[0, length - 1]].any()
    _, _, cut = tokenizer.encode(WORDS, 8)
    assert cut.all()


# --- members of shards ------------------------------------------------------------------------------------------------


def test_keys_with_dots_and_endings_of_several_parts_are_read(tmp_path):
    keys = ["0000", "v1.0001", "walk 2.8 final", "walk 2.9 final", "a/b.c/0002"]
    members = [(f"{key}{ending}", data) for key in keys for ending, data in ((".jpg", jpeg("red")), (".txt", b"a dog"))]
    members += [("0014.image.jpg", jpeg("red")), ("0014.caption.txt", b"a cat")]
    members += [("0015.jpg.txt", b"a cow"), ("0015.jpg", jpeg("red"))]
    members += [("0016.jfif", jpeg("red")), ("0016.txt", b"a cow")]
    write_tar(tmp_path / "x.tar", *members)
    source = WebDataset(root=str(tmp_path), shards="x.tar")
    assert [source.id(i) for i in range(len(source))] == [f"x/{key}" for key in (*keys, "0014", "0015", "0016")]
    assert [source.captions(i) for i in (5, 6)] == [["a cat"], ["a cow"]]
    assert source.report == {}


def test_what_finds_no_other_is_counted(tmp_path):
    members = [("0.jpg", jpeg("red")), ("0.txt", b"a dog"), ("1.a.jpg", jpeg("red")), ("2.b.txt", b"a dog")]
    write_tar(tmp_path / "x.tar", *members)
    source = WebDataset(root=str(tmp_path), shards="x.tar")
    assert len(source) == 1 and source.report == {"pictures_without_captions": 1, "samples_without_pictures": 1}


def test_a_picture_never_gets_the_caption_of_another_key(tmp_path):
    whole = [("v1.0000.jpg", jpeg("red")), ("v1.0000.txt", b"a dog")]
    write_tar(tmp_path / "x.tar", *whole, ("v1.0001.jpg", jpeg("red")), ("v1.0002.txt", b"a cat"), ("a/jpg", b"x"))
    source = WebDataset(root=str(tmp_path), shards="x.tar")
    assert [source.id(i) for i in range(len(source))] == ["x/v1.0000"]
    assert source.report == {"pictures_without_captions": 1, "samples_without_pictures": 1}


# --- metadata trusted in type and range -------------------------------------------------------------------------------


def with_orientation(value: int | bytes, kind: int = 3) -> bytes:
    """A JPEG with an EXIF block of one entry, written by hand: kinds are 2 text, 3 a short number, 7 bytes."""
    data = struct.pack("<H", value) if isinstance(value, int) else value
    count = 1 if isinstance(value, int) else len(value) // (2 if kind == 3 else 1)
    place = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack("<I", 26)
    exif = b"II*\0" + struct.pack("<IHHHI", 8, 1, 0x0112, kind, count) + place + bytes(4) + data
    block = b"Exif\0\0" + exif
    jpeg_data = hostile.encoded(hostile.picture(3), "JPEG", quality=95)
    return jpeg_data[:2] + b"\xff\xe1" + struct.pack(">H", len(block) + 2) + block + jpeg_data[2:]


NO_ORIENTATIONS = {
    "text": (b"6\0", 2),
    "long text": (b"Rotate 90 CW\0", 2),
    "bytes": (b"\x06", 7),
    "nothing": (0, 3),
    "nine": (9, 3),
    "largest": (65_535, 3),
}


@pytest.mark.parametrize("name", NO_ORIENTATIONS)
def test_an_orientation_that_is_none_leaves_the_picture_upright(name):
    data = with_orientation(*NO_ORIENTATIONS[name])
    upright = transforms.decode(with_orientation(1))
    np.testing.assert_array_equal(transforms.decode(data), upright)
    assert transforms.picture_size(data) == upright.shape[:2]
    transforms.random_resized_crop(data, np.random.default_rng(0), size=16)


@pytest.mark.parametrize("value", range(1, 9))
def test_every_orientation_is_set_upright_as_pillow_does(value):
    data = with_orientation(value)
    expected = np.array(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    found = transforms.decode(data)
    assert found.shape == expected.shape == (*transforms.picture_size(data), 3)
    assert np.abs(found.astype(int) - expected).mean() < 3  # two decoders


# --- marks, depths and ends of files ----------------------------------------------------------------------------------


def test_a_byte_order_mark_is_no_part_of_a_caption(tmp_path):
    assert caption_files.usable_captions([b"\xef\xbb\xbfa dog", "\ufeffa dog"]) == ["a dog", "a dog"]


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_sixteen_bits_are_scaled_by_those_in_use(bits):
    ramp = np.linspace(0, 2**bits - 1, 64 * 64).reshape(64, 64).astype(np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG")
    pixels = transforms.decode(buffer.getvalue())
    assert (pixels.min(), pixels.max()) == (0, 255) and 120 < pixels.mean() < 135


def test_a_jpeg_without_its_end_is_read_and_one_without_pixels_is_not():
    data = jpeg("red")
    np.testing.assert_array_equal(transforms.decode(data[:-2]), transforms.decode(data))
    big = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(big, "JPEG")
    with pytest.raises(transforms.DecodeError):
        transforms.decode(big.getvalue()[:-200])
    behind = data + b"\0\0 more"
    np.testing.assert_array_equal(transforms.decode(behind), transforms.decode(data))
    with pytest.raises(transforms.DecodeError) as error:
        transforms.decode(hostile.jpeg_that_claims(60_000, 60_000)[:-2])
    assert error.value.kind == "too large"


# --- advice that can be followed --------------------------------------------------------------------------------------


def test_the_flag_that_gives_shards_of_a_split_works_as_it_is_printed(tmp_path, cli):
    for name in ("a.tar", "b.tar"):
        members = [
            (f"{i}{ending}", data) for i in range(10) for ending, data in ((".jpg", jpeg("red")), (".txt", b"a dog"))
        ]
        write_tar(tmp_path / name, *members)
    flags = toy_flags(data__root=str(tmp_path), evaluation__split="val")
    command = ["--config=configs/pretrain.py:size=tiny,data=cc3m", *flags, "--config.data.workers=0"]
    process = cli(*command, f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    advice = re.search(r'--config\.data\.splits="[^"]*"', process.stderr)[0]
    process = cli(*command, *shlex.split(advice.replace("PATTERN", "b.tar")), f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 0, process.stderr


# --- a workdir is claimed before anything can be trained in it --------------------------------------------------------


def test_a_workdir_in_which_nothing_was_saved_takes_a_new_config(tmp_path):
    workdir, config = tmp_path / "run", toy_config()
    workdirs.claim(workdir, config, alone=True)
    (workdir / "tokenizer").mkdir()
    config.optim.lr = 1e-5
    with pytest.raises(UserError, match="belongs to a run"):  # where another may be, which has not saved yet
        workdirs.claim(workdir, config, alone=False)
    workdirs.claim(workdir, config, alone=True)
    assert workdirs.upgrade.read(workdir / "config.json")["optim"]["lr"] == 1e-5
    assert not (workdir / "tokenizer").exists()
    (workdir / "tokenizer").mkdir()
    config.data.root = "elsewhere"  # a free key, but other captions
    workdirs.claim(workdir, config, alone=True)
    assert not (workdir / "tokenizer").exists()
    (workdir / "checkpoints" / "20.damaged").mkdir(parents=True)  # something was trained here
    config.optim.lr = 1e-4
    with pytest.raises(UserError, match="belongs to a run with other values of optim"):
        workdirs.claim(workdir, config, alone=True)


# --- the home folder --------------------------------------------------------------------------------------------------


def test_every_path_knows_the_home_folder(tmp_path, cli_environment):
    root = pictures(tmp_path / "data", NAMES)
    flags = [*toy_flags(data__root="~/data", data__captions="captions.csv"), "--workdir=~/runs/a"]
    command = [sys.executable, "-m", "maskvlm_jax.main", TRAIN, *flags]
    environment = cli_environment | {"HOME": str(tmp_path)}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "runs" / "a" / "result.json").exists() and not (ROOT / "~").exists()
    assert json.loads((tmp_path / "runs" / "a" / "config.json").read_text())["data"]["root"] == str(root)


# --- text in the locale's encoding ------------------------------------------------------------------------------------


def test_a_locale_without_letters_ends_no_run(tmp_path, cli_environment):
    root = pictures(tmp_path / "data", NAMES, captions="ein schöner grüner Käfer {}")
    flags = toy_flags(data__root=str(root), data__captions="captions.csv")
    command = [sys.executable, "-m", "maskvlm_jax.main", TRAIN, *flags, f"--workdir={tmp_path / 'run'}"]
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = subprocess.run(command, cwd=ROOT, env=cli_environment | locale, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert "schöner" in (tmp_path / "run" / "figures" / "masked_text_val.md").read_text(encoding="utf-8")


# --- the only column of a type ----------------------------------------------------------------------------------------


def parquet(path, **columns):
    pq.write_table(pa.table(columns), path)
    return path


def bytes_of(count: int) -> list[bytes]:
    return [jpeg("red")] * count


@pytest.mark.parametrize("other", ["filename", "label"])
def test_a_text_is_no_caption_because_it_is_the_only_one(other, tmp_path):
    parquet(tmp_path / "x.parquet", image=bytes_of(2), **{other: ["p0", "p1"]})
    with pytest.raises(UserError, match=f"set --config.data.caption_key to one of {other}"):
        Parquet(root=str(tmp_path), shards="x.parquet")
    assert Parquet(root=str(tmp_path), shards="x.parquet", caption_key=other).captions(1) == ["p1"]


KINDS = {
    "category": lambda texts: pa.array(texts).dictionary_encode(),
    "view": lambda texts: pa.array(texts, pa.string_view()),
    "fixed list": lambda texts: pa.array([[text, text] for text in texts], pa.list_(pa.string(), 2)),
    "list of categories": lambda texts: pa.ListArray.from_arrays([0, 1, 2], pa.array(texts).dictionary_encode()),
}


@pytest.mark.parametrize("kind", KINDS)
def test_captions_of_every_kind_of_text_are_read(kind, tmp_path):
    parquet(tmp_path / "x.parquet", image=bytes_of(2), caption=KINDS[kind](["a dog", "a cat"]))
    source = Parquet(root=str(tmp_path), shards="x.parquet")
    expected = ["a cat"] * (2 if kind == "fixed list" else 1)
    assert source.captions(1) == source[1]["captions"] == expected


NESTED = {
    "sentences.raw": [[{"raw": "a dog", "id": "1"}], [{"raw": "a cat", "id": "2"}, {"raw": None, "id": "3"}, None]],
    "caption.text": [{"text": "a dog", "lang": "en"}, {"text": "a cat", "lang": "en"}],
    "captions.texts": [{"texts": ["a dog"], "of": "me"}, {"texts": ["a cat"], "of": "you"}],
    "caption.en": ["a dog", "a cat"],  # no struct, but a name with a dot
}


@pytest.mark.parametrize("key", NESTED)
def test_captions_in_structs_are_read(key, tmp_path):
    column = key if key == "caption.en" else key.split(".")[0]
    parquet(tmp_path / "x.parquet", image=bytes_of(2), filename=["a.jpg", "b.jpg"], **{column: NESTED[key]})
    for given in (key, "" if column != key else key):
        source = Parquet(root=str(tmp_path), shards="x.parquet", caption_key=given)
        assert source.columns == ("image", key)
        assert source.captions(1) == source[1]["captions"] == ["a cat"]


def test_fields_of_structs_that_no_name_tells_are_listed(tmp_path):
    parquet(tmp_path / "x.parquet", image=bytes_of(2), told=[{"left": "a", "right": "b"}] * 2)
    with pytest.raises(UserError, match=r"caption_key to one of told\.left, told\.right"):
        Parquet(root=str(tmp_path), shards="x.parquet")


def test_the_columns_that_are_read_are_told_once(tmp_path, capsys):
    parquet(tmp_path / "train.parquet", image=bytes_of(2), caption=["a dog", "a cat"])
    data = common.data_block("parquet").to_dict() | {"root": str(tmp_path)}
    for _ in range(2):
        sources.open_source(data, "train", 32)
    assert capsys.readouterr().out == f"{tmp_path}: pictures are read from 'image', captions from 'caption'\n"


def test_pictures_named_by_paths_alone_are_read_where_they_are_and_told_where_not(tmp_path):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    cells = pa.array([{"bytes": None, "path": f"{i}.jpg"} for i in range(2)], kind)
    parquet(tmp_path / "x.parquet", image=cells, caption=["a dog", "a cat"])
    with pytest.raises(UserError, match="only paths such as '0"):
        Parquet(root=str(tmp_path), shards="x.parquet")
    for i in range(2):
        (tmp_path / f"{i}.jpg").write_bytes(jpeg("red"))
    source = Parquet(root=str(tmp_path), shards="x.parquet")
    assert source[1]["image"] == jpeg("red")
    for path in ("a\0b", "/etc/hostname"):
        assert source._picture({"bytes": None, "path": path}) == b""
    (tmp_path / "elsewhere").symlink_to(tmp_path)
    assert source._picture({"bytes": None, "path": "elsewhere/1.jpg"}) == jpeg("red")
    outside = pa.array([{"bytes": None, "path": "../x.jpg"}], kind)
    (tmp_path / "inner").mkdir()
    parquet(tmp_path / "inner" / "x.parquet", image=outside, caption=["a dog"])
    (tmp_path / "x.jpg").write_bytes(jpeg("red"))
    with pytest.raises(UserError, match="only paths"):
        Parquet(root=str(tmp_path / "inner"), shards="x.parquet")


# --- caption files of others ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "document",
    [
        [{"image": "a.jpg", "caption": "a dog"}, {"image": "b.jpg", "caption": ["a cat", "it"], "image_id": 1}],
        {"a.jpg": "a dog", "b.jpg": ["a cat", "it"]},
    ],
)
def test_lists_of_pairs_and_mappings_are_read(document, tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps(document))
    table = caption_files.read_captions(tmp_path / "captions.json")
    assert table.captions == {"a.jpg": ["a dog"], "b.jpg": ["a cat", "it"]}


def test_a_coco_file_without_a_picture_is_no_mapping(tmp_path):
    (tmp_path / "captions.json").write_text('{"images": [], "annotations": []}')
    assert caption_files.read_captions(tmp_path / "captions.json").captions == {}


def test_a_message_lists_a_few_names_and_a_count(tmp_path):
    (tmp_path / "captions.json").write_text(json.dumps({f"p{i}.jpg": {"text": "a dog"} for i in range(30_000)}))
    with pytest.raises(UserError) as error:
        caption_files.read_captions(tmp_path / "captions.json")
    assert len(str(error.value)) < 500 and "and 29,992 more" in str(error.value)


# --- accents, and sets named twice ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_disk", "listed"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_are_found_however_their_accents_are_written(on_disk, listed, tmp_path):
    name = "schön/über/grüner käfer.png"
    file = tmp_path / unicodedata.normalize(on_disk, name)
    file.parent.mkdir(parents=True)
    hostile.picture(0).save(file)
    written = {kind: unicodedata.normalize(kind, name) for kind in ("NFC", "NFD")}
    (tmp_path / "captions.csv").write_text(f"image,caption\n{written[listed]},a beetle\n", encoding="utf-8")
    for in_list in written.values():
        (tmp_path / "all.txt").write_text(f"{in_list}\n", encoding="utf-8")
        source = Files(root=str(tmp_path), images="", captions="captions.csv", split="all", splits={"all": "all.txt"})
        assert source.id(0) == written["NFC"] and transforms.decode(source[0]["image"]).size
        assert source.report == {}


def test_a_set_named_twice_is_refused():
    with pytest.raises(ValueError, match="names a set twice"):
        common.parse_arg("data=files+files", data=common.DATA, mixed="data")


# --- names that are wrong, before the work ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("evaluation.also=('nowhere',)", "'nowhere'"),
        ("evaluation.also=('',)", "''"),
        ("evaluation.best_metric=recall", "choose among auto, i2t_r1"),
    ],
)
def test_a_wrong_name_of_the_evaluation_is_told_before_the_first_step(flag, told, tmp_path, cli):
    process = cli("--config=configs/pretrain.py", *toy_flags(), f"--config.{flag}", f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 2 and process.stderr.count("\n") == 1
    assert told in process.stderr and "first step" not in process.stdout
    assert not (tmp_path / "run").exists()


def test_the_metrics_that_can_choose_the_best_are_those_that_are_taken(finished_run):
    lines = map(json.loads, (finished_run[0] / "metrics.jsonl").read_text().splitlines())
    taken = next(set(line) - {"step", "split"} for line in lines if line["split"] == "val")
    assert taken == set(best.metrics_taken(pretrain.get_config()))


@pytest.mark.parametrize(
    ("structure", "off", "some"),
    [
        ("recipe=clip", (), {"mean_recall"}),
        ("", ("contrastive",), {"match_mean_recall", "matching_auc"}),
        ("", ("contrastive", "matching"), {"masked_text_accuracy_matched", "masked_image_psnr_gain"}),
        ("recipe=mlim", (), {"masked_text_accuracy_gain_low", "masked_image_psnr_blend"}),
    ],
)
def test_metrics_follow_from_what_is_trained(structure, off, some):
    config = pretrain.get_config(structure)
    for label in off:
        config.objectives[label].weight = 0.0
    taken = set(best.metrics_taken(config))
    assert some <= taken
    assert len(taken & {"mean_recall", "match_mean_recall", "masked_text_loss_matched"}) == 1
    config.evaluation.best_metric = "nonsense"
    with pytest.raises(UserError, match="choose among auto"):
        best.check(config)
    for name in some:
        config.evaluation.best_metric = name
        best.check(config)


def test_one_negative_in_a_batch_is_enough(capsys):
    watch = StepWatch(None, 0.05, {}, None, reads_negatives=True)
    ids = np.stack([np.zeros(100, np.int32), np.arange(100, dtype=np.int32)], axis=1)
    watch.push(1, {}, {"pair_id": ids + np.eye(100, 1, k=-99, dtype=np.int32)}, None)
    assert capsys.readouterr().out == ""


def test_one_picture_has_no_wrong_one_beside_it_and_equal_captions_are_no_negatives(tmp_path, cli):
    root = pictures(tmp_path / "data", NAMES, {"train": NAMES[:8], "val": NAMES[8:9]}, captions="a dog")
    flags = toy_flags(data__root=str(root), data__captions="captions.csv")
    process = cli(TRAIN, *flags, f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("warning: step 1 has no negatives") == process.stdout.count("no negatives") == 1
    metrics = json.loads((tmp_path / "run" / "result.json").read_text())["metrics"]
    assert "masked_text_loss_matched" in metrics
    assert not [name for name in metrics if "shuffled" in name or "gain" in name]


# --- what a second look found -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_is_turned_once(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    pictures = {}
    for kind in ("PNG", "TIFF", "WEBP"):
        file = io.BytesIO()
        hostile.picture(3, 20, 40).save(file, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
        pictures[kind] = transforms.decode(file.getvalue())
        assert transforms.picture_size(file.getvalue()) == pictures[kind].shape[:2]
    for kind in ("TIFF", "WEBP"):
        np.testing.assert_array_equal(pictures[kind], pictures["PNG"])


def test_a_jpeg_that_claims_a_huge_size_is_too_large_also_where_it_has_exif():
    data = bytearray(hostile.rotated(1, 6))
    place = data.index(b"\xff\xc0")
    data[place + 5 : place + 9] = struct.pack(">HH", 60_000, 60_000)
    for look in (transforms.picture_size, transforms.decode):
        with pytest.raises(transforms.DecodeError) as error:
            look(bytes(data))
        assert error.value.kind == "too large"


def test_a_side_picture_takes_no_place_of_the_pair(tmp_path):
    members = [("0.blip.txt", b"by machine"), ("0.depth.png", b"x"), ("0.jpg", jpeg("red")), ("0.txt", b"a dog")]
    write_tar(tmp_path / "x.tar", *members)
    source = WebDataset(root=str(tmp_path), shards="x.tar")
    assert (len(source), source[0]["image"], source.captions(0)) == (1, jpeg("red"), ["a dog"])


SPECIAL = ["<pad>", "<s>", "</s>", "<mask>", "<unk>"]
PIECES = [*SPECIAL, "a", "dog", "<", ">", "m", "s", "k", "/", "p", "d", "▁", "▁a", "▁dog", "▁<mask>"]


@pytest.mark.parametrize("kind", ["unigram", "words", "pieces"])
def test_special_words_are_text_whatever_the_model_is(kind, tmp_path):
    import tokenizers as hugging_face
    from tokenizers import models, normalizers, pre_tokenizers

    if kind == "unigram":
        backend = hugging_face.Tokenizer(models.Unigram([(word, -1.0) for word in PIECES], unk_id=4))
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        model = models.WordLevel if kind == "words" else models.WordPiece
        backend = hugging_face.Tokenizer(model({word: i for i, word in enumerate(PIECES)}, unk_token="<unk>"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.normalizer = normalizers.NFKC()
    backend.add_special_tokens(SPECIAL)
    from transformers import PreTrainedTokenizerFast

    names = dict(zip(("pad_token", "bos_token", "eos_token", "mask_token", "unk_token"), SPECIAL, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=backend, **names).save_pretrained(tmp_path)
    loaded = tokenizers.load(tmp_path)
    caption = "a dog <mask> </s> <s> <pad> \uff1cmask\uff1e"  # the last is a mask token to a normaliser alone
    tokens, _, valid = loaded.encode(caption, 40)
    control = {loaded.pad_id, loaded.start_id, loaded.end_id, loaded.mask_id}
    assert not control & set(tokens[1 : valid.sum() - 1].tolist())


def test_a_workdir_in_the_tokenizers_folder_is_not_copied_into_itself(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    tokenizers.copy(tmp_path, tmp_path / "run" / "tokenizer")
    assert [path.name for path in (tmp_path / "run" / "tokenizer").iterdir()] == ["tokenizer.json"]


def test_a_run_is_no_place_for_the_result_of_an_evaluation(finished_run, cli):
    before = (finished_run[0] / "result.json").read_bytes()
    process = cli("--config=configs/evaluate.py", f"--config.checkpoint={finished_run[0]}", "-w", finished_run[0])
    assert process.returncode == 2 and "is the workdir of a run" in process.stderr
    assert (finished_run[0] / "result.json").read_bytes() == before


def test_names_that_are_the_same_keep_all_captions(tmp_path):
    names = {"a.jpg": "one", "./a.jpg": "two", "\u00e9.jpg": "one", "e\u0301.jpg": "two"}
    (tmp_path / "captions.json").write_text(json.dumps(names))
    table = caption_files.read_captions(tmp_path / "captions.json")
    assert table.captions == {"a.jpg": ["one", "two"], "\u00e9.jpg": ["one", "two"]}


def test_half_a_letter_is_no_caption_and_no_name(tmp_path):
    root = pictures(tmp_path, NAMES[:2])
    (root / "c.json").write_text(json.dumps({NAMES[0]: ["bad \ud800 x", "a dog"], NAMES[1]: "a cat"}))
    source = Files(root=str(root), images="images", captions="c.json", split="all", splits=None)
    assert [source.captions(i) for i in range(2)] == [["a dog"], ["a cat"]]
    for text in (json.dumps({"\ud800.jpg": "x"}), '{"a": ' + "1" * 5_000 + "}"):
        (root / "c.json").write_text(text)
        with pytest.raises(UserError, match=r"not UTF-8 text|invalid JSON"):
            caption_files.read_captions(root / "c.json")


def test_split_lists_of_every_system_are_read(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"a.jpg\rb.jpg\r\nc.jpg\n")
    assert caption_files.read_split_list(tmp_path / "x.txt", "flag") == ["a.jpg", "b.jpg", "c.jpg"]


@pytest.mark.parametrize("flag", ["--workdir", "--config.data.root", "--config.checkpoint", "--config.data.tokenizer"])
def test_the_home_of_nobody_is_told(flag, cli):
    process = cli(TRAIN, *toy_flags(), f"{flag}=~nobody-of-that-name/x")
    assert (process.returncode, process.stderr.count("\n")) == (2, 1), process.stderr
    assert "there is no user of that name" in process.stderr


def test_columns_of_one_name_and_paths_that_are_none(tmp_path):
    names = ["image", "caption", "caption"]
    pq.write_table(
        pa.Table.from_arrays([pa.array(bytes_of(1)), pa.array(["a"]), pa.array(["b"])], names), tmp_path / "x.parquet"
    )
    with pytest.raises(UserError, match="several columns 'caption'"):
        Parquet(root=str(tmp_path), shards="x.parquet")
    kind = pa.struct({"bytes": pa.binary(), "path": pa.int64()})
    cells = pa.array([{"bytes": bytes_of(1)[0], "path": 1}, {"bytes": None, "path": 2}], kind)
    parquet(tmp_path / "x.parquet", image=cells, caption=["a dog", "a cat"])
    assert Parquet(root=str(tmp_path), shards="x.parquet")[1]["image"] == b""


def test_the_flag_of_an_empty_block_is_the_blocks():
    there = {"data": {"splits": {}, "root": "x"}}
    keys = workdirs.differing_keys(there, {"data": {"splits": {"train": "a", "val": "b"}, "root": "x"}})
    assert workdirs.as_flags(keys, there) == "'--config.data.splits={}'"


def test_words_are_no_numbers():
    from maskvlm_jax import ranges

    with pytest.raises(UserError, match="give numbers"):
        ranges.check({"data.augment.crop_scale": ("a", "b")})


@pytest.mark.parametrize("document", [[["a.jpg", "x"]], [], [{"filename": "a.jpg", "caption": "x"}]])
def test_lists_of_another_form_are_told_what_is_read(document, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(UserError, match="a list of what is not known; give a list of"):
        caption_files.read_captions(tmp_path / "a.json")


@pytest.mark.parametrize(
    ("document", "captions"),
    [
        ('{"image": "a.jpg", "caption": "x"}', {"a.jpg": ["x"]}),
        ('{"image": ["a.jpg", "b.jpg", "a.jpg"], "caption": ["x", "y", "z"]}', {"a.jpg": ["x", "z"], "b.jpg": ["y"]}),
        ('{"image": ["a.jpg"], "captions": [["x", "y"]]}', {"a.jpg": ["x", "y"]}),
        ('{"a.jpg": "x", "b.jpg": "y", "a.jpg": "z"}', {"a.jpg": ["x", "z"], "b.jpg": ["y"]}),
    ],
)
def test_tables_of_two_columns_and_names_that_stand_twice(document, captions, tmp_path):
    (tmp_path / "a.json").write_text(document)
    assert caption_files.read_captions(tmp_path / "a.json").captions == captions


def test_columns_of_two_lengths_are_refused(tmp_path):
    (tmp_path / "a.json").write_text('{"image": ["a.jpg", "b.jpg"], "caption": ["x"]}')
    with pytest.raises(UserError, match="must be lists of one length"):
        caption_files.read_captions(tmp_path / "a.json")


def test_rows_of_blanks_and_the_end_of_files_of_dos_are_no_captions(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"image,caption\r\na.jpg,x\r\n  \t\r\n , \r\nb.jpg,y\r\n\x1a")
    assert caption_files.read_captions(tmp_path / "a.csv").captions == {"a.jpg": ["x"], "b.jpg": ["y"]}


@pytest.mark.parametrize(
    ("flag", "told"),
    [
        ("data={}", "data lacks augment, caption_key"),
        ("data.augment={}", "data.augment lacks crop_scale"),
        ("data.augment=3", "augment"),
        ("data.mixture={'a': 1}", "--config=FILE:data=A+B mixes two sets"),
        ("data.splits={'train': 5}", "data.splits.train is 5; give the name of a list"),
        ("data.text_buckets=(8.5,)", r"data.text_buckets is (8.5); give whole numbers"),
        ("steps=99999999999999999999", "steps is 1e+20; give at most 2147483647"),
    ],
)
def test_blocks_and_numbers_of_another_form_are_told_before_anything_is_made(flag, told, tmp_path, cli):
    process = cli(TRAIN, f"--workdir={tmp_path / 'run'}", f"--config.{flag}")
    assert (process.returncode, process.stderr.count("\n")) == (2, 1), process.stderr
    assert told in process.stderr and not (tmp_path / "run").exists()


def test_a_config_of_the_home_folder_and_a_file_that_is_no_config(cli):
    process = cli("--config=configs/common.py")
    assert (process.returncode, process.stderr.count("\n")) == (2, 1) and "has no function get_config" in process.stderr
    process = cli("--config=~/none-of-that-name.py")
    assert process.stderr.startswith(f"error: there is no config file '{Path.home()}/none-of-that-name.py'")


def test_lists_of_splits_know_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    config = pretrain.get_config("data=flickr8k")
    config.data.splits.train = "~/train.txt"
    expand_paths(config)
    assert config.data.splits.train == "/home/somebody/train.txt"


def test_tars_one_behind_the_other_are_read_to_the_end(tmp_path):
    for number in range(3):
        write_tar(tmp_path / f"{number}.tar", (f"{number}.jpg", jpeg(number)), (f"{number}.txt", b"a dog"))
    parts = [(tmp_path / f"{number}.tar").read_bytes() for number in range(3)]
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "x.tar").write_bytes(parts[0] + parts[1] + parts[2])
    source = WebDataset(root=str(tmp_path / "all"), shards="x.tar")
    assert [source.id(i).rpartition("/")[2] for i in range(len(source))] == ["0", "1", "2"] and not source.report
    (tmp_path / "all" / "x.tar").write_bytes(parts[0] + b"no tar" * 200)
    source = WebDataset(root=str(tmp_path / "all"), shards="x.tar")
    assert len(source) == 1 and source.report == {"truncated_shards": 1}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_texts_of_windows_editors_are_read(encoding, tmp_path):
    write_tar(tmp_path / "x.tar", ("a.jpg", jpeg(0)), ("a.txt", "ein Käfer".encode(encoding)))
    assert WebDataset(root=str(tmp_path), shards="x.tar").captions(0) == ["ein Käfer"]
    (tmp_path / "a.csv").write_bytes("image,caption\nä.jpg,ein Käfer\n".encode(encoding))
    assert caption_files.read_captions(tmp_path / "a.csv").captions == {"ä.jpg": ["ein Käfer"]}


def test_grey_of_16_bits_may_begin_at_white_and_have_holes():
    values = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    usual, turned = io.BytesIO(), io.BytesIO()
    Image.fromarray(values).save(usual, "TIFF")
    Image.fromarray(65535 - values).save(turned, "TIFF", tiffinfo={262: 0})
    assert Image.open(turned).tag_v2[262] == 0
    np.testing.assert_array_equal(transforms.decode(turned.getvalue()), transforms.decode(usual.getvalue()))
    holes = io.BytesIO()
    Image.fromarray(values).save(holes, "PNG", transparency=int(values[3, 3]))
    pixels = transforms.decode(holes.getvalue())
    assert pixels[3, 3].tolist() == [255] * 3 and pixels[3, 2].tolist() != [255] * 3


def test_of_two_names_that_differ_by_how_accents_are_written_the_composed_one_is_read(tmp_path):
    root = pictures(tmp_path, NAMES[:2])
    composed, apart = "\u00e9.png", "e\u0301.png"
    for name, source in ((apart, NAMES[0]), (composed, NAMES[1])):
        (root / "images" / source).rename(root / "images" / name)
    (root / "captions.csv").write_text(f"image,caption\n{apart},a dog\n", encoding="utf-8")
    source = Files(root=str(root), images="images", captions="captions.csv", split="all", splits=None)
    assert source[0]["image"] == (root / "images" / composed).read_bytes()


@pytest.mark.parametrize("name", ["train [1].tar", "{a}.tar", "what?.tar"])
def test_a_shard_is_found_by_its_own_name(name, tmp_path):
    for number, shard in enumerate((name, "other.tar")):
        write_tar(tmp_path / shard, (f"{number}.jpg", jpeg(number)), (f"{number}.txt", b"a dog"))
    source = WebDataset(root=str(tmp_path), shards=name)
    assert [source.id(i).rpartition("/")[2] for i in range(len(source))] == ["0"]


def test_a_mixture_is_trained_and_scored_to_the_end(tmp_path, cli):
    root = pictures(tmp_path / "data", NAMES)
    command = ["--config=configs/pretrain.py:size=tiny,data=files+scenes", f"--workdir={tmp_path / 'run'}"]
    where = f"--config.data.mixture.files.root={root}"
    limits = ["--config.data.mixture.scenes.limit=7", "--config.evaluation.also=('train',)"]
    for flags, told in (
        ([f"--config.data.root={root}"], "did you mean data.mixture.files.root?"),
        (
            [where, "--config.evaluation.split=novel"],
            "files: there is no split 'novel' in --config.data.mixture.files.",
        ),
    ):
        process = cli(*command, *toy_flags(), *flags)
        assert (process.returncode, process.stderr.count("\n")) == (2, 1) and told in process.stderr
    process = cli(*command, *toy_flags(), where, *limits)
    assert process.returncode == 0, process.stderr
    assert ", 17 pictures, " in process.stdout  # 10 and the first 7
    protocol = json.loads((tmp_path / "run" / "result.json").read_text())["protocol"]
    # val is a part of train; the pictures of scenes are of another set
    assert (protocol["examples_trained_on"], protocol["also"]["train"]["examples_trained_on"]) == (2, 10)
