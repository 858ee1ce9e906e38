"""What columns are called, in English and Chinese, and what that suggests. Evidence, not proof."""

from __future__ import annotations

import re

from .identifiers import Kind
from .roles import Role
from .values import clean

# Whole English words (snake_case, camelCase and plural taken apart), or a piece of a Chinese name.
_KINDS: tuple[tuple[Kind, str, str], ...] = (
    (Kind.RESIDENT_ID, "idcard idno idnumber sfz sfzh ssn passport", "身份证 证件号 证件编号 护照 公民号码"),
    (Kind.EMAIL, "email mail emailaddress", "邮箱 电子邮件 邮件地址"),
    (Kind.POSTCODE, "postcode zip zipcode postalcode plz", "邮编 邮政编码"),
    (Kind.PHONE, "phone mobile tel telephone cellphone msisdn fax sjh", "手机 电话 联系方式 移动号码"),
    (Kind.IBAN, "iban", ""),
    (Kind.CARD, "pan cardno cardnumber creditcard bankcard", "银行卡 卡号 信用卡"),
    (Kind.CREDIT_CODE, "uscc creditcode", "信用代码 营业执照"),
    (Kind.BIRTH_DATE, "birth birthday birthdate dob born csrq", "生日 出生"),
    (Kind.ADDRESS, "address addr street residence", "地址 住址 住所 收货地"),
    (
        Kind.NAME,
        "fullname firstname lastname surname realname forename givenname familyname username customername nickname xm",
        "姓名 姓氏 名字 昵称 联系人 收货人 收件人 户名",
    ),
)
_TRAITS: tuple[tuple[Role, str, str, str], ...] = (
    (
        Role.SENSITIVE,
        "health",
        "diagnosis disease illness health medical icd hiv blood disability pregnancy",
        "疾病 诊断 健康 病史 病历 血型 残疾 怀孕 过敏",
    ),
    (
        Role.SENSITIVE,
        "money",
        "salary income wage balance debt loan overdue credit asset score",
        "收入 工资 薪 余额 负债 贷款 逾期 资产 存款 信用分",
    ),
    (
        Role.SENSITIVE,
        "belief or origin",
        "religion ethnicity race political party union",
        "宗教 信仰 民族 政治面貌 党派",
    ),
    (
        Role.SENSITIVE,
        "whereabouts",
        "latitude longitude lat lng lon gps location geohash track",
        "经度 纬度 定位 轨迹 行踪",
    ),
    (Role.SENSITIVE, "biometrics", "fingerprint face iris voiceprint biometric", "指纹 人脸 虹膜 声纹"),
    (Role.SENSITIVE, "secrets", "password passwd pin secret token cvv", "密码 口令 密钥"),
    (Role.SENSITIVE, "crime", "criminal conviction offence offense", "犯罪 前科 违法"),
    (
        Role.IDENTIFYING,
        "device or account",
        "imei imsi mac idfa oaid openid unionid wechat qq weibo ip",
        "微信 设备号 账号",
    ),
    (
        Role.IDENTIFYING,
        "a customer's number",
        "customerid custid userid uid memberid clientid accountid customerno userno memberno clientno accountno",
        "客户号 客户编号 客户ID 会员号 会员编号 会员ID 用户号 用户编号 用户ID 账户号 客户代码",
    ),
    (Role.QUASI, "sex", "gender sex", "性别"),
    (Role.QUASI, "age", "age", "年龄 周岁"),
    (
        Role.QUASI,
        "place",
        "city province state county district region country town nationality birthplace",
        "省 城市 市 区县 地区 国籍 籍贯 户籍 街道",
    ),
    (
        Role.QUASI,
        "walk of life",
        "job occupation profession employer company education degree school marital children household title",
        "职业 职务 单位 公司 学历 学校 婚姻 子女 家庭",
    ),
)
_PERSONS = "customer client member user person contact patient holder"
_PUBLIC = (
    "product sku item brand category store shop channel currency branch",
    "商品 产品 品牌 品类 门店 渠道 币种 网点",
)


def _words(name: str) -> set[str]:
    """The English words of a name, and its neighbours joined: ``custIDCard_No`` has idcard and cardno."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    words = [w.lower() for w in re.findall(r"[^\W\d_]+", spaced)]
    joined = {"".join(words[i : i + n]) for i in range(len(words)) for n in (1, 2, 3)}
    return joined | {w[:-1] for w in joined if w.endswith("s")}


def _says(name: str, english: str, chinese: str) -> bool:
    return bool(_words(name) & set(english.split())) or any(piece in name for piece in chinese.split())


def kind_named(name: object) -> Kind | None:
    """The kind of identifier that a column's name speaks of."""
    text = clean(name)
    for kind, english, chinese in _KINDS:
        if _says(text, english, chinese):
            return kind
    # A name alone is of anything; with "customer" beside it, of a person.
    words = _words(text)
    person = words & set(_PERSONS.split())
    return Kind.NAME if "name" in words and (person or text.lower().strip() == "name") else None


def trait_named(name: object) -> tuple[Role, str] | None:
    """The role, and the matter, of an attribute that a column's name speaks of."""
    text = clean(name)
    for role, matter, english, chinese in _TRAITS:
        if _says(text, english, chinese):
            return role, matter
    return None


def public_named(name: object) -> bool:
    """Whether a column's name speaks of goods and places of business, which are in every catalogue."""
    return _says(clean(name), *_PUBLIC)
