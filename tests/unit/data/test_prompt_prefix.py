"""How prompts begin: what nearly all share is found, the odd ones are named, and varied prompts give no finding."""

from __future__ import annotations

import random
import time

import pytest

from launcher.data import prompt_prefix
from launcher.data.example import Example, Message
from launcher.data.prompt_prefix import Openings, opening_of


def example(asked: str, system: str = "") -> Example:
    turns = (Message("user", asked), Message("assistant", "answer"))
    return Example(messages=(Message("system", system), *turns) if system else turns)


def odd_ones(examples: list[Example], system_prompt: str | None = None) -> dict[int, str]:
    """Number -> what is odd about it."""
    numbering = Openings()
    numbers = [numbering.number(opening_of(one, system_prompt)) for one in examples]
    reasons = numbering.reasons(numbers)
    why = {i: "; ".join(reasons[number]) for i, number in enumerate(numbers) if number >= 0}
    return {i: text for i, text in why.items() if text}


def asked(number: int) -> str:
    forms = ("what is {} for", "how many of {} there are", "who saw {}", "name the use of {}", "why is {} odd")
    return forms[number % len(forms)].format(number)


@pytest.mark.parametrize(
    ("usual", "odd", "why"),
    [
        ("question: {}\ncontext: of {}", "question:{}\ncontext:of {}", "question: context: with other white space"),
        ("question:{}\ncontext:of {}", "question: {}\ncontext: of {}", "question: context: with other white space"),
        (
            "Answer this. question: {}? context: of {}.",
            "Answer this. context: of {}. question: {}?",
            "question: context:",
        ),
        (
            "Answer this. question: {}? context: of {}",
            "Answer this. Question: {}? context: of {}",
            "question: context:",
        ),
        ("Answer this. question: {}? context: of {}", "Answer this. question:{}? context:of {}", "question: context:"),
        ("Answer this. question: {}? context: of {}", "Answer this. {}, of {}", "question: context:"),
        ("Answer this. question: {}? context: of {}", "question: {}? context: of {}", "'Answer this. question:'"),
        ("Translate to French: {} {}", "Please put {} {} in french", "Translate to French:"),
        ("Translate to French: {} {}", "translate to french: {} {}", "Translate to French:"),
        ("Translate the words {} {} to French", "Please put {} {} into French", "'Translate the words'"),
        ("### Instruction:\n{}\n\n### Input:\n{}", "### Instruction:\n{} {}", "Instruction: Input:"),
        ("**Question:** {} {}", "**Q:** {} {}", "Question:"),
        ("\u95ee\u9898\uff1a{} {}", "{} {}", "\u95ee\u9898:"),
    ],
)
def test_prompts_that_begin_otherwise_than_most_are_named(usual: str, odd: str, why: str) -> None:
    examples = [example((odd if i % 10 == 3 else usual).format(asked(i), i)) for i in range(120)]
    found = odd_ones(examples)
    assert list(found) == [i for i in range(120) if i % 10 == 3]
    assert all(why in text for text in found.values())


def test_a_system_message_that_is_missing_or_another_is_named() -> None:
    usual = "You are terse. " * 30
    examples = [example(asked(i), {3: "", 7: "You are kind."}.get(i % 60, usual)) for i in range(120)]
    found = odd_ones(examples)
    assert list(found) == [3, 7, 63, 67]
    assert found[3].startswith("no system message; most have 'You are terse. ")
    assert found[7].startswith("another system message; most have 'You are terse. ")


def test_a_missing_system_message_that_the_configuration_gives_is_not_missing() -> None:
    examples = [example(asked(i), "" if i % 10 == 3 else "You are terse.") for i in range(120)]
    assert odd_ones(examples, "You are terse.") == {}
    assert len(odd_ones(examples, "You are kind.")) == 12


PLACES = ["the park", "my garage", "an airport", "our office", "a small village"]
WISHES = [
    "Write a short story about {}.",
    "What should I bring to {}? I leave at 10:30.",
    "Summarize the following: nobody has been at {} since 9:15, see http://example.org/{}",
    "Can you explain how {} works?",
    "Make a list of things found in {}:\n1. chairs",
    "Note: I have never seen {}. Why do people like it?",
    "Rewrite this in plain words: {} hath no equal.",
    "def visit():\n    return '{}'\n\nWhat does this code do?",
    "How do I get from {} to the sea? Be brief.",
    "Translate to French: I like {}",
    "{}: good or bad?",
]
KNOWLEDGE = [
    "What is the height of {}?",
    "What is the use of {}?",
    "What is {} called in Spanish?",
    "What are the colours of {}?",
    "Which bird lives in {}?",
    "Who built {}?",
    "When was {} opened?",
]


@pytest.mark.parametrize("forms", [WISHES, KNOWLEDGE], ids=["wishes", "knowledge"])
@pytest.mark.parametrize("count", [10, 55, 1000])
def test_varied_prompts_give_no_finding(forms: list[str], count: int) -> None:
    texts = [forms[i * 7 % len(forms)].replace("{}", f"{PLACES[i % 5]} {i}") for i in range(count)]
    assert odd_ones([example(text) for text in texts]) == {}


def test_questions_that_mostly_begin_with_the_same_two_words_give_no_finding() -> None:
    texts = [f"Who invented {i}?" if i % 8 == 0 else f"What is {asked(i)}?" for i in range(120)]
    assert odd_ones([example(text) for text in texts]) == {}


def test_contents_that_by_chance_begin_with_the_same_word_are_no_pattern() -> None:
    texts = [f"Write a poem about {'a' if i % 10 < 2 else 'the'} {asked(i)}" for i in range(120)]
    assert odd_ones([example(text) for text in texts]) == {}


def test_varied_system_messages_and_few_of_them_give_no_finding() -> None:
    assert odd_ones([example(asked(i), f"You are guide {i % 3}.") for i in range(120)]) == {}
    assert odd_ones([example(asked(i), "Be kind." if i % 10 == 0 else "") for i in range(120)]) == {}


def test_keywords_whose_order_varies_by_intention_are_not_judged_by_it() -> None:
    forms = ("question: {}\ncontext: of {}", "context: of {}\nquestion: {}")
    texts = [forms[i % 2].format(asked(i), i) for i in range(119)]
    assert odd_ones([example(text) for text in (*texts, "what now")]) == {}


def test_keywords_behind_a_long_text_full_of_colons_are_found() -> None:
    noise = "".join(f"note{i}: text {i}\n" for i in range(150))
    texts = [f"document: {noise if i % 2 else 'short'}\nquestion: {asked(i)}" for i in range(120)]
    assert odd_ones([example(text) for text in texts]) == {}


def test_addresses_times_and_code_are_no_keywords() -> None:
    text = "see http://a.b at 12:30\nTime 12:30 std::sort C:\\tmp\nx::y {'a': 1} \"b\": 2. Note: yes"
    opening = opening_of(example(text), None)
    assert opening is not None and opening.labels == ("Note: ",)


def test_content_before_a_colon_is_taken_for_no_keyword() -> None:
    forms = ["Context: doc {} said: something\nQuestion: {}"] * 5 + ["Question: {} {}"]
    found = odd_ones([example(forms[i % 6].format(i, asked(i))) for i in range(120)])
    assert set(found.values()) == {"most have Context: Question:"}
    code = "Fix this code:\nif {0}:\n    run: int = {0}\n{1}pass"
    texts = [code.format(asked(i), "else:\n    " if i % 10 else "") for i in range(120)]
    assert odd_ones([example(text) for text in texts]) == {}


def test_fields_that_come_and_go_are_no_pattern_and_take_no_time() -> None:
    draw = random.Random(0)
    for share in (0.9, 0.97):
        texts = (
            "\n".join(f"feature {j}: {draw.random()}" for j in range(60) if draw.random() < share) for _ in range(8_000)
        )
        examples = [example(text) for text in texts]
        start = time.perf_counter()
        assert odd_ones(examples) == {}
        assert time.perf_counter() - start < 20.0


def test_a_form_of_many_fields_is_still_compared() -> None:
    texts = ["\n".join(f"feature {j}: {i}" for j in range(30) if i % 10 or j != 7) for i in range(120)]
    assert list(odd_ones([example(text) for text in texts])) == list(range(0, 120, 10))


def test_a_second_half_of_another_form_is_taken_as_variety(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_prefix, "_SAMPLE", 20)
    texts = [f"question: {asked(i)}" if i < 50 else f"{asked(i)}, please" for i in range(100)]
    systems = ["" if i == 70 else "Be terse." for i in range(100)]
    assert list(odd_ones([example(text, system) for text, system in zip(texts, systems, strict=True)])) == [70]


def test_what_is_remembered_of_the_openings_does_not_grow_with_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_prefix, "_SAMPLE", 20)
    numbering = Openings()
    texts = [f"question: {i}" if i < 20 else f"{'question: ' * (i % 3)}field{i}: {asked(i)}" for i in range(2000)]
    numbers = [numbering.number(opening_of(example(text, f"Be {i}."), None)) for i, text in enumerate(texts)]
    assert max(numbers) < 30


def test_keywords_behind_what_is_searched_are_not_missing() -> None:
    texts = [f"Document: {f'{i} words ' * (1000 if i % 10 == 3 else 5)}\nQuestion: {asked(i)}" for i in range(120)]
    assert odd_ones([example(text) for text in texts]) == {}


def test_plain_text_and_conversations_without_a_question_are_not_compared() -> None:
    examples = [example(f"question: {asked(i)}") for i in range(20)]
    others = [Example(text="once upon a time"), Example(messages=(Message("assistant", "hi"),))]
    assert odd_ones([*examples, *others]) == {}


def test_examples_beyond_the_first_are_judged_by_what_the_first_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prompt_prefix, "_SAMPLE", 20)
    texts = [f"{asked(i)}, please" if i in (50, 90) else f"question: {asked(i)}" for i in range(100)]
    assert list(odd_ones([example(text, "Be terse." if i != 70 else "") for i, text in enumerate(texts)])) == [
        50,
        70,
        90,
    ]


@pytest.mark.parametrize("text", ["\n", "- ", "a", "a b ", "-", "a-", "'", ":", "a:", "a: ", "* ", "a:b "])
def test_no_text_makes_the_search_for_keywords_slow(text: str) -> None:
    start = time.perf_counter()
    opening_of(example(text * (1_000_000 // len(text)) + "."), None)
    assert time.perf_counter() - start < 10.0  # quadratic in the length it would take an hour
