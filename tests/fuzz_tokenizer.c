/* Fuzz target, white box: hostile tokenizer blobs, and any text through a good one. The
 * first byte chooses: bit 0 patches of the blob, bit 1 added tokens are recognised, bit
 * 2 the input is a tokenizer.json. The good blob is the toy's: run in the repository's
 * root. */

#include "../qsae.c"

#include "tiny.h"

#include "../tools/tok_build.h"

enum { MAX_IDS = 1 << 12, MAX_JSON = 1 << 20 };

/* One patch is 5 bytes: where (24 bits), how, and with what. Random bytes alone would hardly get past the
 * header, so mostly the first `front` bytes are hit. */
static void patch(uint8_t *blob, size_t size, size_t front, const uint8_t *p)
{
    static const uint8_t odd[8] = {0, 1, 2, 0x7F, 0x80, 0xFE, 0xFF, 0x40};
    size_t at = (size_t)p[0] | (size_t)p[1] << 8 | (size_t)p[2] << 16;
    int how = p[3];
    at = how & 1 ? at % size : at % front;
    switch (how >> 1 & 3) {
    case 0: blob[at] = p[4]; break;
    case 1: blob[at] = (uint8_t)(blob[at] + p[4]); break;
    case 2: blob[at] = odd[p[4] & 7]; break;
    default: /* a whole field */
        at &= ~(size_t)3;
        memset(blob + at, odd[p[4] & 7], at + 4 <= size ? 4 : size - at);
    }
}

static uint8_t *aligned_copy(const uint8_t *data, size_t size)
{
    uint8_t *p = tiny_alloc(size);
    memcpy(p, data, size);
    return p;
}

static const uint8_t *good_blob(size_t *size)
{
    static uint8_t *blob;
    static size_t blob_size;
    static char json[MAX_JSON];
    uint8_t *built;
    char err[256] = "not there";
    if (!blob) {
        FILE *f = fopen("examples/toy/model/tokenizer.json", "rb");
        size_t n = f ? fread(json, 1, sizeof json, f) : 0;
        if (!f || !tok_build_from_json(json, n, &built, &blob_size, err, sizeof err)) {
            fprintf(stderr, "the toy's tokenizer.json: %s\n", err);
            abort();
        }
        fclose(f);
        blob = aligned_copy(built, blob_size);
        free(built);
    }
    *size = blob_size;
    return blob;
}

/* Binds with tables of exactly the size that is asked for; the caller frees them. */
static qsae_status bind(qs_tok *tok, const uint8_t *blob, size_t n, void **room)
{
    qsae_error e;
    *room = malloc(qs_tok_room(blob, n));
    return qs_tok_bind(tok, blob, n, *room, &e);
}

static void encode(const qs_tok *tok, const char *text, size_t n, int special)
{
    static int32_t ids[MAX_IDS];
    qsae_error e;
    size_t count, len, size = qs_tok_scratch(n);
    void *scratch = malloc(size ? size : 1);
    qsae_status s =
        qs_tok_encode(tok, text, n, special, ids, MAX_IDS, &count, scratch, size, &e);
    for (size_t i = 0; s == QSAE_OK && i < count; i++)
        if (!qs_tok_text(tok, ids[i], &len))
            abort(); /* an id that has no text was never in the vocabulary */
    free(scratch);
}

static void try_json(const uint8_t *data, size_t size)
{
    char err[256];
    uint8_t *blob = NULL;
    size_t blob_size;
    void *room;
    qs_tok tok;
    char *json = malloc(size + 1);
    memcpy(json, data, size);
    json[size] = 0;
    if (tok_build_from_json(json, size, &blob, &blob_size, err, sizeof err)) {
        uint8_t *copy = aligned_copy(blob, blob_size);
        if (bind(&tok, copy, blob_size, &room) != QSAE_OK)
            abort(); /* the builder must not write what the library refuses */
        encode(&tok, "Hello, world 123", 16, 1);
        free(room);
        free(copy);
    }
    free(blob);
    free(json);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char sample[] =
        "Hello <|im_start|>w\xC3\xB6rld's  12345\n\n\xE6\x9D\xB1 \xFF!";
    qs_tok tok;
    void *room;
    size_t n;
    const uint8_t *good = good_blob(&n);
    int mode = size ? data[0] : 0;
    if (mode & 4) {
        try_json(data + 1, size - 1);
        return 0;
    }
    uint8_t *blob = aligned_copy(good, n);
    if (mode & 1)
        for (size_t i = 1; i + 5 <= size; i += 5)
            patch(blob, n, 1024, data + i);
    if (bind(&tok, blob, n, &room) == QSAE_OK) {
        if (mode & 1)
            encode(&tok, sample, sizeof sample - 1, mode & 2);
        else
            encode(&tok, (const char *)data, size, mode & 2);
    }
    free(room);
    free(blob);
    return 0;
}
