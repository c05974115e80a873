/* example.c - ask a hosted model: example SOCKET QUESTION */
#include <kvclient.h>
#include <stdio.h>
#include <string.h>

static void show(void *user, const struct kv_token *tokens, uint32_t n,
		 const char *text, size_t text_len)
{
	(void)user, (void)tokens, (void)n;
	fwrite(text, 1, text_len, stdout);
	fflush(stdout);
}

int main(int argc, char **argv)
{
	struct kvc_options opt = { .socket = argc > 1 ? argv[1] : NULL };
	struct kvc_part part = { .kind = KV_PART_TEXT,
				 .flags = KV_PART_BOS,
				 .text = argc > 2 ? argv[2] : "Once" };
	struct kvc_generate ask = { .parts = &part,
				    .n_parts = 1,
				    .max_tokens = 32,
				    .on_tokens = show };
	struct kvc_gen *gen = NULL;
	struct kvc *c;
	int ret = kvc_open(&c, &opt);

	if (!ret)
		ret = kvc_generate(c, &ask, &gen);
	if (ret < 0)
		fprintf(stderr, "example: %s\n", strerror(-ret));
	else
		printf("\n(%d tokens)\n", ret);
	if (gen)
		kvc_generate_free(c, gen);
	return ret < 0;
}
