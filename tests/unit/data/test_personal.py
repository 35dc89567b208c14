import re
import time

import pytest

from gemworks.data.personal import find_personal, is_card, is_iban, mask_personal


def masked(text):
    return mask_personal(text, find_personal(text))


# IBANs and cards are the published examples of their standards; tokens are letters in a row.
@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Write to ann.b+c@mail.host-1.co.uk, now.", "email"),
        ("M\u00fcller: m\u00fcller@stra\u00dfe.de!", "email"),
        ("Call +49 30 1234567 today.", "phone"),
        ("Call +44 (0)20 7946 0958 today.", "phone"),
        ("or (212) 555-0143 after six", "phone"),
        ("or 212-555-0143 after six", "phone"),
        ("Tel.: 030/1234567 in the morning", "phone"),
        ("pay GB82 WEST 1234 5698 7654 32 now", "iban"),
        ("pay DE89370400440532013000 now", "iban"),
        ("NO93 8601 1117 947 is short", "iban"),
        ("card 4111 1111 1111 1111 was", "card"),
        ("card 378282246310005 was", "card"),
        ("card 5500-0000-0000-0004 was", "card"),
        ("from 93.184.216.34, at night", "ip"),
        ("from 2a02:8071:22c:1a00::5f at night", "ip"),
        ("key AKIAQ3EGRTYUIOPLKJHG here", "key"),
        ("key ghp_abcdefghijklmnopqrstuvwxyz0123456789 here", "key"),
        ('api_key = "f81hGk2mQx9Lw0Zt7" here', "key"),
        ("-----BEGIN RSA PRIVATE KEY-----\n" + "QUJD" * 20 + "\n-----END RSA PRIVATE KEY-----", "key"),
    ],
)
def test_personal_data_is_found_and_masked_by_kind(text, kind):
    found = find_personal(text)
    assert [one.kind for one in found] == [kind]
    assert f"[{kind}]" in masked(text)
    assert text[: found[0].start] + text[found[0].end :] == masked(text).replace(f"[{kind}]", "")


@pytest.mark.parametrize(
    "text",
    [
        "someone@example.com and git@host.org:path/x and a @ b",
        "ssh://user@host.org/x",
        "on 2003-04-12, 12.04.2003 and 1914-1918",
        "population 19,674,004 (2025 estimate), 12 345 678",
        "GB82 WEST 1234 5698 7654 33 and DE8937040044053201300",
        "4111 1111 1111 1112 and 0000 0000 0000 0000 and 1234567812345670",
        "10.0.0.1, 192.168.7.7, 127.0.0.1, 203.0.113.9, 255.255.255.0, 224.0.0.1, 300.1.1.1",
        "version 10.4.21.7, v2.3.45.6, Firefox/12.0.0.11, 1.2.3.4",
        "::1, fe80::1, 2001:db8::7, std::vector, 12:30:45",
        "password = os.environ['APP_PASSWORD'], api_key = get_key(name), token = aaaaaaaaaaaaaaaa",
        "ISBN 978-3-16-148410-0, pi 3.14159265358979",
    ],
)
def test_what_only_looks_like_it_stays(text):
    assert masked(text) == text


def test_check_digits_by_hand():
    """4539 1488 0343 6467: 8+5+6+9+2+4+7+8+0+3+8+3+3+4+3+7 = 80 by Luhn. Any single digit changed is refused."""
    assert is_card("4539148803436467")
    for i in range(16):
        assert not is_card(
            "4539148803436467"[:i] + str((int("4539148803436467"[i]) + 1) % 10) + "4539148803436467"[i + 1 :]
        )
    assert is_iban("GB82 WEST 1234 5698 7654 32")
    assert not is_iban("GB28 WEST 1234 5698 7654 32")
    assert not is_iban("XX82 WEST 1234 5698 7654 32")


def test_several_kinds_in_one_text_keep_what_is_between():
    assert masked("a x@y.org b +49 30 1234567 c 93.184.216.34 d") == "a [email] b [phone] c [ip] d"


@pytest.mark.parametrize("piece", ["a", "1 ", "a.", "1.", ":", "(", "+1", "A1", "-", "@", "a@a."])
def test_no_text_makes_a_pattern_slow(piece):
    """100 kB of what patterns begin with: a second at the most, so no pattern is worse than linear by much."""
    started = time.process_time()
    find_personal(piece * (100_000 // len(piece)))
    assert time.process_time() - started < 2.0


def test_masks_are_never_personal_themselves():
    text = masked("x@y.org, +49 30 1234567")
    assert masked(text) == text
    assert re.fullmatch(r"\[email\], \[phone\]", text)
