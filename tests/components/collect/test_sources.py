import os

import pandas as pd
import pytest

from components.collect.sources import LIMIT, read_source
from components.common.errors import UserError

WORDS = ["a cat", "007", "NA", "null", "nan", "1e5", "True", 'he said "hi", twice', "two\nlines", "küche 🐈", " edge "]


def written(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(path)


@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl", ".CSV"])
def test_every_format_gives_the_same_text(tmp_path, suffix):
    """What looks like a number or a missing value stays the word that it is; blank and missing prompts are left out."""
    table = pd.DataFrame({"id": range(len(WORDS) + 2), "prompt": [*WORDS, None, "  "]})
    path = tmp_path / f"prompts{suffix}"
    write = {".csv": table.to_csv, ".parquet": table.to_parquet, ".jsonl": table.to_json}[suffix.lower()]
    write(path, **({"orient": "records", "lines": True} if suffix == ".jsonl" else {"index": False}))

    assert read_source(str(path)) == WORDS


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.csv", "\ufeffprompt\r\na cat\r\n\r\nkäse\r\n"),
        ("plain.csv", 'prompt\n"a cat"\n""\nkäse'),
        ("bom.jsonl", '\ufeff{"prompt": "a cat"}\r\n\r\n{"prompt": null}\n{"x": NaN, "prompt": "käse"}'),
    ],
)
def test_byte_order_marks_and_line_ends_do_not_matter(tmp_path, name, content):
    """A file of Windows' is read as any other."""
    assert read_source(written(tmp_path, name, content)) == ["a cat", "käse"]


def parquet(values, **columns):
    return pd.DataFrame({"prompt": values} | columns).to_parquet(index=False)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "prompt\na", "use a file that ends in .csv, .parquet, .jsonl, or hf:NAME"),
        ("a.csv", "", "is empty; fill it"),
        ("a.csv", "\n\n", "is empty; fill it"),
        ("a.csv", "\ufeff", "has no column 'prompt'"),
        ("a.csv", "prompt\n", "holds no prompt; fill it"),
        ("a.csv", "prompt\n  \n", "holds no prompt"),
        ("a.csv", "text,id\na,1\n", "has no column 'prompt' but 'text', 'id'; rename one column"),
        ("a.csv", "id;prompt\n1;a\n", "has no column 'prompt' but 'id;prompt'; rename one column, or separate columns"),
        ("a.csv", "prompt,prompt\na,b\n", "has two columns 'prompt'"),
        ("a.csv", "prompt\na cat\na cat, a dog\n", "line 3, has 2 columns, the header 1; put prompts with a comma"),
        ("a.csv", "id,prompt\n1,a\n2\n", "line 3, has 1 columns, the header 2"),
        ("a.csv", 'prompt\n"a cat\n', "line 2, is not CSV"),
        ("a.csv", 'prompt\n"a" cat\n', "line 2, is not CSV"),
        ("a.csv", f"prompt\n{'x' * 200_000}\n", "line 2, is not CSV (field larger than field limit"),
        ("a.csv", "prompt\nkäse".encode("latin-1"), "line 2, is not UTF-8; save the file as UTF-8"),
        ("a.csv", "prompt\na".encode("utf-16"), "line 1, is not UTF-8"),
        ("a.csv", "prompt\na\0b", "line 2, holds a NUL"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": "b', "line 2, is not JSON"),
        ("a.jsonl", '[{"prompt": "a"}]', "line 1, is no object"),
        ("a.jsonl", '"a"', "line 1, is no object"),
        ("a.jsonl", '{"prompt": "a"}\n{"text": "b"}', "line 2, has no column 'prompt' but 'text'"),
        ("a.jsonl", '{"prompt": "a", "prompt": "b"}', "line 1, is not JSON ('a key stands in it twice')"),
        ("a.jsonl", '{"prompt": 7}', "line 1: the prompt 7 is no text"),
        ("a.jsonl", '{"prompt": ["a", "b"]}', "line 1: the prompt ['a', 'b'] is no text"),
        ("a.jsonl", '{"prompt": "' + "a" * 10_001 + '"}', "line 1: the prompt has 10,001 characters, more than 10,000"),
        ("a.jsonl", '{"prompt": "\\ud800"}', "line 1: the prompt holds a NUL or half a character"),
        ("a.jsonl", '{"prompt": "a\\u0000"}', "line 1: the prompt holds a NUL"),
        ("a.jsonl", '{"prompt": ' + "[" * 100_000, "line 1, is not JSON"),
        ("a.jsonl", '{"n": ' + "9" * 5000 + ', "prompt": "a"}', "line 1, is not JSON"),
        ("a.parquet", b"PAR1 nothing", "is not Parquet"),
        ("a.parquet", parquet(["a"])[:-20], "is not Parquet"),
        ("a.parquet", parquet([7]), "the column 'prompt' holds 'int64', no text"),
        ("a.parquet", parquet([["a", "b"]]), "no text; write it as text"),
        ("a.parquet", parquet([b"a"]), "the column 'prompt' holds 'binary', no text"),
        ("a.parquet", parquet(["a"]).replace(b"prompt", b"PROMPT"), "has no column 'prompt' but 'PROMPT'"),
        ("a.parquet", parquet(["a\0"]), "row 1: the prompt holds a NUL"),
    ],
)  # fmt: skip
def test_a_table_that_one_would_have_to_guess_about_is_refused(tmp_path, name, content, said):
    """Each is one sentence with the file and, where there is one, the line."""
    with pytest.raises(UserError) as caught:
        read_source(written(tmp_path, name, content))

    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(5)
@pytest.mark.parametrize("suffix", [".csv", ".parquet", ".jsonl"])
def test_no_file_is_refused_at_once(tmp_path, suffix):
    """A missing file, a folder, a FIFO and a file of more than 100 MiB."""
    (tmp_path / f"folder{suffix}").mkdir()
    os.mkfifo(tmp_path / f"fifo{suffix}")
    with (tmp_path / f"large{suffix}").open("wb") as file:
        file.truncate(LIMIT + 1)

    for name, said in (("none", "does not exist"), ("folder", "no regular file"), ("fifo", "no regular file"), ("large", "larger than 100 MiB")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            read_source(str(tmp_path / f"{name}{suffix}"))
