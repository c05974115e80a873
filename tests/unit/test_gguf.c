/*
 * test_gguf.c - what a GGUF holds is read, and what is wrong with one is said
 */
#include <check.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "kvd/model/gguf.h"
#include "tests/rig/rig_gguf.h"

static const uint64_t row8[1] = { 8 };
static const float zeros[64];

/* Open the n first bytes, in memory of just that size. */
static int open_copy(struct gguf **g, const void *p, size_t n, char *err,
		     size_t err_len)
{
	void *copy = malloc(n ? n : 1);
	int ret;

	ck_assert_ptr_nonnull(copy);
	memcpy(copy, p, n);
	ret = gguf_open_mem(g, copy, n, err, err_len);
	if (!ret)
		gguf_close(*g);
	free(copy);
	return ret;
}

/* Finish w, and expect that it is refused with a text that has both. */
static void refused(struct rig_gguf *w, const char *who, const char *why)
{
	struct gguf *g;
	char err[256] = "";
	size_t len;
	void *p = rig_gguf_finish(w, &len);
	int ret = open_copy(&g, p, len, err, sizeof(err));

	free(p);
	ck_assert_msg(ret == -EINVAL, "%s %s: %d", who, why, ret);
	ck_assert_msg(strstr(err, who) && strstr(err, why) &&
			      strstr(err, "byte "),
		      "want \"%s\" \"%s\", got \"%s\"", who, why, err);
}

static void accepted(struct rig_gguf *w)
{
	struct gguf *g;
	char err[256] = "";
	size_t len;
	void *p = rig_gguf_finish(w, &len);
	int ret = open_copy(&g, p, len, err, sizeof(err));

	free(p);
	ck_assert_msg(!ret, "%d %s", ret, err);
}

START_TEST(keys_and_tensors_come_back_as_written)
{
	static const char *const strs[] = { "a", "", "ccc" };
	static const float reals[] = { 1.5f, -2 };
	static const int32_t ints[] = { -7, 8, 9 };
	const uint64_t dims[2] = { 4, 2 };
	struct rig_gguf *w = rig_gguf_new(_i ? 3 : 2);
	const struct gguf_tensor *t;
	struct gguf_str s;
	struct gguf *g;
	uint64_t n;
	uint32_t u;
	int32_t i32;
	float f;
	int b;
	size_t len;
	void *p;

	rig_gguf_u32(w, "u", 7);
	rig_gguf_f32(w, "f", 0.25f);
	rig_gguf_bool(w, "b", 1);
	rig_gguf_str(w, "s", "text");
	rig_gguf_strs(w, "strs", strs, 3);
	rig_gguf_array(w, "reals", GGUF_F32, reals, 2, 4);
	rig_gguf_array(w, "ints", GGUF_I32, ints, 3, 4);
	rig_gguf_tensor(w, "t1", 2, dims, 0, zeros, 32);
	rig_gguf_tensor(w, "t0", 1, dims, 0, reals, 16 - 8);
	rig_gguf_tensor(w, "t2", 1, row8, 99, reals, 8);
	p = rig_gguf_finish(w, &len);
	/* t0 says 4 elements and has 2: the rest is the padding after it */
	ck_assert_int_eq(gguf_open_mem(&g, p, len, NULL, 0), 0);
	ck_assert_int_eq(gguf_get_u32(g, "u", &u), 0);
	ck_assert_uint_eq(u, 7);
	ck_assert_int_eq(gguf_get_f32(g, "f", &f), 0);
	ck_assert(f == 0.25f);
	ck_assert_int_eq(gguf_get_bool(g, "b", &b), 0);
	ck_assert_int_eq(b, 1);
	ck_assert_int_eq(gguf_get_str(g, "s", &s), 0);
	ck_assert(s.len == 4 && !memcmp(s.s, "text", 4));
	ck_assert_int_eq(gguf_get_array(g, "strs", GGUF_STRING, &n), 0);
	ck_assert_uint_eq(n, 3);
	ck_assert_int_eq(gguf_array_str(g, "strs", 2, &s), 0);
	ck_assert(s.len == 3 && !memcmp(s.s, "ccc", 3));
	ck_assert_int_eq(gguf_array_str(g, "strs", 3, &s), -EINVAL);
	ck_assert_int_eq(gguf_array_f32(g, "reals", 1, &f), 0);
	ck_assert(f == -2);
	ck_assert_int_eq(gguf_array_i32(g, "ints", 0, &i32), 0);
	ck_assert_int_eq(i32, -7);
	ck_assert_int_eq(gguf_get_u32(g, "f", &u), -EINVAL);
	ck_assert_int_eq(gguf_get_u32(g, "none", &u), -ENOENT);
	ck_assert_int_eq(gguf_get_array(g, "ints", GGUF_F32, &n), -EINVAL);
	ck_assert_int_eq(gguf_array_i32(g, "reals", 0, &i32), -EINVAL);
	ck_assert_uint_eq(gguf_n_tensors(g), 3);
	t = gguf_find(g, "t0");
	ck_assert_ptr_nonnull(t);
	ck_assert_ptr_eq(t, gguf_tensor(g, 1));
	ck_assert_uint_eq(t->n_bytes, 16);
	ck_assert(!memcmp(t->data, reals, 8));
	ck_assert_uint_eq(gguf_find(g, "t2")->n_bytes, 0);
	ck_assert_uint_eq(gguf_find(g, "t2")->ggml_type, 99);
	ck_assert_ptr_null(gguf_find(g, "t"));
	ck_assert_ptr_null(gguf_tensor(g, 3));
	gguf_close(g);
	free(p);
}
END_TEST

START_TEST(every_truncation_is_refused)
{
	const struct rig_model spec = { .n_layers = 1, .seed = 3 };
	struct gguf *g;
	char err[256];
	size_t len, head;
	uint8_t *p = rig_model_gguf(&spec, &len);

	ck_assert_int_eq(gguf_open_mem(&g, p, len, err, sizeof(err)), 0);
	head = (size_t)((const uint8_t *)gguf_tensor(g, 0)->data - p);
	gguf_close(g);
	for (size_t n = 0; n < len; n += n < head + 64 ? 1 : 997) {
		err[0] = 0;
		ck_assert_int_eq(open_copy(&g, p, n, err, sizeof(err)),
				 -EINVAL);
		ck_assert_msg(strstr(err, "byte "), "%zu: %s", n, err);
	}
	ck_assert_int_eq(open_copy(&g, p, len - 1, err, sizeof(err)), -EINVAL);
	ck_assert_msg(strstr(err, "tensor \"output.weight\""), "%s", err);
	ck_assert_int_eq(open_copy(&g, p, len, err, sizeof(err)), 0);
	free(p);
}
END_TEST

/* Each byte of the header region, changed: refused or read, never a crash. */
START_TEST(every_changed_byte_is_survived)
{
	const struct rig_model spec = { .n_layers = 1, .seed = 4 };
	static const uint8_t xors[] = { 0x01, 0x80, 0xff };
	struct gguf *g;
	size_t len, head;
	uint8_t *p = rig_model_gguf(&spec, &len);

	ck_assert_int_eq(gguf_open_mem(&g, p, len, NULL, 0), 0);
	head = (size_t)((const uint8_t *)gguf_tensor(g, 0)->data - p);
	gguf_close(g);
	for (size_t i = 0; i < head; i++) {
		for (size_t j = 0; j < sizeof(xors); j++) {
			p[i] ^= xors[j];
			if (!gguf_open_mem(&g, p, len, NULL, 0))
				gguf_close(g);
			p[i] ^= xors[j];
		}
	}
	free(p);
}
END_TEST

static void header(uint32_t magic, uint32_t version, uint64_t n_tensors,
		   uint64_t n_kvs, const char *why)
{
	struct gguf *g;
	char err[256] = "";
	uint8_t p[64] = { 0 };

	memcpy(p, &magic, 4);
	memcpy(p + 4, &version, 4);
	memcpy(p + 8, &n_tensors, 8);
	memcpy(p + 16, &n_kvs, 8);
	ck_assert_int_eq(open_copy(&g, p, sizeof(p), err, sizeof(err)),
			 -EINVAL);
	ck_assert_msg(strstr(err, why), "want \"%s\", got \"%s\"", why, err);
}

START_TEST(bad_headers_are_refused)
{
	header(0x46554746, 3, 0, 0, "magic");
	header(0x46554747, 1, 0, 0, "version 1");
	header(0x46554747, 4, 0, 0, "version 4");
	header(0x46554747, 0x03000000, 0, 0, "big-endian");
	header(0x46554747, 3, 3, 0, "tensors cannot fit");
	header(0x46554747, 3, UINT64_MAX, 0, "tensors cannot fit");
	header(0x46554747, 3, 0, 3, "keys cannot fit");
	header(0x46554747, 3, 0, UINT64_MAX, "keys cannot fit");
	header(0x46554747, 3, 0, 1ull << 61, "keys cannot fit");
}
END_TEST

static struct rig_gguf *with_raw(uint32_t type, const void *p, size_t n)
{
	struct rig_gguf *w = rig_gguf_new(3);

	rig_gguf_raw(w, "bad", type, p, n);
	return w;
}

START_TEST(bad_values_are_refused)
{
	static const uint64_t huge = UINT64_MAX, past = 1000;
	static const uint8_t two = 2;
	const uint32_t types[] = { GGUF_U8,    GGUF_U32, GGUF_F64,  GGUF_STRING,
				   GGUF_ARRAY, 13,	 UINT32_MAX };
	uint8_t array[12];

	refused(with_raw(13, zeros, 8), "key \"bad\"", "13 is not known");
	refused(with_raw(UINT32_MAX, zeros, 8), "key \"bad\"", "not known");
	refused(with_raw(GGUF_U64, zeros, 7), "key \"bad\"", "file ends");
	refused(with_raw(GGUF_BOOL, &two, 1), "key \"bad\"", "bool is 2");
	refused(with_raw(GGUF_STRING, &huge, 8), "key \"bad\"", "file ends");
	refused(with_raw(GGUF_STRING, &past, 8), "key \"bad\"", "file ends");
	for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++) {
		memcpy(array, &types[i], 4);
		memcpy(array + 4, &huge, 8);
		refused(with_raw(GGUF_ARRAY, array, 12), "key \"bad\"",
			types[i] < 13 ? "file ends" : "not known");
		memcpy(array + 4, &past, 8);
		refused(with_raw(GGUF_ARRAY, array, 12), "key \"bad\"",
			types[i] < 13 ? "file ends" : "not known");
	}
}
END_TEST

/* depth arrays of one element each; the innermost holds one byte. */
static struct rig_gguf *nested(uint32_t depth)
{
	const uint32_t inner = GGUF_U8, outer = GGUF_ARRAY;
	const uint64_t one = 1;
	uint8_t p[12 * 16 + 1] = { 0 };
	size_t n = 0;

	for (uint32_t i = 0; i < depth; i++) {
		memcpy(p + n, i + 1 < depth ? &outer : &inner, 4);
		memcpy(p + n + 4, &one, 8);
		n += 12;
	}
	return with_raw(GGUF_ARRAY, p, n + 1);
}

START_TEST(nesting_is_bounded)
{
	accepted(nested(1));
	accepted(nested(4));
	refused(nested(5), "key \"bad\"", "nested deeper");
	refused(nested(16), "key \"bad\"", "nested deeper");
}
END_TEST

START_TEST(bad_keys_are_refused)
{
	static const uint32_t aligns[] = { 0, 1, 4, 24, 33, 1u << 31 };
	char *name = malloc(65537);
	struct rig_gguf *w = rig_gguf_new(3);

	ck_assert_ptr_nonnull(name);
	memset(name, 'k', 65536);
	name[65536] = 0;
	rig_gguf_u32(w, name, 1);
	refused(w, "key 0", "65536 bytes");
	free(name);
	w = rig_gguf_new(3);
	rig_gguf_u32(w, "", 1);
	refused(w, "key 0", "0 bytes");
	w = rig_gguf_new(3);
	rig_gguf_u32(w, "twin", 1);
	rig_gguf_u32(w, "other", 1);
	rig_gguf_str(w, "twin", "x");
	refused(w, "key \"twin\"", "twice");
	for (size_t i = 0; i < sizeof(aligns) / sizeof(aligns[0]); i++) {
		w = rig_gguf_new(3);
		rig_gguf_u32(w, "general.alignment", aligns[i]);
		refused(w, "general.alignment", "power of two");
	}
	w = rig_gguf_new(3);
	rig_gguf_str(w, "general.alignment", "32");
	refused(w, "general.alignment", "uint32");
}
END_TEST

static struct rig_gguf *with_tensor(const char *name, uint32_t n_dims,
				    const uint64_t *dims, uint32_t type,
				    size_t bytes)
{
	struct rig_gguf *w = rig_gguf_new(3);

	rig_gguf_tensor(w, name, n_dims, dims, type, zeros, bytes);
	return w;
}

START_TEST(bad_tensors_are_refused)
{
	static const uint64_t none[4] = { 8, 0, 1, 1 };
	static const uint64_t wide[4] = { 1ull << 32, 1ull << 32, 1, 1 };
	static const uint64_t wrap[4] = { 3, 0x5555555555555556ull, 1, 1 };
	static const uint64_t half[2] = { 48, 1 };
	static const uint64_t five[5] = { 1, 1, 1, 1, 1 };
	char name[66];

	refused(with_tensor("t", 0, row8, 0, 32), "\"t\"", "0 dimensions");
	refused(with_tensor("t", 5, five, 0, 32), "\"t\"", "5 dimensions");
	refused(with_tensor("t", 2, none, 0, 32), "\"t\"", "dimension 1 is 0");
	refused(with_tensor("t", 2, wide, 0, 32), "\"t\"", "out of range");
	refused(with_tensor("t", 2, wrap, 0, 32), "\"t\"", "out of range");
	refused(with_tensor("t", 1, half, 8, 64), "\"t\"", "whole blocks");
	refused(with_tensor("t", 1, row8, 0, 28), "\"t\"", "32 bytes at");
	accepted(with_tensor("t", 1, row8, 0, 32));
	memset(name, 'n', sizeof(name));
	name[65] = 0;
	refused(with_tensor(name, 1, row8, 0, 32), "tensor 0", "65 bytes");
	name[64] = 0;
	accepted(with_tensor(name, 1, row8, 0, 32));
	refused(with_tensor("", 1, row8, 0, 32), "tensor 0", "0 bytes");
	refused(with_tensor("\n\x1b[2J", 0, row8, 0, 32), "\"??[2J\"",
		"0 dimensions");
}
END_TEST

/* Two tensors "a" and "b" of 32 bytes each, b at the given offset. */
static void *two(const char *b, uint64_t offset, size_t *len)
{
	struct rig_gguf *w = rig_gguf_new(3);
	uint8_t *p;
	size_t at;

	rig_gguf_tensor(w, "a", 1, row8, 0, zeros, 32);
	rig_gguf_tensor(w, b, 1, row8, 0, zeros, 32);
	p = rig_gguf_finish(w, len);
	/* header, then per tensor: name, dims, type, offset */
	at = 24 + 2 * (8 + 1 + 4 + 8 + 4 + 8) - 8;
	memcpy(p + at, &offset, 8);
	return p;
}

START_TEST(bad_offsets_are_refused)
{
	static const struct {
		uint64_t offset;
		const char *why;
	} cases[] = {
		{ 0, "overlaps" },
		{ 1, "not a multiple" },
		{ 40, "not a multiple" },
		{ 64, "32 bytes at offset 64" },
		{ 1u << 20, "of the data" },
		{ UINT64_MAX - 31, "of the data" },
		{ 1ull << 63, "of the data" },
	};
	struct gguf *g;
	char err[256];
	size_t len;
	void *p;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		p = two("b", cases[i].offset, &len);
		err[0] = 0;
		ck_assert_int_eq(open_copy(&g, p, len, err, sizeof(err)),
				 -EINVAL);
		ck_assert_msg(strstr(err, cases[i].why) &&
				      strstr(err, "tensor \""),
			      "%s: %s", cases[i].why, err);
		free(p);
	}
	p = two("b", 32, &len);
	ck_assert_int_eq(open_copy(&g, p, len, err, sizeof(err)), 0);
	free(p);
	p = two("a", 32, &len);
	ck_assert_int_eq(open_copy(&g, p, len, err, sizeof(err)), -EINVAL);
	ck_assert_msg(strstr(err, "\"a\"") && strstr(err, "twice"), "%s", err);
	free(p);
}
END_TEST

START_TEST(files_open_or_say_why)
{
	char path[] = "/tmp/test_gguf.XXXXXX";
	struct gguf *g;
	char err[256];
	int fd = mkstemp(path);

	ck_assert_int_ge(fd, 0);
	ck_assert_int_eq(gguf_open(&g, path, err, sizeof(err)), -EINVAL);
	ck_assert_msg(strstr(err, "empty"), "%s", err);
	ck_assert_int_eq(write(fd, "GGUFabc", 7), 7);
	ck_assert_int_eq(gguf_open(&g, path, err, sizeof(err)), -EINVAL);
	ck_assert_msg(strstr(err, "header, byte 4"), "%s", err);
	ck_assert_int_eq(close(fd), 0);
	ck_assert_int_eq(unlink(path), 0);
	ck_assert_int_eq(gguf_open(&g, path, err, sizeof(err)), -ENOENT);
	ck_assert_msg(err[0], "no reason");
	ck_assert_int_eq(gguf_open(&g, "/tmp", err, sizeof(err)), -EINVAL);
	ck_assert_msg(strstr(err, "regular"), "%s", err);
}
END_TEST

START_TEST(the_real_models_open)
{
	static const char *const names[] = { "models/rag-mini.gguf",
					     "models/rag-draft.gguf" };
	struct gguf_str s;
	struct gguf *g;
	char err[256] = "";

	ck_assert_msg(!gguf_open(&g, rig_data(names[_i]), err, sizeof(err)),
		      "%s", err);
	ck_assert_uint_eq(gguf_n_tensors(g), _i ? 20 : 57);
	ck_assert_int_eq(gguf_get_str(g, "general.architecture", &s), 0);
	ck_assert(s.len == 5 && !memcmp(s.s, "llama", 5));
	ck_assert_ptr_nonnull(gguf_find(g, "blk.1.ffn_down.weight"));
	ck_assert_int_eq(!gguf_find(g, "output.weight"), _i);
	gguf_close(g);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("gguf");
	TCase *t = tcase_create("gguf");
	SRunner *r;
	int failed;

	tcase_set_timeout(t, 120);
	tcase_add_loop_test(t, keys_and_tensors_come_back_as_written, 0, 2);
	tcase_add_test(t, every_truncation_is_refused);
	tcase_add_test(t, every_changed_byte_is_survived);
	tcase_add_test(t, bad_headers_are_refused);
	tcase_add_test(t, bad_values_are_refused);
	tcase_add_test(t, nesting_is_bounded);
	tcase_add_test(t, bad_keys_are_refused);
	tcase_add_test(t, bad_tensors_are_refused);
	tcase_add_test(t, bad_offsets_are_refused);
	tcase_add_test(t, files_open_or_say_why);
	tcase_add_loop_test(t, the_real_models_open, 0, 2);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
