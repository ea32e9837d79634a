"""The run that is scored, as evaluators see it: its config, its sets, its tokenizer."""

from collections.abc import Iterator

from ml_collections import ConfigDict

from maskvlm_jax.data import examples, run_tokenizer
from maskvlm_jax.data.evaluation_set import EvaluationSet, load_evaluation
from maskvlm_jax.data.sources.opening import open_source, open_training_source
from maskvlm_jax.data.sources.training_set import Spread
from maskvlm_jax.data.tokenizer import Tokenizer
from maskvlm_jax.settings import rules


class ScoredRun:
    """What evaluators share; a split is read once.

    Args:
        config: of the run.
        tokenizer: of the run.
        trained_on: `config.data` of the training, if another set is scored.

    Attributes:
        objectives: label -> class of each objective that was trained.
    """

    def __init__(self, config: ConfigDict, tokenizer: Tokenizer, trained_on: ConfigDict | None = None):
        self.config, self.tokenizer = config, tokenizer
        self.trained_on = config.data if trained_on is None else trained_on
        self.objectives = rules.active_objectives(config)
        self._sets: dict[tuple[str, int | None], EvaluationSet] = {}

    def data(self, split: str, spread: int | None = None) -> EvaluationSet:
        """The pictures and captions of a split.

        Args:
            spread: as many pictures, spread evenly over the split, 0 = all; None = those that are scored.
        """
        if (split, spread) not in self._sets:
            config, image, options = self.config, self.config.model.image, self.config.evaluation
            source = open_source(config.data.to_dict(), split, image.image_size)
            found = load_evaluation(
                source if spread is None else Spread(source, spread),
                examples.fields_of(config, self.tokenizer),
                image_size=image.image_size,
                masking_options=config.masking.to_dict(),
                seed=options.seed,
                limit=options.limit if spread is None else 0,
                captions_per_image=options.captions_per_image,
                memory=int(1e9 * options.memory_gb),
                one_at_a_time=config.masking.policy == "modality_aware" or image.hidden in ("token", "pixel"),
            )
            self._sets[split, spread] = found
            if broken := found.broken:
                print(f"warning: {len(broken)} picture(s) of {split} cannot be used and are left out: {broken[0]}")
        return self._sets[split, spread]

    def training_captions(self, pictures: int) -> Iterator[str]:
        """Captions of the first pictures that the run was trained on.

        Raises:
            UserError: they are not there any more.
        """
        source = open_training_source(self.trained_on.to_dict(), self.config.model.image.image_size)
        return run_tokenizer.training_captions(source, pictures)

    @property
    def data_name(self) -> str:
        """The kind of source that is scored; of a mixture the name of the set."""
        data = self.config.data
        return data.evaluation_set if data.mixture else data.source
