"""What every objective is, and what it may offer to evaluators.

An objective returns its loss unreduced, as `Terms`; the learner takes the means. So a loss is the same whether a batch
is computed whole or in microbatches, without its author knowing of either.

What an objective needs of the model is a `Needs`; what its predictions are good for is a role: a base class beside
`Objective`, such as `ScoresPairs`. Nothing is found by the label that a config gives it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import jax
from flax import nnx

from maskvlm_jax.models.layers import Positions
from maskvlm_jax.objectives.context import Context, Views


class Terms(NamedTuple):
    """Values whose mean is a loss.

    value: (B, ...) float32; of an example, or of each of its masked positions, pairs or patches. A loss over all pairs
        of a batch reads the batch-wide properties of `Context` and gives one value an example of the whole batch.
    valid: booleans of the same shape, which of them count; None = all. Every one that counts weighs the same, however
        many its example has.
    weight: of this mean in the objective's loss.
    name: the mean is logged as LABEL/NAME too; "" = it is not.
    factor: for a loss that is a product of two means, Σ_k mean(factor_k) · mean(value_k), the first of them without a
        gradient: (B, ..., K) beside a value of that shape, whose `valid` has all but its last axis.
    """

    value: jax.Array
    valid: jax.Array | None = None
    weight: jax.Array | float = 1.0
    name: str = ""
    factor: jax.Array | None = None


class Needs(NamedTuple):
    """What an objective, or a masker, needs of the model and of the training.

    embedding: the contrastive space. fusion: both modalities fused; fused_patches: positions of the picture among them.
    masked_pictures: pictures of which patches are hidden. teacher: the moving average of the parameters. negatives:
    other pairs in the batch. cell: pixels of a side of cells that patches are cut into; 0 = none. hidden: the values of
    `model.image.hidden` with which the image encoder's own masked view is what it reads; () = it reads none. fields:
    labels of `config.data.fields` whose arrays it reads of `ctx.batch`. class_token: that of the image encoder.
    """

    embedding: bool = False
    fusion: bool = False
    fused_patches: bool = False
    masked_pictures: bool = False
    teacher: bool = False
    negatives: bool = False
    cell: int = 0
    hidden: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    class_token: bool = False


class Objective(nnx.Module):
    """One loss of one paper.

    Attributes:
        views: what it reads of the context, by modality; these go through an encoder in one call.
        queue: pairs of earlier batches that it reads; 0 = none.
        shares: arguments by which a part of it is built, an attribute of the same name; objectives that share one have
            the first one's, with its moving average, and must be given the same argument.
        reads_auxiliary: it reads `ctx.auxiliary`, what blocks handed out in all passes of the others; it comes last.
        own_width: its decoder stands behind a dense layer, and need not be as wide as the model.
        choices: arguments that are one of a few words.
        training_arguments: arguments that say how its head is trained, and not what the head's parameters are: a run
            that starts from another takes over a head that differs in these alone.
        starts_from: path of a part of its head -> path in the model of what that starts as a copy of, where a run
            starts from another that has no such head; if the shapes are others it starts from new parameters.
    """

    views: Views
    queue = 0
    shares: ClassVar[tuple[str, ...]] = ()
    reads_auxiliary: ClassVar[bool] = False
    own_width: ClassVar[bool] = False
    choices: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    training_arguments: ClassVar[tuple[str, ...]] = ()
    starts_from: ClassVar[Mapping[str, str]] = {}

    @classmethod
    def needs(cls, arguments: Mapping[str, Any]) -> Needs:
        """What it needs, with these arguments of its config."""
        return Needs()

    def __call__(self, ctx: Context, key: jax.Array) -> tuple[Any, ...]:
        """The terms of the loss (`Terms` or a tuple of them), which are added up, and scalars to log; third, if it
        keeps something, what it saw of the batch: arrays that are means over its examples."""
        raise NotImplementedError

    def first_kept(self) -> dict[str, jax.Array]:
        """What it keeps from step to step beside its parameters, before the first step; {} = nothing.

        It is part of a checkpoint, not of the model: a run that starts from another's model begins with this.
        """
        return {}

    def kept(self, ctx: Context) -> Mapping[str, jax.Array]:
        """The same in a step."""
        return ctx.kept[id(self)]

    def next_kept(self, kept: Mapping[str, jax.Array], seen: Any) -> dict[str, jax.Array]:
        """The same after a step; `seen`: what the call returned, of the whole batch however it was cut."""
        raise NotImplementedError


class PredictsWords:
    """Role: predicts masked words."""

    def predict(self, ctx: Context) -> tuple[jax.Array, Positions]:
        """logits_BMV at the masked tokens, and which tokens they are."""
        raise NotImplementedError


class PredictsPixels:
    """Role: rebuilds masked patches."""

    def predict(self, ctx: Context) -> tuple[jax.Array, Positions]:
        """pred_BMF, normalised pixels of the masked patches, and which patches they are."""
        raise NotImplementedError


class PredictsPatches:
    """Role: predicts values that are made of masked patches, from the visible ones alone.

    Attributes:
        bins: the values are histograms of so many; 0 = they are none.
    """

    bins: int = 0

    def predict(self, ctx: Context) -> tuple[jax.Array, Positions]:
        """pred_BMF of the masked patches, histograms one after the other, and which patches they are."""
        raise NotImplementedError

    def target(self, ctx: Context) -> jax.Array:
        """target_BMF, what is predicted, float32."""
        raise NotImplementedError


class PredictsFeatures:
    """Role: predicts features of masked patches."""

    def predict(self, ctx: Context) -> tuple[jax.Array, jax.Array]:
        """pred_BMD and target_BMD at the masked patches, of unit length; the targets are the teacher's."""
        raise NotImplementedError


class ScoresPairs:
    """Role: says whether a picture and a caption belong together."""

    @classmethod
    def adds_similarity(cls, arguments: Mapping[str, Any]) -> bool:
        """Whether its score is what the contrastive similarity does not know, to be added to it."""
        return False

    def log_odds(self, pair_PD: jax.Array) -> jax.Array:
        """score_P, log p(matched) / p(unmatched) from the fused vector of a pair."""
        raise NotImplementedError


class Classifies:
    """Role: tells the class of an example. Its argument `classes` says how many there are.

    Attributes:
        label: the array of the batch that holds the right class, int32 (B,).
    """

    label: str

    def logits(self, ctx: Context) -> jax.Array:
        """logits_BC of the classes, float32."""
        raise NotImplementedError


class AnswerTexts(NamedTuple):
    """A list of A answers, each from start token to end token.

    tokens_AL: int32; valid_AL: False at padding.
    """

    tokens_AL: jax.Array
    valid_AL: jax.Array


class AnswersQuestions:
    """Role: tells which answer of a list is right, the caption being a question about the picture."""

    def answer_scores(self, ctx: Context, answers: AnswerTexts) -> jax.Array:
        """score_BA float32, the higher the likelier; -inf of answers that are out of the question."""
        raise NotImplementedError


class TrainsEmbeddings:
    """Role: trains the contrastive space, so that cosines in it rank pictures and captions."""


Role = TypeVar("Role")


def label_of(objectives: Mapping[str, Any], role: type) -> str | None:
    """The label of the objective of a role, the first of them; None if there is none.

    Args:
        objectives: by label; classes or instances.
    """
    kind = {label: one if isinstance(one, type) else type(one) for label, one in objectives.items()}
    return next((label for label in sorted(kind) if issubclass(kind[label], role)), None)


def objective_of(objectives: Mapping[str, Any], role: type[Role]) -> Role | None:
    """The objective of that label; None if there is none."""
    label = label_of(objectives, role)
    return None if label is None else objectives[label]
