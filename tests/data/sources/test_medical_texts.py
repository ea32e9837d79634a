"""Captions of medical pictures in the formats of their releases, and what is odd in them."""

import csv
import json
from pathlib import Path

import pytest

from configs import data_sets
from maskvlm_jax.data.sources import files
from maskvlm_jax.data.sources.caption_files import read_captions
from maskvlm_jax.data.sources.opening import open_source
from maskvlm_jax.runtime.errors import UserError

CAPTIONS = "s2_full_figures_oa_nonroco_combined_medical_top4_public.jsonl"
REPORT = "The heart is normal in size.\n\nNo pleural effusion,\tno pneumothorax."


def contents(source) -> dict[str, list[str]]:
    return {source.id(i): source.captions(i) for i in range(len(source))}


def pictures(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def data_of(name: str, root: Path, **changes) -> dict:
    return data_sets.data_block(name).to_dict() | {"root": str(root), "max_missing": 0.5} | changes


def opened(name: str, root: Path, split: str = "train", **changes):
    return open_source(data_of(name, root, **changes), split, 32)


def write_table(path: Path, *rows: tuple[str, ...]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


@pytest.fixture
def roco(tmp_path):
    """Both training and validation as the release has them: an id, a space, a tab, and the caption."""
    lines = [
        "ROCO_00001\t Axial CT of the abdomen\n",
        "ROCO_00002 \tM\u00e9tastase h\u00e9patique: l\u00e9sion de 3\u00a0cm (fl\u00e8che)\n",
        "\n",
        "ROCO_00003\t\n",
        "ROCO_00004\tSee text\n",
        "ROCO_00005\tA picture that could not be fetched\n",
        "ROCO_00001\tThe same patient\tone year later\n",
        "ROCO_00001\t Axial CT of the abdomen\n",
        "ROCO_00006\n",
    ]
    folder = tmp_path / "train" / "radiology"
    pictures(folder / "images", *(f"ROCO_0000{number}.jpg" for number in (1, 2, 3, 4, 6)))
    (folder / "captions.txt").write_text("".join(lines), encoding="utf-8")
    pictures(tmp_path / "validation" / "radiology" / "images", "ROCO_00007.jpg")
    (tmp_path / "validation" / "radiology" / "captions.txt").write_bytes(b"ROCO_00007\tLateral chest radiograph\r\n")
    return tmp_path


def test_roco_is_read_split_by_split(roco):
    train = opened("roco", roco)
    assert contents(train) == {
        "ROCO_00001.jpg": ["Axial CT of the abdomen", "The same patient one year later"],
        "ROCO_00002.jpg": ["M\u00e9tastase h\u00e9patique: l\u00e9sion de 3 cm (fl\u00e8che)"],
    }
    assert train[1]["image"] == b"ROCO_00002.jpg"
    # An empty caption, one of two words, one without a tab.
    assert train.report == {"missing_pictures": 1, "short_captions": 1, "pictures_without_captions": 3}
    assert contents(opened("roco", roco, "val")) == {"ROCO_00007.jpg": ["Lateral chest radiograph"]}
    assert sorted(files.existing_splits(data_of("roco", roco))) == ["train", "val"]


def test_too_many_missing_pictures_of_roco_are_told(roco):
    with pytest.raises(
        UserError, match=r"1 of 6 pictures of the split are not in .*radiology/images \(first: ROCO_00005"
    ):
        opened("roco", roco, max_missing=0.05)


def test_a_split_that_has_no_folder_is_told(roco):
    with pytest.raises(UserError, match=r"test/radiology/images: no such picture folder"):
        opened("roco", roco, "test")
    with pytest.raises(
        UserError, match=r"there is no split 'dev' in --config.data.splits; choose from test, train, val"
    ):
        opened("roco", roco, "dev")


def test_roco_v2_is_a_table_of_ids_and_captions(tmp_path):
    pictures(tmp_path / "valid", "ROCOv2_2023_valid_000001.jpg", "ROCOv2_2023_valid_000002.jpg")
    rows = ("ROCOv2_2023_valid_000001", 'Left "kissing" ovaries, T2'), ("ROCOv2_2023_valid_000002", "CT\nchest")
    write_table(tmp_path / "valid_captions.csv", ("ID", "Caption"), *rows)
    assert contents(opened("rocov2", tmp_path, "val")) == {
        "ROCOv2_2023_valid_000001.jpg": ['Left "kissing" ovaries, T2'],
        "ROCOv2_2023_valid_000002.jpg": ["CT chest"],
    }


def figure(uri: str, **values) -> dict:
    return {"pdf_hash": "0ab", "fig_uri": uri, "fig_key": "Figure1", "radiology": True, "scope": {}, **values}


def medicat(root: Path, *figures: dict) -> Path:
    pictures(root / "figures", *(f"0ab_{number}-Figure1-1.png" for number in range(1, 6)))
    (root / CAPTIONS).write_text("\n".join(map(json.dumps, figures)) + "\n", encoding="utf-8")
    return root


def test_medicat_has_captions_and_what_the_papers_say_of_the_figure(tmp_path):
    caption = "Figure 1. MRI of the knee\u2028with effusion"
    first = figure("1-Figure1-1.png", s2_caption=caption, s2orc_caption="MRI of the knee", s2orc_references=None)
    said = ["MRI showed an effusion (Fig. 1).", "See Fig.", "  ", "MRI showed an effusion (Fig. 1)."]
    medicat(
        tmp_path,
        first,
        figure("2-Figure1-1.png", s2_caption="", s2orc_caption="Sagittal view of it", s2orc_references=said),
        figure("3-Figure1-1.png", s2_caption="A histological section", radiology=False),
        figure("4-Figure1-1.png", s2_caption="Fig. 2", s2orc_references=[]),
        figure("9-Figure1-1.png", s2_caption="A picture that is not there"),
        {**first, "s2_caption": "The same figure once more"},
    )
    source = opened("medicat", tmp_path)
    assert contents(source) == {
        "0ab_1-Figure1-1.png": ["Figure 1. MRI of the knee with effusion", "The same figure once more"],
        "0ab_2-Figure1-1.png": ["Sagittal view of it", "MRI showed an effusion (Fig. 1)."],
    }
    told = {"missing_pictures": 1, "other_figures": 1, "short_captions": 2, "pictures_without_captions": 1}
    assert source.report == told


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"s2orc_references": "one text"}, r"jsonl row 2: 's2orc_references' has the wrong type: str"),
        ({"s2orc_references": [3]}, r"jsonl row 2: captions and references must be texts"),
        ({"pdf_hash": None}, r"jsonl row 2: 'pdf_hash' has the wrong type: NoneType"),
        ({"fig_uri": "/../../secret"}, "is not a path inside the picture folder"),
    ],
)
def test_a_malformed_figure_names_its_row(tmp_path, wrong, message):
    good = figure("1-Figure1-1.png", s2_caption="MRI of the knee")
    medicat(tmp_path, good, {**good, **wrong})
    with pytest.raises(UserError, match=message):
        opened("medicat", tmp_path)


@pytest.fixture
def reports(tmp_path):
    """A table of studies as those made of MIMIC-CXR, with quoted cells of several lines."""
    pictures(tmp_path / "images", "p10/a.jpg", "p10/b.jpg", "c.png", "d.jpg")
    write_table(
        tmp_path / "reports.csv",
        ("subject_id", "path", "findings", "impression"),
        ("10", "p10/a.jpg", REPORT, 'No "acute" disease.'),
        ("10", "p10/b", "", "Normal."),
        ("11", "c.png", "", "\n"),
        ("12", "", REPORT, "A study without a picture"),
        ("13", "gone.jpg", REPORT, ""),
        ("10", "p10/b", "Lungs are clear.", ""),
    )
    return tmp_path


ALL = {"splits": {}}
FINDINGS = "The heart is normal in size. No pleural effusion, no pneumothorax."


@pytest.mark.parametrize(
    ("caption_key", "first", "second"),
    [
        ("findings+impression", [f'{FINDINGS} No "acute" disease.'], ["Normal.", "Lungs are clear."]),
        ("findings,impression", [FINDINGS, 'No "acute" disease.'], ["Normal.", "Lungs are clear."]),
        ("impression", ['No "acute" disease.'], ["Normal."]),
        ("", [FINDINGS], ["Lungs are clear."]),
    ],
)
def test_columns_of_reports_are_joined_by_a_plus_and_kept_apart_by_a_comma(reports, caption_key, first, second):
    source = opened("reports", reports, caption_key=caption_key, **ALL)
    assert contents(source) == {"p10/a.jpg": first, "p10/b.jpg": second}
    left_out = {key: source.report[key] for key in ("rows_without_picture", "missing_pictures")}
    assert left_out == {"rows_without_picture": 1, "missing_pictures": 1}
    assert source.report["pictures_without_captions"] == 1


def test_reports_have_split_lists(reports):
    (reports / "val.txt").write_text("p10/b.jpg\n")
    assert list(contents(opened("reports", reports, "val"))) == ["p10/b.jpg"]


def test_reports_of_open_i_are_joined_with_their_projections(tmp_path):
    pictures(tmp_path / "images", "1_IM-0001-4001.dcm.png", "1_IM-0001-3001.dcm.png", "2_IM-0652-1001.dcm.png")
    columns = ("uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression")
    write_table(
        tmp_path / "indiana_reports.csv",
        columns,
        ("1", "normal", "normal", "Xray Chest PA and Lateral", "Positive TB test", "None.", REPORT, "Normal chest."),
        ("2", "", "", "Chest, 2 views", "", "", "", ""),
        ("3", "", "", "Chest", "", "", "A report without a picture", ""),
    )
    write_table(
        tmp_path / "indiana_projections.csv",
        ("uid", "filename", "projection"),
        ("1", "1_IM-0001-4001.dcm.png", "Frontal"),
        ("1", "1_IM-0001-3001.dcm.png", "Lateral"),
        ("2", "2_IM-0652-1001.dcm.png", "Frontal"),
    )
    source = opened("reports", tmp_path, captions="indiana_reports.csv", **ALL)
    text = [f"{FINDINGS} Normal chest."]
    assert contents(source) == {"1_IM-0001-4001.dcm.png": text, "1_IM-0001-3001.dcm.png": text}
    assert source.report == {"rows_without_picture": 1, "empty_captions": 1, "pictures_without_captions": 1}
    (tmp_path / "indiana_projections.csv").unlink()
    with pytest.raises(UserError, match=r"indiana_reports\.csv: .*indiana_projections\.csv says; put it beside this"):
        opened("reports", tmp_path, captions="indiana_reports.csv", **ALL)


@pytest.mark.parametrize(
    ("written", "keys", "message"),
    [
        ("path,findings\na.jpg,one,two\n", {}, r"t.csv row 2: 3 columns instead of 2; put quotes around a text"),
        ('path,findings\na.jpg,"never\nclosed\n', {}, r"t.csv row 3: .*check the quotes"),
        (
            "path,findings\n",
            {"caption_key": "Findings"},
            r"no column 'Findings'; set --config.data.caption_key to one of",
        ),
        ("path,notes\n", {"image_key": "path"}, r"no name tells which column is the caption_key"),
        ("study,findings\n", {"caption_key": "findings"}, r"no name tells which column is the image_key"),
        ("study,notes\n", {}, r"row 1: the header is 'study,notes'; it must be image,caption"),
        ("path,findings\n../a.jpg,x\n", {}, "is not a path inside the picture folder"),
    ],
)
def test_a_malformed_table_names_its_row_or_the_flag(tmp_path, written, keys, message):
    (tmp_path / "t.csv").write_text(written)
    with pytest.raises(UserError, match=message):
        read_captions(tmp_path / "t.csv", **keys)


def test_a_list_with_a_header_and_tabs_is_read_without_it(tmp_path):
    (tmp_path / "t.txt").write_text("\ufeffid\tcaption\nx1\tone two three\n", encoding="utf-8")
    assert read_captions(tmp_path / "t.txt").captions == {"x1.jpg": ["one two three"]}
