"""Model folders (tokenizer and chat template, no weights) in the styles of many families; templates are our own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

CORPUS = [
    "The quick brown fox jumps over the lazy dog. What is the capital of France? The answer is Paris, of course.",
    "You are a helpful assistant.\n\nquestion: How many?\ncontext: There are 12 apples and 7 pears.\n",
    "def add(a, b):\n    return a + b\n\n[INST] hello [/INST] <<SYS>> user assistant system model <think>\n\n</think>",
    'User: Assistant: {"name": "weather", "arguments": {"city": "Paris"}} twenty two, twenty three 1,999 2,000',
]


@dataclass(frozen=True)
class Family:
    """One style of chat model."""

    template: str
    special: tuple[str, ...]
    """Special tokens of the tokenizer; the last one is eos."""
    bos: str | None = None
    plain_added: tuple[str, ...] = ()
    """Added tokens that are not special, such as thinking tags."""
    ending: str = ""
    """What stands after an answer, end-of-turn token included."""
    has_system: bool = True
    strips: bool = False
    """Whether contents are stripped."""
    rstrip: bool = False
    """Whether special tokens swallow the white space after them."""
    lead: str = ""
    """What the model writes before the answer proper when it is the last turn."""
    settings: dict[str, object] = field(default_factory=dict)


def make_folder(folder: Path, family: Family, *, metaspace: bool = False) -> Path:
    """A model folder with a byte-level (or, with `metaspace`, a Llama-2-like) tokenizer."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = _metaspace() if metaspace else _byte_level()
    names = dict.fromkeys([*([family.bos] if family.bos else []), *family.special])
    tokenizer.add_special_tokens(
        [
            AddedToken(text, special=True, normalized=False, rstrip=family.rstrip and text != family.bos)
            for text in names
        ]
    )
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in family.plain_added])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": family.special[-1],
        "clean_up_tokenization_spaces": False,
        **({"bos_token": family.bos} if family.bos else {}),
        **family.settings,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    if family.template:
        (folder / "chat_template.jinja").write_text(family.template)
    return folder


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    # As shipped with many models: offsets that leave out the leading space of a token.
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _metaspace() -> Tokenizer:
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    byte_tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = BpeTrainer(vocab_size=700, special_tokens=["<unk>", *byte_tokens], show_progress=False)
    # Sentencepiece joins nothing across spaces, and its converted tokenizers have no pre-tokenizer.
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.pre_tokenizer = None
    return tokenizer


CHATML = Family(
    template=(
        "{% for message in messages %}"
        "{% if loop.first and message.role != 'system' %}"
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    ending="<|im_end|>",
)

LLAMA3 = Family(
    template=(
        "{%- for message in messages %}"
        "{%- set turn = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
        " + message['content'] | trim + '<|eot_id|>' %}"
        "{%- if loop.index0 == 0 %}{%- set turn = bos_token + turn %}{%- endif %}{{- turn }}"
        "{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
    ),
    special=("<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>"),
    bos="<|begin_of_text|>",
    ending="<|eot_id|>",
    strips=True,
)

LLAMA2 = Family(
    template=(
        "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}{% set system = messages[0].content %}"
        "{% else %}{% set turns = messages %}{% set system = none %}{% endif %}"
        "{% for message in turns %}"
        "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
        "{% if loop.index0 == 0 and system is not none %}"
        "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + message.content %}"
        "{% else %}{% set content = message.content %}{% endif %}"
        "{% if message.role == 'user' %}{{ bos_token + '[INST] ' + content | trim + ' [/INST]' }}"
        "{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    special=("<unk>", "</s>"),
    bos="<s>",
    ending=" </s>",
    strips=True,
    lead=" ",
)

MISTRAL = Family(
    template=(
        "{%- if messages[0].role == 'system' %}{%- set system = messages[0].content %}{%- set turns = messages[1:] %}"
        "{%- else %}{%- set turns = messages %}{%- endif %}{{- bos_token }}"
        "{%- for message in turns %}"
        "{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{- raise_exception('conversation roles must alternate') }}{%- endif %}"
        "{%- if message.role == 'user' %}"
        "{%- if loop.last and system is defined %}{{- '[INST] ' + system + '\n\n' + message.content + '[/INST]' }}"
        "{%- elif loop.revindex0 == 1 and system is defined %}"
        "{{- '[INST] ' + system + '\n\n' + message.content + '[/INST]' }}"
        "{%- else %}{{- '[INST] ' + message.content + '[/INST]' }}{%- endif %}"
        "{%- else %}{{- ' ' + message.content + eos_token }}{%- endif %}"
        "{%- endfor %}"
    ),
    special=("[INST]", "[/INST]", "</s>"),
    bos="<s>",
    ending="</s>",
    lead=" ",
)

GEMMA = Family(
    template=(
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}"
        "{% endif %}{% for message in messages %}"
        "{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + message['content'] | trim + '<end_of_turn>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    special=("<start_of_turn>", "<end_of_turn>", "<eos>"),
    bos="<bos>",
    ending="<end_of_turn>",
    has_system=False,
    strips=True,
)

PHI3 = Family(
    template=(
        "{% for message in messages %}"
        "{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    special=("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
    ending="<|end|>",
    rstrip=True,
)

ZEPHYR = Family(
    template=(
        "{% for message in messages %}\n"
        "{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    special=("<unk>", "</s>"),
    bos="<s>",
    ending="</s>",
)

QWEN3 = Family(
    template=(
        "{%- if messages[0].role == 'system' %}{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}"
        "{%- endif %}{%- set ns = namespace(last=-1) %}"
        "{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
        "{%- for m in messages %}"
        "{%- if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
        "{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}"
        "{%- elif m.role == 'assistant' %}"
        "{%- set thought = m.reasoning_content or '' %}{%- set content = m.content %}"
        "{%- if '</think>' in content %}"
        "{%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\n') %}"
        "{%- set content = content.split('</think>')[-1].lstrip('\n') %}{%- endif %}"
        "{{- '<|im_start|>assistant\n' }}"
        "{%- if loop.index0 > ns.last and (loop.last or thought) %}"
        "{{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}{%- endif %}{{- content }}"
        "{%- for call in m.tool_calls or [] %}"
        "{%- if content or not loop.first %}{{- '\n' }}{%- endif %}"
        "{{- '<tool_call>\n' + (call.function | tojson) + '\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}"
        "{%- elif m.role == 'tool' %}"
        "{{- '<|im_start|>user\n<tool_response>\n' + m.content + '\n</tool_response><|im_end|>\n' }}"
        "{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
    special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
    plain_added=("<think>", "</think>", "<tool_call>", "</tool_call>"),
    ending="<|im_end|>",
    lead="<think>\n\n</think>\n\n",
)

R1 = Family(
    template=(
        "{{ bos_token }}{%- if messages[0].role == 'system' %}{{ messages[0].content }}{%- endif %}"
        "{%- for m in messages %}{%- if m.role == 'user' %}{{ '<|User|>' + m.content }}"
        "{%- elif m.role == 'assistant' %}"
        "{{ '<|Assistant|>' + m.content.split('</think>')[-1] + eos_token }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
    ),
    special=("<|User|>", "<|Assistant|>", "<|end_of_sentence|>"),
    bos="<|begin_of_sentence|>",
    plain_added=("<think>", "</think>"),
    ending="<|end_of_sentence|>",
)

# Tools in the system text, calls as JSON between tags, answers of tools as user text.
TOOLS = Family(
    template=(
        "{%- if tools %}{{- '<|im_start|>system\n# Tools\n' }}{%- for tool in tools %}{{- tool | tojson + '\n' }}"
        "{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}"
        "{%- for m in messages %}"
        "{%- if m.role == 'tool' %}{{- '<|im_start|>tool\n' + m.content + '<|im_end|>\n' }}"
        "{%- else %}{{- '<|im_start|>' + m.role }}{%- if m.content %}{{- '\n' + m.content }}{%- endif %}"
        "{%- for call in m.tool_calls or [] %}{{- '\n<call>' + (call.function | tojson) + '</call>' }}{%- endfor %}"
        "{{- '<|im_end|>\n' }}{%- endif %}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    ),
    special=("<call>", "</call>", "<|im_start|>", "<|im_end|>"),
    ending="<|im_end|>",
)

# The oldest kind: knows no add_generation_prompt.
NO_PROMPT = Family(
    template=(
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}{% endfor %}\n"
    ),
    special=("<|im_start|>", "<|im_end|>"),
    ending="<|im_end|>",
)

DATED = Family(
    template=(
        "{{- bos_token + '<|start_header_id|>system<|end_header_id|>\n\nToday: ' + strftime_now('%d %b %Y') + '\n\n' }}"
        "{%- if messages[0].role == 'system' %}{{- messages[0].content | trim }}{%- set turns = messages[1:] %}"
        "{%- else %}{%- set turns = messages %}{%- endif %}{{- '<|eot_id|>' }}"
        "{%- for m in turns %}"
        "{{- '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{%- endfor %}"
        "{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}"
    ),
    special=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    bos="<|begin_of_text|>",
    ending="<|eot_id|>",
    strips=True,
)

# No special tokens for turns at all; the prompt ends in a space, which tokenizers like to join with the answer.
SPACE_PROMPT = Family(
    template=(
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'ASSISTANT: ' + m.content | trim + eos_token + '\n' }}"
        "{% else %}{{ m.role | upper + ': ' + m.content | trim + '\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT: ' }}{% endif %}"
    ),
    special=("<unk>", "</s>"),
    ending="</s>",
    strips=True,
)

MARKED = Family(
    template=(
        "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
        "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}\n"
        "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    special=("<|im_start|>", "<|im_end|>"),
    ending="<|im_end|>",
)

PLAIN = Family(template="", special=("<unk>", "</s>"), bos="<s>", ending="</s>")
PLAIN_CHATML = Family(template="", special=("<|im_start|>", "<|im_end|>"), ending="<|im_end|>")

FAMILIES: dict[str, Family] = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "llama2": LLAMA2,
    "mistral": MISTRAL,
    "gemma": GEMMA,
    "phi3": PHI3,
    "zephyr": ZEPHYR,
    "qwen3": QWEN3,
    "r1": R1,
    "tools": TOOLS,
    "no_prompt": NO_PROMPT,
    "dated": DATED,
    "space_prompt": SPACE_PROMPT,
    "marked": MARKED,
    "plain": PLAIN,
    "plain_chatml": PLAIN_CHATML,
}
