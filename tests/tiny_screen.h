/* tiny_screen.h: adds a screen to the image of an SAE that tiny_add_sae makes (tiny.h includes it). Written from the
 * words of tools/FORMAT.md, apart from the converter's quantizer. */

#ifndef QSAE_TESTS_TINY_SCREEN_H
#define QSAE_TESTS_TINY_SCREEN_H

/* Value (n, k) of a ROWS tensor of f whose data begin at `at`. */
static inline double tiny_row_value(const tiny_file *f, const qsae_tensor_record *t, uint64_t at, uint64_t n, uint64_t k)
{
    const uint8_t *p = f->data + at + n * (t->size / t->rows) + k * (t->type == QSAE_TYPE_F32 ? 4 : 2);
    uint32_t u = 0;
    float v;
    if (t->type == QSAE_TYPE_F32) memcpy(&u, p, 4);
    else memcpy((uint8_t *)&u + 2, p, 2); /* little-endian machines run this */
    memcpy(&v, &u, 4);
    return v;
}

/* Row n, columns from..: the scale into the superblock at p, the integers too, at most `most` in size (127 for a good
 * screen, 3 for a crude one). Adds to *rest and *norm. */
static inline void tiny_screen_row(const tiny_file *f, const qsae_tensor_record *t, uint64_t enc_at, uint64_t n, uint64_t from,
                                   int most, uint8_t *p, double *rest, double *norm)
{
    uint64_t end = t->cols - from < 256 ? t->cols : from + 256, r = n % 16;
    double max = 0;
    for (uint64_t k = from; k < end; k++) {
        double v = fabs(tiny_row_value(f, t, enc_at, n, k));
        max = v > max ? v : max;
    }
    float a = (float)(max / most);
    int any = 0;
    for (uint64_t k = from; k < end; k++) {
        double v = tiny_row_value(f, t, enc_at, n, k);
        int w = a > 0 ? (int)lrint(v / (double)a) : 0;
        w = w > 127 ? 127 : w < -127 ? -127 : w;
        any |= w;
        p[(k - from) / 4 * 64 + 4 * r + k % 4] = (uint8_t)(int8_t)w;
        double c = (double)(a * (float)w);
        *rest += (v - c) * (v - c);
        *norm += c * c;
    }
    if (!any) a = 0;
    memcpy(p + 4096 + 4 * r, &a, 4);
}

/* most: the largest integer of the copy */
static inline void tiny_add_screen(tiny_file *f, uint32_t group, uint32_t enc, int most)
{
    const qsae_tensor_record t = f->list[enc];
    uint64_t enc_at = 0, ng = (t.cols + 255) / 256;
    for (uint32_t i = 0; i < enc; i++) enc_at += f->list[i].size;
    tiny_add(f, group, QSAE_ROLE_SCREEN, QSAE_TYPE_Q8, QSAE_LAYOUT_BLOCK16, t.rows, t.cols, 0, 0);
    uint64_t at = f->size - f->list[f->n - 1].size, rest_at = f->size;
    tiny_add(f, group, QSAE_ROLE_SCREEN_REST, QSAE_TYPE_F32, QSAE_LAYOUT_VECTOR, 1, t.rows, 0, 0);
    uint64_t norm_at = f->size;
    tiny_add(f, group, QSAE_ROLE_SCREEN_NORM, QSAE_TYPE_F32, QSAE_LAYOUT_VECTOR, 1, t.rows, 0, 0);
    memset(f->data + at, 0, rest_at - at);
    for (uint64_t n = 0; n < t.rows; n++) {
        double rest = 0, norm = 0;
        for (uint64_t g = 0; g < ng; g++)
            tiny_screen_row(f, &t, enc_at, n, 256 * g, most, f->data + at + (n / 16 * ng + g) * 4160, &rest, &norm);
        float up[2] = {nextafterf((float)(sqrt(rest) * 1.0000001), INFINITY), nextafterf((float)(sqrt(norm) * 1.0000001), INFINITY)};
        memcpy(f->data + rest_at + 4 * n, &up[0], 4);
        memcpy(f->data + norm_at + 4 * n, &up[1], 4);
    }
}

#endif
