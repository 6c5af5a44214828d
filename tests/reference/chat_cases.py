"""Random conversations for chat.py and make_chat_golden.py: every branch of Qwen3's chat template, and what
makes it raise. A case is (JSON value, enable_thinking, add_generation_prompt)."""
import random

CONTROL = ["<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>",
           "</tool_response>", "<|endoftext|>"]
WORDS = ["a", "Hello", "how", "2", "17", "\n", "\n\n", "\n\n\n", " ", "  ", "\t", "\r\n", "\u00e9", "e\u0301", "\u4f60\u597d", "\U0001f600",
         "\u0000", "\u007f", "\u001b", "\u2028", "\u00a0", "\"", "'", "\\", "</", "<", "&lt;", "{{ x }}", "{% if %}", "user\n", "think",
         "</think", "\ufffd", "\u0903", "\u0085"]
SCALARS = [None, True, False, 0, 1, -1, -0.0, 0.0, 1.0, 1e5, 1e16, 1e-5, 1.5e300, 5e-324, 123456789012345678901234567890, 0.1, 1e22, 2.5e-8]


class Cases:
    def __init__(self, seed):
        self.r = random.Random(seed)

    def chance(self, p):
        return self.r.random() < p

    def text(self, longest=6):
        r = self.r
        parts = [r.choice(CONTROL if self.chance(0.25) else WORDS) for _ in range(r.randint(0, longest))]
        return "".join(parts)

    def value(self, depth=3):
        """Any JSON value."""
        r = self.r
        kind = r.randint(0, 5 if depth else 2)
        if kind == 0:
            return r.choice(SCALARS)
        if kind == 1:
            return self.text(4)
        if kind == 2:
            return r.choice([r.randint(-10**6, 10**6), r.uniform(-1, 1) * 10.0 ** r.randint(-20, 20), r.random()])
        if kind == 3:
            return [self.value(depth - 1) for _ in range(r.randint(0, 3))]
        return self.object(depth - 1)

    def object(self, depth=2):
        return {self.text(3) + str(i): self.value(depth) for i in range(self.r.randint(0, 3))}

    def call(self):
        r = self.r
        call = {}
        for key in r.sample(["name", "arguments", "id", "type"], 4):
            if key == "name" and not self.chance(0.05):
                call[key] = self.text(3) if not self.chance(0.05) else self.value(1)
            elif key == "arguments" and not self.chance(0.03):
                call[key] = self.text(4) if self.chance(0.3) else self.value() if self.chance(0.3) else self.object()
            elif key in ("id", "type"):
                call[key] = "x"
        if self.chance(0.6):
            call = {"type": "function", "function": call}
        elif self.chance(0.1):
            call["function"] = r.choice([None, {}, "", 0, False, [], "f", 1])
        return call

    def assistant(self):
        r = self.r
        m = {"role": "assistant"}
        body = self.text()
        style = r.randint(0, 5)
        if style == 0:
            body = "<think>\n" + self.text(4) + "\n</think>\n\n" + body
        elif style == 1:
            body = self.text(3) + "</think>" + "\n" * r.randint(0, 3) + body
        m["content"] = body
        if self.chance(0.35):
            key = r.choice(["reasoning_content"] * 6 + ["thinking", "reasoning"])
            m[key] = "\n" * r.randint(0, 2) + self.text(4) + "\n" * r.randint(0, 2)
            if self.chance(0.1):
                m[key] = r.choice([None, "", 0, False, [], {}, 5, ["x"], True])
            if self.chance(0.1):
                m[r.choice(["thinking", "reasoning"])] = self.text(2)
        if self.chance(0.35):
            m["tool_calls"] = [self.call() for _ in range(r.randint(0, 3))]
            if self.chance(0.05):
                m["tool_calls"] = r.choice([None, {}, "", 0, False, "x", 3, True, {"a": 1}, [None], ["x"], [[]]])
        return m

    def message(self):
        r = self.r
        role = r.choices(["user", "assistant", "tool", "system", "developer"], [4, 5, 4, 1, 0.3])[0]
        if role == "assistant":
            m = self.assistant()
        else:
            m = {"role": role, "content": self.text()}
            if role == "user" and self.chance(0.25):
                m["content"] = "<tool_response>" + self.text(3) + ("</tool_response>" if self.chance(0.8) else "")
            if role == "tool" and self.chance(0.15):
                m["content"] = self.value()
        if self.chance(0.02):
            del m["content"]
        elif self.chance(0.02):
            m["content"] = self.value()
        if self.chance(0.01):
            m["role"] = r.choice([None, 1, "User", "", "tool\u0000"])
        if self.chance(0.1):
            m[r.choice(["name", "id", "tool_call_id", "extra"])] = self.value(1)
        return m

    def tool(self):
        if self.chance(0.03):
            return self.value(1)
        return {"type": "function", "function": {"name": self.text(3), "description": self.text(), "parameters": self.object(3)}}

    def case(self):
        r = self.r
        messages = [self.message() for _ in range(r.choice([1, 1, 2, 3, 4, 5, 6, 8, 12]))]
        if self.chance(0.3):
            messages.insert(0, {"role": "system", "content": self.text()})
        data = messages
        if self.chance(0.5):
            data = {"messages": messages}
            if self.chance(0.8):
                data["tools"] = [self.tool() for _ in range(r.randint(0, 3))]
                if self.chance(0.03):
                    data["tools"] = r.choice([None, {}, "", 0, False, "x", {"a": 1}])
        if self.chance(0.005):
            data = []
        return data, self.chance(0.7), self.chance(0.7)


def later(template):
    """The template that Qwen published later, made from the first one; its XXH64 is known to tools/convert_tokenizer.c."""
    for old, new in [
        ('message.role == "user" and not(message', 'message.role == "user" and message.content is string and not(message'),
        ("{%- for message in messages %}\n    {%- if (", "{%- for message in messages %}\n    {%- if message.content is string %}\n"
         "        {%- set content = message.content %}\n    {%- else %}\n        {%- set content = '' %}\n    {%- endif %}\n    {%- if ("),
        ("message.role + '\\n' + message.content + '<|im_end|>' +", "message.role + '\\n' + content + '<|im_end|>' +"),
        ("        {%- set content = message.content %}\n        {%- set reasoning_content = '' %}\n", "        {%- set reasoning_content = '' %}\n"),
        ("message.reasoning_content is defined and message.reasoning_content is not none", "message.reasoning_content is string"),
        ("            {%- if '</think>' in message.content %}\n                {%- set content = message.content.split('</think>')[-1].lstrip('\\n') %}\n"
         "                {%- set reasoning_content = message.content.split",
         "            {%- if '</think>' in content %}\n                {%- set reasoning_content = content.split"),
        ("split('<think>')[-1].lstrip('\\n') %}\n", "split('<think>')[-1].lstrip('\\n') %}\n"
         "                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\n"),
        ("        {{- message.content }}\n", "        {{- content }}\n")]:
        if template.count(old) != 1:
            raise SystemExit(f"this is not Qwen3's first chat template: {old!r}")
        template = template.replace(old, new)
    return template


def render(tokenizer, data, think, prompt, template=None):
    """What apply_chat_template gives, as bytes; None if it raises or gives no UTF-8."""
    more = {} if think else {"enable_thinking": False}
    if template:
        more["chat_template"] = template
    try:
        messages, tools = (data, None) if isinstance(data, list) else (data["messages"], data.get("tools"))
        if any(isinstance(m, list) for m in messages):
            return None # a list of conversations
        text = tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, add_generation_prompt=prompt, **more)
        return text.encode()
    except Exception:
        return None
