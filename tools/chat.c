/* A conversation as JSON (see chat.h). */

#include "chat.h"

#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "pytext.h"

/* Sets the error text and returns -1. */
#define FAIL(c, ...) err_set((c)->err, (c)->err_cap, __VA_ARGS__)

/* ---- texts made here ---- */

/* Takes over the text; its bytes at *s live as long as the chat. */
static int keep(chat *c, pytext *t, const char **s, size_t *n)
{
    if (c->n_kept == c->cap_kept) {
        size_t cap = c->cap_kept ? 2 * c->cap_kept : 16;
        char **grown = realloc(c->kept, cap * sizeof *grown);
        if (!grown) {
            pytext_free(t);
            return FAIL(c, "out of memory");
        }
        c->kept = grown;
        c->cap_kept = cap;
    }
    c->kept[c->n_kept++] = t->s;
    *s = t->s ? t->s : "";
    *n = t->n;
    return 0;
}

typedef int (*writer)(pytext *, const json_doc *, const json_value *, char *, size_t);

/* A value as text: a string as it is, anything else as `write` writes it. */
static int as_text(chat *c, const json_value *v, writer write, const char **s,
                   size_t *n)
{
    pytext t = {NULL, 0, 0, 0};
    if (v->type == JSON_STRING) {
        *s = v->str;
        *n = v->len;
        return 0;
    }
    if (write(&t, c->doc, v, c->err, c->err_cap)) {
        pytext_free(&t);
        return -1;
    }
    return keep(c, &t, s, n);
}

/* ---- one message ---- */

/* Its member, NULL if absent or null. */
static const json_value *member(const chat *c, const json_value *message,
                                const char *key)
{
    const json_value *v = json_get(c->doc, message, key);
    return v && v->type != JSON_NULL ? v : NULL;
}

static const char *role_of(const json_value *v)
{
    static const char *const known[] = {"system", "user", "assistant", "tool"};
    for (size_t i = 0; v && v->type == JSON_STRING && i < 4; i++)
        if (v->len == strlen(known[i]) && memcmp(v->str, known[i], v->len) == 0)
            return known[i];
    return "(another)";
}

static int is_role(const qsae_message *m, const char *role)
{
    return strcmp(m->role, role) == 0;
}

static int read_content(chat *c, size_t i, const json_value *v)
{
    qsae_message *m = &c->messages[i];
    m->content = "";
    int first_system = i == 0 && is_role(m, "system");
    if (c->later && (!v || v->type != JSON_STRING) && !first_system &&
        !is_role(m, "user"))
        return 0;
    if (is_role(m, "tool")) /* the template prints it, whatever it is */
        return v ? as_text(c, v, pytext_str, &m->content, &m->content_len) : 0;
    if (is_role(m, "(another)"))
        return 0;
    if (!v)
        return FAIL(c, "message %zu (%s) has no content", i, m->role);
    if (v->type != JSON_STRING)
        return FAIL(c, "message %zu (%s): its content is not a string", i, m->role);
    m->content = v->str;
    m->content_len = v->len;
    return 0;
}

static int read_call(chat *c, size_t i, const json_value *v, qsae_tool_call *call)
{
    const json_value *function = json_get(c->doc, v, "function");
    if (pytext_truth(function))
        v = function;
    const json_value *name = json_get(c->doc, v, "name");
    const json_value *arguments = json_get(c->doc, v, "arguments");
    if (!arguments)
        return FAIL(c, "message %zu: a tool call has no arguments", i);
    if (name && as_text(c, name, pytext_str, &call->name, &call->name_len))
        return -1;
    return as_text(c, arguments, pytext_dumps, &call->arguments, &call->arguments_len);
}

static int read_calls(chat *c, size_t i, const json_value *list)
{
    qsae_message *m = &c->messages[i];
    if (!pytext_truth(list))
        return 0;
    if (list->type != JSON_ARRAY)
        return FAIL(c, "message %zu: tool_calls is not a list", i);
    m->tool_calls = &c->calls[c->n_calls];
    for (const json_value *v = json_first(c->doc, list); v; v = json_next(c->doc, v))
        if (read_call(c, i, v, &c->calls[c->n_calls + m->n_tool_calls++]))
            return -1;
    c->n_calls += m->n_tool_calls;
    return 0;
}

static const json_value *reasoning_of(const chat *c, const json_value *message)
{
    const json_value *v = member(c, message, "reasoning_content");
    v = v ? v : member(c, message, "thinking");
    return v ? v : member(c, message, "reasoning");
}

static int read_message(chat *c, size_t i, const json_value *v)
{
    qsae_message *m = &c->messages[i];
    if (v->type != JSON_OBJECT)
        return FAIL(c, "message %zu is not an object", i);
    m->role = role_of(member(c, v, "role"));
    if (read_content(c, i, member(c, v, "content")))
        return -1;
    if (!is_role(m, "assistant"))
        return 0;
    const json_value *reasoning = reasoning_of(c, v);
    int text = reasoning && reasoning->type == JSON_STRING;
    if (text || (reasoning && !c->later)) {
        m->reasoning = text ? reasoning->str : ""; /* more in check_reasoning */
        m->reasoning_len = text ? reasoning->len : 0;
    }
    return read_calls(c, i, member(c, v, "tool_calls"));
}

/* ---- the whole ---- */

static int ends_with(const qsae_message *m, const char *tail)
{
    size_t n = strlen(tail);
    return m->content_len >= n && memcmp(m->content + m->content_len - n, tail, n) == 0;
}

static size_t last_query(const chat *c)
{
    static const char open[] = "<tool_response>";
    for (size_t i = c->n; i-- > 0;) {
        const qsae_message *m = &c->messages[i];
        if (is_role(m, "user") && !(m->content_len >= sizeof open - 1 &&
                                    memcmp(m->content, open, sizeof open - 1) == 0 &&
                                    ends_with(m, "</tool_response>")))
            return i;
    }
    return c->n - 1;
}

/* Reasoning that is not a string: an error where the template would use it. Elsewhere it
 * only says that the content is not to be searched for any. */
static int check_reasoning(chat *c, const json_value *list)
{
    size_t i = 0, query = last_query(c);
    if (c->later)
        return 0;
    for (const json_value *v = json_first(c->doc, list); v;
         v = json_next(c->doc, v), i++) {
        const json_value *r = reasoning_of(c, v);
        if (!is_role(&c->messages[i], "assistant") || !r || r->type == JSON_STRING)
            continue;
        if (i > query && (i + 1 == c->n || pytext_truth(r)))
            return FAIL(c, "message %zu: its reasoning is not a string", i);
    }
    return 0;
}

/* Objects, one a line. */
static int read_tools(chat *c, const json_value *list)
{
    pytext t = {NULL, 0, 0, 0};
    int status = 0;
    if (!list || list->type == JSON_NULL)
        return 0;
    if (list->type != JSON_ARRAY && !(list->type == JSON_STRING && list->len == 0) &&
        !(list->type == JSON_OBJECT && list->n == 0))
        return FAIL(c, "tools is not a list");
    for (const json_value *v = json_first(c->doc, list); v && !status;
         v = json_next(c->doc, v)) {
        if (v->type != JSON_OBJECT)
            status = FAIL(c, "one of the tools is not an object");
        if (t.n)
            pytext_add(&t, "\n", 1);
        if (!status)
            status = pytext_dumps(&t, c->doc, v, c->err, c->err_cap);
    }
    if (status || t.n == 0) {
        pytext_free(&t);
        return status;
    }
    return keep(c, &t, &c->messages[0].tools, &c->messages[0].tools_len);
}

/* How many tool calls there are at most. */
static size_t count_calls(const chat *c, const json_value *list)
{
    size_t n = 0;
    for (const json_value *v = json_first(c->doc, list); v; v = json_next(c->doc, v)) {
        const json_value *calls = json_get(c->doc, v, "tool_calls");
        n += calls ? calls->n : 0;
    }
    return n;
}

static int read_messages(chat *c, const json_value *list)
{
    size_t i = 0;
    if (!list || list->type != JSON_ARRAY)
        return FAIL(c,
                    "a list of messages, or an object with \"messages\" and \"tools\", "
                    "is expected");
    if (list->n == 0)
        return FAIL(c, "there is no message");
    c->n = list->n;
    c->messages = calloc(c->n, sizeof *c->messages);
    c->calls = calloc(count_calls(c, list) + 1, sizeof *c->calls);
    if (!c->messages || !c->calls)
        return FAIL(c, "out of memory");
    for (const json_value *v = json_first(c->doc, list); v; v = json_next(c->doc, v))
        if (read_message(c, i++, v))
            return -1;
    return check_reasoning(c, list);
}

static void begin(chat *c, int32_t format, char *err, size_t cap)
{
    memset(c, 0, sizeof *c);
    c->later = format == QSAE_CHAT_QWEN3_LATER;
    c->err = err;
    c->err_cap = cap;
}

int chat_take(chat *c, json_doc *doc, const json_value *messages,
              const json_value *tools, int32_t format, char *err, size_t cap)
{
    begin(c, format, err, cap);
    c->doc = doc;
    return read_messages(c, messages) ? -1 : read_tools(c, tools);
}

int chat_read(chat *c, const char *json, size_t len, int32_t format, char *err,
              size_t cap)
{
    begin(c, format, err, cap);
    json_doc *doc = c->doc = json_parse(json, len, err, cap);
    if (!doc)
        return -1;
    const json_value *root = json_root(doc);
    if (root->type != JSON_OBJECT)
        return chat_take(c, doc, root, NULL, format, err, cap);
    for (const json_value *v = json_first(doc, root); v; v = json_next(doc, v)) {
        size_t n;
        const char *key = json_key(doc, v, &n);
        if (strcmp(key, "messages") != 0 && strcmp(key, "tools") != 0)
            return FAIL(c, "\"%s\" is not known beside \"messages\" and \"tools\"",
                        name_n(key, n).text);
    }
    return chat_take(c, doc, json_get(doc, root, "messages"),
                     json_get(doc, root, "tools"), format, err, cap);
}

void chat_free(chat *c)
{
    for (size_t i = 0; i < c->n_kept; i++)
        free(c->kept[i]);
    free(c->kept);
    free(c->calls);
    free(c->messages);
    json_free(c->doc);
    memset(c, 0, sizeof *c);
}
