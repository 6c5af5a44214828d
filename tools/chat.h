/* chat.h: a conversation as JSON, as Hugging Face's apply_chat_template takes it, for
 * qsae_chat_render and qsae_chat_tokens. */

#ifndef QSAE_TOOLS_CHAT_H
#define QSAE_TOOLS_CHAT_H

#include "../qsae.h"
#include "json.h"

typedef struct chat {
    qsae_message *messages; /* [n], for the flag QSAE_CHAT_ANY_ROLE */
    size_t n;
    /* private */
    json_doc *doc;
    qsae_tool_call *calls;
    char **kept; /* [n_kept] texts that the messages point into */
    size_t n_calls, n_kept, cap_kept;
    int later; /* QSAE_CHAT_QWEN3_LATER */
    char *err;
    size_t err_cap;
} chat;

/* A list of messages, or {"messages": [...], "tools": [...]}; format is the
 * qsae_chat_format of the model. 0; or -1 with err set, also
 * for what the template, or apply_chat_template before it, raises on. Either way
 * chat_free. Beyond the JSON reader's own limits (json.h) everything else is taken as they
 * take it:
 *   - members of a message that are null count as absent; unknown members do not matter;
 *   - reasoning is reasoning_content, else thinking, else reasoning;
 *   - a message of another role renders as nothing;
 *   - the content of a tool's message may be any value, printed as Python's str() does;
 *   - with QSAE_CHAT_QWEN3_LATER a content or reasoning that is not a string counts as
 *     empty, or as none. (That of a user is refused: it would also not count as a
 *     question.) */
int chat_read(chat *c, const char *json, size_t len, int32_t format, char *err,
              size_t cap);
/* The same of values of a document (tools may be NULL), which the chat owns from now on,
 * whatever is returned. */
int chat_take(chat *c, json_doc *doc, const json_value *messages,
              const json_value *tools, int32_t format, char *err, size_t cap);
void chat_free(chat *c);

#endif
