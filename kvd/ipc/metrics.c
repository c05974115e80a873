/*
 * metrics.c - Prometheus text over HTTP, on a UNIX socket or a loopback port
 *
 * libmicrohttpd runs one thread; requests are few, small and bounded in number
 * and time. The answer is stat_render(), which any thread may call.
 */
#include "kvd/ipc/metrics.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include "kvd/base/stat.h"
#include "kvd/ipc/sockfile.h"

#define MAX_CONNECTIONS 16u
#define TIMEOUT_S	5u
#define CONTENT_TYPE	"text/plain; version=0.0.4; charset=utf-8"

struct metrics {
	struct MHD_Daemon *http;
	char path[108]; /* of a UNIX socket, or "" */
};

static enum MHD_Result reply(struct MHD_Connection *c, unsigned int status,
			     char *body, size_t len,
			     enum MHD_ResponseMemoryMode mode)
{
	struct MHD_Response *r =
		MHD_create_response_from_buffer(len, body, mode);
	enum MHD_Result ret;

	if (!r)
		return MHD_NO;
	/* Without the header it is still readable. */
	(void)MHD_add_response_header(r, MHD_HTTP_HEADER_CONTENT_TYPE,
				      CONTENT_TYPE);
	ret = MHD_queue_response(c, status, r);
	MHD_destroy_response(r);
	return ret;
}

static enum MHD_Result answer(void *arg, struct MHD_Connection *c,
			      const char *url, const char *method,
			      const char *version, const char *upload,
			      size_t *upload_len, void **state)
{
	static char not_found[] = "only GET /metrics\n";
	char *text;
	size_t len;

	(void)arg;
	(void)version;
	(void)upload;
	(void)upload_len;
	(void)state;
	if (strcmp(method, MHD_HTTP_METHOD_GET) || strcmp(url, "/metrics"))
		return reply(c, MHD_HTTP_NOT_FOUND, not_found,
			     sizeof(not_found) - 1, MHD_RESPMEM_PERSISTENT);
	if (stat_render(&text, &len))
		return MHD_NO;
	return reply(c, MHD_HTTP_OK, text, len, MHD_RESPMEM_MUST_FREE);
}

/* "127.0.0.1:9100" or "[::1]:9100"; -EINVAL for anything but loopback. */
static int parse_tcp(const char *s, struct sockaddr_storage *out,
		     socklen_t *len)
{
	struct sockaddr_in *v4 = (struct sockaddr_in *)out;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)out;
	const char *colon = strrchr(s, ':');
	unsigned long port;
	char *end;

	if (!colon)
		return -EINVAL;
	errno = 0;
	port = strtoul(colon + 1, &end, 10);
	if (errno || *end || end == colon + 1 || port > 65535)
		return -EINVAL;
	memset(out, 0, sizeof(*out));
	if (colon - s == 9 && !strncmp(s, "127.0.0.1", 9)) {
		v4->sin_family = AF_INET;
		v4->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
		v4->sin_port = htons((uint16_t)port);
		*len = sizeof(*v4);
		return 0;
	}
	if (colon - s == 5 && !strncmp(s, "[::1]", 5)) {
		v6->sin6_family = AF_INET6;
		v6->sin6_addr = in6addr_loopback;
		v6->sin6_port = htons((uint16_t)port);
		*len = sizeof(*v6);
		return 0;
	}
	return -EINVAL;
}

static int open_tcp(const char *s)
{
	struct sockaddr_storage addr;
	const int one = 1;
	socklen_t len;
	int fd, ret;

	ret = parse_tcp(s, &addr, &len);
	if (ret)
		return ret;
	fd = socket(addr.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK,
		    0);
	if (fd < 0)
		return -errno;
	if (!setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof(one)) &&
	    !bind(fd, (const struct sockaddr *)&addr, len) && !listen(fd, 16))
		return fd;
	ret = -errno;
	(void)close(fd); /* nobody has connected */
	return ret;
}

static int open_where(struct metrics *m, const char *where)
{
	if (!strncmp(where, "tcp:", 4))
		return open_tcp(where + 4);
	if (strncmp(where, "unix:", 5) || strlen(where + 5) >= sizeof(m->path))
		return -EINVAL;
	memcpy(m->path, where + 5, strlen(where + 5) + 1);
	return sockfile_open(m->path, SOCK_STREAM, 0660);
}

int metrics_new(struct metrics **out, const char *where, char *err,
		size_t err_len)
{
	struct metrics *m = calloc(1, sizeof(*m));
	int fd;

	if (!m)
		return -ENOMEM;
	fd = open_where(m, where);
	if (fd < 0)
		goto fail;
	m->http = MHD_start_daemon(
		MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL, 0, NULL, NULL,
		answer, NULL, MHD_OPTION_LISTEN_SOCKET, fd,
		MHD_OPTION_CONNECTION_LIMIT, MAX_CONNECTIONS,
		MHD_OPTION_CONNECTION_TIMEOUT, TIMEOUT_S, MHD_OPTION_END);
	if (!m->http) {
		(void)close(fd); /* nobody was answered */
		fd = -EIO;
		goto fail;
	}
	*out = m;
	return 0;
fail:
	(void)snprintf(err, err_len, "metrics %s: %s", where, strerror(-fd));
	free(m);
	return fd;
}

void metrics_free(struct metrics *m)
{
	if (!m)
		return;
	MHD_stop_daemon(m->http); /* closes the socket */
	if (m->path[0])
		(void)unlink(m->path); /* it may be gone */
	free(m);
}
