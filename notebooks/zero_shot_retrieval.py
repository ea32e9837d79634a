# %% [markdown]
# # Pictures and captions find each other
#
# [![Open in Colab][badge]][here]
#
# [badge]: https://colab.research.google.com/assets/colab-badge.svg
# [here]: https://colab.research.google.com/github/ORGANISATION/maskvlm_jax/blob/main/notebooks/zero_shot_retrieval.ipynb
#
# A small MaskVLM is trained on generated scenes, then used: retrieval both ways, re-ranking by the matching head, words
# read from a picture, a picture rebuilt from a caption, and your own pictures. Nothing is downloaded but the packages.
#
# | on | installing | training | the rest |
# |---|---|---|---|
# | 2 CPU cores | 2 min | 3 min | half a minute |
# | T4 or a TPU of Colab | 3 min | 2 min | 1 min |
#
# *CPU: from the processor time that the training and the cells took; the installation depends on the network. T4 and
# TPU: estimates, not measured; a model this small mostly waits for programs to compile there.*

# %% [markdown]
# ## Parameters
#
# Paths are absolute, or from the folder of the repository on.

# %% tags=["parameters"]
MODEL = ""  # a run's workdir or an export; "" = one is trained here
STEPS = 300  # of that training
FLAGS = ""  # more flags of that training, such as --config.batch_size=32
WORK = "runs/zero_shot_notebook"  # where everything is written
COUNT = 200  # scenes that find each other
RERANK = 16  # candidates of a query that matching looks at
PICTURES = ""  # a folder of your own pictures; "" = a hundred scenes stand in for them
QUERIES = ["yellow heart on navy", "red ring on navy", "green square on teal"]  # what to look for in it
UPLOAD = False  # on Colab: asks for your pictures

# %% [markdown]
# ## Setting up
#
# On Colab the code is fetched and installed with JAX for the device of this runtime. If Colab asks for a restart
# afterwards, restart and run from the top. Elsewhere the notebook uses the Python that it runs in.

# %%
import glob
import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = "https://github.com/ORGANISATION/maskvlm_jax"

if "google.colab" in sys.modules:
    if not Path("/content/maskvlm_jax").is_dir():
        subprocess.run(["git", "clone", "-q", "--depth=1", REPOSITORY, "/content/maskvlm_jax"], check=True)
    os.chdir("/content/maskvlm_jax")
    tpu = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/*")
    kind = "cuda12" if shutil.which("nvidia-smi") else "tpu" if tpu else "cpu"
    packages = ["-r", "requirements.txt", f"jax[{kind}]"]
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", *packages], check=True)
else:
    os.chdir(next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "configs/pretrain.py").is_file()))
sys.path.insert(0, os.getcwd())


def run(*arguments):
    """Python with these arguments, in a process of its own; what it prints is shown."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen([sys.executable, "-u", *arguments], **options) as process:
        for line in process.stdout:
            print(line, end="")
    assert process.returncode == 0


assert Path("configs/pretrain.py").is_file()

# %% [markdown]
# Which device JAX finds. A process of its own asks, since a GPU or TPU that this notebook held would be missing in the
# training.

# %%
run("-c", "import jax; print(jax.devices())")

# %% [markdown]
# ## A model
#
# The command is the README's, cut to a quarter of its steps. It prints its losses and ends with the scores of 200
# scenes that it has not seen: a caption finds its picture among them nine times in ten.

# %%
if not MODEL:
    MODEL = f"{WORK}/scenes"
    flags = ["--config=configs/pretrain.py", f"--workdir={MODEL}"]
    flags += [f"--config.{name}={STEPS}" for name in ("steps", "eval_every", "checkpoint_every")]
    flags += ["--config.evaluation.limit=200", "--config.evaluation.extra_splits=()"]
    run("-m", "maskvlm_jax.main", *flags, *FLAGS.split())
assert Path(MODEL).is_dir()

# %%
import textwrap
import warnings

# There are no progress bars here, and one caption in 200 is longer than the model reads.
warnings.filterwarnings("ignore", message=".*(IProgress|tokens and are cut)")
os.environ["TRANSFORMERS_VERBOSITY"] = "error"

import matplotlib.pyplot as plt
import numpy as np

import maskvlm_jax
from maskvlm_jax.data.scenes.source import Scenes

model = maskvlm_jax.load(MODEL)
trained = model.step >= 100  # a shorter run, as tests make, has learned nothing yet
print(f"{model.config.name}, step {model.step}: {model.image_size} pixels, vectors of {model.embed_dim} numbers")
assert model.embed_dim > 0

# %% [markdown]
# ## How alike they are
#
# Each picture and each caption is a vector of unit length; the product of two is their cosine. Captions belong to the
# pictures on the diagonal.


# %%
def scenes(split, count):
    """Pictures of a split and the first caption of each."""
    source = Scenes(split=split, image_size=model.image_size)
    examples = [source[i] for i in range(count)]
    return [one["image"] for one in examples], [one["captions"][0] for one in examples]


pictures, captions = scenes("test", COUNT)
cosines = model.similarity(model.encode_texts(captions), model.encode_images(pictures))  # a row a caption
few = min(10, COUNT)
figure, axis = plt.subplots(figsize=(10, 7), layout="constrained")
shown = axis.imshow(cosines[:few, :few], cmap="magma")
for i in range(few):
    axis.imshow(pictures[i], extent=(i - 0.48, i + 0.48, -0.56, -1.52))
    axis.add_patch(plt.Rectangle((i - 0.47, i - 0.47), 0.94, 0.94, fill=False, edgecolor="limegreen", linewidth=2))
axis.set(xlim=(-0.5, few - 0.5), ylim=(few - 0.5, -1.55), xticks=[], aspect="equal")
axis.set_yticks(range(few), [textwrap.fill(caption, 40) for caption in captions[:few]], fontsize=8)
axis.spines[:].set_visible(False)
figure.colorbar(shown, label="cosine", shrink=0.7)
plt.show()
assert cosines.shape == (COUNT, COUNT) and np.abs(cosines).max() < 1.001

# %% [markdown]
# ## Zero-shot retrieval, both ways
#
# R@k: how often the right one is among the first k. `test` has the colours and shapes of the training; `novel` has
# pairs of colour and shape that no training scene had.

# %%
from maskvlm_jax.evaluators import ranking


def recalls(split):
    """R@1, 5 and 10 in percent, of captions that look for their picture and of pictures that look for their caption."""
    pictures, captions = scenes(split, COUNT)
    score = model.similarity(model.encode_images(pictures), model.encode_texts(captions))
    own = np.arange(COUNT)
    return ranking.recalls(ranking.image_to_text_ranks(score, own), ranking.text_to_image_ranks(score, own))


found = {split: recalls(split) for split in ("test", "novel")}
print(f"{'% of ' + str(COUNT):24}" + "".join(f"{split:>8}" for split in found))
for way, name in (("t2i", "caption finds picture"), ("i2t", "picture finds caption")):
    for k in (1, 5, 10):
        print(f"{name + f', R@{k}':24}".ljust(30) + "".join(f"{found[s][f'{way}_r{k}']:8.1f}" for s in found))
assert not trained or found["test"]["mean_recall"] > 10 * 100 * 5 / COUNT  # ten times what chance gives R@5

# %% [markdown]
# ## Re-ranked by matching
#
# The second stage looks at a picture and a caption together. That is too slow for all pairs, so it orders the nearest
# by cosine anew.

# %%
queries = captions[: min(40, COUNT)]
first, second = [], []  # of each caption pictures and what they got, the best first
for row, text in zip(cosines, queries, strict=False):
    near = np.argsort(-row)[:RERANK]
    scores, probabilities = model.rerank(text, [pictures[i] for i in near], row[near])
    order = np.argsort(-scores)
    first.append([(i, f"cosine {row[i]:.2f}") for i in near])
    second.append([(i, f"probability {p:.2f}") for i, p in zip(near[order], probabilities[order], strict=True)])
right = [np.mean([one[0][0] == i for i, one in enumerate(stage)]) for stage in (first, second)]
print(f"the first picture is right for {right[0]:.0%} of {len(queries)} captions, after matching for {right[1]:.0%}")
assert all({i for i, _ in one} == {i for i, _ in two} for one, two in zip(first, second, strict=True))

# %%
changed = [i for i in range(len(queries)) if first[i][0][0] != second[i][0][0]]
chosen = (changed + [i for i in range(len(queries)) if i not in changed])[:3]
figure = plt.figure(figsize=(7.5, 3.7 * len(chosen)), layout="constrained")
for i, part in zip(chosen, figure.subfigures(len(chosen), 1, squeeze=False).flat, strict=True):
    part.suptitle(f'"{queries[i]}"', fontsize=10)
    for name, stage, row in zip(("cosine", "matching"), (first[i], second[i]), part.subplots(2, 5), strict=True):
        row[0].set_ylabel(f"by {name}", fontsize=9)
        for (number, told), axis in zip(stage, row, strict=False):
            axis.imshow(pictures[number])
            axis.spines[:].set(color="limegreen" if number == i else "0.8", linewidth=5 if number == i else 1)
            axis.set(xticks=[], yticks=[])
            axis.set_xlabel(told, fontsize=8)
plt.show()

# %% [markdown]
# Framed in green: the caption's own picture. The probability is that of a pair that looks right already, among as many
# wrong pairs as right ones. It is trained against pairs that the cosine takes for right, so what the cosine knows is
# added to it: the order is that of the sum.
#
# ## Words, read from the picture
#
# The model fills the place of `[MASK]`. Beside it stands what it would say without the picture. After 300 steps colours
# and backgrounds are read well, textures hardly.

# %%
from maskvlm_jax.data.scenes.world import BACKGROUNDS, COLOURS, SHAPES, TEXTURES

hidden = []
for kinds in (COLOURS, SHAPES, BACKGROUNDS, TEXTURES):  # a caption each
    i = next(i for i in range(COUNT) if i not in [h[0] for h in hidden] and set(captions[i].split()) & set(kinds))
    word = next(word for word in captions[i].split() if word in kinds)
    hidden.append((i, word, captions[i].replace(word, "[MASK]", 1)))
figure, axes = plt.subplots(2, len(hidden), figsize=(13, 4.6), layout="constrained")
for column, (i, word, text) in zip(axes.T, hidden, strict=True):
    told = {one["word"]: one["probability"] for one in model.fill_masks(pictures[i], text)[0]}
    blind = {one["word"]: one["probability"] for one in model.fill_masks(None, text, k=100)[0]}
    place = np.arange(len(told))
    column[0].imshow(pictures[i])
    column[0].set_title(f"{textwrap.fill(text, 36)}\nhidden: {word}", fontsize=8)
    column[0].axis("off")
    column[1].barh(place - 0.2, list(told.values()), 0.4, label="with the picture", color="C0")
    column[1].barh(place + 0.2, [blind.get(name, 0) for name in told], 0.4, label="without", color="0.75")
    column[1].set_yticks(place, told)
    column[1].set(xlim=(0, 1), xlabel="probability")
    column[1].invert_yaxis()
axes[1, 0].legend(loc="lower right", fontsize=8)
plt.show()
assert len(told) == 5 and 0 < sum(told.values()) <= 1.001

# %% [markdown]
# ## A picture, rebuilt from two captions
#
# Patches are hidden and rebuilt from the visible ones and a caption: the picture's own, then another picture's. After
# 300 steps it is the colour that follows the caption; place and shape take the 1,200 of the README's run.

# %%
few = min(4, COUNT)
figure, axes = plt.subplots(few, 4, figsize=(8, 2.3 * few), squeeze=False, layout="constrained")
for i, row in enumerate(axes):
    other = captions[(i + 1) % COUNT]
    own, wrong = (model.reconstruct(pictures[i], text, seed=i) for text in (captions[i], other))
    for axis, picture in zip(row, (pictures[i], own["masked"], own["image"], wrong["image"]), strict=True):
        axis.imshow(picture)
        axis.set(xticks=[], yticks=[])
    row[0].set_title(f"own: {captions[i]}\nother: {other}", fontsize=8, loc="left")
names = ("the picture", "what is seen of it", "with its own caption", "with the other")
for axis, name in zip(axes[-1], names, strict=True):
    axis.set_xlabel(name, fontsize=9)
plt.show()
assert own["image"].shape == pictures[0].shape and np.array_equal(own["hidden"], wrong["hidden"])

# %% [markdown]
# ## Your own pictures
#
# Name a folder in `PICTURES`, or set `UPLOAD` on Colab. `Model.rank` does both stages. A model of generated scenes
# knows coloured shapes only: for photographs, name one of photographs in `MODEL`. For many pictures there is
# `python -m maskvlm_jax.search`, which keeps their vectors (see `fine_tune.ipynb`).

# %%
from PIL import Image

folder = Path(PICTURES or f"{WORK}/pictures")
if not PICTURES:
    folder.mkdir(parents=True, exist_ok=True)
    if UPLOAD and "google.colab" in sys.modules:
        from google.colab import files

        for name, content in files.upload().items():
            (folder / name).write_bytes(content)
    else:
        for i, picture in enumerate(scenes("val", 100)[0]):
            Image.fromarray(picture).save(folder / f"scene{i:02}.png")
endings = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings)
answers = {query: model.rank(query, paths, k=5) for query in QUERIES}
columns = min(5, len(paths))
figure, axes = plt.subplots(
    len(QUERIES), columns, figsize=(2 * columns, 2.5 * len(QUERIES)), squeeze=False, layout="constrained"
)
for row, (query, hits) in zip(axes, answers.items(), strict=True):
    for axis, hit in zip(row, hits, strict=True):
        axis.imshow(Image.open(paths[hit["index"]]))
        axis.set(xticks=[], yticks=[])
        axis.set_xlabel(f"{paths[hit['index']].name}\nprobability {hit['match']:.2f}", fontsize=8)
    row[0].set_title(f'"{query}"', fontsize=10, loc="left")
plt.show()
assert all(len(hits) == columns for hits in answers.values())
