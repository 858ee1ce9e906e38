"""What the pages say, in English and Chinese: one table, so that no sentence is in one language only."""

from __future__ import annotations

from collections.abc import Mapping

Said = tuple[str, str]
LANGUAGES = ("en", "zh")

TEXTS: Mapping[str, Said] = {
    "title": ("Your data, your rights", "您的数据与权利"),
    "skip": ("To the content", "跳到正文"),
    "language": ("中文", "English"),
    "sign_in": ("Sign in", "登录"),
    "sign_out": ("Sign out", "退出"),
    "overview": ("Overview", "总览"),
    "know": ("What is kept", "知情"),
    "choose": ("Choose", "选择"),
    "access": ("See your data", "查阅"),
    "correct": ("Correct", "更正"),
    "delete": ("Delete", "删除"),
    "requests": ("Requests", "我的请求"),
    "lead": (
        "Here you can see what {name} keeps about you, decide what it may be used for, and have it corrected or deleted. It costs nothing.",
        "您可以在此查看{name}保存了您的哪些信息、决定信息的用途，并要求更正或删除。行使权利不收取费用。",
    ),
    "rights_head": ("What you are entitled to", "您享有的权利"),
    "right_know": (
        "Know what is kept, why, and for how long — PIPL art. 17, 44; GDPR art. 13–15",
        "知情：了解处理的信息种类、目的和保存期限 —《个人信息保护法》第十七条、第四十四条；GDPR 第13至15条",
    ),
    "right_choose": (
        "Agree or withdraw, purpose by purpose, at any time; nothing is withheld from you for it — PIPL art. 14–16; GDPR art. 7",
        "决定：您可随时逐项同意或者撤回同意，不因此被拒绝服务 —《个人信息保护法》第十四至十六条；GDPR 第7条",
    ),
    "right_access": (
        "See your data and take it along — PIPL art. 45; GDPR art. 15, 20",
        "查阅、复制和转移您的个人信息 —《个人信息保护法》第四十五条；GDPR 第15条、第20条",
    ),
    "right_correct": (
        "Have it corrected — PIPL art. 46; GDPR art. 16",
        "更正、补充不准确的信息 —《个人信息保护法》第四十六条；GDPR 第16条",
    ),
    "right_delete": (
        "Have it deleted — PIPL art. 47; GDPR art. 17",
        "删除您的个人信息 —《个人信息保护法》第四十七条；GDPR 第17条",
    ),
    "right_explain": (
        "Have the models explained — PIPL art. 24, 48; GDPR art. 22",
        "要求对自动化决策和处理规则作出说明 —《个人信息保护法》第二十四条、第四十八条；GDPR 第22条",
    ),
    "fifteen": (
        "A request is answered within 15 working days. If it is refused you are told why, and may complain or sue.",
        "请求将在十五个工作日内答复。拒绝请求的，会说明理由；您可以投诉或者依法提起诉讼。",
    ),
    "who": ("Customer number", "客户编号"),
    "send_code": ("Send me a code", "发送验证码"),
    "sign_in_lead": (
        "Give your customer number. A code is sent to the telephone or address that we have for it.",
        "请输入客户编号，验证码将发送至该编号登记的手机或邮箱。",
    ),
    "code": ("Code of 8 digits", "八位验证码"),
    "code_lead": (
        "If that number is one of ours, a code is on its way. It is good for ten minutes and can be used once.",
        "如果该编号存在，验证码已发送。验证码十分钟内有效，仅可使用一次。",
    ),
    "code_wrong": (
        "That is not the code, or it is too old. After five attempts you need a new one.",
        "验证码错误或已过期。连续五次错误后请重新获取。",
    ),
    "again": ("Send another code", "重新发送验证码"),
    "too_many": ("Too many attempts. Try again later.", "尝试次数过多，请稍后再试。"),
    "welcome": ("You are signed in as {subject}", "您已登录：{subject}"),
    "what": ("What", "内容"),
    "why": ("Why", "目的"),
    "categories": ("Kinds of data", "信息种类"),
    "how_long": ("Kept for at most", "最长保存期限"),
    "days": ("{n} days", "{n} 天"),
    "by_duty": ("longer, by duty: {kept}", "依法保存三年以上"),
    "records": ("Records", "记录数"),
    "models_head": ("Models your data went into", "您的数据参与的模型"),
    "purpose": ("Purpose", "目的"),
    "state": ("State", "状态"),
    "since": ("Since", "自"),
    "agree": ("Agree", "同意"),
    "withdraw": ("Withdraw", "撤回同意"),
    "notice": ("The notice, version {version}", "告知书，版本 {version}"),
    "separate": (
        "This is sensitive data. I agree to it separately.",
        "本项涉及敏感个人信息，我单独同意。",
    ),
    "desk_only": (
        "For this purpose we need your date of birth, or your guardian's consent: please ask at the desk.",
        "该项同意需要核实出生日期或由监护人作出，请到服务台办理。",
    ),
    "receipt": ("Receipt of my last consent", "最近一次同意的回执"),
    "absence": ("Proof of which computations I was in, and which not", "参与及未参与计算的证明"),
    "withdrawn_done": (
        "Withdrawn. Nothing more is computed with your data for it, from the next step on.",
        "已撤回。自下一批次起，不再为该目的使用您的数据。",
    ),
    "granted_done": ("Noted: you agree.", "已记录您的同意。"),
    "download": ("Take it along (JSON)", "下载副本（JSON）"),
    "nothing": ("Nothing is kept here.", "此处没有您的信息。"),
    "place": ("Where", "位置"),
    "field": ("Field", "字段"),
    "new_value": ("Right value", "正确的内容"),
    "old_value": ("Value that is wrong (if there are several)", "错误的内容（如有多个）"),
    "correct_lead": (
        "Say what is wrong. What can be corrected here is corrected at once; the rest goes to our staff.",
        "请说明错误之处。可在线更正的立即更正，其余转交工作人员处理。",
    ),
    "correct_button": ("Correct it", "提交更正"),
    "corrected": ("{n} records were corrected.", "已更正 {n} 条记录。"),
    "queued": (
        "Our staff must do this. You have an answer by {due}; see Requests.",
        "该请求需要工作人员处理，将于 {due} 前答复，请查看“我的请求”。",
    ),
    "delete_lead": ("This is what happens if you go on:", "如果继续，将会："),
    "delete_data": (
        "What is kept about you is deleted, or ordered deleted, at every place under “What is kept”.",
        "“知情”页所列各处的您的信息将被删除，或责令删除。",
    ),
    "delete_duty": (
        "Proof of consents and requests must be kept for three years. It stays, under a number that names you no more.",
        "同意和请求的证明须依法保存三年，将以不能识别您的编号保存。",
    ),
    "delete_models": (
        "A model can't forget. These are the ones you may have gone into, and what is done about each:",
        "模型无法“遗忘”。以下为可能使用过您数据的模型及处理方式：",
    ),
    "delete_end": ("It can't be undone, and you are signed out.", "删除不可恢复，完成后将自动退出。"),
    "delete_sure": ("I want my data deleted", "我确认删除我的信息"),
    "delete_button": ("Delete", "删除"),
    "delete_confirm": ("Tick the box first: it can't be undone.", "请先勾选确认：删除不可恢复。"),
    "deleted": (
        "Done. {told}",
        "已完成。您的信息已在此处删除；依法保存的记录不再识别您。公司自有数据表中的内容由公司删除且不再使用。",
    ),
    "refused": ("This is refused for now: {reason}", "目前不能办理：{reason}"),
    "opened": ("Asked on", "提出日期"),
    "due": ("Answered by", "答复期限"),
    "reason": ("Answer", "答复"),
    "kind": ("Request", "请求"),
    "none_yet": ("You have asked for nothing yet.", "您尚未提出请求。"),
    "ask_explain": ("Ask our staff to explain the models", "请工作人员说明模型"),
    "wrong_form": (
        "This form is too old, or did not come from this site. Go back and try again.",
        "表单已过期或来源不正确，请返回重试。",
    ),
    "not_found": ("There is no such page.", "页面不存在。"),
    "fault": ("Something went wrong on our side. Nothing was changed half.", "系统出错，未作部分更改。"),
    "footer": (
        "Your data stays with {name}. Only sums of many customers, with noise in them, ever leave.",
        "您的数据保留在{name}。对外仅提供加入噪声的多人汇总结果。",
    ),
    "state_given": ("agreed", "已同意"),
    "state_withdrawn": ("withdrawn", "已撤回"),
    "state_expired": ("expired", "已过期"),
    "state_never asked": ("not agreed", "未同意"),
    "state_requested": ("not yet", "尚未生效"),
    "state_open": ("waiting", "待处理"),
    "state_in_progress": ("in progress", "处理中"),
    "state_done": ("done", "已完成"),
    "state_refused": ("refused", "已拒绝"),
    "kind_know": ("what is kept", "知情"),
    "kind_choose": ("choice", "选择"),
    "kind_access": ("access", "查阅"),
    "kind_correct": ("correction", "更正"),
    "kind_delete": ("deletion", "删除"),
    "kind_withdraw": ("withdrawal", "撤回同意"),
    "kind_explain": ("explanation", "说明"),
    "fate_bound": ("kept; what it can tell of one person is bounded", "保留；对单个客户的泄露有上限"),
    "fate_retrain": ("to be trained again without you", "将在不含您数据的情况下重新训练"),
    "fate_retire": ("used no more", "停止使用"),
}


def say(key: str, language: str, **values: object) -> str:
    """A text in a language (`en` unless it is `zh`)."""
    return TEXTS[key][language == "zh"].format(**values)
