/*
 * tokenizer.c - SPM (sentencepiece BPE) encoding and decoding
 *
 * Symbols are a doubly linked list over the text, first one per character.
 * A heap holds the pairs of neighbours that are a piece together, best score
 * first, then leftmost; a pair that has changed since it was pushed is dropped
 * when it comes up (its length no longer matches). That is the order of
 * sentencepiece's bpe_model.cc, and O(n log n).
 *
 *  (1) The text of a symbol is contiguous in the normalised text: merging
 *      extends the left one over the right one.
 *  (2) RAW symbols (bytes that are no UTF-8, and a U+2581 that stands in
 *      the text itself) never merge and become byte tokens, so that decoding
 *      gives back every text byte for byte.
 */
#include "kvd/model/tokenizer.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VOCAB_MAX   (1u << 24)
#define PIECE_MAX   255u
#define TEXT_MAX    (1u << 28) /* 3 bytes a space, 32-bit places */
#define NO_ID	    UINT32_MAX
#define SPACE	    "\xe2\x96\x81" /* U+2581 */
#define SPACE_BYTES 3u

/* tokenizer.ggml.token_type, gguf.md */
enum token_type {
	TOKEN_NORMAL = 1,
	TOKEN_UNKNOWN = 2,
	TOKEN_CONTROL = 3,
	TOKEN_USER = 4,
	TOKEN_UNUSED = 5,
	TOKEN_BYTE = 6,
};

struct piece {
	uint32_t at; /* in text */
	uint8_t len;
	uint8_t type;
	uint8_t byte; /* of a TOKEN_BYTE */
	float score;
};

struct tokenizer {
	uint32_t n_vocab, bos, eos, unk;
	int space_prefix;
	struct piece *pieces; /* [n_vocab] */
	char *text;
	uint32_t *slots; /* [n_slots] ids of pieces that text may become */
	uint32_t n_slots; /* a power of two, more than half of them NO_ID */
	uint32_t bytes[256]; /* byte tokens, or NO_ID */
};

/* ---- the table of pieces ------------------------------------------------ */

/* FNV-1a; the vocabulary is the operator's, not a client's. */
static uint32_t hash(const char *s, uint32_t len)
{
	uint32_t h = 2166136261u;

	for (uint32_t i = 0; i < len; i++)
		h = (h ^ (uint8_t)s[i]) * 16777619u;
	return h ^ h >> 15;
}

/* The slot of s, or the free one where it would be. */
static uint32_t find_slot(const struct tokenizer *t, const char *s,
			  uint32_t len)
{
	uint32_t i = hash(s, len) & (t->n_slots - 1);

	for (; t->slots[i] != NO_ID; i = (i + 1) & (t->n_slots - 1)) {
		const struct piece *p = &t->pieces[t->slots[i]];

		if (p->len == len && !memcmp(t->text + p->at, s, len))
			break;
	}
	return i;
}

static uint32_t find_piece(const struct tokenizer *t, const char *s,
			   uint32_t len)
{
	return len <= PIECE_MAX ? t->slots[find_slot(t, s, len)] : NO_ID;
}

static int refuse(char *err, size_t err_len, const char *what, uint64_t i,
		  int ret)
{
	if (err_len)
		(void)snprintf(err, err_len, "tokenizer: %s (token %llu)", what,
			       (unsigned long long)i);
	return ret;
}

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* "<0x0A>" is 10; -EINVAL. */
static int parse_byte(const char *s, uint32_t len)
{
	int hi, lo;

	if (len != 6 || memcmp(s, "<0x", 3) || s[5] != '>')
		return -EINVAL;
	hi = hex_digit(s[3]);
	lo = hex_digit(s[4]);
	return hi < 0 || lo < 0 ? -EINVAL : hi * 16 + lo;
}

/* Make piece id findable; of two equal pieces the first is used. */
static int add_piece(struct tokenizer *t, uint32_t id)
{
	struct piece *p = &t->pieces[id];
	const char *s = t->text + p->at;
	uint32_t slot;
	int byte;

	if (p->type == TOKEN_BYTE) {
		byte = parse_byte(s, p->len);
		if (byte < 0)
			return -EINVAL;
		p->byte = (uint8_t)byte;
		if (t->bytes[byte] == NO_ID)
			t->bytes[byte] = id;
	}
	if ((p->type != TOKEN_NORMAL && p->type != TOKEN_USER) || !p->len)
		return 0;
	slot = find_slot(t, s, p->len);
	if (t->slots[slot] == NO_ID)
		t->slots[slot] = id;
	return 0;
}

static int load_piece(struct tokenizer *t, const struct gguf *g, uint32_t id,
		      uint32_t *at)
{
	struct piece *p = &t->pieces[id];
	struct gguf_str s;
	int32_t type;

	if (gguf_array_str(g, "tokenizer.ggml.tokens", id, &s) ||
	    gguf_array_f32(g, "tokenizer.ggml.scores", id, &p->score) ||
	    gguf_array_i32(g, "tokenizer.ggml.token_type", id, &type))
		return -EINVAL;
	if (s.len > PIECE_MAX || type < TOKEN_NORMAL || type > TOKEN_BYTE ||
	    p->score != p->score) /* NaN has no order */
		return -EINVAL;
	p->at = *at;
	p->len = (uint8_t)s.len;
	p->type = (uint8_t)type;
	memcpy(t->text + *at, s.s, s.len);
	*at += p->len;
	return add_piece(t, id);
}

static int load_pieces(struct tokenizer *t, const struct gguf *g, char *err,
		       size_t err_len)
{
	size_t bytes = 0;
	uint32_t at = 0;
	struct gguf_str s;

	for (uint32_t i = 0; i < t->n_vocab; i++) {
		if (gguf_array_str(g, "tokenizer.ggml.tokens", i, &s) ||
		    s.len > PIECE_MAX)
			return refuse(err, err_len, "piece over 255 bytes", i,
				      -EINVAL);
		bytes += s.len;
	}
	for (t->n_slots = 64; t->n_slots < 2 * t->n_vocab;)
		t->n_slots *= 2;
	t->pieces = calloc(t->n_vocab, sizeof(*t->pieces));
	t->text = malloc(bytes + 1);
	t->slots = malloc(t->n_slots * sizeof(*t->slots));
	if (!t->pieces || !t->text || !t->slots)
		return refuse(err, err_len, "out of memory", 0, -ENOMEM);
	memset(t->slots, 0xff, t->n_slots * sizeof(*t->slots));
	memset(t->bytes, 0xff, sizeof(t->bytes));
	for (uint32_t i = 0; i < t->n_vocab; i++)
		if (load_piece(t, g, i, &at))
			return refuse(err, err_len,
				      "bad type, score or byte piece", i,
				      -EINVAL);
	return 0;
}

/* ---- open --------------------------------------------------------------- */

static int load_id(const struct tokenizer *t, const struct gguf *g,
		   const char *key, uint32_t *id)
{
	int ret = gguf_get_u32(g, key, id); /* else the default in *id */

	return (ret && ret != -ENOENT) || *id >= t->n_vocab ? -EINVAL : 0;
}

static int check_kind(const struct gguf *g, char *err, size_t err_len)
{
	struct gguf_str s;
	char name[32];
	uint32_t none;
	int flag = 0;
	int ret = gguf_get_str(g, "tokenizer.ggml.model", &s);

	if (ret)
		return refuse(err, err_len, "no tokenizer.ggml.model", 0,
			      -EINVAL);
	if (s.len != 5 || memcmp(s.s, "llama", 5)) {
		(void)snprintf(err, err_len,
			       "tokenizer: model \"%s\" is not supported, "
			       "only \"llama\" (SPM)",
			       gguf_printable(s, name, sizeof(name)));
		return -ENOTSUP;
	}
	/* A normaliser or the removal of spaces would change the ids. */
	if (gguf_get_u32(g, "tokenizer.ggml.precompiled_charsmap", &none) !=
	    -ENOENT)
		return refuse(err, err_len,
			      "precompiled_charsmap is not supported", 0,
			      -ENOTSUP);
	ret = gguf_get_bool(g, "tokenizer.ggml.remove_extra_whitespaces",
			    &flag);
	if (flag || (ret && ret != -ENOENT))
		return refuse(err, err_len,
			      "remove_extra_whitespaces is not supported", 0,
			      -ENOTSUP);
	return 0;
}

static int load_keys(struct tokenizer *t, const struct gguf *g, char *err,
		     size_t err_len)
{
	uint64_t n, n_scores, n_types;
	int ret;

	if (gguf_get_array(g, "tokenizer.ggml.tokens", GGUF_STRING, &n) ||
	    gguf_get_array(g, "tokenizer.ggml.scores", GGUF_F32, &n_scores) ||
	    gguf_get_array(g, "tokenizer.ggml.token_type", GGUF_I32, &n_types))
		return refuse(err, err_len, "no tokens, scores or token_type",
			      0, -EINVAL);
	if (!n || n > VOCAB_MAX || n_scores != n || n_types != n)
		return refuse(err, err_len,
			      "tokens, scores, token_type differ in length", n,
			      -EINVAL);
	t->n_vocab = (uint32_t)n;
	t->bos = 1;
	t->eos = 2;
	t->unk = 0;
	if (load_id(t, g, "tokenizer.ggml.bos_token_id", &t->bos) ||
	    load_id(t, g, "tokenizer.ggml.eos_token_id", &t->eos) ||
	    load_id(t, g, "tokenizer.ggml.unknown_token_id", &t->unk))
		return refuse(err, err_len,
			      "bos, eos or unknown id is not in the vocabulary",
			      n, -EINVAL);
	t->space_prefix = 1;
	ret = gguf_get_bool(g, "tokenizer.ggml.add_space_prefix",
			    &t->space_prefix);
	if (ret && ret != -ENOENT)
		return refuse(err, err_len, "add_space_prefix is not a bool", 0,
			      -EINVAL);
	return 0;
}

int tokenizer_new(struct tokenizer **out, const struct gguf *g, char *err,
		  size_t err_len)
{
	struct tokenizer *t = calloc(1, sizeof(*t));
	int ret = check_kind(g, err, err_len);

	if (!t)
		return refuse(err, err_len, "out of memory", 0, -ENOMEM);
	if (!ret)
		ret = load_keys(t, g, err, err_len);
	if (!ret)
		ret = load_pieces(t, g, err, err_len);
	if (ret)
		tokenizer_free(t);
	else
		*out = t;
	return ret;
}

void tokenizer_free(struct tokenizer *t)
{
	if (!t)
		return;
	free(t->pieces);
	free(t->text);
	free(t->slots);
	free(t);
}

uint32_t tokenizer_n_vocab(const struct tokenizer *t)
{
	return t->n_vocab;
}

uint32_t tokenizer_bos(const struct tokenizer *t)
{
	return t->bos;
}

uint32_t tokenizer_eos(const struct tokenizer *t)
{
	return t->eos;
}

/* ---- encode ------------------------------------------------------------- */

#define END UINT32_MAX
#define RAW 1u

struct symbol {
	uint32_t at; /* in the normalised text */
	uint32_t len; /* 0: merged into the one on its left */
	uint32_t prev, next; /* or END */
	uint32_t flags;
};

struct pair {
	float score;
	uint32_t left, right;
	uint32_t len; /* of both, when it was pushed */
};

struct encoder {
	const struct tokenizer *t;
	char *text;
	uint32_t len;
	struct symbol *symbols;
	uint32_t n_symbols;
	struct pair *heap;
	uint32_t n_heap;
	uint32_t *out;
	size_t max;
	int64_t n_out;
};

/* Nonzero when a comes before b. */
static int before(const struct pair *a, const struct pair *b)
{
	if (a->score != b->score)
		return a->score > b->score;
	return a->left < b->left;
}

static void heap_push(struct encoder *e, struct pair p)
{
	uint32_t i = e->n_heap++;

	while (i && before(&p, &e->heap[(i - 1) / 2])) {
		e->heap[i] = e->heap[(i - 1) / 2];
		i = (i - 1) / 2;
	}
	e->heap[i] = p;
}

static struct pair heap_pop(struct encoder *e)
{
	const struct pair top = e->heap[0];
	const struct pair p = e->heap[--e->n_heap];
	uint32_t i = 0;

	for (;;) {
		uint32_t c = 2 * i + 1;

		if (c >= e->n_heap)
			break;
		if (c + 1 < e->n_heap && before(&e->heap[c + 1], &e->heap[c]))
			c++;
		if (!before(&e->heap[c], &p))
			break;
		e->heap[i] = e->heap[c];
		i = c;
	}
	e->heap[i] = p;
	return top;
}

static void try_pair(struct encoder *e, uint32_t left, uint32_t right)
{
	const struct symbol *l, *r;
	uint32_t id;

	if (left == END || right == END)
		return;
	l = &e->symbols[left];
	r = &e->symbols[right];
	if ((l->flags | r->flags) & RAW)
		return;
	id = find_piece(e->t, e->text + l->at, l->len + r->len);
	if (id == NO_ID)
		return;
	heap_push(e, (struct pair){ .score = e->t->pieces[id].score,
				    .left = left,
				    .right = right,
				    .len = l->len + r->len });
}

static void merge_all(struct encoder *e)
{
	for (uint32_t i = 1; i < e->n_symbols; i++)
		try_pair(e, i - 1, i);
	while (e->n_heap) {
		const struct pair p = heap_pop(e);
		struct symbol *l = &e->symbols[p.left];
		struct symbol *r = &e->symbols[p.right];

		if (!l->len || !r->len || l->len + r->len != p.len)
			continue;
		l->len += r->len;
		r->len = 0;
		l->next = r->next;
		if (r->next != END)
			e->symbols[r->next].prev = p.left;
		try_pair(e, l->prev, p.left);
		try_pair(e, p.left, l->next);
	}
}

/* Bytes of the character at s; 0 for what is not UTF-8 (RFC 3629). */
static uint32_t utf8_len(const uint8_t *s, size_t len)
{
	const uint8_t c = s[0];
	uint8_t lo = 0x80, hi = 0xbf;
	uint32_t n;

	if (c < 0x80)
		return 1;
	if (c < 0xc2 || c > 0xf4)
		return 0;
	n = c < 0xe0 ? 2 : c < 0xf0 ? 3 : 4;
	if (c == 0xe0)
		lo = 0xa0;
	else if (c == 0xed)
		hi = 0x9f;
	else if (c == 0xf0)
		lo = 0x90;
	else if (c == 0xf4)
		hi = 0x8f;
	if (len < n || s[1] < lo || s[1] > hi)
		return 0;
	for (uint32_t i = 2; i < n; i++)
		if ((s[i] & 0xc0) != 0x80)
			return 0;
	return n;
}

static void add_symbol(struct encoder *e, const char *s, uint32_t len,
		       uint32_t flags)
{
	const uint32_t i = e->n_symbols++;

	e->symbols[i] = (struct symbol){
		.at = e->len,
		.len = len,
		.prev = i ? i - 1 : END,
		.next = END,
		.flags = flags,
	};
	if (i)
		e->symbols[i - 1].next = i;
	memcpy(e->text + e->len, s, len);
	e->len += len;
}

static void add_text(struct encoder *e, const char *s, size_t len)
{
	size_t at = 0;

	if (e->t->space_prefix && len)
		add_symbol(e, SPACE, SPACE_BYTES, 0);
	while (at < len) {
		uint32_t n = utf8_len((const uint8_t *)s + at, len - at);

		if (s[at] == ' ') {
			add_symbol(e, SPACE, SPACE_BYTES, 0);
			at++;
		} else if (!n || (n == SPACE_BYTES &&
				  !memcmp(s + at, SPACE, SPACE_BYTES))) {
			add_symbol(e, s + at, 1, RAW);
			at++;
		} else {
			add_symbol(e, s + at, n, 0);
			at += n;
		}
	}
}

static void emit(struct encoder *e, uint32_t id)
{
	if ((uint64_t)e->n_out < e->max)
		e->out[e->n_out] = id;
	e->n_out++;
}

static void emit_byte(struct encoder *e, uint8_t byte)
{
	const uint32_t id = e->t->bytes[byte];

	emit(e, id == NO_ID ? e->t->unk : id);
}

static void emit_symbol(struct encoder *e, const struct symbol *s)
{
	const char *text = e->text + s->at;
	uint32_t id = NO_ID;

	if (!(s->flags & RAW))
		id = find_piece(e->t, text, s->len);
	if (id != NO_ID) {
		emit(e, id);
		return;
	}
	if (!(s->flags & RAW) && s->len == SPACE_BYTES &&
	    !memcmp(text, SPACE, SPACE_BYTES)) {
		emit_byte(e, ' ');
		return;
	}
	for (uint32_t i = 0; i < s->len; i++)
		emit_byte(e, (uint8_t)text[i]);
}

int64_t tokenizer_encode(const struct tokenizer *t, const char *text,
			 size_t len, uint32_t *out, size_t max)
{
	struct encoder e = { .t = t, .out = out, .max = max };
	size_t n = len + 1;

	if (len > TEXT_MAX)
		return -EINVAL;
	/* Pairs: one a neighbourhood, and two more after each merge. */
	e.text = malloc(SPACE_BYTES * n);
	e.symbols = malloc(n * sizeof(*e.symbols));
	e.heap = malloc(3 * n * sizeof(*e.heap));
	if (!e.text || !e.symbols || !e.heap) {
		e.n_out = -ENOMEM;
		goto out_free;
	}
	add_text(&e, text, len);
	merge_all(&e);
	for (uint32_t i = 0; i < e.n_symbols; i++)
		if (e.symbols[i].len)
			emit_symbol(&e, &e.symbols[i]);
out_free:
	free(e.heap);
	free(e.symbols);
	free(e.text);
	return e.n_out;
}

/* ---- decode ------------------------------------------------------------- */

static uint32_t put_text(const char *s, uint32_t len, char *out, size_t max)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < len;) {
		const int space = len - i >= SPACE_BYTES &&
				  !memcmp(s + i, SPACE, SPACE_BYTES);

		if (n < max)
			out[n] = space ? ' ' : s[i];
		n++;
		i += space ? SPACE_BYTES : 1;
	}
	return n;
}

uint32_t tokenizer_piece(const struct tokenizer *t, uint32_t id, char *out,
			 size_t max)
{
	const struct piece *p;

	if (id >= t->n_vocab)
		return 0;
	p = &t->pieces[id];
	switch (p->type) {
	case TOKEN_BYTE:
		if (max)
			out[0] = (char)p->byte;
		return 1;
	case TOKEN_NORMAL:
	case TOKEN_USER:
	case TOKEN_UNUSED:
		return put_text(t->text + p->at, p->len, out, max);
	default:
		return 0;
	}
}

int64_t tokenizer_decode(const struct tokenizer *t, const uint32_t *ids,
			 size_t n, char *out, size_t max)
{
	char piece[PIECE_MAX];
	int64_t n_out = 0;
	int strip = t->space_prefix;

	for (size_t i = 0; i < n; i++) {
		uint32_t len = tokenizer_piece(t, ids[i], piece, sizeof(piece));
		const char *s = piece;

		if (strip && len) {
			strip = 0;
			s += piece[0] == ' ';
			len -= piece[0] == ' ';
		}
		for (uint32_t j = 0; j < len; j++, n_out++)
			if ((uint64_t)n_out < max)
				out[n_out] = s[j];
	}
	return n_out;
}
