"""Rows of TRL, verl and others, in every kind of file; bad rows name their place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from etude.data import load_problems, read_examples, read_labelled, read_preferences, read_problems
from etude.records import EtudeError, Message, Problem

USER = [{"role": "user", "content": "2 + 2?"}]
ANSWER = {"role": "assistant", "content": "4"}
CHAT = (Message("user", "2 + 2?"),)
GSM = {"question": "2 + 2?", "answer": "2 + 2 = 4\n#### 4"}
VERL = {
    "data_source": "openai/gsm8k",
    "prompt": USER,
    "ability": "math",
    "reward_model": {"style": "rule", "ground_truth": "4"},
    "extra_info": {"split": "train", "index": 3, "answer": "long"},
}


def write(path: Path, *rows: Any) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def one(tmp_path: Path, row: Any, **options: Any) -> Problem:
    (problem,) = read_problems(write(tmp_path / "data.jsonl", row), **options)
    return problem


# ── files ──


def test_every_kind_of_file_gives_the_same(tmp_path: Path) -> None:
    rows = [VERL, {**VERL, "extra_info": {"split": "test", "index": 4, "answer": "x"}}]
    expected = read_problems(write(tmp_path / "a.jsonl", *rows))
    assert [problem.id for problem in expected] == ["a:0", "a:1"] and expected[0].messages == CHAT
    write(tmp_path / "a.jsonl.gz", *rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b").mkdir()
    (tmp_path / "b/a.json").write_text(json.dumps({"data": rows}))
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.ipc.new_stream(tmp_path / "a.arrow", table.schema) as stream:
        stream.write_table(table)
    for name in ("a.jsonl.gz", "a.json", "b/a.json", "a.parquet", "a.arrow"):
        assert read_problems(tmp_path / name) == expected, name


def test_folders(tmp_path: Path) -> None:
    for part in ("train-00000-of-00002", "train-00001-of-00002", "test-00000-of-00001"):
        (tmp_path / "hub/data").mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist([{**GSM, "part": part}]), tmp_path / f"hub/data/{part}.parquet")
    (tmp_path / "hub/dataset_infos.json").write_text("{}")
    assert [p.columns["part"][:5] for p in read_problems(tmp_path / "hub")] == ["train", "train"]
    assert len(load_problems(f"{tmp_path}/hub?split=test")) == 1
    with pytest.raises(EtudeError, match="no split 'dev'; it has: test-00000"):
        read_problems(tmp_path / "hub", split="dev")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EtudeError, match="holds no data"):
        read_problems(tmp_path / "empty")


def test_what_datasets_saved_and_loads(tmp_path: Path) -> None:
    import datasets

    both = datasets.DatasetDict(
        {name: datasets.Dataset.from_list([GSM] * n) for name, n in (("train", 3), ("test", 2))}
    )
    both.save_to_disk(str(tmp_path / "saved"))
    assert (
        len(read_problems(tmp_path / "saved")) == 3
        and len(read_problems(tmp_path / "saved", split="test")) == 2
    )
    both["test"].save_to_disk(str(tmp_path / "single"))
    assert len(read_problems(tmp_path / "single")) == 2


def test_a_name_at_hugging_face(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> Any:
        asked.append((arguments, options))
        return datasets.Dataset.from_list([GSM, GSM])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(load_problems("openai/gsm8k?split=test&config=main&limit=1")) == 1
    assert asked == [(("openai/gsm8k", "main"), {"split": "test"})]

    def unreachable(*arguments: Any, **options: Any) -> Any:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    with pytest.raises(EtudeError, match=r"openai/gsm8k .split train. cannot be read .* no route to host"):
        load_problems("openai/gsm8k")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"question": "a"}\n\n{"question": \n', r"a\.jsonl:3: the line is not JSON"),
        ("a.jsonl", b"[1]\n", r"a\.jsonl:1: got list, a row is a JSON object"),
        ("a.jsonl", b'{"question": "\xff"}\n', r"a\.jsonl:1: the line is not UTF-8"),
        ("a.jsonl", b"", "has no rows"), ("a.jsonl", b"[" * 100000 + b"\n", "nested too deeply|not JSON"),
        ("a.json", b'{"a": 1}', "holds a list of rows"),
        ("a.json", b'{"a": 1}\n{"a": 2}', "belongs in .jsonl"),
        ("a.parquet", b"PAR1 no", "is not Parquet"), ("a.arrow", b"no", "is not an Arrow stream"),
        ("a.jsonl.gz", b"no gzip", "cannot be read"), ("a.csv", b"a,b", r"got '\.csv', data is read from"),
    ],
)  # fmt: skip
def test_files_that_are_broken(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(EtudeError, match=message):
        read_problems(tmp_path / name)


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps(GSM).encode())
    assert read_problems(tmp_path / "a.jsonl")[0].messages == CHAT


def test_names_that_mean_nothing() -> None:
    with pytest.raises(EtudeError, match=r"no file or folder 'train\.jsonl'"):
        load_problems("train.jsonl")
    with pytest.raises(EtudeError, match="no option 'spilt'; did you mean split"):
        load_problems("train.jsonl?spilt=test")


# ── problems ──


@pytest.mark.parametrize(
    ("row", "messages", "answer"),
    [
        ({"prompt": "2 + 2 =", "answer": "4"}, (Message("text", "2 + 2 ="),), "4"),
        ({"prompt": USER, "solution": r"so $\boxed{4}$"}, CHAT, r"so $\boxed{4}$"),
        (VERL, CHAT, "4"), (GSM, CHAT, GSM["answer"]), ({"problem": "2 + 2?", "solution": "4"}, CHAT, "4"),
        ({"question": "2 + 2?", "answer": 4}, CHAT, "4"), ({"question": "2 + 2?"}, CHAT, None),
        ({"messages": [*USER, {"role": "assistant", "content": "4"}]}, CHAT, "4"),
        ({"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]}, CHAT, "4"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "2 + 2?"}]}]}, CHAT, None),
        ({"instruction": "Add.", "input": "2, 2", "output": "4"}, (Message("user", "Add.\n\n2, 2"),), "4"),
        ({"question": "2 + 2?", "system": "Be brief."}, (Message("system", "Be brief."), *CHAT), None),
        ({"prompt": USER, "reward_model": {"ground_truth": {"target": ["4", "four"]}}}, CHAT, "4"),
        ({"prompt": USER, "answer": None, "solution": "4"}, CHAT, "4"),
    ],
)  # fmt: skip
def test_rows_as_they_are(
    row: Any, messages: tuple[Message, ...], answer: str | None, tmp_path: Path
) -> None:
    problem = one(tmp_path, row)
    assert (problem.messages, problem.answer) == (messages, answer)


def test_columns_keep_everything_else(tmp_path: Path) -> None:
    columns = one(tmp_path, VERL).columns
    assert columns == {key: value for key, value in VERL.items() if key != "prompt"}
    assert one(tmp_path, {"prompt": USER, "answer": ["4", "four"]}).columns == {"answers": ("4", "four")}
    assert one(tmp_path, {**GSM, "choices": ["a", "b"], "id": 7}) == Problem(
        "7", CHAT, GSM["answer"], {"choices": ["a", "b"], "id": 7}
    )


def test_forms_and_system(tmp_path: Path) -> None:
    row = {"prompt": "2 + 2?"}
    assert one(tmp_path, row, form="chat").messages == CHAT
    assert one(tmp_path, GSM, form="text").messages == (Message("text", "2 + 2?"),)
    assert one(tmp_path, GSM, system="Hi.").messages == (Message("system", "Hi."), *CHAT)
    assert one(tmp_path, row, system="Hi.").messages == (Message("text", "2 + 2?"),)
    with pytest.raises(EtudeError, match="allowed are row, chat, text"):
        one(tmp_path, row, form="words")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "a"}, r"data\.jsonl:2: there is no prompt, messages.*its columns are text"),
        ({"prompt": ""}, "there is no prompt"), ({"prompt": []}, "there is no prompt"),
        ({"prompt": ["hi"]}, "prompt has 'hi' in it, a message is an object"),
        ({"prompt": [{"content": "hi"}]}, "has no role"), ({"prompt": [{"role": "user"}]}, "has no content"),
        ({"prompt": {"role": "user"}}, "should be a list of messages"), ({"prompt": 5}, "a list of messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "only text is supported"),
        ({"messages": [{"role": "user", "content": {"a": 1}}]}, "it should be text"),
        ({"messages": [{"role": "assistant", "content": "4"}]}, "no message before the answer"),
        ({"question": "a", "answer": "  "}, "answer is empty"),
        ({"question": "a", "answer": {}}, "an answer is a text"),
        ({"question": "a", "answer": []}, "an answer is a text"),
        ({"id": 1, "question": "a"}, "was given to data.jsonl:1"),
    ],
)  # fmt: skip
def test_bad_rows_name_file_and_line(row: Any, message: str, tmp_path: Path) -> None:
    first = {"question": "fine", "id": 1} if "id" in row else {"question": "fine"}
    with pytest.raises(EtudeError, match=message) as caught:
        read_problems(write(tmp_path / "data.jsonl", first, row))
    assert "data.jsonl:2" in str(caught.value)


# ── what else is learned from ──


@pytest.mark.parametrize(
    ("row", "roles", "learned"),
    [
        ({"messages": [{"role": "system", "content": "s"}, *USER, ANSWER, *USER, ANSWER]},
         "system user assistant user assistant", "--1-1"),
        ({"prompt": "2 + 2 =", "completion": " 4"}, "text text", "-1"),
        ({"prompt": USER, "completion": [{"role": "assistant", "content": "4"}]}, "user assistant", "-1"),
        ({"instruction": "Add", "output": "4"}, "user assistant", "-1"), (GSM, "user assistant", "-1"),
        ({"text": "Once"}, "text", "1"), ({"problem": "a", "solution": "b"}, "user assistant", "-1"),
    ],
)  # fmt: skip
def test_examples(row: Any, roles: str, learned: str, tmp_path: Path) -> None:
    (example,) = read_examples(write(tmp_path / "a.jsonl", row))
    assert " ".join(message.role for message in example.messages) == roles
    assert "".join("1" if counts else "-" for counts in example.learned) == learned


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Q: ", "chosen": "good", "rejected": "bad"}, ((Message("text", "Q: "),), "good", "bad")),
        ({"prompt": USER, "chosen": [{"role": "assistant", "content": "4"}],
          "rejected": [{"role": "assistant", "content": "5"}]}, (CHAT, "4", "5")),
        ({"chosen": [*USER, {"role": "assistant", "content": "4"}],
          "rejected": [*USER, {"role": "assistant", "content": "5"}]}, (CHAT, "4", "5")),
        ({"prompt": "2 + 2?", "chosen": [*USER, {"role": "assistant", "content": "4"}],
          "rejected": [*USER, {"role": "assistant", "content": "5"}]}, (CHAT, "4", "5")),  # UltraFeedback
        ({"question": "2 + 2?", "chosen": "4", "rejected": "5"}, (CHAT, "4", "5")),
        ({"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: Help"},
         ((Message("text", "\n\nHuman: Hi\n\nAssistant:"),), " Hello", " Help")),
        ({"chosen": "Once upon a time", "rejected": "Once upon a table"},
         ((Message("text", "Once upon a "),), "time", "table")),
    ],
)  # fmt: skip
def test_preferences(row: Any, expected: Any, tmp_path: Path) -> None:
    (pair,) = read_preferences(write(tmp_path / "a.jsonl", {**row, "margin": 2, "source": "x"}))
    assert (pair.messages, pair.chosen, pair.rejected) == expected
    assert pair.margin == 2.0 and pair.columns == {"source": "x"}


def test_labelled(tmp_path: Path) -> None:
    row = {"prompt": USER, "completion": [{"role": "assistant", "content": "4"}], "label": True, "x": 1}
    (labelled,) = read_labelled(write(tmp_path / "a.jsonl", row))
    assert (labelled.messages, labelled.completion, labelled.label) == (CHAT, "4", True)
    assert labelled.columns == {"x": 1}


@pytest.mark.parametrize(
    ("read", "row", "message"),
    [
        (read_examples, {"messages": USER}, "nothing to learn"),
        (read_examples, {"a": 1}, "its columns are a"),
        (read_examples, {"prompt": "a", "completion": USER}, "make both the same"),
        (read_preferences, {"prompt": "a", "chosen": "b"}, "there is no rejected"),
        (read_preferences, {"prompt": "a", "chosen": "b", "rejected": "b"}, "are the same"),
        (read_preferences, {"chosen": "ab", "rejected": "cd"}, "do not begin with the same words"),
        (read_preferences, {"prompt": USER, "chosen": USER, "rejected": USER}, "nobody|are the same"),
        (read_preferences, {"prompt": "a", "chosen": "b", "rejected": "c", "margin": "x"}, "margin is 'x'"),
        (read_labelled, {"prompt": "a", "completion": "b", "label": "good"}, "label is 'good'"),
        (read_labelled, {"prompt": "a", "label": True}, "no prompt with completion"),
    ],
)  # fmt: skip
def test_bad_rows_of_the_others(read: Any, row: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(EtudeError, match=message) as caught:
        read(write(tmp_path / "a.jsonl", row))
    assert "a.jsonl:1" in str(caught.value)
