"""Small tokenizers of every kind, each with the traps of its kind: control tokens that its vocabulary can spell."""

from __future__ import annotations

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedTokenizerFast

from lcc.embedded_model.tokenizer import build_tokenizer

SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>")
# Control tokens that no list of special tokens names: the chat template writes one, its tools' branch the other.
ADDED = ("<|assistant|>", "<tool_call>")
CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|>{{ m.content }}{{ eos_token }}"
    "{% else %}<|user|>{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if tools %}<tool_call>{% endif %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
LETTERS = "abcdefghijklmnopqrstuvwxyzSTM<>/|_.?"


def _finished(backend: Tokenizer, special=SPECIAL, added=ADDED, chat=CHAT) -> PreTrainedTokenizerFast:
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    backend.add_tokens([AddedToken(token, normalized=False) for token in (*added, "  ")])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token=special[0], bos_token=special[1], eos_token=special[2], chat_template=chat
    )


def byte_bpe() -> PreTrainedTokenizerFast:
    """GPT-2's kind; merges lead from letters to ``</s>``, which is a piece of the vocabulary too."""
    pieces = dict.fromkeys([*SPECIAL, *sorted(ByteLevel.alphabet()), "</", "s>"])
    backend = Tokenizer(
        BPE({piece: index for index, piece in enumerate(pieces)}, [("<", "/"), ("s", ">"), ("</", "s>")])
    )
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    return _finished(backend)


def gpt2() -> PreTrainedTokenizerFast:
    """GPT-2's own: one token begins and ends texts and stands for the unknown too."""
    one = ("<|endoftext|>",) * 3
    pieces = dict.fromkeys([one[0], "<|user|>", *sorted(ByteLevel.alphabet())])
    backend = Tokenizer(BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token=one[0]))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return _finished(backend, (*one, "<|user|>"))


def sentencepiece_bpe() -> PreTrainedTokenizerFast:
    """Llama 2's kind: white space as a letter, bytes for the rest, whole words looked up first."""
    pieces = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *LETTERS, "</", "s>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    merges = [("<", "/"), ("s", ">"), ("</", "s>")]
    model = BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True, ignore_merges=True)
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return _finished(backend)


def unigram() -> PreTrainedTokenizerFast:
    """T5's kind: control tokens are the vocabulary's likeliest pieces."""
    pieces = [(token, 0.0) for token in SPECIAL] + [("▁", -2.0)] + [(letter, -3.0) for letter in LETTERS]
    backend = Tokenizer(Unigram(pieces, unk_id=0))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return _finished(backend)


def wordpiece() -> PreTrainedTokenizerFast:
    """BERT's kind, with words cut at white space alone, so that ``[SEP]`` is a word; normalised text is searched."""
    special = ("[UNK]", "[CLS]", "[SEP]", "[USER]")
    pieces = [
        *special,
        *"abcdefghijklmnopqrstuvwxyz[]<>/|_.?",
        *(f"##{c}" for c in "abcdefghijklmnopqrstuvwxyz[]<>/|_.?"),
    ]
    backend = Tokenizer(WordPiece({piece: index for index, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.WhitespaceSplit(), decoders.WordPiece()
    chat = CHAT.replace("<|user|>", "[USER]")
    return _finished(backend, special, ADDED, chat)


def word_level() -> PreTrainedTokenizerFast:
    """A word a token, control tokens among the words."""
    words = [*SPECIAL, *"where does mara live now see the end of it".split()]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    return _finished(backend)


KINDS = {
    "byte-level BPE": byte_bpe,
    "GPT-2": gpt2,
    "SentencePiece BPE": sentencepiece_bpe,
    "Unigram": unigram,
    "WordPiece": wordpiece,
    "WordLevel": word_level,
    "the embedded model's": build_tokenizer,
}
