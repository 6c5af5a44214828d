"""The library itself, through ctypes: build/libqsae.so (`make all`)."""
import ctypes as C, os

from tool import ROOT

S, P, Z = C.c_int, C.c_void_p, C.c_size_t


class Error(C.Structure):
    _fields_ = [("status", S), ("offset", C.c_uint64), ("text", C.c_char * 256)]


class Call(C.Structure):
    _fields_ = [("name", C.c_char_p), ("name_len", Z), ("arguments", C.c_char_p), ("arguments_len", Z)]


class Message(C.Structure):
    _fields_ = [("role", C.c_char_p), ("content", C.c_char_p), ("content_len", Z), ("reasoning", C.c_char_p), ("reasoning_len", Z),
                ("tool_calls", C.POINTER(Call)), ("n_tool_calls", Z), ("tools", C.c_char_p), ("tools_len", Z)]


class Sample(C.Structure):
    _fields_ = [("temperature", C.c_float), ("top_k", C.c_int32), ("top_p", C.c_float), ("min_p", C.c_float), ("seed", C.c_uint64),
                ("repetition_penalty", C.c_float), ("presence_penalty", C.c_float), ("history", C.POINTER(C.c_int32)), ("n_history", Z), ("n_prompt", Z)]


class Failed(Exception):
    pass


class Library:
    def __init__(self, path=None):
        self.so = C.CDLL(os.fspath(path or ROOT / "build" / "libqsae.so"))
        self.so.qsae_sample_scratch_size.restype = Z
        self.so.qsae_token_text.restype = C.POINTER(C.c_char)
        self.so.qsae_utf8_complete.restype = Z
        self.err = Error()

    def check(self, status, ok=(0,)):
        if status not in ok:
            raise Failed(self.err.text.decode())
        return status

    def open(self, path):
        m = P()
        self.check(self.so.qsae_model_open(os.fsencode(path), None, C.byref(m), C.byref(self.err)))
        return m

    def tokenize(self, m, data, special=False):
        cap = 3 * len(data) + 16
        ids, n = (C.c_int32 * cap)(), Z()
        self.check(self.so.qsae_tokenize(m, data, Z(len(data)), C.c_uint(special), ids, Z(cap), C.byref(n), C.byref(self.err)))
        return ids[:n.value]

    def token_text(self, m, i):
        n = Z()
        p = self.so.qsae_token_text(m, C.c_int32(i), C.byref(n))
        return C.string_at(p, n.value) if p else None

    def messages(self, chat):
        """chat: dicts with role, content, reasoning_content, tool_calls [(name, arguments)], tools; all texts."""
        out = (Message * len(chat))()
        for o, m in zip(out, chat):
            o.role = m["role"].encode()
            for key, to in (("content", "content"), ("reasoning_content", "reasoning"), ("tools", "tools")):
                if m.get(key) is not None:
                    data = m[key].encode()
                    setattr(o, to, data)
                    setattr(o, to + "_len", len(data))
            calls = [(n.encode(), a.encode()) for n, a in m.get("tool_calls") or []]
            o.tool_calls = (Call * len(calls))(*[Call(n, len(n), a, len(a)) for n, a in calls]) if calls else None
            o.n_tool_calls = len(calls)
        return out

    def chat_render(self, m, chat, flags=0):
        messages, n = self.messages(chat), Z()
        self.check(self.so.qsae_chat_render(m, messages, Z(len(chat)), C.c_uint(flags), None, Z(0), C.byref(n), C.byref(self.err)), (0, 9))
        text = C.create_string_buffer(n.value + 1)
        self.check(self.so.qsae_chat_render(m, messages, Z(len(chat)), C.c_uint(flags), text, n, C.byref(n), C.byref(self.err)))
        return text.raw[:n.value]

    def chat_tokens(self, m, chat, flags=0):
        messages, n, cap = self.messages(chat), Z(), 1 << 16
        ids = (C.c_int32 * cap)()
        self.check(self.so.qsae_chat_tokens(m, messages, Z(len(chat)), C.c_uint(flags), ids, Z(cap), C.byref(n), C.byref(self.err)))
        return ids[:n.value]

    def sampler(self, logits, **options):
        """draw(position) -> id; logits is a float32 numpy array; the temperature is 1 unless told."""
        options.setdefault("temperature", 1.0)
        n = len(logits)
        o = Sample(**{k: v for k, v in options.items() if k != "history"})
        history = options.get("history") or []
        o.history, o.n_history = (C.c_int32 * len(history))(*history) if history else None, len(history)
        size = self.so.qsae_sample_scratch_size(Z(n))
        scratch, out = C.create_string_buffer(size), C.c_int32()
        data = logits.ctypes.data_as(C.POINTER(C.c_float))

        def draw(position):
            self.check(self.so.qsae_sample(data, Z(n), C.byref(o), C.c_uint64(position), scratch, Z(size), C.byref(out), C.byref(self.err)))
            return out.value
        return draw
