"""Chat templates of well-known families, written anew after their published prompt formats, and small tokenizers of the usual kinds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

_ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
)
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_HEADED = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n"
    "{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_GEMMA = (
    "{{ bos_token }}SYSTEM{% for m in messages %}"
    + _ALTERNATE
    + "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "TEXT<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
_FIRST = (
    "{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set messages = messages[1:] %}{% endif %}"
)


@dataclass(frozen=True)
class Family:
    """A model's template."""

    template: str
    prompt: str
    """what a system turn {S}, a user's turn {U} and a begun turn {A} become"""
    tokens: tuple[str, ...] = ()
    """that are special tokens of its tokenizer; other control words are ordinary text"""
    folds: bool = False
    """the system's text has to stand in the user's turn"""


FAMILIES = {
    "ChatML": Family(
        _CHATML, "<|im_start|>system\n{S}<|im_end|>\n<|im_start|>user\n{U}<|im_end|>\n<|im_start|>assistant\n{A}", ("<|im_start|>", "<|im_end|>")
    ),
    "Llama 2": Family(
        _FIRST + "{% for m in messages %}" + _ALTERNATE
        + "{% if loop.first and s is defined %}{% set c = '<<SYS>>\n' + s + '\n<</SYS>>\n\n' + m.content %}{% else %}{% set c = m.content %}{% endif %}"
        "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + c.strip() + ' [/INST]' }}{% else %}{{ ' ' + c.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
        "<s>[INST] <<SYS>>\n{S}\n<</SYS>>\n\n{U} [/INST] {A}",
    ),
    "Llama 3": Family(
        _HEADED,
        "<s><|start_header_id|>system<|end_header_id|>\n\n{S}<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n{U}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n{A}",
        ("<|start_header_id|>", "<|end_header_id|>"),  # <|eot_id|> is left ordinary text here
    ),
    "Mistral v0.1": Family(
        "{{ bos_token }}{% for m in messages %}" + _ALTERNATE + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + ' [/INST]' }}"
        "{% elif m.role == 'assistant' %}{{ m.content + eos_token + ' ' }}{% else %}{{ raise_exception('Only user and assistant') }}{% endif %}{% endfor %}",
        "<s>[INST] {S}\n\n{U} [/INST]{A}", folds=True,
    ),
    "Mistral v0.3": Family(
        _FIRST + "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}"
        "{% if loop.last and s is defined %}{{ '[INST] ' + s + '\n\n' + m.content + '[/INST]' }}{% else %}{{ '[INST] ' + m.content + '[/INST]' }}{% endif %}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}",
        "<s>[INST] {S}\n\n{U}[/INST] {A}", ("[INST]", "[/INST]"), folds=True,
    ),
    "Gemma 2": Family(
        _GEMMA.replace("SYSTEM", "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}")
        .replace("TEXT", "{{ m.content | trim }}"),
        "<s><start_of_turn>user\n{S}\n\n{U}<end_of_turn>\n<start_of_turn>model\n{A}", folds=True,
    ),
    "Gemma 3": Family(
        _GEMMA.replace("SYSTEM", _FIRST).replace(
            "TEXT",
            "{% if loop.first and s is defined %}{{ s + '\n\n' }}{% endif %}{% if m.content is string %}{{ m.content | trim }}"
            "{% else %}{% for c in m.content %}{{ c.text | trim }}{% endfor %}{% endif %}",
        ),
        "<s><start_of_turn>user\n{S}\n\n{U}<end_of_turn>\n<start_of_turn>model\n{A}", ("<start_of_turn>", "<end_of_turn>"),
    ),
    "Phi 3": Family(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}",
        "<|system|>\n{S}<|end|>\n<|user|>\n{U}<|end|>\n<|assistant|>\n{A}", ("<|end|>",),
    ),
    "Phi 4": Family(
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}",
        "<|im_start|>system<|im_sep|>{S}<|im_end|><|im_start|>user<|im_sep|>{U}<|im_end|><|im_start|>assistant<|im_sep|>{A}",
        ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
    ),
    "Phi 4 mini": Family(
        "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% else %}{{ eos_token }}{% endif %}",
        "<|system|>{S}<|end|><|user|>{U}<|end|><|assistant|>{A}", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
    ),
    "Qwen3": Family(
        "{% for m in messages %}{% if m.role == 'assistant' and loop.last %}"
        "{% set t = m.content.split('</think>')[0] if '</think>' in m.content else '' %}{% set c = m.content.split('</think>')[-1] %}"
        "{{ '<|im_start|>assistant\n<think>\n' + t.strip('\n') + '\n</think>\n\n' + c.lstrip('\n') + '<|im_end|>\n' }}"
        "{% elif m.role == 'assistant' %}{{ '<|im_start|>assistant\n' + m.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}"
        "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
        "<|im_start|>system\n{S}<|im_end|>\n<|im_start|>user\n{U}<|im_end|>\n<|im_start|>assistant\n{A}", ("<|im_start|>", "<|im_end|>"),
    ),
    "DeepSeek-R1-Distill": Family(
        "{{ bos_token }}{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
        "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜><think>\n{% endif %}",
        "<s>{S}<｜User｜>{U}<｜Assistant｜>{A}", ("<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"),
    ),
    "DeepSeek-V3.1": Family(
        "{{ bos_token }}{% for m in messages if m.role == 'system' %}{{ m.content }}{% endfor %}"
        "{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
        "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜></think>' + m.content + '<｜end▁of▁sentence｜>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<｜Assistant｜></think>{% endif %}",
        "<s>{S}<｜User｜>{U}<｜Assistant｜>{A}", ("<｜User｜>", "<｜Assistant｜>"),
    ),
    "Zephyr": Family(
        "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
        "<|system|>\n{S}</s>\n<|user|>\n{U}</s>\n<|assistant|>\n{A}",
    ),
    "Command R": Family(
        "{{ bos_token }}{% for m in messages %}{{ '<|START_OF_TURN_TOKEN|><|' + {'system': 'SYSTEM', 'user': 'USER', 'assistant': 'CHATBOT'}[m.role] + '_TOKEN|>'"
        " + m.content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endfor %}{% if add_generation_prompt %}<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{% endif %}",
        "<s><|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>{S}<|END_OF_TURN_TOKEN|><|START_OF_TURN_TOKEN|><|USER_TOKEN|>{U}<|END_OF_TURN_TOKEN|>"
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{A}",
        ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
    ),
    "Granite 3": Family(
        "{% for m in messages %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|start_of_role|>assistant<|end_of_role|>{% endif %}",
        "<|start_of_role|>system<|end_of_role|>{S}<|end_of_text|>\n<|start_of_role|>user<|end_of_role|>{U}<|end_of_text|>\n<|start_of_role|>assistant<|end_of_role|>{A}",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
    ),
    "OLMo 2": Family(
        "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
        "{{ '' if loop.last else '\n' }}{% endfor %}{% if add_generation_prompt %}\n<|assistant|>\n{% endif %}",
        "<s><|system|>\n{S}\n<|user|>\n{U}\n<|assistant|>\n{A}",
    ),
    "SmolLM3": Family(
        "<|im_start|>system\nToday Date: {{ strftime_now('%d %B %Y') }}\nReasoning Mode: /think\n\n"
        "{% if messages[0].role == 'system' %}{{ messages[0].content.rstrip() }}{% endif %}<|im_end|>\n"
        "{% for m in messages if m.role != 'system' %}{{ '<|im_start|>' + m.role + '\n' + m.content.lstrip('\n') + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "<|im_start|>system\nToday Date: 02 January 1970\nReasoning Mode: /think\n\n{S}<|im_end|>\n<|im_start|>user\n{U}<|im_end|>\n<|im_start|>assistant\n{A}",
        ("<|im_start|>", "<|im_end|>"),
    ),
    "GLM-4": Family(
        "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "[gMASK]<sop><|system|>\n{S}<|user|>\n{U}<|assistant|>\n{A}", ("[gMASK]", "<sop>"),
    ),
    "GLM-4.5": Family(
        "[gMASK]<sop>{% for m in messages %}{{ '<|' + m.role + '|>' }}{% if m.role == 'assistant' %}{{ '\n<think></think>' + '\n' + m.content.strip() }}"
        "{% else %}{{ '\n' + m.content }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}",
        "[gMASK]<sop><|system|>\n{S}<|user|>\n{U}<|assistant|>\n{A}", ("[gMASK]", "<sop>"),
    ),
    "EXAONE": Family(
        "{% for m in messages %}{{ '[|' + m.role + '|]' + m.content }}{{ '\n' if m.role == 'user' else '[|endofturn|]\n' }}{% endfor %}"
        "{% if add_generation_prompt %}[|assistant|]{% endif %}",
        "[|system|]{S}[|endofturn|]\n[|user|]{U}\n[|assistant|]{A}", ("[|endofturn|]",),
    ),
    "Vicuna": Family(
        "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}{{ ' USER: ' + m.content }}"
        "{% else %}{{ ' ASSISTANT: ' + m.content + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}",
        "{S} USER: {U} ASSISTANT: {A}",
    ),
    "Idefics": Family(  # takes content in parts only
        "{% for m in messages %}{{ m.role | capitalize }}: {% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% endif %}{% endfor %}"
        "<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}",
        "System: {S}<end_of_utterance>\nUser: {U}<end_of_utterance>\nAssistant: {A}", ("<end_of_utterance>",),
    ),
}  # fmt: skip
"""model family -> its template"""

TEXTS = [
    "You are a careful assistant. Films I have watched, which one is the worst? Silent Harbour, Golden Quest, Alien, Aliens.",
    "Let me solve this step by step. <think> There are 3 candidates. </think>\n<answer>Silent Harbour</answer>",
    "user assistant system model [INST] <<SYS>> <start_of_turn> <|eot_id|> é ï 日本",
] * 3  # fmt: skip
_SPLIT = Regex(r"'s|'t|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")


_PIECES = Regex(r"▁?\p{L}+|▁?\p{N}|▁?[^\s\p{L}\p{N}▁]|\n|▁")
"""SentencePiece learns no piece over two scripts"""


def _byte_level(split: bool) -> Tokenizer:
    raw = Tokenizer(models.BPE())
    whole = [pre_tokenizers.Split(_SPLIT, "isolated")] if split else []
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [*whole, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split)]
    )
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        TEXTS,
        trainers.BpeTrainer(vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False),
    )
    return raw


def _sentence_piece(scheme: str) -> Tokenizer:
    """BPE over characters with ▁ for a space and bytes for what it does not know, as Llama 2's, Mistral's and Phi 3's is.

    scheme: who writes the ▁ before the first word, the normalizer ('prepend'), the pre-tokenizer ('first', 'always') or nobody
    ('never', as with Gemma).
    """
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = _by_script("first")
    pieces.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, show_progress=False))
    learnt = pieces.get_vocab(with_added_tokens=False)
    order = sorted(learnt, key=lambda token: learnt[token])
    vocabulary = {
        token: place for place, token in enumerate(["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *order])
    }
    merges = [tuple(merge) for merge in json.loads(pieces.to_str())["model"]["merges"]]
    raw = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if scheme == "prepend":
        raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    bare = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *bare])
    return raw


def _unigram() -> Tokenizer:
    raw = Tokenizer(models.Unigram())
    raw.pre_tokenizer = _by_script("always")
    raw.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=250, special_tokens=["<unk>"], unk_token="<unk>", initial_alphabet=[chr(one) for one in range(10, 127)], show_progress=False
    )  # fmt: skip
    raw.train_from_iterator(TEXTS, trainer)
    raw.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    return raw


def _by_script(scheme: str) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence(
        [pre_tokenizers.Metaspace(prepend_scheme=scheme), pre_tokenizers.Split(_PIECES, "isolated")]
    )


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "byte-level": lambda: _byte_level(False),
    "byte-level, words with what stands before them": lambda: _byte_level(True),
    "SentencePiece, normalizer": lambda: _sentence_piece("prepend"),
    "SentencePiece, first": lambda: _sentence_piece("first"),
    "SentencePiece, always": lambda: _sentence_piece("always"),
    "SentencePiece, never": lambda: _sentence_piece("never"),
    "unigram": _unigram,
}


@cache
def trained(kind: str) -> str:
    """A tokenizer of a kind, as JSON."""
    return KINDS[kind]().to_str()


@cache
def tokenizer_of(kind: str, family: str) -> PreTrainedTokenizerFast:
    """A tokenizer of a kind with a family's template and special tokens."""
    found = FAMILIES[family]
    return make_tokenizer(Tokenizer.from_str(trained(kind)), found.template, found.tokens, family)


def make_tokenizer(
    raw: Tokenizer, template: object, tokens: tuple[str, ...] = (), name: str = "some/model"
) -> PreTrainedTokenizerFast:
    """A tokenizer with <s> and </s> beside `tokens` as special tokens."""
    raw.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>", *tokens)])
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template,
        clean_up_tokenization_spaces=False,
    )
    if raw.token_to_id("<unk>") is not None:
        made.unk_token = "<unk>"
    made.name_or_path = name
    return made
