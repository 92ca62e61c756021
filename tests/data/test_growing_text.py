"""Texts tokenized one after another, each from the last special token that it shares with the one before."""

import json
import random

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from rlhf_jax.data.growing_text import GrowingText


class Counting:
    """A tokenizer that counts the characters it reads."""

    def __init__(self, tokenizer):
        self._tokenizer, self.read = tokenizer, 0

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)

    def __call__(self, text, **options):
        self.read += len(text)
        return self._tokenizer(text, **options)


@pytest.fixture(params=["bytes", "first", "always", "never"])
def tokenizer(request, make_tokenizer):
    """Of bytes as GPT-2's, or with a sign for spaces as Llama 2's, which stands before the first piece of a text,
    before each one behind a marker, or before none."""
    made = make_tokenizer()
    if request.param != "bytes":
        core = Tokenizer(models.BPE(unk_token="<unk>"))
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=request.param)
        core.train_from_iterator(["the cat sat on the mat s x < > |"], trainers.BpeTrainer(
            vocab_size=80, special_tokens=["<unk>", *map(str, made.get_added_vocab())], show_progress=False))
        made = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    return made


def alone(tokenizer, text):
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def texts(rng, words, count):
    """Texts that go on where the one before was cut, or begin anew."""
    text = ""
    for _ in range(count):
        text = text[: rng.choice([len(text), rng.randint(0, len(text)), 0])] + "".join(
            rng.choice(words) for _ in range(rng.randint(0, 9)))
        text = text if len(text) < 300 else text[: rng.randint(0, 150)]
        yield text


@pytest.mark.parametrize("seed", range(4))
def test_ids_are_those_of_the_whole_text(seed, tokenizer):
    """Pieces of markers, white space before and behind them, letters of several bytes."""
    rng = random.Random(seed)
    markers = [token.content for token in tokenizer.added_tokens_decoder.values()]
    words = [*markers * 2, "the cat", " ", "  ", "\n", "\n\n", "é", "日本", "<|", "|>", "<", ">", markers[0][:-1]]
    growing = GrowingText(tokenizer)
    for text in texts(rng, words, 400):
        assert growing.ids(text) == alone(tokenizer, text), text


@pytest.mark.parametrize("options", [{"lstrip": True}, {"rstrip": True}, {"single_word": True}, {"normalized": True}])
def test_added_tokens_of_every_kind_are_read_as_in_the_whole_text(options, tokenizer):
    longer = [token.content for token in tokenizer.added_tokens_decoder.values()][-1] + "x"
    tokenizer.add_tokens([AddedToken("cat", special=True, **options), AddedToken(longer, special=True, **options)])
    growing, words = GrowingText(tokenizer), ["cat", " cat ", "s", "x", longer, longer[:-1], " ", "\n", "a"]
    for text in texts(random.Random(0), words, 400):
        assert growing.ids(text) == alone(tokenizer, text), text


def test_an_added_token_inside_another_is_not_mistaken_for_it(tokenizer):
    tokenizer.add_tokens([AddedToken("|x|", special=True), AddedToken("<|x|y>", special=True)])
    growing = GrowingText(tokenizer)
    for text in ("a<|x|z", "a<|x|y>b", "a<|x|"):
        assert growing.ids(text) == alone(tokenizer, text), text


def test_what_a_conversation_has_said_is_not_read_again(tokenizer):
    marker = "<|im_start|>"
    turns = [f"{marker}the cat sat on the mat, number {i}" for i in range(20)]
    counting = Counting(tokenizer)
    growing = GrowingText(counting)
    for count in range(1, 21):
        growing.ids("".join(turns[:count]))
    whole = len("".join(turns))
    assert counting.read < 2.5 * whole  # 10.5 times as much, each from its beginning


def test_a_slow_tokenizer_reads_every_text_whole(tokenizer):
    counting = Counting(tokenizer)
    counting.is_fast = False
    growing = GrowingText(counting)
    marker = json.dumps("the cat")
    for _ in range(2):
        assert growing.ids(marker) == alone(tokenizer, marker)
    assert counting.read == 2 * len(marker)
