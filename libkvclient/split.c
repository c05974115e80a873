/*
 * split.c - one text as chunks, cut where its own separators are
 *
 * A border belongs to the text: a word put in before it moves no other border, so what
 * was a chunk stays one. (On a grid of so many tokens everything behind would change.)
 */
#include <errno.h>
#include <string.h>
#include "libkvclient/kvclient.h"

int kvc_split(const char *text, size_t len, const char *separator,
	      struct kvc_part *parts, uint32_t max)
{
	const size_t sep_len = separator ? strlen(separator) : 0;
	const char *end;
	uint32_t n = 0;

	if (!sep_len)
		return -EINVAL;
	for (end = text + len; text < end;) {
		const char *at =
			memmem(text, (size_t)(end - text), separator, sep_len);
		const char *next = at ? at + sep_len : end;

		/* a row of separators is one */
		while (at && (size_t)(end - next) >= sep_len &&
		       !memcmp(next, separator, sep_len))
			next += sep_len;
		if (n == max)
			return -ENOSPC;
		parts[n++] =
			(struct kvc_part){ .kind = KV_PART_TEXT,
					   .flags = KV_PART_REUSE,
					   .text = text,
					   .text_len = (size_t)(next - text) };
		text = next;
	}
	return (int)n;
}
