/*
 * sim_trace.c - trace files into memory: Mooncake, Azure, kvd's own; see sim.h
 *
 * The format is found by the content. What ends in .gz goes through gzip(1).
 */
#include "tools/sim.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tools/trace.h"

#define MOST_TOKENS (1ull << 40)

/* ---- building --------------------------------------------------------------- */

static int room(void **at, size_t *have, size_t want, size_t size)
{
	size_t n = *have ? *have : 1024;
	void *p;

	if (want <= *have)
		return 0;
	while (n < want)
		n *= 2;
	p = realloc(*at, n * size);
	if (!p)
		return -ENOMEM;
	*at = p;
	*have = n;
	return 0;
}

/* The number of a block; ids become numbers from 0. */
static int number_of(struct sim_trace *t, uint32_t tenant, uint64_t id,
		     uint32_t *out)
{
	/* the map wants hashes: splitmix64's finalizer */
	uint64_t h = id + 0x9e3779b97f4a7c15u * (tenant + 1ull);
	struct map_id key;
	void *v;

	h = (h ^ (h >> 30)) * 0xbf58476d1ce4e5b9u;
	h = (h ^ (h >> 27)) * 0x94d049bb133111ebu;
	key = (struct map_id){ { (h ^ (h >> 31)) ^ tenant, id } };
	v = map_find(&t->ids, key);
	if (v) {
		*out = (uint32_t)((uintptr_t)v - 1);
		return 0;
	}
	if (t->n_blocks == UINT32_MAX - 1)
		return -EFBIG;
	*out = t->n_blocks++;
	return map_add(&t->ids, key, (void *)((uintptr_t)*out + 1));
}

int sim_add(struct sim_trace *t, const struct sim_request *r,
	    const uint64_t *ids)
{
	struct sim_request *q;
	int ret = room((void **)&t->requests, &t->requests_room,
		       t->n_requests + 1, sizeof(*t->requests));

	if (!ret)
		ret = room((void **)&t->blocks, &t->blocks_room,
			   t->n_accesses + r->n, sizeof(*t->blocks));
	for (uint32_t i = 0; i < r->n && !ret; i++)
		ret = number_of(t, r->tenant, ids[i],
				&t->blocks[t->n_accesses + i]);
	if (ret)
		return ret;
	q = &t->requests[t->n_requests++];
	*q = *r;
	q->first = t->n_accesses;
	t->n_accesses += r->n;
	t->n_convs = r->conv + 1 > t->n_convs ? r->conv + 1 : t->n_convs;
	return 0;
}

int sim_add_private(struct sim_trace *t, const struct sim_request *r,
		    const struct sim_load_opts *o)
{
	const uint64_t n = KV_DIV_UP(r->in_tokens, t->block_tokens);
	const uint64_t common =
		KV_MIN(o->system_tokens, r->in_tokens) / t->block_tokens;
	struct sim_request q = *r;
	uint64_t *ids;
	int ret;

	if (n > TRACE_MAX_BLOCKS)
		return -EFBIG;
	ids = malloc((n + 1) * sizeof(*ids));
	if (!ids)
		return -ENOMEM;
	for (uint64_t i = 0; i < n; i++)
		ids[i] = i < common ? i
				    : ((uint64_t)t->n_requests + 1) << 24 | i;
	q.n = (uint32_t)n;
	q.conv = (uint32_t)t->n_requests;
	ret = sim_add(t, &q, ids);
	free(ids);
	return ret;
}

int sim_add_end(struct sim_trace *t, uint32_t tenant, uint32_t conv)
{
	int ret = room((void **)&t->ends, &t->ends_room, t->n_ends + 1,
		       sizeof(*t->ends));

	if (!ret)
		t->ends[t->n_ends++] =
			(struct sim_end){ .before = (uint32_t)t->n_requests,
					  .tenant = tenant,
					  .conv = conv };
	return ret;
}

void sim_free(struct sim_trace *t)
{
	free(t->requests);
	free(t->blocks);
	free(t->ends);
	map_fini(&t->ids);
	memset(t, 0, sizeof(*t));
}

/* ---- who continues whom ----------------------------------------------------- */

/* Traces do not say it: a request whose prompt begins with the whole prompt of an
 * earlier one (its last full block) is the next turn of that conversation. */
static int find_conversations(struct sim_trace *t)
{
	uint32_t *tip = calloc((size_t)t->n_blocks + 1, sizeof(*tip));

	if (!tip)
		return -ENOMEM;
	t->n_convs = 0;
	for (size_t i = 0; i < t->n_requests; i++) {
		struct sim_request *r = &t->requests[i];
		const uint32_t *b = &t->blocks[r->first];
		const uint64_t full = r->in_tokens / t->block_tokens;
		uint32_t n = (uint32_t)KV_MIN(full, (uint64_t)r->n), j = n;

		while (j && !tip[b[j - 1]])
			j--;
		r->conv = j ? tip[b[j - 1]] - 1 : t->n_convs++;
		if (j)
			tip[b[j - 1]] = 0;
		if (n)
			tip[b[n - 1]] = r->conv + 1;
	}
	free(tip);
	return 0;
}

/* ---- formats ---------------------------------------------------------------- */

static int read_ids(json_t *list, uint64_t **ids, size_t *ids_room,
		    struct sim_request *r)
{
	json_t *v;
	size_t i;

	if (!json_is_array(list) || json_array_size(list) > TRACE_MAX_BLOCKS)
		return -EBADMSG;
	r->n = (uint32_t)json_array_size(list);
	if (room((void **)ids, ids_room, r->n, sizeof(**ids)))
		return -ENOMEM;
	json_array_foreach(list, i, v)
	{
		if (!json_is_integer(v))
			return -EBADMSG;
		(*ids)[i] = (uint64_t)json_integer_value(v);
	}
	return 0;
}

static int mooncake_line(struct sim_trace *t, const char *line, uint64_t **ids,
			 size_t *ids_room)
{
	struct sim_request r = { 0 };
	json_int_t time_ms, in, out;
	json_t *list, *j = json_loads(line, 0, NULL);
	int ret = -EBADMSG;

	if (j &&
	    !json_unpack(j, "{s:I, s:I, s:I, s:o}", "timestamp", &time_ms,
			 "input_length", &in, "output_length", &out, "hash_ids",
			 &list) &&
	    time_ms >= 0 && in >= 0 && out >= 0) {
		r.time_ms = (uint64_t)time_ms;
		r.in_tokens = (uint64_t)in;
		r.out_tokens = (uint64_t)out;
		ret = read_ids(list, ids, ids_room, &r);
	}
	if (!ret)
		ret = sim_add(t, &r, *ids);
	json_decref(j);
	return ret;
}

/* Days since 1970 (Hinnant, "chrono-compatible low-level date algorithms"). */
static int64_t day_of(int y, int m, int d)
{
	const int64_t year = y - (m < 3), era = year / 400;
	const int64_t of_era = year - era * 400;
	const int64_t of_year = (153 * (m + (m > 2 ? -3 : 9)) + 2) / 5 + d - 1;

	return era * 146097 + of_era * 365 + of_era / 4 - of_era / 100 +
	       of_year - 719468;
}

/* Digits and no sign; what is behind them, or NULL. */
static const char *count_at(const char *s, uint64_t *out)
{
	char *end;

	if (*s < '0' || *s > '9')
		return NULL;
	errno = 0;
	*out = strtoull(s, &end, 10);
	return errno || *out > MOST_TOKENS ? NULL : end;
}

/* "2023-11-16 18:15:46.6805900,374,44", perhaps with a zone, of which there is one in a
 * file; time from the first day on. */
static int azure_line(struct sim_trace *t, const char *line, int64_t *first,
		      const struct sim_load_opts *o)
{
	struct sim_request r = { 0 };
	int y, mo, d, h, m, n = 0;
	const char *at;
	int64_t day;
	double s;

	if (sscanf(line, "%4d-%2d-%2d %2d:%2d:%lf%n", &y, &mo, &d, &h, &m, &s,
		   &n) != 6 ||
	    y < 1970 || mo < 1 || mo > 12 || d < 1 || d > 31 || h < 0 ||
	    h > 23 || m < 0 || m > 59 || !(s >= 0 && s < 61))
		return -EBADMSG;
	at = line + n;
	if (*at == '+' || *at == '-')
		at += 1 + strspn(at + 1, "0123456789:");
	at = *at == ',' ? count_at(at + 1, &r.in_tokens) : NULL;
	at = at && *at == ',' ? count_at(at + 1, &r.out_tokens) : NULL;
	if (!at || at[strspn(at, "\r\n")])
		return -EBADMSG;
	day = day_of(y, mo, d);
	if (!*first)
		*first = day;
	if (day < *first)
		return -EBADMSG;
	r.time_ms =
		(uint64_t)((day - *first) * 86400 + h * 3600 + m * 60) * 1000 +
		(uint64_t)(s * 1000);
	return sim_add_private(t, &r, o);
}

/* What is not kvd's own: one request a line. */
static int load_lines(struct sim_trace *t, FILE *f, const char *path,
		      const struct sim_load_opts *o)
{
	char *line = NULL;
	uint64_t *ids = NULL;
	size_t line_room = 0, ids_room = 0, n = 0;
	int ret = 0, json = 0;
	int64_t day = 0;

	while (!ret && getline(&line, &line_room, f) > 0) {
		n++;
		if (n == 1) {
			json = *line == '{';
			t->block_tokens = json ? 512 : o->block_tokens;
			if (!strncmp(line, "TIMESTAMP,", 10))
				continue;
		}
		if (!line[strspn(line, " \t\r\n")])
			continue;
		ret = json ? mooncake_line(t, line, &ids, &ids_room)
			   : azure_line(t, line, &day, o);
	}
	free(line);
	free(ids);
	if (ret == -EBADMSG)
		fprintf(stderr, "kvsim: %s:%zu: not a line of a trace\n", path,
			n);
	return ret ? ret : json ? find_conversations(t) : 0;
}

/* kvd's own. Sequence numbers become conversations. */
static int load_kvd(struct sim_trace *t, FILE *f, const char *path)
{
	struct trace_reader rd;
	struct trace_event e;
	struct map seqs;
	int ret = trace_open(&rd, f);

	if (ret) {
		fprintf(stderr, "kvsim: %s: not a trace of version %d\n", path,
			TRACE_VERSION);
		return ret;
	}
	map_init(&seqs);
	t->block_tokens = rd.block_tokens;
	while ((ret = trace_read(&rd, &e)) == 1) {
		const uint64_t h = (e.seq + 1) * 0x9e3779b97f4a7c15u;
		const struct map_id key = { { h ^ (h >> 32), e.tenant } };
		const uintptr_t v = (uintptr_t)map_find(&seqs, key);
		const struct sim_request r = {
			.time_ms = e.time_ms,
			.in_tokens = e.in_tokens,
			.out_tokens = e.out_tokens,
			.tenant = e.tenant,
			.flags = e.flags,
			.n = e.n_ids,
			.conv = v ? (uint32_t)(v - 1) : t->n_convs,
		};

		ret = e.end ? (v ? sim_add_end(t, r.tenant, r.conv) : 0)
			    : sim_add(t, &r, e.ids);
		if (!ret && !e.end && !v)
			ret = map_add(&seqs, key,
				      (void *)(uintptr_t)(r.conv + 1ull));
		if (!ret && e.end && v)
			(void)map_del(&seqs, key);
		if (ret)
			break;
	}
	if (ret == -EBADMSG)
		fprintf(stderr,
			"kvsim: %s:%" PRIu64 ": not a line of a trace\n", path,
			rd.line);
	map_fini(&seqs);
	trace_close(&rd);
	return ret;
}

static int load_stream(struct sim_trace *t, FILE *f, const char *path,
		       const struct sim_load_opts *o)
{
	const int c = getc(f);
	int ret;

	if (c == EOF) {
		fprintf(stderr, "kvsim: %s: empty\n", path);
		return -EBADMSG;
	}
	ungetc(c, f);
	ret = c == 'k' || c == '#' ? load_kvd(t, f, path)
				   : load_lines(t, f, path, o);
	if (!ret && ferror(f))
		ret = -EIO;
	if (!ret && !t->n_accesses) {
		fprintf(stderr, "kvsim: %s: no requests\n", path);
		ret = -EBADMSG;
	}
	return ret;
}

/* gzip -dc path; *pid is to be waited for. */
static FILE *open_gz(const char *path, pid_t *pid)
{
	int fd[2];

	if (pipe2(fd, O_CLOEXEC))
		return NULL;
	*pid = fork();
	if (!*pid) {
		dup2(fd[1], STDOUT_FILENO);
		execlp("gzip", "gzip", "-dc", "--", path, (char *)NULL);
		perror("kvsim: gzip");
		_exit(127);
	}
	close(fd[1]);
	if (*pid < 0) {
		close(fd[0]);
		return NULL;
	}
	return fdopen(fd[0], "r");
}

static int load_file(struct sim_trace *t, const char *path,
		     const struct sim_load_opts *o)
{
	const size_t len = strlen(path);
	const int gz = len > 3 && !strcmp(path + len - 3, ".gz");
	pid_t pid = -1;
	FILE *f = gz ? open_gz(path, &pid) : fopen(path, "re");
	int ret, status = 0;

	if (!f) {
		fprintf(stderr, "kvsim: %s: %s\n", path, strerror(errno));
		return -errno;
	}
	ret = load_stream(t, f, path, o);
	fclose(f);
	if (pid > 0 && waitpid(pid, &status, 0) == pid && status && !ret) {
		fprintf(stderr, "kvsim: %s: gzip failed\n", path);
		ret = -EIO;
	}
	return ret;
}

int sim_load(struct sim_trace *t, const char *path,
	     const struct sim_load_opts *o)
{
	struct stat st;
	int ret;

	memset(t, 0, sizeof(*t));
	map_init(&t->ids);
	if (stat(path, &st)) {
		ret = -errno;
		fprintf(stderr, "kvsim: %s: %s\n", path, strerror(-ret));
		return ret;
	}
	ret = S_ISDIR(st.st_mode) ? sim_load_servegen(t, path, o)
				  : load_file(t, path, o);
	if (ret == -ENOMEM || ret == -EFBIG)
		fprintf(stderr, "kvsim: %s: %s\n", path, strerror(-ret));
	if (ret)
		sim_free(t);
	return ret;
}

/* The ends that come before request i. */
static int save_ends(const struct sim_trace *t, FILE *f, size_t i,
		     uint64_t time_ms, size_t *next)
{
	int ret = 0;

	for (; *next < t->n_ends && t->ends[*next].before <= i && !ret;
	     (*next)++)
		ret = trace_write(f, &(struct trace_event){
					     .end = 1,

					     .time_ms = time_ms,
					     .tenant = t->ends[*next].tenant,
					     .seq = t->ends[*next].conv });
	return ret;
}

/* 1: the format has no words for it, so that a reader would refuse it. */
static int cannot_say(const struct sim_trace *t, const struct sim_request *r,
		      uint64_t last_ms)
{
	return r->time_ms < last_ms ||
	       r->n != r->in_tokens / t->block_tokens +
			       !!(r->in_tokens % t->block_tokens);
}

static int save_request(const struct sim_trace *t, FILE *f,
			const struct sim_request *r, uint64_t *ids)
{
	const struct trace_event e = { .time_ms = r->time_ms,
				       .tenant = r->tenant,
				       .seq = r->conv,
				       .in_tokens = r->in_tokens,
				       .out_tokens = r->out_tokens,
				       .flags = r->flags,
				       .ids = ids,
				       .n_ids = r->n };

	for (uint32_t j = 0; j < r->n; j++)
		ids[j] = t->blocks[r->first + j];
	return trace_write(f, &e);
}

static int save_all(const struct sim_trace *t, FILE *f, uint64_t *ids)
{
	uint64_t time_ms = 0;
	size_t next = 0;
	int ret = trace_write_head(f, t->block_tokens);

	for (size_t i = 0; i < t->n_requests && !ret; i++) {
		const struct sim_request *r = &t->requests[i];

		if (cannot_say(t, r, time_ms)) {
			fprintf(stderr,
				"kvsim: --convert: request %zu is before the "
				"last one, or has not a block for each %" PRIu32
				" tokens\n",
				i + 1, t->block_tokens);
			return -EBADMSG;
		}
		time_ms = r->time_ms;
		ret = save_ends(t, f, i, time_ms, &next);
		if (!ret)
			ret = save_request(t, f, r, ids);
	}
	return ret ? ret : save_ends(t, f, t->n_requests, time_ms, &next);
}

int sim_save(const struct sim_trace *t, const char *path)
{
	FILE *f = fopen(path, "we");
	uint64_t *ids = malloc(TRACE_MAX_BLOCKS * sizeof(*ids));
	int ret = !f ? -errno : !ids ? -ENOMEM : save_all(t, f, ids);

	free(ids);
	if (f && fclose(f) && (!ret || ret == -EIO))
		ret = -errno;
	if (ret && ret != -EBADMSG)
		fprintf(stderr, "kvsim: %s: %s\n", path, strerror(-ret));
	return ret;
}
