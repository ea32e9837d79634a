"""True captions and false ones of the same words: SugarCrepe, Winoground, ARO, and swaps in generated scenes.

Nothing is trained. A picture I with a true caption T and false ones F is right if s(I, T) > s(I, F) for each of them,
strictly: ties are wrong. The score s is the cosine of the contrastive space (`itc`), the log-odds of matching (`itm`),
each where the model has it, and their sum that a matching head was trained for whose negatives were drawn by similarity
(`itm+itc`, see `objectives.matching`). Of the two pictures and captions of an item of Winoground (Thrush et al. 2022,
arXiv 2204.03162, Eq. 1 to 3), I0 with C0 and I1 with C1,

    text    s(C0, I0) > s(C1, I0)  and  s(C1, I1) > s(C0, I1)
    image   s(C0, I0) > s(C0, I1)  and  s(C1, I1) > s(C1, I0)
    group   both

Which set is read says `config.data.source`: sugarcrepe, winoground or aro, files of `maskvlm_jax.data.sources`.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from maskvlm_jax.data.evaluation_set import EvaluationSet
from maskvlm_jax.evaluators import base, encoding, retrieval
from maskvlm_jax.evaluators.predictor import Predictor
from maskvlm_jax.objectives.base import ScoresPairs, label_of
from maskvlm_jax.runtime.errors import UserError

TRAINS = False


def task(config: ConfigDict, here: str) -> None:
    if config.data.source == "scenes":
        config.data.source = "maskvlm_jax.data.scenes.swaps"
        config.evaluation.extra_splits = ()
    else:  # whose files have their usual names
        config.data.source, config.data.images, config.data.captions = "sugarcrepe", "", ""
        config.data.splits = ConfigDict()
        config.evaluation.split = "test"
    config.evaluation.captions_per_image = 0
    # Of tags, such as the relations of ARO: `least` cases make one count in the mean over them, and those of
    # `left_out` do not.
    config.evals = ConfigDict({"compositional": {"name": here, "during": False, "least": 25, "left_out": ()}})


class Case(NamedTuple):
    """Of every picture of a set: where its captions are, and what it is a case of.

    first_I: its true caption; count_I: how many it has, the false ones behind the true one.
    kind_I, family_I, group_I, tag_I: as `data.sources.alternatives` has them.
    """

    first_I: np.ndarray
    count_I: np.ndarray
    kind_I: np.ndarray
    family_I: np.ndarray
    group_I: np.ndarray
    tag_I: np.ndarray


def cases(data: EvaluationSet) -> Case:
    """What a set holds.

    Raises:
        UserError: it is no set of true and false captions, or some have lost a caption.
    """
    if wrong := [name for name, known in zip(data.ids, data.known, strict=True) if "kind" not in known]:
        raise UserError(
            f"{wrong[0]} has no false captions; set --config.data.source to sugarcrepe, winoground or aro, or another "
            "reader of such sets"
        )
    columns = (np.array([known.get(key, "") for known in data.known]) for key in ("kind", "family", "group", "tag"))
    found = Case(data.first_captions, np.bincount(data.image_of_caption), *columns)
    for kind in np.unique(found.kind_I):
        most = found.count_I[found.kind_I == kind].max()
        fewer = np.flatnonzero((found.kind_I == kind) & (found.count_I < max(most, 2)))
        if len(fewer):
            raise UserError(
                f"{data.ids[fewer[0]]} has {found.count_I[fewer[0]]} captions, other cases of {kind} {max(most, 2)}; "
                "set --config.evaluation.captions_per_image=0 and --config.data.clean=none"
            )
    return found


def same_as_true(data: EvaluationSet, found: Case) -> np.ndarray:
    """(T,) whether a false caption has the tokens of the true one: the same words, or what differs is cut off."""
    true_TL = data.text["tokens"][found.first_I[data.image_of_caption]]
    same_T = np.all(data.text["tokens"] == true_TL, axis=1)
    same_T[found.first_I] = False
    return same_T


def right(score_T: np.ndarray, found: Case, same_T: np.ndarray) -> np.ndarray:
    """(I,) whether the true caption scores higher than every false one."""
    picture_T = np.repeat(np.arange(len(found.first_I)), found.count_I)
    beaten_T = (score_T[found.first_I][picture_T] > score_T) & ~same_T
    beaten_T[found.first_I] = True
    return np.logical_and.reduceat(beaten_T, found.first_I)


def pairs(found: Case) -> np.ndarray:
    """(G, 2): the two pictures of every whole group."""
    groups: dict[tuple[str, str], list[int]] = {}
    for picture in np.flatnonzero(found.group_I != ""):
        groups.setdefault((found.kind_I[picture], found.group_I[picture]), []).append(picture)
    return np.array([both for both in groups.values() if len(both) == 2], int).reshape(-1, 2)


def of_groups(score_T: np.ndarray, found: Case, same_T: np.ndarray) -> dict[str, np.ndarray]:
    """(G,) each: whether "text", "image" and "group" are right, of the groups in the order of `pairs`."""
    pictures_G2 = pairs(found)
    text_G = right(score_T, found, same_T)[pictures_G2].all(axis=1)
    own_G2 = score_T[found.first_I[pictures_G2]]
    # The caption of one picture is the false one of the other.
    elsewhere_G2 = score_T[found.first_I[pictures_G2] + 1][:, ::-1]
    image_G = (own_G2 > elsewhere_G2).all(axis=1)
    return {"text": text_G, "image": image_G, "group": text_G & image_G}


class Evaluator(base.Evaluator):
    """KIND_itc, KIND_itm, KIND_itm+itc, percent of cases that are right; of Winoground KIND_text_itc, KIND_image_itc,
    KIND_group_itc, likewise.

    FAMILY_mean_itc is the mean of a family's kinds, and KIND_macro_itc that of a kind's tags.
    """

    place = 2
    _scores: Mapping[str, Mapping[str, np.ndarray]] = {}

    def evaluate(self, predictor: Predictor, split: str, *, final: bool) -> Iterator[tuple[str, float]]:
        data = self.run.data(split)
        found = cases(data)
        scores = self._scores_of(predictor, split)
        same_T = same_as_true(data, found)
        values = {way: dict(self._of_way(score_T, found, same_T)) for way, score_T in scores.items()}
        for name in dict.fromkeys(name for of_way in values.values() for name in of_way):
            for way, of_way in values.items():
                yield f"{name}_{way}", of_way[name]

    def _scores_of(self, predictor: Predictor, split: str) -> Mapping[str, np.ndarray]:
        """(T,) each: of every caption with its own picture, by the name of the score."""
        scores = encoding.own_scores(predictor, self.run.data(split), self.options["batch_size"])
        label = label_of(self.run.objectives, ScoresPairs)
        if len(scores) == 2 and self.run.objectives[label].adds_similarity(self.run.config.objectives[label]):
            scores["itm+itc"] = retrieval.SCORES["itm+itc"](scores["itm"], scores["itc"], predictor.temperature())
        self._scores = {**self._scores, split: scores}
        return scores

    def _of_way(self, score_T: np.ndarray, found: Case, same_T: np.ndarray) -> Iterator[tuple[str, float]]:
        right_I, kinds = right(score_T, found, same_T), list(dict.fromkeys(found.kind_I.tolist()))
        groups, kind_G = of_groups(score_T, found, same_T), found.kind_I[pairs(found)[:, 0]]
        of_kind = {}
        for kind in kinds:
            of_kind[kind] = 100.0 * float(right_I[found.kind_I == kind].mean())
            if not (kind_G == kind).any():
                yield kind, of_kind[kind]
            for name, right_G in groups.items() if (kind_G == kind).any() else ():
                yield f"{kind}_{name}", 100.0 * float(right_G[kind_G == kind].mean())
            tags = [one for one in self._tags(found, kind) if one.sum() >= self.options["least"]]
            if tags and not (kind_G == kind).any():
                yield f"{kind}_macro", 100.0 * float(np.mean([right_I[of_tag].mean() for of_tag in tags]))
        for family in dict.fromkeys(found.family_I[found.family_I != ""].tolist()):
            of_family = [of_kind[kind] for kind in kinds if (found.family_I[found.kind_I == kind] == family).all()]
            if len(of_family) > 1:
                yield f"{family}_mean", float(np.mean(of_family))

    def _tags(self, found: Case, kind: str) -> Iterator[np.ndarray]:
        """(I,) which pictures are of a tag, for each tag of a kind that counts."""
        for tag in np.unique(found.tag_I[found.kind_I == kind]):
            if tag and tag not in self.options["left_out"]:
                yield (found.kind_I == kind) & (found.tag_I == tag)

    def figures(self, predictor: Predictor, split: str) -> base.Figures:
        """A page of all kinds and their tags."""
        data = self.run.data(split)
        found = cases(data)
        scores = self._scores.get(split) or self._scores_of(predictor, split)
        right_of = {way: right(score_T, found, same_as_true(data, found)) for way, score_T in scores.items()}
        return base.Figures({}, {"compositional": page(found, right_of)})

    def protocol(self, split: str) -> dict[str, Any]:
        data = self.run.data(split)
        found = cases(data)
        kinds = dict(zip(found.kind_I.tolist(), (100.0 / found.count_I).tolist(), strict=True))
        of_groups = set(found.kind_I[found.group_I != ""].tolist())
        chance = {kind: value for kind, value in kinds.items() if kind not in of_groups}
        for kind in sorted(of_groups):  # of four scores in random order
            chance |= {f"{kind}_text": 25.0, f"{kind}_image": 25.0, f"{kind}_group": 100.0 / 6}
        return {
            "chance": chance,
            "ties": "count against the model",
            "captions_of_equal_tokens": int(same_as_true(data, found).sum()),
            "groups_left_out": len(set(found.group_I[found.group_I != ""].tolist())) - len(pairs(found)),
            "family_means": "of the kinds' shares; the benchmark itself has none",
        }


def page(found: Case, right_of: Mapping[str, np.ndarray]) -> str:
    """Markdown: how many cases of each kind, and of each tag of it, are right."""
    lines = [f"| kind | tag | cases | {' | '.join(right_of)} |", "|---|---|---|" + "---|" * len(right_of)]
    for kind in dict.fromkeys(found.kind_I.tolist()):
        tags = np.unique(found.tag_I[found.kind_I == kind]).tolist()
        for tag in ["", *(tag for tag in tags if tag)]:
            of_I = (found.kind_I == kind) & ((found.tag_I == tag) | (tag == ""))
            shares = " | ".join(f"{100 * right_I[of_I].mean():.1f} %" for right_I in right_of.values())
            lines.append(f"| {kind} | {tag.replace('|', '/')} | {of_I.sum()} | {shares} |")
    return "\n".join(lines) + "\n"
