/*
 * test_weights.c - what is wrong with a model is said by name; its identity
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvd/model/gguf.h"
#include "kvd/model/llama.h"
#include "tests/rig/rig_gguf.h"

static struct llama *open_spec(const struct rig_model *spec,
			       enum kern_type math)
{
	struct llama *m;
	struct gguf *g;
	char err[256] = "";
	size_t len;
	void *p = rig_model_gguf(spec, &len);

	ck_assert_msg(!gguf_open_mem(&g, p, len, err, sizeof(err)), "%s", err);
	ck_assert_msg(!llama_open_gguf(&m, g, math, err, sizeof(err)), "%s",
		      err);
	gguf_close(g);
	memset(p, 0xee, len); /* nothing may depend on it any more */
	free(p);
	return m;
}

/* Open p as a model; ret and part of the text are as given. Frees p. */
static void opens(void *p, size_t len, int ret, const char *why)
{
	struct llama *m;
	struct gguf *g;
	char err[256] = "";
	int got;

	ck_assert_msg(!gguf_open_mem(&g, p, len, err, sizeof(err)), "%s", err);
	got = llama_open_gguf(&m, g, KERN_F32, err, sizeof(err));
	if (!got)
		llama_close(m);
	gguf_close(g);
	free(p);
	ck_assert_msg(got == ret && (!ret || strstr(err, why)),
		      "want %d \"%s\", got %d \"%s\"", ret, why, got, err);
}

static void tensor_case(const char *extra, const char *missing, int ret,
			const char *why)
{
	const struct rig_model spec = { .extra = extra, .missing = missing };
	size_t len;
	void *p = rig_model_gguf(&spec, &len);

	opens(p, len, ret, why);
}

START_TEST(tensors_are_refused_by_name)
{
	static const char *const names[] = {
		"token_embd.weight",	    "output_norm.weight",
		"blk.0.attn_norm.weight",   "blk.0.attn_q.weight",
		"blk.0.attn_k.weight",	    "blk.0.attn_v.weight",
		"blk.1.attn_output.weight", "blk.1.ffn_norm.weight",
		"blk.1.ffn_gate.weight",    "blk.1.ffn_up.weight",
		"blk.1.ffn_down.weight",
	};

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		tensor_case(NULL, names[i], -EINVAL, names[i]);
	tensor_case(NULL, "output.weight", 0, ""); /* tied */
	tensor_case("blk.0.attn_q.bias", NULL, -ENOTSUP, "blk.0.attn_q.bias");
	tensor_case("rope_freqs.weight", NULL, -ENOTSUP, "rope_freqs.weight");
	tensor_case("blk.2.attn_norm.weight", NULL, -ENOTSUP, "blk.2.");
}
END_TEST

/* Where the value of key begins in p. */
static uint8_t *value_of(uint8_t *p, size_t len, const char *key)
{
	uint8_t *at = memmem(p, len, key, strlen(key));

	ck_assert_ptr_nonnull(at);
	return at + strlen(key) + 4;
}

static void key_case(const char *key, uint32_t v, int ret, const char *why)
{
	const struct rig_model spec = { .seed = 1 };
	size_t len;
	uint8_t *p = rig_model_gguf(&spec, &len);

	memcpy(value_of(p, len, key), &v, sizeof(v));
	opens(p, len, ret, why);
}

START_TEST(shapes_are_refused_by_key_or_tensor)
{
	key_case("llama.block_count", 2, 0, "");
	key_case("llama.block_count", 0, -EINVAL, "llama.block_count");
	key_case("llama.block_count", UINT32_MAX, -EINVAL, "block_count");
	key_case("llama.block_count", 1, -ENOTSUP, "blk.1.");
	key_case("llama.block_count", 3, -EINVAL, "blk.2.attn_norm.weight");
	key_case("llama.embedding_length", 63, -EINVAL, "token_embd.weight");
	key_case("llama.embedding_length", 1u << 31, -EINVAL, "embedding_len");
	key_case("llama.feed_forward_length", 95, -EINVAL, "blk.0.ffn_gate");
	key_case("llama.context_length", 0, -EINVAL, "context_length");
	key_case("llama.vocab_size", 319, -EINVAL, "vocab_size");
	key_case("llama.attention.head_count_kv", 0, -EINVAL, "head_count_kv");
	key_case("llama.attention.head_count_kv", 3, -EINVAL, "multiple");
	key_case("llama.attention.head_count_kv", 2, -EINVAL, "blk.0.attn_k");
	key_case("llama.attention.key_length", 24, -ENOTSUP, "keys of 24");
	key_case("llama.rope.dimension_count", 34, -EINVAL, "rope of 34");
	key_case("llama.rope.dimension_count", 31, -EINVAL, "rope of 31");
	key_case("llama.rope.dimension_count", 16, 0, "");
	key_case("layer_norm_rms_epsilon", 0x7fc00000, -EINVAL, "epsilon");
	key_case("llama.rope.freq_base", 0x80000000, -EINVAL, "freq_base");
}
END_TEST

static const char *scaling;

static void scaling_keys(struct rig_gguf *w)
{
	rig_gguf_str(w, "llama.rope.scaling.type", scaling);
	rig_gguf_f32(w, "llama.rope.scaling.factor", 2.0f);
}

static void expert_keys(struct rig_gguf *w)
{
	rig_gguf_u32(w, "llama.expert_count", 8);
}

static void window_keys(struct rig_gguf *w)
{
	rig_gguf_u32(w, "llama.attention.sliding_window", 4096);
}

static void no_keys(struct rig_gguf *w)
{
	rig_gguf_u32(w, "llama.expert_count", 0);
	rig_gguf_u32(w, "llama.attention.sliding_window", 0);
	rig_gguf_str(w, "general.name", "tiny");
}

static void more(void (*keys)(struct rig_gguf *w), int ret, const char *why)
{
	const struct rig_model spec = { .more_keys = keys };
	size_t len;
	void *p = rig_model_gguf(&spec, &len);

	opens(p, len, ret, why);
}

START_TEST(features_are_refused_by_name)
{
	const struct rig_model spec = { .seed = 1 };
	size_t len;
	uint8_t *p = rig_model_gguf(&spec, &len);

	memcpy(value_of(p, len, "general.architecture") + 8, "gemma", 5);
	opens(p, len, -ENOTSUP, "\"gemma\"");
	more(no_keys, 0, "");
	more(expert_keys, -ENOTSUP, "expert_count");
	more(window_keys, -ENOTSUP, "sliding_window");
	scaling = "linear";
	more(scaling_keys, 0, "");
	scaling = "none";
	more(scaling_keys, 0, "");
	scaling = "yarn";
	more(scaling_keys, -ENOTSUP, "\"yarn\"");
}
END_TEST

START_TEST(linear_scaling_divides_positions)
{
	struct rig_model spec = { .more_keys = scaling_keys };
	struct llama *m;

	scaling = "linear";
	m = open_spec(&spec, KERN_F32);
	ck_assert(llama_shape(m)->rope.scale == 0.5f);
	llama_close(m);
	scaling = "none";
	m = open_spec(&spec, KERN_F32);
	ck_assert(llama_shape(m)->rope.scale == 1.0f);
	ck_assert_int_eq(llama_shape(m)->rope.kind, KERN_ROPE_INTERLEAVED);
	llama_close(m);
}
END_TEST

static void type_case(const char *name, uint32_t type, int ret, const char *why)
{
	const struct rig_model spec = { .seed = 1 };
	size_t len;
	uint8_t *p = rig_model_gguf(&spec, &len);
	uint8_t *at = value_of(p, len, name);
	uint32_t n_dims;

	memcpy(&n_dims, at - 4, sizeof(n_dims));
	memcpy(at + 8 * n_dims, &type, sizeof(type));
	opens(p, len, ret, why);
}

START_TEST(types_are_refused_by_name)
{
	type_case("blk.0.attn_k.weight", 12, -ENOTSUP, "Q4_K (12)");
	type_case("blk.0.attn_k.weight", 12, -ENOTSUP, "blk.0.attn_k.weight");
	type_case("token_embd.weight", 4000, -ENOTSUP, "unknown (4000)");
	type_case("blk.1.ffn_norm.weight", 1, -ENOTSUP, "blk.1.ffn_norm");
	type_case("blk.1.ffn_norm.weight", 30, -ENOTSUP, "BF16 (30)");
	type_case("blk.0.attn_k.weight", 1, 0, ""); /* half of the data */
}
END_TEST

/* Each byte of the keys and tensor infos, changed: no crash, a reason. */
START_TEST(every_changed_byte_is_survived)
{
	const struct rig_model spec = { .n_layers = 1, .seed = 4 };
	struct llama *m;
	struct gguf *g;
	char err[256];
	size_t len, head;
	uint8_t *p = rig_model_gguf(&spec, &len);

	ck_assert_int_eq(gguf_open_mem(&g, p, len, NULL, 0), 0);
	head = (size_t)((const uint8_t *)gguf_tensor(g, 0)->data - p);
	gguf_close(g);
	for (size_t i = (size_t)_i; i < head; i += 2) {
		p[i] ^= _i ? 0xff : 0x04;
		if (!gguf_open_mem(&g, p, len, NULL, 0)) {
			err[0] = 0;
			if (!llama_open_gguf(&m, g, KERN_F32, err, 256))
				llama_close(m);
			else
				ck_assert_msg(err[0], "byte %zu: no reason", i);
			gguf_close(g);
		}
		p[i] ^= _i ? 0xff : 0x04;
	}
	free(p);
}
END_TEST

START_TEST(the_id_names_weights_and_math)
{
	struct rig_model spec = { .seed = 1 };
	struct llama *m[5];
	uint64_t id[5][2];

	m[0] = open_spec(&spec, KERN_F32);
	m[1] = open_spec(&spec, KERN_F32);
	m[2] = open_spec(&spec, KERN_BF16);
	spec.seed = 2;
	m[3] = open_spec(&spec, KERN_F32);
	spec = (struct rig_model){ .seed = 1, .more_keys = scaling_keys };
	scaling = "linear";
	m[4] = open_spec(&spec, KERN_F32);
	for (int i = 0; i < 5; i++)
		llama_id(m[i], id[i]);
	ck_assert(!memcmp(id[0], id[1], 16));
	for (int i = 2; i < 5; i++)
		for (int j = 1; j < i; j++)
			ck_assert(memcmp(id[i], id[j], 16));
	ck_assert_uint_gt(llama_weight_bytes(m[0]), llama_weight_bytes(m[2]));
	for (int i = 0; i < 5; i++)
		llama_close(m[i]);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("weights");
	TCase *t = tcase_create("weights");
	SRunner *r;
	int failed;

	(void)kern_init(KERN_ISA_AMX);
	tcase_set_timeout(t, 120);
	tcase_add_test(t, tensors_are_refused_by_name);
	tcase_add_test(t, shapes_are_refused_by_key_or_tensor);
	tcase_add_test(t, features_are_refused_by_name);
	tcase_add_test(t, linear_scaling_divides_positions);
	tcase_add_test(t, types_are_refused_by_name);
	tcase_add_loop_test(t, every_changed_byte_is_survived, 0, 2);
	tcase_add_test(t, the_id_names_weights_and_math);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
