/*
 * trace.c - read and write recordings; see trace.h
 */
#include "tools/trace.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int trace_write_head(FILE *f, uint32_t block_tokens)
{
	return fprintf(f, "kvd-trace %d block=%" PRIu32 "\n", TRACE_VERSION,
		       block_tokens) < 0
		       ? -EIO
		       : 0;
}

int trace_write(FILE *f, const struct trace_event *e)
{
	int ret;

	if (e->end) {
		ret = fprintf(f, "e %" PRIu64 " %" PRIu32 " %" PRIu64 "\n",
			      e->time_ms, e->tenant, e->seq);
		return ret < 0 ? -EIO : 0;
	}
	ret = fprintf(f,
		      "r %" PRIu64 " %" PRIu32 " %" PRIu64 " %" PRIu64
		      " %" PRIu64 " %c",
		      e->time_ms, e->tenant, e->seq, e->in_tokens,
		      e->out_tokens, e->flags & TRACE_ONE_SHOT ? 'o' : '-');
	for (uint32_t i = 0; i < e->n_ids && ret >= 0; i++)
		ret = fprintf(f, " %" PRIx64, e->ids[i]);
	return ret < 0 || fputc('\n', f) == EOF ? -EIO : 0;
}

/* The next line that is not a remark: 1, 0 at the end. */
static int next_line(struct trace_reader *r)
{
	ssize_t n;

	do {
		errno = 0;
		n = getline(&r->text, &r->text_room, r->f);
		if (n < 0)
			return errno == ENOMEM ? -ENOMEM
			       : ferror(r->f)  ? -EIO
					       : 0;
		if (strlen(r->text) != (size_t)n)
			return -EBADMSG;
		r->line++;
	} while (*r->text == '#');
	while (n && isspace((unsigned char)r->text[n - 1]))
		r->text[--n] = '\0';
	return 1;
}

int trace_open(struct trace_reader *r, FILE *f)
{
	unsigned int version;
	char end;
	int ret;

	memset(r, 0, sizeof(*r));
	r->f = f;
	ret = next_line(r);
	if (ret == 1 && (sscanf(r->text, "kvd-trace %u block=%" SCNu32 "%c",
				&version, &r->block_tokens, &end) != 2 ||
			 version != TRACE_VERSION || !r->block_tokens))
		ret = -EBADMSG;
	if (ret == 1)
		return 0;
	trace_close(r);
	return ret ? ret : -EBADMSG;
}

void trace_close(struct trace_reader *r)
{
	free(r->text);
	free(r->ids);
	r->text = NULL;
	r->ids = NULL;
}

/* A number behind one space; -EBADMSG. */
static int number(char **p, int base, uint64_t max, uint64_t *out)
{
	char *end;

	if (**p != ' ' || !isxdigit((unsigned char)(*p)[1]))
		return -EBADMSG;
	errno = 0;
	*out = strtoull(*p + 1, &end, base);
	if (errno || end == *p + 1 || *out > max || (*end && *end != ' '))
		return -EBADMSG;
	*p = end;
	return 0;
}

static int read_ids(struct trace_reader *r, char *p, struct trace_event *e)
{
	while (*p) {
		if (e->n_ids == r->ids_room) {
			const size_t room = r->ids_room ? 2 * r->ids_room : 64;
			uint64_t *ids = realloc(r->ids, room * sizeof(*ids));

			if (!ids)
				return -ENOMEM;
			r->ids = ids;
			r->ids_room = room;
		}
		if (e->n_ids == TRACE_MAX_BLOCKS ||
		    number(&p, 16, UINT64_MAX, &r->ids[e->n_ids]))
			return -EBADMSG;
		e->n_ids++;
	}
	e->ids = r->ids;
	return 0;
}

int trace_read(struct trace_reader *r, struct trace_event *e)
{
	uint64_t tenant;
	char *p;
	int ret = next_line(r);

	if (ret != 1)
		return ret;
	memset(e, 0, sizeof(*e));
	if (*r->text != 'r' && *r->text != 'e')
		return -EBADMSG;
	e->end = *r->text == 'e';
	p = r->text + 1;
	if (number(&p, 10, UINT64_MAX, &e->time_ms) ||
	    number(&p, 10, UINT32_MAX, &tenant) ||
	    number(&p, 10, UINT64_MAX, &e->seq) || e->time_ms < r->last_ms)
		return -EBADMSG;
	e->tenant = (uint32_t)tenant;
	r->last_ms = e->time_ms;
	if (e->end)
		return *p ? -EBADMSG : 1;
	if (number(&p, 10, UINT64_MAX, &e->in_tokens) ||
	    number(&p, 10, UINT64_MAX, &e->out_tokens) || *p != ' ' ||
	    (p[1] != '-' && p[1] != 'o') || (p[2] && p[2] != ' '))
		return -EBADMSG;
	e->flags = p[1] == 'o' ? TRACE_ONE_SHOT : 0;
	ret = read_ids(r, p + 2, e);
	if (ret)
		return ret;
	return e->n_ids == e->in_tokens / r->block_tokens +
				       !!(e->in_tokens % r->block_tokens)
		       ? 1
		       : -EBADMSG;
}
