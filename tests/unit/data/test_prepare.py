"""prepare: the whole way from files to packs, the audit's verdict, and the cache."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from launcher.config.schema import DataConfig, OverLength, RunConfig, SourceConfig, TaskKind
from launcher.data import prepare as prepare_module
from launcher.data import readers
from launcher.data.audit import MAX_LOCATIONS, RULES, Audit, Severity
from launcher.data.prepare import PreparedInfo, find_prepared, prepare, preview_examples
from launcher.data.prepared import Prepared
from launcher.data.template import ChatFormat
from launcher.errors import DataError
from tests.unit.data.chat_models import CHATML, LLAMA3, PLAIN, make_folder

DOC = Path(__file__).parents[3] / "docs" / "data.md"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("model") / "chatml", CHATML)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "cache"))


def pairs(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"text_input": f"input {i}", "output": f"output {i}"} for i in range(start, start + count)]


def write(path: Path, records: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def run(model: Path, **data: object) -> PreparedInfo:
    return prepare(RunConfig(data=DataConfig(**data)), model, allow_blocked=True)  # type: ignore[arg-type]


def codes(info: PreparedInfo) -> dict[str, int]:
    return {finding.code: finding.count for finding in info.audit.findings}


def texts(info: PreparedInfo, model: Path, split: str = "train") -> list[str]:
    """The taught text of every example."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    data = Prepared.open(info.folder, split, allow_blocked=True)
    return [
        tokenizer.decode(data.tokens(i)[data.mask(i)].tolist(), skip_special_tokens=False)
        for i in range(data.num_examples)
    ]


def test_examples_come_out_in_order_with_their_lines_and_taught_text(model: Path, tmp_path: Path) -> None:
    info = run(model, path=write(tmp_path / "a.jsonl", pairs(120)))
    data = Prepared.open(info.folder, "train")
    assert texts(info, model) == [f"output {i}<|im_end|>" for i in range(120)]
    assert data.source_line(119) == (str(tmp_path / "a.jsonl"), 120)
    assert info.audit.findings == () and info.validation is None
    assert info.audit.formats == {str(tmp_path / "a.jsonl"): "text_input_output"}


def test_facts_and_counts_agree_with_the_data(model: Path, tmp_path: Path) -> None:
    info = run(model, path=write(tmp_path / "a.jsonl", pairs(120)), seq_len_tokens=64)
    data = Prepared.open(info.folder, "train")
    counts = info.audit.counts["train"]
    assert info.train.num_tokens == counts.tokens == int(data.lengths.sum())
    assert info.train.num_supervised_tokens == counts.supervised_tokens == int(data.supervised.sum())
    assert info.train.num_packs == data.num_packs and info.train.longest_pack_tokens == int(data.pack_lengths.max())
    assert (counts.examples_read, counts.examples_kept, counts.examples_dropped) == (120, 120, 0)


def test_the_second_call_finds_what_the_first_made(model: Path, tmp_path: Path) -> None:
    config = RunConfig(data=DataConfig(path=write(tmp_path / "a.jsonl", pairs(120))))
    assert find_prepared(config, model) is None
    made = prepare(config, model)
    found = prepare(config, model)
    assert (made.from_cache, found.from_cache) == (False, True)
    assert (found.key, found.folder, found.audit, found.train) == (made.key, made.folder, made.audit, made.train)
    assert find_prepared(config, model) == found


@pytest.mark.parametrize(
    "change",
    [
        {"seq_len_tokens": 100},
        {"packing": False},
        {"over_length": OverLength.drop},
        {"system_prompt": "Be brief."},
        {"preamble": "TaskKind: "},
        {"validation_fraction": 0.1},
        {"allow": ["duplicate"]},
        {"max_input_chars": 50},
        {"task": TaskKind.classification},
    ],
)
def test_every_option_that_matters_makes_another_data_set(
    change: dict[str, object], model: Path, tmp_path: Path
) -> None:
    path = write(tmp_path / "a.jsonl", pairs(120))
    assert run(model, path=path, **change).key != run(model, path=path).key


def test_changed_content_or_tokenizer_or_template_makes_another_data_set(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "m", CHATML)
    path = write(tmp_path / "a.jsonl", pairs(120))
    keys = {run(model, path=path).key}
    write(tmp_path / "a.jsonl", pairs(121))
    keys.add(run(model, path=path).key)
    (model / "chat_template.jinja").write_text(CHATML.template + "{# other #}")
    keys.add(run(model, path=path).key)
    make_folder(tmp_path / "other", PLAIN)
    (model / "tokenizer.json").write_bytes((tmp_path / "other" / "tokenizer.json").read_bytes())
    keys.add(run(model, path=path).key)
    assert len(keys) == 4


def test_the_number_of_processes_changes_nothing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from launcher.data import parallel

    monkeypatch.setattr(readers, "CHUNK_RECORDS", 50)
    monkeypatch.setattr(parallel, "CHUNK_BYTES", 1000)
    records = [*pairs(180), {"text_input": "no output"}, *pairs(20, 500)]
    path = write(tmp_path / "a.jsonl", records)
    with Path(path).open("a") as file:
        file.write("\n{broken\n")
    alone = run(model, path=path, num_workers=1)
    kept = {name: (alone.folder / "train" / name).read_bytes() for name in ("examples.arrow", "pack_examples.npy")}
    audit = (alone.folder / "audit.json").read_text()
    monkeypatch.setenv("LAUNCHER_CACHE", str(tmp_path / "second"))
    together = run(model, path=path, num_workers=2)
    assert together.folder != alone.folder
    assert {name: (together.folder / "train" / name).read_bytes() for name in kept} == kept
    assert (together.folder / "audit.json").read_text() == audit


def test_processes_that_prepare_at_once_end_with_one_data_set(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pairs(300))
    with ThreadPoolExecutor(4) as pool:
        infos = list(pool.map(lambda _: run(model, path=path), range(4)))
    assert len({info.folder for info in infos}) == 1
    left = [entry.name for entry in infos[0].folder.parent.iterdir()]
    assert left == [infos[0].key]
    assert texts(infos[0], model)[-1] == "output 299<|im_end|>"


def test_a_failure_leaves_nothing_behind(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Audit, "as_dict", fail)
    with pytest.raises(OSError, match="disk full"):
        run(model, path=write(tmp_path / "a.jsonl", pairs(30)))
    assert list((tmp_path / "cache" / "prepared").iterdir()) == []


def test_what_killed_processes_left_is_removed_after_a_day(model: Path, tmp_path: Path) -> None:
    import os

    stale, fresh = (tmp_path / "cache" / "prepared" / f".preparing-{name}" for name in ("old", "new"))
    stale.mkdir(parents=True)
    fresh.mkdir()
    os.utime(stale, (0, 0))
    run(model, path=write(tmp_path / "a.jsonl", pairs(30)))
    assert not stale.exists() and fresh.exists()


def test_the_prompt_format_travels_with_the_data(model: Path, tmp_path: Path) -> None:
    info = run(model, path=write(tmp_path / "a.jsonl", pairs(30)), preamble="Next: ", system_prompt="Count.")
    chat = ChatFormat.from_folder(info.folder)
    assert (chat.preamble, chat.system_prompt, chat.end_of_turn) == ("Next: ", "Count.", "<|im_end|>")
    shown = preview_examples(
        RunConfig(data=DataConfig(path=str(tmp_path / "a.jsonl"), preamble="Next: ", system_prompt="Count.")), model, 1
    )
    assert shown[0].text == chat.render([message.as_dict() for message in shown[0].example.messages])
    assert "Count.<|im_end|>\n<|im_start|>user\nNext: input 0" in shown[0].text


def test_preview_shows_what_was_written(model: Path, tmp_path: Path) -> None:
    config = RunConfig(data=DataConfig(path=write(tmp_path / "a.jsonl", pairs(30))))
    data = Prepared.open(prepare(config, model).folder, "train")
    shown = preview_examples(config, model, 5)
    assert len(shown) == 5
    for i, encoded in enumerate(shown):
        assert encoded.ids.tolist() == data.tokens(i).tolist() and encoded.mask.tolist() == data.mask(i).tolist()
        assert [encoded.text[a:b] for a, b in encoded.spans] == [f"output {i}<|im_end|>"]


# -- splits and mixtures


def test_a_held_out_share_is_drawn_and_complete(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pairs(200))
    info = run(model, path=path, validation_fraction=0.1, seed=3)
    train, held_out = texts(info, model), texts(info, model, "validation")
    assert len(held_out) == 20
    assert sorted(train + held_out) == sorted(f"output {i}<|im_end|>" for i in range(200))
    assert codes(info) == {}
    other = run(model, path=path, validation_fraction=0.1, seed=4)
    assert set(texts(other, model, "validation")) != set(held_out)


def test_equal_inputs_are_held_out_together(model: Path, tmp_path: Path) -> None:
    records = [{"text_input": f"input {i % 40}", "output": f"output {i}"} for i in range(200)]
    info = run(model, path=write(tmp_path / "a.jsonl", records), validation_fraction=0.25)
    assert "train_validation_overlap" not in codes(info)
    assert info.validation is not None and info.validation.num_examples == 50


def test_inputs_in_both_splits_are_an_error_with_places(model: Path, tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "a.jsonl", pairs(120)), write(tmp_path / "b.jsonl", pairs(3, 118))
    info = run(model, path=train, validation_path=held_out)
    assert codes(info) == {"train_validation_overlap": 2} and info.audit.blocked
    assert [place.line for place in info.audit.findings[0].places] == [1, 2]


def test_mixture_weights_draw_and_repeat(model: Path, tmp_path: Path) -> None:
    half, twice = write(tmp_path / "a.jsonl", pairs(100)), write(tmp_path / "b.jsonl", pairs(30, 1000))
    mixture = [SourceConfig(path=half, weight=0.5), SourceConfig(path=twice, weight=2.5)]
    info = run(model, mixture=mixture)
    found = texts(info, model)
    first = [text for text in found if int(text.split()[1].split("<")[0]) < 1000]
    second = [text for text in found if text not in first]
    assert (len(first), len(set(first))) == (50, 50)
    assert (len(second), len(set(second))) == (75, 30)
    assert codes(info) == {}
    again = run(model, mixture=[mixture[0], SourceConfig(path=twice, weight=1)])
    assert [text for text in texts(again, model) if text in first] == first


def test_a_held_out_share_of_a_mixture_is_not_weighted(model: Path, tmp_path: Path) -> None:
    mixture = [SourceConfig(path=write(tmp_path / "a.jsonl", pairs(100)), weight=3)]
    info = run(model, mixture=mixture, validation_fraction=0.1)
    assert info.validation is not None
    assert (info.train.num_examples, info.validation.num_examples) == (270, 10)


def test_inline_and_built_in_examples(model: Path) -> None:
    info = run(model, inline=[{"text_input": "1", "output": "2"}], path="builtin:next_number", seq_len_tokens=256)
    assert info.validation is not None
    assert (info.train.num_examples, info.validation.num_examples) == (601, 100)


# -- the audit


def test_the_documentation_lists_every_finding_and_no_other() -> None:
    listed = re.findall(
        r"^\| `(\w+)` \| (error|warning)(.*?) \| (.*?) \| (.*?) \|$", DOC.read_text(), flags=re.MULTILINE
    )
    assert [(code, severity, what, hint) for code, severity, _, what, hint in listed] == [
        (code, rule.severity.value, rule.what, rule.hint) for code, rule in RULES.items()
    ]


def messages(*roles: str, **more: object) -> dict[str, object]:
    return {"messages": [{"role": role, "content": f"{role} says", **more} for role in roles]}


@pytest.mark.parametrize(
    ("record", "code"),
    [
        (messages("user"), "no_assistant_turn"),
        (messages(), "no_assistant_turn"),
        (messages("system", "assistant"), "wrong_role_order"),
        (messages("user", "user", "assistant"), "wrong_role_order"),
        (messages("user", "assistant", "assistant"), "wrong_role_order"),
        (messages("user", "system", "assistant"), "wrong_role_order"),
        (messages("user", "tool", "assistant"), "wrong_role_order"),
        (messages("user", "assistant", "user"), "last_turn_not_assistant"),
        (messages("user", "assistant", weight=0), "no_supervised_tokens"),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}]}, "empty_output"),
        ({"messages": [{"role": "user", "content": ""}, {"role": "assistant", "content": "a"}]}, "empty_input"),
        (
            {"messages": [{"role": "user", "content": "x" * 51}, {"role": "assistant", "content": "a"}]},
            "too_long_input_chars",
        ),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "x" * 41}]},
            "too_long_output_chars",
        ),
        (
            {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "a"}]},
            "special_token_in_text",
        ),
        ({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "text": 1}, ""),
    ],
)
def test_each_fault_of_an_example_has_its_code_and_line(
    record: dict[str, object], code: str, model: Path, tmp_path: Path
) -> None:
    good = [messages("user", "assistant") for _ in range(2)]
    for number, fine in enumerate(good):
        fine["messages"][0]["content"] = f"question {number}"  # type: ignore[index]
    path = write(tmp_path / "a.jsonl", [good[0], record, good[1]])
    info = run(model, path=path, max_input_chars=50, max_output_chars=40)
    found = {finding.code: finding for finding in info.audit.findings if finding.code != "too_few_examples"}
    assert list(found) == ([code] if code else [])
    if code:
        assert [place.line for place in found[code].places] == [2]
        assert info.audit.blocked == (RULES[code].severity is Severity.error)


def test_broken_lines_are_all_counted_and_the_listing_is_capped(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    lines = [json.dumps(record) if i % 2 else "{broken" for i, record in enumerate(pairs(114))]
    path.write_text("\n".join(lines))
    info = run(model, path=str(path))
    finding = info.audit.findings[0]
    assert (finding.code, finding.count, len(finding.places)) == ("broken_json", 57, MAX_LOCATIONS)
    with pytest.raises(DataError) as caught:
        info.audit.raise_if_blocked()
    assert f"{path}:1: " in str(caught.value) and "and 37 more" in str(caught.value)
    assert "data.allow=[broken_json]" in str(caught.value)


def test_a_blocked_data_set_is_refused_everywhere_until_it_is_allowed(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", [*pairs(120), {"text_input": "a"}])
    config = RunConfig(data=DataConfig(path=path))
    for _ in range(2):
        with pytest.raises(DataError, match="wrong_fields"):
            prepare(config, model)
    with pytest.raises(DataError, match="wrong_fields"):
        find_prepared(config, model)
    with pytest.raises(DataError, match="blocked"):
        Prepared.open(run(model, path=path).folder, "train")
    config.data.allow = ["wrong_fields"]
    info = prepare(config, model)
    assert Prepared.open(info.folder, "train").num_examples == 120
    saved = json.loads((info.folder / "audit.json").read_text())
    assert saved["allow"] == ["wrong_fields"] and saved["findings"][0]["accepted"] and not saved["vetoed"]


def test_over_length_stops_unless_a_policy_is_given(model: Path, tmp_path: Path) -> None:
    records = [*pairs(120), {"text_input": "a", "output": "long " * 200}]
    path = write(tmp_path / "a.jsonl", records)
    stopped = run(model, path=path, seq_len_tokens=128)
    assert codes(stopped) == {"over_length": 1} and stopped.audit.blocked
    dropped = run(model, path=path, seq_len_tokens=128, over_length=OverLength.drop)
    assert codes(dropped) == {"over_length_dropped": 1} and dropped.audit.counts["train"].examples_dropped == 1
    cut = run(model, path=path, seq_len_tokens=128, over_length=OverLength.truncate)
    assert codes(cut) == {"truncated": 1, "truncated_end_of_turn": 1} and not cut.audit.blocked
    counts = cut.audit.counts["train"]
    assert counts.examples_truncated == 1 and counts.tokens_cut > 0 and cut.train.length_max == 128


def test_copies_and_contradictions_point_to_their_first(model: Path, tmp_path: Path) -> None:
    records = [*pairs(110), pairs(1)[0], {"text_input": "input 5", "output": "other"}]
    info = run(model, path=write(tmp_path / "a.jsonl", records))
    found = {finding.code: finding.places[0] for finding in info.audit.findings}
    assert set(found) == {"duplicate", "conflicting_outputs"} and not info.audit.blocked
    assert (found["duplicate"].line, found["duplicate"].detail) == (111, f"as {tmp_path / 'a.jsonl'}:1")
    assert (found["conflicting_outputs"].line, found["conflicting_outputs"].detail) == (
        112,
        f"as {tmp_path / 'a.jsonl'}:6",
    )


@pytest.mark.parametrize(
    "odd",
    ["Context: c question: q", "context: c question: q", "just a question", "question: only", "Question: q context: c"],
)
def test_inputs_that_break_the_common_pattern_are_named(odd: str, model: Path, tmp_path: Path) -> None:
    records: list[dict[str, object]] = [
        {"text_input": f"question: what {i}? note: x\ncontext: there {i}", "output": f"answer {i}"} for i in range(110)
    ]
    records.insert(3, {"text_input": odd, "output": "answer"})
    info = run(model, path=write(tmp_path / "a.jsonl", records))
    assert codes(info) == {"inconsistent_prefix": 1}
    place = info.audit.findings[0].places[0]
    assert place.line == 4 and "question:" in place.detail and "context:" in place.detail


def test_examples_without_the_system_message_of_most_are_named_in_both_splits(model: Path, tmp_path: Path) -> None:
    def records(count: int, start: int) -> list[dict[str, object]]:
        made = [messages("system", "user", "assistant") for _ in range(count)]
        for number, record in enumerate(made):
            record["messages"][1]["content"] = f"input {start + number}"  # type: ignore[index]
        return made

    train, held_out = records(120, 0), records(12, 500)
    for record in (*train[::10], held_out[4]):
        del record["messages"][0]  # type: ignore[attr-defined]
    paths = {"path": write(tmp_path / "a.jsonl", train), "validation_path": write(tmp_path / "b.jsonl", held_out)}
    info = run(model, **paths)
    assert codes(info) == {"inconsistent_prefix": 13} and not info.audit.blocked
    places = info.audit.findings[0].places
    assert [(Path(place.file).name, place.line) for place in places] == [
        *(("a.jsonl", line) for line in range(1, 120, 10)),
        ("b.jsonl", 5),
    ]
    assert places[0].detail == "no system message; most have 'system says'"
    assert codes(run(model, **paths, system_prompt="system says")) == {}


def test_free_text_has_no_common_pattern_to_break(model: Path, tmp_path: Path) -> None:
    records: list[dict[str, object]] = [
        {"text_input": f"Note {i}: he said: so" if i % 3 == 0 else f"Tell me {i}", "output": f"answer {i}"}
        for i in range(110)
    ]
    assert codes(run(model, path=write(tmp_path / "a.jsonl", records))) == {}


@pytest.mark.parametrize(("count", "words"), [(5, "below what is known to work"), (50, "few to rely on")])
def test_small_data_gets_the_advice_of_its_task(count: int, words: str, model: Path, tmp_path: Path) -> None:
    info = run(model, path=write(tmp_path / "a.jsonl", pairs(count)), task=TaskKind.classification)
    detail = info.audit.findings[0].places[0].detail
    assert codes(info) == {"too_few_examples": 1} and not info.audit.blocked
    assert words in detail and "100 or more for classification" in detail and "about 20" in detail


@pytest.mark.parametrize("content", ["", "\n\n", "{broken\n", '{"foo": 1}\n'])
def test_a_file_without_usable_examples_cannot_be_allowed(content: str, model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    info = run(model, path=str(tmp_path / "a.jsonl"), allow=list(RULES))
    assert info.audit.blocked and codes(info)["no_examples"] == 1


def test_held_out_data_without_usable_examples_is_an_error(model: Path, tmp_path: Path) -> None:
    train, held_out = write(tmp_path / "a.jsonl", pairs(120)), write(tmp_path / "b.jsonl", [{"text_input": "a"}])
    info = run(model, path=train, validation_path=held_out, allow=["wrong_fields", "unknown_format"])
    assert info.audit.blocked and next(one for one in info.audit.findings if one.blocks).code == "no_examples"


def test_data_that_changes_while_it_is_read_is_not_kept(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.jsonl", pairs(30))
    as_dict = Audit.as_dict

    def change_the_file(audit: Audit) -> dict[str, object]:
        write(tmp_path / "a.jsonl", pairs(31))
        return as_dict(audit)

    monkeypatch.setattr(Audit, "as_dict", change_the_file)
    with pytest.raises(DataError, match="changed while"):
        run(model, path=path)
    assert list((tmp_path / "cache" / "prepared").iterdir()) == []


def test_an_unknown_format_lists_the_fields_and_the_known_ones(model: Path, tmp_path: Path) -> None:
    info = run(model, path=write(tmp_path / "a.jsonl", [{"foo": 1, "bar": 2}]))
    detail = {finding.code: finding for finding in info.audit.findings}["unknown_format"].places[0].detail
    assert "fields seen: foo, bar" in detail and "instruction: instruction, output" in detail


def test_plain_text_is_taught_whole_with_its_end(model: Path, tmp_path: Path) -> None:
    info = run(model, path=write(tmp_path / "a.jsonl", [{"text": f"Once upon {i}"} for i in range(110)]))
    data = Prepared.open(info.folder, "train")
    assert texts(info, model)[7].endswith("upon 7<|im_end|>")
    assert not data.mask(7)[0] and data.mask(7)[1:].all()


def test_the_end_token_of_plain_text_stands_once_and_is_shown(model: Path, tmp_path: Path) -> None:
    records: list[dict[str, object]] = [{"text": "Once upon"}, {"text": "Once upon<|im_end|>"}]
    config = RunConfig(data=DataConfig(path=write(tmp_path / "a.jsonl", records)))
    plain, ended = preview_examples(config, model, 2)
    assert plain.text == ended.text == "Once upon<|im_end|>"
    assert plain.spans == ended.spans == [(0, len("Once upon<|im_end|>"))]
    assert plain.ids.tolist() == ended.ids.tolist() and plain.mask.tolist() == ended.mask.tolist()
    assert "special_token_in_text" not in codes(prepare(config, model))


def test_the_begin_token_of_plain_text_stands_once(tmp_path: Path) -> None:
    model = make_folder(tmp_path / "m", LLAMA3)
    tokenizer = json.loads((model / "tokenizer.json").read_text())
    (bos,) = (entry["id"] for entry in tokenizer["added_tokens"] if entry["content"] == LLAMA3.bos)
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": LLAMA3.bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [],
        "special_tokens": {LLAMA3.bos: {"id": LLAMA3.bos, "ids": [bos], "tokens": [LLAMA3.bos]}},
    }
    (model / "tokenizer.json").write_text(json.dumps(tokenizer))
    records: list[dict[str, object]] = [{"text": "Once upon"}, {"text": f"{LLAMA3.bos}Once upon"}]
    config = RunConfig(data=DataConfig(path=write(tmp_path / "a.jsonl", records), allow=["special_token_in_text"]))
    plain, begun = preview_examples(config, model, 2)
    assert plain.ids.tolist() == begun.ids.tolist() and plain.ids.tolist().count(bos) == 1
    assert plain.mask.tolist() == begun.mask.tolist() == [False] + [True] * (len(plain.ids) - 1)


@pytest.mark.parametrize(
    ("text", "code", "detail"),
    [
        ("<|im_start|>user\nhi", "special_token_in_text", "'<|im_start|>' at character 0"),
        ("one<|im_end|> two", "special_token_in_text", "'<|im_end|>' at character 3"),
        ("one<|im_end|><|im_end|>", "special_token_in_text", "'<|im_end|>' at character 3"),
        ("x" * 41, "too_long_output_chars", "41 characters"),
    ],
)
def test_plain_text_is_checked_like_other_examples(
    text: str, code: str, detail: str, model: Path, tmp_path: Path
) -> None:
    records: list[dict[str, object]] = [*({"text": f"Once upon {i}"} for i in range(109)), {"text": text}]
    path = write(tmp_path / "a.jsonl", records)
    info = run(model, path=path, max_output_chars=40)
    assert codes(info) == {code: 1} and info.audit.blocked
    assert (info.audit.findings[0].places[0].line, info.audit.findings[0].places[0].detail) == (110, detail)
    accepted = run(model, path=path, max_output_chars=40, allow=[code])
    assert not accepted.audit.blocked and accepted.train.num_examples == 110


def test_a_plain_text_of_nothing_but_the_end_token_is_empty(model: Path, tmp_path: Path) -> None:
    info = run(model, path=write(tmp_path / "a.jsonl", [{"text": "Once"}, {"text": "<|im_end|>"}]))
    assert codes(info)["empty_output"] == 1 and info.audit.blocked


def test_nothing_is_prepared_with_torch_loaded(model: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", pairs(30))
    code = (
        "import sys; from pathlib import Path\n"
        "from launcher.config.schema import DataConfig, RunConfig\n"
        "from launcher.data.prepare import prepare\n"
        f"prepare(RunConfig(data=DataConfig(path={path!r})), Path({str(model)!r}))\n"
        "print(sorted({'torch', 'transformers', 'accelerate', 'deepspeed', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_progress_ends_with_everything_read(model: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    config = RunConfig(data=DataConfig(path=write(tmp_path / "a.jsonl", pairs(2500))))
    prepare(config, model, progress=lambda done, share: seen.append((done, share)))
    assert [done for done, _ in seen] == [1000, 2000, 2500]
    assert seen[-1][1] == pytest.approx(1.0) and all(np.diff([share for _, share in seen]) > 0)


def test_the_format_version_is_part_of_the_key(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", pairs(30))
    before = run(model, path=path).key
    monkeypatch.setattr(prepare_module, "FORMAT_VERSION", -1)
    assert run(model, path=path).key != before
