import pytest

from flowrl.train.prompts import load_prompts


def test_prompts_are_the_lines_that_are_not_blank(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa red fox\r\n\n  naïve café \n雨\n".encode())
    assert load_prompts(file) == ["a red fox", "naïve café", "雨"]


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
