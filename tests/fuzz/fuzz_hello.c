/*
 * fuzz_hello.c - the handshake: any bytes as a kv_hello
 *
 * What is accepted must be within the limits that the rest relies on.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include "kvd/ipc/sock.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void need(int ok)
{
	if (!ok)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct conf conf = { .arena_max_bytes = 64 << 20 };
	struct kv_hello h = { 0 };
	const char *text = NULL;
	int ret;

	memcpy(&h, data, size < sizeof(h) ? size : sizeof(h));
	ret = sock_check_hello(&h, size, &conf, KV_FEATURE_ATTEND, &text);
	if (ret) {
		need(text != NULL && ret < 0);
		return 0;
	}
	need(size == sizeof(h) && !(h.features_want & ~KV_FEATURE_ATTEND));
	need(h.sq_entries && h.sq_entries <= 4096 &&
	     !(h.sq_entries & (h.sq_entries - 1)));
	need(h.cq_entries >= h.sq_entries && h.cq_entries <= 8192 &&
	     !(h.cq_entries & (h.cq_entries - 1)));
	need(h.arena_bytes && h.arena_bytes <= conf.arena_max_bytes &&
	     h.arena_bytes % 4096 == 0);
	need(memchr(h.name, '\0', sizeof(h.name)) != NULL);
	return 0;
}
