"""The embedded model's tokenizer: one token a word of its world, bytes for everything else."""

from __future__ import annotations

import random
import re

from tokenizers import AddedToken, Regex, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import Unigram
from transformers import PreTrainedTokenizerFast

from ..synthetic.dialogue import ELLIPSIS, FEMININE_PRONOUNS, MASCULINE_PRONOUNS
from ..synthetic.general import LISTED_WORDS, WORLD_FACTS, general_query
from ..synthetic.needles import ASK_ALL, ASK_ONE, LOOK_UP, NEEDLE
from ..synthetic.people import ATTRIBUTES, NAMES, UNKNOWN
from ..synthetic.reasoning import ABOVE, DESCRIPTIONS, OLDER, OLDEST, PEOPLE, TOLD, YOUNGER, YOUNGEST
from ..text.prompts import ASK_FOLLOW_UP, ASK_HARD, ASK_PLAIN, REPEAT_REQUEST, SYSTEM_PROMPT
from .lessons import CONTINUE_REQUEST

SPECIAL_TOKENS = ("<|pad|>", "<|bos|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<unk>")
PUNCTUATION = ".,?:!"
PLACEHOLDERS = ("n", "v", "key", "value", "snippet")
WINDOW = 4608
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def _words() -> list[str]:
    """Every word that the generators can write, in alphabetical order."""
    rng = random.Random(0)
    texts = [SYSTEM_PROMPT, ASK_PLAIN, ASK_HARD, ASK_FOLLOW_UP, REPEAT_REQUEST, CONTINUE_REQUEST, UNKNOWN]
    texts += [*NAMES, *LISTED_WORDS]
    texts += [ELLIPSIS, *FEMININE_PRONOUNS, *MASCULINE_PRONOUNS, NEEDLE, ASK_ONE, ASK_ALL, LOOK_UP]
    texts += [*ATTRIBUTES, *DESCRIPTIONS.values(), OLDER, YOUNGER, OLDEST, YOUNGEST, PEOPLE, TOLD, ABOVE]
    for attribute in ATTRIBUTES.values():
        texts += [*attribute.values, *attribute.statements, *attribute.questions]
    for question in WORLD_FACTS:
        texts += [question.text, question.answer]
    texts += [general_query(rng).text for _ in range(500)]
    texts += [str(number) for number in range(100)]
    return sorted({word for text in texts for word in re.findall(r"\w+", text) if word not in PLACEHOLDERS})


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: special tokens, line breaks, 256 bytes, punctuation and words, in this order."""
    pieces = [(token, 0.0) for token in SPECIAL_TOKENS] + [("\n", 0.0), ("\n\n", 0.0)]
    pieces += [(f"<0x{byte:02X}>", -20.0) for byte in range(256)]
    pieces += [(mark, -1.0) for mark in PUNCTUATION]
    pieces += [("▁", -10.0)] + [("▁" + word, -1.0) for word in _words()]
    tokenizer = Tokenizer(Unigram(pieces, unk_id=SPECIAL_TOKENS.index("<unk>"), byte_fallback=True))
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in ("\n", "\n\n")])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(f"[{re.escape(PUNCTUATION)}]"), "isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        model_max_length=WINDOW,
        clean_up_tokenization_spaces=False,
    )
