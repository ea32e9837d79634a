"""The commands do what they say, and say in one line what they cannot do."""

import csv
import functools
import json
import subprocess
import sys

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from maskvlm_jax.data.scenes.source import Scenes
from maskvlm_jax.search import __main__ as commands
from maskvlm_jax.search.searching import Part, Searcher
from maskvlm_jax.serving import model as serving
from tests.conftest import ROOT
from tests.reference import exporting as exports
from tests.search.stand_ins import write_picture

SCENES = 100
MODEL = exports.FOLDER / "albef"  # of random parameters


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """Every model is read and compiled once, however many commands ask for it."""
    with pytest.MonkeyPatch.context() as patch:
        load = functools.cache(serving.load)
        patch.setattr(serving, "load", lambda folder, **options: load(str(folder), **options))
        yield


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """The first test scenes as files, and the first caption of each by its name."""
    folder, source = tmp_path_factory.mktemp("scenes"), Scenes(split="test", image_size=32)
    for number in range(SCENES):
        Image.fromarray(source[number]["image"]).save(folder / f"{number:03d}.png")
    return folder, {f"{number:03d}.png": source.captions(number)[0] for number in range(SCENES)}


@pytest.fixture(scope="module")
def index(scenes, tmp_path_factory):
    """An index of the scenes."""
    index = tmp_path_factory.mktemp("indexes") / "index"
    assert run("index", scenes[0], f"--model={MODEL}", f"--index={index}") == 0
    return index


def run(*arguments):
    return commands.main(["search", *map(str, arguments)])


@pytest.mark.slow
def test_recalls_through_a_search_are_those_of_the_evaluation(index, scenes, cli, tmp_path):
    flags = {"limit": SCENES, "rerank_k": 16, "rerank_score": "itm+itc", "extra_splits": "()", "figures": 0}
    flags = [f"--config.evaluation.{name}={value}" for name, value in flags.items()]
    checkpoint = f"--config.checkpoint={MODEL}"
    process = cli("--config=configs/evaluate.py", checkpoint, f"--workdir={tmp_path / 'scored'}", *flags)
    assert process.returncode == 0, process.stderr
    metrics = json.loads((tmp_path / "scored" / "result.json").read_text())["metrics"]
    searcher = Searcher.open(index)
    for rerank, prefix in ((0, ""), (16, "rerank_")):
        ranks = []
        for name, caption in scenes[1].items():
            hits = [hit.name for hit in searcher.search([Part(text=caption)], k=10, rerank=rerank).hits]
            ranks.append(hits.index(name) if name in hits else SCENES)
        for k in (1, 5, 10):
            assert 100 * np.mean(np.array(ranks) < k) == metrics[f"{prefix}t2i_r{k}"], (prefix, k)


def test_a_text_is_ranked_as_the_python_api_ranks_it(index, scenes):
    model, text = serving.load(MODEL), scenes[1]["007.png"]
    files = sorted(scenes[0].glob("*.png"))
    expected = model.rank(text, files, k=9, rerank=20)
    hits = Searcher.open(index).search([Part(text=text)], k=9, rerank=20).hits
    assert [hit.name for hit in hits] == [files[one["index"]].name for one in expected]
    np.testing.assert_allclose([hit.cosine for hit in hits], [one["score"] for one in expected], atol=1e-5)
    np.testing.assert_allclose([hit.probability for hit in hits], [one["match"] for one in expected], atol=1e-4)


def test_words_have_weights(index, scenes):
    searcher, model = Searcher.open(index), serving.load(MODEL)
    weights = searcher.word_weights("a red [MASK] square", 3)
    assert [word for word, _ in weights] == ["a", "red", "[MASK]", "square"]
    whole = model.match(searcher.picture(3), "a red square")
    (_, red, _) = model.word_weights(searcher.picture(3), "a red square")
    assert abs(red[1]) < 1 and 0 < whole < 1 and len(model.word_weights(searcher.picture(3), "red")) == 1
    for text in ("", " ", "red " * 50):
        with pytest.raises(ValueError, match=r"no word|too many tokens"):
            searcher.word_weights(text, 3)
    with pytest.raises(LookupError):
        searcher.word_weights("red", 1_000)


def test_queries_of_every_kind(index, scenes, capsys):
    picture = scenes[0] / "042.png"

    def found(*arguments):
        assert run("query", *arguments, "--json", "-k", 3) == 0
        return json.loads(capsys.readouterr().out)

    by_picture = found(f"--index={index}", "--image", picture)
    assert by_picture["hits"][0]["name"] == "042.png" and by_picture["hits"][0]["probability"] is None
    assert by_picture == found(index, f"--image={picture}")
    row = by_picture["hits"][0]["row"]
    assert found(index, "--like", row)["hits"][0]["row"] == row
    text = found("a red square", "--index", index, "--cutoff=0")
    assert (text["above"], text["pictures"], text["cutoff"]) == (3, SCENES, 0)
    assert found(index, "a red square", "--cutoff=0")["hits"] == text["hits"]
    parts = [Part(text="red", weight=2), Part(image=picture, weight=0.5), Part(text="blue", weight=-1), Part(like=row)]
    expected = [hit.row for hit in Searcher.open(index).search(parts, k=3).hits]
    given = (index, "red", "--image", picture, "--without", "blue", f"--like={row}", "--weights=2,0.5,1,1")
    assert [hit["row"] for hit in found(*given)["hits"]] == expected
    assert run("query", index, "a red square", "--cutoff=1", "-k", 2) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "nothing above 1; the nearest are:" and lines[1].split() == ["row", "cosine", "match", "name"]
    assert len(lines) == 4
    assert run("query", index, "red " * 40) == 0
    assert capsys.readouterr().err == "warning: 1 of 1 texts have more than 12 tokens and are cut\n"


def test_an_export_has_every_picture(index, tmp_path, capsys):
    for ending in ("npz", "parquet", "csv"):
        assert run("export", tmp_path / f"out.{ending}", f"--index={index}") == 0
        assert capsys.readouterr().out == f"{SCENES} pictures in {tmp_path}/out.{ending}\n"
    arrays = dict(np.load(tmp_path / "out.npz"))
    assert arrays["name"].tolist() == [f"{number:03d}.png" for number in range(SCENES)]
    assert arrays["vector"].shape == (SCENES, 16) and arrays["vector"].dtype == np.float32
    table = pq.read_table(tmp_path / "out.parquet").to_pydict()
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    for name in ("name", "row", "sha256"):
        assert table[name] == arrays[name].tolist() == [type(table[name][0])(row[name]) for row in rows]
    np.testing.assert_array_equal(np.array(table["vector"], np.float32), arrays["vector"])
    written = [[float(row[f"v{place}"]) for place in range(16)] for row in rows]
    np.testing.assert_allclose(np.array(written), arrays["vector"], rtol=1e-6)
    for out, told in ((tmp_path / "out.csv", "is there already"), (tmp_path / "out.txt", "is to end in .npz")):
        assert run("export", out, f"--index={index}") == 2
        assert told in capsys.readouterr().err


def test_the_pictures_of_a_run_are_searched_without_a_folder(tmp_path, cli_environment):
    index = tmp_path / "index"
    flags = [f"--model={MODEL}", "--split=test", f"--index={index}"]
    command = [sys.executable, "-m", "maskvlm_jax.search", "index", *flags]
    process = subprocess.run(command, cwd=ROOT, env=cli_environment, capture_output=True, text=True, timeout=300)
    assert (process.returncode, process.stderr) == (0, "")
    assert f"1,000 pictures of {index}/pictures are in {index}\n1,000 embedded (" in process.stdout
    rows = list(csv.DictReader((index / "pictures" / "captions.csv").open()))
    source = Scenes(split="test", image_size=32)
    assert [row["caption"] for row in rows if row["image"] == "test-0017.png"] == source.captions(17)
    with Image.open(index / "pictures" / "test-0017.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), source[17]["image"])


def test_an_index_goes_on_with_its_own_folder_and_model_alone(index, scenes, tmp_path, capsys):
    model = f"--model={MODEL}"
    assert run("index", scenes[0], model, f"--index={index}") == 0
    assert "\n0 embedded, 0 known" in capsys.readouterr().out
    assert run("update", index) == 0
    assert f"{SCENES} pictures of" in capsys.readouterr().out
    write_picture(tmp_path / "other" / "a.png", 1)
    for given, told in (
        ((tmp_path / "other", model), f"is of the folder {scenes[0]}; give another --index"),
        ((scenes[0], f"--model={exports.FOLDER / 'maskvlm'}"), "is of another model"),
        ((scenes[0], model, "--store=milvus", "--url=x.db"), "has its vectors in --store=exact"),
    ):
        assert run("index", *given, f"--index={index}") == 2
        error = capsys.readouterr().err
        assert told in error and error.count("\n") == 1


def test_a_cache_can_be_added_and_left_away(index, scenes, capsys):
    pytest.importorskip("usearch")
    graph, query = index / "neighbours.usearch", ("query", index, "a red square", "--json")
    assert run(*query) == 0
    before = json.loads(capsys.readouterr().out)
    assert run("update", index, "--cache=usearch") == 0 and graph.exists()
    capsys.readouterr()
    assert run(*query) == 0
    assert json.loads(capsys.readouterr().out)["hits"] == before["hits"]
    assert run("update", index, "--cache=none") == 0
    assert json.loads((index / "index.json").read_text())["cache"] == ""


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("find",), "there is no command 'find'; give index, update, query, page, export"),
        (("index", "x", "--index=i"), "give FOLDER or --split, and --model=RUN"),
        (("index", "x", "--model=m"), "the following arguments are required: --index"),
        (("index", "x", "--model=m", "--index=i"), "/x; is the disk there?"),
        (("index", "--split=test", "--model=nowhere", "--index=i"), "there is no workdir 'nowhere'"),
        (("index", "x", "--model=m", "--index=i", "--store=faiss"), "--store is 'faiss'"),
        (("update", "nowhere"), "there is no index in nowhere"),
        (("query", "a dog"), "give a query and an index"),
        (("query", "--index=nowhere", "a dog"), "there is no index in nowhere"),
        (("query", "--index=i", "a", "--weights=1,2"), "--weights has 2 numbers, and the query 1 parts"),
        (("query", "--index=i", "a", "--weights=x"), "--weights is 'x'; give numbers"),
        (("query", "--index=i", "--like=x"), "invalid int value: 'x'"),
        (("query", "--index=i", "--colour=red"), "unrecognized arguments: --colour=red"),
        (("export", "x.npz", "--index=nowhere"), "there is no index in nowhere"),
        (("page", "--index=nowhere"), "nowhere"),
    ],
)
def test_what_is_wrong_is_one_line(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1 and error.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_there_makes_no_index(tmp_path, capsys):
    for folder in ("nowhere", "."):
        index = tmp_path / "pictures" / "index"
        given = tmp_path / "pictures" if folder == "." else folder
        (tmp_path / "pictures").mkdir(exist_ok=True)
        assert run("index", given, f"--model={MODEL}", f"--index={index}") == 2
        assert capsys.readouterr().err.startswith("error: ") and not index.exists()


def test_a_model_without_vectors_is_refused(tmp_path, capsys):
    (tmp_path / "pictures").mkdir()
    model = exports.FOLDER / "mlim"
    assert run("index", tmp_path / "pictures", f"--model={model}", f"--index={tmp_path / 'index'}") == 2
    assert "mlim cannot be searched with: mlim-tiny-scenes has no contrastive space" in capsys.readouterr().err


def test_every_command_has_help(capsys):
    assert run("--help") == 0
    assert "index FOLDER --model=RUN --index=DIR" in capsys.readouterr().out
    for command in ("index", "update", "query", "page", "export"):
        with pytest.raises(SystemExit) as ended:
            run(command, "--help")
        assert ended.value.code == 0 and f"python -m maskvlm_jax.search {command}" in capsys.readouterr().out
