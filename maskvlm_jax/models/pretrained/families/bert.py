"""BERT and its kin with its names: MiniLM, RoBERTa, XLM-R; and DistilBERT with its own."""

from typing import Any

import numpy as np

from maskvlm_jax.models.pretrained.families import base
from maskvlm_jax.models.pretrained.families.base import Arrays, Names, blocks
from maskvlm_jax.runtime.errors import UserError

BERT = {
    "attention/query": "attention.self.query",
    "attention/key": "attention.self.key",
    "attention/value": "attention.self.value",
    "attention/out": "attention.output.dense",
    "feed_forward/up": "intermediate.dense",
    "feed_forward/down": "output.dense",
}
DISTILBERT = {
    "attention/query": "attention.q_lin",
    "attention/key": "attention.k_lin",
    "attention/value": "attention.v_lin",
    "attention/out": "attention.out_lin",
    "feed_forward/up": "ffn.lin1",
    "feed_forward/down": "ffn.lin2",
}
LAYER, NORMS = "encoder.layer.{}.", ("attention.output.LayerNorm", "output.LayerNorm")
TOKEN_TYPES = "embeddings.token_type_embeddings.weight"
ARRAYS = {"embedding": "embeddings.word_embeddings.weight", "position": "embeddings.position_embeddings.weight"}
HEADS = (r"pooler\.", r"cls\.", r"lm_head\.", r"classifier\.", r"qa_outputs\.", r"vocab_", r"pre_classifier\.")
_OFFSET = ("roberta", "xlm-roberta")  # their positions are counted from the padding's number on


class Family(base.Family):
    """Post-norm blocks over words with learned positions."""

    modality = "text"
    model_types = ("bert", *_OFFSET, "distilbert")

    def values(self) -> dict[str, Any]:
        config, distil = self.config, self._distil
        if config.get("is_decoder") or config.get("position_embedding_type", "absolute") != "absolute":
            raise UserError(
                f"{self.stored.name} is a decoder, or has relative positions, which our model does not have"
            )
        width = config["dim" if distil else "hidden_size"]
        return {
            "vocab_size": config["vocab_size"],
            "depth": config["n_layers" if distil else "num_hidden_layers"],
            "width": width,
            "heads": config["n_heads" if distil else "num_attention_heads"],
            "mlp_ratio": self.ratio(config["hidden_dim" if distil else "intermediate_size"], width),
            "activation": self.activation(config["activation" if distil else "hidden_act"]),
            "eps": 1e-12 if distil else config["layer_norm_eps"],
            "norm": "post",
        }

    @property
    def _distil(self) -> bool:
        return self.config["model_type"] == "distilbert"

    def names(self) -> Names:
        layer, parts = ("transformer.layer.{}.", DISTILBERT) if self._distil else (LAYER, BERT)
        norms = ("sa_layer_norm", "output_layer_norm") if self._distil else NORMS
        return Names(
            blocks(layer, parts),
            blocks(layer, dict(zip(("norm1", "norm2"), norms, strict=True)))
            | {"embedding_norm": "embeddings.LayerNorm"},
            ARRAYS,
            prefixes=("bert.", "roberta.", "distilbert."),
            ignored=(*HEADS, r"embeddings\.position_ids$", r"embeddings\.token_type_ids$"),
        )

    def parameters(self, arrays: Arrays) -> dict[str, np.ndarray]:
        found = super().parameters(arrays)
        if not self._distil:
            types = arrays.take(TOKEN_TYPES)
            found["position"] = found["position"] + types[0]
            self.folds.append("token type 0")
        if self.config["model_type"] in _OFFSET:
            found["position"] = found["position"][(self.config.get("pad_token_id") or 1) + 1 :]
            self.folds.append("offset of the positions")
        return found
