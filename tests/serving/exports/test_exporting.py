"""An export holds the run's weights bit by bit, and PyTorch and served programs give what our model gives."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jax import export as jax_export
from safetensors.numpy import load_file

from maskvlm_jax.evaluators.predictor import Functions, Predictor
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.runtime.errors import UserError
from maskvlm_jax.serving.exports import exporting
from maskvlm_jax.settings import rules, workdir
from maskvlm_jax.training import build, train_step
from maskvlm_jax.training.checkpoint import open_run
from tests.conftest import TOY, toy_config, toy_flags
from tests.reference import exporting as exports
from tests.reference import toy
from tests.training.steps import one_device


def read(folder: Path, config, step: str = "latest"):
    """Graph definition and parameters of a workdir or an export."""
    mesh = one_device()
    with jax.set_mesh(mesh):
        graphdef, abstract = train_step.abstract_params(
            lambda: Learner(**build.model_arguments(config), rngs=nnx.Rngs(0)), mesh
        )
        checkpoints, number = open_run(folder, step)
        params = checkpoints.load_params(number, abstract)
        checkpoints.close()
    return graphdef, params


def close(actual, expected) -> None:
    """To 1e-5 of the largest value."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("recipe", ["maskvlm", "mamo", "mlim", "m3ae", "albef", "clip", "eve", "m3ae_med"])
def test_what_was_written_is_read_bit_by_bit(recipe, tmp_path, capsys):
    config = toy_config(f"recipe={recipe}")
    (tmp_path / "run").mkdir()
    exports.make_workdir(tmp_path / "run", config)
    exporting.export(str(tmp_path / "run"), str(tmp_path / "out"))
    ours, theirs = (toy.by_path(read(tmp_path / name, config)[1]) for name in ("run", "out"))
    assert ours.keys() == theirs.keys()
    for path, value in ours.items():
        np.testing.assert_array_equal(value, theirs[path], err_msg=path)
    told = capsys.readouterr().out
    assert ("torch_model.py      not there: it has no fusion of kind autoencoder" in told) == (recipe == "m3ae")
    assert (tmp_path / "out" / "torch_model.py").exists() == (recipe not in ("m3ae", "eve", "m3ae_med"))
    # What was exported of an export is the export.
    exporting.export(str(tmp_path / "out"), str(tmp_path / "again"))
    for path in (tmp_path / "out").rglob("*"):
        if path.is_file() and path.name not in ("export.json", "README.md"):
            again = tmp_path / "again" / path.relative_to(tmp_path / "out")
            assert path.read_bytes() == again.read_bytes(), path
    ours, theirs = (json.loads((tmp_path / name / "export.json").read_text()) for name in ("out", "again"))
    assert ours["parameters_sha256"] == theirs["parameters_sha256"] and ours["step"] == theirs["step"] == 3


@pytest.mark.parametrize("name", exports.MODELS)
def test_pytorch_gives_what_our_model_gives(name):
    """golden.npz holds what PyTorch computed, see `make_export_goldens`; a changed torch_model.py must be run again."""
    folder, config = exports.FOLDER / name, exports.config_of(name)
    rules.check(config)
    golden = np.load(folder / "golden.npz")
    assert hashlib.sha256(exporting.TORCH_MODEL.read_bytes()).hexdigest() == str(golden["torch_model"])
    graphdef, params = read(folder, config)
    with jax.set_mesh(one_device()):
        predictor = Predictor(
            Functions(graphdef), params, objectives=rules.active_objectives(config), mesh=one_device()
        )
        image_BSD, image_BE = predictor.encode_image(golden["pixels"])
        text_BLD, text_BE = predictor.encode_text(golden["tokens"], golden["valid"])
        if "image_embedding" in golden:
            close(image_BE, golden["image_embedding"])
            close(text_BE, golden["text_embedding"])
        if "image_features" in golden:
            close(image_BSD, golden["image_features"])
        if "text_features" in golden:
            close(text_BLD[golden["valid"]], golden["text_features"][golden["valid"]])
        if "match" in golden:
            images, texts = predictor.prepare_images(image_BSD), predictor.prepare_texts(text_BLD, golden["valid"])
            close(predictor.match(images, texts, np.arange(3), np.arange(3)), golden["match"])
        learner = nnx.merge(graphdef, params)
        fusion = learner.vlm.fusion
        fused = fusion.fuse(fusion.image_side(image_BSD), fusion.text_side(text_BLD, golden["valid"])).text()
        head = learner.objectives[next(one for one in learner.objectives if one.endswith("masked_text"))]
        embedding_VD = learner.vlm.text_encoder.embedding[...]
        words = fused @ embedding_VD.T + head.bias[...] if head.tie else head.to_words(fused)
        close(np.asarray(words)[golden["valid"]], golden["words"][golden["valid"]])


@pytest.mark.parametrize("name", exports.MODELS)
def test_an_export_is_still_what_pytorch_was_given(name, tmp_path):
    exporting.export(str(exports.FOLDER / name), str(tmp_path / "out"))
    for path in (tmp_path / "out").rglob("*"):
        if path.suffix in (".safetensors", ".json") and path.name != "export.json":
            assert path.read_bytes() == (exports.FOLDER / name / path.relative_to(tmp_path / "out")).read_bytes(), path


def test_programs_for_serving_give_what_our_model_gives(tmp_path):
    folder = exports.FOLDER / "albef"
    exporting.export(str(folder), str(tmp_path / "out"), stablehlo=True)
    golden, weights = np.load(folder / "golden.npz"), load_file(tmp_path / "out" / "model.safetensors")

    def call(name, *inputs):
        program = jax_export.deserialize((tmp_path / "out" / f"{name}.stablehlo").read_bytes())
        assert set(program.platforms) == {"cpu", "cuda", "tpu"}
        return program.call(weights, *inputs)

    text = golden["tokens"], golden["valid"]
    close(call("encode_images", golden["pixels"]), golden["image_embedding"])
    close(call("encode_images", golden["pixels"][:1]), golden["image_embedding"][:1])
    close(call("encode_texts", *text), golden["text_embedding"])
    close(call("match", golden["pixels"], *text), golden["match"])
    card = (tmp_path / "out" / "README.md").read_text()
    assert "match.stablehlo" in card and "uint8 (b, 32, 32, 3)" in card


def test_a_run_is_exported_scored_and_never_overwritten(cli, cli_environment, finished_run, tmp_path):
    run, _ = finished_run

    def export(*arguments):
        command = [sys.executable, "-m", "maskvlm_jax.export", *map(str, arguments)]
        return subprocess.run(command, env=cli_environment, capture_output=True, text=True, timeout=300)

    out = tmp_path / "out"
    process = export(run, out)
    assert process.returncode == 0, process.stderr
    assert "is in " in process.stdout and not process.stderr
    card = (out / "README.md").read_text()
    assert "| mean_recall |" in card and "Trained on scenes/train" in card and str(run) not in card
    evaluated = cli("--config=configs/evaluate.py", f"--config.checkpoint={out}", f"--workdir={tmp_path / 'scores'}")
    assert evaluated.returncode == 0, evaluated.stderr
    ours, theirs = (json.loads((path / "result.json").read_text()) for path in (tmp_path / "scores", run))
    assert ours["metrics"] == theirs["metrics"]
    assert ours["protocol"]["parameters_sha256"] == theirs["protocol"]["parameters_sha256"]
    again = export(run, out)
    assert again.returncode == 2 and again.stderr == f"error: {out} exists; give a folder that does not, or remove it\n"
    assert TOY["steps"] == json.loads((out / "export.json").read_text())["step"]


@pytest.mark.slow
def test_a_run_starts_from_an_export(cli, tmp_path):
    out = exports.FOLDER / "maskvlm"
    values = {"steps": 1, "optim__warmup_steps": 0, "model__fusion__heads": 2} | exports.MODELS["maskvlm"][1]
    flags = [flag for flag in toy_flags(**exports.SMALL | values) if "masked_image" not in flag]
    tuned = cli(
        "--config=configs/finetune_retrieval.py",
        *flags,
        f"--config.checkpoint={out}",
        f"--workdir={tmp_path / 'tuned'}",
    )
    assert tuned.returncode == 0, tuned.stderr
    assert json.loads((tmp_path / "tuned" / "result.json").read_text())["protocol"]["initialised_from"].startswith(
        str(out)
    )


def test_what_cannot_be_exported_is_told(finished_run, tmp_path):
    run, out = str(finished_run[0]), str(tmp_path / "out")
    with pytest.raises(UserError, match="there is no workdir 'nowhere'"):
        exporting.export("nowhere", out)
    with pytest.raises(UserError, match="there is no checkpoint of step 99"):
        exporting.export(run, out, step="99")
    with pytest.raises(UserError, match="kept no moving average"):
        exporting.export(run, out, weights="ema")
    assert not list(tmp_path.iterdir())


def test_a_damaged_export_is_told(tmp_path):
    config = exports.config_of("maskvlm")
    exporting.export(str(exports.FOLDER / "maskvlm"), str(tmp_path / "out"))
    path = tmp_path / "out" / "model.safetensors"
    with pytest.raises(UserError, match=r"is of step 3 alone; ask for no other"):
        read(tmp_path / "out", config, "7")
    with pytest.raises(UserError, match=r"has no .*, which|has no image_encoder"):
        read(tmp_path / "out", toy_config(model__image__depth=5))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged or cut off"):
        read(tmp_path / "out", config)


def texts_of(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md"))


def test_no_place_of_this_machine_goes_out_and_scores_go_along(tmp_path):
    values = {"data__root": f"{tmp_path}/secret/data", "data__tokenizer": f"{tmp_path}/secret/words"}
    config = toy_config(**values, checkpoint=f"{tmp_path}/secret/before", optim__ema_decay=0.9)
    config.init.image = f"{tmp_path}/secret/encoder"
    run = tmp_path / "run"
    run.mkdir()
    exports.make_workdir(run, config)
    encoder = {"name": f"{tmp_path}/secret/encoder", "family": "vit", "sha256": {}, "values": {}}
    (run / "initial_weights.json").write_text(json.dumps({"image": encoder}))
    (run / "tokenizer" / "model.safetensors").write_bytes(b"of another model")
    exporting.export(str(run), str(tmp_path / "first"))
    record = json.loads((tmp_path / "first" / "export.json").read_text())
    assert record["initialised_from"] == "before latest" and "It started from `before latest`" in texts_of(tmp_path)
    protocol = {
        "parameters_sha256": record["parameters_sha256"],
        "initialised_from": f"{tmp_path}/secret/before latest",
    }
    (run / "evaluation").mkdir()
    (run / "evaluation" / "result.json").write_text(
        json.dumps({"protocol": protocol, "metrics": {"mean_recall": 12.5}})
    )
    exporting.export(str(run), str(tmp_path / "out"), weights="params")
    exporting.export(str(tmp_path / "out"), str(tmp_path / "again"))
    for name in ("out", "again"):
        assert str(tmp_path) not in texts_of(tmp_path / name)
        assert "| mean_recall | 12.5 |" in (tmp_path / name / "README.md").read_text()
        assert not list((tmp_path / name / "tokenizer").glob("*.safetensors"))
    kept = [json.loads((tmp_path / name / "export.json").read_text()) for name in ("out", "again")]
    assert kept[0] == kept[1]


def test_the_folder_of_an_encoder_has_its_tokenizer_whatever_its_kind(tmp_path):
    """A tokenizer that only config.json beside it tells to be RoBERTa's."""
    from transformers import AutoTokenizer

    config = toy_config(model__text__norm="post")
    (tmp_path / "run").mkdir()
    exports.make_workdir(tmp_path / "run", config)
    folder = tmp_path / "run" / "tokenizer"
    for path in folder.iterdir():
        path.unlink()
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"Ġ{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"), "Ġ"]
    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *letters]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(f"Ġ {letter}" for letter in "abcdefgh"))
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta"}))
    exporting.export(str(tmp_path / "run"), str(tmp_path / "out"))
    ids = [AutoTokenizer.from_pretrained(path)("a bad face").input_ids for path in (folder, tmp_path / "out/tokenizer")]
    assert AutoTokenizer.from_pretrained(tmp_path / "out" / "text_encoder")("a bad face").input_ids == ids[0] == ids[1]


def test_an_export_is_no_workdir_and_its_record_must_be_whole(tmp_path):
    exporting.export(str(exports.FOLDER / "maskvlm"), str(tmp_path / "out"))
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"is an export; start from it by --config\.checkpoint, in another --workdir"):
        workdir.claim(tmp_path / "out", toy_config(), alone=True)
    assert before == {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    for content in ("{}", "[]", "{"):
        (tmp_path / "out" / "export.json").write_text(content)
        with pytest.raises(UserError, match=r"export\.json"):
            read(tmp_path / "out", exports.config_of("maskvlm"))


def test_what_lies_beside_an_export_stays(tmp_path):
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "thesis.txt").write_text("mine")
    exporting.export(str(exports.FOLDER / "mlim"), str(tmp_path / "out"))
    assert (tmp_path / "out.partial" / "thesis.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} <= {"out", "out.partial", "more"}
