#include "zip.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "checked.h"
#include "outfile.h"
#include "tensors_impl.h"

#define LOCAL_SIZE    30u
#define CENTRAL_SIZE  46u
#define END_SIZE      22u
#define END64_SIZE    56u
#define LOCATOR_SIZE  20u
#define MAX_DIRECTORY ((uint64_t)1 << 28)

#define FLAG_ENCRYPTED  0x0001u
#define FLAG_DESCRIPTOR 0x0008u
#define FLAG_UTF8       0x0800u

#define NO_TIME 0x00210000u /* 1980-01-01 00:00: equal contents make equal files */
#define FULL32  0xFFFFFFFFu

static uint32_t get16(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t get32(const unsigned char *p)
{
    return get16(p) | get16(p + 2) << 16;
}

static uint64_t get64(const unsigned char *p)
{
    return get32(p) | (uint64_t)get32(p + 4) << 32;
}

/* ---- CRC-32, eight bytes at a time ---- */

static uint32_t crc_table[8][256];

static void crc_begin(void)
{
    if (crc_table[0][1])
        return;
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++)
            c = c >> 1 ^ (c & 1 ? 0xEDB88320u : 0);
        crc_table[0][i] = c;
    }
    for (uint32_t i = 0; i < 256; i++)
        for (int k = 1; k < 8; k++)
            crc_table[k][i] =
                crc_table[k - 1][i] >> 8 ^ crc_table[0][crc_table[k - 1][i] & 255];
}

uint32_t zip_crc(uint32_t crc, const void *data, size_t n)
{
    const unsigned char *p = data;
    uint32_t c = ~crc;
    crc_begin();
    for (; n >= 8; n -= 8, p += 8) {
        uint32_t a = get32(p) ^ c, b = get32(p + 4);
        c = crc_table[7][a & 255] ^ crc_table[6][a >> 8 & 255] ^
            crc_table[5][a >> 16 & 255] ^ crc_table[4][a >> 24] ^
            crc_table[3][b & 255] ^ crc_table[2][b >> 8 & 255] ^
            crc_table[1][b >> 16 & 255] ^ crc_table[0][b >> 24];
    }
    for (; n > 0; n--, p++)
        c = c >> 8 ^ crc_table[0][(c ^ *p) & 255];
    return ~c;
}

/* ---- the end of the file: how much directory, and where ---- */

typedef struct directory {
    uint64_t n, size, offset, end; /* end: where what follows the directory begins */
} directory;

/* The 16- and 32-bit fields of the end record against the 64-bit ones: equal, or all
 * ones, which means "look there". */
static int same_or_full(uint64_t small, uint64_t full, uint64_t wide)
{
    return small == full || small == wide;
}

/* In front of the end record: a zip64 locator, which leads to the zip64 end record. */
static int read_end64(const tensor_file *f, directory *d, uint64_t end, char *err,
                      size_t cap)
{
    unsigned char b[END64_SIZE], l[LOCATOR_SIZE];
    int full = d->n == 0xFFFF || d->size == FULL32 || d->offset == 0xFFFFFFFF;
    d->end = end;
    if (end >= LOCATOR_SIZE) {
        if (tensors_read(f, end - LOCATOR_SIZE, l, sizeof l, err, cap))
            return -1;
        if (get32(l) == 0x07064B50) {
            uint64_t at = get64(l + 8);
            if (get32(l + 4) != 0 || get32(l + 16) != 1)
                return err_set(err, cap, "a zip of several disks");
            if (end < LOCATOR_SIZE + END64_SIZE ||
                at != end - LOCATOR_SIZE - END64_SIZE ||
                tensors_read(f, at, b, sizeof b, err, cap) || get32(b) != 0x06064B50 ||
                get64(b + 4) != END64_SIZE - 12)
                return err_set(err, cap,
                               "a damaged zip: its zip64 end record is not "
                               "where its locator says");
            if (get32(b + 16) != 0 || get32(b + 20) != 0 ||
                get64(b + 24) != get64(b + 32))
                return err_set(err, cap, "a zip of several disks");
            if (!same_or_full(d->n, 0xFFFF, get64(b + 32)) ||
                !same_or_full(d->size, FULL32, get64(b + 40)) ||
                !same_or_full(d->offset, FULL32, get64(b + 48)))
                return err_set(
                    err, cap,
                    "a damaged zip: its two end records say different things");
            *d = (directory){get64(b + 32), get64(b + 40), get64(b + 48), at};
            return 0;
        }
    }
    return full ? err_set(err, cap, "a damaged zip: its zip64 end record is missing")
                : 0;
}

static int read_end(const tensor_file *f, directory *d, char *err, size_t cap)
{
    unsigned char b[END_SIZE];
    uint64_t end;
    if (f->size < END_SIZE)
        return err_set(err, cap, "a zip that is cut off: %" PRIu64 " bytes", f->size);
    if (tensors_read(f, f->size - END_SIZE, b, sizeof b, err, cap))
        return -1;
    if (get32(b) != 0x06054B50 || get16(b + 20) != 0)
        return err_set(
            err, cap,
            "a zip that is cut off, or has a comment: it does not end with its "
            "end record");
    if (get16(b + 4) != 0 || get16(b + 6) != 0 || get16(b + 8) != get16(b + 10))
        return err_set(err, cap, "a zip of several disks");
    *d = (directory){get16(b + 10), get32(b + 12), get32(b + 16), 0};
    if (read_end64(f, d, f->size - END_SIZE, err, cap))
        return -1;
    if (d->n > ZIP_MAX_MEMBERS || d->size > MAX_DIRECTORY)
        return err_set(err, cap,
                       "a zip with %" PRIu64 " members in a directory of %" PRIu64
                       " bytes; the limits are %u and %" PRIu64,
                       d->n, d->size, ZIP_MAX_MEMBERS, MAX_DIRECTORY);
    if (size_add(d->offset, d->size, &end) || end != d->end)
        return err_set(err, cap,
                       "a damaged zip: a directory of %" PRIu64 " bytes at %" PRIu64
                       ", which should end at %" PRIu64,
                       d->size, d->offset, d->end);
    return 0;
}

/* ---- members ---- */

/* A name is only a key here; but what is a path elsewhere is not one of an archive that
 * torch or numpy made. */
static int plain_name(const char *s, size_t n)
{
    if (n == 0 || n > TENSOR_MAX_NAME + 64 || s[0] == '/' || s[n - 1] == '/')
        return 0;
    for (size_t i = 0; i < n; i++) {
        if ((unsigned char)s[i] < 0x20 || s[i] == '\\' || s[i] == 0x7F)
            return 0;
        if ((i == 0 || s[i - 1] == '/') && s[i] == '.' &&
            (i + 1 == n || s[i + 1] == '/' ||
             (s[i + 1] == '.' && (i + 2 == n || s[i + 2] == '/'))))
            return 0;
    }
    return 1;
}

static int fail(const zip_member *m, char *err, size_t cap, const char *what)
{
    return err_set(err, cap, "member %s: %s", name_z(m->name).text, what);
}

/* The zip64 field among the extra fields: values for those of `fields` that are all
 * ones, in their order. Fields that a local header needs not have may be left out. */
static int read_extra(const unsigned char *p, size_t n, uint64_t *const *fields,
                      size_t n_fields, int *found)
{
    *found = 0;
    while (n >= 4) {
        size_t id = get16(p), size = get16(p + 2), at = 0;
        if (size > n - 4)
            return -1;
        if (id == 1) {
            if (*found)
                return -1;
            *found = 1;
            for (size_t i = 0; i < n_fields; i++) {
                if (*fields[i] != FULL32)
                    continue;
                if (size - at < 8)
                    return -1;
                *fields[i] = get64(p + 4 + at);
                at += 8;
            }
        }
        p += 4 + size;
        n -= 4 + size;
    }
    return 0; /* up to 3 bytes left over: padding */
}

static int check_method(const zip_member *m, uint32_t method, char *err, size_t cap)
{
    if (m->flags & FLAG_ENCRYPTED)
        return fail(m, err, cap, "it is encrypted");
    if (method == 8)
        return fail(
            m, err, cap,
            "it is compressed (deflate), only stored members are read: save with "
            "np.savez instead of np.savez_compressed; of a TorchScript program save "
            "the state_dict()");
    if (method != 0)
        return err_set(
            err, cap,
            "member %s: it is compressed (method %u), only stored members are "
            "read",
            name_z(m->name).text, method);
    if (m->flags & ~(FLAG_DESCRIPTOR | FLAG_UTF8 | 6u))
        return err_set(err, cap, "member %s: flags 0x%04x are not supported",
                       name_z(m->name).text, (unsigned)m->flags);
    return 0;
}

/* One entry of the central directory, *used bytes of it. */
static int read_central(zip_member *m, const unsigned char *p, size_t n, size_t *used,
                        char *err, size_t cap)
{
    if (n < CENTRAL_SIZE || get32(p) != 0x02014B50)
        return err_set(err, cap, "a damaged zip: an entry of its directory is cut off");
    size_t name = get16(p + 28), extra = get16(p + 30), comment = get16(p + 32);
    *used = CENTRAL_SIZE + name + extra + comment;
    if (*used > n)
        return err_set(err, cap, "a damaged zip: an entry of its directory is cut off");
    const char *text = (const char *)p + CENTRAL_SIZE;
    if (!plain_name(text, name))
        return err_set(err, cap, "member %s: not a plain name",
                       name_n(text, name).text);
    m->name = malloc(name + 1);
    if (!m->name)
        return err_set(err, cap, "out of memory");
    memcpy(m->name, text, name);
    m->name[name] = 0;
    uint64_t packed = get32(p + 20), *fields[3] = {&m->size, &packed, &m->local};
    int found;
    m->flags = (uint16_t)get16(p + 8);
    m->crc = get32(p + 16);
    m->size = get32(p + 24);
    m->local = get32(p + 42);
    if (check_method(m, get16(p + 10), err, cap))
        return -1;
    int full = packed == FULL32 || m->size == FULL32 || m->local == 0xFFFFFFFF;
    if (read_extra(p + CENTRAL_SIZE + name, extra, fields, 3, &found) ||
        (full && !found))
        return fail(m, err, cap, "its zip64 field is missing or damaged");
    if (get16(p + 34) != 0)
        return err_set(err, cap, "a zip of several disks");
    if (packed != m->size)
        return err_set(err, cap,
                       "member %s: it is stored, but takes %" PRIu64
                       " bytes for %" PRIu64,
                       name_z(m->name).text, packed, m->size);
    return 0;
}

/* The local header in front of the data: the same name and method, and the same numbers
 * where it has any. */
static int read_local(const tensor_file *f, zip_member *m, uint64_t limit, char *err,
                      size_t cap)
{
    unsigned char b[LOCAL_SIZE];
    uint64_t end;
    int found, later = m->flags & FLAG_DESCRIPTOR ? 1 : 0;
    if (size_add(m->local, LOCAL_SIZE, &end) || end > limit)
        return fail(m, err, cap, "it does not lie in front of the directory");
    if (tensors_read(f, m->local, b, sizeof b, err, cap))
        return -1;
    size_t name = get16(b + 26), extra = get16(b + 28);
    if (get32(b) != 0x04034B50 || get16(b + 6) != m->flags || get16(b + 8) != 0 ||
        name != strlen(m->name))
        return fail(m, err, cap, "its local header does not agree with the directory");
    uint64_t size = get32(b + 22), packed = get32(b + 18),
             *fields[2] = {&size, &packed};
    uint32_t crc = get32(b + 14);
    if (name + extra > limit - end)
        return fail(m, err, cap, "it does not lie in front of the directory");
    unsigned char *rest = malloc(name + extra + 1);
    int status = rest ? tensors_read(f, end, rest, name + extra, err, cap)
                      : err_set(err, cap, "out of memory");
    if (!status && memcmp(rest, m->name, name) != 0)
        status = fail(m, err, cap, "its local header has another name");
    if (!status && read_extra(rest + name, extra, fields, 2, &found))
        status = fail(m, err, cap, "a damaged extra field in its local header");
    free(rest);
    if (status)
        return -1;
    int empty = later && size == 0 && packed == 0 && crc == 0;
    if (!empty && (size != m->size || packed != m->size || crc != m->crc))
        return err_set(err, cap,
                       "member %s: its local header says %" PRIu64
                       " bytes, CRC-32 %08" PRIx32 ", the directory %" PRIu64
                       ", %08" PRIx32,
                       name_z(m->name).text, size, crc, m->size, m->crc);
    m->offset = end + name + extra;
    if (m->offset > limit || m->size > limit - m->offset)
        return fail(m, err, cap, "it does not lie in front of the directory");
    return 0;
}

/* What a data descriptor at `at` says, `room` bytes up to what follows: 4 bytes of
 * signature, CRC-32, two sizes of 4 or 8 bytes. */
static int check_descriptor(const tensor_file *f, const zip_member *m, uint64_t at,
                            uint64_t room, char *err, size_t cap)
{
    unsigned char b[24];
    if (room != 16 && room != 24)
        return fail(m, err, cap, "there is no data descriptor behind its data");
    if (tensors_read(f, at, b, room, err, cap))
        return -1;
    uint64_t packed = room == 24 ? get64(b + 8) : get32(b + 8);
    uint64_t size = room == 24 ? get64(b + 16) : get32(b + 12);
    if (get32(b) != 0x08074B50 || get32(b + 4) != m->crc || packed != m->size ||
        size != m->size)
        return fail(m, err, cap,
                    "its data descriptor does not agree with the directory");
    return 0;
}

static int by_local(const void *a, const void *b)
{
    const zip_member *x = a, *y = b;
    return x->local < y->local ? -1 : x->local > y->local;
}

/* One after the other from the beginning to the directory. */
static int check_tiling(const tensor_file *f, const zip *z, uint64_t limit, char *err,
                        size_t cap)
{
    uint64_t at = 0;
    for (size_t i = 0; i < z->n; i++) {
        const zip_member *m = &z->list[i];
        uint64_t next = i + 1 < z->n ? z->list[i + 1].local : limit;
        uint64_t end = m->offset + m->size;
        if (m->local != at)
            return err_set(err, cap,
                           "member %s: it begins at byte %" PRIu64
                           ", the one before it ends at %" PRIu64 " (%s)",
                           name_z(m->name).text, m->local, at,
                           m->local < at ? "overlap" : "gap");
        if (m->flags & FLAG_DESCRIPTOR) {
            if (next < end)
                return err_set(err, cap,
                               "member %s: it ends at byte %" PRIu64
                               ", the next begins at %" PRIu64 " (overlap)",
                               name_z(m->name).text, end, next);
            if (check_descriptor(f, m, end, next - end, err, cap))
                return -1;
            end = next;
        }
        at = end;
    }
    return at == limit ? 0
                       : err_set(err, cap,
                                 "the members end at byte %" PRIu64
                                 ", the directory begins at %" PRIu64 " (%s)",
                                 at, limit, at < limit ? "gap" : "overlap");
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const zip_member *)a)->name, ((const zip_member *)b)->name);
}

static int read_members(const tensor_file *f, const directory *d, zip *z,
                        const unsigned char *text, char *err, size_t cap)
{
    size_t at = 0, used;
    for (uint64_t i = 0; i < d->n; i++) {
        zip_member *m = &z->list[z->n++];
        if (read_central(m, text + at, (size_t)d->size - at, &used, err, cap) ||
            read_local(f, m, d->offset, err, cap))
            return -1;
        at += used;
    }
    if (at != d->size)
        return err_set(err, cap,
                       "a damaged zip: its directory has %" PRIu64
                       " bytes, its %" PRIu64 " entries take %zu",
                       d->size, d->n, at);
    qsort(z->list, z->n, sizeof *z->list, by_local);
    if (check_tiling(f, z, d->offset, err, cap))
        return -1;
    qsort(z->list, z->n, sizeof *z->list, by_name);
    for (size_t i = 1; i < z->n; i++)
        if (strcmp(z->list[i - 1].name, z->list[i].name) == 0)
            return fail(&z->list[i], err, cap, "it is there twice");
    return 0;
}

int zip_open(const tensor_file *f, zip *z, char *err, size_t cap)
{
    directory d = {0, 0, 0, 0};
    z->list = NULL;
    z->n = 0;
    if (read_end(f, &d, err, cap))
        return -1;
    if (d.n > d.size / CENTRAL_SIZE)
        return err_set(err, cap,
                       "a damaged zip: %" PRIu64 " members in a directory of %" PRIu64
                       " bytes",
                       d.n, d.size);
    unsigned char *text = malloc((size_t)d.size + 1);
    z->list = calloc((size_t)d.n + 1, sizeof *z->list);
    int status = text && z->list ? tensors_read(f, d.offset, text, d.size, err, cap)
                                 : err_set(err, cap, "out of memory");
    if (!status)
        status = read_members(f, &d, z, text, err, cap);
    free(text);
    return status;
}

void zip_free(zip *z)
{
    for (size_t i = 0; i < z->n; i++)
        free(z->list[i].name);
    free(z->list);
    z->list = NULL;
    z->n = 0;
}

const zip_member *zip_find(const zip *z, const char *name)
{
    size_t low = 0, high = z->n;
    while (low < high) {
        size_t mid = low + (high - low) / 2;
        int c = strcmp(name, z->list[mid].name);
        if (c == 0)
            return &z->list[mid];
        if (c < 0)
            high = mid;
        else
            low = mid + 1;
    }
    return NULL;
}

int zip_load(const tensor_file *f, const zip_member *m, uint64_t limit, char **data,
             char *err, size_t cap)
{
    if (m->size > limit)
        return err_set(err, cap, "member %s: %" PRIu64 " bytes, the limit is %" PRIu64,
                       name_z(m->name).text, m->size, limit);
    *data = malloc((size_t)m->size + 1);
    if (!*data)
        return err_set(err, cap, "out of memory");
    int status = tensors_read(f, m->offset, *data, m->size, err, cap);
    if (!status && zip_crc(0, *data, (size_t)m->size) != m->crc)
        status = fail(m, err, cap,
                      "it is damaged: the CRC-32 of its data is not what the "
                      "directory says");
    if (status) {
        free(*data);
        *data = NULL;
        return -1;
    }
    (*data)[m->size] = 0;
    return 0;
}

int zip_is_torch(const tensor_file *f, int *torch, char *err, size_t cap)
{
    static const char pickle[] = "/data.pkl";
    zip z;
    int status = zip_open(f, &z, err, cap);
    *torch = 0;
    for (size_t i = 0; i < z.n && !status; i++) {
        size_t n = strlen(z.list[i].name), tail = sizeof pickle - 1;
        if (n > tail && strcmp(z.list[i].name + n - tail, pickle) == 0)
            *torch = 1;
    }
    zip_free(&z);
    return status;
}

/* ---- writing ---- */

struct zip_writer {
    outfile *out;
    zip_member *list; /* [n] in the order of the file */
    size_t n, room;
    uint64_t left; /* bytes of the last member that are still to come */
};

static unsigned char *put16(unsigned char *p, uint32_t x)
{
    p[0] = (unsigned char)x;
    p[1] = (unsigned char)(x >> 8);
    return p + 2;
}

static unsigned char *put32(unsigned char *p, uint64_t x)
{
    return put16(put16(p, (uint32_t)x & 0xFFFF), (uint32_t)(x >> 16) & 0xFFFF);
}

static unsigned char *put64(unsigned char *p, uint64_t x)
{
    return put32(put32(p, x), x >> 32);
}

zip_writer *zip_writer_create(const char *path, char *err, size_t cap)
{
    zip_writer *w = calloc(1, sizeof *w);
    if (!w) {
        err_set(err, cap, "out of memory");
        return NULL;
    }
    w->out = outfile_create(path, err, cap);
    if (w->out)
        return w;
    free(w);
    return NULL;
}

static void writer_free(zip_writer *w)
{
    for (size_t i = 0; i < w->n; i++)
        free(w->list[i].name);
    free(w->list);
    free(w);
}

void zip_writer_abort(zip_writer *w)
{
    if (!w)
        return;
    outfile_abort(w->out);
    writer_free(w);
}

/* Local header; its zip64 field is there where the size needs it. */
static size_t make_local(const zip_member *m, unsigned char *out)
{
    int wide = m->size >= FULL32;
    unsigned char *p = put32(out, 0x04034B50);
    p = put16(put16(put16(p, wide ? 45 : 20), 0), 0);
    p = put32(put32(p, NO_TIME), m->crc);
    p = put32(put32(p, wide ? FULL32 : m->size), wide ? FULL32 : m->size);
    p = put16(put16(p, (uint32_t)strlen(m->name)), wide ? 20 : 0);
    memcpy(p, m->name, strlen(m->name));
    p += strlen(m->name);
    if (wide)
        p = put64(put64(put16(put16(p, 1), 16), m->size), m->size);
    return (size_t)(p - out);
}

static size_t make_central(const zip_member *m, unsigned char *out)
{
    int size = m->size >= FULL32, place = m->local >= FULL32;
    uint32_t version = size || place ? 45 : 20;
    uint32_t extra = (uint32_t)(size ? 16 : 0) + (uint32_t)(place ? 8 : 0);
    unsigned char *p = put32(out, 0x02014B50);
    p = put16(put16(put16(put16(p, version), version), 0), 0);
    p = put32(put32(p, NO_TIME), m->crc);
    p = put32(put32(p, size ? FULL32 : m->size), size ? FULL32 : m->size);
    p = put16(put16(p, (uint32_t)strlen(m->name)), extra ? extra + 4 : 0);
    p = put32(put16(put16(put16(p, 0), 0), 0), 0);
    p = put32(p, place ? FULL32 : m->local);
    memcpy(p, m->name, strlen(m->name));
    p += strlen(m->name);
    if (extra)
        p = put16(put16(p, 1), extra);
    if (size)
        p = put64(put64(p, m->size), m->size);
    if (place)
        p = put64(p, m->local);
    return (size_t)(p - out);
}

/* The CRC-32 of the last member is known now. */
static int end_member(zip_writer *w, char *err, size_t cap)
{
    unsigned char b[4];
    if (w->n == 0)
        return 0;
    const zip_member *m = &w->list[w->n - 1];
    if (w->left > 0)
        return err_set(err, cap, "member %s: %" PRIu64 " bytes are missing",
                       name_z(m->name).text, w->left);
    put32(b, m->crc);
    return outfile_write_at(w->out, m->local + 14, b, 4, err, cap);
}

int zip_writer_member(zip_writer *w, const char *name, uint64_t size, char *err,
                      size_t cap)
{
    unsigned char header[LOCAL_SIZE + TENSOR_MAX_NAME + 64 + 20];
    size_t len = strlen(name);
    if (end_member(w, err, cap))
        return -1;
    if (!plain_name(name, len) || w->n == ZIP_MAX_MEMBERS)
        return err_set(err, cap, "member %s cannot be written", name_z(name).text);
    for (size_t i = 0; i < w->n; i++)
        if (strcmp(w->list[i].name, name) == 0)
            return err_set(err, cap, "member %s is there twice", name_z(name).text);
    if (w->n == w->room) {
        size_t room = w->room ? 2 * w->room : 16;
        zip_member *list = realloc(w->list, room * sizeof *list);
        if (!list)
            return err_set(err, cap, "out of memory");
        w->list = list;
        w->room = room;
    }
    zip_member m = {malloc(len + 1), 0, size, 0, outfile_size(w->out), 0};
    if (!m.name)
        return err_set(err, cap, "out of memory");
    memcpy(m.name, name, len + 1);
    w->list[w->n++] = m;
    w->left = size;
    return outfile_write(w->out, header, make_local(&m, header), err, cap);
}

int zip_writer_data(zip_writer *w, const void *data, size_t size, char *err, size_t cap)
{
    if (size > w->left)
        return err_set(err, cap, "member %s: %" PRIu64 " bytes too many",
                       w->n ? name_z(w->list[w->n - 1].name).text : "(none)",
                       size - w->left);
    if (size == 0)
        return 0;
    zip_member *m = &w->list[w->n - 1];
    m->crc = zip_crc(m->crc, data, size);
    w->left -= size;
    return outfile_write(w->out, data, size, err, cap);
}

/* The directory and the end records; the zip64 ones where a number needs them. */
static int write_directory(zip_writer *w, char *err, size_t cap)
{
    unsigned char b[CENTRAL_SIZE + TENSOR_MAX_NAME + 64 + 28];
    uint64_t offset = outfile_size(w->out), n = w->n;
    for (size_t i = 0; i < w->n; i++)
        if (outfile_write(w->out, b, make_central(&w->list[i], b), err, cap))
            return -1;
    uint64_t end = outfile_size(w->out), size = end - offset;
    unsigned char *p = b;
    if (n >= 0xFFFF || offset >= FULL32 || size >= FULL32) {
        p = put64(put32(p, 0x06064B50), END64_SIZE - 12);
        p = put32(put32(put16(put16(p, 45), 45), 0), 0);
        p = put64(put64(put64(put64(p, n), n), size), offset);
        p = put32(put64(put32(put32(p, 0x07064B50), 0), end), 1);
    }
    p = put16(put16(put32(p, 0x06054B50), 0), 0);
    p = put16(p, n < 0xFFFF ? (uint32_t)n : 0xFFFF);
    p = put16(p, n < 0xFFFF ? (uint32_t)n : 0xFFFF);
    p = put32(p, size < FULL32 ? size : FULL32);
    p = put32(p, offset < FULL32 ? offset : FULL32);
    p = put16(p, 0);
    return outfile_write(w->out, b, (size_t)(p - b), err, cap);
}

int zip_writer_commit(zip_writer *w, char *err, size_t cap)
{
    int status = end_member(w, err, cap) || write_directory(w, err, cap);
    if (status) {
        zip_writer_abort(w);
        return -1;
    }
    status = outfile_commit(w->out, err, cap);
    writer_free(w);
    return status;
}
