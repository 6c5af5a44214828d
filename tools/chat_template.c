/* `qsae chat-template`: a conversation to the text that the model sees. */

#include "chat.h"
#include "checked.h"
#include "cmd.h"
#include "input.h"
#include "slurp.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char usage[] =
    "Usage: qsae chat-template MODEL.qsae [--no-think] [--no-generation-prompt]\n"
    "Renders a conversation, JSON on standard input, as Qwen3's chat template does: a list\n"
    "of messages, or an object with \"messages\" and \"tools\". Input on which the template\n"
    "raises is an error.\n"
    "\n"
    "  --no-think               close the thinking block of the assistant's turn at once\n"
    "  --no-generation-prompt   do not open a turn of the assistant at the end\n"
    "  --help                   this text\n";

static const args_option options[] = {
    {"no-think", 0, QSAE_CHAT_NO_THINK, 0},
    {"no-generation-prompt", 0, QSAE_CHAT_NO_GENERATION, 0},
    {NULL, 0, 0, 0}};

static int render(const qsae_model *model, const chat *c, unsigned flags)
{
    qsae_error err;
    size_t len = 0, cap;
    qsae_status s =
        qsae_chat_render(model, c->messages, c->n, flags, NULL, 0, &len, &err);
    if (s != QSAE_OK && s != QSAE_E_LIMIT)
        return complain_library(NULL, &err);
    char *text = malloc(cap = len ? len : 1);
    if (!text)
        return complain(CMD_FAILED, "out of memory for a text of %zu bytes", len);
    s = qsae_chat_render(model, c->messages, c->n, flags, text, cap, &len, &err);
    if (s == QSAE_OK)
        fwrite(text, 1, len, stdout);
    free(text);
    return s == QSAE_OK ? CMD_OK : complain_library(NULL, &err);
}

int cmd_chat_template(int argc, char **argv)
{
    const char *path;
    char *text = NULL, err[ERR_CAP];
    size_t len = 0;
    int flags;
    qsae_model *model = NULL;
    chat c;
    qsae_model_info info;
    int code = slurp_arguments(argc, argv, options, usage, &path, &flags);
    if (code != CMD_OK || !path)
        return code;
    memset(&c, 0, sizeof c);
    code = slurp_open(path, &model);
    if (code == CMD_OK)
        code = slurp_stdin(&text, &len);
    if (code == CMD_OK)
        qsae_model_get_info(model, &info);
    if (code == CMD_OK && chat_read(&c, text, len, info.chat_format, err, sizeof err))
        code = complain(CMD_FAILED, "standard input: %s", err);
    if (code == CMD_OK)
        code = render(model, &c, (unsigned)flags | QSAE_CHAT_ANY_ROLE);
    chat_free(&c);
    free(text);
    qsae_model_close(model);
    return code;
}
