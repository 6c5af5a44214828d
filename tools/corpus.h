/* corpus.h: text as sequences of token ids, for the commands that work through much of it
 * (train, harvest, eval).
 *
 * A corpus is a list of sources, each a file or a folder, with a weight: "DIR", "FILE:3".
 * What a file holds, its extension says:
 *     .txt     UTF-8 text, one document (of more than 1 MiB: one for every MiB, cut behind
 *              a line break where there is one)
 *     .jsonl   a JSON object a line, one document each: its field "text", or its "messages"
 *              (and "tools"), which the model's chat template renders as chat.h says
 * A folder stands for the .txt and .jsonl files in it and in its subfolders, in the order
 * of their paths' bytes; names that begin with a dot do not count, and any other file is
 * refused. A symbolic link to a file is followed, one to a folder is refused.
 *
 * A document of more ids than the context is cut into sequences of that many. A sequence
 * never holds two documents and is never padded; one shorter than 2 ids is dropped and
 * counted. Nothing is drawn at random: every next sequence comes from the source that has
 * given the fewest tokens for its weight so far (ties: the earlier one); one that has
 * ended is left out. So the same files and options give the same sequences anywhere.
 *
 * Every id has a class. In a chat the control tokens, the role and its line break are
 * TEMPLATE, as are <think>, <tool_call> and the like and the line breaks beside them; a
 * token that joins the role's line break with those of the message is, too. What a turn
 * says has the class of its role (a tool's response: USER, in whose turn it is rendered). */

#ifndef QSAE_TOOLS_CORPUS_H
#define QSAE_TOOLS_CORPUS_H

#ifndef QSAE_WITH_FORMAT
#define QSAE_WITH_FORMAT
#endif
#include "checked.h"

#include "../qsae.h"

typedef struct corpus corpus;

typedef enum corpus_class {
    CORPUS_TEXT = 0, /* not in a chat */
    CORPUS_SYSTEM,
    CORPUS_USER,
    CORPUS_ASSISTANT,
    CORPUS_TEMPLATE,
    CORPUS_CLASSES
} corpus_class;

const char *corpus_class_name(corpus_class c); /* "text", "system", ... */

#define CORPUS_MAX_SOURCES 64
#define CORPUS_MAX_LINE    (64u << 20) /* bytes of a line of JSON */

typedef struct corpus_options {
    const char *const *sources; /* [n_sources] as on the command line; copied */
    size_t n_sources;
    size_t context; /* most ids of a sequence, at least 2 */
    const char
        *text_field; /* of a line of JSON, and no "messages" then; NULL: "text" */
    int special;     /* recognise control tokens such as <|im_start|> in text */
} corpus_options;

/* Finds the files and looks at their beginnings; no text is read yet. The model is
 * borrowed, for its tokenizer. NULL with err set: a source that is not there, that holds
 * no text file, ... */
corpus *corpus_open(const corpus_options *o, const qsae_model *model, char *err,
                    size_t err_cap);
void corpus_close(corpus *c); /* NULL is a no-op */

/* The next sequence: 1 and *n ids (2 <= *n <= context) with their classes; 0 at the end; or
 * -1 with err set: "FILE: line N: ...". cap, the room of both arrays, is at least the
 * context; classes may be NULL. A corpus that has no sequence at all is an error, not an
 * end. After an error every call gives it again, until a seek. */
int corpus_next(corpus *c, int32_t *ids, uint8_t *classes, size_t cap, size_t *n,
                char *err, size_t err_cap);

/* Where the next sequence begins: plain integers, to be saved and brought back into a corpus
 * of the same fingerprint, whatever the process. Unused sources are zero. */
typedef struct corpus_cursor {
    uint64_t sequences, tokens, dropped; /* given so far; pieces shorter than 2 ids */
    struct {
        uint64_t file, offset, line; /* of the document: bytes; lines before it */
        uint64_t at;                 /* ids of it that have been given or dropped */
        uint64_t tokens;             /* given by this source */
    } source[CORPUS_MAX_SOURCES];
} corpus_cursor;

void corpus_tell(const corpus *c, corpus_cursor *out);
int corpus_seek(corpus *c, const corpus_cursor *to, char *err, size_t err_cap);
void corpus_rewind(corpus *c);

/* What the sequences depend on: the files' names below their source, sizes and first
 * 64 KiB, the weights, the options and the tokenizer's size. The same wherever the files
 * lie. */
uint64_t corpus_fingerprint(const corpus *c);
uint64_t corpus_bytes(const corpus *c); /* of all files */

#endif
