"""FF1 (NIST SP 800-38G, 2016): encryption that keeps a format, for where a phone must stay a phone.

A pseudonym (`pseudonyms`) is the better answer wherever a text of another form will do: it can't be turned back, is wider
than the data, and carries its key's version. FF1 is for the old system that takes eleven digits and nothing else.

**What it does not do.** It is deterministic: equal values stay equal, counts can be counted. Whoever holds the key has
the data: what it makes is personal data. And what it makes looks real because it is of the real space: an encrypted phone
may be somebody's phone. Never dial it, never write to it, say in the table's description what it is.

**FF3 is not offered.** Its round function broke (Durak and Vaudenay 2017; Hoang, Tessaro and Trieu 2018), FF3-1
was the repair, Beyne broke that too (2021), and NIST took it out: SP 800-38G rev. 1, second draft, February 2025.
The same draft asks for radix^length ≥ 10^6, which is enforced here: on smaller domains FF1 falls to a codebook, too.

Ours, on `cryptography`'s AES; step numbers are those of Algorithms 7 and 8. Tested by NIST's nine samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from ...errors import InputError
from .identifiers import e164, id_check, id_shape

DOMAIN = 10**6  # radix^length at least
MOST_NUMERALS = 4096
DIGITS = "0123456789"


class FF1:
    """FF1 with one key and alphabet. Prints no key and is not pickled; one thread at a time.

    Args:
        key: 16, 24 or 32 bytes; `Keyring.derived("ff1", purpose, kind)` gives 32.
        radix: 2 to 2^16, the size of the alphabet of numerals 0 … radix − 1.

    Raises:
        InputError: neither.
    """

    def __init__(self, key: bytes, radix: int) -> None:
        if len(key) not in (16, 24, 32):
            raise InputError(f"an AES key has 16, 24 or 32 bytes, not {len(key)}")
        if not 2 <= radix <= 2**16:
            raise InputError(f"radix {radix}: FF1 has 2 to 65536")
        self.radix = radix
        # ECB block by block is CBC-MAC's own loop below; nothing is encrypted in this mode.
        self._block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305

    def encrypt(self, numerals: Sequence[int], tweak: bytes = b"") -> list[int]:
        """Numerals in, as many out (Algorithm 7).

        Args:
            tweak: what stands beside the value and is known, such as the part that is kept; not a secret.

        Raises:
            InputError: a numeral outside the radix, fewer than 10^6 values of this length, or more than 4096 numerals.
        """
        return self._feistel(numerals, tweak, decrypt=False)

    def decrypt(self, numerals: Sequence[int], tweak: bytes = b"") -> list[int]:
        """What `encrypt` was given (Algorithm 8). Errors as there."""
        return self._feistel(numerals, tweak, decrypt=True)

    def encrypt_text(self, text: str, alphabet: str = DIGITS, tweak: bytes = b"") -> str:
        """`encrypt` over characters: the numeral of a character is its place in `alphabet`.

        Raises:
            InputError: as `encrypt`; an alphabet of another size, or a character outside it.
        """
        return "".join(alphabet[i] for i in self.encrypt(self._numerals(text, alphabet), tweak))

    def decrypt_text(self, text: str, alphabet: str = DIGITS, tweak: bytes = b"") -> str:
        """What `encrypt_text` was given. Errors as there."""
        return "".join(alphabet[i] for i in self.decrypt(self._numerals(text, alphabet), tweak))

    def _numerals(self, text: str, alphabet: str) -> list[int]:
        places = {c: i for i, c in enumerate(alphabet)}
        if len(alphabet) != self.radix or len(places) != self.radix:
            raise InputError(f"an alphabet of {len(places)} different characters, for radix {self.radix}")
        if not set(text) <= set(alphabet):
            raise InputError("a character is outside the alphabet")  # which one would be a piece of the value
        return [places[c] for c in text]

    def _feistel(self, numerals: Sequence[int], tweak: bytes, *, decrypt: bool) -> list[int]:
        n, radix = len(numerals), self.radix
        if n > MOST_NUMERALS or n < 2 or radix**n < DOMAIN:
            raise InputError(
                f"{n} numerals of radix {radix}: FF1 needs 10^6 values, and takes {MOST_NUMERALS} numerals at most",
                remedy="use a keyed pseudonym for small domains",
            )
        if not all(0 <= x < radix for x in numerals):
            raise InputError(f"a numeral is outside 0 … {radix - 1}")
        u = n // 2  # 1
        v = n - u
        a, b = _number(numerals[:u], radix), _number(numerals[u:], radix)  # 2
        width = ((radix**v - 1).bit_length() + 7) // 8  # 3: b, exact: ⌈v·log2(radix)⌉ is radix^v − 1's bits
        d = 4 * -(-width // 4) + 4  # 4
        p = (  # 5
            b"\x01\x02\x01"
            + radix.to_bytes(3)
            + b"\x0a"
            + bytes([u % 256])
            + n.to_bytes(4)
            + len(tweak).to_bytes(4)
        )
        start = self._block.update(p)
        head = tweak + bytes((-len(tweak) - width - 1) % 16)
        sizes = (radix**u, radix**v)
        for i in reversed(range(10)) if decrypt else range(10):  # 6
            kept = a if decrypt else b
            r = self._mac(start, head + bytes([i]) + kept.to_bytes(width))  # 6.i, 6.ii
            s = r
            for j in range(1, -(-d // 16)):  # 6.iii
                s += self._block.update(_xor(r, j.to_bytes(16)))
            y = int.from_bytes(s[:d])  # 6.iv
            size = sizes[i % 2]  # 6.v
            if decrypt:  # 6.vi – 6.ix
                a, b = (b - y) % size, a
            else:
                a, b = b, (a + y) % size
        return [*_digits(a, radix, u), *_digits(b, radix, v)]  # 7

    def _mac(self, state: bytes, data: bytes) -> bytes:
        """PRF (Algorithm 6): CBC-MAC, its first block done."""
        for i in range(0, len(data), 16):
            state = self._block.update(_xor(state, data[i : i + 16]))
        return state

    def __repr__(self) -> str:
        return f"FF1(radix {self.radix})"

    def __reduce__(self) -> Any:
        raise TypeError("keys are not to be pickled")


def _xor(x: bytes, y: bytes) -> bytes:
    return (int.from_bytes(x) ^ int.from_bytes(y)).to_bytes(16)


def _number(numerals: Sequence[int], radix: int) -> int:
    total = 0
    for x in numerals:
        total = total * radix + x
    return total


def _digits(number: int, radix: int, length: int) -> list[int]:
    found = []
    for _ in range(length):
        number, x = divmod(number, radix)
        found.append(x)
    return found[::-1]


# ── formats ──────────────────────────────────────────────────────────────────────────────────────


class MobileNumbers:
    """Mainland mobile numbers to mainland mobile numbers: three digits stay, eight are encrypted under them.

    The network's three digits are shown, and 10^8 numbers behind them are the whole domain. Output: eleven digits.

    Args:
        key: as `FF1`.
    """

    def __init__(self, key: bytes) -> None:
        self._cipher = FF1(key, 10)

    def encrypt(self, value: Any) -> str:
        """Raises InputError unless it is a mainland mobile number."""
        return self._changed(value, self._cipher.encrypt_text)

    def decrypt(self, value: Any) -> str:
        """The eleven digits that were encrypted. Errors as `encrypt`."""
        return self._changed(value, self._cipher.decrypt_text)

    def _changed(self, value: Any, step: Any) -> str:
        number = e164(value)
        if len(number) != 14 or not number.startswith("+861"):
            raise InputError("a value is not a mainland mobile number")
        head, tail = number[3:6], number[6:]
        return head + str(step(tail, tweak=f"CN mobile {head}".encode()))


class ResidentIds:
    """Resident identity numbers to numbers of their form: region kept, birth date and sequence encrypted, check recomputed.

    The region's six digits are shown, and sex is not kept. A birth date is one of those between `first` and `last`, which
    must be the same to decrypt: they are in the tweak. Days × 1000 sequence numbers are the domain (4.6·10^7 by
    default), reached by walking FF1's cycle on eight digits until a value falls in it (Black and Rogaway 2002).

    Args:
        key: as `FF1`.
        first, last: the birth dates there may be.

    Raises:
        InputError: fewer than 1,000 days (a domain under 10^6), or more than 10^5.
    """

    def __init__(
        self, key: bytes, *, first: date = date(1900, 1, 1), last: date = date(2025, 12, 31)
    ) -> None:
        self._days = (last - first).days + 1
        if not 1000 <= self._days <= 10**5:
            raise InputError(f"{self._days} days of birth: FF1 over eight digits needs 1,000 to 100,000")
        self._first, self._cipher = first, FF1(key, 10)
        self._range = f"CN resident {first} {last} "

    def encrypt(self, value: Any) -> str:
        """18 characters; 15 digits become 18.

        Raises:
            InputError: not of the form, a check character that does not fit (it could not be brought back), or another birth date.
        """
        return self._changed(value, self._cipher.encrypt_text)

    def decrypt(self, value: Any) -> str:
        """The 18 characters that were encrypted. Errors as `encrypt`."""
        return self._changed(value, self._cipher.decrypt_text)

    def _changed(self, value: Any, step: Any) -> str:
        text = id_shape(value)
        if not text or id_check(text[:17]) != text[17]:
            raise InputError("a value is not a resident identity number, or its check character does not fit")
        try:
            born = date(int(text[6:10]), int(text[10:12]), int(text[12:14]))
        except ValueError:
            born = date.min
        day = (born - self._first).days
        if not 0 <= day < self._days:
            raise InputError(f"a birth date is not one of the {self._days} days from {self._first}")
        tweak = (self._range + text[:6]).encode()
        number = day * 1000 + int(text[14:17])
        while True:
            number = int(step(f"{number:08}", tweak=tweak))
            if number < self._days * 1000:
                break
        day, sequence = divmod(number, 1000)
        body = f"{text[:6]}{self._first + timedelta(days=day):%Y%m%d}{sequence:03}"
        return body + id_check(body)
