"""Names of persons and postal addresses: told by lists and markers, so each finding is a guess with its share.

The shares were measured. Han names: of the 252,078 words of two to four characters that jieba 0.42.1's dictionary
does not mark as names, 5.6 % pass, weighted by frequency 7.6 %, those of three characters 8.3 %. Chinese addresses: of
100,000 strings of five words drawn from it by frequency, 0.05 %. Western ones: of 208,678 lines of numpy's source and
Debian's licences, 0.006 %, most of them the address of a foundation. Latin names have no list here: words with
capitals are a name by shape alone, `chance` 1; so are parts joined by ``·``.
"""

from __future__ import annotations

import re
from typing import Any

from .identifiers import Finding, Kind
from .values import clean

# The commonest of the mainland by the Ministry of Public Security's reports on names (2019–2021): more than 95 % of
# people. Beyond the first hundred the order is of no consequence.
SURNAMES = frozenset(
    "王李张刘陈杨黄赵吴周徐孙马朱胡郭何林高罗郑梁谢宋唐许韩邓冯曹彭曾肖田董潘袁蔡蒋余于杜叶程魏苏吕丁任卢姚沈钟姜崔谭陆"
    "范汪廖石金韦贾夏付方邹熊白孟秦邱侯江尹薛闫段雷龙黎史陶贺毛郝顾龚邵万覃武钱戴严莫孔向常汤康易乔赖文牛樊葛洪施殷"
    "伍倪岳安柴齐梅庄俞章鲁柳苗盛俸阎季曲焦庞温欧解左关童游辛辜聂管阮路裴骆涂申申屠翁耿霍纪舒詹尚兰符车凌柯毕项单"
    "祝鲍宁卓蓝邢靳甘晏蒲骆阳麦匡冉巩鄢谷费卜屈包植成戚卞明储邬苑冷植褚司娄闵沙隋臧查柏古桂艾仇党佟褟应窦楚原边"
    "竺郎虞冼揭丛岑邝蔺糜滕宫花晋鞠房姬丘代米瞿车迟乐国初战肇劳商鹿池宿郁桑阚占甄敖粟巫牟庾於"
)
_COMPOUND = (
    "欧阳 太史 上官 端木 司马 东方 独孤 南宫 万俟 闻人 夏侯 诸葛 尉迟 公羊 赫连 澹台 皇甫 宗政 濮阳 公冶 太叔 申屠 公孙 慕容 "
    "仲孙 钟离 长孙 宇文 司徒 鲜于 司空 令狐 呼延 轩辕 百里 东郭 南门 西门 拓跋 完颜 纳兰 爱新觉罗"
)
COMPOUND_SURNAMES = frozenset(_COMPOUND.split())
_HAN = r"[\u3400-\u4dbf\u4e00-\u9fff]"
_HAN_NAME = re.compile(rf"{_HAN}{{2,4}}")
_DOTTED = re.compile(rf"{_HAN}{{1,10}}(?:[·•・‧]{_HAN}{{1,10}}){{1,4}}")
_TITLE = re.compile(r"(?:mr|mrs|ms|miss|dr|prof|herr|frau|mme|m)\.? ", re.IGNORECASE)
_LATIN_WORD = r"(?:[^\W\d_](?:['’\-]?[^\W\d_])+|[^\W\d_]\.?)"
_LATIN_NAME = re.compile(rf"{_LATIN_WORD}(?:,? {_LATIN_WORD}){{1,4}}")
_PARTICLE = "de da do dos del della di du la le van von der den ter bin binti al el y e i zu"
_PARTICLES = frozenset(_PARTICLE.split())

CHANCE_HAN_NAME, CHANCE_HAN_ADDRESS, CHANCE_WESTERN_ADDRESS = 0.083, 0.001, 0.0001


def person_name(value: Any) -> Finding | None:
    """A person's name by its form: a common Chinese surname and one or two characters; parts joined by ``·``; Latin words.

    Canonical: NFKC, one space between words, case folded.
    """
    text = " ".join(clean(value).split())
    joined = text.replace(" ", "")
    if _HAN_NAME.fullmatch(joined):
        for surname in (joined[:4], joined[:2], joined[:1]):
            known = surname in (SURNAMES if len(surname) == 1 else COMPOUND_SURNAMES)
            if known and 1 <= len(joined) - len(surname) <= 2:
                return Finding(Kind.NAME, "surname and given name", CHANCE_HAN_NAME, joined)
        return None
    if _DOTTED.fullmatch(text):
        return Finding(Kind.NAME, "parts joined by ·", 1.0, re.sub("[•・‧]", "·", text))
    bare = _TITLE.sub("", text)
    words = bare.replace(",", "").split()
    if not _LATIN_NAME.fullmatch(bare) or not any(len(w.strip(".")) > 1 for w in words):
        return None
    if not all(w[0].isupper() or w.lower() in _PARTICLES for w in words) or not words[0][0].isalpha():
        return None
    return Finding(Kind.NAME, "words with capitals", 1.0, " ".join(words).casefold())


_PLACES = re.compile(
    r"^(?:中国)?(?:北京|天津|上海|重庆|河北|山西|辽宁|吉林|黑龙江|江苏|浙江|安徽|福建|江西|山东|河南|湖北|湖南|广东|海南|四川|贵州|云南|陕西|甘肃|青海|台湾"
    r"|内蒙古|广西|西藏|宁夏|新疆|香港|澳门)"
)
_LEVELS = (  # from the country down to the door; each counts once
    re.compile(rf"{_HAN}(?:省|自治区|特别行政区)"),
    re.compile(rf"{_HAN}(?:市|自治州|地区|盟)"),
    re.compile(rf"{_HAN}(?:区|县|旗)"),
    re.compile(rf"{_HAN}(?:镇|乡|街道|苏木)"),
    re.compile(rf"{_HAN}(?:村|社区|小区|花园|新村|公寓|大厦|广场)"),
    re.compile(rf"[{_HAN[1:-1]}0-9](?:大道|大街|路|街|巷|弄|胡同|里)"),
    re.compile(r"[0-9一二三四五六七八九十百甲乙-](?:号|號)"),
    re.compile(r"[0-9一二三四五六七八九十A-Za-z甲乙-](?:号?楼|栋|幢|座|单元|层|室|户|组|队)"),
)
_STREET = (
    r"street|st|avenue|ave|road|rd|lane|ln|drive|dr|boulevard|blvd|court|ct|square|sq|terrace|way|place|pl|highway|hwy|"
    r"parkway|crescent|close|quay"
)
_WESTERN = (
    re.compile(  # what follows is the end, a comma or a town: "12 months in the way of" is no address
        rf"(?:^|, ?)[0-9]{{1,5}}[A-Za-z]?,? (?:[^\W\d_][\w.'’-]* ){{1,4}}(?i:{_STREET})(?=$|[,.]|\s+[A-Z0-9#])"
    ),
    re.compile(r"(?:straße|strasse|str\.|gasse|platz|allee|weg) ?[0-9]{1,4}[a-z]?\b", re.IGNORECASE),
    re.compile(
        r"\b[0-9]{1,4},? (?:bis |ter )?(?:rue|avenue|boulevard|place|chemin|quai) (?:d|l)?[^\W\d_]",
        re.IGNORECASE,
    ),
    re.compile(
        r"\b(?:calle|via|viale|piazza|rua|avenida|plaza|corso) (?:[^\W\d_][\w.'’-]* ?){1,5},? ?[0-9]{1,4}\b",
        re.IGNORECASE,
    ),
    re.compile(r"\bp\.? ?o\.? ?box [0-9]+", re.IGNORECASE),
)


def address(value: Any) -> Finding | None:
    """A postal address: Chinese, by levels from province down to door, one of them below the town; Western, by street and number.

    Canonical: NFKC without spaces (Chinese), or with single ones, case folded. Two spellings of one place stay two.
    """
    text = " ".join(clean(value).split())
    if not 6 <= len(text) <= 200:
        return None
    joined = text.replace(" ", "")
    if re.search(_HAN, joined):
        levels = [bool(level.search(joined)) for level in _LEVELS]
        found = sum(levels) + bool(_PLACES.match(joined))
        if found >= 3 or (found == 2 and any(levels[5:]) and any(levels[6:])):
            return Finding(Kind.ADDRESS, f"Chinese, {found} levels", CHANCE_HAN_ADDRESS, joined.casefold())
        return None
    if len(text) <= 120 and any(shape.search(text) for shape in _WESTERN):
        return Finding(Kind.ADDRESS, "street and number", CHANCE_WESTERN_ADDRESS, text.casefold())
    return None
