/*
 * test_tokenizer.c - encoding equals the reference ids, decoding gives it back
 */
#include <check.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kvd/model/tokenizer.h"
#include "tests/rig/rig_gguf.h"

static struct tokenizer *open_real(void)
{
	struct tokenizer *t;
	struct gguf *g;
	char err[256] = "";

	ck_assert_msg(!gguf_open(&g, rig_data("models/rag-mini.gguf"), err,
				 sizeof(err)),
		      "%s", err);
	ck_assert_msg(!tokenizer_new(&t, g, err, sizeof(err)), "%s", err);
	gguf_close(g);
	return t;
}

static struct tokenizer *open_tiny(void)
{
	const struct rig_model spec = { .n_layers = 1, .seed = 1 };
	struct tokenizer *t;
	struct gguf *g;
	char err[256] = "";
	size_t len;
	void *p = rig_model_gguf(&spec, &len);

	ck_assert_int_eq(gguf_open_mem(&g, p, len, NULL, 0), 0);
	ck_assert_msg(!tokenizer_new(&t, g, err, sizeof(err)), "%s", err);
	gguf_close(g);
	free(p);
	return t;
}

/* Encode x, in memory of just its size; decode it; it must be x again. */
static void round_trip(const struct tokenizer *t, const char *x, size_t len)
{
	char *copy = malloc(len ? len : 1);
	uint32_t *ids = malloc((len + 4) * sizeof(*ids));
	char *back = malloc(len + 4);
	int64_t n, m;

	ck_assert(copy && ids && back);
	memcpy(copy, x, len);
	n = tokenizer_encode(t, copy, len, ids, len + 4);
	ck_assert_int_ge(n, 0);
	ck_assert_int_le(n, (int64_t)len + 1);
	for (int64_t i = 0; i < n; i++)
		ck_assert_uint_lt(ids[i], tokenizer_n_vocab(t));
	m = tokenizer_decode(t, ids, (size_t)n, back, len + 4);
	ck_assert_msg(m == (int64_t)len && !memcmp(back, x, len),
		      "\"%.*s\" came back as \"%.*s\"", (int)len, x, (int)m,
		      back);
	free(back);
	free(ids);
	free(copy);
}

static json_t *find_item(const json_t *items, const char *id)
{
	json_t *item;
	size_t i;

	json_array_foreach(
		items, i,
		item) if (!strcmp(json_string_value(json_object_get(item,
								    "id")),
				  id)) return item;
	return NULL;
}

/* Compares the ids of text with ref[*at..], which has n of them. */
static void same_ids(const struct tokenizer *t, const json_t *text,
		     const json_t *ref, size_t *at, size_t n)
{
	const char *s = json_string_value(text);
	uint32_t ids[1024];
	int64_t got = tokenizer_encode(t, s, strlen(s), ids, 1024);

	ck_assert_int_eq(got, (int64_t)n);
	for (size_t i = 0; i < n; i++, (*at)++)
		ck_assert_int_eq(ids[i],
				 json_integer_value(json_array_get(ref, *at)));
}

static void same_item(const struct tokenizer *t, const json_t *line,
		      const json_t *item)
{
	const json_t *ids = json_object_get(item, "token_ids");
	const json_t *lens = json_object_get(item, "segment_lengths");
	const json_t *chunks = json_object_get(line, "chunks");
	const size_t k = json_array_size(chunks);
	size_t at = 1; /* after BOS */

	ck_assert_uint_eq(json_array_size(lens), k + 2);
	ck_assert_int_eq(json_integer_value(json_array_get(ids, 0)),
			 tokenizer_bos(t));
	for (size_t i = 0; i < k + 2; i++) {
		const json_t *text = i == 0  ? json_object_get(line, "system")
				     : i > k ? json_object_get(line, "question")
					     : json_array_get(chunks, i - 1);
		size_t n = (size_t)json_integer_value(json_array_get(lens, i));

		same_ids(t, text, ids, &at, n - (i == 0));
	}
	ck_assert_uint_eq(at, json_array_size(ids));
}

START_TEST(ids_equal_the_reference)
{
	struct tokenizer *t = open_real();
	json_t *ref = json_load_file(rig_data("eval/reference.json"), 0, NULL);
	const json_t *items = json_object_get(ref, "items");
	FILE *f = fopen(rig_data("eval/rag-dev.jsonl"), "r");
	static char text[65536];
	unsigned int n = 0;

	ck_assert(ref && f);
	while (fgets(text, sizeof(text), f)) {
		json_t *line = json_loads(text, 0, NULL);
		const char *id = json_string_value(json_object_get(line, "id"));
		json_t *item = find_item(items, id);

		if (item) {
			same_item(t, line, item);
			n++;
		}
		json_decref(line);
	}
	ck_assert_uint_eq(n, 20);
	ck_assert_int_eq(fclose(f), 0);
	json_decref(ref);
	tokenizer_free(t);
}
END_TEST

START_TEST(text_comes_back)
{
	static const char *const texts[] = {
		"",
		" ",
		"  ",
		"a",
		" a",
		"  a b  ",
		"\n",
		"\n\n a",
		"a\tb\r\n",
		"Hello, world.",
		"caf\xc3\xa9 \xe2\x82\xac \xf0\x9f\x99\x82",
		"\xe2\x96\x81",
		"a\xe2\x96\x81"
		"b \xe2\x96\x81 \xe2\x96\x81",
		"\xe2\x96",
		"\xe2",
		"\xff\xfe",
		"\xc0\xaf",
		"\xed\xa0\x80",
		"\xf4\x90\x80\x80",
		"\xf0\x9f\x99",
		"<s>",
		"</s><unk>",
		"<0x0A>",
		"&lt;<0x41>",
	};
	struct tokenizer *t = _i ? open_tiny() : open_real();

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		round_trip(t, texts[i], strlen(texts[i]));
	round_trip(t, "a\0b\0 \0", 6);
	tokenizer_free(t);
}
END_TEST

START_TEST(random_bytes_come_back)
{
	static const char *const bits[] = { " ",       "  ",	       "the",
					    "\n",      "\xe2",	       "\x96",
					    "\x81",    "\xe2\x96\x81", "<s>",
					    "\xc3\xa9" };
	struct tokenizer *t = _i ? open_tiny() : open_real();
	uint64_t state = 42;
	char x[256];

	for (int round = 0; round < 3000; round++) {
		const size_t len = rig_random(&state) % 128;
		size_t n = 0;

		while (n < len) {
			const uint64_t r = rig_random(&state) >> 8;
			const char *bit = bits[r % 10];

			if (round % 3 == 0) {
				x[n++] = (char)(r >> 8);
			} else if (round % 3 == 1) {
				x[n++] = (char)(' ' + r % 95);
			} else {
				memcpy(x + n, bit, strlen(bit));
				n += strlen(bit);
			}
		}
		round_trip(t, x, n);
	}
	tokenizer_free(t);
}
END_TEST

START_TEST(special_pieces_in_text_are_text)
{
	struct tokenizer *t = open_real();
	uint32_t ids[32];
	int64_t n = tokenizer_encode(t, "<s></s><unk><0x0A>", 18, ids, 32);

	ck_assert_int_gt(n, 4);
	for (int64_t i = 0; i < n; i++)
		ck_assert_uint_gt(ids[i], 2);
	n = tokenizer_encode(t, "\n", 1, ids, 32);
	ck_assert_int_ge(n, 1);
	ck_assert_uint_eq(ids[n - 1], 13);
	tokenizer_free(t);
}
END_TEST

START_TEST(counts_are_of_all_and_writes_of_max)
{
	struct tokenizer *t = open_real();
	uint32_t ids[4] = { 9, 9, 9, 9 };
	char out[4] = "xyz";
	int64_t n = tokenizer_encode(t, "one two three four", 18, NULL, 0);

	ck_assert_int_gt(n, 3);
	ck_assert_int_eq(tokenizer_encode(t, "one two three four", 18, ids, 2),
			 n);
	ck_assert(ids[0] != 9 && ids[1] != 9 && ids[2] == 9);
	ck_assert_int_gt(tokenizer_decode(t, ids, 2, NULL, 0), 2);
	ck_assert_int_gt(tokenizer_decode(t, ids, 2, out, 1), 1);
	ck_assert(out[0] == 'o' && out[1] == 'y');
	ck_assert_int_eq(tokenizer_encode(t, "", 0, ids, 4), 0);
	tokenizer_free(t);
}
END_TEST

START_TEST(pieces_are_bytes_of_text)
{
	struct tokenizer *t = open_tiny();
	const uint32_t ids[] = { 1, 286, 260, 2 };
	char out[16];

	ck_assert_uint_eq(tokenizer_n_vocab(t), 320);
	ck_assert_uint_eq(tokenizer_bos(t), 1);
	ck_assert_uint_eq(tokenizer_eos(t), 2);
	ck_assert_uint_eq(tokenizer_piece(t, 286, out, 16), 2);
	ck_assert(!memcmp(out, " a", 2));
	ck_assert_uint_eq(tokenizer_piece(t, 3 + 0xe2, out, 16), 1);
	ck_assert_int_eq((uint8_t)out[0], 0xe2);
	ck_assert_uint_eq(tokenizer_piece(t, 0, out, 16), 0);
	ck_assert_uint_eq(tokenizer_piece(t, 1, out, 16), 0);
	ck_assert_uint_eq(tokenizer_piece(t, 320, out, 16), 0);
	ck_assert_uint_eq(tokenizer_piece(t, UINT32_MAX, out, 16), 0);
	ck_assert_int_eq(tokenizer_decode(t, ids, 4, out, 16), 2);
	ck_assert(!memcmp(out, "aa", 2));
	tokenizer_free(t);
}
END_TEST

/* Best score first, and of equal scores the leftmost. */
START_TEST(merges_follow_scores_then_place)
{
	static const char *const strs[] = { "<unk>", "<s>", "</s>", "a",
					    "b",     "aa",  "ab",   "aab" };
	static const float scores[] = { 0, 0, 0, -9, -9, -2, -1, -3 };
	static const int32_t types[] = { 2, 3, 3, 1, 1, 1, 1, 1 };
	static const struct {
		const char *text;
		uint32_t n, ids[4];
	} cases[] = {
		{ "ab", 1, { 6 } },
		{ "aab", 1, { 7 } }, /* ab first, then a + ab */
		{ "aaa", 2, { 5, 3 } }, /* the left aa */
		{ "aaaa", 2, { 5, 5 } },
		{ "ba", 2, { 4, 3 } },
		{ "aaab", 2, { 5, 6 } },
		{ "c", 1, { 0 } }, /* no byte tokens: unknown */
	};
	struct rig_gguf *w = rig_gguf_new(3);
	struct tokenizer *t;
	struct gguf *g;
	uint32_t ids[4];
	size_t len;
	void *p;

	rig_gguf_str(w, "tokenizer.ggml.model", "llama");
	rig_gguf_strs(w, "tokenizer.ggml.tokens", strs, 8);
	rig_gguf_array(w, "tokenizer.ggml.scores", GGUF_F32, scores, 8, 4);
	rig_gguf_array(w, "tokenizer.ggml.token_type", GGUF_I32, types, 8, 4);
	rig_gguf_bool(w, "tokenizer.ggml.add_space_prefix", 0);
	p = rig_gguf_finish(w, &len);
	ck_assert_int_eq(gguf_open_mem(&g, p, len, NULL, 0), 0);
	ck_assert_int_eq(tokenizer_new(&t, g, NULL, 0), 0);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		ck_assert_int_eq(tokenizer_encode(t, cases[i].text,
						  strlen(cases[i].text), ids,
						  4),
				 cases[i].n);
		ck_assert_msg(!memcmp(ids, cases[i].ids, 4 * cases[i].n), "%s",
			      cases[i].text);
	}
	tokenizer_free(t);
	gguf_close(g);
	free(p);
}
END_TEST

/* Long runs of one byte make the deepest heap and the longest merges. */
START_TEST(a_megabyte_is_fine)
{
	struct tokenizer *t = open_real();
	const size_t len = 1 << 20;
	char *x = malloc(len);

	ck_assert_ptr_nonnull(x);
	for (size_t i = 0; i < len; i++)
		x[i] = _i == 0 ? 'e' : _i == 1 ? ' ' : "the cat "[i % 8];
	round_trip(t, x, len);
	free(x);
	tokenizer_free(t);
}
END_TEST

/* A vocabulary of n pieces "p", all normal, with the keys of the call. */
static int try_vocab(const char *model, uint32_t n, uint32_t n_scores,
		     int32_t type, uint32_t bos, char *err, size_t err_len)
{
	static const char *const strs[] = { "p", "q", "r", "<0x4G>" };
	static const float scores[4];
	const int32_t types[4] = { 1, 1, 1, type };
	struct rig_gguf *w = rig_gguf_new(3);
	struct tokenizer *t;
	struct gguf *g;
	size_t len;
	void *p;
	int ret;

	rig_gguf_str(w, "tokenizer.ggml.model", model);
	rig_gguf_strs(w, "tokenizer.ggml.tokens", strs, n);
	rig_gguf_array(w, "tokenizer.ggml.scores", GGUF_F32, scores, n_scores,
		       4);
	rig_gguf_array(w, "tokenizer.ggml.token_type", GGUF_I32, types, n, 4);
	rig_gguf_u32(w, "tokenizer.ggml.bos_token_id", bos);
	p = rig_gguf_finish(w, &len);
	ck_assert_int_eq(gguf_open_mem(&g, p, len, NULL, 0), 0);
	err[0] = 0;
	ret = tokenizer_new(&t, g, err, err_len);
	if (!ret)
		tokenizer_free(t);
	else
		ck_assert_msg(strstr(err, "tokenizer"), "%s", err);
	gguf_close(g);
	free(p);
	return ret;
}

START_TEST(bad_vocabularies_are_refused)
{
	char e[256];

	ck_assert_int_eq(try_vocab("llama", 4, 4, 1, 1, e, 256), 0);
	ck_assert_int_eq(try_vocab("gpt2", 4, 4, 1, 1, e, 256), -ENOTSUP);
	ck_assert_msg(strstr(e, "gpt2"), "%s", e);
	ck_assert_int_eq(try_vocab("llama", 4, 3, 1, 1, e, 256), -EINVAL);
	ck_assert_int_eq(try_vocab("llama", 0, 0, 1, 1, e, 256), -EINVAL);
	ck_assert_int_eq(try_vocab("llama", 4, 4, 1, 4, e, 256), -EINVAL);
	ck_assert_int_eq(try_vocab("llama", 4, 4, 0, 1, e, 256), -EINVAL);
	ck_assert_int_eq(try_vocab("llama", 4, 4, 7, 1, e, 256), -EINVAL);
	ck_assert_int_eq(try_vocab("llama", 4, 4, -1, 1, e, 256), -EINVAL);
	/* a byte piece that names no byte */
	ck_assert_int_eq(try_vocab("llama", 4, 4, 6, 1, e, 256), -EINVAL);
	ck_assert_msg(strstr(e, "token 3"), "%s", e);
}
END_TEST

int main(void)
{
	Suite *s = suite_create("tokenizer");
	TCase *t = tcase_create("tokenizer");
	SRunner *r;
	int failed;

	tcase_set_timeout(t, 120);
	tcase_add_test(t, ids_equal_the_reference);
	tcase_add_loop_test(t, text_comes_back, 0, 2);
	tcase_add_loop_test(t, random_bytes_come_back, 0, 2);
	tcase_add_test(t, special_pieces_in_text_are_text);
	tcase_add_test(t, counts_are_of_all_and_writes_of_max);
	tcase_add_test(t, pieces_are_bytes_of_text);
	tcase_add_test(t, merges_follow_scores_then_place);
	tcase_add_loop_test(t, a_megabyte_is_fine, 0, 3);
	tcase_add_test(t, bad_vocabularies_are_refused);
	suite_add_tcase(s, t);
	r = srunner_create(s);
	srunner_run_all(r, CK_NORMAL);
	failed = srunner_ntests_failed(r);
	srunner_free(r);
	return failed ? 1 : 0;
}
