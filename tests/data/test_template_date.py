import datetime

import pytest

from rlhf_jax.data.template_date import DATE, at_fixed_date
from rlhf_jax.data.tokenizer import template_ids, template_text

LLAMA = ("{%- if not date_string is defined %}{%- set date_string = strftime_now('%d %b %Y') %}{%- endif %}"
         "{{- 'Today Date: ' + date_string + '\n' }}{% for m in messages %}{{ m.content }}{% endfor %}")


def test_todays_date_is_a_fixed_one(make_tokenizer):
    tokenizer = make_tokenizer(LLAMA)
    assert template_text(tokenizer, [{"role": "user", "content": "a"}], generation=False) == (
        "Today Date: 26 Jul 2024\na")
    ids = template_ids(tokenizer, [{"role": "user", "content": "a"}], generation=False, date_string="01 Jan 2030")
    assert tokenizer.decode(ids) == "Today Date: 01 Jan 2030\na"
    assert tokenizer.chat_template == LLAMA


@pytest.mark.parametrize("form", ["%d %b %Y", "%Y-%m-%d", "%A, %B %-d, %y", "%H:%M:%S %p %j", "no directive"])
@pytest.mark.parametrize("inside", ["{{ strftime_now(form) }}",
                                    "\n  {% if form %}\n{{ strftime_now(form) }}{% endif %}"])
def test_dates_are_written_as_the_clock_would_write_that_day(make_tokenizer, form, inside):
    """Against transformers' own function, given that day; layout before the first block is the template's own."""
    import transformers.utils.chat_template_utils as theirs

    class ThatDay(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return DATE

    tokenizer = make_tokenizer(inside.replace("form", repr(form)))
    written = template_text(tokenizer, [{"role": "user", "content": "a"}], generation=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(theirs, "datetime", ThatDay)
        expected = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert written == expected


def test_a_template_without_a_date_is_left_alone():
    assert at_fixed_date("{{ messages }}") == "{{ messages }}"
