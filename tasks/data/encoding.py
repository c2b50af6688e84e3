"""The bytes of a text file in, the encoding that reads them without damage out: UTF-8, then GB18030, or a refusal."""

import codecs
import re
from collections import Counter
from typing import BinaryIO, NamedTuple

from tasks.errors import InvalidData

CHUNK = 1 << 20
# Real Chinese text of any subject has far more than a tenth of its characters from this list; Western, Cyrillic,
# Japanese or Korean bytes that happen to decode as GB18030 have next to none.
COMMON = set(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然家种事成方多经"
    "么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日军者意无力它与长把机十民第公此已工使情明性知"
    "全三又关点正业外将两高间由问很最重并物手应战向头文体政美相见被利什二等产或新己制身果加西斯月话合回特代内信表化老给世位次度"
    "门任常先海通教儿原东声提立及比员解水名真论处走义各入几口认条平系气题活尔更别打女变四神总何电数安少报才结反受目太量再感建务"
    "做接必场件计管期市直德资命山金指克许统区保至队形社便空决治展马科司五基眼书非则听白却界达光放强即像难且权思王象完设式色路记"
    "请吗吃谢您查询怎样需病药医症患者状疗痛"
)
_NON_ASCII = re.compile(r"[^\x00-\x7f]")


class Encoding(NamedTuple):
    """How a file is to be decoded, and how the report says it."""

    codec: str
    label: str
    errors: str = "strict"


UTF8 = Encoding("utf-8-sig", "UTF-8")
DAMAGED_UTF8 = Encoding("utf-8-sig", "UTF-8 with damaged bytes", "replace")
GB18030 = Encoding("gb18030", "GB18030", "cp936_euro")


def _euro(fault: UnicodeError) -> tuple[str, int]:
    """Code page 936, which Chinese Windows writes, is GB18030 with the euro as byte 80."""
    if isinstance(fault, UnicodeDecodeError) and fault.object[fault.start] == 0x80:
        return "€", fault.start + 1
    raise fault


codecs.register_error(GB18030.errors, _euro)


def detect(stream: BinaryIO, name: str) -> Encoding:
    """Read a stream to its end and say how to decode it.

    A file is UTF-8 when all of it is. A file that is UTF-8 beyond doubt except for a few damaged bytes is read with
    U+FFFD in their place, so that the check on the rows finds them. Bytes that decode as GB18030 are believed only when
    what comes out is plausible Chinese. Otherwise raises InvalidData with the offset of the first byte that is wrong.
    """
    offset = _first_bad_byte(stream)
    if offset is None:
        return UTF8
    stream.seek(0)
    if _looks_damaged(stream):
        return DAMAGED_UTF8
    stream.seek(0)
    if _is_chinese(stream):
        return GB18030
    raise InvalidData(f"{name}: byte {offset}: neither UTF-8 nor plausible GB18030; save the file as UTF-8.")


def _first_bad_byte(stream: BinaryIO) -> int | None:
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    try:
        while chunk := stream.read(CHUNK):
            held = len(decoder.getstate()[0])
            decoder.decode(chunk)
            done += len(chunk)
        held = len(decoder.getstate()[0])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as fault:
        return done - held + fault.start
    return None


def _looks_damaged(stream: BinaryIO) -> bool:
    """Twenty whole multi-byte characters for every damaged place: chance does not do that."""
    counts = _characters(stream, "utf-8", "replace")
    broken = counts.pop("\ufffd", 0)
    return sum(counts.values()) >= 20 * broken


def _is_chinese(stream: BinaryIO) -> bool:
    try:
        counts = _characters(stream, GB18030.codec, GB18030.errors)
    except UnicodeDecodeError:
        return False
    common = sum(count for character, count in counts.items() if character in COMMON)
    return common >= 0.1 * sum(counts.values())


def _characters(stream: BinaryIO, codec: str, errors: str) -> Counter[str]:
    """How often each character beyond ASCII occurs."""
    decoder = codecs.getincrementaldecoder(codec)(errors)
    counts: Counter[str] = Counter()
    while chunk := stream.read(CHUNK):
        counts.update(_NON_ASCII.findall(decoder.decode(chunk)))
    counts.update(_NON_ASCII.findall(decoder.decode(b"", final=True)))
    return counts
