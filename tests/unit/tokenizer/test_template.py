import builtins

import pytest

from gemworks.tokenizer import TEMPLATE, is_gemma_template

GO_SIMPLE = """<start_of_turn>user
{{ if .System }}{{ .System }} {{ end }}{{ .Prompt }}<end_of_turn>
<start_of_turn>model
{{ .Response }}<end_of_turn>
"""
GO_MESSAGES = """{{- range $i, $_ := .Messages }}
{{- if or (eq .Role "user") (eq .Role "system") }}<start_of_turn>user
{{ .Content }}<end_of_turn>
{{- else if eq .Role "assistant" }}<start_of_turn>model
{{ .Content }}<end_of_turn>
{{- end }}{{- end }}"""
GO_CHATML = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
JINJA_CHATML = """{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}
{% endfor %}{{ '<|im_start|>assistant\n' }}"""
JINJA_LLAMA = "{{ bos_token }}{% for m in messages %}[INST] {{ m['content'] }} [/INST]{% endfor %}"


@pytest.fixture(params=[True, False], ids=["jinja2", "no jinja2"])
def with_jinja(request, monkeypatch):
    if request.param:
        pytest.importorskip("jinja2")
        return True
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == "jinja2":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    return False


@pytest.mark.parametrize("text", [TEMPLATE, GO_SIMPLE, GO_MESSAGES], ids=["ours", "go prompt", "go messages"])
def test_gemma_templates_are_taken(with_jinja, text):
    assert is_gemma_template(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        GO_CHATML,
        JINJA_CHATML,
        JINJA_LLAMA,
        GO_SIMPLE + "<|im_start|>",
        "<start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\n",
    ],
)
def test_other_templates_are_refused(with_jinja, text):
    assert not is_gemma_template(text)


def test_a_template_is_judged_by_what_it_renders():
    """Where jinja2 is there, looks do not count: no <bos> or no system message may be missing, nothing may differ."""
    pytest.importorskip("jinja2")
    assert is_gemma_template(TEMPLATE.replace("{{- bos_token -}}", ""))
    refusing = TEMPLATE.replace(
        "{%- set preface = (first if", "{{- raise_exception('no') -}}{%- set preface = (first if"
    )
    assert refusing != TEMPLATE
    assert is_gemma_template(refusing)
    for old, new in [
        ("else 'model')", "else 'assistant')"),
        ("'<end_of_turn>\\n'", "'<end_of_turn>'"),
        ("+ '\\n\\n' -%}", "+ '\\n' -%}"),
        ("{{- bos_token -}}", "{{- bos_token }}{{ bos_token -}}"),
        ("{%- set said = messages -%}", "{%- for i in range(10 ** 9) -%}{%- endfor -%}"),
        ("{%- set said = messages -%}", "{% broken"),
    ]:
        assert old in TEMPLATE
        assert not is_gemma_template(TEMPLATE.replace(old, new)), new
