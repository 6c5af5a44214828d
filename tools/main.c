/* The program `qsae`: dispatches to the subcommands (see cmd.h). */

#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* SIGXFSZ */
#endif

#include "../qsae.h"
#include "args.h"
#include "cmd.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *purpose;
} commands[] = {
    {"convert", cmd_convert,
     "a checkpoint (Hugging Face, GGUF) or SAEs of any family to a .qsae file"},
    {"info", cmd_info, "what a .qsae file holds"},
    {"capture", cmd_capture, "activations of a text's tokens to a .safetensors file"},
    {"features", cmd_features, "the SAE features of every token of a text"},
    {"generate", cmd_generate,
     "continue a text or answer a chat, with features edited if asked"},
    {"encode", cmd_encode, "rows of numbers to SAE features"},
    {"decode", cmd_decode, "SAE features to rows of numbers"},
    {"export", cmd_export, "an SAE for SAELens or numpy, edits for llama.cpp"},
    {"extract", cmd_extract, "some features of an SAE as a small SAE file"},
    {"tokenize", cmd_tokenize, "the token ids of a text"},
    {"detokenize", cmd_detokenize, "the text of token ids"},
    {"chat-template", cmd_chat_template, "a conversation as the text that a model sees"},
    {"bench", cmd_bench, "how fast this machine is, and how much of that is used"},
    {"compare", cmd_compare, "how far two files of one model differ on a text"},
    {"eval", cmd_eval, "how faithful SAEs are: metrics, tables and a report"},
    {"train", cmd_train, "SAEs from a model and a text"},
    {"harvest", cmd_harvest, "activations of a text to files, to train on"},
    {"merge", cmd_merge, "SAE files to one suite"},
};

enum { N_COMMANDS = (int)(sizeof commands / sizeof commands[0]) };

static void print_usage(void)
{
    printf("qsae runs Qwen3 models, shows their SAE features, and steers "
           "them.\n\nUsage:\n");
    for (int i = 0; i < N_COMMANDS; i++)
        printf("  qsae %-13s %s\n", commands[i].name, commands[i].purpose);
    printf("  qsae --version\n\nqsae COMMAND --help tells more. Exit codes: 0 done, 1 "
           "failed, 2 wrong usage,\n3 stopped by a signal, with what is needed to go "
           "on.\n");
}

int main(int argc, char **argv)
{
    signal(SIGXFSZ, SIG_IGN); /* a write past a size limit is an error, not the end */
    if (argc < 2)
        return complain(CMD_USAGE, "no command; see: qsae --help");
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 ||
        strcmp(name, "help") == 0) {
        print_usage();
        return finish_stdout();
    }
    if (strcmp(name, "--version") == 0) {
        uint32_t v = qsae_version();
        printf("qsae %u.%u.%u\n", (unsigned)(v >> 16), (unsigned)(v >> 8 & 255),
               (unsigned)(v & 255));
        return finish_stdout();
    }
    for (int i = 0; i < N_COMMANDS; i++) {
        if (strcmp(name, commands[i].name) == 0) {
            int code = commands[i].run(argc - 1, argv + 1);
            return code == CMD_OK ? finish_stdout() : code;
        }
    }
    return complain(CMD_USAGE, "unknown command '%.60s'; see: qsae --help", name);
}
