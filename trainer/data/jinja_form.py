"""A template as the Jinja text of a tokenizer's `chat_template`, so that a server renders what was trained on. Pure.

The text is for transformers' own environment (trim_blocks, lstrip_blocks, `tojson`, `raise_exception`), which vLLM and
LMDeploy use too. It has no {% generation %} tags, which older servers do not know, and special tokens stand in it
as text: a `bos_token` renamed later changes nothing.
"""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.data.turns import TurnTemplate

_MESSAGE = "{% for message in messages %}{% set content = message['content'] or '' %}"


def jinja_text(template: "TurnTemplate") -> str:
    """The whole chat_template."""
    roles = [
        ("assistant", _answer(template)),
        ("user", _user(template)),
        ("system", _system(template)),
        ("tool", _result(template)),
    ]
    branches = "".join(
        f"{{% {'elif' if index else 'if'} message['role'] == '{role}' %}}{body}"
        for index, (role, body) in enumerate(roles)
    )
    unknown = "{% else %}{{ raise_exception('The role ' + message['role'] + ' has no form.') }}{% endif %}"
    named = _named(template)
    branches = named + branches.replace("{% if", "{% elif", 1) if named else branches
    return _opening(template) + _MESSAGE + branches + unknown + "{% endfor %}" + _closing(template)


def _literal(text: str) -> str:
    return "{{ " + _quoted(text) + " }}" if text else ""


def _quoted(text: str) -> str:
    """A Jinja string: JSON's escapes are among Jinja's."""
    return json.dumps(text, ensure_ascii=False)


def _around(before: str, after: str, content: str = "content") -> str:
    parts = [_quoted(before)] if before else []
    return "{{ " + " + ".join([*parts, content, *([_quoted(after)] if after else [])]) + " }}"


def _opening(template: "TurnTemplate") -> str:
    """What stands before the first message."""
    system, form = template.system, template.tools
    text = "{% set has_system = messages and messages[0]['role'] == 'system' %}"
    if form:
        text += "{% set ns = namespace(channel='<|plugin|>', calls=0, results=0) %}" + form.jinja_start
    text += "{% set front = namespace(due=true) %}" + _literal(template.start)
    if system.default:
        text += "{% if not has_system %}" + _literal(system.before + system.default + system.after) + "{% endif %}"
    if form and form.place == "system":
        declared = _literal(system.before) + _declared(template, "false") + _literal(system.after)
        text += "{% if tools and not has_system %}" + declared + "{% endif %}"
    if form and form.place == "turn":
        condition = "tools" if system.place == "user" else "tools and not has_system"
        text += "{% if " + condition + " %}" + form.jinja_declare + "{% endif %}"
    return text


def _declared(template: "TurnTemplate", after_system: str) -> str:
    assert template.tools
    return "{% set after_system = " + after_system + " %}" + template.tools.jinja_declare


def _system(template: "TurnTemplate") -> str:
    system, form = template.system, template.tools
    text = ""
    if system.place != "anywhere":
        refused = "{{ raise_exception('A system message is the first or none.') }}"
        text += "{% if not loop.first %}" + refused + "{% endif %}"
    if system.place == "user":
        return text
    if form and form.place == "system":
        declared = "{% if loop.first and tools %}" + _declared(template, "true") + "{% endif %}"
        return text + _around(system.before, "") + declared + _literal(system.after)
    text += _around(system.before, system.after)
    if form and form.place == "turn":
        text += "{% if loop.first and tools %}" + form.jinja_declare + "{% endif %}"
    return text


def _user(template: "TurnTemplate") -> str:
    system, form = template.system, template.tools
    text = _header(template, template.user.before)
    front = ""
    if system.place == "user":
        said = _around(system.before, system.after, "messages[0]['content']")
        front += "{% if has_system %}" + said + "{% endif %}"
    if form and form.place == "front":
        front += "{% if tools %}" + form.jinja_declare + "{% endif %}"
    if front:
        text += "{% if front.due %}" + front + "{% set front.due = false %}{% endif %}"
    return text + _around("", template.user.after)


def _header(template: "TurnTemplate", text: str) -> str:
    """Where answers end with the token that begins the next turn, it is there already."""
    if not template.shares_tokens:
        return _literal(text)
    token = next(token for token in template.required if text.startswith(token))
    there = "loop.first or messages[loop.index0 - 1]['role'] != 'assistant'"
    return "{% if " + there + " %}" + _literal(token) + "{% endif %}" + _literal(text[len(token) :])


def _answer(template: "TurnTemplate") -> str:
    header, end, after, lead, trail = template.answer
    plain = _around(header + lead, trail + end + after)
    if template.tools is None:
        refused = "{{ raise_exception('This template has no form for tool calls.') }}"
        return "{% if message['tool_calls'] %}" + refused + "{% endif %}" + plain
    call = _literal(header) + template.tools.jinja_call + _literal((template.tools.end or end) + after)
    return "{% if message['tool_calls'] %}" + call + "{% else %}" + plain + "{% endif %}"


def _result(template: "TurnTemplate") -> str:
    if template.tools is None:
        return "{{ raise_exception('This template has no form for tool results.') }}"
    if template.shares_tokens:
        return _header(template, "<|observation|>\n ") + _around("", "")
    return template.tools.jinja_result


def _named(template: "TurnTemplate") -> str:
    """Turns whose header names their channel."""
    if template.tools is None or not template.tools.jinja_named:
        return ""
    behind = "{% if loop.first and tools %}" + template.tools.jinja_declare + "{% endif %}"
    condition = "message['role'] in ['system', 'user'] and message['name'] in channels"
    return "{% if " + condition + " %}" + template.tools.jinja_named + behind


def _closing(template: "TurnTemplate") -> str:
    header = template.answer.header
    return "{% if add_generation_prompt %}" + _literal(header) + "{% endif %}" if header else ""
