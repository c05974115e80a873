/*
 * sockfile.c - a listening UNIX socket in the file system
 */
#include "kvd/ipc/sockfile.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define BACKLOG 512

/* Remove a socket file that nobody listens on: only then a connection is refused. */
static int clear_stale(const struct sockaddr_un *addr, int type)
{
	struct stat st;
	int fd, ret;

	if (lstat(addr->sun_path, &st))
		return errno == ENOENT ? 0 : -errno;
	if (!S_ISSOCK(st.st_mode))
		return -EEXIST;
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	ret = connect(fd, (const struct sockaddr *)addr, sizeof(*addr)) ? -errno
									: 0;
	(void)close(fd); /* nothing was said */
	if (ret == -EACCES || ret == -EPERM)
		return ret;
	/* full, or of another type: somebody listens */
	ret = ret == -ECONNREFUSED || ret == -ENOENT ? 0 : -EADDRINUSE;
	if (!ret && unlink(addr->sun_path) && errno != ENOENT)
		ret = -errno;
	return ret;
}

static int bind_private(int fd, const struct sockaddr_un *addr)
{
	const mode_t old = umask(0177);
	const int ret = bind(fd, (const struct sockaddr *)addr, sizeof(*addr))
				? -errno
				: 0;

	(void)umask(old);
	return ret;
}

int sockfile_open(const char *path, int type, mode_t mode)
{
	struct sockaddr_un addr = { .sun_family = AF_UNIX };
	int fd, ret;

	if (strlen(path) >= sizeof(addr.sun_path))
		return -ENAMETOOLONG;
	memcpy(addr.sun_path, path, strlen(path) + 1);
	ret = clear_stale(&addr, type);
	if (ret)
		return ret;
	fd = socket(AF_UNIX, type | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	ret = bind_private(fd, &addr);
	if (ret)
		goto out;
	/* in this order: nobody who may connect is told that he may not */
	if (!chmod(path, mode) && !listen(fd, BACKLOG))
		return fd;
	ret = -errno;
	(void)unlink(path); /* ours */
out:
	(void)close(fd); /* nobody has connected */
	return ret;
}

int sockfile_own(const char *path, uid_t uid, gid_t gid)
{
	return chown(path, uid, gid) ? -errno : 0;
}
