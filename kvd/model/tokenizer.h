/*
 * tokenizer.h - SPM (sentencepiece BPE) tokenizer out of a GGUF
 *
 * Encoding: optional dummy prefix, spaces become U+2581, then the pair of
 * adjacent pieces with the best score is merged until none is left (Kudo &
 * Richardson 2018, arXiv:1808.06226); what has no piece becomes byte tokens.
 * A U+2581 in the text itself becomes byte tokens too, so decoding gives
 * back every text byte for byte (in a vocabulary with all byte tokens).
 * Immutable after open; any thread.
 */
#ifndef KVD_MODEL_TOKENIZER_H
#define KVD_MODEL_TOKENIZER_H

#include "kvd/model/gguf.h"

struct tokenizer;

/*
 * Copy the tokenizer out of g, which may be closed then. err: the reason.
 * -EINVAL, -ENOTSUP a kind of tokenizer that is not supported, -ENOMEM.
 */
int tokenizer_new(struct tokenizer **out, const struct gguf *g, char *err,
		  size_t err_len);
void tokenizer_free(struct tokenizer *t);
uint32_t tokenizer_n_vocab(const struct tokenizer *t);
uint32_t tokenizer_bos(const struct tokenizer *t);
uint32_t tokenizer_eos(const struct tokenizer *t);
/*
 * Ids of text (bytes; invalid UTF-8 becomes byte tokens). Returns how many in
 * all; at most max are written. No BOS is added. Special pieces in the text
 * are plain text. O(n log n). -ENOMEM, -EINVAL for text over 2^28 bytes.
 */
int64_t tokenizer_encode(const struct tokenizer *t, const char *text,
			 size_t len, uint32_t *out, size_t max);
/*
 * Bytes of one token as it stands inside a text (U+2581 as a space, byte
 * tokens as their byte; control, unknown and ids outside the vocabulary as
 * nothing). Returns the length in all (<= 255).
 */
uint32_t tokenizer_piece(const struct tokenizer *t, uint32_t id, char *out,
			 size_t max);
/* Concatenated pieces, without the space of the dummy prefix. Bytes in all. */
int64_t tokenizer_decode(const struct tokenizer *t, const uint32_t *ids,
			 size_t n, char *out, size_t max);

#endif
