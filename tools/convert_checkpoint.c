/* A Qwen3 checkpoint folder as Hugging Face saves it, as a source of a model file. */

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#define _FILE_OFFSET_BITS 64

#include "convert.h"

#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_SHARDS 1024

/* ---- the shards ---- */

typedef struct shard {
    char *name;
    tensor_file *file;
} shard;
typedef struct checkpoint {
    shard *shards;
    size_t n;
} checkpoint;

static void checkpoint_close(checkpoint *k)
{
    for (size_t i = 0; i < k->n; i++) {
        free(k->shards[i].name);
        tensors_close(k->shards[i].file);
    }
    free(k->shards);
}

static shard *shard_of(checkpoint *k, const char *name)
{
    for (size_t i = 0; i < k->n; i++)
        if (strcmp(k->shards[i].name, name) == 0)
            return &k->shards[i];
    return NULL;
}

/* A file name of the index must not lead anywhere else. (A symbolic link may: the cache
 * of Hugging Face consists of them.) */
static int plain_name(const json_value *v)
{
    static const char end[] = ".safetensors";
    size_t tail = sizeof end - 1;
    if (v->type != JSON_STRING || v->len <= tail || v->len > 255 ||
        strlen(v->str) != v->len)
        return 0;
    return v->str[0] != '.' && !strpbrk(v->str, "/\\:") &&
           strcmp(v->str + v->len - tail, end) == 0;
}

static int same_file(const char *dir, const char *a, const char *b)
{
    struct stat x, y;
    char *pa = convert_path(dir, a), *pb = convert_path(dir, b);
    int same = pa && pb && stat(pa, &x) == 0 && stat(pb, &y) == 0 &&
               x.st_dev == y.st_dev && x.st_ino == y.st_ino;
    free(pa);
    free(pb);
    return same;
}

static int shard_open(checkpoint *k, const char *dir, const char *name, char *err,
                      size_t cap)
{
    for (size_t i = 0; i < k->n; i++)
        if (same_file(dir, name, k->shards[i].name))
            return err_set(err, cap, "%s and %s are one file",
                           name_z(k->shards[i].name).text, name_z(name).text);
    char *path = convert_path(dir, name), *copy = malloc(strlen(name) + 1);
    tensor_file *f = NULL;
    if (path && copy)
        f = tensors_open(path, err, cap);
    else
        err_set(err, cap, "out of memory");
    free(path);
    if (!f) {
        free(copy);
        return -1;
    }
    strcpy(copy, name);
    k->shards[k->n++] = (shard){copy, f};
    return 0;
}

#define INDEX_NAME "model.safetensors.index.json"

/* Every tensor of the map is in the shard that the map names. */
static int check_map(checkpoint *k, const json_doc *doc, const json_value *map,
                     const char *dir, char *err, size_t cap)
{
    for (const json_value *v = json_first(doc, map); v; v = json_next(doc, v)) {
        size_t len;
        const char *name = json_key(doc, v, &len);
        if (!plain_name(v))
            return err_set(err, cap,
                           INDEX_NAME
                           ": tensor %s is mapped to \"%s\", which is not the plain "
                           "name of a .safetensors file",
                           name_n(name, len).text,
                           v->type == JSON_STRING ? name_n(v->str, v->len).text
                                                  : "(not a string)");
        shard *s = shard_of(k, v->str);
        if (!s && k->n == MAX_SHARDS)
            return err_set(err, cap, INDEX_NAME ": more than %d files", MAX_SHARDS);
        if (!s && shard_open(k, dir, v->str, err, cap))
            return -1;
        s = shard_of(k, v->str);
        if (strlen(name) != len || !tensors_find(s->file, name))
            return err_set(err, cap,
                           INDEX_NAME
                           ": tensor %s is mapped to %s, which does not have it",
                           name_n(name, len).text, name_z(v->str).text);
    }
    return 0;
}

/* Every tensor of every shard is in the map, and mapped to that shard. */
static int check_shards(const checkpoint *k, const json_doc *doc, const json_value *map,
                        char *err, size_t cap)
{
    for (size_t i = 0; i < k->n; i++) {
        for (size_t j = 0; j < tensors_count(k->shards[i].file); j++) {
            const char *name = tensors_at(k->shards[i].file, j)->name;
            const json_value *v = json_get(doc, map, name);
            if (!v)
                return err_set(err, cap,
                               "%s has tensor %s, which " INDEX_NAME " does not list",
                               name_z(k->shards[i].name).text, name_z(name).text);
            if (strcmp(v->str, k->shards[i].name) != 0)
                return err_set(err, cap, "tensor %s is in %s and in %s",
                               name_z(name).text, name_z(v->str).text,
                               name_z(k->shards[i].name).text);
        }
    }
    return 0;
}

/* model-00001-of-00002.safetensors that the index does not know: the folder mixes two
 * checkpoints. */
static int check_strays(checkpoint *k, const char *dir, char *err, size_t cap)
{
    DIR *d = opendir(dir);
    int status = 0;
    if (!d)
        return 0;
    for (struct dirent *e; !status && (e = readdir(d)) != NULL;) {
        size_t n = strlen(e->d_name);
        if (n > 18 && strncmp(e->d_name, "model-", 6) == 0 &&
            strcmp(e->d_name + n - 12, ".safetensors") == 0 && !shard_of(k, e->d_name))
            status = err_set(err, cap,
                             "%s is in the folder, but " INDEX_NAME " does not list it",
                             name_z(e->d_name).text);
    }
    closedir(d);
    return status;
}

static int open_sharded(checkpoint *k, const char *dir, char *err, size_t cap)
{
    json_doc *doc;
    if (convert_read_json(dir, INDEX_NAME, &doc, err, cap))
        return -1;
    const json_value *map = json_get(doc, json_root(doc), "weight_map");
    int status = 0;
    if (!map || map->type != JSON_OBJECT || map->n == 0)
        status = err_set(err, cap,
                         INDEX_NAME ": weight_map is missing, empty or not an object");
    if (!status)
        status = check_map(k, doc, map, dir, err, cap) ||
                 check_shards(k, doc, map, err, cap) || check_strays(k, dir, err, cap);
    json_free(doc);
    return status ? -1 : 0;
}

static int checkpoint_open(checkpoint *k, const char *dir, char *err, size_t cap)
{
    int one = convert_exists(dir, "model.safetensors"),
        many = convert_exists(dir, INDEX_NAME);
    memset(k, 0, sizeof *k);
    k->shards = calloc(MAX_SHARDS, sizeof *k->shards);
    if (!k->shards)
        return err_set(err, cap, "out of memory");
    if (convert_exists(dir, "adapter_config.json"))
        return err_set(
            err, cap,
            "the folder holds an adapter (adapter_config.json); merge it into the "
            "model first");
    if (one && many)
        return err_set(err, cap,
                       "the folder holds both model.safetensors and " INDEX_NAME
                       "; remove the one "
                       "that is not meant");
    if (many)
        return open_sharded(k, dir, err, cap);
    if (one)
        return shard_open(k, dir, "model.safetensors", err, cap);
    return err_set(
        err, cap, "neither model.safetensors nor " INDEX_NAME " is in the folder%s",
        convert_exists(dir, "pytorch_model.bin") ||
                convert_exists(dir, "pytorch_model.bin.index.json")
            ? " (pytorch_model.bin is not read: save the model as safetensors)"
            : "");
}

/* ---- tokenizer and chat template ---- */

static int read_text(model_source *s, const char *dir, const convert_options *o,
                     char *err, size_t cap)
{
    uint64_t count;
    if (o->no_tokenizer)
        return 0;
    if (!convert_exists(dir, "tokenizer.json")) {
        convert_note("no tokenizer.json in the folder: the model will take and give "
                     "token ids only");
        return 0;
    }
    if (convert_build_tokenizer(dir, s->config.record.vocab_size, &s->blob,
                                &s->blob_size, &count, err, cap))
        return -1;
    return convert_chat_template(dir, o, &s->meta, &s->chat_flags, err, cap);
}

/* ---- all of it ---- */

static const model_names names = {
    "config.json",
    "model.embed_tokens.weight",
    "model.norm.weight",
    "lm_head.weight",
    "model.layers.",
    {"input_layernorm", "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj",
     "self_attn.q_norm", "self_attn.k_norm", "self_attn.o_proj",
     "post_attention_layernorm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
    "vocab_size",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "F32, BF16 and F16",
};

int convert_model(const char *dir, const convert_options *o, char *err, size_t cap)
{
    checkpoint k = {NULL, 0};
    model_source s;
    memset(&s, 0, sizeof s);
    s.path = dir;
    s.names = &names;
    int status = convert_config(dir, o, &s.config, err, cap);
    if (!status)
        status = checkpoint_open(&k, dir, err, cap) || read_text(&s, dir, o, err, cap);
    qfile_meta_add(&s.meta, "source", "Qwen3ForCausalLM checkpoint (safetensors)");
    if (s.config.version.text[0])
        qfile_meta_add(&s.meta, "source.transformers", "%s", s.config.version.text);
    const tensor_file **files = calloc(k.n + 1, sizeof *files);
    if (!status && !files)
        status = err_set(err, cap, "out of memory");
    for (size_t i = 0; files && i < k.n; i++)
        files[i] = k.shards[i].file;
    s.files = files;
    s.n_files = k.n;
    if (!status)
        status = convert_write_model(&s, o, err, cap);
    free(files);
    free(s.blob);
    qfile_meta_free(&s.meta);
    checkpoint_close(&k);
    return status ? -1 : 0;
}
