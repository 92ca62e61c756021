"""A tiny tokenizer made on the spot, and real ones where there are some."""

import gzip
import shutil

import pytest

from rlhf_jax.data.tokenizer import TEMPLATES, load_tokenizer

SPECIAL = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>",
           "<|eot_id|>"]
LINES = ["the cat sat on the mat", "user assistant system hello world", "One day a boy named Tim went to the park."]


THOUGHTS_OF_THE_LAST_TURN = (
    "{%- if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif -%}"
    "{%- set ns = namespace(query=0) %}"
    "{%- for m in messages %}{% if m.role == 'user' %}{% set ns.query = loop.index0 %}{% endif %}{% endfor -%}"
    "{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{%- if m.role == 'assistant' and loop.index0 > ns.query %}"
    "{{ '<think>\n' + (m.reasoning_content or '') + '\n</think>\n\n' }}{% endif %}"
    "{{- m.content }}{% for call in m.tool_calls or [] %}{{ '\n' + call.function | tojson }}{% endfor %}"
    "{{- '<|im_end|>\n' }}{% endfor -%}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}")
"""As Qwen3's: an assistant's thoughts are shown in the turns after the last question alone."""


def build_tokenizer(template=None, **special):
    """A byte-level BPE tokenizer of 320 tokens with BOS <s>, EOS </s> and the usual turn markers."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(LINES, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIAL,
                                                        initial_alphabet=alphabet, show_progress=False))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **special}
    named = {key: value for key, value in names.items() if value is not None}
    return PreTrainedTokenizerFast(tokenizer_object=core, chat_template=TEMPLATES.get(template, template), **named)


@pytest.fixture(scope="session")
def make_tokenizer():
    return build_tokenizer


@pytest.fixture(scope="session")
def chatml():
    return build_tokenizer("chatml")


@pytest.fixture(scope="session")
def thinking():
    """The tiny tokenizer with a template like Qwen3's."""
    return build_tokenizer(THOUGHTS_OF_THE_LAST_TURN, eos_token="<|im_end|>", bos_token=None)


@pytest.fixture(scope="session")
def plain_text():
    """The tiny tokenizer without a chat template."""
    return build_tokenizer()


@pytest.fixture(scope="session")
def real_tokenizer(shared, tmp_path_factory):
    """Loads a tokenizer of shared/tokenizers (unpacked into a temporary folder) or of shared/models."""

    def load(name, chat_template_path=None):
        source = shared / "tokenizers" / name
        if not source.is_dir():
            return load_tokenizer(str(shared / "models" / name), chat_template_path)
        folder = tmp_path_factory.mktemp(name)
        shutil.copy(source / "tokenizer_config.json", folder)
        with gzip.open(source / "tokenizer.json.gz") as packed:
            (folder / "tokenizer.json").write_bytes(packed.read())
        return load_tokenizer(str(folder), chat_template_path)

    return load
