"""What a fine-tuned model tells: classes of pictures or of pairs, and answers to questions about pictures."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from scipy.special import softmax

from maskvlm_jax.data.batch import without_picture
from maskvlm_jax.evaluators import answers, classes
from maskvlm_jax.objectives.base import AnswersQuestions, Classifies, label_of
from maskvlm_jax.objectives.learner import Learner
from maskvlm_jax.serving import pictures
from maskvlm_jax.serving.pictures import Picture
from maskvlm_jax.serving.runner import Runner

NO_PICTURE = without_picture(np.zeros((32, 32, 3), np.uint8))

Pictures = Picture | Iterable[Picture | None]
Texts = str | Iterable[str | None]


def _logits(learner: Learner, batch: Mapping[str, jax.Array]) -> jax.Array:
    return learner.offering(Classifies).logits(learner.context(batch))


class Tells:
    """The part of `Model` that asks a fine-tuned model what it was fine-tuned for."""

    config: ConfigDict
    _runner: Runner
    _objectives: Mapping[str, type]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that `predict` tells, in the order of their numbers; () = the run's config has none."""
        return classes.told_names(self.config, self._asked(Classifies, "classes").get("label", "label"))

    def predict(
        self,
        images: Pictures,
        texts: Texts | None = None,
        *,
        second_images: Pictures | None = None,
        second_texts: Texts | None = None,
        progress: bool = False,
    ) -> np.ndarray:
        """Probabilities of the classes that a model was fine-tuned to tell: of pictures (classification), of a picture
        with a text (entailment), of two pictures with a text (nlvr), of two pictures with a text each (pairs).

        Args:
            images, texts, second_images, second_texts: what the task reads, as many of each, or one; in lists None is
                what is absent.
            progress: show a bar.
        Returns:
            (n, c) float32, (c,) where one of each was given; rows sum to 1. `class_names` are theirs.
        """
        options = self._asked(Classifies, "classes")
        pairs = self._objectives[label_of(self._objectives, Classifies)].needs(options).fusion
        second = dict(options.get("second", {}))
        for name, read, given in (
            ("texts", pairs, texts),
            ("second_images", "image" in second, second_images),
            ("second_texts", "text" in second, second_texts),
        ):
            if (given is not None) != read:
                raise ValueError(f"{self.config.name} {'needs' if read else 'reads no'} {name}")
        logits, single = self._runner.of_pairs(
            _present(images),
            _written(texts) if pairs else "",  # the class of a picture alone does not depend on what stands here
            _logits,
            shape=(options["classes"],),
            second_images={second["image"]: _present(second_images)} if "image" in second else {},
            second_texts={second["text"]: _written(second_texts)} if "text" in second else {},
            progress=progress,
        )
        probability = softmax(logits, axis=-1)
        return probability[0] if single else probability

    def answer(
        self, images: Picture | Iterable[Picture], questions: str | Iterable[str], *, k: int = 1, progress: bool = False
    ) -> list[Any]:
        """The likeliest answers of the run's list to questions about pictures, of a model that was fine-tuned for them.

        Args:
            images, questions: as many of both, or one of either.
            k: how many are wanted of each.
            progress: show a bar.
        Returns:
            for each question at most k of {"answer", "score"}, the likeliest first, without a list around them of one
            picture and one question. Scores are log-odds that the answer is right (vqa), or log-likelihoods of its text
            (vqa_text).
        """
        self._asked(AnswersQuestions, "answers")
        if k < 1:
            raise ValueError(f"k is {k}; give at least 1")
        known = next(tuple(field.answers) for field in self.config.data.fields.values() if field.get("answers"))
        texts = answers.encoded(known, self._runner.tokenizer, self.config.model.text.max_length)
        score, single = self._runner.of_pairs(
            images, questions, answers.scores_of, *texts, shape=(len(known),), progress=progress
        )
        best = np.argsort(-score, axis=1, kind="stable")[:, :k]
        found = [
            [{"answer": known[i], "score": float(row[i])} for i in order if np.isfinite(row[i])]
            for row, order in zip(score, best, strict=True)
        ]
        return found[0] if single else found

    def _asked(self, role: type, what: str) -> Mapping[str, Any]:
        """The config's arguments of the objective of a role."""
        label = label_of(self._objectives, role)
        if label is None:
            raise ValueError(f"{self.config.name} tells no {what}: it was trained without")
        return self.config.objectives[label].to_dict()


def _present(images: Pictures) -> Any:
    """The same with the mean colour, which tells nothing, where a picture of a list is absent."""
    many, single = pictures.many(images)
    return many[0] if single else [NO_PICTURE if one is None else one for one in many]


def _written(texts: Texts) -> Any:
    """The same with no word where a text of a list is absent."""
    return texts if isinstance(texts, str) else ["" if one is None else one for one in texts]
