"""Tokens as text: read back exactly, and a slip of the hand is told without the secret."""

import pytest

from protocol.token import PREFIX, new_token, parse_token


def test_a_token_is_read_back_from_its_text() -> None:
    token = new_token(bytes(range(32)))
    assert parse_token(f" {token.text}\n") == token
    assert token.text.isalnum()
    assert token.text.startswith(PREFIX)


def test_two_tokens_are_never_the_same() -> None:
    assert len({new_token(bytes(32)).secret for _ in range(1000)}) == 1000


@pytest.mark.parametrize("place", [4, 30, 60, 85])
def test_a_wrong_character_is_noticed_and_the_token_is_not_repeated(place: int) -> None:
    text = new_token(bytes(range(32))).text
    wrong = text[:place] + ("b" if text[place] != "b" else "c") + text[place + 1 :]
    with pytest.raises(ValueError, match="a character in it is wrong") as raised:
        parse_token(wrong)
    assert text[10:20] not in str(raised.value)


@pytest.mark.parametrize("text", ["", "sft1", "x" * 86, "sft1" + "1" * 82, "sft1" + "é" * 82])
def test_what_is_no_token_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^token: "):
        parse_token(text)
