/* The subcommands of the `qsae` program, one file each. argv[0] is the command's name, argv[1..] its
 * arguments. Every command prints its usage on --help, results on stdout, at most one line `qsae: ...`
 * on stderr, and returns one of the exit codes below. */

#ifndef QSAE_CMD_H
#define QSAE_CMD_H

enum {
    CMD_OK = 0,
    CMD_FAILED = 1, /* the work could not be done: a file, memory, a mismatch */
    CMD_USAGE = 2,  /* the command line is wrong */
    CMD_STOPPED = 3 /* a signal asked to stop, and what is needed to go on was saved */
};

int cmd_convert(int argc, char **argv);
int cmd_info(int argc, char **argv);
int cmd_capture(int argc, char **argv);
int cmd_features(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_encode(int argc, char **argv);
int cmd_decode(int argc, char **argv);
int cmd_export(int argc, char **argv);
int cmd_extract(int argc, char **argv);
int cmd_tokenize(int argc, char **argv);
int cmd_detokenize(int argc, char **argv);
int cmd_chat_template(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_compare(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_train(int argc, char **argv);
int cmd_harvest(int argc, char **argv);
int cmd_merge(int argc, char **argv);

#endif
