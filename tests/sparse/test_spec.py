"""Codec names are read, written canonically, and refused with what is known."""

import pytest

from sparse.codecs import CodecSpec, parse_codec


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("all/float32", "all/float32"),
        ("all/float16/none", "all/float16"),
        ("mask/float32", "mask/float32"),
        ("mask/float16/none", "mask/float16"),
        ("topk:0.01/float16", "topk:0.01/float16/auto"),
        ("topk:.010/float16/rice", "topk:0.01/float16/rice"),
        ("topk:1e-5/float32/bitmap", "topk:1e-05/float32/bitmap"),
        ("topk:1/float32/auto", "topk:1/float32/auto"),
        ("topk:0.01/ternary", "topk:0.01/ternary/auto"),
        ("topk:0.01/ternary@whole/rans", "topk:0.01/ternary/rans"),
        ("topk:0.01@tensor/sign@tensor/rice@tensor", "topk:0.01@tensor/sign/rice@tensor"),
        ("topk:0.5/int4-stochastic@64/rans@tensor", "topk:0.5/int4-stochastic@64/rans@tensor"),
        ("randk:0.10/bfloat16", "randk:0.1/bfloat16"),
        ("all/int8@tensor", "all/int8"),
        ("all/qsgd:16@512", "all/qsgd:16@512"),
        ("all/drive@8192", "all/drive"),
        ("mask/sign@whole", "mask/sign@whole"),
        ("powersgd:2/float16", "powersgd:2/float16"),
    ],
)
def test_a_name_is_read_and_has_one_canonical_form(text: str, canonical: str) -> None:
    spec = parse_codec(text)
    assert str(spec) == canonical
    assert parse_codec(canonical) == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "known are all/float32"),
        ("gzip", "known are all/float32"),
        ("all", "known are all/float32"),
        ("all/float64", "'float64' is not known"),
        ("all/float32/rice", "'rice' has no place after 'all'"),
        ("mask/float32/rice", "'rice' has no place after 'mask'"),
        ("mask:0.1/float32", "known are all/float32"),
        ("topk/float32", "known are all/float32"),
        ("topk:0/float32", "above 0 and at most 1"),
        ("topk:1.5/float32", "above 0 and at most 1"),
        ("topk:nan/float32", "known are"),
        ("topk:-0.1/float32", "known are"),
        ("topk:1.2.3/float32", "is not a number"),
        ("topk:0.1/int3/rice", "'int3' is not known"),
        ("randk:0/float32", "randk fraction 0.0 must be above 0"),
        ("randk:0.1/float32/rice", "'rice' has no place after 'randk'"),
        ("randk:0.1@tensor/float32", "@tensor has no place after randk"),
        ("powersgd:0/float32", "rank 0 of powersgd must be from 1 to 64"),
        ("powersgd:65/float32", "rank 65 of powersgd must be from 1 to 64"),
        ("powersgd:1.5/float32", "powersgd rank '1.5' is not a number"),
        ("powersgd:2/int8", "not as int8"),
        ("all/ternary", "ternary is what topk leaves; after 'all' use sign@whole"),
        ("all/qsgd", "0 levels of qsgd must be from 1 to 127"),
        ("all/qsgd:128", "128 levels of qsgd must be from 1 to 127"),
        ("all/int8:5", "5 levels of int8 must be from 0 to 0"),
        ("all/sign-stochastic", "-stochastic has no place after sign"),
        ("all/float16@64", "float16 has no scale"),
        ("all/int8@4", "a block of 4 must have at least 8 values"),
        ("all/int8@1", "a block of 1 must have at least 8 values"),
        ("all/int8@row", "block 'row' is not a number"),
        ("all/drive@100", "drive@100 must be a power of two from 8 to 1048576"),
        ("all/drive@tensor", "must be a power of two"),
        ("topk:0.1/float32/none", "must be auto, rice, rans or bitmap"),
        ("topk:0.1/float32/zip", "must be auto, rice, rans or bitmap"),
        ("topk:0.1/float32/rice/x", "known are"),
        ("topk:0.1/float32\n", "known are"),
    ],
)
def test_a_wrong_name_is_refused_with_what_is_known(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=f"^codec: .*{says}"):
        parse_codec(text)


def test_an_unknown_selection_is_refused() -> None:
    with pytest.raises(ValueError, match="'some' is not known"):
        CodecSpec(selection="some")  # type: ignore[arg-type]


def test_topk_keeps_at_least_one_value_of_any() -> None:
    spec = parse_codec("topk:0.01/float32")
    assert [spec.kept(d) for d in (0, 1, 10, 149, 151, 1000)] == [0, 1, 1, 1, 2, 10]
    assert parse_codec("topk:1/float32").kept(7) == parse_codec("all/float32").kept(7) == 7
