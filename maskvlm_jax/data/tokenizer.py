"""Captions to token ids: a WordPiece vocabulary trained on one's own captions, or a local Hugging Face tokenizer."""

import collections
import fnmatch
import os
import re
import shutil
from collections.abc import Iterable, Sequence

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from maskvlm_jax.runtime import buckets
from maskvlm_jax.runtime.errors import UserError

PAD, UNKNOWN, START, END, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
SPECIAL = (PAD, UNKNOWN, START, END, MASK)  # in the order of their numbers in a vocabulary of our own
CONTINUATION = "##"
MAX_ALPHABET = 1_000


class Tokenizer:
    """A `tokenizers.Tokenizer` with the special tokens of masked language modelling; picklable.

    Attributes:
        vocab_size: ids are below it.
        pad_id, start_id, end_id, mask_id: the special tokens (`<pad>`, `<s>`, `</s>`, `<mask>` for RoBERTa).
        ordinary_ids: the ids that are no special tokens.
    """

    def __init__(self, backend: tokenizers.Tokenizer, special: dict[str, int], all_special_ids: Iterable[int]):
        self._backend = backend
        self._backend.no_padding()
        self._backend.no_truncation()
        self._backend.encode_special_tokens = True  # a caption that says "[MASK]" says so: text is text
        self.pad_id, self.start_id, self.end_id, self.mask_id = (special[k] for k in ("pad", "start", "end", "mask"))
        self.vocab_size = 1 + max(backend.get_vocab().values())
        hidden = {*all_special_ids, *special.values()}
        self._control = frozenset(special.values())
        self.ordinary_ids = np.array([i for i in range(self.vocab_size) if i not in hidden], np.int32)

    def encode(self, caption: str, max_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Start token, the caption's tokens, end token; cut and padded to `max_length`.

        Returns:
            tokens: (max_length,) int32.
            word_ids: (max_length,) int32, the word each token belongs to; -1 at special tokens and padding.
            valid: (max_length,) bool, False at padding. A length, not an id: some tokenizers pad with their end token.
        """
        encoding = self._backend.encode(caption, add_special_tokens=False)
        if self._control.intersection(encoding.ids):
            encoding = self._backend.encode(self._spelled_out(caption), add_special_tokens=False)
        # A normaliser may make such a word of other letters: what is one still is left out.
        pairs = [pair for pair in zip(encoding.ids, encoding.word_ids, strict=True) if pair[0] not in self._control]
        ids = [token for token, _ in pairs[: max_length - 2]]
        words = [-1 if word is None else word for _, word in pairs[: max_length - 2]]
        tokens = np.full(max_length, self.pad_id, np.int32)
        word_ids = np.full(max_length, -1, np.int32)
        tokens[: len(ids) + 2] = [self.start_id, *ids, self.end_id]
        word_ids[1 : len(ids) + 1] = words
        return tokens, word_ids, np.arange(max_length) < len(ids) + 2

    def encode_all(self, texts: Sequence[str], max_length: int) -> tuple[np.ndarray, np.ndarray]:
        """tokens (T, max_length) int32 of several texts, and which of them are real; as `encode`."""
        encoded = [self.encode(text, max_length) for text in texts]
        return np.stack([tokens for tokens, _, _ in encoded]), np.stack([valid for _, _, valid in encoded])

    def _spelled_out(self, caption: str) -> str:
        """A caption whose words none of its tokens of control can be.

        Models without a pre-tokenizer that splits punctuation find "[MASK]" among their own pieces.
        """
        words = [re.escape(self.token(i)) for i in self._control]
        return re.sub("|".join(words), lambda found: " ".join(found[0]), caption, flags=re.IGNORECASE)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of token ids, special tokens left out."""
        return self._backend.decode([int(i) for i in ids])

    def token(self, token_id: int) -> str:
        """The text of one token."""
        return self._backend.id_to_token(int(token_id)) or str(token_id)


def train_wordpiece(captions: Iterable[str], vocab_size: int) -> tokenizers.Tokenizer:
    """A lower-casing BERT WordPiece tokenizer of at most `vocab_size` entries; the same for the same captions."""
    captions, special = list(captions), list(SPECIAL)
    backend = _bert_tokenizer(models.WordPiece(unk_token=UNKNOWN))
    # The trainer numbers characters as it meets them in a hash map, whose order changes from process to process, and
    # breaks ties by number. Given as special tokens they are numbered in this order.
    alphabet = _alphabet(backend.normalizer.normalize_str(caption) for caption in captions)
    letters = [prefix + letter for prefix in ("", CONTINUATION) for letter in alphabet]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=[*special, *letters], show_progress=False, initial_alphabet=[]
    )
    backend.train_from_iterator(captions, trainer)
    # A new tokenizer from the vocabulary: in this one letters are ordinary.
    backend = _bert_tokenizer(models.WordPiece(backend.get_vocab(), unk_token=UNKNOWN))
    backend.add_special_tokens(special)
    ends = [(START, backend.token_to_id(START)), (END, backend.token_to_id(END))]
    backend.post_processor = processors.TemplateProcessing(single=f"{START} $A {END}", special_tokens=ends)
    return backend


def _bert_tokenizer(model: models.Model) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    return backend


def _alphabet(texts: Iterable[str]) -> list[str]:
    """The most frequent characters, in the order of their code points."""
    counts = collections.Counter(letter for text in texts for letter in text if not letter.isspace())
    frequent = sorted(counts, key=lambda letter: (-counts[letter], letter))[:MAX_ALPHABET]
    return sorted(frequent)


def load(folder: str | os.PathLike) -> Tokenizer:
    """A local Hugging Face tokenizer folder.

    Raises:
        UserError: the folder holds no tokenizer, or one without mask, start, end and padding tokens.
    """
    from transformers import AutoTokenizer  # two seconds of imports, spent only where a tokenizer is read

    where = buckets.folder(str(folder))
    if not where.is_dir():
        raise UserError(f"tokenizer folder {folder} does not exist; set --config.data.tokenizer to a folder")
    try:
        with buckets.reading(where) as local:
            loaded = AutoTokenizer.from_pretrained(str(local), local_files_only=True)
        backend = loaded.backend_tokenizer
    except Exception as error:  # transformers raises whatever the file made it trip over, and advises in paragraphs
        raise UserError(
            f"no Hugging Face tokenizer can be read from {folder}: it needs a sound tokenizer.json, or the vocabulary "
            f"files of a BERT or RoBERTa tokenizer ({type(error).__name__}: {str(error).strip().splitlines()[0][:120]})"
        ) from error
    special = {
        "pad": loaded.pad_token_id,
        "start": loaded.cls_token_id if loaded.cls_token_id is not None else loaded.bos_token_id,
        "end": loaded.sep_token_id if loaded.sep_token_id is not None else loaded.eos_token_id,
        "mask": loaded.mask_token_id,
    }
    missing = [name for name, value in special.items() if value is None]
    if missing:
        raise UserError(f"the tokenizer in {folder} has no {', '.join(missing)} token; use one of a masked model")
    return Tokenizer(backend, special, loaded.all_special_ids)


def save(backend: tokenizers.Tokenizer, folder: str | os.PathLike) -> None:
    """Writes a Hugging Face tokenizer folder in one step: a killed process leaves all of it or nothing."""
    from transformers import PreTrainedTokenizerFast

    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=PAD, unk_token=UNKNOWN, cls_token=START, sep_token=END, mask_token=MASK
    )
    with buckets.making(buckets.folder(str(folder))) as temporary:
        wrapped.save_pretrained(str(temporary))


# What a tokenizer is made of, and config.json, which says of what kind it is. Not the weights of a model beside it.
_FILES = ("tokenizer*.json", "config.json", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt")
_FILES += ("*.model", "*.tiktoken", "chat_template*")


def copy(source: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Copies the tokenizer of a folder in one step."""
    with (
        buckets.reading(buckets.folder(str(source))) as local,
        buckets.making(buckets.folder(str(folder))) as temporary,
    ):
        temporary.mkdir(parents=True)
        for file in local.iterdir():  # not the folders: the new one may be in one of them
            if file.is_file() and any(fnmatch.fnmatch(file.name, pattern) for pattern in _FILES):
                shutil.copyfile(file, temporary / file.name)


def write(source: str | os.PathLike, folder: str | os.PathLike) -> None:
    """Writes the tokenizer of a folder so that it is known without config.json, into a folder that may be there."""
    from transformers import AutoTokenizer

    with buckets.reading(buckets.folder(str(source))) as local:
        AutoTokenizer.from_pretrained(str(local), local_files_only=True).save_pretrained(str(folder))
