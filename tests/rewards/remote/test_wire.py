"""What travels between client and server: nothing is lost, and nothing that anybody may send gets further than a ValueError."""

import io
import json
import math
import pickle
import struct
import zlib
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load, save
from serving import pictures

from flowrl.rl import Prompt, facts_of
from rewards.remote.limits import Limits, TooLargeError
from rewards.remote.png import decode_png, encode_png
from rewards.remote.wire import Answer, Question, pack_answer, pack_question, unpack_answer, unpack_question

APPLES = Prompt("two apples", facts={"include": [{"class": "apple", "count": 2}]})
LIMITS = Limits(pictures=8, pixels=64, total_pixels=300)


def question(samples, **fields):
    prompts = [APPLES, "naïve ☃"] * (len(samples) // 2)
    return Question(samples=samples, prompts=prompts, groups=torch.arange(len(samples)) // 2 + 7, **fields)


@pytest.mark.parametrize("samples", [pictures(4), pictures(4).reshape(2, 2, 3, 8, 8)], ids=["pictures", "videos"])
@pytest.mark.parametrize(("wire", "error"), [("float32", 0.0), ("float16", 2.0**-12), ("uint8", 0.5 / 255), ("png", 0.5 / 255)])
def test_a_question_arrives_as_exactly_as_its_wire_format_says(samples, wire, error):
    asked = question(samples, timeout_s=3.5)
    got = unpack_question(pack_question(asked, wire), Limits())
    assert got.samples.dtype == torch.float32
    assert got.samples.shape == samples.shape
    assert float((got.samples - samples).abs().max()) <= error * (1 + 1e-6)
    assert torch.equal(got.groups, asked.groups)
    assert got.timeout_s == 3.5


def test_prompts_arrive_with_their_facts():
    got = unpack_question(pack_question(question(pictures(2)), "uint8"), Limits())
    assert [str(prompt) for prompt in got.prompts] == ["two apples", "naïve ☃"]
    assert [dict(facts_of(prompt)) for prompt in got.prompts] == [dict(APPLES.facts), {}]


def test_png_and_raw_levels_are_the_same_levels():
    one, other = (unpack_question(pack_question(question(pictures(2)), wire), Limits()).samples for wire in ("png", "uint8"))
    assert torch.equal(one, other)


def test_colours_keep_their_channels():
    red = torch.zeros(2, 3, 4, 5)
    red[:, 0] = 1.0
    assert torch.equal(unpack_question(pack_question(question(red), "png"), Limits()).samples, red)


def test_a_score_of_every_kind_arrives_as_it_was_and_what_is_no_number_as_nan():
    parts = {"a": torch.tensor([0.1, -1e30, torch.nan]), "b": torch.tensor([1 / 3, torch.inf, -torch.inf])}
    got = unpack_answer(pack_answer(Answer(parts=parts, reasons={2: "lost"})), ["b", "a"], 3)
    assert torch.equal(got.parts["a"][:2], parts["a"][:2])
    assert torch.equal(got.parts["b"][:1], parts["b"][:1])
    assert [bool(score.isnan()) for score in (*got.parts["a"], *got.parts["b"])] == [False, False, True, False, True, True]
    assert got.reasons == {2: "lost"}


# ---------------------------------------------------------------------------------------------------------- malformed


def body(samples=None, about=None, **tensors):
    """A body with anything in it."""
    text = about if isinstance(about, str) else json.dumps({"prompts": ["a", "b"]} | (about or {}))
    pixels = {} if "png" in tensors or samples is False else {"samples": pictures(2) if samples is None else samples}
    return save({**pixels, "request": torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8), **tensors})


def png(size=(4, 4), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size).save(file, format="PNG")
    return file.getvalue()


def png_tensors(*files, lengths=None):
    lengths = [len(file) for file in files] if lengths is None else lengths
    return {"png": torch.frombuffer(bytearray(b"".join(files)), dtype=torch.uint8), "png_lengths": torch.tensor(lengths)}


MALFORMED = {
    "nothing": (b"", "not safetensors"),
    "noise": (bytes(range(256)) * 4, "not safetensors"),
    "pickle": (pickle.dumps({"samples": [1, 2]}), "not safetensors"),
    "torch.save": (b"PK\x03\x04" + b"\0" * 100, "not safetensors"),
    "truncated": (body()[:-50], "not safetensors"),
    "a header of 2^63 bytes": (struct.pack("<Q", 2**63) + b"{}", "not safetensors"),
    "no request": (save({"samples": pictures(2)}), "'request' must hold JSON"),
    "request of floats": (save({"samples": pictures(2), "request": torch.zeros(3)}), "'request' must hold JSON"),
    "no JSON": (body(about="{prompts"), "'request' is not JSON"),
    "no UTF-8": (save({"request": torch.tensor([255, 254, 200], dtype=torch.uint8)}), "'request' is not JSON"),
    "deep JSON": (body(about="[" * 100_000), "'request' is not JSON"),
    "a list": (body(about="[1]"), "must be a JSON object, it is a list"),
    "no prompts": (body(about={"prompts": []}), "'prompts' must be a list of texts"),
    "prompts that are no texts": (body(about={"prompts": [1, 2]}), "'prompts' must be a list of texts"),
    "too few facts": (body(about={"facts": [{}]}), "'facts' must be a list of 2 objects"),
    "facts that are no objects": (body(about={"facts": [1, 2]}), "'facts' must be a list of 2 objects"),
    "frames below 0": (body(about={"frames": -1}), "frames must be a count"),
    "a time-out that never ends": (body(about='{"prompts": ["a", "b"], "timeout_s": Infinity}'), "'timeout_s' must be seconds"),
    "a time-out that is no number": (body(about='{"prompts": ["a", "b"], "timeout_s": NaN}'), "'timeout_s' must be seconds"),
    "no pictures": (body(samples=False), "must hold the tensor 'samples', or 'png'"),
    "too few pictures": (body(samples=pictures(1)), "got 1 samples but 2 prompts"),
    "grey pictures": (body(samples=torch.rand(2, 1, 4, 4)), r"\(batch, 3, height, width\)"),
    "pictures without pixels": (body(samples=torch.zeros(2, 3, 0, 4)), "none of them 0"),
    "integers": (body(samples=torch.ones(2, 3, 4, 4, dtype=torch.int32)), "must be float32, float16, bfloat16 or uint8"),
    "groups of floats": (body(groups=torch.zeros(2)), "'groups' must be int64 of shape"),
    "too many groups": (body(groups=torch.arange(3)), "'groups' must be int64 of shape"),
    "lengths beyond the bytes": (body(**png_tensors(png(), png(), lengths=[2**62, 2**62])), "'png_lengths' must add up"),
    "lengths below 0": (body(**png_tensors(png(), png(), lengths=[-1, 1 + 2 * len(png())])), "'png_lengths' must add up"),
    "too few files": (body(**png_tensors(png())), "got 1 PNG files for 2 prompts of 1 frames"),
    "files that are none": (body(**png_tensors(b"x" * 50, b"y" * 50)), "not a PNG file"),
    "files of two sizes": (body(**png_tensors(png((4, 4)), png((4, 5)))), "must be of one size"),
    "transparent files": (body(**png_tensors(png(mode="RGBA"), png(mode="RGBA"))), "8-bit RGB or grey"),
    "damaged files": (body(**png_tensors(*[png()[:-25] + b"\0" * 25] * 2)), "truncated or damaged"),
}


@pytest.mark.parametrize(("data", "message"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_body_is_refused_by_what_is_wrong_with_it(data, message):
    with pytest.raises(ValueError, match=message):
        unpack_question(data, LIMITS)


@settings(max_examples=150)
@given(data=st.data())
def test_a_body_with_bytes_changed_or_cut_off_is_read_or_refused_and_nothing_else(data):
    whole = bytearray(data.draw(st.sampled_from([body(), body(**png_tensors(png(), png()))])))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    sent = bytes(whole[: data.draw(st.integers(0, len(whole)))] if data.draw(st.booleans()) else whole)
    with suppress(ValueError):
        assert len(unpack_question(sent, LIMITS)) == 2


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (torch.zeros(9, 3, 2, 2), r"got 9 pictures, at most 8 are allowed at a time \(limits.pictures\)"),
        (torch.zeros(2, 5, 3, 2, 2), r"got 10 pictures, at most 8"),
        (torch.zeros(1, 3, 5, 13), r"a picture has 5 x 13 pixels, at most 64 are allowed \(limits.pixels\)"),
        (torch.zeros(5, 3, 8, 8), r"the pictures have 320 pixels, at most 300 are allowed at a time \(limits.total_pixels\)"),
    ],
    ids=["pictures", "frames", "pixels", "all pixels"],
)
def test_too_many_pictures_or_pixels_are_refused(samples, message):
    asked = Question(samples=samples, prompts=["a"] * len(samples), groups=torch.arange(len(samples)))
    for wire in ("float16", "png"):
        with pytest.raises(TooLargeError, match=message):
            unpack_question(pack_question(asked, wire), LIMITS)


def test_a_file_that_unpacks_to_far_more_than_it_holds_is_refused_before_it_is_unpacked():
    rows = zlib.compress(b"\0" * 1000)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)), (b"IDAT", rows), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for name, content in chunks:
        data += struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
    with pytest.raises(TooLargeError, match="a picture has 100000 x 100000 pixels"):
        unpack_question(body(about={"prompts": ["a"]}, **png_tensors(data)), LIMITS)


def test_a_grey_file_is_read_as_three_equal_channels():
    file = io.BytesIO()
    Image.new("L", (4, 3), 77).save(file, format="PNG")
    assert torch.equal(decode_png(file.getvalue()), torch.full((3, 3, 4), 77, dtype=torch.uint8))


def test_a_png_file_is_the_picture():
    levels = (pictures(1)[0] * 255).byte()
    assert torch.equal(decode_png(encode_png(levels)), levels)


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"[]",
        b"null",
        b'{"parts": {}}',
        b'{"parts": {"a": [1, 2]}}',
        b'{"parts": {"b": [1, 2]}, "reasons": {}}',
        b'{"parts": {"a": [1]}, "reasons": {}}',
        b'{"parts": {"a": [1, 2, 3]}, "reasons": {}}',
        b'{"parts": {"a": [1, "2"]}, "reasons": {}}',
        b'{"parts": {"a": [1, true]}, "reasons": {}}',
        b'{"parts": {"a": {"0": 1, "1": 2}}, "reasons": {}}',
        b'{"parts": {"a": [1, 2]}, "reasons": {"x": "y"}}',
        b'{"parts": {"a": [1, 2]}, "reasons": []}',
        b'{"parts": {"a": [1, 2',
    ],
)
def test_an_answer_that_lacks_a_score_is_refused_and_none_is_made_up(answer):
    with pytest.raises(ValueError, match="answer"):
        unpack_answer(answer, ["a"], 2)


@pytest.mark.parametrize("wire", ["float32", "float16", "uint8", "png"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_pixel_that_is_no_number_arrives_as_one_whatever_the_wire(wire, value):
    samples = pictures(2)
    samples[1, 0, 2, 3] = value
    found = unpack_question(pack_question(question(samples), wire), LIMITS).samples
    assert torch.equal(found.isfinite(), samples.isfinite())
    if wire in ("uint8", "png"):
        apart = unpack_question(pack_question(question(pictures(2)), wire), LIMITS).samples
        assert torch.equal(found[0], apart[0])  # the others are the levels that they are alone


def test_a_whole_number_that_no_float_holds_is_no_score_and_no_time():
    huge = b"1" + b"0" * 400
    answer = unpack_answer(b'{"parts": {"a": [1, %s]}, "reasons": {}}' % huge, ["a"], 2)
    assert answer.parts["a"].tolist() == [1.0, math.inf]  # and what is not finite counts as missing
    with pytest.raises(ValueError, match="'timeout_s' must be seconds > 0, got 1000"):
        unpack_question(body(about={"prompts": ["a", "b"], "timeout_s": int(huge)}), LIMITS)


def test_a_body_is_plain_safetensors_that_any_program_can_write():
    tensors = load(pack_question(question(pictures(2)), "float32"))
    assert {name: tensor.dtype for name, tensor in tensors.items()} == {
        "samples": torch.float32,
        "groups": torch.int64,
        "request": torch.uint8,
    }
    assert json.loads(bytes(tensors["request"].tolist()))["prompts"] == ["two apples", "naïve ☃"]
