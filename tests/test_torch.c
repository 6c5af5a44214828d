/* PyTorch's .pt: pickles and archives that torch.save never wrote, each refused with its
 * own message; and views of a storage, read as what they are. */

#define _POSIX_C_SOURCE 200809L

#include "test.h"

#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../tools/tensors.h"
#include "../tools/zip.h"

static char err[ERR_CAP];
static char folder[512], path[640];

/* ---- pickles ---- */

#define PROTO      "\x80\x02"
#define TEXT(n, s) "X" n "\0\0\0" s
#define KEY        TEXT("\x01", "w")
#define ID(type, count) \
    "(" TEXT("\x07", "storage") type TEXT("\x01", "0") TEXT("\x03", "cpu") count "t"
#define F32     "ctorch\nFloatStorage\n"
#define STORAGE ID(F32, "K\x06") "Q"
#define REBUILD "ctorch._utils\n_rebuild_tensor_v2\n"
#define HOOKS   "ccollections\nOrderedDict\n)R"
#define VIEW(storage, offset, shape, stride) \
    REBUILD "(" storage offset shape stride "\x89" HOOKS "tR"
#define GOOD        VIEW(STORAGE, "K\x00", "K\x02K\x03\x86", "K\x03K\x01\x86")
#define DICT(value) PROTO "}" KEY value "s."

typedef struct row {
    const char *pickle;
    size_t size;
    const char *message;
} row;
#define ROW(pickle, message)                \
    {                                       \
        pickle, sizeof(pickle) - 1, message \
    }

static const row bad[] = {
    /* names: nothing is looked up, nothing runs */
    ROW(DICT("cos\nsystem\n" TEXT("\x02", "id") "\x85R"),
        "the pickle names os.system,"),
    ROW(DICT("cposix\nsystem\n"), "the pickle names posix.system,"),
    ROW(DICT("cbuiltins\neval\n"), "the pickle names builtins.eval,"),
    ROW(DICT("c__builtin__\ngetattr\n"), "the pickle names __builtin__.getattr,"),
    ROW(DICT("ctorch\nload\n"), "the pickle names torch.load,"),
    ROW(DICT("ctorch\nFloatStorage.__init__\n"), "torch.FloatStorage.__init__,"),
    ROW(DICT("ctorch._utils\n_rebuild_sparse_tensor\n"),
        "torch._utils._rebuild_sparse_"),
    ROW(DICT("ctorch\nQInt8Storage\n"), "the pickle names torch.QInt8Storage,"),
    ROW(DICT("cnumpy.core.multiarray\nscalar\n"), "numpy.core.multiarray.scalar,"),
    ROW(DICT("ctorch.nn.modules.linear\nLinear\n"), "torch.nn.modules.linear.Linear,"),
    ROW(DICT("c\x1b[2J\nx\n"), "the pickle names \\x1b[2J.x,"),
    ROW(PROTO "ctorch\nFloatStorage", "byte 3: the pickle is cut off"),
    ROW(PROTO "ctorch", "byte 3: the pickle is cut off"),
    /* opcodes */
    ROW(PROTO "\x93.", "opcode 0x93 is not among"),
    ROW(PROTO "}\x81.", "byte 3: opcode 0x81 is not among"),
    ROW(PROTO "(ios\nsystem\n.", "opcode 0x69 is not among"),
    ROW(PROTO "(cos\nsystem\no.", "the pickle names os.system,"),
    ROW(PROTO "\x82\x01.", "opcode 0x82 is not among"),
    ROW(PROTO "}2.", "opcode 0x32 is not among"),
    ROW(PROTO "}0.", "opcode 0x30 is not among"),
    ROW(PROTO "Pabc\n.", "opcode 0x50 is not among"),
    ROW(PROTO "\xFF.", "opcode 0xff is not among"),
    ROW("\x80\x04}.", "a pickle of protocol 4; torch.save writes protocol 2"),
    ROW("}.", "not a pickle of protocol 2"),
    ROW("", "not a pickle of protocol 2"),
    ROW(PROTO "}" PROTO ".", "PROTO in the middle"),
    ROW(PROTO, "byte 2: the pickle is cut off"),
    ROW(PROTO "}", "byte 3: the pickle is cut off"),
    ROW(PROTO "}.}", "something follows the end of the pickle"),
    ROW(PROTO "}}.", "the pickle does not end with one value"),
    ROW(PROTO ".", "the pickle does not end with one value"),
    ROW(PROTO "}(.", "the pickle does not end with one value"),
    ROW(PROTO "X\xFF\xFF\xFF\xFFx.", "byte 7: the pickle is cut off"),
    ROW(PROTO "X\x01\0\0", "the pickle is cut off"),
    ROW(PROTO "\x8A\x09\1\1\1\1\1\1\1\1\1.", "a whole number of more than 64 bits"),
    ROW(PROTO "G\1\2\3.", "the pickle is cut off"),
    /* stack, marks, memo */
    ROW(PROTO "s.", "the stack is empty"),
    ROW(PROTO "K\1K\2s.", "the stack is empty"),
    ROW(PROTO "\x86.", "the stack is empty"),
    ROW(PROTO "K\1(\x85.", "the stack is empty"), /* not below the mark */
    ROW(PROTO "R.", "the stack is empty"),
    ROW(PROTO "b.", "the stack is empty"),
    ROW(PROTO "Q.", "the stack is empty"),
    ROW(PROTO "q\1.", "the stack is empty"),
    ROW(PROTO "t.", "there is no mark"),
    ROW(PROTO "}u.", "there is no mark"),
    ROW(PROTO "]e.", "there is no mark"),
    ROW(PROTO "h\5.", "a memo number that was not set"),
    ROW(PROTO "j\xFF\xFF\xFF\xFF.", "a memo number that was not set"),
    ROW(PROTO "}q\1]q\1s.", "a memo number is used twice"),
    ROW(PROTO "}r\xFF\xFF\xFF\xFF.", "a memo number of 2^21 or more"),
    /* containers */
    ROW(PROTO "]K\1K\2s.", "items are set in something that is not a dict"),
    ROW(PROTO "}K\1a.", "items are appended to something that is not a list"),
    ROW(PROTO "}(K\1u.", "a key without a value"),
    ROW(PROTO "]q\0h\0a.", "a value that contains itself"),
    ROW(PROTO "}q\0" KEY "h\0s.", "a value that contains itself"),
    ROW(PROTO "K\1)R.", "a call of something that is not a name"),
    ROW(PROTO "ccollections\nOrderedDict\n]R.", "or not with a tuple"),
    ROW(PROTO "ccollections\nOrderedDict\n]\x85R.",
        "an OrderedDict made from arguments"),
    ROW(DICT(GOOD "}b"), "BUILD of something that is not a state dict"),
    ROW(PROTO "}" KEY GOOD "s}" TEXT("\x03", "abc") "K\1sb.",
        "a state dict with an attribute besides _metadata: abc"),
    ROW(PROTO "}" KEY GOOD "s}K\1K\1sb.",
        "an attribute besides _metadata: (not a text)"),
    ROW(PROTO "}"
              "G\0\0\0\0\0\0\0\0" GOOD "s.",
        "neither text nor a whole number"),
    ROW(PROTO "}" KEY GOOD "s" KEY GOOD "s.", "tensor w appears twice"),
    ROW(PROTO "}" KEY GOOD "s" KEY "K\1s.", "w is a tensor and a value as well"),
    ROW(PROTO "}" KEY "K\2s" KEY "K\1s.", "metadata w appears twice"),
    ROW(PROTO "}" TEXT("\x03", "a.w") GOOD "s" TEXT("\x01", "a") "}" KEY GOOD "ss.",
        "tensor a.w appears twice"),
    ROW(PROTO "}" TEXT("\x03", "a\0w") GOOD "s.", "tensor a\\x00w: a NUL in the name"),
    ROW(PROTO "}" KEY TEXT("\x03", "a\0w") "s.", "metadata w: a NUL in the key or"),
    /* tensors */
    ROW(DICT(STORAGE), "w: a storage outside a tensor"),
    ROW(DICT(REBUILD ")R"), "w: the arguments of _rebuild_tensor_v2 are not"),
    ROW(DICT(REBUILD "(" STORAGE "NNN\x89" HOOKS "tR"),
        "w: the arguments of _rebuild_te"),
    ROW(DICT(REBUILD "(" STORAGE "K\0))\x89NtR"),
        "w: the arguments of _rebuild_tensor_v2"),
    ROW(DICT(REBUILD "(" STORAGE "K\0))\x89}" KEY "K\1stR"),
        "w: the arguments of _rebu"),
    ROW(DICT(REBUILD "(" STORAGE "K\0))\x89}}" KEY "\x88stR"),
        "w: a view that is conjugated or negated"),
    ROW(DICT(REBUILD "(" STORAGE "J\xFF\xFF\xFF\xFF))\x89}tR"),
        "w: the arguments of _r"),
    ROW(DICT("ctorch._utils\n_rebuild_parameter\n)R"),
        "w: the arguments of _rebuild_para"),
    ROW(DICT("ctorch._utils\n_rebuild_parameter\n" STORAGE "\x88}\x87R"),
        "w: the arguments of _rebuild_parameter are not"),
    ROW(DICT("ctorch\nSize\n)R"), "w: a call that makes no tensor"),
    ROW(DICT(F32 ")R"), "w: a call that makes no tensor"),
    ROW(DICT("ctorch\ndevice\n)R"), "w: the arguments of torch.device are not"),
    ROW(DICT(VIEW("N", "K\0", ")", ")")), "w: a tensor without a storage"),
    ROW(DICT(VIEW("NQ", "K\0", ")", ")")), "w: a tensor without a storage"),
    ROW(DICT(VIEW("(" TEXT("\x07", "storagf") F32 "NNNtQ", "K\0", ")", ")")),
        "w: a tensor without a storage"),
    ROW(DICT(VIEW("(" TEXT("\x07", "storage") "NNNNtQ", "K\0", ")", ")")),
        "w: a storage whose type, device or size is damaged"),
    ROW(DICT(VIEW(ID("ctorch\nfloat32\n", "K\x06") "Q", "K\0", ")", ")")),
        "w: a storage whose type, device or size is damaged"),
    ROW(DICT(VIEW(ID(F32, "J\xFF\xFF\xFF\xFF") "Q", "K\0", ")", ")")),
        "w: a storage whose type, device or size is damaged"),
    ROW(DICT(VIEW(ID(F32, "K\x05") "Q", "K\0", ")", ")")),
        "w: a storage of 5 x F32, but member a/data/0 has 24 bytes"),
    ROW(DICT(VIEW(ID(F32, "K\x07") "Q", "K\0", ")", ")")), "w: a storage of 7 x F32,"),
    ROW(DICT(VIEW(ID("ctorch\nHalfStorage\n", "K\x06") "Q", "K\0", ")", ")")),
        "w: a storage of 6 x F16, but member a/data/0 has 24 bytes"),
    ROW(DICT(VIEW(ID(F32, "\x8A\x08\0\0\0\0\0\0\0\x40") "Q", "K\0", ")", ")")),
        "w: a storage of 4611686018427387904 x F32"),
    ROW(DICT(VIEW("(" TEXT("\x07", "storage") F32 TEXT("\x01", "1")
                      TEXT("\x03", "cpu") "K\x06tQ",
                  "K\0", ")", ")")),
        "w: its storage is not in the file"),
    ROW(DICT(VIEW("(" TEXT("\x07", "storage") F32 TEXT("\x0B", "../data.pkl")
                      TEXT("\x03", "cpu") "K\x06tQ",
                  "K\0", ")", ")")),
        "w: its storage is not in the file"),
    ROW(DICT(VIEW(STORAGE, "K\x06", ")", ")")), "w: element 6 of a storage that has 6"),
    ROW(DICT(VIEW(STORAGE, "K\x01", "K\x06\x85", "K\x01\x85")),
        "w: element 6 of a storage that has 6"),
    ROW(DICT(VIEW(STORAGE, "K\0", "K\x02K\x03\x86", "K\x04K\x01\x86")),
        "w: element 6 of a storage that has 6"),
    ROW(DICT(VIEW(STORAGE, "K\0", "K\x07\x85", "K\x01\x85")),
        "w: element 6 of a storage that has 6"),
    ROW(DICT(VIEW(STORAGE, "K\0", "K\x07\x85", "K\x00\x85")),
        "w: shape [7] repeats the 6 numbers of its storage (an expanded view)"),
    ROW(DICT(VIEW(STORAGE, "K\x07", "K\x00\x85", "K\x01\x85")),
        "w: element 7 of a storage that has 6"),
    ROW(DICT(VIEW(STORAGE, "K\0", "K\x06\x85", "J\xFF\xFF\xFF\xFF\x85")),
        "w: a shape or stride that is not a whole number"),
    ROW(DICT(VIEW(STORAGE, "K\0", "J\xFF\xFF\xFF\xFF\x85", "K\1\x85")),
        "w: a shape or stride that is not a whole number"),
    ROW(DICT(VIEW(STORAGE, "K\0", "\x88\x85", "K\1\x85")),
        "that is not a whole number"),
    ROW(DICT(VIEW(STORAGE, "K\0", "]", ")")),
        "w: a shape or stride that is not a tuple"),
    ROW(DICT(VIEW(STORAGE, "K\0", "K\1\x85", ")")),
        "w: its shape and its stride have dif"),
    ROW(DICT(VIEW(STORAGE, "K\0", "(K\1K\1K\1K\1K\1K\1K\1K\1K\1t", ")")),
        "w: 9 dimensions, the limit is 8"),
    ROW(DICT(VIEW(STORAGE, "K\0",
                  "\x8A\x08\0\0\0\0\0\0\0\x40"
                  "K\x04K\1\x87",
                  "K\1K\1K\1\x87")),
        "w: the number of elements does not fit in 64 bits"),
    ROW(DICT(VIEW(STORAGE, "K\0", "K\2K\3\x86",
                  "\x8A\x08\xFF\xFF\xFF\xFF\xFF\xFF\xFF\x7F"
                  "\x8A\x08\xFF\xFF\xFF\xFF"
                  "\xFF\xFF\xFF\x7F\x86")),
        "w: its strides do not fit in 64 bits"),
};

/* ---- archives ---- */

typedef struct member {
    const char *name;
    const void *data;
    size_t size;
} member;

static const float numbers[6] = {0, 1, 2, 3, 4, 5};

static void write_archive(const member *list, size_t n)
{
    zip_writer *w = zip_writer_create(path, err, sizeof err);
    int status = w ? 0 : -1;
    for (size_t i = 0; i < n && !status; i++)
        status = zip_writer_member(w, list[i].name, list[i].size, err, sizeof err) ||
                 zip_writer_data(w, list[i].data, list[i].size, err, sizeof err);
    if (!status)
        status = zip_writer_commit(w, err, sizeof err);
    if (!CHECK(status == 0))
        fprintf(stderr, "    %s\n", err);
}

static void write_pickle(const void *pickle, size_t size)
{
    member list[] = {{"a/data.pkl", pickle, size},
                     {"a/byteorder", "little", 6},
                     {"a/data/0", numbers, sizeof numbers},
                     {"a/version", "3\n", 2},
                     {"a/.data/serialization_id", "12", 2}};
    write_archive(list, sizeof list / sizeof list[0]);
}

static void refused(const char *message)
{
    err[0] = 0;
    tensor_file *f = tensors_open(path, err, sizeof err);
    if (!CHECK(f == NULL) || !CHECK(strncmp(err, path, strlen(path)) == 0) ||
        !CHECK(strstr(err, message) != NULL))
        fprintf(stderr, "    \"%s\", wanted \"%s\"\n", err, message);
    tensors_close(f);
}

static void test_bad_pickles(void)
{
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_pickle(bad[i].pickle, bad[i].size);
        refused(bad[i].message);
    }
}

/* What is too long to be written above. */
static void test_large_pickles(void)
{
    static char text[1 << 16];
    size_t at = 0;
    /* 70 lists, one in the other */
    at += (size_t)sprintf(text, "\x80\x02");
    memset(text + at, ']', 70);
    memset(text + at + 70, 'a', 69);
    text[at + 139] = '.';
    write_pickle(text, at + 140);
    refused("nested more than 64 levels deep");
    /* the same, built upwards and shared: [l1, l2, ...], l2 = [l1], ... */
    at = (size_t)sprintf(text, "\x80\x02(]q");
    text[at++] = 0;
    for (int i = 1; i < 100; i++) {
        at += (size_t)sprintf(text + at, "]h%ca", i - 1 ? i - 1 : 'x');
        if (i == 1)
            text[at - 2] = 0;
        text[at++] = 'q';
        text[at++] = (char)i;
    }
    text[at++] = 't';
    text[at++] = '.';
    write_pickle(text, at);
    refused("nested more than 64 levels deep");
    /* 30 lists that hold the one before twice: 2^30 values */
    at = (size_t)sprintf(text, "\x80\x02]q\x01");
    for (int i = 2; i < 32; i++) {
        at += (size_t)sprintf(text + at, "](h%ch%ceq%c", i - 1, i - 1, i);
    }
    /* only the last is left on the stack: pack all into a tuple */
    memmove(text + 3, text + 2, at - 2);
    text[2] = '(';
    at++;
    text[at++] = 't';
    text[at++] = '.';
    write_pickle(text, at);
    refused("more than 2^21 values");
    /* the same with a number at the bottom: too many values before that */
    at = (size_t)sprintf(text, "\x80\x02(](K\x01K\x02"
                               "eq\x01");
    for (int i = 2; i < 32; i++)
        at += (size_t)sprintf(text + at, "](h%ch%ceq%c", i - 1, i - 1, i);
    text[at++] = 't';
    text[at++] = '.';
    write_pickle(text, at);
    refused("more than 65536 values beside the tensors");
    /* a name of 1025 bytes */
    at = (size_t)sprintf(text, "\x80\x02}X");
    text[at++] = 1, text[at++] = 4, text[at++] = 0, text[at++] = 0;
    memset(text + at, 'n', 1025);
    at += 1025;
    memcpy(text + at, "K\1s.", 4);
    write_pickle(text, at + 4);
    refused("a name of more than 1024 bytes");
}

static void test_bad_archives(void)
{
    static const char good[] = DICT(GOOD);
    const member pickle = {"a/data.pkl", good, sizeof good - 1};
    const member data = {"a/data/0", numbers, sizeof numbers};
    const struct {
        member list[4];
        size_t n;
        const char *message;
    } rows[] = {
        {{pickle, data, {"a/byteorder", "big", 3}},
         3,
         "its byte order is \"big\"; only little-endian"},
        {{pickle, data, {"a/byteorder", "", 0}}, 3, "its byte order is \"\""},
        {{data}, 1, "neither PyTorch's (it has no data.pkl) nor NumPy's"},
        {{{"data.pkl", good, sizeof good - 1}, data}, 2, "it has no data.pkl"},
        {{pickle, data, {"b/data.pkl", good, sizeof good - 1}},
         3,
         "both a/data.pkl and b/data.pkl: not a file of torch.save"},
        {{{"a/b/data.pkl", good, sizeof good - 1}, data},
         2,
         "no data.pkl in one folder"},
        {{pickle, data, {"a/constants.pkl", "x", 1}},
         3,
         "a TorchScript program (member a/constants.pkl)"},
        {{pickle, data, {"a/code/x.py", "x", 1}}, 3, "a TorchScript program"},
        {{pickle, data, {"a/extra", "x", 1}},
         3,
         "member a/extra is not one of torch.save"},
        {{pickle, data, {"b/data/0", "x", 1}}, 3, "member b/data/0 is not one of"},
        {{pickle, {"a/data/1", numbers, sizeof numbers}},
         2,
         "its storage is not in the"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        write_archive(rows[i].list, rows[i].n);
        refused(rows[i].message);
    }
    FILE *file = fopen(path, "wb");
    if (CHECK(file != NULL)) {
        fwrite("\x80\x02\x8a\x0al\xfc\x9c\x46\xf9 j\xa8P\x19.", 1, 15, file);
        fclose(file);
        refused("a PyTorch file of before version 1.6");
    }
}

static void flip(long at)
{
    FILE *file = fopen(path, "r+b");
    if (!CHECK(file != NULL))
        return;
    fseek(file, at, SEEK_SET);
    int c = fgetc(file);
    fseek(file, at, SEEK_SET);
    fputc(c ^ 1, file);
    fclose(file);
}

static void test_damage(void)
{
    static const char good[] = DICT(GOOD);
    float x[6];
    write_pickle(good, sizeof good - 1);
    flip(30 + 10 + 40);
    refused("member a/data.pkl: it is damaged: the CRC-32");
    write_pickle(good, sizeof good - 1);
    tensor_file *f = tensors_open(path, err, sizeof err);
    if (!CHECK(f != NULL)) {
        fprintf(stderr, "    %s\n", err);
        return;
    }
    long at = (long)tensors_at(f, 0)->offset;
    tensors_close(f);
    flip(at + 9);
    f = tensors_open(path, err, sizeof err);
    if (CHECK(f != NULL)) {
        CHECK(tensor_f32(tensors_at(f, 0), 0, 1, x, err, sizeof err) == -1 &&
              strstr(err, "member a/data/0 is damaged: the CRC-32 of its data is"));
    }
    tensors_close(f);
}

/* ---- views ---- */

static void test_views(void)
{
    static const struct {
        row pickle;
        uint32_t rank;
        uint64_t shape[3];
        float values[6];
    } rows[] = {
        {ROW(DICT(GOOD), ""), 2, {2, 3, 0}, {0, 1, 2, 3, 4, 5}},
        {ROW(DICT(VIEW(STORAGE, "K\0", "K\3K\2\x86", "K\1K\3\x86")), ""),
         2,
         {3, 2, 0},
         {0, 3, 1, 4, 2, 5}},
        {ROW(DICT(VIEW(STORAGE, "K\1", "K\2K\2\x86", "K\3K\1\x86")), ""),
         2,
         {2, 2, 0},
         {1, 2, 4, 5}},
        {ROW(DICT(VIEW(STORAGE, "K\1", "K\3\x85", "K\2\x85")), ""),
         1,
         {3, 0, 0},
         {1, 3, 5}},
        {ROW(DICT(VIEW(STORAGE, "K\4", ")", ")")), ""), 0, {0, 0, 0}, {4}},
        {ROW(DICT(VIEW(STORAGE, "K\2", "K\3K\2\x86", "K\0K\1\x86")), ""),
         2,
         {3, 2, 0},
         {2, 3, 2, 3, 2, 3}}, /* repeats, but has no more than the storage */
        {ROW(DICT(VIEW(STORAGE, "K\0", "K\1K\3K\2\x87", "K\x64K\1K\3\x87")), ""),
         3,
         {1, 3, 2},
         {0, 3, 1, 4, 2, 5}},
        {ROW(DICT(VIEW(STORAGE, "K\0", "ctorch\nSize\nK\2\x85\x85R", "K\5\x85")), ""),
         1,
         {2, 0, 0},
         {0, 5}},
        {ROW(DICT("ctorch._utils\n_rebuild_parameter\n" GOOD "\x88}\x87R"), ""),
         2,
         {2, 3, 0},
         {0, 1, 2, 3, 4, 5}},
        {ROW(PROTO "}" KEY GOOD "s}" TEXT("\x09", "_metadata") "K\1sb.", ""),
         2,
         {2, 3, 0},
         {0, 1, 2, 3, 4, 5}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        float x[6] = {0}, each;
        write_pickle(rows[i].pickle.pickle, rows[i].pickle.size);
        tensor_file *f = tensors_open(path, err, sizeof err);
        const tensor *t = f ? tensors_find(f, "w") : NULL;
        if (!CHECK(t != NULL)) {
            fprintf(stderr, "    view %zu: %s\n", i, err);
            tensors_close(f);
            continue;
        }
        CHECK(t->rank == rows[i].rank &&
              memcmp(t->shape, rows[i].shape, t->rank * 8) == 0);
        CHECK(tensor_f32(t, 0, t->n, x, err, sizeof err) == 0 &&
              memcmp(x, rows[i].values, (size_t)t->n * 4) == 0);
        for (uint64_t k = 0; k < t->n; k++)
            CHECK(tensor_f32(t, k, 1, &each, err, sizeof err) == 0 &&
                  each == rows[i].values[k]);
        tensors_close(f);
    }
}

static void test_values(void)
{
    static const char pickle[] = PROTO "}(" TEXT("\x01", "a") "K\x07" TEXT(
        "\x01", "b") "\x88" TEXT("\x01", "c") "G\x3f\xf8\0\0\0\0\0\0" TEXT("\x01", "d")
        TEXT("\x02", "hi") TEXT("\x01", "e") "N" TEXT(
            "\x01",
            "f") "](K\1\x89"
                 "e" TEXT("\x01", "g") "ctorch\nbfloat16\n" TEXT("\x01", "h") "ctorch\ndevice\n" TEXT(
                     "\x04",
                     "cuda") "K\1\x86R" TEXT("\x01",
                                             "i") "\x8A\x08\0\0\0\0\0\0\0\x80" TEXT("\x01",
                                                                                    "j") "J\xFE\xFF\xFF\xFF"
                                                                                         "u.";
    static const char *const want[][2] = {
        {"a", "7"},
        {"b", "true"},
        {"c", "1.5"},
        {"d", "hi"},
        {"f.0", "1"},
        {"f.1", "false"},
        {"g", "torch.bfloat16"},
        {"h", "cuda:1"},
        {"i", "-9223372036854775808"},
        {"j", "-2"},
    };
    write_pickle(pickle, sizeof pickle - 1);
    tensor_file *f = tensors_open(path, err, sizeof err);
    if (!CHECK(f != NULL)) {
        fprintf(stderr, "    %s\n", err);
        return;
    }
    CHECK(tensors_count(f) == 0 && tensors_container(f) == TENSORS_TORCH);
    CHECK(tensors_meta_count(f) == sizeof want / sizeof want[0] &&
          !tensors_meta(f, "e"));
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++)
        CHECK_STR(tensors_meta(f, want[i][0]), want[i][1]);
    tensors_close(f);
}

int main(int argc, char **argv)
{
    snprintf(folder, sizeof folder, "%s/tmp", argc > 1 ? argv[1] : ".");
    mkdir(folder, 0777);
    strncat(folder, "/torch-XXXXXX", sizeof folder - strlen(folder) - 1);
    if (!CHECK(mkdtemp(folder) != NULL))
        return test_done("test_torch");
    snprintf(path, sizeof path, "%s/x.pt", folder);
    test_bad_pickles();
    test_large_pickles();
    test_bad_archives();
    test_damage();
    test_views();
    test_values();
    unlink(path);
    rmdir(folder);
    return test_done("test_torch");
}
