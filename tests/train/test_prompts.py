import pytest

from flowrl.rl import facts_of
from flowrl.train.prompts import load_prompts


def test_prompts_are_the_lines_that_are_not_blank(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red fox\r\n\n  naïve café \n雨\n".encode())
    assert load_prompts(file) == ["a red fox", "naïve café", "雨"]


def test_separators_other_than_a_line_feed_belong_to_the_prompt(tmp_path):
    for name, content in (("a.txt", "a\u2028b\u0085c\nd"), ("a.jsonl", '{"prompt": "a\u2028b\u0085c"}\r\n{"prompt": "d"}')):
        (tmp_path / name).write_text(content, encoding="utf-8", newline="")
        assert load_prompts(tmp_path / name) == ["a\u2028b\u0085c", "d"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "prompts.txt holds no prompt"),
        (b"\n  \n", "prompts.txt holds no prompt"),
        (b"caf\xe9\n", r"prompts.txt is not UTF-8 \(byte 3"),
        (None, "cannot read the prompt file .*prompts.txt: No such file"),
    ],
    ids=["empty", "blank lines", "latin-1", "missing"],
)
def test_an_unusable_prompt_file_is_refused_by_name(tmp_path, content, message):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_prompts(file)


# -------------------------------------------------------------------------------------------------- published benchmarks

GENEVAL = (
    '{"tag": "counting", "include": [{"class": "apple", "count": 2}], "prompt": "two apples"}\n\n{"tag": "colors", "prompt": "a red cup"}\n'
)
HPD = '["a fox in anime style", "a castle", "a castle"]'
HPD_TEST = (
    '[{"prompt": "a fox", "image_path": ["1.jpg", "2.jpg"], "rank": [1, 0]}, {"prompt": "a fox", "image_path": ["3.jpg"], "rank": [0]}]'
)
DRAW_BENCH = 'Prompts,Category\nA red colored car.,Colors\n"Rbefraigerator, big.",Misspellings\nA red colored car.,Colors\n'
PARTI = "Prompt\tCategory\tChallenge\tNote\na teapot\tArtifacts\tBasic\tx\n"
PICK = "caption,image_0_uid,jpg_0\na frog on mars,u1,\na frog on mars,u2,\na gnome,u3,\n"


@pytest.mark.parametrize(
    ("name", "content", "texts", "facts"),
    [
        (
            "evaluation_metadata.jsonl",
            GENEVAL,
            ["two apples", "a red cup"],
            {"tag": "counting", "include": [{"class": "apple", "count": 2}]},
        ),
        ("anime.json", HPD, ["a fox in anime style", "a castle"], {}),
        ("test.json", HPD_TEST, ["a fox", "a fox"], {"image_path": ["1.jpg", "2.jpg"], "rank": [1, 0]}),
        ("named.json", '{"photo": ["a cat"], "anime": ["a fox"]}', ["a cat", "a fox"], {"category": "photo"}),
        ("drawbench.csv", DRAW_BENCH, ["A red colored car.", "Rbefraigerator, big."], {"category": "Colors"}),
        ("parti.tsv", PARTI, ["a teapot"], {"category": "Artifacts", "challenge": "Basic"}),
        ("pick.csv", PICK, ["a frog on mars", "a gnome"], {}),
    ],
)
def test_published_prompt_files_are_read_as_they_are(tmp_path, name, content, texts, facts):
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    prompts = load_prompts(file)
    assert [str(prompt) for prompt in prompts] == texts
    assert facts_of(prompts[0]) == facts


def test_a_parquet_table_is_read_by_its_caption_column(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.table({"jpg_0": [b"x", b"y", b"z"], "caption": ["a frog", "a frog", "a gnome"], "are_different": [True, True, False]})
    parquet.write_table(table, tmp_path / "validation.parquet")
    assert load_prompts(tmp_path / "validation.parquet") == ["a frog", "a gnome"]


def test_a_folder_is_all_its_files_each_a_category(tmp_path):
    (tmp_path / "photo.json").write_text('["a cat"]', encoding="utf-8")
    (tmp_path / "anime.json").write_text('["a fox", "a cat"]', encoding="utf-8")
    (tmp_path / "README.md").write_text("about", encoding="utf-8")
    prompts = load_prompts(tmp_path)
    assert [(str(prompt), facts_of(prompt)["category"]) for prompt in prompts] == [
        ("a fox", "anime"),
        ("a cat", "anime"),
        ("a cat", "photo"),
    ]


def test_a_condition_picture_is_found_from_the_prompt_file(tmp_path):
    (tmp_path / "edits.jsonl").write_text('{"prompt": "make it night", "image": "day.png"}', encoding="utf-8")
    (tmp_path / "edits.csv").write_text("prompt,image\nmake it night,day.png\n", encoding="utf-8")
    for name in ("edits.jsonl", "edits.csv"):
        (prompt,) = load_prompts(tmp_path / name)
        assert facts_of(prompt)["image"] == str(tmp_path / "day.png")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"prompt": "x"}\n{"text', r"a.jsonl, line 2 is no JSON \(.*\); write an object with a 'prompt' on every line"),
        ("a.jsonl", '{"words": "x"}', "a.jsonl, line 1 has no text named 'prompt'"),
        ("a.jsonl", '{"prompt": 3}', "a.jsonl, line 1 has no text named 'prompt'"),
        ("a.json", "3", "a.json should be a list of prompts, got a int"),
        ("a.csv", "words,n\nx,1\n", "a.csv has no column named prompt or prompts or caption or text; its columns are words, n"),
        ("a.csv", "prompt\n", "a.csv holds no prompt"),
    ],
)
def test_a_file_that_is_not_what_its_ending_says_is_refused_with_the_place(tmp_path, name, content, message):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_prompts(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", " \nx"), ("a.json", '["", "x", " "]'), ("a.jsonl", '{"prompt": " "}\n{"prompt": "x"}'), ("a.csv", "prompt\n x \n \n")],
)
def test_blank_prompts_are_left_out_of_every_kind_of_file(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    assert load_prompts(tmp_path / name) == ["x"]


def test_a_folder_without_prompt_files_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds no prompt file; it needs one that ends in \.txt, \.jsonl"):
        load_prompts(tmp_path)
