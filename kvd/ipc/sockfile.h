/*
 * sockfile.h - a listening UNIX socket in the file system
 */
#ifndef KVD_IPC_SOCKFILE_H
#define KVD_IPC_SOCKFILE_H

#include <sys/types.h>

/*
 * Bind and listen, type SOCK_SEQPACKET or SOCK_STREAM, non-blocking, closed on
 * exec, with this mode from the first moment on. A socket file that nobody
 * listens on is replaced. The descriptor, or -EADDRINUSE somebody listens
 * there, -EEXIST the path is no socket, -errno.
 */
int sockfile_open(const char *path, int type, mode_t mode);
/* Give it to uid and gid ((uid_t)-1: as it is); -errno. */
int sockfile_own(const char *path, uid_t uid, gid_t gid);

#endif
